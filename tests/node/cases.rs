//! What people and controllers see of the node, and what happens when they meddle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command::run;
use crate::host::{self, LONG, SOON, all_running, check, docker, eventually, kubectl, plinth, shell, status};
use crate::sandbox::note;

const MANIFESTS: &str = "/etc/kubernetes/manifests";
const API_SERVER: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";
const AWAY: &str = "/etc/kubernetes/kube-apiserver.yaml";
const STAY: &str = "trap 'exit 0' TERM; sleep 9999 & wait";
/// As long as the garbage collector of pods has time for six rounds.
const WATCHED: Duration = Duration::from_mins(2);

/// A control plane with its Node; the name of the Node.
fn registered() -> String {
    plinth("init --register-node").ok();
    let name = status()["agent"]["nodeName"].as_str().unwrap().to_owned();
    eventually(LONG, || {
        let node = object(&format!("node {name}")).ok_or("there is no Node")?;
        check(condition(&node, "Ready") == "True", || format!("not ready: {node}"))
    });
    mirrored(LONG);
    name
}

/// An object, if it is there.
fn object(what: &str) -> Option<Value> {
    let ended = kubectl(&format!("get {what} -o json"));
    ended.status.success().then(|| ended.json())
}

fn condition(object: &Value, type_: &str) -> String {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let found = conditions.into_iter().find(|condition| condition["type"] == type_);
    found.and_then(|found| found["status"].as_str()).unwrap_or_default().to_owned()
}

fn apply(object: &Value) {
    let file = format!("/opt/{}.json", object["kind"].as_str().unwrap());
    fs::write(&file, object.to_string()).unwrap();
    // The namespace's service account may not be there yet.
    eventually(SOON, || {
        let ended = kubectl(&format!("apply -f {file}"));
        check(ended.status.success(), || ended.to_string())
    });
}

