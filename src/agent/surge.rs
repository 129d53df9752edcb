//! Replacing a pod new-first: the new one starts beside the old one, is proven, and takes over; or it is removed, and
//! the old one has never stopped serving.
//!
//! [`course`] decides, purely, which of the two specs counts; what then happens to containers is
//! [`step`](super::step)'s decision as ever, but that it does not see the others' containers while one is being tried.
//! [`steer`](super::steer) keeps clients away from it meanwhile.
//!
//! # Guarantees
//! - Only a spec that has been ready is fallen back to, and it is kept on disk for as long as the pod is wanted: whether
//!   there are containers of it does not matter.
//! - A spec that failed is not tried again until the file changes, not even by the next agent.
//! - An agent that comes back in the middle of a trial removes the new one and begins again: it cannot tell to whom the
//!   clients went. One that comes back while what is proven takes over sends clients there before it ends the old one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::pod::{PodKey, StaticPod};
use super::source::memory::Remembered;
use super::step::{SANDBOX, belongs_to, instances, is_running, name_of};
use crate::fsx::{self, FsError};
use crate::proc::{Listener, Proc};
use crate::runtime::{Container, State};

/// How often a new one has to end until it is rejected. Once may be the end of all that an engine runs as it stops, of
/// which nobody knows until it is back; the next start is at once.
const ENDS: usize = 2;

/// What is kept on disk of a pod name.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// The spec that has been ready.
    pub proven: Arc<StaticPod>,
    /// The spec that was tried last, if it failed.
    pub rejected: Option<Rejection>,
}

/// A spec that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// Its hash.
    pub hash: String,
    /// Why.
    pub reason: String,
}

/// [`Memory`] in its file.
#[derive(Serialize, Deserialize)]
struct Kept {
    proven: Remembered,
    rejected: Option<Rejection>,
}

fn file(directory: &Path, key: &PodKey) -> PathBuf {
    directory.join(format!("{}_{}.json", key.namespace, key.name))
}

/// What is kept of the pod `key` in `directory`, unless this version of plinth refuses what an earlier one ran.
pub fn recall(directory: &Path, key: &PodKey, node: &str) -> Option<Memory> {
    read(&file(directory, key), node).filter(|memory| memory.proven.key == *key)
}

/// All proven specs that are kept in `directory`.
pub fn all_proven(directory: &Path, node: &str) -> Vec<Arc<StaticPod>> {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| Some(read(&file.path(), node)?.proven)).collect()
}

fn read(path: &Path, node: &str) -> Option<Memory> {
    let Kept { proven, rejected } = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    Some(Memory { proven: Arc::new(proven.pod(node)?), rejected })
}

/// Keeps `memory` in `directory`. 0600: manifests may hold secrets in their environment.
pub fn keep(directory: &Path, memory: &Memory) -> Result<(), FsError> {
    fsx::create_directories(directory, 0o700)?;
    let path = file(directory, &memory.proven.key);
    let kept = Kept { proven: Remembered::of(&memory.proven), rejected: memory.rejected.clone() };
    let text = serde_json::to_vec(&kept).map_err(|error| FsError::of("encode", &path)(error.into()))?;
    fsx::write_if_changed(&path, &text, 0o600).map(drop)
}

/// Removes what is kept of the pod `key` in `directory`.
pub fn forget(directory: &Path, key: &PodKey) -> Result<(), FsError> {
    fsx::remove_file(&file(directory, key)).map(drop)
}

/// What is known of a pod to be replaced new-first.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The spec of the file.
    pub pod: &'a StaticPod,
    /// The containers of this pod name, of any spec.
    pub containers: &'a BTreeMap<String, Container>,
    /// What is kept on disk.
    pub memory: Option<&'a Memory>,
    /// Ids of those that are being stopped beside everything else.
    pub stopping: &'a BTreeSet<String>,
    /// Why this spec cannot run beside the old one.
    pub obstacle: Option<&'a str>,
    /// Since when this agent tries the file's spec, if it does: what ended before did not fail.
    pub tried_since: Option<Timestamp>,
    /// How many containers of it that were to last have ended since.
    pub ends: usize,
    /// Clients are kept away from the new one.
    pub steered: bool,
    /// The new one has answered, and nobody else in its place.
    pub answers: bool,
    /// A probe or hook of the new one has failed for good.
    pub failed: Option<&'a str>,
    /// The time.
    pub now: Timestamp,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Course {
    /// Run the file's spec as that of any other pod: there is nothing to protect, or no way to.
    Run,
    /// Run the proven spec, and nothing else; with a remark.
    Keep(String),
    /// Keep clients away from what starts next.
    Steer,
    /// Nothing proven runs any more: let clients go to what is being tried.
    Unsteer,
    /// Run the file's spec, leaving the proven one's containers alone; it fails unless it answers until then.
    Try(Option<Timestamp>),
    /// The file's spec has answered: it takes over.
    Prove,
    /// It failed, for this reason.
    Reject(String),
}

