//! What the configuration takes from the host: looked at once by [`HostFacts::collect`], decided on by pure functions.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::cluster::names;

/// Directories that are mounted beside `/etc/ssl/certs` where they exist, because its links point there (kubeadm:
/// `caCertsExtraVolumePaths`).
const CA_DIRECTORIES: [&str; 5] = [
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
];

/// What the configuration takes from the host.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Name of the host as the kernel has it.
    pub hostname: String,
    /// Network interfaces in the kernel's order.
    pub interfaces: Vec<Interface>,
    /// Default routes, IPv4 before IPv6, each in the kernel's order; `None` where the kernel offers no routing table.
    pub default_routes: Option<Vec<DefaultRoute>>,
    /// Those of kubeadm's well-known directories of CA certificates that exist.
    pub ca_directories: Vec<PathBuf>,
    /// The `*_proxy` variables of the environment that are not empty.
    pub proxy_variables: Vec<(String, String)>,
}

/// Without the values of the proxy variables, which may hold passwords.
impl fmt::Debug for HostFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostFacts")
            .field("hostname", &self.hostname)
            .field("interfaces", &self.interfaces)
            .field("default_routes", &self.default_routes)
            .field("ca_directories", &self.ca_directories)
            .field("proxy_variables", &names(&self.proxy_variables))
            .finish()
    }
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// Whether it is one end of a point-to-point link.
    pub point_to_point: bool,
    /// Its addresses in the kernel's order.
    pub addresses: Vec<IpAddr>,
}

/// A default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Name of the interface.
    pub interface: String,
    /// For IPv6, otherwise for IPv4.
    pub ipv6: bool,
}

/// Why the host cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// `gethostname` failed.
    #[error("cannot read the host name")]
    Hostname(#[source] nix::Error),
    /// `getifaddrs` failed.
    #[error("cannot list the network interfaces")]
    Interfaces(#[source] nix::Error),
    /// The routing table cannot be read.
    #[error("cannot read {path}")]
    Routes {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl HostFacts {
    /// Looks at this host; `environment` is that of the command.
    pub fn collect(environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, HostError> {
        let hostname = nix::unistd::gethostname().map_err(HostError::Hostname)?;
        Ok(Self {
            hostname: hostname.to_string_lossy().into_owned(),
            interfaces: interfaces()?,
            default_routes: default_routes(Path::new("/proc/net"))?,
            ca_directories: CA_DIRECTORIES.iter().map(PathBuf::from).filter(|path| path.exists()).collect(),
            proxy_variables: proxy_variables(environment),
        })
    }

    /// The address that kubeadm would announce, of IPv6 first where `prefer_ipv6` (apimachinery:
    /// `ChooseHostInterface`): the first global one of a default route's interface, or of the loopback interface where
    /// that one has none. Without a routing table the first global one of any interface that is up.
    pub fn default_address(&self, prefer_ipv6: bool) -> Option<IpAddr> {
        [prefer_ipv6, !prefer_ipv6].into_iter().find_map(|ipv6| match &self.default_routes {
            Some(routes) => routes.iter().filter(|route| route.ipv6 == ipv6).find_map(|route| {
                let named = self.interfaces.iter().find(|interface| interface.name == route.interface);
                named.and_then(|interface| interface.global_address(ipv6)).or_else(|| {
                    self.interfaces.iter().filter(|i| i.loopback).find_map(|interface| interface.global_address(ipv6))
                })
            }),
            None => self
                .interfaces
                .iter()
                .filter(|interface| !interface.loopback && !interface.point_to_point)
                .find_map(|interface| interface.global_address(ipv6)),
        })
    }

    /// A global address of the loopback interface, IPv4 first (apimachinery: `ChooseBindAddressForInterface`).
    pub fn loopback_address(&self) -> Option<IpAddr> {
        let loopback = self.interfaces.iter().find(|interface| interface.name == "lo")?;
        loopback.global_address(false).or_else(|| loopback.global_address(true))
    }

    /// Whether `address` belongs to an interface of this host.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.interfaces.iter().any(|interface| interface.addresses.contains(&address))
    }
}

impl Interface {
    fn global_address(&self, ipv6: bool) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| self.up && address.is_ipv6() == ipv6 && is_global_unicast(*address))
    }
}

/// Go's `IP.IsGlobalUnicast`: private addresses count, loopback, link-local, multicast and broadcast do not.
pub(super) fn is_global_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_broadcast() || v4.is_unspecified() || v4.is_multicast() || v4.is_link_local()),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local()),
    }
    .then_some(address)
    .is_some_and(|address| !address.is_loopback())
}

