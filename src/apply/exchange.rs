//! Exchanges the manifest of a component that others rely on, and puts the old one back.
//!
//! # Guarantees
//! - Nobody is taken for the new instance but the new instance: the agent has to report a container that runs of the pod
//!   as it was written, proven where it is replaced new-first, and then the component's own health endpoint decides;
//!   that of an API server has to be of the new version. The API server is not asked, but for who leads, where it
//!   answers.
//! - A manifest is put back only where there is one that a healthy component ran with.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::hopeless::without_hope;
use super::lead::{Lead, Leads};
use super::watch::Watch;
use super::{ApplyError, Goal, HealthyAfter, Host};
use crate::agent::client::AgentClient;
use crate::agent::pod::StaticPod;
use crate::agent::status::{AgentStatus, ContainerSummary, PodSummary};
use crate::fsx;
use crate::health::{self, Checker};
use crate::journal::Ledger;
use crate::plan::{self, Back, generation};
use crate::release::Component;
use crate::runtime::{Runtime, State};
use crate::ui::Phase;
use crate::yaml;

use super::files::MANIFEST_MODE;

/// How long the agent may list a file as rejected that has just been written: it reads changes at once.
const REJECTED: Duration = Duration::from_secs(2);

/// How the reason begins where the agent has given up the new instance beside the old one, which still serves.
pub(super) const REJECTED_NEW: &str = "rejected: ";

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

    /// Whose.
    pub(super) fn component(&self) -> Component {
        self.component
    }

    /// There is something to put back.
    pub(super) fn can_go_back(&self) -> bool {
        self.old.is_some()
    }
}

/// Writes the new manifest of `component` and waits until it is healthy with it.
pub(super) async fn exchange<R: Runtime>(
    component: Component,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
) -> Result<HealthyAfter, ApplyError> {
    let text = goal.manifest(component).map(|manifest| manifest.yaml.as_str()).unwrap_or_default();
    let mut phase = host.printer.phase(group(component));
    phase.update(&format!("{component}: exchanging"));
    match write_and_wait(component, text, goal, host, &mut phase).await {
        Ok(Reached { after, leading }) => {
            phase.done(&format!(
                "{component} is healthy{} after {:.1} s{}",
                leading.how(),
                after.as_secs_f64(),
                leading.remark()
            ));
            Ok(HealthyAfter { component, seconds: after.as_secs_f64() })
        }
        Err(error) => {
            phase.failed(&format!("{component} is not healthy with its new manifest"));
            Err(error)
        }
    }
}

/// Puts the old manifest back, if there is one, and waits for its component. Returns that, with the reason where it is
/// not healthy again.
pub(super) async fn put_back<R: Runtime>(
    Exchanged { component, old }: &Exchanged,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
) -> Result<Option<(Component, Option<String>)>, ApplyError> {
    let Some(old) = old else { return Ok(None) };
    let mut phase = host.printer.phase(group(*component));
    phase.update(&format!("{component}: putting the old manifest back"));
    match write_and_wait(*component, old, goal, host, &mut phase).await {
        Ok(Reached { after, leading }) => {
            let how = leading.how();
            let remark = leading.remark();
            phase.done(&format!("{component} is back and healthy{how} after {:.1} s{remark}", after.as_secs_f64()));
            Ok(Some((*component, None)))
        }
        Err(ApplyError::Unhealthy { unhealthy, .. }) => {
            phase.failed(&format!("{component} is back and not healthy"));
            let reason = unhealthy.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>().join("; ");
            Ok(Some((*component, Some(reason))))
        }
        Err(error) => Err(error),
    }
}

/// Puts the old manifest back, if there is one, and waits for nothing. Returns whose it is.
pub(super) fn write_back<R>(
    Exchanged { component, old }: &Exchanged,
    host: &Host<'_, R>,
) -> Result<Option<Component>, ApplyError> {
    let Some(old) = old else { return Ok(None) };
    fsx::write_if_changed(&plan::manifest_path(host.layout, *component), old.as_bytes(), MANIFEST_MODE)?;
    Ok(Some(*component))
}

/// The phase to show: `control-plane` of `control-plane/scheduler`.
fn group(component: Component) -> &'static str {
    let phase = plan::manifest_phase(component);
    phase.split_once('/').map_or(phase, |(group, _)| group)
}

/// An exchange that succeeded.
pub(super) struct Reached {
    /// How long it took.
    pub(super) after: Duration,
    leading: Leads,
}

