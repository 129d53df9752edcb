//! Exchanges the manifest of a component that others rely on, and puts the old one back.
//!
//! # Guarantees
//! - Nobody is taken for the new instance but the new instance: the agent has to report a container that runs of the pod
//!   as it was written, and then the component's own health endpoint decides. The API server is not asked.
//! - A manifest is put back only where there is one that a healthy component ran with.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use super::hopeless::without_hope;
use super::{ApplyError, Goal, HealthyAfter, Host};
use crate::agent::client::AgentClient;
use crate::agent::pod::StaticPod;
use crate::agent::status::AgentStatus;
use crate::fsx;
use crate::health;
use crate::journal::Ledger;
use crate::plan::{self, Back, generation};
use crate::release::Component;
use crate::ui::Phase;
use crate::yaml;

use super::files::MANIFEST_MODE;

/// How long the agent may list a file as rejected that has just been written: it reads changes at once.
const REJECTED: Duration = Duration::from_secs(2);

/// A component whose manifest has been exchanged, or is about to be.
#[derive(Debug)]
pub(super) struct Exchanged {
    component: Component,
    old: Option<String>,
}

impl Exchanged {
    /// Reads what is to be put back if need be.
    pub(super) fn of<R>(
        component: Component,
        back: Back,
        host: &Host<'_, R>,
        ledger: &Ledger,
    ) -> Result<Self, ApplyError> {
        let old = match back {
            Back::OnDisk => Some(fsx::read_to_string(&plan::manifest_path(host.layout, component))?),
            Back::LastGeneration => generation::committed(host.layout, ledger)?
                .and_then(|mut generation| generation.manifests.remove(&component)),
            Back::Nothing => None,
        };
        Ok(Self { component, old })
    }

    /// There is something to put back.
    pub(super) fn can_go_back(&self) -> bool {
        self.old.is_some()
    }
}

/// Writes the new manifest of `component` and waits until it is healthy with it.
pub(super) async fn exchange<R>(
    component: Component,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
) -> Result<HealthyAfter, ApplyError> {
    let wanted = goal.manifests.iter().find(|manifest| manifest.component == component);
    let text = wanted.map(|manifest| manifest.yaml.as_str()).unwrap_or_default();
    let mut phase = host.printer.phase(group(component));
    phase.update(&format!("{component}: exchanging"));
    match write_and_wait(component, text, goal, host, &mut phase).await {
        Ok(after) => {
            phase.done(&format!("{component} is healthy after {:.1} s", after.as_secs_f64()));
            Ok(HealthyAfter { component, seconds: after.as_secs_f64() })
        }
        Err(error) => {
            phase.failed(&format!("{component} is not healthy with its new manifest"));
            Err(error)
        }
    }
}

