//! The kubelet's HTTPS interface, on port 10250: what the API server asks for `kubectl logs` and `kubectl exec`, and what
//! monitoring asks.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz`, `/healthz/ping`, `/healthz/log`, `/healthz/syncloop` | `ok`, or 500 while the runtime is away |
//! | `/pods` | v1 `PodList` with status |
//! | `/runningpods/` | v1 `PodList` of what runs: names and images |
//! | `/metrics` | the agent's counters |
//! | `/containerLogs/{namespace}/{pod}/{container}` | see `logs` |
//! | `/exec/{namespace}/{pod}/{container}` | see `exec` |
//! | `/run`, `/portForward`, `/attach` | 501 with the reason |
//!
//! # Guarantees
//! - Nothing is answered to anybody whom `authn` does not know (401) or `authz` does not allow (403): this layer is
//!   around all paths, those that do not exist among them.
//! - Whatever happens here, the agent goes on. A port that is taken is tried again and said in `/status`.
//! - What clients may occupy is bounded: connections (`CONNECTIONS`, and `crowd` of one address), the time up to a
//!   request's head, and the questions to the API server. Only who was allowed something keeps a connection.

mod authn;
mod authz;
mod channel;
mod crowd;
mod exec;
mod logs;
mod reviews;
mod tls;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::{any, get};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use self::authn::{Authenticator, Peer};
use self::authz::{Attributes, Authorizer, Refusal};
use self::crowd::Crowd;
use self::reviews::{Few, Reviews};
pub use self::tls::Pair;
use self::tls::Serving;
use super::board::{Board, Snapshot};
use super::ledger::Writer;
use super::step::{SANDBOX, doubled, is_running, name_of, uid_of};
use super::translate::Node;
use super::{report, server};
use crate::clock::Clock;
use crate::cluster::connection::Connection;
use crate::error::with_causes;
use crate::layout::Layout;
use crate::runtime::Runtime;

/// Where the API server looks for it (kubelet: `KubeletPort`).
pub const PORT: u16 = 10250;
/// Connections at the same time.
const CONNECTIONS: usize = 256;
/// How long a handshake may take, and from its end the head of the first request.
const GREETING: Duration = Duration::from_secs(10);
/// How long a connection may be without a request later.
const IDLE: Duration = Duration::from_secs(90);
/// How soon a port that cannot be had is tried again, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// What is said in `/status`, and about what.
const NOT_SERVED: &str = "the kubelet's interface is not served (`kubectl logs`, `kubectl exec`)";
pub(super) const WHO: &str = "the kubelet's interface";
const ADDRESS: &str = "address of the kubelet's interface";
const CERTIFICATE: &str = "certificate of the kubelet's interface";
const AUTHORITIES: &str = "authorities of clients of the kubelet's interface";
const NO_CERTIFICATE: &str = "no client certificate is accepted by the kubelet's interface";

/// How it is served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen (kubelet: `address` and `port`).
    pub listen: SocketAddr,
    /// Authorities of client certificates (kubelet: `authentication.x509.clientCAFile`).
    pub client_ca: PathBuf,
    /// Certificate and key to show; made by the agent when `None` (kubelet: `tlsCertFile`, `tlsPrivateKeyFile`).
    pub pair: Option<Pair>,
}

impl Settings {
    /// The usual ones: 0.0.0.0:10250, and kubeadm's authority.
    pub fn new(layout: &Layout) -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT),
            client_ca: layout.kubernetes().join("pki/ca.crt"),
            pair: None,
        }
    }
}

/// What the interface shows, and whom it asks.
struct Face<R, V> {
    runtime: Arc<R>,
    board: Arc<Board>,
    node: Arc<Node>,
    clock: Clock,
    reviews: V,
    authenticator: Arc<Authenticator>,
    authorizer: Arc<Authorizer>,
}

// Derived, it would ask for a runtime that can be cloned.
impl<R, V: Clone> Clone for Face<R, V> {
    fn clone(&self) -> Self {
        Self {
            runtime: Arc::clone(&self.runtime),
            board: Arc::clone(&self.board),
            node: Arc::clone(&self.node),
            clock: self.clock.clone(),
            reviews: self.reviews.clone(),
            authenticator: Arc::clone(&self.authenticator),
            authorizer: Arc::clone(&self.authorizer),
        }
    }
}

/// What the task works with.
pub(super) struct Context<R> {
    /// How it is served.
    pub(super) settings: Settings,
    /// Where the pair is that the agent makes.
    pub(super) pki: PathBuf,
    /// The API server, which says who may do what.
    pub(super) connection: Arc<Connection>,
    /// The static pods.
    pub(super) board: Arc<Board>,
    /// Facts about the node.
    pub(super) node: Node,
    /// The engine.
    pub(super) runtime: Arc<R>,
    /// Where files are recorded before they are made.
    pub(super) ledger: Writer,
    /// Time.
    pub(super) clock: Clock,
}

