//! Static pods from a URL.
//!
//! # Guarantees
//! - What is asked and accepted is the kubelet's rule: GET within 10 s, status 200, at most 10 MiB, a Pod or a
//!   `PodList` of which either every pod is good or none counts; an empty answer stops all pods.
//! - Anything else keeps the pods of the last good answer, also over a restart of the agent.
//! - Credentials of the URL and values of headers are in no log, no status and no `Debug`.
//!
//! Unlike a kubelet's, a pod has one UID whether it is answered alone or in a list, and renewing credentials or the
//! query of the URL restarts nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, ClientBuilder, StatusCode, Url, redirect};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::memory::recall;
use super::{Published, Taken};
use crate::agent::pod::{Origin, PodError, SourceKind, StaticPod};
use crate::agent::status::Rejection;
use crate::clock::Clock;
use crate::error::root_cause;
use crate::yaml;

/// How long one answer may take (kubelet: the time-out of its manifest client).
const TIMEOUT: Duration = Duration::from_secs(10);
/// How soon a URL that has never answered is asked again, at first.
const RETRY: Duration = Duration::from_secs(1);
/// Redirects that are followed (Go's HTTP client).
const REDIRECTS: usize = 10;

/// A URL and what is sent with the question.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    url: Url,
    headers: HeaderMap,
    location: String,
}

/// Without secrets.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.keys().collect();
        f.debug_struct("Endpoint").field("url", &self.location).field("headers", &headers).finish()
    }
}

/// A URL or a header that cannot be used. Says nothing of what may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is no URL.
    #[error("is no URL: {0}")]
    Url(String),
    /// Nothing but HTTP is spoken here.
    #[error("has the scheme `{0}`; expected http or https")]
    Scheme(String),
    /// The name of a header has characters that HTTP does not allow there.
    #[error("has the header `{0}`, which is no name of a header")]
    HeaderName(String),
    /// The value of a header has characters that HTTP does not allow there.
    #[error("has a value of the header `{0}` that HTTP does not allow")]
    HeaderValue(String),
}

impl Endpoint {
    /// The endpoint of `url`, asked with `headers`.
    pub fn new<'a>(url: &str, headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, EndpointError> {
        let url = Url::parse(url).map_err(|error| EndpointError::Url(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(EndpointError::Scheme(url.scheme().to_owned()));
        }
        let mut sent = HeaderMap::new();
        for (name, value) in headers {
            let header = HeaderName::try_from(name).map_err(|_| EndpointError::HeaderName(name.to_owned()))?;
            let mut value = HeaderValue::try_from(value).map_err(|_| EndpointError::HeaderValue(name.to_owned()))?;
            value.set_sensitive(true);
            sent.append(header, value);
        }
        let location = location(&url);
        Ok(Self { url, headers: sent, location })
    }

    /// The URL without credentials, query and fragment.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Whether somebody else who gets the question learns a secret.
    fn has_secrets(&self) -> bool {
        !self.headers.is_empty() || !self.url.username().is_empty() || self.url.password().is_some()
    }
}

fn location(url: &Url) -> String {
    let mut shown = url.clone();
    // These fail for URLs without a host alone, which have no credentials either.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown.set_fragment(None);
    shown.into()
}

/// Settings of a URL source.
#[derive(Debug, Clone)]
pub struct HttpSource {
    /// What is asked.
    pub endpoint: Endpoint,
    /// Name of the node.
    pub node: String,
    /// Where the agent keeps the directories of its pods.
    pub pods: PathBuf,
    /// How often it is asked (kubelet: `httpCheckFrequency`, 20 s).
    pub period: Duration,
}

impl HttpSource {
    /// What is known of it before it has answered.
    pub fn unread(&self) -> Published {
        Published::unread(SourceKind::Http, self.endpoint.location.clone())
    }

    /// Publishes complete sets to `publish` until its receiver is gone.
    pub async fn run(self, clock: Clock, publish: mpsc::UnboundedSender<Published>) {
        let period = self.period;
        let mut retry = RETRY.min(period);
        let mut reader = Reader::new(self);
        let client = client(&reader.source.endpoint);
        loop {
            let answer = match &client {
                Ok(client) => fetch(client, &reader.source.endpoint).await,
                Err(reason) => Err(reason.clone()),
            };
            let published = reader.take(answer, clock.now());
            let complete = published.complete;
            if publish.send(published).is_err() {
                return;
            }
            sleep(if complete { period } else { retry }).await;
            retry = retry.saturating_mul(2).min(period);
        }
    }
}

