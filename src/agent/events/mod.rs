//! Events: what happens to pods, as `kubectl describe` and `kubectl get events` show it.
//!
//! They follow from what workers publish: [`between`] compares two snapshots of a pod, and is pure. A [`Recorder`] takes
//! events without ever waiting; [`sink`] writes them to the API server, deduplicated by [`correlate`]. Where nobody
//! listens, the queue is full or the API server is away, they are dropped: an event is a report, nothing relies on it.
//!
//! Reasons and texts are the kubelet's (`pkg/kubelet/events`).

pub mod correlate;
pub mod sink;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::mpsc;

use super::board::{Doing, Snapshot};
use super::pod::PodKey;
use super::probe::{Health, PostStart};
use super::step::{SANDBOX, Waiting, is_running, name_of, uid_of};
use crate::runtime::{Container, State};

/// How many events wait to be written, as with a kubelet (client-go: `maxQueuedEvents`).
const QUEUE: usize = 1000;

/// Something that happened to an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What it happened to.
    pub object: ObjectReference,
    /// Somebody should know of it.
    pub kind: Kind,
    /// A word for programs: `Started`, `BackOff`, …
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `Normal`.
    Normal,
    /// `Warning`.
    Warning,
}

impl Kind {
    /// As the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Takes events, for whoever writes them.
#[derive(Debug, Clone)]
pub struct Recorder(mpsc::Sender<Event>);

impl Recorder {
    /// A recorder, and what it takes.
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Takes `event`, or drops it where too many wait.
    pub fn record(&self, event: Event) {
        if let Err(error) = self.0.try_send(event) {
            tracing::debug!(%error, "an event is dropped");
        }
    }
}

/// What happened to a pod between two snapshots of it. Of a pod that was not seen `before` only what is wrong is told: its
/// containers may be an earlier agent's.
pub fn between(before: Option<&Snapshot>, after: &Snapshot, at: Timestamp) -> Vec<Event> {
    let uid = [Some(after), before].into_iter().flatten().find_map(uid);
    let pod = PodEvents { key: &after.key, uid: uid.unwrap_or_default(), at };
    let mut events = Vec::new();
    if let Some(before) = before {
        for name in after.pulled.difference(&before.pulled) {
            events.extend(pod.pulled(after, name));
        }
        for (id, container) in after.containers.iter().filter(|(_, container)| name_of(container) != SANDBOX) {
            events.extend(pod.life(before, before.containers.get(id), container));
        }
        if after.doing != before.doing {
            events.extend(after.doing.iter().flat_map(|doing| pod.doing(doing)));
        }
    }
    let none = BTreeMap::new();
    let waited = before.map_or(&none, |before| &before.waiting);
    for (name, waiting) in &after.waiting {
        let same = waited.get(name).is_some_and(|one| (one.reason, &one.message) == (waiting.reason, &waiting.message));
        if !same {
            events.extend(pod.waits(name, waiting));
        }
    }
    let none = BTreeMap::new();
    let asked = before.map_or(&none, |before| &before.health);
    for (id, health) in &after.health {
        if let Some(container) = after.containers.get(id) {
            events.extend(pod.health(name_of(container), asked.get(id).unwrap_or(&Health::default()), health));
        }
    }
    events
}

fn uid(snapshot: &Snapshot) -> Option<String> {
    let made = snapshot.containers.values().next().map(|container| uid_of(container).to_owned());
    snapshot.pod.as_ref().map(|pod| pod.uid.clone()).or(made)
}

/// A pod, as events refer to it: by the UID of the static pod, which `kubectl describe` of its mirror asks for.
struct PodEvents<'a> {
    key: &'a PodKey,
    uid: String,
    at: Timestamp,
}

