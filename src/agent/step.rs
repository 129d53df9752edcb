//! The decision for one pod: what is wanted, what is there → what to do next.
//!
//! # Guarantees
//! - Pure: no I/O, no clock, no randomness. The worker performs the actions in order, reports each outcome to
//!   [`PodState`] and asks again.
//! - Containers of one pod name with another UID or spec hash are gone before any of the wanted ones is created.
//! - A running container of the wanted spec is left alone, whoever started it and whatever the agent remembers: an
//!   agent without memory (after its own restart) decides nothing else than one with memory, but for back-off.
//! - Only containers that are passed in are ever named in an action.
//!
//! # Assumptions
//! The caller passes containers of one pod name only, all of them carrying our label.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::hook;
use super::pod::{PodKey, RestartPolicy, StaticPod, grace};
use super::probe::{Health, PostStart, ProbeKind};
use crate::runtime::{Container, State, labels};

/// Value of the container-name label of a sandbox.
pub const SANDBOX: &str = "POD";
/// Label: `terminationGracePeriodSeconds` of the pod, so that a container can be stopped as its pod wanted when the
/// manifest is no longer there. The kubelet's name.
pub const GRACE_LABEL: &str = "io.kubernetes.pod.terminationGracePeriod";

/// Label on sidecars: their place among the init containers, because they stop in the reverse order also when the
/// manifest is no longer there.
pub const SIDECAR_LABEL: &str = "plinth.dev/sidecar";

/// How long an edited spec has to stay as it is before the first container is made from it. An editor's second save and
/// a tool that writes again and again come within this; a container made for one that is already outdated would be sent
/// SIGTERM before its process can handle it, and then hold up the pod for its whole grace.
pub const EDITS_SETTLE: Duration = Duration::from_millis(300);

/// Waiting times. The defaults are the kubelet's; tests shorten them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// Crash back-off: the wait before the second restart; the first is at once (kubelet: 10 s).
    pub crash_initial: Duration,
    /// Crash back-off: the longest wait (kubelet: 300 s).
    pub crash_max: Duration,
    /// Crash back-off starts over when a container ran for so long (kubelet: 10 min).
    pub crash_reset: Duration,
    /// Image pulls: the wait after the first failure (kubelet: 10 s).
    pub pull_initial: Duration,
    /// Image pulls: the longest wait (kubelet: 300 s).
    pub pull_max: Duration,
    /// How often a missing image is looked for again while no pull is due.
    pub image_recheck: Duration,
    /// Failed calls to the runtime and failed volumes: the wait after the first failure (kubelet: 500 ms).
    pub retry_initial: Duration,
    /// Failed calls to the runtime and failed volumes: the longest wait.
    pub retry_max: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            crash_initial: Duration::from_secs(10),
            crash_max: Duration::from_mins(5),
            crash_reset: Duration::from_mins(10),
            pull_initial: Duration::from_secs(10),
            pull_max: Duration::from_mins(5),
            image_recheck: Duration::from_secs(5),
            retry_initial: Duration::from_millis(500),
            retry_max: Duration::from_secs(30),
        }
    }
}

/// What is there.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// Our containers of this pod name, by id: of any UID, in any state.
    pub containers: &'a BTreeMap<String, Container>,
    /// Probe results by container id; a container that is missing here has not been probed yet.
    pub health: &'a BTreeMap<String, Health>,
    /// Pods of `plinth.dev/after` that do not answer yet.
    pub unready: &'a [Unready],
    /// When a pod of `plinth.dev/after` last became ready.
    pub dependency_ready_at: Option<Timestamp>,
    /// When the host was booted: what ended before does not count as done.
    pub booted_at: Timestamp,
}

/// A pod that another one waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unready {
    /// Which pod.
    pub key: PodKey,
    /// Since when its containers run, if they do.
    pub started_at: Option<Timestamp>,
    /// How long it may take from there.
    pub budget: Duration,
    /// What it last answered.
    pub reason: String,
}

