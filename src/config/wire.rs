//! kubeadm's wire format, `kubeadm.k8s.io/v1beta4`, as far as `init` reads it.
//!
//! Every field is optional, and `None` is written as `null`, so that a serialised value names every known field:
//! [`super::file`] finds unknown ones by comparison, with their lines, and all at once. What kubeadm knows and plinth
//! does not honour is kept as it stands, so that [`super::file`] can say so.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvVarSource, Taint};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `apiVersion` of both kinds.
pub(super) const API_VERSION: &str = "kubeadm.k8s.io/v1beta4";

/// The one flag of a kubelet that means something here, among `kubeletExtraArgs`.
pub(super) const REGISTER_NODE: &str = "register-node";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct InitConfiguration {
    pub(super) api_version: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) bootstrap_tokens: Option<Value>,
    pub(super) certificate_key: Option<Value>,
    pub(super) dry_run: Option<bool>,
    #[serde(rename = "localAPIEndpoint")]
    pub(super) local_api_endpoint: Option<ApiEndpoint>,
    pub(super) node_registration: Option<NodeRegistration>,
    pub(super) patches: Option<Patches>,
    pub(super) skip_phases: Option<Vec<String>>,
    pub(super) timeouts: Option<Timeouts>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ApiEndpoint {
    pub(super) advertise_address: Option<String>,
    pub(super) bind_port: Option<i32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct NodeRegistration {
    pub(super) cri_socket: Option<Value>,
    pub(super) ignore_preflight_errors: Option<Vec<String>>,
    pub(super) image_pull_policy: Option<Value>,
    pub(super) image_pull_serial: Option<Value>,
    pub(super) kubelet_extra_args: Option<Vec<Arg>>,
    pub(super) name: Option<String>,
    pub(super) taints: Option<Vec<Taint>>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Patches {
    pub(super) directory: Option<String>,
}

/// Durations as Go writes them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Timeouts {
    pub(super) control_plane_component_health_check: Option<String>,
    pub(super) discovery: Option<Value>,
    #[serde(rename = "etcdAPICall")]
    pub(super) etcd_api_call: Option<Value>,
    pub(super) kubelet_health_check: Option<Value>,
    #[serde(rename = "kubernetesAPICall")]
    pub(super) kubernetes_api_call: Option<String>,
    pub(super) tls_bootstrap: Option<Value>,
    pub(super) upgrade_manifests: Option<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ClusterConfiguration {
    pub(super) api_version: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) api_server: Option<ApiServer>,
    pub(super) ca_certificate_validity_period: Option<String>,
    pub(super) certificate_validity_period: Option<String>,
    pub(super) certificates_dir: Option<String>,
    pub(super) cluster_name: Option<String>,
    pub(super) control_plane_endpoint: Option<String>,
    pub(super) controller_manager: Option<ControlPlaneComponent>,
    pub(super) dns: Option<Dns>,
    pub(super) encryption_algorithm: Option<String>,
    pub(super) etcd: Option<Etcd>,
    pub(super) feature_gates: Option<BTreeMap<String, bool>>,
    pub(super) image_repository: Option<String>,
    pub(super) kubernetes_version: Option<String>,
    pub(super) networking: Option<Networking>,
    pub(super) proxy: Option<Proxy>,
    pub(super) scheduler: Option<ControlPlaneComponent>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ApiServer {
    #[serde(rename = "certSANs")]
    pub(super) cert_sans: Option<Vec<String>>,
    pub(super) extra_args: Option<Vec<Arg>>,
    pub(super) extra_envs: Option<Vec<EnvVar>>,
    pub(super) extra_volumes: Option<Vec<HostPathMount>>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(clippy::struct_field_names)] // kubeadm's
pub(super) struct ControlPlaneComponent {
    pub(super) extra_args: Option<Vec<Arg>>,
    pub(super) extra_envs: Option<Vec<EnvVar>>,
    pub(super) extra_volumes: Option<Vec<HostPathMount>>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Arg {
    pub(super) name: String,
    pub(super) value: String,
}

/// The Kubernetes API's type, but for the `null` of absent fields.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct EnvVar {
    pub(super) name: String,
    pub(super) value: Option<String>,
    pub(super) value_from: Option<EnvVarSource>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct HostPathMount {
    pub(super) host_path: String,
    pub(super) mount_path: String,
    pub(super) name: String,
    pub(super) path_type: Option<String>,
    pub(super) read_only: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Dns {
    pub(super) disabled: Option<bool>,
    pub(super) image_repository: Option<Value>,
    pub(super) image_tag: Option<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Proxy {
    pub(super) disabled: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Etcd {
    pub(super) external: Option<Value>,
    pub(super) local: Option<LocalEtcd>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct LocalEtcd {
    pub(super) data_dir: Option<String>,
    pub(super) extra_args: Option<Vec<Arg>>,
    pub(super) extra_envs: Option<Vec<EnvVar>>,
    pub(super) image_repository: Option<String>,
    pub(super) image_tag: Option<String>,
    #[serde(rename = "peerCertSANs")]
    pub(super) peer_cert_sans: Option<Vec<String>>,
    #[serde(rename = "serverCertSANs")]
    pub(super) server_cert_sans: Option<Vec<String>>,
}

/// Networks are comma-separated lists, as in kubeadm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Networking {
    pub(super) dns_domain: Option<String>,
    pub(super) pod_subnet: Option<String>,
    pub(super) service_subnet: Option<String>,
}
