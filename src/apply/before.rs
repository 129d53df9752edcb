//! What is looked at before the version of a control plane changes.

use std::future::pending;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::{Goal, Host};
use crate::cluster::survey::survey;
use crate::config::Cluster;
use crate::error::root_cause;
use crate::fsx::Holder;
use crate::health::{self, Unmet};
use crate::journal::Ledger;
use crate::plan::{self, generation};
use crate::preflight::Upgrade;
use crate::service;
use crate::yaml;

/// How long components that are being started, after a restart of the engine perhaps, may take to become healthy.
const SETTLES: Duration = Duration::from_secs(20);

/// How long one that nobody has to wait for may take to answer.
const ANSWERS: Duration = Duration::from_secs(2);

/// Looks at the control plane `from`, which is to get the version of `goal`.
pub async fn before_upgrade<R>(from: &Cluster, goal: &Goal<'_>, host: &Host<'_, R>, ledger: &Ledger) -> Upgrade {
    let generation = generation::committed(host.layout, ledger).ok().flatten();
    let manifests = generation.map(|generation| generation.manifests).unwrap_or_default();
    let on_disk = |component| std::fs::read_to_string(plan::manifest_path(host.layout, component)).ok();
    let at_rest = manifests.iter().all(|(component, text)| on_disk(*component).as_ref() == Some(text));
    let agent_runs = service::running(host.layout).is_ok_and(|holder| holder != Holder::Free);
    let moves = goal.cluster.advertise_address != from.advertise_address;
    let mends = goal.cluster.version < from.version || !agent_runs || !at_rest || moves;
    let patience = if mends { ANSWERS } else { SETTLES };

    // Each is asked where it is now.
    let pods: Vec<(_, Pod)> = manifests
        .iter()
        .filter_map(|(component, text)| Some((*component, yaml::manifest(text.as_bytes()).ok()?)))
        .collect();
    let checkers = super::checkers_of(goal, host.layout, pods.iter().map(|(component, pod)| (*component, pod)));
    // Without credentials nobody can be asked; they are made.
    let checkers = checkers.unwrap_or_default();
    let unhealthy = match health::wait(&checkers, patience, health::POLL, pending::<()>(), |_| {}).await {
        Ok(_) => Vec::new(),
        Err(Unmet::TimedOut { unhealthy, .. } | Unmet::Aborted { unhealthy, .. }) => unhealthy,
    };
    let survey = match super::who_may_write(goal, host.layout) {
        Some((file, kubeconfig)) => {
            survey(file, &kubeconfig).await.map_err(|error| format!("{error}: {}", root_cause(&error)))
        }
        None => Err("there is no kubeconfig to ask the API server with".to_owned()),
    };
    let unhealthy = unhealthy.into_iter().map(|one| (one.component, one.reason.to_string())).collect();
    Upgrade { unhealthy, mends, survey }
}
