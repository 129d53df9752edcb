//! A disk that loses its power, for tests: it watches the effects below a root, knows what was synced, and says after
//! each of them what a SIGKILL and what a power loss would leave.
//!
//! A SIGKILL leaves all that was done. A power loss is free to leave anything between two extremes, and both are told:
//! only what was synced, content of files and names in directories each by itself; or every name, whether synced or not,
//! with the content of files that was never synced gone. A third one tells whether the order is right in which things
//! are forgotten: only what was synced, but every name in plinth's own state. What a boot clears (`/run`) is gone after
//! each.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, Metadata, OpenOptions, Permissions};
use std::hash::{Hash, Hasher};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};

/// Disks that are watched, by root; most tests have none.
static WATCHED: Mutex<Vec<(PathBuf, Disk)>> = Mutex::new(Vec::new());
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// See [`super::effect`]: done under the disk's lock, so that a point is a state that has been.
pub(crate) fn change<T>(path: &Path, act: impl FnOnce() -> T) -> T {
    witnessed(path, act, |_| ())
}

/// See [`super::effect`].
pub(crate) fn sync<T>(path: &Path, act: impl FnOnce() -> T) -> T {
    witnessed(path, act, |state| state.synced(path))
}

fn witnessed<T>(path: &Path, act: impl FnOnce() -> T, note: impl FnOnce(&mut State)) -> T {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return act();
    }
    let disk = {
        let watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        watched.iter().find(|(root, _)| path.starts_with(root)).map(|(_, disk)| disk.clone())
    };
    let Some(disk) = disk else { return act() };
    let mut state = disk.state();
    let result = act();
    note(&mut state);
    state.point(&path.display().to_string());
    result
}

/// A watched directory. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Mutex<State>>);

struct State {
    root: PathBuf,
    /// What is durable of files and directories.
    files: HashMap<Inode, Content>,
    directories: HashMap<Inode, BTreeMap<OsString, Found>>,
    /// Called after each effect.
    observer: Option<Observer>,
}

type Observer = Box<dyn FnMut(&str, Crash) + Send>;

/// A number may be given to another file once the first is gone, but not its birth.
type Inode = (u64, Option<SystemTime>);

/// What a name stands for.
#[derive(Clone)]
struct Found {
    inode: Inode,
    mode: u32,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    File,
    Directory,
    Link(PathBuf),
    Socket,
}

/// What different ends would leave at one point.
#[derive(Clone)]
pub(crate) struct Crash {
    /// A SIGKILL: everything.
    pub(crate) killed: Tree,
    /// A power loss that takes all that was not synced.
    pub(crate) unsynced_lost: Tree,
    /// A power loss that takes content that was not synced, and no name.
    pub(crate) content_lost: Tree,
    /// A power loss that takes all that was not synced, but for names in the state directory.
    pub(crate) state_kept: Tree,
}

/// The state directory, below the root.
const STATE: &str = "var/lib/plinth";

impl Disk {
    /// Watches `root` until [`Disk::forget`]; what is there is durable.
    pub(crate) fn watch(root: &Path) -> Self {
        let state = State { root: root.to_owned(), files: HashMap::new(), directories: HashMap::new(), observer: None };
        let disk = Self(Arc::new(Mutex::new(state)));
        disk.state().settle(root);
        WATCHED.lock().unwrap_or_else(PoisonError::into_inner).push((root.to_owned(), disk.clone()));
        COUNT.fetch_add(1, Ordering::Relaxed);
        disk
    }

