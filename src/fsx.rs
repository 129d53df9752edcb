//! Files: the only module that writes them, but for etcd's data and snapshots, which [`crate::etcd`] copies.
//!
//! # Guarantees
//! - A file appears under its name whole or not at all, with its final mode before the first byte of content.
//! - After a function returns, what it wrote survives a power loss (file and directory are synced); but for [`link`].
//! - Errors name the operation and the path.

#[cfg(test)]
pub(crate) mod disk;
pub(crate) mod effect;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use rustix::fs::{IFlags, Mode, OFlags};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `{}`", path.display())]
pub struct FsError {
    /// What was tried: "write", "read", …
    pub operation: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the system answered.
    #[source]
    pub source: io::Error,
}

impl FsError {
    /// An error of `operation` on `path`; made for `map_err`.
    pub fn of(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { operation, path: path.to_path_buf(), source }
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, FsError>;

/// Whether a write changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The file is new or has new content or mode.
    Changed,
    /// The file already had exactly this content and mode.
    Unchanged,
}

/// Replaces `path` by `content` with `mode`: a [`temporary`] file in the same directory, synced, renamed over. Two must
/// not write the same file at once.
///
/// The temporary name starts with a dot, so that readers of a manifests directory never see it.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    persist(prepare(path, content, mode)?, path)?;
    sync_directory(parent(path)?)
}

/// Where the content of `path` is until it is whole. The name follows from that of the file: what a writer that was
/// killed left is overwritten by the next one, and found by whoever knows of the file.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".plinth-new");
    path.with_file_name(name)
}

/// A synced temporary file beside `path` with its final content and mode.
fn prepare(path: &Path, content: &[u8], mode: u32) -> Result<tempfile::NamedTempFile> {
    let temporary = temporary(path);
    remove_file(&temporary)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(temporary.file_name().unwrap_or_default()).rand_bytes(0).permissions(Permissions::from_mode(mode));
    let directory = parent(path)?;
    let mut file = effect::change(&temporary, || builder.tempfile_in(directory))
        .map_err(FsError::of("create a temporary file beside", path))?;
    // The permissions above pass through the umask; these do not.
    effect::change(&temporary, || file.as_file().set_permissions(Permissions::from_mode(mode)))
        .map_err(FsError::of("set the mode of", path))?;
    effect::change(&temporary, || file.write_all(content)).map_err(FsError::of("write", path))?;
    effect::sync(&temporary, || file.as_file().sync_all()).map_err(FsError::of("sync", path))?;
    Ok(file)
}

fn persist(temporary: tempfile::NamedTempFile, path: &Path) -> Result<()> {
    let persisted = effect::change(path, || temporary.persist(path));
    persisted.map(drop).map_err(|error| FsError::of("rename into place", path)(error.error))
}

/// [`write_atomic`], but leaves a file alone that already has this content and mode.
pub fn write_if_changed(path: &Path, content: &[u8], mode: u32) -> Result<Written> {
    if let Some(present) = read_optional(path)?
        && present == content
        && fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o7777 == mode)
    {
        return Ok(Written::Unchanged);
    }
    write_atomic(path, content, mode)?;
    Ok(Written::Changed)
}

/// A file to be written by [`write_batch`].
#[derive(Clone, PartialEq, Eq)]
pub struct NewFile {
    /// Where.
    pub path: PathBuf,
    /// What; may be a secret.
    pub content: Vec<u8>,
    /// With which mode.
    pub mode: u32,
}

impl std::fmt::Debug for NewFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the content: it may be a private key.
        write!(f, "NewFile({}, {:o})", self.path.display(), self.mode)
    }
}

