//! The effects of a replacement new-first: memory on disk, steering, and when the new one is asked.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Wanted, Worker};
use crate::agent::blocking::apart;
use crate::agent::entry::Keeper;
use crate::agent::message;
use crate::agent::pod::{PodKey, StaticPod};
use crate::agent::probe::{PostStart, port};
use crate::agent::status::Update;
use crate::agent::steer::{Program, Steering};
use crate::agent::step::{Stop, belongs_to, instances, is_running};
use crate::agent::surge::{self, Course, Facts, Memory, Rejection};
use crate::logline;
use crate::release::Component;
use crate::runtime::{Container, Runtime, RuntimeError, State};

/// How often it is looked whether the new one listens, and answers.
const POLL: Duration = Duration::from_millis(50);
/// How long the old one may take what was under way to it when the new one took over.
const HANDSHAKES: Duration = Duration::from_millis(500);

/// Where a replacement is.
#[derive(Default)]
pub(super) struct Surge {
    memory: Option<Memory>,
    recalled: bool,
    /// Nothing is kept on disk.
    forgotten: bool,
    /// Hash of a spec that cannot run beside the old one, and why.
    obstacle: Option<(String, String)>,
    /// Keeps clients away from the new one.
    steering: Option<Steering>,
    /// Keeps clients away from the old one, which an agent before this one has not come to stop.
    resumed: Option<Steering>,
    /// The spec that is being tried.
    tried: Option<Trial>,
    /// It listens.
    listens: bool,
    /// Those of another spec that are being stopped while this one serves.
    stopping: BTreeSet<String>,
    endings: JoinSet<Ended>,
    /// Keeps this host in the Service `kubernetes` while one of two API servers ends.
    keeper: Option<Keeper>,
    /// What is said of the file's spec, as long as it does not serve.
    update: Option<Update>,
}

struct Trial {
    hash: String,
    since: Timestamp,
    /// It fails unless it answers until then.
    until: Option<Timestamp>,
    /// Ids of its containers that have ended.
    ends: BTreeSet<String>,
}

/// Containers that were stopped beside everything else, with what came of it.
type Ended = (Vec<Stop>, Vec<Result<(), RuntimeError>>);

impl Surge {
    /// Whether some containers are none of the step's business.
    pub(super) fn hides(&self) -> bool {
        self.is_trying() || !self.stopping.is_empty()
    }

    /// Whether the step for `pod` sees `container`: not the others' while `pod` is being tried, nor those that are on
    /// their way out.
    pub(super) fn shows(&self, container: &Container, pod: &StaticPod) -> bool {
        belongs_to(container, pod) || !(self.is_trying() || self.stopping.contains(&container.id))
    }

    /// The next that have been stopped beside everything else.
    pub(super) async fn ended(&mut self) -> Option<Ended> {
        // An ending that panicked has stopped nothing; the next list tells.
        self.endings.join_next().await?.ok()
    }

    /// Whether the wanted spec is being tried, so that the others' containers are none of its business.
    pub(super) fn is_trying(&self) -> bool {
        self.tried.is_some()
    }

    /// What has ended did not end by itself: begin again.
    pub(super) fn forgive(&mut self) {
        self.tried = None;
    }

    /// Until when what is being tried has to answer, as far as that is known.
    pub(super) fn until(&self) -> Option<Timestamp> {
        self.tried.as_ref()?.until
    }

    /// Whether a question would reach the new one. Before it listens, the kernel gives it to somebody else.
    pub(super) fn may_ask(&self) -> bool {
        self.tried.is_none() || self.steering.is_none() || self.listens
    }

    /// The file's spec, where it is not the one that serves.
    pub(super) fn update(&self) -> Option<&Update> {
        self.update.as_ref()
    }

    /// When to look again, besides all other reasons.
    pub(super) fn poll(&self) -> Option<Duration> {
        self.is_trying().then_some(POLL)
    }
}