fn interfaces() -> Result<Vec<Interface>, HostError> {
    let mut interfaces: Vec<Interface> = Vec::new();
    for entry in getifaddrs().map_err(HostError::Interfaces)? {
        let index = interfaces.iter().position(|known| known.name == entry.interface_name).unwrap_or_else(|| {
            interfaces.push(Interface {
                name: entry.interface_name.clone(),
                up: entry.flags.contains(InterfaceFlags::IFF_UP),
                loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
                point_to_point: entry.flags.contains(InterfaceFlags::IFF_POINTOPOINT),
                addresses: Vec::new(),
            });
            interfaces.len() - 1
        });
        let Some(address) = entry.address else { continue };
        let address = address
            .as_sockaddr_in()
            .map(|v4| IpAddr::V4(v4.ip()))
            .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())));
        if let (Some(address), Some(interface)) = (address, interfaces.get_mut(index)) {
            interface.addresses.push(address);
        }
    }
    Ok(interfaces)
}

/// `None` without an IPv4 table; the IPv6 table is optional, as in apimachinery.
fn default_routes(proc_net: &Path) -> Result<Option<Vec<DefaultRoute>>, HostError> {
    let path = proc_net.join("route");
    let v4 = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(HostError::Routes { path, source }),
    };
    let v6 = std::fs::read_to_string(proc_net.join("ipv6_route")).unwrap_or_default();
    Ok(Some(parse_routes(&v4, &v6)))
}

/// Default routes of `/proc/net/route` (addresses in host byte order) and `/proc/net/ipv6_route`. An IPv6 route
/// without a gateway is the kernel's own entry for loopback.
fn parse_routes(v4: &str, v6: &str) -> Vec<DefaultRoute> {
    const V4_ANY: &str = "00000000";
    const V6_ANY: &str = "00000000000000000000000000000000";
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let interface = fields.next()?;
        (fields.next()? == V4_ANY).then(|| DefaultRoute { interface: interface.to_owned(), ipv6: false })
    });
    let v6 = v6.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [destination, _, _, _, gateway, _, _, _, _, interface] = fields.as_slice() else { return None };
        (*destination == V6_ANY && *gateway != V6_ANY)
            .then(|| DefaultRoute { interface: (*interface).to_owned(), ipv6: true })
    });
    v4.chain(v6).collect()
}

/// kubeadm's `GetProxyEnvVars`; a later value of the same name wins, sorted by name.
fn proxy_variables(environment: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
    environment
        .into_iter()
        .filter(|(name, value)| name.to_ascii_lowercase().ends_with("_proxy") && !value.is_empty())
        .collect::<BTreeMap<_, _>>()
        .into_iter()
        .collect()
}

/// Reads an address; an IPv4-mapped IPv6 address is the IPv4 address, as in Go.
pub(super) fn parse_address(text: &str) -> Option<IpAddr> {
    match text.parse().ok()? {
        IpAddr::V6(v6) => Some(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)),
        v4 @ IpAddr::V4(_) => Some(v4),
    }
}

