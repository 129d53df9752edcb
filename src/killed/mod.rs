//! SIGKILL and power loss after every effect of an operation on the disk and on the runtime: the same command run again
//! converges, and a reset takes all of it away.
//!
//! An operation is done once while everything that it and the agent do is watched, one effect at a time. After each
//! effect it is kept what each [`End`] would leave, on the disk and in the engine. Then every such state is made anew,
//! and plinth is run on it. The effects are shared out among some hosts that do the same beside each other.

#![allow(clippy::print_stdout)] // the counts

mod engine;
mod etcd;
mod world;

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::apply::ApplyError;
use crate::config;
use crate::init::InitError;
use crate::manifests;
use crate::plan::generation;
use crate::release::Component;
use engine::Ailment;
use world::{End, Point, World};

/// How many hosts share the work.
const HOSTS: u64 = 6;

/// Set, every end is tried at every point.
const EVERY_END: &str = "PLINTH_EVERY_END";

/// How long a command may take.
const LIMIT: Duration = Duration::from_mins(1);

/// Something that a client of the API server was told is kept, before the operation and after its end.
const ACKNOWLEDGED: [&str; 2] =
    ["/api/v1/namespaces/default/configmaps/before", "/api/v1/namespaces/default/configmaps/after"];

/// The same of a new etcd that serves for a moment.
const DURING: &str = "/api/v1/namespaces/default/configmaps/during";

type Verdict = Result<(), String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    FirstInit,
    FlagChange,
    Upgrade,
    /// An upgrade that goes back by itself, or cannot.
    FailedUpgrade(Ailment),
    Reset,
}

impl Operation {
    /// What the host is configured for, before and after.
    fn goals(self) -> [&'static str; 2] {
        match self {
            Self::FirstInit => ["2", "2"],
            Self::FlagChange | Self::Reset => ["2", "3"],
            Self::Upgrade | Self::FailedUpgrade(_) => ["v1.36.3", "v1.37.1"],
        }
    }

    async fn prepare(self, world: &World) -> Verdict {
        if self != Self::FirstInit {
            self.init(world, self.goals()[0]).await?;
            write(world, ACKNOWLEDGED[0]);
        }
        Ok(())
    }

    /// Whether this end is tried at the point whose number is `hash`. Everything is if the environment says so.
    /// Otherwise what takes its time is left out: of a first `init`, two ends that hardly differ from others at seven
    /// points of eight; of an upgrade, every end at fifteen of sixteen, and each at other ones; of those that fail, at
    /// thirty-one of thirty-two.
    fn is_asked_for(self, end: End, hash: u64) -> bool {
        let chance = match self {
            Self::FirstInit if matches!(end, End::Command | End::StateKept) => 8,
            Self::Upgrade => 16,
            Self::FailedUpgrade(_) => 32,
            _ => 1,
        };
        (hash / HOSTS + end as u64).is_multiple_of(chance) || std::env::var_os(EVERY_END).is_some()
    }

    async fn perform(self, world: &World) -> Verdict {
        match self {
            Self::Reset => reset(world).await,
            Self::FailedUpgrade(ailment) => {
                world.falls_ill(Some(ailment));
                self.fails(world).await
            }
            _ => self.init(world, self.goals()[1]).await.map(drop),
        }
    }

    /// What has to hold for what an end at `point` has left.
    async fn check(self, world: &mut World, point: &Point, end: End) -> Verdict {
        self.crash(world, point, end);
        nothing(&world.leaked(), "what the ledger does not know")?;
        if self != Self::Reset {
            self.is_finished_or_undone(world, end).await?;
            self.crash(world, point, end);
        }
        reset(world).await
    }

    fn crash(self, world: &mut World, point: &Point, end: End) {
        if let Self::FailedUpgrade(ailment) = self {
            world.falls_ill(Some(ailment));
        }
        world.crash(point, end);
    }

    /// The new release is not reached.
    async fn fails(self, world: &World) -> Verdict {
        let done = self.init(world, self.goals()[1]).await;
        done.map_or(Ok(()), |_| Err("a new release that cannot run was reached".to_owned()))
    }

