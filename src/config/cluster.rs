//! The validated configuration. Only this module's parent can make one.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{EnvVar, Taint};
use serde::{Deserialize, Serialize};

use crate::release::{Component, KubernetesVersion};

/// Everything `init` needs to know, checked: whoever holds a `Cluster` need not check again.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Name of this node: RFC 1123 subdomain.
    pub node_name: String,
    /// How the agent registers this node; `None` where it does not.
    pub registration: Option<Registration>,
    /// Which Kubernetes.
    pub version: KubernetesVersion,
    /// Somebody named that version; otherwise a newer plinth takes its own newer default.
    pub version_pinned: bool,
    /// Address the API server and etcd announce; not loopback, not unspecified.
    pub advertise_address: IpAddr,
    /// Port of the API server.
    pub bind_port: u16,
    /// Shared name or address of the API server, where there is one.
    pub control_plane_endpoint: Option<Endpoint>,
    /// Name of the cluster in kubeconfigs.
    pub cluster_name: String,
    /// Where certificates live, absolute.
    pub cert_dir: PathBuf,
    /// Where images come from, without a trailing slash.
    pub image_repository: String,
    /// Networks and names.
    pub networking: Networking,
    /// How certificates are made.
    pub certificates: CertificatePolicy,
    /// The API server.
    pub api_server: ApiServer,
    /// The controller manager.
    pub controller_manager: ComponentOptions,
    /// The scheduler.
    pub scheduler: ComponentOptions,
    /// etcd on this host.
    pub etcd: Etcd,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// What rendering needs to know of the host.
    pub host: HostView,
    /// Keeps other modules from building one.
    pub(super) checked: super::Checked,
}

/// `nodeRegistration` of kubeadm's `InitConfiguration`, as far as it concerns the Node object.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// Taints of the Node, beside the agent's own; kubeadm's of a control plane unless others are named.
    pub taints: Vec<Taint>,
}

/// A host name or address and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Name or address.
    pub host: Host,
    /// Port.
    pub port: u16,
}

/// A host as a user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A DNS name (RFC 1123 subdomain, lower case).
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// Networks and names of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networking {
    /// One network, or one of each family.
    pub service_subnets: Vec<IpNet>,
    /// None, one, or one of each family.
    pub pod_subnets: Vec<IpNet>,
    /// Domain of services.
    pub dns_domain: String,
}

/// How certificates are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificatePolicy {
    /// Algorithm of new keys.
    pub algorithm: KeyAlgorithm,
    /// Validity of leaf certificates.
    pub leaf_validity: Duration,
    /// Validity of certificate authorities.
    pub ca_validity: Duration,
}

/// `encryptionAlgorithm` of kubeadm's `ClusterConfiguration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// `RSA-2048`.
    Rsa2048,
    /// `RSA-3072`.
    Rsa3072,
    /// `RSA-4096`.
    Rsa4096,
    /// `ECDSA-P256`, plinth's default.
    EcdsaP256,
    /// `ECDSA-P384`.
    EcdsaP384,
}

/// The API server's part of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiServer {
    /// Flags, environment, volumes.
    pub options: ComponentOptions,
    /// Additional names of its certificate.
    pub cert_sans: Vec<San>,
}

/// A subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum San {
    /// DNS name, lower case, possibly with a leading wildcard label.
    Dns(String),
    /// Address.
    Ip(IpAddr),
}

/// etcd's part of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Etcd {
    /// Where its data lives, absolute.
    pub data_dir: PathBuf,
    /// Image repository, when it differs from the cluster's.
    pub image_repository: Option<String>,
    /// Image tag, when it differs from the release's.
    pub image_tag: Option<String>,
    /// Flags and environment (kubeadm offers no extra volumes here).
    pub options: ComponentOptions,
    /// Additional names of its server certificate.
    pub server_cert_sans: Vec<San>,
    /// Additional names of its peer certificate.
    pub peer_cert_sans: Vec<San>,
}

/// What can be added to a component.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ComponentOptions {
    /// Flags without the leading dashes, in the user's order; a name replaces our flag of that name, a repeated name
    /// is repeated.
    pub extra_args: Vec<(String, String)>,
    /// Environment.
    pub extra_envs: Vec<EnvVar>,
    /// Volumes.
    pub extra_volumes: Vec<ExtraVolume>,
}

/// A host path mounted into a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraVolume {
    /// Volume name; one of our own names replaces ours.
    pub name: String,
    /// Path on the host, absolute.
    pub host_path: String,
    /// Path inside, absolute.
    pub mount_path: String,
    /// Not writable from inside.
    pub read_only: bool,
    /// `type` of the hostPath volume; empty for no check.
    pub path_type: String,
}

/// `timeouts` of kubeadm's `InitConfiguration`; those that mean something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// How long a component may take to become healthy; also its start-up budget.
    pub control_plane_component_health_check: Duration,
    /// How long a request to the API server is repeated.
    pub kubernetes_api_call: Duration,
}

