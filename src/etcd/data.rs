//! The data directory of a stopped etcd: its copy, and the exchange of the two.
//!
//! The copy lives inside the data directory, as `plinth-copy/member` beside `member`: there it is on the same file
//! system, so that blocks can be shared and names exchanged, also where the data directory is a mount point, and goes
//! where the data go. (etcd warns of "invalid file under data directory" at its start, and ignores it.)
//!
//! ```text
//! /var/lib/etcd/member/{snap,wal}             what etcd runs on
//! /var/lib/etcd/plinth-copy/                  0700
//! /var/lib/etcd/plinth-copy/member/{snap,wal} the other one
//! /var/lib/etcd/plinth-copy/copy.json         0600, last: the copy is whole; what it is a copy of
//! ```
//!
//! # Guarantees
//! - Nothing is read, copied or exchanged while an etcd has the data open: its database is locked meanwhile.
//! - A copy that was not finished is never taken for one: `copy.json` is written when all else is synced.
//! - The exchange is one system call (`renameat2` with `RENAME_EXCHANGE`): at no instant is there a data directory
//!   without `member`, on which etcd would begin an empty cluster. Whether it has happened is told by a mark inside the
//!   copied `member`, not by memory: it may be repeated safely.
//! - Modes and owners are kept.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::bolt::{self, Contents};
use super::put_back::{PutBack, Served, may_put_back};
use super::series::Series;
use super::wal::{self, Content, Record};
use crate::fsx::{self, FsError, effect};

/// Space that is left to the new etcd beside the copy, in bytes: it allocates two log files of 64 MB each in advance,
/// and its database grows.
pub const RESERVE: u64 = 256 * 1024 * 1024;

const MIB: u64 = 1024 * 1024;
const MEMBER: &str = "member";
const COPY: &str = "plinth-copy";
const RECORD: &str = "copy.json";
/// Inside the copied `member`; holds the copy's id.
const MARK: &str = "plinth-copy-id";
const CHUNK: u64 = 8 * 1024 * 1024;

/// Why the data of a stopped etcd cannot be copied, exchanged or read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The system refused.
    #[error(transparent)]
    File(#[from] FsError),
    /// An etcd has its database open.
    #[error("an etcd still runs on `{}`", .0.display())]
    InUse(PathBuf),
    /// Something that is neither file nor directory, such as a link to another disk: its copy would not be one.
    #[error("`{}` is neither a file nor a directory and cannot be copied", .0.display())]
    Foreign(PathBuf),
    /// The file system cannot exchange two names.
    #[error("the file system of `{}` cannot exchange two directories", path.display())]
    CannotExchange {
        /// The data directory.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// There is no whole copy.
    #[error("there is no whole copy of etcd's data in `{}`", .0.display())]
    NoCopy(PathBuf),
    /// The record of the copy is not one that this plinth understands.
    #[error("cannot understand `{}`", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The database cannot be read.
    #[error(transparent)]
    Database(#[from] bolt::BoltError),
}

type Result<T> = std::result::Result<T, DataError>;

/// What a copy would need, for `plan` to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prospect {
    /// What the data take on disk, in bytes.
    pub bytes: u64,
    /// What is free for root and etcd alike, in bytes.
    pub free: u64,
    /// The file system shares blocks: the copy takes next to no time and, at first, no space.
    pub shares_blocks: bool,
    /// How long it takes, from the speed at which a small file was written just now.
    pub time: Duration,
}

impl Prospect {
    /// Whether there is space for the copy and for the new etcd beside it.
    pub fn fits(&self) -> bool {
        self.free >= self.needed()
    }

    /// What has to be free for that, in bytes.
    pub fn needed(&self) -> u64 {
        let copy = if self.shares_blocks { 0 } else { self.bytes };
        copy.saturating_add(RESERVE)
    }
}

impl fmt::Display for Prospect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mib, free) = (self.bytes.div_ceil(MIB), self.free / MIB);
        if self.shares_blocks {
            write!(
                f,
                "etcd's data ({mib} MiB) are copied by sharing their blocks, while etcd is away; {free} MiB are free"
            )
        } else {
            let time = self.time.as_secs_f64();
            write!(
                f,
                "etcd's data ({mib} MiB) are copied in about {time:.1} s, while etcd is away; {free} MiB are free"
            )
        }
    }
}

