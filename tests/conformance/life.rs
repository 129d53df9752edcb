//! Checks 22–30: containers that end, and what comes before and beside them.

use std::fs;

use crate::host::docker;
use crate::node::{IMAGE, Manifest, STAY, assert_no_overlap, node, one};
use crate::together::note;

pub(crate) fn check_22_a_killed_container_is_restarted_at_once() {
    node().put("c22.yaml", &Manifest::named("c22").own_network().text());
    let (old, sandbox) = (node().until_runs("c22", "c", |_| true), node().until_runs("c22", "POD", |_| true));
    docker(&format!("kill {}", old.id));
    let new = node().until_runs("c22", "c", |life| life.id != old.id);
    assert_eq!(new.name, format!("{}_1", old.name.strip_suffix("_0").unwrap()));
    assert_eq!(node().until_runs("c22", "POD", |_| true).id, sandbox.id);
    let end = node().until_ended("c22", "c", 0).end();
    note(&format!("restarted {:.2} s after SIGKILL", new.start() - end));
    let count = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["restartCount"].as_i64();
    node().until_shown("c22", |pod| (count(pod) == Some(1)).then_some(()));
}

/// The waits themselves, from 10 s to 5 min, are tested with a clock that a test sets.
pub(crate) fn check_23_who_crashes_again_and_again_waits() {
    // Three of them: how soon the first restart comes shows in the quickest.
    let pods = ["c23", "c23-b", "c23-c"];
    for pod in pods {
        node().put(&format!("{pod}.yaml"), &Manifest::named(pod).script("echo why; exit 3").text());
    }
    let waiting = node().until_shown("c23", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        (waiting["reason"] == "CrashLoopBackOff").then(|| waiting["message"].as_str().unwrap().to_owned())
    });
    let wanted = "s restarting failed container=c pod=c23-node-1_default(";
    assert!(waiting.starts_with("back-off ") && waiting.contains(wanted), "{waiting}");
    // The wait counts from the end that the engine noted, which it announces later.
    let least = crate::node::CRASH_BACK_OFF - 0.5;
    let first = pods.map(|pod| {
        let deaths: Vec<_> = (0..4).map(|attempt| node().until_ended(pod, "c", attempt)).collect();
        let gaps: Vec<_> = deaths.windows(2).map(|pair| pair[1].start() - pair[0].end()).collect();
        assert!(gaps[1..].iter().all(|gap| *gap >= least), "{gaps:?}");
        assert!(deaths.iter().all(|life| life.died.unwrap().1 == 3));
        note(&format!("restarted after {gaps:.2?} s"));
        gaps[0]
    });
    assert!(first.iter().any(|gap| *gap < least), "{first:.2?}");
}

pub(crate) fn check_25_a_pod_that_has_succeeded_is_not_run_again() {
    let text = Manifest::named("c25").script("exit 0").spec("restartPolicy: Never").text();
    node().put("c25.yaml", &text);
    let phase = |wanted: &'static str| move |pod: &serde_json::Value| (pod["status"]["phase"] == wanted).then_some(());
    node().until_shown("c25", phase("Succeeded"));
    node().put("c25.yaml", &text);
    node().until_read("c25");
    assert_eq!(node().lives("c25").len(), 1);
    node().take("c25.yaml");
    node().until_gone("c25");
    node().put("c25.yaml", &text);
    node().until_shown("c25", phase("Succeeded"));
    let lives = node().lives("c25");
    assert!(lives.len() == 2 && lives[0].uid == lives[1].uid && lives[1].attempt == 0, "{lives:#?}");
}

pub(crate) fn check_26_on_failure_restarts_failures_only() {
    let bad = one("bad", IMAGE, "exit 1", "");
    let pod = Manifest::named("c26").script("exit 0").spec("restartPolicy: OnFailure").and(&bad);
    node().put("c26.yaml", &pod.text());
    node().until_ended("c26", "bad", 1);
    node().until_ended("c26", "c", 0);
    let ends: Vec<_> = node().lives("c26").into_iter().filter(|life| life.container == "c").collect();
    assert!(ends.len() == 1 && ends[0].died.unwrap().1 == 0, "{ends:#?}");
    // It is not over, and has been running, whatever the container that failed does at the moment.
    let phase = node().until_shown("c26", |pod| Some(pod["status"]["phase"].clone()));
    assert_eq!(phase, "Running");
}

