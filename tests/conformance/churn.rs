//! Sixty pods come, change and go at random, their containers are killed, and so is the agent; then everything has to
//! be as the manifests say, with nothing left of what was.
//!
//! `PLINTH_CHURN_SECONDS` says for how long (20 unless given), `PLINTH_CHURN_SEED` repeats the choices of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;

use crate::away::end_agent;
use crate::host::{docker, shell};
use crate::node::{IMAGE, Manifest, OTHER_IMAGE, assert_no_overlap, eventually, node, pass, since};
use crate::together::note;

/// How many pods there may be.
const PODS: usize = 60;

/// How much memory an agent may have gained by all of it, in KiB. Sixty pods cost it about 2 MiB; the allocator keeps
/// what it once had.
const GROWTH: u64 = 8 << 10;

/// Where pods and links to their logs are.
const DIRECTORIES: &str = "/var/lib/plinth/pods";
const LINKS: [&str; 2] = ["/var/log/pods", "/var/log/containers"];

pub(crate) fn sixty_pods_at_random() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seconds = number("PLINTH_CHURN_SECONDS").unwrap_or(20);
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let seed = number("PLINTH_CHURN_SEED").unwrap_or_else(clock);
    note(&format!("{seconds} s, PLINTH_CHURN_SEED={seed}"));
    node();
    let foreign = docker(&format!("run --detach --name foreign --network host {IMAGE} sleep 9999"));
    let mut churn = Churn { random: Random(seed), wanted: BTreeMap::new(), version: 0, done: BTreeMap::new() };

    // The agent is killed again and again.
    churn.go_on(Duration::from_secs(seconds * 2 / 3), true);
    churn.settle("with an agent that was killed");

    // One agent sees all the rest. What it needs for so many pods it has needed before the first figures.
    end_agent(Signal::SIGKILL);
    node().start_agent();
    churn.everything();
    churn.settle("all of them");
    churn.nothing();
    let before = settled_footprint();
    churn.go_on(Duration::from_secs(seconds / 3), false);
    churn.settle("with one agent");
    churn.nothing();
    let after = eventually(|| {
        let after = footprint();
        // Connections close a moment later.
        if after.1 <= before.1 { Ok(after) } else { Err(format!("{} file descriptors became {}", before.1, after.1)) }
    });
    note(&format!("{:?}", churn.done));
    note(&format!("memory {} → {} KiB, file descriptors {} → {}", before.0, after.0, before.1, after.1));
    assert!(after.0 <= before.0 + GROWTH, "the agent grows: {} → {} KiB", before.0, after.0);

    for slot in 0..PODS {
        assert_no_overlap(&node().lives(&name(slot)));
    }
    assert_eq!(docker("ps --quiet --no-trunc").trim(), foreign.trim(), "only what is not ours is left, and it is");
}

fn name(slot: usize) -> String {
    format!("p{slot:02}")
}

/// Resident memory in KiB and open file descriptors of the agent.
fn footprint() -> (u64, usize) {
    let process = format!("/proc/{}", node().agent());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let memory = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (memory, fs::read_dir(format!("{process}/fd")).unwrap().count())
}

/// The same when nothing opens or closes files any more: a connection that is closing would make room for a leak.
fn settled_footprint() -> (u64, usize) {
    eventually(|| {
        let first = footprint();
        pass(Duration::from_secs(1));
        let second = footprint();
        if first.1 == second.1 { Ok(second) } else { Err(format!("{} file descriptors became {}", first.1, second.1)) }
    })
}

/// Names in a directory, which need not be there.
fn entries(directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}

struct Churn {
    random: Random,
    /// Versions by slot.
    wanted: BTreeMap<usize, u32>,
    version: u32,
    /// How often what was done.
    done: BTreeMap<&'static str, u32>,
}

