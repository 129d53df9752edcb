use super::*;
use crate::agent::host::Dns;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn node() -> Node {
    Node {
        name: "n1".into(),
        address: "192.0.2.2".parse().unwrap(),
        storage: 10 << 30,
        apparmor: false,
        memory: 4 << 30,
        cpus: 2,
        dns: Dns::default(),
        may_protect_from_oom: true,
    }
}

fn with_facts<T>(kubelet_port: Option<u16>, test: impl FnOnce(&Facts<'_>) -> T) -> T {
    let node = node();
    let machine = Machine { kernel: "6.18".into(), boot_id: "b".into(), ..Machine::default() };
    let capacity = Capacity { cpus: 2, memory: 4 << 30, storage: 10 << 30, ..Capacity::default() };
    let labels = [("example.com/rack".to_owned(), "7".to_owned())].into();
    let taints = [Taint { key: "a".into(), effect: "NoExecute".into(), ..Taint::default() }];
    test(&Facts {
        node: &node,
        labels: &labels,
        taints: &taints,
        machine: &machine,
        capacity: &capacity,
        engine: "27.0.1",
        kubelet_version: "v1.37.1+plinth.0.1.0".into(),
        kubelet_port,
    })
}

fn ready(status: &str, heartbeat: i64) -> NodeCondition {
    NodeCondition {
        type_: "Ready".into(),
        status: status.into(),
        reason: Some("KubeletReady".into()),
        last_heartbeat_time: Some(Time(at(heartbeat))),
        ..NodeCondition::default()
    }
}

/// What the API server has after `report`.
fn observed(facts: &Facts<'_>, report: &Report) -> DynamicObject {
    facts.object(&report.status)
}

#[test]
fn the_object_is_a_kubelets_but_for_the_operating_system() {
    let expected = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "n1",
            "labels": { "kubernetes.io/hostname": "n1", "kubernetes.io/arch": architecture(), "example.com/rack": "7" },
            "annotations": { "volumes.kubernetes.io/controller-managed-attach-detach": "true" },
        },
        "spec": {
            "taints": [
                { "key": "a", "effect": "NoExecute" },
                { "key": "plinth.dev/static-pods-only", "effect": "NoSchedule" },
            ],
        },
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": "192.0.2.2" },
                { "type": "Hostname", "address": "n1" },
            ],
            "capacity": { "cpu": "2", "memory": "4194304Ki", "pods": "110", "ephemeral-storage": "10485760Ki" },
            "allocatable": { "cpu": "2", "memory": "4091904Ki", "pods": "110", "ephemeral-storage": "9663676416" },
            "conditions": [],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 0 } },
            "nodeInfo": {
                "architecture": architecture(),
                "bootID": "b",
                "containerRuntimeVersion": "docker://27.0.1",
                "kernelVersion": "6.18",
                "kubeProxyVersion": "",
                "kubeletVersion": "v1.37.1+plinth.0.1.0",
                "machineID": "",
                "operatingSystem": "linux",
                "osImage": "",
                "systemUUID": "",
            },
        },
    });
    let object = with_facts(None, |facts| facts.object(&facts.status(Vec::new())));
    assert_eq!(serde_json::to_value(object).unwrap(), expected);
    let status = with_facts(Some(10250), |facts| facts.status(Vec::new()));
    assert_eq!(status.declared_features, Some(vec!["ExtendWebSocketsToKubelet".to_owned()]));
    assert_eq!(status.daemon_endpoints.unwrap().kubelet_endpoint.unwrap().port, 10250);
}

#[test]
fn the_version_is_never_newer_than_the_api_servers() {
    for (api_server, expected) in [
        ("v1.37.1", "v1.37.1+plinth.0.1.0"),
        ("v1.36.3", "v1.36.3+plinth.0.1.0"),
        ("v1.36.3+k3s1", "v1.36.3+plinth.0.1.0"),
        ("v1.38.0", "v1.37.1+plinth.0.1.0"),
        ("", "v1.37.1+plinth.0.1.0"),
    ] {
        let version = kubelet_version(api_server, "v1.37.1", "0.1.0");
        assert_eq!(version, expected, "{api_server}");
        semver::Version::parse(version.trim_start_matches('v')).unwrap();
    }
}

#[test]
fn a_node_is_ready_whose_condition_says_so() {
    with_facts(None, |facts| {
        for (conditions, expected) in [
            (vec![ready("True", 0)], true),
            (vec![ready("False", 0)], false),
            (vec![ready("Unknown", 0)], false),
            (vec![], false),
        ] {
            assert_eq!(is_ready(&facts.object(&facts.status(conditions.clone()))), expected, "{conditions:?}");
        }
    });
}

