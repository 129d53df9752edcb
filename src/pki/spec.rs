//! The table of certificates: kubeadm's `phases/certs` (1.36), names and contents alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::config::{Cluster, Host, San};

/// Private half of the service-account key pair, below the certificate directory, 0600.
pub const SERVICE_ACCOUNT_KEY_FILE: &str = "sa.key";

/// Public half, a PKIX `PUBLIC KEY` block, below the certificate directory, 0600 as kubeadm writes it.
pub const SERVICE_ACCOUNT_PUBLIC_FILE: &str = "sa.pub";

/// What one certificate must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// kubeadm's name of the phase that makes it, e.g. `etcd-server`.
    pub name: &'static str,
    /// Where certificate and key live.
    pub files: Files,
    /// Name of the specification that signs it; none for an authority, which signs itself.
    pub authority: Option<&'static str>,
    /// CN of the subject.
    pub common_name: String,
    /// O of the subject, where there is one.
    pub organization: Option<&'static str>,
    /// Extended key usages; empty for an authority.
    pub usages: &'static [Usage],
    /// Subject alternative names: DNS names sorted, then addresses, no duplicates.
    pub sans: Vec<San>,
    /// Somebody decides by the subject, so one that differs is wrong and not only unusual: kubeconfigs (user and
    /// group), and the front-proxy client (`--requestheader-allowed-names`).
    pub subject_is_identity: bool,
}

/// Where a certificate and its key live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// `<base>.crt` (0644) and `<base>.key` (0600) below the certificate directory; the base may have a directory.
    Pair(&'static str),
    /// Both inside a kubeconfig of this name (0600) in `/etc/kubernetes`.
    Kubeconfig(&'static str),
}

/// An extended key usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Presented by a server.
    ServerAuth,
    /// Presented by a client.
    ClientAuth,
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ServerAuth => "serverAuth",
            Self::ClientAuth => "clientAuth",
        })
    }
}

impl Spec {
    /// Whether this is a certificate authority.
    pub fn is_authority(&self) -> bool {
        self.authority.is_none()
    }

    /// File of the certificate, e.g. `etcd/server.crt`.
    pub fn certificate_file(&self) -> String {
        match self.files {
            Files::Pair(base) => format!("{base}.crt"),
            Files::Kubeconfig(name) => name.to_owned(),
        }
    }

    /// File of the key, e.g. `etcd/server.key`.
    pub fn key_file(&self) -> String {
        match self.files {
            Files::Pair(base) => format!("{base}.key"),
            Files::Kubeconfig(name) => name.to_owned(),
        }
    }

    fn authority(name: &'static str, base: &'static str, common_name: &str) -> Self {
        Self {
            name,
            files: Files::Pair(base),
            authority: None,
            common_name: common_name.to_owned(),
            organization: None,
            usages: &[],
            sans: vec![San::Dns(common_name.to_owned())],
            subject_is_identity: false,
        }
    }

    fn leaf(
        name: &'static str,
        base: &'static str,
        authority: &'static str,
        common_name: &str,
        usages: &'static [Usage],
    ) -> Self {
        Self {
            name,
            files: Files::Pair(base),
            authority: Some(authority),
            common_name: common_name.to_owned(),
            organization: None,
            usages,
            sans: Vec::new(),
            subject_is_identity: false,
        }
    }
}

/// Every certificate of `cluster`, in the order of kubeadm's phases: an authority comes before its leaves.
///
/// The service-account key pair is not among them: it has no certificate
/// (see [`issue_service_account`](super::issue_service_account)).
pub fn specifications(cluster: &Cluster) -> Vec<Spec> {
    const SERVER: &[Usage] = &[Usage::ServerAuth];
    const CLIENT: &[Usage] = &[Usage::ClientAuth];
    // etcd's gateway dials its own server with the server certificate, and peers are clients of each other.
    const BOTH: &[Usage] = &[Usage::ServerAuth, Usage::ClientAuth];
    let node = cluster.node_name.as_str();

    vec![
        Spec::authority("ca", "ca", "kubernetes"),
        Spec { sans: api_server_sans(cluster), ..Spec::leaf("apiserver", "apiserver", "ca", "kube-apiserver", SERVER) },
        Spec {
            organization: Some("kubeadm:cluster-admins"),
            ..Spec::leaf(
                "apiserver-kubelet-client",
                "apiserver-kubelet-client",
                "ca",
                "kube-apiserver-kubelet-client",
                CLIENT,
            )
        },
        Spec::authority("front-proxy-ca", "front-proxy-ca", "front-proxy-ca"),
        Spec {
            subject_is_identity: true,
            ..Spec::leaf("front-proxy-client", "front-proxy-client", "front-proxy-ca", "front-proxy-client", CLIENT)
        },
        Spec::authority("etcd-ca", "etcd/ca", "etcd-ca"),
        Spec {
            sans: etcd_sans(cluster, &cluster.etcd.server_cert_sans),
            ..Spec::leaf("etcd-server", "etcd/server", "etcd-ca", node, BOTH)
        },
        Spec {
            sans: etcd_sans(cluster, &cluster.etcd.peer_cert_sans),
            ..Spec::leaf("etcd-peer", "etcd/peer", "etcd-ca", node, BOTH)
        },
        Spec::leaf(
            "etcd-healthcheck-client",
            "etcd/healthcheck-client",
            "etcd-ca",
            "kube-etcd-healthcheck-client",
            CLIENT,
        ),
        Spec::leaf("apiserver-etcd-client", "apiserver-etcd-client", "etcd-ca", "kube-apiserver-etcd-client", CLIENT),
    ]
}

