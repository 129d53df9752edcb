//! What happens to the manifest, and what clients see.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Load;
use crate::command::run;
use crate::host::{
    Container, LONG, SOON, agent_pid, all_running, check, docker, eventually, healthy, plinth, running, service,
    sigkill, status,
};
use crate::sandbox::note;
use crate::slice::Slice;

const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";
const COMPONENT: &str = "kube-apiserver";
const AGENT_LOG: &str = "/var/log/plinth/agent.log";
/// How long the Service `kubernetes` may be empty.
const EMPTY: Duration = Duration::from_millis(500);
/// How long an old one may take to end: its watches are closed after 2 s.
const END: Duration = Duration::from_secs(20);

const FLAG: (&str, &str) = ("    - \"--allow-privileged=true\"", "    - \"--allow-privileged=true\"\n    - \"--v=1\"");
const BAD_FLAG: (&str, &str) =
    ("    - \"--allow-privileged=true\"", "    - \"--allow-privileged=true\"\n    - \"--no-such-flag=1\"");
const NEVER_READY: [(&str, &str); 2] = [
    ("etcd-servers=https://127.0.0.1:2379", "etcd-servers=https://127.0.0.1:1"),
    ("failureThreshold: 24", "failureThreshold: 1"),
];

/// The manifest as it is, with some changes, each of which must change something.
fn changed(changes: &[(&str, &str)]) -> String {
    let mut text = fs::read_to_string(MANIFEST).unwrap();
    for (old, new) in changes {
        assert!(text.contains(old), "`{old}` is not in {text}");
        text = text.replace(old, new);
    }
    text
}

fn pod() -> Value {
    let status = status();
    let pods = status["agent"]["pods"].as_array().cloned().unwrap_or_default();
    pods.into_iter()
        .find(|pod| pod["name"].as_str().is_some_and(|name| name.starts_with(COMPONENT)))
        .unwrap_or_default()
}

/// Whether the agent says that the file's version is the one that serves. It says nothing when it does not answer.
fn serves_the_file() -> Result<(), String> {
    let pod = pod();
    check(pod["name"].is_string() && pod["update"].is_null(), || format!("the file's version does not serve: {pod}"))
}

fn containers() -> Vec<String> {
    let ids = docker("ps --all --quiet --no-trunc --filter label=io.kubernetes.container.name=kube-apiserver");
    ids.lines().map(str::to_owned).collect()
}

/// Waits until another one than `old` serves.
#[track_caller]
fn replaced(old: &Container) -> Container {
    eventually(LONG, || {
        let new = running().remove(COMPONENT).filter(|new| new.id != old.id);
        serves_the_file()?;
        new.ok_or_else(|| "it does not run".to_owned())
    })
}

/// Waits until the file's version is rejected and `proven` is the only one; why.
#[track_caller]
fn rejected(proven: &Container) -> String {
    eventually(LONG, || {
        let (pod, there) = (pod(), containers());
        let why = pod["update"]["rejected"].as_str().ok_or_else(|| format!("not rejected: {pod}"))?;
        check(there == std::slice::from_ref(&proven.id), || format!("{there:?} are there, not only {}", proven.id))?;
        Ok(why.to_owned())
    })
}

pub(crate) fn a_good_change_fails_no_request() {
    plinth("init").ok();
    let (load, slice) = (Load::start(), Slice::watch());
    // To and fro: the second one replaces what was itself started beside another one.
    for change in [FLAG, (FLAG.1, FLAG.0)] {
        let old = running()[COMPONENT].clone();
        let begin = Instant::now();
        fs::write(MANIFEST, changed(&[change])).unwrap();
        let new = replaced(&old);
        note(&format!("the new one serves after {:.2} s", begin.elapsed().as_secs_f64()));
        eventually(END, || {
            let there = containers();
            check(there == std::slice::from_ref(&new.id), || format!("{there:?} are there"))
        });
        note(&format!("the old one is gone after {:.2} s", begin.elapsed().as_secs_f64()));
        // Until the new one has looked after the Service itself.
        thread::sleep(Duration::from_secs(12));
    }
    let (report, empty) = (load.stop(), slice.stop());
    note(&format!("{report}; the Service was empty for {:.2} s", empty.as_secs_f64()));
    assert!(empty <= EMPTY, "the Service `kubernetes` was empty for {empty:?}");
    report.flawless();
}

pub(crate) fn a_bad_change_fails_no_request() {
    plinth("init").ok();
    let proven = all_running(SOON)[COMPONENT].clone();
    let good = fs::read_to_string(MANIFEST).unwrap();
    let (load, slice) = (Load::start(), Slice::watch());
    let no_program = (":v1.37.1", ":no-such-version");
    let etcds = ("kube-apiserver:v1.37.1", "etcd:3.7.0-0");
    for (name, changes, reason) in [
        ("a flag that does not exist", &[BAD_FLAG][..], "exited with code 1"),
        ("another program's image", &[etcds], "did not start"),
        ("never ready", &NEVER_READY, "not ready within"),
    ] {
        let begin = Instant::now();
        fs::write(MANIFEST, changed(changes)).unwrap();
        let why = rejected(&proven);
        note(&format!("{name} is rejected after {:.2} s: {why}", begin.elapsed().as_secs_f64()));
        assert!(why.contains(reason), "{name}: {why}");
        // Not tried again, not even by the next agent.
        for new_agent in [false, true] {
            if new_agent {
                restart_agent();
            }
            let until = Instant::now() + Duration::from_secs(3);
            while Instant::now() < until {
                assert!(containers() == std::slice::from_ref(&proven.id), "{name}");
            }
            assert_eq!(rejected(&proven), why);
        }
        fs::write(MANIFEST, &good).unwrap();
        eventually(SOON, serves_the_file);
    }
    // Nobody can say that an image will never come: it is waited for, and the old one serves.
    fs::write(MANIFEST, changed(&[no_program])).unwrap();
    eventually(SOON, || check(!pod()["update"].is_null(), || format!("{}", pod())));
    thread::sleep(Duration::from_secs(3));
    fs::write(MANIFEST, &good).unwrap();
    eventually(SOON, serves_the_file);
    assert_eq!(running()[COMPONENT], proven);
    let (report, empty) = (load.stop(), slice.stop());
    note(&format!("{report}; the Service was empty for {:.2} s", empty.as_secs_f64()));
    assert!(empty <= EMPTY, "the Service `kubernetes` was empty for {empty:?}");
    report.flawless();
}