/// What rendering needs to know of the host, looked at once, so that rendering stays pure. Kept with each generation:
/// a rerun from another environment is no change of the control plane.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostView {
    /// Those of kubeadm's well-known CA directories that exist here (`/etc/pki/tls/certs`, …).
    pub ca_directories: Vec<PathBuf>,
    /// The `*_proxy` variables of our environment, any case, not empty.
    pub proxy_variables: Vec<(String, String)>,
    /// `ca.crt` is there without `ca.key`: nothing in the cluster can sign certificates (kubeadm: `UsingExternalCA`).
    pub external_ca: bool,
}

/// Without the values of the proxy variables, which may hold passwords.
impl fmt::Debug for HostView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostView")
            .field("ca_directories", &self.ca_directories)
            .field("proxy_variables", &names(&self.proxy_variables))
            .field("external_ca", &self.external_ca)
            .finish()
    }
}

/// Names of environment variables, for a `Debug` that must not show values.
pub(super) fn names(variables: &[(String, String)]) -> Vec<&str> {
    variables.iter().map(|(name, _)| name.as_str()).collect()
}

impl Cluster {
    /// Image of `component`, e.g. `registry.k8s.io/kube-apiserver:v1.37.1`.
    pub fn image(&self, component: Component) -> String {
        match component {
            Component::Etcd => format!(
                "{}/etcd:{}",
                self.etcd.image_repository.as_deref().unwrap_or(&self.image_repository),
                self.etcd.image_tag.as_deref().unwrap_or_else(|| self.version.etcd_tag()),
            ),
            _ => format!("{}/{component}:{}", self.image_repository, self.version.image_tag()),
        }
    }

    /// Image of the sandbox of pods that need one.
    pub fn pause_image(&self) -> String {
        format!("{}/pause:{}", self.image_repository, self.version.pause_tag())
    }

    /// The options of `component`.
    pub fn options(&self, component: Component) -> &ComponentOptions {
        match component {
            Component::Etcd => &self.etcd.options,
            Component::KubeApiserver => &self.api_server.options,
            Component::KubeControllerManager => &self.controller_manager,
            Component::KubeScheduler => &self.scheduler,
        }
    }

    /// URL of this host's API server, e.g. `https://192.0.2.1:6443`.
    pub fn local_api_url(&self) -> String {
        url(&self.advertise_address.to_string(), self.bind_port)
    }

    /// URL of the API server for people: the shared endpoint, or this host's.
    pub fn api_url(&self) -> String {
        match &self.control_plane_endpoint {
            Some(Endpoint { host: Host::Name(name), port }) => url(name, *port),
            Some(Endpoint { host: Host::Address(address), port }) => url(&address.to_string(), *port),
            None => self.local_api_url(),
        }
    }
}

fn url(host: &str, port: u16) -> String {
    if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") }
}

impl KeyAlgorithm {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::EcdsaP256, Self::EcdsaP384, Self::Rsa2048, Self::Rsa3072, Self::Rsa4096];

    /// Name in kubeadm's format.
    pub fn name(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ECDSA-P256",
            Self::EcdsaP384 => "ECDSA-P384",
            Self::Rsa2048 => "RSA-2048",
            Self::Rsa3072 => "RSA-3072",
            Self::Rsa4096 => "RSA-4096",
        }
    }

    /// The algorithm of that name in kubeadm's format.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// As kubeadm writes it: `api.example.com:6443`, `[2001:db8::1]:6443`.
impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Address(address) => std::net::SocketAddr::new(*address, self.port).fmt(f),
        }
    }
}

/// As a certificate request names it.
impl std::fmt::Display for San {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
impl Cluster {
    /// The same, with its node registered.
    pub(crate) fn example_registered(registration: Option<Registration>) -> Self {
        Self { registration, ..Self::example() }
    }

    /// A plain cluster for the tests of other modules: node `master-0` at 192.0.2.10, kubeadm's defaults elsewhere.
    pub(crate) fn example() -> Self {
        Self {
            node_name: "master-0".to_owned(),
            registration: None,
            version: "v1.37.1".parse().unwrap(),
            version_pinned: false,
            advertise_address: "192.0.2.10".parse().unwrap(),
            bind_port: 6443,
            control_plane_endpoint: None,
            cluster_name: "kubernetes".to_owned(),
            cert_dir: PathBuf::from("/etc/kubernetes/pki"),
            image_repository: "registry.k8s.io".to_owned(),
            networking: Networking {
                service_subnets: vec!["10.96.0.0/12".parse().unwrap()],
                pod_subnets: Vec::new(),
                dns_domain: "cluster.local".to_owned(),
            },
            certificates: CertificatePolicy {
                algorithm: KeyAlgorithm::EcdsaP256,
                leaf_validity: Duration::from_hours(8760),
                ca_validity: Duration::from_hours(87600),
            },
            api_server: ApiServer { options: ComponentOptions::default(), cert_sans: Vec::new() },
            controller_manager: ComponentOptions::default(),
            scheduler: ComponentOptions::default(),
            etcd: Etcd {
                data_dir: PathBuf::from("/var/lib/etcd"),
                image_repository: None,
                image_tag: None,
                options: ComponentOptions::default(),
                server_cert_sans: Vec::new(),
                peer_cert_sans: Vec::new(),
            },
            timeouts: Timeouts {
                control_plane_component_health_check: Duration::from_mins(4),
                kubernetes_api_call: Duration::from_mins(1),
            },
            host: HostView::default(),
            checked: super::Checked(()),
        }
    }
}
