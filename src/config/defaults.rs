//! Every default, with its source.
//!
//! "kubeadm" stands for `cmd/kubeadm/app` of Kubernetes 1.37.

use std::time::Duration;

use super::KeyAlgorithm;

/// Port of the API server (kubeadm: `constants.KubeAPIServerPort`).
pub const BIND_PORT: u16 = 6443;

/// Network of services (kubeadm: `v1beta4.DefaultServicesSubnet`).
pub const SERVICE_SUBNET: &str = "10.96.0.0/12";

/// Domain of services (kubeadm: `v1beta4.DefaultServiceDNSDomain`).
pub const DNS_DOMAIN: &str = "cluster.local";

/// Where certificates live (kubeadm: `v1beta4.DefaultCertificatesDir`).
pub const CERTIFICATES_DIR: &str = "/etc/kubernetes/pki";

/// Name of the cluster in kubeconfigs (kubeadm: `v1beta4.DefaultClusterName`).
pub const CLUSTER_NAME: &str = "kubernetes";

/// Where etcd keeps its data (kubeadm: `v1beta4.DefaultEtcdDataDir`).
pub const ETCD_DATA_DIR: &str = "/var/lib/etcd";

/// Algorithm of new keys. plinth's own: kubeadm's default is RSA-2048, whose keys take most of the time that making
/// the PKI takes, and every component of the supported releases speaks ECDSA.
pub const KEY_ALGORITHM: KeyAlgorithm = KeyAlgorithm::EcdsaP256;

/// Validity of leaf certificates, one year (kubeadm: `constants.CertificateValidityPeriod`).
pub const LEAF_VALIDITY: Duration = Duration::from_hours(8760);

/// Validity of certificate authorities, ten years (kubeadm: `constants.CACertificateValidityPeriod`).
pub const CA_VALIDITY: Duration = Duration::from_hours(87600);

/// How long a component may take to become healthy (kubeadm: `constants.ControlPlaneComponentHealthCheckTimeout`).
pub const COMPONENT_HEALTH_CHECK: Duration = Duration::from_mins(4);

/// How long a request to the API server is repeated (kubeadm: `constants.KubernetesAPICallTimeout`).
pub const KUBERNETES_API_CALL: Duration = Duration::from_mins(1);

/// Fewest addresses of a service network (kubeadm: `constants.MinimumAddressesInServiceSubnet`).
pub(super) const MINIMUM_SERVICE_ADDRESSES: u128 = 10;

/// Fewest addresses of a pod network (kubeadm: `constants.MinimumAddressesInPodSubnet`).
pub(super) const MINIMUM_POD_ADDRESSES: u128 = 14;

/// Most host bits of a service network (kubeadm: `constants.MaximumBitsForServiceSubnet`, and the API server's own).
pub(super) const MAXIMUM_SERVICE_BITS: u8 = 20;

/// Prefix length of a node's pod network (kubeadm: `getClusterNodeMask`, and the controller manager's own).
pub(super) const NODE_MASK_V4: u8 = 24;

/// The same for IPv6.
pub(super) const NODE_MASK_V6: u8 = 64;

/// By how much a pod network may be wider than a node's part (kubeadm: `constants.PodSubnetNodeMaskMaxDiff`).
pub(super) const NODE_MASK_MAX_DIFFERENCE: u8 = 16;

/// Values of fields that plinth ignores: naming them changes nothing, and so needs no warning
/// (kubeadm: `SetDefaults_NodeRegistration`, `SetDefaults_Timeouts`).
pub(super) const IGNORED: &[(&str, &str)] = &[
    ("nodeRegistration.imagePullPolicy", "IfNotPresent"),
    ("nodeRegistration.imagePullSerial", "true"),
    ("timeouts.discovery", "5m0s"),
    ("timeouts.etcdAPICall", "2m0s"),
    ("timeouts.kubeletHealthCheck", "4m0s"),
    ("timeouts.tlsBootstrap", "5m0s"),
    ("timeouts.upgradeManifests", "5m0s"),
];
