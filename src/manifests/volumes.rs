//! Host paths that the components see, as kubeadm 1.37 mounts them (`phases/controlplane/volumes.go`). Pure.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::config::Cluster;
use crate::layout::Layout;
use crate::release::Component;

/// Where every distribution has its CA certificates, perhaps as links elsewhere (kubeadm: `caCertsVolumePath`).
const CA_CERTIFICATES: &str = "/etc/ssl/certs";

/// A host path and where the container sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Volume {
    name: String,
    host_path: String,
    mount_path: String,
    read_only: bool,
    path_type: String,
}

impl Volume {
    /// The same path inside as outside.
    fn new(name: &str, path: &Path, read_only: bool, path_type: &str) -> Self {
        let path = path.display().to_string();
        Self {
            name: name.to_owned(),
            host_path: path.clone(),
            mount_path: path,
            read_only,
            path_type: path_type.to_owned(),
        }
    }
}

/// The volumes of `component`, sorted by name; the user's replace ours of the same name.
pub(super) fn volumes(cluster: &Cluster, component: Component, layout: &Layout) -> Vec<Volume> {
    const DIRECTORY: &str = "DirectoryOrCreate";
    let pki = layout.below_root(&cluster.cert_dir);
    let kubeconfig = |name| Volume::new("kubeconfig", &layout.kubernetes().join(name), true, "FileOrCreate");
    let certificates = || {
        let mut volumes = vec![
            Volume::new("k8s-certs", &pki, true, DIRECTORY),
            Volume::new("ca-certs", Path::new(CA_CERTIFICATES), true, DIRECTORY),
        ];
        volumes.extend(cluster.host.ca_directories.iter().map(|path| {
            let name = path.display().to_string().trim_start_matches('/').replace('/', "-");
            Volume::new(&name, path, true, DIRECTORY)
        }));
        volumes
    };
    let ours = match component {
        Component::Etcd => vec![
            Volume::new("etcd-data", &layout.below_root(&cluster.etcd.data_dir), false, DIRECTORY),
            Volume::new("etcd-certs", &pki.join("etcd"), false, DIRECTORY),
        ],
        Component::KubeApiserver => certificates(),
        Component::KubeControllerManager => {
            let mut volumes = certificates();
            volumes.push(kubeconfig("controller-manager.conf"));
            volumes
        }
        Component::KubeScheduler => vec![kubeconfig("scheduler.conf")],
    };
    let theirs = cluster.options(component).extra_volumes.iter().map(|volume| Volume {
        name: volume.name.clone(),
        host_path: volume.host_path.clone(),
        mount_path: volume.mount_path.clone(),
        read_only: volume.read_only,
        path_type: volume.path_type.clone(),
    });
    let by_name: BTreeMap<_, _> = ours.into_iter().chain(theirs).map(|volume| (volume.name.clone(), volume)).collect();
    by_name.into_values().collect()
}
