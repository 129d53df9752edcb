//! Static pods from a directory, or from one file.
//!
//! # Guarantees
//! - Which files count is the kubelet's rule: dot files and subdirectories do not, symbolic links are followed, any
//!   extension will do, at most 10 MiB, sorted by name.
//! - A file that no longer parses keeps its pod running with the last good manifest, also over a restart of the
//!   agent; a directory that is missing or cannot be read keeps all of them; an existing empty one stops them.
//!   (A kubelet stops the pods in all three cases.)
//! - Of two files with one pod name the first in order wins and the other is rejected. (With a kubelet they flap.)
//!
//! # Assumptions
//! Events are a hint only: the directory is read completely every 20 s, and then watched anew if it was replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::Published;
use crate::agent::pod::{PodKey, StaticPod};
use crate::agent::status::Rejection;
use crate::clock::Clock;
use crate::fsx::{self, FsError};
use crate::yaml;

/// How long events that do not end a write are collected.
const COALESCE: Duration = Duration::from_millis(100);
/// How soon a directory that is away is looked for again.
const AWAY: Duration = Duration::from_secs(1);
/// Name of the file in a pod's directory that holds its manifest.
const REMEMBERED: &str = "manifest.json";

/// Settings of a file source.
#[derive(Debug, Clone)]
pub struct FileSource {
    /// Absolute path of the directory, or of a single manifest.
    pub path: PathBuf,
    /// Name of the node.
    pub node: String,
    /// Where the agent keeps the directories of its pods.
    pub pods: PathBuf,
    /// How often everything is read again (kubelet: `fileCheckFrequency`, 20 s).
    pub period: Duration,
    /// Whether the kernel is asked for events; without, only the period counts.
    pub events: bool,
}

/// A manifest as it is kept in the pod's directory for as long as the pod exists.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    origin: String,
    manifest: String,
}

/// Whether a manifest of this pod is kept.
pub fn is_remembered(pods: &Path, pod: &StaticPod) -> bool {
    pods.join(&pod.uid).join(REMEMBERED).exists()
}

/// Keeps the manifest of `pod`, so that the next agent knows it even if the file is broken by then. 0600: manifests
/// may hold secrets in their environment.
pub fn remember(pods: &Path, pod: &StaticPod) -> Result<(), FsError> {
    let directory = pods.join(&pod.uid);
    fsx::create_directories(&directory, 0o750)?;
    let remembered = Remembered { origin: pod.origin.clone(), manifest: pod.manifest.clone() };
    let text = serde_json::to_vec(&remembered)
        .map_err(|error| FsError::of("encode the manifest for", &directory)(error.into()))?;
    fsx::write_if_changed(&directory.join(REMEMBERED), &text, 0o600).map(drop)
}

/// The pod whose manifest [`remember`] kept in the directory of `uid`, if that can still be read.
pub fn recall_pod(pods: &Path, uid: &str, node: &str) -> Option<StaticPod> {
    let text = fs::read_to_string(pods.join(uid).join(REMEMBERED)).ok()?;
    let remembered: Remembered = serde_json::from_str(&text).ok()?;
    StaticPod::read(&remembered.manifest, Path::new(&remembered.origin), node).ok()
}

fn recall(pods: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(pods).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path().join(REMEMBERED)).unwrap_or_default();
        if let Ok(remembered) = serde_json::from_str::<Remembered>(&text) {
            found.insert(PathBuf::from(remembered.origin), remembered.manifest);
        }
    }
    found
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    /// A file is complete: it was closed after writing, or renamed into place.
    Now,
    /// Something goes on.
    Soon,
}

impl FileSource {
    /// Publishes complete sets to `publish` until its receiver is gone.
    pub async fn run(self, clock: Clock, publish: mpsc::UnboundedSender<Published>) {
        let (hints, mut events) = mpsc::unbounded_channel();
        let mut reader = Reader::new(self.clone());
        let mut watch = DirectoryWatch::new(hints);
        loop {
            if self.events {
                watch.arm(&self.path);
            }
            let published = reader.read(clock.now());
            let away = published.problem.is_some();
            if publish.send(published).is_err() {
                return;
            }
            let period = if away { AWAY.min(self.period) } else { self.period };
            let mut deadline = Instant::now() + period;
            loop {
                tokio::select! {
                    () = sleep_until(deadline) => break,
                    hint = events.recv() => match hint {
                        Some(Hint::Soon) => deadline = deadline.min(Instant::now() + COALESCE),
                        Some(Hint::Now) | None => break,
                    },
                }
            }
            while events.try_recv().is_ok() {}
        }
    }
}

/// The watch on a directory, renewed when the directory behind the path is another one.
struct DirectoryWatch {
    hints: mpsc::UnboundedSender<Hint>,
    armed: Option<(RecommendedWatcher, (u64, u64))>,
}

impl DirectoryWatch {
    fn new(hints: mpsc::UnboundedSender<Hint>) -> Self {
        Self { hints, armed: None }
    }

