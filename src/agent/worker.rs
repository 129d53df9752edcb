//! One task per pod name: looks, decides with [`step`], acts, and looks again.
//!
//! # Guarantees
//! - Two actions of one pod never overlap; pods do not wait for each other.
//! - The newest wanted spec counts: it is read before every decision, and a pull for an older one is given up.
//! - What is known of a container was said by the runtime after our last action on it. Events and lists only say where
//!   to look.
//!
//! # Failure
//! A call that fails is tried again with back-off and shown in the status. When the runtime does not answer at all,
//! the worker waits until the agent has a fresh list.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, LifecycleHandler};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::blocking::apart;
use super::board::{Answer, Board, Doing, LastWords, Snapshot};
use super::hook;
use super::ledger::{LedgerError, Writer};
use super::logfile::LogDirectories;
use super::pod::{DEFAULT_BUDGET, LEAST_GRACE, Order, PodKey, StaticPod};
use super::probe::{Health, Outcome, PostStart, ProbeKind, Prober, Report, Target, Watch};
use super::source::memory::{is_remembered, recall_pod, remember};
use super::step::{
    Action, Observed, PodState, SANDBOX, Step, Stop, Timings, Unready, attempt_of, belongs_to, instances, is_running,
    name_of, step, uid_of,
};
use super::translate::{self, Context, LogLimits, Node};
use super::{lookup, message, ports, projection, seccomp, volume};
use crate::clock::Clock;
use crate::fsx::FsError;
use crate::journal::{Creation, Record};
use crate::logline;
use crate::proc::Proc;
use crate::runtime::{Container, EventKind, PullProgress, Runtime, RuntimeError, State};

mod replace;

use self::replace::Surge;

/// What all workers of an agent share.
pub struct Shared<R> {
    /// The runtime.
    pub runtime: Arc<R>,
    /// Time.
    pub clock: Clock,
    /// Waiting times.
    pub timings: Timings,
    /// Value of the ownership label.
    pub agent_id: String,
    /// The node.
    pub node: Node,
    /// Where pod directories are.
    pub pods: PathBuf,
    /// Where the last proven specs are.
    pub proven: PathBuf,
    /// The agent's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The node's processes.
    pub proc: Proc,
    /// Where the node's seccomp profiles are.
    pub seccomp: PathBuf,
    /// Image of sandboxes.
    pub pause_image: String,
    /// What is kept of the containers' logs.
    pub log_limits: LogLimits,
    /// When the host was booted.
    pub booted_at: Timestamp,
    /// Where creations are recorded.
    pub ledger: Writer,
    /// Where links to logs are.
    pub logs: LogDirectories,
    /// Performs probes.
    pub prober: Prober<R>,
    /// Where snapshots go.
    pub board: Arc<Board>,
}

impl<R> Shared<R> {
    /// Removes what is left on the disk of the pod `uid`, which has no containers any more. Its directory goes last: as
    /// long as it is there, whoever comes after a crash knows that the rest may be, too.
    pub async fn discard(&self, uid: &str) -> Result<(), FsError> {
        let (logs, ledger, pods, uid) = (self.logs.clone(), self.ledger.clone(), self.pods.clone(), uid.to_owned());
        let discard = move || {
            let gone = logs.discard(&uid)?;
            Ok((gone, volume::discard(&pods, &uid)))
        };
        let (gone, discarded) = apart(discard).await?;
        ledger.note(gone.into_iter().map(|what| Record::Gone { what }).collect());
        discarded
    }
}

/// What a worker is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// Run this.
    Run {
        /// The pod.
        pod: Arc<StaticPod>,
        /// What it waits for.
        order: Order,
        /// Another pod waits for this one.
        eager: bool,
    },
    /// Remove what is there.
    Remove,
    /// Leave alone what is there: its source cannot be read.
    Keep,
}

impl Wanted {
    /// UID of the pod to run.
    pub fn uid(&self) -> Option<&str> {
        match self {
            Self::Run { pod, .. } => Some(&pod.uid),
            Self::Remove | Self::Keep => None,
        }
    }

    /// Whether what other pods answer matters.
    fn depends_on_others(&self) -> bool {
        matches!(self, Self::Run { order, .. } if !(order.wait_for.is_empty() && order.uses.is_empty()))
    }
}

/// What a worker is told between decisions.
#[derive(Debug)]
pub enum Message {
    /// Something happened to a container.
    Look(String, EventKind),
    /// The pod's containers in a fresh list; the runtime answers.
    Listed(Vec<Container>),
    /// The runtime answers after it was away; a list follows. What ended meanwhile did not crash by itself.
    Reconnected,
}

