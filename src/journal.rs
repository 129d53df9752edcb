//! The append-only record of what plinth is about to make, so that the same command converges after any interruption
//! and `reset` finds everything.
//!
//! # Guarantees
//! - An intent is on disk before the effect it announces ([`Journal::append`] returns after a sync).
//! - A record is read back whole or not at all: each line carries a checksum, and a torn last line (power loss while
//!   appending) is dropped. Damage anywhere else is an error that names the line, and so is a whole record of a kind
//!   that only a newer plinth knows.
//! - `init`, `reset` and the agent may append at the same time.
//!
//! The [`Ledger`] is the projection of the records: what was made and not yet removed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, Write as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Hint, with_causes};
use crate::fsx::{self, FsError, effect};
use crate::layout::Layout;

/// Past this size the journal is rewritten as its projection, if that is much smaller. A control plane's first
/// `init` takes about 10 KiB.
const COMPACT_FROM: u64 = 256 * 1024;

/// The journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FsError),
    /// A record in the middle is damaged: something else wrote to the file.
    #[error("`{}` is damaged at line {line}", path.display())]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// A record is whole, and of a kind that this version does not know. Nothing is appended to such a journal.
    #[error(
        "`{}` was written by a newer version of plinth than this one ({}): line {line} is of a kind that it does not know",
        path.display(),
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The journal.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
}

impl Hint for JournalError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::File(_) => Vec::new(),
            Self::Damaged { path, line } => vec![
                format!(
                    "if no other file there is damaged, delete that line (sed -i {line}d {}) and run the same command \
                     again: what it recorded, and nothing else, is then no longer known to `plinth reset`",
                    path.display()
                ),
                "each line is a checksum, a blank and a JSON object that names what was made".to_owned(),
            ],
            Self::Newer { .. } => vec!["use that newer plinth: it knows what it made, and removes it".to_owned()],
        }
    }
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// An operation starts.
    Begin {
        /// `init` or `reset`.
        operation: Operation,
        /// When.
        at: Timestamp,
    },
    /// Something is about to be made.
    Make {
        /// What.
        what: Creation,
    },
    /// Something that was made is gone.
    Gone {
        /// What.
        what: Creation,
    },
    /// An `init` has succeeded: the control plane was healthy with this generation.
    Commit {
        /// Number of the directory below `generations`.
        generation: u32,
        /// When.
        at: Timestamp,
    },
    /// One etcd is about to be replaced by another one; see [`crate::etcd`].
    EtcdSwap {
        /// Names the swap, and the copy of the data that it makes.
        id: String,
        /// The etcd that runs.
        old: SwapSide,
        /// The one that replaces it.
        new: SwapSide,
    },
    /// The new etcd is no good: back to the old one.
    EtcdSwapFailed {
        /// Which swap.
        id: String,
    },
    /// The new etcd has acknowledged writes, or that cannot be ruled out: the copy must never be put back.
    EtcdSwapServed {
        /// Which swap.
        id: String,
    },
    /// The swap has ended, one way or the other.
    EtcdSwapDone {
        /// Which swap.
        id: String,
    },
}

/// One of the two etcds of a swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapSide {
    /// Its image.
    pub image: String,
    /// SHA-256 of its manifest, hexadecimal.
    pub manifest: String,
}

/// A swap of etcd that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdSwap {
    /// Its name.
    pub id: String,
    /// The etcd from before.
    pub old: SwapSide,
    /// The one that replaces it.
    pub new: SwapSide,
    /// It is on its way back.
    pub failed: bool,
    /// The copy must never be put back.
    pub served: bool,
}

/// What is being done to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Making or mending.
    Init,
    /// Taking away.
    Reset,
}

/// Something plinth makes outside its own state directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Creation {
    /// A file; removed whatever its content has become.
    File {
        /// Absolute.
        path: PathBuf,
    },
    /// A file made empty for a container to fill; removed while it is empty still, as what is in it is not ours.
    HostFile {
        /// Absolute.
        path: PathBuf,
    },
    /// A directory; removed when it is empty after everything else is gone.
    Directory {
        /// Absolute.
        path: PathBuf,
    },
    /// A directory whose content belongs to a component (etcd's data); removed with its content.
    Tree {
        /// Absolute.
        path: PathBuf,
    },
    /// A container, by its full id.
    Container {
        /// Full id.
        id: String,
    },
    /// An image that plinth pulled.
    Image {
        /// Reference.
        reference: String,
    },
    /// An enabled systemd unit.
    Unit {
        /// `plinth-agent.service`.
        name: String,
    },
}

