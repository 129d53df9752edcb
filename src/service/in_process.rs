//! Agents that tests run as threads of their own process, in place of detached ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::layout::Layout;

/// The agent of one root.
pub(crate) trait Agent: Send + Sync {
    /// As a new process.
    fn start(&self);
    /// As by SIGTERM; back when it has ended.
    fn stop(&self);
}

static AGENTS: Mutex<BTreeMap<PathBuf, Arc<dyn Agent>>> = Mutex::new(BTreeMap::new());

/// From now on the agent of `root` is this one; none when `None`.
pub(crate) fn set(root: &Path, agent: Option<Arc<dyn Agent>>) {
    let mut agents = AGENTS.lock().unwrap_or_else(PoisonError::into_inner);
    agents.remove(root);
    agents.extend(agent.map(|agent| (root.to_owned(), agent)));
}

fn agent(layout: &Layout) -> Option<Arc<dyn Agent>> {
    AGENTS.lock().unwrap_or_else(PoisonError::into_inner).get(layout.root()).cloned()
}

/// Starts the agent of this root, if it is one of those.
pub(super) fn start(layout: &Layout) -> bool {
    agent(layout).is_some_and(|agent| {
        agent.start();
        true
    })
}

/// Stops it.
pub(super) fn stop(layout: &Layout) {
    if let Some(agent) = agent(layout) {
        agent.stop();
    }
}
