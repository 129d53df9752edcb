//! Replacing a pod new-first: the new one starts beside the old one, is proven, and takes over; or it is removed, and
//! the old one has never stopped serving.
//!
//! [`course`] decides, purely, which of the two specs counts; what then happens to containers is
//! [`step`](super::step)'s decision as ever, but that it does not see the others' containers while one is being tried.
//! [`steer`](super::steer) keeps clients away from it meanwhile.
//!
//! # Guarantees
//! - Only a spec that has been ready is fallen back to, and it is kept on disk for as long as containers of it exist.
//! - A spec that failed is not tried again until the file changes, not even by the next agent.
//! - An agent that comes back in the middle of a trial removes the new one and begins again: it cannot tell to whom the
//!   clients went.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::pod::StaticPod;
use super::step::{belongs_to, instances, is_running, name_of, uid_of};
use crate::fsx::{self, FsError};
use crate::proc::Proc;
use crate::runtime::{Container, State, labels};

/// Name of the file in a pod's directory that says whether it was proven.
const FILE: &str = "surge.json";

/// What is kept on disk beside the manifest of a proven pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Hash of the spec that has been ready.
    pub proven: String,
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

/// What is kept in the directory of the pod `uid`.
pub fn recall(pods: &Path, uid: &str) -> Option<Memory> {
    serde_json::from_str(&std::fs::read_to_string(pods.join(uid).join(FILE)).ok()?).ok()
}

/// Keeps `memory` in the directory of the pod `uid`, which is there.
pub fn keep(pods: &Path, uid: &str, memory: &Memory) -> Result<(), FsError> {
    let path = pods.join(uid).join(FILE);
    let text = serde_json::to_vec(memory).map_err(|error| FsError::of("encode", &path)(error.into()))?;
    fsx::write_if_changed(&path, &text, 0o600).map(drop)
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
    let Some(memory) = facts.memory.filter(|memory| memory.proven != pod.hash) else { return Course::Run };
    let proven: Vec<_> = containers.values().filter(|c| is_of(c, &memory.proven)).collect();
    // With one UID their containers would have the same names, and one directory.
    if proven.is_empty() || proven.iter().any(|container| uid_of(container) == pod.uid) {
        return Course::Run;
    }
    if let Some(rejected) = memory.rejected.as_ref().filter(|rejected| rejected.hash == pod.hash) {
        return Course::Keep(format!("running: proven, file: rejected ({})", rejected.reason));
    }
    if containers.values().any(|container| !is_of(container, &memory.proven) && !belongs_to(container, pod)) {
        return Course::Keep("what was tried before goes first".to_owned());
    }
    let own: Vec<_> = containers.values().filter(|container| belongs_to(container, pod)).collect();
    if own.iter().any(|container| facts.stopping.contains(&container.id)) {
        return Course::Keep("the file's version is still ending from before".to_owned());
    }
    if !facts.steered && proven.iter().any(|container| is_running(container)) {
        return match facts.obstacle {
            Some(_) => Course::Run,
            None if own.is_empty() => Course::Steer,
            None => Course::Keep("the trial of the file's version starts over".to_owned()),
        };
    }
    if let Some(reason) =
        facts.tried_since.and_then(|since| ended(facts, since)).or_else(|| facts.failed.map(str::to_owned))
    {
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
    let until = started.min().map(|at| after(at, budget));
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

fn is_of(container: &Container, hash: &str) -> bool {
    container.labels.get(labels::SPEC_HASH).is_some_and(|have| have == hash)
}

/// How one of its containers has ended that was to last.
fn ended(facts: &Facts<'_>, since: Timestamp) -> Option<String> {
    facts.pod.lasting_containers().find_map(|spec| {
        let newest = instances(facts.containers, facts.pod, &spec.name).pop()?;
        match &newest.state {
            State::Exited(end) if end.finished_at >= since => {
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
