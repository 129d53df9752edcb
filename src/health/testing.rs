//! A small HTTP(S) server on loopback and the certificates it needs, for tests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use reqwest::Url;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// What `main` does once.
pub(crate) fn install_provider() {
    // The second test of a process finds it installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// A certificate authority.
pub(crate) struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Certificate and key, PEM.
    pub(crate) fn issue(&self, address: &str, not_before: time::OffsetDateTime) -> (String, String) {
        let mut params = CertificateParams::default();
        params.not_before = not_before;
        params.subject_alt_names = vec![SanType::IpAddress(address.parse().unwrap())];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    pub(crate) fn server(&self, address: &str) -> Server {
        self.server_not_before(address, rcgen::date_time_ymd(2020, 1, 1))
    }

    pub(crate) fn server_not_before(&self, address: &str, not_before: time::OffsetDateTime) -> Server {
        install_provider();
        let (certificate, key) = self.issue(address, not_before);
        Server::tls(ServerConfig::builder().with_no_client_auth(), &certificate, &key)
    }

    /// A server that only talks to clients with a certificate of `clients`.
    pub(crate) fn server_for_clients_of(&self, clients: &Self, address: &str) -> Server {
        install_provider();
        let (certificate, key) = self.issue(address, rcgen::date_time_ymd(2020, 1, 1));
        let mut roots = RootCertStore::empty();
        roots.add(clients.certificate.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        Server::tls(ServerConfig::builder().with_client_cert_verifier(verifier), &certificate, &key)
    }
}

/// A server that gives the same answer to every request until it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    scheme: &'static str,
    connections: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `status` is the rest of the status line, and may go on with header lines.
    pub(crate) fn plain(status: &str, body: &str) -> Self {
        Self::start("http", answer(status, body), None)
    }

    fn tls(
        builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
        certificate: &str,
        key: &str,
    ) -> Self {
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = builder.with_single_cert(chain, key).unwrap();
        Self::start("https", answer("200 OK", "ok"), Some(Arc::new(config)))
    }

    fn start(scheme: &'static str, answer: String, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (counter, ended) = (Arc::clone(&connections), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                counter.fetch_add(1, Ordering::SeqCst);
                let (answer, tls) = (answer.clone(), tls.clone());
                thread::spawn(move || match tls {
                    None => serve(stream, &answer),
                    Some(config) => serve(StreamOwned::new(ServerConnection::new(config).unwrap(), stream), &answer),
                });
            }
        });
        Self { address, scheme, connections, stop, thread: Some(thread) }
    }

    pub(crate) fn url(&self, path: &str) -> Url {
        format!("{}://{}{path}", self.scheme, self.address).parse().unwrap()
    }

    /// How many connections were accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The same server, asked in the wrong language.
    pub(crate) fn over_http(mut self) -> Self {
        self.scheme = "http";
        self
    }

    /// No longer listening; the address stays known.
    pub(crate) fn stopped(mut self) -> Self {
        self.shut_down();
        self
    }

    fn shut_down(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Answers requests without bodies until the peer goes away.
fn serve(stream: impl Read + Write, answer: &str) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).is_ok_and(|read| read > 0) {
        if line == "\r\n" && stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
        line.clear();
    }
}
