//! Wire types and defaults → [`Cluster`], or everything that is wrong with them.
//!
//! Rules are kubeadm's (`apis/kubeadm/validation`) unless the comment says otherwise. Where a value is wrong a
//! stand-in takes its place, so that the other rules are checked nevertheless.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::path::{Component as PathComponent, Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{EnvVar, Taint};

use super::error::{ConfigError, Place, Problem};
use super::host::{is_global_unicast, parse_address};
use super::overrides::Given;
use super::syntax::{is_image_repository, is_image_tag, is_plain_absolute_path, is_wildcard_subdomain};
use super::wire::{self, ClusterConfiguration, InitConfiguration};
use super::{
    ApiServer, CertificatePolicy, Checked, Cluster, ComponentOptions, Endpoint, Etcd, ExtraVolume, Host, HostFacts,
    HostView, KeyAlgorithm, Networking, Registration, San, Timeouts, defaults, duration, file,
};
use crate::names::{CONTROL_PLANE, is_dns_label, is_dns_subdomain, is_taint};
use crate::release::{DEFAULT_IMAGE_REPOSITORY, KubernetesVersion, VersionError};

const DNS_NAME: &str = "lower case letters, digits, `-` and `.`, beginning and ending with a letter or digit";

/// Where values come from, and what is wrong with them so far.
pub(super) struct Checker<'a> {
    pub(super) lines: &'a file::Lines,
    pub(super) given: &'a [Given],
    pub(super) errors: Vec<ConfigError>,
    pub(super) warnings: Vec<String>,
}

impl Checker<'_> {
    pub(super) fn problem(&mut self, field: &str, problem: Problem) {
        let whole = field.split('[').next().unwrap_or(field);
        let flag = self.given.iter().find(|given| given.field == whole);
        let place = match (flag, self.lines.place(field)) {
            (Some(given), _) => Place::Flag(given.flag),
            (None, Some(place)) => place,
            (None, None) => Place::Host,
        };
        self.errors.push(ConfigError { place, field: field.to_owned(), problem });
    }

    fn invalid(&mut self, field: &str, value: impl Display, problem: impl Display, expected: impl Display) {
        let (value, problem, expected) = (value.to_string(), problem.to_string(), expected.to_string());
        self.problem(field, Problem::Invalid { value, problem, expected });
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }
}

/// An empty text is an absent one, as in Go.
fn text(value: Option<&String>) -> Option<&str> {
    value.map(String::as_str).filter(|text| !text.is_empty())
}

/// Checks everything, over the cluster that `runs` here. The result counts only if `checker` has no errors afterwards.
pub(super) fn cluster(
    init: &InitConfiguration,
    cluster: &ClusterConfiguration,
    host: &HostFacts,
    runs: Option<&Cluster>,
    checker: &mut Checker<'_>,
) -> Cluster {
    let endpoint = init.local_api_endpoint.clone().unwrap_or_default();
    let node_name = node_name(init, host, checker);
    let registration = registration(&init.node_registration.clone().unwrap_or_default(), checker);
    let (version, version_pinned) = version(text(cluster.kubernetes_version.as_ref()), runs, checker);
    let advertise_address = advertise_address(text(endpoint.advertise_address.as_ref()), host, runs, checker);
    let bind_port = bind_port(endpoint.bind_port, checker);
    let controller_manager =
        options("controllerManager", cluster.controller_manager.clone().unwrap_or_default(), checker);
    let networking =
        networking(&cluster.networking.clone().unwrap_or_default(), advertise_address, &controller_manager, checker);
    let api_server = cluster.api_server.clone().unwrap_or_default();
    Cluster {
        node_name,
        registration,
        version,
        version_pinned,
        advertise_address: advertise_address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
        bind_port,
        control_plane_endpoint: text(cluster.control_plane_endpoint.as_ref())
            .and_then(|endpoint| control_plane_endpoint(endpoint, bind_port, checker)),
        cluster_name: text(cluster.cluster_name.as_ref()).unwrap_or(defaults::CLUSTER_NAME).to_owned(),
        cert_dir: path("certificatesDir", cluster.certificates_dir.as_ref(), defaults::CERTIFICATES_DIR, checker),
        image_repository: image_repository("imageRepository", cluster.image_repository.as_ref(), checker)
            .unwrap_or_else(|| DEFAULT_IMAGE_REPOSITORY.to_owned()),
        networking,
        certificates: certificates(cluster, checker),
        api_server: ApiServer {
            cert_sans: sans("apiServer.certSANs", api_server.cert_sans.as_deref(), checker),
            options: options(
                "apiServer",
                wire::ControlPlaneComponent {
                    extra_args: api_server.extra_args,
                    extra_envs: api_server.extra_envs,
                    extra_volumes: api_server.extra_volumes,
                },
                checker,
            ),
        },
        controller_manager,
        scheduler: options("scheduler", cluster.scheduler.clone().unwrap_or_default(), checker),
        etcd: etcd(cluster.etcd.clone().and_then(|etcd| etcd.local).unwrap_or_default(), checker),
        timeouts: timeouts(&init.timeouts.clone().unwrap_or_default(), checker),
        host: HostView {
            ca_directories: host.ca_directories.clone(),
            proxy_variables: host.proxy_variables.clone(),
            ..HostView::default()
        },
        checked: Checked(()),
    }
}

