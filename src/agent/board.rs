//! What the parts of the agent tell each other and the outside: the latest snapshot of each pod, who answers, and
//! what is wrong at the moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::{Notify, watch};

use super::events::{self, Event, Kind, Recorder};
use super::metrics::Metrics;
use super::pod::{PodKey, StaticPod};
use super::probe::Health;
use super::status::{SourceStatus, Update};
use super::step::{Stop, Waiting};
use crate::clock::Clock;
use crate::runtime::Container;

/// Whether a pod that others wait for answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// When its containers were first seen running with the present manifest.
    pub started_at: Option<Timestamp>,
    /// How long it may take from there.
    pub budget: Duration,
    /// Since when all of them answer their readiness handler.
    pub ready_at: Option<Timestamp>,
    /// What is missing.
    pub reason: String,
}

/// One pod as its worker last saw it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Namespace and name.
    pub key: PodKey,
    /// What is wanted; `None` for a pod that is being removed or that nobody knows.
    pub pod: Option<Arc<StaticPod>>,
    /// When this agent first saw the pod.
    pub seen: Timestamp,
    /// Its containers.
    pub containers: BTreeMap<String, Container>,
    /// Probe results by container id.
    pub health: BTreeMap<String, Health>,
    /// Why containers do not run, by name.
    pub waiting: BTreeMap<String, Waiting>,
    /// What dead containers said of their end, by id.
    pub last_words: BTreeMap<String, LastWords>,
    /// Names of `plinth.dev/after` that are not waited for, and other remarks.
    pub remarks: Vec<String>,
    /// What is being done right now and takes long.
    pub doing: Option<Doing>,
    /// Names of containers whose image this worker has pulled and that it has not made since.
    pub pulled: BTreeSet<String>,
    /// The file's spec, where it is not the one that serves.
    pub update: Option<Update>,
}

#[cfg(test)]
impl Snapshot {
    /// Of a pod of which nothing else is known.
    pub(super) fn bare(key: &PodKey, pod: Option<Arc<StaticPod>>, seen: Timestamp) -> Self {
        Self {
            key: key.clone(),
            pod,
            seen,
            containers: BTreeMap::new(),
            health: BTreeMap::new(),
            waiting: BTreeMap::new(),
            last_words: BTreeMap::new(),
            remarks: Vec::new(),
            doing: None,
            pulled: BTreeSet::new(),
            update: None,
        }
    }
}

/// What a worker is doing while it does nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    /// It stops these.
    Stopping(Vec<Stop>),
    /// It pulls an image.
    Pulling {
        /// The container that is to be made from it.
        container: String,
        /// Which.
        image: String,
    },
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopping(stops) => write!(f, "stopping: {}", stops.first().map_or("", |stop| &stop.why)),
            Self::Pulling { container, .. } => write!(f, "pulling the image of {container}"),
        }
    }
}

/// What a dead container said of its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastWords {
    /// The line of its log that tells most; empty when there is none.
    pub line: String,
    /// Its termination message; empty when it left none.
    pub message: String,
}

/// Shared by everything in one agent.
#[derive(Debug)]
pub struct Board {
    /// Counters.
    pub metrics: Metrics,
    /// Rung when a worker finds the runtime away.
    pub lost: Notify,
    answers: watch::Sender<BTreeMap<PodKey, Answer>>,
    recorder: Option<(Recorder, Clock)>,
    changes: watch::Sender<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<PodKey, Snapshot>,
    sources: Vec<SourceStatus>,
    problem: Option<String>,
    warnings: Vec<String>,
    /// What others warn of, by who they are.
    remarks: BTreeMap<&'static str, Vec<String>>,
    tended: Option<BTreeSet<PodKey>>,
}

