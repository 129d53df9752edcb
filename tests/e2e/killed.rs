//! SIGKILL of plinth, its agent and the engine at instants all over each operation: the same command run again
//! converges, and so does going back first; what was acknowledged is there, and nothing is left that nobody knows.
//!
//! An instant is a number of effects: changes of what plinth and its agent keep on the disk, and of what the engine
//! runs. Each operation is done once in peace, to see how many there are. Power loss is for the unit tests in
//! `src/killed`, which try all instants.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::client::Client;
use crate::command::start;
use crate::host::{
    COMPONENTS, LONG, SOON, Tree, all_running, check, container_ids, control_plane_processes, docker, eventually,
    healthy, kubectl, plinth, plinth_command, sigkill,
};
use crate::reboot::{await_engine, kill_engine, start_engine};
use crate::rerun::{file, flag, nothing_to_do};
use crate::sandbox::note;

/// How often each operation is killed.
const INSTANTS: usize = 12;

/// How often it is looked whether there was an effect.
const LOOK: Duration = Duration::from_micros(200);

/// Who is killed. Nobody starts the agent again here but plinth; the engine comes back before the next command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Command,
    Agent,
    CommandAndAgent,
    CommandAndEngine,
}

/// Who is killed at which instant.
fn victim(index: usize) -> Victim {
    use Victim::{Agent, Command, CommandAndAgent, CommandAndEngine};
    [Command, CommandAndAgent, Command, CommandAndEngine, Agent, CommandAndAgent][index % 6]
}

pub(crate) fn first_init_and_reset() {
    let empty = Tree::of_host();
    let of_init = effects_of("init");
    let of_reset = effects_of("reset --force");
    for index in 0..INSTANTS {
        kill_at("init", instant(index, INSTANTS, of_init), victim(index));
        is_known(&empty);
        plinth("init").ok();
        converged(&empty, "init");

        kill_at("reset --force", instant(index, INSTANTS, of_reset), victim(index));
        plinth("reset --force").ok();
        assert_eq!(empty.difference(&Tree::of_host()), Vec::<String>::new());
        assert!(container_ids().is_empty());
        assert_eq!(control_plane_processes(), Vec::<String>::new());
    }
    note(&format!("{INSTANTS} of {of_init} effects of init and of {of_reset} of reset"));
}

pub(crate) fn a_change() {
    let empty = Tree::of_host();
    let change = |value: usize| {
        let value = value.to_string();
        let fields = flag("scheduler", "v", &value) + &flag("apiServer", "v", &value);
        format!("init --config {}", file("killed", &fields))
    };
    plinth("init").ok();
    let effects = effects_of(&change(1));
    for index in 0..INSTANTS {
        let (before, writer) = (all_running(LONG), Writer::start());
        let arguments = change(index % 3 + 2);
        let victim = victim(index);
        kill_at(&arguments, instant(index, INSTANTS, effects), victim);
        is_known(&empty);
        // Now and then nobody asks for it again, and what was there comes back.
        if index % 4 == 2 {
            plinth("init").ok();
            healthy(LONG);
        }
        plinth(&arguments).ok();
        converged(&empty, &arguments);
        let after = all_running(LONG);
        for component in ["etcd", "kube-controller-manager"] {
            let same = after[component] == before[component];
            assert!(same || victim == Victim::CommandAndEngine, "{component} after {index}, {victim:?}");
        }
        writer.lost_nothing();
    }
    note(&format!("{INSTANTS} of {effects} effects of a change"));
    is_taken_away(&empty);
}

pub(crate) fn an_upgrade() {
    up_and_down(0);
}

pub(crate) fn an_upgrade_too() {
    up_and_down(1);
}

