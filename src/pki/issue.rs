//! New keys and certificates.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PublicKeyData as _, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::key;
use super::{Authority, PkiError, SERVICE_ACCOUNT_KEY_FILE, Secret, Spec, Usage};
use crate::config::{CertificatePolicy, KeyAlgorithm, San};

/// How far before now validity starts, for hosts whose clocks are behind; kubeadm's figure.
const CLOCK_SKEW: i64 = 5 * 60;

/// A new certificate and its key.
#[derive(Debug, Clone)]
pub struct Issued {
    /// PEM `CERTIFICATE`.
    pub certificate: String,
    /// PEM `RSA PRIVATE KEY` or `EC PRIVATE KEY`, as kubeadm writes it.
    pub key: Secret,
}

/// The key pair that signs service-account tokens.
#[derive(Debug, Clone)]
pub struct ServiceAccountKeys {
    /// PEM `RSA PRIVATE KEY` or `EC PRIVATE KEY`, for [`SERVICE_ACCOUNT_KEY_FILE`].
    pub private: Secret,
    /// PEM `PUBLIC KEY` (PKIX), for [`SERVICE_ACCOUNT_PUBLIC_FILE`](super::SERVICE_ACCOUNT_PUBLIC_FILE).
    pub public: String,
}

/// A new self-signed authority, valid for `policy.ca_validity` from `now`.
pub fn issue_authority(spec: &Spec, policy: &CertificatePolicy, now: Timestamp) -> Result<Issued, PkiError> {
    let file = spec.certificate_file();
    let key = key::generate(policy.algorithm, &spec.key_file())?;
    let mut params = parameters(spec, policy.ca_validity, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    let certificate = params.self_signed(&key).map_err(|source| PkiError::Sign { file, source })?;
    Ok(Issued { certificate: certificate.pem(), key: key::to_pem(&key, policy.algorithm, &spec.key_file())? })
}

/// A new certificate signed by `authority`, valid for `policy.leaf_validity` from `now`.
///
/// As with kubeadm it may outlive its authority; configuration warns of such periods.
pub fn issue_leaf(
    spec: &Spec,
    authority: &Authority,
    policy: &CertificatePolicy,
    now: Timestamp,
) -> Result<Issued, PkiError> {
    let file = spec.certificate_file();
    let issuer = authority.issuer(&file)?;
    let key = key::generate(policy.algorithm, &spec.key_file())?;
    let mut params = parameters(spec, policy.leaf_validity, now)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, issuer).map_err(|source| PkiError::Sign { file, source })?;
    Ok(Issued { certificate: certificate.pem(), key: key::to_pem(&key, policy.algorithm, &spec.key_file())? })
}

/// A new service-account key pair, of the certificates' algorithm.
pub fn issue_service_account(algorithm: KeyAlgorithm) -> Result<ServiceAccountKeys, PkiError> {
    let key = key::generate(algorithm, SERVICE_ACCOUNT_KEY_FILE)?;
    Ok(ServiceAccountKeys {
        private: key::to_pem(&key, algorithm, SERVICE_ACCOUNT_KEY_FILE)?,
        public: key::pem_block("PUBLIC KEY", &key.subject_public_key_info()),
    })
}

/// What authorities and leaves have in common.
fn parameters(spec: &Spec, validity: Duration, now: Timestamp) -> Result<CertificateParams, PkiError> {
    let file = || spec.certificate_file();

    let mut subject = DistinguishedName::new();
    // Go's order: O before CN.
    if let Some(organization) = spec.organization {
        subject.push(DnType::OrganizationName, organization);
    }
    subject.push(DnType::CommonName, spec.common_name.as_str());

    let sans = spec.sans.iter().map(|san| match san {
        San::Dns(name) => name.as_str().try_into().map(SanType::DnsName),
        San::Ip(address) => Ok(SanType::IpAddress(*address)),
    });

    let end = i64::try_from(validity.as_secs()).ok().and_then(|validity| now.as_second().checked_add(validity));
    let too_long = || PkiError::Validity { file: file(), seconds: validity.as_secs() };

    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.subject_alt_names =
        sans.collect::<Result<_, _>>().map_err(|source| PkiError::Sign { file: file(), source })?;
    params.not_before = OffsetDateTime::from_unix_timestamp(now.as_second() - CLOCK_SKEW).map_err(|_| too_long())?;
    params.not_after = end.and_then(|end| OffsetDateTime::from_unix_timestamp(end).ok()).ok_or_else(too_long)?;
    params.serial_number = Some(serial_number().ok_or_else(|| PkiError::Random { file: file() })?);
    // keyEncipherment means nothing for ECDSA; kubeadm sets it all the same.
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = spec
        .usages
        .iter()
        .map(|usage| match usage {
            Usage::ServerAuth => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::ClientAuth => ExtendedKeyUsagePurpose::ClientAuth,
        })
        .collect();
    Ok(params)
}

/// Random, positive, 63 bits, never 0, as kubeadm draws it. (rcgen's own is derived from the key: a renewal that keeps
/// the key would repeat it.)
fn serial_number() -> Option<SerialNumber> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    bytes[0] &= 0x7f;
    if bytes == [0; 8] {
        bytes[7] = 1;
    }
    Some(SerialNumber::from_slice(&bytes))
}
