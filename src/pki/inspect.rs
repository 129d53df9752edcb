//! What a certificate says, and whether it is what a specification asks for.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use rcgen::PublicKeyData as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_SIG_ED25519};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

use super::authority::may_sign;
use super::{Authority, PkiError, SERVICE_ACCOUNT_KEY_FILE, SERVICE_ACCOUNT_PUBLIC_FILE, Spec, Usage, key};
use crate::config::San;

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Whom it is for, e.g. `O=kubeadm:cluster-admins, CN=kubernetes-admin`.
    pub subject: String,
    /// Who signed it, in the same form.
    pub issuer: String,
    /// CN of the subject; the user name, where it is a client's.
    pub common_name: Option<String>,
    /// Every O of the subject; the groups, where it is a client's.
    pub organizations: Vec<String>,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity, the last second it is valid in.
    pub not_after: Timestamp,
    /// Serial number, hexadecimal, colon-separated as openssl prints it.
    pub serial: String,
    /// The key's, named as `encryptionAlgorithm` does where it can be: `RSA-2048`, `ECDSA-P256`.
    pub algorithm: String,
    /// DNS names and addresses it is valid for.
    pub sans: Vec<San>,
    /// Whether it may sign others.
    pub is_authority: bool,
}

impl CertificateInfo {
    /// How long it is still valid; negative once it is not.
    pub fn remaining(&self, now: Timestamp) -> SignedDuration {
        self.not_after.duration_since(now)
    }

    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let subject = certificate.subject();
        Self {
            subject: subject.to_string(),
            issuer: certificate.issuer().to_string(),
            common_name: subject.iter_common_name().find_map(|name| name.as_str().ok()).map(str::to_owned),
            organizations: organizations(subject),
            not_before: timestamp(certificate.validity().not_before.timestamp()),
            not_after: timestamp(certificate.validity().not_after.timestamp()),
            serial: certificate.raw_serial_as_string(),
            algorithm: algorithm(certificate.public_key()),
            sans: sans(certificate),
            is_authority: certificate.is_ca(),
        }
    }
}

/// Reads the first certificate of `pem`; `file` is for the error. Nothing but its syntax is checked.
pub fn inspect(file: &str, pem: &[u8]) -> Result<CertificateInfo, PkiError> {
    first(file, &certificates(file, pem)?).map(|certificate| CertificateInfo::of(&certificate))
}

/// Reads a certificate in DER; `name` is for the error. Nothing but its syntax is checked.
pub fn inspect_der(name: &str, der: &CertificateDer<'_>) -> Result<CertificateInfo, PkiError> {
    parse(name, der).map(|certificate| CertificateInfo::of(&certificate))
}

/// Checks a leaf that is on disk: it parses, its key belongs to it, `authority` signed it (directly, or through
/// intermediates that follow it in its file), it is valid for every name and usage that `spec` asks for, its subject is
/// right where that matters, and it is valid `now`.
///
/// Time is looked at last: [`PkiError::Expired`] and [`PkiError::NotYetValid`] mean that all else is right, so a caller
/// may renew instead of giving up.
pub fn check_leaf(
    spec: &Spec,
    certificate_pem: &[u8],
    key_pem: &[u8],
    authority: &Authority,
    now: Timestamp,
) -> Result<CertificateInfo, PkiError> {
    let (file, key_file) = (spec.certificate_file(), spec.key_file());
    let ders = certificates(&file, certificate_pem)?;
    let chain = ders.iter().map(|der| parse(&file, der)).collect::<Result<Vec<_>, _>>()?;
    let leaf = first(&file, &ders)?;
    let key = key::from_pem(&key_file, key_pem)?;
    check_key_belongs(&file, &leaf, &key_file, &key)?;
    let signers = check_signatures(&file, &chain, authority)?;
    check_sans(&file, &leaf, &spec.sans)?;
    check_usages(&file, &leaf, spec.usages)?;
    let info = CertificateInfo::of(&leaf);
    if spec.subject_is_identity {
        check_subject(&file, &info, spec)?;
    }
    for certificate in &signers {
        check_time(&file, certificate, now)?;
    }
    Ok(info)
}

/// Checks that the service-account keys are two halves of one pair. The public file may hold more public keys, as
/// during a rotation.
pub fn check_service_account(key_pem: &[u8], public_pem: &[u8]) -> Result<(), PkiError> {
    let key = key::from_pem(SERVICE_ACCOUNT_KEY_FILE, key_pem)?;
    let file = SERVICE_ACCOUNT_PUBLIC_FILE;
    let publics = SubjectPublicKeyInfoDer::pem_slice_iter(public_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| key::unreadable(file, "public key", &error))?;
    if publics.is_empty() {
        return Err(PkiError::NotPem { file: file.to_owned(), expected: "public key" });
    }
    let ours = |der: &SubjectPublicKeyInfoDer<'_>| {
        SubjectPublicKeyInfo::from_der(der)
            .is_ok_and(|(_, public)| public.subject_public_key.as_ref() == key.public_key_raw())
    };
    if publics.iter().any(ours) {
        Ok(())
    } else {
        Err(PkiError::KeyMismatch { file: file.to_owned(), key_file: SERVICE_ACCOUNT_KEY_FILE.to_owned() })
    }
}