/// What a copy is a copy of, as its `copy.json` says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CopyRecord {
    /// Given by whoever made it, to find it again in the journal.
    pub id: String,
    /// The etcd that ran on these data last and can run on them again, e.g. the image `registry.k8s.io/etcd:3.6.8-0`.
    pub etcd: String,
    /// Revision of the data.
    pub revision: u64,
}

/// Where the copied data are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Beside: etcd runs on the others.
    Aside,
    /// Put back: etcd runs on them, and the others are beside.
    InUse,
}

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Bytes that were copied; those of shared blocks do not count.
    pub bytes: u64,
    /// Bytes whose blocks are shared.
    pub shared: u64,
}

/// A data directory, `/var/lib/etcd` unless configured otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir {
    path: PathBuf,
}

impl DataDir {
    /// The data directory `path`, below the root if there is one.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// What etcd runs on.
    pub fn member(&self) -> PathBuf {
        self.path.join(MEMBER)
    }

    /// The directory of the copy, for the journal and for people.
    pub fn copy_directory(&self) -> PathBuf {
        self.path.join(COPY)
    }

    fn copied_member(&self) -> PathBuf {
        self.copy_directory().join(MEMBER)
    }

    fn record_path(&self) -> PathBuf {
        self.copy_directory().join(RECORD)
    }

    /// What a copy would need. Leaves nothing behind; may be asked while etcd runs.
    pub fn prospect(&self) -> Result<Prospect> {
        let mut bytes = 0;
        walk(&self.member(), &mut |path, meta| {
            if !meta.is_dir() && !meta.is_file() {
                return Err(DataError::Foreign(path.to_path_buf()));
            }
            bytes += if is_needed(path) { meta.blocks() * 512 } else { 0 };
            Ok(())
        })?;
        let space = rustix::fs::statvfs(&self.path).map_err(os("get the free space of", &self.path))?;
        let trial = Trial::run(&self.path)?;
        Ok(Prospect {
            bytes,
            free: space.f_bavail.saturating_mul(space.f_frsize),
            shares_blocks: trial.shares_blocks,
            time: if trial.shares_blocks { Duration::ZERO } else { trial.time_for(bytes) },
        })
    }

    /// What the database says, with etcd stopped.
    pub fn contents(&self) -> Result<Contents> {
        let _idle = self.idle()?;
        Ok(bolt::read(&database(&self.member()))?)
    }

    /// Whether an etcd of `series` can open these data, with etcd stopped: it refuses data of a later storage version,
    /// and a cluster of a later version (etcd, `schema.Validate` and `mustDetectDowngrade`). That one may be in the log
    /// only, after SIGKILL. What cannot be read cannot be opened.
    pub fn can_be_opened_by(&self, series: Series) -> Result<bool> {
        let _idle = self.idle()?;
        let Ok(contents) = bolt::read(&database(&self.member())) else { return Ok(false) };
        let Ok(records) = wal::after(&log(&self.member()), contents.applied) else { return Ok(false) };
        let is_version = |version: &Option<String>| version.as_ref().is_some_and(|version| series.is_of(version));
        let moves = |record: &Record| matches!(record, Record::Entry { content: Content::ClusterVersion, .. });
        let stays = !records.iter().any(moves);
        Ok(stays && is_version(&contents.storage_version) && is_version(&contents.cluster_version))
    }

    /// Copies the data, with etcd stopped. An earlier copy is removed first. `progress` is told the bytes done.
    pub fn copy(&self, id: &str, etcd: &str, progress: &mut dyn FnMut(u64)) -> Result<(CopyRecord, Copied)> {
        let _idle = self.idle()?;
        self.discard()?;
        let directory = self.copy_directory();
        fsx::create_directories(&directory, 0o700)?;
        self.try_exchange()?;

        let mut copied = Copied { bytes: 0, shared: 0 };
        copy_directory(&self.member(), &self.copied_member(), &mut copied, progress)?;
        fsx::write_atomic(&self.copied_member().join(MARK), id.as_bytes(), 0o600)?;
        let revision = bolt::read(&database(&self.copied_member()))?.revision;
        let record = CopyRecord { id: id.to_owned(), etcd: etcd.to_owned(), revision };
        let path = self.record_path();
        let text = serde_json::to_vec(&record).map_err(|source| DataError::Record { path: path.clone(), source })?;
        fsx::write_atomic(&path, &text, 0o600)?;
        Ok((record, copied))
    }

