//! The agent's HTTP interface on a unix socket.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | `ok`, or 503 with the problem that keeps the agent from working |
//! | `/pods` | v1 `PodList` with status, as a kubelet's `/pods` |
//! | `/status` | [`AgentStatus`] |
//! | `/metrics` | Prometheus text |

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use jiff::Timestamp;
use tokio::net::UnixListener;

use super::board::Board;
use super::status::AgentStatus;
use super::translate::Node;
use super::{AgentError, report};
use crate::clock::Clock;
use crate::fsx::{self, FsError};

/// The header that says which version of this interface an answer is of.
pub const API_HEADER: &str = "plinth-api-version";

/// The version: another one where an older command line would misunderstand an answer. Fields that are added are none.
pub const API_VERSION: &str = "1";

/// Content type of `/metrics`.
pub(super) const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the handlers need.
#[derive(Debug)]
pub struct Door {
    /// The state shown.
    pub board: Arc<Board>,
    /// The node.
    pub node: Node,
    /// Id of the agent.
    pub agent_id: String,
    /// Start of the agent.
    pub started_at: Timestamp,
    /// Time.
    pub clock: Clock,
}

/// Listens on `socket` (0600, its directory 0700). The caller holds the agent's lock, so a socket that is there is
/// left over from a dead agent.
pub fn bind(socket: &Path) -> Result<UnixListener, AgentError> {
    if let Some(directory) = socket.parent() {
        fsx::create_directories(directory, 0o700)?;
    }
    fsx::remove_file(socket)?;
    let listener = UnixListener::bind(socket).map_err(FsError::of("listen on", socket))?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(FsError::of("set the mode of", socket))?;
    Ok(listener)
}

/// Answers until the future is dropped.
pub async fn serve(listener: UnixListener, door: Door) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/pods", get(pods))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .layer(axum::middleware::map_response(versioned))
        .with_state(Arc::new(door));
    axum::serve(listener, router).await
}

async fn versioned(mut response: Response) -> Response {
    response.headers_mut().insert(API_HEADER, HeaderValue::from_static(API_VERSION));
    response
}

async fn healthz(State(door): State<Arc<Door>>) -> Response {
    match door.board.situation().0 {
        None => "ok".into_response(),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem).into_response(),
    }
}

async fn pods(State(door): State<Arc<Door>>) -> Response {
    Json(report::pod_list(&door.board.pods(), &door.node)).into_response()
}

async fn status(State(door): State<Arc<Door>>) -> Response {
    Json(door.status()).into_response()
}

async fn metrics(State(door): State<Arc<Door>>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], door.board.metrics.encode()).into_response()
}

impl Door {
    /// The answer to `/status`.
    pub fn status(&self) -> AgentStatus {
        let now = self.clock.now();
        let (problem, sources, warnings) = self.board.situation();
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: self.started_at,
            agent_id: self.agent_id.clone(),
            node_name: self.node.name.clone(),
            problem,
            sources,
            pods: self.board.pods().iter().map(|snapshot| report::summary(snapshot, now)).collect(),
            warnings,
        }
    }
}
