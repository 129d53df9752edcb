//! The object of the node: what it says, and which of it the API server is told when. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::DynamicObject;
use serde_json::{Map, Value, json};

use super::capacity::Capacity;
use crate::agent::translate::Node;
use crate::names::STATIC_PODS_ONLY_TAINT;
use crate::proc::Proc;

/// How old a status may be that says nothing new (kubelet: `nodeStatusReportFrequency`).
const REPORTED: SignedDuration = SignedDuration::from_mins(5);
/// What a kubelet declares that speaks WebSocket to API servers, which then need not speak SPDY (since 1.36).
const WEBSOCKETS: &str = "ExtendWebSocketsToKubelet";
/// By this label `DaemonSets` find nodes that run their pods.
pub(super) const OS_LABEL: &str = "kubernetes.io/os";

/// What the host is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// machine-id(5).
    pub machine_id: String,
    /// UUID of the board; the machine's id where there is none.
    pub system_uuid: String,
    /// Random, another one after each boot.
    pub boot_id: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Name of the distribution.
    pub os_image: String,
}

impl Machine {
    /// This one, whose files are below `root`.
    pub fn read(proc: &Proc, root: &Path) -> Self {
        let read = |path: &Path| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let machine_id = read(&root.join("etc/machine-id"));
        let uuid = read(&root.join("sys/class/dmi/id/product_uuid"));
        let files = ["etc/os-release", "usr/lib/os-release"].map(|file| read(&root.join(file)));
        let name = files.iter().find_map(|text| text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")));
        Self {
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: read(&proc.path("sys/kernel/random/boot_id")),
            kernel: read(&proc.path("sys/kernel/osrelease")),
            os_image: name.unwrap_or_default().trim_matches(['"', '\'']).to_owned(),
        }
    }
}

/// Everything the object says besides its conditions.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// Name and address.
    pub node: &'a Node,
    /// Labels that were asked for.
    pub labels: &'a BTreeMap<String, String>,
    /// Taints that were asked for.
    pub taints: &'a [Taint],
    /// The host.
    pub machine: &'a Machine,
    /// Resources.
    pub capacity: &'a Capacity,
    /// Version of the engine; empty when that is not known.
    pub engine: &'a str,
    /// See [`kubelet_version`].
    pub kubelet_version: String,
    /// Port of the kubelet's API, where it is served.
    pub kubelet_port: Option<u16>,
}

/// The version of the kubelet that this agent stands for: the Kubernetes version `own` whose API types it speaks, but
/// none newer than the API server's, as the version skew policy wants it; with `plinth` in the build metadata.
pub fn kubelet_version(api_server: &str, own: &str, plinth: &str) -> String {
    let read = |text: &str| {
        let version = semver::Version::parse(text.trim_start_matches('v')).ok()?;
        Some((version.major, version.minor, version.patch))
    };
    match (read(api_server), read(own)) {
        (Some(theirs), Some(ours)) if theirs < ours => {
            format!("v{}.{}.{}+plinth.{plinth}", theirs.0, theirs.1, theirs.2)
        }
        _ => format!("{own}+plinth.{plinth}"),
    }
}

impl Facts<'_> {
    fn own_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.insert("kubernetes.io/hostname".to_owned(), self.node.name.clone());
        labels.insert("kubernetes.io/arch".to_owned(), architecture().to_owned());
        labels
    }

    /// The object to register.
    pub fn object(&self, status: &NodeStatus) -> DynamicObject {
        let own = Taint { key: STATIC_PODS_ONLY_TAINT.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
        let taints: Vec<_> = self.taints.iter().filter(|taint| taint.key != own.key).chain([&own]).collect();
        let metadata = json!({
            "name": self.node.name,
            "labels": self.own_labels(),
            "annotations": { "volumes.kubernetes.io/controller-managed-attach-detach": "true" },
        });
        DynamicObject {
            types: None,
            metadata: serde_json::from_value(metadata).unwrap_or_default(),
            data: json!({ "apiVersion": "v1", "kind": "Node", "spec": { "taints": taints }, "status": status }),
        }
    }

    /// A merge patch for the labels of an object that somebody else has made; `None` where they are right.
    pub fn labels_patch(&self, observed: &DynamicObject) -> Option<Value> {
        let there = observed.metadata.labels.clone().unwrap_or_default();
        let mut labels: Map<_, _> = self
            .own_labels()
            .into_iter()
            .filter(|(name, value)| there.get(name) != Some(value))
            .map(|(name, value)| (name, Value::from(value)))
            .collect();
        if there.contains_key(OS_LABEL) {
            labels.insert(OS_LABEL.to_owned(), Value::Null);
        }
        (!labels.is_empty()).then(|| json!({ "metadata": { "labels": labels } }))
    }

    /// The status, with conditions that do not know yet when they changed.
    pub fn status(&self, conditions: Vec<NodeCondition>) -> NodeStatus {
        let Machine { machine_id, system_uuid, boot_id, kernel, os_image } = self.machine.clone();
        let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
        let port = self.kubelet_port.map_or(0, i32::from);
        NodeStatus {
            addresses: Some(vec![
                address("InternalIP", self.node.address.to_string()),
                address("Hostname", self.node.name.clone()),
            ]),
            capacity: Some(self.capacity.total()),
            allocatable: Some(self.capacity.allocatable()),
            conditions: Some(conditions),
            daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port }) }),
            declared_features: self.kubelet_port.map(|_| vec![WEBSOCKETS.to_owned()]),
            node_info: Some(NodeSystemInfo {
                architecture: architecture().to_owned(),
                boot_id,
                container_runtime_version: format!("docker://{}", self.engine),
                kernel_version: kernel,
                kubelet_version: self.kubelet_version.clone(),
                machine_id,
                operating_system: "linux".to_owned(),
                os_image,
                system_uuid,
                ..NodeSystemInfo::default()
            }),
            ..NodeStatus::default()
        }
    }
}

