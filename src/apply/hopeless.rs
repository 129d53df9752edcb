//! When waiting longer cannot help: what the agent says of the control plane, and how long to believe it.
//!
//! Conservative: a component that crashes for want of another one, or of a clock that somebody may still set, is
//! waited for until the deadline. Given up is only on what stays as it is while `init` waits.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::autopsy::{Certainty, certainty};
use crate::agent::client::AgentClient;
use crate::agent::status::{AgentStatus, ContainerSummary};
use crate::layout::Layout;
use crate::plan;
use crate::release::Component;

/// How often the agent is asked. Rare beside the health checks: it serves those who wait in vain.
const POLL: Duration = Duration::from_millis(500);

/// An engine that restarts (`RestartSec=2` in Docker's unit) answers again well before this.
const ENGINE_AWAY: Duration = Duration::from_secs(20);

/// A registry may hiccup, and an image may be on its way by hand: the agent has tried twice by then (after 10 s).
const IMAGE_MISSING: Duration = Duration::from_secs(15);

/// The engine has refused several times by then.
const CANNOT_RUN: Duration = Duration::from_secs(10);

/// Returns when the agent of `layout` has been reporting something hopeless for long enough. An agent that does not
/// answer is no reason: it may be starting. Crashes from before `since` are none either: somebody may have mended what
/// they came of.
pub(super) async fn hopeless(layout: &Layout, since: Timestamp) {
    let Ok(agent) = AgentClient::new(layout) else { return std::future::pending().await };
    let mut begin: Option<Instant> = None;
    loop {
        tokio::time::sleep(POLL).await;
        let patience = match agent.status().await {
            Ok(status) => patience(&status, layout, since),
            Err(_) => None,
        };
        match patience {
            Some(patience) if begin.get_or_insert_with(Instant::now).elapsed() >= patience => return,
            Some(_) => {}
            None => begin = None,
        }
    }
}

/// How long the present state has to last until there is no hope; `None` while there is some.
fn patience(status: &AgentStatus, layout: &Layout, since: Timestamp) -> Option<Duration> {
    if status.problem.is_some() {
        // The rest of the status is from before.
        return Some(ENGINE_AWAY);
    }
    let is_ours = |file: &str| Component::ALL.iter().any(|one| Path::new(file) == plan::manifest_path(layout, *one));
    let rejected = status.sources.iter().flat_map(|source| &source.rejected).any(|one| is_ours(&one.file));
    let components = Component::ALL.iter().filter_map(|component| {
        let pod = status.control_plane_pod(component.name())?;
        pod.containers.iter().find(|container| container.name == component.name())
    });
    rejected.then_some(Duration::ZERO).into_iter().chain(components.filter_map(|one| without_hope(one, since))).min()
}

/// How long the present state of `container` has to last until there is no hope; `None` while there is some. Crashes from
/// before `since` count for nothing.
pub(super) fn without_hope(container: &ContainerSummary, since: Timestamp) -> Option<Duration> {
    let crashes = container.restart_count + 1;
    match container.reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => Some(IMAGE_MISSING),
        "RunContainerError" | "CreateContainerError" | "CreateContainerConfigError" => Some(CANNOT_RUN),
        "CrashLoopBackOff" => {
            let last = container.last_termination.as_ref().filter(|last| last.finished_at >= since)?;
            let needed = match certainty(&last.message)? {
                // The flags are the same each time.
                Certainty::OfItself => 2,
                // The second restart comes after ten seconds, in which somebody could have mended it.
                Certainty::OfTheHost => 3,
            };
            (crashes >= needed).then_some(Duration::ZERO)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::agent::status::{PodSummary, Rejection, SourceStatus, TerminationSummary};

    fn status(component: Component, reason: &str, restart_count: u32, said: &str) -> AgentStatus {
        let container = ContainerSummary {
            name: component.name().into(),
            state: "waiting".into(),
            reason: reason.into(),
            restart_count,
            last_termination: Some(TerminationSummary { message: said.into(), ..TerminationSummary::default() }),
            ..ContainerSummary::default()
        };
        let pod = PodSummary {
            namespace: "kube-system".into(),
            name: format!("{component}-master"),
            containers: vec![container],
            ..PodSummary::default()
        };
        AgentStatus { node_name: "master".into(), pods: vec![pod], ..AgentStatus::default() }
    }

    fn rejecting(file: &str) -> AgentStatus {
        let rejected = vec![Rejection { file: file.into(), reason: "no".into() }];
        AgentStatus { sources: vec![SourceStatus { rejected, ..SourceStatus::default() }], ..AgentStatus::default() }
    }

    #[test]
    fn only_what_stays_as_it_is_is_hopeless() {
        let now = Some(Duration::ZERO);
        let crashing = |restarts, said| status(Component::KubeApiserver, "CrashLoopBackOff", restarts, said);
        for (name, status, expected) in [
            ("nothing known", AgentStatus::default(), None),
            ("starting", status(Component::Etcd, "ContainerCreating", 0, ""), None),
            ("crashed once", crashing(0, "Error: unknown flag: --bogus"), None),
            ("unknown flag", crashing(1, "Error: unknown flag: --bogus"), now),
            ("bad value", crashing(1, r#"Error: invalid argument "x" for "--event-ttl" flag: time: invalid"#), now),
            ("etcd's flags", crashing(1, r#"invalid value "lots" for flag -quota-backend-bytes: parse error"#), now),
            ("file missing, may come", crashing(1, "open /x: no such file or directory"), None),
            ("file missing", crashing(2, "open /x: no such file or directory"), now),
            ("port taken", crashing(2, "listen tcp 0.0.0.0:6443: bind: address already in use"), now),
            ("no etcd", crashing(9, "dial tcp 127.0.0.1:2379: connect: connection refused"), None),
            ("clock", crashing(9, "x509: certificate has expired or is not yet valid: current time"), None),
            ("any crash", crashing(9, "panic: nil"), None),
            ("no image", status(Component::Etcd, "ErrImagePull", 0, ""), Some(IMAGE_MISSING)),
            ("never pulled", status(Component::Etcd, "ErrImageNeverPull", 0, ""), Some(IMAGE_MISSING)),
            ("cannot run", status(Component::Etcd, "RunContainerError", 0, ""), Some(CANNOT_RUN)),
            (
                "engine away",
                AgentStatus { problem: Some("no answer".into()), ..crashing(9, "Error: unknown flag: --x") },
                Some(ENGINE_AWAY),
            ),
            ("our manifest refused", rejecting("/etc/kubernetes/manifests/etcd.yaml"), now),
            ("another's manifest refused", rejecting("/etc/kubernetes/manifests/mine.yaml"), None),
        ] {
            assert_eq!(patience(&status, &Layout::default(), Timestamp::default()), expected, "{name}");
        }
    }

    #[test]
    fn crashes_from_before_may_have_been_mended() {
        let status = status(Component::Etcd, "CrashLoopBackOff", 9, "Error: unknown flag: --bogus");
        let end = Timestamp::default();
        for (since, expected) in [(end, Some(Duration::ZERO)), (end + SignedDuration::from_millis(1), None)] {
            assert_eq!(patience(&status, &Layout::default(), since), expected);
        }
    }

    #[test]
    fn somebody_elses_pod_does_not_matter() {
        let mut status = status(Component::Etcd, "ErrImagePull", 0, "");
        status.pods[0].namespace = "default".into();
        assert_eq!(patience(&status, &Layout::default(), Timestamp::default()), None);
    }
}