    /// The copy, if there is a whole one, and where it is.
    pub fn find_copy(&self) -> Result<Option<(CopyRecord, Place)>> {
        let path = self.record_path();
        let Some(text) = fsx::read_optional(&path)? else { return Ok(None) };
        let record: CopyRecord = serde_json::from_slice(&text).map_err(|source| DataError::Record { path, source })?;
        let marked = |member: &Path| -> Result<bool> {
            Ok(fsx::read_optional(&member.join(MARK))?.is_some_and(|mark| mark == record.id.as_bytes()))
        };
        if marked(&self.copied_member())? {
            Ok(Some((record, Place::Aside)))
        } else if marked(&self.member())? {
            Ok(Some((record, Place::InUse)))
        } else {
            Ok(None)
        }
    }

    /// Whether the copy may be put back, with etcd stopped: see [`may_put_back`]. What cannot be read is a refusal.
    pub fn may_put_back(&self) -> Result<PutBack> {
        let _idle = self.idle()?;
        if !matches!(self.find_copy()?, Some((_, Place::Aside))) {
            return Ok(PutBack::Refused(Served::NoCopy));
        }
        let read = || {
            let growth = wal::growth(&log(&self.copied_member()), &log(&self.member()))?;
            let copy = bolt::read(&database(&self.copied_member()))?;
            let new = bolt::read(&database(&self.member()))?;
            Ok(may_put_back(&copy, &new, &growth))
        };
        Ok(read().unwrap_or_else(PutBack::Refused))
    }

    /// Puts the copy back, with etcd stopped; the data that were in use are kept in its place. Done already is done.
    ///
    /// Whether it may be is the caller's to ask, [`DataDir::may_put_back`].
    pub fn put_back(&self) -> Result<()> {
        let _idle = self.idle()?;
        match self.find_copy()? {
            Some((_, Place::Aside)) => self.exchange(&self.member(), &self.copied_member()),
            Some((_, Place::InUse)) => self.sync_names(),
            None => Err(DataError::NoCopy(self.copy_directory())),
        }
    }

    /// Takes the copy away, or what was put aside for it. Nothing there is fine.
    pub fn discard(&self) -> Result<()> {
        // First what says that the rest is whole.
        if fsx::remove_file(&self.record_path())? {
            fsx::sync_directory(&self.copy_directory())?;
        }
        if fsx::remove_tree(&self.copy_directory())? {
            fsx::sync_directory(&self.path)?;
        }
        fsx::remove_file(&self.member().join(MARK))?;
        Ok(())
    }