/// [`write_atomic`] for many files at the price of few: contents are synced side by side, which the file system
/// commits together, and each directory once. Files appear in the given order, so list what others refer to first.
pub fn write_batch(files: &[NewFile]) -> Result<()> {
    const WRITERS: usize = 8;
    let prepared: Vec<Result<Vec<_>>> = std::thread::scope(|scope| {
        let share = files.len().div_ceil(WRITERS).max(1);
        let writers: Vec<_> = files
            .chunks(share)
            .map(|chunk| {
                scope.spawn(move || chunk.iter().map(|file| prepare(&file.path, &file.content, file.mode)).collect())
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let prepared = prepared.into_iter().collect::<Result<Vec<_>>>()?;
    let mut directories = std::collections::BTreeSet::new();
    for (temporary, file) in prepared.into_iter().flatten().zip(files) {
        persist(temporary, &file.path)?;
        directories.insert(parent(&file.path)?);
    }
    directories.into_iter().try_for_each(sync_directory)
}

/// The content of `path`.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(FsError::of("read", path))
}

/// The content of `path` as text.
pub fn read_to_string(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(FsError::of("read", path))
}

/// The content of `path`, or `None` when there is no such file.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FsError::of("read", path)(error)),
    }
}

/// Makes sure that directory `path` exists; parents that are missing are made too. Only directories made here get
/// `mode`. Returns those made, outermost first, so that the caller can record them.
pub fn create_directories(path: &Path, mode: u32) -> Result<Vec<PathBuf>> {
    make_directories(path, mode, sync_directory)
}

fn make_directories(path: &Path, mode: u32, made_in: fn(&Path) -> Result<()>) -> Result<Vec<PathBuf>> {
    let missing = missing_directories(path);
    for directory in &missing {
        match effect::change(directory, || DirBuilder::new().mode(mode).create(directory)) {
            Ok(()) => {
                effect::change(directory, || fs::set_permissions(directory, Permissions::from_mode(mode)))
                    .map_err(FsError::of("set the mode of", directory))?;
                made_in(parent(directory)?)?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            Err(error) => return Err(FsError::of("create directory", directory)(error)),
        }
    }
    Ok(missing)
}

/// Makes the symbolic link `path` to `target`, in place of another link of that name; directories that are missing are
/// made with `mode`. Unlike all else here it may be lost with the power: for links whose maker looks after them.
pub fn link(path: &Path, target: &Path, mode: u32) -> Result<()> {
    make_directories(parent(path)?, mode, |_| Ok(()))?;
    if path.is_symlink() {
        remove_file(path)?;
    }
    effect::change(path, || std::os::unix::fs::symlink(target, path)).map_err(FsError::of("create link", path))
}

/// The directories on the way to and including `path` that do not exist, outermost first.
pub fn missing_directories(path: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<_> = path
        .ancestors()
        .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
        .map(Path::to_path_buf)
        .collect();
    missing.reverse();
    missing
}

/// Removes the file or symlink `path`; `false` when it was not there.
pub fn remove_file(path: &Path) -> Result<bool> {
    tolerate_missing(effect::change(path, || fs::remove_file(path)), "remove", path)
}

/// Removes the directory `path` if it is empty; `false` when it was not there or is not empty.
pub fn remove_empty_directory(path: &Path) -> Result<bool> {
    match effect::change(path, || fs::remove_dir(path)) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        result => tolerate_missing(result, "remove directory", path),
    }
}

/// Removes the directory `path` with all that is in it; `false` when it was not there.
pub fn remove_tree(path: &Path) -> Result<bool> {
    tolerate_missing(effect::change(path, || fs::remove_dir_all(path)), "remove directory", path)
}

/// Removes everything in the directory `path`, and not the directory, which may be a mount point. What is mounted below
/// it is somebody else's and stays, which is an error when all the rest is gone.
pub fn empty_directory(path: &Path) -> Result<()> {
    match fs::canonicalize(path) {
        Ok(path) => empty_but(&path, &mounts_below(&path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(FsError::of("resolve", path)(error)),
    }
}

/// Removes the file, or the directory with all that is in it as [`empty_directory`] does; `false` when it was not there.
pub fn remove_all(path: &Path) -> Result<bool> {
    if path.is_symlink() || !path.is_dir() {
        return remove_file(path);
    }
    empty_directory(path)?;
    tolerate_missing(effect::change(path, || fs::remove_dir(path)), "remove directory", path)
}

/// Empties `directory` but for `mounts`; goes on after an error and returns the first one.
fn empty_but(directory: &Path, mounts: &[PathBuf]) -> Result<()> {
    let mut first = Ok(());
    for entry in fs::read_dir(directory).map_err(FsError::of("read directory", directory))? {
        let path = entry.map_err(FsError::of("read directory", directory))?.path();
        let removed = if mounts.contains(&path) {
            Err(FsError::of("remove", &path)(io::ErrorKind::ResourceBusy.into()))
        } else if mounts.iter().any(|mount| mount.starts_with(&path)) {
            empty_but(&path, mounts)
        } else if path.is_symlink() || !path.is_dir() {
            remove_file(&path).map(drop)
        } else {
            remove_tree(&path).map(drop)
        };
        first = first.and(removed);
    }
    first
}

/// Takes the attributes off `path`, and off all that is in it if it is a directory, that keep root from changing it:
/// "immutable" and "append only", see chattr(1). Other file systems that are mounted there are left alone.
pub fn unlock(path: &Path) -> Result<()> {
    // A link has no attributes, and what it leads to is not asked for.
    if path.is_symlink() || !path.is_dir() {
        return unlock_one(path);
    }
    let path = fs::canonicalize(path).map_err(FsError::of("resolve", path))?;
    unlock_but(&path, &mounts_below(&path)?)
}

fn unlock_but(path: &Path, mounts: &[PathBuf]) -> Result<()> {
    unlock_one(path)?;
    if path.is_symlink() || !path.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(FsError::of("read directory", path))? {
        let entry = entry.map_err(FsError::of("read directory", path))?.path();
        if !mounts.contains(&entry) {
            unlock_but(&entry, mounts)?;
        }
    }
    Ok(())
}

/// [`unlock`] of `path` alone. Links, sockets and what is not there have no attributes, and some file systems none at
/// all.
pub fn unlock_one(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else { return Ok(()) };
    let locks = IFlags::IMMUTABLE | IFlags::APPEND;
    match rustix::fs::ioctl_getflags(&file) {
        Ok(set) if set.intersects(locks) => rustix::fs::ioctl_setflags(&file, set - locks)
            .map_err(|error| FsError::of("take the attributes off", path)(error.into())),
        _ => Ok(()),
    }
}

/// Where something is mounted below `directory`, the innermost first.
pub fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    // The kernel knows mounts by paths without links.
    let directory = match fs::canonicalize(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        canonical => canonical.map_err(FsError::of("resolve", directory))?,
    };
    Ok(mount_points(&read_to_string(Path::new("/proc/self/mountinfo"))?, &directory))
}

fn mount_points(mountinfo: &str, directory: &Path) -> Vec<PathBuf> {
    let mut points: Vec<_> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(directory) && point != directory)
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    points
}

/// mountinfo writes space, tab, line feed and backslash as octal escapes (proc(5)).
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// How a mount was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// It is gone.
    Done,
    /// It was in use. It is no longer there for those who look, and goes when its last user does.
    Detached,
}

