//! Why there is no plan.

use std::net::IpAddr;
use std::path::PathBuf;

use super::Item;
use crate::error::Hint;
use crate::release::{KubernetesVersion, SkewRefusal};

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A manifest that plinth did not write.
    #[error("`{}` is in the way: plinth did not write it", path.display())]
    ForeignManifest {
        /// The file.
        path: PathBuf,
    },
    /// A certificate, key or kubeconfig that cannot be used and that plinth must not replace.
    #[error("{reason}")]
    Unusable {
        /// Which.
        item: Item,
        /// Which check failed.
        reason: String,
        /// What to do about it.
        hints: Vec<String>,
    },
    /// Something is missing that only an absent CA key could sign.
    #[error("{item} is missing and cannot be made: the key of its authority ({authority}) is not on this host")]
    CannotSign {
        /// What is missing.
        item: Item,
        /// Its authority.
        authority: Item,
    },
    /// A CA of the running cluster, or the key of its service-account tokens, is gone.
    #[error("{item} of the running control plane is missing")]
    AuthorityLost {
        /// Which.
        item: Item,
    },
    /// The data of the running cluster is gone; an etcd that is started would begin an empty one.
    #[error("`{}` is empty: the data of the control plane is gone", path.display())]
    EtcdDataLost {
        /// Where it was.
        path: PathBuf,
    },
    /// The version cannot follow the one that runs.
    #[error(transparent)]
    Skew(SkewRefusal),
    /// Another version at another address.
    #[error("the address first: {from} at {address}, and then {to}; what would have to go back could not serve there")]
    VersionAndAddress {
        /// What runs.
        from: KubernetesVersion,
        /// What is asked for.
        to: KubernetesVersion,
        /// Where.
        address: IpAddr,
    },
    /// That etcd cannot follow the one that runs.
    #[error("etcd cannot go from {from} to {to}: one minor version at a time, told by the tags of the images")]
    EtcdVersion {
        /// Image that runs.
        from: String,
        /// Image that is asked for.
        to: String,
    },
    /// etcd's log would not be in the copy.
    #[error("etcd cannot be replaced by another version while its log is elsewhere (`--wal-dir` in its extraArgs)")]
    EtcdLogElsewhere,
    /// The data cannot be copied.
    #[error("etcd's data cannot be copied, and without a copy etcd is not replaced: {reason}")]
    EtcdCopy {
        /// Why not.
        reason: String,
        /// There is too little room.
        room: bool,
    },
}

impl Refusal {
    /// It is about what is asked for, and not about the host.
    pub fn is_usage(&self) -> bool {
        let usage = matches!(self, Self::Skew(_) | Self::EtcdVersion { .. } | Self::EtcdLogElsewhere);
        usage || matches!(self, Self::VersionAndAddress { .. })
    }

    /// The host is not ready for what is asked for.
    pub fn is_preflight(&self) -> bool {
        matches!(self, Self::EtcdCopy { .. })
    }
}

impl Hint for Refusal {
    fn hints(&self) -> Vec<String> {
        let one = |text: &str| vec![text.to_owned()];
        let again = |version: &KubernetesVersion| format!("plinth init --kubernetes-version {version}");
        match self {
            Self::ForeignManifest { .. } => one("move it away if it belongs to no cluster on this host"),
            Self::Unusable { hints, .. } => hints.clone(),
            Self::CannotSign { item, .. } => vec![format!("have {item} signed elsewhere and put it into place")],
            Self::AuthorityLost { .. } => one("put it back from a backup: everything it signed depends on it"),
            Self::EtcdDataLost { .. } => {
                one("mount it, or put it back from a backup; `plinth reset` and `plinth init` begin an empty cluster")
            }
            Self::Skew(SkewRefusal::SkipsMinors { path, .. }) => path.iter().skip(1).map(again).collect(),
            Self::Skew(SkewRefusal::TooFarBack { .. }) => one("`plinth history` shows what ran here"),
            Self::EtcdVersion { .. } => one("etcd.local.imageTag in the configuration names the version"),
            Self::EtcdLogElsewhere => one("move the log into the data directory first, with etcd stopped"),
            Self::VersionAndAddress { from, to, .. } => [from, to].map(|version| again(version)).into(),
            Self::EtcdCopy { room: true, .. } => one("make room on the file system of etcd's data directory"),
            Self::EtcdCopy { room: false, .. } => one("mend that, and run the same command again; nothing was touched"),
        }
    }
}
