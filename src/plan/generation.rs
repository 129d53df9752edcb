//! Generations: what each successful `init` leaves in `/var/lib/plinth/generations/<number>`.
//!
//! The configuration is where a rerun starts from, and the manifests are what each component is compared with: what we
//! rendered last time, never what a server defaulted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::HostView;
use crate::fsx::{self, FsError, NewFile};
use crate::journal::Ledger;
use crate::layout::Layout;
use crate::manifests;
use crate::release::Component;

/// Name of the effective configuration, in kubeadm's format.
const CONFIG: &str = "config.yaml";

/// Name of the [`HostView`] that the manifests were rendered with.
const HOST: &str = "host.json";

/// Name of the [`Facts`].
const FACTS: &str = "generation.json";

/// Mode of the directory; its files are 0600, as manifests may hold secrets in their environment.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A control plane as an `init` left it: healthy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Generation {
    /// Counted from 1.
    pub number: u32,
    /// The effective configuration, in kubeadm's format.
    pub config: String,
    /// What the manifests took from the host; `None` in a generation of a plinth that did not keep it.
    pub host: Option<HostView>,
    /// The manifests.
    pub manifests: BTreeMap<Component, String>,
    /// What else is known of it.
    pub facts: Facts,
}

/// What is known of a generation beside its files. Fields are only ever added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Facts {
    /// When it was healthy.
    pub at: Option<Timestamp>,
    /// Version of the plinth that made it.
    pub plinth: String,
    /// Kubernetes version, `v1.37.1`.
    pub kubernetes_version: String,
    /// See [`crate::config::Cluster::version_pinned`].
    pub version_pinned: bool,
    /// In what it differs from the one before, one line each.
    pub changes: Vec<String>,
    /// Images, as far as the engine knew them.
    pub images: BTreeMap<Component, ImageFacts>,
    /// Serial numbers of certificates by item (`certs/apiserver`), as openssl prints them.
    pub certificates: BTreeMap<String, String>,
}

impl Default for Facts {
    /// Those of a generation that has none: that somebody named its version is the guess that surprises nobody.
    fn default() -> Self {
        Self {
            at: None,
            plinth: String::new(),
            kubernetes_version: String::new(),
            version_pinned: true,
            changes: Vec::new(),
            images: BTreeMap::new(),
            certificates: BTreeMap::new(),
        }
    }
}

/// An image as the engine had it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageFacts {
    /// As the manifest names it.
    pub reference: String,
    /// Its id, `sha256:…`.
    pub id: String,
    /// `repository@sha256:…` names; empty for an image that was built or imported.
    pub digests: Vec<String>,
}

/// Where generation `number` is kept.
fn directory(layout: &Layout, number: u32) -> PathBuf {
    layout.generations().join(number.to_string())
}

/// The generation that `ledger` says was committed last.
pub fn committed(layout: &Layout, ledger: &Ledger) -> Result<Option<Generation>, FsError> {
    ledger.committed.map(|(number, _)| read(layout, number)).transpose()
}

/// All generations, oldest first. What an `init` that did not come to its end left is none of them.
pub fn all(layout: &Layout, ledger: &Ledger) -> Result<Vec<Generation>, FsError> {
    let Some((last, _)) = ledger.committed else { return Ok(Vec::new()) };
    (1..=last).filter(|number| directory(layout, *number).is_dir()).map(|number| read(layout, number)).collect()
}

/// Reads generation `number`.
pub fn read(layout: &Layout, number: u32) -> Result<Generation, FsError> {
    let directory = directory(layout, number);
    let mut stored = BTreeMap::new();
    for component in Component::ALL {
        if let Some(text) = fsx::read_optional(&directory.join(manifests::file_name(component)))? {
            stored.insert(component, String::from_utf8_lossy(&text).into_owned());
        }
    }
    Ok(Generation {
        number,
        config: fsx::read_to_string(&directory.join(CONFIG))?,
        host: json(&directory.join(HOST))?,
        manifests: stored,
        facts: json(&directory.join(FACTS))?.unwrap_or_default(),
    })
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, FsError> {
    let parse = |text: Vec<u8>| serde_json::from_slice(&text).map_err(|error| FsError::of("parse", path)(error.into()));
    fsx::read_optional(path)?.map(parse).transpose()
}

/// Writes `generation`. It counts once the journal says so.
pub fn write(layout: &Layout, generation: &Generation) -> Result<(), FsError> {
    let directory = directory(layout, generation.number);
    fsx::create_directories(&directory, DIRECTORY_MODE)?;
    let file = |name: &str, content: Vec<u8>| NewFile { path: directory.join(name), content, mode: FILE_MODE };
    let json = |name: &str, value: serde_json::Result<Vec<u8>>| {
        let content = value.map_err(|error| FsError::of("write", &directory.join(name))(error.into()))?;
        Ok::<_, FsError>(file(name, content))
    };
    let mut files = vec![file(CONFIG, generation.config.clone().into_bytes())];
    if let Some(host) = &generation.host {
        files.push(json(HOST, serde_json::to_vec_pretty(host))?);
    }
    files.push(json(FACTS, serde_json::to_vec_pretty(&generation.facts))?);
    let manifests = generation.manifests.iter();
    files.extend(manifests.map(|(component, text)| file(&manifests::file_name(*component), text.clone().into_bytes())));
    fsx::write_batch(&files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(committed: u32) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.committed = Some((committed, Timestamp::UNIX_EPOCH));
        ledger
    }

    #[test]
    fn what_is_written_is_read_and_only_what_was_committed_counts() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let generation = |number| Generation {
            number,
            config: format!("config {number}\n"),
            host: Some(HostView { external_ca: true, ..HostView::default() }),
            manifests: BTreeMap::from([(Component::Etcd, "kind: Pod\n".to_owned())]),
            facts: Facts { at: Some(Timestamp::UNIX_EPOCH), version_pinned: false, ..Facts::default() },
        };
        for number in 1..=3 {
            write(&layout, &generation(number)).unwrap();
        }
        assert_eq!(all(&layout, &ledger(2)).unwrap(), [generation(1), generation(2)]);
        assert_eq!(committed(&layout, &ledger(2)).unwrap(), Some(generation(2)));
        assert_eq!(committed(&layout, &Ledger::default()).unwrap(), None);
        assert_eq!(all(&layout, &Ledger::default()).unwrap(), []);
    }

    #[test]
    fn a_generation_of_an_older_plinth_is_read_and_its_version_stays() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fsx::create_directories(&directory(&layout, 1), 0o700).unwrap();
        fsx::write_atomic(&directory(&layout, 1).join(CONFIG), b"config\n", 0o600).unwrap();
        let read = read(&layout, 1).unwrap();
        assert_eq!((read.config.as_str(), read.facts.version_pinned, read.host), ("config\n", true, None));
    }
}
