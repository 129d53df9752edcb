//! Addresses, ports, proxies.

use std::net::IpAddr;

use super::super::ports::{self, Use};
use super::super::proxy::https_proxy;
use super::super::{Facts, Ownership};
use super::Check;
use crate::config::Cluster;
use crate::proc::Listener;

pub(super) fn checks(cluster: &Cluster, owned: &Ownership, facts: &Facts) -> Vec<Check> {
    let mut checks = vec![advertise_address(cluster, facts), proxy(cluster), proxy_networks(cluster)];
    checks
        .extend(ports::wanted(cluster).iter().map(|(number, uses)| port(*number, uses, owned, &facts.host.listeners)));
    checks
}

fn advertise_address(cluster: &Cluster, facts: &Facts) -> Check {
    let wanted = cluster.advertise_address;
    let usable: Vec<_> =
        facts.host.addresses.iter().filter(|address| is_usable(**address)).map(IpAddr::to_string).collect();
    Check::new(
        "AdvertiseAddress",
        "name an address of this host with --apiserver-advertise-address; one that leads here from outside (NAT, a \
         load balancer) belongs in --apiserver-cert-extra-sans or --control-plane-endpoint",
    )
    .error(
        (!facts.host.addresses.contains(&wanted))
            .then(|| format!("advertise address {wanted} is not on this host, which has: {}", usable.join(", "))),
    )
}

/// Whether an address could be advertised.
fn is_usable(address: IpAddr) -> bool {
    !address.is_loopback()
        && match address {
            IpAddr::V4(address) => !address.is_link_local(),
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        }
}

fn proxy(cluster: &Cluster) -> Check {
    let address = cluster.advertise_address;
    Check::new("HTTPProxy", format!("add {address} to NO_PROXY")).warning(
        https_proxy(&cluster.host.proxy_variables, address)
            .map(|_| format!("connections to the API server at {address} go through HTTPS_PROXY")),
    )
}

fn proxy_networks(cluster: &Cluster) -> Check {
    let networks = cluster.networking.service_subnets.iter().chain(&cluster.networking.pod_subnets);
    let proxied: Vec<_> = networks
        .filter(|network| {
            let first = network.hosts().next().unwrap_or(network.addr());
            https_proxy(&cluster.host.proxy_variables, first).is_some()
        })
        .map(ToString::to_string)
        .collect();
    let list = proxied.join(", ");
    Check::new("HTTPProxyCIDR", "add the networks of services and pods to NO_PROXY").warning(
        (!proxied.is_empty()).then(|| format!("connections to services and pods go through HTTPS_PROXY: {list}")),
    )
}

fn port(number: u16, uses: &[Use], owned: &Ownership, listeners: &[Listener]) -> Check {
    let mut components: Vec<_> = uses.iter().map(|one| one.component.name()).collect();
    components.dedup();
    let components = components.join(" and ");
    let ours = |listener: &Listener| {
        listener.process.as_ref().is_some_and(|process| {
            let container = process.container.as_ref();
            owned.agent == Some(process.pid) || container.is_some_and(|id| owned.container_ids.contains(id))
        })
    };
    let taken = listeners.iter().find(|listener| {
        listener.port == number
            && !ours(listener)
            && uses.iter().any(|one| ports::overlap(listener.address, one.address))
    });
    let clash = uses.iter().enumerate().any(|(place, one)| {
        let others = &uses[place + 1..];
        others.iter().any(|other| other.component != one.component && ports::overlap(other.address, one.address))
    });
    Check::new(
        format!("Port-{number}"),
        format!("stop what has it (ss -ltnp 'sport = :{number}'), or give {components} another port"),
    )
    .error(clash.then(|| format!("port {number} is wanted by {components}")))
    .error(taken.map(|listener| format!("port {number} is in use by {}", owner(listener))))
}

