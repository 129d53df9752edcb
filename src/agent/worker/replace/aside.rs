//! Stopping the old one while the new one serves: beside everything else, for as long as it takes.

use std::collections::BTreeSet;

use tokio::task::JoinSet;

use super::clients::with_cause;
use super::{Wanted, Worker};
use crate::agent::entry::Keeper;
use crate::agent::pod::PodKey;
use crate::agent::step::{Stop, belongs_to, instances, is_running};
use crate::release::Component;
use crate::runtime::{Runtime, RuntimeError};

/// Containers that were stopped beside everything else, with what came of it.
pub(in crate::agent::worker) type Ended = (Vec<Stop>, Vec<Result<(), RuntimeError>>);

/// What is being stopped.
#[derive(Default)]
pub(super) struct Aside {
    /// Ids of containers.
    pub(super) ids: BTreeSet<String>,
    tasks: JoinSet<Ended>,
    /// Keeps this host in the Service `kubernetes` while one of two API servers ends.
    pub(super) keeper: Option<Keeper>,
}

impl Aside {
    /// The next that have been stopped.
    pub(super) async fn ended(&mut self) -> Option<Ended> {
        // An ending that panicked has stopped nothing; the next list tells.
        self.tasks.join_next().await?.ok()
    }

    /// Forgets what an ending that panicked was about.
    pub(super) fn tidy(&mut self) {
        if self.tasks.is_empty() {
            self.ids.clear();
        }
    }
}

impl<R: Runtime> Worker<R> {
    /// Whether what is to be stopped can take its time: the containers of a pod that is replaced new-first run already.
    pub(in crate::agent::worker) fn serves_meanwhile(&self, stops: &[Stop], wanted: &Wanted) -> bool {
        let Wanted::Run { pod, .. } = wanted else { return false };
        // Its own, that are to be restarted.
        if stops.iter().any(|stop| self.containers.get(&stop.id).is_some_and(|stopped| belongs_to(stopped, pod))) {
            return false;
        }
        let runs = |spec: &k8s_openapi::api::core::v1::Container| {
            instances(&self.containers, pod, &spec.name).pop().is_some_and(is_running)
        };
        pod.surges() && self.is_proven(pod) && pod.lasting_containers().all(runs)
    }

    /// Stops these beside everything else.
    pub(in crate::agent::worker) async fn stop_aside(&mut self, stops: &[Stop], wanted: &Wanted) {
        if self.is_api_server() && self.surge.aside.keeper.is_none() {
            match Keeper::start(&self.shared.kubeconfig).await {
                Ok(keeper) => self.surge.aside.keeper = Some(keeper),
                Err(error) => {
                    let why = with_cause(&error);
                    tracing::warn!(pod = %self.key, why, "the Service `kubernetes` may be without this host for 10 s");
                }
            }
        }
        let ending = self.ending(stops, wanted);
        self.surge.aside.ids.extend(stops.iter().map(|stop| stop.id.clone()));
        let stops = stops.to_vec();
        self.surge.aside.tasks.spawn(async move {
            let results = ending.await;
            (stops, results)
        });
    }

    pub(in crate::agent::worker) async fn take_aside(&mut self, (stops, results): Ended) {
        for stop in &stops {
            self.surge.aside.ids.remove(&stop.id);
        }
        let succeeded = self.take_ends(&stops, results).await;
        self.shared.board.metrics.acted("stop", succeeded);
    }

    fn is_api_server(&self) -> bool {
        let name = format!("{}-{}", Component::KubeApiserver.name(), self.shared.node.name);
        self.key == PodKey { namespace: "kube-system".to_owned(), name }
    }
}
