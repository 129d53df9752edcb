//! The certificate that is shown to clients, and the handshake with them.
//!
//! Without files of its own the agent makes a pair like a kubelet's: a certificate for the node's name and address,
//! signed by an authority whose key is thrown away, and which follows it in the file. The API server does not check it
//! (`--kubelet-certificate-authority` is not set by kubeadm either).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio::time::Instant;

use crate::agent::blocking::apart;
use crate::agent::ledger::{LedgerError, Writer};
use crate::config::{CertificatePolicy, KeyAlgorithm, San};
use crate::fsx::{self, FsError};
use crate::journal::{Creation, Record};
use crate::pki::{self, Authority, CertificateInfo, Files, PkiError, Spec, Usage};

/// How long a certificate of ours is valid (client-go: `GenerateSelfSignedCertKey`, one year).
const VALIDITY: Duration = Duration::from_hours(365 * 24);
/// How long before its end another one is made. A kubelet does so at its next start.
const AHEAD: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How often the files are looked at again.
const LOOK: Duration = Duration::from_mins(1);
/// Mode of directories on the way to the pair (client-go: `WriteCert`).
const DIRECTORY_MODE: u32 = 0o755;

/// Where certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// PEM; the chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// Why there is nothing to show to clients.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error(transparent)]
    Files(#[from] FsError),
    #[error("cannot make a certificate for clients of port 10250")]
    Make(#[from] PkiError),
    #[error("cannot record the certificate for clients")]
    Record(#[from] LedgerError),
    #[error("`{}` has no private key that can be used", .0.display())]
    Key(PathBuf),
    #[error("`{}` and its key cannot be used", file.display())]
    Unusable {
        file: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

/// The pair in use, followed on disk.
pub(super) struct Serving {
    pair: Pair,
    /// The node's name and address, where the pair is made by us.
    names: Option<[San; 2]>,
    ledger: Writer,
    current: Option<(Pem, Arc<ServerConfig>)>,
    /// What was found when it was last looked at.
    answer: Option<Answer>,
    look_at: Instant,
}

type Answer = Result<Arc<ServerConfig>, Arc<TlsError>>;

/// Certificate and key as they are on disk.
type Pem = (Vec<u8>, Vec<u8>);

impl Serving {
    /// With a pair that somebody else takes care of.
    pub(super) fn of_others(pair: Pair, ledger: Writer) -> Self {
        Self { pair, names: None, ledger, current: None, answer: None, look_at: Instant::now() }
    }

    /// With `kubelet.crt` and `kubelet.key` in `directory`, made for this node when they are missing, not good for its
    /// name and address, or near their end.
    pub(super) fn own(directory: &Path, name: &str, address: IpAddr, ledger: Writer) -> Self {
        let pair = Pair { certificate: directory.join("kubelet.crt"), key: directory.join("kubelet.key") };
        let names = [San::Dns(name.to_owned()), San::Ip(address)];
        Self { pair, names: Some(names), ledger, current: None, answer: None, look_at: Instant::now() }
    }

    /// How to greet a client at `now`. Where the pair cannot be renewed or read, the last good one goes on. However
    /// many clients come, the files are looked at, and made, no more often than every [`LOOK`].
    pub(super) async fn config(&mut self, now: Timestamp) -> Answer {
        if let Some(answer) = &self.answer
            && Instant::now() < self.look_at
        {
            return answer.clone();
        }
        self.look_at = Instant::now() + LOOK;
        let answer = self.look(now).await.map_err(Arc::new);
        self.answer = Some(answer.clone());
        answer
    }

    async fn look(&mut self, now: Timestamp) -> Result<Arc<ServerConfig>, TlsError> {
        match (self.read(now).await, &self.current) {
            (Ok(pem), Some((present, config))) if *present == pem => Ok(Arc::clone(config)),
            (Ok(pem), current) => match (self.load(&pem), current) {
                (Ok(config), _) => {
                    self.current = Some((pem, Arc::clone(&config)));
                    Ok(config)
                }
                (Err(error), None) => Err(error),
                (Err(error), Some((_, config))) => Ok(goes_on(&error, config)),
            },
            (Err(error), None) => Err(error),
            (Err(error), Some((_, config))) => Ok(goes_on(&error, config)),
        }
    }

    async fn read(&self, now: Timestamp) -> Result<Pem, TlsError> {
        let pair = self.pair.clone();
        let Some(names) = &self.names else {
            return apart(move || Ok((fsx::read(&pair.certificate)?, fsx::read(&pair.key)?))).await;
        };
        let read = move || Ok::<_, FsError>((fsx::read_optional(&pair.certificate)?, fsx::read_optional(&pair.key)?));
        let present = apart(read).await?;
        if let (Some(certificate), Some(key)) = present
            && pki::inspect("kubelet.crt", &certificate).is_ok_and(|info| is_good(&info, names, now))
            && self.load(&(certificate.clone(), key.clone())).is_ok()
        {
            return Ok((certificate, key));
        }
        let (certificate, key) = make(names, now)?;
        let directory = self.pair.certificate.parent().unwrap_or(Path::new("/")).to_owned();
        let made = fsx::missing_directories(&directory).into_iter().map(|path| Creation::Directory { path });
        let files = [&self.pair.certificate, &self.pair.key].map(|path| Creation::File { path: path.clone() });
        self.ledger.record(made.chain(files).map(|what| Record::Make { what }).collect()).await?;
        let pair = self.pair.clone();
        apart(move || {
            fsx::create_directories(&directory, DIRECTORY_MODE)?;
            fsx::write_atomic(&pair.key, &key, 0o600)?;
            fsx::write_atomic(&pair.certificate, &certificate, 0o644)?;
            tracing::info!(file = %pair.certificate.display(), "made a certificate for clients of the node");
            Ok((certificate, key))
        })
        .await
    }

    /// TLS 1.2 and 1.3.
    fn load(&self, (certificate, key): &Pem) -> Result<Arc<ServerConfig>, TlsError> {
        let file = &self.pair.certificate;
        let unusable = |source| TlsError::Unusable { file: file.clone(), source };
        let chain = pki::certificates(&file.display().to_string(), certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Key(self.pair.key.clone()))?;
        let provider = default_provider();
        let ask = Arc::new(AskOnly(provider.signature_verification_algorithms));
        let config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_client_cert_verifier(ask)
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        Ok(Arc::new(config))
    }
}

fn goes_on(error: &TlsError, config: &Arc<ServerConfig>) -> Arc<ServerConfig> {
    tracing::warn!(error = error as &dyn std::error::Error, "the last good certificate for clients goes on");
    Arc::clone(config)
}

fn is_good(info: &CertificateInfo, names: &[San; 2], now: Timestamp) -> bool {
    info.remaining(now) > AHEAD && info.not_before <= now && names.iter().all(|name| info.sans.contains(name))
}

/// client-go: `GenerateSelfSignedCertKey`, but for the address, and for the key, which is quicker made.
fn make(names: &[San; 2], now: Timestamp) -> Result<Pem, PkiError> {
    let policy =
        CertificatePolicy { algorithm: KeyAlgorithm::EcdsaP256, leaf_validity: VALIDITY, ca_validity: VALIDITY };
    let node = match &names[0] {
        San::Dns(name) => name.clone(),
        San::Ip(address) => address.to_string(),
    };
    let spec = |authority, common_name, usages, sans| Spec {
        name: "kubelet",
        files: Files::Pair("kubelet"),
        authority,
        common_name,
        organization: None,
        usages,
        sans,
        subject_is_identity: false,
    };
    let signer = spec(None, format!("{node}-ca@{}", now.as_second()), &[], Vec::new());
    let own = spec(Some("kubelet-ca"), format!("{node}@{}", now.as_second()), &[Usage::ServerAuth], names.to_vec());
    let authority = pki::issue_authority(&signer, &policy, now)?;
    let key = Some(authority.key.expose().as_bytes());
    let loaded = Authority::load(&signer, authority.certificate.as_bytes(), key, now)?;
    let leaf = pki::issue_leaf(&own, &loaded, &policy, now)?;
    Ok((format!("{}{}", leaf.certificate, authority.certificate).into_bytes(), leaf.key.expose().as_bytes().to_vec()))
}

/// Asks for a certificate and sees that the client has its key; whose it is is found out later, with each request.
#[derive(Debug)]
struct AskOnly(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AskOnly {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
