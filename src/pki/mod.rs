//! Certificates and keys: what they must be, how they are made, how those of others are checked.
//!
//! Typed input → bytes; no file is read or written here and no clock is asked, so the caller decides where things
//! live ([`Spec::certificate_file`] names them below the certificate directory) and what "now" is. Layout, names,
//! usages and validity are kubeadm's, so its tools and documentation hold for what is made here.
//!
//! - [`specifications`]: the table of certificates of a [`Cluster`](crate::config::Cluster), in kubeadm's order.
//! - [`issue_authority`], [`issue_leaf`], [`issue_service_account`]: new keys and certificates. CPU-bound (RSA takes
//!   100 ms and more each), `Send`, and independent of each other: authorities can be made in parallel, and so can
//!   the leaves of an authority.
//! - [`Authority::load`], [`check_leaf`], [`check_service_account`]: the same questions kubeadm asks of files that
//!   are already there, and those that would otherwise surface as a component that does not start.

mod authority;
mod error;
mod inspect;
mod issue;
mod key;
mod secret;
mod spec;

pub use authority::Authority;
pub use error::PkiError;
pub(crate) use inspect::certificates;
pub use inspect::{
    CertificateInfo, check_leaf, check_service_account, inspect, inspect_der, service_account_public_key,
};
pub use issue::{Issued, ServiceAccountKeys, issue_authority, issue_leaf, issue_service_account};
pub use secret::Secret;
pub use spec::{Files, SERVICE_ACCOUNT_KEY_FILE, SERVICE_ACCOUNT_PUBLIC_FILE, Spec, Usage, specifications};

#[cfg(test)]
mod tests;