    async fn is_finished_or_undone(self, world: &World, end: End) -> Verdict {
        let served = world.store().is_served() && self != Self::FirstInit;
        if served {
            write(world, ACKNOWLEDGED[1]);
        }
        let during = world.store().read().contains_key(DURING);
        let [old, new] = self.goals();
        // Half of the ends of a change are followed by an `init` that asks for nothing new.
        let again = matches!(end, End::Command | End::UnsyncedLost | End::StateKept);
        let goal = if again { new } else { self.running(world)?.unwrap_or(new) };
        if let Self::FailedUpgrade(ailment) = self {
            if end == End::Both && goal == old {
                self.fails(world).await?;
            }
            // What has served, and neither can serve again nor be read by the old one, is for people to mend. A new etcd
            // may have taken the write above before it ended.
            if goal == new || ailment == Ailment::WrittenEtcd || served {
                world.falls_ill(None);
            }
        }
        self.again(world, goal).await?;
        equal(&self.running(world)?, &Some(goal), "what is committed")?;
        if self == Self::FlagChange {
            let committed = world.ledger().committed.map(|(generation, _)| generation);
            equal(&committed, &Some(if goal == old { 1 } else { 2 }), "the generation")?;
        }
        let cluster = world.cluster(goal);
        for component in Component::ALL {
            let manifest = std::fs::read_to_string(world.layout.manifests().join(format!("{component}.yaml")));
            let rendered = manifests::render(&cluster, component, &world.layout).map(|manifest| manifest.yaml);
            equal(&manifest.unwrap_or_default(), &rendered.unwrap(), "the manifest")?;
        }
        equal(
            &world.running(),
            &["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"].map(str::to_owned).to_vec(),
            "what runs",
        )?;
        nothing(&world.leaked(), "what the ledger does not know in the end")?;
        nothing(&world.unfinished(), "what should not have stayed")?;
        let kept = world.store().read();
        let mut expected = ACKNOWLEDGED.iter().take(usize::from(self != Self::FirstInit) + usize::from(served));
        equal(&expected.all(|path| kept.contains_key(*path)), &true, "acknowledged writes are there")?;
        equal(&(during && !kept.contains_key(DURING)), &false, "what the new etcd has acknowledged is lost")?;
        equal(&self.init(world, goal).await?, &false, "a further init has something to do")
    }

    /// The goal that was reached last.
    fn running(self, world: &World) -> Result<Option<&'static str>, String> {
        let committed = generation::committed(&world.layout, &world.ledger()).map_err(|error| format!("{error:?}"))?;
        let Some(committed) = committed else { return Ok(None) };
        let found =
            self.goals().into_iter().find(|goal| config::to_wire_yaml(&world.cluster(goal)) == committed.config);
        found.map(Some).ok_or_else(|| format!("nobody has asked for {}", committed.config))
    }

    /// The same command. After a failed upgrade the agent rejects what it has rejected until the old manifest has been
    /// there again: the command then ends at the old state, once.
    async fn again(self, world: &World, goal: &str) -> Verdict {
        match self.init(world, goal).await {
            Err(error) if matches!(self, Self::FailedUpgrade(_)) && error.contains("PutBack {") => {
                self.init(world, goal).await.map(drop)
            }
            done => done.map(drop),
        }
    }

    /// Whether there was something to do.
    async fn init(self, world: &World, goal: &str) -> Result<bool, String> {
        let running = self.running(world)?.map(|goal| world.cluster(goal));
        let cluster = world.cluster(goal);
        let done = tokio::time::timeout(LIMIT, world.init(&cluster, running.as_ref())).await;
        done.map_err(|_| "init takes too long".to_owned())?.map_err(|error| format!("init: {error}: {error:?}"))
    }
}

fn write(world: &World, path: &str) {
    let mut objects = world.store().read();
    objects.insert(path.to_owned(), json!({}));
    world.store().write(&objects);
}

async fn reset(world: &World) -> Verdict {
    let report = tokio::time::timeout(LIMIT, world.reset()).await.map_err(|_| "reset takes too long".to_owned())?;
    let report = report.map_err(|error| format!("reset: {error}: {error:?}"))?;
    equal(&report.complete, &true, &format!("{:?}: is it complete", report.things))?;
    nothing(&world.left(), "what is left after reset")
}

fn nothing(found: &[String], what: &str) -> Verdict {
    if found.is_empty() { Ok(()) } else { Err(format!("{what}: {found:?}")) }
}

fn equal<T: PartialEq + std::fmt::Debug>(found: &T, expected: &T, what: &str) -> Verdict {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?}, not {expected:?}")) }
}

/// The same effect has the same name on all hosts: without ids, and with a number where it is not the first.
fn named(points: &[Point]) -> Vec<String> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let is_id = |word: &str| word.len() >= 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = |what: &str| {
        what.split_inclusive(['/', '_', ' ']).filter(|word| !is_id(word.trim_end_matches(['/', '_', ' ']))).collect()
    };
    let numbered = |point: &Point| {
        let name: String = name(&point.what);
        let count = counts.entry(name.clone()).or_default();
        *count += 1;
        format!("{name} {count}")
    };
    points.iter().map(numbered).collect()
}

