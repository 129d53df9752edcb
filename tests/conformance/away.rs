//! Checks 20 and 21, and others where the agent or its directory is away for a time: each on a machine of its own.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{docker, gone, service, shell};
use crate::node::{IGNORE, Manifest, OTHER_IMAGE, assert_no_overlap, eventually, node, pass, since};
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
        .script("trap 'sleep 2; touch /work/term; exit 0' TERM; touch /work/ready; sleep 9999 & wait")
        .container(&format!("volumeMounts: [{{name: work, mountPath: /work}}], {hook}"))
        .spec("volumes: [{name: work, hostPath: {path: /opt/work/c21, type: DirectoryOrCreate}}]")
        .spec("terminationGracePeriodSeconds: 60");
    node().put("c21.yaml", &pod.text());
    let written = |file: &str| fs::metadata(format!("/opt/work/c21/{file}")).and_then(|meta| meta.modified());
    eventually(|| written("ready").map_err(|error| error.to_string()));
    end_agent(Signal::SIGKILL);
    node().take("c21.yaml");
    node().start_agent();
    let c = node().until_gone("c21").remove(0);
    assert!(written("hook").unwrap() <= written("term").unwrap());
    // It had the two seconds that it takes to end.
    assert!(c.died.unwrap().1 == 0 && c.signals.len() == 1 && c.end() - c.signalled(15) >= 1.9, "{c:#?}");
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

pub(crate) fn extra_an_engine_that_is_away_gets_what_was_changed_meanwhile() {
    let stays = ["x-stays", "x-stays-too"];
    for pod in stays.into_iter().chain(["x-goes"]) {
        node().put(&format!("{pod}.yaml"), &Manifest::named(pod).text());
        node().until_runs(pod, "c", |_| true);
    }
    let agent = node().agent();
    let engine = fs::read_to_string("/run/docker.pid").unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(engine), Signal::SIGTERM).unwrap();
    gone(engine);
    node().take("x-goes.yaml");
    node().put("x-comes.yaml", &Manifest::named("x-comes").text());
    eventually(|| {
        let problem = node().status()["problem"].to_string();
        if problem.contains("there is no such socket") { Ok(()) } else { Err(problem) }
    });
    // Time enough to do something wrong.
    pass(Duration::from_secs(3));
    service("dockerd", "/var/log/dockerd.log");
    let begin = Instant::now();

    // What its containers went through the engine forgets with its end.
    let wanted = ["x-comes-node-1 0", "x-stays-node-1 1", "x-stays-too-node-1 1"];
    eventually(|| {
        pass(Duration::from_millis(200));
        let mut run: Vec<_> =
            containers()?.into_iter().filter_map(|line| Some(line.strip_prefix("running ")?.to_owned())).collect();
        run.sort();
        if run == wanted { Ok(()) } else { Err(format!("there run {run:#?}")) }
    });
    note(&format!("all is as it should be {:.1} s after the start of the engine", since(begin)));
    eventually(|| {
        let left: Vec<_> = containers()?.into_iter().filter(|line| line.contains("x-goes")).collect();
        if left.is_empty() && node().pod("x-goes").is_none() { Ok(()) } else { Err(format!("there still is {left:?}")) }
    });
    for pod in stays {
        let count = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["restartCount"].as_i64();
        node().until_shown(pod, |pod| (count(pod) == Some(1)).then_some(()));
    }
    assert!(node().status()["problem"].is_null());
    assert_eq!(node().agent(), agent);
}

/// The agent's containers: state, pod and attempt.
fn containers() -> Result<Vec<String>, String> {
    let format = r#"{{.State}} {{.Label "io.kubernetes.pod.name"}} {{.Names}}"#;
    let listed = shell(&format!("docker ps --all --filter=label=plinth.dev/agent --format '{format}'"));
    let short = |line: &str| {
        let (rest, attempt) = line.rsplit_once('_').unwrap();
        format!("{} {attempt}", rest.rsplit_once(' ').unwrap().0)
    };
    if listed.status.success() { Ok(listed.stdout.lines().map(short).collect()) } else { Err(listed.to_string()) }
}

pub(crate) fn extra_a_directory_that_is_away_keeps_its_pods_and_is_followed_when_it_is_back() {
    // A kubelet follows nothing any more until it reads everything again; here nobody waits for that.
    node().configure("fileCheckFrequency", "1h");
    end_agent(Signal::SIGTERM);
    node().start_agent();
    node().put("x-dir.yaml", &Manifest::named("x-dir").text());
    let before = node().until_runs("x-dir", "c", |_| true);
    let directory = node().path("");
    for another_agent in [false, true] {
        fs::rename(&directory, "/opt/work/elsewhere").unwrap();
        if another_agent {
            end_agent(Signal::SIGKILL);
            node().start_agent();
        }
        eventually(|| {
            let status = node().status();
            let problem = status["sources"][0]["problem"].as_str().unwrap_or_default();
            if problem.contains("its pods go on") { Ok(()) } else { Err(format!("{status:#}")) }
        });
        // Time enough to do something wrong.
        pass(Duration::from_secs(1));
        fs::rename("/opt/work/elsewhere", &directory).unwrap();
        eventually(|| {
            let status = node().status();
            if status["sources"][0]["problem"].is_null() { Ok(()) } else { Err(format!("{status:#}")) }
        });
        let begin = Instant::now();
        node().until_read("x-dir");
        node().until_gone("x-dir-later");
        note(&format!("a pod that is added then has come and gone after {:.2} s", since(begin)));
    }
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