/// What the agent remembers of a pod between steps. Lost with the process, which only costs back-off: as for the
/// kubelet, a new agent (and with it a new boot) starts without.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodState {
    /// Hash of the spec that all of this is about.
    hash: String,
    /// When that spec arrived.
    arrived: Timestamp,
    /// It came after another one of which containers were there.
    edited: bool,
    /// The hold of `plinth.dev/after` is over.
    released: bool,
    /// Since when the pod is held.
    held_since: Option<Timestamp>,
    crashes: BTreeMap<String, Crash>,
    failures: BTreeMap<String, Failure>,
    pulls: BTreeMap<String, Failure>,
    /// Containers whose image was not there, and when that was seen.
    missing: BTreeMap<String, Timestamp>,
    /// Containers whose image was pulled for their next creation.
    pulled: BTreeSet<String>,
    /// UIDs that may have a directory.
    uids: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Crash {
    /// The dead container that this back-off was last advanced for.
    dead: String,
    delay: Duration,
    since: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    reason: &'static str,
    message: String,
    count: u32,
    retry_at: Timestamp,
}

impl PodState {
    /// The runtime (or the preparation of a volume) failed for `container`; `reason` is the kubelet's waiting reason.
    pub fn failed(
        &mut self,
        container: &str,
        reason: &'static str,
        message: String,
        now: Timestamp,
        timings: &Timings,
    ) {
        let count = self.failures.get(container).map_or(0, |failure| failure.count);
        let retry_at = after(now, doubled(timings.retry_initial, count, timings.retry_max));
        self.failures.insert(container.to_owned(), Failure { reason, message, count: count + 1, retry_at });
    }

    /// The image of `container` is not on this host.
    pub fn image_missing(&mut self, container: &str, now: Timestamp) {
        self.missing.insert(container.to_owned(), now);
        self.pulled.remove(container);
    }

    /// The image of `container` could not be pulled.
    pub fn pull_failed(&mut self, container: &str, message: String, now: Timestamp, timings: &Timings) {
        let count = self.pulls.get(container).map_or(0, |failure| failure.count);
        let retry_at = after(now, doubled(timings.pull_initial, count, timings.pull_max));
        let failure = Failure { reason: "ErrImagePull", message, count: count + 1, retry_at };
        self.pulls.insert(container.to_owned(), failure);
    }

    /// The image of `container` was pulled.
    pub fn pulled(&mut self, container: &str) {
        self.pulls.remove(container);
        self.missing.remove(container);
        self.pulled.insert(container.to_owned());
    }

    /// Names of those whose image was pulled for their next creation.
    pub const fn awaiting_creation(&self) -> &BTreeSet<String> {
        &self.pulled
    }

    /// `container` was created.
    pub fn created(&mut self, container: &str) {
        self.failures.remove(container);
        self.pulls.remove(container);
        self.missing.remove(container);
        self.pulled.remove(container);
    }

    /// The next restart of each container is at once, as its first one.
    pub fn forgive(&mut self) {
        self.crashes.clear();
    }

    /// Whether the pod waits for another one.
    pub const fn is_held(&self) -> bool {
        self.held_since.is_some() && !self.released
    }

    /// `container` was started or stopped.
    pub fn succeeded(&mut self, container: &str) {
        self.failures.remove(container);
    }
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Stop these, those of one turn at the same time.
    Stop(Vec<Stop>),
    /// Remove a container that does not run.
    Remove {
        /// Its id.
        id: String,
    },
    /// Remove the directory of a pod that has no containers any more.
    Discard {
        /// UID of that pod.
        uid: String,
    },
    /// Pull the image of a container.
    Pull {
        /// Name in the pod.
        container: String,
    },
    /// Prepare the volumes of a container and create it.
    Create {
        /// Name in the pod, or [`SANDBOX`].
        container: String,
        /// Which start of this container this will be, from zero.
        attempt: u32,
    },
    /// Start a created container.
    Start {
        /// Name in the pod, or [`SANDBOX`].
        container: String,
        /// Its id.
        id: String,
    },
}

/// One container to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Name in the pod, or [`SANDBOX`].
    pub container: String,
    /// Its id.
    pub id: String,
    /// Time until SIGKILL, the wait for earlier turns included.
    pub grace: Duration,
    /// It is stopped when all of the earlier turns have ended: zero, but for sidecars.
    pub turn: usize,
    /// Why, for the log.
    pub why: String,
}

/// Why a container does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The kubelet's word for it: `CrashLoopBackOff`, …
    pub reason: &'static str,
    /// Details.
    pub message: String,
    /// When it is tried again, if that is known.
    pub until: Option<Timestamp>,
}

