//! What is to be done, one step at a time.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::Item;
use crate::release::Component;

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
        /// Replaces the one that is there; the reason it does not fit.
        replaces: Option<String>,
        /// Before everything else.
        #[serde(skip)]
        for_etcd: bool,
    },
    /// Write a static pod that is not there, or that of an attempt that did not succeed.
    WriteManifest {
        /// Whose.
        component: Component,
        /// The file differs from what is wanted.
        replaces: bool,
    },
    /// Start the agent, now and at every boot.
    StartAgent,
    /// Exchange the static pod of a component that others rely on: write, wait until the new one runs and is healthy,
    /// and put the old one back where that does not happen.
    Exchange {
        /// Whose.
        component: Component,
        /// What is put back.
        back: Back,
    },
    /// Go on with a swap of etcd that was interrupted, or undo it.
    FinishEtcdSwap {
        /// It goes on; otherwise it is undone.
        forward: bool,
    },
    /// Replace etcd by one of another version: as [`Step::Exchange`], with a copy of the data between the two.
    SwapEtcd {
        /// What is put back.
        back: Back,
    },
    /// Wait until all components are healthy.
    Wait,
    /// Give `admin.conf` and the agent their rights.
    BindClusterAdmins,
    /// Wait until the agent has registered the node, and give it the labels and taints of a control plane.
    MarkControlPlane {
        /// Taints that it loses, as `key=value:effect`.
        lifted: Vec<String>,
    },
    /// Remove the Node, its mirror pods and `kubelet.conf`: the node is no longer registered.
    RemoveNode,
    /// Record that the control plane is as configured.
    Commit,
}

/// What is put back when an exchanged component does not become healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Back {
    /// The manifest that was on disk: its component was healthy.
    OnDisk,
    /// The manifest of the last generation.
    LastGeneration,
    /// Nothing: there is none that was healthy.
    Nothing,
}

impl Step {
    /// The phase it belongs to.
    pub fn phase(&self) -> &'static str {
        match self {
            Self::StopPods | Self::SetEtcdDataAside { .. } | Self::StartAgent => "agent-start",
            Self::Issue { item, .. } => item,
            Self::WriteManifest { component, .. } | Self::Exchange { component, .. } => manifest_phase(*component),
            Self::FinishEtcdSwap { .. } | Self::SwapEtcd { .. } => manifest_phase(Component::Etcd),
            Self::Wait | Self::Commit => "wait-control-plane",
            Self::BindClusterAdmins => "cluster-admins",
            Self::MarkControlPlane { .. } | Self::RemoveNode => "mark-control-plane",
        }
    }

    /// Whether it comes when everything that was exchanged serves.
    pub fn is_behind_the_wait(&self) -> bool {
        self.rank() > Self::Wait.rank()
    }

    /// Position in execution. etcd is started while the rest is still being made, which is worth a few tenths of a
    /// second; within a rank the order is that of the phases, and so of the dependencies.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::StopPods => 0,
            Self::SetEtcdDataAside { .. } => 1,
            Self::Issue { for_etcd: true, .. } | Self::WriteManifest { component: Component::Etcd, .. } => 2,
            Self::StartAgent => 3,
            Self::Issue { .. } | Self::WriteManifest { .. } => 4,
            Self::FinishEtcdSwap { .. } => 5,
            Self::Exchange { .. } | Self::SwapEtcd { .. } => 6,
            Self::Wait => 7,
            Self::BindClusterAdmins => 8,
            Self::MarkControlPlane { .. } | Self::RemoveNode => 9,
            Self::Commit => 10,
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
            Self::Exchange { component, back: Back::Nothing } => {
                write!(f, "replace the manifest of {component} and wait until it is healthy")
            }
            Self::Exchange { component, .. } => {
                write!(f, "replace the manifest of {component}, wait until it is healthy, or else put the old one back")
            }
            Self::FinishEtcdSwap { forward: true } => {
                f.write_str("go on with the replacement of etcd that was interrupted, or else undo it")
            }
            Self::FinishEtcdSwap { forward: false } => f.write_str("undo the replacement of etcd that was interrupted"),
            Self::SwapEtcd { .. } => f.write_str(
                "stop etcd, copy its data, start the new one and wait until it is healthy, or else bring the old one \
                 back with every write",
            ),
            Self::Wait => f.write_str("wait until every component is healthy"),
            Self::BindClusterAdmins => f.write_str("give admin.conf and the agent their rights"),
            Self::MarkControlPlane { .. } => f.write_str("give the node the labels and taints of a control plane"),
            Self::RemoveNode => f.write_str("remove the Node, its mirror pods and kubelet.conf"),
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
