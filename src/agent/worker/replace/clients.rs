//! To whom clients go while two listen: joining those that listen, and leaving them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::time::sleep;

use super::Worker;
use crate::agent::blocking::apart;
use crate::agent::pod::StaticPod;
use crate::agent::probe::port;
use crate::agent::steer::{Program, Steering};
use crate::agent::step::{belongs_to, is_running};
use crate::agent::surge;
use crate::runtime::{Runtime, State};

/// How long the old one may take what was under way to it when the new one took over.
pub(super) const HANDSHAKES: Duration = Duration::from_millis(500);

impl<R: Runtime> Worker<R> {
    /// Keeps clients away from what starts next, or knows from then on why that cannot be.
    pub(super) async fn steer(&mut self, pod: &StaticPod) {
        self.end_resumed().await;
        match self.join(pod).await {
            Ok(steering) => self.surge.steering = Some(steering),
            Err(why) => {
                tracing::warn!(pod = %self.key, why, "cannot be replaced new-first; the old one goes first");
                self.surge.obstacle = Some((pod.hash.clone(), why));
            }
        }
    }

    /// Makes the agent a member of those that listen on the pod's port, or says why that cannot be.
    async fn join(&self, pod: &StaticPod) -> Result<Steering, String> {
        // The probes' source is an IPv4 address; to an IPv6 one they would all fail, and the new one be rejected.
        if asked_over_six(pod, self.shared.node.address) {
            return Err("its probes go to an IPv6 address".to_owned());
        }
        let pids = self.containers.values().filter_map(|container| match container.state {
            State::Running { pid, .. } => Some(pid),
            _ => None,
        });
        let (proc, pids, port) = (self.shared.proc.clone(), pids.collect::<Vec<_>>(), port_of(pod));
        let asked = move || {
            surge::has_room(&proc, &pids)?;
            proc.listeners(&[port]).map_err(|error| error.to_string())
        };
        let listeners = apart(asked).await?;
        let [listener] = listeners.as_slice() else {
            return Err(format!("{} sockets listen on port {port}, not one", listeners.len()));
        };
        Steering::join(SocketAddr::new(listener.address, port)).await.map_err(|error| with_cause(&error))
    }

    /// Goes on with a take-over in the middle of which an earlier agent has ended.
    pub(super) async fn go_on_taking_over(&mut self, proven: &StaticPod) {
        match self.resume(proven).await {
            Ok(resumed) => {
                tracing::info!(pod = %self.key, hash = proven.hash, "the proven version goes on taking over");
                self.surge.resumed = Some(resumed);
                sleep(HANDSHAKES).await;
            }
            Err(why) => tracing::warn!(pod = %self.key, why, "a few clients may still reach the old one as it ends"),
        }
    }

    /// Makes the agent a member of the two that listen on the port of `proven`.
    async fn resume(&self, proven: &StaticPod) -> Result<Steering, String> {
        let (proc, port) = (self.shared.proc.clone(), port_of(proven));
        let listeners = apart(move || proc.listeners(&[port])).await.map_err(|error| error.to_string())?;
        match listeners.as_slice() {
            [one, other] if one.address == other.address && surge::listens(&listeners, &self.containers, proven) => {
                Steering::resume(SocketAddr::new(one.address, port)).map_err(|error| with_cause(&error))
            }
            _ => Err(format!("not the two of them listen on port {port}: {} sockets", listeners.len())),
        }
    }

    /// Gives up the agent's socket when only `pod` is left.
    pub(super) async fn leave(&mut self, pod: &StaticPod) {
        let others = self.containers.values().any(|container| is_running(container) && !belongs_to(container, pod));
        if !others {
            self.surge.aside.keeper = None;
            self.end_resumed().await;
            self.unsteer(HANDSHAKES).await;
        }
    }

    /// Gives up the socket with which a take-over was resumed; clients have come to the one that stays all along.
    async fn end_resumed(&mut self) {
        if let Some(resumed) = self.surge.resumed.take() {
            resumed.leave().await;
        }
    }

    /// Gives up the agent's socket, after some time for what has reached it.
    pub(super) async fn unsteer(&mut self, patience: Duration) {
        if let Some(steering) = self.surge.steering.take() {
            if let Err(error) = steering.steer(&Program::alone()) {
                tracing::warn!(pod = %self.key, %error, "cannot steer");
            }
            sleep(patience).await;
            steering.leave().await;
        }
    }
}

pub(super) fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Whether a probe goes to an IPv6 address; those that name none go to `address`.
fn asked_over_six(pod: &StaticPod, address: IpAddr) -> bool {
    let address = address.to_string();
    let probes = pod.containers().iter().flat_map(|c| [&c.startup_probe, &c.readiness_probe, &c.liveness_probe]);
    let mut gets = probes.flatten().filter_map(|probe| probe.http_get.as_ref());
    gets.any(|get| get.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&address).contains(':'))
}

/// The port that the pod answers on: that of its readiness probe.
pub(super) fn port_of(pod: &StaticPod) -> u16 {
    let asked = pod.containers().iter().find_map(|container| {
        let get = container.readiness_probe.as_ref()?.http_get.as_ref()?;
        Some(port(&get.port, container))
    });
    asked.unwrap_or(0)
}

/// From where one that is bound to `address` connects to itself: kube-apiserver takes the address of loopback of its
/// listener's family (apiserver: `LoopbackHostPort`).
pub(super) fn loopback(address: IpAddr) -> IpAddr {
    if address.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}