impl<R: Runtime> Worker<R> {
    /// What is to be run in the place of what the file says.
    pub(super) async fn surged(&mut self, wanted: Wanted) -> Wanted {
        // What an ending that panicked was about.
        if self.surge.endings.is_empty() {
            self.surge.stopping.clear();
        }
        let Wanted::Run { pod, mut order, eager } = wanted else {
            if wanted == Wanted::Remove {
                self.forget_surge().await;
            } else {
                // Clients stay where they are.
                self.surge.tried = None;
                self.surge.update = None;
            }
            self.effective = None;
            return wanted;
        };
        if !pod.surges() {
            self.forget_surge().await;
            self.effective = Some(Arc::clone(&pod));
            return Wanted::Run { pod, order, eager };
        }
        self.recall_surge().await;
        loop {
            self.see_who_listens(&pod).await;
            self.count_ends(&pod);
            let course = self.course(&pod);
            self.surge.update = match course {
                Course::Run => None,
                _ => Some(Update { uid: pod.uid.clone(), rejected: self.rejected(&pod) }),
            };
            if let Course::Try(until) = course {
                self.try_new(&pod, until);
                order.problems.push("the file's version is being tried".to_owned());
                self.effective = Some(Arc::clone(&pod));
                return Wanted::Run { pod, order, eager: true };
            }
            match course {
                Course::Steer => {
                    self.end_resumed().await;
                    match self.join(&pod).await {
                        Ok(steering) => self.surge.steering = Some(steering),
                        Err(why) => {
                            tracing::warn!(pod = %self.key, why, "cannot be replaced new-first; the old one goes first");
                            self.surge.obstacle = Some((pod.hash.clone(), why));
                        }
                    }
                }
                Course::Unsteer => {
                    tracing::warn!(pod = %self.key, "the old one has ended; the new one goes on as at a cold start");
                    self.unsteer(Duration::ZERO).await;
                }
                Course::Prove => self.prove(&pod).await,
                Course::Reject(reason) => {
                    let reason = self.with_last_words(&pod, reason).await;
                    self.reject(&pod, reason);
                }
                Course::Keep(remark) => {
                    self.surge.tried = None;
                    let proven = self.surge.memory.as_ref().map_or(&pod, |memory| &memory.proven);
                    let proven = Arc::clone(proven);
                    self.leave(&proven).await;
                    order.problems.push(remark);
                    self.effective = Some(Arc::clone(&proven));
                    return Wanted::Run { pod: proven, order, eager };
                }
                Course::Run | Course::Try(_) => {
                    self.surge.tried = None;
                    self.leave(&pod).await;
                    self.note_ready(&pod);
                    self.forget_rejected(&pod);
                    let obstacle = self.surge.obstacle.as_ref().filter(|(hash, _)| *hash == pod.hash);
                    order.problems.extend(obstacle.map(|(_, why)| format!("not replaced new-first: {why}")));
                    self.effective = Some(Arc::clone(&pod));
                    let eager = eager || !self.is_proven(&pod);
                    return Wanted::Run { pod, order, eager };
                }
            }
        }
    }

    /// Reads once what an earlier agent has kept, and goes on with the take-over in which it has ended.
    async fn recall_surge(&mut self) {
        if std::mem::replace(&mut self.surge.recalled, true) {
            return;
        }
        self.surge.memory = surge::recall(&self.shared.proven, &self.key, &self.shared.node.name);
        self.surge.forgotten = false;
        let Some(proven) = self.surge.memory.as_ref().map(|memory| Arc::clone(&memory.proven)) else { return };
        if !surge::takes_over(&self.containers, &proven) {
            return;
        }
        match self.resume(&proven).await {
            Ok(resumed) => {
                tracing::info!(pod = %self.key, hash = proven.hash, "the proven version goes on taking over");
                self.surge.resumed = Some(resumed);
                sleep(HANDSHAKES).await;
            }
            Err(why) => tracing::warn!(pod = %self.key, why, "a few clients may still reach the old one as it ends"),
        }
    }

    /// Makes the agent a member of the two that listen on the port of `proven`.
    async fn resume(&self, proven: &StaticPod) -> Result<Steering, String> {
        let (proc, port) = (self.shared.proc.clone(), port_of(proven));
        let listeners = apart(move || proc.listeners(&[port])).await.map_err(|error| error.to_string())?;
        match listeners.as_slice() {
            [one, other] if one.address == other.address && surge::listens(&listeners, &self.containers, proven) => {
                Steering::resume(SocketAddr::new(one.address, port)).map_err(|error| with_cause(&error))
            }
            _ => Err(format!("not the two of them listen on port {port}: {} sockets", listeners.len())),
        }
    }

