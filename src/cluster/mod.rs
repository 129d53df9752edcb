//! Objects in the API server that `init` takes care of.
//!
//! They are reports and grants for others; no decision of plinth reads them.

pub mod lease;
pub mod survey;

use std::time::Duration;

use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleRef, Subject};
use kube::api::{ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

/// Group of `admin.conf`, and name of the binding that gives it its rights (kubeadm:
/// `ClusterAdminsGroupAndClusterRoleBinding`).
pub const CLUSTER_ADMINS: &str = "kubeadm:cluster-admins";

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
    #[error("cannot read the ClusterRoleBinding `{CLUSTER_ADMINS}`")]
    Read(#[source] Box<kube::Error>),
    /// A Lease cannot be read or released.
    #[error("cannot use the Lease `{name}`")]
    Lease {
        /// Its name.
        name: String,
        /// Why; `None` where no answer came.
        #[source]
        source: Option<Box<kube::Error>>,
    },
    /// Nodes or metrics cannot be read.
    #[error("the API server does not tell its nodes and metrics")]
    Survey(#[source] Option<Box<kube::Error>>),
    /// It kept refusing until the time was over.
    #[error("cannot create the ClusterRoleBinding `{CLUSTER_ADMINS}`")]
    Bind(#[source] Box<kube::Error>),
}

/// Makes sure that the group `kubeadm:cluster-admins` is bound to the role `cluster-admin`, so that `admin.conf`
/// works.
///
/// `super_admin` is the text of `super-admin.conf`: its group, `system:masters`, needs no binding. Tries again until
/// `within` is over: a fresh API server may still refuse.
pub async fn bind_cluster_admins(super_admin: &str, within: Duration) -> Result<(), ClusterError> {
    let bindings: Api<ClusterRoleBinding> = Api::all(client("super-admin.conf", super_admin).await?);
    let binding = cluster_admins_binding();
    let deadline = tokio::time::Instant::now() + within;
    loop {
        match bindings.create(&PostParams::default(), &binding).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(()),
            Err(error) if tokio::time::Instant::now() + RETRY >= deadline => {
                return Err(ClusterError::Bind(Box::new(error)));
            }
            Err(error) => tracing::debug!(%error, "the API server does not take the binding yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether that binding is there. Asks once; `super_admin` is the text of `super-admin.conf`.
pub async fn cluster_admins_are_bound(super_admin: &str) -> Result<bool, ClusterError> {
    let bindings: Api<ClusterRoleBinding> = Api::all(client("super-admin.conf", super_admin).await?);
    let found = bindings.get_metadata_opt(CLUSTER_ADMINS).await.map_err(|error| ClusterError::Read(Box::new(error)))?;
    Ok(found.is_some())
}

async fn client(file: &'static str, text: &str) -> Result<Client, ClusterError> {
    let kubeconfig =
        Kubeconfig::from_yaml(text).map_err(|error| ClusterError::Kubeconfig { file, source: error.into() })?;
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
            api_group: Some("rbac.authorization.k8s.io".to_owned()),
            kind: "ClusterRole".to_owned(),
            name: "cluster-admin".to_owned(),
        },
        subjects: Some(vec![Subject {
            api_group: Some("rbac.authorization.k8s.io".to_owned()),
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
