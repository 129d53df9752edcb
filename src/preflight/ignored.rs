//! `--ignore-preflight-errors`: which checks' errors are to be warnings.

use std::collections::BTreeSet;

use crate::error::Hint;

/// Names of checks that kubeadm has and plinth has no use for. Ignoring them is no mistake: scripts written for
/// kubeadm do.
const KUBEADM_ONLY: &[&str] = &[
    "ContainerRuntimeVersion",
    "CRI",
    "ExternalEtcdClientCertificates",
    "ExternalEtcdVersion",
    "Firewalld",
    "KubeletVersion",
    "KubernetesVersion",
    "Port-10250",
    "Service-Kubelet",
];

/// Families of such checks.
const KUBEADM_ONLY_PREFIXES: &[&str] = &["fileexisting-", "filecontent-"];

/// The errors to be ignored: names in any case, or `all`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignored {
    all: bool,
    /// In lower case.
    names: BTreeSet<String>,
}

/// A name that cannot be ignored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// There is no such check.
    #[error("there is no preflight check `{name}`")]
    Unknown {
        /// What the user wrote.
        name: String,
        /// A check with a similar name.
        similar: Option<String>,
    },
    /// As in kubeadm, `all` stands alone.
    #[error("`all` ignores every preflight error; do not name `{0}` beside it")]
    AllAndMore(String),
}

impl Hint for IgnoreError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unknown { similar: Some(similar), .. } => vec![format!("did you mean `{similar}`?")],
            Self::Unknown { similar: None, .. } | Self::AllAndMore(_) => Vec::new(),
        }
    }
}

impl Ignored {
    /// Reads what the user wrote, where `checks` are the names there are.
    pub fn parse(wanted: &[String], checks: &[&str]) -> Result<Self, IgnoreError> {
        let names: BTreeSet<_> = wanted.iter().map(|name| name.trim().to_lowercase()).collect();
        if names.contains("all") {
            return match names.iter().find(|name| *name != "all") {
                Some(name) => Err(IgnoreError::AllAndMore(name.clone())),
                None => Ok(Self { all: true, names: BTreeSet::new() }),
            };
        }
        for name in &names {
            let known = checks.iter().chain(KUBEADM_ONLY).any(|check| check.to_lowercase() == *name)
                || KUBEADM_ONLY_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            if !known {
                let similar = nearest(name, checks);
                return Err(IgnoreError::Unknown { name: name.clone(), similar });
            }
        }
        Ok(Self { all: false, names })
    }

    /// Whether errors of the check `name` are to be ignored.
    pub fn contains(&self, name: &str) -> bool {
        self.all || self.names.contains(&name.to_lowercase())
    }
}

/// The one of `checks` that `name`, in lower case, was most likely meant to be.
fn nearest(name: &str, checks: &[&str]) -> Option<String> {
    let lower: Vec<_> = checks.iter().map(|check| check.to_lowercase()).collect();
    let candidates: Vec<&str> = lower.iter().map(String::as_str).collect();
    let found = *similar::get_close_matches(name, &candidates, 1, 0.6).first()?;
    checks.iter().find(|check| check.to_lowercase() == found).map(|check| (*check).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKS: [&str; 3] = ["NumCPU", "Port-6443", "Swap"];

    fn parse(names: &[&str]) -> Result<Ignored, IgnoreError> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        Ignored::parse(&names, &CHECKS)
    }

    #[test]
    fn names_are_compared_in_any_case() {
        let ignored = parse(&["numcpu", " SWAP "]).unwrap();
        assert!(ignored.contains("NumCPU") && ignored.contains("Swap") && !ignored.contains("Port-6443"));
        assert!(parse(&["ALL"]).unwrap().contains("Port-6443"));
        assert!(!parse(&[]).unwrap().contains("Swap"));
    }

    #[test]
    fn names_of_kubeadms_other_checks_are_accepted() {
        for name in ["CRI", "Port-10250", "FileExisting-conntrack", "FileContent--proc-sys-net-ipv4-ip_forward"] {
            assert!(parse(&[name]).is_ok(), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_an_error_with_the_near_match() {
        for (names, message, hints) in [
            (&["numcpus"][..], "there is no preflight check `numcpus`", vec!["did you mean `NumCPU`?"]),
            (&["Port-644"][..], "there is no preflight check `port-644`", vec!["did you mean `Port-6443`?"]),
            (&["weather"][..], "there is no preflight check `weather`", vec![]),
            (&["all", "Swap"][..], "`all` ignores every preflight error; do not name `swap` beside it", vec![]),
        ] {
            let error = parse(names).unwrap_err();
            assert_eq!(error.to_string(), message);
            assert_eq!(error.hints(), hints, "{names:?}");
        }
    }
}