/// Ends the mount at `point`.
pub fn unmount(point: &Path) -> Result<Unmounted> {
    let result = match umount2(point, MntFlags::empty()) {
        Err(Errno::EBUSY) => umount2(point, MntFlags::MNT_DETACH).map(|()| Unmounted::Detached),
        result => result.map(|()| Unmounted::Done),
    };
    result.map_err(|error| FsError::of("unmount", point)(error.into()))
}

/// Whether something is mounted at `path`.
pub fn is_mount_point(path: &Path) -> bool {
    path.parent().is_some_and(|parent| mounts_below(parent).is_ok_and(|points| points.iter().any(|one| one == path)))
}

/// Whether `path` is a directory with nothing in it.
pub fn is_empty_directory(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

fn tolerate_missing(result: io::Result<()>, operation: &'static str, path: &Path) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FsError::of(operation, path)(error)),
    }
}

/// Renames `from` to `to` on the same file system and syncs both directories.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    effect::change(to, || fs::rename(from, to)).map_err(FsError::of("rename", from))?;
    sync_directory(parent(from)?)?;
    sync_directory(parent(to)?)
}

/// Opens `path` for appending, created with `mode` when missing.
pub fn open_append(path: &Path, mode: u32) -> Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).read(true).create(true).mode(mode);
    effect::change(path, || options.open(path)).map_err(FsError::of("open", path))
}

