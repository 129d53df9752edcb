//! The host: `/proc`, files, addresses, disks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::statvfs::statvfs;

use super::kubelet::{self, KubeletFacts};
use super::units;
use crate::config::Cluster;
use crate::layout::Layout;
use crate::preflight::{PreflightError, ports};
use crate::proc::{Capabilities, Cgroups, Listener, Memory, Proc, Swap};
use crate::release::Component;

/// How often it is looked for the owner of a socket, and how long from one time to the next.
const LOOKS: u32 = 10;
const AGAIN: Duration = Duration::from_millis(100);

/// What is known of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Our effective user id.
    pub uid: u32,
    /// Processors we may use.
    pub cpus: usize,
    /// Memory.
    pub memory: Memory,
    /// Swap areas in use.
    pub swaps: Vec<Swap>,
    /// What we may do.
    pub capabilities: Capabilities,
    /// Cgroups, where mounted.
    pub cgroups: Option<Cgroups>,
    /// Addresses of all interfaces.
    pub addresses: BTreeSet<IpAddr>,
    /// Who listens on the ports that we want.
    pub listeners: Vec<Listener>,
    /// Those of the four manifests that are there.
    pub manifests: BTreeMap<Component, PathBuf>,
    /// Where etcd's data will be, as it is on the host.
    pub etcd_data: PathBuf,
    /// What is in that directory.
    pub etcd_data_entries: BTreeSet<PathBuf>,
    /// Room where etcd's data will be.
    pub etcd_space: Option<DiskSpace>,
    /// Room for plinth's own state.
    pub state_space: Option<DiskSpace>,
    /// Room for certificates and manifests.
    pub kubernetes_space: Option<DiskSpace>,
    /// systemd is PID 1.
    pub systemd: bool,
    /// With systemd: a unit starts Docker at boot.
    pub docker_enabled: bool,
    /// Kubelets that run or will run after a boot.
    pub kubelets: Vec<KubeletFacts>,
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes that are free for us.
    pub bytes: u64,
    /// Files that can still be made; `None` on file systems that do not count.
    pub files: Option<u64>,
}

impl HostFacts {
    pub(super) fn read(cluster: &Cluster, layout: &Layout) -> Result<Self, PreflightError> {
        let proc = Proc::new(layout.proc());
        let ports: Vec<_> = ports::wanted(cluster).into_keys().collect();
        let etcd_data = layout.below_root(&cluster.etcd.data_dir);
        let manifests = Component::ALL
            .into_iter()
            .map(|component| (component, layout.manifests().join(format!("{component}.yaml"))))
            // A dangling symlink is in the way as well.
            .filter(|(_, path)| path.symlink_metadata().is_ok())
            .collect();
        Ok(Self {
            uid: nix::unistd::geteuid().as_raw(),
            cpus: proc.cpus()?,
            memory: proc.memory()?,
            swaps: proc.swaps()?,
            capabilities: proc.effective_capabilities()?,
            cgroups: proc.cgroups()?,
            addresses: addresses().map_err(PreflightError::Addresses)?,
            listeners: listeners(&proc, &ports)?,
            manifests,
            etcd_data_entries: entries(&etcd_data),
            etcd_space: disk_space(&etcd_data),
            etcd_data,
            state_space: disk_space(&layout.state()),
            kubernetes_space: disk_space(&layout.kubernetes()),
            systemd: units::systemd_runs(layout),
            docker_enabled: units::DOCKER.iter().any(|unit| units::is_enabled(layout, unit)),
            kubelets: kubelet::find(&proc, layout)?,
        })
    }
}

/// Who listens on `ports`. A socket outlives for a moment the process that is being killed, and nobody owns it then.
fn listeners(proc: &Proc, ports: &[u16]) -> Result<Vec<Listener>, PreflightError> {
    let mut looks = 0;
    loop {
        let found = proc.listeners(ports)?;
        looks += 1;
        if looks == LOOKS || found.iter().all(|listener| listener.process.is_some()) {
            return Ok(found);
        }
        std::thread::sleep(AGAIN);
    }
}

/// Room for `path`, which need not exist yet; `None` when it cannot be told.
pub fn disk_space(path: &Path) -> Option<DiskSpace> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let space = statvfs(existing).ok()?;
    Some(DiskSpace {
        bytes: space.blocks_available().saturating_mul(space.fragment_size()),
        files: (space.files() > 0).then(|| space.files_available()),
    })
}

/// Paths of what is in a directory; nothing when it is not there. A file in its place counts as its only entry.
fn entries(directory: &Path) -> BTreeSet<PathBuf> {
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
        Err(_) => [directory.to_path_buf()].into(),
    }
}

fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let interfaces = getifaddrs()?;
    Ok(interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|socket| IpAddr::from(socket.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|socket| IpAddr::from(socket.ip())))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_read_and_paths_are_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let cluster = Cluster::example();
        std::fs::create_dir_all(layout.manifests()).unwrap();
        std::os::unix::fs::symlink("/nonexistent", layout.manifests().join("etcd.yaml")).unwrap();
        let data = layout.below_root(&cluster.etcd.data_dir);
        std::fs::create_dir_all(data.join("member")).unwrap();

        let facts = HostFacts::read(&cluster, &layout).unwrap();
        assert!(facts.addresses.contains(&IpAddr::from([127, 0, 0, 1])), "{:?}", facts.addresses);
        assert_eq!(facts.manifests, [(Component::Etcd, layout.manifests().join("etcd.yaml"))].into());
        assert_eq!(facts.etcd_data_entries, [data.join("member")].into());
        assert!(!facts.systemd && !facts.docker_enabled);
        assert!(facts.state_space.unwrap().bytes > 0, "measured at the nearest directory that exists");
    }

    #[test]
    fn a_file_in_place_of_a_directory_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("etcd");
        assert_eq!(entries(&path), BTreeSet::new());
        std::fs::write(&path, "").unwrap();
        assert_eq!(entries(&path), [path].into());
    }
}
