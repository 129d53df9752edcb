//! Kubernetes releases: which components, which images, which versions go together.

mod removed;
mod skew;

use std::fmt;
use std::str::FromStr;

pub use removed::{removed_feature_gates, removed_flags};
pub use skew::{Kubelet, KubeletRefusal, SkewRefusal, Step, kubelet_refusals, upgrade_path};

/// The four components of a control plane, in the order in which they depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// The data store.
    Etcd,
    /// The API server.
    KubeApiserver,
    /// The controller manager.
    KubeControllerManager,
    /// The scheduler.
    KubeScheduler,
}

impl Component {
    /// All of them, dependencies first.
    pub const ALL: [Self; 4] = [Self::Etcd, Self::KubeApiserver, Self::KubeControllerManager, Self::KubeScheduler];

    /// Name of its static pod, container, image and binary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Kubernetes version, written `v1.37.1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KubernetesVersion(semver::Version);

impl KubernetesVersion {
    /// The minor version, e.g. 37.
    pub fn minor(&self) -> u64 {
        self.0.minor
    }

    /// The version as a semantic version.
    pub fn semver(&self) -> &semver::Version {
        &self.0
    }
}

impl fmt::Display for KubernetesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// Why a text is not a version that plinth can install.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Not of the form `v1.37.1`.
    #[error("`{0}` is not a version; expected one like `{DEFAULT_VERSION}`")]
    Malformed(String),
    /// Well formed, but not in the table of releases.
    #[error("Kubernetes {version} is not supported by this plinth; supported: {}", supported())]
    Unsupported {
        /// The version asked for.
        version: String,
    },
}

impl FromStr for KubernetesVersion {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let version = semver::Version::parse(text.strip_prefix('v').unwrap_or(text))
            .map_err(|_| VersionError::Malformed(text.to_owned()))?;
        let version = Self(version);
        match version.release() {
            Some(_) => Ok(version),
            None => Err(VersionError::Unsupported { version: version.to_string() }),
        }
    }
}

impl serde::Serialize for KubernetesVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What `init` installs when no version is named.
pub const DEFAULT_VERSION: &str = "v1.37.1";

impl Default for KubernetesVersion {
    /// [`DEFAULT_VERSION`].
    fn default() -> Self {
        Self(semver::Version::new(1, 37, 1))
    }
}

/// Where the images come from unless configured otherwise (kubeadm: `DefaultImageRepository`).
pub const DEFAULT_IMAGE_REPOSITORY: &str = "registry.k8s.io";

/// One minor release: the versions that `kubeadm config images list` of that minor prints.
struct Release {
    minor: u64,
    /// The newest patch release known here, to name a version on the way to another.
    patch: u64,
    etcd: &'static str,
    pause: &'static str,
}

/// Oldest first, without a gap. From kubeadm of the patch named (`constants.go`, `DefaultEtcdVersion` and
/// `PauseVersion`); 1.36.3 and 1.37.1 also as its `config images list` prints them.
const RELEASES: &[Release] = &[
    Release { minor: 35, patch: 4, etcd: "3.6.6-0", pause: "3.10.1" },
    Release { minor: 36, patch: 3, etcd: "3.6.8-0", pause: "3.10.2" },
    Release { minor: 37, patch: 1, etcd: "3.7.0-0", pause: "3.10.2" },
];

fn supported() -> String {
    let minors: Vec<_> = RELEASES.iter().map(|release| format!("v1.{}.x", release.minor)).collect();
    minors.join(", ")
}

impl KubernetesVersion {
    fn release(&self) -> Option<&'static Release> {
        RELEASES.iter().find(|release| self.0.major == 1 && release.minor == self.0.minor)
    }

    /// Tag of the etcd image that belongs to this release.
    pub fn etcd_tag(&self) -> &'static str {
        self.release().map_or("", |release| release.etcd)
    }

    /// Tag of the pause image that belongs to this release.
    pub fn pause_tag(&self) -> &'static str {
        self.release().map_or("", |release| release.pause)
    }

    /// Tag of the Kubernetes images: characters a tag cannot hold become `_` (kubeadm: `KubernetesVersionToImageTag`).
    pub fn image_tag(&self) -> String {
        self.to_string().replace(|c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c)), "_")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_and_without_v() {
        for (text, expected) in [
            ("v1.37.1", Ok("v1.37.1")),
            ("1.36.3", Ok("v1.36.3")),
            ("v1.37.0-rc.0", Ok("v1.37.0-rc.0")),
            ("1.37", Err(VersionError::Malformed("1.37".into()))),
            ("latest", Err(VersionError::Malformed("latest".into()))),
            ("1.35.4", Ok("v1.35.4")),
            ("v1.12.0", Err(VersionError::Unsupported { version: "v1.12.0".into() })),
            ("v2.37.0", Err(VersionError::Unsupported { version: "v2.37.0".into() })),
        ] {
            assert_eq!(text.parse::<KubernetesVersion>().map(|v| v.to_string()), expected.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn releases_follow_each_other() {
        assert!(RELEASES.windows(2).all(|pair| pair[0].minor + 1 == pair[1].minor));
    }

    #[test]
    fn every_release_names_its_images() {
        let version: KubernetesVersion = DEFAULT_VERSION.parse().unwrap();
        assert_eq!(version, KubernetesVersion::default());
        for (text, etcd, pause) in
            [("v1.35.4", "3.6.6-0", "3.10.1"), ("v1.36.0", "3.6.8-0", "3.10.2"), (DEFAULT_VERSION, "3.7.0-0", "3.10.2")]
        {
            let version: KubernetesVersion = text.parse().unwrap();
            assert_eq!((version.etcd_tag(), version.pause_tag()), (etcd, pause), "{text}");
        }
        let built: KubernetesVersion = "v1.36.3+local".parse().unwrap();
        assert_eq!(built.image_tag(), "v1.36.3_local");
    }
}
