//! `init` on a host that has a control plane: changes, drift, plans.

use std::collections::BTreeMap;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{Ended, start};
use crate::configuration::served_by_default_port;
use crate::host::{
    Container, LONG, SOON, Tree, agent_pid, all_running, check, container_ids, docker, eventually, healthy, kubectl,
    plinth, plinth_command, running, shell, sigkill,
};
use crate::sandbox::note;

const SCHEDULER: &str = "/etc/kubernetes/manifests/kube-scheduler.yaml";

/// A file with this text after the header of a `ClusterConfiguration`.
pub(crate) fn file(name: &str, fields: &str) -> String {
    let path = format!("{}/{name}.yaml", std::env::var("PLINTH_SANDBOX_DIR").unwrap());
    let text = format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n{fields}");
    std::fs::write(&path, text).unwrap();
    path
}

/// A component with one more flag.
pub(crate) fn flag(component: &str, name: &str, value: &str) -> String {
    format!("{component}:\n  extraArgs: [{{name: {name}, value: \"{value}\"}}]\n")
}

fn generation() -> u64 {
    let history = plinth("history -o json").ok().json();
    let generations = history["generations"].as_array().unwrap();
    let current: Vec<_> = generations.iter().filter(|one| one["current"] == true).collect();
    assert_eq!(current.len(), 1, "{history}");
    current[0]["number"].as_u64().unwrap()
}

#[track_caller]
pub(crate) fn nothing_to_do(arguments: &str) {
    // A component that is slow to answer on a busy computer is a difference, for that moment.
    eventually(SOON, || {
        let plan = plinth(&format!("plan --detailed-exitcode {arguments}"));
        check(plan.status.code() == Some(0) && plan.stdout.contains("nothing is to be done"), || plan.to_string())
    });
    let again = plinth(&format!("init {arguments}")).ok();
    assert!(again.stdout.contains("nothing is to be done"), "{again}");
}

/// All but one of the containers are those from before.
#[track_caller]
fn only_changed(component: &str, before: &BTreeMap<String, Container>) -> BTreeMap<String, Container> {
    let mut after = all_running(SOON);
    assert_ne!(after[component].id, before[component].id, "{component}");
    let new = after.insert(component.to_owned(), before[component].clone()).unwrap();
    assert_eq!(after, *before);
    after.insert(component.to_owned(), new);
    after
}

pub(crate) fn flags_change_one_component_at_a_time() {
    plinth("init").ok();
    a_scheduler_flag_restarts_the_scheduler_only();
    a_bad_flag_comes_back_by_itself();
    a_certificate_gets_another_name_while_everything_runs();
    another_version_is_planned();
    a_second_plinth_says_who_is_at_work();

    let history = plinth("history").ok();
    assert!(history.stdout.contains("kube-scheduler: other flags: v [restart of kube-scheduler]"), "{history}");
    assert!(history.stdout.contains("certs/apiserver: "), "{history}");
}

fn a_scheduler_flag_restarts_the_scheduler_only() {
    let before = all_running(SOON);
    let config = file("verbose", &flag("scheduler", "v", "3"));
    let plan = plinth(&format!("plan --detailed-exitcode --config {config}")).exits(10);
    for text in ["kube-scheduler: other flags: v [restart of kube-scheduler]", "+    - \"--v=3\""] {
        assert!(plan.stdout.contains(text), "{text} is missing: {plan}");
    }
    plinth(&format!("plan --config {config}")).ok();
    assert_eq!(all_running(SOON), before);

    let change = plinth(&format!("init --config {config}")).ok();
    note(&format!("a flag of the scheduler {:.2} s", change.took.as_secs_f64()));
    healthy(SOON);
    only_changed("kube-scheduler", &before);
    assert_eq!(generation(), 2);

    // The configuration is kept, a comment in it means nothing, and nor does the order of what is in it.
    let commented = file("commented", &format!("# why\n{}# and how\n", flag("scheduler", "v", "3")));
    for arguments in ["", &format!("--config {config}"), &format!("--config {commented}")] {
        nothing_to_do(arguments);
    }
    assert_eq!(generation(), 2);
}

fn a_bad_flag_comes_back_by_itself() {
    for (component, name) in [("scheduler", "kube-scheduler"), ("apiServer", "kube-apiserver")] {
        let before = (all_running(SOON), Tree::of("/etc/kubernetes"), Tree::of("/var/lib/plinth/generations"));
        let fields = if component == "scheduler" { String::new() } else { flag("scheduler", "v", "3") };
        let config = file("bad", &format!("{fields}{}", flag(component, "no-such-flag", "1")));
        let failed = plinth(&format!("init --config {config} -o json")).exits(1);
        note(&format!("a bad flag of {name} is gone again after {:.2} s", failed.took.as_secs_f64()));
        let json = failed.json();
        assert_eq!((&json["error"], &json["autopsy"]["code"]), (&"put-back".into(), &"bad-flag".into()), "{failed}");
        assert_eq!(json["back"][0], serde_json::json!({ "component": name, "unhealthy": null }));
        healthy(LONG);
        if name == "kube-scheduler" {
            only_changed(name, &before.0);
        }
        assert_eq!(before.1.difference(&Tree::of("/etc/kubernetes")), Vec::<String>::new());
        assert_eq!(before.2.difference(&Tree::of("/var/lib/plinth/generations")), Vec::<String>::new());
        nothing_to_do("");
    }
}

