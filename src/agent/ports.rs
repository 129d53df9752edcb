//! Ports of the host that pods want, and who has them.
//!
//! A kubelet rejects a pod whose port another pod has, for ever. Here the pod waits, says whose port it is, and starts
//! when the port is free. That is asked before its sandbox is made: an engine that finds out by itself leaves a
//! container behind, and the next attempt would wait like after a crash.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use super::board::Snapshot;
use super::pod::{PodKey, StaticPod};
use super::step::is_running;
use crate::proc::Proc;

/// A port of the host that a container of a pod asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Its number.
    pub number: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// One address of the host; all when `None`.
    pub address: Option<IpAddr>,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, protocol, address } = self;
        match address {
            Some(address) => write!(f, "hostPort {number}/{protocol} on {address}"),
            None => write!(f, "hostPort {number}/{protocol}"),
        }
    }
}

/// The ports that `pod` wants. A pod on the host's network is taken at its word.
pub fn of(pod: &StaticPod) -> Vec<HostPort> {
    let ports = pod.all_containers().flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(HostPort {
                number: u16::try_from(port.host_port?).ok().filter(|port| *port != 0)?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                address: port
                    .host_ip
                    .as_deref()
                    .and_then(|ip| ip.parse().ok())
                    .filter(|ip: &IpAddr| !ip.is_unspecified()),
            })
        })
        .collect()
}

impl HostPort {
    /// Whether the two cannot be had at the same time.
    fn overlaps(&self, other: &Self) -> bool {
        self.number == other.number
            && self.protocol == other.protocol
            && (self.address.is_none() || other.address.is_none() || self.address == other.address)
    }

    /// Whether the kernel would give it to us now. What cannot be known is free: the engine will say.
    fn is_free(&self) -> bool {
        let address = (self.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), self.number);
        let taken = match self.protocol.as_str() {
            "TCP" => TcpListener::bind(address).err(),
            "UDP" => UdpSocket::bind(address).err(),
            _ => None,
        };
        taken.is_none_or(|error| error.kind() != io::ErrorKind::AddrInUse)
    }
}

/// Why the sandbox of `pod` cannot have its ports now: the first that is taken, and who has it, among the pods of
/// `snapshots` or the processes of the host. Reads the whole of `proc` when it has to.
pub fn conflict(pod: &StaticPod, snapshots: &[Snapshot], proc: &Proc) -> Option<String> {
    let port = of(pod).into_iter().find(|port| !port.is_free())?;
    let holder = holding_pod(&pod.key, &port, snapshots).map(|key| format!("pod {key}"));
    let holder = holder.or_else(|| {
        let listeners = proc.listeners(&[port.number]).ok().filter(|_| port.protocol == "TCP")?;
        let process = listeners.into_iter().find_map(|listener| listener.process)?;
        Some(format!("{} (process {})", process.command, process.pid))
    });
    let holder = holder.unwrap_or_else(|| "somebody else".to_owned());
    Some(format!("{port} is held by {holder}; the pod starts when it is free"))
}

/// Ports that two pods want, one of them on the host's network: nobody asks before its process listens, and whoever
/// comes second fails by itself.
pub fn rivals<'a>(pods: impl IntoIterator<Item = &'a StaticPod>) -> Vec<String> {
    let wanted: Vec<_> = pods.into_iter().map(|pod| (pod, of(pod))).collect();
    let mut found = Vec::new();
    for (index, (pod, ports)) in wanted.iter().enumerate() {
        for (other, others) in
            wanted[index + 1..].iter().filter(|(other, _)| pod.host_network() || other.host_network())
        {
            let both = ports.iter().find(|port| others.iter().any(|other| other.overlaps(port)));
            found.extend(both.map(|port| format!("{port} is wanted by {} and {}", pod.key, other.key)));
        }
    }
    found
}

