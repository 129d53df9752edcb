//! Manifests of pods that exist, kept on disk: so that the next agent knows them even if their source is away by then.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::agent::pod::{Origin, SourceKind, StaticPod};
use crate::fsx::{self, FsError};

/// Name of the file in a pod's directory that holds its manifest.
pub(super) const FILE: &str = "manifest.json";

/// A manifest as it is kept in the pod's directory for as long as the pod exists.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::agent) struct Remembered {
    /// Path of its file, or its URL.
    pub(super) origin: String,
    /// Its text.
    pub(super) manifest: String,
}

impl Remembered {
    pub(in crate::agent) fn of(pod: &StaticPod) -> Self {
        Self { origin: pod.origin.clone(), manifest: pod.manifest.clone() }
    }

    /// The pod, unless this version of plinth refuses what an earlier one ran.
    pub(in crate::agent) fn pod(&self, node: &str) -> Option<StaticPod> {
        StaticPod::read(&self.manifest, Origin::of(&self.origin), node).ok()
    }
}

/// Whether a manifest of this pod is kept.
pub fn is_remembered(pods: &Path, pod: &StaticPod) -> bool {
    pods.join(&pod.uid).join(FILE).exists()
}

/// Keeps the manifest of `pod`. 0600: manifests may hold secrets in their environment.
pub fn remember(pods: &Path, pod: &StaticPod) -> Result<(), FsError> {
    let directory = pods.join(&pod.uid);
    fsx::create_directories(&directory, 0o750)?;
    let text = serde_json::to_vec(&Remembered::of(pod))
        .map_err(|error| FsError::of("encode the manifest for", &directory)(error.into()))?;
    fsx::write_if_changed(&directory.join(FILE), &text, 0o600).map(drop)
}

/// The pod whose manifest [`remember`] kept in the directory of `uid`, if that can still be read.
pub fn recall_pod(pods: &Path, uid: &str, node: &str) -> Option<StaticPod> {
    read(&pods.join(uid))?.pod(node)
}

/// What kind of source the pod of `uid` came from, if its manifest is kept.
pub fn recall_source(pods: &Path, uid: &str) -> Option<SourceKind> {
    Some(Origin::of(&read(&pods.join(uid))?.origin).source())
}

/// Everything that is kept, the newest last: while a changed pod is being replaced there are two of it.
pub(super) fn recall(pods: &Path) -> Vec<Remembered> {
    let directories = fs::read_dir(pods).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = directories
        .filter_map(|directory| {
            let written = fs::metadata(directory.join(FILE)).and_then(|meta| meta.modified()).ok()?;
            Some((written, directory))
        })
        .collect();
    found.sort();
    found.iter().filter_map(|(_, directory)| read(directory)).collect()
}

fn read(directory: &Path) -> Option<Remembered> {
    serde_json::from_str(&fs::read_to_string(directory.join(FILE)).ok()?).ok()
}