/// The decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// What to do now, in this order. Empty: nothing until something changes, or until [`Step::wake_at`].
    pub actions: Vec<Action>,
    /// What to remember.
    pub state: PodState,
    /// When time alone changes the decision.
    pub wake_at: Option<Timestamp>,
    /// Why containers do not run, by name.
    pub waiting: BTreeMap<String, Waiting>,
    /// The pod was to be removed, and nothing of it is left.
    pub gone: bool,
}

/// Decides. `desired` is `None` when the pod is to be removed.
pub fn step(
    desired: Option<&StaticPod>,
    observed: &Observed<'_>,
    now: Timestamp,
    state: &PodState,
    timings: &Timings,
) -> Step {
    let mut round = Round { observed: *observed, now, timings, out: Step { state: state.clone(), ..Step::default() } };
    match desired {
        Some(pod) => round.run(pod),
        None => round.remove(),
    }
    round.out
}

/// Name of the container in its pod, from its label.
pub fn name_of(container: &Container) -> &str {
    container.labels.get(labels::CONTAINER_NAME).map_or("", String::as_str)
}

/// How many times it was started before, from its label.
pub fn attempt_of(container: &Container) -> u32 {
    container.labels.get(labels::RESTART_COUNT).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// UID of its pod, from its label.
pub fn uid_of(container: &Container) -> &str {
    container.labels.get(labels::POD_UID).map_or("", String::as_str)
}

/// Whether the container was made from exactly this spec.
pub fn belongs_to(container: &Container, pod: &StaticPod) -> bool {
    uid_of(container) == pod.uid && container.labels.get(labels::SPEC_HASH) == Some(&pod.hash)
}

/// Whether its process runs.
pub fn is_running(container: &Container) -> bool {
    matches!(container.state, State::Running { .. })
}

/// Exit code and end of a container that ran, or failed to start.
fn ended(container: &Container) -> Option<(i64, Timestamp)> {
    match &container.state {
        State::Exited(end) => Some((end.exit_code, end.finished_at)),
        State::Created { error: Some(_) } => Some((128, container.created_at)),
        State::Created { error: None } | State::Running { .. } => None,
    }
}

/// The instances of the container `name` of this very pod, oldest first.
pub fn instances<'a>(containers: &'a BTreeMap<String, Container>, pod: &StaticPod, name: &str) -> Vec<&'a Container> {
    let mut found: Vec<_> = containers.values().filter(|c| name_of(c) == name && belongs_to(c, pod)).collect();
    found.sort_by_key(|container| (attempt_of(container), container.created_at));
    found
}

struct Round<'a> {
    observed: Observed<'a>,
    now: Timestamp,
    timings: &'a Timings,
    out: Step,
}

