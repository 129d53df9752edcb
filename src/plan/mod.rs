//! What differs between configuration and host, and the steps that mend it.
//!
//! [`observe()`] looks at the host; [`compute()`] decides, without I/O and without a clock; [`crate::apply`] acts. The
//! first `init` is the plan from an empty host, a rerun is the plan from what is there, and nothing to do is an empty
//! plan. There is no other way to change a control plane.
//!
//! # Guarantees
//! - A foreign file in our way is a refusal that names it, never a step.
//! - Until an `init` has been committed, what an earlier attempt made is replaced where it does not fit. Afterwards each
//!   component is compared by itself with what was rendered for it last time, so that one that is to change restarts
//!   alone, and what somebody did by hand is told from what somebody asks for.
//! - Authorities, the key of service-account tokens and etcd's data are never made anew for a cluster that has them.
//! - All refusals are found at once, before anything is touched.

mod change;
mod compute;
mod etcd;
mod file;
pub mod generation;
mod inventory;
mod observe;
mod phase;
mod refusal;
mod show;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

pub use change::{AddressChange, Cause, Change, Class, ImageChange, VersionChange};
pub use compute::compute;
pub use etcd::{OpenSwap, change_between, image_of, replaces_etcd, series};
pub use file::{Inputs, PlanFile, PlanFileError};
pub use generation::Generation;
pub use inventory::{CredentialFile, Entry, Inventory, Kind};
pub use observe::{
    Live, authorities, certificate, certificates, external_ca, manifest_path, observe, serials, standing,
};
pub use phase::{INIT, Phase, Skip, UnknownPhase};
pub use refusal::Refusal;
pub use show::text;
pub use step::{Back, Step, manifest_phase};

use crate::cluster::node::NodeState;
use crate::config::Cluster;
use crate::etcd::Prospect;
use crate::manifests::Manifest;
use crate::release::Component;

/// Something on disk that the configuration describes, by the name of the phase that makes it: `certs/apiserver`,
/// `kubeconfig/admin`, `etcd/local`.
pub type Item = &'static str;

/// What the configuration asks for, as far as it is compared.
#[derive(Debug)]
pub struct Desired<'a> {
    /// The configuration.
    pub cluster: &'a Cluster,
    /// The same in kubeadm's format, as it is kept.
    pub config: &'a str,
    /// The four static pods.
    pub manifests: &'a [Manifest],
    /// Certificates, keys and kubeconfigs, authorities before what they sign.
    pub credentials: Vec<Credential>,
    /// etcd's data directory.
    pub etcd_data: PathBuf,
    /// The control plane that runs here.
    pub before: Option<Before<'a>>,
    /// What authorities have signed is renewed when the version goes up.
    pub renew: bool,
}

/// What this plinth makes of the configuration that the control plane runs with.
#[derive(Debug)]
pub struct Before<'a> {
    /// That configuration.
    pub cluster: &'a Cluster,
    /// Its static pods, as this plinth renders them.
    pub manifests: &'a [Manifest],
    /// Credentials that are specified otherwise in what is asked for.
    pub respecified: BTreeSet<Item>,
}

/// A certificate, key pair or kubeconfig to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credential {
    /// `certs/apiserver`.
    pub item: Item,
    /// The item of the authority that signs it.
    pub authority: Option<Item>,
    /// etcd cannot start without it, so it is made first.
    pub for_etcd: bool,
}

/// What is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// How far earlier runs came.
    pub standing: Standing,
    /// Certificates, keys and kubeconfigs; an item that is missing here is absent.
    pub credentials: BTreeMap<Item, Found>,
    /// Manifests.
    pub manifests: BTreeMap<Component, FoundManifest>,
    /// etcd's data.
    pub etcd_data: EtcdData,
    /// The agent of this root runs.
    pub agent_runs: bool,
    /// In what the agent that runs differs from the one that would be started.
    pub agent_outdated: Option<&'static str>,
    /// The unit of the agent, where plinth made one, starts it at boot.
    pub agent_starts_at_boot: bool,
    /// Components that are not healthy, each with the reason.
    pub unhealthy: BTreeMap<Component, String>,
    /// Containers of ours exist.
    pub has_containers: bool,
    /// Components of which a container runs.
    pub running: BTreeSet<Component>,
    /// Whether `admin.conf` and the agent have their rights; `None` where nobody could be asked.
    pub cluster_admins: Option<bool>,
    /// The Node of this host; `None` where nobody could be asked, and where it is not to be registered.
    pub node: Option<NodeState>,
    /// `kubelet.conf`, where it is there and plinth made it.
    pub node_kubeconfig: Option<PathBuf>,
    /// A swap of etcd that has begun and not ended.
    pub etcd_swap: Option<OpenSwap>,
    /// What a copy of etcd's data would need, or why there can be none; `None` where nobody has looked.
    pub etcd_copy: Option<Result<Prospect, String>>,
}