    fn arm(&mut self, path: &Path) {
        let directory = if path.is_file() { path.parent().unwrap_or(path) } else { path };
        let Ok(identity) = fs::metadata(directory).map(|meta| (meta.dev(), meta.ino())) else {
            self.armed = None;
            return;
        };
        if self.armed.as_ref().is_some_and(|(_, armed)| *armed == identity) {
            return;
        }
        let hints = self.hints.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let Some(hint) = hint(&event) {
                // The source is gone when this fails, and nobody wants hints any more.
                let _ = hints.send(hint);
            }
        })
        .and_then(|mut watcher| {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        self.armed = match watcher {
            Ok(watcher) => Some((watcher, identity)),
            Err(error) => {
                tracing::warn!(path = %directory.display(), %error, "cannot watch for changes; reading periodically");
                None
            }
        };
    }
}

fn hint(event: &notify::Result<notify::Event>) -> Option<Hint> {
    let Ok(event) = event else { return Some(Hint::Soon) };
    let hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    if !event.paths.is_empty() && event.paths.iter().all(hidden) {
        return None;
    }
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Name(_)) => {
            Some(Hint::Now)
        }
        // Our own reading causes these.
        EventKind::Access(_) => None,
        _ => Some(Hint::Soon),
    }
}

/// Reads the directory and remembers what was good.
struct Reader {
    source: FileSource,
    /// By file: the text last read and what came of it.
    files: BTreeMap<PathBuf, File>,
    /// Manifests of an earlier agent, used for files that do not parse now.
    recalled: BTreeMap<PathBuf, String>,
}

#[derive(Clone, Default)]
struct File {
    text: String,
    good: Option<Arc<StaticPod>>,
    reason: Option<String>,
}

impl Reader {
    fn new(source: FileSource) -> Self {
        let recalled = recall(&source.pods);
        Self { source, files: BTreeMap::new(), recalled }
    }

    fn read(&mut self, now: jiff::Timestamp) -> Published {
        let mut published =
            Published { location: self.source.path.display().to_string(), read_at: Some(now), ..Published::default() };
        match list(&self.source.path) {
            Ok(paths) => {
                self.files.retain(|path, _| paths.contains(path));
                for path in paths {
                    self.read_file(path);
                }
            }
            Err(error) => {
                published.problem = Some(format!("cannot read {}: {error}; its pods go on", published.location));
                published.read_at = None;
                for (path, text) in std::mem::take(&mut self.recalled) {
                    let below = path.parent() == Some(&self.source.path) || path == self.source.path;
                    if below && !self.files.contains_key(&path) {
                        let good = StaticPod::read(&text, &path, &self.source.node).ok().map(Arc::new);
                        self.files.insert(path, File { text, good, reason: None });
                    }
                }
            }
        }
        let mut names: BTreeMap<PodKey, &Path> = BTreeMap::new();
        for (path, file) in &self.files {
            let mut reject = |reason: String| {
                published.rejected.push(Rejection { file: path.display().to_string(), reason });
            };
            if let Some(reason) = &file.reason {
                let kept = if file.good.is_some() { "; its pod goes on as it was last good" } else { "" };
                reject(format!("{reason}{kept}"));
            }
            let Some(pod) = &file.good else { continue };
            if let Some(first) = names.get(&pod.key) {
                reject(format!("has the same pod name ({}) as {}", pod.key, first.display()));
            } else {
                names.insert(pod.key.clone(), path);
                published.pods.push(Arc::clone(pod));
            }
        }
        published
    }

    fn read_file(&mut self, path: PathBuf) {
        let previous = self.files.remove(&path);
        let text = match read_limited(&path) {
            Ok(text) => text,
            Err(reason) => {
                let file = File { reason: Some(reason), ..previous.unwrap_or_default() };
                self.files.insert(path, file);
                return;
            }
        };
        if let Some(previous) = previous.clone().filter(|previous| previous.text == text && !previous.text.is_empty()) {
            // A reading error in between is over.
            let reason = previous.reason.filter(|_| previous.good.as_ref().is_none_or(|pod| pod.manifest != text));
            self.files.insert(path, File { reason, ..previous });
            return;
        }
        let file = match StaticPod::read(&text, &path, &self.source.node) {
            Ok(pod) => File { text, good: Some(Arc::new(pod)), reason: None },
            Err(error) => {
                let good = previous.and_then(|previous| previous.good).or_else(|| {
                    let recalled = self.recalled.get(&path)?;
                    StaticPod::read(recalled, &path, &self.source.node).ok().map(Arc::new)
                });
                File { text, good, reason: Some(error.to_string()) }
            }
        };
        self.files.insert(path, file);
    }
}

/// The files that count, sorted.
fn list(path: &Path) -> io::Result<BTreeSet<PathBuf>> {
    if fs::metadata(path)?.is_file() {
        return Ok(BTreeSet::from([path.to_path_buf()]));
    }
    let mut paths = BTreeSet::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        // Sockets, pipes and devices would block or make no sense; a link that leads nowhere is no file.
        if !hidden && fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
            paths.insert(path);
        }
    }
    Ok(paths)
}

fn read_limited(path: &Path) -> Result<String, String> {
    let size = fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?.len();
    if size > yaml::MAX_MANIFEST_BYTES as u64 {
        return Err(format!("is larger than 10 MiB ({size} bytes)"));
    }
    let bytes = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
    Ok(text)
}

#[cfg(test)]
mod tests;
