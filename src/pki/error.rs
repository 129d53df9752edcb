//! What can be wrong with a certificate or a key.

use jiff::Timestamp;

use crate::error::Hint;

/// A certificate or key that cannot be used, or could not be made. One variant per failed check; `file` is relative
/// to the certificate directory, or the name of a kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// No block of the kind asked for.
    #[error("{file}: no {expected} found (expected a PEM block)")]
    NotPem {
        /// File.
        file: String,
        /// `certificate`, `private key` or `public key`.
        expected: &'static str,
    },
    /// The PEM text is there but broken.
    #[error("{file}: the PEM text is damaged: {reason}")]
    Damaged {
        /// File.
        file: String,
        /// What the parser says; never a part of the text.
        reason: String,
    },
    /// The block is not an X.509 certificate.
    #[error("{file}: not an X.509 certificate: {reason}")]
    NotACertificate {
        /// File.
        file: String,
        /// What the parser says.
        reason: String,
    },
    /// The key is protected by a passphrase.
    #[error("{file}: the private key is encrypted; the components cannot ask for a passphrase")]
    KeyEncrypted {
        /// File.
        file: String,
    },
    /// The key is of no kind that can be used.
    #[error("{file}: the private key cannot be used (expected RSA of 2048 bits or more, ECDSA or Ed25519)")]
    KeyUnusable {
        /// File.
        file: String,
        /// What the parser says.
        source: rcgen::Error,
    },
    /// Key and certificate, or key and public key, are not halves of one pair.
    #[error("{key_file}: the private key does not match the public key in {file}")]
    KeyMismatch {
        /// Certificate or public key.
        file: String,
        /// Private key.
        key_file: String,
    },
    /// The certificate may not sign others.
    #[error("{file}: not a certificate authority: {reason}")]
    NotAnAuthority {
        /// File.
        file: String,
        /// Which extension says so.
        reason: &'static str,
    },
    /// The authority's name has parts that cannot be repeated as the issuer of what it signs.
    #[error(
        "{file}: cannot sign in the name of `{subject}`: a name with repeated or combined attributes is not supported"
    )]
    AuthorityName {
        /// File.
        file: String,
        /// Its subject.
        subject: String,
    },
    /// The authority's key is not here (external CA mode), so it cannot sign.
    #[error("{wanted} is missing and cannot be made: {key_file}, the key of its authority, is not here")]
    AuthorityKeyMissing {
        /// File that would have been signed.
        wanted: String,
        /// The key that is not here.
        key_file: String,
    },
    /// Signed by somebody else.
    #[error("{file}: not signed by {authority_file}: its issuer is `{issuer}`, the authority is `{authority}`")]
    NotSignedBy {
        /// File.
        file: String,
        /// Issuer in the certificate. May read the same as `authority` when the authority was made anew.
        issuer: String,
        /// File of the authority.
        authority_file: String,
        /// Subject of the authority.
        authority: String,
    },
    /// The signature's algorithm is unknown here.
    #[error("{file}: signed with an algorithm that is not supported ({oid})")]
    SignatureUnsupported {
        /// File.
        file: String,
        /// Object identifier of the algorithm.
        oid: String,
    },
    /// Names are missing.
    #[error("{file}: not valid for {missing} (it is valid for {found})")]
    MissingSans {
        /// File.
        file: String,
        /// Expected and absent, comma-separated.
        missing: String,
        /// Present, comma-separated.
        found: String,
    },
    /// Usages are missing.
    #[error("{file}: key usage {missing} is missing (it has {found})")]
    MissingUsages {
        /// File.
        file: String,
        /// Expected and absent, comma-separated.
        missing: String,
        /// Present, comma-separated.
        found: String,
    },
    /// The subject is another user's.
    #[error("{file}: its subject is `{found}`, expected `{expected}`")]
    Subject {
        /// File.
        file: String,
        /// Subject in the certificate.
        found: String,
        /// Subject it must have.
        expected: String,
    },
    /// Its time is over. All other checks have passed.
    #[error("{file}: expired at {not_after} (it is {now} now)")]
    Expired {
        /// File.
        file: String,
        /// An authority cannot simply be made anew: everything it signed goes with it.
        is_authority: bool,
        /// End of validity.
        not_after: Timestamp,
        /// The time compared with.
        now: Timestamp,
    },
    /// Its time has not come. All other checks have passed.
    #[error("{file}: not valid before {not_before} (it is {now} now)")]
    NotYetValid {
        /// File.
        file: String,
        /// Start of validity.
        not_before: Timestamp,
        /// The time compared with.
        now: Timestamp,
    },
    /// A new key could not be made.
    #[error("{file}: generating a key failed")]
    Generate {
        /// File the key was for.
        file: String,
        /// Cause.
        source: rcgen::Error,
    },
    /// A new key could not be written in the form of its kind.
    #[error("{file}: encoding the new key failed")]
    Encode {
        /// File the key was for.
        file: String,
    },
    /// No random serial number.
    #[error("{file}: no random number to be had from the system")]
    Random {
        /// File the number was for.
        file: String,
    },
    /// The end of validity cannot be written in a certificate.
    #[error("{file}: a validity of {seconds} s ends after the year 9999")]
    Validity {
        /// File.
        file: String,
        /// Asked for.
        seconds: u64,
    },
    /// A new certificate could not be signed.
    #[error("{file}: signing failed")]
    Sign {
        /// File.
        file: String,
        /// Cause.
        source: rcgen::Error,
    },
}

