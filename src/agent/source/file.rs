//! Static pods from a directory, or from one file.
//!
//! # Guarantees
//! - Which files count is the kubelet's rule: dot files and subdirectories do not, symbolic links are followed, any
//!   extension will do, at most 10 MiB, sorted by name.
//! - A file that no longer parses keeps its pod running with the last good manifest, also over a restart of the
//!   agent; a directory that is missing or cannot be read keeps all of them; an existing empty one stops them.
//!   (A kubelet stops the pods in all three cases.)
//! - A path that was a single file, or has the name of one, is no problem when there is none: its pod is stopped.
//! - Of two files with one pod name or UID the first in order wins and the other is rejected. (With a kubelet they
//!   flap.)
//!
//! # Assumptions
//! Events are a hint only: the directory is read completely every 20 s, and then watched anew if it was replaced. That
//! is also when edits of what symbolic links lead to are seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::memory::{Remembered, recall};
use super::{Published, Taken};
use crate::agent::pod::{SourceKind, StaticPod};
use crate::agent::status::Rejection;
use crate::clock::Clock;
use crate::yaml;

/// How long events that do not end a write are collected.
const COALESCE: Duration = Duration::from_millis(100);
/// How soon a directory or file that is away is looked for again.
const AWAY: Duration = Duration::from_secs(1);

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    /// A file is complete: it was closed after writing, or renamed into place.
    Now,
    /// Something goes on.
    Soon,
}

impl FileSource {
    /// What is known of it before it has been read.
    pub fn unread(&self) -> Published {
        Published::unread(SourceKind::File, self.path.display().to_string())
    }

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
            let away = published.problem.is_some() || published.remark.is_some();
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
    armed: Option<Armed>,
}

struct Armed {
    /// Dropping it ends the watch.
    _watcher: RecommendedWatcher,
    identity: (u64, u64),
    /// The directory was removed or renamed. Another one may have its inode number by now.
    stale: Arc<AtomicBool>,
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
        let lives = |armed: &Armed| armed.identity == identity && !armed.stale.load(Ordering::Acquire);
        if self.armed.as_ref().is_some_and(lives) {
            return;
        }
        let (hints, itself) = (self.hints.clone(), directory.to_path_buf());
        let stale = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stale);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if is_end(&event, &itself) {
                ended.store(true, Ordering::Release);
            }
            if let Some(hint) = hint(&event, &itself) {
                // The source is gone when this fails, and nobody wants hints any more.
                let _ = hints.send(hint);
            }
        })
        .and_then(|mut watcher| {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        self.armed = match watcher {
            Ok(watcher) => Some(Armed { _watcher: watcher, identity, stale }),
            Err(error) => {
                tracing::warn!(path = %directory.display(), %error, "cannot watch for changes; reading periodically");
                None
            }
        };
    }
}

/// Whether the watched directory itself was removed or renamed.
fn is_end(event: &notify::Result<notify::Event>, directory: &Path) -> bool {
    let Ok(event) = event else { return false };
    matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)))
        && event.paths.iter().any(|path| path == directory)
}

fn hint(event: &notify::Result<notify::Event>, directory: &Path) -> Option<Hint> {
    let Ok(event) = event else { return Some(Hint::Soon) };
    let hidden = |path: &PathBuf| {
        path != directory && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
    };
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
    /// Manifests of an earlier agent, used for files that cannot be read or do not parse now; forgotten with the file.
    recalled: BTreeMap<PathBuf, Remembered>,
    /// It has been read since the start.
    complete: bool,
    /// When it was last there the path was a file; before it was ever seen, by its name.
    single: bool,
}

#[derive(Clone, Default)]
struct File {
    text: String,
    good: Option<Arc<StaticPod>>,
    reason: Option<String>,
}

impl Reader {
    fn new(source: FileSource) -> Self {
        let recalled = recall(&source.pods).into_iter();
        let recalled: BTreeMap<_, _> =
            recalled.map(|remembered| (PathBuf::from(&remembered.origin), remembered)).collect();
        let had_files = recalled.keys().any(|path| path.parent() == Some(&source.path));
        let single = recalled.contains_key(&source.path) || !had_files && is_named_as_manifest(&source.path);
        Self { source, files: BTreeMap::new(), recalled, complete: false, single }
    }