/// Checks of both lists, lower case, each once, sorted (kubeadm: `ValidateIgnorePreflightErrors`).
pub(super) fn ignored_checks(in_file: &[String], by_flag: &[String], checker: &mut Checker<'_>) -> Vec<String> {
    let names: BTreeSet<String> =
        in_file.iter().chain(by_flag).map(|name| name.trim().to_lowercase()).filter(|name| !name.is_empty()).collect();
    if names.contains("all") && names.len() > 1 {
        let list = names.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        checker.invalid("nodeRegistration.ignorePreflightErrors", list, "names checks beside `all`", "`all` alone");
    }
    names.into_iter().collect()
}

/// Off unless `register-node` among the kubelet's flags turns it on: there is no kubelet.
fn registration(wire: &wire::NodeRegistration, checker: &mut Checker<'_>) -> Option<Registration> {
    const FIELD: &str = "nodeRegistration.kubeletExtraArgs";
    let mut registers = false;
    for (index, argument) in wire.kubelet_extra_args.iter().flatten().enumerate() {
        if argument.name != wire::REGISTER_NODE {
            checker.warn(format!("{FIELD} `{}` is ignored: plinth runs no kubelet", argument.name));
            continue;
        }
        match argument.value.parse() {
            Ok(value) => registers = value,
            Err(_) => {
                checker.invalid(&format!("{FIELD}[{index}]"), &argument.value, "is no boolean", "`true` or `false`");
            }
        }
    }
    let taints = wire.taints.as_deref().unwrap_or_default();
    for (index, taint) in taints.iter().enumerate() {
        let value = taint.value.as_deref().unwrap_or_default();
        let again = taints[..index].iter().any(|other| (&other.key, &other.effect) == (&taint.key, &taint.effect));
        let (problem, expected) = match is_taint(&taint.key, value, &taint.effect) {
            true if again => ("is there twice", "each key once for an effect"),
            true => continue,
            false => ("is no taint", "a label's key and value, and NoSchedule, PreferNoSchedule or NoExecute"),
        };
        let text = format!("{}={value}:{}", taint.key, taint.effect);
        checker.invalid(&format!("nodeRegistration.taints[{index}]"), text, problem, expected);
    }
    if !registers {
        if wire.taints.as_ref().is_some_and(|taints| !taints.is_empty()) {
            checker.warn("nodeRegistration.taints is ignored: the node is not registered (register-node)");
        }
        return None;
    }
    // Nobody has named any: those of a control plane. An empty list is none (kubeadm: `SetNodeRegistrationDynamicDefaults`).
    let usual = || vec![Taint { key: CONTROL_PLANE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() }];
    Some(Registration { taints: wire.taints.clone().unwrap_or_else(usual) })
}

