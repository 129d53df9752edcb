//! What a control plane goes through, from an empty host to an empty host.

use std::thread;
use std::time::{Duration, Instant};

use crate::command::run;
use crate::host::{
    COMPONENTS, LONG, SOON, Tree, agent_pid, all_running, check, container_ids, control_plane_processes, deploys,
    eventually, healthy, kubectl, plinth, plinth_command, running, service, shell, sigkill,
};
use crate::sandbox::note;

const FOREIGN: &str = "/etc/kubernetes/theirs.conf";

pub(crate) fn from_init_to_reset_and_again() {
    let empty = Tree::of_host();
    let init = plinth("init").ok();
    note(&format!("init {:.2} s", init.took.as_secs_f64()));
    assert_eq!(kubectl("get --raw=/readyz").ok().stdout, "ok");
    deploys("first");

    each_process_comes_back();
    deploys("second");
    a_new_agent_adopts(&boot_line(&init.stdout));
    a_rerun_changes_nothing();
    a_rerun_from_elsewhere_changes_nothing();
    what_a_cluster_keeps_is_refused_by_name();
    a_missing_manifest_is_put_back();
    reset_leaves_nothing(&empty);

    plinth("init").ok();
    healthy(SOON);
}

/// The line that `init` asks to be run at boot.
pub(crate) fn boot_line(stdout: &str) -> String {
    let line = stdout.lines().map(str::trim).find(|line| line.contains(" agent --"));
    line.unwrap_or_else(|| panic!("no line to run at boot in: {stdout}")).to_owned()
}

fn each_process_comes_back() {
    for component in COMPONENTS {
        let old = all_running(SOON)[component].clone();
        let begin = Instant::now();
        sigkill(old.pid);
        let new = eventually(SOON, || {
            let new = running().remove(component).filter(|new| new.pid != old.pid);
            new.ok_or_else(|| format!("{component} does not come back"))
        });
        note(&format!("{component} runs again {:.2} s after SIGKILL", begin.elapsed().as_secs_f64()));
        assert_eq!((old.restarts, new.restarts), (0, 1), "{component}");
        healthy(LONG);
    }
    for (component, container) in all_running(SOON) {
        assert_eq!(container.restarts, 1, "{component}");
    }
}

fn a_new_agent_adopts(boot_line: &str) {
    let before = (all_running(SOON), container_ids());
    let old = agent_pid().expect("an agent runs");
    sigkill(old);
    assert_eq!(plinth("status -o json").exits(1).json()["agent"], serde_json::Value::Null);
    service(boot_line, "/var/log/plinth/agent.log");
    assert_eq!(all_running(SOON), before.0);
    assert_ne!(agent_pid(), Some(old));
    // Not only at the first look.
    thread::sleep(Duration::from_secs(1));
    assert_eq!((all_running(SOON), container_ids()), before);
}

fn a_rerun_changes_nothing() {
    let before = (container_ids(), running(), Tree::of("/etc/kubernetes"), agent_pid());
    // The best of three, which takes some tenths of a second: another test may have the processors.
    let reruns = [(); 3].map(|()| plinth("init").ok());
    assert!(reruns.iter().all(|again| again.stdout.contains("nothing is to be done")), "{}", reruns[0]);
    let again = reruns.iter().min_by_key(|again| again.took).unwrap();
    assert!(again.took < Duration::from_secs(5), "{again}");
    note(&format!("init again {:.2} s", again.took.as_secs_f64()));
    assert_eq!((container_ids(), running(), Tree::of("/etc/kubernetes"), agent_pid()), before);
}

/// What the manifests took from the host is as it was: another shell, or a package that came since, is no change.
fn a_rerun_from_elsewhere_changes_nothing() {
    std::fs::create_dir_all("/etc/pki/tls/certs").unwrap();
    let mut command = plinth_command("init");
    let again = run(command.env("HTTPS_PROXY", "http://192.0.2.8:3128"), SOON).ok();
    assert!(again.stdout.contains("nothing is to be done"), "{again}");
    shell("rmdir --parents --ignore-fail-on-non-empty /etc/pki/tls/certs").ok();
}

fn what_a_cluster_keeps_is_refused_by_name() {
    let before = (container_ids(), running(), Tree::of("/etc/kubernetes"));
    let other = plinth("init --service-cidr 10.97.0.0/16 --node-name other").exits(2);
    for words in ["--service-cidr (networking.serviceSubnet): `10.97.0.0/16`", "--node-name (nodeRegistration.name)"] {
        assert!(other.stderr.contains(words), "{words} is missing: {other}");
    }
    assert_eq!((container_ids(), running(), Tree::of("/etc/kubernetes")), before);
}

fn a_missing_manifest_is_put_back() {
    let before = (Tree::of("/etc/kubernetes"), all_running(SOON));
    std::fs::remove_file("/etc/kubernetes/manifests/kube-scheduler.yaml").unwrap();
    eventually(LONG, || check(!running().contains_key("kube-scheduler"), || "kube-scheduler still runs".to_owned()));
    plinth("init").ok();
    healthy(SOON);
    assert_eq!(before.0.difference(&Tree::of("/etc/kubernetes")), Vec::<String>::new());
    let mut after = all_running(SOON);
    let scheduler = "kube-scheduler".to_owned();
    assert_ne!(after[&scheduler].id, before.1[&scheduler].id);
    after.insert(scheduler.clone(), before.1[&scheduler].clone());
    assert_eq!(after, before.1);
}

fn reset_leaves_nothing(empty: &Tree) {
    std::fs::write(FOREIGN, "not plinth's").unwrap();
    let reset = plinth("reset --force").ok();
    note(&format!("reset {:.2} s", reset.took.as_secs_f64()));
    let left = reset.stdout.lines().find(|line| line.ends_with("left: holds files that plinth did not make"));
    assert!(left.is_some_and(|line| line.contains(" /etc/kubernetes ")), "{reset}");
    assert_eq!(empty.difference(&Tree::of_host()), ["+ /etc/kubernetes", &format!("+ {FOREIGN}")]);
    assert!(container_ids().is_empty(), "{:?}", container_ids());
    assert_eq!(control_plane_processes(), Vec::<String>::new());
    std::fs::remove_dir_all("/etc/kubernetes").unwrap();

    let again = plinth("reset --force").ok();
    assert_eq!(again.stdout.trim(), "nothing of plinth is on this host");
    assert_eq!(empty.difference(&Tree::of_host()), Vec::<String>::new());
}