/// What was made and not yet removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    creations: BTreeSet<Creation>,
    /// The last operation that began, and whether it was an `init` that has not been committed.
    pub last_operation: Option<Operation>,
    /// The newest committed generation.
    pub committed: Option<(u32, Timestamp)>,
    /// The swap of etcd that has begun and not ended.
    pub etcd_swap: Option<EtcdSwap>,
}

impl Ledger {
    fn apply(&mut self, record: Record) {
        match record {
            Record::Begin { operation, .. } => {
                self.last_operation = Some(operation);
                if operation == Operation::Reset {
                    self.committed = None;
                    self.etcd_swap = None;
                }
            }
            Record::Make { what } => {
                self.creations.insert(what);
            }
            Record::Gone { what } => {
                self.creations.remove(&what);
            }
            Record::Commit { generation, at } => self.committed = Some((generation, at)),
            Record::EtcdSwap { id, old, new } => {
                self.etcd_swap = Some(EtcdSwap { id, old, new, failed: false, served: false });
            }
            Record::EtcdSwapFailed { id } => self.of_swap(&id, |swap| swap.failed = true),
            Record::EtcdSwapServed { id } => self.of_swap(&id, |swap| swap.served = true),
            Record::EtcdSwapDone { id } => self.etcd_swap.take_if(|swap| swap.id == id).map(drop).unwrap_or_default(),
        }
    }

    fn of_swap(&mut self, id: &str, change: impl FnOnce(&mut EtcdSwap)) {
        if let Some(swap) = self.etcd_swap.as_mut().filter(|swap| swap.id == id) {
            change(swap);
        }
    }

    /// Adds what this process has just recorded, so that the journal need not be read again.
    pub fn insert(&mut self, creation: Creation) {
        self.creations.insert(creation);
    }

    /// Whether this was made by plinth.
    pub fn has(&self, creation: &Creation) -> bool {
        self.creations.contains(creation)
    }

    /// Whether the file `path` was made by plinth.
    pub fn has_file(&self, path: &Path) -> bool {
        self.has(&Creation::File { path: path.to_path_buf() })
    }

    /// Everything, in no order that matters.
    pub fn creations(&self) -> impl Iterator<Item = &Creation> {
        self.creations.iter()
    }

    /// Paths of files, directories and trees.
    pub fn paths(&self) -> BTreeSet<PathBuf> {
        self.creations
            .iter()
            .filter_map(|creation| match creation {
                Creation::File { path }
                | Creation::HostFile { path }
                | Creation::Directory { path }
                | Creation::Tree { path } => Some(path.clone()),
                Creation::Container { .. } | Creation::Image { .. } | Creation::Unit { .. } => None,
            })
            .collect()
    }

    /// Ids of containers.
    pub fn containers(&self) -> BTreeSet<String> {
        self.creations
            .iter()
            .filter_map(|creation| match creation {
                Creation::Container { id } => Some(id.clone()),
                _ => None,
            })
            .collect()
    }

    /// The records that project to this ledger.
    fn records(&self) -> Vec<Record> {
        let begin = self.last_operation.map(|operation| Record::Begin { operation, at: Timestamp::UNIX_EPOCH });
        let commit = self.committed.map(|(generation, at)| Record::Commit { generation, at });
        begin
            .into_iter()
            .chain(self.creations.iter().map(|what| Record::Make { what: what.clone() }))
            .chain(commit)
            .chain(self.etcd_swap.iter().flat_map(EtcdSwap::records))
            .collect()
    }
}

impl EtcdSwap {
    fn records(&self) -> Vec<Record> {
        let Self { id, old, new, failed, served } = self.clone();
        let begun = Record::EtcdSwap { id: id.clone(), old, new };
        let failed = failed.then(|| Record::EtcdSwapFailed { id: id.clone() });
        let served = served.then_some(Record::EtcdSwapServed { id });
        [Some(begun), failed, served].into_iter().flatten().collect()
    }
}

