//! Who listens on a TCP port.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Proc, Process, Result};

/// A TCP socket that listens in our network namespace.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Listener {
    /// Address it is bound to; unspecified for all. An IPv4 address that is mapped into IPv6 is given as IPv4.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Who has it open; `None` when that is another user's process and we are not root, one of another PID namespace,
    /// or the kernel itself.
    pub process: Option<Process>,
}

impl Proc {
    /// The sockets that listen on any of `ports`.
    ///
    /// Open files are looked at only when there are such sockets, and only until the owner of each is found.
    pub fn listeners(&self, ports: &[u16]) -> Result<Vec<Listener>> {
        let mut sockets = BTreeMap::new();
        for table in ["net/tcp", "net/tcp6"] {
            // There is no tcp6 where IPv6 is switched off.
            let Some(text) = self.read_optional(table)? else { continue };
            sockets.extend(text.lines().filter_map(listening_socket).filter(|(_, (_, port))| ports.contains(port)));
        }
        let mut owners = self.owners(sockets.keys().copied().collect())?;
        Ok(sockets
            .into_iter()
            .map(|(inode, (address, port))| Listener { address, port, process: owners.remove(&inode) })
            .collect())
    }

    /// The processes that have the sockets with these inodes open.
    fn owners(&self, mut wanted: Vec<u64>) -> Result<BTreeMap<u64, Process>> {
        let mut owners = BTreeMap::new();
        if wanted.is_empty() {
            return Ok(owners);
        }
        let mut pids = self.pids()?;
        // Mostly the ports are our containers', and looking through the open files of everybody else takes long.
        pids.sort_by_cached_key(|&pid| self.containers_of(pid).is_ok_and(|containers| containers.is_empty()));
        for pid in pids {
            let Ok(files) = std::fs::read_dir(self.path(format!("{pid}/fd"))) else { continue };
            for file in files.flatten() {
                let Some(inode) = std::fs::read_link(file.path()).ok().as_deref().and_then(socket_inode) else {
                    continue;
                };
                let Some(place) = wanted.iter().position(|&other| other == inode) else { continue };
                if let Some(process) = self.process(pid)? {
                    owners.insert(inode, process);
                    wanted.swap_remove(place);
                }
            }
            if wanted.is_empty() {
                break;
            }
        }
        Ok(owners)
    }
}

/// The inode in `socket:[123]`.
fn socket_inode(target: &std::path::Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// `TCP_LISTEN` of the kernel's `tcp_states.h`.
const LISTEN: &str = "0A";

/// Inode, address and port of a line of `/proc/net/tcp` or `tcp6`, if its socket listens.
fn listening_socket(line: &str) -> Option<(u64, (IpAddr, u16))> {
    let fields: Vec<_> = line.split_whitespace().collect();
    if *fields.get(3)? != LISTEN {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    Some((fields.get(9)?.parse().ok()?, (parse_address(address)?, u16::from_str_radix(port, 16).ok()?)))
}

/// The kernel prints addresses as numbers of 32 bits, each read from network order as if it were its own.
fn parse_address(hexadecimal: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for start in (0..hexadecimal.len()).step_by(8) {
        let word = u32::from_str_radix(hexadecimal.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::fixture::{Fixture, INNER};
    use super::*;

    /// `address` as the kernel of this machine prints it.
    fn kernel(address: IpAddr) -> String {
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let words = bytes.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
        words.map(|word| format!("{word:08X}")).collect::<Vec<_>>().concat()
    }

    #[test]
    fn addresses_are_read_as_the_kernel_prints_them() {
        for address in ["0.0.0.0", "127.0.0.1", "192.0.2.1", "::", "::1", "2001:db8::1"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(parse_address(&kernel(address)), Some(address));
        }
        assert_eq!(parse_address(&kernel("::ffff:192.0.2.1".parse().unwrap())), Some("192.0.2.1".parse().unwrap()));
        for malformed in ["", "0", "0000000000000000", "zzzzzzzz"] {
            assert_eq!(parse_address(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn listeners_carry_their_process_and_its_container() {
        let fixture = Fixture::new();
        let any = kernel("0.0.0.0".parse().unwrap());
        fixture.sockets(
            "tcp",
            &[
                (&format!("{any}:192B"), "0A", 70), // 6443, ours
                (&format!("{any}:192B"), "01", 71), // a connection
                (&format!("{any}:0050"), "0A", 72), // another port
                (&format!("{any}:094B"), "0A", 73), // 2379, owner not visible
            ],
        );
        fixture.sockets("tcp6", &[(&format!("{}:192B", kernel("::1".parse().unwrap())), "0A", 74)]);
        fixture.process(5, &["kube-apiserver"], 'S', 9, Some(INNER));
        fixture.open(5, 3, "socket:[70]");
        fixture.process(6, &["nginx"], 'S', 9, None);
        fixture.open(6, 0, "/dev/null");
        fixture.open(6, 3, "socket:[72]");
        fixture.open(6, 4, "socket:[74]");
        let found = fixture.proc().listeners(&[6443, 2379]).unwrap();
        let summary: Vec<_> = found
            .iter()
            .map(|listener| (listener.address.to_string(), listener.port, listener.process.as_ref().map(|p| p.pid)))
            .collect();
        assert_eq!(
            summary,
            [("0.0.0.0".into(), 6443, Some(5)), ("0.0.0.0".into(), 2379, None), ("::1".into(), 6443, Some(6))]
        );
        assert_eq!(found[0].process.as_ref().unwrap().container.as_deref(), Some(INNER));
        std::fs::remove_file(fixture.root().join("net/tcp6")).unwrap();
        assert_eq!(fixture.proc().listeners(&[6443]).unwrap().len(), 1);
    }

    #[test]
    fn our_own_listener_is_seen_by_the_kernels_own_proc() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = Proc::default().listeners(&[port]).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].address, socket.local_addr().unwrap().ip());
        assert_eq!(found[0].process.as_ref().unwrap().pid, std::process::id().cast_signed());
        drop(socket);
        assert_eq!(Proc::default().listeners(&[port]).unwrap(), []);
    }
}