/// How far earlier runs came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// There was none, or it was reset.
    New,
    /// An `init` has begun and none has succeeded.
    Unfinished,
    /// An `init` has succeeded; what the last one left.
    Committed(Box<Generation>),
}

impl Standing {
    /// The generation that runs here.
    pub fn committed(&self) -> Option<&Generation> {
        match self {
            Self::Committed(generation) => Some(generation),
            Self::New | Self::Unfinished => None,
        }
    }
}

/// A certificate, key pair or kubeconfig on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is what the configuration asks for. An authority may lack its key: then it cannot sign.
    Good {
        /// False only for an authority without key.
        can_sign: bool,
        /// A kubeconfig that works and leads elsewhere: where it leads, and where it should. People may want that.
        other_server: Option<String>,
        /// What an authority has signed, and has not been renewed since the last generation: its serial number is there.
        as_committed: bool,
    },
    /// It is not.
    Bad {
        /// Which check failed.
        reason: String,
        /// What to do about it.
        hints: Vec<String>,
        /// An earlier `init` of ours made it.
        ours: bool,
        /// What is missing follows from what is there, so that making it changes nothing for anybody.
        derivable: bool,
    },
}

/// A manifest on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundManifest {
    /// Where.
    pub path: PathBuf,
    /// What it says.
    pub content: String,
    /// plinth wrote a file of this name.
    pub ours: bool,
}

/// What is in etcd's data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtcdData {
    /// Nothing.
    Empty,
    /// Data of a cluster that plinth began here.
    Ours,
    /// Other data. Preflight refuses it unless told not to; whoever insists wants it served, and it is not ours to
    /// move or remove.
    Foreign,
}

/// What differs, and the steps that mend it in the order in which they are performed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Another Kubernetes; the first thing to know.
    pub version: Option<VersionChange>,
    /// Another address or port; the next thing to know.
    pub address: Option<AddressChange>,
    /// What differs.
    pub changes: Vec<Change>,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What is to be known first, one line each: another version, another address.
    pub fn headlines(&self) -> impl Iterator<Item = String> {
        let version = self.version.iter().map(ToString::to_string);
        version.chain(self.address.iter().map(ToString::to_string))
    }

    /// What differs, one line each, and one for all that is renewed.
    pub fn summary(&self) -> Vec<String> {
        show::changes(&self.changes, show::line)
    }

    /// What those who use the cluster notice at worst.
    pub fn class(&self) -> Class {
        self.changes.iter().map(|change| change.class).max().unwrap_or(Class::None)
    }

    /// The plan without skipped phases. What was not waited for is not recorded as reached, and neither is a control
    /// plane that goes on with a manifest that was to be exchanged.
    #[must_use]
    pub fn without(mut self, skip: &Skip) -> Self {
        let exchanges =
            |step: &Step| matches!(step, Step::Exchange { .. } | Step::SwapEtcd { .. } | Step::FinishEtcdSwap { .. });
        if self.steps.iter().any(|step| exchanges(step) && skip.covers(step.phase())) {
            self.steps.retain(|step| *step != Step::Commit);
        }
        self.steps.retain(|step| !skip.covers(step.phase()));
        self.changes.retain(|change| !skip.covers(change.phase));
        if !self.steps.contains(&Step::Commit) {
            self.changes.retain(|change| change.what != change::CONFIGURATION);
        }
        self
    }
}

#[cfg(test)]
mod tests;
