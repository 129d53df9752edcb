//! Checks 1–9: which files are pods.

use std::fs;

use crate::node::{IMAGE, Manifest, STAY, node};

pub(crate) fn check_01_a_valid_manifest_runs() {
    node().put("c01.yaml", &Manifest::named("c01").own_network().text());
    let c = node().until_runs("c01", "c", |_| true);
    let sandbox = node().until_runs("c01", "POD", |_| true);
    assert_eq!(c.name, format!("k8s_c_c01-node-1_default_{}_0", c.uid));
    assert_eq!(sandbox.name, format!("k8s_POD_c01-node-1_default_{}_0", c.uid));
    assert!(c.uid.len() == 32 && c.uid.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", c.uid);
}

pub(crate) fn check_02_json_without_an_extension_runs() {
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c02"},
        "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": IMAGE, "command": ["sh", "-c", STAY]}]},
    });
    node().put("c02", &pod.to_string());
    node().until_runs("c02", "c", |_| true);
}

pub(crate) fn check_03_a_dot_file_is_ignored_until_it_is_renamed() {
    fs::write(node().path(".c03.yaml"), Manifest::named("c03").text()).unwrap();
    node().until_read("c03");
    assert!(node().lives("c03").is_empty() && node().rejection(".c03.yaml").is_none());
    fs::rename(node().path(".c03.yaml"), node().path("c03.yaml")).unwrap();
    node().until_runs("c03", "c", |_| true);
}

pub(crate) fn check_04_any_extension_will_do() {
    node().put("c04.yaml", &Manifest::named("c04").text());
    node().put("c04.yaml.bak", &Manifest::named("c04-bak").text());
    node().until_runs("c04", "c", |_| true);
    node().until_runs("c04-bak", "c", |_| true);
}

pub(crate) fn check_05_a_subdirectory_is_ignored() {
    fs::create_dir(node().path("c05")).unwrap();
    fs::write(node().path("c05/c05.yaml"), Manifest::named("c05").text()).unwrap();
    node().until_read("c05");
    assert!(node().lives("c05").is_empty());
}