impl Hint for PkiError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::NotPem { file, .. } | Self::Damaged { file, .. } | Self::NotACertificate { file, .. } => {
                format!("bring back the right {file}{}", or_anew(file))
            }
            Self::KeyEncrypted { file } => format!("decrypt it: openssl pkey -in {file} -out {file}.plain"),
            Self::KeyUnusable { file, .. } => format!("replace {file} and its certificate{}", or_anew(file)),
            Self::KeyMismatch { file, key_file } => {
                format!("bring back the {key_file} that was made with {file}{}", or_anew(file))
            }
            Self::NotAnAuthority { file, .. } => {
                format!("{file} must be the certificate of an authority (basicConstraints CA:TRUE), not a server's")
            }
            Self::AuthorityName { file, .. } => format!(
                "issue the leaf certificates elsewhere and take the key that belongs to {file} away (external CA mode)"
            ),
            Self::AuthorityKeyMissing { wanted, key_file } => {
                format!("external CA: put {wanted} and its key in place, signed by that authority; or bring {key_file}")
            }
            Self::NotSignedBy { file, authority_file, .. } => {
                format!("was {authority_file} replaced? bring back the one that signed {file}{}", or_anew(file))
            }
            Self::SignatureUnsupported { file, .. } => {
                format!("have {file} signed with RSA or ECDSA (P-256, P-384) and SHA-2")
            }
            Self::MissingSans { file, .. } | Self::MissingUsages { file, .. } | Self::Subject { file, .. } => {
                format!("replace {file} by one that has it all{}", or_anew(file))
            }
            Self::Expired { file, is_authority: true, .. } => {
                format!("replace {file} and everything it signed; check the clock (`date -u`) if this is unexpected")
            }
            Self::Expired { file, .. } => {
                format!("renew {file}{}; check the clock (`date -u`) if this is unexpected", or_anew(file))
            }
            Self::NotYetValid { .. } => {
                "the clock of this host is probably behind: check it with `date -u` and set it".to_owned()
            }
            Self::Validity { .. } => {
                "choose a shorter certificateValidityPeriod or caCertificateValidityPeriod".to_owned()
            }
            Self::Generate { .. } | Self::Encode { .. } | Self::Random { .. } | Self::Sign { .. } => {
                return Vec::new();
            }
        };
        vec![hint]
    }
}

/// What to remove so that the next `init` makes it. A pair must go as a whole; a kubeconfig is one file.
fn or_anew(file: &str) -> String {
    match file.rsplit_once('.') {
        Some((_, "conf")) => format!(", or remove {file} to have it made anew"),
        Some((base, "crt" | "key")) if base != "sa" && !base.ends_with("ca") => {
            format!(", or remove {base}.crt and {base}.key to have them made anew")
        }
        Some(("sa", "pub")) => ", or remove sa.pub to have it derived from sa.key".to_owned(),
        // An authority, or the key that signed every token: all that it signed would have to go, too.
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::or_anew;

    #[test]
    fn nobody_is_told_to_remove_an_authority() {
        for (file, expected) in [
            ("etcd/server.crt", ", or remove etcd/server.crt and etcd/server.key to have them made anew"),
            ("apiserver.key", ", or remove apiserver.crt and apiserver.key to have them made anew"),
            ("admin.conf", ", or remove admin.conf to have it made anew"),
            ("sa.pub", ", or remove sa.pub to have it derived from sa.key"),
            ("sa.key", ""),
            ("ca.crt", ""),
            ("etcd/ca.key", ""),
            ("front-proxy-ca.crt", ""),
        ] {
            assert_eq!(or_anew(file), expected);
        }
    }
}
