//! Gathers the evidence from the host: whatever can be learnt, going on where something cannot.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{CertificateDates, ComponentEvidence, Evidence, PortOwner, disk_free};
use crate::agent::client::AgentClient;
use crate::agent::status::AgentStatus;
use crate::apply::{Goal, Host, checkers};
use crate::config::HostFacts;
use crate::health::Target;
use crate::manifests::Manifest;
use crate::plan;
use crate::proc::Proc;
use crate::release::Component;
use crate::runtime::{Container, Runtime, RuntimeError, labels};
use crate::takedown;

/// How much of each component's log is looked at. etcd under an API server that keeps retrying writes some ten lines a
/// second.
const LOG_LINES: usize = 200;

/// How long the engine may take to say where its data is.
const INFO: Duration = Duration::from_secs(2);

/// Looks at everything that can explain why `unhealthy` components did not come up within `waited`.
pub async fn gather<R: Runtime>(
    goal: &Goal<'_>,
    host: &Host<'_, R>,
    waited: Duration,
    unhealthy: &[(Component, String)],
) -> Evidence {
    let agent = match AgentClient::new(host.layout) {
        Ok(client) => client.status().await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    // Not judged by what the engine says of itself: that hangs while a registry's name is being looked up.
    let listed = match takedown::agent_id(host.layout) {
        Ok(Some(id)) => host.runtime.list(&id).await,
        _ => host.runtime.info().await.map(|_| Vec::new()),
    };
    let answers = listed.as_ref().map(drop).map_err(|error| match error {
        RuntimeError::Unreachable(why) => why.clone(),
        other => other.to_string(),
    });
    let containers = listed.unwrap_or_default();
    let info = match timeout(INFO, host.runtime.info()).await {
        Ok(Ok(info)) if answers.is_ok() => Some(info),
        _ => None,
    };
    let mut components = Vec::new();
    for manifest in goal.manifests {
        let component = manifest.component;
        let image = goal.cluster.image(component);
        let is_missing = matches!(host.runtime.image(&image).await, Ok(None));
        let log = match newest(&containers, component) {
            Some(container) => host.runtime.logs(&container.id, LOG_LINES).await.unwrap_or_default(),
            None => String::new(),
        };
        let reason = unhealthy.iter().find(|(one, _)| *one == component).map(|(_, reason)| reason.clone());
        components.push(ComponentEvidence {
            component,
            unhealthy: reason,
            missing_image: is_missing.then_some(image),
            log: log.lines().map(str::to_owned).collect(),
        });
    }
    // Who was healthy once may be so no longer: the wait does not ask again.
    for (component, reason) in relapsed(goal, host, unhealthy).await {
        components.iter_mut().filter(|of| of.component == component).for_each(|of| of.unhealthy = Some(reason.clone()));
    }
    let etcd_data_dir = host.layout.below_root(&goal.cluster.etcd.data_dir);
    let mut directories = vec![etcd_data_dir.clone(), host.layout.state()];
    directories.extend(info.map(|info| info.data_root));
    Evidence {
        now: host.clock.now(),
        waited,
        runtime: answers,
        ports: port_owners(goal, &containers, agent.as_ref().ok()),
        agent,
        components,
        disks: directories.iter().filter_map(|path| disk_free(path).ok()).collect(),
        memory_available: Proc::new(host.layout.proc()).memory().ok().map(|memory| memory.available),
        certificates: certificates(goal),
        advertise_address: goal.cluster.advertise_address,
        address_is_ours: HostFacts::collect([]).map_or(true, |facts| facts.has_address(goal.cluster.advertise_address)),
        etcd_data_dir,
    }
}

/// Components that are not among the `unhealthy`, and not healthy now, with the reason.
async fn relapsed<R: Runtime>(
    goal: &Goal<'_>,
    host: &Host<'_, R>,
    unhealthy: &[(Component, String)],
) -> Vec<(Component, String)> {
    let checkers = checkers(goal, host.layout).unwrap_or_default();
    let answers = checkers
        .iter()
        .filter(|checker| !unhealthy.iter().any(|(component, _)| *component == checker.component()))
        .map(async |checker| Some((checker.component(), checker.check().await.err()?.to_string())));
    join_all(answers).await.into_iter().flatten().collect()
}

/// The newest container of `component`.
fn newest(containers: &[Container], component: Component) -> Option<&Container> {
    containers
        .iter()
        .filter(|container| container.labels.get(labels::CONTAINER_NAME).is_some_and(|name| name == component.name()))
        .max_by_key(|container| container.created_at)
}

/// Who listens on the ports that the components' probes ask, and on etcd's client and peer ports.
fn port_owners(goal: &Goal<'_>, containers: &[Container], agent: Option<&AgentStatus>) -> Vec<PortOwner> {
    let wanted: Vec<(u16, Component)> = goal
        .manifests
        .iter()
        .flat_map(|manifest| {
            let more: &[u16] = if manifest.component == Component::Etcd { &[2379, 2380] } else { &[] };
            probed_port(goal, manifest)
                .into_iter()
                .chain(more.iter().copied())
                .map(|port| (port, manifest.component))
                .collect::<Vec<_>>()
        })
        .collect();
    let ports: Vec<u16> = wanted.iter().map(|(port, _)| *port).collect();
    let ours = |id: &str| {
        containers.iter().any(|container| container.id == id)
            || agent.is_some_and(|agent| {
                agent.pods.iter().flat_map(|pod| &pod.containers).any(|c| c.container_id.as_deref() == Some(id))
            })
    };
    let listeners = Proc::default().listeners(&ports).unwrap_or_default();
    let mut owners: Vec<_> = listeners
        .into_iter()
        .filter_map(|listener| {
            let component = wanted.iter().find(|(port, _)| *port == listener.port)?.1;
            let process = listener.process;
            Some(PortOwner {
                port: listener.port,
                component,
                pid: process.as_ref().map(|process| process.pid),
                // The agent listens beside an API server that it replaces.
                ours: process.as_ref().is_some_and(|process| {
                    agent.is_some_and(|agent| i64::from(agent.pid) == i64::from(process.pid))
                        || process.container.as_deref().is_some_and(ours)
                }),
                command: process.map(|process| process.command).unwrap_or_default(),
            })
        })
        .collect();
    // One process may listen on several addresses.
    owners.sort_by_key(|owner| (owner.component, owner.port, owner.pid));
    owners.dedup();
    owners
}

fn probed_port(goal: &Goal<'_>, manifest: &Manifest) -> Option<u16> {
    let node = goal.cluster.advertise_address;
    let target = Target::from_pod(manifest.component, &manifest.pod, node, crate::health::Trust::Plain).ok()?;
    target.url.port_or_known_default()
}

fn certificates(goal: &Goal<'_>) -> Vec<CertificateDates> {
    plan::certificates(goal.inventory)
        .into_iter()
        .map(|(file, info)| CertificateDates { file, not_before: info.not_before, not_after: info.not_after })
        .collect()
}
