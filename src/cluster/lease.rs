//! The Leases by which controller managers and schedulers elect who works.
//!
//! An instance that ends does not release its Lease: its successor waits until it has run out, 15 s and more. Whoever
//! has seen the instance dead may release it in its place.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;

use super::{ClusterError, client};
use crate::release::Component;

/// How long one question may take.
const ASK: Duration = Duration::from_secs(2);

/// How often a release is tried against somebody else's writes. The instance is dead: there are hardly any.
const TRIES: u32 = 5;

/// Which Lease an instance elects by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseName {
    /// Its namespace; `kube-system` unless `--leader-elect-resource-namespace` says otherwise.
    pub namespace: String,
    /// Its name; the component's unless `--leader-elect-resource-name` says otherwise.
    pub name: String,
}

impl LeaseName {
    /// What the command line of `component` in its pod says; `None` where it elects nobody, or by a Lease that its
    /// command line does not name.
    pub fn of(component: Component, pod: &Pod) -> Option<Self> {
        if !matches!(component, Component::KubeControllerManager | Component::KubeScheduler) {
            return None;
        }
        let container = pod.spec.as_ref()?.containers.iter().find(|container| container.name == component.name())?;
        let words: Vec<_> = [&container.command, &container.args].into_iter().flatten().flatten().collect();
        let value = |flag: &str| {
            let values = words.iter().filter_map(|word| word.trim_start_matches('-').strip_prefix(flag));
            values.filter_map(|rest| rest.strip_prefix('=')).next_back()
        };
        // Go's `strconv.ParseBool`, by which a flag's value is read.
        let is_off = |value: &str| matches!(value, "0" | "f" | "F" | "false" | "FALSE" | "False");
        // A scheduler's configuration file may name another one.
        if value("leader-elect").is_some_and(is_off) || value("config").is_some() {
            return None;
        }
        Some(Self {
            namespace: value("leader-elect-resource-namespace").unwrap_or("kube-system").to_owned(),
            name: value("leader-elect-resource-name").unwrap_or(component.name()).to_owned(),
        })
    }
}

/// Who holds a Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// `<host name>_<UUID>`, a new one with every start.
    pub identity: String,
    /// When it last said that it lives.
    pub renewed_at: Option<Timestamp>,
}

impl Holder {
    fn of(lease: &Lease) -> Option<Self> {
        let spec = lease.spec.as_ref()?;
        let identity = spec.holder_identity.clone().filter(|identity| !identity.is_empty())?;
        Some(Self { identity, renewed_at: spec.renew_time.as_ref().map(|time| time.0) })
    }

    /// Whether it is an instance on `host` (client-go: the identity is the host's name, `_` and a UUID).
    pub fn is_on(&self, host: &str) -> bool {
        self.identity.strip_prefix(host).is_some_and(|rest| rest.starts_with('_'))
    }
}

/// Asks the API server for one Lease.
#[derive(Clone)]
pub struct Election {
    leases: Api<Lease>,
    name: String,
}

impl Election {
    /// For the Lease `name`, with the text of the kubeconfig `file`. Asks nothing.
    pub async fn new(file: &'static str, kubeconfig: &str, name: &LeaseName) -> Result<Self, ClusterError> {
        let leases = Api::namespaced(client(file, kubeconfig).await?, &name.namespace);
        Ok(Self { leases, name: name.name.clone() })
    }

    /// Who holds it; `None` where nobody does. Asks once.
    pub async fn holder(&self) -> Result<Option<Holder>, ClusterError> {
        Ok(self.get().await?.as_ref().and_then(Holder::of))
    }

    /// Takes it from `dead`, of whom the caller knows that it is; from nobody else.
    pub async fn release(&self, dead: &str) -> Result<(), ClusterError> {
        for _ in 0..TRIES {
            let Some(mut lease) = self.get().await? else { return Ok(()) };
            if Holder::of(&lease).is_none_or(|holder| holder.identity != dead) {
                return Ok(());
            }
            // As client-go releases one. The object has its resource version: a later write wins.
            if let Some(spec) = &mut lease.spec {
                spec.holder_identity = None;
                spec.lease_duration_seconds = Some(1);
            }
            match within(self.leases.replace(&self.name, &PostParams::default(), &lease)).await {
                Some(Ok(_)) => return Ok(()),
                Some(Err(kube::Error::Api(status))) if status.is_conflict() => {}
                Some(Err(error)) => return Err(self.error(Some(error))),
                None => return Err(self.error(None)),
            }
        }
        Ok(())
    }

    async fn get(&self) -> Result<Option<Lease>, ClusterError> {
        match within(self.leases.get_opt(&self.name)).await {
            Some(result) => result.map_err(|error| self.error(Some(error))),
            None => Err(self.error(None)),
        }
    }

    fn error(&self, source: Option<kube::Error>) -> ClusterError {
        ClusterError::Lease { name: self.name.clone(), source: source.map(Box::new) }
    }
}

async fn within<T>(question: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(ASK, question).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_the_lease() {
        use Component::{KubeApiserver, KubeControllerManager, KubeScheduler};
        for (component, flags, expected) in [
            (KubeScheduler, &[][..], Some("kube-system/kube-scheduler")),
            (KubeControllerManager, &["--leader-elect=true"], Some("kube-system/kube-controller-manager")),
            (KubeScheduler, &["--leader-elect"], Some("kube-system/kube-scheduler")),
            (KubeScheduler, &["--leader-elect=true", "--leader-elect=false"], None),
            (KubeScheduler, &["--leader-elect-resource-name=x", "--leader-elect-resource-namespace=y"], Some("y/x")),
            (KubeScheduler, &["--config=/etc/kubernetes/scheduler.yaml"], None),
            (KubeApiserver, &["--leader-elect=true"], None),
        ] {
            let command = [&[component.name()], flags].concat();
            let pod =
                serde_json::json!({ "spec": { "containers": [{ "name": component.name(), "command": command }] } });
            let found = LeaseName::of(component, &serde_json::from_value(pod).unwrap());
            let found = found.map(|found| format!("{}/{}", found.namespace, found.name));
            assert_eq!(found.as_deref(), expected, "{component} {flags:?}");
        }
    }

    #[test]
    fn an_instance_is_known_by_its_hosts_name() {
        let holder = |identity: &str| Holder { identity: identity.to_owned(), renewed_at: None };
        assert!(holder("master-1_6ba7b810-9dad-11d1-80b4-00c04fd430c8").is_on("master-1"));
        assert!(!holder("master-10_6ba7b810-9dad-11d1-80b4-00c04fd430c8").is_on("master-1"));
        assert!(!holder("master-2_6ba7b810-9dad-11d1-80b4-00c04fd430c8").is_on("master-1"));
        let free = serde_json::json!({ "spec": { "holderIdentity": "", "renewTime": "2026-11-21T08:00:00.000000Z" } });
        assert_eq!(Holder::of(&serde_json::from_value(free).unwrap()), None);
    }
}