/// Whether `path` names the open file `file`, which may have been removed or replaced since it was opened.
pub fn has_name(file: &File, path: &Path) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

/// A lock that lasts until it is dropped or its process ends, however that ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock file `path` (0600), writing our pid into it; `Err(holder)` inside `Ok` when another process
    /// has it, with the pid that is written in the file, if one is.
    pub fn try_take(path: &Path) -> Result<std::result::Result<Self, Option<i32>>> {
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = effect::change(path, || options.open(path)).map_err(FsError::of("open", path))?;
            return match file.try_lock() {
                // Its last holder has removed it, and others lock the file that has the name now.
                Ok(()) if !has_name(&file, path) => continue,
                Ok(()) => {
                    let mut lock = Self { file };
                    effect::change(path, || lock.write_pid()).map_err(FsError::of("write", path))?;
                    Ok(Ok(lock))
                }
                Err(fs::TryLockError::WouldBlock) => Ok(Err(Self::pid_in(path))),
                Err(fs::TryLockError::Error(error)) => Err(FsError::of("lock", path)(error)),
            };
        }
    }

    /// Who holds the lock `path`. The process id is what is written in the file, and only as good as that: a holder
    /// that has not written its own yet leaves that of an earlier one there.
    pub fn holder(path: &Path) -> Result<Holder> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Holder::Free),
            Err(error) => return Err(FsError::of("open", path)(error)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Holder::Free),
            Err(fs::TryLockError::WouldBlock) => Ok(Self::pid_in(path).map_or(Holder::Unknown, Holder::Process)),
            Err(fs::TryLockError::Error(error)) => Err(FsError::of("lock", path)(error)),
        }
    }

    fn pid_in(path: &Path) -> Option<i32> {
        fs::read_to_string(path).ok()?.trim().parse().ok().filter(|pid| *pid > 0)
    }

    /// At one stroke and always of the same length, so that no reader sees half of it, or nothing.
    fn write_pid(&mut self) -> io::Result<()> {
        let text = format!("{:<10}\n", std::process::id());
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)
    }
}

/// Who holds a [`Lock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Free,
    /// Somebody; the file names this process.
    Process(i32),
    /// Somebody, and the file does not say who.
    Unknown,
}

/// Makes names that were created, renamed or removed in `directory` durable.
pub fn sync_directory(directory: &Path) -> Result<()> {
    let sync = || File::open(directory).and_then(|file| file.sync_all());
    effect::sync(directory, sync).map_err(FsError::of("sync directory", directory))
}

