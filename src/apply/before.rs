//! What is looked at before the version of a control plane changes.

use std::collections::BTreeMap;
use std::future::pending;
use std::time::Duration;

use futures_util::future::join;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::timeout;

use super::{Goal, Host};
use crate::cluster::survey::{Survey, survey};
use crate::error::root_cause;
use crate::fsx::Holder;
use crate::health::{self, Unmet};
use crate::journal::Ledger;
use crate::plan::{self, generation};
use crate::preflight::Upgrade;
use crate::release::{Component, KubernetesVersion};
use crate::service;
use crate::yaml;

/// How long components that are being started, after a restart of the engine perhaps, may take to become healthy.
const SETTLES: Duration = Duration::from_secs(20);

/// How long what is to be mended may take to answer.
const ANSWERS: Duration = Duration::from_secs(2);

/// Looks at the control plane of version `from`, which is to become that of `goal`. Nobody is waited for who is to be
/// mended, and nobody is asked while etcd is being replaced: without it nothing answers as it should.
pub async fn before_upgrade<R>(
    from: &KubernetesVersion,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
    ledger: &Ledger,
) -> Upgrade {
    if ledger.etcd_swap.is_some() {
        let why = "the replacement of etcd was interrupted";
        return Upgrade { mends: true, unhealthy: Err(why.to_owned()), survey: Err(why.to_owned()) };
    }
    let generation = generation::committed(host.layout, ledger).ok().flatten();
    let manifests = generation.map(|generation| generation.manifests).unwrap_or_default();
    let on_disk = |component| std::fs::read_to_string(plan::manifest_path(host.layout, component)).ok();
    let at_rest = manifests.iter().all(|(component, text)| on_disk(*component).as_ref() == Some(text));
    let agent_runs = service::running(host.layout).is_ok_and(|holder| holder != Holder::Free);
    let mends = goal.cluster.version < *from || !agent_runs || !at_rest;
    let (unhealthy, survey) = if mends {
        let answer = timeout(ANSWERS, ask_api_server(goal, host));
        let (unhealthy, answer) = join(unhealthy(&manifests, ANSWERS, goal, host), answer).await;
        (unhealthy, answer.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWERS.as_secs()))))
    } else {
        (unhealthy(&manifests, SETTLES, goal, host).await, ask_api_server(goal, host).await)
    };
    Upgrade { mends, unhealthy: Ok(unhealthy), survey }
}

async fn unhealthy<R>(
    manifests: &BTreeMap<Component, String>,
    within: Duration,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
) -> BTreeMap<Component, String> {
    // Each is asked where it is now.
    let pods: Vec<(_, Pod)> = manifests
        .iter()
        .filter_map(|(component, text)| Some((*component, yaml::manifest(text.as_bytes()).ok()?)))
        .collect();
    let checkers = super::checkers_of(goal, host.layout, pods.iter().map(|(component, pod)| (*component, pod)));
    // Without credentials nobody can be asked; they are made.
    let checkers = checkers.unwrap_or_default();
    match health::wait(&checkers, within, health::POLL, pending::<()>(), |_| {}).await {
        Ok(_) => BTreeMap::new(),
        Err(Unmet::TimedOut { unhealthy, .. } | Unmet::Aborted { unhealthy, .. }) => {
            unhealthy.into_iter().map(|one| (one.component, one.reason.to_string())).collect()
        }
    }
}

async fn ask_api_server<R>(goal: &Goal<'_>, host: &Host<'_, R>) -> Result<Survey, String> {
    let Some((file, kubeconfig)) = super::who_may_write(goal, host.layout) else {
        return Err("there is no kubeconfig to ask the API server with".to_owned());
    };
    survey(file, &kubeconfig).await.map_err(|error| format!("{error}: {}", root_cause(&error)))
}
