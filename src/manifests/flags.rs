//! Command lines of the four components, as kubeadm 1.37 makes them (`phases/controlplane`, `phases/etcd`). Pure.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use crate::config::{Cluster, loopback_of};
use crate::layout::Layout;
use crate::release::Component;

/// Ports that kubeadm does not make configurable (kubeadm: `constants`).
pub(super) const ETCD_CLIENT_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;
pub(super) const ETCD_METRICS_PORT: u16 = 2381;
pub(super) const CONTROLLER_MANAGER_PORT: u16 = 10257;
pub(super) const SCHEDULER_PORT: u16 = 10259;

/// Flags without dashes, with their values.
type Flags = Vec<(&'static str, String)>;

/// The command of `component`: its binary, our flags by name, then the user's in their order. One of ours that the
/// user names gives way.
pub(super) fn command(cluster: &Cluster, component: Component, layout: &Layout) -> Vec<String> {
    let pki = Pki { dir: layout.below_root(&cluster.cert_dir) };
    let mut ours = match component {
        Component::Etcd => etcd(cluster, layout, &pki),
        Component::KubeApiserver => api_server(cluster, &pki),
        Component::KubeControllerManager => controller_manager(cluster, layout, &pki),
        Component::KubeScheduler => scheduler(layout),
    };
    let extra = &cluster.options(component).extra_args;
    ours.retain(|(name, _)| extra.iter().all(|(theirs, _)| theirs != name));
    ours.sort();
    let mut command = vec![component.name().to_owned()];
    command.extend(ours.iter().map(|(name, value)| format!("--{name}={value}")));
    command.extend(extra.iter().map(|(name, value)| format!("--{name}={value}")));
    command
}

/// The value that counts of a flag that the user gave, perhaps more than once (kubeadm: `GetArgValue`).
pub(super) fn extra_arg<'a>(cluster: &'a Cluster, component: Component, name: &str) -> Option<&'a str> {
    let extra = &cluster.options(component).extra_args;
    extra.iter().rev().find(|(flag, _)| flag == name).map(|(_, value)| value.as_str())
}

/// `https://192.0.2.10:2379`, `https://[2001:db8::10]:2379`.
pub fn etcd_client_url(address: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(address, ETCD_CLIENT_PORT))
}

/// The certificate directory.
struct Pki {
    dir: std::path::PathBuf,
}

