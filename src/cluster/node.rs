//! The Node object of this host, as far as it takes an administrator: what a node may not say of itself.
//!
//! The agent registers the Node and keeps it; see [`crate::agent`]. `NodeRestriction` keeps it from the labels of a
//! role, from its own taints, and from removing itself.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout};

use super::{ClusterError, RETRY, client};
use crate::config::Registration;
use crate::names::{CONFIG_MIRROR, CONTROL_PLANE, STATIC_PODS_ONLY_TAINT};

/// Labels of a control plane's Node (kubeadm: also `LabelExcludeFromExternalLB`).
const LABELS: [&str; 2] = [CONTROL_PLANE, "node.kubernetes.io/exclude-from-external-load-balancers"];

/// By these labels `DaemonSets` find nodes that run their pods; a kubelet that was here before has left them.
const OS_LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];

/// How long one request may take.
const ASK: Duration = Duration::from_secs(5);

/// What the API server has of this host's Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// Nothing.
    Absent,
    /// It lacks labels or taints.
    Unmarked,
    /// It has them all.
    Marked,
}

/// Asks for the Node `name`, which is to have the labels of a control plane and the taints of `registration`. Asks once;
/// `super_admin` is the text of `super-admin.conf`.
pub async fn state(super_admin: &str, name: &str, registration: &Registration) -> Result<NodeState, ClusterError> {
    let found = nodes(super_admin).await?.get_opt(name).await.map_err(ClusterError::node(name))?;
    Ok(match found {
        None => NodeState::Absent,
        Some(node) if marked(&node, registration, &[]).is_none() => NodeState::Marked,
        Some(_) => NodeState::Unmarked,
    })
}

/// Waits until the agent has registered the Node, and gives it labels and taints; those of `lifted` it loses
/// ([`text_of`]). Tries again until `within` is over.
pub async fn mark(
    super_admin: &str,
    name: &str,
    registration: &Registration,
    lifted: &[String],
    within: Duration,
) -> Result<(), ClusterError> {
    let nodes = nodes(super_admin).await?;
    let deadline = Instant::now() + within;
    loop {
        let (error, is_final) = match timeout(ASK, try_to_mark(&nodes, name, registration, lifted)).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => (ClusterError::NotRegistered { name: name.to_owned() }, false),
            Ok(Err(error)) => {
                // Another one has written in between, or has no time; whatever else is refused stays refused.
                let is_final = matches!(&error, kube::Error::Api(status)
                    if (400..500).contains(&status.code) && ![404, 409, 429].contains(&status.code));
                (ClusterError::node(name)(error), is_final)
            }
            Err(_) => (ClusterError::NodeUnknown { name: name.to_owned() }, false),
        };
        if is_final || Instant::now() + RETRY >= deadline {
            return Err(error);
        }
        tracing::debug!(%error, "the Node cannot be marked yet");
        sleep(RETRY).await;
    }
}

/// Whether there is such a Node. An update names the version that it is made from: the agent may write in between.
async fn try_to_mark(
    nodes: &Api<Node>,
    name: &str,
    registration: &Registration,
    lifted: &[String],
) -> kube::Result<bool> {
    let Some(node) = nodes.get_opt(name).await? else { return Ok(false) };
    if let Some(marked) = marked(&node, registration, lifted) {
        nodes.replace(name, &PostParams::default(), &marked).await?;
    }
    Ok(true)
}

/// Removes the mirror pods of the Node `name` and the Node itself; its Lease goes with it (`ownerReferences`). The agent
/// must not run, or it registers it again.
pub async fn remove(super_admin: &str, name: &str) -> Result<(), ClusterError> {
    let client = client("super-admin.conf", super_admin).await?;
    let removed = timeout(2 * ASK, remove_objects(client, name)).await;
    removed.map_err(|_| ClusterError::NodeUnknown { name: name.to_owned() })?.map_err(ClusterError::node(name))
}

