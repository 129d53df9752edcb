//! `reset` where something is in its way: it does all the rest, says what remains, and the next run finishes.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::command::Ended;
use crate::host::{SOON, Tree, agent_pid, container_ids, control_plane_processes, docker, healthy, plinth, shell};
use crate::reboot::{await_engine, kill_engine, start_engine};
use crate::sandbox::note;

pub(crate) fn whatever_is_in_its_way() {
    let neighbour = Neighbour::moves_in();
    let empty = Tree::of_host();
    plinth("init").ok();
    let shown = plinth("reset --dry-run -o json").ok().json();
    assert_eq!(names(&shown, "container", "there").len(), 4);
    assert!(names(&shown, "file", "there").contains("/etc/kubernetes/admin.conf"), "{shown}");
    healthy(SOON);
    let reset = plinth("reset --force").ok();
    note(&format!("reset of a healthy host {:.2} s", reset.took.as_secs_f64()));
    assert!(reset.took < Duration::from_secs(10), "{reset}");
    nothing_is_left(&empty, &neighbour);

    an_agent_that_hangs(&empty, &neighbour);
    immutable_files(&empty, &neighbour);
    mounts(&empty, &neighbour);
    no_engine(&empty, &neighbour);

    plinth("init").ok();
    healthy(SOON);
}

fn an_agent_that_hangs(empty: &Tree, neighbour: &Neighbour) {
    plinth("init").ok();
    kill(Pid::from_raw(agent_pid().unwrap()), Signal::SIGSTOP).unwrap();
    let reset = plinth("reset --force").ok();
    note(&format!("reset with a stopped agent {:.2} s", reset.took.as_secs_f64()));
    nothing_is_left(empty, neighbour);
}

/// In plinth's own directories, among what it wrote for others, and in etcd's data.
fn immutable_files(empty: &Tree, neighbour: &Neighbour) {
    plinth("init").ok();
    shell(
        "chattr +i /etc/kubernetes/pki/ca.key /etc/kubernetes/manifests /var/lib/etcd/member/snap/db /var/lib/etcd
         chattr +a /var/lib/plinth/journal
         chattr -R +i /var/lib/plinth/generations
         chattr +i /var/lib/plinth",
    )
    .ok();
    plinth("reset --force").ok();
    nothing_is_left(empty, neighbour);

    // A directory of somebody else is left as it is, and what to do is said.
    shell("mkdir /srv/theirs").ok();
    let volume =
        "apiServer: {extraVolumes: [{name: x, hostPath: /srv/theirs/made, mountPath: /x, pathType: FileOrCreate}]}";
    let file = std::env::var("PLINTH_SANDBOX_DIR").unwrap() + "/volume.yaml";
    let text = format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n{volume}\n");
    std::fs::write(&file, text).unwrap();
    plinth(&format!("init --config {file}")).ok();
    shell("chattr +i /srv/theirs").ok();
    let reset = plinth("reset --force -o json").exits(1);
    let why = remains(&reset, &["/srv/theirs/made", "/var/lib/plinth"]);
    assert!(why.contains("chattr -i"), "{reset}");
    shell("lsattr -d /srv/theirs | grep -q i; chattr -i /srv/theirs").ok();
    plinth("reset --force").ok();
    shell("rmdir /srv/theirs").ok();
    nothing_is_left(empty, neighbour);
}

