//! From the static pods and the pods that the API server has for this node to what must be done there. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::Value;

use super::status;
use crate::agent::board::Snapshot;
use crate::agent::pod::{CONFIG_SEEN, PodKey, StaticPod};
use crate::agent::report;
use crate::agent::step::is_running;
use crate::agent::translate::Node;
use crate::names::CONFIG_MIRROR;
use crate::runtime::labels::SPEC_HASH;

/// What is known on this side.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The static pods.
    pub snapshots: &'a [Snapshot],
    /// Every pod that is wanted or still being removed; `None` while that is not known.
    pub tended: Option<&'a BTreeSet<PodKey>>,
    /// The node.
    pub node: &'a Node,
    /// UID of its object.
    pub node_uid: &'a str,
    /// Now.
    pub now: Timestamp,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Create this mirror.
    Create(Box<Pod>),
    /// Delete the pod with this UID at once: nobody else here will.
    Delete {
        /// Which.
        key: PodKey,
        /// Its UID.
        uid: String,
    },
    /// Change the status of the pod with this UID.
    Status {
        /// Which.
        key: PodKey,
        /// Its UID.
        uid: String,
        /// The version of the object that `status` was compared with.
        version: Option<String>,
        /// The fields that differ, `null` for those that are to go.
        status: Value,
    },
}

impl Action {
    /// What it does, for the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Delete { .. } => "delete",
            Self::Status { .. } => "status",
        }
    }

    /// The pod it is about.
    pub fn key(&self) -> PodKey {
        match self {
            Self::Create(pod) => key_of(&pod.metadata),
            Self::Delete { key, .. } | Self::Status { key, .. } => key.clone(),
        }
    }
}

/// Namespace and name.
pub fn key_of(metadata: &ObjectMeta) -> PodKey {
    PodKey {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

/// What is missing between the static pods and `observed`, the pods that the API server has bound to this node. At most
/// one action for each pod; what depends on one comes when it is done.
pub fn decide(view: &View<'_>, observed: &BTreeMap<PodKey, Pod>) -> Vec<Action> {
    let snapshots: BTreeMap<_, _> = view.snapshots.iter().map(|snapshot| (&snapshot.key, snapshot)).collect();
    let keys: BTreeSet<_> = snapshots.keys().copied().chain(observed.keys()).collect();
    keys.into_iter()
        .filter_map(|key| match (snapshots.get(key).copied(), observed.get(key)) {
            (snapshot, Some(pod)) if is_mirror(pod) => of_mirror(view, key, snapshot, pod),
            (_, Some(pod)) => of_foreign(view, key, pod),
            (Some(snapshot), None) => {
                snapshot.pod.as_ref().map(|pod| Action::Create(Box::new(mirror(view, snapshot, pod))))
            }
            (None, None) => None,
        })
        .collect()
}

/// Pods that are bound to this node although it runs none of the API server's.
pub fn foreign(observed: &BTreeMap<PodKey, Pod>) -> impl Iterator<Item = (&PodKey, &Pod)> {
    observed.iter().filter(|(_, pod)| !is_mirror(pod) && !is_over(pod))
}

fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, CONFIG_MIRROR).is_some()
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn of_mirror(view: &View<'_>, key: &PodKey, snapshot: Option<&Snapshot>, mirror: &Pod) -> Option<Action> {
    let Some((snapshot, pod)) = snapshot.and_then(|snapshot| Some((snapshot, snapshot.pod.as_ref()?))) else {
        // One that is being removed keeps its mirror until it is gone.
        let is_gone = view.tended.is_some_and(|tended| !tended.contains(key));
        return if is_gone { delete(key, mirror) } else { None };
    };
    if mirror.metadata.deletion_timestamp.is_some() {
        return delete(key, mirror);
    }
    let is_owned = owners(mirror).is_some_and(|owner| owner.uid == view.node_uid);
    let is_current = annotation(mirror, CONFIG_MIRROR) == Some(pod.uid.as_str())
        && annotation(mirror, SPEC_HASH) == Some(pod.hash.as_str());
    if !is_current && is_held(snapshot, pod, mirror) {
        return None;
    }
    if !(is_owned && is_current) {
        return delete(key, mirror);
    }
    let observed = mirror.status.clone().unwrap_or_default();
    let wanted = report::pod(snapshot, view.node)?.status.unwrap_or_default();
    let status = status::patch(&observed, &status::settled(wanted, &observed, view.now))?;
    Some(write(key, mirror, status))
}

/// Whether the pod of another version still runs, and this one does not or is not proven: the mirror is that one's.
fn is_held(snapshot: &Snapshot, pod: &StaticPod, mirror: &Pod) -> bool {
    let runs = |hash: &str| {
        let mut running = snapshot.containers.values().filter(|container| is_running(container));
        running.any(|container| container.labels.get(SPEC_HASH).is_some_and(|one| one == hash))
    };
    // One that a kubelet made has no hash of ours, and its containers are not ours either.
    annotation(mirror, SPEC_HASH).is_some_and(|old| runs(old) && (snapshot.update.is_some() || !runs(&pod.hash)))
}

/// Nothing of it runs here, so that nothing has to end first.
fn of_foreign(view: &View<'_>, key: &PodKey, pod: &Pod) -> Option<Action> {
    if pod.metadata.deletion_timestamp.is_some() {
        return delete(key, pod);
    }
    if is_over(pod) {
        return None;
    }
    let observed = pod.status.clone().unwrap_or_default();
    let status = status::patch(&observed, &status::refused(&observed, view.now))?;
    Some(write(key, pod, status))
}

/// `None` where that has been done, and a finalizer of somebody else keeps the object.
fn delete(key: &PodKey, pod: &Pod) -> Option<Action> {
    let metadata = &pod.metadata;
    let is_done = metadata.deletion_timestamp.is_some() && metadata.deletion_grace_period_seconds == Some(0);
    (!is_done).then(|| Action::Delete { key: key.clone(), uid: uid(pod) })
}

fn write(key: &PodKey, pod: &Pod, status: Value) -> Action {
    Action::Status { key: key.clone(), uid: uid(pod), version: pod.metadata.resource_version.clone(), status }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

fn owners(pod: &Pod) -> Option<&OwnerReference> {
    pod.metadata.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// The mirror of `pod`, as `NodeRestriction` lets a node create one.
fn mirror(view: &View<'_>, snapshot: &Snapshot, pod: &StaticPod) -> Pod {
    let own = &pod.metadata;
    let mut annotations = own.annotations.clone().unwrap_or_default();
    annotations.insert(CONFIG_SEEN.to_owned(), snapshot.seen.to_string());
    annotations.insert(CONFIG_MIRROR.to_owned(), pod.uid.clone());
    annotations.insert(SPEC_HASH.to_owned(), pod.hash.clone());
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: view.node.name.clone(),
        uid: view.node_uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    Pod {
        metadata: ObjectMeta {
            name: own.name.clone(),
            namespace: own.namespace.clone(),
            labels: own.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(pod.spec.clone()),
        status: None,
    }
}

#[cfg(test)]
pub(super) mod tests;
