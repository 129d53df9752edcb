//! Which ports the control plane will listen on, by its configuration.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{Cluster, ComponentOptions};
use crate::release::Component;

/// Ports of the components, as kubeadm's constants have them.
const CONTROLLER_MANAGER: u16 = 10257;
const SCHEDULER: u16 = 10259;
const ETCD_CLIENT: u16 = 2379;
const ETCD_PEER: u16 = 2380;
const ETCD_METRICS: u16 = 2381;

/// One use of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Use {
    /// Who will listen.
    pub(super) component: Component,
    /// Where; unspecified for everywhere, which in Go is IPv4 and IPv6.
    pub(super) address: IpAddr,
}

/// The ports that will be listened on.
pub(super) fn wanted(cluster: &Cluster) -> BTreeMap<u16, Vec<Use>> {
    let advertised = cluster.advertise_address;
    let loopback: IpAddr = if advertised.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let server = |component: Component, port: u16, address: IpAddr| {
        let options = cluster.options(component);
        let port = last(options, "secure-port").and_then(|value| value.parse().ok()).unwrap_or(port);
        let address = last(options, "bind-address").and_then(|value| value.parse().ok()).unwrap_or(address);
        vec![(component, SocketAddr::new(address, port))]
    };
    let etcd = |flag: &str, defaults: &[(IpAddr, u16)]| -> Vec<(Component, SocketAddr)> {
        let sockets = match last(&cluster.etcd.options, flag) {
            Some(urls) => urls.split(',').filter_map(socket_of_url).collect(),
            None => defaults.iter().map(|&(address, port)| SocketAddr::new(address, port)).collect::<Vec<_>>(),
        };
        sockets.into_iter().map(|socket| (Component::Etcd, socket)).collect()
    };
    let uses = [
        server(Component::KubeApiserver, cluster.bind_port, Ipv4Addr::UNSPECIFIED.into()),
        server(Component::KubeControllerManager, CONTROLLER_MANAGER, Ipv4Addr::LOCALHOST.into()),
        server(Component::KubeScheduler, SCHEDULER, Ipv4Addr::LOCALHOST.into()),
        etcd("listen-client-urls", &[(loopback, ETCD_CLIENT), (advertised, ETCD_CLIENT)]),
        etcd("listen-peer-urls", &[(advertised, ETCD_PEER)]),
        etcd("listen-metrics-urls", &[(loopback, ETCD_METRICS)]),
    ];
    let mut wanted = BTreeMap::<u16, Vec<Use>>::new();
    // Port 0 switches a server off.
    for (component, socket) in uses.into_iter().flatten().filter(|(_, socket)| socket.port() != 0) {
        wanted.entry(socket.port()).or_default().push(Use { component, address: socket.ip() });
    }
    wanted
}

/// Whether a listener at `taken` keeps us from listening at `wanted` on the same port.
pub(super) fn overlap(taken: IpAddr, wanted: IpAddr) -> bool {
    taken == wanted
        || wanted.is_unspecified()
        // `::` mostly takes IPv4 as well; whether it does cannot be seen in /proc.
        || taken.is_unspecified() && (taken.is_ipv6() || wanted.is_ipv4())
}

/// The last value of a flag; later ones win.
fn last<'a>(options: &'a ComponentOptions, flag: &str) -> Option<&'a str> {
    options.extra_args.iter().rev().find(|(name, _)| name == flag).map(|(_, value)| value.as_str())
}

/// Address and port of an etcd URL, which names an address (etcd refuses names there).
fn socket_of_url(url: &str) -> Option<SocketAddr> {
    url.trim().split_once("://")?.1.trim_end_matches('/').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(cluster: &Cluster) -> Vec<String> {
        wanted(cluster)
            .into_iter()
            .flat_map(|(port, uses)| {
                uses.into_iter().map(move |one| format!("{} {}", one.component, SocketAddr::new(one.address, port)))
            })
            .collect()
    }

    #[test]
    fn defaults_are_those_of_kubeadms_manifests() {
        let mut cluster = Cluster::example();
        cluster.advertise_address = "192.0.2.10".parse().unwrap();
        assert_eq!(
            summary(&cluster),
            [
                "etcd 127.0.0.1:2379",
                "etcd 192.0.2.10:2379",
                "etcd 192.0.2.10:2380",
                "etcd 127.0.0.1:2381",
                "kube-apiserver 0.0.0.0:6443",
                "kube-controller-manager 127.0.0.1:10257",
                "kube-scheduler 127.0.0.1:10259",
            ]
        );
    }

    #[test]
    fn flags_move_them() {
        let mut cluster = Cluster::example();
        cluster.advertise_address = "2001:db8::1".parse().unwrap();
        cluster.bind_port = 8443;
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        cluster.scheduler.extra_args = vec![set("secure-port", "0")];
        cluster.controller_manager.extra_args = vec![set("bind-address", "0.0.0.0"), set("secure-port", "10357")];
        cluster.etcd.options.extra_args =
            vec![set("listen-metrics-urls", "http://0.0.0.0:2381/,http://[::1]:2382,unix:///x")];
        assert_eq!(
            summary(&cluster),
            [
                "etcd [::1]:2379",
                "etcd [2001:db8::1]:2379",
                "etcd [2001:db8::1]:2380",
                "etcd 0.0.0.0:2381",
                "etcd [::1]:2382",
                "kube-apiserver 0.0.0.0:8443",
                "kube-controller-manager 0.0.0.0:10357",
            ]
        );
    }

    #[test]
    fn addresses_overlap_as_the_kernel_sees_it() {
        for (taken, wanted, expected) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "192.0.2.1", false),
            ("127.0.0.1", "0.0.0.0", true),
            ("::1", "0.0.0.0", true),
            ("0.0.0.0", "192.0.2.1", true),
            ("0.0.0.0", "::1", false),
            ("::", "192.0.2.1", true),
        ] {
            assert_eq!(overlap(taken.parse().unwrap(), wanted.parse().unwrap()), expected, "{taken} {wanted}");
        }
    }
}