    /// Whether an etcd has the database open.
    pub fn is_in_use(&self) -> Result<bool> {
        match self.idle() {
            Ok(_) => Ok(false),
            Err(DataError::InUse(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Proof that no etcd has the database open, which lasts as long as the file: bbolt takes the same lock.
    fn idle(&self) -> Result<File> {
        let path = database(&self.member());
        let file = File::open(&path).map_err(FsError::of("open", &path))?;
        match file.try_lock_shared() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(DataError::InUse(self.path.clone())),
            Err(fs::TryLockError::Error(error)) => Err(FsError::of("lock", &path)(error).into()),
        }
    }

    /// Exchanges two empty directories, so that a file system that cannot is known before it matters.
    fn try_exchange(&self) -> Result<()> {
        let names = ["trial-1", "trial-2"].map(|name| self.copy_directory().join(name));
        for name in &names {
            fsx::create_directories(name, 0o700)?;
        }
        self.exchange(&names[0], &names[1])?;
        for name in &names {
            fsx::remove_empty_directory(name)?;
        }
        Ok(())
    }

    fn exchange(&self, one: &Path, other: &Path) -> Result<()> {
        let here = rustix::fs::CWD;
        effect::change(one, || rustix::fs::renameat_with(here, one, here, other, RenameFlags::EXCHANGE))
            .map_err(|error| DataError::CannotExchange { path: self.path.clone(), source: error.into() })?;
        self.sync_names()
    }

    fn sync_names(&self) -> Result<()> {
        fsx::sync_directory(&self.copy_directory())?;
        Ok(fsx::sync_directory(&self.path)?)
    }
}

fn database(member: &Path) -> PathBuf {
    member.join("snap/db")
}

fn log(member: &Path) -> PathBuf {
    member.join("wal")
}

/// Left out are files that etcd has only prepared: the next log file, 64 MB of nothing, and unfinished snapshots.
fn is_needed(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Path::new(name).extension().is_none_or(|extension| extension != "tmp") && name != MARK
}

fn os(operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> DataError {
    move |error| FsError::of(operation, path)(error.into()).into()
}

/// Shows `directory` and everything in it, parents first. What goes away meanwhile is left out.
fn walk(directory: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata) -> Result<()>) -> Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let meta = fs::symlink_metadata(directory).map_err(FsError::of("stat", directory))?;
    visit(directory, &meta)?;
    for entry in fs::read_dir(directory).map_err(FsError::of("read directory", directory))? {
        let path = entry.map_err(FsError::of("read directory", directory))?.path();
        match fs::symlink_metadata(&path) {
            Err(error) if gone(&error) => {}
            Err(error) => return Err(FsError::of("stat", &path)(error).into()),
            Ok(meta) if meta.is_dir() => walk(&path, visit)?,
            Ok(meta) => visit(&path, &meta)?,
        }
    }
    Ok(())
}

/// Copies a tree, synced, with modes and owners.
fn copy_directory(from: &Path, to: &Path, copied: &mut Copied, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let meta = fs::symlink_metadata(from).map_err(FsError::of("stat", from))?;
    if !meta.is_dir() {
        return Err(DataError::Foreign(from.to_path_buf()));
    }
    effect::change(to, || fs::DirBuilder::new().mode(0o700).create(to)).map_err(FsError::of("create directory", to))?;
    let mut names: Vec<_> = fs::read_dir(from)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
        .map_err(FsError::of("read directory", from))?;
    names.sort();
    for name in names {
        let (from, to) = (from.join(&name), to.join(&name));
        let kind = fs::symlink_metadata(&from).map_err(FsError::of("stat", &from))?.file_type();
        if kind.is_dir() {
            copy_directory(&from, &to, copied, progress)?;
        } else if !kind.is_file() {
            return Err(DataError::Foreign(from));
        } else if is_needed(&from) {
            copy_file(&from, &to, copied, progress)?;
        }
    }
    keep_owner_and_mode(&meta, to)?;
    Ok(fsx::sync_directory(to)?)
}

fn keep_owner_and_mode(meta: &fs::Metadata, to: &Path) -> Result<()> {
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid())).map_err(FsError::of("set the owner of", to))?;
    let set = effect::change(to, || fs::set_permissions(to, meta.permissions()));
    Ok(set.map_err(FsError::of("set the mode of", to))?)
}

fn copy_file(from: &Path, to: &Path, copied: &mut Copied, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let mut source = File::open(from).map_err(FsError::of("open", from))?;
    let meta = source.metadata().map_err(FsError::of("stat", from))?;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut target = effect::change(to, || options.open(to)).map_err(FsError::of("create", to))?;
    if share_blocks(&source, &target).map_err(FsError::of("share the blocks of", from))? {
        copied.shared += meta.blocks() * 512;
    } else {
        effect::change(to, || {
            copy_data(&mut source, &mut target, meta.len(), &mut |bytes| {
                copied.bytes += bytes;
                progress(copied.bytes);
            })
        })
        .map_err(FsError::of("copy", from))?;
    }
    keep_owner_and_mode(&meta, to)?;
    Ok(effect::sync(to, || target.sync_all()).map_err(FsError::of("sync", to))?)
}