async fn remove_objects(client: Client, name: &str) -> kube::Result<()> {
    let on_node = ListParams::default().fields(&format!("spec.nodeName={name}"));
    for pod in Api::<Pod>::all(client.clone()).list(&on_node).await? {
        let metadata = pod.metadata;
        let is_mirror = metadata.annotations.is_some_and(|annotations| annotations.contains_key(CONFIG_MIRROR));
        if let (true, Some(namespace), Some(pod)) = (is_mirror, metadata.namespace, metadata.name) {
            let at_once = DeleteParams {
                preconditions: Some(Preconditions { uid: metadata.uid, resource_version: None }),
                ..DeleteParams::default().grace_period(0)
            };
            // One that somebody does not let go is collected without its Node.
            if let Err(error) = Api::<Pod>::namespaced(client.clone(), &namespace).delete(&pod, &at_once).await {
                tracing::debug!(%error, pod, "a mirror pod stays for now");
            }
        }
    }
    match Api::<Node>::all(client).delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        deleted => deleted.map(drop),
    }
}

async fn nodes(super_admin: &str) -> Result<Api<Node>, ClusterError> {
    Ok(Api::all(client("super-admin.conf", super_admin).await?))
}

/// `node` with the labels, the taints of `registration` and without those of `lifted`; `None` where it is so.
fn marked(node: &Node, registration: &Registration, lifted: &[String]) -> Option<Node> {
    let mut marked = node.clone();
    let labels: &mut BTreeMap<_, _> = marked.metadata.labels.get_or_insert_default();
    for label in LABELS {
        labels.entry(label.to_owned()).or_default();
    }
    labels.retain(|label, _| !OS_LABELS.contains(&label.as_str()));
    let spec = marked.spec.get_or_insert_default();
    let mut taints = spec.taints.take().unwrap_or_default();
    taints.retain(|taint| !lifted.contains(&text_of(taint)));
    let own = Taint { key: STATIC_PODS_ONLY_TAINT.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    for taint in [&own].into_iter().chain(&registration.taints) {
        // A key may be there once for an effect.
        match taints.iter_mut().find(|one| (&one.key, &one.effect) == (&taint.key, &taint.effect)) {
            Some(one) if text_of(one) == text_of(taint) => {}
            Some(one) => *one = taint.clone(),
            None => taints.push(taint.clone()),
        }
    }
    spec.taints = Some(taints).filter(|taints| !taints.is_empty());
    (marked != *node).then_some(marked)
}

/// A taint as kubectl and the kubelet's `--register-with-taints` write it: `key=value:effect`, or `key:effect`.
pub fn text_of(taint: &Taint) -> String {
    match taint.value.as_deref().filter(|value| !value.is_empty()) {
        Some(value) => format!("{}={value}:{}", taint.key, taint.effect),
        None => format!("{}:{}", taint.key, taint.effect),
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn taint(key: &str, value: Option<&str>, effect: &str) -> Taint {
        Taint { key: key.into(), value: value.map(Into::into), effect: effect.into(), ..Taint::default() }
    }

    fn node(labels: &[&str], taints: &[Taint]) -> Node {
        let mut node = Node::default();
        let labels = labels.iter().map(|label| ((*label).to_owned(), String::new())).collect::<BTreeMap<_, _>>();
        node.metadata.labels = Some(labels);
        node.spec.get_or_insert_default().taints = Some(taints.to_vec()).filter(|taints| !taints.is_empty());
        node
    }

    #[test]
    fn a_node_gets_what_it_lacks_and_keeps_what_others_gave_it() {
        let own = taint(STATIC_PODS_ONLY_TAINT, None, "NoSchedule");
        let role = taint(LABELS[0], None, "NoSchedule");
        let foreign = taint("example.com/a", Some("b"), "NoExecute");
        let registration = Registration { taints: vec![role.clone()] };
        let whole = node(&LABELS, &[own.clone(), role.clone()]);
        for (found, lifted, expected) in [
            (node(&[], from_ref(&own)), &[][..], Some(whole.clone())),
            (node(&["kubernetes.io/hostname"], &[]), &[], {
                Some(node(&["kubernetes.io/hostname", LABELS[0], LABELS[1]], &[own.clone(), role.clone()]))
            }),
            (whole.clone(), &[], None),
            (node(&LABELS, &[foreign.clone(), own.clone(), role.clone()]), &[], None),
            (node(&LABELS, &[foreign, role.clone()]), &["example.com/a=b:NoExecute".to_owned()], {
                Some(node(&LABELS, &[role, own.clone()]))
            }),
        ] {
            assert_eq!(marked(&found, &registration, lifted), expected, "{found:?}");
        }
        assert_eq!(marked(&node(&LABELS, from_ref(&own)), &Registration { taints: Vec::new() }, &[]), None);
    }
}
