//! The effects of a replacement new-first: memory on disk, steering, and when the new one is asked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::{Wanted, Worker};
use crate::agent::blocking::apart;
use crate::agent::message;
use crate::agent::pod::StaticPod;
use crate::agent::probe::PostStart;
use crate::agent::status::Update;
use crate::agent::steer::{Program, Steering};
use crate::agent::step::{belongs_to, instances, is_running};
use crate::agent::surge::{self, Course, Facts, Memory, Rejection};
use crate::logline;
use crate::runtime::{Container, Runtime};

mod aside;
mod clients;

use self::aside::{Aside, Ended};
use self::clients::{HANDSHAKES, loopback, port_of};

/// How often it is looked whether the new one listens, and answers.
const POLL: Duration = Duration::from_millis(50);

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
    /// Those of another spec, while this one serves.
    aside: Aside,
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
    /// It listens.
    listens: bool,
}

impl Surge {
    /// Whether some containers are none of the step's business.
    pub(super) fn hides(&self) -> bool {
        self.is_trying() || !self.aside.ids.is_empty()
    }

    /// Whether the step for `pod` sees `container`: not the others' while `pod` is being tried, nor those that are on
    /// their way out.
    pub(super) fn shows(&self, container: &Container, pod: &StaticPod) -> bool {
        belongs_to(container, pod) || !(self.is_trying() || self.aside.ids.contains(&container.id))
    }

    /// The next that have been stopped beside everything else.
    pub(super) async fn ended(&mut self) -> Option<Ended> {
        self.aside.ended().await
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
        self.steering.is_none() || self.tried.as_ref().is_none_or(|trial| trial.listens)
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
        self.surge.aside.tidy();
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
            let (counts, remark, eager) = match course {
                Course::Steer => {
                    self.steer(&pod).await;
                    continue;
                }
                Course::Unsteer => {
                    tracing::warn!(pod = %self.key, "the old one has ended; the new one goes on as at a cold start");
                    self.unsteer(Duration::ZERO).await;
                    continue;
                }
                Course::Prove => {
                    self.prove(&pod).await;
                    continue;
                }
                Course::Reject(reason) => {
                    self.reject(&pod, reason).await;
                    continue;
                }
                Course::Try(until) => {
                    self.try_new(&pod, until);
                    (pod, Some("the file's version is being tried".to_owned()), true)
                }
                Course::Keep(remark) => (self.keep_proven(&pod).await, Some(remark), eager),
                Course::Run => {
                    let remark = self.run_as_it_is(&pod).await;
                    let unproven = !self.is_proven(&pod);
                    (pod, remark, eager || unproven)
                }
            };
            order.problems.extend(remark);
            self.effective = Some(Arc::clone(&counts));
            return Wanted::Run { pod: counts, order, eager };
        }
    }

    /// The proven spec, which is to run in the place of `pod`.
    async fn keep_proven(&mut self, pod: &Arc<StaticPod>) -> Arc<StaticPod> {
        self.surge.tried = None;
        let proven = Arc::clone(self.surge.memory.as_ref().map_or(pod, |memory| &memory.proven));
        self.leave(&proven).await;
        proven
    }

    /// `pod` runs as any other; with a remark where that is for an obstacle.
    async fn run_as_it_is(&mut self, pod: &Arc<StaticPod>) -> Option<String> {
        self.surge.tried = None;
        self.leave(pod).await;
        self.note_ready(pod);
        self.forget_rejected(pod);
        let obstacle = self.surge.obstacle.as_ref().filter(|(hash, _)| *hash == pod.hash);
        obstacle.map(|(_, why)| format!("not replaced new-first: {why}"))
    }

    /// Reads once what an earlier agent has kept, and goes on with the take-over in which it has ended.
    async fn recall_surge(&mut self) {
        if std::mem::replace(&mut self.surge.recalled, true) {
            return;
        }
        self.surge.memory = surge::recall(&self.shared.proven, &self.key, &self.shared.node.name);
        self.surge.forgotten = false;
        let Some(proven) = self.surge.memory.as_ref().map(|memory| Arc::clone(&memory.proven)) else { return };
        if surge::takes_over(&self.containers, &proven) {
            self.go_on_taking_over(&proven).await;
        }
    }

    /// The pod is not replaced new-first any more: what was proven counts no longer.
    async fn forget_surge(&mut self) {
        self.unsteer(HANDSHAKES).await;
        let Surge { forgotten, mut aside, .. } = std::mem::take(&mut self.surge);
        aside.keeper = None;
        self.surge = Surge { forgotten: true, aside, ..Surge::default() };
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
            stopping: &self.surge.aside.ids,
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
        pod.lasting_containers().all(answered) && self.surge.may_ask()
    }

    async fn see_who_listens(&mut self, pod: &StaticPod) {
        if let Some(trial) = self.surge.tried.as_mut().filter(|_| self.surge.steering.is_some()) {
            let (proc, port) = (self.shared.proc.clone(), port_of(pod));
            let listeners = apart(move || proc.listeners(&[port])).await;
            trial.listens = listeners.is_ok_and(|listeners| surge::listens(&listeners, &self.containers, pod));
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
            let hash = pod.hash.clone();
            self.surge.tried = Some(Trial { hash, since: now, until, ends: BTreeSet::new(), listens: false });
            if let Some(steering) = &self.surge.steering
                && let Err(error) = steering.steer(&Program::proving(loopback(steering.address().ip())))
            {
                tracing::warn!(pod = %self.key, %error, "cannot steer");
            }
        }
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

    async fn reject(&mut self, pod: &StaticPod, reason: String) {
        let reason = self.with_last_words(pod, reason).await;
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

    /// Whether a container of the proven spec runs.
    pub(super) fn has_proven(&self) -> bool {
        let proven = self.surge.memory.as_ref().map(|memory| &memory.proven);
        proven.is_some_and(|proven| self.containers.values().any(|c| is_running(c) && belongs_to(c, proven)))
    }
}
