//! The phases of `init`, as data: the same list gives the order, `--skip-phases`, the help text and the progress.

/// One phase, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// `certs`, or `certs/apiserver` for a part. kubeadm's names wherever it has the phase.
    pub name: &'static str,
    /// What it does, for the help text.
    pub about: &'static str,
}

impl Phase {
    const fn new(name: &'static str, about: &'static str) -> Self {
        Self { name, about }
    }
}

/// All phases of `init` with their parts, in kubeadm's order.
pub const INIT: &[Phase] = &[
    Phase::new("preflight", "Check the host and get the images"),
    Phase::new("certs", "Make the certificates"),
    Phase::new("certs/ca", "Make the cluster's certificate authority"),
    Phase::new("certs/apiserver", "Make the certificate that kube-apiserver serves with"),
    Phase::new("certs/apiserver-kubelet-client", "Make the certificate that kube-apiserver shows to kubelets"),
    Phase::new("certs/front-proxy-ca", "Make the authority for aggregated API servers"),
    Phase::new("certs/front-proxy-client", "Make the certificate shown to aggregated API servers"),
    Phase::new("certs/etcd-ca", "Make etcd's certificate authority"),
    Phase::new("certs/etcd-server", "Make the certificate that etcd serves with"),
    Phase::new("certs/etcd-peer", "Make the certificate for etcd's peers"),
    Phase::new("certs/etcd-healthcheck-client", "Make the certificate for looking after etcd"),
    Phase::new("certs/apiserver-etcd-client", "Make the certificate that kube-apiserver shows to etcd"),
    Phase::new("certs/sa", "Make the key pair that signs service-account tokens"),
    Phase::new("kubeconfig", "Make the kubeconfig files"),
    Phase::new("kubeconfig/admin", "Make the kubeconfig for people"),
    Phase::new("kubeconfig/super-admin", "Make the kubeconfig that works without RBAC"),
    Phase::new("kubeconfig/kubelet", "Make the kubeconfig of the node, where it is registered"),
    Phase::new("kubeconfig/controller-manager", "Make the kubeconfig of kube-controller-manager"),
    Phase::new("kubeconfig/scheduler", "Make the kubeconfig of kube-scheduler"),
    Phase::new("kubeconfig/plinth-agent", "Make the kubeconfig of the agent"),
    Phase::new("etcd", "Write the manifest of etcd"),
    Phase::new("etcd/local", "Write the manifest of the etcd on this host"),
    Phase::new("control-plane", "Write the manifests of the control plane"),
    Phase::new("control-plane/apiserver", "Write the manifest of kube-apiserver"),
    Phase::new("control-plane/controller-manager", "Write the manifest of kube-controller-manager"),
    Phase::new("control-plane/scheduler", "Write the manifest of kube-scheduler"),
    Phase::new("agent-start", "Start the agent, which runs what the manifests say"),
    Phase::new("wait-control-plane", "Wait until every component is healthy"),
    Phase::new("cluster-admins", "Give admin.conf and the agent their rights"),
    Phase::new("mark-control-plane", "Label and taint the node, where it is registered"),
];

/// A phase name that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no phase `{name}`{}", near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default())]
pub struct UnknownPhase {
    /// As it was given.
    pub name: String,
    /// The phase with the most similar name.
    pub near: Option<&'static str>,
}

/// Which phases are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skip(Vec<&'static str>);

impl Skip {
    /// Reads `--skip-phases`. As with kubeadm a phase's parts go with it, and case does not matter.
    pub fn parse(names: &[String]) -> Result<Self, UnknownPhase> {
        names
            .iter()
            .map(|name| {
                let known = INIT.iter().find(|phase| phase.name.eq_ignore_ascii_case(name));
                known.map(|phase| phase.name).ok_or_else(|| UnknownPhase { name: name.clone(), near: nearest(name) })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether `phase` (or the phase it is a part of) is left out.
    pub fn covers(&self, phase: &str) -> bool {
        self.0
            .iter()
            .any(|skipped| phase == *skipped || phase.strip_prefix(skipped).is_some_and(|rest| rest.starts_with('/')))
    }
}

/// The phase whose name has most in common with `name`, unless that is very little.
fn nearest(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    INIT.iter()
        .map(|phase| {
            let ratio = similar::TextDiff::from_chars(lower.as_str(), phase.name).ratio();
            // Parts are often given without the phase they belong to.
            let part = phase.name.rsplit('/').next().unwrap_or(phase.name);
            (ratio.max(similar::TextDiff::from_chars(lower.as_str(), part).ratio()), phase.name)
        })
        .filter(|(ratio, _)| *ratio >= 0.65)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(names: &[&str]) -> Result<Skip, UnknownPhase> {
        Skip::parse(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_phase_is_skipped_with_its_parts() {
        let cases: &[(&[&str], &str, bool)] = &[
            (&[], "certs/ca", false),
            (&["certs"], "certs/ca", true),
            (&["certs/ca"], "certs/ca", true),
            (&["certs/ca"], "certs", false),
            (&["certs/ca"], "certs/apiserver", false),
            (&["Certs/SA"], "certs/sa", true),
            (&["etcd"], "certs/etcd-ca", false),
            (&["preflight", "wait-control-plane"], "wait-control-plane", true),
        ];
        for (names, phase, expected) in cases {
            assert_eq!(skip(names).unwrap().covers(phase), *expected, "{names:?} {phase}");
        }
    }

    #[test]
    fn an_unknown_phase_names_the_nearest_one() {
        for (given, near) in [
            ("cert", Some("certs")),
            ("preflght", Some("preflight")),
            ("apiserver-etcd-clint", Some("certs/apiserver-etcd-client")),
            ("addon", None),
        ] {
            assert_eq!(skip(&[given]).unwrap_err().near, near, "{given}");
        }
    }

    #[test]
    fn names_are_unique_and_parts_follow_their_phase() {
        for (index, phase) in INIT.iter().enumerate() {
            assert!(!INIT[..index].iter().any(|earlier| earlier.name == phase.name), "{}", phase.name);
            if let Some((parent, _)) = phase.name.split_once('/') {
                assert!(INIT[..index].iter().any(|earlier| earlier.name == parent), "{}", phase.name);
            }
        }
    }
}
