//! What each upgrade is, and what is left of it.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::client::{Load, Report};
use crate::command::Ended;
use crate::host::{LONG, SOON, Tree, all_running, check, docker, eventually, healthy, kubectl, plinth, shell};
use crate::sandbox::note;

const OLD: &str = "v1.36.3";
const NEW: &str = "v1.37.1";
const OLD_ETCD: &str = "3.6.8-0";
/// How long clients go on after the command: the old API server may still be ending.
const AFTERWARDS: Duration = Duration::from_secs(5);

/// A kubeadm file with these fields of a `ClusterConfiguration`, and the time that a component may take.
fn config(name: &str, version: &str, fields: &str) -> String {
    let path = format!("{}/{name}.yaml", std::env::var("PLINTH_SANDBOX_DIR").unwrap());
    let text = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\ntimeouts: {{controlPlaneComponentHealthCheck: \
         30s}}\n---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: \
         {version}\n{fields}"
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// Keeps etcd where it is.
fn same_etcd() -> String {
    format!("etcd: {{local: {{imageTag: {OLD_ETCD}}}}}\n")
}

/// Image of the container that runs of `component`.
fn image(component: &str) -> String {
    docker(&format!("inspect -f {{{{.Config.Image}}}} {}", all_running(SOON)[component].id)).trim().to_owned()
}

#[track_caller]
fn serves(version: &str, etcd: &str) {
    healthy(LONG);
    let server: Value = kubectl("get --raw /version").ok().json();
    assert_eq!(server["gitVersion"], version);
    assert!(image("etcd").ends_with(etcd), "{}", image("etcd"));
    for component in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
        assert!(image(component).ends_with(version), "{}", image(component));
    }
}

/// Runs `init` with the file `new` over a cluster made with the file `old`, while clients are at work.
fn under_load(old: &str, new: &str) -> (Ended, Report) {
    plinth(&format!("init --config {old}")).ok();
    healthy(LONG);
    let load = Load::start();
    let ended = plinth(&format!("init --config {new} -o json"));
    thread::sleep(AFTERWARDS);
    let report = load.stop();
    note(&format!("init ended after {:.2} s with {:?}; {report}", ended.took.as_secs_f64(), ended.status.code()));
    (ended, report)
}

/// An upgrade that fails: what ran before runs, and everything is as it was.
fn fails(old: &str, new: &str) -> (Value, Report) {
    plinth(&format!("init --config {old}")).ok();
    let trees = || ["/etc/kubernetes/manifests", "/var/lib/plinth/generations"].map(Tree::of);
    let before = trees();
    let (ended, report) = under_load(old, new);
    let document = ended.exits(1).json();
    for (before, after) in before.iter().zip(trees()) {
        assert_eq!(before.difference(&after), Vec::<String>::new());
    }
    serves(OLD, OLD_ETCD);
    eventually(SOON, || {
        let plan = plinth("plan --detailed-exitcode");
        check(plan.status.code() == Some(0), || plan.to_string())
    });
    let copies = shell("ls /var/lib/etcd").ok();
    assert_eq!(copies.stdout, "member\n");
    (document, report)
}

pub(crate) fn an_upgrade_in_use() {
    let (ended, report) = under_load(&config("old", OLD, ""), &config("new", NEW, ""));
    ended.ok();
    serves(NEW, "3.7.0-0");
    report.lost_nothing();
    assert_eq!(shell("ls /var/lib/etcd").ok().stdout, "member\n");
}

pub(crate) fn an_upgrade_of_the_api_server_in_use() {
    let (ended, report) = under_load(&config("old", OLD, &same_etcd()), &config("new", NEW, &same_etcd()));
    ended.ok();
    serves(NEW, OLD_ETCD);
    report.flawless();
}

pub(crate) fn an_image_that_exits() {
    // A program that ends in the place of the API server.
    shell(
        "set -e; id=$(docker create --entrypoint /bin/sh plinth-test/busybox:1); dir=$(mktemp -d); \
         printf '#!/bin/sh\\necho no such thing >&2\\nexit 3\\n' > $dir/kube-apiserver; \
         chmod 755 $dir/kube-apiserver; docker cp $dir/kube-apiserver $id:/bin/kube-apiserver; \
         docker commit $id registry.k8s.io/kube-apiserver:v1.37.1; docker rm $id; rm -r $dir",
    )
    .ok();
    let (_, report) = fails(&config("old", OLD, &same_etcd()), &config("new", NEW, &same_etcd()));
    report.flawless();
}

pub(crate) fn a_flag_that_is_refused_after_etcd_was_exchanged() {
    let fields = "apiServer: {extraArgs: [{name: no-such-flag, value: \"1\"}]}\n";
    let (document, report) = fails(&config("old", OLD, ""), &config("new", NEW, fields));
    assert_eq!(document["autopsy"]["code"], "bad-flag", "{document}");
    report.lost_nothing();
}

pub(crate) fn an_api_server_that_is_never_ready() {
    // It waits for an etcd that does not exist.
    let fields =
        format!("{}apiServer: {{extraArgs: [{{name: etcd-servers, value: \"https://127.0.0.1:1\"}}]}}\n", same_etcd());
    let (_, report) = fails(&config("old", OLD, &same_etcd()), &config("new", NEW, &fields));
    report.flawless();
}

pub(crate) fn an_etcd_that_cannot_start() {
    let fields = "etcd: {local: {extraArgs: [{name: no-such-flag, value: \"1\"}]}}\n";
    let (_, report) = fails(&config("old", OLD, ""), &config("new", NEW, fields));
    report.lost_nothing();
}
