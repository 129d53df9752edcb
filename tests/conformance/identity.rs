//! Checks 10–12: what a pod is called, and when it is another one.

use crate::node::{Manifest, node};

pub(crate) fn check_10_the_name_ends_in_the_nodes_and_the_namespace_is_default() {
    node().put("c10.yaml", &Manifest::named("c10").text());
    node().put("c10-there.yaml", &Manifest::named("c10-there").metadata("namespace: elsewhere").text());
    for (name, namespace) in [("c10", "default"), ("c10-there", "elsewhere")] {
        let c = node().until_runs(name, "c", |_| true);
        assert_eq!(c.pod, format!("{name}-node-1"));
        let pod = node().until_shown(name, |pod| Some(pod.clone()));
        assert_eq!((&pod["metadata"]["namespace"], &pod["spec"]["nodeName"]), (&namespace.into(), &"node-1".into()));
        assert!(c.name.contains(&format!("_{namespace}_")), "{}", c.name);
    }
}

pub(crate) fn check_11_the_kubelets_annotations_are_there() {
    node().put("c11.yaml", &Manifest::named("c11").text());
    let c = node().until_runs("c11", "c", |_| true);
    let pod = node().until_shown("c11", |pod| Some(pod.clone()));
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(annotations["kubernetes.io/config.hash"], c.uid.as_str());
    assert_eq!(pod["metadata"]["uid"], c.uid.as_str());
    let seen = annotations["kubernetes.io/config.seen"].as_str().unwrap();
    assert!(seen.parse::<jiff::Timestamp>().is_ok(), "{seen}");
    let tolerations = pod["spec"]["tolerations"].as_array().unwrap();
    assert!(tolerations.iter().any(|one| one["effect"] == "NoExecute" && one["operator"] == "Exists"), "{pod}");
}

pub(crate) fn check_12_comments_and_white_space_change_nothing() {
    let text = Manifest::named("c12").text();
    node().put("c12.yaml", &text);
    let before = node().until_runs("c12", "c", |_| true);
    node().put("c12.yaml", &format!("# hello\n\n{}\n\n", text.replace("hostNetwork: true", "hostNetwork:   true # !")));
    node().until_read("c12");
    let lives = node().lives("c12");
    assert!(lives.len() == 1 && lives[0].runs() && lives[0].signals.is_empty(), "{before:#?} became {lives:#?}");
}