/// Serves for as long as the future is polled.
pub(super) async fn run<R: Runtime>(context: Arc<Context<R>>) {
    let Context { settings, node, board, clock, .. } = &*context;
    let serving = match &settings.pair {
        Some(pair) => Serving::of_others(pair.clone(), context.ledger.clone()),
        None => Serving::own(&context.pki, &node.name, node.address, context.ledger.clone()),
    };
    let face = Face {
        runtime: Arc::clone(&context.runtime),
        board: Arc::clone(board),
        authenticator: Arc::new(Authenticator::new(settings.client_ca.clone(), clock.clone())),
        authorizer: Arc::new(Authorizer::new(&node.name)),
        node: Arc::new(node.clone()),
        clock: clock.clone(),
        reviews: Few::new(Arc::clone(&context.connection)),
    };
    let listener = listen(settings.listen, board).await;
    tracing::info!(address = %settings.listen, "the kubelet's interface is served");
    accept(listener, serving, face).await;
}

/// Tries until the port is free.
async fn listen(address: SocketAddr, board: &Board) -> TcpListener {
    let mut tries = 0;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                board.remark(ADDRESS, Vec::new());
                return listener;
            }
            Err(error) => {
                board.remark(ADDRESS, vec![format!("{NOT_SERVED}: cannot listen on {address}: {error}")]);
            }
        }
        sleep(doubled(AGAIN.0, tries, AGAIN.1)).await;
        tries += 1;
    }
}

/// Takes one connection after the other.
async fn accept<R: Runtime, V: Reviews + Clone>(listener: TcpListener, mut serving: Serving, face: Face<R, V>) {
    let (board, clock, authenticator) = (Arc::clone(&face.board), face.clock.clone(), Arc::clone(&face.authenticator));
    // It is there, and what is wrong is said, before the first client.
    greeting(&mut serving, &board, clock.now()).await;
    say_authorities(&authenticator, &board).await;
    let (router, slots, crowd) = (router(face), Arc::new(Semaphore::new(CONNECTIONS)), Crowd::default());
    loop {
        // Never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many files are open, most likely; those of a connection that ended go at once.
                tracing::debug!(%error, "cannot accept a connection");
                sleep(AGAIN.0).await;
                continue;
            }
        };
        let Some(admitted) = crowd.admit(peer.ip().to_canonical()) else {
            tracing::debug!(%peer, "it has as many connections as it may");
            continue;
        };
        if let Some(config) = greeting(&mut serving, &board, clock.now()).await {
            let (router, board, authenticator) = (router.clone(), Arc::clone(&board), Arc::clone(&authenticator));
            tokio::spawn(async move {
                say_authorities(&authenticator, &board).await;
                converse(stream, TlsAcceptor::from(config), router).await;
                drop((slot, admitted));
            });
        }
    }
}

/// How to greet clients; `None` while there is no certificate for them.
async fn greeting(serving: &mut Serving, board: &Board, now: Timestamp) -> Option<Arc<ServerConfig>> {
    match serving.config(now).await {
        Ok(config) => {
            board.remark(CERTIFICATE, Vec::new());
            Some(config)
        }
        Err(error) => {
            board.remark(CERTIFICATE, vec![format!("{NOT_SERVED}: {}", with_causes(&*error))]);
            None
        }
    }
}

/// Says whether the certificates of clients can be checked.
async fn say_authorities(authenticator: &Authenticator, board: &Board) {
    let problem = authenticator.try_authorities().await.err();
    let remark = problem.map(|error| format!("{NO_CERTIFICATE}: {}", with_causes(&error)));
    board.remark(AUTHORITIES, remark.into_iter().collect());
}

/// One connection, from the handshake on.
async fn converse(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    let Ok(Ok(stream)) = timeout(GREETING, acceptor.accept(stream)).await else { return };
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = Peer { certificates: shown.iter().map(|certificate| certificate.clone().into_owned()).collect() };
    let heard = Arc::new(Notify::new());
    let tell = {
        let heard = Arc::clone(&heard);
        middleware::map_request(move |request: Request| {
            heard.notify_one();
            std::future::ready(request)
        })
    };
    let service = TowerToHyperService::new(router.layer(Extension(peer)).layer(tell));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Some(Err(error)) = unless_silent(connection, &heard).await {
        tracing::debug!(%error, "a connection broke");
    }
}

/// `connection` to its end; `None` when nothing was `heard` of it in time.
async fn unless_silent<C: Future>(connection: C, heard: &Notify) -> Option<C::Output> {
    tokio::select! {
        result = connection => Some(result),
        Err(_) = timeout(GREETING, heard.notified()) => None,
    }
}