    /// The pod is not replaced new-first any more: what was proven counts no longer.
    async fn forget_surge(&mut self) {
        self.unsteer(HANDSHAKES).await;
        let Surge { forgotten, stopping, endings, .. } = std::mem::take(&mut self.surge);
        self.surge = Surge { forgotten: true, stopping, endings, ..Surge::default() };
        if !forgotten && let Err(error) = surge::forget(&self.shared.proven, &self.key) {
            tracing::warn!(pod = %self.key, %error, "cannot forget the proven version");
        }
    }

    /// Of those that have ended only the last one stays.
    fn count_ends(&mut self, pod: &StaticPod) {
        if let Some(trial) = self.surge.tried.as_mut().filter(|trial| trial.hash == pod.hash) {
            trial.ends.extend(surge::ends(&self.containers, pod, trial.since).cloned());
        }
    }

    fn course(&self, pod: &StaticPod) -> Course {
        let obstacle = self.surge.obstacle.as_ref().filter(|(hash, _)| *hash == pod.hash);
        let own = self.containers.values().filter(|container| belongs_to(container, pod));
        let failed = own.filter_map(|container| self.health.get(&container.id)).find_map(|health| {
            match (&health.post_start, &health.failed) {
                (Some(PostStart::Failed(why)), _) | (_, Some((_, why))) => Some(why.as_str()),
                _ => None,
            }
        });
        let tried = self.surge.tried.as_ref().filter(|trial| trial.hash == pod.hash);
        let tried_since = tried.map(|trial| trial.since);
        surge::course(&Facts {
            pod,
            containers: &self.containers,
            memory: self.surge.memory.as_ref(),
            stopping: &self.surge.stopping,
            obstacle: obstacle.map(|(_, why)| why.as_str()),
            tried_since,
            ends: tried.map_or(0, |trial| trial.ends.len()),
            steered: self.surge.steering.is_some(),
            answers: tried_since.is_some() && self.answers(pod),
            failed,
            now: self.shared.clock.now(),
        })
    }

    /// Whether all of its containers have answered. Who listens was looked at after that: the answer of one that has
    /// ended since may have been somebody else's.
    fn answers(&self, pod: &StaticPod) -> bool {
        let answered = |spec: &k8s_openapi::api::core::v1::Container| {
            let newest = instances(&self.containers, pod, &spec.name).pop().filter(|newest| is_running(newest));
            newest.is_some_and(|newest| self.watches.get(&newest.id).is_some_and(|watching| watching.answered))
        };
        pod.lasting_containers().all(answered) && (self.surge.steering.is_none() || self.surge.listens)
    }

    async fn see_who_listens(&mut self, pod: &StaticPod) {
        if self.surge.is_trying() && self.surge.steering.is_some() {
            let (proc, port) = (self.shared.proc.clone(), port_of(pod));
            let listeners = apart(move || proc.listeners(&[port])).await;
            self.surge.listens = listeners.is_ok_and(|listeners| surge::listens(&listeners, &self.containers, pod));
        }
    }

    fn try_new(&mut self, pod: &StaticPod, until: Option<Timestamp>) {
        let now = self.shared.clock.now();
        if let Some(trial) = self.surge.tried.as_mut().filter(|trial| trial.hash == pod.hash) {
            trial.until = until;
            // The time in which it waits for another pod is not its own.
            if self.state.is_held() {
                trial.since = now;
            }
        } else {
            tracing::info!(pod = %self.key, steered = self.surge.steering.is_some(), "trying the new version");
            self.surge.tried = Some(Trial { hash: pod.hash.clone(), since: now, until, ends: BTreeSet::new() });
            self.surge.listens = false;
            if let Some(steering) = &self.surge.steering
                && let Err(error) = steering.steer(&Program::proving(loopback(steering.address().ip())))
            {
                tracing::warn!(pod = %self.key, %error, "cannot steer");
            }
        }
    }