/// A mount of a pod that somebody uses is detached; one of somebody else is neither emptied nor taken away.
fn mounts(empty: &Tree, neighbour: &Neighbour) {
    plinth("init").ok();
    shell(
        "uid=$(ls /var/lib/plinth/pods | head -n 1)
         mkdir -p /var/lib/plinth/pods/$uid/volumes/busy
         mount -t tmpfs tmpfs /var/lib/plinth/pods/$uid/volumes/busy
         ln -s /var/lib/plinth/pods/$uid/volumes/busy $PLINTH_SANDBOX_DIR/busy
         mkdir -p /srv/theirs /var/lib/etcd/theirs && touch /srv/theirs/precious
         mount --bind /srv/theirs /var/lib/etcd/theirs",
    )
    .ok();
    let busy = std::fs::canonicalize(std::env::var("PLINTH_SANDBOX_DIR").unwrap() + "/busy").unwrap();
    let mut user = Command::new("sleep").arg("600").current_dir(&busy).stdout(Stdio::null()).spawn().unwrap();

    let reset = plinth("reset --force -o json").exits(1);
    let why = remains(&reset, &["/var/lib/etcd", "/var/lib/etcd", "/var/lib/plinth"]);
    assert!(why.contains("umount /var/lib/etcd/theirs"), "{reset}");
    assert!(names(&reset.json(), "mount", "stays").iter().any(|what| what.ends_with("volumes/busy")), "{reset}");
    assert!(!std::fs::exists("/etc/kubernetes").unwrap() && std::fs::exists("/srv/theirs/precious").unwrap());
    assert_eq!(std::fs::read_dir("/var/lib/etcd").unwrap().count(), 1, "all the rest is gone");

    user.kill().unwrap();
    user.wait().unwrap();
    shell("umount /var/lib/etcd/theirs").ok();
    plinth("reset --force").ok();
    shell("rm -r /srv/theirs $PLINTH_SANDBOX_DIR/busy").ok();
    nothing_is_left(empty, neighbour);
}

/// The components live on without the engine; their processes, and all files but those that are needed to go on, go.
fn no_engine(empty: &Tree, neighbour: &Neighbour) {
    plinth("init").ok();
    kill_engine();
    let reset = plinth("reset --force -o json").exits(1);
    note(&format!("reset without an engine {:.2} s", reset.took.as_secs_f64()));
    remains(&reset, &["/var/lib/plinth"]);
    assert_eq!(names(&reset.json(), "container", "there").len(), 4, "{reset}");
    assert_eq!(control_plane_processes(), Vec::<String>::new());
    assert!(!std::fs::exists("/etc/kubernetes").unwrap() && !std::fs::exists("/var/lib/etcd").unwrap());
    let left: BTreeSet<_> = std::fs::read_dir("/var/lib/plinth").unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(left, ["agent-id", "journal", "lock"].map(Into::into).into());

    start_engine();
    await_engine();
    plinth("reset --force").ok();
    nothing_is_left(empty, neighbour);
}

/// Names of all things of that kind and state.
fn names(report: &Value, kind: &str, state: &str) -> BTreeSet<String> {
    let things = report["things"].as_array().unwrap().iter();
    let found = things.filter(|thing| thing["kind"] == kind && thing["state"] == state);
    found.map(|thing| thing["what"].as_str().unwrap().to_owned()).collect()
}

/// Of what is no container exactly `paths` remain. Returns why.
#[track_caller]
fn remains(reset: &Ended, paths: &[&str]) -> String {
    let report = reset.json();
    assert_eq!(report["complete"], false);
    let things = report["things"].as_array().unwrap().iter();
    let there: Vec<_> = things.filter(|thing| thing["state"] == "there" && thing["kind"] != "container").collect();
    let mut found: Vec<_> = there.iter().map(|thing| thing["what"].as_str().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, paths, "{reset}");
    there.iter().map(|thing| thing["why"].to_string()).collect()
}

#[track_caller]
fn nothing_is_left(empty: &Tree, neighbour: &Neighbour) {
    assert_eq!(empty.difference(&Tree::of_host()), Vec::<String>::new());
    assert_eq!(control_plane_processes(), Vec::<String>::new());
    neighbour.is_untouched();
}

/// Somebody else's containers and images on the same engine.
struct Neighbour {
    containers: BTreeSet<String>,
    images: String,
}

impl Neighbour {
    fn moves_in() -> Self {
        // Named like ours, and with every label of a kubelet's container but ours.
        let labels = "--label io.kubernetes.pod.name=etcd-plinth-sandbox --label io.kubernetes.container.name=etcd";
        let name = "k8s_etcd_etcd-theirs_kube-system_0_0";
        docker(&format!("create --name {name} {labels} plinth-test/busybox:1 sleep 600"));
        Self { containers: container_ids(), images: docker("images --quiet --no-trunc") }
    }

    #[track_caller]
    fn is_untouched(&self) {
        assert_eq!(container_ids(), self.containers);
        assert_eq!(docker("images --quiet --no-trunc"), self.images);
    }
}