impl Churn {
    fn go_on(&mut self, time: Duration, with_kills: bool) {
        let end = Instant::now() + time;
        let mut next_kill = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            self.happen();
            if with_kills && Instant::now() >= next_kill {
                end_agent(Signal::SIGKILL);
                for _ in 0..self.random.below(4) {
                    self.happen();
                }
                node().start_agent();
                self.count("agent killed");
                next_kill = Instant::now() + Duration::from_millis(500 + self.random.below(4000) as u64);
            }
            pass(Duration::from_millis(self.random.below(200) as u64));
        }
    }

    fn happen(&mut self) {
        let slot = self.random.below(PODS);
        let file = format!("{}.yaml", name(slot));
        match self.random.below(20) {
            0..=9 => self.write(slot),
            10..=13 if self.wanted.remove(&slot).is_some() => {
                node().take(&file);
                self.count("removed");
            }
            14 if self.wanted.contains_key(&slot) => {
                // It does not parse, and is mended before everything has to be right.
                fs::write(node().path(&file), "kind: Pod\n  broken: [").unwrap();
                self.count("broken");
            }
            15..=17 => self.hit(slot, "kill"),
            18 => self.hit(slot, "rm --force"),
            _ => {}
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn write(&mut self, slot: usize) {
        self.version += 1;
        let known = self.wanted.insert(slot, self.version).is_some();
        self.count(if known { "changed" } else { "added" });
        self.put(slot);
    }

    fn put(&self, slot: usize) {
        let version = self.wanted[&slot];
        let image = if version.is_multiple_of(2) { IMAGE } else { OTHER_IMAGE };
        let medium = if slot.is_multiple_of(3) { "{medium: Memory}" } else { "{}" };
        let mut pod = Manifest::named(&name(slot))
            .image(image)
            .metadata(&format!("labels: {{version: v{version}}}"))
            .container("volumeMounts: [{name: v, mountPath: /v}]")
            .spec(&format!("volumes: [{{name: v, emptyDir: {medium}}}]"));
        if slot.is_multiple_of(10) {
            pod = pod.own_network();
        }
        node().put(&format!("{}.yaml", name(slot)), &pod.text());
    }

    /// Does something to a container of a pod behind the agent's back.
    fn hit(&mut self, slot: usize, how: &'static str) {
        let lives = node().lives(&name(slot)).into_iter().filter(crate::history::Life::runs).collect::<Vec<_>>();
        if !lives.is_empty() {
            let id = &lives[self.random.below(lives.len())].id;
            // It may be gone meanwhile.
            let _ = shell(&format!("docker {how} {id}"));
            self.count(if how == "kill" { "container killed" } else { "container removed" });
        }
    }

    fn everything(&mut self) {
        for slot in 0..PODS {
            self.write(slot);
        }
    }

    fn nothing(&mut self) {
        for slot in std::mem::take(&mut self.wanted).into_keys() {
            node().take(&format!("{}.yaml", name(slot)));
        }
        self.settle("none");
    }

    /// Waits until there is exactly what is wanted.
    fn settle(&self, what: &str) {
        let begin = Instant::now();
        self.wanted.keys().for_each(|slot| self.put(*slot));
        eventually(|| {
            let problem = self.differs();
            if problem.is_some() {
                pass(Duration::from_millis(200));
            }
            problem.map_or(Ok(()), Err)
        });
        note(&format!("{what}: {} pods are as they should be after {:.1} s", self.wanted.len(), since(begin)));
    }

    /// What is not as it should be.
    fn differs(&self) -> Option<String> {
        let shown = node().pods();
        let uids: BTreeMap<_, _> = shown
            .iter()
            .map(|pod| &pod["metadata"])
            .map(|pod| (pod["name"].to_string(), (pod["uid"].as_str().unwrap(), pod["labels"]["version"].to_string())))
            .collect();
        let mut wanted = BTreeSet::new();
        for (slot, version) in &self.wanted {
            let Some((uid, shown)) = uids.get(&format!("\"{}-node-1\"", name(*slot))) else {
                return Some(format!("{} is not in /pods", name(*slot)));
            };
            if *shown != format!("\"v{version}\"") {
                return Some(format!("{} is {shown}, not v{version}", name(*slot)));
            }
            wanted.insert((name(*slot), (*uid).to_owned()));
        }
        if shown.len() != wanted.len() {
            return Some(format!("/pods has {} pods", shown.len()));
        }
        let uids: BTreeSet<_> = wanted.iter().map(|(_, uid)| uid.clone()).collect();

        let expected: BTreeSet<_> = wanted
            .iter()
            .flat_map(|(pod, uid)| {
                let sandbox = pod.ends_with('0').then_some("POD");
                sandbox.into_iter().chain(["c"]).map(move |container| format!("{container} {pod}-node-1 {uid}"))
            })
            .collect();
        let format = "{{.State}} {{.Label \"io.kubernetes.container.name\"}} {{.Label \"io.kubernetes.pod.name\"}} \
                      {{.Label \"io.kubernetes.pod.uid\"}}";
        let listed = node().containers(format);
        let (running, others): (Vec<_>, Vec<_>) = listed.iter().partition(|line| line.starts_with("running "));
        let found: BTreeSet<_> = running.iter().filter_map(|line| Some(line.split_once(' ')?.1.to_owned())).collect();
        if found.len() != running.len() || found != expected {
            let differs = found.symmetric_difference(&expected).collect::<Vec<_>>();
            return Some(format!("{} containers run: {differs:#?}", running.len()));
        }
        // Of each container the last one that ended is kept, for its log.
        let mut ended = BTreeSet::new();
        for line in others {
            let known = line.split_once(' ').is_some_and(|(_, which)| expected.contains(which));
            if !known || !ended.insert(line) {
                return Some(format!("should not be there (any more): {line}"));
            }
        }

        let directories = entries(DIRECTORIES);
        if directories != uids {
            return Some(format!("directories: {:#?}", directories.symmetric_difference(&uids).collect::<Vec<_>>()));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let stray = |line: &&str| line.contains(DIRECTORIES) && !uids.iter().any(|uid| line.contains(uid.as_str()));
        if let Some(mount) = mounts.lines().find(stray) {
            return Some(format!("is still mounted: {mount}"));
        }
        for directory in LINKS {
            for entry in entries(directory) {
                let path = format!("{directory}/{entry}");
                let of_pod = wanted.iter().any(|(pod, _)| entry.contains(&format!("{pod}-node-1")));
                if !of_pod || fs::metadata(&path).is_err() {
                    return Some(format!("leads nowhere, or belongs to nobody: {path}"));
                }
            }
        }
        None
    }
}