    /// Makes the agent a member of those that listen on the pod's port, or says why that cannot be.
    async fn join(&self, pod: &StaticPod) -> Result<Steering, String> {
        // The probes' source is an IPv4 address; to an IPv6 one they would all fail, and the new one be rejected.
        if asked_over_six(pod, self.shared.node.address) {
            return Err("its probes go to an IPv6 address".to_owned());
        }
        let pids = self.containers.values().filter_map(|container| match container.state {
            State::Running { pid, .. } => Some(pid),
            _ => None,
        });
        let (proc, pids, port) = (self.shared.proc.clone(), pids.collect::<Vec<_>>(), port_of(pod));
        let asked = move || {
            surge::has_room(&proc, &pids)?;
            proc.listeners(&[port]).map_err(|error| error.to_string())
        };
        let listeners = apart(asked).await?;
        let [listener] = listeners.as_slice() else {
            return Err(format!("{} sockets listen on port {port}, not one", listeners.len()));
        };
        Steering::join(SocketAddr::new(listener.address, port)).await.map_err(|error| with_cause(&error))
    }

    /// The new one takes over: clients first, then, in the next decision, the old one stops.
    async fn prove(&mut self, pod: &Arc<StaticPod>) {
        tracing::info!(pod = %self.key, hash = pod.hash, "the new version is proven and takes over");
        self.note_proven(pod);
        if let Some(steering) = &self.surge.steering {
            if let Err(error) = steering.take_over() {
                tracing::warn!(pod = %self.key, %error, "cannot steer");
            }
            sleep(HANDSHAKES).await;
        }
    }

    fn note_proven(&mut self, pod: &Arc<StaticPod>) {
        self.surge.memory = Some(Memory { proven: Arc::clone(pod), rejected: None });
        self.keep_memory();
    }

    fn keep_memory(&self) {
        if let Some(memory) = &self.surge.memory
            && let Err(error) = surge::keep(&self.shared.proven, memory)
        {
            tracing::warn!(pod = %self.key, %error, "cannot keep what is proven and what is rejected");
        }
    }

    /// Keeps in mind that the spec is proven as soon as it has been ready: its probe may ask for the first time much
    /// later than the agent does.
    fn note_ready(&mut self, pod: &Arc<StaticPod>) {
        let ready = |spec: &k8s_openapi::api::core::v1::Container| {
            let newest = instances(&self.containers, pod, &spec.name).pop().filter(|newest| is_running(newest));
            newest.is_some_and(|newest| {
                self.watches.get(&newest.id).is_some_and(|watching| watching.answered)
                    || self.health.get(&newest.id).is_some_and(|health| health.ready)
            })
        };
        if !self.is_proven(pod) && pod.lasting_containers().all(ready) {
            self.note_proven(pod);
        }
    }

    fn is_proven(&self, pod: &StaticPod) -> bool {
        self.surge.memory.as_ref().is_some_and(|memory| memory.proven.hash == pod.hash)
    }

    /// Adds what tells most of the log of a container that has ended: rejected, it is removed.
    async fn with_last_words(&self, pod: &StaticPod, reason: String) -> String {
        let newest = pod.lasting_containers().filter_map(|c| instances(&self.containers, pod, &c.name).pop());
        let Some(ended) = newest.into_iter().find(|container| !is_running(container)) else { return reason };
        let log = self.shared.runtime.logs(&ended.id, message::LOG_LINES).await.unwrap_or_default();
        let lines: Vec<_> = log.lines().map(str::to_owned).collect();
        let line: String = logline::most_telling(&lines).unwrap_or_default().trim().chars().take(400).collect();
        if line.is_empty() { reason } else { format!("{reason}: {line}") }
    }

    fn reject(&mut self, pod: &StaticPod, reason: String) {
        tracing::warn!(pod = %self.key, hash = pod.hash, reason, "the new version is rejected");
        if let Some(memory) = &mut self.surge.memory {
            memory.rejected = Some(Rejection { hash: pod.hash.clone(), reason });
        }
        self.keep_memory();
    }

    /// Why the spec was rejected, if it was.
    fn rejected(&self, pod: &StaticPod) -> Option<String> {
        let rejected = self.surge.memory.as_ref()?.rejected.as_ref()?;
        (rejected.hash == pod.hash).then(|| rejected.reason.clone())
    }

    /// The file holds the proven spec again: what comes next is a change, even if it was rejected before.
    fn forget_rejected(&mut self, pod: &StaticPod) {
        if let Some(memory) = &mut self.surge.memory
            && memory.proven.hash == pod.hash
            && memory.rejected.take().is_some()
        {
            self.keep_memory();
        }
    }