/// Lower case, without surrounding blanks (component-helpers: `GetHostname`).
fn node_name(init: &InitConfiguration, host: &HostFacts, checker: &mut Checker<'_>) -> String {
    let named = init.node_registration.as_ref().and_then(|node| text(node.name.as_ref()));
    let name = named.unwrap_or(&host.hostname).trim().to_lowercase();
    let field = "nodeRegistration.name";
    match named {
        _ if is_dns_subdomain(&name) => {}
        Some(named) => checker.invalid(field, named, "is not a node name", DNS_NAME),
        None => checker.problem(
            field,
            Problem::Missing {
                problem: format!("the host name `{}` is not a node name", host.hostname),
                expected: format!("another host name, or --node-name: {DNS_NAME}"),
            },
        ),
    }
    name
}

/// The version, and whether somebody named it. kubeadm asks a server what its labels mean; plinth takes those that may
/// mean its own release for that.
fn version(named: Option<&str>, runs: Option<&Cluster>, checker: &mut Checker<'_>) -> (KubernetesVersion, bool) {
    // A lower version has to be named.
    let newest = || {
        let default = KubernetesVersion::default();
        runs.map_or(default.clone(), |runs| default.max(runs.version.clone()))
    };
    let Some(named) = named else {
        return match runs {
            Some(runs) if runs.version_pinned => (runs.version.clone(), true),
            _ => (newest(), false),
        };
    };
    let minor = KubernetesVersion::default().minor();
    if ["stable", "stable-1", &format!("stable-1.{minor}")].contains(&named) {
        let newest = newest();
        checker.warn(format!("kubernetesVersion: `{named}` is taken for {newest}: plinth asks no server"));
        return (newest, false);
    }
    let version = named.parse().unwrap_or_else(|error: VersionError| {
        checker.problem("kubernetesVersion", Problem::Version(error));
        KubernetesVersion::default()
    });
    (version, true)
}

fn advertise_address(
    named: Option<&str>,
    host: &HostFacts,
    runs: Option<&Cluster>,
    checker: &mut Checker<'_>,
) -> Option<IpAddr> {
    let field = "localAPIEndpoint.advertiseAddress";
    let expected = "an address of this host that others can reach, e.g. 192.0.2.10";
    let address = match named.map(|named| (named, parse_address(named))) {
        Some((named, None)) => {
            checker.invalid(field, named, "is not an address", expected);
            return None;
        }
        // kubeadm: loopback stands for a global address of the loopback interface, unspecified for none at all.
        Some((_, Some(address))) if address.is_loopback() => host.loopback_address(),
        Some((_, Some(address))) if address.is_unspecified() => host.default_address(address.is_ipv6()),
        Some((_, address)) => address,
        None => match runs.map(|runs| runs.advertise_address) {
            Some(runs) if host.has_address(runs) => Some(runs),
            Some(gone) => {
                let default = host.default_address(gone.is_ipv6());
                if let Some(default) = default {
                    checker.warn(format!(
                        "{field}: {gone} is no longer on this host; {default}, that of the default route, takes its place"
                    ));
                }
                default
            }
            None => host.default_address(false),
        },
    };
    match (address, named) {
        (Some(address), _) if is_global_unicast(address) => return Some(address),
        (Some(address), _) => checker.invalid(field, address, "cannot be reached by others", expected),
        (None, Some(named)) => checker.invalid(field, named, "stands for no address of this host", expected),
        (None, None) => {
            let problem = "no interface with a default route has an address to announce".to_owned();
            checker.problem(field, Problem::Missing { problem, expected: expected.to_owned() });
        }
    }
    None
}

fn bind_port(named: Option<i32>, checker: &mut Checker<'_>) -> u16 {
    match named {
        // Zero is Go's absent value, in a file as by flag.
        None | Some(0) => defaults::BIND_PORT,
        Some(port) => u16::try_from(port).unwrap_or_else(|_| {
            checker.invalid("localAPIEndpoint.bindPort", port, "is not a port", "1 to 65535");
            defaults::BIND_PORT
        }),
    }
}