/// What the API server is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The status, whose conditions know when they changed.
    pub status: NodeStatus,
    /// When it is told.
    pub at: Timestamp,
}

impl Report {
    /// One with `status`, after one with the conditions `before`.
    pub fn new(mut status: NodeStatus, before: &[NodeCondition], at: Timestamp) -> Self {
        for condition in status.conditions.iter_mut().flatten() {
            let same = before.iter().find(|one| one.type_ == condition.type_ && one.status == condition.status);
            let since = same.and_then(|one| one.last_transition_time.clone());
            condition.last_transition_time = Some(since.unwrap_or(Time(at)));
        }
        Self { status, at }
    }

    /// Everything that is worth a request: not the times.
    fn news(&self) -> NodeStatus {
        let mut status = self.status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
            condition.last_transition_time = None;
        }
        status
    }
}

/// A strategic merge patch for the status, and what is then told; `None` as long as there is nothing to tell: no change
/// since the `last` report, nobody else has changed a condition, and the report is not too old.
pub fn status_patch(
    observed: &DynamicObject,
    wanted: NodeStatus,
    last: Option<&Report>,
    now: Timestamp,
) -> Option<(Value, Report)> {
    let before: Vec<NodeCondition> = observed
        .data
        .pointer("/status/conditions")
        .and_then(|conditions| serde_json::from_value(conditions.clone()).ok())
        .unwrap_or_default();
    let report = Report::new(wanted, &before, now);
    let is_there = |own: &NodeCondition| before.iter().any(|one| one.type_ == own.type_ && says(one) == says(own));
    let is_told = |last: &Report| now.duration_since(last.at) < REPORTED && last.news() == report.news();
    if report.status.conditions.iter().flatten().all(is_there) && last.is_some_and(is_told) {
        return None;
    }
    let mut status = serde_json::to_value(&report.status).unwrap_or_default();
    // Two addresses may be of one type, by which a list of them would be merged.
    if let Some(addresses) = status.get_mut("addresses").and_then(Value::as_array_mut) {
        addresses.push(json!({ "$patch": "replace" }));
    }
    if let Some(fields) = status.as_object_mut() {
        fields.entry("declaredFeatures").or_insert(Value::Null);
    }
    Some((json!({ "status": status }), report))
}

/// Whether the API server has it for ready.
pub fn is_ready(observed: &DynamicObject) -> bool {
    let conditions = observed.data.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

fn says(condition: &NodeCondition) -> (&str, Option<&str>, Option<&str>) {
    (&condition.status, condition.reason.as_deref(), condition.message.as_deref())
}

/// What is wrong with an object that only somebody with more rights can mend.
pub fn remarks(observed: &DynamicObject) -> Vec<String> {
    let taints = observed.data.pointer("/spec/taints").and_then(Value::as_array);
    let is_tainted = taints.is_some_and(|taints| taints.iter().any(|taint| taint["key"] == STATIC_PODS_ONLY_TAINT));
    let missing = format!(
        "the node has no taint {STATIC_PODS_ONLY_TAINT}:NoSchedule, so that pods may be bound to it that are not run here; \
         `kubectl taint nodes {} {STATIC_PODS_ONLY_TAINT}:NoSchedule` sets it",
        observed.metadata.name.as_deref().unwrap_or_default()
    );
    (!is_tainted).then_some(missing).into_iter().collect()
}

/// As Go calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests;
