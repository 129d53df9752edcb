//! What the checks look at, gathered once. Everything that touches the host or the engine is here and below.

mod host;
mod kubelet;
mod units;

use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;

use super::{Context, PreflightError, Upgrade};
use crate::release::Component;
use crate::runtime::{Runtime, RuntimeError, RuntimeInfo};

pub use host::{DiskSpace, HostFacts, disk_space};
pub use kubelet::{KubeletFacts, Manifests};

/// How long the engine may take to say anything.
pub(super) const ENGINE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the resolver may take. It matters little, so this is short; resolvers are slow to give up.
const RESOLVER_TIMEOUT: Duration = Duration::from_millis(250);

/// Everything the checks look at.
#[derive(Debug)]
pub struct Facts {
    /// The host.
    pub host: HostFacts,
    /// The engine, or why it says nothing.
    pub engine: Result<EngineFacts, RuntimeError>,
    /// How the engine is reached, as `DOCKER_HOST` writes it.
    pub engine_address: String,
    /// The images of the four components, each once.
    pub images: Vec<(String, ImagePresence)>,
    /// Whether the node's name leads anywhere.
    pub node_name: NameResolution,
    /// What time it is here.
    pub now: Timestamp,
    /// Certificates that are there already, and the start of their validity.
    pub not_before: Vec<(PathBuf, Timestamp)>,
    /// The control plane whose version is to change, if it is.
    pub upgrade: Option<Upgrade>,
}

/// The engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// What it says of itself.
    pub info: RuntimeInfo,
    /// The directory it keeps its data in is there for us as well.
    pub data_root_exists: bool,
    /// Room in that directory, where it is there.
    pub space: Option<DiskSpace>,
}

/// Whether an image is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePresence {
    /// It is.
    Present,
    /// It will be pulled.
    Missing,
    /// The engine does not say.
    Unknown(String),
}

/// What the resolver makes of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameResolution {
    /// It has an address.
    Resolves,
    /// It has none.
    Fails,
    /// No answer in time.
    TimesOut,
}

impl Facts {
    /// Looks at everything. The engine and the resolver answer while the host is looked at.
    pub async fn gather<R: Runtime>(context: &Context<'_, R>) -> Result<Self, PreflightError> {
        // The order matters: both requests are on their way before the last one, which does not wait, begins.
        let ((engine, images), node_name, host) =
            tokio::join!(engine(context), resolve(&context.cluster.node_name), async {
                HostFacts::read(context.cluster, context.layout)
            },);
        Ok(Self {
            host: host?,
            engine,
            engine_address: context.engine_address.to_owned(),
            images,
            node_name,
            now: context.clock.now(),
            not_before: context.not_before.to_vec(),
            upgrade: context.upgrade.cloned(),
        })
    }

    /// Images that have to be pulled.
    pub fn missing_images(&self) -> Vec<String> {
        let missing = self.images.iter().filter(|(_, presence)| *presence == ImagePresence::Missing);
        missing.map(|(image, _)| image.clone()).collect()
    }
}

async fn engine<R: Runtime>(
    context: &Context<'_, R>,
) -> (Result<EngineFacts, RuntimeError>, Vec<(String, ImagePresence)>) {
    let mut images: Vec<_> = Component::ALL.iter().map(|&component| context.cluster.image(component)).collect();
    images.sort();
    images.dedup();
    let presence = |image: String| async move {
        let presence = match within(context.runtime.image(&image)).await {
            Ok(Some(_)) => ImagePresence::Present,
            Ok(None) => ImagePresence::Missing,
            Err(error) => ImagePresence::Unknown(error.to_string()),
        };
        (image, presence)
    };
    let (info, images) = tokio::join!(within(context.runtime.info()), join_all(images.into_iter().map(presence)));
    let facts = info.map(|info| EngineFacts {
        data_root_exists: info.data_root.exists(),
        space: disk_space(&info.data_root),
        info,
    });
    (facts, images)
}

async fn within<T>(call: impl Future<Output = Result<T, RuntimeError>>) -> Result<T, RuntimeError> {
    tokio::time::timeout(ENGINE_TIMEOUT, call).await.unwrap_or(Err(RuntimeError::TimedOut(ENGINE_TIMEOUT)))
}

async fn resolve(name: &str) -> NameResolution {
    let (sender, answer) = tokio::sync::oneshot::channel();
    let name = name.to_owned();
    // A thread of its own: tokio waits at its end for what runs on its own threads, and the resolver may take half a
    // minute.
    let thread = std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
        // Nobody listens any more after the time-out.
        let _ = sender.send((name.as_str(), 0).to_socket_addrs().is_ok_and(|mut addresses| addresses.next().is_some()));
    });
    if thread.is_err() {
        return NameResolution::TimesOut;
    }
    match tokio::time::timeout(RESOLVER_TIMEOUT, answer).await {
        Ok(Ok(true)) => NameResolution::Resolves,
        Ok(_) => NameResolution::Fails,
        Err(_) => NameResolution::TimesOut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_resolved_or_not() {
        assert_eq!(resolve("localhost").await, NameResolution::Resolves);
        assert_ne!(resolve("no-such-host.invalid").await, NameResolution::Resolves);
    }
}