/// The journal of one root.
#[derive(Debug, Clone)]
pub struct Journal {
    path: PathBuf,
}

impl Journal {
    /// The journal of `layout`; nothing is touched yet.
    pub fn of(layout: &Layout) -> Self {
        Self { path: layout.journal() }
    }

    /// Appends `records` and returns when they are durable. The state directory must exist.
    pub fn append(&self, records: &[Record]) -> Result<(), JournalError> {
        if records.is_empty() {
            return Ok(());
        }
        let mut file = self.open_locked()?;
        self.drop_torn_tail(&mut file)?;
        let lines: String = records.iter().map(line).collect();
        effect::change(&self.path, || file.write_all(lines.as_bytes())).map_err(FsError::of("write", &self.path))?;
        effect::sync(&self.path, || file.sync_data()).map_err(FsError::of("sync", &self.path))?;
        if file.metadata().is_ok_and(|meta| meta.len() > COMPACT_FROM) {
            // What was to be recorded is on disk.
            if let Err(error) = self.compact(&mut file) {
                tracing::warn!("the journal is not made smaller: {}", with_causes(&error));
            }
        }
        Ok(())
    }

    /// What was made and not yet removed; empty when there is no journal.
    pub fn ledger(&self) -> Result<Ledger, JournalError> {
        match fsx::read_optional(&self.path)? {
            Some(content) => self.project(&content),
            None => Ok(Ledger::default()),
        }
    }

    fn project(&self, content: &[u8]) -> Result<Ledger, JournalError> {
        let mut ledger = Ledger::default();
        let mut lines = content.split_inclusive(|byte| *byte == b'\n').enumerate().peekable();
        while let Some((index, text)) = lines.next() {
            match parse(text) {
                Line::Record(record) => ledger.apply(record),
                Line::Broken if lines.peek().is_none() => break,
                Line::Broken => return Err(JournalError::Damaged { path: self.path.clone(), line: index + 1 }),
                Line::Unknown => return Err(self.newer(index)),
            }
        }
        Ok(ledger)
    }

    fn newer(&self, index: usize) -> JournalError {
        JournalError::Newer { path: self.path.clone(), line: index + 1 }
    }

    /// Opens the journal, made when missing, with an exclusive lock. A compaction by another process replaces the
    /// file, so the lock counts only if the file still has its name.
    fn open_locked(&self) -> Result<File, JournalError> {
        loop {
            let new = !self.path.exists();
            let file = fsx::open_append(&self.path, 0o600)?;
            file.lock().map_err(FsError::of("lock", &self.path))?;
            if fsx::has_name(&file, &self.path) {
                if new && let Some(directory) = self.path.parent() {
                    fsx::sync_directory(directory)?;
                }
                return Ok(file);
            }
        }
    }

    fn drop_torn_tail(&self, file: &mut File) -> Result<(), JournalError> {
        let length = file.metadata().map_err(FsError::of("read", &self.path))?.len();
        let mut content = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut content)).map_err(FsError::of("read", &self.path))?;
        let last = content.split_inclusive(|byte| *byte == b'\n').enumerate().last();
        match last.map(|(index, last)| (index, last, parse(last))) {
            Some((_, last, Line::Broken)) => {
                let keep = length.saturating_sub(last.len() as u64);
                effect::change(&self.path, || file.set_len(keep)).map_err(FsError::of("truncate", &self.path))?;
            }
            Some((index, _, Line::Unknown)) => return Err(self.newer(index)),
            Some((_, _, Line::Record(_))) | None => {}
        }
        Ok(())
    }

    fn compact(&self, file: &mut File) -> Result<(), JournalError> {
        let mut content = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut content)).map_err(FsError::of("read", &self.path))?;
        let projection: String = self.project(&content)?.records().iter().map(line).collect();
        if projection.len() * 2 < content.len() {
            fsx::write_atomic(&self.path, projection.as_bytes(), 0o600)?;
        }
        Ok(())
    }
}

