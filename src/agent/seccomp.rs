//! Seccomp profiles of the node, which pods name by file (`type: Localhost`).
//!
//! The engine is on the other side of a socket and wants the text itself; it understands the same format as the
//! kubelet's other runtimes.

use std::path::{Path, PathBuf};

use crate::fsx::{self, FsError};

/// Where the profiles are (kubelet: `<root-dir>/seccomp`).
pub const DIRECTORY: &str = "/var/lib/kubelet/seccomp";

/// A profile that cannot be used. The container waits and it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// It is not there.
    #[error("there is no seccomp profile {}", .0.display())]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("cannot read the seccomp profile: {0}")]
    Files(#[source] FsError),
    /// It is not JSON.
    #[error("the seccomp profile {} is not JSON: {source}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads the profile `name` below `directory`.
pub fn read(directory: &Path, name: &str) -> Result<String, SeccompError> {
    let path = directory.join(name);
    let bytes = fsx::read_optional(&path).map_err(SeccompError::Files)?;
    let Some(bytes) = bytes else { return Err(SeccompError::Missing(path)) };
    match serde_json::from_slice::<serde_json::Value>(&bytes) {
        // On one line, as it becomes an option.
        Ok(profile) => Ok(profile.to_string()),
        Err(source) => Err(SeccompError::Broken { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_its_text_and_a_missing_or_broken_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("p")).unwrap();
        std::fs::write(directory.path().join("p/good.json"), "{\n \"defaultAction\": \"SCMP_ACT_ALLOW\"\n}\n").unwrap();
        std::fs::write(directory.path().join("bad.json"), "{defaultAction").unwrap();
        let read = |name: &str| read(directory.path(), name).map_err(|error| error.to_string());
        assert_eq!(read("p/good.json").unwrap(), r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#);
        assert!(read("none.json").unwrap_err().ends_with("/none.json"));
        let broken = read("bad.json").unwrap_err();
        assert!(broken.contains("/bad.json is not JSON: ") && broken.contains("line 1"), "{broken}");
    }
}
