//! `/exec`: a command in a running container, over a WebSocket. The API server hands these through where the node
//! declares `ExtendWebSocketsToKubelet` (1.36 and later); other upgrades, SPDY above all, are refused with the reason.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::Face;
use super::authn::User;
use super::channel::{self, Channel, Input, Version};
use super::logs::Refusal;
use super::reviews::Reviews;
use crate::agent::board::Snapshot;
use crate::agent::step::{attempt_of, is_running, name_of};
use crate::runtime::{ExecSpec, Output, Runtime, Session};

/// What is added to a client's key (RFC 6455, 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// How long nothing may come from a client (kubelet: `streamingConnectionIdleTimeout`). kubectl says something every 5 s.
const IDLE: Duration = Duration::from_hours(4);
/// How long a client may take to close its side in the end.
const CLOSING: Duration = Duration::from_secs(10);
/// Bytes of a message from a client. kubectl sends 32 KiB.
const MESSAGE: usize = 1 << 20;
/// Bytes that wait to be read, and to be written.
const BUFFER: usize = 16 << 10;

/// Reads what is to be done (kubelet: `remotecommand.NewOptions`).
fn specification(parameters: &[(String, String)]) -> Result<ExecSpec, Refusal> {
    let is_set = |name: &str| parameters.iter().find(|(key, _)| key == name).is_some_and(|(_, value)| value == "1");
    let (stdin, stdout, stderr, tty) = (is_set("input"), is_set("output"), is_set("error"), is_set("tty"));
    let command = parameters.iter().filter(|(key, _)| key == "command").map(|(_, word)| word.clone());
    let refuse = |words: &str| Err(Refusal(StatusCode::BAD_REQUEST, words.to_owned()));
    if !(stdin || stdout || stderr) {
        return refuse("you must specify at least 1 of stdin, stdout, stderr");
    }
    // A terminal has one output.
    let spec = ExecSpec { command: command.collect(), stdin, stdout, stderr: stderr && !tty, tty };
    if spec.command.is_empty() { refuse("you must specify a command") } else { Ok(spec) }
}

/// The instance of a container that runs; where two do for a moment, the newest.
fn running<'a>(snapshot: &'a Snapshot, container: &str) -> Option<&'a str> {
    let instances = snapshot.containers.values().filter(|one| name_of(one) == container && is_running(one));
    instances.max_by_key(|one| (one.created_at, attempt_of(one))).map(|one| one.id.as_str())
}

/// Which version is spoken, and the answer to the client's key; `None` for what is no WebSocket or none of ours.
fn handshake(headers: &HeaderMap) -> Option<(Version, String)> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let upgrades =
        connection.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    let is_websocket = upgrades
        && text(header::UPGRADE).eq_ignore_ascii_case("websocket")
        && text(header::SEC_WEBSOCKET_VERSION) == "13"
        && !text(header::SEC_WEBSOCKET_KEY).is_empty();
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let version = Version::negotiate(&offered.collect::<Vec<_>>().join(",")).filter(|_| is_websocket)?;
    let key = [text(header::SEC_WEBSOCKET_KEY).as_bytes(), GUID].concat();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &key);
    Some((version, BASE64_STANDARD.encode(digest)))
}