/// `127.0.0.1` or `::1`, of the family of `address`.
pub(crate) fn loopback_of(address: IpAddr) -> IpAddr {
    if address.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

#[cfg(test)]
mod tests {
    use super::super::HostView;
    use super::*;

    fn interface(name: &str, addresses: &[&str]) -> Interface {
        Interface {
            name: name.into(),
            up: true,
            loopback: name == "lo",
            point_to_point: name.starts_with("tun"),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn default_routes_are_read_from_proc() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth1\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let any = "0".repeat(32);
        let gateway = format!("fd{}1", "0".repeat(29));
        let v6 = format!(
            "{any} 00 {any} 00 {gateway} 00000400 1 0 00000003 eth2\n{any} 00 {any} 00 {any} ffffffff 1 0 00200200 lo\n"
        );
        let routes = parse_routes(v4, &v6);
        let names: Vec<_> = routes.iter().map(|route| (route.interface.as_str(), route.ipv6)).collect();
        assert_eq!(names, [("eth0", false), ("eth2", true)]);
        assert_eq!(parse_routes("", "x y\n"), []);
    }

    #[test]
    fn the_advertised_address_is_chosen_as_kubeadm_does() {
        type Row = (&'static str, Vec<Interface>, Option<Vec<DefaultRoute>>, bool, Option<&'static str>);
        let route = |interface: &str, ipv6| DefaultRoute { interface: interface.into(), ipv6 };
        let lo = || interface("lo", &["127.0.0.1", "::1"]);
        let rows: Vec<Row> = vec![
            (
                "interface of the default route, not the first one",
                vec![lo(), interface("eth0", &["10.0.0.1"]), interface("eth1", &["192.0.2.1"])],
                Some(vec![route("eth1", false)]),
                false,
                Some("192.0.2.1"),
            ),
            (
                "link-local addresses are passed over",
                vec![interface("eth0", &["169.254.1.1", "192.0.2.1"])],
                Some(vec![route("eth0", false)]),
                false,
                Some("192.0.2.1"),
            ),
            (
                "a global address on loopback when the interface has none",
                vec![interface("lo", &["127.0.0.1", "192.0.2.9"]), interface("eth0", &["169.254.1.1"])],
                Some(vec![route("eth0", false)]),
                false,
                Some("192.0.2.9"),
            ),
            (
                "IPv6 when there is nothing else",
                vec![lo(), interface("eth0", &["fe80::1", "2001:db8::1"])],
                Some(vec![route("eth0", true)]),
                false,
                Some("2001:db8::1"),
            ),
            (
                "IPv6 preferred",
                vec![interface("eth0", &["192.0.2.1", "2001:db8::1"])],
                Some(vec![route("eth0", false), route("eth0", true)]),
                true,
                Some("2001:db8::1"),
            ),
            (
                "an interface that is down",
                vec![Interface { up: false, ..interface("eth0", &["192.0.2.1"]) }],
                Some(vec![route("eth0", false)]),
                false,
                None,
            ),
            ("no default route", vec![interface("eth0", &["192.0.2.1"])], Some(vec![]), false, None),
            (
                "no routing table",
                vec![lo(), interface("tun0", &["10.8.0.1"]), interface("eth0", &["192.0.2.1"])],
                None,
                false,
                Some("192.0.2.1"),
            ),
        ];
        for (name, interfaces, default_routes, prefer_ipv6, expected) in rows {
            let facts = HostFacts { interfaces, default_routes, ..HostFacts::default() };
            let address = facts.default_address(prefer_ipv6).map(|address| address.to_string());
            assert_eq!(address.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn proxy_variables_of_any_case_are_kept() {
        let environment =
            [("no_proxy", "10.0.0.0/8"), ("HTTPS_PROXY", "http://p"), ("http_proxy", ""), ("PATH", "/bin")];
        let kept = proxy_variables(environment.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(kept, [("HTTPS_PROXY".into(), "http://p".into()), ("no_proxy".into(), "10.0.0.0/8".into())]);
    }

    #[test]
    fn passwords_of_proxies_are_not_shown() {
        let proxy_variables = vec![("HTTPS_PROXY".to_owned(), "http://user:hidden@proxy".to_owned())];
        let facts = HostFacts { proxy_variables: proxy_variables.clone(), ..HostFacts::default() };
        let view = HostView { proxy_variables, ..HostView::default() };
        for shown in [format!("{facts:?}"), format!("{view:?}")] {
            assert!(shown.contains("HTTPS_PROXY") && !shown.contains("hidden"), "{shown}");
        }
    }

    #[test]
    fn this_host_has_a_name_and_a_loopback_interface() {
        let facts = HostFacts::collect([]).unwrap();
        assert!(!facts.hostname.is_empty());
        assert!(facts.has_address(IpAddr::V4(Ipv4Addr::LOCALHOST)), "{facts:?}");
    }
}
