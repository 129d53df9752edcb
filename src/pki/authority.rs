//! A certificate authority that is on disk, with or without its key.

use std::fmt;

use jiff::Timestamp;
use rcgen::Issuer;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;

use super::inspect::{self, CertificateInfo};
use super::{PkiError, Spec, key};

/// A checked certificate authority. Without its key (external CA mode) it verifies but does not sign.
pub struct Authority {
    file: String,
    key_file: String,
    certificates: Vec<CertificateDer<'static>>,
    info: CertificateInfo,
    issuer: Option<Issuer<'static, rcgen::KeyPair>>,
}

impl Authority {
    /// Checks the authority of `spec`: a certificate that may sign others, that is valid `now`, and, if there is a
    /// key, that key. Where the file holds several certificates the first one is the authority.
    ///
    /// `key_pem` is `None` in external CA mode (`ca.crt` without `ca.key`): the caller then needs every leaf of this
    /// authority to be there already.
    pub fn load(spec: &Spec, certificate_pem: &[u8], key_pem: Option<&[u8]>, now: Timestamp) -> Result<Self, PkiError> {
        let (file, key_file) = (spec.certificate_file(), spec.key_file());
        let certificates = inspect::certificates(&file, certificate_pem)?;
        let certificate = inspect::first(&file, &certificates)?;
        may_sign(&file, &certificate)?;
        let issuer = match key_pem {
            Some(pem) => {
                let key = key::from_pem(&key_file, pem)?;
                inspect::check_key_belongs(&file, &certificate, &key_file, &key)?;
                name_can_be_repeated(&file, &certificate)?;
                let der = CertificateDer::from(certificate.as_raw());
                let issuer = Issuer::from_ca_cert_der(&der, key)
                    .map_err(|error| PkiError::NotACertificate { file: file.clone(), reason: error.to_string() })?;
                Some(issuer)
            }
            None => None,
        };
        inspect::check_time(&file, &certificate, now)?;
        let info = CertificateInfo::of(&certificate);
        Ok(Self { file, key_file, certificates, info, issuer })
    }

    /// Whether it can sign, that is, whether its key is here.
    pub fn can_sign(&self) -> bool {
        self.issuer.is_some()
    }

    /// What the certificate says.
    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// File of the certificate, e.g. `ca.crt`.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The certificates of its file in plain PEM: what a client must trust.
    pub fn certificate_pem(&self) -> String {
        self.certificates.iter().map(|der| key::pem_block("CERTIFICATE", der)).collect()
    }

    /// Whether a client that trusts exactly `certificates` trusts exactly this authority: all of the file's
    /// certificates, or its first one alone (kubeadm writes only that one into kubeconfigs).
    pub(crate) fn is_trusted_by(&self, certificates: &[CertificateDer<'_>]) -> bool {
        certificates == self.certificates || certificates.iter().eq(self.certificates.first())
    }

    /// The signer, for a certificate that will live in `wanted`.
    pub(super) fn issuer(&self, wanted: &str) -> Result<&Issuer<'static, rcgen::KeyPair>, PkiError> {
        self.issuer
            .as_ref()
            .ok_or_else(|| PkiError::AuthorityKeyMissing { wanted: wanted.to_owned(), key_file: self.key_file.clone() })
    }

    /// The authority's own certificate.
    pub(super) fn certificate(&self) -> Result<X509Certificate<'_>, PkiError> {
        inspect::first(&self.file, &self.certificates)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("file", &self.file)
            .field("info", &self.info)
            .field("can_sign", &self.can_sign())
            .finish_non_exhaustive()
    }
}

/// Basic constraints say CA, and key usage, where there is one, allows to sign certificates.
pub(super) fn may_sign(file: &str, certificate: &X509Certificate<'_>) -> Result<(), PkiError> {
    let refuse = |reason| Err(PkiError::NotAnAuthority { file: file.to_owned(), reason });
    if !certificate.is_ca() {
        return refuse("basicConstraints do not say CA:TRUE");
    }
    match certificate.key_usage() {
        Ok(Some(usage)) if !usage.value.key_cert_sign() => refuse("keyUsage lacks keyCertSign"),
        Err(_) => refuse("keyUsage appears twice"),
        _ => Ok(()),
    }
}

/// rcgen keeps a name as a map from attribute to value. Whatever does not fit into that would come out as another
/// issuer name, and no verifier would find the authority by it.
fn name_can_be_repeated(file: &str, certificate: &X509Certificate<'_>) -> Result<(), PkiError> {
    let mut seen = Vec::new();
    for part in certificate.subject().iter() {
        let attributes: Vec<_> = part.iter().map(x509_parser::x509::AttributeTypeAndValue::attr_type).collect();
        if attributes.len() != 1 || seen.contains(&attributes[0]) {
            return Err(PkiError::AuthorityName { file: file.to_owned(), subject: certificate.subject().to_string() });
        }
        seen.extend(attributes);
    }
    Ok(())
}
