//! Who asks: the subject of a client certificate that the cluster's authority signed, or the owner of a bearer token, for
//! which the API server is asked. Nobody else: there are no anonymous users.
//!
//! The certificate is checked at each request and not while the connection is made: what the file of the authorities
//! says now counts, a certificate that expires is refused from then on, and one of another authority gets an answer
//! (401) instead of a connection that breaks.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use axum::http::HeaderValue;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use super::authz::Kept;
use super::reviews::Reviews;
use crate::agent::blocking::apart;
use crate::clock::Clock;
use crate::fsx::{self, FsError};
use crate::pki::{self, PkiError};

/// Group of everybody who is known (kube-apiserver: `AllAuthenticated`).
const AUTHENTICATED: &str = "system:authenticated";
/// How long the owner of a token is taken for granted (kubelet: `authentication.webhook.cacheTTL`).
const TOKEN_KEPT: Duration = Duration::from_mins(2);

/// How long a token is refused without another question.
const REFUSAL_KEPT: Duration = Duration::from_secs(10);

/// Who asks, as a `SubjectAccessReview` names them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
    pub(super) uid: String,
    pub(super) extra: BTreeMap<String, Vec<String>>,
}

/// What a client showed when its connection was made.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer {
    /// Its certificate, and those that lead to an authority; empty when it showed none.
    pub(super) certificates: Arc<[CertificateDer<'static>]>,
}

/// Why nobody is known to ask.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthnError {
    #[error("there is neither a client certificate nor a bearer token")]
    Anonymous,
    #[error(transparent)]
    ReadAuthorities(#[from] FsError),
    #[error(transparent)]
    Authorities(#[from] PkiError),
    #[error("`{}` has no certificate of an authority", file.display())]
    NoAuthority {
        file: PathBuf,
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
    #[error("the client's certificate is refused")]
    Certificate(#[source] rustls::Error),
    #[error("the client's certificate names no user")]
    NoName,
    #[error("the bearer token is nobody's")]
    Token,
    #[error("the API server does not say whose the bearer token is: {0}")]
    Unknown(String),
}

type Verifier = Arc<dyn ClientCertVerifier>;

/// Finds out who asks.
pub(super) struct Authenticator {
    client_ca: PathBuf,
    clock: Clock,
    /// With the text it was made from.
    verifier: Mutex<Option<(Vec<u8>, Verifier)>>,
    /// By the token's digest.
    tokens: Kept<Vec<u8>, User>,
    /// The same of those that are nobody's; apart, so that no number of them drives out the others.
    refused: Kept<Vec<u8>, ()>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("client_ca", &self.client_ca).finish_non_exhaustive()
    }
}

impl Authenticator {
    /// Knows the users of the authorities in the file `client_ca` (PEM).
    pub(super) fn new(client_ca: PathBuf, clock: Clock) -> Self {
        Self { client_ca, clock, verifier: Mutex::default(), tokens: Kept::default(), refused: Kept::default() }
    }

    /// Whether client certificates can be checked at all.
    pub(super) async fn try_authorities(&self) -> Result<(), AuthnError> {
        self.verifier().await.map(drop)
    }

    /// Who asks, by `peer` or else by the header `authorization`.
    pub(super) async fn user<V: Reviews>(
        &self,
        reviews: &V,
        peer: &Peer,
        authorization: Option<&HeaderValue>,
    ) -> Result<User, AuthnError> {
        let by_certificate = self.of_certificate(peer).await;
        let token = authorization.and_then(bearer);
        let mut user = match (by_certificate, token) {
            (Ok(user), _) => user,
            (Err(_), Some(token)) => self.of_token(reviews, token).await?,
            (Err(error), None) => return Err(error),
        };
        if !user.groups.iter().any(|group| group == AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        Ok(user)
    }

    /// CN is the name, every O a group.
    async fn of_certificate(&self, peer: &Peer) -> Result<User, AuthnError> {
        let (leaf, others) = peer.certificates.split_first().ok_or(AuthnError::Anonymous)?;
        let now = Duration::from_secs(u64::try_from(self.clock.now().as_second()).unwrap_or(0));
        self.verifier()
            .await?
            .verify_client_cert(leaf, others, UnixTime::since_unix_epoch(now))
            .map_err(AuthnError::Certificate)?;
        let info = pki::inspect_der("the client's certificate", leaf)?;
        let name = info.common_name.filter(|name| !name.is_empty()).ok_or(AuthnError::NoName)?;
        Ok(User { name, groups: info.organizations, ..User::default() })
    }

    /// For the authorities as they are in the file now.
    async fn verifier(&self) -> Result<Verifier, AuthnError> {
        let file = self.client_ca.clone();
        let text = apart(move || fsx::read(&file)).await?;
        let mut current = self.verifier.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((from, verifier)) = &*current
            && *from == text
        {
            return Ok(Arc::clone(verifier));
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(pki::certificates(&self.client_ca.display().to_string(), &text)?);
        let made: Verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
            .build()
            .map_err(|source| AuthnError::NoAuthority { file: self.client_ca.clone(), source })?;
        *current = Some((text, Arc::clone(&made)));
        Ok(made)
    }

    async fn of_token<V: Reviews>(&self, reviews: &V, token: &str) -> Result<User, AuthnError> {
        let key = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
        if let Some(user) = self.tokens.get(&key) {
            return Ok(user);
        }
        if self.refused.get(&key).is_some() {
            return Err(AuthnError::Token);
        }
        let Some(user) = reviews.token(token).await.map_err(AuthnError::Unknown)? else {
            self.refused.keep(key, (), REFUSAL_KEPT);
            return Err(AuthnError::Token);
        };
        self.tokens.keep(key, user.clone(), TOKEN_KEPT);
        Ok(user)
    }
}

/// The token of `Bearer TOKEN`.
fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