    /// No longer watches it.
    pub(crate) fn forget(&self) {
        WATCHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, disk)| !Arc::ptr_eq(&disk.0, &self.0));
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }

    /// Calls `observer` after each effect from now on, with its path.
    pub(crate) fn observe(&self, observer: impl FnMut(&str, Crash) + Send + 'static) {
        self.state().observer = Some(Box::new(observer));
    }

    /// No longer does.
    pub(crate) fn look_away(&self) {
        self.state().observer = None;
    }

    /// Somebody else changes something below `path`, and makes it durable. It is no effect of ours.
    pub(crate) fn by_others(&self, path: &Path, act: impl FnOnce()) {
        let mut state = self.state();
        act();
        state.settle(path);
    }

    /// Something has happened beside the disk: calls the observer.
    pub(crate) fn point(&self, what: &str) {
        self.state().point(what);
    }

    /// What there would be after an end now.
    #[cfg(test)]
    pub(crate) fn crash(&self) -> Crash {
        self.state().crash()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn synced(&mut self, path: &Path) {
        let Ok(meta) = path.symlink_metadata() else { return };
        if meta.is_dir() {
            self.directories.insert(inode(&meta), names(path).collect());
        } else {
            let content = self.content(path, &inode(&meta));
            self.files.insert(inode(&meta), content);
        }
    }

    /// What is in a file now: that which is durable, as long as it is the same.
    fn content(&self, path: &Path, inode: &Inode) -> Content {
        let bytes = fs::read(path).unwrap_or_default();
        let durable = self.files.get(inode).filter(|durable| *durable.bytes == *bytes);
        durable.cloned().unwrap_or_else(|| Content::of(&bytes))
    }

    fn settle(&mut self, path: &Path) {
        self.synced(path);
        for (name, found) in names(path) {
            match found.kind {
                Kind::Directory => self.settle(&path.join(name)),
                Kind::File => self.synced(&path.join(name)),
                Kind::Link(_) | Kind::Socket => {}
            }
        }
    }

    fn point(&mut self, what: &str) {
        if self.observer.is_some() {
            let crash = self.crash();
            if let Some(observer) = &mut self.observer {
                observer(what, crash);
            }
        }
    }

    fn crash(&self) -> Crash {
        let [mut killed, mut unsynced_lost, mut content_lost, mut state_kept] =
            std::array::from_fn(|_| Tree::default());
        self.collect_present(&self.root, Path::new(""), &mut killed, &mut content_lost);
        if let Ok(meta) = self.root.symlink_metadata() {
            self.collect_durable(inode(&meta), Path::new(""), &mut unsynced_lost);
        }
        state_kept.0.extend(unsynced_lost.0.iter().filter(|(path, _)| !is_below(path, STATE)).map(copy));
        // Without the directories that lead to it there is nothing to keep.
        if unsynced_lost.0.contains_key(OsStr::new("var/lib")) {
            state_kept.0.extend(content_lost.0.iter().filter(|(path, _)| is_below(path, STATE)).map(copy));
        }
        for tree in [&mut unsynced_lost, &mut content_lost, &mut state_kept] {
            tree.0.retain(|path, _| path == "run" || !is_below(path, "run"));
        }
        Crash { killed, unsynced_lost, content_lost, state_kept }
    }

    fn collect_present(&self, directory: &Path, at: &Path, killed: &mut Tree, content_lost: &mut Tree) {
        for (name, found) in names(directory) {
            let (path, at) = (directory.join(&name), at.join(&name));
            let durable = self.files.get(&found.inode).cloned().unwrap_or_default();
            let present = match &found.kind {
                Kind::File => self.content(&path, &found.inode),
                _ => Content::default(),
            };
            killed.insert(&at, &found, present);
            content_lost.insert(&at, &found, durable);
            if matches!(found.kind, Kind::Directory) {
                self.collect_present(&path, &at, killed, content_lost);
            }
        }
    }

    fn collect_durable(&self, directory: Inode, at: &Path, tree: &mut Tree) {
        for (name, found) in self.directories.get(&directory).into_iter().flatten() {
            let at = at.join(name);
            tree.insert(&at, found, self.files.get(&found.inode).cloned().unwrap_or_default());
            if matches!(found.kind, Kind::Directory) {
                self.collect_durable(found.inode, &at, tree);
            }
        }
    }
}

