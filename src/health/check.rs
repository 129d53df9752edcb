//! One question to one endpoint, and the answer in one line.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use reqwest::{Certificate, StatusCode, redirect};
use rustls::CertificateError;

use super::target::{Target, TargetError, Trust};
use crate::release::Component;

/// How long one question may take. Longer than the 2 s that kube-apiserver gives its own etcd check
/// (`--etcd-readycheck-timeout`), so that its answer arrives instead of our time-out.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// How much of an answer's body is read, in bytes; a full list of kube-apiserver's checks is about 3 KiB.
const BODY_LIMIT: usize = 16 * 1024;

/// How many failing checks are named in one line.
const NAMED_CHECKS: usize = 3;

/// Why a component is not healthy (yet), in few words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unhealthy {
    /// Nothing was asked yet.
    #[error("not asked yet")]
    NotAsked,
    /// Nobody listens.
    #[error("connection refused")]
    Refused,
    /// Somebody listens or drops packets, but says nothing.
    #[error("no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// The address cannot be reached from here: no route, no such interface, …
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// Somebody answers with a certificate that must not be believed.
    #[error("{0}")]
    Certificate(BadCertificate),
    /// The connection broke before an answer came, or what came is not HTTP.
    #[error("broken answer: {0}")]
    Broken(String),
    /// It answered, but not with 200.
    #[error("{}", status_line(path, *status, failing))]
    Status {
        /// What was asked, e.g. `/readyz`.
        path: String,
        /// HTTP status.
        status: u16,
        /// Names of the failing checks, where the answer lists them (`[-]name failed`).
        failing: Vec<String>,
    },
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadCertificate {
    /// Another authority issued it: somebody else's server, or one that runs with an older PKI.
    NotOurs,
    /// It is one of ours, but no longer, not yet or not for this name valid.
    Refused(String),
}

impl fmt::Display for BadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs => f.write_str("certificate is not from our CA"),
            Self::Refused(why) => write!(f, "certificate refused: {why}"),
        }
    }
}

fn status_line(path: &str, status: u16, failing: &[String]) -> String {
    let names = match failing.get(..NAMED_CHECKS) {
        Some(first) if failing.len() > NAMED_CHECKS => {
            format!("{} and {} more", first.join(", "), failing.len() - NAMED_CHECKS)
        }
        _ => failing.join(", "),
    };
    if names.is_empty() { format!("{path} {status}") } else { format!("{path} {status}: {names}") }
}

/// A target with its client, which keeps its connection between questions.
#[derive(Debug)]
pub struct Checker {
    target: Target,
    client: reqwest::Client,
}

impl Checker {
    /// Prepares the client; asks nothing.
    pub fn new(target: Target) -> Result<Self, TargetError> {
        let client =
            client(&target.trust).map_err(|source| TargetError::Client { component: target.component, source })?;
        Ok(Self { target, client })
    }

    /// Who is asked.
    pub fn component(&self) -> Component {
        self.target.component
    }

    /// The version that an API server says it is: `gitVersion` of its `/version`.
    pub async fn version(&self) -> Result<String, Unhealthy> {
        let mut url = self.target.url.clone();
        url.set_path("/version");
        url.set_query(None);
        let answer = self.client.get(url).send().await.map_err(|e| explain(&e))?;
        let status = answer.status().as_u16();
        let body = read(answer).await?;
        let said: Option<serde_json::Value> = serde_json::from_str(&body).ok();
        match said.as_ref().and_then(|said| said["gitVersion"].as_str()) {
            Some(version) => Ok(version.to_owned()),
            None => Err(Unhealthy::Status { path: "/version".to_owned(), status, failing: Vec::new() }),
        }
    }

