//! Configuration: kubeadm's wire format → defaults → the validated [`Cluster`].

mod cluster;

pub use cluster::*;

/// Proof that a [`Cluster`] went through this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked(());