impl Round<'_> {
    fn remove(&mut self) {
        let all: Vec<_> = self.observed.containers.values().collect();
        self.remember_directories(&all);
        if !all.is_empty() {
            if !self.stop_running(&all, "the pod was removed") {
                self.remove_all(&all);
            }
            return;
        }
        let uids = std::mem::take(&mut self.out.state.uids);
        self.out.actions.extend(uids.into_iter().map(|uid| Action::Discard { uid }));
        self.out.gone = true;
    }

    fn run(&mut self, pod: &StaticPod) {
        if self.out.state.hash != pod.hash {
            let last = std::mem::take(&mut self.out.state);
            let ran = !last.hash.is_empty() && !self.observed.containers.is_empty();
            self.out.state = PodState {
                hash: pod.hash.clone(),
                arrived: self.now,
                edited: last.edited || ran,
                uids: last.uids,
                ..PodState::default()
            };
        }
        let containers = self.observed.containers;
        let (current, old): (Vec<_>, Vec<_>) = containers.values().partition(|c| belongs_to(c, pod));
        if !old.is_empty() {
            for container in pod.all_containers() {
                self.wait(&container.name, "ContainerCreating", "the old version of the pod is being stopped", None);
            }
            self.remember_directories(&old);
            if !self.stop_running(&old, "the manifest changed") {
                self.remove_all(&old);
            }
            return;
        }
        if current.iter().any(|container| is_running(container)) {
            self.out.state.released = true;
        }
        if self.finished(pod, &current) || !self.sandbox(pod, &current) {
            return;
        }
        if self.init(pod) {
            for container in pod.containers() {
                // As with a kubelet, the next one waits for the end of a hook.
                if !self.lasting(pod, &container.name) {
                    break;
                }
            }
        }
        if self.out.actions.is_empty() {
            self.collect_garbage(pod);
        }
    }

    /// Whether the pod has run to its end; what is left of it is then cleared away.
    fn finished(&mut self, pod: &StaticPod, current: &[&Container]) -> bool {
        let policy = pod.restart_policy();
        let end = |name: &str| instances(self.observed.containers, pod, name).last().and_then(|c| ended(c));
        // Sidecars do not keep a pod from its end.
        let over = |name: &str| end(name).is_some_and(|(code, _)| !policy.restarts(code));
        let init_failed = policy == RestartPolicy::Never
            && pod.plain_init_containers().any(|c| end(&c.name).is_some_and(|(code, _)| code != 0));
        if !(init_failed || pod.containers().iter().all(|container| over(&container.name))) {
            return false;
        }
        if !self.stop_running(current, "the pod has finished") {
            self.collect_garbage(pod);
        }
        true
    }

    /// Sees to the sandbox; `true` when the containers may go on.
    fn sandbox(&mut self, pod: &StaticPod, current: &[&Container]) -> bool {
        if !pod.needs_sandbox() {
            return true;
        }
        let sandboxes = instances(self.observed.containers, pod, SANDBOX);
        let newest = sandboxes.last();
        if newest.is_some_and(|newest| is_running(newest)) {
            return true;
        }
        if let Some(newest) = newest.filter(|newest| ended(newest).is_none()) {
            self.start(SANDBOX, &newest.id);
            return false;
        }
        // It died, or somebody removed it. Nothing of the pod can live on without it, and init containers run again in
        // the new one.
        let inhabitants: Vec<_> = current.iter().copied().filter(|c| name_of(c) != SANDBOX).collect();
        if self.stop_running(&inhabitants, "the sandbox of the pod is gone") {
            return false;
        }
        let stale: Vec<_> = inhabitants
            .into_iter()
            .filter(|c| ended(c).is_none() || pod.plain_init_containers().any(|init| init.name == name_of(c)))
            .collect();
        if !stale.is_empty() {
            self.remove_all(&stale);
        } else if !self.held(pod) {
            match newest.and_then(|newest| Some((newest, ended(newest)?.1))) {
                None => self.launch(pod, SANDBOX, 0),
                Some((newest, ended_at)) if self.may_restart(pod, SANDBOX, newest, ended_at) => {
                    self.launch(pod, SANDBOX, attempt_of(newest) + 1);
                }
                Some(_) => {}
            }
        }
        false
    }

    /// Sees to the init containers, sidecars among them; `true` when the regular ones may run.
    fn init(&mut self, pod: &StaticPod) -> bool {
        if pod.init_containers().is_empty() {
            return true;
        }
        let running = |name: &str| instances(self.observed.containers, pod, name).iter().any(|c| is_running(c));
        let initialized = pod.containers().iter().any(|container| running(&container.name));
        let done = if initialized { pod.init_containers().len() } else { self.init_done(pod) };
        if !initialized {
            for container in pod.containers() {
                self.wait(&container.name, "PodInitializing", "", None);
            }
        }
        for (index, container) in pod.init_containers().iter().enumerate() {
            if pod.is_sidecar(&container.name) {
                self.lasting(pod, &container.name);
                if index >= done && !self.has_started(pod, &container.name) {
                    return false;
                }
            } else if index >= done {
                self.plain_init(pod, &container.name);
                return false;
            }
        }
        true
    }

    /// How many init containers are behind the pod: up to the last plain one that succeeded since the boot. Those
    /// before it are not asked, for they may have been removed.
    fn init_done(&self, pod: &StaticPod) -> usize {
        for (index, container) in pod.init_containers().iter().enumerate().rev() {
            if pod.is_sidecar(&container.name) {
                continue;
            }
            let newest = instances(self.observed.containers, pod, &container.name).pop();
            match newest.map(ended) {
                Some(Some((0, ended_at))) if ended_at >= self.observed.booted_at => return index + 1,
                // Of the last boot: all of them once more, from the first.
                None | Some(Some((0, _))) => {}
                Some(_) => return index,
            }
        }
        0
    }

    /// Sees to the init container whose turn it is.
    fn plain_init(&mut self, pod: &StaticPod, name: &str) {
        let newest = instances(self.observed.containers, pod, name).pop();
        if newest.is_some_and(is_running) || self.held(pod) {
            return;
        }
        let Some(newest) = newest else { return self.launch(pod, name, 0) };
        match ended(newest) {
            None => self.start(name, &newest.id),
            Some((0, _)) => self.launch(pod, name, attempt_of(newest) + 1),
            Some((_, ended_at)) => {
                if self.may_restart(pod, name, newest, ended_at) {
                    self.launch(pod, name, attempt_of(newest) + 1);
                }
            }
        }
    }

    /// Whether the container runs and has passed its start-up probe.
    fn has_started(&self, pod: &StaticPod, name: &str) -> bool {
        let newest = instances(self.observed.containers, pod, name).pop().filter(|newest| is_running(newest));
        newest.is_some_and(|newest| match self.observed.health.get(&newest.id) {
            Some(health) => health.started && health.post_start.is_none(),
            None => pod.container(name).is_some_and(|container| container.startup_probe.is_none()),
        })
    }

    /// Sees to a container that is to go on running; `false` while those after it have to wait for its `postStart` hook.
    fn lasting(&mut self, pod: &StaticPod, name: &str) -> bool {
        self.out.waiting.remove(name);
        let Some(newest) = instances(self.observed.containers, pod, name).pop() else {
            // The container may be made while the pod is held: when the hold ends, only the start remains.
            let held = self.held(pod);
            if !held || (!pod.needs_sandbox() && pod.init_containers().is_empty()) {
                self.launch(pod, name, 0);
            }
            return true;
        };
        if is_running(newest) {
            return self.running(pod, name, newest);
        }
        if let Some((code, ended_at)) = ended(newest) {
            let restarts = pod.restart_policy_of(name).restarts(code);
            if restarts && !self.held(pod) && self.may_restart(pod, name, newest, ended_at) {
                self.launch(pod, name, attempt_of(newest) + 1);
            }
        } else if !self.held(pod) {
            self.start(name, &newest.id);
            return pod.container(name).and_then(hook::post_start).is_none();
        }
        true
    }

    /// The same of one that runs: it is stopped when its hook or a probe has failed.
    fn running(&mut self, pod: &StaticPod, name: &str, container: &Container) -> bool {
        let Some(health) = self.observed.health.get(&container.id) else { return true };
        let (grace, why) = match (&health.post_start, &health.failed) {
            (Some(PostStart::Runs), _) => {
                self.wait(name, "ContainerCreating", &format!("the postStart hook of {name} runs"), None);
                return false;
            }
            (Some(PostStart::Failed(why)), _) => (pod.grace(), format!("FailedPostStartHook: {why}")),
            (None, Some((kind, why))) => {
                let probe = pod.container(name).and_then(|container| match kind {
                    ProbeKind::Startup => container.startup_probe.as_ref(),
                    _ => container.liveness_probe.as_ref(),
                });
                let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
                (own.map_or_else(|| pod.grace(), |seconds| grace(Some(seconds))), why.clone())
            }
            (None, None) => return true,
        };
        self.stop(vec![Stop { container: name.to_owned(), id: container.id.clone(), grace, turn: 0, why }]);
        true
    }

    /// Whether `plinth.dev/after` keeps the pod from its first start.
    fn held(&mut self, pod: &StaticPod) -> bool {
        if self.out.state.released {
            return false;
        }
        let since = *self.out.state.held_since.get_or_insert(self.now);
        let now = self.now;
        let holding: Vec<_> = self
            .observed
            .unready
            .iter()
            .map(|other| (other, after(other.started_at.unwrap_or(since), other.budget)))
            .filter(|(_, until)| now < *until)
            .collect();
        let Some(until) = holding.iter().map(|(_, until)| *until).min() else {
            self.out.state.released = true;
            return false;
        };
        let names: Vec<_> = holding
            .iter()
            .map(|(other, _)| match other.reason.as_str() {
                "" => other.key.name.clone(),
                reason => format!("{} ({reason})", other.key.name),
            })
            .collect();
        let message = format!("waits for {}", names.join(", "));
        for container in pod.all_containers() {
            self.wait(&container.name, "ContainerCreating", &message, None);
        }
        self.wake(until);
        true
    }

    /// Crash back-off, in the kubelet's way: the first restart is at once, exit code 0 counts as well, and a
    /// container that ran for long enough starts over. A dependency that came back since cuts it short.
    fn may_restart(&mut self, pod: &StaticPod, name: &str, dead: &Container, ended_at: Timestamp) -> bool {
        let mut delay = self.timings.crash_initial;
        if let Some(crash) = self.out.state.crashes.get(name) {
            if crash.dead == dead.id {
                return true;
            }
            if between(crash.since, ended_at) <= self.timings.crash_reset {
                let until = after(ended_at, crash.delay);
                let cut_short = self.observed.dependency_ready_at.is_some_and(|ready_at| ready_at > ended_at);
                // A clock that was set back must not stretch the wait.
                if ended_at <= self.now && self.now < until && !cut_short {
                    let message = format!(
                        "back-off {}s restarting failed container={name} pod={}_{}({})",
                        crash.delay.as_secs(),
                        pod.key.name,
                        pod.key.namespace,
                        pod.uid
                    );
                    self.wait(name, "CrashLoopBackOff", &message, Some(until));
                    return false;
                }
                delay = (crash.delay * 2).min(self.timings.crash_max);
            }
        }
        let crash = Crash { dead: dead.id.clone(), delay, since: self.now };
        self.out.state.crashes.insert(name.to_owned(), crash);
        true
    }

    /// Gets a container made, image first.
    fn launch(&mut self, pod: &StaticPod, name: &str, attempt: u32) {
        if self.blocked(name) {
            return;
        }
        let policy = pod.container(name).and_then(|container| container.image_pull_policy.as_deref());
        let recheck = self.out.state.missing.get(name).map(|since| after(*since, self.timings.image_recheck));
        let failure = self.out.state.pulls.get(name).filter(|failure| self.now < failure.retry_at).cloned();
        match (policy, recheck) {
            (Some("Never"), Some(recheck)) if self.now < recheck => {
                let message = "the image is not present, and imagePullPolicy is Never";
                return self.wait(name, "ErrImageNeverPull", message, Some(recheck));
            }
            (Some("Always"), _) if !self.out.state.pulled.contains(name) => return self.pull(name, failure, None),
            (Some("Never" | "Always"), _) => {}
            // While no pull is due, the image is looked for again: somebody may bring it by hand.
            (_, Some(recheck)) if failure.is_none() || self.now < recheck => {
                return self.pull(name, failure, Some(recheck));
            }
            _ => {}
        }
        if self.unsettled() {
            return self.wait(name, "ContainerCreating", "the manifest has just changed", None);
        }
        self.out.state.uids.insert(pod.uid.clone());
        self.out.actions.push(Action::Create { container: name.to_owned(), attempt });
    }

    /// Whether the next edit may be about to come.
    fn unsettled(&mut self) -> bool {
        let (arrived, edited) = (self.out.state.arrived, self.out.state.edited);
        let until = after(arrived, EDITS_SETTLE);
        // A clock that was set back must not stretch the wait.
        let unsettled = edited && arrived <= self.now && self.now < until;
        if unsettled {
            self.wake(until);
        }
        unsettled
    }

    fn pull(&mut self, name: &str, failure: Option<Failure>, recheck: Option<Timestamp>) {
        if let Some(failure) = failure {
            let reason = if failure.count > 1 { "ImagePullBackOff" } else { failure.reason };
            let until = recheck.map_or(failure.retry_at, |recheck| recheck.min(failure.retry_at));
            self.wait(name, reason, &failure.message, Some(until));
        } else {
            self.wait(name, "ContainerCreating", "the image is being pulled", None);
            self.out.actions.push(Action::Pull { container: name.to_owned() });
        }
    }

    fn start(&mut self, name: &str, id: &str) {
        if !self.blocked(name) {
            self.out.actions.push(Action::Start { container: name.to_owned(), id: id.to_owned() });
        }
    }

    /// Whether a failed call for this container must not be repeated yet.
    fn blocked(&mut self, name: &str) -> bool {
        let Some(failure) = self.out.state.failures.get(name).filter(|failure| self.now < failure.retry_at).cloned()
        else {
            return false;
        };
        self.wait(name, failure.reason, &failure.message, Some(failure.retry_at));
        true
    }

    fn stop(&mut self, stops: Vec<Stop>) {
        let (blocked, mut stops): (Vec<_>, Vec<_>) = stops.into_iter().partition(|stop| self.blocked(&stop.container));
        // Nobody goes before those whose turn is earlier.
        let last = blocked.iter().map(|stop| stop.turn).min();
        stops.retain(|stop| last.is_none_or(|last| stop.turn <= last));
        if !stops.is_empty() {
            self.out.actions.push(Action::Stop(stops));
        }
    }

    /// Stops those that run: sidecars after the regular containers and in reverse order, the sandbox after all others;
    /// `false` when none runs.
    fn stop_running(&mut self, containers: &[&Container], why: &str) -> bool {
        let running: Vec<_> = containers.iter().copied().filter(|container| is_running(container)).collect();
        let any = !running.is_empty();
        let (sandboxes, inhabitants): (Vec<_>, Vec<_>) = running.into_iter().partition(|c| name_of(c) == SANDBOX);
        let places: BTreeSet<_> = inhabitants.iter().filter_map(|container| place_of(container)).collect();
        let turn = |container: &Container| place_of(container).map_or(0, |place| places.range(place..).count());
        let mut stops: Vec<_> = if inhabitants.is_empty() { sandboxes } else { inhabitants }
            .into_iter()
            .map(|container| Stop {
                container: name_of(container).to_owned(),
                id: container.id.clone(),
                grace: if name_of(container) == SANDBOX { grace(Some(0)) } else { grace_of(container) },
                turn: turn(container),
                why: why.to_owned(),
            })
            .collect();
        stops.sort_by_key(|stop| stop.turn);
        self.stop(stops);
        any
    }

    /// Removes all of these that no failed call keeps waiting.
    fn remove_all(&mut self, containers: &[&Container]) {
        for container in containers {
            if !self.blocked(name_of(container)) {
                self.out.actions.push(Action::Remove { id: container.id.clone() });
            }
        }
    }

    fn remember_directories(&mut self, containers: &[&Container]) {
        self.out.state.uids.extend(containers.iter().map(|container| uid_of(container).to_owned()));
    }

    /// Of each container the newest dead instance stays, for its logs; of sandboxes only the newest one.
    fn collect_garbage(&mut self, pod: &StaticPod) {
        let names = pod.all_containers().map(|container| container.name.as_str()).chain([SANDBOX]);
        for name in names.collect::<Vec<_>>() {
            let mut dead: Vec<_> =
                instances(self.observed.containers, pod, name).into_iter().filter(|c| ended(c).is_some()).collect();
            let newest_runs = instances(self.observed.containers, pod, name).last().is_some_and(|c| is_running(c));
            if !(name == SANDBOX && newest_runs) {
                dead.pop();
            }
            if !dead.is_empty() {
                self.remove_all(&dead);
            }
        }
        let (kept, stale) = std::mem::take(&mut self.out.state.uids).into_iter().partition(|uid| *uid == pod.uid);
        self.out.state.uids = kept;
        let stale: BTreeSet<String> = stale;
        self.out.actions.extend(stale.into_iter().map(|uid| Action::Discard { uid }));
    }

    fn wait(&mut self, name: &str, reason: &'static str, message: &str, until: Option<Timestamp>) {
        self.out.waiting.insert(name.to_owned(), Waiting { reason, message: message.to_owned(), until });
        if let Some(until) = until {
            self.wake(until);
        }
    }

    fn wake(&mut self, at: Timestamp) {
        self.out.wake_at = Some(self.out.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

fn grace_of(container: &Container) -> Duration {
    grace(container.labels.get(GRACE_LABEL).and_then(|seconds| seconds.parse().ok()))
}

/// Of a sidecar: its place among the init containers.
fn place_of(container: &Container) -> Option<u32> {
    container.labels.get(SIDECAR_LABEL)?.parse().ok()
}

fn after(at: Timestamp, delay: Duration) -> Timestamp {
    SignedDuration::try_from(delay).ok().and_then(|delay| at.checked_add(delay).ok()).unwrap_or(Timestamp::MAX)
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// The wait of a back-off that has doubled `times`.
pub(super) fn doubled(initial: Duration, times: u32, max: Duration) -> Duration {
    initial.saturating_mul(2_u32.saturating_pow(times)).min(max)
}

#[cfg(test)]
mod tests;
