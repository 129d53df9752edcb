//! The mirrors: what the API server shows of the static pods of this node.
//!
//! # Guarantees
//! - No pod of this host depends on it: it reads the board, and nothing reads it but people.
//! - A mirror is as its pod is, as soon as the API server takes it: what has changed meanwhile is compared, and only
//!   differences are written.
//! - Without the object of the node no mirror is made: the garbage collector would take it for an orphan.
//! - Nothing is removed before all sources have been read.

pub mod decide;
pub mod status;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use self::decide::{Action, View, decide, foreign, key_of};
use self::status::{EXPLAINED, STATIC_PODS_ONLY_REASON};
use super::board::Board;
use super::events::Kind;
use super::pod::PodKey;
use super::step::doubled;
use super::translate::Node;
use crate::clock::Clock;
use crate::cluster::connection::Connection;
use crate::cluster::follow::{AskError, BackOff, Change, Follower, Selection, ask};

/// Changes that come together are written together.
const SETTLES: Duration = Duration::from_millis(100);
/// First and longest wait until something that was refused is tried again (kubelet: at the pod's next sync, after 1 min).
const REFUSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// A mirror that lives shorter is one that somebody keeps deleting: the next one comes later and later.
const LIVES: Duration = Duration::from_mins(1);
/// By what these warnings are known.
pub(super) const WHO: &str = "mirror pods";

/// What the task works with.
#[derive(Debug, Clone)]
pub struct Context {
    /// The API server.
    pub connection: Arc<Connection>,
    /// The static pods.
    pub board: Arc<Board>,
    /// The node.
    pub node: Node,
    /// UID of its object; `None` while there is none.
    pub node_uid: watch::Receiver<Option<String>>,
    /// Time.
    pub clock: Clock,
}

/// Keeps the mirrors until it is dropped.
pub async fn run(context: Context) {
    let selection = Selection { resource: resource(), fields: format!("spec.nodeName={}", context.node.name) };
    let mut follower = Follower::start(Arc::clone(&context.connection), selection, context.board.answers());
    let mut changes = context.board.changes();
    let mut node_uid = context.node_uid.clone();
    let mut mirrors = Mirrors::new(context);
    loop {
        // Without a node nothing is tried.
        let next_try = node_uid.borrow().as_ref().and(mirrors.next_try());
        tokio::select! {
            change = follower.next() => match change {
                Some(change) => mirrors.take(change),
                None => return,
            },
            // The board is there as long as its reader, and whoever tells the UID as long as this task.
            _ = changes.changed() => {}
            _ = node_uid.changed() => {}
            () = sleep_until(next_try.unwrap_or_else(Instant::now)), if next_try.is_some() => {}
        }
        sleep(SETTLES).await;
        while let Some(change) = follower.try_next() {
            mirrors.take(change);
        }
        changes.mark_unchanged();
        let uid = node_uid.borrow_and_update().clone();
        if let Some(uid) = uid {
            mirrors.settle(&uid).await;
        }
        mirrors.warn();
    }
}

