//! What `/proc` says of ports, processes and cgroups.
//!
//! Nothing here asks Docker, so that what is found also holds while the engine is down: that is when one wants to
//! know who has the port, and whether a process of ours still writes to a directory that is about to be deleted.
//!
//! # Guarantees
//! - A process that ends while it is looked at is left out; it is never an error.
//! - A zombie does not run. (Where nobody reaps, a dead process keeps its pid for as long as the host is up.)
//! - What may not be read without root (another user's open files) is unknown, not an error.
//!
//! Formats: proc(5), `Documentation/filesystems/proc.rst` of the kernel.

mod cgroup;
mod host;
mod process;
mod sockets;

#[cfg(test)]
mod fixture;

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

pub use cgroup::{CgroupVersion, Cgroups, container_ids};
pub use host::{Capabilities, Memory, Swap};
pub use process::{Kubelet, Process, ProcessState};
pub use sockets::Listener;

/// A file of `/proc` that could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// It could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// It was read, but is not what the kernel documents.
    #[error("`{}` has no {what}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What was looked for in it.
        what: &'static str,
    },
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, ProcError>;

/// A mounted proc file system. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proc {
    path: PathBuf,
}

impl Default for Proc {
    fn default() -> Self {
        Self::new("/proc")
    }
}

impl Proc {
    /// The proc file system at `path`; a directory of the same shape in tests.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The path `name` below this file system, e.g. `1/root/etc`.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The text of `name`, which always exists.
    fn read(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(source) => Err(ProcError::Read { path, source }),
        }
    }

    /// The text of `name`, or `None` when it is not there, is going away or may not be read.
    fn read_optional(&self, name: &str) -> Result<Option<String>> {
        optional(self.read(name))
    }

    fn malformed(&self, name: &str, what: &'static str) -> ProcError {
        ProcError::Malformed { path: self.path(name), what }
    }
}

/// Turns the errors of a process that is gone, or whose secrets are not ours to see, into `None`.
fn optional<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ProcError::Read { source, .. }) if is_gone_or_hidden(&source) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_gone_or_hidden(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
        // A file of a process that was opened before and read after its end.
        || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

/// The value of `key` in text made of `key: value` lines.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}
