//! Termination messages: what a container wrote into a file of its own for those who ask why it ended.
//!
//! Each instance has its own file, `<pods>/<uid>/containers/<name>/<8 hexadecimal digits>` (directory 0750, file 0666,
//! because any user inside may write it), which is mounted at `terminationMessagePath`. The digits are the number of
//! the start, so that an agent without memory finds the file again. Limits are the kubelet's.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Container;

use super::pod::StaticPod;
use crate::fsx::{self, FsError};

/// Bytes of the file that are read, from its end (kubelet: `MaxContainerTerminationMessageLength`).
const FILE_LIMIT: u64 = 4096;
/// Bytes of all messages of a pod (kubelet: `MaxPodTerminationMessageLogLength`).
const POD_LIMIT: usize = 12 << 10;
/// Bytes of a log that stand in for a message (kubelet: `MaxContainerTerminationMessageLogLength`).
const LOG_LIMIT: usize = 2048;
/// Lines of a log that stand in for a message (kubelet: `MaxContainerTerminationMessageLogLines`).
pub const LOG_LINES: usize = 80;

/// Where the message appears inside: absolute; `/dev/termination-log` unless the pod says otherwise.
pub fn target(container: &Container) -> String {
    match container.termination_message_path.as_deref() {
        None | Some("") => "/dev/termination-log".to_owned(),
        Some(path) if path.starts_with('/') => path.to_owned(),
        Some(path) => format!("/{path}"),
    }
}

/// Makes the empty file for start number `attempt` of the container `name`, and returns its path.
pub fn prepare(pods: &Path, uid: &str, name: &str, attempt: u32) -> Result<PathBuf, FsError> {
    let path = path(pods, uid, name, attempt);
    if let Some(directory) = path.parent() {
        fsx::create_directories(directory, 0o750)?;
    }
    // Written through: what an earlier instance of the same number left is not this one's message.
    File::create(&path).map_err(FsError::of("create", &path))?;
    fs::set_permissions(&path, Permissions::from_mode(0o666)).map_err(FsError::of("set the mode of", &path))?;
    Ok(path)
}

/// The message of start number `attempt` of `container`, which ended with `exit_code`; empty when there is none.
/// `log` are its last [`LOG_LINES`] lines.
pub fn read(pods: &Path, pod: &StaticPod, container: &Container, attempt: u32, exit_code: i64, log: &str) -> String {
    // A file that cannot be read is as good as an empty one: the message is a courtesy.
    let mut message = tail(&path(pods, &pod.uid, &container.name, attempt)).unwrap_or_default();
    let from_log = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError") && exit_code != 0;
    if message.is_empty() && from_log {
        message = log.as_bytes()[log.len().saturating_sub(LOG_LIMIT)..].to_vec();
    }
    message.truncate(POD_LIMIT / pod.all_containers().count().max(1));
    String::from_utf8_lossy(&message).into_owned()
}

/// Removes the file of an instance that is gone.
pub fn discard(pods: &Path, uid: &str, name: &str, attempt: u32) -> Result<(), FsError> {
    fsx::remove_file(&path(pods, uid, name, attempt)).map(drop)
}

fn path(pods: &Path, uid: &str, name: &str, attempt: u32) -> PathBuf {
    pods.join(uid).join("containers").join(name).join(format!("{attempt:08x}"))
}

fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(FILE_LIMIT)))?;
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::pod::tests::pod;

    fn of(policy: &str, containers: usize) -> StaticPod {
        let more: Vec<_> = (1..containers).map(|n| format!("  - {{name: c{n}, image: i}}\n")).collect();
        let more = more.concat();
        pod(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers:\n  \
             - {{name: c, image: i, terminationMessagePolicy: {policy}}}\n{more}"
        ))
    }

    #[test]
    fn each_instance_has_a_file_that_anybody_inside_may_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = prepare(directory.path(), "uid", "c", 10).unwrap();
        assert_eq!(path, directory.path().join("uid/containers/c/0000000a"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o666, 0o750));
        fs::write(&path, "old").unwrap();
        prepare(directory.path(), "uid", "c", 10).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"", "an instance starts without a message");
        discard(directory.path(), "uid", "c", 10).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn the_message_is_what_the_file_or_else_the_log_says() {
        for (policy, file, exit_code, expected) in [
            ("File", "why", 1, "why"),
            ("File", "", 1, ""),
            ("FallbackToLogsOnError", "why", 1, "why"),
            ("FallbackToLogsOnError", "", 1, "from the log\n"),
            ("FallbackToLogsOnError", "", 0, ""),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let pod = of(policy, 1);
            let path = prepare(directory.path(), &pod.uid, "c", 0).unwrap();
            fs::write(path, file).unwrap();
            let message = read(directory.path(), &pod, &pod.containers()[0], 0, exit_code, "from the log\n");
            assert_eq!(message, expected, "{policy} {file} {exit_code}");
        }
    }

    #[test]
    fn messages_have_the_kubelets_limits() {
        for (containers, limit) in [(1, 4096), (3, 4096), (5, 2457)] {
            let directory = tempfile::tempdir().unwrap();
            let pod = of("FallbackToLogsOnError", containers);
            let path = prepare(directory.path(), &pod.uid, "c", 0).unwrap();
            let message = |log: &str| read(directory.path(), &pod, &pod.containers()[0], 0, 1, log);
            assert_eq!(message(&"ä".repeat(5000)).chars().filter(|c| *c == 'ä').count(), 1024);
            fs::write(path, format!("{}{}", "x".repeat(5000), "y".repeat(4000))).unwrap();
            let text = message("");
            assert_eq!((text.len(), &text[..97]), (limit, format!("{}y", "x".repeat(96)).as_str()), "{containers}");
        }
    }
}
