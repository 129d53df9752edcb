//! The protocol of `kubectl exec` within a WebSocket: `v5.channel.k8s.io`, and `v4.channel.k8s.io`, which lacks the end of
//! stdin. Pure.
//!
//! Each binary message begins with a byte that names a channel, as apimachinery's `remotecommand` and `wsstream` have
//! it. What ends the command is told on the error channel, as a `Status`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};
use serde::Deserialize;

/// Follows the channel that is closed.
const CLOSE: u8 = 255;
/// Number of channels.
const CHANNELS: u8 = 5;

/// What is in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    Error = 3,
    Resize = 4,
}

/// Versions of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V5,
}

impl Version {
    /// Its name as a subprotocol.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4.channel.k8s.io",
            Self::V5 => "v5.channel.k8s.io",
        }
    }

    /// The first of those that a client offers (`Sec-WebSocket-Protocol`) and that is known here.
    pub(super) fn negotiate(offered: &str) -> Option<Self> {
        offered.split(',').find_map(|name| [Self::V5, Self::V4].into_iter().find(|one| one.name() == name.trim()))
    }

    /// What a client's message means.
    pub(super) fn read(self, message: &[u8]) -> Result<Input<'_>, ProtocolError> {
        Ok(match message {
            [CLOSE, rest @ ..] if self == Self::V5 => match rest {
                [channel] if *channel == Channel::Stdin as u8 => Input::StdinEnds,
                [channel] if *channel < CHANNELS => Input::Nothing,
                _ => return Err(ProtocolError),
            },
            [channel, data @ ..] if *channel == Channel::Stdin as u8 && !data.is_empty() => Input::Stdin(data),
            [channel, size @ ..] if *channel == Channel::Resize as u8 => match serde_json::from_slice(size) {
                Ok(Size { width, height }) if width > 0 && height > 0 => Input::Resize { width, height },
                _ => Input::Nothing,
            },
            _ => Input::Nothing,
        })
    }
}

/// The client does not keep to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a close signal that names no channel")]
pub(super) struct ProtocolError;

/// What a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input<'a> {
    Stdin(&'a [u8]),
    StdinEnds,
    /// The terminal has another size: columns and lines.
    Resize {
        width: u16,
        height: u16,
    },
    /// Nothing that concerns the command.
    Nothing,
}

/// client-go: `TerminalSize`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// A message for the client.
pub(super) fn message(channel: Channel, data: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(1 + data.len());
    message.push(channel as u8);
    message.extend_from_slice(data);
    message
}

/// How a command ended, in the words of the kubelet's streaming server (`ServeExec`).
pub(super) fn status(command: &[String], ended: Result<i64, String>) -> Status {
    let failure = |reason: &str, message: String, cause: StatusCause| Status {
        status: Some("Failure".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message),
        details: Some(StatusDetails { causes: Some(vec![cause]), ..StatusDetails::default() }),
        ..Status::default()
    };
    match ended {
        Ok(0) => Status { status: Some("Success".to_owned()), ..Status::default() },
        Ok(code) => {
            let command = command.join(" ");
            let message = format!(
                "command terminated with non-zero exit code: error executing command [{command}], exit code {code}"
            );
            let cause = StatusCause {
                reason: Some("ExitCode".to_owned()),
                message: Some(code.to_string()),
                ..StatusCause::default()
            };
            failure("NonZeroExitCode", message, cause)
        }
        Err(error) => {
            let error = format!("error executing command in container: {error}");
            let cause = StatusCause { message: Some(error.clone()), ..StatusCause::default() };
            let message = format!("Internal error occurred: {error}");
            Status { code: Some(500), ..failure("InternalError", message, cause) }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_known_version_is_taken() {
        for (offered, expected) in [
            ("v5.channel.k8s.io", Some(Version::V5)),
            ("v4.channel.k8s.io, v5.channel.k8s.io", Some(Version::V4)),
            ("channel.k8s.io,v5.channel.k8s.io", Some(Version::V5)),
            ("channel.k8s.io,base64.channel.k8s.io", None),
            ("SPDY/3.1+portforward.k8s.io", None),
            ("", None),
        ] {
            assert_eq!(Version::negotiate(offered), expected, "{offered}");
        }
    }

    #[test]
    fn messages_are_read() {
        use Version::{V4, V5};
        for (version, message, expected) in [
            (V5, &b""[..], Ok(Input::Nothing)),
            (V5, b"\x00", Ok(Input::Nothing)),
            (V5, b"\x00ls\n", Ok(Input::Stdin(b"ls\n"))),
            (V4, b"\x00\xff\x00", Ok(Input::Stdin(b"\xff\x00"))),
            (V5, b"\xff\x00", Ok(Input::StdinEnds)),
            (V5, b"\xff\x04", Ok(Input::Nothing)),
            (V5, b"\xff\x05", Err(ProtocolError)),
            (V5, b"\xff", Err(ProtocolError)),
            (V5, b"\xff\x00\x00", Err(ProtocolError)),
            (V4, b"\xff\x00", Ok(Input::Nothing)),
            (V5, br#"{"Width":80,"Height":25}"#, Ok(Input::Nothing)),
            (V5, b"\x04{\"Width\":80,\"Height\":25}\n", Ok(Input::Resize { width: 80, height: 25 })),
            (V5, b"\x04{\"Width\":0,\"Height\":0}", Ok(Input::Nothing)),
            (V5, b"\x04{\"Width\":80000,\"Height\":25}", Ok(Input::Nothing)),
            (V5, b"\x04nonsense", Ok(Input::Nothing)),
            (V5, b"\x01what", Ok(Input::Nothing)),
            (V5, b"\x09what", Ok(Input::Nothing)),
        ] {
            assert_eq!(version.read(message), expected, "{version:?} {message:?}");
        }
        assert_eq!(message(Channel::Stderr, b"no"), b"\x02no");
    }

    #[test]
    fn the_end_is_told_as_the_kubelet_does() {
        let told = |ended| {
            let mut value = serde_json::to_value(status(&["sh".to_owned(), "-c".to_owned()], ended)).unwrap();
            for field in ["apiVersion", "kind", "metadata"] {
                value.as_object_mut().unwrap().remove(field);
            }
            value
        };
        assert_eq!(told(Ok(0)), json!({ "status": "Success" }));
        let message = "command terminated with non-zero exit code: error executing command [sh -c], exit code 3";
        let expected = json!({
            "status": "Failure", "reason": "NonZeroExitCode", "message": message,
            "details": { "causes": [{ "reason": "ExitCode", "message": "3" }] },
        });
        assert_eq!(told(Ok(3)), expected);
        let error = "error executing command in container: gone";
        let expected = json!({
            "status": "Failure", "reason": "InternalError", "message": format!("Internal error occurred: {error}"),
            "details": { "causes": [{ "message": error }] }, "code": 500,
        });
        assert_eq!(told(Err("gone".to_owned())), expected);
    }
}
