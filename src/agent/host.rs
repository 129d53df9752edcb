//! Facts about the host that only the kernel knows.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

use jiff::Timestamp;
use nix::sys::statvfs::statvfs;

use super::translate::Node;

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

/// Bit of `CAP_SYS_RESOURCE` in a capability set.
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// When the host was booted (`btime` of `/proc/stat`); the epoch when it cannot be known.
pub fn booted_at(proc: &Path) -> Timestamp {
    let text = std::fs::read_to_string(proc.join("stat")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("btime "))
        .and_then(|seconds| Timestamp::from_second(seconds.trim().parse().ok()?).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The node called `name`, whose address is `address` or that of its default route. Its pods write below `state`.
pub fn node(proc: &Path, state: &Path, name: &str, address: Option<IpAddr>) -> Node {
    Node {
        name: name.to_owned(),
        address: address.or_else(default_address).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        memory: memory(&std::fs::read_to_string(proc.join("meminfo")).unwrap_or_default()),
        storage: statvfs(state).map_or(0, |facts| facts.blocks() * facts.fragment_size()),
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        dns: resolv_conf(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        may_protect_from_oom: may_protect_from_oom(
            &std::fs::read_to_string(proc.join("self/status")).unwrap_or_default(),
        ),
        apparmor: std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y")),
    }
}

/// The address that packets to the outside leave from. Nothing is sent: a UDP socket is only routed.
fn default_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

fn memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn may_protect_from_oom(status: &str) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set & CAP_SYS_RESOURCE != 0)
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
        assert_eq!(memory("MemTotal:       24576 kB\nMemFree: 1 kB\n"), 24576 * 1024);
        assert!(may_protect_from_oom("CapEff:\t000001ffffffffff\n"));
        assert!(!may_protect_from_oom("CapEff:\t00000000a80425fb\n"));
        assert!(!may_protect_from_oom(""));
        assert!(booted_at(Path::new("/proc")) > Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn the_last_search_line_of_a_resolv_conf_counts() {
        let dns = resolv_conf("# x\nnameserver 10.0.0.1\nsearch a\nsearch b c\noptions ndots:2 rotate\n");
        assert_eq!(dns.servers, ["10.0.0.1"]);
        assert_eq!(dns.searches, ["b", "c"]);
        assert_eq!(dns.options, ["ndots:2", "rotate"]);
    }
}
