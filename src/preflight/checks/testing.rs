//! Hosts for the tests of checks.

use std::path::PathBuf;

use jiff::Timestamp;

use super::{Check, Level};
use crate::config::Cluster;
use crate::preflight::{
    DiskSpace, EngineFacts, Facts, HostFacts, ImagePresence, KubeletFacts, Manifests, NameResolution, Ownership,
};
use crate::proc::{Capabilities, CgroupVersion, Cgroups, Listener, Memory, Process, Swap};
use crate::release::Component;
use crate::runtime::{CgroupDriver, RuntimeError, RuntimeInfo};

/// Process id of the agent.
pub(super) const AGENT: i32 = 4;

pub(super) const CONTAINER: &str = "9a8b7c6d5e4f30213243546576879809a8b7c6d5e4f3021324354657687980ab";
const ROOMY: Option<DiskSpace> = Some(DiskSpace { bytes: 100 << 30, files: Some(1_000_000) });

pub(super) fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

/// What the check `name` says of this host: level and message, or `None` when it passes.
#[track_caller]
pub(super) fn says(cluster: &Cluster, owned: &Ownership, facts: &Facts, name: &str) -> Option<(Level, String)> {
    let found = super::all(cluster, owned, facts).into_iter().find(|check: &Check| check.name == name);
    found.unwrap_or_else(|| panic!("no check `{name}`")).problem
}

/// A fresh host on which everything is well.
pub(super) fn good() -> Facts {
    let cluster = Cluster::example();
    Facts {
        host: HostFacts {
            uid: 0,
            cpus: 2,
            memory: Memory { total: 4 << 30, available: 3 << 30 },
            swaps: vec![],
            capabilities: Capabilities(u64::MAX),
            cgroups: Some(Cgroups {
                version: CgroupVersion::V2,
                controllers: ["cpu", "cpuset", "io", "memory", "pids"].map(str::to_owned).into(),
            }),
            addresses: [[127, 0, 0, 1].into(), cluster.advertise_address].into(),
            listeners: vec![],
            manifests: [].into(),
            etcd_data: "/var/lib/etcd".into(),
            etcd_data_entries: [].into(),
            etcd_space: ROOMY,
            state_space: ROOMY,
            kubernetes_space: ROOMY,
            systemd: true,
            docker_enabled: true,
            kubelets: vec![],
        },
        engine: Ok(EngineFacts {
            info: RuntimeInfo {
                name: "docker",
                version: "20.10.24".into(),
                api_version: "1.41".into(),
                storage_driver: "overlay2".into(),
                data_root: "/var/lib/docker".into(),
                cgroup_driver: CgroupDriver::Systemd,
                cgroup_version: 2,
                logging_driver: "json-file".into(),
                rootless: false,
                cpus: 2,
                memory: 4 << 30,
                warnings: vec![],
            },
            data_root_exists: true,
            space: ROOMY,
        }),
        engine_address: "unix:///var/run/docker.sock".into(),
        images: vec![("etcd:3".into(), ImagePresence::Present)],
        node_name: NameResolution::Resolves,
        now: at("2026-11-21T00:00:00Z"),
        not_before: vec![("/etc/kubernetes/pki/ca.crt".into(), at("2026-11-20T00:00:00Z"))],
        upgrade: None,
    }
}

/// That host after an `init`.
pub(super) fn ours() -> Facts {
    let mut facts = good();
    let etcd: PathBuf = "/var/lib/etcd".into();
    facts.host.manifests = Component::ALL
        .map(|component| (component, format!("/etc/kubernetes/manifests/{component}.yaml").into()))
        .into();
    facts.host.etcd_data_entries = [etcd.join("member")].into();
    facts.host.listeners = crate::preflight::ports::wanted(&Cluster::example())
        .into_keys()
        .map(|port| listener("0.0.0.0", port, Some(CONTAINER)))
        .collect();
    facts
}

/// What that `init` made.
pub(super) fn ownership() -> Ownership {
    let facts = ours();
    let mut paths: std::collections::BTreeSet<_> = facts.host.manifests.into_values().collect();
    paths.insert(facts.host.etcd_data);
    Ownership { container_ids: [CONTAINER.to_owned()].into(), agent: Some(AGENT), paths }
}

pub(super) fn listener(address: &str, port: u16, container: Option<&str>) -> Listener {
    let process = Process { pid: 812, command: "nginx".into(), container: container.map(str::to_owned) };
    Listener { address: address.parse().unwrap(), port, process: Some(process) }
}

/// A host on which hardly anything is well.
pub(super) fn broken() -> Facts {
    let mut facts = ours();
    let full = Some(DiskSpace { bytes: 0, files: Some(0) });
    let host = &mut facts.host;
    host.uid = 1000;
    host.cpus = 1;
    host.memory = Memory { total: 1 << 30, available: 1 << 29 };
    host.swaps = vec![Swap { name: "/swap".into(), size: 1 << 30 }];
    host.capabilities = Capabilities(0);
    host.cgroups = None;
    host.addresses.clear();
    host.etcd_space = full;
    host.state_space = full;
    host.kubernetes_space = full;
    host.docker_enabled = false;
    host.kubelets = vec![KubeletFacts { found: "process 7".into(), manifests: Manifests::Ours }];
    facts.engine = Err(RuntimeError::Unreachable("connection refused".into()));
    facts.engine_address = "tcp://192.0.2.1:2375".into();
    facts.images = vec![("etcd:3".into(), ImagePresence::Unknown("no answer".into()))];
    facts.node_name = NameResolution::Fails;
    facts.now = Timestamp::UNIX_EPOCH;
    facts
}
