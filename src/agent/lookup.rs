//! How names are looked up inside a pod: its hosts file, and its resolv.conf where the node's will not do.
//!
//! Both are files of ours in the pod's directory, mounted into each of its containers (kubelet: `pkg/kubelet/
//! kubelet_pods.go`, `pkg/kubelet/network/dns`). They are written in place, so that containers that run see it.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::host::Dns;
use super::pod::StaticPod;
use super::translate::{fqdn, hostname};
use crate::fsx::{self, FsError};

/// Name servers that glibc asks; the kubelet leaves out the others too.
const MAX_SERVERS: usize = 3;
/// Search domains that the kubelet keeps.
const MAX_SEARCHES: usize = 32;

/// The files of a pod, on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// For `/etc/hosts`.
    pub hosts: PathBuf,
    /// For `/etc/resolv.conf`; `None` where the runtime's own, a copy of the node's, is right.
    pub resolv_conf: Option<PathBuf>,
}

/// Writes the files of `pod` at `address` into its directory below `pods`; 0644.
pub fn write(pods: &Path, pod: &StaticPod, address: IpAddr, dns: &Dns) -> Result<Files, FsError> {
    let directory = pods.join(&pod.uid);
    fsx::create_directories(&directory, 0o750)?;
    let files = Files { hosts: directory.join("etc-hosts"), resolv_conf: None };
    // A node without one is as good as one with an empty one.
    let of_node = if pod.host_network() { fsx::read_optional(Path::new("/etc/hosts"))? } else { None };
    put(&files.hosts, &hosts(pod, address, &String::from_utf8_lossy(&of_node.unwrap_or_default())))?;
    let Some(text) = resolv_conf(pod, dns) else { return Ok(files) };
    let path = directory.join("resolv-conf");
    put(&path, &text)?;
    Ok(Files { resolv_conf: Some(path), ..files })
}

fn put(path: &Path, text: &str) -> Result<(), FsError> {
    if fs::read_to_string(path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(FsError::of("write", path))?;
    fs::set_permissions(path, Permissions::from_mode(0o644)).map_err(FsError::of("set the mode of", path))
}

/// The hosts file of `pod`; `of_node` is the node's.
fn hosts(pod: &StaticPod, address: IpAddr, of_node: &str) -> String {
    let mut text = if pod.host_network() {
        format!("# Kubernetes-managed hosts file (host network).\n{of_node}")
    } else {
        let name = hostname(pod);
        let names = fqdn(pod).map_or_else(|| name.clone(), |fqdn| format!("{fqdn}\t{name}"));
        format!(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n\
             {address}\t{names}\n"
        )
    };
    let aliases = pod.spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
    }
    text
}

/// The resolv.conf of `pod`, where it has wishes. There is no cluster DNS for static pods, so `ClusterFirst` is
/// `Default`, as for a kubelet without `clusterDNS`.
fn resolv_conf(pod: &StaticPod, node: &Dns) -> Option<String> {
    let own = pod.spec.dns_policy.as_deref() == Some("None");
    let config = pod.spec.dns_config.as_ref();
    if !own && config.is_none() {
        return None;
    }
    let mut dns = if own { Dns::default() } else { node.clone() };
    let add = |list: &mut Vec<String>, more: Option<&Vec<String>>| {
        for item in more.into_iter().flatten() {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
    };
    add(&mut dns.servers, config.and_then(|config| config.nameservers.as_ref()));
    add(&mut dns.searches, config.and_then(|config| config.searches.as_ref()));
    for option in config.iter().flat_map(|config| config.options.iter().flatten()) {
        let Some(name) = &option.name else { continue };
        dns.options.retain(|present| present.split(':').next() != Some(name));
        dns.options.push(option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
    }
    dns.servers.truncate(MAX_SERVERS);
    dns.searches.truncate(MAX_SEARCHES);
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::super::pod::tests::pod;
    use super::*;

    fn with(spec: &str) -> StaticPod {
        pod(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  {spec}\n  containers: [{{name: c, image: i}}]\n"
        ))
    }

    const ALIASES: &str = "hostAliases: [{ip: 10.0.0.9, hostnames: [a, b]}, {ip: '::9', hostnames: [c]}]";

    #[test]
    fn the_hosts_file_is_the_kubelets() {
        let address = "172.17.0.2".parse().unwrap();
        let of = |spec: &str| hosts(&with(spec), address, "127.0.0.1 localhost\n192.0.2.2 node\n");
        let bridge = of("");
        assert!(bridge.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{bridge}");
        for (spec, end) in [
            ("", "172.17.0.2\tweb-node-1\n"),
            ("hostname: h", "172.17.0.2\th\n"),
            ("subdomain: s", "172.17.0.2\tweb-node-1.s.default.svc.cluster.local\tweb-node-1\n"),
            (ALIASES, "web-node-1\n\n# Entries added by HostAliases.\n10.0.0.9\ta\tb\n::9\tc\n"),
        ] {
            let text = of(spec);
            assert!(text.ends_with(end) && !text.contains("192.0.2.2"), "{text}");
        }
        assert_eq!(
            of(&format!("hostNetwork: true\n  {ALIASES}")),
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n192.0.2.2 node\n\n\
             # Entries added by HostAliases.\n10.0.0.9\ta\tb\n::9\tc\n"
        );
    }

    #[test]
    fn dns_wishes_are_added_to_the_nodes_or_replace_it() {
        let node =
            Dns { servers: vec!["10.0.0.1".into()], searches: vec!["lan".into()], options: vec!["ndots:1".into()] };
        let config = "dnsConfig: {nameservers: [1.1.1.1, 10.0.0.1], searches: [x], options: [{name: ndots, value: '5'}, {name: rotate}]}";
        for (spec, expected) in [
            ("dnsPolicy: Default", None),
            ("", None),
            (config, Some("search lan x\nnameserver 10.0.0.1\nnameserver 1.1.1.1\noptions ndots:5 rotate\n")),
            (
                &format!("dnsPolicy: None\n  {config}"),
                Some("search x\nnameserver 1.1.1.1\nnameserver 10.0.0.1\noptions ndots:5 rotate\n"),
            ),
            (
                "dnsPolicy: None\n  dnsConfig: {nameservers: [1.1.1.1, 1.1.1.2, 1.1.1.3]}",
                Some("nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\n"),
            ),
        ] {
            assert_eq!(resolv_conf(&with(spec), &node).as_deref(), expected, "{spec}");
        }
    }

    #[test]
    fn files_are_written_in_place() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = tempfile::tempdir().unwrap();
        let pod = with("dnsConfig: {searches: [x]}");
        let write = |ip: &str| write(directory.path(), &pod, ip.parse().unwrap(), &Dns::default()).unwrap();
        let files = write("172.17.0.2");
        let inode = fs::metadata(&files.hosts).unwrap().ino();
        assert_eq!(write("172.17.0.3"), files);
        let metadata = fs::metadata(&files.hosts).unwrap();
        assert_eq!((metadata.ino(), metadata.mode() & 0o777), (inode, 0o644));
        assert!(fs::read_to_string(&files.hosts).unwrap().contains("172.17.0.3\tweb-node-1\n"));
        assert_eq!(fs::read_to_string(files.resolv_conf.unwrap()).unwrap(), "search x\n");
    }
}
