//! What is known when a control plane does not come up.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::agent::status::{AgentStatus, ContainerSummary};
use crate::release::Component;

/// All of it. Whoever gathers it fills in what can be learnt and goes on where something cannot.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// The host's clock.
    pub now: Timestamp,
    /// How long the components were waited for.
    pub waited: Duration,
    /// Whether the container engine answers, or why not.
    pub runtime: Result<(), String>,
    /// What the agent says, or why it does not answer.
    pub agent: Result<AgentStatus, String>,
    /// The components, dependencies first.
    pub components: Vec<ComponentEvidence>,
    /// Who listens on the control plane's ports.
    pub ports: Vec<PortOwner>,
    /// The file systems of etcd's data, the engine's data and our state.
    pub disks: Vec<Disk>,
    /// `MemAvailable` of `/proc/meminfo`, in bytes.
    pub memory_available: Option<u64>,
    /// Validity of the certificates on disk.
    pub certificates: Vec<CertificateDates>,
    /// The configured address.
    pub advertise_address: IpAddr,
    /// An interface of this host has that address.
    pub address_is_ours: bool,
    /// etcd's data directory.
    pub etcd_data_dir: PathBuf,
}

/// What is known of one component beside the agent's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentEvidence {
    /// Which.
    pub component: Component,
    /// The last reason of [`crate::health::wait`]; `None` for a healthy one.
    pub unhealthy: Option<String>,
    /// Its image, when that is not on this host.
    pub missing_image: Option<String>,
    /// The last lines (some 200) of its newest container, oldest first.
    pub log: Vec<String>,
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortOwner {
    /// Port.
    pub port: u16,
    /// The component that needs it.
    pub component: Component,
    /// Who listens, where that can be seen.
    pub pid: Option<i32>,
    /// Name of that process; empty where it cannot be seen.
    pub command: String,
    /// It is a process of a container of ours.
    pub ours: bool,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// The directory that was looked at.
    pub path: PathBuf,
    /// Bytes that are free for root.
    pub free: u64,
    /// Bytes in total.
    pub total: u64,
}

/// From when to when a certificate is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateDates {
    /// Its file.
    pub file: PathBuf,
    /// Not before.
    pub not_before: Timestamp,
    /// Not after.
    pub not_after: Timestamp,
}

impl Evidence {
    /// Those that are not healthy, dependencies first.
    pub(super) fn unhealthy(&self) -> impl Iterator<Item = &ComponentEvidence> {
        self.components.iter().filter(|component| component.unhealthy.is_some())
    }

    /// The agent's view of the component's container, where it has one.
    pub(super) fn container(&self, component: Component) -> Option<&ContainerSummary> {
        let pod = self.agent.as_ref().ok()?.control_plane_pod(component.name())?;
        pod.containers.iter().find(|container| container.name == component.name())
    }
}
