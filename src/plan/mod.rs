//! What differs between configuration and host, and the steps that mend it.
//!
//! [`observe()`] looks at the host; [`compute`] decides, without I/O and without a clock; [`crate::apply`] acts. The
//! first `init` is the plan from an empty host, a rerun is the plan from what is there, and nothing to do is an empty
//! plan.
//!
//! # Guarantees
//! - A foreign file in our way is a refusal that names it, never a step.
//! - Until an `init` has been committed, what an earlier attempt made is replaced where it does not fit; afterwards a
//!   difference is a refusal that shows it.
//! - All refusals are found at once, before anything is touched.

mod inventory;
mod observe;
mod phase;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

pub use inventory::{CredentialFile, Entry, Inventory, Kind};
pub use observe::{
    CONFIG_FILE, HOST_FILE, Live, authorities, certificates, external_ca, generation_directory, manifest_path, observe,
    rendered_host, standing,
};
pub use phase::{INIT, Phase, Skip, UnknownPhase};

use crate::error::Hint;
use crate::manifests::Manifest;
use crate::release::Component;

/// Something on disk that the configuration describes, by the name of the phase that makes it: `certs/apiserver`,
/// `kubeconfig/admin`, `etcd/local`.
pub type Item = &'static str;

/// What the configuration asks for, as far as it is compared.
#[derive(Debug)]
pub struct Desired<'a> {
    /// The effective configuration in kubeadm's format.
    pub config: &'a str,
    /// The four static pods.
    pub manifests: &'a [Manifest],
    /// Certificates, keys and kubeconfigs, authorities before what they sign.
    pub credentials: Vec<Credential>,
    /// etcd's data directory.
    pub etcd_data: PathBuf,
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
    /// The unit of the agent, where plinth made one, starts it at boot.
    pub agent_starts_at_boot: bool,
    /// Components that are not healthy, each with the reason.
    pub unhealthy: BTreeMap<Component, String>,
    /// Containers of ours exist.
    pub has_containers: bool,
}

/// How far earlier runs came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// There was none, or it was reset.
    New,
    /// An `init` has begun and none has succeeded.
    Unfinished,
    /// An `init` has succeeded.
    Committed {
        /// The configuration it had, in kubeadm's format.
        config: String,
    },
}

/// A certificate, key pair or kubeconfig on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is what the configuration asks for. An authority may lack its key: then it cannot sign.
    Good {
        /// False only for an authority without key.
        can_sign: bool,
    },
    /// It is not.
    Bad {
        /// Which check failed.
        reason: String,
        /// What to do about it.
        hints: Vec<String>,
        /// An earlier attempt of ours made it.
        ours: bool,
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

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Stop the agent and remove our containers: an attempt that did not succeed starts afresh, without its back-off.
    StopPods,
    /// Rename the data directory of an attempt that did not succeed and no longer fits.
    SetEtcdDataAside {
        /// The directory.
        path: PathBuf,
    },
    /// Make a certificate, key pair or kubeconfig.
    Issue {
        /// Which.
        item: Item,
        /// Replaces one of an earlier attempt; the reason it does not fit.
        replaces: Option<String>,
        /// Before everything else.
        #[serde(skip)]
        for_etcd: bool,
    },
    /// Write a static pod.
    WriteManifest {
        /// Whose.
        component: Component,
        /// The file differs from what is wanted.
        replaces: bool,
    },
    /// Start the agent, now and at every boot.
    StartAgent,
    /// Wait until all components are healthy.
    Wait,
    /// Create the binding that gives `admin.conf` its rights.
    BindClusterAdmins,
    /// Record that the control plane is as configured.
    Commit,
}

