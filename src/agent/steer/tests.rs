//! The real kernel, with plain listeners that answer with their name.

use std::net::Ipv6Addr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// A process that shares its port and says its name to whoever connects.
struct Named {
    task: JoinHandle<()>,
}

impl Named {
    fn start(address: SocketAddr, name: u8) -> (Self, SocketAddr) {
        let listener = listen(address).unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                // The client may be gone.
                let _ = stream.write_all(&[name]).await;
            }
        });
        (Self { task }, address)
    }

    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn ask(from: IpAddr, target: SocketAddr) -> char {
    let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(target).await.unwrap();
    let mut name = [0];
    stream.read_exact(&mut name).await.unwrap();
    name[0].into()
}

async fn all_say(count: usize, from: IpAddr, target: SocketAddr, name: char) {
    for _ in 0..count {
        assert_eq!(ask(from, target).await, name, "from {from}");
    }
}

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PROBE: IpAddr = IpAddr::V4(PROBE_SOURCE);
const RELAY: IpAddr = IpAddr::V4(RELAY_SOURCE);
/// What stands for the loopback client of an API server without IPv6.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const ANY_FOUR: (Ipv4Addr, u16) = (Ipv4Addr::UNSPECIFIED, 0);

fn local(address: SocketAddr) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, address.port()).into()
}

#[tokio::test]
async fn a_replacement_misleads_nobody() {
    let (old, address) = Named::start(ANY_FOUR.into(), b'o');
    let target = local(address);
    let steering = Steering::join(address).await.unwrap();
    steering.steer(&Program::proving(LOOPBACK)).unwrap();
    let (new, _) = Named::start(address, b'n');
    for _ in 0..10 {
        all_say(200, CLIENT, target, 'o').await;
        all_say(5, PROBE, target, 'n').await;
        all_say(5, LOOPBACK, target, 'n').await;
        all_say(5, RELAY, target, 'o').await;
    }
    steering.take_over().unwrap();
    all_say(2_000, CLIENT, target, 'n').await;
    old.stop().await;
    // The place of the new one is empty now, until the first of these has come to the agent and was passed on.
    all_say(200, CLIENT, target, 'n').await;
    steering.steer(&Program::alone()).unwrap();
    all_say(200, CLIENT, target, 'n').await;
    steering.leave().await;
    all_say(2_000, CLIENT, target, 'n').await;

    // The next replacement starts from there, and this one fails.
    let steering = Steering::join(address).await.unwrap();
    steering.steer(&Program::proving(LOOPBACK)).unwrap();
    let (bad, _) = Named::start(address, b'b');
    all_say(200, CLIENT, target, 'n').await;
    all_say(5, PROBE, target, 'b').await;
    bad.stop().await;
    all_say(200, CLIENT, target, 'n').await;
    steering.steer(&Program::alone()).unwrap();
    steering.leave().await;
    all_say(200, CLIENT, target, 'n').await;
    new.stop().await;
}

#[tokio::test]
async fn both_families_on_one_socket() {
    let Ok(_) = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else { return };
    let (_old, address) = Named::start((Ipv6Addr::UNSPECIFIED, 0).into(), b'o');
    let (four, six) = (local(address), SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())));
    let steering = Steering::join(address).await.unwrap();
    steering.steer(&Program::proving(Ipv6Addr::LOCALHOST.into())).unwrap();
    let (_new, _) = Named::start(address, b'n');
    all_say(100, CLIENT, four, 'o').await;
    all_say(20, PROBE, four, 'n').await;
    all_say(20, Ipv6Addr::LOCALHOST.into(), six, 'n').await;
    steering.steer(&Program::everybody_to(NEW).except(Ipv6Addr::LOCALHOST, FIRST)).unwrap();
    all_say(100, CLIENT, four, 'n').await;
    all_say(20, Ipv6Addr::LOCALHOST.into(), six, 'o').await;
}

#[tokio::test]
async fn a_place_that_does_not_exist_is_hashed() {
    let (_old, address) = Named::start(ANY_FOUR.into(), b'o');
    let steering = Steering::join(address).await.unwrap();
    // Nobody is there yet: some reach the old one at once and some over the agent's socket, and all an answer.
    steering.steer(&Program::proving(LOOPBACK)).unwrap();
    all_say(200, PROBE, local(address), 'o').await;
    let (_new, _) = Named::start(address, b'n');
    steering.steer(&Program::everybody_to(17).except(RELAY_SOURCE, FIRST)).unwrap();
    let mut said = std::collections::BTreeSet::new();
    // That one of two is never chosen in 2,000 would be a wonder.
    for _ in 0..2_000 {
        said.insert(ask(CLIENT, local(address)).await);
    }
    assert_eq!(said, ['n', 'o'].into());
}