/// Every other instant of an upgrade, etcd included, and of the way back.
fn up_and_down(which: usize) {
    const UP: &str = "init --kubernetes-version v1.37.1";
    const DOWN: &str = "rollback 1";
    let empty = Tree::of_host();
    plinth("init --kubernetes-version v1.36.3").ok();
    let effects = [effects_of(UP), effects_of(DOWN)];
    for index in (0..INSTANTS).filter(|index| index % 2 == which) {
        for (arguments, effects, release, etcd) in
            [(UP, effects[0], "v1.37.1", "3.7.0-0"), (DOWN, effects[1], "v1.36.3", "3.6.8-0")]
        {
            let writer = Writer::start();
            kill_at(arguments, instant(index, INSTANTS, effects), victim(index / 2));
            is_known(&empty);
            if index % 4 == 2 {
                plinth("init").ok();
                healthy(LONG);
            }
            plinth(arguments).ok();
            converged(&empty, "");
            let server: Value = kubectl("get --raw /version").ok().json();
            assert_eq!(server["gitVersion"], release);
            let image = docker(&format!("inspect -f {{{{.Config.Image}}}} {}", all_running(SOON)["etcd"].id));
            assert!(image.trim().ends_with(etcd), "{image}");
            writer.lost_nothing();
        }
    }
    note(&format!("every other of {INSTANTS} of {} effects up and of {} down", effects[0], effects[1]));
    is_taken_away(&empty);
}

/// The instant `index` of so many that are spread over so many effects.
fn instant(index: usize, of: usize, effects: usize) -> usize {
    (effects * (2 * index + 1)).div_ceil(2 * of)
}

/// Runs `plinth` to its end, and counts the effects.
fn effects_of(arguments: &str) -> usize {
    let mut effects = Effects::default();
    let mut command = start(&mut plinth_command(arguments));
    while command.child.try_wait().unwrap().is_none() {
        effects.look();
        thread::sleep(LOOK);
    }
    command.end(LONG).ok();
    effects.seen
}

/// Runs `plinth`, and kills `victim` at the effect whose number is `instant`.
fn kill_at(arguments: &str, instant: usize, victim: Victim) {
    let mut effects = Effects::default();
    let mut command = start(&mut plinth_command(arguments));
    while effects.seen < instant && command.child.try_wait().unwrap().is_none() {
        effects.look();
        thread::sleep(LOOK);
    }
    let hit = command.child.try_wait().unwrap().is_none();
    if victim != Victim::Agent {
        command.child.kill().unwrap();
    }
    match victim {
        // The command notices by itself that it waits for nobody.
        Victim::Agent | Victim::CommandAndAgent => agents().into_iter().for_each(sigkill),
        Victim::CommandAndEngine => {
            kill_engine();
            start_engine();
        }
        Victim::Command => {}
    }
    let ended = command.end(LONG);
    if victim == Victim::CommandAndEngine {
        await_engine();
    }
    let how = if hit { "" } else { ", after its end" };
    note(&format!("{arguments}: {victim:?} at {instant}{how}, {:.1} s", ended.took.as_secs_f64()));
}

/// Pids of agents.
fn agents() -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_agent = |pid: &i32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split('\0');
        words.next().is_some_and(|program| program.ends_with("/plinth")) && words.next() == Some("agent")
    };
    pids.filter(is_agent).collect()
}

/// All that has been seen to happen.
#[derive(Default)]
struct Effects {
    last: Vec<(PathBuf, u64, u64)>,
    seen: usize,
}

impl Effects {
    fn look(&mut self) {
        let mut now = Vec::new();
        for (directory, depth, is_ours) in [
            ("/etc/kubernetes", 4, true),
            ("/var/lib/plinth", 3, true),
            // What it writes itself does not count.
            ("/var/lib/etcd", 2, false),
            // One directory for each container that runs.
            ("/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby", 1, false),
        ] {
            look(Path::new(directory), depth, is_ours, &mut now);
        }
        if now != self.last {
            self.seen += usize::from(!self.last.is_empty());
            self.last = now;
        }
    }
}

fn look(directory: &Path, depth: usize, is_ours: bool, found: &mut Vec<(PathBuf, u64, u64)>) {
    use std::os::unix::fs::MetadataExt as _;
    let mut paths: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(meta) = path.symlink_metadata() else { continue };
        let [inode, length] = if is_ours && meta.is_file() { [meta.ino(), meta.len()] } else { [0; 2] };
        found.push((path.clone(), inode, length));
        if meta.is_dir() && depth > 1 {
            look(&path, depth - 1, is_ours, found);
        }
    }
}

