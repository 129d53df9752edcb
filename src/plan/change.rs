//! What differs, and what it costs to mend it.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

use super::{Step, etcd};
use crate::config::Cluster;
use crate::release::{Component, KubernetesVersion};

/// Something that is not as the configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What: `kube-scheduler`, `certs/apiserver`, `kubeconfig/admin`, `agent`, `configuration`, …
    pub what: String,
    /// What those who use the cluster notice.
    pub class: Class,
    /// Where the difference comes from.
    pub cause: Cause,
    /// In words.
    pub reason: String,
    /// The image, where it changes.
    pub image: Option<ImageChange>,
    /// What is there → what is to be, as a unified difference.
    pub diff: Option<String>,
    /// The phase that mends it.
    #[serde(skip)]
    pub(super) phase: &'static str,
}

/// The API object that gives `admin.conf` its rights.
pub(super) const BINDING: &str = "clusterrolebinding/kubeadm:cluster-admins";

/// The configuration itself.
pub(super) const CONFIGURATION: &str = "configuration";

/// The Node of this host.
pub(super) const NODE: &str = "node";

/// Why what an authority has signed is made anew on an upgrade.
pub(super) const RENEWED: &str = "renewed with the upgrade";

impl Change {
    /// What `step` of a first `init` makes.
    pub(super) fn of_new(step: &Step) -> Option<Self> {
        let (what, reason) = match step {
            Step::Issue { item, replaces, .. } => ((*item).to_owned(), replaces.clone()),
            Step::WriteManifest { component, replaces } => {
                (component.name().to_owned(), replaces.then(|| "an unfinished init left another manifest".to_owned()))
            }
            Step::SetEtcdDataAside { path } => {
                (path.display().to_string(), Some("data of an unfinished init".to_owned()))
            }
            Step::StartAgent => ("agent".to_owned(), Some("it does not run".to_owned())),
            Step::BindClusterAdmins => (BINDING.to_owned(), None),
            Step::MarkControlPlane { .. } => (NODE.to_owned(), None),
            Step::StopPods
            | Step::Exchange { .. }
            | Step::FinishEtcdSwap { .. }
            | Step::SwapEtcd { .. }
            | Step::Wait
            | Step::RemoveNode
            | Step::Commit => return None,
        };
        Some(Self {
            what,
            class: Class::None,
            cause: Cause::New,
            reason: reason.unwrap_or_else(|| "it is not there yet".to_owned()),
            image: None,
            diff: None,
            phase: step.phase(),
        })
    }
}

/// What those who use the cluster notice of a change; each is worse than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", content = "of", rename_all = "kebab-case")]
pub enum Class {
    /// Nothing: nobody runs with it, or nobody can tell the difference.
    None,
    /// Nothing: it takes effect while everything runs. The components read their certificates again by themselves.
    Live,
    /// A component is exchanged, and no request fails: no client talks to it, or the new one serves before the old one
    /// goes.
    Restart(Component),
    /// Requests to the API server fail until the component is back.
    ApiGap(Component),
    /// There is no way back but the one that the component itself offers.
    Irreversible(Component),
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Live => f.write_str("live"),
            Self::Restart(component) => write!(f, "restart of {component}"),
            Self::ApiGap(component) => write!(f, "restart of {component}, API gap expected"),
            Self::Irreversible(component) => write!(f, "restart of {component}, API gap expected, irreversible"),
        }
    }
}

/// Where a difference comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Nothing was there, or what an `init` that did not succeed left.
    New,
    /// Another value is asked for.
    Configuration,
    /// This plinth makes something else of the same configuration than the one before it.
    Plinth,
    /// Somebody or something changed the host since the last `init`.
    Drift,
}

/// Another image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageChange {
    /// What the manifest on disk names.
    pub old: String,
    /// What it will name.
    pub new: String,
}

/// Another Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionChange {
    /// What runs.
    pub from: KubernetesVersion,
    /// What is asked for.
    pub to: KubernetesVersion,
    /// Nobody named it: it is this plinth's default, which is newer.
    pub by_default: bool,
}

impl fmt::Display for VersionChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, by_default } = self;
        let why = if *by_default { ", the newer default of this plinth" } else { "" };
        write!(f, "Kubernetes {from} → {to}{why}")
    }
}

/// Another address or port of the API server; etcd moves with the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AddressChange {
    /// Where it is.
    pub from: SocketAddr,
    /// Where it is to be.
    pub to: SocketAddr,
}

impl AddressChange {
    /// The way from the cluster that runs to the one that is wanted.
    pub(super) fn between(running: &Cluster, wanted: &Cluster) -> Option<Self> {
        let [from, to] = [running, wanted].map(|cluster| SocketAddr::new(cluster.advertise_address, cluster.bind_port));
        (from != to).then_some(Self { from, to })
    }
}

impl fmt::Display for AddressChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the control plane moves: {} → {}", self.from, self.to)
    }
}

/// What it means to exchange the pod of `component` whose image was `old`, when the old one goes first. etcd's data of one minor release is not read
/// by the one before.
pub(super) fn exchange(component: Component, old: &str, new: &str) -> Class {
    match component {
        Component::Etcd if etcd::change_between(old, new) == Some(etcd::Change::Upgrade) => {
            Class::Irreversible(component)
        }
        Component::Etcd | Component::KubeApiserver => Class::ApiGap(component),
        Component::KubeControllerManager | Component::KubeScheduler => Class::Restart(component),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_is_what_clients_notice() {
        let etcd = |tag: &str| format!("registry.k8s.io/etcd:{tag}");
        for (component, old, new, expected) in [
            (Component::KubeScheduler, "s:v1.36.3".to_owned(), "s:v1.37.1".to_owned(), "restart of kube-scheduler"),
            (Component::KubeApiserver, "a:v1".into(), "a:v1".into(), "restart of kube-apiserver, API gap expected"),
            (Component::Etcd, etcd("3.6.8-0"), etcd("3.6.9-0"), "restart of etcd, API gap expected"),
            (Component::Etcd, etcd("3.6.8-0"), etcd("3.7.0-0"), "restart of etcd, API gap expected, irreversible"),
            (Component::Etcd, "my/etcd".into(), "my/etcd:x".into(), "restart of etcd, API gap expected"),
        ] {
            assert_eq!(exchange(component, &old, &new).to_string(), expected, "{old} {new}");
        }
        assert!(Class::None < Class::Live && Class::Live < Class::Restart(Component::Etcd));
        assert!(Class::Restart(Component::KubeScheduler) < Class::ApiGap(Component::Etcd));
    }

    #[test]
    fn another_address_or_port_is_a_move() {
        let between = |change: fn(&mut Cluster)| {
            let mut wanted = Cluster::example();
            change(&mut wanted);
            AddressChange::between(&Cluster::example(), &wanted).map(|change| change.to.to_string())
        };
        assert_eq!(between(|wanted| wanted.bind_port = 7443).as_deref(), Some("192.0.2.10:7443"));
        let moved = between(|wanted| wanted.advertise_address = "2001:db8::1".parse().unwrap());
        assert_eq!(moved.as_deref(), Some("[2001:db8::1]:6443"));
        assert_eq!(between(|wanted| wanted.image_repository = "mirror.example.com:5000/k8s".into()), None);
    }
}