fn a_certificate_gets_another_name_while_everything_runs() {
    let before = all_running(SOON);
    let plan = plinth("plan --apiserver-cert-extra-sans api.tried.example").ok();
    assert!(plan.stdout.contains("api.tried.example") && plan.stdout.contains("[live]"), "{plan}");
    plinth("init --apiserver-cert-extra-sans api.tried.example").ok();
    // The API server reads its certificate again when the file changes, and once a minute.
    eventually(LONG, || {
        check(served_by_default_port("api.tried.example"), || "the old certificate is served".to_owned())
    });
    assert_eq!(all_running(SOON), before);
    // A flag stands over one value: the scheduler's flag is still there.
    assert!(std::fs::read_to_string(SCHEDULER).unwrap().contains("--v=3"));
    nothing_to_do("");
}

fn another_version_is_planned() {
    let before = (all_running(SOON), Tree::of("/etc/kubernetes"));
    let plan = plinth("plan --kubernetes-version v1.36.3").ok();
    assert!(plan.stdout.starts_with("Kubernetes v1.37.1 → v1.36.3\n"), "{plan}");
    for text in ["etcd:3.7.0-0 → registry.k8s.io/etcd:3.6.8-0", "[restart of kube-apiserver]"] {
        assert!(plan.stdout.contains(text), "{text} is missing: {plan}");
    }
    let refused = plinth("init --kubernetes-version v1.35.4").exits(2);
    assert!(refused.stderr.contains("v1.37.1 cannot go back to v1.35.4"), "{refused}");
    assert_eq!((all_running(SOON), Tree::of("/etc/kubernetes")), before);

    // As a plinth with a newer default finds it: nobody has named the version.
    let stored = format!("/var/lib/plinth/generations/{}/config.yaml", generation());
    shell(&format!("sed -i 's/v1.37.1/v1.36.3/' {stored}")).ok();
    let plan = plinth("plan").ok();
    let first = "Kubernetes v1.36.3 → v1.37.1, the newer default of this plinth\n";
    assert!(plan.stdout.starts_with(first), "{plan}");
    shell(&format!("sed -i 's/v1.36.3/v1.37.1/' {stored}")).ok();
    nothing_to_do("");
}

/// The first one is stopped where it waits for the scheduler, so that it holds the lock for certain.
fn a_second_plinth_says_who_is_at_work() {
    let config = file("first", &flag("scheduler", "v", "2"));
    let mut first = start(&mut plinth_command(&format!("init --config {config}")));
    let pid = Pid::from_raw(i32::try_from(first.child.id()).unwrap());
    eventually(SOON, || {
        assert!(first.child.try_wait().unwrap().is_none(), "the first one is done already");
        let written = std::fs::read_to_string(SCHEDULER).unwrap_or_default().contains("--v=2");
        check(written, || "the manifest is not written yet".to_owned())
    });
    kill(pid, Signal::SIGSTOP).unwrap();
    let second = plinth("init --pod-network-cidr 10.244.0.0/16").exits(1);
    kill(pid, Signal::SIGCONT).unwrap();
    assert!(second.stderr.contains(&format!("another plinth is at work on this host (pid {pid})")), "{second}");
    first.end(LONG).ok();
    nothing_to_do("");
}

pub(crate) fn drift_is_shown_and_repaired() {
    type Harm = fn();
    plinth("init").ok();
    let rows: [(&str, &str, Harm, Option<&str>); 8] = [
        (
            "an edited manifest",
            "kube-scheduler: edited by hand: other flags: v",
            edit_scheduler,
            Some("kube-scheduler"),
        ),
        (
            "a comment in a manifest",
            "kube-scheduler: edited by hand: nothing that means anything [none]",
            comment,
            None,
        ),
        ("a deleted certificate", "certs/apiserver: ", || remove("/etc/kubernetes/pki/apiserver.crt"), None),
        ("half a key pair", "certs/sa: ", || remove("/etc/kubernetes/pki/sa.pub"), None),
        ("a deleted kubeconfig", "kubeconfig/super-admin: it is missing [live]", remove_kubeconfig, None),
        ("a stopped agent", "agent: it does not run [live]", stop_agent, None),
        ("a removed container", "kube-scheduler: no container of it runs", remove_container, Some("kube-scheduler")),
        ("lost rights", "clusterrolebinding/kubeadm:cluster-admins: ", take_rights, None),
    ];
    for (name, shown, harm, restarts) in rows {
        let (before, manifests) = (all_running(SOON), Tree::of("/etc/kubernetes/manifests"));
        harm();
        let plan = plinth("plan --detailed-exitcode").exits(10);
        assert!(plan.stdout.contains(shown), "{name}: {plan}");
        let repaired = plinth("init").ok();
        note(&format!("{name} is repaired in {:.2} s", repaired.took.as_secs_f64()));
        healthy(SOON);
        match restarts {
            Some(component) => drop(only_changed(component, &before)),
            None => assert_eq!(all_running(SOON), before, "{name}"),
        }
        assert_eq!(manifests.difference(&Tree::of("/etc/kubernetes/manifests")), Vec::<String>::new(), "{name}");
        assert_eq!(kubectl("get --raw=/readyz").ok().stdout, "ok");
        nothing_to_do("");
    }
    lost_data_is_not_replaced();
}

