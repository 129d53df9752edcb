//! The sandbox's host: what runs on it, what is on its disk, and how to ask it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::command::{self, Ended, run};

/// For programs that answer at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// For everything that waits for a control plane.
pub(crate) const LONG: Duration = Duration::from_secs(90);

/// Names of the four containers, in the order in which they start.
pub(crate) const COMPONENTS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// Where each of them says that it is healthy.
const HEALTH: [(&str, &str); 4] = [
    ("etcd", "http://127.0.0.1:2381/readyz"),
    ("kube-apiserver", "https://127.0.0.1:6443/readyz"),
    ("kube-controller-manager", "https://127.0.0.1:10257/healthz"),
    ("kube-scheduler", "https://127.0.0.1:10259/readyz"),
];

/// Where an administrator installs plinth.
const PLINTH: &str = "/usr/local/bin/plinth";

/// Installs the plinth under test.
pub(crate) fn install_plinth() {
    let built = std::env::var("PLINTH_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_plinth").to_owned());
    // The host's own may be there, and even be running.
    let _ = std::fs::remove_file(PLINTH);
    std::fs::copy(built, PLINTH).unwrap();
}

/// The plinth under test.
pub(crate) fn binary() -> String {
    PLINTH.to_owned()
}

/// `plinth` with `arguments`, separated by white space.
pub(crate) fn plinth_command(arguments: &str) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments.split_whitespace()).env("CI", "1");
    command
}

/// Runs `plinth` to its end.
pub(crate) fn plinth(arguments: &str) -> Ended {
    run(&mut plinth_command(arguments), LONG)
}

/// Runs `kubectl` with admin.conf.
pub(crate) fn kubectl(arguments: &str) -> Ended {
    let arguments = arguments.split_whitespace();
    run(
        Command::new("kubectl")
            .args(["--kubeconfig=/etc/kubernetes/admin.conf", "--request-timeout=10s"])
            .args(arguments),
        SOON,
    )
}

/// Runs `docker`, and returns what it writes.
pub(crate) fn docker(arguments: &str) -> String {
    run(Command::new("docker").args(arguments.split_whitespace()), SOON).ok().stdout
}

/// Runs a line of shell.
pub(crate) fn shell(line: &str) -> Ended {
    run(Command::new("bash").args(["-ec", line]), SOON)
}

/// Starts a line of shell as a service manager does: in a session of its own, and nobody waits for it.
pub(crate) fn service(line: &str, log: &str) {
    shell(&format!("setsid --fork bash -c 'exec {line}' </dev/null >>{log} 2>&1")).ok();
}

/// Repeats `attempt` until it gives something.
///
/// # Panics
/// With the last reason when `limit` is over.
#[track_caller]
pub(crate) fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(reason) => assert!(Instant::now() < deadline, "not within {} s: {reason}", limit.as_secs()),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// `Ok` if `holds`.
pub(crate) fn check(holds: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(reason()) }
}

/// A container as the agent reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) pid: i32,
    pub(crate) restarts: u64,
}

/// What `plinth status` says.
pub(crate) fn status() -> Value {
    let status = plinth("status -o json");
    // 1: not everything is well, which the document explains.
    assert!(matches!(status.status.code(), Some(0 | 1)), "{status}");
    status.json()
}

/// The agent's process; `None` when none answers.
pub(crate) fn agent_pid() -> Option<i32> {
    status()["agent"]["pid"].as_i64().map(|pid| i32::try_from(pid).unwrap())
}

/// The running containers by component, as the agent reports them.
pub(crate) fn running() -> BTreeMap<String, Container> {
    let status = status();
    let pods = status["agent"]["pods"].as_array().cloned().unwrap_or_default();
    let containers = pods.iter().flat_map(|pod| pod["containers"].as_array().cloned().unwrap_or_default());
    containers
        .filter(|container| container["state"] == "running")
        .filter_map(|container| {
            let pid = i32::try_from(container["pid"].as_i64()?).ok()?;
            let id = container["containerId"].as_str()?.to_owned();
            let restarts = container["restartCount"].as_u64()?;
            Some((container["name"].as_str()?.to_owned(), Container { id, pid, restarts }))
        })
        .collect()
}

/// All four, when they run.
#[track_caller]
pub(crate) fn all_running(limit: Duration) -> BTreeMap<String, Container> {
    eventually(limit, || {
        let running = running();
        check(running.keys().map(String::as_str).eq(COMPONENTS), || format!("only {:?} run", running.keys()))?;
        Ok(running)
    })
}

/// Ids of all containers that the engine has, whosever and in whatever state.
pub(crate) fn container_ids() -> BTreeSet<String> {
    docker("ps --all --quiet --no-trunc").lines().map(ToOwned::to_owned).collect()
}

/// SIGKILL, and back when the process is gone.
pub(crate) fn sigkill(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    gone(pid);
}

/// Waits until there is no such process, or only its zombie. A first thread that is a zombie while others still end does
/// not count: those hold the files and locks of all.
#[track_caller]
pub(crate) fn gone(pid: i32) {
    eventually(SOON, || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let zombie = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'));
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        check(threads == 0 || (zombie && threads == 1), || format!("process {pid} still runs"))
    });
}

/// Command lines of all processes of a control plane.
pub(crate) fn control_plane_processes() -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| {
            let program = line.split(' ').next().unwrap_or_default();
            let name = program.rsplit('/').next().unwrap_or_default();
            COMPONENTS.contains(&name) || name == "plinth"
        })
        .collect()
}