impl PodEvents<'_> {
    fn event(&self, container: &str, kind: Kind, reason: &'static str, message: impl Into<String>) -> Event {
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(self.key.namespace.clone()),
            name: Some(self.key.name.clone()),
            uid: Some(self.uid.clone()),
            // Init containers are named as such by a kubelet; nothing but the name is read from it.
            field_path: (container != SANDBOX).then(|| format!("spec.containers{{{container}}}")),
            resource_version: None,
        };
        Event { object, kind, reason, message: message.into(), at: self.at }
    }

    /// The image of a container was pulled. Those of sandboxes are the engine's business, as with a kubelet.
    fn pulled(&self, after: &Snapshot, name: &str) -> Option<Event> {
        let image = after.pod.as_ref()?.container(name)?.image.as_deref().unwrap_or_default();
        Some(self.event(name, Kind::Normal, "Pulled", format!("Successfully pulled image \"{image}\"")))
    }

    /// A container was made, or has begun to run; it may have ended since.
    fn life(&self, before: &Snapshot, known: Option<&Container>, now: &Container) -> Vec<Event> {
        let name = name_of(now);
        let mut events = Vec::new();
        if known.is_none() {
            if !before.pulled.contains(name) {
                let present = format!("Container image \"{}\" already present on machine", now.image);
                events.push(self.event(name, Kind::Normal, "Pulled", present));
            }
            events.push(self.event(name, Kind::Normal, "Created", "Container created"));
        }
        let started = match &now.state {
            State::Created { .. } => false,
            State::Running { .. } => !known.is_some_and(is_running),
            State::Exited(_) => known.is_none_or(|known| matches!(known.state, State::Created { .. })),
        };
        if started {
            events.push(self.event(name, Kind::Normal, "Started", "Container started"));
        }
        events
    }

    fn doing(&self, doing: &Doing) -> Vec<Event> {
        match doing {
            // That of the sandbox is nobody's business, as the sandbox itself.
            Doing::Pulling { container, .. } if container == SANDBOX => Vec::new(),
            Doing::Pulling { container, image } => {
                vec![self.event(container, Kind::Normal, "Pulling", format!("Pulling image \"{image}\""))]
            }
            Doing::Stopping(stops) => {
                let stops = stops.iter().filter(|stop| stop.container != SANDBOX);
                let killing = |name: &str, why: &str| {
                    self.event(name, Kind::Normal, "Killing", format!("Stopping container {name}: {why}"))
                };
                stops.map(|stop| killing(&stop.container, &stop.why)).collect()
            }
        }
    }

    /// A container does not run.
    fn waits(&self, name: &str, Waiting { reason, message, .. }: &Waiting) -> Vec<Event> {
        let event = |kind, reason, message: String| self.event(name, kind, reason, message);
        match *reason {
            "CrashLoopBackOff" => {
                let PodKey { namespace, name: pod } = self.key;
                let text =
                    format!("Back-off restarting failed container {name} in pod {pod}_{namespace}({})", self.uid);
                vec![event(Kind::Warning, "BackOff", text)]
            }
            "ErrImagePull" => vec![
                event(Kind::Warning, "Failed", format!("Failed to pull image: {message}")),
                event(Kind::Warning, "Failed", "Error: ErrImagePull".to_owned()),
            ],
            "ImagePullBackOff" => {
                vec![event(Kind::Normal, "BackOff", format!("Back-off pulling image: {message}"))]
            }
            "ErrImageNeverPull" => vec![event(Kind::Warning, "ErrImageNeverPull", message.clone())],
            // With that reason it waits for its turn; nothing has failed.
            reason if name == SANDBOX && reason != "ContainerCreating" && !message.is_empty() => {
                vec![event(Kind::Warning, "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {message}"))]
            }
            "CreateContainerError"
            | "CreateContainerConfigError"
            | "InvalidImageName"
            | "KillContainerError"
            | "RunContainerError" => vec![event(Kind::Warning, "Failed", format!("Error: {message}"))],
            _ => Vec::new(),
        }
    }

    /// Probes and hooks.
    fn health(&self, name: &str, before: &Health, now: &Health) -> Vec<Event> {
        let mut events = Vec::new();
        if now.failures > before.failures {
            events.push(self.event(
                name,
                Kind::Warning,
                "Unhealthy",
                capital(now.failure.as_deref().unwrap_or_default()),
            ));
        }
        if let Some(PostStart::Failed(why)) = &now.post_start
            && before.post_start != now.post_start
        {
            events.push(self.event(name, Kind::Warning, "FailedPostStartHook", format!("PostStartHook failed: {why}")));
        }
        events
    }
}

/// `Liveness probe failed: …`
fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