/// Writes `text` as the manifest of `component`, and returns how long it took until a container of that very pod was
/// healthy, and led where it is one that does.
pub(super) async fn write_and_wait<R: Runtime>(
    component: Component,
    text: &str,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
    phase: &mut Phase,
) -> Result<Reached, ApplyError> {
    let path = plan::manifest_path(host.layout, component);
    let within = goal.cluster.timeouts.control_plane_component_health_check;
    let unhealthy = |after, hopeless, reason: String| {
        Err(ApplyError::Unhealthy { after, hopeless, unhealthy: vec![(component, reason)] })
    };
    let pod: Option<Pod> = yaml::manifest(text.as_bytes()).ok();
    // Each is asked where its own manifest says.
    let Some((pod, checker)) =
        pod.as_ref().zip(super::checkers_of(goal, host.layout, pod.iter().map(|pod| (component, pod)))?.pop())
    else {
        return unhealthy(Duration::ZERO, true, "its manifest is no Pod".to_owned());
    };
    let agent = AgentClient::new(host.layout)?;
    let before = agent.status().await.ok();
    let before = before.as_ref().and_then(|status| status.control_plane_pod(component.name()));
    // What the agent refuses it also reports.
    let wanted = StaticPod::read(text, &path, &goal.cluster.node_name).ok().map(|pod| pod.uid);
    let same = before.is_some_and(|before| wanted.as_ref() == Some(&before.uid));
    let old = before.filter(|_| !same).and_then(|before| container_of(before, component)?.container_id.clone());
    let before = before.map(|before| before.uid.clone());
    let mut lead = Lead::before(component, pod, goal, host).await;

    let (begin, since) = (Instant::now(), host.clock.now());
    fsx::write_if_changed(&path, text.as_bytes(), MANIFEST_MODE)?;
    let mut hopeless_since: Option<Instant> = None;
    let mut watch = Watch::default();
    let file = path.display().to_string();
    loop {
        let seen = if let Ok(status) = agent.status().await {
            watch.runs();
            look(&status, component, &file, before.as_deref(), wanted.as_deref(), since)
        } else {
            watch.look(host)?;
            Seen::Waiting { reason: "the agent does not answer".to_owned(), patience: None }
        };
        // The agent starts none before the old one is gone; the sooner this is known, the better.
        if !same && lead.is_held() && (matches!(seen, Seen::Runs { .. }) || has_ended(old.as_deref(), host).await) {
            lead.release().await;
        }
        let (reason, patience) = match seen {
            Seen::Runs { started_at } => match check(&checker, pod).await {
                Ok(()) => match lead.holds(started_at).await {
                    Leads::NotYet => ("healthy, and does not lead yet".to_owned(), None),
                    leading => return Ok(Reached { after: begin.elapsed(), leading }),
                },
                Err(reason) => (reason, None),
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

/// Whether the container `id` is known to have ended.
async fn has_ended<R: Runtime>(id: Option<&str>, host: &Host<'_, R>) -> bool {
    let Some(id) = id else { return false };
    match host.runtime.inspect(id).await {
        Ok(Some(container)) => matches!(container.state, State::Exited(_)),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Asks the instance itself: for its health, and an API server for its version.
async fn check(checker: &Checker, pod: &Pod) -> Result<(), String> {
    checker.check().await.map_err(|reason| reason.to_string())?;
    let Some(version) = version_of(pod).filter(|_| checker.component() == Component::KubeApiserver) else {
        return Ok(());
    };
    let said = checker.version().await.map_err(|reason| reason.to_string())?;
    if same_release(&said, &version) { Ok(()) } else { Err(format!("who answers is {said}, not v{version}")) }
}

/// What the tag of the image promises; `None` where it is no version.
fn version_of(pod: &Pod) -> Option<semver::Version> {
    let image = pod.spec.as_ref()?.containers.first()?.image.as_deref()?;
    let (image, _digest) = image.split_once('@').unwrap_or((image, ""));
    semver::Version::parse(image.rsplit_once(':')?.1.strip_prefix('v')?).ok()
}

/// Whoever builds a release anew may add to its name.
fn same_release(said: &str, version: &semver::Version) -> bool {
    let said = semver::Version::parse(said.strip_prefix('v').unwrap_or(said));
    said.is_ok_and(|said| (said.major, said.minor, said.patch) == (version.major, version.minor, version.patch))
}

/// What the agent says of the instance that is waited for.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// A container of it runs, and serves.
    Runs {
        /// Since when.
        started_at: Option<Timestamp>,
    },
    /// None does.
    Waiting {
        /// Why.
        reason: String,
        /// How long this has to last until there is no hope; `None` while there is some.
        patience: Option<Duration>,
    },
}

/// Looks for the pod that has the uid `wanted`, or, with an agent of another build that counts otherwise, any but that
/// of the pod from `before`. What crashed before `since` may have been mended.
fn look(
    status: &AgentStatus,
    component: Component,
    file: &str,
    before: Option<&str>,
    wanted: Option<&str>,
    since: Timestamp,
) -> Seen {
    let waiting = |reason: String, patience| Seen::Waiting { reason, patience };
    if let Some(one) = status.sources.iter().flat_map(|source| &source.rejected).find(|one| one.file == file) {
        return waiting(one.reason.clone(), Some(REJECTED));
    }
    let pod = status.control_plane_pod(component.name()).filter(|pod| pod.origin.is_some());
    // One that is replaced new-first is proven beside the old one, which serves meanwhile.
    let update = pod.and_then(|pod| pod.update.as_ref()).filter(|update| Some(update.uid.as_str()) == wanted);
    match update.map(|update| &update.rejected) {
        Some(Some(reason)) => return waiting(format!("{REJECTED_NEW}{reason}"), Some(Duration::ZERO)),
        Some(None) => return waiting(trial(pod, component, wanted), None),
        None => {}
    }
    let is_other = |uid: &str| before.is_some_and(|before| before != uid);
    let taken = pod.filter(|pod| Some(pod.uid.as_str()) == wanted || is_other(&pod.uid));
    let Some(pod) = taken else { return waiting("the agent has not taken it over yet".to_owned(), None) };
    match container_of(pod, component) {
        Some(container) if container.state == "running" => Seen::Runs { started_at: container.started_at },
        Some(container) => {
            let said = container.last_termination.as_ref().map_or("", |termination| termination.message.as_str());
            let reason = [container.reason.as_str(), said].into_iter().filter(|part| !part.is_empty());
            let reason = reason.collect::<Vec<_>>().join(": ");
            waiting(if reason.is_empty() { container.state.clone() } else { reason }, without_hope(container, since))
        }
        None => waiting("its container is being made".to_owned(), None),
    }
}

/// How far the one that is being tried has come.
fn trial(pod: Option<&PodSummary>, component: Component, wanted: Option<&str>) -> String {
    let tried = pod.filter(|pod| Some(pod.uid.as_str()) == wanted).and_then(|pod| container_of(pod, component));
    let message = tried.map(|container| container.message.as_str()).filter(|message| !message.is_empty());
    message.map_or_else(|| "is being tried".to_owned(), |message| format!("is being tried: {message}"))
}

fn container_of(pod: &PodSummary, component: Component) -> Option<&ContainerSummary> {
    pod.containers.iter().find(|container| container.name == component.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::status::{Rejection, SourceStatus, TerminationSummary, Update};

    const FILE: &str = "/etc/kubernetes/manifests/kube-scheduler.yaml";

    const RUNS: Seen = Seen::Runs { started_at: None };

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
        let look = |status: &AgentStatus, before| {
            look(status, Component::KubeScheduler, FILE, before, Some("new"), Timestamp::default())
        };
        let waits = |seen: Seen| match seen {
            Seen::Waiting { reason, patience } => (reason, patience.is_some()),
            Seen::Runs { .. } => panic!("runs"),
        };
        assert_eq!(look(&status("new", "running", ""), Some("old")), RUNS);
        assert_eq!(look(&status("new", "running", ""), Some("new")), RUNS, "it was there already");
        assert_eq!(look(&status("other", "running", ""), Some("old")), RUNS, "another build's uid");
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
        let seen = look(&status, Component::KubeScheduler, FILE, Some("old"), None, Timestamp::default());
        assert_eq!(seen, Seen::Waiting { reason: "no".to_owned(), patience: Some(REJECTED) });
    }

    #[test]
    fn one_that_is_tried_beside_the_old_one_has_to_be_proven() {
        let look = |uid: &str, update: Option<(&str, Option<&str>)>| {
            let mut status = status(uid, "running", "");
            status.pods[0].update =
                update.map(|(uid, why)| Update { uid: uid.to_owned(), rejected: why.map(str::to_owned) });
            look(&status, Component::KubeScheduler, FILE, Some("old"), Some("new"), Timestamp::default())
        };
        let waiting = |reason: &str, patience| Seen::Waiting { reason: reason.to_owned(), patience };
        for (name, uid, update, expected) in [
            ("tried", "new", Some(("new", None)), waiting("is being tried", None)),
            ("goes after another", "other", Some(("new", None)), waiting("is being tried", None)),
            ("proven", "new", None, RUNS),
            (
                "rejected",
                "old",
                Some(("new", Some("it exited with code 1"))),
                waiting("rejected: it exited with code 1", Some(Duration::ZERO)),
            ),
            (
                "another was rejected before",
                "old",
                Some(("other", Some("no"))),
                waiting("the agent has not taken it over yet", None),
            ),
            ("back, and the agent has not looked yet", "new", Some(("other", Some("no"))), RUNS),
        ] {
            assert_eq!(look(uid, update), expected, "{name}");
        }
    }

    #[test]
    fn the_images_tag_tells_the_version() {
        for (image, said, same) in [
            ("registry.k8s.io/kube-apiserver:v1.37.1", "v1.37.1", Some(true)),
            ("registry.k8s.io/kube-apiserver:v1.37.1", "v1.36.3", Some(false)),
            ("localhost:5000/kube-apiserver:v1.37.1-3@sha256:00", "v1.37.1+vendor.2", Some(true)),
            ("localhost:5000/kube-apiserver", "v1.37.1", None),
            ("kube-apiserver:mine", "v1.37.1", None),
        ] {
            let pod = serde_json::json!({ "spec": { "containers": [{ "name": "kube-apiserver", "image": image }] } });
            let version = version_of(&serde_json::from_value(pod).unwrap());
            assert_eq!(version.map(|version| same_release(said, &version)), same, "{image}");
        }
    }
}
