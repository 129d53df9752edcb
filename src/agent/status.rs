//! What the agent says of itself and its pods on `GET /status`: the one wire format between agent and command line.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// The whole answer. Fields are only ever added.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Version of the plinth that runs.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Since when it runs.
    pub started_at: Timestamp,
    /// Value of the `plinth.dev/agent` label of its containers.
    pub agent_id: String,
    /// Name of the node, as pod names carry it.
    pub node_name: String,
    /// What keeps the agent from working at all: the container runtime is away, …
    pub problem: Option<String>,
    /// Where pods come from.
    pub sources: Vec<SourceStatus>,
    /// The pods, in order of namespace and name.
    pub pods: Vec<PodSummary>,
    /// Deviations and degraded modes worth knowing.
    pub warnings: Vec<String>,
}

/// One source of static pods.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Path, or URL without credentials and query.
    pub location: String,
    /// When it was last read completely.
    pub last_read_at: Option<Timestamp>,
    /// Why it cannot be read at the moment.
    pub problem: Option<String>,
    /// Files that are not run, each with its reason.
    pub rejected: Vec<Rejection>,
    /// How many pods it has that are run.
    #[serde(default)]
    pub pods: usize,
}

/// A file that is not run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejection {
    /// Which file.
    pub file: String,
    /// Why, with line and field where known.
    pub reason: String,
}

/// One pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSummary {
    /// Namespace.
    pub namespace: String,
    /// Name with the node's name appended.
    pub name: String,
    /// UID.
    pub uid: String,
    /// File or URL it comes from; `None` for a pod that is being removed.
    pub origin: Option<String>,
    /// Pending, Running, Succeeded or Failed.
    pub phase: String,
    /// All containers are ready.
    pub ready: bool,
    /// One line a person can act on; `None` for a pod that is well.
    pub message: Option<String>,
    /// Its containers, init containers first.
    pub containers: Vec<ContainerSummary>,
    /// The file holds another spec than the one that serves. Only for a pod that is replaced new-first.
    pub update: Option<Update>,
}

/// What became of the spec in the file of a pod that is replaced new-first, as long as it does not serve.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// UID of the pod in the file.
    pub uid: String,
    /// Why it was given up; `None` while it is being tried.
    pub rejected: Option<String>,
}

/// One container of a pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerSummary {
    /// Name in the pod.
    pub name: String,
    /// Image reference.
    pub image: String,
    /// Id in the runtime, once there is one.
    pub container_id: Option<String>,
    /// Process id on the host while it runs.
    pub pid: Option<i32>,
    /// `waiting`, `running` or `terminated`.
    pub state: String,
    /// `CrashLoopBackOff`, `ErrImagePull`, `Completed`, …; empty while running.
    pub reason: String,
    /// Details of the reason, the last failed probe, …
    pub message: String,
    /// Start-up probe passed, or there is none and it runs.
    pub started: bool,
    /// Readiness probe passed, or there is none and it runs.
    pub ready: bool,
    /// How often it was started again.
    pub restart_count: u32,
    /// Start of the running instance.
    pub started_at: Option<Timestamp>,
    /// End of the last ended instance.
    pub last_termination: Option<TerminationSummary>,
}

/// How an instance of a container ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TerminationSummary {
    /// Id of that instance, for its logs.
    pub container_id: String,
    /// Exit code.
    pub exit_code: i64,
    /// `OOMKilled`, `Error`, `Completed`, `ContainerCannotRun`.
    pub reason: String,
    /// The engine's words, or else the termination message, or else the most telling line of the log.
    pub message: String,
    /// When it ended.
    pub finished_at: Timestamp,
}

impl PodSummary {
    /// It is ready, or has done what it had to; its message is then no more than a remark.
    pub fn is_well(&self) -> bool {
        self.ready || self.phase == "Succeeded"
    }

    /// Nothing is wrong, it only takes its time: what is not ready `now` runs for the first time, has not answered its
    /// start-up probe yet, or has only just done so.
    pub fn is_starting(&self, now: Timestamp) -> bool {
        /// Readiness probes follow the start-up probe at their own period.
        const SETTLES: SignedDuration = SignedDuration::from_secs(15);
        let is_young = |c: &ContainerSummary| c.started_at.is_some_and(|start| now.duration_since(start) < SETTLES);
        let starts =
            |c: &ContainerSummary| c.state == "running" && c.last_termination.is_none() && (!c.started || is_young(c));
        self.phase == "Running" && self.containers.iter().all(|container| container.ready || starts(container))
    }
}

impl AgentStatus {
    /// The pod of the static pod `name` (without the node's suffix) in `kube-system`.
    pub fn control_plane_pod(&self, name: &str) -> Option<&PodSummary> {
        let full = format!("{name}-{}", self.node_name.to_lowercase());
        self.pods.iter().find(|pod| pod.namespace == "kube-system" && pod.name == full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_starts_for_the_first_time_is_no_problem() {
        let now: Timestamp = "2026-11-21T08:00:00Z".parse().unwrap();
        let running = ContainerSummary {
            state: "running".into(),
            started_at: Some(now - SignedDuration::from_secs(60)),
            ..ContainerSummary::default()
        };
        let ended = Some(TerminationSummary::default());
        for (name, container, expected) in [
            ("before its start-up probe", running.clone(), true),
            ("started, not ready", ContainerSummary { started: true, ..running.clone() }, false),
            ("just started", ContainerSummary { started: true, started_at: Some(now), ..running.clone() }, true),
            ("ready", ContainerSummary { started: true, ready: true, ..running.clone() }, true),
            ("runs again", ContainerSummary { last_termination: ended, ..running.clone() }, false),
            ("waits", ContainerSummary { state: "waiting".into(), ..running }, false),
        ] {
            let pod = PodSummary { phase: "Running".into(), containers: vec![container], ..PodSummary::default() };
            assert_eq!(pod.is_starting(now), expected, "{name}");
        }
    }
}