/// Decides.
pub fn course(facts: &Facts<'_>) -> Course {
    let Facts { pod, containers, .. } = *facts;
    let Some(memory) = facts.memory.filter(|memory| memory.proven.hash != pod.hash) else { return Course::Run };
    // With one UID their containers would have the same names, and one directory.
    if memory.proven.uid == pod.uid {
        return Course::Run;
    }
    let is_proven = |container: &Container| belongs_to(container, &memory.proven);
    if let Some(rejected) = memory.rejected.as_ref().filter(|rejected| rejected.hash == pod.hash) {
        return Course::Keep(format!("running: proven, file: rejected ({})", rejected.reason));
    }
    if containers.values().any(|container| !is_proven(container) && !belongs_to(container, pod)) {
        return Course::Keep("what was tried before goes first".to_owned());
    }
    let own: Vec<_> = containers.values().filter(|container| belongs_to(container, pod)).collect();
    if own.iter().any(|container| facts.stopping.contains(&container.id)) {
        return Course::Keep("the file's version is still ending from before".to_owned());
    }
    let protected = containers.values().any(|container| is_proven(container) && is_running(container));
    if protected {
        // What runs from before this trial has another place among those that listen.
        let starts_over = !own.is_empty() && (!facts.steered || facts.tried_since.is_none());
        match facts.obstacle {
            Some(_) if !facts.steered => return Course::Run,
            _ if starts_over => return Course::Keep("the trial of the file's version starts over".to_owned()),
            _ if !facts.steered => return Course::Steer,
            _ => {}
        }
    } else if facts.steered {
        return Course::Unsteer;
    }
    let ended = facts.tried_since.and_then(|since| ended(facts, since));
    if let Some(reason) = ended.or_else(|| facts.failed.map(str::to_owned)) {
        return Course::Reject(reason);
    }
    if facts.answers {
        return Course::Prove;
    }
    let started = own.iter().filter_map(|container| match container.state {
        State::Running { started_at, .. } if pod.lasting_containers().any(|c| c.name == name_of(container)) => {
            Some(started_at)
        }
        _ => None,
    });
    let budget = pod.start_up_budget();
    let since = facts.tried_since.unwrap_or(facts.now);
    // Of what an earlier agent started this one has not asked anything yet. And while nothing serves, nobody waits for
    // ever for a start.
    let counted = started.min().map(|at| at.max(since)).or((!protected).then_some(since));
    let until = counted.map(|at| after(at, budget));
    match until {
        Some(until) if until <= facts.now => Course::Reject(format!("not ready within {} s", budget.as_secs())),
        _ => Course::Try(until),
    }
}

/// Whether a second instance of what runs as `pids` fits into memory: with a fifth to spare, as a new one may need more.
pub fn has_room(proc: &Proc, pids: &[i32]) -> Result<(), String> {
    let used: u64 = pids.iter().filter_map(|pid| proc.resident(*pid).ok().flatten()).sum();
    let available = proc.memory().map_err(|error| error.to_string())?.available;
    if available >= used / 5 * 6 {
        return Ok(());
    }
    let (available, used) = (available >> 20, used >> 20);
    Err(format!("{available} MiB of memory are available, and the old one has {used} MiB"))
}

/// Whether an agent has ended between the take-over of what is proven and the end of what ran before it: both run, and
/// the old one, which started first, has the first place among those that listen.
pub fn takes_over(containers: &BTreeMap<String, Container>, proven: &StaticPod) -> bool {
    let start = |container: &Container| match container.state {
        State::Running { started_at, .. } if name_of(container) != SANDBOX => Some(started_at),
        _ => None,
    };
    let (new, old): (Vec<_>, Vec<_>) = containers.values().partition(|container| belongs_to(container, proven));
    let first = |of: Vec<&Container>| of.into_iter().filter_map(start).min();
    first(old).zip(first(new)).is_some_and(|(old, new)| old < new)
}

/// Whether one of `listeners` belongs to a container of `pod`.
pub fn listens(listeners: &[Listener], containers: &BTreeMap<String, Container>, pod: &StaticPod) -> bool {
    let owners = listeners.iter().filter_map(|listener| listener.process.as_ref()?.container.as_ref());
    owners.filter_map(|id| containers.get(id)).any(|container| belongs_to(container, pod))
}

/// The containers of `pod` that were to last and have ended since.
pub fn ends<'a>(
    containers: &'a BTreeMap<String, Container>,
    pod: &'a StaticPod,
    since: Timestamp,
) -> impl Iterator<Item = &'a String> {
    let lasting = |container: &Container| pod.lasting_containers().any(|spec| spec.name == name_of(container));
    let own = containers.values().filter(move |container| belongs_to(container, pod) && lasting(container));
    own.filter(move |container| matches!(&container.state, State::Exited(end) if end.finished_at >= since))
        .map(|container| &container.id)
}

/// How one of its containers has ended that was to last, and for good.
fn ended(facts: &Facts<'_>, since: Timestamp) -> Option<String> {
    facts.pod.lasting_containers().find_map(|spec| {
        let newest = instances(facts.containers, facts.pod, &spec.name).pop()?;
        let again = |code| facts.ends < ENDS && facts.pod.restart_policy_of(&spec.name).restarts(code);
        match &newest.state {
            State::Exited(end) if end.finished_at >= since && !again(end.exit_code) => {
                Some(format!("{} exited with code {}", spec.name, end.exit_code))
            }
            State::Created { error: Some(error) } if newest.created_at >= since => {
                Some(format!("{} did not start: {error}", spec.name))
            }
            _ => None,
        }
    })
}

fn after(at: Timestamp, delay: Duration) -> Timestamp {
    SignedDuration::try_from(delay).ok().and_then(|delay| at.checked_add(delay).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