    /// Asks once. Healthy is status 200 (Kubernetes, etcd), and nothing else.
    pub async fn check(&self) -> Result<(), Unhealthy> {
        let answer = self.client.get(self.target.url.clone()).send().await.map_err(|e| explain(&e))?;
        let status = answer.status();
        // The body is read in any case: it ends the exchange, so that the connection can be used again.
        let body = read(answer).await?;
        if status == StatusCode::OK {
            return Ok(());
        }
        Err(Unhealthy::Status {
            path: self.target.url.path().to_owned(),
            status: status.as_u16(),
            failing: failing_checks(&body),
        })
    }
}

/// A client that believes and is whom `trust` says, without proxies and redirects. A question may take
/// [`REQUEST_TIMEOUT`] unless it says otherwise.
pub(crate) fn client(trust: &Trust) -> reqwest::Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .pool_max_idle_per_host(1)
        .timeout(REQUEST_TIMEOUT);
    match trust {
        // Where there is no TLS, a host without certificate authorities must do.
        Trust::Plain => builder.tls_certs_only([]).build(),
        Trust::Unverified => builder.tls_danger_accept_invalid_certs(true).build(),
        Trust::Authority { ca, identity } => {
            let builder = builder.tls_certs_only(Certificate::from_pem_bundle(ca.as_bytes())?);
            match identity {
                None => builder.build(),
                Some(identity) => builder.identity(reqwest::Identity::from_pem(identity.pem().as_bytes())?).build(),
            }
        }
    }
}

