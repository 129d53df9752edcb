//! The status of a pod in the API server: what it should be, and what of it differs from what it is. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value};

/// Reason in the status of a pod that is bound to this node and not run.
pub const STATIC_PODS_ONLY_REASON: &str = "StaticPodsOnly";

/// The fields that are written here; the others are the API server's.
const OWN: [&str; 12] = [
    "phase",
    "reason",
    "message",
    "conditions",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "qosClass",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
];

/// What people read there.
pub(super) const EXPLAINED: &str = "plinth runs static pods only on this node: nothing of this pod is started. Delete it, and keep \
                         others away by the node's taint plinth.dev/static-pods-only";

/// `wanted` with what only the API server knows: when conditions changed, conditions of others, and when the pod began,
/// which an agent that was started again does not remember.
pub(super) fn settled(mut wanted: PodStatus, observed: &PodStatus, now: Timestamp) -> PodStatus {
    wanted.start_time = observed.start_time.clone().or(wanted.start_time);
    wanted.conditions = Some(merged(wanted.conditions.unwrap_or_default(), observed, now));
    wanted
}

/// What a pod is told that is not run.
pub(super) fn refused(observed: &PodStatus, now: Timestamp) -> PodStatus {
    let condition = |type_: &str| PodCondition {
        type_: type_.to_owned(),
        status: "False".to_owned(),
        reason: Some(STATIC_PODS_ONLY_REASON.to_owned()),
        message: Some(EXPLAINED.to_owned()),
        ..PodCondition::default()
    };
    PodStatus {
        phase: observed.phase.clone().or_else(|| Some("Pending".to_owned())),
        reason: Some(STATIC_PODS_ONLY_REASON.to_owned()),
        message: Some(EXPLAINED.to_owned()),
        conditions: Some(merged(vec![condition("Ready"), condition("ContainersReady")], observed, now)),
        ..observed.clone()
    }
}

/// `own` with the times of their last change, and after them the conditions of others.
fn merged(mut own: Vec<PodCondition>, observed: &PodStatus, now: Timestamp) -> Vec<PodCondition> {
    let before = observed.conditions.as_deref().unwrap_or_default();
    for condition in &mut own {
        let same = before.iter().find(|one| one.type_ == condition.type_ && one.status == condition.status);
        let since = same.and_then(|one| one.last_transition_time.clone());
        condition.last_transition_time = Some(since.unwrap_or(Time(now)));
    }
    let others = before.iter().filter(|one| own.iter().all(|condition| condition.type_ != one.type_)).cloned();
    let others: Vec<_> = others.collect();
    own.extend(others);
    own
}

/// A merge patch from `observed` to `wanted`; `None` where they are the same. What the API server alone fills in stays.
pub(super) fn patch(observed: &PodStatus, wanted: &PodStatus) -> Option<Value> {
    let [observed, wanted] = [observed, wanted].map(|status| match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    });
    let differs = |field: &&str| observed.get(*field) != wanted.get(*field);
    let fields = OWN.into_iter().filter(differs);
    let patch: Map<_, _> =
        fields.map(|field| (field.to_owned(), wanted.get(field).cloned().unwrap_or_default())).collect();
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests;
