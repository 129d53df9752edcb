//! Objects in the API server that `init` takes care of.
//!
//! They are reports and grants for others; no decision of plinth reads them.

pub mod agent;
pub mod connection;
pub mod follow;
pub mod lease;
pub mod node;
pub mod survey;

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, Role, RoleBinding, RoleRef, Subject};
use kube::api::{ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::kubeconfig;

/// Group of `admin.conf`, and name of the binding that gives it its rights (kubeadm:
/// `ClusterAdminsGroupAndClusterRoleBinding`).
pub const CLUSTER_ADMINS: &str = "kubeadm:cluster-admins";

const RBAC: &str = "rbac.authorization.k8s.io";

/// Pause between two tries (kubeadm: `KubernetesAPICallRetryInterval` is 500 ms; here nobody else is waited for).
const RETRY: Duration = Duration::from_millis(100);

/// The API server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig `{file}`")]
    Kubeconfig {
        /// Its name.
        file: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It could not be asked.
    #[error("cannot read the {what} that gives rights")]
    Read {
        /// Its kind.
        what: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// A Lease cannot be read or released.
    #[error("cannot use the Lease `{name}`")]
    Lease {
        /// Its name.
        name: String,
        /// Why; `None` where no answer came.
        #[source]
        source: Option<Box<kube::Error>>,
    },
    /// The agent has not registered the Node.
    #[error("the agent has not registered the Node `{name}`")]
    NotRegistered {
        /// Its name.
        name: String,
    },
    /// The Node cannot be read or changed.
    #[error("cannot use the Node `{name}`")]
    Node {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server does not say anything of the Node.
    #[error("the API server does not answer about the Node `{name}`")]
    NodeUnknown {
        /// Its name.
        name: String,
    },
    /// Nodes or metrics cannot be read.
    #[error("the API server does not tell its nodes and metrics")]
    Survey(#[source] Option<Box<kube::Error>>),
    /// It kept refusing until the time was over.
    #[error("cannot create the {what} that gives rights")]
    Bind {
        /// Its kind.
        what: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
}

impl ClusterError {
    fn node(name: &str) -> impl FnOnce(kube::Error) -> Self {
        move |error| Self::Node { name: name.to_owned(), source: Box::new(error) }
    }
}

/// Makes sure that `admin.conf` and the agent have their rights: the group `kubeadm:cluster-admins` is bound to the
/// cluster role `cluster-admin`, and `plinth:agents` to a role of its own.
///
/// `super_admin` is the text of `super-admin.conf`: its group, `system:masters`, needs no binding. Tries again until
/// `within` is over: a fresh API server may still refuse.
pub async fn grant(super_admin: &str, within: Duration) -> Result<(), ClusterError> {
    let client = client("super-admin.conf", super_admin).await?;
    let deadline = Instant::now() + within;
    create(&Api::all(client.clone()), &cluster_admins_binding(), deadline).await?;
    create(&Api::namespaced(client.clone(), agent::NAMESPACE), &agent::role(), deadline).await?;
    create(&Api::namespaced(client, agent::NAMESPACE), &agent::binding(), deadline).await
}

async fn create<K>(objects: &Api<K>, object: &K, deadline: Instant) -> Result<(), ClusterError>
where
    K: kube::Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug,
{
    loop {
        match objects.create(&PostParams::default(), object).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(()),
            Err(error) if Instant::now() + RETRY >= deadline => {
                return Err(ClusterError::Bind { what: K::kind(&()).into_owned(), source: Box::new(error) });
            }
            Err(error) => tracing::debug!(%error, "the API server does not take what gives rights yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether they have them. Asks once; `super_admin` is the text of `super-admin.conf`.
pub async fn is_granted(super_admin: &str) -> Result<bool, ClusterError> {
    let client = client("super-admin.conf", super_admin).await?;
    Ok(exists(&Api::<ClusterRoleBinding>::all(client.clone()), CLUSTER_ADMINS).await?
        && exists(&Api::<Role>::namespaced(client.clone(), agent::NAMESPACE), agent::AGENTS).await?
        && exists(&Api::<RoleBinding>::namespaced(client, agent::NAMESPACE), agent::AGENTS).await?)
}

async fn exists<K>(objects: &Api<K>, name: &str) -> Result<bool, ClusterError>
where
    K: kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    let found = objects.get_metadata_opt(name).await;
    let found =
        found.map_err(|error| ClusterError::Read { what: K::kind(&()).into_owned(), source: Box::new(error) })?;
    Ok(found.is_some())
}

/// A client with the text of the kubeconfig `file`.
pub(crate) async fn client(file: &'static str, text: &str) -> Result<Client, ClusterError> {
    // The parser's message shows the place, and the place may be a key.
    let kubeconfig = Kubeconfig::from_yaml(text).map_err(|error| ClusterError::Kubeconfig {
        file,
        source: kubeconfig::KubeconfigError::syntax(file, &error).into(),
    })?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| ClusterError::Kubeconfig { file, source: error.into() })?;
    // The API server of this host is never behind the proxy of this host's environment.
    config.proxy_url = None;
    Client::try_from(config).map_err(|error| ClusterError::Kubeconfig { file, source: error.into() })
}

fn cluster_admins_binding() -> ClusterRoleBinding {
    ClusterRoleBinding {
        metadata: ObjectMeta { name: Some(CLUSTER_ADMINS.to_owned()), ..ObjectMeta::default() },
        role_ref: RoleRef {
            api_group: Some(RBAC.to_owned()),
            kind: "ClusterRole".to_owned(),
            name: "cluster-admin".to_owned(),
        },
        subjects: Some(vec![Subject {
            api_group: Some(RBAC.to_owned()),
            kind: "Group".to_owned(),
            name: CLUSTER_ADMINS.to_owned(),
            namespace: None,
        }]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binding_is_kubeadms() {
        let expected = serde_json::json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": "kubeadm:cluster-admins" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
            "subjects": [
                { "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "kubeadm:cluster-admins" }
            ],
        });
        assert_eq!(serde_json::to_value(cluster_admins_binding()).unwrap(), expected);
    }
}