#[test]
fn a_status_is_told_when_it_says_something_new_or_the_last_one_is_old() {
    with_facts(None, |facts| {
        let first = Report::new(facts.status(vec![ready("True", 0)]), &[], at(0));
        let there = observed(facts, &first);
        let told = |object: &DynamicObject, last: Option<&Report>, condition, seconds| {
            let patch = status_patch(object, facts.status(vec![condition]), last, at(seconds));
            patch.map(|(patch, _)| patch["status"]["conditions"][0]["lastTransitionTime"].clone())
        };
        let (begin, later) = (Some(json!(Time(at(0)))), Some(json!(Time(at(10)))));
        assert_eq!(told(&there, Some(&first), ready("True", 10), 10), None);
        assert_eq!(told(&there, Some(&first), ready("False", 10), 10), later);
        assert_eq!(told(&there, Some(&first), ready("True", 300), 300), begin);
        // The agent has just started.
        assert_eq!(told(&there, None, ready("True", 10), 10), begin);
        // The node controller has not heard from us for a while.
        let mut unknown = there.clone();
        unknown.data["status"]["conditions"][0]["status"] = json!("Unknown");
        assert_eq!(told(&unknown, Some(&first), ready("True", 10), 10), later);
        let mut more = there;
        more.data["status"]["conditions"][0]["type"] = json!("NetworkUnavailable");
        assert_eq!(told(&more, Some(&first), ready("True", 10), 10), later);
    });
}

#[test]
fn a_field_that_the_api_server_does_not_know_is_not_told_again_and_again() {
    with_facts(Some(10250), |facts| {
        let first = Report::new(facts.status(vec![ready("True", 0)]), &[], at(0));
        let mut there = observed(facts, &first);
        there.data["status"].as_object_mut().unwrap().remove("declaredFeatures");
        assert_eq!(status_patch(&there, facts.status(vec![ready("True", 10)]), Some(&first), at(10)), None);
    });
}

#[test]
fn the_patch_replaces_addresses_and_removes_features() {
    let object = DynamicObject { types: None, metadata: kube::api::ObjectMeta::default(), data: json!({}) };
    let (patch, _) = with_facts(None, |facts| status_patch(&object, facts.status(Vec::new()), None, at(0))).unwrap();
    assert_eq!(patch["status"]["addresses"][2], json!({ "$patch": "replace" }));
    assert_eq!(patch["status"].get("declaredFeatures"), Some(&Value::Null));
}

#[test]
fn an_object_that_is_there_gets_its_labels_and_loses_that_of_the_operating_system() {
    with_facts(None, |facts| {
        let mut object = facts.object(&NodeStatus::default());
        assert_eq!(facts.labels_patch(&object), None);
        object.metadata.labels.as_mut().unwrap().insert("foreign".into(), "x".into());
        assert_eq!(facts.labels_patch(&object), None);
        let labels = object.metadata.labels.as_mut().unwrap();
        labels.insert(OS_LABEL.into(), "linux".into());
        labels.insert("kubernetes.io/hostname".into(), "other".into());
        let patch = json!({ "metadata": { "labels": { "kubernetes.io/hostname": "n1", "kubernetes.io/os": null } } });
        assert_eq!(facts.labels_patch(&object), Some(patch));
    });
}

#[test]
fn a_node_without_the_taint_is_told() {
    with_facts(None, |facts| {
        let mut object = facts.object(&NodeStatus::default());
        assert_eq!(remarks(&object), [""; 0]);
        object.data["spec"]["taints"].as_array_mut().unwrap().pop();
        assert!(remarks(&object)[0].contains("plinth.dev/static-pods-only:NoSchedule"));
    });
}

#[test]
fn the_machine_is_read_from_its_files() {
    let root = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("etc/machine-id", "m\n"),
        ("usr/lib/os-release", "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
        ("proc/sys/kernel/osrelease", "6.18.44\n"),
        ("proc/sys/kernel/random/boot_id", "b\n"),
    ] {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let machine = Machine::read(&Proc::new(root.path().join("proc")), root.path());
    let expected = Machine {
        machine_id: "m".into(),
        system_uuid: "m".into(),
        boot_id: "b".into(),
        kernel: "6.18.44".into(),
        os_image: "Debian GNU/Linux 12 (bookworm)".into(),
    };
    assert_eq!(machine, expected);
}
