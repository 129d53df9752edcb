//! Private keys: made, written as kubeadm writes them, read as others wrote them.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject as _};
use x509_parser::asn1_rs::{FromDer as _, Integer, OctetString, Sequence};

use super::{PkiError, Secret};
use crate::config::KeyAlgorithm;

/// A new key pair; `file` is where it will live, for the error.
pub(super) fn generate(algorithm: KeyAlgorithm, file: &str) -> Result<rcgen::KeyPair, PkiError> {
    match algorithm {
        KeyAlgorithm::Rsa2048 => rcgen::KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        KeyAlgorithm::Rsa3072 => rcgen::KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072),
        KeyAlgorithm::Rsa4096 => rcgen::KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
        KeyAlgorithm::EcdsaP256 => rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        KeyAlgorithm::EcdsaP384 => rcgen::KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
    }
    .map_err(|source| PkiError::Generate { file: file.to_owned(), source })
}

/// The key in kubeadm's form: `RSA PRIVATE KEY` (PKCS#1) or `EC PRIVATE KEY` (SEC 1, RFC 5915), so that scripts which
/// look for these blocks find them. `key` comes from [`generate`], which leaves PKCS#8.
pub(super) fn to_pem(key: &rcgen::KeyPair, algorithm: KeyAlgorithm, file: &str) -> Result<Secret, PkiError> {
    let pkcs8 = key.serialized_der();
    let (label, der) = match algorithm {
        KeyAlgorithm::Rsa2048 | KeyAlgorithm::Rsa3072 | KeyAlgorithm::Rsa4096 => {
            ("RSA PRIVATE KEY", pkcs8_content(pkcs8))
        }
        KeyAlgorithm::EcdsaP256 => ("EC PRIVATE KEY", sec1(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8)),
        KeyAlgorithm::EcdsaP384 => ("EC PRIVATE KEY", sec1(&ECDSA_P384_SHA384_ASN1_SIGNING, pkcs8)),
    };
    let der = der.ok_or_else(|| PkiError::Encode { file: file.to_owned() })?;
    Ok(Secret::new(pem_block(label, &der)))
}

/// What PKCS#8 (RFC 5958) wraps: version, algorithm, then the key in its own form as an octet string.
fn pkcs8_content(pkcs8: &[u8]) -> Option<Vec<u8>> {
    let (_, outer) = Sequence::from_der(pkcs8).ok()?;
    let (rest, _version) = Integer::from_der(&outer.content).ok()?;
    let (rest, _algorithm) = Sequence::from_der(rest).ok()?;
    let (_, key) = OctetString::from_der(rest).ok()?;
    Some(key.as_ref().to_vec())
}

/// Not [`pkcs8_content`]: inside PKCS#8 the curve's name is left out of the key, alone it needs it.
fn sec1(algorithm: &'static EcdsaSigningAlgorithm, pkcs8: &[u8]) -> Option<Vec<u8>> {
    let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8).ok()?;
    Some(key.private_key().as_der().ok()?.as_ref().to_vec())
}

/// The first private key of `pem`: PKCS#1, SEC 1 or PKCS#8, whatever other blocks surround it (openssl writes
/// `EC PARAMETERS` before the key).
pub(super) fn from_pem(file: &str, pem: &[u8]) -> Result<rcgen::KeyPair, PkiError> {
    // Both of openssl's forms: the block `ENCRYPTED PRIVATE KEY`, and the header `Proc-Type: 4,ENCRYPTED`.
    if pem.windows(9).any(|window| window == b"ENCRYPTED") {
        return Err(PkiError::KeyEncrypted { file: file.to_owned() });
    }
    let der = PrivateKeyDer::from_pem_slice(pem).map_err(|error| unreadable(file, "private key", &error))?;
    rcgen::KeyPair::try_from(&der).map_err(|source| PkiError::KeyUnusable { file: file.to_owned(), source })
}

/// The error of a PEM reader, without any of the text: it may be a key.
pub(super) fn unreadable(file: &str, expected: &'static str, error: &pem::Error) -> PkiError {
    let reason = match error {
        pem::Error::NoItemsFound => return PkiError::NotPem { file: file.to_owned(), expected },
        pem::Error::MissingSectionEnd { .. } => "its END line is missing",
        pem::Error::IllegalSectionStart { .. } => "its BEGIN line is malformed",
        _ => "what is between BEGIN and END is not base64",
    };
    PkiError::Damaged { file: file.to_owned(), reason: reason.to_owned() }
}

/// One PEM block, 64 columns (RFC 7468).
pub(super) fn pem_block(label: &str, der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64.as_bytes().chunks(64) {
        // base64 is ASCII, so each byte is a character.
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}