/// Waits until all four components say that they are healthy, at their own endpoints.
#[track_caller]
pub(crate) fn healthy(limit: Duration) {
    healthy_if(limit, || true);
}

/// The same, while `meanwhile` holds.
#[track_caller]
pub(crate) fn healthy_if(limit: Duration, mut meanwhile: impl FnMut() -> bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = reqwest::Client::builder()
        .tls_danger_accept_invalid_certs(true) // two of them sign their own; kubectl verifies the one that matters
        .no_proxy()
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_secs(2))
        .build()
        .unwrap();
    eventually(limit, || {
        assert!(meanwhile(), "what shall become healthy has ended");
        runtime.block_on(async {
            for (component, url) in HEALTH {
                let answer = client.get(url).send().await.map_err(|error| format!("{component}: {error:?}"))?;
                check(answer.status().is_success(), || format!("{component}: {}", answer.status()))?;
            }
            Ok(())
        })
    });
}

/// A deployment made with admin.conf gets as far as it can without a node: its pods are there and unschedulable.
#[track_caller]
pub(crate) fn deploys(name: &str) {
    kubectl(&format!("create deployment {name} --image=example.com/{name} --replicas=2")).ok();
    // A new leader waits for the old one's lease to end, 15 s at worst.
    eventually(LONG, || {
        let sets = kubectl(&format!("get replicasets -l app={name} -o json")).ok().json();
        check(sets["items"].as_array().is_some_and(|sets| sets.len() == 1), || format!("{name}: no ReplicaSet"))?;
        let pods = kubectl(&format!("get pods -l app={name} -o json")).ok().json();
        let pods = pods["items"].as_array().unwrap();
        let unschedulable = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|condition| {
                condition["type"] == "PodScheduled"
                    && condition["status"] == "False"
                    && condition["reason"] == "Unschedulable"
            })
        };
        let found = pods.iter().filter(unschedulable).count();
        check((pods.len(), found) == (2, 2), || format!("{name}: {found} of {} pods unschedulable", pods.len()))
    });
}

/// Files and directories with their modes; of files that are not said to change, their content as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<PathBuf, Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    mode: u32,
    content: Vec<u8>,
}

impl Tree {
    /// Everything that a program may have left anywhere, except in the engine's own places: paths and modes.
    pub(crate) fn of_host() -> Self {
        let engines = ["/var/lib/docker", "/var/log/dockerd.log", "/run/docker", "/run/containerd", "/run/docker.sock"];
        let mut tree = BTreeMap::new();
        for root in ["/etc", "/opt", "/run", "/usr/local", "/var"] {
            walk(Path::new(root), &mut tree, &|path| engines.iter().any(|one| path == Path::new(one)), false);
        }
        Self(tree)
    }

    /// All that is below `root`, with content.
    pub(crate) fn of(root: &str) -> Self {
        let mut tree = BTreeMap::new();
        walk(Path::new(root), &mut tree, &|_| false, true);
        Self(tree)
    }

    /// How `other` differs, for people.
    pub(crate) fn difference(&self, other: &Self) -> Vec<String> {
        let paths: BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        paths
            .into_iter()
            .filter(|path| self.0.get(*path) != other.0.get(*path))
            .map(|path| match (self.0.get(path), other.0.get(path)) {
                (None, _) => format!("+ {}", path.display()),
                (_, None) => format!("- {}", path.display()),
                (Some(old), Some(new)) if old.mode != new.mode => {
                    format!("{}: mode {:o} → {:o}", path.display(), old.mode, new.mode)
                }
                _ => format!("{}: other content", path.display()),
            })
            .collect()
    }
}

fn walk(path: &Path, tree: &mut BTreeMap<PathBuf, Entry>, skip: &dyn Fn(&Path) -> bool, contents: bool) {
    let Ok(meta) = path.symlink_metadata() else { return };
    if skip(path) {
        return;
    }
    let content = if contents && meta.is_file() { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
    tree.insert(path.to_path_buf(), Entry { mode: meta.mode(), content });
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            walk(&entry.path(), tree, skip, contents);
        }
    }
}

/// Tells all that may explain a failure.
pub(crate) fn describe() {
    let tell = |title: &str, text: &str| println!("\n--- {title}\n{}", text.trim_end());
    tell("the last commands", &command::history());
    let look = "timeout 10 docker ps --all --no-trunc --format '{{.ID}} {{.Names}} {{.Status}}' | cut -c 1-12,65-
        for id in $(timeout 10 docker ps --all --quiet); do
            echo; echo \"last lines of $id:\"; timeout 10 docker logs --tail 12 $id 2>&1 | cut -c 1-300
        done; true";
    let commands = [
        ("plinth status", format!("timeout 10 {} status 2>&1 || true", binary())),
        ("agent log", "tail -n 60 /var/log/plinth/agent.log 2>&1 || true".to_owned()),
        ("containers", look.to_owned()),
        ("dockerd log", "tail -n 15 /var/log/dockerd.log | cut -c 1-300".to_owned()),
        ("processes", "ps -eo pid,ppid,stat,etimes,args | cut -c 1-160".to_owned()),
    ];
    for (title, line) in commands {
        let mut command = Command::new("timeout");
        let output = command.args(["60", "bash", "-c", &line]).output();
        tell(
            title,
            &output.map_or_else(|error| error.to_string(), |o| String::from_utf8_lossy(&o.stdout).into_owned()),
        );
    }
}
