//! Pods whose manifests set one UID: they have one directory, and so never exist at the same time.

use super::*;

/// A pod with an `emptyDir`.
fn with_uid(name: &str, uid: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, uid: {uid}}}\nspec:\n  hostNetwork: true\n  \
         volumes: [{{name: data, emptyDir: {{}}}}]\n  \
         containers: [{{name: c, image: 'i:1', volumeMounts: [{{name: data, mountPath: /data}}]}}]\n"
    )
}

impl Host {
    /// With containers that take their time to stop.
    fn unhurried() -> Self {
        let host = Self::new();
        host.fake.set_program("i:1", Program::default().stops_after(Duration::from_secs(5), 0));
        host
    }

    fn data(&self, uid: &str) -> PathBuf {
        self.layout().pods().join(uid).join("volumes/kubernetes.io~empty-dir/data/file")
    }

    fn write_data(&self, uid: &str, text: &str) {
        std::fs::write(self.data(uid), text).unwrap();
    }

    /// Waits until exactly these run, while no UID ever has containers of two pods.
    async fn until_these_run_alone(&self, names: &[&str]) {
        self.until(&format!("{names:?} run"), |host| {
            let mut pods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for container in host.fake.containers() {
                let label = |key: &str| container.labels[key].clone();
                pods.entry(label(labels::POD_UID)).or_default().insert(label(labels::POD_NAME));
            }
            assert!(pods.values().all(|names| names.len() == 1), "{pods:?}");
            host.running() == names
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_second_pod_of_a_uid_starts_when_the_first_is_gone_and_harms_no_data() {
    let mut host = Host::unhurried();
    host.start();
    host.write("a", &with_uid("a", "u"));
    host.until_running(&["c_a-node_default"]).await;
    host.write_data("u", "of a");
    for _ in 0..2 {
        host.write("b", &with_uid("b", "u"));
        sleep(Duration::from_mins(1)).await;
        assert_eq!(host.running(), ["c_a-node_default"]);
        let rejected = host.status().await.sources[0].rejected[0].reason.clone();
        assert!(rejected.starts_with("has the same metadata.uid as /"), "{rejected}");
        host.delete("b");
        sleep(Duration::from_mins(1)).await;
        assert_eq!(std::fs::read_to_string(host.data("u")).unwrap(), "of a");
    }
    host.write("b", &with_uid("b", "u"));
    sleep(Duration::from_secs(1)).await;
    host.delete("a");
    host.until("the first is being stopped", |host| host.fake.count(Op::Stop) == 1).await;
    let warnings = host.status().await.warnings;
    let waits = "default/b-node has the UID of default/a-node and starts once that is gone";
    assert!(warnings.contains(&waits.to_owned()), "{warnings:?}");
    host.until_these_run_alone(&["c_b-node_default"]).await;
    assert!(!host.data("u").exists(), "a pod begins with an empty directory");
    host.write_data("u", "of b");
    sleep(Duration::from_mins(1)).await;
    assert_eq!(std::fs::read_to_string(host.data("u")).unwrap(), "of b");
    assert_eq!(host.running(), ["c_b-node_default"]);
    assert!(!host.status().await.warnings.contains(&waits.to_owned()));
}

/// Also over a restart of the agent, which knows the old pod by its containers alone.
#[tokio::test(start_paused = true)]
async fn a_pod_that_is_renamed_and_keeps_its_uid_is_replaced() {
    for restarts in [false, true] {
        let mut host = Host::unhurried();
        host.start();
        host.write("file", &with_uid("z", "u"));
        host.until_running(&["c_z-node_default"]).await;
        sleep(Duration::from_secs(1)).await;
        if restarts {
            host.stop().await;
        }
        host.write("file", &with_uid("a", "u"));
        if restarts {
            host.start();
        }
        host.until_these_run_alone(&["c_a-node_default"]).await;
        host.write_data("u", "of a");
        sleep(Duration::from_mins(1)).await;
        assert_eq!(std::fs::read_to_string(host.data("u")).unwrap(), "of a", "restarts: {restarts}");
    }
}

/// Each row: the UIDs of `a` and `b` at first and later, where `-` is no pod.
#[tokio::test(start_paused = true)]
async fn uids_that_change_hands_lock_nobody_out() {
    for (first, later) in [(["u1", "u2"], ["u2", "u1"]), (["u1", "-"], ["u3", "u1"]), (["u1", "u2"], ["u2", "u3"])] {
        let mut host = Host::unhurried();
        host.start();
        for uids in [first, later] {
            for (name, uid) in ["a", "b"].into_iter().zip(uids).filter(|(_, uid)| *uid != "-") {
                // As one change, and not two between which one of them is refused.
                std::fs::write(host.layout().manifests().join(format!(".{name}")), with_uid(name, uid)).unwrap();
            }
            for name in ["a", "b"] {
                let hidden = host.layout().manifests().join(format!(".{name}"));
                _ = std::fs::rename(hidden, host.layout().manifests().join(format!("{name}.yaml")));
            }
            let wanted: Vec<_> = ["a", "b"]
                .into_iter()
                .zip(uids)
                .filter(|(_, uid)| *uid != "-")
                .map(|(n, u)| format!("{n}-node {u}"))
                .collect();
            host.until(&format!("{wanted:?} run"), |host| {
                let containers = host.fake.containers();
                let running = containers.iter().filter(|container| matches!(container.state, State::Running { .. }));
                let mut pods: Vec<_> =
                    running.map(|c| format!("{} {}", c.labels[labels::POD_NAME], c.labels[labels::POD_UID])).collect();
                pods.sort();
                pods == wanted
            })
            .await;
        }
        for uid in later {
            host.write_data(uid, uid);
        }
        sleep(Duration::from_mins(1)).await;
        for uid in later {
            assert_eq!(std::fs::read_to_string(host.data(uid)).unwrap(), uid, "{first:?} {later:?}");
        }
    }
}