/// kubeadm's `ParseHostPort`.
fn control_plane_endpoint(named: &str, bind_port: u16, checker: &mut Checker<'_>) -> Option<Endpoint> {
    let field = "controlPlaneEndpoint";
    let expected = "HOST or HOST:PORT, e.g. api.example.com:6443 or [2001:db8::1]:6443";
    let (host, port) = split_host_port(named);
    let port = match port.map(str::parse::<u16>) {
        None => bind_port,
        Some(Ok(port)) if port > 0 => port,
        Some(_) => {
            checker.invalid(field, named, "has a port that is none", "a port from 1 to 65535");
            return None;
        }
    };
    let host = match parse_address(host) {
        Some(address) => Host::Address(address),
        None if is_dns_subdomain(host) => Host::Name(host.to_owned()),
        None => {
            checker.invalid(field, named, "is neither a DNS name nor an address", expected);
            return None;
        }
    };
    if port != bind_port {
        checker.warn(format!("controlPlaneEndpoint: port {port} is not that of this API server, {bind_port}"));
    }
    Some(Endpoint { host, port })
}

fn split_host_port(text: &str) -> (&str, Option<&str>) {
    if let Some(rest) = text.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((host, port)) => (host, port.strip_prefix(':').or((!port.is_empty()).then_some(port))),
            None => (text, None),
        };
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

fn networking(
    wire: &wire::Networking,
    advertise_address: Option<IpAddr>,
    controller_manager: &ComponentOptions,
    checker: &mut Checker<'_>,
) -> Networking {
    let dns_domain = text(wire.dns_domain.as_ref()).unwrap_or(defaults::DNS_DOMAIN).to_owned();
    if !is_dns_subdomain(&dns_domain) {
        checker.invalid("networking.dnsDomain", &dns_domain, "is not a domain", DNS_NAME);
    }
    let service = "networking.serviceSubnet";
    let service_text = text(wire.service_subnet.as_ref()).unwrap_or(defaults::SERVICE_SUBNET);
    let service_subnets = subnets(service, service_text, defaults::MINIMUM_SERVICE_ADDRESSES, checker);
    for subnet in &service_subnets {
        let narrowest = subnet.max_prefix_len() - defaults::MAXIMUM_SERVICE_BITS;
        if subnet.prefix_len() < narrowest {
            checker.invalid(service, subnet, "is too large for services", format!("/{narrowest} or narrower"));
        }
    }
    // Not in kubeadm: kube-apiserver refuses to start ("service IP family … must match public address family").
    if let (Some(address), Some(first)) = (advertise_address, service_subnets.first())
        && address.is_ipv6() != first.addr().is_ipv6()
    {
        let family = if address.is_ipv6() { "an IPv6" } else { "an IPv4" };
        let problem = format!("is of another family than the advertised address {address}");
        checker.invalid(service, first, problem, format!("{family} network, first in the list"));
    }

    let pod = "networking.podSubnet";
    let pod_subnets = text(wire.pod_subnet.as_ref())
        .map(|named| subnets(pod, named, defaults::MINIMUM_POD_ADDRESSES, checker))
        .unwrap_or_default();
    if last_arg(controller_manager, "allocate-node-cidrs") != Some("false") {
        for subnet in &pod_subnets {
            pod_subnet_fits(subnet, controller_manager, checker);
        }
    }
    // Not in kubeadm, which leaves it to the first pod that cannot be reached.
    for subnet in &pod_subnets {
        if let Some(other) = service_subnets.iter().find(|other| other.contains(subnet) || subnet.contains(*other)) {
            checker.invalid(
                pod,
                subnet,
                format!("overlaps {service} {other}"),
                "two networks without a common address",
            );
        }
    }
    Networking { service_subnets, pod_subnets, dns_domain }
}