fn remove(path: &str) {
    std::fs::remove_file(path).unwrap();
}

fn remove_kubeconfig() {
    remove("/etc/kubernetes/super-admin.conf");
}

fn edit_scheduler() {
    let before = running()["kube-scheduler"].id.clone();
    shell(&format!("sed -i 's/.*--leader-elect=true.*/&\\n    - --v=5/' {SCHEDULER}")).ok();
    eventually(LONG, || {
        let new = running().remove("kube-scheduler").filter(|new| new.id != before);
        check(new.is_some(), || "the agent has not taken the edit over".to_owned())
    });
    healthy(SOON);
}

fn comment() {
    shell(&format!("echo '# by hand' >> {SCHEDULER}")).ok();
}

fn stop_agent() {
    sigkill(agent_pid().expect("an agent runs"));
}

/// With the agent, which would bring it back at once.
fn remove_container() {
    let scheduler = running()["kube-scheduler"].id.clone();
    stop_agent();
    docker(&format!("rm --force {scheduler}"));
}

fn take_rights() {
    kubectl("delete clusterrolebinding kubeadm:cluster-admins").ok();
}

/// An etcd without data would begin an empty cluster.
fn lost_data_is_not_replaced() {
    stop_agent();
    let before = container_ids();
    shell("mv /var/lib/etcd/member /var/lib/etcd-member").ok();
    let refused = plinth("init").exits(1);
    assert!(refused.stderr.contains("`/var/lib/etcd` is empty"), "{refused}");
    shell("mv /var/lib/etcd-member /var/lib/etcd/member").ok();
    assert_eq!(container_ids(), before);
    assert_eq!(agent_pid(), None);
    plinth("init").ok();
    healthy(LONG);
}

pub(crate) fn a_plan_is_performed_as_it_was_shown() {
    let directory = std::env::var("PLINTH_SANDBOX_DIR").unwrap();
    let empty = Tree::of_host();
    let plan = |name: &str, arguments: &str| {
        let path = format!("{directory}/{name}.json");
        let shown = plinth(&format!("plan --out {path} {arguments}")).ok();
        assert!(shown.stdout.contains(&format!("plinth init --plan {path}")), "{shown}");
        assert_eq!(shell(&format!("stat -c %a {path}")).ok().stdout.trim(), "600");
        path
    };
    // On an empty host.
    let first = plan("first", "--pod-network-cidr 10.244.0.0/16");
    assert_eq!(empty.difference(&Tree::of_host()), Vec::<String>::new());
    plinth(&format!("init --plan {first}")).ok();
    assert!(
        std::fs::read_to_string("/etc/kubernetes/manifests/kube-controller-manager.yaml").unwrap().contains("10.244")
    );
    nothing_to_do("");
    refused(&first, "the last init");

    // Over what runs; a secret of ours is not in it.
    let config = file("verbose", &format!("networking: {{podSubnet: 10.244.0.0/16}}\n{}", flag("scheduler", "v", "3")));
    let second = plan("second", &format!("--config {config}"));
    let text = std::fs::read_to_string(&second).unwrap();
    assert!(!text.contains("PRIVATE KEY") && !text.contains("BEGIN"), "{text:.300}");
    comment();
    refused(&second, SCHEDULER);
    plinth("init").ok();
    let before = all_running(SOON);
    plinth(&format!("init --plan {second}")).ok();
    only_changed("kube-scheduler", &before);
    nothing_to_do("");
    refused(&second, "the last init");

    std::fs::write(&second, "{}").unwrap();
    plinth(&format!("init --plan {second}")).exits(2);
    plinth(&format!("init --plan {second} --config {config}")).exits(2);
}

#[track_caller]
fn refused(path: &str, what: &str) -> Ended {
    let before = (container_ids(), Tree::of("/etc/kubernetes"));
    let refused = plinth(&format!("init --plan {path}")).exits(1);
    assert!(refused.stderr.contains("the host has changed since the plan was made"), "{refused}");
    assert!(refused.stderr.contains(what), "{what} is missing: {refused}");
    assert_eq!((container_ids(), Tree::of("/etc/kubernetes")), before);
    refused
}