/// The task of one pod name.
pub struct Worker<R> {
    surge: Surge,
    /// The spec that counts: the file's, or the proven one in its place.
    effective: Option<Arc<StaticPod>>,
    shared: Arc<Shared<R>>,
    key: PodKey,
    seen: Timestamp,
    wanted: watch::Receiver<Wanted>,
    messages: mpsc::UnboundedReceiver<Message>,
    reports: mpsc::UnboundedReceiver<Report>,
    report_to: mpsc::UnboundedSender<Report>,
    containers: BTreeMap<String, Container>,
    health: BTreeMap<String, Health>,
    watches: BTreeMap<String, Watching>,
    last_words: BTreeMap<String, LastWords>,
    /// The `postStart` hooks that run, by container id.
    hooks: JoinSet<(String, Result<(), String>)>,
    state: PodState,
    /// The runtime does not answer; wait for a list.
    away: bool,
    /// Hash of the spec whose manifest is kept on disk.
    remembered: String,
    eager_reason: String,
    /// Hash of a spec, and when its containers were first seen running.
    first_started: Option<(String, Timestamp)>,
    ready_at: Option<Timestamp>,
    /// What ledger and log links were last brought up to.
    booked: Booked,
    /// Brings them up to date, beside everything else; at most one at a time.
    bookkeeper: JoinSet<Result<Booked, BookError>>,
    /// The last attempt failed; tried again with the next list.
    books_failed: bool,
}

/// The log of each container, by id, as far as known.
type Booked = BTreeMap<String, Option<PathBuf>>;

/// Ledger and log links could not be brought up to date. Nothing but they is the worse for it.
#[derive(Debug, thiserror::Error)]
enum BookError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Files(#[from] FsError),
}

/// A hook, ready to be performed.
struct PreStop {
    handler: LifecycleHandler,
    spec: Spec,
    target: Target,
}

fn gone_containers<'a>(ids: impl Iterator<Item = &'a String>) -> Vec<Record> {
    ids.map(|id| Record::Gone { what: Creation::Container { id: id.clone() } }).collect()
}

struct Watching {
    watch: Watch,
    eager: bool,
    answered: bool,
}

/// Performs a `preStop` hook within the grace. Whatever comes of it, the container is stopped afterwards.
async fn pre_stop<R: Runtime>(prober: &Prober<R>, hook: &PreStop, stop: &Stop) {
    let result = timeout(stop.grace, hook::perform(prober, &hook.handler, &hook.spec, &hook.target)).await;
    let why = match result {
        Ok(Ok(())) => return,
        Ok(Err(why)) => why,
        Err(_) => format!("no end within {} s", stop.grace.as_secs()),
    };
    tracing::warn!(container = stop.container, id = stop.id, why, "the preStop hook failed");
}

/// Stops these: their `preStop` hooks begin at once, and count against the grace like the wait for earlier turns.
async fn end_all<R: Runtime>(
    shared: Arc<Shared<R>>,
    stops: Vec<Stop>,
    hooks: Vec<Option<PreStop>>,
) -> Vec<Result<(), RuntimeError>> {
    let since = Instant::now();
    let shared = &shared;
    let (hooks, mut ends): (Vec<_>, Vec<_>) = stops
        .iter()
        .zip(&hooks)
        .map(|(stop, hook)| {
            let (ended, end) = oneshot::channel::<()>();
            let hook = async move {
                if let Some(hook) = hook {
                    pre_stop(&shared.prober, hook, stop).await;
                }
                drop(ended);
            };
            (hook, end)
        })
        .unzip();
    let turns = async {
        let mut results = Vec::new();
        for turn in stops.chunk_by(|one, other| one.turn == other.turn) {
            let ends = ends.drain(..turn.len());
            let stopped = turn.iter().zip(ends).map(async |(stop, end)| {
                // An error is what the end of the hook looks like.
                let _ = end.await;
                let left = stop.grace.saturating_sub(since.elapsed()).max(LEAST_GRACE);
                match shared.runtime.stop(&stop.id, left).await {
                    Err(RuntimeError::NoSuchContainer(_)) => Ok(()),
                    result => result,
                }
            });
            results.extend(join_all(stopped).await);
            if results.iter().any(Result::is_err) {
                break;
            }
        }
        results
    };
    tokio::join!(join_all(hooks), turns).1
}

impl<R: Runtime> Worker<R> {
    /// A worker for `key` that starts from `containers`.
    pub fn new(
        shared: Arc<Shared<R>>,
        key: PodKey,
        wanted: watch::Receiver<Wanted>,
        messages: mpsc::UnboundedReceiver<Message>,
        containers: Vec<Container>,
    ) -> Self {
        let (report_to, reports) = mpsc::unbounded_channel();
        Self {
            surge: Surge::default(),
            effective: None,
            seen: shared.clock.now(),
            shared,
            key,
            wanted,
            messages,
            reports,
            report_to,
            containers: containers.into_iter().map(|container| (container.id.clone(), container)).collect(),
            health: BTreeMap::new(),
            watches: BTreeMap::new(),
            last_words: BTreeMap::new(),
            hooks: JoinSet::new(),
            state: PodState::default(),
            away: false,
            remembered: String::new(),
            eager_reason: String::new(),
            first_started: None,
            ready_at: None,
            booked: Booked::new(),
            bookkeeper: JoinSet::new(),
            books_failed: false,
        }
    }