fn api_server_sans(cluster: &Cluster) -> Vec<San> {
    let mut sans = vec![
        San::Dns(cluster.node_name.clone()),
        San::Dns("kubernetes".to_owned()),
        San::Dns("kubernetes.default".to_owned()),
        San::Dns("kubernetes.default.svc".to_owned()),
        San::Dns(format!("kubernetes.default.svc.{}", cluster.networking.dns_domain)),
    ];
    sans.extend(cluster.networking.service_subnets.first().map(|subnet| San::Ip(first_address(*subnet))));
    sans.push(San::Ip(cluster.advertise_address));
    sans.extend(cluster.control_plane_endpoint.as_ref().map(|endpoint| match &endpoint.host {
        Host::Name(name) => San::Dns(name.clone()),
        Host::Address(address) => San::Ip(*address),
    }));
    sans.extend(cluster.api_server.cert_sans.iter().cloned());
    in_order(sans)
}

fn etcd_sans(cluster: &Cluster, extra: &[San]) -> Vec<San> {
    let mut sans = vec![
        San::Dns(cluster.node_name.clone()),
        San::Dns("localhost".to_owned()),
        San::Ip(cluster.advertise_address),
        San::Ip(Ipv4Addr::LOCALHOST.into()),
        San::Ip(Ipv6Addr::LOCALHOST.into()),
    ];
    sans.extend(extra.iter().cloned());
    in_order(sans)
}

/// DNS names sorted, then addresses in the order given, each once.
fn in_order(sans: Vec<San>) -> Vec<San> {
    let (mut names, addresses): (Vec<_>, Vec<_>) = sans.into_iter().partition(|san| matches!(san, San::Dns(_)));
    names.sort();
    names.dedup();
    for address in addresses {
        if !names.contains(&address) {
            names.push(address);
        }
    }
    names
}