fn every_end_at_every_point(operation: Operation) {
    let begin = Instant::now();
    let [effects, states] = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let failures: Vec<String> = thread::scope(|scope| {
        let hosts: Vec<_> = (0..HOSTS)
            .map(|host| {
                scope.spawn({
                    let (effects, states) = (&effects, &states);
                    move || share(operation, host, effects, states)
                })
            })
            .collect();
        hosts.into_iter().flat_map(|host| host.join().unwrap()).collect()
    });
    let [effects, states] = [effects, states].map(AtomicUsize::into_inner);
    println!("{operation:?}: {effects} effects, {states} different states, {:.1} s", begin.elapsed().as_secs_f64());
    assert!(failures.is_empty(), "{} of {states}:\n{}", failures.len(), failures.join("\n"));
}

/// The part of the work that `host` does; what went wrong.
fn share(operation: Operation, host: u64, effects: &AtomicUsize, states: &AtomicUsize) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new();
        operation.prepare(&world).await.unwrap();
        let points = world.record(async || operation.perform(&world).await.unwrap()).await;
        let (mut seen, mut failures) = (HashSet::new(), Vec::new());
        for (name, point) in named(&points).iter().zip(&points) {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            let hash = hasher.finish();
            let is_ours = hash % HOSTS == host;
            effects.fetch_add(usize::from(is_ours), Ordering::Relaxed);
            for end in End::ALL {
                let is_new = point.state(end).is_some_and(|state| seen.insert(state));
                if is_new && is_ours && operation.is_asked_for(end, hash) {
                    states.fetch_add(1, Ordering::Relaxed);
                    if let Err(why) = operation.check(&mut world, point, end).await {
                        failures.push(format!("{end:?} after {name}: {why}"));
                    }
                }
            }
        }
        failures
    })
}

#[test]
fn a_first_init_that_ends_anywhere_is_finished_by_the_next() {
    every_end_at_every_point(Operation::FirstInit);
}

#[test]
fn a_change_that_ends_anywhere_is_finished_or_undone_by_the_next() {
    every_end_at_every_point(Operation::FlagChange);
}

#[test]
fn an_upgrade_that_ends_anywhere_is_finished_or_undone_by_the_next() {
    every_end_at_every_point(Operation::Upgrade);
}

#[test]
fn an_upgrade_to_an_etcd_that_dies_is_undone_wherever_it_ends() {
    every_end_at_every_point(Operation::FailedUpgrade(Ailment::Etcd));
}

#[test]
fn an_upgrade_to_an_etcd_that_dies_after_a_write_keeps_it_wherever_it_ends() {
    every_end_at_every_point(Operation::FailedUpgrade(Ailment::WrittenEtcd));
}

#[test]
fn an_upgrade_to_an_api_server_that_dies_is_undone_wherever_it_ends() {
    every_end_at_every_point(Operation::FailedUpgrade(Ailment::ApiServer));
}

#[test]
fn a_reset_that_ends_anywhere_is_finished_by_the_next() {
    every_end_at_every_point(Operation::Reset);
}

/// etcd's record of its members, and the rights of `admin.conf`.
#[tokio::test]
async fn what_fails_behind_the_exchanges_puts_nothing_back() {
    let mut world = World::new();
    let [old, new] = Operation::Upgrade.goals().map(|goal| world.cluster(goal));
    world.init(&old, None).await.unwrap();
    let rights = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let mut objects = world.store().read();
    objects.retain(|path, _| !path.starts_with(rights));
    objects.insert(etcd::REFUSED.to_owned(), json!(["/v3/cluster/member/list", rights]));
    world.store().write(&objects);
    world.skipped.push("wait-control-plane".to_owned());
    let mut hasty = new.clone();
    hasty.timeouts.kubernetes_api_call = Duration::from_secs(1);
    let failed = tokio::time::timeout(LIMIT, world.init(&hasty, Some(&old))).await.unwrap().unwrap_err();
    assert!(matches!(failed, InitError::Apply(ApplyError::Cluster(_))), "{failed:?}");
    for component in Component::ALL {
        let manifest = std::fs::read_to_string(world.layout.manifests().join(format!("{component}.yaml"))).unwrap();
        assert_eq!(manifest, manifests::render(&new, component, &world.layout).unwrap().yaml);
    }
    assert!(world.ledger().etcd_swap.is_none());
    reset(&world).await.unwrap();
}
