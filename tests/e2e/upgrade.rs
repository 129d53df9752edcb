//! Another version of Kubernetes, and the way back: to the end, ended in the middle, refused, and on a broken cluster.

use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::command::{Ended, start};
use crate::host::{
    LONG, SOON, Tree, all_running, check, control_plane_processes, docker, eventually, healthy, kubectl, plinth,
    plinth_command, running, sigkill, status,
};
use crate::sandbox::note;

const OLD: &str = "v1.36.3";
const NEW: &str = "v1.37.1";
const UPGRADE: &str = "init --kubernetes-version v1.37.1";
const OLD_ETCD: &str = "3.6.8-0";
const NEW_ETCD: &str = "3.7.0-0";
const ETCD: &str = "/etc/kubernetes/manifests/etcd.yaml";

fn begin() {
    plinth(&format!("init --kubernetes-version {OLD}")).ok();
    healthy(LONG);
}

/// The four components are of this version, that of etcd apart, healthy, and all that is wanted.
#[track_caller]
fn serves(version: &str, etcd: &str) {
    healthy(LONG);
    let server: Value = kubectl("get --raw /version").ok().json();
    assert_eq!(server["gitVersion"], version);
    for (component, container) in all_running(SOON) {
        let image = docker(&format!("inspect -f {{{{.Config.Image}}}} {}", container.id));
        let tag = if component == "etcd" { etcd } else { version };
        assert!(image.trim().ends_with(&format!(":{tag}")), "{image}");
    }
    eventually(SOON, || {
        let plan = plinth("plan --detailed-exitcode");
        check(plan.status.code() == Some(0) && plan.stdout.contains("nothing is to be done"), || plan.to_string())
    });
    assert!(!Path::new("/var/lib/plinth/etcd-swap").exists());
}

fn keep(name: &str) {
    kubectl(&format!("create configmap {name}")).ok();
}

#[track_caller]
fn kept(names: &[&str]) {
    for name in names {
        kubectl(&format!("get configmap {name}")).ok();
    }
}

#[track_caller]
fn timed(what: &str, ended: &Ended) {
    note(&format!("{what} {:.1} s", ended.took.as_secs_f64()));
}

pub(crate) fn to_the_next_version_and_back_and_forth() {
    begin();
    keep("old-1");
    timed("upgrade", &plinth(UPGRADE).ok());
    serves(NEW, NEW_ETCD);
    keep("new-1");
    kept(&["old-1"]);

    // Down by etcd's own downgrade, and what differs from that is what was there before.
    let back = plinth("rollback").ok();
    timed("rollback", &back);
    assert!(back.stderr.contains("going back to generation 1 (v1.36.3)"), "{back}");
    serves(OLD, OLD_ETCD);
    kept(&["old-1", "new-1"]);
    keep("old-2");

    timed("rollback of the rollback", &plinth("rollback").ok());
    serves(NEW, NEW_ETCD);
    kept(&["old-1", "new-1", "old-2"]);

    let kept_etcd = all_running(SOON)["etcd"].clone();
    timed("rollback without etcd", &plinth("rollback --keep-etcd").ok());
    serves(OLD, NEW_ETCD);
    assert_eq!(all_running(SOON)["etcd"], kept_etcd);
    kept(&["old-1", "new-1", "old-2"]);

    // One that was stopped cannot make its data readable for an older one, so it is started again.
    std::fs::remove_file(ETCD).unwrap();
    etcd_ends();
    timed("rollback of an etcd without a manifest", &plinth("rollback 1").ok());
    serves(OLD, OLD_ETCD);
    kept(&["old-1", "new-1", "old-2"]);
}

fn etcd_ends() {
    eventually(LONG, || {
        let runs = control_plane_processes().into_iter().find(|line| line.starts_with("etcd "));
        check(runs.is_none(), || "etcd still runs".to_owned())
    });
}

/// Starts the upgrade, and ends it with `signal` once nobody starts an etcd any more.
fn end_with_etcd_away(signal: Signal) -> Ended {
    let mut upgrade = start(&mut plinth_command(UPGRADE));
    eventually(LONG, || {
        assert!(upgrade.child.try_wait().unwrap().is_none(), "the upgrade has ended before it could be ended");
        check(!Path::new(ETCD).exists(), || "etcd's manifest is there".to_owned())
    });
    kill(Pid::from_raw(upgrade.child.id().cast_signed()), signal).unwrap();
    let ended = upgrade.end(SOON);
    assert!(!Path::new(ETCD).exists(), "it has come too far");
    etcd_ends();
    ended
}

#[track_caller]
fn status_says_it_first() {
    let problems = status()["problems"].clone();
    let first = problems[0].as_str().unwrap_or_default();
    let expected = "etcd is stopped, and nothing serves: its replacement (registry.k8s.io/etcd:3.6.8-0 → \
                    registry.k8s.io/etcd:3.7.0-0) is interrupted";
    assert!(first.starts_with(expected), "{problems}");
}