fn client(endpoint: &Endpoint) -> Result<Client, String> {
    // Taken already when main has done so; either way there is one afterwards.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let secret = endpoint.has_secrets();
    let policy = move || {
        redirect::Policy::custom(move |attempt| {
            let first = attempt.previous().first().map(Url::origin);
            if attempt.previous().len() >= REDIRECTS {
                attempt.error("too many redirects")
            } else if secret && first != Some(attempt.url().origin()) {
                attempt.error("a redirect to another server, which must not see the credentials")
            } else {
                attempt.follow()
            }
        })
    };
    let builder = || -> ClientBuilder {
        Client::builder()
            .timeout(TIMEOUT)
            .user_agent(concat!("plinth/", env!("CARGO_PKG_VERSION")))
            .pool_max_idle_per_host(0)
            .referer(false)
            .redirect(policy())
    };
    // A host without any certificate authority can still ask in plain text.
    builder().build().or_else(|_| builder().tls_certs_only([]).build()).map_err(|error| reason(&error))
}

/// Asks once. The error is the reason in words.
async fn fetch(client: &Client, endpoint: &Endpoint) -> Result<Vec<u8>, String> {
    let limit = yaml::MAX_MANIFEST_BYTES;
    let request = client.get(endpoint.url.clone()).headers(endpoint.headers.clone());
    let mut answer = request.send().await.map_err(|error| reason(&error))?;
    if answer.status() != StatusCode::OK {
        return Err(format!("answers {}", answer.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| reason(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(format!("answers more than {} MiB", limit >> 20));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The innermost cause says most; the outer ones name the URL, with all that is in it.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("does not answer within {} s", TIMEOUT.as_secs());
    }
    let cause = root_cause(error);
    let cause = match cause.downcast_ref::<reqwest::Error>() {
        Some(_) => "the request failed".to_owned(),
        None => cause.to_string(),
    };
    if error.is_connect() { format!("cannot be reached: {cause}") } else { cause }
}

/// Compares answers and remembers what was good.
struct Reader {
    source: HttpSource,
    /// The answer last read, and what is wrong with it.
    answer: Option<(Vec<u8>, Option<String>)>,
    pods: Vec<Arc<StaticPod>>,
    rejected: Vec<Rejection>,
    complete: bool,
}

impl Reader {
    fn new(source: HttpSource) -> Self {
        Self { source, answer: None, pods: Vec::new(), rejected: Vec::new(), complete: false }
    }

    fn take(&mut self, answer: Result<Vec<u8>, String>, now: jiff::Timestamp) -> Published {
        let problem = match answer {
            Ok(body) => self.read(body),
            Err(reason) => Some(reason),
        };
        if !self.complete && self.pods.is_empty() {
            self.recall();
        }
        let goes_on = if self.pods.is_empty() { "" } else { "; its pods go on" };
        Published {
            pods: self.pods.clone(),
            rejected: self.rejected.clone(),
            read_at: problem.is_none().then_some(now),
            problem: problem.map(|reason| format!("{reason}{goes_on}")),
            complete: self.complete,
            ..self.source.unread()
        }
    }

    /// Reads an answer, unless it is the last one again; returns what is wrong with it.
    fn read(&mut self, body: Vec<u8>) -> Option<String> {
        if let Some((known, problem)) = &self.answer
            && *known == body
        {
            return problem.clone();
        }
        let problem = match self.parse(&body) {
            Ok(pods) => {
                self.accept(pods);
                None
            }
            Err(error) => Some(format!("the answer is not run: {error}")),
        };
        self.answer = Some((body, problem.clone()));
        problem
    }

    fn parse(&self, body: &[u8]) -> Result<Vec<StaticPod>, PodError> {
        if body.is_empty() {
            return Ok(Vec::new());
        }
        let text = std::str::from_utf8(body).map_err(|_| PodError::Parse("it is not UTF-8 text".to_owned()))?;
        StaticPod::read_all(text, Origin::Url(&self.source.endpoint.location), &self.source.node)
    }

    fn accept(&mut self, pods: Vec<StaticPod>) {
        self.complete = true;
        self.pods.clear();
        self.rejected.clear();
        let mut taken = Taken::default();
        for pod in pods {
            match taken.take(&pod, "an earlier one of the list") {
                Ok(()) => self.pods.push(Arc::new(pod)),
                Err(reason) => self.rejected.push(Rejection { file: pod.origin, reason }),
            }
        }
    }

    /// The pods that an earlier agent had from this URL.
    fn recall(&mut self) {
        let ours = recall(&self.source.pods).into_iter();
        let ours = ours.filter(|remembered| remembered.origin == self.source.endpoint.location);
        let pods = ours.filter_map(|remembered| remembered.pod(&self.source.node));
        let pods: BTreeMap<_, _> = pods.map(|pod| (pod.key.clone(), Arc::new(pod))).collect();
        self.pods = pods.into_values().collect();
    }
}

#[cfg(test)]
mod tests;
