//! The agent's socket, seen from the command line.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;

use super::server::{API_HEADER, API_VERSION};
use super::status::AgentStatus;
use crate::layout::Layout;

/// The agent on this host answers from memory; longer than this means that it hangs.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The agent did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The HTTP client could not be made.
    #[error("cannot make an HTTP client for the agent's socket")]
    Client(#[source] reqwest::Error),
    /// There is nobody at the socket.
    #[error("no agent answers at `{socket}`")]
    Unreachable {
        /// The socket's path.
        socket: String,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// The agent is of a plinth whose answers this one does not know.
    #[error(
        "the agent speaks version {theirs} of its interface, and this plinth version {}; `plinth init` restarts it",
        API_VERSION
    )]
    Version {
        /// What the agent speaks.
        theirs: String,
    },
    /// The answer is not what was asked for.
    #[error("the agent's answer is not understood")]
    Answer(#[source] reqwest::Error),
}

/// Asks the agent of this root for its status.
#[derive(Debug, Clone)]
pub struct AgentClient {
    http: reqwest::Client,
    socket: String,
}

impl AgentClient {
    /// A client of the agent of `layout`; does not connect yet.
    pub fn new(layout: &Layout) -> Result<Self, ClientError> {
        let socket = layout.socket();
        let http = reqwest::Client::builder()
            .unix_socket(socket.clone())
            // There is no TLS here, and a host may have no certificate authority at all.
            .tls_certs_only([])
            .timeout(TIMEOUT)
            .build()
            .map_err(ClientError::Client)?;
        Ok(Self { http, socket: socket.display().to_string() })
    }

    /// `GET /status`.
    pub async fn status(&self) -> Result<AgentStatus, ClientError> {
        self.get("status").await
    }

    /// `GET /pods`, and the name of the node.
    pub async fn pods(&self) -> Result<(String, Vec<Pod>), ClientError> {
        let node = self.status().await?.node_name;
        let list: k8s_openapi::List<Pod> = self.get("pods").await?;
        Ok((node, list.items))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self
            .http
            .get(format!("http://agent/{path}"))
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .map_err(|source| ClientError::Unreachable { socket: self.socket.clone(), source })?;
        // The first agents did not say so.
        let theirs = answer.headers().get(API_HEADER).map(|value| String::from_utf8_lossy(value.as_bytes()));
        if let Some(theirs) = theirs.filter(|theirs| theirs != API_VERSION) {
            return Err(ClientError::Version { theirs: theirs.into_owned() });
        }
        answer.json().await.map_err(ClientError::Answer)
    }
}