fn router<R: Runtime, V: Reviews + Clone>(face: Face<R, V>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/healthz/ping", get(async || "ok"))
        .route("/healthz/log", get(async || "ok"))
        .route("/healthz/syncloop", get(syncloop))
        .route("/pods", get(pods))
        .route("/runningpods/", get(running_pods))
        .route("/metrics", get(metrics))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::serve))
        .route("/exec/{namespace}/{pod}/{container}", get(exec::serve).post(exec::serve))
        .route("/run/{*rest}", any(async || not_here("commands are run by `/exec` alone")))
        .route("/attach/{*rest}", any(async || not_here("attaching is not supported; `kubectl exec` and `logs` are")))
        .route("/portForward/{*rest}", any(async || not_here("port forwarding is not supported")))
        .fallback(async || (StatusCode::NOT_FOUND, "404 page not found\n"))
        .layer(middleware::from_fn_with_state(face.clone(), guard))
        .with_state(face)
}

fn not_here(why: &'static str) -> (StatusCode, String) {
    (StatusCode::NOT_IMPLEMENTED, format!("{why} (this node is kept by plinth, not by a kubelet)\n"))
}

/// Nobody who is refused is to keep a connection.
const CLOSE: [(header::HeaderName, &str); 1] = [(header::CONNECTION, "close")];

/// Lets through what is allowed (kubelet: `InstallAuthFilter`).
async fn guard<R: Runtime, V: Reviews + Clone>(
    State(face): State<Face<R, V>>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let header = request.headers().get(header::AUTHORIZATION);
    let user = match face.authenticator.user(&face.reviews, &peer, header).await {
        Ok(user) => user,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "somebody unknown asks");
            return (StatusCode::UNAUTHORIZED, CLOSE, "Unauthorized").into_response();
        }
    };
    let attributes = Attributes::of(request.method(), request.uri().path());
    match face.authorizer.check(&face.reviews, &user, &attributes).await {
        Ok(()) => {
            request.extensions_mut().insert(user);
            next.run(request).await
        }
        Err(refusal @ Refusal::Forbidden { .. }) => (StatusCode::FORBIDDEN, CLOSE, refusal.to_string()).into_response(),
        Err(refusal @ Refusal::Unknown { .. }) => {
            (StatusCode::INTERNAL_SERVER_ERROR, CLOSE, refusal.to_string()).into_response()
        }
    }
}

async fn healthz<R: Runtime, V: Reviews + Clone>(State(face): State<Face<R, V>>) -> Response {
    if face.board.situation().0.is_none() {
        return "ok".into_response();
    }
    let text = "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n";
    (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
}

async fn syncloop<R: Runtime, V: Reviews + Clone>(State(face): State<Face<R, V>>) -> Response {
    match face.board.situation().0 {
        None => "ok".into_response(),
        Some(problem) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {problem}\n")).into_response()
        }
    }
}

async fn pods<R: Runtime, V: Reviews + Clone>(State(face): State<Face<R, V>>) -> Response {
    Json(report::pod_list(&face.board.pods(), &face.node)).into_response()
}

async fn running_pods<R: Runtime, V: Reviews + Clone>(State(face): State<Face<R, V>>) -> Response {
    let items = face.board.pods().iter().filter_map(running_pod).collect();
    Json(k8s_openapi::List::<Pod> { items, ..k8s_openapi::List::default() }).into_response()
}

/// What of a pod runs, in any version of it (kubelet: `ToAPIPod`).
fn running_pod(snapshot: &Snapshot) -> Option<Pod> {
    let running = || snapshot.containers.values().filter(|container| is_running(container));
    let uid = uid_of(running().next()?).to_owned();
    let containers = running().filter(|container| name_of(container) != SANDBOX).map(|container| Container {
        name: name_of(container).to_owned(),
        image: Some(container.image.clone()),
        ..Container::default()
    });
    Some(Pod {
        metadata: ObjectMeta {
            name: Some(snapshot.key.name.clone()),
            namespace: Some(snapshot.key.namespace.clone()),
            uid: Some(uid),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { containers: containers.collect(), ..PodSpec::default() }),
        status: None,
    })
}

async fn metrics<R: Runtime, V: Reviews + Clone>(State(face): State<Face<R, V>>) -> Response {
    ([(header::CONTENT_TYPE, server::METRICS_TYPE)], face.board.metrics.encode()).into_response()
}

impl<R, V> Face<R, V> {
    /// The pod of this namespace and name, with that of the node at its end.
    fn snapshot(&self, namespace: &str, name: &str) -> Option<Snapshot> {
        let pods = self.board.pods();
        pods.into_iter().find(|snapshot| snapshot.key.namespace == namespace && snapshot.key.name == name)
    }
}

#[cfg(test)]
mod tests;
