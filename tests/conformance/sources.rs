//! Checks 1–9: which files are pods.

use std::fs;

use std::io::Write as _;
use std::time::Duration;

use crate::node::{IMAGE, Manifest, OTHER_IMAGE, STAY, eventually, node, one, pass};

pub(crate) fn check_01_a_valid_manifest_runs() {
    node().put("c01.yaml", &Manifest::named("c01").own_network().text());
    let c = node().until_runs("c01", "c", |_| true);
    let sandbox = node().until_runs("c01", "POD", |_| true);
    assert_eq!(c.name, format!("k8s_c_c01-node-1_default_{}_0", c.uid));
    assert_eq!(sandbox.name, format!("k8s_POD_c01-node-1_default_{}_0", c.uid));
    assert!(c.uid.len() == 32 && c.uid.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", c.uid);
    // Where collectors of logs look.
    for path in [
        format!("/var/log/pods/default_c01-node-1_{}/c/0.log", c.uid),
        format!("/var/log/containers/c01-node-1_default_c-{}.log", c.id),
    ] {
        eventually(|| fs::metadata(&path).map(drop).map_err(|error| format!("{path}: {error}")));
    }
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

pub(crate) fn check_06_of_several_documents_only_the_first_counts() {
    let [one, two] = ["c06-one", "c06-two"].map(|name| Manifest::named(name).text());
    node().put("c06.yaml", &format!("# a comment\n---\n{one}---\n{two}"));
    node().put("c06-empty.yaml", &format!("---\n# nothing\n---\n{two}"));
    node().until_runs("c06-one", "c", |_| true);
    node().until_rejected("c06-empty.yaml", &[]);
    node().until_read("c06");
    assert!(node().lives("c06-two").is_empty());
}

pub(crate) fn check_07_other_kinds_are_refused() {
    let container = one("c", IMAGE, STAY, "");
    for (file, group, kind) in [("c07-d.yaml", "apps/v1", "Deployment"), ("c07-s.yaml", "apps/v1", "DaemonSet")] {
        let template = format!("{{metadata: {{labels: {{a: b}}}}, spec: {{containers: [{container}]}}}}");
        let spec = format!("{{selector: {{matchLabels: {{a: b}}}}, template: {template}}}");
        node().put(file, &format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: c07-no}}\nspec: {spec}\n"));
    }
    node().put("c07.yaml", &Manifest::named("c07").text());
    node().until_runs("c07", "c", |_| true);
    node().until_rejected("c07-d.yaml", &["Deployment"]);
    node().until_rejected("c07-s.yaml", &["DaemonSet"]);
    assert!(node().lives("c07-no").is_empty());
}

pub(crate) fn check_08_a_pod_needs_a_name() {
    node().put("c08.yaml", &Manifest::named("c08").text().replace("{name: c08}", "{labels: {a: b}}"));
    node().until_rejected("c08.yaml", &["name"]);
}

pub(crate) fn check_09_references_to_api_objects_are_refused() {
    let reference = |kind: &str| format!("env: [{{name: A, valueFrom: {{{kind}: {{name: a, key: b}}}}}}]");
    let volume = |source: &str| Manifest::named("c09").spec(&format!("volumes: [{{name: v, {source}}}]"));
    let cases = [
        (Manifest::named("c09").spec("serviceAccountName: a"), "serviceaccounts"),
        (Manifest::named("c09").container(&reference("configMapKeyRef")), "configmaps"),
        (Manifest::named("c09").container(&reference("secretKeyRef")), "secrets"),
        (Manifest::named("c09").container("envFrom: [{secretRef: {name: a}}]"), "secrets"),
        (volume("configMap: {name: a}"), "configmaps"),
        (volume("secret: {secretName: a}"), "secrets"),
        (volume("persistentVolumeClaim: {claimName: a}"), "persistentvolumeclaims"),
        (volume("projected: {sources: [{configMap: {name: a}}]}"), "configmaps"),
    ];
    for (index, (manifest, _)) in cases.iter().enumerate() {
        node().put(&format!("c09-{index}.yaml"), &manifest.text());
    }
    for (index, (_, object)) in cases.iter().enumerate() {
        node().until_rejected(&format!("c09-{index}.yaml"), &[object]);
    }
    assert!(node().pod("c09").is_none() && node().lives("c09").is_empty());
}

pub(crate) fn extra_a_link_is_followed() {
    let target = "/opt/work/x-link.yaml";
    fs::write(target, Manifest::named("x-link").text()).unwrap();
    std::os::unix::fs::symlink(target, node().path("x-link.yaml")).unwrap();
    std::os::unix::fs::symlink("/opt/work/x-nowhere.yaml", node().path("x-nowhere.yaml")).unwrap();
    node().until_runs("x-link", "c", |_| true);
    // Nothing tells of this but the next look at everything.
    fs::write(target, Manifest::named("x-link").image(OTHER_IMAGE).text()).unwrap();
    node().until_runs("x-link", "c", |life| life.image == OTHER_IMAGE);
}

pub(crate) fn extra_a_file_may_be_written_in_place() {
    let text = Manifest::named("x-slow").container("env: [{name: LAST, value: line}]").text();
    let mut file = fs::File::create(node().path("x-slow.yaml")).unwrap();
    for line in text.lines() {
        writeln!(file, "{line}").unwrap();
        pass(Duration::from_millis(150));
    }
    drop(file);
    let life = node().until_runs("x-slow", "c", |_| true);
    assert_eq!(node().within(&life, "echo $LAST"), "line");
}

pub(crate) fn extra_manifests_are_yaml_1_1() {
    let yes = Manifest::named("x-yes").text().replace("hostNetwork: true", "hostNetwork: yes");
    node().put("x-yes.yaml", &yes.replace("kind:", "Kind:"));
    node().put("x-on.yaml", &Manifest::named("x-on").container("env: [{name: A, value: on}]").text());
    node().put("x-large.yaml", &format!("{}{}", Manifest::named("x-large").text(), "#\n".repeat(6 << 20)));
    let life = node().until_runs("x-yes", "c", |_| true);
    assert_eq!(node().inspect(&life)["HostConfig"]["NetworkMode"], "host");
    node().until_rejected("x-on.yaml", &["value"]);
    node().until_rejected("x-large.yaml", &["10 MiB"]);
}