impl Step {
    /// The phase it belongs to.
    pub fn phase(&self) -> &'static str {
        match self {
            Self::StopPods | Self::SetEtcdDataAside { .. } | Self::StartAgent => "agent-start",
            Self::Issue { item, .. } => item,
            Self::WriteManifest { component, .. } => manifest_phase(*component),
            Self::Wait | Self::Commit => "wait-control-plane",
            Self::BindClusterAdmins => "cluster-admins",
        }
    }

    /// Position in execution. etcd is started while the rest is still being made, which is worth a few tenths of a
    /// second; within a rank the order is that of the phases.
    fn rank(&self) -> u8 {
        match self {
            Self::StopPods => 0,
            Self::SetEtcdDataAside { .. } => 1,
            Self::Issue { for_etcd: true, .. } | Self::WriteManifest { component: Component::Etcd, .. } => 2,
            Self::StartAgent => 3,
            Self::Issue { .. } | Self::WriteManifest { .. } => 4,
            Self::Wait => 5,
            Self::BindClusterAdmins => 6,
            Self::Commit => 7,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StopPods => f.write_str("stop what an unfinished init left running"),
            Self::SetEtcdDataAside { path } => {
                write!(f, "set the data of an unfinished init aside: {}", path.display())
            }
            Self::Issue { item, replaces: None, .. } => write!(f, "make {item}"),
            Self::Issue { item, replaces: Some(reason), .. } => write!(f, "make {item} anew: {reason}"),
            Self::WriteManifest { component, replaces: false } => write!(f, "write the manifest of {component}"),
            Self::WriteManifest { component, replaces: true } => write!(f, "replace the manifest of {component}"),
            Self::StartAgent => f.write_str("start the agent"),
            Self::Wait => f.write_str("wait until every component is healthy"),
            Self::BindClusterAdmins => f.write_str("bind the group kubeadm:cluster-admins to cluster-admin"),
            Self::Commit => f.write_str("record the configuration as reached"),
        }
    }
}

/// The phase that writes the manifest of `component`.
pub fn manifest_phase(component: Component) -> &'static str {
    match component {
        Component::Etcd => "etcd/local",
        Component::KubeApiserver => "control-plane/apiserver",
        Component::KubeControllerManager => "control-plane/controller-manager",
        Component::KubeScheduler => "control-plane/scheduler",
    }
}

/// Steps in the order in which they are performed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The plan without skipped phases. What was not waited for is not recorded as reached.
    #[must_use]
    pub fn without(mut self, skip: &Skip) -> Self {
        self.steps.retain(|step| !skip.covers(step.phase()));
        self
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The configuration differs from that of the cluster that runs here.
    #[error("a control plane with another configuration runs here:\n{diff}")]
    ConfigurationDiffers {
        /// Unified difference, running → asked for.
        diff: String,
    },
    /// A manifest was edited, or this plinth renders it differently.
    #[error("`{}` differs from what the configuration gives:\n{diff}", path.display())]
    ManifestDiffers {
        /// The file.
        path: PathBuf,
        /// Unified difference, file → configuration.
        diff: String,
    },
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
    /// A CA of the running cluster is gone.
    #[error("{item} of the running control plane is missing")]
    AuthorityLost {
        /// Which.
        item: Item,
    },
}

impl Hint for Refusal {
    fn hints(&self) -> Vec<String> {
        let one = |text: &str| vec![text.to_owned()];
        match self {
            Self::ConfigurationDiffers { .. } => one(
                "changing a running control plane is not supported yet; run `plinth init` without flags to check it, \
                 or `plinth reset` to take it away first",
            ),
            Self::ManifestDiffers { .. } => one(
                "undo the edit (the lines marked `+` are what plinth wrote), or `plinth reset` and `plinth init` with \
                 the change in extraArgs, extraEnvs or extraVolumes",
            ),
            Self::ForeignManifest { .. } => one("move it away if it belongs to no cluster on this host"),
            Self::Unusable { hints, .. } => hints.clone(),
            Self::CannotSign { item, .. } => vec![format!("have {item} signed elsewhere and put it into place")],
            Self::AuthorityLost { .. } => one("put it back from a backup: everything it signed depends on it"),
        }
    }
}