    /// Whether what is to be stopped can take its time: the containers of a pod that is replaced new-first run already.
    pub(super) fn serves_meanwhile(&self, stops: &[Stop], wanted: &Wanted) -> bool {
        let Wanted::Run { pod, .. } = wanted else { return false };
        // Its own, that are to be restarted.
        if stops.iter().any(|stop| self.containers.get(&stop.id).is_some_and(|stopped| belongs_to(stopped, pod))) {
            return false;
        }
        let runs = |spec: &k8s_openapi::api::core::v1::Container| {
            instances(&self.containers, pod, &spec.name).pop().is_some_and(is_running)
        };
        pod.surges() && self.is_proven(pod) && pod.lasting_containers().all(runs)
    }

    /// Stops these beside everything else.
    pub(super) async fn stop_aside(&mut self, stops: &[Stop], wanted: &Wanted) {
        if self.is_api_server() && self.surge.keeper.is_none() {
            match Keeper::start(&self.shared.kubeconfig).await {
                Ok(keeper) => self.surge.keeper = Some(keeper),
                Err(error) => {
                    let why = with_cause(&error);
                    tracing::warn!(pod = %self.key, why, "the Service `kubernetes` may be without this host for 10 s");
                }
            }
        }
        let ending = self.ending(stops, wanted);
        self.surge.stopping.extend(stops.iter().map(|stop| stop.id.clone()));
        let stops = stops.to_vec();
        self.surge.endings.spawn(async move {
            let results = ending.await;
            (stops, results)
        });
    }

    pub(super) async fn take_aside(&mut self, (stops, results): Ended) {
        for stop in &stops {
            self.surge.stopping.remove(&stop.id);
        }
        let succeeded = self.take_ends(&stops, results).await;
        self.shared.board.metrics.acted("stop", succeeded);
    }

    fn is_api_server(&self) -> bool {
        let name = format!("{}-{}", Component::KubeApiserver.name(), self.shared.node.name);
        self.key == PodKey { namespace: "kube-system".to_owned(), name }
    }

    /// Gives up the agent's socket when only `pod` is left.
    async fn leave(&mut self, pod: &StaticPod) {
        let others = self.containers.values().any(|container| is_running(container) && !belongs_to(container, pod));
        if !others {
            self.surge.keeper = None;
            self.end_resumed().await;
            self.unsteer(HANDSHAKES).await;
        }
    }

    /// Gives up the socket with which a take-over was resumed; clients have come to the one that stays all along.
    async fn end_resumed(&mut self) {
        if let Some(resumed) = self.surge.resumed.take() {
            resumed.leave().await;
        }
    }

    /// Gives up the agent's socket, after some time for what has reached it.
    async fn unsteer(&mut self, patience: Duration) {
        if let Some(steering) = self.surge.steering.take() {
            if let Err(error) = steering.steer(&Program::alone()) {
                tracing::warn!(pod = %self.key, %error, "cannot steer");
            }
            sleep(patience).await;
            steering.leave().await;
        }
    }

    /// Whether a container of the proven spec runs.
    pub(super) fn has_proven(&self) -> bool {
        let proven = self.surge.memory.as_ref().map(|memory| &memory.proven);
        proven.is_some_and(|proven| self.containers.values().any(|c| is_running(c) && belongs_to(c, proven)))
    }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Whether a probe goes to an IPv6 address; those that name none go to `address`.
fn asked_over_six(pod: &StaticPod, address: IpAddr) -> bool {
    let address = address.to_string();
    let probes = pod.containers().iter().flat_map(|c| [&c.startup_probe, &c.readiness_probe, &c.liveness_probe]);
    let mut gets = probes.flatten().filter_map(|probe| probe.http_get.as_ref());
    gets.any(|get| get.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&address).contains(':'))
}

/// The port that the pod answers on: that of its readiness probe.
fn port_of(pod: &StaticPod) -> u16 {
    let asked = pod.containers().iter().find_map(|container| {
        let get = container.readiness_probe.as_ref()?.http_get.as_ref()?;
        Some(port(&get.port, container))
    });
    asked.unwrap_or(0)
}

/// From where one that is bound to `address` connects to itself: kube-apiserver takes the address of loopback of its
/// listener's family (apiserver: `LoopbackHostPort`).
fn loopback(address: IpAddr) -> IpAddr {
    if address.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}
