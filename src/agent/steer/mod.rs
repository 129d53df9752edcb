//! Who gets a connection while two processes listen on one port.
//!
//! With `SO_REUSEPORT` the kernel spreads connections over all that listen, ready or not. [`Steering`] joins the group
//! with a socket of its own, for only members may attach a [`Program`], and says to whom connections go. Nothing of
//! this needs a privilege, only the effective user of those that listen.
//!
//! # Guarantees
//! - No connection is lost to the agent's socket: what reaches it (between `listen` and the first program, and when
//!   the old one has left and the places moved) is passed on to the first of the group. Where that is the agent itself,
//!   as nobody else listens, it is closed.
//! - [`Steering::join`] succeeds only as the second of a group: it has seen that the first place is not its own and the
//!   second is, so that the next one to listen gets [`NEW`].
//! - Should the agent die, its program stays with the group: the old one keeps the first place, and the new one keeps
//!   getting nothing but what the program sends to its place or, as there is none, what the kernel hashes. Where that is
//!   everybody, as the new one has taken over, the next agent puts it right with [`Steering::resume`].
//!
//! # Order of a replacement
//! [`Steering::join`] → [`Program::proving`] → the new one starts and listens → it is proven from [`PROBE_SOURCE`] →
//! [`Program::taking_over`] → the old one stops and is gone → [`Program::alone`] → [`Steering::leave`].
//! The agent's socket leaves last. If it left while both listen, the new one would move to another place, and for that
//! moment no program fits.

pub mod program;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::libc::sock_fprog;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

pub use self::program::{FIRST, NEW, PROBE_SOURCE, Program, RELAY_SOURCE};

/// Place of the agent's socket: it joins when only the old one listens.
const OWN: u32 = 1;
/// How many connections may wait for the agent; they come only in the moments named above.
const BACKLOG: u32 = 128;
/// How long a connection over loopback may take to reach the agent's socket.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a relay waits for the first of the group.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Why connections cannot be steered.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// No source address would set the agent apart: loopback has many addresses in IPv4, but one in IPv6.
    #[error("{0} is reached over IPv6 alone")]
    OnlySix(SocketAddr),
    /// The socket could not be made, or who listens does not share the port (with this user): `EADDRINUSE`.
    #[error("cannot listen on {address} beside who does")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The kernel does not take the program.
    #[error("cannot attach a program to the listeners of {address}")]
    Attach {
        /// Where they listen.
        address: SocketAddr,
        /// What it says.
        #[source]
        source: io::Error,
    },
    /// The test of the places could not connect.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nobody, or more than one, listened there before.
    #[error("not exactly one socket listened on {0} before")]
    Places(SocketAddr),
}

/// A membership in the group of listeners of one port. Dropped, it leaves in a moment; [`Steering::leave`] waits for it.
#[derive(Debug)]
pub struct Steering {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    relay: JoinHandle<()>,
    /// The new one is taking over: who reaches us tells that the old one has left.
    taking_over: Arc<AtomicBool>,
}

impl Steering {
    /// Joins the one that listens on `address`, exactly as it is bound: `[::]` for all addresses of both families,
    /// `0.0.0.0` for IPv4 alone. Everybody goes to it.
    pub async fn join(address: SocketAddr) -> Result<Self, SteerError> {
        let target = reached_at(address).ok_or(SteerError::OnlySix(address))?;
        let listener = listen(address).map_err(|source| SteerError::Listen { address, source })?;
        attach(&listener, &Program::alone()).map_err(|source| SteerError::Attach { address, source })?;
        check_places(&listener, address, target).await?;
        attach(&listener, &Program::alone()).map_err(|source| SteerError::Attach { address, source })?;
        Ok(Self::of(listener, address, target))
    }

    /// Joins the two that listen on `address`, bound alike, of which the first one is to go: the other one has taken over
    /// under an agent that is dead, and gets everybody from now on. What is left to do is to stop the first one and to
    /// [leave](Self::leave).
    pub fn resume(address: SocketAddr) -> Result<Self, SteerError> {
        let target = reached_at(address).ok_or(SteerError::OnlySix(address))?;
        let listener = listen(address).map_err(|source| SteerError::Listen { address, source })?;
        attach(&listener, &Program::resuming()).map_err(|source| SteerError::Attach { address, source })?;
        Ok(Self::of(listener, address, target))
    }

