//! Checks 20 and 21, and others where the agent or its directory is away for a time: each on a machine of its own.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{docker, gone};
use crate::node::{IGNORE, Manifest, OTHER_IMAGE, assert_no_overlap, eventually, node, since};
use crate::together::note;
use crate::web::Web;

/// Sends a signal to the agent, and waits for its end.
pub(crate) fn end_agent(signal: Signal) {
    let agent = node().agent();
    kill(Pid::from_raw(agent), signal).unwrap();
    gone(agent);
}

pub(crate) fn check_20_a_new_agent_changes_nothing_that_is_right() {
    node().put("c20.yaml", &Manifest::named("c20").own_network().text());
    node().put("c20-done.yaml", &Manifest::named("c20-done").script("exit 0").spec("restartPolicy: Never").text());
    node().put("c20-dies.yaml", &Manifest::named("c20-dies").text());
    node().until_runs("c20", "c", |_| true);
    node().until_ended("c20-done", "c", 0);
    for (attempt, signal) in [(0, Signal::SIGKILL), (1, Signal::SIGTERM)] {
        let dies = node().until_runs("c20-dies", "c", |life| life.attempt == attempt);
        end_agent(signal);
        assert!(dies.runs(), "containers outlive the agent");
        docker(&format!("kill {}", dies.id));
        let begin = Instant::now();
        node().start_agent();
        node().until_runs("c20-dies", "c", |life| life.attempt == attempt + 1);
        note(&format!("what died meanwhile runs {:.2} s after the agent's start", since(begin)));
        let shown = node().until_shown("c20", |pod| (pod["status"]["phase"] == "Running").then(|| pod.clone()));
        assert_eq!(shown["status"]["containerStatuses"][0]["restartCount"], 0);
        node().until_shown("c20-done", |pod| (pod["status"]["phase"] == "Succeeded").then_some(()));
        node().until_read("c20");
        let lives = [node().lives("c20"), node().lives("c20-done")].concat();
        let untouched = lives.iter().all(|life| life.signals.is_empty() && life.removed.is_none());
        assert!(lives.len() == 3 && untouched, "{lives:#?}");
    }
}

pub(crate) fn check_21_a_pod_removed_meanwhile_has_its_hook_and_its_grace() {
    let hook = "lifecycle: {preStop: {exec: {command: [touch, /work/hook]}}}";
    let pod = Manifest::named("c21")
        .script(IGNORE)
        .container(&format!("volumeMounts: [{{name: work, mountPath: /work}}], {hook}"))
        .spec("volumes: [{name: work, hostPath: {path: /opt/work/c21, type: DirectoryOrCreate}}]")
        .spec("terminationGracePeriodSeconds: 4");
    node().put("c21.yaml", &pod.text());
    node().until_runs("c21", "c", |_| true);
    end_agent(Signal::SIGKILL);
    node().take("c21.yaml");
    node().start_agent();
    let c = node().until_gone("c21").remove(0);
    let grace = c.signalled(9) - c.signalled(15);
    assert!((3.0..15.0).contains(&grace), "SIGKILL after {grace:.2} s");
    assert!(Path::new("/opt/work/c21/hook").exists());
}

pub(crate) fn extra_an_edit_while_the_agent_is_away_lets_nothing_overlap() {
    let pod = Manifest::named("x-away").own_network().script(IGNORE).spec("terminationGracePeriodSeconds: 2");
    node().put("x-away.yaml", &pod.text());
    node().until_runs("x-away", "c", |_| true);
    end_agent(Signal::SIGKILL);
    node().put("x-away.yaml", &pod.image(OTHER_IMAGE).text());
    node().start_agent();
    node().until_runs("x-away", "c", |life| life.image == OTHER_IMAGE);
    assert_no_overlap(&node().lives("x-away"));
}

pub(crate) fn extra_a_directory_that_is_away_keeps_its_pods_and_is_followed_when_it_is_back() {
    let directory = node().path("");
    node().configure("fileCheckFrequency", "2m");
    node().put("x-dir.yaml", &Manifest::named("x-dir").text());
    let before = node().until_runs("x-dir", "c", |_| true);
    fs::rename(&directory, "/opt/work/elsewhere").unwrap();
    eventually(|| {
        let status = node().status();
        let problem = status["sources"][0]["problem"].as_str().unwrap_or_default();
        if problem.contains("its pods go on") { Ok(()) } else { Err(format!("{status:#}")) }
    });
    end_agent(Signal::SIGKILL);
    node().start_agent(); // with the new setting
    // Time enough to do something wrong.
    crate::node::pass(Duration::from_secs(1));
    fs::rename("/opt/work/elsewhere", &directory).unwrap();
    eventually(|| {
        let status = node().status();
        if status["sources"][0]["problem"].is_null() { Ok(()) } else { Err(format!("{status:#}")) }
    });
    let begin = Instant::now();
    node().until_read("x-dir");
    // A kubelet follows nothing any more until it reads everything again.
    assert!(since(begin) < 60.0, "{:.1} s", since(begin));
    let lives = node().lives("x-dir");
    assert!(lives.len() == 1 && lives[0].id == before.id && lives[0].signals.is_empty(), "{lives:#?}");
    node().take("x-dir.yaml");
    node().until_gone("x-dir");
}

pub(crate) fn extra_a_url_may_hold_a_list_of_pods() {
    let answer = Arc::new(Mutex::new("500 Not yet".to_owned()));
    let given = Arc::clone(&answer);
    let web = Web::http(move |_| given.lock().unwrap().clone());
    // Returns when nothing older can be in use any more.
    let say = |head: &str, body: &str| {
        *answer.lock().unwrap() = format!("{head}\r\n\r\n{body}");
        let before = web.answered();
        eventually(|| if web.answered() > before + 2 { Ok(()) } else { Err("nobody asks".to_owned()) });
    };
    let items = |names: &[&str]| {
        let pods = names.iter().map(|name| Manifest::named(name).text());
        let pods: Vec<_> = pods.map(|text| format!("- {}", text.trim_end().replace('\n', "\n  "))).collect();
        format!("apiVersion: v1\nkind: PodList\nitems:\n{}\n", pods.join("\n"))
    };
    node().put("x-file.yaml", &Manifest::named("x-file").text());
    node().until_runs("x-file", "c", |_| true);
    end_agent(Signal::SIGTERM);
    node().configure("staticPodURL", &format!("http://127.0.0.1:{}/pods", web.port));
    node().start_agent();

    // A source that has not spoken yet holds up no other one.
    node().take("x-file.yaml");
    node().until_gone("x-file");
    say("200 OK", &items(&["x-url-a", "x-url-b"]));
    let ids = ["x-url-a", "x-url-b"].map(|pod| node().until_runs(pod, "c", |_| true).id);
    let shown = node().until_shown("x-url-a", |pod| Some(pod["metadata"]["annotations"].clone()));
    assert_eq!(shown["kubernetes.io/config.source"], "http");

    say("200 OK", "no: [pod");
    say("503 Busy", "");
    end_agent(Signal::SIGKILL);
    node().start_agent();
    say("503 Busy", "");
    assert_eq!(["x-url-a", "x-url-b"].map(|pod| node().until_runs(pod, "c", |_| true).id), ids);
    say("200 OK", &Manifest::named("x-url-b").text());
    node().until_gone("x-url-a");
    // Alone or in a list, it is the same pod.
    assert_eq!(node().until_runs("x-url-b", "c", |_| true).id, ids[1]);
    say("200 OK", "");
    node().until_gone("x-url-b");
}