fn owner(listener: &Listener) -> String {
    let address = listener.address;
    match &listener.process {
        Some(process) => {
            // Docker shows this much of an id.
            let container = process.container.as_ref().and_then(|id| id.get(..12));
            let container = container.map(|id| format!(", in container {id}")).unwrap_or_default();
            format!("{} (pid {}{container}) at {address}", process.command, process.pid)
        }
        None => format!("a process that cannot be seen from here, at {address}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Level;
    use super::super::testing::{AGENT, CONTAINER, good, listener, ownership, says};
    use super::*;

    #[test]
    fn a_port_is_free_or_ours_or_taken() {
        let cluster = Cluster::example();
        let unseen = Listener { process: None, ..listener("0.0.0.0", 6443, None) };
        let mut agent = listener("::", 6443, None);
        agent.process.as_mut().unwrap().pid = AGENT;
        for (name, found, expected) in [
            ("Port-6443", listener("127.0.0.1", 80, None), None),
            ("Port-6443", listener("::", 6443, Some(CONTAINER)), None),
            ("Port-6443", listener("::", 6443, None), Some("port 6443 is in use by nginx (pid 812) at ::")),
            (
                "Port-6443",
                listener("127.0.0.1", 6443, Some(&"b".repeat(64))),
                Some("port 6443 is in use by nginx (pid 812, in container bbbbbbbbbbbb) at 127.0.0.1"),
            ),
            ("Port-6443", agent, None),
            ("Port-6443", unseen, Some("port 6443 is in use by a process that cannot be seen from here, at 0.0.0.0")),
            ("Port-10259", listener("198.51.100.7", 10259, None), None),
            (
                "Port-10259",
                listener("127.0.0.1", 10259, None),
                Some("port 10259 is in use by nginx (pid 812) at 127.0.0.1"),
            ),
        ] {
            let mut facts = good();
            facts.host.listeners = vec![found];
            let problem = says(&cluster, &ownership(), &facts, name);
            assert_eq!(problem, expected.map(|text| (Level::Error, text.to_owned())), "{name}");
        }
    }

    #[test]
    fn two_components_cannot_share_a_port() {
        let mut cluster = Cluster::example();
        cluster.bind_port = 2379;
        let problem = says(&cluster, &Ownership::default(), &good(), "Port-2379");
        assert_eq!(problem, Some((Level::Error, "port 2379 is wanted by kube-apiserver and etcd".to_owned())));
    }

    #[test]
    fn the_advertise_address_is_ours() {
        let mut cluster = Cluster::example();
        let mut facts = good();
        facts.host.addresses = ["127.0.0.1", "169.254.1.1", "fe80::1", "192.0.2.10"].map(|a| a.parse().unwrap()).into();
        cluster.advertise_address = "192.0.2.10".parse().unwrap();
        assert_eq!(says(&cluster, &Ownership::default(), &facts, "AdvertiseAddress"), None);
        cluster.advertise_address = "203.0.113.1".parse().unwrap();
        let text = "advertise address 203.0.113.1 is not on this host, which has: 192.0.2.10";
        let problem = says(&cluster, &Ownership::default(), &facts, "AdvertiseAddress");
        assert_eq!(problem, Some((Level::Error, text.to_owned())));
    }

    #[test]
    fn a_proxy_in_the_way_is_a_warning() {
        let mut cluster = Cluster::example();
        cluster.advertise_address = "192.0.2.10".parse().unwrap();
        cluster.networking.service_subnets = vec!["10.96.0.0/12".parse().unwrap()];
        cluster.networking.pod_subnets = vec!["10.244.0.0/16".parse().unwrap()];
        let mut check = |exceptions: &str, name: &str| {
            let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            cluster.host.proxy_variables = vec![set("HTTPS_PROXY", "http://proxy:3128"), set("NO_PROXY", exceptions)];
            says(&cluster, &Ownership::default(), &good(), name)
        };
        let warning = |text: &str| Some((Level::Warning, text.to_owned()));
        assert_eq!(
            check("", "HTTPProxy"),
            warning("connections to the API server at 192.0.2.10 go through HTTPS_PROXY")
        );
        assert_eq!(check("192.0.2.0/24", "HTTPProxy"), None);
        assert_eq!(
            check("10.96.0.0/12", "HTTPProxyCIDR"),
            warning("connections to services and pods go through HTTPS_PROXY: 10.244.0.0/16")
        );
        assert_eq!(check("10.0.0.0/8", "HTTPProxyCIDR"), None);
    }
}