fn parent(path: &Path) -> Result<&Path> {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .ok_or_else(|| FsError::of("find the directory of", path)(io::ErrorKind::InvalidInput.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_write_replaces_content_and_mode_and_leaves_no_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        write_atomic(&path, b"one", 0o644).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_writer_left_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(temporary(&path), "hal").unwrap();
        write_atomic(&path, b"whole", 0o600).unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"whole".to_vec(), 0o600));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_equal_file_is_left_alone_but_a_wrong_mode_is_mended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert_eq!(write_if_changed(&path, b"x", 0o600).unwrap(), Written::Changed);
        assert_eq!(write_if_changed(&path, b"x", 0o600).unwrap(), Written::Unchanged);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(write_if_changed(&path, b"x", 0o600).unwrap(), Written::Changed);
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_batch_writes_all_its_files_or_says_which_one_failed() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, mode| NewFile { path: directory.path().join(name), content: name.into(), mode };
        let files: Vec<_> = (0..20).map(|n| file(&format!("f{n}"), if n % 2 == 0 { 0o600 } else { 0o644 })).collect();
        write_batch(&files).unwrap();
        for file in &files {
            assert_eq!(fs::read(&file.path).unwrap(), file.content);
            assert_eq!(mode(&file.path), file.mode);
        }
        let error = write_batch(&[file("g", 0o600), file("missing/h", 0o600)]).unwrap_err();
        assert!(error.to_string().contains("missing/h"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 20);
    }

    #[test]
    fn made_directories_are_reported_outermost_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        assert_eq!(create_directories(&path, 0o700).unwrap(), [directory.path().join("a"), path.clone()]);
        assert_eq!(create_directories(&path, 0o755).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_lock_file_that_was_removed_locks_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = Lock::try_take(&path).unwrap().unwrap();
        assert!(has_name(&first.file, &path));
        remove_file(&path).unwrap();
        assert!(!has_name(&first.file, &path));
        let second = Lock::try_take(&path).unwrap().unwrap();
        assert!(has_name(&second.file, &path) && !has_name(&first.file, &path));
    }

    #[test]
    fn a_lock_names_its_holder_and_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let lock = Lock::try_take(&path).unwrap().unwrap();
        assert_eq!(Lock::try_take(&path).unwrap().unwrap_err(), Some(std::process::id().cast_signed()));
        assert_eq!(Lock::holder(&path).unwrap(), Holder::Process(std::process::id().cast_signed()));
        drop(lock);
        assert_eq!(Lock::holder(&path).unwrap(), Holder::Free);
    }

    #[test]
    fn a_lock_that_is_held_is_never_taken_for_free_whatever_is_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        assert_eq!(Lock::holder(&path).unwrap(), Holder::Free, "no file");
        for (content, held) in [
            ("", Holder::Unknown),
            ("\n", Holder::Unknown),
            ("12x", Holder::Unknown),
            ("0\n", Holder::Unknown),
            ("-1\n", Holder::Unknown),
            ("12\n", Holder::Process(12)),
            ("12        \n", Holder::Process(12)),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(Lock::holder(&path).unwrap(), Holder::Free, "{content:?}");
            let other = File::open(&path).unwrap();
            other.lock().unwrap();
            assert_eq!(Lock::holder(&path).unwrap(), held, "{content:?}");
            let named = if let Holder::Process(pid) = held { Some(pid) } else { None };
            assert_eq!(Lock::try_take(&path).unwrap().unwrap_err(), named, "{content:?}");
        }
    }

    #[test]
    fn the_pid_of_an_earlier_holder_is_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        fs::write(&path, "4194304 and more than fits\n").unwrap();
        let _lock = Lock::try_take(&path).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), std::process::id().to_string());
    }

    #[test]
    fn mounts_are_found_below_a_directory_innermost_first() {
        let mountinfo = "22 1 0:20 / / rw - overlay o rw\n\
                         30 22 0:30 / /p rw - tmpfs t rw\n\
                         31 30 0:31 / /p/a/v rw shared:1 - tmpfs t rw\n\
                         32 31 0:32 / /p/a/v/in\\040it\\134x rw - nfs n rw\n\
                         33 30 0:33 / /p/ab rw - tmpfs t rw\n\
                         34 31 0:34 / /p/a/v rw - tmpfs over-it rw\n";
        let found = |directory: &str| mount_points(mountinfo, Path::new(directory));
        assert_eq!(found("/p/a"), ["/p/a/v/in it\\x", "/p/a/v", "/p/a/v"].map(PathBuf::from));
        assert_eq!(found("/p/ab"), [] as [PathBuf; 0]);
        assert_eq!(found("/p").len(), 4);
    }

    #[test]
    fn errors_name_operation_and_path() {
        let error = read(Path::new("/nonexistent/x")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read `/nonexistent/x`");
    }
}