/// Writes the manifest of a static pod whose one container runs `script`; the API server calls it `<name>-<node>`.
fn manifest(name: &str, script: &str, more: &Value) {
    let mut spec = json!({
        "terminationGracePeriodSeconds": 10,
        "containers": [{ "name": "c", "image": "plinth-test/busybox:1", "command": ["sh", "-c", script] }],
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let metadata = json!({ "name": name, "labels": { "app": name } });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
    // Not seen half written.
    fs::write(format!("{MANIFESTS}/.{name}"), pod.to_string()).unwrap();
    fs::rename(format!("{MANIFESTS}/.{name}"), format!("{MANIFESTS}/{name}.yaml")).unwrap();
}

fn remove_manifest(name: &str) {
    fs::remove_file(format!("{MANIFESTS}/{name}.yaml")).unwrap();
}

/// What the mirror must have of a pod.
fn essence(pod: &Value) -> Value {
    let conditions: BTreeMap<_, _> = pod["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| (one["type"].as_str().unwrap().to_owned(), json!([one["status"], one["reason"], one["message"]])))
        .collect();
    let (metadata, status) = (&pod["metadata"], &pod["status"]);
    let fields = ["phase", "hostIP", "podIP", "podIPs", "qosClass", "containerStatuses", "initContainerStatuses"];
    json!({
        "hash": metadata["annotations"]["kubernetes.io/config.hash"],
        "labels": metadata["labels"],
        "conditions": conditions,
        "status": fields.map(|field| status[field].clone()),
    })
}

fn by_name(list: &Value) -> BTreeMap<String, Value> {
    let name = |pod: &Value| format!("{}/{}", pod["metadata"]["namespace"], pod["metadata"]["name"]);
    list["items"].as_array().unwrap().iter().map(|pod| (name(pod), essence(pod))).collect()
}

/// The agent's `/pods`.
fn static_pods() -> Value {
    shell("curl --silent --show-error --unix-socket /run/plinth/agent.sock http://agent/pods").ok().json()
}

/// Waits until the API server shows exactly the static pods, and each as it is.
#[track_caller]
fn mirrored(limit: Duration) {
    eventually(limit, || {
        let (own, shown) = (by_name(&static_pods()), object("pods --all-namespaces").ok_or("no answer")?);
        let shown = by_name(&shown);
        let differs = |name: &&String| own.get(*name) != shown.get(*name);
        let different: BTreeSet<_> = own.keys().chain(shown.keys()).filter(differs).collect();
        check(!own.is_empty() && different.is_empty(), || format!("{different:?}: {own:#?} are shown as {shown:#?}"))
    });
}

/// The mirror `name`, when it runs and is ready.
#[track_caller]
fn ready(name: &str) -> Value {
    eventually(LONG, || {
        let pod = object(&format!("pod {name}")).ok_or_else(|| format!("there is no {name}"))?;
        check(condition(&pod, "Ready") == "True", || format!("not ready: {}", pod["status"]))?;
        Ok(pod)
    })
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap().to_owned()
}

pub(crate) fn the_node_is_shown_as_a_kubelets() {
    let name = registered();
    let node = object(&format!("node {name}")).unwrap();
    let labels = node["metadata"]["labels"].as_object().unwrap();
    assert_eq!(labels["kubernetes.io/hostname"], name);
    assert!(labels.contains_key("kubernetes.io/arch") && !labels.contains_key("kubernetes.io/os"), "{labels:?}");
    assert!(labels.contains_key("node-role.kubernetes.io/control-plane"), "{labels:?}");
    let taints: Vec<_> = node["spec"]["taints"].as_array().unwrap().iter().map(|taint| &taint["key"]).collect();
    for key in ["plinth.dev/static-pods-only", "node-role.kubernetes.io/control-plane"] {
        assert!(taints.contains(&&json!(key)), "{taints:?}");
    }
    let status = &node["status"];
    for (pointer, begin) in [
        ("/nodeInfo/containerRuntimeVersion", "docker://"),
        ("/nodeInfo/kubeletVersion", "v1.37.1+plinth."),
        ("/nodeInfo/operatingSystem", "linux"),
        ("/allocatable/pods", "110"),
        ("/addresses/0/address", "10.213.0.2"),
    ] {
        let text = status.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        assert!(text.starts_with(begin), "{pointer}: {status}");
    }
    let kibibytes = |amount: &Value| amount.as_str().unwrap().trim_end_matches("Ki").parse::<u64>().unwrap();
    let [all, left] = ["capacity", "allocatable"].map(|amounts| kibibytes(&status[amounts]["memory"]));
    assert_eq!(all - left, 100 << 10);

    // A kubelet's Lease, which is renewed.
    let lease = || object(&format!("lease {name} --namespace kube-node-lease")).unwrap();
    let first = lease();
    assert_eq!(first["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(first["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"]);
    eventually(SOON, || check(lease()["spec"]["renewTime"] != first["spec"]["renewTime"], || "not renewed".to_owned()));

    // As kubeadm deploys kube-proxy.
    apply(&json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": "kube-proxy" },
        "spec": {
            "selector": { "matchLabels": { "app": "kube-proxy" } },
            "template": {
                "metadata": { "labels": { "app": "kube-proxy" } },
                "spec": {
                    "nodeSelector": { "kubernetes.io/os": "linux" },
                    "tolerations": [{ "operator": "Exists" }],
                    "containers": [{ "name": "c", "image": "plinth-test/busybox:1" }],
                },
            },
        },
    }));
    eventually(LONG, || {
        let set = object("daemonset kube-proxy").unwrap();
        check(set["status"]["observedGeneration"] == 1, || format!("{}", set["status"]))?;
        check(set["status"]["desiredNumberScheduled"] == 0, || format!("{}", set["status"]))
    });

    // Somebody deletes it: it comes back, and the mirrors are its own.
    kubectl(&format!("delete node {name}")).ok();
    eventually(LONG, || {
        let again = object(&format!("node {name}")).ok_or("there is no Node")?;
        check(uid(&again) != uid(&node), || "it is the old one".to_owned())?;
        let pods = object("pods --all-namespaces").unwrap();
        let owners: Vec<_> =
            pods["items"].as_array().unwrap().iter().map(|pod| &pod["metadata"]["ownerReferences"][0]["uid"]).collect();
        check(owners == vec![&again["metadata"]["uid"]; 4], || format!("the mirrors are owned by {owners:?}"))
    });
}

pub(crate) fn a_mirror_comes_back_and_its_container_does_not_notice() {
    let name = registered();
    let before = all_running(SOON);
    let pod = format!("etcd-{name} --namespace kube-system");
    let first = ready(&pod);
    let owners = &first["metadata"]["ownerReferences"];
    assert_eq!(owners.as_array().unwrap().len(), 1);
    assert_eq!((&owners[0]["kind"], &owners[0]["controller"]), (&json!("Node"), &json!(true)));
    let annotations = &first["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/config.mirror"], annotations["kubernetes.io/config.hash"]);
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    let mut old = uid(&first);
    for how in ["--grace-period=30", "--grace-period=0 --force"] {
        let begin = Instant::now();
        kubectl(&format!("delete pod {pod} --wait=false {how}")).ok();
        old = eventually(SOON, || {
            let new = object(&format!("pod {pod}")).ok_or("it is gone")?;
            check(uid(&new) != old && condition(&new, "Ready") == "True", || "not yet".to_owned())?;
            Ok(uid(&new))
        });
        note(&format!("deleted with {how}, it is back after {:.2} s", begin.elapsed().as_secs_f64()));
    }
    kubectl(&format!("label pod {pod} meddled=with")).ok();
    kubectl(&format!("set image pod/{pod} etcd=registry.k8s.io/etcd:0")).ok();
    mirrored_but_for_labels();
    // Whatever they have done there, nothing has come of it here.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert_eq!(all_running(SOON), before);
    }

    // A Service finds a static pod by its labels.
    let more = json!({ "containers": [{
        "name": "c", "image": "plinth-test/busybox:1", "command": ["sh", "-c", STAY],
        "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } },
    }], "priorityClassName": "system-node-critical", "hostNetwork": true });
    manifest("web", STAY, &more);
    let web = ready(&format!("web-{name}"));
    assert_eq!((&web["status"]["qosClass"], &web["spec"]["priority"]), (&json!("Burstable"), &json!(2_000_001_000)));
    kubectl("create service clusterip web --tcp=80:80").ok();
    eventually(LONG, || {
        let slices = object("endpointslices --selector kubernetes.io/service-name=web").unwrap();
        let endpoint = &slices["items"][0]["endpoints"][0];
        let found = (&endpoint["addresses"], &endpoint["conditions"]["ready"]);
        check(found == (&json!(["10.213.0.2"]), &json!(true)), || format!("{slices}"))
    });
}

/// The labels of one that somebody has edited stay so until it is made again.
#[track_caller]
fn mirrored_but_for_labels() {
    eventually(SOON, || {
        let statuses = |list: &Value| {
            let pods = by_name(list);
            pods.into_iter().map(|(name, pod)| (name, pod["status"].clone())).collect::<BTreeMap<_, _>>()
        };
        let (own, shown) = (statuses(&static_pods()), statuses(&object("pods --all-namespaces").unwrap()));
        check(own == shown, || format!("{own:#?} are shown as {shown:#?}"))
    });
}

pub(crate) fn a_mirror_follows_its_file() {
    let name = registered();
    let init = json!([
        { "name": "once", "image": "plinth-test/busybox:1", "command": ["sh", "-c", "exit 0"] },
        { "name": "side", "image": "plinth-test/busybox:1", "command": ["sh", "-c", STAY], "restartPolicy": "Always" },
    ]);
    // It does not care about being told, so that its grace is used up.
    manifest("web", "trap '' TERM; while :; do sleep 1; done", &json!({ "initContainers": init }));
    let old = ready(&format!("web-{name}"));
    mirrored(SOON);
    manifest("web", STAY, &json!({ "initContainers": init }));
    let begin = Instant::now();
    let kept = loop {
        let seen = object(&format!("pod web-{name}"));
        match seen {
            Some(seen) if uid(&seen) == uid(&old) => assert_eq!(seen["status"]["phase"], "Running"),
            _ => break begin.elapsed(),
        }
        assert!(begin.elapsed() < LONG);
    };
    note(&format!("the mirror of the old pod stayed for {:.1} s of a grace of 10 s", kept.as_secs_f64()));
    assert!(kept >= Duration::from_secs(9), "{kept:?}");
    let new = ready(&format!("web-{name}"));
    assert_ne!(uid(&new), uid(&old));
    mirrored(SOON);
    remove_manifest("web");
    eventually(LONG, || check(object(&format!("pod web-{name}")).is_none(), || "it is still shown".to_owned()));
    assert_eq!(docker(&format!("ps --all --quiet --filter label=io.kubernetes.pod.name=web-{name}")), "");

    // One that crashes again and again is shown so.
    manifest("bad", "exit 3", &json!({}));
    eventually(LONG, || {
        let bad = object(&format!("pod bad-{name}")).ok_or("there is none")?;
        let container = &bad["status"]["containerStatuses"][0];
        check(container["restartCount"].as_u64() >= Some(2), || format!("{container}"))?;
        check(container["state"]["waiting"]["reason"] == "CrashLoopBackOff", || format!("{container}"))?;
        check(container["lastState"]["terminated"]["exitCode"] == 3, || format!("{container}"))
    });
    mirrored(SOON);
}

pub(crate) fn nobody_else_takes_the_mirrors_away() {
    registered();
    let uids = || -> BTreeSet<_> {
        object("pods --all-namespaces").unwrap()["items"].as_array().unwrap().iter().map(uid).collect()
    };
    let before = uids();
    let until = Instant::now() + WATCHED;
    while Instant::now() < until {
        assert_eq!(uids(), before);
        thread::sleep(Duration::from_secs(1));
    }
    // The collector itself was there, and says that it has deleted nothing.
    let id = docker("ps --quiet --filter label=io.kubernetes.container.name=kube-controller-manager");
    let log = run(Command::new("docker").args(["logs", id.trim()]), SOON).ok();
    let lines: Vec<_> = log.stderr.lines().filter(|line| line.contains("gc_controller.go")).collect();
    assert!(lines.iter().any(|line| line.contains("Starting GC controller")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("eleting") || line.contains("rphan")), "{lines:?}");
}

pub(crate) fn what_was_missed_is_caught_up_with() {
    let name = registered();
    manifest("stays", STAY, &json!({}));
    manifest("goes", STAY, &json!({}));
    manifest("changes", STAY, &json!({}));
    manifest("crashes", STAY, &json!({}));
    for pod in ["stays", "goes", "changes", "crashes"] {
        ready(&format!("{pod}-{name}"));
    }
    fs::rename(API_SERVER, AWAY).unwrap();
    let begin = Instant::now();
    eventually(LONG, || check(object("nodes").is_none(), || "the API server still answers".to_owned()));
    // Static pods are run as always.
    remove_manifest("goes");
    manifest("changes", "sleep 9998", &json!({}));
    manifest("comes", STAY, &json!({ "restartPolicy": "Never" }));
    let id = docker(&format!(
        "ps --quiet --filter label=io.kubernetes.pod.name=crashes-{name} --filter label=io.kubernetes.container.name=c"
    ));
    docker(&format!("kill {id}"));
    eventually(LONG, || {
        let pods = static_pods();
        let pods = by_name(&pods);
        let ready =
            |name: &str| pods.iter().any(|(key, pod)| key.contains(name) && pod["conditions"]["Ready"][0] == "True");
        check(["stays", "changes", "comes", "crashes"].into_iter().all(ready), || format!("{pods:#?}"))?;
        check(!pods.keys().any(|key| key.contains("goes")), || "one that was removed is there".to_owned())
    });
    let said = status();
    let warnings = said["agent"]["warnings"].as_array().unwrap();
    assert!(
        warnings.iter().any(|one| one.as_str().unwrap().contains("the API server cannot be asked")),
        "{warnings:?}"
    );
    while begin.elapsed() < WATCHED {
        manifest("edited", &format!("sleep {}", 5000 + begin.elapsed().as_secs()), &json!({}));
        thread::sleep(Duration::from_secs(5));
    }
    fs::rename(AWAY, API_SERVER).unwrap();
    host::healthy(LONG);
    let back = Instant::now();
    mirrored(LONG);
    note(&format!("all mirrors are right {:.1} s after the API server is healthy", back.elapsed().as_secs_f64()));
    for pod in ["stays", "changes", "comes", "crashes", "edited"] {
        ready(&format!("{pod}-{name}"));
    }
    eventually(LONG, || {
        let node = object(&format!("node {name}")).ok_or("there is no Node")?;
        check(condition(&node, "Ready") == "True", || format!("{}", node["status"]["conditions"]))
    });
}

pub(crate) fn pods_of_the_api_server_are_told() {
    let name = registered();
    apply(&json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "bound" },
        "spec": { "nodeName": name, "containers": [{ "name": "c", "image": "plinth-test/busybox:1" }] },
    }));
    eventually(LONG, || {
        let pod = object("pod bound").ok_or("there is none")?;
        let status = &pod["status"];
        check(status["phase"] == "Pending" && status["reason"] == "StaticPodsOnly", || format!("{status}"))?;
        check(condition(&pod, "Ready") == "False", || format!("{status}"))
    });
    eventually(SOON, || {
        let events = object("events --field-selector involvedObject.name=bound").ok_or("no answer")?;
        check(events["items"][0]["reason"] == "StaticPodsOnly", || format!("{events}"))
    });
    let told = || {
        let status = status();
        let warnings = status["warnings"].as_array().unwrap().clone();
        warnings.iter().any(|warning| warning.as_str().unwrap().contains("default/bound"))
    };
    eventually(SOON, || check(told(), || "plinth status does not tell it".to_owned()));
    assert_eq!(docker("ps --all --quiet --filter label=io.kubernetes.pod.name=bound"), "");
    // Nobody waits for what does not run.
    kubectl("delete pod bound --timeout=10s").ok();
    eventually(SOON, || check(!told(), || "plinth status still tells it".to_owned()));
}