fn line(record: &Record) -> String {
    // A record is plain data with string keys: writing it as JSON cannot fail.
    let json = serde_json::to_string(record).unwrap_or_default();
    format!("{} {json}\n", checksum(json.as_bytes()))
}

/// What a line of the journal turns out to be.
enum Line {
    /// A record.
    Record(Record),
    /// Not what was written: cut short or changed.
    Broken,
    /// What was written, and not a record that we know.
    Unknown,
}

fn parse(line: &[u8]) -> Line {
    let text = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix('\n'));
    match text.and_then(|text| text.split_once(' ')) {
        Some((sum, json)) if sum == checksum(json.as_bytes()) => {
            serde_json::from_str(json).map_or(Line::Unknown, Line::Record)
        }
        _ => Line::Broken,
    }
}

/// The first 32 bits of the SHA-256, hexadecimal: enough to tell a torn or damaged line.
fn checksum(content: &[u8]) -> String {
    digest::digest(&digest::SHA256, content).as_ref()[..4].iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn journal() -> (tempfile::TempDir, Journal) {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal { path: directory.path().join("journal") };
        (directory, journal)
    }

    fn file(path: &str) -> Creation {
        Creation::File { path: path.into() }
    }

    fn make(path: &str) -> Record {
        Record::Make { what: file(path) }
    }

    #[test]
    fn the_ledger_is_what_was_made_and_not_removed() {
        let (_directory, journal) = journal();
        journal.append(&[make("/a"), make("/b")]).unwrap();
        journal.append(&[Record::Gone { what: file("/a") }]).unwrap();
        let ledger = journal.ledger().unwrap();
        assert!(!ledger.has(&file("/a")));
        assert!(ledger.has_file(Path::new("/b")));
        assert_eq!(ledger.paths(), BTreeSet::from(["/b".into()]));
    }

    #[test]
    fn a_reset_ends_the_committed_state() {
        let (_directory, journal) = journal();
        let at = Timestamp::UNIX_EPOCH;
        journal.append(&[Record::Begin { operation: Operation::Init, at }]).unwrap();
        assert_eq!(journal.ledger().unwrap().committed, None);
        journal.append(&[Record::Commit { generation: 1, at }]).unwrap();
        assert_eq!(journal.ledger().unwrap().committed, Some((1, at)));
        journal.append(&[Record::Begin { operation: Operation::Reset, at }]).unwrap();
        assert_eq!(journal.ledger().unwrap().committed, None);
    }

    #[test]
    fn a_swap_of_etcd_is_open_until_it_is_done_and_survives_compaction() {
        let (_directory, journal) = journal();
        let id = || "7".to_owned();
        let side = |image: &str| SwapSide { image: image.into(), manifest: "00".into() };
        let begun = Record::EtcdSwap { id: id(), old: side("3.6"), new: side("3.7") };
        let state = |ledger: &Ledger| ledger.etcd_swap.as_ref().map(|swap| (swap.failed, swap.served));
        for (record, expected) in [
            (begun.clone(), Some((false, false))),
            (Record::EtcdSwapFailed { id: "6".into() }, Some((false, false))),
            (Record::EtcdSwapFailed { id: id() }, Some((true, false))),
            (Record::EtcdSwapServed { id: id() }, Some((true, true))),
            (Record::EtcdSwapDone { id: "6".into() }, Some((true, true))),
            (Record::EtcdSwapDone { id: id() }, None),
        ] {
            journal.append(std::slice::from_ref(&record)).unwrap();
            let ledger = journal.ledger().unwrap();
            assert_eq!(state(&ledger), expected, "{record:?}");
            let mut projected = Ledger::default();
            ledger.records().into_iter().for_each(|record| projected.apply(record));
            assert_eq!(projected, ledger);
        }
        let reset = Record::Begin { operation: Operation::Reset, at: Timestamp::UNIX_EPOCH };
        journal.append(&[begun, reset]).unwrap();
        assert_eq!(journal.ledger().unwrap().etcd_swap, None);
    }

    #[test]
    fn a_torn_tail_is_dropped_at_every_length_and_the_next_append_goes_on() {
        let (_directory, journal) = journal();
        journal.append(&[make("/a"), make("/b")]).unwrap();
        let whole = fs::read(&journal.path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for length in first..whole.len() {
            fs::write(&journal.path, &whole[..length]).unwrap();
            let ledger = journal.ledger().unwrap();
            assert!(ledger.has(&file("/a")) && !ledger.has(&file("/b")), "length {length}");
            journal.append(&[make("/c")]).unwrap();
            let ledger = journal.ledger().unwrap();
            assert!(ledger.has(&file("/a")) && ledger.has(&file("/c")), "length {length}");
        }
    }

    #[test]
    fn damage_in_the_middle_is_an_error_with_its_line() {
        let (_directory, journal) = journal();
        journal.append(&[make("/a"), make("/b"), make("/c")]).unwrap();
        let text = fs::read_to_string(&journal.path).unwrap().replace("/b", "/x");
        fs::write(&journal.path, text).unwrap();
        assert!(matches!(journal.ledger(), Err(JournalError::Damaged { line: 2, .. })));
    }

    #[test]
    fn a_record_of_a_newer_version_is_kept_and_said_to_be_one() {
        let (_directory, journal) = journal();
        let text = |json: &str| format!("{} {json}\n", checksum(json.as_bytes()));
        let unknown = [
            r#"{"record":"adopt","what":{"kind":"file","path":"/a"}}"#,
            r#"{"record":"make","what":{"kind":"socket","path":"/a"}}"#,
            "7",
        ];
        for (record, json) in unknown.into_iter().flat_map(|json| [("last", json), ("middle", json)]) {
            let rest = if record == "last" { String::new() } else { line(&make("/b")) };
            let content = format!("{}{}{rest}", line(&make("/a")), text(json));
            fs::write(&journal.path, &content).unwrap();
            let error = journal.ledger().unwrap_err();
            assert!(matches!(error, JournalError::Newer { line: 2, .. }), "{record} {json}: {error}");
            assert!(error.to_string().contains("newer version") && error.hints().len() == 1, "{error}");
            if record == "last" {
                assert!(matches!(journal.append(&[make("/c")]), Err(JournalError::Newer { line: 2, .. })), "{json}");
                assert_eq!(fs::read_to_string(&journal.path).unwrap(), content, "nothing is lost");
            }
        }
        // The same without its checksum is what a torn write leaves.
        fs::write(&journal.path, format!("{}00000000 {}\n", line(&make("/a")), unknown[0])).unwrap();
        assert_eq!(journal.ledger().unwrap().paths(), BTreeSet::from(["/a".into()]));
        journal.append(&[make("/c")]).unwrap();
        assert_eq!(journal.ledger().unwrap().paths(), BTreeSet::from(["/a".into(), "/c".into()]));
    }

    #[test]
    fn a_damaged_journal_says_what_to_do() {
        let error = JournalError::Damaged { path: "/j".into(), line: 7 };
        assert!(error.hints()[0].contains("sed -i 7d /j"), "{:?}", error.hints());
    }

    #[test]
    fn a_long_journal_is_rewritten_as_its_projection() {
        let (_directory, journal) = journal();
        journal.append(&[make("/kept"), Record::Commit { generation: 3, at: Timestamp::UNIX_EPOCH }]).unwrap();
        let churn: Vec<_> = (0..4000)
            .map(|n| Creation::Container { id: n.to_string() })
            .flat_map(|what| [Record::Make { what: what.clone() }, Record::Gone { what }])
            .collect();
        journal.append(&churn).unwrap();
        assert!(fs::metadata(&journal.path).unwrap().len() < 1024);
        let ledger = journal.ledger().unwrap();
        assert_eq!(ledger.creations().count(), 1);
        assert_eq!(ledger.committed.map(|(generation, _)| generation), Some(3));
    }

    #[test]
    fn appends_from_several_places_do_not_mix() {
        let (_directory, journal) = journal();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let journal = &journal;
                scope.spawn(move || {
                    for n in 0..25 {
                        journal.append(&[make(&format!("/{thread}/{n}"))]).unwrap();
                    }
                });
            }
        });
        assert_eq!(journal.ledger().unwrap().creations().count(), 100);
    }
}
