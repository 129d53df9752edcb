//! Servers in the test's own process, for probes to ask.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, Stream};

/// A server on 127.0.0.1.
pub(crate) struct Web {
    /// Its port.
    pub(crate) port: u16,
    answered: Arc<AtomicUsize>,
}

impl Web {
    /// Answers each request with the status line and headers, and after an empty line the body, that `answer` gives
    /// for its number, from zero.
    pub(crate) fn http(answer: impl Fn(usize) -> String + Send + 'static) -> Self {
        Self::serve(answer, None)
    }

    /// The same over TLS, with a certificate that nobody else knows.
    pub(crate) fn https(answer: impl Fn(usize) -> String + Send + 'static) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let own = rcgen::generate_simple_self_signed(vec!["nobody.example".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key);
        Self::serve(answer, Some(Arc::new(config.unwrap())))
    }

    /// How many requests it has answered.
    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    fn serve(answer: impl Fn(usize) -> String + Send + 'static, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answered = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&answered);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let text = answer(count.load(Ordering::SeqCst));
                let done = match &tls {
                    None => respond(&mut stream, &text),
                    Some(config) => {
                        let mut connection = ServerConnection::new(Arc::clone(config)).unwrap();
                        let done = respond(&mut Stream::new(&mut connection, &mut stream), &text);
                        connection.send_close_notify();
                        let _ = connection.complete_io(&mut stream);
                        done
                    }
                };
                // Who asks may go away before it has its answer.
                if done.is_ok() {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self { port, answered }
    }
}

fn respond(stream: &mut (impl Read + Write), answer: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(&mut *stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    write!(stream, "HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())?;
    stream.flush()
}