fn subnets(field: &str, list: &str, minimum: u128, checker: &mut Checker<'_>) -> Vec<IpNet> {
    let expected = "one network like 10.96.0.0/12, or one of each family, separated by a comma";
    let mut subnets = Vec::new();
    for named in list.split(',') {
        match named.trim().parse::<IpNet>() {
            Ok(subnet) => subnets.push(subnet),
            Err(_) => checker.invalid(field, named, "is not a network", expected),
        }
    }
    let families: Vec<_> = subnets.iter().map(|subnet| subnet.addr().is_ipv6()).collect();
    if !matches!(families.as_slice(), [] | [_] | [true, false] | [false, true]) {
        checker.invalid(field, list, "is neither one network nor one of each family", expected);
    }
    for subnet in &mut subnets {
        let addresses = 1_u128.checked_shl((subnet.max_prefix_len() - subnet.prefix_len()).into()).unwrap_or(u128::MAX);
        if addresses < minimum {
            checker.invalid(field, *subnet, "is too small", format!("at least {minimum} addresses"));
        }
        if *subnet != subnet.trunc() {
            checker.warn(format!("{field}: {subnet} is taken for {}", subnet.trunc()));
            *subnet = subnet.trunc();
        }
        // RFC 3879
        if let IpNet::V6(v6) = subnet
            && v6.addr().segments()[0] & 0xffc0 == 0xfec0
        {
            checker.warn(format!("{field}: {subnet} is site-local, which RFC 3879 has deprecated"));
        }
    }
    subnets
}

/// A pod network holds at least one node's part and at most 2¹⁶ of them.
fn pod_subnet_fits(subnet: &IpNet, controller_manager: &ComponentOptions, checker: &mut Checker<'_>) {
    let field = "networking.podSubnet";
    let (flag, default) = if subnet.addr().is_ipv6() {
        ("node-cidr-mask-size-ipv6", defaults::NODE_MASK_V6)
    } else {
        ("node-cidr-mask-size-ipv4", defaults::NODE_MASK_V4)
    };
    let mask = match last_arg(controller_manager, flag).map(str::parse::<u8>) {
        None => default,
        Some(Ok(mask)) => mask,
        Some(Err(_)) => {
            let value = last_arg(controller_manager, flag).unwrap_or_default().to_owned();
            return checker.invalid("controllerManager.extraArgs", value, format!("is no {flag}"), "a prefix length");
        }
    };
    let expected = format!("a prefix from /{} to /{mask}", mask.saturating_sub(defaults::NODE_MASK_MAX_DIFFERENCE));
    if subnet.prefix_len() > mask {
        checker.invalid(field, subnet, format!("is smaller than the /{mask} that each node takes of it"), expected);
    } else if mask - subnet.prefix_len() > defaults::NODE_MASK_MAX_DIFFERENCE {
        checker.invalid(field, subnet, format!("is too large for the /{mask} that each node takes of it"), expected);
    }
}

/// The value that counts of a flag given more than once.
fn last_arg<'a>(options: &'a ComponentOptions, name: &str) -> Option<&'a str> {
    options.extra_args.iter().rev().find(|(flag, _)| flag == name).map(|(_, value)| value.as_str())
}

fn certificates(cluster: &ClusterConfiguration, checker: &mut Checker<'_>) -> CertificatePolicy {
    let algorithm = match text(cluster.encryption_algorithm.as_ref()) {
        None => defaults::KEY_ALGORITHM,
        Some(named) => KeyAlgorithm::from_name(named).unwrap_or_else(|| {
            let expected = KeyAlgorithm::ALL.map(KeyAlgorithm::name).join(", ");
            checker.invalid("encryptionAlgorithm", named, "is not an algorithm", format!("one of {expected}"));
            defaults::KEY_ALGORITHM
        }),
    };
    let (leaf, ca) = ("certificateValidityPeriod", "caCertificateValidityPeriod");
    let leaf_validity =
        positive_duration(leaf, cluster.certificate_validity_period.as_ref(), defaults::LEAF_VALIDITY, checker);
    let ca_validity =
        positive_duration(ca, cluster.ca_certificate_validity_period.as_ref(), defaults::CA_VALIDITY, checker);
    for (field, validity, recommended) in
        [(leaf, leaf_validity, defaults::LEAF_VALIDITY), (ca, ca_validity, defaults::CA_VALIDITY)]
    {
        if validity > recommended {
            let (validity, recommended) = (duration::format(validity), duration::format(recommended));
            checker.warn(format!("{field}: {validity} is more than the recommended {recommended}"));
        }
    }
    if leaf_validity > ca_validity {
        checker.warn(format!("{leaf} is longer than {ca}"));
    }
    CertificatePolicy { algorithm, leaf_validity, ca_validity }
}