/// Puts the old manifests back, those that were exchanged last first, and waits for each component. Returns them, with
/// the reason where one is not healthy again.
pub(super) async fn put_back<R>(
    exchanged: &[Exchanged],
    goal: &Goal<'_>,
    host: &Host<'_, R>,
) -> Result<Vec<(Component, Option<String>)>, ApplyError> {
    let mut back = Vec::new();
    for Exchanged { component, old } in exchanged.iter().rev() {
        let Some(old) = old else { continue };
        let mut phase = host.printer.phase(group(*component));
        phase.update(&format!("{component}: putting the old manifest back"));
        match write_and_wait(*component, old, goal, host, &mut phase).await {
            Ok(after) => {
                phase.done(&format!("{component} is back and healthy after {:.1} s", after.as_secs_f64()));
                back.push((*component, None));
            }
            Err(ApplyError::Unhealthy { unhealthy, .. }) => {
                phase.failed(&format!("{component} is back and not healthy"));
                let reason = unhealthy.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>().join("; ");
                back.push((*component, Some(reason)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(back)
}

/// The phase to show: `control-plane` of `control-plane/scheduler`.
fn group(component: Component) -> &'static str {
    let phase = plan::manifest_phase(component);
    phase.split_once('/').map_or(phase, |(group, _)| group)
}

/// Writes `text` as the manifest of `component`, and returns how long it took until a container of that very pod was
/// healthy.
pub(super) async fn write_and_wait<R>(
    component: Component,
    text: &str,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
    phase: &mut Phase,
) -> Result<Duration, ApplyError> {
    let path = plan::manifest_path(host.layout, component);
    let within = goal.cluster.timeouts.control_plane_component_health_check;
    let unhealthy = |after, hopeless, reason: String| {
        Err(ApplyError::Unhealthy { after, hopeless, unhealthy: vec![(component, reason)] })
    };
    let agent = AgentClient::new(host.layout)?;
    let before =
        agent.status().await.ok().and_then(|status| Some(status.control_plane_pod(component.name())?.uid.clone()));
    // What the agent refuses it also reports.
    let wanted = StaticPod::read(text, &path, &goal.cluster.node_name).ok().map(|pod| pod.uid);

    let begin = Instant::now();
    fsx::write_if_changed(&path, text.as_bytes(), MANIFEST_MODE)?;
    // Each is asked where its own manifest says.
    let pod: Option<Pod> = yaml::manifest(text.as_bytes()).ok();
    let Some(checker) = super::checkers_of(goal, host.layout, pod.iter().map(|pod| (component, pod)))?.pop() else {
        return unhealthy(Duration::ZERO, true, "its manifest is no Pod".to_owned());
    };
    let mut hopeless_since: Option<Instant> = None;
    let file = path.display().to_string();
    loop {
        let seen = match agent.status().await {
            Ok(status) => look(&status, component, &file, before.as_deref(), wanted.as_deref()),
            Err(_) => Seen::Waiting { reason: "the agent does not answer".to_owned(), patience: None },
        };
        let (reason, patience) = match seen {
            Seen::Runs => match checker.check().await {
                Ok(()) => return Ok(begin.elapsed()),
                Err(reason) => (reason.to_string(), None),
            },
            Seen::Waiting { reason, patience } => (reason, patience),
        };
        phase.update(&format!("{component}: {reason}"));
        match patience {
            Some(patience) if hopeless_since.get_or_insert_with(Instant::now).elapsed() >= patience => {
                return unhealthy(begin.elapsed(), true, reason);
            }
            Some(_) => {}
            None => hopeless_since = None,
        }
        if begin.elapsed() >= within {
            return unhealthy(within, false, reason);
        }
        tokio::time::sleep(health::POLL).await;
    }
}

/// What the agent says of the instance that is waited for.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// A container of it runs.
    Runs,
    /// None does.
    Waiting {
        /// Why.
        reason: String,
        /// How long this has to last until there is no hope; `None` while there is some.
        patience: Option<Duration>,
    },
}

/// Looks for the pod that has the uid `wanted`, or, with an agent of another build that counts otherwise, any but that
/// of the pod from `before`.
fn look(status: &AgentStatus, component: Component, file: &str, before: Option<&str>, wanted: Option<&str>) -> Seen {
    let waiting = |reason: String, patience| Seen::Waiting { reason, patience };
    if let Some(one) = status.sources.iter().flat_map(|source| &source.rejected).find(|one| one.file == file) {
        return waiting(one.reason.clone(), Some(REJECTED));
    }
    let pod = status.control_plane_pod(component.name()).filter(|pod| pod.origin.is_some());
    let is_other = |uid: &str| before.is_some_and(|before| before != uid);
    let taken = pod.filter(|pod| Some(pod.uid.as_str()) == wanted || is_other(&pod.uid));
    let Some(pod) = taken else { return waiting("the agent has not taken it over yet".to_owned(), None) };
    match pod.containers.iter().find(|container| container.name == component.name()) {
        Some(container) if container.state == "running" => Seen::Runs,
        Some(container) => {
            let said = container.last_termination.as_ref().map_or("", |termination| termination.message.as_str());
            let reason = [container.reason.as_str(), said].into_iter().filter(|part| !part.is_empty());
            let reason = reason.collect::<Vec<_>>().join(": ");
            waiting(if reason.is_empty() { container.state.clone() } else { reason }, without_hope(container))
        }
        None => waiting("its container is being made".to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::status::{ContainerSummary, PodSummary, Rejection, SourceStatus, TerminationSummary};

    const FILE: &str = "/etc/kubernetes/manifests/kube-scheduler.yaml";

    fn status(uid: &str, state: &str, reason: &str) -> AgentStatus {
        let container = ContainerSummary {
            name: "kube-scheduler".into(),
            state: state.into(),
            reason: reason.into(),
            restart_count: 1,
            last_termination: Some(TerminationSummary {
                message: "unknown flag: --x".into(),
                ..TerminationSummary::default()
            }),
            ..ContainerSummary::default()
        };
        let pod = PodSummary {
            namespace: "kube-system".into(),
            name: "kube-scheduler-m".into(),
            uid: uid.into(),
            origin: Some(FILE.into()),
            containers: vec![container],
            ..PodSummary::default()
        };
        AgentStatus { node_name: "m".into(), pods: vec![pod], ..AgentStatus::default() }
    }

    #[test]
    fn only_the_new_instance_counts() {
        let look = |status: &AgentStatus, before| look(status, Component::KubeScheduler, FILE, before, Some("new"));
        let waits = |seen: Seen| match seen {
            Seen::Waiting { reason, patience } => (reason, patience.is_some()),
            Seen::Runs => panic!("runs"),
        };
        assert_eq!(look(&status("new", "running", ""), Some("old")), Seen::Runs);
        assert_eq!(look(&status("new", "running", ""), Some("new")), Seen::Runs, "it was there already");
        assert_eq!(look(&status("other", "running", ""), Some("old")), Seen::Runs, "another build's uid");
        let old = waits(look(&status("old", "running", ""), Some("old")));
        assert_eq!(old, ("the agent has not taken it over yet".to_owned(), false));
        let crashed = waits(look(&status("new", "waiting", "CrashLoopBackOff"), Some("old")));
        assert_eq!(crashed, ("CrashLoopBackOff: unknown flag: --x".to_owned(), true));
        // The old one may well have crashed.
        assert!(!waits(look(&status("old", "waiting", "CrashLoopBackOff"), Some("old"))).1);
        assert!(!waits(look(&AgentStatus::default(), None)).1);
    }

    #[test]
    fn a_file_that_the_agent_refuses_is_not_waited_for() {
        let rejected = vec![Rejection { file: FILE.into(), reason: "no".into() }];
        let mut status = status("old", "running", "");
        status.sources = vec![SourceStatus { rejected, ..SourceStatus::default() }];
        let seen = look(&status, Component::KubeScheduler, FILE, Some("old"), None);
        assert_eq!(seen, Seen::Waiting { reason: "no".to_owned(), patience: Some(REJECTED) });
    }
}