/// The `kubernetes` Service's address: the first one after the network address, whatever the prefix length.
fn first_address(subnet: IpNet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(network) => Ipv4Addr::from(u32::from(network).wrapping_add(1)).into(),
        IpAddr::V6(network) => Ipv6Addr::from(u128::from(network).wrapping_add(1)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Endpoint;

    fn sans(cluster: &Cluster, name: &str) -> Vec<String> {
        let spec = specifications(cluster).into_iter().find(|spec| spec.name == name).unwrap();
        spec.sans
            .iter()
            .map(|san| match san {
                San::Dns(name) => name.clone(),
                San::Ip(address) => address.to_string(),
            })
            .collect()
    }

    #[test]
    fn every_row_is_kubeadms() {
        use Usage::{ClientAuth, ServerAuth};
        type Row = (&'static str, &'static str, Option<&'static str>, &'static str, Option<&'static str>, Vec<Usage>);
        let expected: Vec<Row> = vec![
            ("ca", "ca.crt", None, "kubernetes", None, vec![]),
            ("apiserver", "apiserver.crt", Some("ca"), "kube-apiserver", None, vec![ServerAuth]),
            (
                "apiserver-kubelet-client",
                "apiserver-kubelet-client.crt",
                Some("ca"),
                "kube-apiserver-kubelet-client",
                Some("kubeadm:cluster-admins"),
                vec![ClientAuth],
            ),
            ("front-proxy-ca", "front-proxy-ca.crt", None, "front-proxy-ca", None, vec![]),
            (
                "front-proxy-client",
                "front-proxy-client.crt",
                Some("front-proxy-ca"),
                "front-proxy-client",
                None,
                vec![ClientAuth],
            ),
            ("etcd-ca", "etcd/ca.crt", None, "etcd-ca", None, vec![]),
            ("etcd-server", "etcd/server.crt", Some("etcd-ca"), "master-0", None, vec![ServerAuth, ClientAuth]),
            ("etcd-peer", "etcd/peer.crt", Some("etcd-ca"), "master-0", None, vec![ServerAuth, ClientAuth]),
            (
                "etcd-healthcheck-client",
                "etcd/healthcheck-client.crt",
                Some("etcd-ca"),
                "kube-etcd-healthcheck-client",
                None,
                vec![ClientAuth],
            ),
            (
                "apiserver-etcd-client",
                "apiserver-etcd-client.crt",
                Some("etcd-ca"),
                "kube-apiserver-etcd-client",
                None,
                vec![ClientAuth],
            ),
        ];
        let specs = specifications(&Cluster::example());
        let actual: Vec<Row> = specs
            .iter()
            .zip(&expected)
            .map(|(spec, row)| {
                assert_eq!(spec.common_name, row.3);
                assert_eq!(spec.certificate_file(), row.1);
                assert_eq!(spec.key_file(), row.1.replace(".crt", ".key"));
                assert_eq!(spec.is_authority(), row.2.is_none());
                (spec.name, row.1, spec.authority, row.3, spec.organization, spec.usages.to_vec())
            })
            .collect();
        assert_eq!(actual, expected);
        assert_eq!(specs.len(), expected.len());
    }

    #[test]
    fn an_authority_comes_before_its_leaves() {
        let specs = specifications(&Cluster::example());
        for (index, spec) in specs.iter().enumerate() {
            if let Some(authority) = spec.authority {
                let signer = specs.iter().position(|spec| spec.name == authority).unwrap();
                assert!(signer < index && specs[signer].is_authority(), "{}", spec.name);
            }
        }
    }

    #[test]
    fn names_of_the_api_server() {
        let mut cluster = Cluster::example();
        let default = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "master-0",
            "10.96.0.1",
            "192.0.2.10",
        ];
        assert_eq!(sans(&cluster, "apiserver"), default);

        cluster.control_plane_endpoint = Some(Endpoint { host: Host::Name("api.example.com".to_owned()), port: 6443 });
        cluster.api_server.cert_sans = vec![
            San::Dns("*.example.org".to_owned()),
            San::Ip("192.0.2.10".parse().unwrap()),
            San::Dns("kubernetes".to_owned()),
            San::Ip("2001:db8::7".parse().unwrap()),
        ];
        assert_eq!(
            sans(&cluster, "apiserver"),
            [&["*.example.org", "api.example.com"], &default[..], &["2001:db8::7"]].concat()
        );

        cluster.api_server.cert_sans.clear();
        cluster.control_plane_endpoint =
            Some(Endpoint { host: Host::Address("198.51.100.1".parse().unwrap()), port: 443 });
        assert_eq!(sans(&cluster, "apiserver").last().unwrap(), "198.51.100.1");

        cluster.networking.service_subnets = vec!["fd00:1::/108".parse().unwrap(), "10.96.0.0/12".parse().unwrap()];
        let names = sans(&cluster, "apiserver");
        assert!(names.contains(&"fd00:1::1".to_owned()) && !names.contains(&"10.96.0.1".to_owned()), "{names:?}");
    }

    #[test]
    fn names_of_etcd() {
        let mut cluster = Cluster::example();
        let default = ["localhost", "master-0", "192.0.2.10", "127.0.0.1", "::1"];
        assert_eq!(sans(&cluster, "etcd-server"), default);
        assert_eq!(sans(&cluster, "etcd-peer"), default);
        cluster.etcd.server_cert_sans = vec![San::Dns("etcd.example.com".to_owned())];
        cluster.etcd.peer_cert_sans = vec![San::Ip("192.0.2.99".parse().unwrap())];
        assert_eq!(sans(&cluster, "etcd-server"), [&["etcd.example.com"], &default[..]].concat());
        assert_eq!(sans(&cluster, "etcd-peer"), [&default[..], &["192.0.2.99"]].concat());
    }

    #[test]
    fn clients_and_authorities_have_no_further_names() {
        for spec in specifications(&Cluster::example()) {
            match spec.name {
                "apiserver" | "etcd-server" | "etcd-peer" => {}
                _ if spec.is_authority() => assert_eq!(spec.sans, [San::Dns(spec.common_name.clone())]),
                _ => assert_eq!(spec.sans, [], "{}", spec.name),
            }
        }
    }
}