pub(crate) fn check_27_init_containers_run_in_order_and_to_success() {
    let (first, second) = (one("first", IMAGE, "sleep 0.5", ""), one("second", IMAGE, "sleep 0.5", ""));
    node().put("c27.yaml", &Manifest::named("c27").spec(&format!("initContainers:\n- {first}\n- {second}")).text());
    let mount = "volumeMounts: [{name: work, mountPath: /work}]";
    let gate = one("gate", IMAGE, "test -e /work/go", &format!(", {mount}"));
    let volume = "volumes: [{name: work, hostPath: {path: /opt/work/c27, type: DirectoryOrCreate}}]";
    node().put("c27-b.yaml", &Manifest::named("c27-b").spec(&format!("initContainers:\n- {gate}\n{volume}")).text());

    let c = node().until_runs("c27", "c", |_| true);
    let lives = node().lives("c27");
    let [first, second] = ["first", "second"].map(|name| lives.iter().find(|life| life.container == name).unwrap());
    assert!(second.start() >= first.end() && c.start() >= second.end(), "{lives:#?}");

    node().until_ended("c27-b", "gate", 1);
    assert!(node().lives("c27-b").iter().all(|life| life.container == "gate"));
    fs::write("/opt/work/c27/go", "").unwrap();
    let c = node().until_runs("c27-b", "c", |_| true);
    let gates: Vec<_> = node().lives("c27-b").into_iter().filter(|life| life.container == "gate").collect();
    let (last, failed) = gates.split_last().unwrap();
    assert!(failed.iter().all(|life| life.died.unwrap().1 == 1) && last.died.unwrap().1 == 0, "{gates:#?}");
    assert!(c.start() >= last.end());
}

pub(crate) fn check_28_a_sidecar_starts_first_and_stops_last() {
    let slow = "trap 'sleep 1; exit 0' TERM; sleep 9999 & wait";
    let sidecar = one("side", IMAGE, STAY, ", restartPolicy: Always");
    let pod = Manifest::named("c28").script(slow).spec(&format!("initContainers:\n- {sidecar}"));
    node().put("c28.yaml", &pod.spec("terminationGracePeriodSeconds: 60").text());
    let c = node().until_runs("c28", "c", |_| true);
    let side = node().until_runs("c28", "side", |_| true);
    assert!(side.start() <= c.start());
    // Whatever the others do, it runs.
    docker(&format!("kill {}", side.id));
    node().until_runs("c28", "side", |life| life.attempt == 1);
    assert_eq!(node().until_runs("c28", "c", |_| true).id, c.id);
    node().take("c28.yaml");
    let lives = node().until_gone("c28");
    let c = lives.iter().find(|life| life.id == c.id).unwrap();
    let side = lives.iter().find(|life| life.container == "side" && life.attempt == 1).unwrap();
    // The engine announces an end a moment after it has told who waits for it.
    assert!(side.signalled(15) - c.signalled(15) >= 0.9 && c.died.unwrap().1 == 0, "{lives:#?}");
}

pub(crate) fn check_29_a_pod_whose_sandbox_is_removed_is_made_anew() {
    let init = one("init", IMAGE, "exit 0", "");
    let pod = Manifest::named("c29").own_network().spec(&format!("initContainers:\n- {init}"));
    node().put("c29.yaml", &pod.text());
    for (name, take_away) in [("killed", "kill"), ("removed", "rm --force")] {
        let old = node().until_runs("c29", "c", |_| true);
        let sandbox = node().until_runs("c29", "POD", |_| true);
        docker(&format!("{take_away} {}", sandbox.id));
        let new = node().until_runs("c29", "c", |life| life.id != old.id);
        let again = node().until_runs("c29", "POD", |_| true);
        assert_ne!(again.id, sandbox.id, "{name}");
        let lives = node().lives("c29");
        let old = lives.iter().find(|life| life.id == old.id).unwrap();
        assert!(again.created > old.end(), "{name}: {lives:#?}");
        let inits = |life: &&crate::history::Life| life.container == "init" && life.created > again.created;
        let init =
            lives.iter().find(inits).unwrap_or_else(|| panic!("{name}: no init container ran again: {lives:#?}"));
        assert!(new.start() >= init.end() && new.attempt == old.attempt + 1, "{name}: {lives:#?}");
        assert_no_overlap(&lives);
    }
}

pub(crate) fn check_30_an_image_that_is_missing_is_told_and_waited_for() {
    let (never, absent) = ("127.0.0.1:1/c30-never:1", "127.0.0.1:1/c30-absent:1");
    let container = "imagePullPolicy: Never";
    node().put("c30-never.yaml", &Manifest::named("c30-never").image(never).container(container).text());
    node().put("c30.yaml", &Manifest::named("c30").image(absent).text());
    let until_waits = |pod: &str, reason: &str| {
        node().until_shown(pod, |shown| {
            let waiting = &shown["status"]["containerStatuses"][0]["state"]["waiting"];
            (waiting["reason"] == reason).then_some(())
        });
    };
    until_waits("c30", "ErrImagePull");
    until_waits("c30-never", "ErrImageNeverPull");
    docker(&format!("tag {IMAGE} {never}"));
    node().until_runs("c30-never", "c", |_| true);
    until_waits("c30", "ImagePullBackOff");
    docker(&format!("tag {IMAGE} {absent}"));
    node().until_runs("c30", "c", |_| true);
}