/// Not in kubeadm: a period of zero makes certificates that are expired from the start.
fn positive_duration(field: &str, named: Option<&String>, default: Duration, checker: &mut Checker<'_>) -> Duration {
    let Some(named) = text(named) else { return default };
    match duration::parse(named) {
        Some(duration) if duration > Duration::ZERO => duration,
        _ => {
            checker.invalid(field, named, "is not a duration", "hours, minutes, seconds, e.g. 8760h or 1h30m");
            default
        }
    }
}

fn timeouts(wire: &wire::Timeouts, checker: &mut Checker<'_>) -> Timeouts {
    Timeouts {
        control_plane_component_health_check: positive_duration(
            "timeouts.controlPlaneComponentHealthCheck",
            wire.control_plane_component_health_check.as_ref(),
            defaults::COMPONENT_HEALTH_CHECK,
            checker,
        ),
        kubernetes_api_call: positive_duration(
            "timeouts.kubernetesAPICall",
            wire.kubernetes_api_call.as_ref(),
            defaults::KUBERNETES_API_CALL,
            checker,
        ),
    }
}

/// Normalised: no trailing or doubled slashes.
fn path(field: &str, named: Option<&String>, default: &str, checker: &mut Checker<'_>) -> PathBuf {
    let named = text(named).unwrap_or(default);
    if !is_plain_absolute_path(named) {
        checker.invalid(field, named, "is not an absolute path", "one that begins with `/` and is free of `..`");
    }
    let path: PathBuf = Path::new(named).components().filter(|part| *part != PathComponent::CurDir).collect();
    // Not in kubeadm: reset empties these directories.
    if path == Path::new("/") {
        checker.invalid(field, named, "is the root directory", "a directory of its own");
    }
    path
}

fn image_repository(field: &str, named: Option<&String>, checker: &mut Checker<'_>) -> Option<String> {
    let named = text(named)?;
    if !is_image_repository(named) {
        let expected = "a registry with an optional path, like registry.example.com:5000/k8s, and no scheme";
        checker.invalid(field, named, "is not an image repository", expected);
    }
    Some(named.to_owned())
}

/// Lower case, as kubeadm stores them.
fn sans(field: &str, named: Option<&[String]>, checker: &mut Checker<'_>) -> Vec<San> {
    let mut sans = Vec::new();
    for (index, named) in named.unwrap_or_default().iter().enumerate() {
        let lower = named.to_lowercase();
        match parse_address(&lower) {
            Some(address) => sans.push(San::Ip(address)),
            None if is_dns_subdomain(&lower) || is_wildcard_subdomain(&lower) => sans.push(San::Dns(lower)),
            None => {
                let expected = "an address, a DNS name, or one that begins with `*.`";
                checker.invalid(&format!("{field}[{index}]"), named, "cannot be in a certificate", expected);
            }
        }
    }
    sans
}

fn etcd(wire: wire::LocalEtcd, checker: &mut Checker<'_>) -> Etcd {
    let image_tag = text(wire.image_tag.as_ref()).map(str::to_owned);
    if let Some(tag) = image_tag.as_deref().filter(|tag| !is_image_tag(tag)) {
        checker.invalid("etcd.local.imageTag", tag, "is not an image tag", "one like 3.7.0-0");
    }
    Etcd {
        data_dir: path("etcd.local.dataDir", wire.data_dir.as_ref(), defaults::ETCD_DATA_DIR, checker),
        image_repository: image_repository("etcd.local.imageRepository", wire.image_repository.as_ref(), checker),
        image_tag,
        server_cert_sans: sans("etcd.local.serverCertSANs", wire.server_cert_sans.as_deref(), checker),
        peer_cert_sans: sans("etcd.local.peerCertSANs", wire.peer_cert_sans.as_deref(), checker),
        options: options(
            "etcd.local",
            wire::ControlPlaneComponent {
                extra_args: wire.extra_args,
                extra_envs: wire.extra_envs,
                extra_volumes: None,
            },
            checker,
        ),
    }
}

