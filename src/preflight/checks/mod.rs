//! The checks: pure functions over facts.

mod engine;
mod files;
mod host;
mod network;
mod upgrade;

#[cfg(test)]
mod testing;

use super::{Facts, Finding, Ignored, Level, Ownership};
use crate::config::Cluster;

pub use engine::IMAGE_PULL;
pub(super) use host::IS_PRIVILEGED_USER;

/// What a check says. Those that pass are kept, too: their names can be ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) name: String,
    hint: String,
    problem: Option<(Level, String)>,
}

impl Check {
    /// One that passes, until said otherwise.
    pub(super) fn new(name: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name: name.into(), hint: hint.into(), problem: None }
    }

    /// An error if there is a message; what was said before goes first.
    pub(super) fn error(self, message: Option<String>) -> Self {
        self.with(Level::Error, message)
    }

    /// A warning if there is a message; what was said before goes first.
    pub(super) fn warning(self, message: Option<String>) -> Self {
        self.with(Level::Warning, message)
    }

    fn with(mut self, level: Level, message: Option<String>) -> Self {
        self.problem = self.problem.or_else(|| message.map(|message| (level, message)));
        self
    }

    /// What the user gets to see of it.
    pub(super) fn finding(self, ignored: &Ignored) -> Option<Finding> {
        let (level, message) = self.problem?;
        let ignored = level == Level::Error && ignored.contains(&self.name);
        let level = if ignored { Level::Warning } else { level };
        Some(Finding { name: self.name, level, message, hint: self.hint, ignored })
    }
}

/// All checks, in the order in which they are reported.
pub(super) fn all(cluster: &Cluster, owned: &Ownership, facts: &Facts) -> Vec<Check> {
    let mut checks = host::checks(cluster, facts);
    checks.extend(engine::checks(facts));
    checks.extend(network::checks(cluster, owned, facts));
    checks.extend(files::checks(cluster, owned, facts));
    checks.extend(upgrade::checks(cluster, facts));
    checks
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::testing::{broken, good};
    use super::*;
    use crate::release::Component;

    #[test]
    fn a_good_host_has_no_findings() {
        let checks = all(&Cluster::example(), &Ownership::default(), &good());
        let problems: Vec<_> = checks.iter().filter(|check| check.problem.is_some()).collect();
        assert_eq!(problems, Vec::<&Check>::new());
    }

    #[test]
    fn names_are_unique_and_every_check_has_a_hint() {
        for facts in [good(), broken()] {
            let checks = all(&Cluster::example(), &Ownership::default(), &facts);
            let names: BTreeSet<_> = checks.iter().map(|check| check.name.to_lowercase()).collect();
            assert_eq!(names.len(), checks.len(), "{names:?}");
            for check in &checks {
                assert!(!check.hint.is_empty(), "{}", check.name);
            }
        }
    }

    #[test]
    fn names_do_not_depend_on_the_host() {
        let names = |facts| -> Vec<_> {
            all(&Cluster::example(), &Ownership::default(), &facts).into_iter().map(|check| check.name).collect()
        };
        assert_eq!(names(good()), names(broken()));
        assert_eq!(
            names(good()),
            [
                "IsPrivilegedUser",
                "NumCPU",
                "Mem",
                "Swap",
                "SystemVerification",
                "CapSysResource",
                "Clock",
                "Hostname",
                "Kubelet",
                "Docker",
                "DockerVersion",
                "DockerRootless",
                "DockerRemote",
                "DockerEnabled",
                "ImagePull",
                "AdvertiseAddress",
                "HTTPProxy",
                "HTTPProxyCIDR",
                "Port-2379",
                "Port-2380",
                "Port-2381",
                "Port-6443",
                "Port-10257",
                "Port-10259",
                "FileAvailable--etc-kubernetes-manifests-etcd.yaml",
                "FileAvailable--etc-kubernetes-manifests-kube-apiserver.yaml",
                "FileAvailable--etc-kubernetes-manifests-kube-controller-manager.yaml",
                "FileAvailable--etc-kubernetes-manifests-kube-scheduler.yaml",
                "DirAvailable--var-lib-etcd",
                "Disk-etcd",
                "Disk-docker",
                "Disk-plinth",
                "Disk-kubernetes",
                "ComponentHealth",
                "KubeletSkew",
                "RemovedFlags",
                "DeprecatedAPIs",
                "APIServerAnswers",
            ]
        );
    }

    #[test]
    fn every_error_of_a_broken_host_can_be_ignored_by_its_name() {
        let checks = all(&Cluster::example(), &Ownership::default(), &broken());
        let errors: Vec<_> = checks.iter().filter(|check| matches!(check.problem, Some((Level::Error, _)))).collect();
        assert!(errors.len() > 20, "{}", errors.len());
        for check in errors {
            let finding = check.clone().finding(&Ignored::default()).unwrap();
            assert_eq!((finding.level, finding.ignored), (Level::Error, false), "{}", check.name);
            let ignored = Ignored::parse(&[check.name.to_uppercase()], &[check.name.as_str()]).unwrap();
            let finding = check.clone().finding(&ignored).unwrap();
            assert_eq!((finding.level, finding.ignored), (Level::Warning, true), "{}", check.name);
        }
    }

    #[test]
    fn a_rerun_does_not_fail_on_our_own_traces() {
        let facts = testing::ours();
        assert_eq!(facts.host.manifests.len(), Component::ALL.len());
        let checks = all(&Cluster::example(), &testing::ownership(), &facts);
        let problems: Vec<_> = checks.into_iter().filter(|check| check.problem.is_some()).collect();
        assert_eq!(problems, []);
    }
}
