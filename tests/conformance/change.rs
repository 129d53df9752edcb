//! Checks 13–19: manifests that change, move and go.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::history::Life;
use crate::host::eventually;
use crate::node::{IGNORE, LIMIT, Manifest, OTHER_IMAGE, assert_no_overlap, node};
use crate::together::note;

pub(crate) fn check_13_the_old_pod_is_gone_before_the_new_one_is_made() {
    let pod = Manifest::named("c13").own_network();
    node().put("c13.yaml", &pod.text());
    let old = [node().until_runs("c13", "POD", |_| true), node().until_runs("c13", "c", |_| true)];
    node().put("c13.yaml", &pod.image(OTHER_IMAGE).text());
    let new = node().until_runs("c13", "c", |life| life.image == OTHER_IMAGE);
    assert_ne!(new.uid, old[0].uid);
    let lives = node().lives("c13");
    assert_no_overlap(&lives);
    let (before, after): (Vec<_>, Vec<_>) = lives.iter().partition(|life| life.uid == old[0].uid);
    let last_end = before.iter().map(|life| life.end()).fold(0.0, f64::max);
    assert!(after.iter().all(|life| life.created > last_end), "{lives:#?}");
    note(&format!("the new process runs {:.2} s after the old sandbox ended", new.start() - last_end));
}

pub(crate) fn check_14_the_old_pod_has_its_grace() {
    let pod = Manifest::named("c14").script(IGNORE).spec("terminationGracePeriodSeconds: 4");
    node().put("c14.yaml", &pod.text());
    node().until_runs("c14", "c", |_| true);
    node().put("c14.yaml", &pod.image(OTHER_IMAGE).text());
    let new = node().until_runs("c14", "c", |life| life.image == OTHER_IMAGE);
    let old = node().lives("c14").remove(0);
    let grace = old.signalled(9) - old.signalled(15);
    // Where a pod says nothing it is 30 s.
    assert!((3.9..20.0).contains(&grace), "SIGKILL after {grace:.2} s");
    assert!(old.died.unwrap().1 == 137 && new.created > old.end(), "{old:#?} {new:#?}");
}

pub(crate) fn check_15_of_many_quick_edits_only_the_last_counts() {
    // An edit counts once no other follows for a moment, and a busy machine may take longer than that between two:
    // what the agent does of itself shows in the best of some rounds.
    const ROUNDS: usize = 5;
    for round in 1..=ROUNDS {
        let early = versions_started_too_early(&format!("c15-{round}"));
        if early.is_empty() {
            return;
        }
        note(&format!("{} of 100 versions were started before the last one", early.len()));
        assert!(round < ROUNDS, "{early:#?}");
    }
}

/// Writes a hundred versions of a running pod in about a second, and looks for others than the last one.
fn versions_started_too_early(name: &str) -> Vec<Life> {
    let file = format!("{name}.yaml");
    node().put(&file, &Manifest::named(name).text());
    let first = node().until_runs(name, "c", |_| true);
    for version in 0..100 {
        node().put(&file, &Manifest::named(name).spec(&format!("hostname: v{version}")).text());
        std::thread::sleep(Duration::from_millis(10));
    }
    node().put(&file, &Manifest::named(name).image(OTHER_IMAGE).text());
    let last = node().until_runs(name, "c", |life| life.image == OTHER_IMAGE);
    node().until_read(name);
    let lives = node().lives(name);
    assert_no_overlap(&lives);
    let running: Vec<_> = lives.iter().filter(|life| life.runs()).map(|life| &life.uid).collect();
    assert_eq!(running, [&last.uid], "{lives:#?}");
    lives.into_iter().filter(|life| ![&first.uid, &last.uid].contains(&&life.uid) && life.started.is_some()).collect()
}