/// The public half of a service-account key, for a host where only the private one is left (kubeadm does not write
/// it again, and the API server then does not start).
pub fn service_account_public_key(key_pem: &[u8]) -> Result<String, PkiError> {
    let key = key::from_pem(SERVICE_ACCOUNT_KEY_FILE, key_pem)?;
    Ok(key::pem_block("PUBLIC KEY", &key.subject_public_key_info()))
}

/// Every certificate of `pem`, at least one.
pub(crate) fn certificates(file: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| key::unreadable(file, "certificate", &error))?;
    if found.is_empty() {
        return Err(PkiError::NotPem { file: file.to_owned(), expected: "certificate" });
    }
    Ok(found)
}

/// The first of them, parsed.
pub(super) fn first<'a>(file: &str, ders: &'a [CertificateDer<'_>]) -> Result<X509Certificate<'a>, PkiError> {
    let der = ders.first().ok_or_else(|| PkiError::NotPem { file: file.to_owned(), expected: "certificate" })?;
    parse(file, der)
}

fn parse<'a>(file: &str, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PkiError> {
    let not = |reason: String| PkiError::NotACertificate { file: file.to_owned(), reason };
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(not("bytes follow the certificate".to_owned())),
        Err(error) => Err(not(error.to_string())),
    }
}

pub(super) fn check_key_belongs(
    file: &str,
    certificate: &X509Certificate<'_>,
    key_file: &str,
    key: &rcgen::KeyPair,
) -> Result<(), PkiError> {
    if certificate.public_key().subject_public_key.as_ref() == key.public_key_raw() {
        Ok(())
    } else {
        Err(PkiError::KeyMismatch { file: file.to_owned(), key_file: key_file.to_owned() })
    }
}

/// Walks from the leaf to the authority through the certificates of its file, and returns those on the way.
fn check_signatures<'a, 'b>(
    file: &str,
    chain: &'a [X509Certificate<'b>],
    authority: &Authority,
) -> Result<Vec<&'a X509Certificate<'b>>, PkiError> {
    let root = authority.certificate()?;
    let mut way = Vec::new();
    let mut rest = chain.iter();
    let mut next = rest.next();
    while let Some(certificate) = next {
        way.push(certificate);
        if signed_by(file, certificate, &root)? {
            return Ok(way);
        }
        // Servers send the file as it is, so each intermediate must follow what it signed.
        next = match rest.next() {
            Some(parent) if signed_by(file, certificate, parent)? => {
                may_sign(file, parent)?;
                Some(parent)
            }
            _ => None,
        };
    }
    Err(PkiError::NotSignedBy {
        file: file.to_owned(),
        issuer: way.last().map(|certificate| certificate.issuer().to_string()).unwrap_or_default(),
        authority_file: authority.file().to_owned(),
        authority: root.subject().to_string(),
    })
}

fn signed_by(file: &str, child: &X509Certificate<'_>, parent: &X509Certificate<'_>) -> Result<bool, PkiError> {
    // Byte for byte: this is how Go, and so every component, looks for an issuer.
    if child.issuer().as_raw() != parent.subject().as_raw() {
        return Ok(false);
    }
    match child.verify_signature(Some(parent.public_key())) {
        Ok(()) => Ok(true),
        Err(X509Error::SignatureUnsupportedAlgorithm) => Err(PkiError::SignatureUnsupported {
            file: file.to_owned(),
            oid: child.signature_algorithm.algorithm.to_id_string(),
        }),
        Err(_) => Ok(false),
    }
}

fn check_sans(file: &str, leaf: &X509Certificate<'_>, expected: &[San]) -> Result<(), PkiError> {
    let found = sans(leaf);
    let missing: Vec<San> =
        expected.iter().filter(|wanted| !found.iter().any(|san| covers(san, wanted))).cloned().collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(PkiError::MissingSans { file: file.to_owned(), missing: list(&missing), found: list(&found) })
}

/// A wildcard stands for exactly one label, the first (RFC 6125, as Go and webpki read it).
fn covers(san: &San, wanted: &San) -> bool {
    match (san, wanted) {
        (San::Dns(pattern), San::Dns(name)) => {
            pattern == name
                || pattern.strip_prefix("*.").is_some_and(|suffix| {
                    name.split_once('.').is_some_and(|(label, rest)| label != "*" && rest == suffix)
                })
        }
        _ => san == wanted,
    }
}

