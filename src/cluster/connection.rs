//! A client that follows its kubeconfig: what is renewed on disk is used with the next request.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kube::Client;

use super::{ClusterError, client};
use crate::fsx::{self, FsError};
use crate::kubeconfig;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The kubeconfig cannot be read.
    #[error(transparent)]
    Read(#[from] FsError),
    /// It cannot be used.
    #[error(transparent)]
    Client(#[from] ClusterError),
}

/// The API server as the node reaches it, with `kubelet.conf`. Shared by all that speak as the node.
#[derive(Debug)]
pub struct Connection {
    kubeconfig: PathBuf,
    current: Mutex<Option<Current>>,
}

struct Current {
    text: String,
    client: Client,
}

impl std::fmt::Debug for Current {
    // The text holds a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current")
    }
}

impl Connection {
    /// With the kubeconfig at `path`, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { kubeconfig: path.into(), current: Mutex::new(None) }
    }

    /// Where the kubeconfig is.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A client with the kubeconfig as it is now on disk; that of the last call as long as it has not changed.
    pub async fn client(&self) -> Result<Client, ConnectionError> {
        let text = fsx::read_to_string(&self.kubeconfig)?;
        if let Some(current) = &*self.current.lock().unwrap_or_else(PoisonError::into_inner)
            && current.text == text
        {
            return Ok(current.client.clone());
        }
        let made = client(kubeconfig::KUBELET_FILE, &text).await?;
        let current = Current { text, client: made.clone() };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(current);
        Ok(made)
    }
}