/// `false` where the file system cannot.
fn share_blocks(source: &File, target: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(target, source) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS | Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Copies what the file has, and not its holes: most of a log file is allocated in advance.
fn copy_data(source: &mut File, target: &mut File, length: u64, done: &mut dyn FnMut(u64)) -> io::Result<()> {
    use rustix::fs::SeekFrom as Place;
    let mut at = 0;
    while at < length {
        let begin = match rustix::fs::seek(&*source, Place::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => break, // a hole up to the end
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&*source, Place::Hole(begin))?.min(length);
        source.seek(SeekFrom::Start(begin))?;
        target.seek(SeekFrom::Start(begin))?;
        let mut left = end - begin;
        while left > 0 {
            let bytes = io::copy(&mut io::Read::take(&mut *source, left.min(CHUNK)), target)?;
            if bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= bytes;
            done(bytes);
        }
        at = end;
    }
    target.set_len(length)
}

/// What a nameless file in a directory tells of its file system.
struct Trial {
    shares_blocks: bool,
    bytes_per_second: f64,
}

impl Trial {
    /// Large enough to tell, small enough to take no notice of: 0.1 s at 160 MB/s.
    const BYTES: usize = 16 * 1024 * 1024;

    fn run(directory: &Path) -> Result<Self> {
        let new = || tempfile::tempfile_in(directory).map_err(FsError::of("create a temporary file in", directory));
        let (mut file, clone) = (new()?, new()?);
        let begin = Instant::now();
        // Not zeros, which some file systems do not write.
        let block: Vec<u8> = (0_u8..=255).cycle().take(1 << 20).collect();
        for _ in 0..Self::BYTES / block.len() {
            io::Write::write_all(&mut file, &block).map_err(FsError::of("write a temporary file in", directory))?;
        }
        file.sync_all().map_err(FsError::of("sync a temporary file in", directory))?;
        let took = begin.elapsed();
        let shares_blocks =
            share_blocks(&file, &clone).map_err(FsError::of("share the blocks of a file in", directory))?;
        #[allow(clippy::cast_precision_loss)] // an estimate
        let bytes_per_second = Self::BYTES as f64 / took.as_secs_f64().max(1e-6);
        Ok(Self { shares_blocks, bytes_per_second })
    }

    #[allow(clippy::cast_precision_loss)] // an estimate
    fn time_for(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_second)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const FIRST: &str = "member/wal/0000000000000000-0000000000000000.wal";

    /// A data directory as the etcd of a fixture left it.
    struct Lab {
        directory: tempfile::TempDir,
        data: DataDir,
    }

    impl Lab {
        fn new(log: &str, database: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for name in ["member", "member/wal", "member/snap"] {
                fs::DirBuilder::new().mode(0o700).create(directory.path().join(name)).unwrap();
            }
            let lab = Self { data: DataDir::new(directory.path()), directory };
            lab.becomes(log, database);
            lab
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        /// Whatever `member` is, an etcd ran on it, and left this.
        fn becomes(&self, log: &str, database: &str) {
            let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/etcd");
            let log = fs::read(fixtures.join(format!("{log}.wal"))).unwrap();
            // Allocated in advance, as etcd does.
            fs::write(self.path(FIRST), &log).unwrap();
            File::options().write(true).open(self.path(FIRST)).unwrap().set_len(8_000_000).unwrap();
            fs::set_permissions(self.path(FIRST), fs::Permissions::from_mode(0o600)).unwrap();
            fs::copy(fixtures.join(format!("{database}.db")), self.path("member/snap/db")).unwrap();
        }

        fn copy(&self) -> (CopyRecord, Copied) {
            self.data.copy("7", "etcd:3.6.8-0", &mut |_| {}).unwrap()
        }

        fn refusal(&self) -> Option<String> {
            match self.data.may_put_back().unwrap() {
                PutBack::Allowed => None,
                PutBack::Refused(why) => Some(why.to_string()),
            }
        }
    }

    #[test]
    fn a_copy_is_put_back_and_the_other_kept_aside() {
        let lab = Lab::new("copy", "copy");
        let (record, copied) = lab.copy();
        assert_eq!(record, CopyRecord { id: "7".into(), etcd: "etcd:3.6.8-0".into(), revision: 122 });
        assert!(copied.bytes + copied.shared < 1_000_000, "holes are not copied: {copied:?}");
        assert_eq!(copied.shared > 0, lab.data.prospect().unwrap().shares_blocks);
        assert_eq!(lab.data.find_copy().unwrap(), Some((record.clone(), Place::Aside)));
        assert_eq!(lab.refusal(), None);

        lab.becomes("untouched", "untouched");
        assert_eq!(lab.data.contents().unwrap().storage_version.as_deref(), Some("3.7.0"));
        assert_eq!(lab.refusal(), None);
        lab.data.put_back().unwrap();
        assert_eq!(lab.data.find_copy().unwrap(), Some((record.clone(), Place::InUse)));
        assert_eq!(lab.data.contents().unwrap().storage_version.as_deref(), Some("3.6.0"));
        let aside = bolt::read(&database(&lab.path("plinth-copy/member"))).unwrap();
        assert_eq!(aside.storage_version.as_deref(), Some("3.7.0"));
        assert_eq!(fs::metadata(lab.path(FIRST)).unwrap().len(), 8_000_000);
        // Whoever does not know whether it was done does it again.
        lab.data.put_back().unwrap();
        assert_eq!(lab.data.find_copy().unwrap(), Some((record, Place::InUse)));

        lab.data.discard().unwrap();
        assert_eq!(lab.data.find_copy().unwrap(), None);
        let mut left: Vec<_> =
            fs::read_dir(lab.path("")).unwrap().chain(fs::read_dir(lab.path("member")).unwrap()).collect::<Vec<_>>();
        left.retain(|entry| entry.as_ref().unwrap().file_name() != "wal");
        assert_eq!(left.len(), 2, "member, and snap in it: {left:?}");
        lab.data.discard().unwrap();
    }

    #[test]
    fn what_was_written_is_never_put_back() {
        for (log, database, expected) in [
            ("put", "untouched", "the new etcd has written: put (log entry 133)"),
            ("put-killed", "copy", "the new etcd has written: put (log entry 133)"),
            ("compacted", "compacted", "the new etcd has written: delete (log entry 133)"),
            ("untouched", "compacted", "the new etcd's data are at revision 123, the copy's at 122"),
            ("empty", "copy", "it is not known what the new etcd has written"),
        ] {
            let lab = Lab::new("copy", "copy");
            lab.copy();
            lab.becomes(log, database);
            assert_eq!(lab.refusal().as_deref(), Some(expected), "{log} with {database}");
        }
        let lab = Lab::new("copy", "copy");
        lab.copy();
        fs::write(lab.path("member/snap/db"), "no database").unwrap();
        assert_eq!(lab.refusal().as_deref(), Some("it is not known at which revision the data are"));
    }

    #[test]
    fn an_etcd_opens_data_of_its_own_series() {
        for (log, database, old, new) in [
            ("copy", "copy", true, false),
            ("untouched", "untouched", false, true),
            // Killed before the database had what the log says: that the cluster is of the new version.
            ("put-killed", "copy", false, false),
            ("empty", "empty", true, false),
        ] {
            let lab = Lab::new(log, database);
            let opens = |version: &str| lab.data.can_be_opened_by(version.parse().unwrap()).unwrap();
            assert_eq!((opens("3.6.8-0"), opens("3.7.0-0")), (old, new), "{log} with {database}");
        }
        let lab = Lab::new("copy", "copy");
        fs::write(lab.path("member/snap/db"), "no database").unwrap();
        assert!(!lab.data.can_be_opened_by("3.6.8-0".parse().unwrap()).unwrap());
    }

    #[test]
    fn nothing_is_done_while_an_etcd_runs() {
        let lab = Lab::new("copy", "copy");
        let running = File::open(lab.path("member/snap/db")).unwrap();
        running.lock().unwrap();
        let in_use = |result: Result<()>| matches!(result, Err(DataError::InUse(_)));
        assert!(in_use(lab.data.copy("7", "etcd", &mut |_| {}).map(drop)));
        assert!(!lab.path("plinth-copy").exists());
        running.unlock().unwrap();
        lab.copy();
        running.lock().unwrap();
        assert!(in_use(lab.data.put_back()) && in_use(lab.data.may_put_back().map(drop)));
        assert!(in_use(lab.data.contents().map(drop)));
        assert!(lab.data.prospect().unwrap().bytes > 0, "this may be asked at any time");
    }

    #[test]
    fn an_unfinished_copy_is_none_and_is_made_again() {
        let lab = Lab::new("copy", "copy");
        lab.copy();
        fs::remove_file(lab.path("plinth-copy/copy.json")).unwrap();
        fs::write(lab.path("plinth-copy/member/snap/left-over"), "").unwrap();
        assert_eq!(lab.data.find_copy().unwrap(), None);
        assert!(matches!(lab.data.put_back(), Err(DataError::NoCopy(_))));
        assert!(lab.refusal().is_some_and(|why| why.starts_with("there is no copy")));
        lab.copy();
        assert!(!lab.path("plinth-copy/member/snap/left-over").exists());
        // A record without its data, or with other data, is no copy either.
        fs::write(lab.path("plinth-copy/member/plinth-copy-id"), "6").unwrap();
        assert_eq!(lab.data.find_copy().unwrap(), None);
        fs::write(lab.path("plinth-copy/copy.json"), "{}").unwrap();
        assert!(matches!(lab.data.find_copy(), Err(DataError::Record { .. })));
    }

    #[test]
    fn copies_have_mode_and_content_and_leave_out_what_is_prepared() {
        let lab = Lab::new("copy", "copy");
        fs::write(lab.path("member/wal/0.tmp"), [0; 100]).unwrap();
        fs::set_permissions(lab.path("member/snap/db"), fs::Permissions::from_mode(0o640)).unwrap();
        let mut told = 0;
        let (_, copied) = lab.data.copy("7", "etcd", &mut |bytes| told = bytes).unwrap();
        assert_eq!(told, copied.bytes);
        assert!(!lab.path("plinth-copy/member/wal/0.tmp").exists());
        for name in ["member/snap/db", FIRST] {
            let (old, new) = (lab.path(name), lab.path("plinth-copy").join(name));
            assert_eq!(fs::read(&old).unwrap(), fs::read(&new).unwrap(), "{name}");
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode(&old), mode(&new), "{name}");
        }
        for name in ["plinth-copy", "plinth-copy/member", "plinth-copy/member/wal"] {
            assert_eq!(fs::metadata(lab.path(name)).unwrap().permissions().mode() & 0o7777, 0o700, "{name}");
        }
    }

    #[test]
    fn a_link_to_another_disk_is_refused_before_and_when_copying() {
        let lab = Lab::new("copy", "copy");
        std::os::unix::fs::symlink("/elsewhere", lab.path("member/wal/link")).unwrap();
        assert!(matches!(lab.data.prospect(), Err(DataError::Foreign(_))));
        assert!(matches!(lab.data.copy("7", "etcd", &mut |_| {}), Err(DataError::Foreign(_))));
        assert_eq!(lab.data.find_copy().unwrap(), None);
    }

    #[test]
    fn space_for_the_copy_and_for_the_new_etcd_is_needed() {
        let prospect = |bytes, free, shares_blocks| Prospect { bytes, free, shares_blocks, time: Duration::ZERO };
        for (prospect, fits) in [
            (prospect(1_000, RESERVE + 1_000, false), true),
            (prospect(1_000, RESERVE + 999, false), false),
            (prospect(u64::MAX, RESERVE, true), true),
            (prospect(u64::MAX, u64::MAX - 1, false), false),
        ] {
            assert_eq!(prospect.fits(), fits, "{prospect:?}");
        }
        let lab = Lab::new("copy", "copy");
        let real = lab.data.prospect().unwrap();
        assert!(real.free > 0 && real.bytes >= 60_000 && real.bytes < 1_000_000, "{real:?}");
        assert_eq!(fs::read_dir(lab.path("")).unwrap().count(), 1, "it leaves nothing behind");
    }
}
