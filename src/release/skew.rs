//! Which version may follow which.
//!
//! The rules are those of kubeadm and of the version skew policy
//! (<https://kubernetes.io/releases/version-skew-policy/>): any patch, one minor version up at a time, kubelets at most
//! three minor versions older than the API server and never newer. Going back one minor version is plinth's own.

use super::{KubernetesVersion, RELEASES};

/// How many minor versions a kubelet may be older than the API server (since kubelet 1.25).
const KUBELET_SKEW: u64 = 3;

/// How one version gets to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// They are the same.
    Same,
    /// Another patch of the same minor version, newer or older.
    Patch,
    /// The next minor version.
    Upgrade,
    /// The minor version before.
    RollBack,
}

/// Why one version cannot follow another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkewRefusal {
    /// More than one minor version up.
    #[error(
        "{from} cannot be upgraded to {to} at once, only to the next minor version; the path is {}",
        path.iter().map(ToString::to_string).collect::<Vec<_>>().join(" → ")
    )]
    SkipsMinors {
        /// What runs.
        from: KubernetesVersion,
        /// What was asked for.
        to: KubernetesVersion,
        /// All versions on the way, from the first to the last.
        path: Vec<KubernetesVersion>,
    },
    /// More than one minor version down.
    #[error("{from} cannot go back to {to}: one minor version at most, to v1.{}.x", from.minor() - 1)]
    TooFarBack {
        /// What runs.
        from: KubernetesVersion,
        /// What was asked for.
        to: KubernetesVersion,
    },
}

/// How to get `from` one version `to` another, or why not.
pub fn upgrade_path(from: &KubernetesVersion, to: &KubernetesVersion) -> Result<Step, SkewRefusal> {
    let (old, new) = (from.minor(), to.minor());
    match new.cmp(&old) {
        std::cmp::Ordering::Equal if from == to => Ok(Step::Same),
        std::cmp::Ordering::Equal => Ok(Step::Patch),
        std::cmp::Ordering::Greater if new == old + 1 => Ok(Step::Upgrade),
        std::cmp::Ordering::Greater => {
            let between = RELEASES.iter().filter(|release| (old + 1..new).contains(&release.minor));
            let between = between.map(|release| newest(release.minor, release.patch));
            let path = [from.clone()].into_iter().chain(between).chain([to.clone()]).collect();
            Err(SkewRefusal::SkipsMinors { from: from.clone(), to: to.clone(), path })
        }
        std::cmp::Ordering::Less if new + 1 == old => Ok(Step::RollBack),
        std::cmp::Ordering::Less => Err(SkewRefusal::TooFarBack { from: from.clone(), to: to.clone() }),
    }
}

fn newest(minor: u64, patch: u64) -> KubernetesVersion {
    KubernetesVersion(semver::Version::new(1, minor, patch))
}

/// A kubelet that the API server knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubelet {
    /// Name of its node.
    pub node: String,
    /// `status.nodeInfo.kubeletVersion` of the node, e.g. `v1.36.3` or `v1.36.3+k3s1`.
    pub version: String,
}

/// Why a kubelet cannot live with a version of the API server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KubeletRefusal {
    /// More than three minor versions older.
    #[error(
        "the kubelet of node `{node}` is {version}, too old for an API server {apiserver}; upgrade it to v1.{oldest}.x \
         or newer first"
    )]
    TooOld {
        /// Whose.
        node: String,
        /// What it says it is.
        version: String,
        /// The version asked for.
        apiserver: KubernetesVersion,
        /// The oldest minor version that will do.
        oldest: u64,
    },
    /// Of a later minor version.
    #[error(
        "the kubelet of node `{node}` is {version}, newer than an API server {apiserver} would be; no kubelet may be"
    )]
    TooNew {
        /// Whose.
        node: String,
        /// What it says it is.
        version: String,
        /// The version asked for.
        apiserver: KubernetesVersion,
    },
    /// It does not say a version.
    #[error("the kubelet of node `{node}` says its version is `{version}`, which is none")]
    Unreadable {
        /// Whose.
        node: String,
        /// What it says.
        version: String,
    },
}