/// Decides what is to be done; all refusals together where something stands in the way.
pub fn compute(desired: &Desired<'_>, observed: &Observed) -> Result<Plan, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let committed = matches!(observed.standing, Standing::Committed { .. });
    if let Standing::Committed { config } = &observed.standing
        && config != desired.config
    {
        refusals.push(Refusal::ConfigurationDiffers { diff: diff(config, desired.config) });
        return Err(refusals);
    }

    let issues = credentials(desired, observed, &mut refusals);
    let mut manifests = manifests(desired, observed, &mut refusals);
    if !refusals.is_empty() {
        return Err(refusals);
    }

    let changes = !issues.is_empty() || !manifests.is_empty();
    let start_agent = !observed.agent_runs || !observed.agent_starts_at_boot;
    let unhealthy = !observed.unhealthy.is_empty() || start_agent;
    let takes_over = !committed && (observed.agent_runs || observed.has_containers) && (changes || unhealthy);
    let mut steps = Vec::new();
    // An etcd that was interrupted while it made its data never elects a leader from it, and other addresses or another
    // authority contradict it. A cluster that was never healthy has nothing to lose; its data is kept all the same.
    if !committed && observed.etcd_data == EtcdData::Ours && (changes || unhealthy) {
        steps.push(Step::SetEtcdDataAside { path: desired.etcd_data.clone() });
    }
    if takes_over {
        steps.push(Step::StopPods);
        // Stopping takes the manifests away, or the agent would run the old ones until the new ones are there.
        let replaces = |component| manifests.contains(&Step::WriteManifest { component, replaces: true });
        manifests = desired
            .manifests
            .iter()
            .map(|manifest| manifest.component)
            .map(|component| Step::WriteManifest { component, replaces: replaces(component) })
            .collect();
    }
    steps.extend(issues);
    steps.extend(manifests);
    if takes_over || start_agent {
        steps.push(Step::StartAgent);
    }
    if changes || unhealthy {
        steps.push(Step::Wait);
    }
    if !committed {
        steps.push(Step::BindClusterAdmins);
        steps.push(Step::Commit);
    }
    steps.sort_by_key(Step::rank);
    Ok(Plan { steps })
}

fn credentials(desired: &Desired<'_>, observed: &Observed, refusals: &mut Vec<Refusal>) -> Vec<Step> {
    let committed = matches!(observed.standing, Standing::Committed { .. });
    let mut steps = Vec::new();
    let mut made: Vec<Item> = Vec::new();
    for credential in &desired.credentials {
        let Credential { item, authority, for_etcd } = *credential;
        let found = observed.credentials.get(item);
        // What an authority signed goes with it. Its files then no longer verify, so they are `Bad`.
        let replaces = match found {
            Some(Found::Good { .. }) => continue,
            Some(Found::Bad { reason, ours: true, .. }) if !committed => Some(reason.clone()),
            Some(Found::Bad { reason, hints, .. }) => {
                let unusable = Refusal::Unusable { item, reason: reason.clone(), hints: hints.clone() };
                refusals.push(unusable);
                continue;
            }
            None if committed && desired.credentials.iter().any(|other| other.authority == Some(item)) => {
                refusals.push(Refusal::AuthorityLost { item });
                continue;
            }
            None => None,
        };
        if let Some(authority) = authority {
            let signs = match observed.credentials.get(authority) {
                Some(Found::Good { can_sign }) => *can_sign,
                _ => made.contains(&authority),
            };
            if !signs {
                // Where the authority itself was refused, that is the one thing to say.
                if matches!(observed.credentials.get(authority), Some(Found::Good { .. })) {
                    refusals.push(Refusal::CannotSign { item, authority });
                }
                continue;
            }
        }
        made.push(item);
        steps.push(Step::Issue { item, replaces, for_etcd });
    }
    steps
}

fn manifests(desired: &Desired<'_>, observed: &Observed, refusals: &mut Vec<Refusal>) -> Vec<Step> {
    let committed = matches!(observed.standing, Standing::Committed { .. });
    let mut steps = Vec::new();
    for manifest in desired.manifests {
        let component = manifest.component;
        match observed.manifests.get(&component) {
            Some(found) if found.content == manifest.yaml => {}
            Some(found) if !found.ours => refusals.push(Refusal::ForeignManifest { path: found.path.clone() }),
            Some(found) if committed => refusals.push(Refusal::ManifestDiffers {
                path: found.path.clone(),
                diff: diff(&found.content, &manifest.yaml),
            }),
            Some(_) => steps.push(Step::WriteManifest { component, replaces: true }),
            None => steps.push(Step::WriteManifest { component, replaces: false }),
        }
    }
    steps
}

fn diff(old: &str, new: &str) -> String {
    similar::TextDiff::from_lines(old, new).unified_diff().context_radius(1).to_string()
}

#[cfg(test)]
mod tests;
