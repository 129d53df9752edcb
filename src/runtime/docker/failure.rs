//! What came back from the engine when it was not what we asked for.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::time::Duration;

use bollard::errors::Error;

use crate::runtime::RuntimeError;

/// Nobody has made the socket, or who had made it has ended.
const NO_SOCKET: &str = "there is no such socket";

/// A failed request, before the operation that made it gives it a meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// No answer: no socket, no permission, connection lost, time over.
    Silent(String),
    /// The engine answered with an HTTP error.
    Status(u16, String),
    /// The engine answered with something we cannot use, or reported an error within a stream.
    Words(String),
}

impl Failure {
    /// Sorts an error of the client; `host` is the address it spoke to.
    pub(super) fn new(host: &str, error: &Error) -> Self {
        match error {
            Error::DockerResponseServerError { status_code, message } => Self::Status(*status_code, message.clone()),
            Error::DockerStreamError { error } => Self::Words(error.clone()),
            Error::SocketNotFoundError(_) => Self::Silent(format!("{host}: {NO_SOCKET}")),
            Error::RequestTimeoutError => Self::Silent(format!("{host}: no answer in time")),
            Error::IOError { .. } | Error::HyperLegacyError { .. } | Error::HyperResponseError { .. } => {
                Self::Silent(format!("{host}: {}", causes(error)))
            }
            other => Self::Words(causes(other)),
        }
    }

    /// Time was over before the engine answered.
    pub(super) fn late(host: &str, limit: Duration) -> Self {
        Self::Silent(format!("{host}: no answer within {} s", limit.as_secs_f32()))
    }

    /// Whether the engine says that the thing asked for does not exist.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Status(404, _))
    }

    /// Whether the thing is in a state, or has a name, that does not allow this.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Status(409, _))
    }

    /// Whether it is about the text of an image reference.
    pub(super) fn is_invalid_reference(&self) -> bool {
        matches!(self, Self::Status(400 | 500, words) if words.contains("invalid reference format"))
    }

    /// The engine's words.
    pub(super) fn words(self) -> String {
        let (Self::Silent(words) | Self::Status(_, words) | Self::Words(words)) = self;
        words
    }

    /// The error of an operation ("create container `x`") for which this failure has no better meaning.
    pub(super) fn of(self, operation: impl Into<String>) -> RuntimeError {
        match self {
            Self::Silent(words) => RuntimeError::Unreachable(words),
            Self::Status(_, reason) | Self::Words(reason) => {
                RuntimeError::Refused { operation: operation.into(), reason }
            }
        }
    }
}

/// The innermost causes of the HTTP client's errors say what happened; the outer ones only that something did.
fn causes(error: &Error) -> String {
    // A connection that fails is told by the system in two words ("connection refused").
    let mut cause = error.source();
    while let Some(inner) = cause {
        match inner.downcast_ref::<std::io::Error>() {
            Some(io) if io.raw_os_error().is_some() => return words_of(io.kind()),
            _ => cause = inner.source(),
        }
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.ends_with(&words) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {words}");
        }
        cause = inner.source();
    }
    text
}

/// A socket that went away with its engine is the same as one that was never there.
fn words_of(kind: ErrorKind) -> String {
    match kind {
        ErrorKind::NotFound => NO_SOCKET.to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_went_away_is_no_such_socket() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let docker = bollard::Docker::connect_with_unix(socket.to_str().unwrap(), 5, bollard::API_DEFAULT_VERSION);
        let docker = docker.unwrap();
        drop(listener);
        for (expected, error) in [
            ("unix:///x: connection refused", docker.ping().await.unwrap_err()),
            ("unix:///x: there is no such socket", {
                std::fs::remove_file(&socket).unwrap();
                docker.ping().await.unwrap_err()
            }),
        ] {
            assert_eq!(Failure::new("unix:///x", &error), Failure::Silent(expected.to_owned()));
        }
    }

    #[test]
    fn silence_is_unreachable_and_the_rest_is_a_refusal() {
        let io = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let cases = [
            (Error::IOError { err: io }, true, "unix:///x: permission denied"),
            (Error::SocketNotFoundError("/x".to_owned()), true, "unix:///x: there is no such socket"),
            (Error::RequestTimeoutError, true, "unix:///x: no answer in time"),
            (Error::DockerResponseServerError { status_code: 500, message: "no".to_owned() }, false, "no"),
            (Error::DockerStreamError { error: "denied".to_owned() }, false, "denied"),
        ];
        for (error, unreachable, words) in cases {
            let failure = Failure::new("unix:///x", &error);
            assert_eq!(failure.clone().words(), words);
            assert_eq!(failure.of("do it").is_unreachable(), unreachable, "{words}");
        }
    }
}
