//! Takes our containers away and makes sure that nothing of them runs any more.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fsx::{self, FsError};
use crate::journal::{Creation, Journal, JournalError, Record};
use crate::layout::Layout;
use crate::proc::{Proc, ProcError, Process};
use crate::release::Component;
use crate::runtime::{Container, Runtime, RuntimeError, labels};

/// How long the kernel may take to end processes that were killed.
const END: Duration = Duration::from_secs(10);

/// How long etcd may take to end by itself, where its data is kept.
const ETCD_GRACE: Duration = Duration::from_secs(30);

/// Our containers could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum TakedownError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FsError),
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// `/proc` cannot be read.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// The container runtime failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Processes of our containers do not end.
    #[error("{} of our containers still run: {}", processes.len(), list(processes))]
    StillRunning {
        /// Which.
        processes: Vec<Process>,
    },
}

fn list(processes: &[Process]) -> String {
    let names: Vec<_> = processes.iter().map(|process| format!("{} (pid {})", process.command, process.pid)).collect();
    names.join(", ")
}

/// The id of this root's agent; `None` before its first start.
pub fn agent_id(layout: &Layout) -> Result<Option<String>, FsError> {
    let id = fsx::read_optional(&layout.agent_id())?;
    Ok(id.map(|id| String::from_utf8_lossy(&id).trim().to_owned()).filter(|id| !id.is_empty()))
}

/// Kills and removes every container of this root's agent, which must be stopped, and returns when `/proc` has no
/// process of theirs left. Returns how many there were.
///
/// Besides what the runtime lists, containers that the journal knows count: the runtime may have lost one.
pub async fn remove_containers<R: Runtime>(
    layout: &Layout,
    runtime: &R,
    journal: &Journal,
) -> Result<usize, TakedownError> {
    let mut ids = journal.ledger()?.containers();
    let containers = match agent_id(layout)? {
        Some(agent) => runtime.list(&agent).await?,
        None => Vec::new(),
    };
    ids.extend(containers.iter().map(|container| container.id.clone()));
    // etcd writes until it is told to stop; killing it loses nothing that it acknowledged, but costs a recovery. Its
    // clients go first: it would wait for their watches to end, which they do not, for seven seconds.
    let is_etcd = |container: &&Container| {
        container.labels.get(labels::CONTAINER_NAME).is_some_and(|name| name == Component::Etcd.name())
    };
    let (etcd, others): (Vec<_>, Vec<_>) = containers.iter().partition(is_etcd);
    remove(runtime, &others).await?;
    for container in &etcd {
        runtime.stop(&container.id, ETCD_GRACE).await?;
    }
    remove(runtime, &etcd).await?;
    ended(layout, &ids).await?;
    let gone: Vec<_> = ids.iter().map(|id| Record::Gone { what: Creation::Container { id: id.clone() } }).collect();
    journal.append(&gone)?;
    Ok(containers.len())
}

async fn remove<R: Runtime>(runtime: &R, containers: &[&Container]) -> Result<(), RuntimeError> {
    let removals = containers.iter().map(|container| runtime.remove(&container.id));
    join_all(removals).await.into_iter().collect()
}

/// Kills what runs in the containers `ids` where the runtime cannot be told to, and returns when nothing does. etcd loses
/// nothing by it that it has acknowledged.
pub async fn kill_processes(layout: &Layout, ids: &BTreeSet<String>) -> Result<(), TakedownError> {
    until_ended(layout, ids, |process| {
        // It may have ended by itself, and nothing else runs in its container's cgroup.
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    })
    .await
}

/// Waits until no process runs in the containers `ids`, as `/proc` sees it.
pub async fn ended(layout: &Layout, ids: &BTreeSet<String>) -> Result<(), TakedownError> {
    until_ended(layout, ids, |_| {}).await
}

async fn until_ended(layout: &Layout, ids: &BTreeSet<String>, each: impl Fn(&Process)) -> Result<(), TakedownError> {
    let proc = Proc::new(layout.proc());
    let deadline = tokio::time::Instant::now() + END;
    loop {
        let processes = proc.processes_in_containers(ids)?;
        if processes.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(TakedownError::StillRunning { processes });
        }
        processes.iter().for_each(&each);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