/// Whatever speaks against an API server of version `apiserver` with these kubelets, in their order.
pub fn kubelet_refusals<'a>(
    apiserver: &KubernetesVersion,
    kubelets: impl IntoIterator<Item = &'a Kubelet>,
) -> Vec<KubeletRefusal> {
    kubelets.into_iter().filter_map(|kubelet| kubelet_refusal(apiserver, kubelet)).collect()
}

fn kubelet_refusal(apiserver: &KubernetesVersion, kubelet: &Kubelet) -> Option<KubeletRefusal> {
    let Kubelet { node, version } = kubelet.clone();
    let text = version.strip_prefix('v').unwrap_or(&version);
    let Ok(semver::Version { major, minor, .. }) = semver::Version::parse(text) else {
        return Some(KubeletRefusal::Unreadable { node, version });
    };
    let oldest = apiserver.minor().saturating_sub(KUBELET_SKEW);
    let (major_too_old, major_too_new) = (major < apiserver.0.major, major > apiserver.0.major);
    let apiserver = apiserver.clone();
    if major_too_old || (!major_too_new && minor < oldest) {
        Some(KubeletRefusal::TooOld { node, version, apiserver, oldest })
    } else if major_too_new || minor > apiserver.minor() {
        Some(KubeletRefusal::TooNew { node, version, apiserver })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> KubernetesVersion {
        text.parse().unwrap()
    }

    #[test]
    fn one_minor_version_at_a_time() {
        for (from, to, expected) in [
            ("v1.37.1", "v1.37.1", Ok(Step::Same)),
            ("v1.37.0", "v1.37.1", Ok(Step::Patch)),
            ("v1.37.1", "v1.37.0", Ok(Step::Patch)),
            ("v1.37.0-rc.0", "v1.37.0", Ok(Step::Patch)),
            ("v1.36.3", "v1.37.1", Ok(Step::Upgrade)),
            ("v1.35.0", "v1.36.0", Ok(Step::Upgrade)),
            ("v1.37.1", "v1.36.3", Ok(Step::RollBack)),
            (
                "v1.35.2",
                "v1.37.1",
                Err("v1.35.2 cannot be upgraded to v1.37.1 at once, only to the next minor version; \
                     the path is v1.35.2 → v1.36.3 → v1.37.1"),
            ),
            ("v1.37.1", "v1.35.4", Err("v1.37.1 cannot go back to v1.35.4: one minor version at most, to v1.36.x")),
        ] {
            let step = upgrade_path(&version(from), &version(to)).map_err(|refusal| refusal.to_string());
            assert_eq!(step, expected.map_err(str::to_owned), "{from} to {to}");
        }
    }

    #[test]
    fn kubelets_are_at_most_three_minor_versions_older_and_never_newer() {
        for (apiserver, kubelet, expected) in [
            ("v1.37.1", "v1.37.1", None),
            // A newer patch is no newer version (the policy counts minor versions).
            ("v1.37.1", "v1.37.5", None),
            ("v1.37.1", "v1.34.0", None),
            ("v1.37.1", "v1.34.0+k3s1", None),
            (
                "v1.37.1",
                "v1.33.9",
                Some(
                    "the kubelet of node `n1` is v1.33.9, too old for an API server v1.37.1; \
                      upgrade it to v1.34.x or newer first",
                ),
            ),
            (
                "v1.36.3",
                "v1.37.0",
                Some(
                    "the kubelet of node `n1` is v1.37.0, newer than an API server v1.36.3 would be; no kubelet may be",
                ),
            ),
            (
                "v1.36.3",
                "v2.0.0",
                Some(
                    "the kubelet of node `n1` is v2.0.0, newer than an API server v1.36.3 would be; no kubelet may be",
                ),
            ),
            ("v1.37.1", "", Some("the kubelet of node `n1` says its version is ``, which is none")),
        ] {
            let kubelet = Kubelet { node: "n1".into(), version: kubelet.into() };
            let refusals = kubelet_refusals(&version(apiserver), [&kubelet]);
            let texts: Vec<_> = refusals.iter().map(ToString::to_string).collect();
            assert_eq!(texts, Vec::from_iter(expected.map(str::to_owned)), "{apiserver} with {kubelet:?}");
        }
    }
}