impl Pki {
    fn file(&self, name: &str) -> String {
        text(&self.dir.join(name))
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn yes() -> String {
    "true".to_owned()
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn etcd(cluster: &Cluster, layout: &Layout, pki: &Pki) -> Flags {
    let address = cluster.advertise_address;
    let loopback = loopback_of(address);
    let client = etcd_client_url(address);
    let peer = format!("https://{}", SocketAddr::new(address, ETCD_PEER_PORT));
    vec![
        ("advertise-client-urls", client.clone()),
        ("cert-file", pki.file("etcd/server.crt")),
        ("client-cert-auth", yes()),
        ("data-dir", text(&layout.below_root(&cluster.etcd.data_dir))),
        ("feature-gates", "InitialCorruptCheck=true".to_owned()),
        ("initial-advertise-peer-urls", peer.clone()),
        ("initial-cluster", format!("{}={peer}", cluster.node_name)),
        ("key-file", pki.file("etcd/server.key")),
        ("listen-client-urls", format!("{},{client}", etcd_client_url(loopback))),
        ("listen-metrics-urls", format!("http://{}", SocketAddr::new(loopback, ETCD_METRICS_PORT))),
        ("listen-peer-urls", peer),
        ("name", cluster.node_name.clone()),
        ("peer-cert-file", pki.file("etcd/peer.crt")),
        ("peer-client-cert-auth", yes()),
        ("peer-key-file", pki.file("etcd/peer.key")),
        ("peer-trusted-ca-file", pki.file("etcd/ca.crt")),
        ("snapshot-count", "10000".to_owned()),
        ("trusted-ca-file", pki.file("etcd/ca.crt")),
        ("watch-progress-notify-interval", "5s".to_owned()),
    ]
}

fn api_server(cluster: &Cluster, pki: &Pki) -> Flags {
    // Whoever moves etcd's client URL moves the API server with it.
    let etcd_servers = extra_arg(cluster, Component::Etcd, "advertise-client-urls")
        .map_or_else(|| etcd_client_url(loopback_of(cluster.advertise_address)), str::to_owned);
    let mut flags = vec![
        ("advertise-address", cluster.advertise_address.to_string()),
        ("allow-privileged", yes()),
        ("client-ca-file", pki.file("ca.crt")),
        ("enable-admission-plugins", "NodeRestriction".to_owned()),
        ("enable-bootstrap-token-auth", yes()),
        ("etcd-cafile", pki.file("etcd/ca.crt")),
        ("etcd-certfile", pki.file("apiserver-etcd-client.crt")),
        ("etcd-keyfile", pki.file("apiserver-etcd-client.key")),
        ("etcd-servers", etcd_servers),
        ("kubelet-client-certificate", pki.file("apiserver-kubelet-client.crt")),
        ("kubelet-client-key", pki.file("apiserver-kubelet-client.key")),
        ("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname".to_owned()),
        // Two of them on one port while one replaces the other.
        ("permit-port-sharing", yes()),
        ("proxy-client-cert-file", pki.file("front-proxy-client.crt")),
        ("proxy-client-key-file", pki.file("front-proxy-client.key")),
        ("requestheader-allowed-names", "front-proxy-client".to_owned()),
        ("requestheader-client-ca-file", pki.file("front-proxy-ca.crt")),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-".to_owned()),
        ("requestheader-group-headers", "X-Remote-Group".to_owned()),
        ("requestheader-username-headers", "X-Remote-User".to_owned()),
        ("secure-port", cluster.bind_port.to_string()),
        ("service-account-issuer", format!("https://kubernetes.default.svc.{}", cluster.networking.dns_domain)),
        ("service-account-key-file", pki.file("sa.pub")),
        ("service-account-signing-key-file", pki.file("sa.key")),
        ("service-cluster-ip-range", join(&cluster.networking.service_subnets)),
        // One that is replaced would otherwise wait for its watches until it is killed.
        ("shutdown-watch-termination-grace-period", "2s".to_owned()),
        ("tls-cert-file", pki.file("apiserver.crt")),
        ("tls-private-key-file", pki.file("apiserver.key")),
    ];
    // The two exclude each other.
    if extra_arg(cluster, Component::KubeApiserver, "authorization-config").is_none() {
        flags.push(("authorization-mode", "Node,RBAC".to_owned()));
    }
    flags
}

fn controller_manager(cluster: &Cluster, layout: &Layout, pki: &Pki) -> Flags {
    let kubeconfig = text(&layout.kubernetes().join("controller-manager.conf"));
    // Empty, the signing controllers do not start; without the key's file the whole process would not.
    let signing = |name| if cluster.host.external_ca { String::new() } else { pki.file(name) };
    let mut flags = vec![
        ("authentication-kubeconfig", kubeconfig.clone()),
        ("authorization-kubeconfig", kubeconfig.clone()),
        ("bind-address", "127.0.0.1".to_owned()),
        ("client-ca-file", pki.file("ca.crt")),
        ("cluster-name", cluster.cluster_name.clone()),
        ("cluster-signing-cert-file", signing("ca.crt")),
        ("cluster-signing-key-file", signing("ca.key")),
        ("controllers", "*,bootstrapsigner,tokencleaner".to_owned()),
        ("kubeconfig", kubeconfig),
        ("leader-elect", yes()),
        ("requestheader-client-ca-file", pki.file("front-proxy-ca.crt")),
        ("root-ca-file", pki.file("ca.crt")),
        ("service-account-private-key-file", pki.file("sa.key")),
        ("use-service-account-credentials", yes()),
    ];
    if !cluster.networking.pod_subnets.is_empty() {
        flags.extend([
            ("allocate-node-cidrs", yes()),
            ("cluster-cidr", join(&cluster.networking.pod_subnets)),
            ("service-cluster-ip-range", join(&cluster.networking.service_subnets)),
        ]);
    }
    flags
}

fn scheduler(layout: &Layout) -> Flags {
    let kubeconfig = text(&layout.kubernetes().join("scheduler.conf"));
    vec![
        ("authentication-kubeconfig", kubeconfig.clone()),
        ("authorization-kubeconfig", kubeconfig.clone()),
        ("bind-address", "127.0.0.1".to_owned()),
        ("kubeconfig", kubeconfig),
        ("leader-elect", yes()),
    ]
}
