//! Every path plinth reads or writes, below one root.

use std::path::{Path, PathBuf};

/// The host's file system as plinth sees it. `/` in production, a temporary directory in tests.
///
/// Paths follow kubeadm where it has one (its documentation and tools then hold), and the FHS elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self::new("/")
    }
}

impl Layout {
    /// A layout below `root`, which is absolute.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `path` (absolute, as a configuration names it) below this root.
    pub fn below_root(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// `/etc/kubernetes`, 0755: kubeconfigs (0600), `pki` and `manifests` live here.
    pub fn kubernetes(&self) -> PathBuf {
        self.root.join("etc/kubernetes")
    }

    /// `/etc/kubernetes/manifests`, 0700: the static pods, 0600 each.
    pub fn manifests(&self) -> PathBuf {
        self.kubernetes().join("manifests")
    }

    /// `/var/lib/plinth`, 0700: everything plinth remembers.
    pub fn state(&self) -> PathBuf {
        self.root.join("var/lib/plinth")
    }

    /// `/var/lib/plinth/journal`, 0600: see [`crate::journal`].
    pub fn journal(&self) -> PathBuf {
        self.state().join("journal")
    }

    /// `/var/lib/plinth/lock`, 0600: held by the one command that changes the host.
    pub fn lock(&self) -> PathBuf {
        self.state().join("lock")
    }

    /// `/var/lib/plinth/agent.lock`, 0600: held by the one agent of this root; holds its pid.
    pub fn agent_lock(&self) -> PathBuf {
        self.state().join("agent.lock")
    }

    /// `/var/lib/plinth/agent-id`, 0600: the value of our containers' `plinth.dev/agent` label, random per root.
    pub fn agent_id(&self) -> PathBuf {
        self.state().join("agent-id")
    }

    /// `/var/lib/plinth/generations`, 0700: configuration and manifests of each successful `init`.
    pub fn generations(&self) -> PathBuf {
        self.state().join("generations")
    }

    /// `/var/lib/plinth/bin`, 0700: builds of plinth that ran the agent here and were replaced.
    pub fn binaries(&self) -> PathBuf {
        self.state().join("bin")
    }

    /// `/var/lib/plinth/snapshots`, 0700: etcd's data before each swap of etcd, for people; 0600 each.
    pub fn snapshots(&self) -> PathBuf {
        self.state().join("snapshots")
    }

    /// `/var/lib/plinth/etcd-swap`, 0700: the manifests of a swap of etcd that is under way, 0600 each.
    pub fn etcd_swap(&self) -> PathBuf {
        self.state().join("etcd-swap")
    }

    /// `/var/lib/plinth/pods`, 0750: one directory per pod UID (volumes, termination messages, hosts files).
    pub fn pods(&self) -> PathBuf {
        self.state().join("pods")
    }

    /// Last proven specs of pods that are replaced new-first.
    pub fn proven(&self) -> PathBuf {
        self.state().join("proven")
    }

    /// `/run/plinth`, 0700: the agent's socket; empty after a boot.
    pub fn run(&self) -> PathBuf {
        self.root.join("run/plinth")
    }

    /// `/run/plinth/agent.sock`, 0600: the agent's HTTP interface.
    pub fn socket(&self) -> PathBuf {
        self.run().join("agent.sock")
    }

    /// `/var/log/plinth/agent.log`, 0600: the agent's log where systemd does not keep it.
    pub fn agent_log(&self) -> PathBuf {
        self.root.join("var/log/plinth/agent.log")
    }

    /// `/var/log/pods`, 0755: links to the logs of containers, by pod. The kubelet's path.
    pub fn pod_logs(&self) -> PathBuf {
        self.root.join("var/log/pods")
    }

    /// `/var/log/containers`, 0755: links to those in [`Layout::pod_logs`], flat. The kubelet's path.
    pub fn container_logs(&self) -> PathBuf {
        self.root.join("var/log/containers")
    }

    /// `/var/lib/kubelet/pki`, 0755: what is shown to clients of port 10250, `kubelet.crt` (0644) and `kubelet.key` (0600).
    /// The kubelet's path.
    pub fn kubelet_pki(&self) -> PathBuf {
        self.root.join("var/lib/kubelet/pki")
    }

    /// `/etc/systemd/system/plinth-agent.service`, 0644.
    pub fn unit(&self) -> PathBuf {
        self.root.join("etc/systemd/system/plinth-agent.service")
    }

    /// `/usr/local/bin/plinth`, 0755.
    pub fn binary(&self) -> PathBuf {
        self.root.join("usr/local/bin/plinth")
    }

    /// `/proc`, always the kernel's own: tests of other roots look at the same processes.
    pub fn proc(&self) -> PathBuf {
        PathBuf::from("/proc")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_paths_stay_below_the_root() {
        let layout = Layout::new("/tmp/x");
        assert_eq!(layout.below_root(Path::new("/var/lib/etcd")), Path::new("/tmp/x/var/lib/etcd"));
        assert_eq!(Layout::default().below_root(Path::new("/var/lib/etcd")), Path::new("/var/lib/etcd"));
    }
}