pub(crate) fn check_16_a_removed_pod_is_stopped_and_leaves_nothing() {
    let hook = "lifecycle: {preStop: {exec: {command: [sh, -c, sleep 0.5; touch /work/hook]}}}";
    let pod = Manifest::named("c16")
        .own_network()
        .script("trap 'touch /work/term; exit 0' TERM; sleep 9999 & wait")
        .container(&format!("volumeMounts: [{{name: work, mountPath: /work}}], {hook}"))
        .spec("volumes: [{name: work, hostPath: {path: /opt/work/c16, type: DirectoryOrCreate}}]")
        .spec("terminationGracePeriodSeconds: 60");
    node().put("c16.yaml", &pod.text());
    let c = node().until_runs("c16", "c", |_| true);
    let directory = format!("/var/lib/plinth/pods/{}", c.uid);
    assert!(Path::new(&directory).exists());
    node().take("c16.yaml");
    let lives = node().until_gone("c16");
    let c = lives.iter().find(|life| life.container == "c").unwrap();
    let sandbox = lives.iter().find(|life| life.container == "POD").unwrap();
    let written = |file: &str| fs::metadata(format!("/opt/work/c16/{file}")).and_then(|meta| meta.modified()).unwrap();
    assert!(written("hook") <= written("term"));
    assert!(c.died.unwrap().1 == 0 && c.signals.len() == 1, "it had its grace, and did not need it: {c:#?}");
    assert!(sandbox.signals.first().unwrap().0 >= c.end(), "{lives:#?}");
    eventually(LIMIT, || if Path::new(&directory).exists() { Err(directory.clone()) } else { Ok(()) });
    assert!(node().pod("c16").is_none());
    for (directory, name) in [("/var/log/pods", "_c16-node-1_"), ("/var/log/containers", "c16-node-1_")] {
        let left = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(left.filter(|entry| entry.contains(name)).collect::<Vec<_>>(), Vec::<String>::new());
    }
}

pub(crate) fn check_17_a_file_that_is_renamed_is_another_pod() {
    node().put("c17-a.yaml", &Manifest::named("c17").text());
    let old = node().until_runs("c17", "c", |_| true);
    fs::rename(node().path("c17-a.yaml"), node().path("c17-b.yaml")).unwrap();
    node().until_runs("c17", "c", |life| life.uid != old.uid);
    assert_no_overlap(&node().lives("c17"));
}

pub(crate) fn check_18_of_two_files_with_one_pod_name_one_runs() {
    node().put("c18-a.yaml", &Manifest::named("c18").text());
    let first = node().until_runs("c18", "c", |_| true);
    node().put("c18-b.yaml", &Manifest::named("c18").image(OTHER_IMAGE).text());
    node().until_rejected("c18-b.yaml", &["same pod name", "c18-a.yaml"]);
    node().until_read("c18");
    assert_eq!(node().lives("c18").len(), 1);
    node().take("c18-a.yaml");
    node().until_runs("c18", "c", |life| life.uid != first.uid);
    node().take("c18-b.yaml");
    assert_no_overlap(&node().until_gone("c18"));
}

pub(crate) fn check_19_a_file_that_breaks_keeps_its_pod() {
    let pod = Manifest::named("c19");
    node().put("c19.yaml", &pod.text());
    node().until_runs("c19", "c", |_| true);
    for broken in ["kind: Pod\n  spec: [", &pod.clone().spec("serviceAccountName: a").text(), ""] {
        node().put("c19.yaml", broken);
        node().until_rejected("c19.yaml", &["its pod goes on as it was last good"]);
        assert!(node().pod("c19").is_some());
    }
    node().until_read("c19");
    let lives = node().lives("c19");
    assert!(lives.len() == 1 && lives[0].runs(), "{lives:#?}");
    node().put("c19.yaml", &pod.image(OTHER_IMAGE).text());
    node().until_runs("c19", "c", |life| life.image == OTHER_IMAGE);
    assert!(node().rejection("c19.yaml").is_none());
}

/// Edits that arrive while the old version has its grace: only the newest one starts.
pub(crate) fn extra_an_edit_during_the_grace_replaces_the_one_before() {
    let pod = Manifest::named("x-edits").script(IGNORE).spec("terminationGracePeriodSeconds: 3");
    node().put("x-edits.yaml", &pod.text());
    let old = node().until_runs("x-edits", "c", |_| true);
    node().put("x-edits.yaml", &pod.clone().metadata("labels: {edit: first}").text());
    eventually(LIMIT, || match node().lives("x-edits").remove(0).signals.as_slice() {
        [] => Err("nobody stops it".to_owned()),
        _ => Ok(()),
    });
    node().put("x-edits.yaml", &pod.image(OTHER_IMAGE).text());
    node().until_runs("x-edits", "c", |life| life.uid != old.uid);
    let lives = node().lives("x-edits");
    assert!(lives.len() == 2 && lives[1].image == OTHER_IMAGE, "{lives:#?}");
    assert!(Duration::from_secs_f64(lives[0].end() - lives[0].signalled(15)) >= Duration::from_millis(2900));
}
