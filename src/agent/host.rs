//! Facts about the host that only the kernel knows.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

use jiff::Timestamp;
use nix::sys::statvfs::statvfs;

use super::translate::Node;
use crate::proc::{Capabilities, Proc};

/// Contents of a resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// When the host was booted (`btime` of `/proc/stat`); the epoch when it cannot be known.
pub fn booted_at(proc: &Proc) -> Timestamp {
    let text = std::fs::read_to_string(proc.path("stat")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("btime "))
        .and_then(|seconds| Timestamp::from_second(seconds.trim().parse().ok()?).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The node called `name`, whose address is `address` or that of its default route. Its pods write below `state`.
pub fn node(proc: &Proc, state: &Path, name: &str, address: Option<IpAddr>) -> Node {
    Node {
        name: name.to_owned(),
        address: address.or_else(default_address).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        memory: proc.memory().map_or(0, |memory| memory.total),
        storage: statvfs(state).map_or(0, |facts| facts.blocks() * facts.fragment_size()),
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        dns: resolv_conf(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        may_protect_from_oom: proc.effective_capabilities().is_ok_and(Capabilities::sys_resource),
        apparmor: std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y")),
    }
}

/// The address that packets to the outside leave from. Nothing is sent: a UDP socket is only routed.
pub(super) fn default_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

fn resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words.next()),
            Some("search") => dns.searches = words.collect(),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("self")).unwrap();
        let meminfo = "MemTotal:       24576 kB\nMemFree: 1 kB\nMemAvailable: 1 kB\n";
        std::fs::write(root.path().join("meminfo"), meminfo).unwrap();
        let node = |status: &str| {
            std::fs::write(root.path().join("self/status"), status).unwrap();
            node(&Proc::new(root.path()), root.path(), "n", None)
        };
        assert_eq!(node("").memory, 24576 * 1024);
        assert!(node("CapEff:\t000001ffffffffff\n").may_protect_from_oom);
        assert!(!node("CapEff:\t00000000a80425fb\n").may_protect_from_oom);
        assert!(!node("").may_protect_from_oom);
        assert!(booted_at(&Proc::default()) > Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn the_last_search_line_of_a_resolv_conf_counts() {
        let dns = resolv_conf("# x\nnameserver 10.0.0.1\nsearch a\nsearch b c\noptions ndots:2 rotate\n");
        assert_eq!(dns.servers, ["10.0.0.1"]);
        assert_eq!(dns.searches, ["b", "c"]);
        assert_eq!(dns.options, ["ndots:2", "rotate"]);
    }
}
