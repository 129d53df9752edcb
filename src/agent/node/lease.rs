//! The node's Lease: while it is renewed the control plane takes the node for alive.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::agent::board::Board;
use crate::clock::Clock;
use crate::cluster::connection::Connection;
use crate::cluster::follow::{AskError, BackOff, ask};

/// Where the Leases of nodes are.
const NAMESPACE: &str = "kube-node-lease";
/// How long it holds, seconds (kubelet: `nodeLeaseDurationSeconds`).
const DURATION: u32 = 40;
/// How often it is renewed (kubelet: a quarter of the duration), and how much of that may come on top, in percent.
const RENEWAL: (Duration, u32) = (Duration::from_secs(10), 4);
/// By what its warnings are known.
pub(super) const WHO: &str = "node lease";

/// What the task works with.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) connection: Arc<Connection>,
    pub(super) board: Arc<Board>,
    pub(super) name: String,
    pub(super) node_uid: watch::Receiver<Option<String>>,
    pub(super) clock: Clock,
}

/// Renews the Lease, as long as there is a node, until it is dropped.
pub(super) async fn run(mut context: Context) {
    let mut back_off = BackOff::default();
    loop {
        let uid = context.node_uid.borrow_and_update().clone();
        let pause = match uid {
            None => None,
            Some(uid) => Some(match renew(&context, &uid).await {
                Ok(()) => {
                    back_off = BackOff::default();
                    context.board.remark(WHO, Vec::new());
                    jittered(RENEWAL)
                }
                Err(error) => {
                    // Of an API server that is away the node speaks.
                    let refusal = error.code().map(|_| format!("cannot be renewed: {}", error.told()));
                    context.board.remark(WHO, Vec::from_iter(refusal));
                    back_off.pause()
                }
            }),
        };
        tokio::select! {
            changed = context.node_uid.changed() => if changed.is_err() { return },
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

/// Without asking first: nobody else writes it.
async fn renew(context: &Context, uid: &str) -> Result<(), AskError> {
    let client = context.connection.client().await?;
    let leases: Api<DynamicObject> = Api::namespaced_with(client, NAMESPACE, &ApiResource::erase::<Lease>(&()));
    let name = context.name.as_str();
    let body = lease(name, uid, context.clock.now());
    match ask(leases.patch(name, &PatchParams::default(), &Patch::Merge(&body))).await {
        Err(error) if error.code() == Some(404) => {
            let object = DynamicObject {
                types: None,
                metadata: serde_json::from_value(body["metadata"].clone()).unwrap_or_default(),
                data: json!({ "apiVersion": body["apiVersion"], "kind": body["kind"], "spec": body["spec"] }),
            };
            ask(leases.create(&PostParams::default(), &object)).await.map(drop)
        }
        result => result.map(drop),
    }
}

fn lease(name: &str, uid: &str, now: Timestamp) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": uid }],
        },
        "spec": { "holderIdentity": name, "leaseDurationSeconds": DURATION, "renewTime": MicroTime(now) },
    })
}

/// So that nodes which started together do not stay together.
fn jittered((pause, percent): (Duration, u32)) -> Duration {
    let mut random = [0];
    // Without random numbers there is no jitter.
    let _ = aws_lc_rs::rand::fill(&mut random);
    pause + pause * percent / 100 * u32::from(random[0]) / 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_is_a_kubelets() {
        let lease = lease("n1", "u1", "2026-11-21T08:00:00.123456Z".parse().unwrap());
        let expected =
            json!({ "holderIdentity": "n1", "leaseDurationSeconds": 40, "renewTime": "2026-11-21T08:00:00.123456Z" });
        assert_eq!(lease["spec"], expected);
        let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1" }]);
        assert_eq!(lease["metadata"]["ownerReferences"], owner);
    }

    #[test]
    fn renewals_are_ten_seconds_apart_and_a_little_more() {
        for _ in 0..100 {
            let pause = jittered(RENEWAL).as_millis();
            assert!((10_000..=10_400).contains(&pause), "{pause}");
        }
    }
}