pub(crate) fn events_have_the_kubelets_reasons() {
    let name = registered();
    let counts = |pod: &str| -> BTreeMap<String, u64> {
        let list = object(&format!("events --field-selector involvedObject.name={pod}-{name}")).unwrap_or_default();
        let mut counts = BTreeMap::new();
        for event in list["items"].as_array().into_iter().flatten() {
            assert_eq!(event["source"], json!({ "component": "kubelet", "host": name }), "{event}");
            let reason = event["reason"].as_str().unwrap().to_owned();
            *counts.entry(reason).or_default() += event["count"].as_u64().unwrap();
        }
        counts
    };
    let told = |pod: &str, reasons: &[(&str, u64)]| {
        eventually(LONG, || {
            let counts = counts(pod);
            let lacks = reasons.iter().find(|(reason, least)| counts.get(*reason).is_none_or(|count| count < least));
            check(lacks.is_none(), || format!("{pod}: {lacks:?} is missing in {counts:?}"))
        });
    };
    manifest("crashes", "exit 3", &json!({}));
    told("crashes", &[("Pulled", 2), ("Created", 2), ("Started", 2), ("BackOff", 1)]);
    // The same one again is counted, and not another object.
    let objects =
        object(&format!("events --field-selector involvedObject.name=crashes-{name},reason=Started")).unwrap();
    assert_eq!(objects["items"].as_array().unwrap().len(), 1, "{objects}");

    let probe = json!({ "exec": { "command": ["false"] }, "periodSeconds": 1, "failureThreshold": 2 });
    let container = json!({
        "name": "c", "image": "plinth-test/busybox:1", "command": ["sh", "-c", STAY], "livenessProbe": probe,
    });
    manifest("ill", STAY, &json!({ "containers": [container] }));
    told("ill", &[("Started", 1), ("Unhealthy", 2), ("Killing", 1)]);

    // `kubectl describe` finds them by the mirror.
    ready(&format!("etcd-{name} --namespace kube-system"));
    eventually(LONG, || {
        let described = kubectl(&format!("describe pod crashes-{name}"));
        check(described.stdout.contains("Back-off restarting failed container"), || described.to_string())
    });
}

pub(crate) fn the_node_goes_when_nobody_asks_for_it() {
    const KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
    let name = registered();
    let before = all_running(SOON);
    let again = plinth("init").ok();
    assert!(again.stdout.contains("nothing is to be done"), "{again}");
    plinth("init --register-node=false").ok();
    assert_eq!(object(&format!("node {name}")), None);
    eventually(SOON, || {
        let pods = object("pods --all-namespaces").ok_or("no answer")?;
        check(pods["items"] == json!([]), || format!("{pods}"))
    });
    assert!(!fs::exists(KUBECONFIG).unwrap());
    // Nothing that runs has noticed, and nobody registers it again.
    assert_eq!(all_running(SOON), before);
    plinth("init").ok();
    assert_eq!(object(&format!("node {name}")), None);

    plinth("init --register-node").ok();
    mirrored(LONG);
    assert_eq!(all_running(SOON), before);
    // While the API server is there `reset` takes it away, also where etcd's data are kept.
    let reset = plinth("reset --force --keep-etcd-data").ok();
    assert!(reset.stderr.contains(&format!("removed the Node {name}")), "{reset}");
}