fn list(sans: &[San]) -> String {
    if sans.is_empty() {
        return "no name".to_owned();
    }
    let names: Vec<String> = sans
        .iter()
        .map(|san| match san {
            San::Dns(name) => name.clone(),
            San::Ip(address) => address.to_string(),
        })
        .collect();
    names.join(", ")
}

fn check_usages(file: &str, leaf: &X509Certificate<'_>, expected: &[Usage]) -> Result<(), PkiError> {
    let refuse =
        |missing: String, found: String| Err(PkiError::MissingUsages { file: file.to_owned(), missing, found });
    // An absent extension allows everything (RFC 5280, 4.2.1.3 and 4.2.1.12).
    match leaf.key_usage() {
        Ok(Some(usage)) if !usage.value.digital_signature() => {
            return refuse("digitalSignature".to_owned(), usage.value.to_string());
        }
        Err(_) => return refuse("digitalSignature".to_owned(), "the extension twice".to_owned()),
        _ => {}
    }
    let usage = match leaf.extended_key_usage() {
        Ok(Some(usage)) => usage.value,
        Ok(None) => return Ok(()),
        Err(_) => return refuse(usages(expected), "the extension twice".to_owned()),
    };
    let allows = |wanted: Usage| {
        usage.any
            || match wanted {
                Usage::ServerAuth => usage.server_auth,
                Usage::ClientAuth => usage.client_auth,
            }
    };
    let (found, missing): (Vec<Usage>, Vec<Usage>) =
        [Usage::ServerAuth, Usage::ClientAuth].into_iter().partition(|wanted| allows(*wanted));
    let missing: Vec<Usage> = missing.into_iter().filter(|wanted| expected.contains(wanted)).collect();
    if missing.is_empty() { Ok(()) } else { refuse(usages(&missing), usages(&found)) }
}

fn usages(usages: &[Usage]) -> String {
    if usages.is_empty() {
        return "neither serverAuth nor clientAuth".to_owned();
    }
    usages.iter().map(Usage::to_string).collect::<Vec<_>>().join(", ")
}

fn check_subject(file: &str, info: &CertificateInfo, spec: &Spec) -> Result<(), PkiError> {
    let organizations: Vec<&str> = info.organizations.iter().map(String::as_str).collect();
    if info.common_name.as_deref() == Some(spec.common_name.as_str()) && organizations == spec.organization.as_slice() {
        return Ok(());
    }
    let expected = match spec.organization {
        Some(organization) => format!("O={organization}, CN={}", spec.common_name),
        None => format!("CN={}", spec.common_name),
    };
    Err(PkiError::Subject { file: file.to_owned(), found: info.subject.clone(), expected })
}

pub(super) fn check_time(file: &str, certificate: &X509Certificate<'_>, now: Timestamp) -> Result<(), PkiError> {
    let validity = certificate.validity();
    if now.as_second() > validity.not_after.timestamp() {
        let not_after = timestamp(validity.not_after.timestamp());
        return Err(PkiError::Expired { file: file.to_owned(), is_authority: certificate.is_ca(), not_after, now });
    }
    if now.as_second() < validity.not_before.timestamp() {
        let not_before = timestamp(validity.not_before.timestamp());
        return Err(PkiError::NotYetValid { file: file.to_owned(), not_before, now });
    }
    Ok(())
}

/// Certificates may say `99991231235959Z`, for ever (RFC 5280, 4.1.2.5), which is a day past [`Timestamp::MAX`].
fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

fn organizations(subject: &X509Name<'_>) -> Vec<String> {
    subject.iter_organization().filter_map(|name| name.as_str().ok()).map(str::to_owned).collect()
}

fn sans(certificate: &X509Certificate<'_>) -> Vec<San> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(San::Dns(name.to_ascii_lowercase())),
            GeneralName::IPAddress(bytes) => address(bytes).map(San::Ip),
            _ => None,
        })
        .collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn algorithm(key: &SubjectPublicKeyInfo<'_>) -> String {
    let curve = || key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("RSA-{}", rsa.key_size()),
        Ok(PublicKey::EC(_)) => match curve() {
            Some(curve) if curve == OID_EC_P256 => "ECDSA-P256".to_owned(),
            Some(curve) if curve == OID_NIST_EC_P384 => "ECDSA-P384".to_owned(),
            Some(curve) if curve == OID_NIST_EC_P521 => "ECDSA-P521".to_owned(),
            _ => "ECDSA".to_owned(),
        },
        _ if key.algorithm.algorithm == OID_SIG_ED25519 => "Ed25519".to_owned(),
        _ => key.algorithm.algorithm.to_id_string(),
    }
}