pub(crate) fn killed_with_etcd_away_it_goes_on_or_back() {
    begin();
    keep("before");
    let before = Tree::of("/etc/kubernetes/manifests");
    end_with_etcd_away(Signal::SIGKILL);
    status_says_it_first();
    let plan = plinth("plan").ok();
    assert!(plan.stdout.contains("its replacement was interrupted, and is undone"), "{plan}");
    timed("plan with etcd away", &plan);
    timed("back again", &plinth("init").ok());
    serves(OLD, OLD_ETCD);
    kept(&["before"]);
    assert_eq!(before.difference(&Tree::of("/etc/kubernetes/manifests")), Vec::<String>::new());

    end_with_etcd_away(Signal::SIGKILL);
    // By then the controller manager and the scheduler are gone and have been started again.
    thread::sleep(Duration::from_secs(12));
    status_says_it_first();
    let plan = plinth(&UPGRADE.replace("init", "plan")).ok();
    assert!(plan.stdout.starts_with("Kubernetes v1.36.3 → v1.37.1\n"), "{plan}");
    assert!(plan.stdout.contains("its replacement was interrupted, and goes on"), "{plan}");
    let again = plinth(UPGRADE).ok();
    timed("on to the goal", &again);
    let listed = "ComponentHealth, KubeletSkew and DeprecatedAPIs were not checked: the replacement of etcd was \
                  interrupted";
    assert!(again.stderr.contains(listed), "{again}");
    serves(NEW, NEW_ETCD);
    kept(&["before"]);
}

pub(crate) fn interrupted_it_goes_on_and_a_skew_is_refused() {
    begin();
    keep("before");
    a_skew_is_refused_with_the_path();
    let interrupted = end_with_etcd_away(Signal::SIGINT).exits(1);
    assert!(interrupted.stderr.contains("interrupted; run the same command again to finish"), "{interrupted}");
    assert!(interrupted.took < SOON);
    plinth(UPGRADE).ok();
    serves(NEW, NEW_ETCD);
    kept(&["before"]);

    let refused = plinth("init --kubernetes-version v1.35.4").exits(2);
    assert!(refused.stderr.contains("v1.37.1 cannot go back to v1.35.4"), "{refused}");
}

fn a_skew_is_refused_with_the_path() {
    let before = (all_running(SOON), Tree::of("/etc/kubernetes"), Tree::of("/var/lib/plinth/generations"));
    // One that ran v1.35 would be asked to take the step between.
    let stored = "/var/lib/plinth/generations/1/config.yaml";
    let config = std::fs::read_to_string(stored).unwrap();
    std::fs::write(stored, config.replace(OLD, "v1.35.4")).unwrap();
    for command in ["plan", "init"] {
        let refused = plinth(&format!("{command} --kubernetes-version {NEW}")).exits(2);
        assert!(refused.stderr.contains("v1.36"), "the path is missing: {refused}");
    }
    std::fs::write(stored, config).unwrap();
    for version in ["v1.34.1", "v1.38.0", "1.37"] {
        plinth(&format!("init --kubernetes-version {version}")).exits(2);
    }
    let after = (all_running(SOON), Tree::of("/etc/kubernetes"), Tree::of("/var/lib/plinth/generations"));
    assert_eq!(before.0, after.0);
    assert_eq!(before.1.difference(&after.1), Vec::<String>::new());
    assert_eq!(before.2.difference(&after.2), Vec::<String>::new());
}

const POLICY: &str = "/etc/kubernetes/audit-policy.yaml";

/// A kubeadm file with this version and the etcd of the old one; the API server needs [`POLICY`] where it is `audited`.
fn config(name: &str, version: &str, audited: bool) -> String {
    let path = format!("{}/{name}.yaml", std::env::var("PLINTH_SANDBOX_DIR").unwrap());
    let audit = format!(
        "apiServer:\n  extraArgs: [{{name: audit-policy-file, value: {POLICY}}}]\n  extraVolumes: [{{name: audit, \
         hostPath: {POLICY}, mountPath: {POLICY}, readOnly: true, pathType: File}}]\n"
    );
    let text = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: {version}\netcd: {{local: \
         {{imageTag: {OLD_ETCD}}}}}\n{}",
        if audited { audit.as_str() } else { "" }
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// Gives the API server what it needs, and once it is relied on, takes it away.
fn break_api_server(config: &str) {
    std::fs::write(POLICY, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None}]\n").unwrap();
    plinth(&format!("init --config {config}")).ok();
    healthy(LONG);
    let pid = all_running(SOON)["kube-apiserver"].pid;
    std::fs::remove_file(POLICY).unwrap();
    sigkill(pid);
    eventually(SOON, || {
        check(!running().contains_key("kube-apiserver"), || "the API server runs without its policy".to_owned())
    });
}

pub(crate) fn a_broken_api_server_is_mended_by_flags_and_by_rollback() {
    let plain = config("plain", OLD, false);
    plinth(&format!("init --config {plain}")).ok();
    healthy(LONG);
    keep("before");

    break_api_server(&config("audited", OLD, true));
    timed("flags of a broken API server", &plinth(&format!("init --config {plain}")).ok());
    serves(OLD, OLD_ETCD);

    break_api_server(&config("new", NEW, true));
    let back = plinth("rollback").ok();
    timed("rollback of a broken API server", &back);
    assert!(back.stderr.contains("KubeletSkew and DeprecatedAPIs were not checked"), "{back}");
    serves(OLD, OLD_ETCD);
    kept(&["before"]);
}
