//! A connection to a command that runs: both directions, as raw as the engine has them.
//!
//! The client of everything else guesses from the first byte of each part whether a terminal wrote it, and keeps what
//! it takes for a frame in memory until it is whole. Here nothing is guessed and a part is 16 KiB at most.

use bollard::ClientVersion;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadHalf};
use tokio::net::{TcpStream, UnixStream};

use super::failure::Failure;
use crate::runtime::{Output, Result, RuntimeError};

/// Bytes of a part at most.
const PART: usize = 16 << 10;
/// Bytes before each frame: which stream, three zeros, and how many bytes follow.
const HEADER: usize = 8;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a session consists of.
type Streams = (BoxStream<'static, Result<Output>>, Box<dyn AsyncWrite + Send + Unpin>);

/// Starts the command `exec`, which is prepared, and connects with it.
pub(super) async fn open(
    host: &str,
    version: ClientVersion,
    exec: &str,
    tty: bool,
) -> std::result::Result<Streams, Failure> {
    let silent = |error: &dyn std::error::Error| Failure::Silent(format!("{host}: {error}"));
    let stream: Box<dyn Stream> = if let Some(path) = host.strip_prefix("unix://") {
        Box::new(UnixStream::connect(path).await.map_err(|error| silent(&error))?)
    } else {
        let address = host.split_once("://").map_or(host, |(_, address)| address).trim_end_matches('/');
        Box::new(TcpStream::connect(address).await.map_err(|error| silent(&error))?)
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| silent(&error))?;
    // Ends when the session does.
    tokio::spawn(connection.with_upgrades());
    let ClientVersion { major_version, minor_version } = version;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("/v{major_version}.{minor_version}/exec/{exec}/start"))
        .header(header::HOST, "docker")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "tcp")
        .body(serde_json::json!({ "Detach": false, "Tty": tty }).to_string())
        .map_err(|error| Failure::Words(error.to_string()))?;
    let mut answer = sender.send_request(request).await.map_err(|error| silent(&error))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Failure::Status(
            answer.status().as_u16(),
            format!("the command was not started: {}", answer.status()),
        ));
    }
    let upgraded = hyper::upgrade::on(&mut answer).await.map_err(|error| silent(&error))?;
    let (output, input) = tokio::io::split(TokioIo::new(upgraded));
    let parts = Parts { output, tty, stream: 0, left: 0 };
    let output = stream::unfold(Some(parts), async |parts| {
        let mut parts = parts?;
        match parts.next().await {
            Ok(Some(part)) => Some((Ok(part), Some(parts))),
            Ok(None) => None,
            Err(error) => Some((Err(RuntimeError::Unreachable(error.to_string())), None)),
        }
    });
    Ok((output.boxed(), Box::new(input)))
}

/// Takes apart what the engine sends.
struct Parts<T> {
    output: ReadHalf<T>,
    /// There are no frames.
    tty: bool,
    /// That of the present frame, and how much of it is still to come.
    stream: u8,
    left: usize,
}

impl<T: AsyncRead + AsyncWrite> Parts<T> {
    async fn next(&mut self) -> std::io::Result<Option<Output>> {
        while !self.tty && self.left == 0 {
            let mut head = [0; HEADER];
            // Nothing comes after the last frame.
            if self.output.read(&mut head[..1]).await? == 0 {
                return Ok(None);
            }
            self.output.read_exact(&mut head[1..]).await?;
            self.stream = head[0];
            self.left = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        }
        let mut part = vec![0; if self.tty { PART } else { self.left.min(PART) }];
        let length = self.output.read(&mut part).await?;
        part.truncate(length);
        if length == 0 {
            return if self.tty { Ok(None) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) };
        }
        self.left = self.left.saturating_sub(length);
        Ok(Some(if self.stream == 2 { Output::Stderr(part) } else { Output::Stdout(part) }))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    async fn read(tty: bool, sent: &[&[u8]]) -> (Vec<Output>, bool) {
        let (mut engine, ours) = tokio::io::duplex(64);
        let sent: Vec<_> = sent.iter().map(|bytes| bytes.to_vec()).collect();
        tokio::spawn(async move {
            for bytes in sent {
                engine.write_all(&bytes).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let mut parts = Parts { output: tokio::io::split(ours).0, tty, stream: 0, left: 0 };
        let mut found: Vec<Output> = Vec::new();
        loop {
            match (parts.next().await, found.last_mut()) {
                (Ok(None), _) => return (found, true),
                (Err(_), _) => return (found, false),
                // How it is cut is nobody's concern.
                (Ok(Some(Output::Stdout(part))), Some(Output::Stdout(before)))
                | (Ok(Some(Output::Stderr(part))), Some(Output::Stderr(before))) => before.extend(part),
                (Ok(Some(part)), _) => found.push(part),
            }
        }
    }

    #[tokio::test]
    async fn frames_are_taken_apart_and_a_terminal_is_left_alone() {
        let out = |text: &[u8]| Output::Stdout(text.to_vec());
        let err = |text: &[u8]| Output::Stderr(text.to_vec());
        let long = vec![b'x'; 300];
        let frames: [&[u8]; 5] = [
            b"\x01\0\0\0\0\0\0\x03one\x02\0\0",
            b"\0\0\0\0\x02no",
            b"\x01\0\0\0\0\0\0\0",
            b"\x01\0\0\0\0\0\x01\x2c",
            &long,
        ];
        let (found, whole) = read(false, &frames).await;
        assert_eq!((found, whole), (vec![out(b"one"), err(b"no"), out(&long)], true));
        let (found, whole) = read(false, &[b"\x01\0\0\0\0\0\0\x09one"]).await;
        assert_eq!((found, whole), (vec![out(b"one")], false), "it breaks off");
        assert_eq!(read(false, &[b"\x01\0"]).await, (vec![], false));
        let (found, whole) = read(true, &[b"\x01\0\0\0", b"$ "]).await;
        assert_eq!((found, whole), (vec![out(b"\x01\0\0\0$ ")], true));
    }
}
