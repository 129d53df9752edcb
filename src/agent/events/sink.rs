//! Writes events to the API server.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event as Object, EventSource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Event;
use super::correlate::{Correlator, Verdict};
use crate::cluster::connection::Connection;

/// Who says so: what shows events sorts them by it.
const COMPONENT: &str = "kubelet";
/// How long one of them may take.
const WRITE: Duration = Duration::from_secs(5);

/// Writes what comes, one after the other, as the node named `node`. What cannot be written is dropped.
pub async fn run(mut events: mpsc::Receiver<Event>, connection: Arc<Connection>, node: String) {
    let mut correlator = Correlator::default();
    while let Some(event) = events.recv().await {
        let verdict = correlator.judge(&event);
        let written = async {
            let client = connection.client().await.map_err(|error| error.to_string())?;
            write(client, &event, &verdict, &node).await.map_err(|error| error.to_string())
        };
        let why = match timeout(WRITE, written).await {
            Ok(Ok(())) => continue,
            Ok(Err(why)) => why,
            Err(_) => "no answer".to_owned(),
        };
        tracing::debug!(reason = event.reason, message = event.message, why, "an event is dropped");
        correlator.forget(&event);
    }
}

async fn write(client: Client, event: &Event, verdict: &Verdict, node: &str) -> kube::Result<()> {
    // Events of what has no namespace are in this one (client-go: `makeEvent`).
    let namespace = event.object.namespace.as_deref().unwrap_or("default");
    let events = Api::<Object>::namespaced(client, namespace);
    match verdict {
        Verdict::Drop => Ok(()),
        Verdict::Create { name } => {
            events.create(&PostParams::default(), &object(event, namespace, name, node)).await.map(drop)
        }
        Verdict::Count { name, count } => {
            let patch = json!({ "count": count, "lastTimestamp": Time(event.at), "message": event.message });
            events.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
        }
    }
}

fn object(event: &Event, namespace: &str, name: &str, node: &str) -> Object {
    Object {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: event.object.clone(),
        type_: Some(event.kind.as_str().to_owned()),
        reason: Some(event.reason.to_owned()),
        message: Some(event.message.clone()),
        count: Some(1),
        first_timestamp: Some(Time(event.at)),
        last_timestamp: Some(Time(event.at)),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Object::default()
    }
}