fn options(component: &str, wire: wire::ControlPlaneComponent, checker: &mut Checker<'_>) -> ComponentOptions {
    let mut options = ComponentOptions::default();
    for (index, arg) in wire.extra_args.unwrap_or_default().into_iter().enumerate() {
        let field = format!("{component}.extraArgs[{index}]");
        // kubeadm checks only for an empty name, and renders `----v` of `--v`.
        if arg.name.is_empty()
            || arg.name.starts_with('-')
            || arg.name.contains(|c: char| c == '=' || c.is_whitespace())
        {
            checker.invalid(&field, &arg.name, "is not the name of a flag", "its name without dashes and value");
        }
        options.extra_args.push((arg.name, arg.value));
    }
    for (index, env) in wire.extra_envs.unwrap_or_default().into_iter().enumerate() {
        options.extra_envs.push(env_var(&format!("{component}.extraEnvs[{index}]"), env, checker));
    }
    for (index, volume) in wire.extra_volumes.unwrap_or_default().into_iter().enumerate() {
        options.extra_volumes.push(extra_volume(&format!("{component}.extraVolumes[{index}]"), volume, checker));
    }
    options
}

fn env_var(field: &str, wire: wire::EnvVar, checker: &mut Checker<'_>) -> EnvVar {
    let mut env = EnvVar { name: wire.name, value: wire.value, value_from: wire.value_from };
    if env.name.is_empty() || env.name.contains('=') {
        checker.invalid(field, &env.name, "is not the name of a variable", "one without `=`");
    }
    if let Some(source) = &mut env.value_from {
        // The kubelet refuses such static pods, and so does the agent.
        if source.config_map_key_ref.is_some() || source.secret_key_ref.is_some() {
            let problem = "refers to an object in the API server, which a static pod cannot";
            checker.invalid(field, &env.name, problem, "`value`, `fieldRef` or `resourceFieldRef`");
        }
        // kubeadm: `SetDefaults_EnvVar`
        if let Some(reference) = &mut source.field_ref {
            reference.api_version.get_or_insert_with(|| "v1".to_owned());
        }
    }
    env
}

/// kubeadm checks nothing here, and the kubelet refuses the pod.
fn extra_volume(field: &str, wire: wire::HostPathMount, checker: &mut Checker<'_>) -> ExtraVolume {
    const TYPES: [&str; 8] =
        ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];
    if !is_dns_label(&wire.name) {
        let expected = "at most 63 lower case letters, digits and `-`";
        checker.invalid(&format!("{field}.name"), &wire.name, "is not a volume name", expected);
    }
    let absolute = "one that begins with `/` and is free of `..`";
    if !is_plain_absolute_path(&wire.host_path) {
        checker.invalid(&format!("{field}.hostPath"), &wire.host_path, "is not an absolute path", absolute);
    }
    if !is_plain_absolute_path(&wire.mount_path) || wire.mount_path.contains(':') {
        let expected = format!("{absolute} and `:`");
        checker.invalid(&format!("{field}.mountPath"), &wire.mount_path, "is not an absolute path", expected);
    }
    let path_type = wire.path_type.unwrap_or_default();
    if !TYPES.contains(&path_type.as_str()) {
        let expected = format!("one of {}", TYPES[1..].join(", "));
        checker.invalid(&format!("{field}.pathType"), &path_type, "is not a type of path", expected);
    }
    ExtraVolume {
        name: wire.name,
        host_path: wire.host_path,
        mount_path: wire.mount_path,
        read_only: wire.read_only.unwrap_or_default(),
        path_type,
    }
}