/// A pod that runs and has asked for `port`.
fn holding_pod<'a>(own: &PodKey, port: &HostPort, snapshots: &'a [Snapshot]) -> Option<&'a PodKey> {
    let holds = |snapshot: &&Snapshot| {
        let wants = snapshot.pod.as_ref().is_some_and(|pod| of(pod).iter().any(|other| other.overlaps(port)));
        wants && snapshot.key != *own && snapshot.containers.values().any(is_running)
    };
    snapshots.iter().find(holds).map(|snapshot| &snapshot.key)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::super::pod::tests::pod;
    use super::*;
    use crate::runtime::{Container, State};

    fn wants(name: &str, ports: &str) -> StaticPod {
        pod(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n  - {{name: c, image: i, ports: [{ports}]}}\n"
        ))
    }

    fn snapshot(pod: StaticPod, runs: bool) -> Snapshot {
        let now = Timestamp::UNIX_EPOCH;
        let state = if runs { State::Running { pid: 1, started_at: now } } else { State::Created { error: None } };
        let containers = [("id".to_owned(), Container::bare("id", &[], state, now))].into();
        Snapshot { containers, ..Snapshot::bare(&pod.key.clone(), Some(Arc::new(pod)), now) }
    }

    #[test]
    fn ports_overlap_by_number_protocol_and_address() {
        let port = |text: &str| of(&wants("a", text)).remove(0);
        let web = port("{containerPort: 80, hostPort: 8080}");
        assert_eq!(web.to_string(), "hostPort 8080/TCP");
        for (other, overlaps) in [
            ("{containerPort: 81, hostPort: 8080}", true),
            ("{containerPort: 80, hostPort: 8080, hostIP: 192.0.2.2}", true),
            ("{containerPort: 80, hostPort: 8081}", false),
            ("{containerPort: 80, hostPort: 8080, protocol: UDP}", false),
        ] {
            assert_eq!(web.overlaps(&port(other)), overlaps, "{other}");
        }
        let at = |ip: &str| port(&format!("{{containerPort: 80, hostPort: 8080, hostIP: {ip}}}"));
        assert!(!at("192.0.2.2").overlaps(&at("192.0.2.3")) && at("192.0.2.2").overlaps(&at("0.0.0.0")));
        assert!(of(&wants("a", "{containerPort: 80}, {containerPort: 81, hostPort: 0}")).is_empty());
    }

    #[test]
    fn rivals_on_the_hosts_network_are_told() {
        let on_host = |name: &str| {
            let port = "ports: [{containerPort: 80}]";
            pod(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  hostNetwork: true\n  containers: [{{name: c, image: i, {port}}}]\n"
            ))
        };
        let (bridge, other) = ("{containerPort: 8080, hostPort: 80}", "{containerPort: 80, hostPort: 81}");
        let told = |pods: &[StaticPod]| rivals(pods);
        assert_eq!(
            told(&[on_host("a"), on_host("b"), wants("c", other)]),
            ["hostPort 80/TCP is wanted by default/a-node-1 and default/b-node-1"]
        );
        assert_eq!(told(&[wants("c", bridge), on_host("a")]).len(), 1);
        assert_eq!(told(&[wants("c", bridge), wants("d", bridge)]), Vec::<String>::new(), "the second one waits");
    }

    #[test]
    fn a_taken_port_is_named_with_who_has_it() {
        for protocol in ["TCP", "UDP"] {
            let tcp = TcpListener::bind(("0.0.0.0", 0)).unwrap();
            let udp = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            let local = if protocol == "TCP" { tcp.local_addr() } else { udp.local_addr() };
            let number = local.unwrap().port();
            let port = format!("{{containerPort: 80, hostPort: {number}, protocol: {protocol}}}");
            let conflict = |snapshots: &[Snapshot]| conflict(&wants("a", &port), snapshots, &Proc::default());
            let with = |holder: &str| {
                Some(format!("hostPort {number}/{protocol} is held by {holder}; the pod starts when it is free"))
            };
            let other = snapshot(wants("b", &port), true);
            assert_eq!(conflict(&[other]), with("pod default/b-node-1"));
            let strangers = [snapshot(wants("a", &port), true), snapshot(wants("b", &port), false)];
            let why = conflict(&strangers).unwrap();
            let us = format!("(process {})", std::process::id());
            assert!(if protocol == "TCP" { why.contains(&us) } else { why.contains("somebody else") }, "{why}");
            drop((tcp, udp));
            assert_eq!(conflict(&[]), None);
        }
    }
}