pub(crate) fn an_agent_killed_in_the_middle_fails_no_request() {
    plinth("init").ok();
    let old = all_running(SOON)[COMPONENT].clone();
    let load = Load::start();
    // As soon as the new one runs: it is not ready within so short a time.
    fs::write(MANIFEST, changed(&[FLAG])).unwrap();
    eventually(SOON, || check(containers().len() == 2, || "the new one is not there".to_owned()));
    restart_agent();
    replaced(&old);
    let report = load.stop();
    note(&report.to_string());
    report.flawless();
}

pub(crate) fn an_agent_killed_at_the_take_over_keeps_the_service() {
    plinth("init").ok();
    let old = all_running(SOON)[COMPONENT].clone();
    let first = eventually(SOON, proven);
    let (load, slice) = (Load::start(), Slice::watch());
    fs::write(MANIFEST, changed(&[FLAG])).unwrap();
    // From now on the new one counts, and the old one is still there.
    eventually(LONG, || check(proven()? != first, || "the new one is not proven".to_owned()));
    let agent = command_of_agent();
    sigkill(agent_pid().unwrap());
    let there = containers().len();
    let in_time = !fs::read_to_string(AGENT_LOG).unwrap().contains("stopping");
    start_agent(&agent);
    assert_eq!(there, 2, "it was killed too late");
    let new = replaced(&old);
    eventually(END, || {
        let there = containers();
        check(there == std::slice::from_ref(&new.id), || format!("{there:?} are there"))
    });
    // Until the new one has looked after the Service itself.
    thread::sleep(Duration::from_secs(12));
    let (report, empty) = (load.stop(), slice.stop());
    note(&format!("{report}; the Service was empty for {:.2} s", empty.as_secs_f64()));
    assert!(empty <= EMPTY, "the Service `kubernetes` was empty for {empty:?}");
    if in_time {
        report.flawless();
    } else {
        // The old one was on its way out already, with nobody to keep clients away from it.
        report.lost_nothing();
    }
}

/// What the agent keeps of the last proven version.
fn proven() -> Result<String, String> {
    let mut files = fs::read_dir("/var/lib/plinth/proven").map_err(|error| error.to_string())?.flatten();
    let file = files.find(|file| file.file_name().to_string_lossy().contains(COMPONENT));
    fs::read_to_string(file.ok_or("none is kept")?.path()).map_err(|error| error.to_string())
}

pub(crate) fn a_bad_change_is_given_up_at_a_cold_start() {
    plinth("init").ok();
    let good = fs::read_to_string(MANIFEST).unwrap();
    // What a boot finds, and what an engine that has lost its data leaves.
    for end in ["kill", "rm --force"] {
        all_running(SOON);
        eventually(SOON, proven);
        let agent = command_of_agent();
        sigkill(agent_pid().unwrap());
        docker(&format!("{end} {}", docker("ps --quiet").replace('\n', " ")));
        fs::write(MANIFEST, changed(&[BAD_FLAG])).unwrap();
        let begin = Instant::now();
        start_agent(&agent);
        healthy(LONG);
        note(&format!("{end}: the proven one serves {:.2} s after the start", begin.elapsed().as_secs_f64()));
        let why = eventually(LONG, || {
            let pod = pod();
            pod["update"]["rejected"].as_str().map(str::to_owned).ok_or_else(|| format!("not rejected: {pod}"))
        });
        assert!(why.contains("exited with code 1"), "{why}");
        fs::write(MANIFEST, &good).unwrap();
        eventually(SOON, serves_the_file);
    }
}

fn command_of_agent() -> Vec<u8> {
    fs::read(format!("/proc/{}/cmdline", agent_pid().unwrap())).unwrap()
}

fn start_agent(command: &[u8]) {
    let line = String::from_utf8_lossy(command).trim_end_matches('\0').replace('\0', " ");
    service(&line, AGENT_LOG);
    eventually(SOON, || check(agent_pid().is_some(), || "no agent answers".to_owned()));
}

fn restart_agent() {
    let command = command_of_agent();
    sigkill(agent_pid().unwrap());
    start_agent(&command);
}

pub(crate) fn the_agent_may_do_nothing_else() {
    plinth("init").ok();
    let can = |what: &str| {
        let line = format!("--kubeconfig=/etc/kubernetes/plinth-agent.conf auth can-i {what}");
        run(Command::new("kubectl").args(line.split_whitespace()), SOON).stdout.trim() == "yes"
    };
    eventually(SOON, || check(can("update endpoints/kubernetes -n default"), || "not yet".to_owned()));
    assert!(can("get endpointslices.discovery.k8s.io/kubernetes -n default"));
    for what in [
        "create endpoints -n default",
        "delete endpoints/kubernetes -n default",
        "update endpoints/other -n default",
        "update endpoints/kubernetes -n kube-system",
        "get secrets -n default",
        "get pods -A",
    ] {
        assert!(!can(what), "{what}");
    }
}