    fn of(listener: TcpListener, address: SocketAddr, target: SocketAddr) -> Self {
        let listener = Arc::new(listener);
        let taking_over = Arc::new(AtomicBool::new(false));
        let relay = tokio::spawn(relay(Arc::clone(&listener), target, Arc::clone(&taking_over)));
        Self { address, listener, relay, taking_over }
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on connections go where `program` says.
    pub fn steer(&self, program: &Program) -> Result<(), SteerError> {
        attach(&self.listener, program).map_err(|source| SteerError::Attach { address: self.address, source })
    }

    /// From now on the new one gets all connections, whether the old one still listens or not.
    pub fn take_over(&self) -> Result<(), SteerError> {
        self.steer(&Program::taking_over())?;
        self.taking_over.store(true, Ordering::Release);
        Ok(())
    }

    /// Closes the socket. The last program stays with the group; connections that are passed on live until they end.
    pub async fn leave(mut self) {
        self.relay.abort();
        // Cancelled, which is what was asked for.
        let _ = (&mut self.relay).await;
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

/// Where a client with an IPv4 address of loopback reaches who is bound to `address`.
fn reached_at(address: SocketAddr) -> Option<SocketAddr> {
    match address.ip() {
        ip if ip.is_unspecified() => Some((Ipv4Addr::LOCALHOST, address.port()).into()),
        IpAddr::V4(_) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    if address.is_ipv6() {
        // As Go does, whatever `net.ipv6.bindv6only` says.
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Replaces the program of the group that `listener` is in. Before it listens, it would be in one of its own.
fn attach(listener: &TcpListener, program: &Program) -> io::Result<()> {
    let mut filter: Vec<_> = program.instructions().into_iter().map(program::Instruction::raw).collect();
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "the program is too long");
    let program = sock_fprog { len: u16::try_from(filter.len()).map_err(too_long)?, filter: filter.as_mut_ptr() };
    // The call copies the program, and `filter` lives until behind it.
    setsockopt(listener, sockopt::AttachReusePortCbpf, &program)?;
    Ok(())
}

/// Sees that the first place is not ours and the second is, by one connection to each. What comes from clients meanwhile
/// is passed on.
async fn check_places(listener: &TcpListener, address: SocketAddr, target: SocketAddr) -> Result<(), SteerError> {
    let program = Program::everybody_to(FIRST).except(PROBE_SOURCE, OWN);
    attach(listener, &program).map_err(|source| SteerError::Attach { address, source })?;
    let connect = async |from| connect(from, target).await.map_err(|source| SteerError::Connect { address, source });
    let first = connect(RELAY_SOURCE).await?;
    let second = connect(PROBE_SOURCE).await?;
    let names = (first.local_addr().ok(), second.local_addr().ok());
    // Connections are accepted in their order: if the first came to us, it is seen before the second.
    let seen = timeout(JOIN_PATIENCE, async {
        loop {
            let (stream, peer) = listener.accept().await?;
            let peer = Some(SocketAddr::new(peer.ip().to_canonical(), peer.port()));
            if peer == names.0 || peer == names.1 {
                return Ok(peer == names.1);
            }
            if !peer.is_some_and(is_relay) {
                tokio::spawn(pass_on(stream, target));
            }
        }
    });
    match seen.await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) | Err(_) => Err(SteerError::Places(address)),
        Ok(Err(source)) => Err(SteerError::Listen { address, source }),
    }
}

async fn connect(from: Ipv4Addr, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    timeout(CONNECT_PATIENCE, socket.connect(target)).await.map_err(late)?
}

/// Passes on what reaches the agent's socket.
async fn relay(listener: Arc<TcpListener>, target: SocketAddr, taking_over: Arc<AtomicBool>) {
    loop {
        let accepted = listener.accept().await;
        // The places have moved: from the next one on, nobody has to take this way.
        if taking_over.swap(false, Ordering::AcqRel)
            && let Err(error) = attach(&listener, &Program::alone())
        {
            tracing::warn!(%error, "cannot steer");
        }
        match accepted {
            // Nobody else listens: passed on, it would come back for ever.
            Ok((stream, peer)) if is_relay(peer) => drop(stream),
            // Detached: it outlives the socket.
            Ok((stream, _)) => drop(tokio::spawn(pass_on(stream, target))),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to pass on");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Whether the agent itself connects, to pass on.
fn is_relay(peer: SocketAddr) -> bool {
    peer.ip().to_canonical() == RELAY_SOURCE
}

async fn pass_on(mut client: TcpStream, target: SocketAddr) {
    let result = async {
        let mut server = connect(RELAY_SOURCE, target).await?;
        tokio::io::copy_bidirectional(&mut client, &mut server).await
    };
    if let Err(error) = result.await {
        tracing::debug!(%error, "a connection that was passed on ended");
    }
}

#[cfg(test)]
mod tests;