/// What `arguments` ask for is there, healthy, and nothing else.
#[track_caller]
fn converged(empty: &Tree, arguments: &str) {
    healthy(LONG);
    nothing_to_do(arguments.strip_prefix("init").unwrap_or(arguments));
    all_running(SOON);
    // One that has ended is kept for its log, as long as its pod is there.
    eventually(SOON, || {
        let running = docker("ps --quiet").lines().count();
        check(running == COMPONENTS.len(), || format!("{running} containers run"))
    });
    let data: Vec<_> = fs::read_dir("/var/lib/etcd").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(data, ["member"]);
    assert!(!fs::exists("/var/lib/etcd/member/plinth-copy-id").unwrap());
    let added = is_known(empty);
    let unfinished: Vec<_> = added.iter().filter(|path| path.contains("plinth-new") || path.contains("swap")).collect();
    assert!(unfinished.is_empty(), "{unfinished:?}");
}

/// What was made since `empty`: all of it is known to a reset.
#[track_caller]
fn is_known(empty: &Tree) -> Vec<String> {
    let added: Vec<_> = empty.difference(&Tree::of_host());
    let added: Vec<_> = added.iter().filter_map(|line| line.strip_prefix("+ ").map(str::to_owned)).collect();
    let containers = container_ids();
    let preview = plinth("reset --dry-run -o json").ok().json();
    let things = preview["things"].as_array().cloned().unwrap_or_default();
    let known: BTreeSet<_> = things.iter().map(|thing| thing["what"].as_str().unwrap().to_owned()).collect();
    let unknown: Vec<_> = added
        .iter()
        .filter(|path| {
            // What a writer that was killed leaves is found with its file.
            let whole = path.replace("/.", "/");
            let whole = whole.strip_suffix(".plinth-new").unwrap_or(path);
            !known.iter().any(|known| Path::new(whole).starts_with(known))
        })
        .collect();
    assert!(unknown.is_empty(), "{unknown:?} are not in {known:?}");
    let is_unknown = |id: &&String| !known.iter().any(|known| known.contains(&id[..12]));
    // The agent may be at work.
    let unknown: Vec<_> = containers.iter().filter(is_unknown).filter(|id| container_ids().contains(*id)).collect();
    assert!(unknown.is_empty(), "containers {unknown:?} are not in {known:?}");
    added
}

#[track_caller]
fn is_taken_away(empty: &Tree) {
    plinth("reset --force").ok();
    assert_eq!(empty.difference(&Tree::of_host()), Vec::<String>::new());
    assert!(container_ids().is_empty());
}

/// Creates one object after the other, and remembers what was acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeSet<String>>,
}

impl Writer {
    /// Starts; back when something was acknowledged.
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Arc::new(AtomicBool::new(false));
        let (end, first) = (Arc::clone(&stop), Arc::clone(&begun));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let client = Client::admin();
            let mut acknowledged = BTreeSet::new();
            while !end.load(Ordering::Relaxed) {
                let body = json!({ "metadata": { "generateName": "kept-" } });
                if let Ok((status, object)) = runtime.block_on(client.ask(Method::POST, MAPS, Some(&body)))
                    && status.is_success()
                {
                    acknowledged.insert(object["metadata"]["name"].as_str().unwrap().to_owned());
                    first.store(true, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(100));
            }
            acknowledged
        });
        while !begun.load(Ordering::Relaxed) && !thread.is_finished() {
            thread::sleep(LOOK);
        }
        Self { stop, thread }
    }

    #[track_caller]
    fn lost_nothing(self) {
        self.stop.store(true, Ordering::Relaxed);
        let acknowledged = self.thread.join().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(Client::admin().get(MAPS));
        let items = answer["items"].as_array().unwrap();
        let there: BTreeSet<_> =
            items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(lost.is_empty(), "{} of {} acknowledged writes are lost: {lost:?}", lost.len(), acknowledged.len());
    }
}

/// Where the writer writes.
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