fn reference(key: &PodKey, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(key.namespace.clone()),
        name: Some(key.name.clone()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

fn resource() -> ApiResource {
    ApiResource::erase::<Pod>(&())
}

/// What became of requests about a pod.
#[derive(Debug, Default)]
struct Tries {
    /// Nothing before that.
    again_at: Option<Instant>,
    /// Its mirrors so far.
    lives: Lives,
    /// Refusals in a row.
    failures: u32,
    /// Why the last request was refused; empty where it was not.
    why: String,
    /// A status that was taken, and the version of the object with it: what is still missing there was dropped.
    taken: Option<(Value, Option<String>)>,
}

impl Tries {
    /// Nothing is asked for any more, so that nothing is refused either.
    fn end(&mut self) {
        (self.again_at, self.failures) = (None, 0);
        self.why.clear();
    }
}

/// How long the mirrors of a pod last.
#[derive(Debug, Clone, Copy, Default)]
struct Lives {
    /// When the present one was created.
    since: Option<Instant>,
    /// How many in a row were gone too soon.
    short: u32,
    /// No other one before that.
    again_at: Option<Instant>,
}

impl Lives {
    /// There is none now. The first one that is gone soon is made again at once: it was deleted to be read anew.
    fn ended(&mut self, now: Instant) {
        let Some(since) = self.since.take() else { return };
        if now.duration_since(since) >= LIVES {
            *self = Self::default();
            return;
        }
        self.again_at = self.short.checked_sub(1).map(|times| now + doubled(REFUSED.0, times, REFUSED.1));
        self.short = self.short.saturating_add(1);
    }
}

struct Mirrors {
    context: Context,
    /// `None` while the API server is away.
    observed: Option<BTreeMap<PodKey, Pod>>,
    /// Why they cannot be followed.
    refused: Option<String>,
    tries: HashMap<PodKey, Tries>,
    /// It did not answer: nothing before that.
    silent_until: Option<Instant>,
    back_off: BackOff,
}

impl Mirrors {
    fn new(context: Context) -> Self {
        let back_off = BackOff::default();
        Self { context, observed: None, refused: None, tries: HashMap::new(), silent_until: None, back_off }
    }

    fn take(&mut self, change: Change) {
        match (change, &mut self.observed) {
            (Change::Listed(objects), _) => {
                self.refused = None;
                self.observed = Some(objects.into_iter().filter_map(parsed).collect());
            }
            (Change::Is(object), Some(observed)) => set(observed, object),
            (Change::Gone(object), Some(observed)) => {
                let key = key_of(&object.metadata);
                // Not that of another one, which took its place.
                if observed.get(&key).is_some_and(|pod| pod.metadata.uid == object.metadata.uid) {
                    observed.remove(&key);
                }
            }
            (Change::Lost(why), _) => {
                // Of an API server that is away the node speaks.
                self.refused = why.code().map(|_| format!("cannot be followed: {}", why.told()));
                self.observed = None;
            }
            (Change::Is(_) | Change::Gone(_), None) => {}
        }
    }

    /// When something can be tried that cannot now.
    fn next_try(&self) -> Option<Instant> {
        self.observed.as_ref()?;
        // What is over has been taken away with the last look: all else is still to come, or due by now.
        let tries = || self.tries.values().flat_map(|tries| [tries.again_at, tries.lives.again_at]).flatten().min();
        self.silent_until.or_else(tries)
    }

    /// What is missing and may be tried now.
    fn actions(&mut self, node_uid: &str) -> Vec<Action> {
        let Some(observed) = &self.observed else { return Vec::new() };
        let Context { board, node, clock, .. } = &self.context;
        let (snapshots, tended) = (board.pods(), board.tended());
        let view = View { snapshots: &snapshots, tended: tended.as_ref(), node, node_uid, now: clock.now() };
        let mut actions = decide(&view, observed);
        let known = |key: &PodKey| observed.contains_key(key) || snapshots.iter().any(|snapshot| snapshot.key == *key);
        self.tries.retain(|key, _| known(key));
        let now = Instant::now();
        let missing: HashSet<_> = actions.iter().map(Action::key).collect();
        for (key, tries) in &mut self.tries {
            if !missing.contains(key) {
                tries.end();
            }
            for at in [&mut tries.again_at, &mut tries.lives.again_at] {
                at.take_if(|at| *at <= now);
            }
        }
        actions.retain(|action| {
            let Some(tries) = self.tries.get_mut(&action.key()) else { return true };
            let may_be = match action {
                Action::Create(_) => {
                    tries.lives.ended(now);
                    tries.lives.again_at.is_none()
                }
                Action::Delete { .. } => true,
                Action::Status { status, version, .. } => {
                    tries.taken.as_ref().is_none_or(|(taken, at)| taken != status || at != version)
                }
            };
            may_be && tries.again_at.is_none()
        });
        actions
    }

    /// Does what is due until nothing is, or the API server is away.
    async fn settle(&mut self, node_uid: &str) {
        let mut silences = 0;
        loop {
            self.silent_until.take_if(|until| *until <= Instant::now());
            if self.silent_until.is_some() {
                return;
            }
            let actions = self.actions(node_uid);
            if actions.is_empty() {
                return;
            }
            for action in actions {
                let result = match self.context.connection.client().await {
                    Ok(client) => request(client, &action).await,
                    Err(error) => Err(error.into()),
                };
                if self.take_answer(&action, result, &mut silences) {
                    return;
                }
            }
        }
    }

    /// Takes what became of `action` after so many `silences` in a row; whether the API server is away.
    ///
    /// One silence is the pod's own: some webhook that does not answer. Nothing else waits for it.
    fn take_answer(
        &mut self,
        action: &Action,
        result: Result<Option<DynamicObject>, AskError>,
        silences: &mut u32,
    ) -> bool {
        let is_silent = matches!(result, Err(AskError::Silent));
        *silences = if is_silent { *silences + 1 } else { 0 };
        let unheard = result.as_ref().err().filter(|error| error.code().is_none()).map(AskError::told);
        if unheard.is_none() || is_silent {
            self.book(action, result);
        }
        match unheard {
            None => self.back_off = BackOff::default(),
            Some(_) if *silences == 1 => {}
            Some(error) => {
                tracing::debug!(error, "the API server does not answer");
                self.silent_until = Some(Instant::now() + self.back_off.pause());
                return true;
            }
        }
        false
    }

    /// Remembers what became of `action`.
    fn book(&mut self, action: &Action, result: Result<Option<DynamicObject>, AskError>) {
        let (key, now) = (action.key(), Instant::now());
        let tries = self.tries.entry(key.clone()).or_default();
        match &result {
            Ok(object) => {
                *tries = Tries { lives: tries.lives, ..Tries::default() };
                match action {
                    Action::Create(_) => tries.lives.since = Some(now),
                    Action::Delete { .. } => {}
                    Action::Status { uid, status, .. } => {
                        if status["reason"] == STATIC_PODS_ONLY_REASON {
                            self.context.board.tell(
                                reference(&key, uid),
                                Kind::Warning,
                                STATIC_PODS_ONLY_REASON,
                                EXPLAINED,
                            );
                        }
                        let version = object.as_ref().and_then(|object| object.metadata.resource_version.clone());
                        tries.taken = Some((status.clone(), version));
                    }
                }
                tracing::debug!(pod = %key, action = action.name(), "written to the API server");
            }
            // It is gone or another one by now, of which news is under way.
            Err(error) if is_late(action, error.code()) => tries.again_at = Some(now + REFUSED.0),
            Err(error) => {
                tries.again_at = Some(now + doubled(REFUSED.0, tries.failures, REFUSED.1));
                tries.failures = tries.failures.saturating_add(1);
                tries.why = error.told();
            }
        }
        let Some(observed) = &mut self.observed else { return };
        match result {
            Ok(Some(object)) => set(observed, object),
            Ok(None) => drop(observed.remove(&key)),
            Err(error) if error.code() == Some(404) => drop(observed.remove(&key)),
            Err(_) => {}
        }
    }

    fn warn(&self) {
        let mut warnings: Vec<_> = self.refused.iter().cloned().collect();
        let mut refused: Vec<_> = self.tries.iter().filter(|(_, last)| !last.why.is_empty()).collect();
        refused.sort_by_key(|(key, _)| *key);
        warnings.extend(refused.into_iter().map(|(key, last)| format!("{key} cannot be shown: {}", last.why)));
        warnings.extend(self.observed.iter().flat_map(foreign).map(|(key, _)| {
            format!("{key} is bound to this node by the API server and is not run: only static pods are")
        }));
        self.context.board.remark(WHO, warnings);
    }
}

/// Whether `action` came too late for its pod. A creation never does: its namespace is missing, or another pod of any node
/// has the name.
fn is_late(action: &Action, code: Option<u16>) -> bool {
    !matches!(action, Action::Create(_)) && matches!(code, Some(404 | 409))
}

fn parsed(mut object: DynamicObject) -> Option<(PodKey, Pod)> {
    object.metadata.managed_fields = None;
    let pod: Pod = object.try_parse().ok()?;
    Some((key_of(&pod.metadata), pod))
}

/// Takes what is newer than what is known: the answer to a request may be there before older events are.
fn set(observed: &mut BTreeMap<PodKey, Pod>, object: DynamicObject) {
    let Some((key, pod)) = parsed(object) else { return };
    let version = |pod: &Pod| pod.metadata.resource_version.as_ref().and_then(|version| version.parse::<u64>().ok());
    if observed.get(&key).is_none_or(|known| version(known) <= version(&pod)) {
        observed.insert(key, pod);
    }
}

/// The object afterwards; `None` where it is gone.
async fn request(client: Client, action: &Action) -> Result<Option<DynamicObject>, AskError> {
    let key = action.key();
    let pods: Api<DynamicObject> = Api::namespaced_with(client, &key.namespace, &resource());
    match action {
        Action::Create(pod) => {
            let object = DynamicObject {
                types: None,
                metadata: pod.metadata.clone(),
                data: json!({ "apiVersion": "v1", "kind": "Pod", "spec": pod.spec }),
            };
            Ok(Some(ask(pods.create(&PostParams::default(), &object)).await?))
        }
        Action::Delete { uid, .. } => {
            let how = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
                ..DeleteParams::default()
            };
            Ok(ask(pods.delete(&key.name, &how)).await?.left().filter(has_finalizers))
        }
        Action::Status { uid, version, status, .. } => {
            // Both are preconditions: lists are written whole, and others may have written to them meanwhile.
            let metadata = json!({ "uid": uid, "resourceVersion": version });
            let patch = Patch::Merge(json!({ "metadata": metadata, "status": status }));
            Ok(Some(ask(pods.patch_status(&key.name, &PatchParams::default(), &patch)).await?))
        }
    }
}

fn has_finalizers(object: &DynamicObject) -> bool {
    object.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty())
}

#[cfg(test)]
mod tests;