/// `GET /exec/{namespace}/{pod}/{container}`.
pub(super) async fn serve<R: Runtime, V: Reviews>(
    State(face): State<Face<R, V>>,
    Extension(user): Extension<User>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(parameters): Query<Vec<(String, String)>>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let spec = specification(&parameters)?;
    let snapshot = face.snapshot(&namespace, &pod);
    let snapshot = snapshot.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, "pod does not exist".to_owned()))?;
    let broken = |words: String| Refusal(StatusCode::INTERNAL_SERVER_ERROR, words);
    let id = running(&snapshot, &container).ok_or_else(|| broken(format!("container not found ({container:?})")))?;
    let Some((version, accept)) = handshake(request.headers()) else {
        let words = "exec is served over WebSocket alone, with v5.channel.k8s.io or v4.channel.k8s.io; SPDY is not \
                     supported (this node is kept by plinth, not by a kubelet; kubectl 1.31 and later use WebSocket)\n";
        return Err(Refusal(StatusCode::NOT_IMPLEMENTED, words.to_owned()));
    };
    let session = face.runtime.open_exec(id, &spec).await.map_err(|error| broken(error.to_string()))?;
    let upgrade = hyper::upgrade::on(&mut request);
    // Not what: there may be a secret in it.
    tracing::info!(pod = %snapshot.key, container, user = user.name, "somebody runs a command");
    tokio::spawn(converse(face, upgrade, version, spec, session));
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .header(header::SEC_WEBSOCKET_PROTOCOL, version.name())
        .body(Body::empty())
        .map_err(|error| broken(error.to_string()))
}

/// Carries everything to and fro until the command ends, or the client is gone.
async fn converse<R: Runtime, V: Reviews>(
    face: Face<R, V>,
    upgrade: OnUpgrade,
    version: Version,
    spec: ExecSpec,
    session: Session,
) {
    let Ok(upgraded) = upgrade.await else { return };
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE));
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    let (mut sink, mut source) = socket.split();
    let Session { id, mut output, input } = session;

    let up = async {
        let mut input = spec.stdin.then_some(input);
        while let Ok(Some(Ok(message))) = timeout(IDLE, source.next()).await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Close(_) => return,
                _ => continue,
            };
            match version.read(&data) {
                // Whether the command still reads is not the client's concern.
                Ok(Input::Stdin(data)) => {
                    if let Some(input) = &mut input {
                        let _ = input.write_all(data).await;
                        let _ = input.flush().await;
                    }
                }
                Ok(Input::StdinEnds) => {
                    if let Some(mut input) = input.take() {
                        let _ = input.shutdown().await;
                    }
                }
                Ok(Input::Resize { width, height }) if spec.tty => {
                    if let Err(error) = face.runtime.resize_exec(&id, width, height).await {
                        tracing::debug!(%error, "cannot tell a command the size of its terminal");
                    }
                }
                Ok(Input::Resize { .. } | Input::Nothing) => {}
                Err(error) => {
                    tracing::debug!(%error, "a client of exec is disconnected");
                    return;
                }
            }
        }
    };
    let down = async {
        // Tells the client that it is connected.
        let first = match (spec.stdout, spec.stderr) {
            (true, _) => Channel::Stdout,
            (false, true) => Channel::Stderr,
            (false, false) => Channel::Error,
        };
        send(&mut sink, first, b"").await?;
        let ended = loop {
            match output.next().await {
                Some(Ok(Output::Stdout(data))) if spec.stdout => send(&mut sink, Channel::Stdout, &data).await?,
                Some(Ok(Output::Stderr(data))) if spec.stderr => send(&mut sink, Channel::Stderr, &data).await?,
                Some(Ok(_)) => {}
                Some(Err(error)) => break Err(error),
                None => break face.runtime.exec_code(&id).await,
            }
        };
        let status = channel::status(&spec.command, ended.map_err(|error| error.to_string()));
        let status = serde_json::to_vec(&status).unwrap_or_default();
        send(&mut sink, Channel::Error, &status).await?;
        let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        sink.send(Message::Close(Some(close))).await
    };
    tokio::pin!(up);
    let told = tokio::select! {
        () = &mut up => return,
        told = down => told,
    };
    if told.is_ok() {
        // Until the client has seen it: a connection that is torn down at once may take the last words with it.
        let _ = timeout(CLOSING, up).await;
    }
}

async fn send<S>(sink: &mut S, channel: Channel, data: &[u8]) -> Result<(), Error>
where
    S: futures_util::Sink<Message, Error = Error> + Unpin,
{
    sink.send(Message::binary(channel::message(channel, data))).await
}