/// Bytes of a file. Two of the same digest are the same.
#[derive(Clone, Default)]
struct Content {
    bytes: Arc<[u8]>,
    digest: Vec<u8>,
}

impl Content {
    fn of(bytes: &[u8]) -> Self {
        let digest = if bytes.is_empty() { Vec::new() } else { digest(&SHA256, bytes).as_ref().to_owned() };
        Self { bytes: bytes.into(), digest }
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Content {}

impl Hash for Content {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.digest.hash(hasher);
    }
}

fn copy((path, entry): (&OsString, &Entry)) -> (OsString, Entry) {
    (path.clone(), entry.clone())
}

fn inode(meta: &Metadata) -> Inode {
    (meta.ino(), meta.created().ok())
}

fn names(directory: &Path) -> impl Iterator<Item = (OsString, Found)> {
    fs::read_dir(directory).into_iter().flatten().flatten().filter_map(|entry| {
        let meta = entry.path().symlink_metadata().ok()?;
        let kind = match meta.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Link(fs::read_link(entry.path()).ok()?),
            kind if kind.is_file() => Kind::File,
            _ => Kind::Socket,
        };
        Some((entry.file_name(), Found { inode: inode(&meta), mode: meta.mode() & 0o7777, kind }))
    })
}

fn is_below(path: &OsStr, directory: &str) -> bool {
    Path::new(path).starts_with(directory)
}

/// Files and directories by their path below a root, whose bytes sort faster than its components.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tree(BTreeMap<OsString, Entry>);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Entry {
    File { mode: u32, content: Content },
    Directory { mode: u32 },
    Link(PathBuf),
    Socket,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { mode, content } => write!(f, "{mode:o}, {} bytes", content.bytes.len()),
            Self::Directory { mode } => write!(f, "{mode:o}, directory"),
            Self::Link(target) => write!(f, "→ {}", target.display()),
            Self::Socket => f.write_str("socket"),
        }
    }
}

impl Tree {
    /// What is below `root`.
    pub(crate) fn of(root: &Path) -> Self {
        let state = State { root: root.to_owned(), files: HashMap::new(), directories: HashMap::new(), observer: None };
        state.crash().killed
    }

    fn insert(&mut self, path: &Path, found: &Found, content: Content) {
        let entry = match &found.kind {
            Kind::File => Entry::File { mode: found.mode, content },
            Kind::Directory => Entry::Directory { mode: found.mode },
            Kind::Link(target) => Entry::Link(target.clone()),
            Kind::Socket => Entry::Socket,
        };
        self.0.insert(path.as_os_str().to_owned(), entry);
    }

    /// Empties `root`, and makes it so.
    pub(crate) fn restore(&self, root: &Path) {
        super::empty_directory(root).unwrap();
        for (path, entry) in &self.0 {
            let path = root.join(path);
            match entry {
                Entry::File { mode, content } => {
                    let mut options = OpenOptions::new();
                    let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
                    file.write_all(&content.bytes).unwrap();
                    file.set_permissions(Permissions::from_mode(*mode)).unwrap();
                }
                Entry::Directory { mode } => {
                    DirBuilder::new().mode(0o700).create(&path).unwrap();
                    fs::set_permissions(&path, Permissions::from_mode(*mode)).unwrap();
                }
                Entry::Link(target) => symlink(target, &path).unwrap(),
                // Nobody listens any more.
                Entry::Socket => drop(UnixListener::bind(&path).unwrap()),
            }
        }
    }

    /// Paths of all that is there, below the root.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(Path::new)
    }

    /// How `other` differs: paths, with what there is.
    pub(crate) fn difference(&self, other: &Self) -> Vec<String> {
        let paths: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let differing = paths.into_iter().filter(|path| self.0.get(*path) != other.0.get(*path));
        differing.map(|path| format!("{}: {:?} → {:?}", path.display(), self.0.get(path), other.0.get(path))).collect()
    }
}

#[cfg(test)]
mod tests;