#[tokio::test]
async fn the_program_outlives_the_agent() {
    let (_old, address) = Named::start(ANY_FOUR.into(), b'o');
    let steering = Steering::join(address).await.unwrap();
    steering.steer(&Program::proving(LOOPBACK)).unwrap();
    let (new, _) = Named::start(address, b'n');
    steering.leave().await;
    all_say(500, CLIENT, local(address), 'o').await;
    // Two listen: whoever comes now would not be the second.
    assert!(matches!(Steering::join(address).await, Err(SteerError::Places(_))));
    all_say(100, CLIENT, local(address), 'o').await;
    new.stop().await;
    Steering::join(address).await.unwrap().leave().await;
    all_say(100, CLIENT, local(address), 'o').await;
}

/// Two that listen, of which the second one has taken over under an agent that has died since.
async fn abandoned() -> (Named, Named, SocketAddr) {
    let (old, address) = Named::start(ANY_FOUR.into(), b'o');
    let steering = Steering::join(address).await.unwrap();
    steering.steer(&Program::proving(LOOPBACK)).unwrap();
    let (new, _) = Named::start(address, b'n');
    steering.take_over().unwrap();
    steering.leave().await;
    (old, new, address)
}

#[tokio::test]
async fn a_take_over_is_resumed() {
    let (old, new, address) = abandoned().await;
    let target = local(address);
    let steering = Steering::resume(address).unwrap();
    all_say(2_000, CLIENT, target, 'n').await;
    all_say(20, PROBE, target, 'n').await;
    old.stop().await;
    all_say(500, CLIENT, target, 'n').await;
    steering.leave().await;
    all_say(500, CLIENT, target, 'n').await;
    // It is the first one of the next replacement.
    let steering = Steering::join(address).await.unwrap();
    steering.steer(&Program::proving(LOOPBACK)).unwrap();
    let (_newer, _) = Named::start(address, b'N');
    all_say(200, CLIENT, target, 'n').await;
    all_say(5, PROBE, target, 'N').await;
    steering.take_over().unwrap();
    new.stop().await;
    all_say(200, CLIENT, target, 'N').await;
}

#[tokio::test]
async fn one_that_leaves_while_a_take_over_is_resumed() {
    for old_goes in [true, false] {
        let (old, new, address) = abandoned().await;
        let (goes, _stays, name) = if old_goes { (old, new, 'n') } else { (new, old, 'o') };
        goes.stop().await;
        let _steering = Steering::resume(address).unwrap();
        all_say(500, CLIENT, local(address), name).await;
    }
}

#[tokio::test]
async fn who_cannot_be_steered() {
    // An address that no other test connects from, so that its port stays free.
    let alone = std::net::TcpListener::bind((Ipv4Addr::new(127, 88, 7, 6), 0)).unwrap();
    let address = alone.local_addr().unwrap();
    let Err(SteerError::Listen { source, .. }) = Steering::join(address).await else { panic!("joined") };
    assert_eq!(source.kind(), io::ErrorKind::AddrInUse);
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, 1));
    assert!(matches!(Steering::join(six).await, Err(SteerError::OnlySix(address)) if address == six));
    drop(alone);
    // Nobody listens: the first place would be ours.
    assert!(matches!(Steering::join(address).await, Err(SteerError::Places(_))));
}

#[tokio::test]
async fn what_reaches_the_agent_is_passed_on() {
    let (_old, address) = Named::start((Ipv4Addr::LOCALHOST, 0).into(), b'o');
    let steering = Steering::join(address).await.unwrap();
    steering.steer(&Program::everybody_to(OWN).except(RELAY_SOURCE, FIRST)).unwrap();
    all_say(200, CLIENT, address, 'o').await;
}

#[tokio::test]
async fn who_reaches_the_agent_alone_is_turned_away() {
    let (old, address) = Named::start((Ipv4Addr::LOCALHOST, 0).into(), b'o');
    let steering = Steering::join(address).await.unwrap();
    steering.steer(&Program::proving(LOOPBACK)).unwrap();
    old.stop().await;
    for _ in 0..20 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let end = timeout(Duration::from_secs(5), stream.read(&mut [0])).await.unwrap();
        assert!(!matches!(end, Ok(1)), "{end:?}");
    }
    // It has the first place, so that it has to go for the new one to be reached.
    let (_new, _) = Named::start(address, b'n');
    steering.steer(&Program::alone()).unwrap();
    steering.leave().await;
    all_say(200, CLIENT, address, 'n').await;
}