    fn read(&mut self, now: jiff::Timestamp) -> Published {
        let mut published = self.source.unread();
        match list(&self.source.path) {
            Ok(paths) => {
                self.complete = true;
                self.single = paths.contains(&self.source.path);
                published.read_at = Some(now);
                // What is removed stays removed, whatever later is in a file of this name.
                self.files.retain(|path, _| paths.contains(path));
                self.recalled.retain(|path, _| paths.contains(path));
                for path in paths {
                    self.read_file(path);
                }
            }
            Err(error) if self.is_missing(&error) => {
                self.complete = true;
                self.files.clear();
                self.recalled.clear();
                published.read_at = Some(now);
                published.remark = Some("the file is not there, and so there is no pod of it".to_owned());
            }
            Err(error) => {
                published.problem = Some(format!("cannot be read: {error}; its pods go on"));
                for (path, remembered) in &self.recalled {
                    let below = path.parent() == Some(&self.source.path) || *path == self.source.path;
                    if below && !self.complete && !self.files.contains_key(path) {
                        let good = remembered.pod(&self.source.node).map(Arc::new);
                        let text = remembered.manifest.clone();
                        self.files.insert(path.clone(), File { text, good, reason: None });
                    }
                }
            }
        }
        published.complete = self.complete;
        let mut taken = Taken::default();
        for (path, file) in &self.files {
            let mut reject = |reason: String| {
                published.rejected.push(Rejection { file: path.display().to_string(), reason });
            };
            if let Some(reason) = &file.reason {
                let kept = if file.good.is_some() { "; its pod goes on as it was last good" } else { "" };
                reject(format!("{reason}{kept}"));
            }
            let Some(pod) = &file.good else { continue };
            match taken.take(pod, &path.display().to_string()) {
                Ok(()) => published.pods.push(Arc::clone(pod)),
                Err(reason) => reject(reason),
            }
        }
        published
    }

    /// Whether the single file is not there, and nothing else. A directory that is missing may just not be mounted.
    fn is_missing(&self, error: &io::Error) -> bool {
        let parent = self.source.path.parent();
        self.single && error.kind() == io::ErrorKind::NotFound && parent.is_some_and(Path::is_dir)
    }

    fn read_file(&mut self, path: PathBuf) {
        let previous = self.files.remove(&path);
        let text = read_limited(&path);
        if let (Ok(text), Some(previous)) = (&text, &previous)
            && previous.text == *text
            && !text.is_empty()
        {
            // A reading error in between is over.
            let reason = previous.reason.clone();
            let reason = reason.filter(|_| previous.good.as_ref().is_none_or(|pod| pod.manifest != *text));
            self.files.insert(path, File { reason, ..previous.clone() });
            return;
        }
        let read = text
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|text| StaticPod::read(text, &path, &self.source.node).map_err(|error| error.to_string()));
        let file = match read {
            Ok(pod) => File { text: pod.manifest.clone(), good: Some(Arc::new(pod)), reason: None },
            Err(reason) => {
                let previous = previous.unwrap_or_default();
                let recalled = || Some(Arc::new(self.recalled.get(&path)?.pod(&self.source.node)?));
                let good = previous.good.or_else(recalled);
                File { text: text.unwrap_or(previous.text), good, reason: Some(reason) }
            }
        };
        self.files.insert(path, file);
    }
}

fn is_named_as_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
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
        let counts = match fs::metadata(&path) {
            // Sockets, pipes and devices would block or make no sense.
            Ok(meta) => meta.is_file(),
            // A link that leads nowhere is no file; any other error is said of the file.
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        if !hidden && counts {
            paths.insert(path);
        }
    }
    Ok(paths)
}

fn read_limited(path: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    let limit = yaml::MAX_MANIFEST_BYTES as u64;
    fs::File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err("is larger than 10 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

#[cfg(test)]
mod tests;
