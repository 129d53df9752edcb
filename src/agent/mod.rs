//! The static-pod agent: the kubelet's static-pod half, on a container runtime.

pub mod pod;
pub mod probe;
pub mod quantity;
pub mod status;
pub mod step;
pub mod translate;
pub mod volume;

use std::path::Path;

/// Where the agent's creations are recorded, so that `reset` finds them.
pub trait Ledger: Send + Sync + 'static {
    /// `path` is about to be made, outside our own state directory. Nothing is made when this fails.
    fn record_path(&self, path: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}
