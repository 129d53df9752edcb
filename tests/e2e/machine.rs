//! What programs rely on: one JSON document on stdout, and exit codes.

use std::net::TcpListener;

use serde_json::Value;

use crate::command::Ended;
use crate::host::{COMPONENTS, Tree, container_ids, plinth};

pub(crate) fn output_and_exit_codes() {
    let empty = Tree::of_host();
    nothing_is_changed_by_asking();
    usage_errors();
    a_taken_port_is_a_preflight_error();
    assert_eq!(empty.difference(&Tree::of_host()), Vec::<String>::new());

    let init = plinth("init -o json").ok().json();
    assert_eq!(init["changed"], true);
    assert_eq!(init["kubernetesVersion"], "v1.37.1");
    assert_eq!(init["server"], "https://10.213.0.2:6443");
    assert_eq!(init["kubeconfig"], "/etc/kubernetes/admin.conf");
    assert_eq!(init["generation"], 1);
    let healthy = init["healthy"].as_array().unwrap();
    // In the order in which they became so, and the last two do not wait for each other.
    let mut components = names(healthy, "component");
    components.sort_unstable();
    assert_eq!(components, COMPONENTS);
    assert!(healthy.iter().all(|one| one["seconds"].as_f64().unwrap() > 0.0), "{init}");
    assert!(init["startAtBoot"].as_str().unwrap().contains(" agent --"), "{init}");

    let again = plinth("init -o json").ok().json();
    assert_eq!(again["changed"], false);

    a_status_has_everything(&plinth("status -o json").json());

    let reset = plinth("reset --force -o json").ok().json();
    assert_eq!((&reset["containers"], &reset["complete"]), (&4.into(), &true.into()));
    let things = reset["things"].as_array().unwrap();
    assert!(things.iter().all(|thing| thing["state"] == "gone"), "{reset}");
    assert!(names(things, "what").contains(&"/etc/kubernetes/pki/ca.key"), "{reset}");
    assert!(container_ids().is_empty());
    assert_eq!(empty.difference(&Tree::of_host()), Vec::<String>::new());
}

fn nothing_is_changed_by_asking() {
    let images = plinth("config images list").ok();
    let names: Vec<_> = images.stdout.lines().collect();
    assert!(names.contains(&"registry.k8s.io/kube-apiserver:v1.37.1"), "{images}");
    let json = plinth("config images list -o json").ok().json();
    assert_eq!(json["images"], Value::from(names));

    let plan = plinth("init --dry-run").ok();
    for line in ["would make certs/ca", "would start the agent", "/etc/kubernetes/manifests/etcd.yaml:", "kind: Pod"] {
        assert!(plan.stdout.contains(line), "{line} is missing: {plan}");
    }
    let plan = plinth("init --dry-run -o json").ok().json();
    assert_eq!(plan["plan"]["steps"].as_array().unwrap().last().unwrap()["step"], "commit");
    assert!(plan["manifests"]["kube-scheduler"].as_str().unwrap().contains("kind: Pod"));

    let status = plinth("status -o json").exits(1).json();
    assert_eq!((&status["well"], &status["agent"]), (&false.into(), &Value::Null));
    let reset = plinth("reset --force -o json").ok().json();
    assert_eq!(reset["containers"], 0);
}

fn usage_errors() {
    says(&plinth("init --no-such-flag").exits(2), &["--no-such-flag"]);
    // All errors at once.
    says(&plinth("init --service-cidr nonsense --pod-network-cidr 10.0.0.0/99").exits(2), &["nonsense", "10.0.0.0/99"]);
    says(&plinth("init --skip-phases certificates").exits(2), &["certificates"]);
    let file = std::env::var("PLINTH_SANDBOX_DIR").unwrap() + "/unknown-field.yaml";
    let text = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnoSuchField: 1\n";
    std::fs::write(&file, text).unwrap();
    says(&plinth(&format!("init --config {file}")).exits(2), &["noSuchField", "3"]);
}

/// An error is on stderr, and nothing on stdout.
fn says(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.stdout, "", "{ended}");
    assert!(words.iter().all(|word| ended.stderr.contains(word)), "{words:?} are missing: {ended}");
}

fn a_taken_port_is_a_preflight_error() {
    let _listener = TcpListener::bind("0.0.0.0:6443").unwrap();
    let text = plinth("init").exits(3);
    says(&text, &["Port-6443"]);
    let json = plinth("init -o json").exits(3).json();
    assert_eq!(json["error"], "preflight");
    assert!(json["findings"].as_array().unwrap().iter().any(|one| one.to_string().contains("6443")), "{json}");
}

fn a_status_has_everything(status: &Value) {
    assert_eq!(status["kubernetesVersion"], "v1.37.1");
    assert!(status["well"].is_boolean() && status["problems"].is_array(), "{status}");
    let agent = &status["agent"];
    assert!(agent["pid"].as_i64().is_some_and(|pid| pid > 1), "{agent}");
    let pods = agent["pods"].as_array().unwrap();
    assert_eq!(names(pods, "name"), COMPONENTS.map(|name| format!("{name}-plinth-sandbox")));
    for container in pods.iter().map(|pod| &pod["containers"][0]) {
        assert_eq!((&container["state"], &container["restartCount"]), (&"running".into(), &0.into()));
        assert_eq!(container["containerId"].as_str().unwrap().len(), 64);
        assert!(container["pid"].as_i64().is_some() && container["image"].as_str().is_some(), "{container}");
    }
    let certificates = status["certificates"].as_array().unwrap();
    assert_eq!(certificates.len(), 15);
    assert!(certificates.iter().all(|one| one["daysLeft"].as_i64().unwrap() >= 364), "{status}");
}

fn names<'a>(values: &'a [Value], field: &str) -> Vec<&'a str> {
    values.iter().map(|value| value[field].as_str().unwrap()).collect()
}