async fn read(mut answer: reqwest::Response) -> Result<String, Unhealthy> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| explain(&e))? {
        body.extend_from_slice(&chunk);
        if body.len() >= BODY_LIMIT {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// The `[-]name failed: …` lines of a health answer (k8s.io/apiserver `healthz`, etcd `health.go`).
fn failing_checks(body: &str) -> Vec<String> {
    body.lines()
        .filter_map(|line| line.strip_prefix("[-]"))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Finds what is at the bottom of reqwest's chain of causes.
pub(crate) fn explain(error: &reqwest::Error) -> Unhealthy {
    if error.is_timeout() {
        return Unhealthy::NoAnswer(REQUEST_TIMEOUT);
    }
    let mut last = error.to_string();
    for cause in std::iter::successors(error.source(), |cause| below(*cause)) {
        if let Some(rustls::Error::InvalidCertificate(why)) = cause.downcast_ref() {
            return Unhealthy::Certificate(bad_certificate(why));
        }
        match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => return Unhealthy::Refused,
            Some(io::ErrorKind::TimedOut) => return Unhealthy::NoAnswer(REQUEST_TIMEOUT),
            _ => {}
        }
        last = cause.to_string();
    }
    if error.is_connect() { Unhealthy::Unreachable(last) } else { Unhealthy::Broken(last) }
}

/// The next cause down. An `io::Error` hides the error it wraps from `source`, which names that one's cause instead.
fn below<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

fn bad_certificate(why: &CertificateError) -> BadCertificate {
    match why {
        // A CA of the same name with another key is found first and fails to verify.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => BadCertificate::NotOurs,
        other => BadCertificate::Refused(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::target::Identity;
    use crate::health::testing::{Authority, Server, install_provider};

    fn checker(server: &Server, path: &str, trust: Trust) -> Checker {
        install_provider();
        let url = server.url(path);
        Checker::new(Target { component: Component::KubeApiserver, url, trust }).unwrap()
    }

    #[tokio::test]
    async fn only_200_is_healthy() {
        const READYZ: &str = "[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\n\
            [-]poststarthook/rbac/bootstrap-roles failed: reason withheld\nreadyz check failed\n";
        let many = [0, 1, 2, 3, 4, 5].map(|n| format!("[-]check-{n} failed: reason withheld\n")).concat();
        for (status, body, expected) in [
            ("200 OK", "ok", None),
            ("204 No Content", "", Some("/readyz 204")),
            ("302 Found\r\nLocation: /elsewhere", "", Some("/readyz 302")),
            ("403 Forbidden", r#"{"kind":"Status","code":403}"#, Some("/readyz 403")),
            ("500 Internal Server Error", READYZ, Some("/readyz 500: etcd, poststarthook/rbac/bootstrap-roles")),
            (
                "503 Service Unavailable",
                "[+]data_corruption ok\n[-]linearizable_read failed: context deadline exceeded\n",
                Some("/readyz 503: linearizable_read"),
            ),
            ("500 Error", &many, Some("/readyz 500: check-0, check-1, check-2 and 3 more")),
        ] {
            let server = Server::plain(status, body);
            let answer = checker(&server, "/readyz?verbose", Trust::Plain).check().await;
            assert_eq!(answer.err().map(|e| e.to_string()).as_deref(), expected, "{status}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_kept_between_questions() {
        let server = Server::plain("500 Error", "[-]etcd failed\n");
        let checker = checker(&server, "/readyz", Trust::Plain);
        for _ in 0..3 {
            checker.check().await.unwrap_err();
        }
        assert_eq!(server.connections(), 1);
    }

    #[tokio::test]
    async fn nobody_there_and_nonsense_are_told_apart() {
        let gone = Server::plain("200 OK", "").stopped();
        let refused = checker(&gone, "/", Trust::Plain).check().await;
        assert_eq!(refused, Err(Unhealthy::Refused));

        let tls_only = Authority::new("ours").server("127.0.0.1");
        let broken = checker(&tls_only.over_http(), "/", Trust::Plain).check().await;
        assert!(matches!(broken, Err(Unhealthy::Broken(_))), "{broken:?}");
    }

    #[tokio::test]
    async fn the_certificate_decides_whom_to_believe() {
        let ours = Authority::new("kubernetes");
        let namesake = Authority::new("kubernetes");
        let by = |ca: &Authority| Trust::Authority { ca: ca.pem(), identity: None };
        let not_ours = Some("certificate is not from our CA");

        let server = ours.server("127.0.0.1");
        for (trust, expected) in [(by(&ours), None), (by(&namesake), not_ours), (Trust::Unverified, None)] {
            let answer = checker(&server, "/readyz", trust).check().await;
            assert_eq!(answer.err().map(|e| e.to_string()).as_deref(), expected);
        }

        let elsewhere = ours.server("192.0.2.7");
        let answer = checker(&elsewhere, "/readyz", by(&ours)).check().await.unwrap_err().to_string();
        assert!(answer.starts_with("certificate refused: ") && answer.contains("192.0.2.7"), "{answer}");

        let early = ours.server_not_before("127.0.0.1", rcgen::date_time_ymd(2090, 1, 1));
        let answer = checker(&early, "/readyz", by(&ours)).check().await.unwrap_err().to_string();
        assert!(answer.contains("not valid yet"), "{answer}");
    }

    #[tokio::test]
    async fn our_identity_reaches_the_server() {
        let ours = Authority::new("kubernetes");
        let server = ours.server_for_clients_of(&ours, "127.0.0.1");
        let (certificate, key) = ours.issue("127.0.0.1", rcgen::date_time_ymd(2020, 1, 1));
        let identity = Some(Identity::new(&certificate, &key));
        let known = checker(&server, "/readyz", Trust::Authority { ca: ours.pem(), identity });
        assert_eq!(known.check().await, Ok(()));
        let anonymous = checker(&server, "/readyz", Trust::Authority { ca: ours.pem(), identity: None });
        assert!(anonymous.check().await.is_err());
    }

    #[test]
    fn unusable_credentials_are_found_before_asking() {
        install_provider();
        let url = "https://127.0.0.1:6443/readyz".parse().unwrap();
        let identity = Some(Identity::new("no", "pem"));
        let trust = Trust::Authority { ca: Authority::new("ours").pem(), identity };
        let error = Checker::new(Target { component: Component::KubeApiserver, url, trust }).unwrap_err();
        assert_eq!(error.to_string(), "cannot build the client for kube-apiserver");
    }
}