impl Board {
    /// An empty board.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            lost: Notify::new(),
            answers: watch::Sender::new(BTreeMap::new()),
            recorder: None,
            changes: watch::Sender::new(0),
            state: Mutex::new(State::default()),
        }
    }

    /// The same, and `recorder` is told what happens to pods.
    #[must_use]
    pub fn telling(self, recorder: Recorder, clock: Clock) -> Self {
        Self { recorder: Some((recorder, clock)), ..self }
    }

    /// Follows the answers of all pods that others wait for.
    pub fn answers(&self) -> watch::Receiver<BTreeMap<PodKey, Answer>> {
        self.answers.subscribe()
    }

    /// Says whether a pod answers; `None` when nobody waits for it any more.
    pub fn answer(&self, key: &PodKey, answer: Option<Answer>) {
        self.answers.send_if_modified(|answers| match answer {
            Some(answer) if answers.get(key) == Some(&answer) => false,
            Some(answer) => {
                answers.insert(key.clone(), answer);
                true
            }
            None => answers.remove(key).is_some(),
        });
    }

    /// Tells of every change of a snapshot, of the pods that are tended, and of the problem. The number means nothing.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn replace<T: PartialEq>(&self, part: impl FnOnce(&mut State) -> &mut T, value: T) {
        let mut state = self.state();
        let part = part(&mut state);
        if *part != value {
            *part = value;
            drop(state);
            self.changed();
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Replaces the snapshot of a pod.
    pub fn publish(&self, snapshot: Snapshot) {
        let mut state = self.state();
        if let Some((recorder, clock)) = &self.recorder {
            let before = state.pods.get(&snapshot.key);
            for event in events::between(before, &snapshot, clock.now()) {
                recorder.record(event);
            }
        }
        state.pods.insert(snapshot.key.clone(), snapshot);
        drop(state);
        self.changed();
    }

    /// Tells the recorder of what happened to an object that is none of the pods here.
    pub fn tell(&self, object: ObjectReference, kind: Kind, reason: &'static str, message: &str) {
        if let Some((recorder, clock)) = &self.recorder {
            recorder.record(Event { object, kind, reason, message: message.to_owned(), at: clock.now() });
        }
    }

    /// The pod is gone.
    pub fn forget(&self, key: &PodKey) {
        self.answer(key, None);
        self.state().pods.remove(key);
        self.changed();
    }

    /// What keeps the agent from working at all.
    pub fn set_problem(&self, problem: Option<String>) {
        self.replace(|state| &mut state.problem, problem);
    }

    /// What was said last of it.
    pub fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    /// All pods that are wanted or still being removed; `None` while that is not known.
    pub fn set_tended(&self, tended: Option<BTreeSet<PodKey>>) {
        self.replace(|state| &mut state.tended, tended);
    }

    /// What was said last of the pods that are tended.
    pub fn tended(&self) -> Option<BTreeSet<PodKey>> {
        self.state().tended.clone()
    }

    /// What `who` warns of at the moment, in the place of what it said before.
    pub fn remark(&self, who: &'static str, remarks: Vec<String>) {
        let mut state = self.state();
        let before = state.remarks.remove(who).unwrap_or_default();
        for remark in remarks.iter().filter(|remark| !before.contains(remark)) {
            tracing::warn!("{who}: {remark}");
        }
        state.remarks.insert(who, remarks);
    }

    /// The sources, as last read, and remarks about all of it.
    pub fn set_sources(&self, sources: Vec<SourceStatus>, warnings: Vec<String>) {
        let mut state = self.state();
        state.sources = sources;
        state.warnings = warnings;
    }

    /// All snapshots, in order.
    pub fn pods(&self) -> Vec<Snapshot> {
        self.state().pods.values().cloned().collect()
    }

    /// The problem, the sources and the warnings.
    pub fn situation(&self) -> (Option<String>, Vec<SourceStatus>, Vec<String>) {
        let state = self.state();
        let warnings = state.warnings.iter().chain(state.remarks.values().flatten()).cloned().collect();
        (state.problem.clone(), state.sources.clone(), warnings)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