    /// Works until the pod is removed and gone, or the agent is.
    pub async fn run(mut self) {
        let mut answers = self.shared.board.answers();
        loop {
            self.take_reports();
            while let Some(Ok((id, result))) = self.hooks.try_join_next() {
                self.take_hook(&id, result);
            }
            let wanted = self.wanted.borrow_and_update().clone();
            let wanted = self.surged(wanted).await;
            self.tend_probes(&wanted);
            let decision = self.decide(&wanted, &answers.borrow_and_update().clone());
            self.state = decision.state.clone();
            self.answer(&wanted, &decision);
            self.publish(&wanted, &decision, None);
            for action in &decision.actions {
                if !self.perform(action, &wanted, &decision).await {
                    break;
                }
            }
            if decision.gone {
                self.shared.ledger.note(gone_containers(self.booked.keys()));
                break;
            }
            if !decision.actions.is_empty() {
                continue;
            }
            if self.afterwards(&wanted).await {
                self.publish(&wanted, &decision, None);
            }
            let now = self.shared.clock.now();
            let nap = decision.wake_at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
            let nap = nap.into_iter().chain(self.surge.poll()).min();
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                _ = answers.changed(), if wanted.depends_on_others() => {}
                message = self.messages.recv() => match message {
                    Some(message) => self.take_messages(message).await,
                    None => return,
                },
                Some(report) = self.reports.recv() => self.take_report(&report),
                Some(Ok((id, result))) = self.hooks.join_next() => self.take_hook(&id, result),
                Some(Ok(result)) = self.bookkeeper.join_next() => self.take_books(result),
                Some(ended) = self.surge.ended() => self.take_aside(ended).await,
                () = sleep(nap.unwrap_or_default()), if nap.is_some() => {}
            }
        }
        self.shared.board.forget(&self.key);
    }

    fn decide(&self, wanted: &Wanted, answers: &BTreeMap<PodKey, Answer>) -> Step {
        let unchanged = || Step { state: self.state.clone(), ..Step::default() };
        if self.away {
            return unchanged();
        }
        let (pod, order) = match wanted {
            Wanted::Run { pod, order, .. } => (Some(pod.as_ref()), Some(order)),
            Wanted::Remove => (None, None),
            Wanted::Keep => return unchanged(),
        };
        let mut unready = Vec::new();
        let used = order.iter().flat_map(|order| &order.uses);
        let mut dependency_ready_at = used.filter_map(|key| answers.get(key)?.ready_at).max();
        for key in order.iter().flat_map(|order| &order.wait_for) {
            let answer = answers.get(key);
            if let Some(at) = answer.and_then(|answer| answer.ready_at) {
                dependency_ready_at = dependency_ready_at.max(Some(at));
            } else {
                unready.push(Unready {
                    key: key.clone(),
                    started_at: answer.and_then(|answer| answer.started_at),
                    // Its worker has not spoken yet, but will.
                    budget: answer.map_or(DEFAULT_BUDGET, |answer| answer.budget),
                    reason: answer.map(|answer| answer.reason.clone()).unwrap_or_default(),
                });
            }
        }
        let shown = self.surge.hides().then(|| {
            let shown =
                self.containers.values().filter(|container| pod.is_none_or(|pod| self.surge.shows(container, pod)));
            shown.map(|container| (container.id.clone(), container.clone())).collect()
        });
        let observed = Observed {
            containers: shown.as_ref().unwrap_or(&self.containers),
            health: &self.health,
            unready: &unready,
            dependency_ready_at,
            booted_at: self.shared.booted_at,
        };
        let mut decision = step(pod, &observed, self.shared.clock.now(), &self.state, &self.shared.timings);
        // It does not know of those that it was not shown.
        let in_use = |uid: &str| self.containers.values().any(|container| uid_of(container) == uid);
        decision.actions.retain(|action| !matches!(action, Action::Discard { uid } if in_use(uid)));
        decision
    }

    /// Performs one action; `false` when the rest of the decision no longer holds.
    async fn perform(&mut self, action: &Action, wanted: &Wanted, decision: &Step) -> bool {
        let pod = match wanted {
            Wanted::Run { pod, .. } => Some(Arc::clone(pod)),
            Wanted::Remove | Wanted::Keep => None,
        };
        let (name, succeeded) = match (action, pod) {
            (Action::Stop(stops), _) => {
                if self.serves_meanwhile(stops, wanted) {
                    self.stop_aside(stops, wanted).await;
                    return true;
                }
                self.publish(wanted, decision, Some(Doing::Stopping(stops.clone())));
                ("stop", self.stop(stops, wanted).await)
            }
            (Action::Remove { id }, _) => ("remove", self.remove(id).await),
            (Action::Discard { uid }, _) => {
                // Or it would make links to what is about to go.
                while let Some(Ok(result)) = self.bookkeeper.join_next().await {
                    self.take_books(result);
                }
                if let Err(error) = self.shared.discard(uid).await {
                    tracing::warn!(pod = %self.key, %error, "cannot remove the directory of a pod");
                }
                ("discard", true)
            }
            (Action::Pull { container }, Some(pod)) => {
                let doing = Doing::Pulling { container: container.clone(), image: self.image(&pod, container) };
                self.publish(wanted, decision, Some(doing));
                self.keep_books();
                ("pull", self.pull(&pod, container).await)
            }
            (Action::Create { container, attempt }, Some(pod)) => {
                ("create", self.create(&pod, container, *attempt).await)
            }
            (Action::Start { container, id }, Some(pod)) => ("start", self.start(&pod, container, id).await),
            // A removal neither pulls nor creates nor starts.
            (Action::Pull { .. } | Action::Create { .. } | Action::Start { .. }, None) => return false,
        };
        self.shared.board.metrics.acted(name, succeeded);
        succeeded
    }

    /// Stops these, and waits for it.
    async fn stop(&mut self, stops: &[Stop], wanted: &Wanted) -> bool {
        let results = self.ending(stops, wanted).await;
        self.take_ends(stops, results).await
    }

    /// What stops these, without the worker.
    fn ending(
        &mut self,
        stops: &[Stop],
        wanted: &Wanted,
    ) -> impl Future<Output = Vec<Result<(), RuntimeError>>> + Send + 'static {
        for stop in stops {
            // No probe is asked of a container that is being stopped.
            self.watches.remove(&stop.id);
            tracing::info!(pod = %self.key, container = stop.container, grace = ?stop.grace, why = stop.why, "stopping");
        }
        let hooks = stops.iter().map(|stop| self.pre_stop(&stop.id, wanted)).collect();
        end_all(Arc::clone(&self.shared), stops.to_vec(), hooks)
    }

    async fn take_ends(&mut self, stops: &[Stop], results: Vec<Result<(), RuntimeError>>) -> bool {
        let all = results.iter().all(Result::is_ok);
        for (stop, result) in stops.iter().zip(results) {
            match result {
                Ok(()) => self.state.succeeded(&stop.container),
                Err(error) => self.failed(&stop.container, "KillContainerError", &error),
            }
            self.look(&stop.id).await;
        }
        all
    }

    async fn remove(&mut self, id: &str) -> bool {
        let container = self.containers.get(id).cloned();
        let name = container.as_ref().map(|container| name_of(container).to_owned()).unwrap_or_default();
        match self.shared.runtime.remove(id).await {
            Ok(()) | Err(RuntimeError::NoSuchContainer(_)) => {
                self.forget(id);
                if let Some(container) = container
                    && let Err(error) =
                        message::discard(&self.shared.pods, uid_of(&container), &name, attempt_of(&container))
                {
                    tracing::warn!(pod = %self.key, %error, "cannot remove a termination message");
                }
                true
            }
            Err(error) => {
                self.failed(&name, "RemoveContainerError", &error);
                false
            }
        }
    }

    /// The image of a container, or of the sandbox.
    fn image(&self, pod: &StaticPod, name: &str) -> String {
        match pod.container(name) {
            Some(container) => container.image.clone().unwrap_or_default(),
            None => self.shared.pause_image.clone(),
        }
    }

    async fn pull(&mut self, pod: &StaticPod, name: &str) -> bool {
        let image = self.image(pod, name);
        tracing::info!(pod = %self.key, image, "pulling");
        let runtime = Arc::clone(&self.shared.runtime);
        let progress = |_: PullProgress| {};
        let mut pull = pin!(runtime.pull(&image, &progress));
        let now = self.shared.clock.now();
        // What is being tried has its time, and none is left when what served meanwhile ends.
        let left = self.surge.until().map(|until| Duration::try_from(until.duration_since(now)).unwrap_or_default());
        let mut late = pin!(sleep(left.unwrap_or_default()));
        let served = self.has_proven();
        let result = loop {
            tokio::select! {
                result = &mut pull => break result,
                _ = self.wanted.changed() => return false,
                () = &mut late, if left.is_some() => return false,
                Some(message) = self.messages.recv(), if self.surge.is_trying() => {
                    self.take_messages(message).await;
                    if served && !self.has_proven() {
                        return false;
                    }
                }
            }
        };
        match result {
            Ok(()) => {
                self.state.pulled(name);
                true
            }
            Err(error) if error.is_unreachable() => {
                self.lost(&error);
                false
            }
            Err(error @ RuntimeError::InvalidImage(_)) => {
                self.failed(name, "InvalidImageName", &error);
                false
            }
            Err(error) => {
                tracing::warn!(pod = %self.key, image, %error, "cannot pull");
                self.state.pull_failed(name, error.to_string(), self.shared.clock.now(), &self.shared.timings);
                false
            }
        }
    }

    async fn create(&mut self, pod: &StaticPod, name: &str, attempt: u32) -> bool {
        // Whoever stops it later needs its hook, whatever happens to the file of the manifest.
        if pod.container(name).and_then(hook::pre_stop).is_some() {
            self.remember(pod);
        }
        if let Some(why) = self.port_conflict(pod, name).await {
            self.fail(name, "ContainerCreating", why);
            return false;
        }
        let spec = match self.translate(pod, name, attempt).await {
            Ok(spec) => spec,
            Err((reason, message)) => {
                self.fail(name, reason, message);
                return false;
            }
        };
        let shared = Arc::clone(&self.shared);
        let id = match shared.runtime.create(&spec).await {
            Ok(id) => id,
            Err(RuntimeError::NoSuchImage(_)) => {
                self.state.image_missing(name, shared.clock.now());
                return false;
            }
            Err(RuntimeError::NameTaken(taken)) => return self.adopt(name, &taken).await,
            Err(error @ RuntimeError::InvalidImage(_)) => {
                self.failed(name, "InvalidImageName", &error);
                return false;
            }
            Err(error) => {
                self.failed(name, "CreateContainerError", &error);
                return false;
            }
        };
        self.state.created(name);
        if attempt > 0 {
            shared.board.metrics.restarted(&self.key.namespace, &self.key.name, name);
        }
        let container = Container {
            id: id.clone(),
            name: spec.name,
            labels: spec.labels,
            image: spec.image,
            image_id: String::new(),
            state: State::Created { error: None },
            created_at: shared.clock.now(),
            ip: None,
            log_path: None,
        };
        self.containers.insert(id, container);
        true
    }

    /// Why the pod's sandbox cannot have its ports of the host.
    async fn port_conflict(&self, pod: &StaticPod, name: &str) -> Option<String> {
        if name != SANDBOX || pod.host_network() || ports::of(pod).is_empty() {
            return None;
        }
        let (pod, snapshots, proc) = (pod.clone(), self.shared.board.pods(), self.shared.proc.clone());
        let asked = tokio::task::spawn_blocking(move || ports::conflict(&pod, &snapshots, &proc)).await;
        // A question that failed is no reason not to try.
        asked.ok().flatten()
    }

    /// Our name is taken: by a container of ours that we did not know (its creation was answered too late), or by
    /// somebody else's.
    async fn adopt(&mut self, name: &str, taken: &str) -> bool {
        match self.shared.runtime.inspect(taken).await {
            Ok(Some(container)) if self.is_ours(&container) => {
                self.state.created(name);
                self.containers.insert(container.id.clone(), container);
                true
            }
            Ok(Some(container)) => {
                let message = format!("the name {taken} is taken by container {}, which is not ours", container.id);
                self.fail(name, "CreateContainerError", message);
                false
            }
            // Gone in between: once more.
            Ok(None) => true,
            Err(error) => {
                self.failed(name, "CreateContainerError", &error);
                false
            }
        }
    }

    async fn translate(
        &mut self,
        pod: &StaticPod,
        name: &str,
        attempt: u32,
    ) -> Result<crate::runtime::ContainerSpec, (&'static str, String)> {
        let sandbox = self.sandbox(pod).cloned();
        let pod_ip = if pod.host_network() {
            Some(self.shared.node.address)
        } else {
            sandbox.as_ref().and_then(|sandbox| sandbox.ip)
        };
        let mut context = Context {
            agent_id: &self.shared.agent_id,
            node: &self.shared.node,
            log_limits: self.shared.log_limits,
            sandbox: sandbox.as_ref().map(|sandbox| sandbox.id.as_str()),
            pod_ip,
            volumes: &BTreeMap::new(),
            sub_paths: &BTreeMap::new(),
            message_file: None,
            lookup: None,
            image_user: None,
            seccomp: None,
        };
        let config = |error: translate::TranslateError| ("CreateContainerConfigError", error.to_string());
        let Some(container) = pod.container(name) else {
            return translate::sandbox(pod, &self.shared.pause_image, attempt, &context).map_err(config);
        };
        let mut volumes = volume::prepare(pod, container, &self.shared.pods, &self.shared.ledger)
            .await
            .map_err(|error| ("ContainerCreating", error.to_string()))?;
        let group = pod.spec.security_context.as_ref().and_then(|security| security.fs_group);
        let group = group.and_then(|group| u32::try_from(group).ok());
        for (name, files) in projection::files(pod, container, &context).map_err(config)? {
            let path = projection::write(&self.shared.pods, &pod.uid, &name, &files, group)
                .map_err(|error| ("ContainerCreating", format!("volume `{name}`: {error}")))?;
            volumes.insert(name, path);
        }
        let wanted = translate::sub_paths(pod, container, &context).map_err(config)?;
        let sub_paths = volume::sub_paths(pod, container, &volumes, &wanted, &self.shared.ledger)
            .await
            .map_err(|error| ("CreateContainerConfigError", error.to_string()))?;
        let message_file = message::prepare(&self.shared.pods, &pod.uid, name, attempt)
            .map_err(|error| ("ContainerCreating", error.to_string()))?;
        let lookup = pod_ip.map(|address| lookup::write(&self.shared.pods, pod, address, &self.shared.node.dns));
        let lookup = lookup.transpose().map_err(|error| ("ContainerCreating", error.to_string()))?;
        let seccomp = translate::seccomp_file(pod, container).map(|file| seccomp::read(&self.shared.seccomp, file));
        let seccomp = seccomp.transpose().map_err(|error| ("CreateContainerError", error.to_string()))?;
        let user = if translate::needs_image_user(pod, container) {
            let image = container.image.as_deref().unwrap_or_default();
            let image = self.shared.runtime.image(image).await;
            image.ok().flatten().map(|image| image.user)
        } else {
            None
        };
        context.volumes = &volumes;
        context.sub_paths = &sub_paths;
        context.message_file = Some(&message_file);
        context.lookup = lookup.as_ref();
        context.image_user = user.as_deref();
        context.seccomp = seccomp.as_deref();
        translate::container(pod, container, attempt, &context).map_err(config)
    }

    async fn start(&mut self, pod: &StaticPod, name: &str, id: &str) -> bool {
        let result = self.shared.runtime.start(id).await;
        let started = result.is_ok();
        match result {
            Ok(()) => self.state.succeeded(name),
            Err(RuntimeError::NoSuchContainer(_)) => {}
            Err(error) => self.failed(name, "RunContainerError", &error),
        }
        self.look(id).await;
        if let Some(Container { state: State::Running { pid, .. }, .. }) = self.containers.get(id) {
            tracing::info!(pod = %self.key, container = name, id, pid, "started");
            if let Some(spec) = pod.container(name).filter(|_| started) {
                self.post_start(pod, spec, id);
            }
        }
        started
    }

    /// Begins the `postStart` hook of a container that has just been started.
    fn post_start(&mut self, pod: &StaticPod, spec: &Spec, id: &str) {
        let Some(handler) = hook::post_start(spec).cloned() else { return };
        let health = Health { post_start: Some(PostStart::Runs), ..Health::initial(spec) };
        self.health.insert(id.to_owned(), health);
        let (prober, spec, target) = (self.shared.prober.clone(), spec.clone(), self.target(pod, id));
        self.hooks.spawn(async move {
            let performed = AssertUnwindSafe(hook::perform(&prober, &handler, &spec, &target)).catch_unwind().await;
            // Or the pod would wait for its end for ever.
            (target.container_id, performed.unwrap_or_else(|_| Err("a defect of this program ended it".to_owned())))
        });
    }

    fn take_hook(&mut self, id: &str, result: Result<(), String>) {
        if let Err(why) = &result {
            tracing::warn!(pod = %self.key, id, why, "the postStart hook failed");
        }
        // Gone when the container ended meanwhile.
        if let Some(health) = self.health.get_mut(id) {
            health.post_start = result.err().map(PostStart::Failed);
        }
    }

    /// The `preStop` hook of a container, from the manifest that it was made from: the present one, or the one that
    /// is kept on disk.
    fn pre_stop(&self, id: &str, wanted: &Wanted) -> Option<PreStop> {
        let container = self.containers.get(id)?;
        let pod = match wanted {
            Wanted::Run { pod, .. } if belongs_to(container, pod) => Arc::clone(pod),
            _ => Arc::new(recall_pod(&self.shared.pods, uid_of(container), &self.shared.node.name)?),
        };
        // Without any grace there is no time for a hook.
        let in_time = belongs_to(container, &pod) && pod.spec.termination_grace_period_seconds != Some(0);
        let spec = pod.container(name_of(container)).filter(|_| in_time)?;
        let handler = hook::pre_stop(spec)?.clone();
        Some(PreStop { handler, spec: spec.clone(), target: self.target(&pod, id) })
    }

    /// Where a container of `pod` is asked.
    fn target(&self, pod: &StaticPod, id: &str) -> Target {
        let started_at = match self.containers.get(id).map(|container| &container.state) {
            Some(State::Running { started_at, .. }) => *started_at,
            _ => self.shared.clock.now(),
        };
        let address = self.sandbox(pod).and_then(|sandbox| sandbox.ip).filter(|_| !pod.host_network());
        Target { container_id: id.to_owned(), started_at, address: address.unwrap_or(self.shared.node.address) }
    }

    /// What can wait until nothing else is to be done. `true` when there is something new to show.
    async fn afterwards(&mut self, wanted: &Wanted) -> bool {
        if self.away {
            return false;
        }
        if let Wanted::Run { pod, .. } = wanted
            && self.containers.values().any(|container| belongs_to(container, pod))
        {
            self.remember(pod);
        }
        self.keep_books();
        let Wanted::Run { pod, .. } = wanted else { return false };
        let silent: Vec<_> = self
            .containers
            .values()
            .filter(|container| belongs_to(container, pod) && !self.last_words.contains_key(&container.id))
            .filter_map(|container| match &container.state {
                State::Exited(end) => Some((container.id.clone(), pod.container(name_of(container))?, end.exit_code)),
                _ => None,
            })
            .collect();
        for (id, spec, exit_code) in &silent {
            let log = match self.shared.runtime.logs(id, message::LOG_LINES).await {
                // Asked again when it is back: nobody else will know why the container ended.
                Err(error) if error.is_unreachable() => {
                    self.lost(&error);
                    break;
                }
                log => log.unwrap_or_default(),
            };
            let lines: Vec<_> = log.lines().map(str::to_owned).collect();
            let line = logline::most_telling(&lines).unwrap_or_default().trim().chars().take(400).collect();
            let attempt = self.containers.get(id).map_or(0, attempt_of);
            let message = message::read(&self.shared.pods, pod, spec, attempt, *exit_code, &log);
            self.last_words.insert(id.clone(), LastWords { line, message });
        }
        !silent.is_empty()
    }

    /// Keeps the manifest on disk for as long as the pod exists.
    fn remember(&mut self, pod: &StaticPod) {
        // Its directory may have gone and come back since, with the pod.
        if self.remembered != pod.hash || !is_remembered(&self.shared.pods, pod) {
            if let Err(error) = remember(&self.shared.pods, pod) {
                tracing::warn!(pod = %self.key, %error, "cannot keep the manifest");
            }
            self.remembered.clone_from(&pod.hash);
        }
    }

    /// Brings the ledger and the links to logs up to date with the containers there are. Who owns a container is said
    /// by its label; the ledger is for the day on which the runtime cannot be asked.
    fn keep_books(&mut self) {
        let present: Booked = self.containers.values().map(|c| (c.id.clone(), c.log_path.clone())).collect();
        if self.booked == present || !self.bookkeeper.is_empty() || self.books_failed {
            return;
        }
        let links = self.shared.logs.compare(&self.key, self.containers.values());
        let made = present.keys().filter(|id| !self.booked.contains_key(*id));
        let made = made.map(|id| Creation::Container { id: id.clone() }).chain(links.creations());
        let gone = self.booked.keys().filter(|id| !present.contains_key(*id));
        let records = made.map(|what| Record::Make { what }).chain(gone_containers(gone)).collect();
        let (ledger, logs) = (self.shared.ledger.clone(), self.shared.logs.clone());
        self.bookkeeper.spawn(async move {
            ledger.record(records).await?;
            let gone = apart(move || logs.perform(&links)).await?;
            ledger.note(gone.into_iter().map(|what| Record::Gone { what }).collect());
            Ok(present)
        });
    }

    fn take_books(&mut self, result: Result<Booked, BookError>) {
        match result {
            Ok(booked) => self.booked = booked,
            Err(error) => {
                tracing::warn!(pod = %self.key, %error, "cannot record the containers and link their logs");
                self.books_failed = true;
            }
        }
    }

    async fn take_messages(&mut self, first: Message) {
        let mut ids = BTreeSet::new();
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                // Echoes of our own actions need no second look.
                Message::Look(id, kind) => {
                    let known = self.containers.get(&id);
                    let echo = match kind {
                        EventKind::Started => known.is_some_and(is_running),
                        EventKind::Died => known.is_some_and(|c| matches!(c.state, State::Exited(_))),
                        EventKind::Removed => known.is_none(),
                        EventKind::Other => known.is_some(),
                    };
                    if !echo {
                        ids.insert(id);
                    }
                }
                Message::Reconnected => {
                    self.state.forgive();
                    self.surge.forgive();
                }
                Message::Listed(list) => {
                    self.away = false;
                    self.books_failed = false;
                    let differs = |c: &Container| self.containers.get(&c.id).is_none_or(|known| known.state != c.state);
                    ids.extend(list.iter().filter(|container| differs(container)).map(|c| c.id.clone()));
                    ids.extend(self.containers.keys().filter(|id| !list.iter().any(|c| c.id == **id)).cloned());
                }
            }
            next = self.messages.try_recv().ok();
        }
        for id in ids {
            self.look(&id).await;
        }
    }

    /// Asks the runtime what has become of a container.
    async fn look(&mut self, id: &str) {
        match self.shared.runtime.inspect(id).await {
            Ok(Some(container)) if self.is_ours(&container) => {
                self.containers.insert(container.id.clone(), container);
            }
            Ok(_) => self.forget(id),
            Err(error) => self.lost(&error),
        }
    }

    fn is_ours(&self, container: &Container) -> bool {
        use crate::runtime::labels::{AGENT, POD_NAME, POD_NAMESPACE};
        let is = |label: &str, value: &str| container.labels.get(label).is_some_and(|have| have == value);
        is(AGENT, &self.shared.agent_id) && is(POD_NAME, &self.key.name) && is(POD_NAMESPACE, &self.key.namespace)
    }

    fn forget(&mut self, id: &str) {
        self.containers.remove(id);
        self.last_words.remove(id);
        self.watches.remove(id);
        self.health.remove(id);
    }

    fn failed(&mut self, name: &str, reason: &'static str, error: &RuntimeError) {
        if error.is_unreachable() {
            self.lost(error);
        } else {
            self.fail(name, reason, error.to_string());
        }
    }

    fn fail(&mut self, name: &str, reason: &'static str, message: String) {
        tracing::warn!(pod = %self.key, container = name, reason, message, "failed");
        self.state.failed(name, reason, message, self.shared.clock.now(), &self.shared.timings);
    }

    fn lost(&mut self, error: &RuntimeError) {
        tracing::warn!(pod = %self.key, %error, "the container runtime is away");
        self.away = true;
        self.shared.board.lost.notify_one();
    }

    /// Starts the probes of containers that run, and ends those of containers that do not.
    fn tend_probes(&mut self, wanted: &Wanted) {
        let Wanted::Run { pod, eager, .. } = wanted else {
            self.watches.clear();
            return;
        };
        let mut running = BTreeMap::new();
        for container in self.containers.values().filter(|container| belongs_to(container, pod)) {
            let spec = pod.lasting_containers().find(|spec| spec.name == name_of(container));
            if let Some(spec) = spec.filter(|_| is_running(container)) {
                running.insert(container.id.clone(), spec);
            }
        }
        self.watches.retain(|id, _| running.contains_key(id));
        self.health.retain(|id, _| running.contains_key(id));
        if !self.surge.may_ask() {
            return;
        }
        for (id, spec) in running {
            let target = self.target(pod, &id);
            let prober = if self.surge.is_trying() { &self.shared.prober.steered() } else { &self.shared.prober };
            if self.health.entry(id.clone()).or_insert_with(|| Health::initial(spec)).post_start.is_some() {
                continue;
            }
            let watching = self.watches.entry(id).or_insert_with(|| Watching {
                watch: Watch::start(prober, spec, &target, &self.report_to),
                eager: false,
                answered: spec.readiness_probe.is_none(),
            });
            if *eager && !watching.eager {
                watching.eager = true;
                watching.watch.eager(prober, spec, &target, &self.report_to);
            }
        }
    }

    fn take_reports(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            self.take_report(&report);
        }
    }

    fn take_report(&mut self, report: &Report) {
        // Of a container that is being stopped or gone.
        let Some(watching) = self.watches.get_mut(&report.container_id) else { return };
        if report.eager {
            match &report.outcome {
                Outcome::Success | Outcome::Warning(_) => watching.answered = true,
                Outcome::Failure(why) | Outcome::Unknown(why) => self.eager_reason.clone_from(why),
            }
            return;
        }
        if matches!(report.outcome, Outcome::Failure(_)) {
            self.shared.board.metrics.probe_failed(&self.key.namespace, &self.key.name, report.kind);
        }
        // The eager question may have been asked before somebody waited; a passed probe says the same.
        if report.kind == ProbeKind::Readiness && report.outcome.is_success() {
            watching.answered = true;
        }
        if let Some(pod) = &self.effective
            && let Some(container) = self.containers.get(&report.container_id)
            && let Some(spec) = pod.container(name_of(container))
            && let Some(health) = self.health.get_mut(&report.container_id)
        {
            health.apply(spec, report);
        }
    }

    /// Tells those who wait for this pod whether it answers.
    fn answer(&mut self, wanted: &Wanted, decision: &Step) {
        let Wanted::Run { pod, eager: true, .. } = wanted else {
            self.ready_at = None;
            self.shared.board.answer(&self.key, None);
            return;
        };
        let mut reason = String::new();
        for spec in pod.containers() {
            let newest = instances(&self.containers, pod, &spec.name).pop();
            if let Some((id, State::Running { started_at, .. })) = newest.map(|c| (&c.id, &c.state)) {
                if self.first_started.as_ref().is_none_or(|(hash, _)| *hash != pod.hash) {
                    self.first_started = Some((pod.hash.clone(), *started_at));
                }
                if !self.watches.get(id).is_some_and(|watching| watching.answered) {
                    let why = self.eager_reason.as_str();
                    if why.is_empty() { "does not answer yet" } else { why }.clone_into(&mut reason);
                }
            } else {
                let waiting = decision.waiting.get(&spec.name);
                let why = waiting.map(|w| if w.message.is_empty() { w.reason } else { w.message.as_str() });
                why.unwrap_or("not running").clone_into(&mut reason);
            }
        }
        self.ready_at = if reason.is_empty() { self.ready_at.or_else(|| Some(self.shared.clock.now())) } else { None };
        let started_at = self.first_started.as_ref().filter(|(hash, _)| *hash == pod.hash).map(|(_, at)| *at);
        let answer = Answer { started_at, budget: pod.start_up_budget(), ready_at: self.ready_at, reason };
        self.shared.board.answer(&self.key, Some(answer));
    }

    fn sandbox(&self, pod: &StaticPod) -> Option<&Container> {
        instances(&self.containers, pod, SANDBOX).into_iter().rfind(|container| is_running(container))
    }

    fn publish(&self, wanted: &Wanted, decision: &Step, doing: Option<Doing>) {
        let (pod, remarks) = match wanted {
            Wanted::Run { pod, order, .. } => {
                (Some(Arc::clone(pod)), pod.warnings.iter().chain(&order.problems).cloned().collect())
            }
            Wanted::Remove => (None, Vec::new()),
            Wanted::Keep => (None, vec!["its source cannot be read; it is left as it is".to_owned()]),
        };
        self.shared.board.publish(Snapshot {
            key: self.key.clone(),
            pod,
            seen: self.seen,
            containers: self.containers.clone(),
            health: self.health.clone(),
            waiting: decision.waiting.clone(),
            last_words: self.last_words.clone(),
            remarks,
            doing,
            pulled: self.state.awaiting_creation().clone(),
            update: self.surge.update().cloned(),
        });
    }
}
