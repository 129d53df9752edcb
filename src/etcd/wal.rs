//! Reading etcd's write-ahead log, `member/wal/<sequence>-<index>.wal`, of a stopped etcd.
//!
//! The format is that of etcd's `server/storage/wal` (`encoder.go`, `decoder.go`), the same in 3.6 and 3.7: a frame is
//! eight bytes (little endian; the lower 56 bits are the record's length, the highest byte says how many bytes of
//! padding follow it), then a `walpb.Record`. A length of zero ends a file, because files are allocated in advance.
//! The sum of each record goes over the data of all records before it, in all files: each file begins with the sum so
//! far, so two files that begin alike have the same past.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::crc32c;
use super::protobuf::{self, Value};
use crate::fsx::FsError;

/// Why a log cannot be read or compared.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The system refused.
    #[error(transparent)]
    File(#[from] FsError),
    /// There is no log file where one has to be.
    #[error("there is no log file in `{}`", .0.display())]
    Missing(PathBuf),
    /// The log does not go on where its copy ends: it lost that file, or holds something else there.
    #[error("`{}` is not what the copy says it was", .0.display())]
    Diverged(PathBuf),
    /// A file between the copy's last one and the newest is not there.
    #[error("the log files before `{}` are not all there", .0.display())]
    Gap(PathBuf),
    /// Bytes that are no record: a write that power loss interrupted, a bad disk, or a format not known here.
    #[error("`{}` cannot be read at byte {offset}: {what}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Where the frame begins.
        offset: u64,
        /// What was expected.
        what: &'static str,
    },
}

/// One record of the log, as much of it as decides whether somebody's write is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Bookkeeping of the file or of raft: metadata, checksums, terms and votes.
    Bookkeeping,
    /// A raft snapshot was taken, or received from another member: everything up to this index.
    Snapshot {
        /// The last entry in the snapshot.
        index: u64,
    },
    /// An entry of the raft log.
    Entry {
        /// Its index.
        index: u64,
        /// What it does.
        content: Content,
    },
}

/// What an entry of the raft log does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing: a new leader begins its term with an empty entry.
    Election,
    /// A server tells the others its name and client URLs, which each does when it starts.
    MemberAttributes,
    /// The leader sets the cluster's version, which it does when all members run a newer one.
    ClusterVersion,
    /// Somebody read the list of alarms; etcd passes this question through the log.
    AlarmList,
    /// Anything else, named in etcd's words. What is not known here is named `unknown`.
    Write(&'static str),
}

/// The number of an `InternalRaftRequest`'s field and the request it stands for (etcd 3.6 and 3.7,
/// `api/etcdserverpb/raft_internal.proto`).
const WRITES: [(u64, &str); 9] = [
    (4, "put"),
    (5, "delete"),
    (6, "txn"),
    (7, "compaction"),
    (8, "lease grant"),
    (9, "lease revoke"),
    (10, "alarm"),
    (11, "lease checkpoint"),
    (1302, "downgrade"),
];

const ALARM: u64 = 10;
const CLUSTER_VERSION_SET: u64 = 1300;
const CLUSTER_MEMBER_ATTR_SET: u64 = 1301;

/// What a log holds beyond that of the copy it began as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// Index of the last entry in the copy.
    pub copied: u64,
    /// What came after it.
    pub records: Vec<Record>,
}

/// What the log in `new` holds beyond that in `copy`. Both are `wal` directories of stopped etcds, and `new` began as
/// `copy`.
///
/// Only the copy's last file is compared, byte by byte: files are only ever appended to, those before it are closed,
/// and the sum at its head stands for them.
pub(super) fn growth(copy: &Path, new: &Path) -> Result<Growth, WalError> {
    let last = files(copy)?.pop().ok_or_else(|| WalError::Missing(copy.to_path_buf()))?;
    let mut old = Reader::open(copy.join(&last.name))?;
    let path = new.join(&last.name);
    let mut reader = match Reader::open(path.clone()) {
        Err(WalError::File(error)) if error.source.kind() == io::ErrorKind::NotFound => {
            return Err(WalError::Diverged(path));
        }
        reader => reader?,
    };

    let mut copied = last.first.saturating_sub(1);
    let mut records = Vec::new();
    let end = loop {
        match old.next() {
            Ok(Some(_)) if !reader.next_is(&old)? => return Err(WalError::Diverged(path)),
            Ok(Some(Record::Entry { index, .. })) => copied = index,
            Ok(Some(_)) => {}
            Ok(None) => break reader.drain(&mut records),
            // The copied etcd did not end well. Either the new one has cleaned that up, or it never came so far.
            Err(WalError::Unreadable { .. }) => {
                break match reader.drain(&mut records) {
                    Err(WalError::Unreadable { .. }) if same(&old.path, &reader.path)? => Ok(()),
                    end => end,
                };
            }
            Err(error) => return Err(error),
        }
    };
    end?;

    let later = files(new)?.into_iter().filter(|file| file.sequence > last.sequence);
    for (file, expected) in later.zip(last.sequence + 1..) {
        let path = new.join(&file.name);
        if file.sequence != expected {
            return Err(WalError::Gap(path));
        }
        let mut next = Reader::open(path)?;
        next.sum = reader.sum;
        next.drain(&mut records)?;
        reader = next;
    }
    Ok(Growth { copied, records })
}

/// The records in the log `directory` from the entry after `index` on, of a stopped etcd. The log has to be whole.
pub(super) fn after(directory: &Path, index: u64) -> Result<Vec<Record>, WalError> {
    let files = files(directory)?;
    let begin = files.iter().rposition(|file| file.first <= index + 1).unwrap_or(0);
    if files.is_empty() {
        return Err(WalError::Missing(directory.to_path_buf()));
    }
    let mut records = Vec::new();
    let mut sum = None;
    for file in &files[begin..] {
        let mut reader = Reader::open(directory.join(&file.name))?;
        reader.sum = sum;
        reader.drain(&mut records)?;
        sum = reader.sum;
    }
    let is_up_to = |record: &Record| matches!(record, Record::Entry { index: at, .. } if *at <= index);
    let begin = records.iter().rposition(is_up_to).map_or(0, |last| last + 1);
    Ok(records.split_off(begin))
}

struct LogFile {
    name: String,
    sequence: u64,
    /// Index of the first entry that the file has, or will have.
    first: u64,
}

/// The log files in their order. Others are left out: etcd keeps the next file ready as `0.tmp`, and what it repaired
/// as `….wal.broken`.
fn files(directory: &Path) -> Result<Vec<LogFile>, WalError> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(directory).map_err(FsError::of("read directory", directory))?;
    for entry in entries {
        let name = entry.map_err(FsError::of("read directory", directory))?.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some((sequence, first)) = numbers(name) {
            files.push(LogFile { name: name.to_owned(), sequence, first });
        }
    }
    files.sort_by_key(|file| file.sequence);
    Ok(files)
}

fn numbers(name: &str) -> Option<(u64, u64)> {
    let (sequence, first) = name.strip_suffix(".wal")?.split_once('-')?;
    Some((u64::from_str_radix(sequence, 16).ok()?, u64::from_str_radix(first, 16).ok()?))
}

fn same(one: &Path, other: &Path) -> Result<bool, WalError> {
    const CHUNK: u64 = 1 << 16;
    let open = |path: &Path| File::open(path).map_err(FsError::of("open", path));
    let (mut one_file, mut other_file) = (open(one)?, open(other)?);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    loop {
        a.clear();
        b.clear();
        one_file.by_ref().take(CHUNK).read_to_end(&mut a).map_err(FsError::of("read", one))?;
        other_file.by_ref().take(CHUNK).read_to_end(&mut b).map_err(FsError::of("read", other))?;
        if a != b {
            return Ok(false);
        }
        if a.is_empty() {
            return Ok(true);
        }
    }
}

/// One log file, read from its beginning.
struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    /// Size of the file.
    size: u64,
    /// Where the next frame begins.
    offset: u64,
    /// The sum over all data so far; `None` before the first file's first record, which tells it.
    sum: Option<u32>,
    /// The frame read last, with its length and padding.
    frame: Vec<u8>,
}

const LENGTH_BYTES: u64 = 8;

impl Reader {
    fn open(path: PathBuf) -> Result<Self, WalError> {
        let file = File::open(&path).map_err(FsError::of("open", &path))?;
        let size = file.metadata().map_err(FsError::of("stat", &path))?.len();
        Ok(Self { path, file: BufReader::new(file), size, offset: 0, sum: None, frame: Vec::new() })
    }

    fn unreadable(&self, what: &'static str) -> WalError {
        WalError::Unreadable { path: self.path.clone(), offset: self.offset, what }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), WalError> {
        self.file.read_exact(buffer).map_err(FsError::of("read", &self.path)).map_err(WalError::File)
    }

    /// The next record; `None` at the end of the file or of what was written to it.
    fn next(&mut self) -> Result<Option<Record>, WalError> {
        let left = self.size - self.offset;
        if left == 0 {
            return Ok(None);
        }
        if left < LENGTH_BYTES {
            return Err(self.unreadable("a frame's length"));
        }
        let mut length = [0; 8];
        self.read(&mut length)?;
        let field = u64::from_le_bytes(length);
        if field == 0 {
            return Ok(None);
        }
        let (record, padding) = (field & !(0xff << 56), if field >> 63 == 1 { (field >> 56) & 7 } else { 0 });
        let body = record + padding;
        if body > left - LENGTH_BYTES {
            return Err(self.unreadable("a record that is shorter than its file"));
        }
        let (Ok(record), Ok(body)) = (usize::try_from(record), usize::try_from(body)) else {
            return Err(self.unreadable("a record that fits into memory"));
        };
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        frame.extend(length);
        frame.resize(length.len() + body, 0);
        self.read(&mut frame[length.len()..])?;
        self.frame = frame;
        let decoded = self.decode(record)?;
        self.offset += LENGTH_BYTES + body as u64;
        Ok(Some(decoded))
    }

    /// Whether the next bytes are the frame that `other` has just read; then they are passed, as it passed them.
    fn next_is(&mut self, other: &Self) -> Result<bool, WalError> {
        if self.size - self.offset < other.frame.len() as u64 {
            return Ok(false);
        }
        let mut frame = vec![0; other.frame.len()];
        self.read(&mut frame)?;
        (self.offset, self.sum) = (other.offset, other.sum);
        Ok(frame == other.frame)
    }

    /// Reads to the end, which has to be one: after the last record there is nothing but zeros.
    fn drain(&mut self, records: &mut Vec<Record>) -> Result<(), WalError> {
        const ZEROS: &[u8] = &[0; 1 << 14];
        while let Some(record) = self.next()? {
            records.push(record);
        }
        let mut chunk = [0; ZEROS.len()];
        loop {
            match self.file.read(&mut chunk).map_err(FsError::of("read", &self.path))? {
                0 => return Ok(()),
                read if chunk[..read] == ZEROS[..read] => {}
                _ => return Err(self.unreadable("nothing but zeros after the last record")),
            }
        }
    }

    /// Checks and reads the record in the frame.
    fn decode(&mut self, length: usize) -> Result<Record, WalError> {
        const METADATA: u64 = 1;
        const ENTRY: u64 = 2;
        const STATE: u64 = 3;
        const SUM: u64 = 4;
        const SNAPSHOT: u64 = 5;

        let body = &self.frame[8..8 + length];
        let (mut kind, mut sum, mut data) = (None, 0, &[][..]);
        for field in protobuf::fields(body) {
            match field {
                Ok((1, Value::Varint(number))) => kind = Some(number),
                Ok((2, Value::Varint(number))) => {
                    sum = u32::try_from(number).map_err(|_| self.unreadable("a sum of 32 bits"))?;
                }
                Ok((3, Value::Bytes(bytes))) => data = bytes,
                _ => return Err(self.unreadable("a record")),
            }
        }
        if kind == Some(SUM) {
            if self.sum.is_some_and(|so_far| so_far != 0 && so_far != sum) {
                return Err(self.unreadable("the sum of the files before"));
            }
            self.sum = Some(sum);
            return Ok(Record::Bookkeeping);
        }
        let so_far = self.sum.ok_or_else(|| self.unreadable("a sum at the head of the file"))?;
        let now = crc32c::update(so_far, data);
        if now != sum {
            return Err(self.unreadable("a record with its sum"));
        }
        let record = match kind {
            Some(METADATA | STATE) => Some(Record::Bookkeeping),
            Some(SNAPSHOT) => number(data, 1).map(|index| Record::Snapshot { index }),
            Some(ENTRY) => entry(data),
            _ => None,
        };
        let record = record.ok_or_else(|| self.unreadable("a record of a known kind"))?;
        self.sum = Some(now);
        Ok(record)
    }
}

/// The number in `field` of `message`, 0 when it is not there.
fn number(message: &[u8], field: u64) -> Option<u64> {
    let mut number = 0;
    for next in protobuf::fields(message) {
        let (at, value) = next.ok()?;
        if at == field {
            number = value.varint()?;
        }
    }
    Some(number)
}

/// A `raftpb.Entry`.
fn entry(message: &[u8]) -> Option<Record> {
    const NORMAL: u64 = 0;
    let (kind, index) = (number(message, 1)?, number(message, 3)?);
    let mut data = &[][..];
    for field in protobuf::fields(message) {
        if let (4, value) = field.ok()? {
            data = value.bytes()?;
        }
    }
    let content = match (kind, data) {
        (NORMAL, []) => Content::Election,
        (NORMAL, request) => request_content(request),
        _ => Content::Write("membership change"),
    };
    Some(Record::Entry { index, content })
}

/// What an `InternalRaftRequest` asks for. Harmless is only what is known to be.
fn request_content(request: &[u8]) -> Content {
    const ID: u64 = 1;
    const HEADER: u64 = 100;
    let mut asked = None;
    for field in protobuf::fields(request) {
        match field {
            Ok((ID | HEADER, _)) => {}
            Ok((number, Value::Bytes(body))) if asked.is_none() => asked = Some((number, body)),
            _ => return Content::Write("unknown"),
        }
    }
    match asked {
        Some((CLUSTER_VERSION_SET, _)) => Content::ClusterVersion,
        Some((CLUSTER_MEMBER_ATTR_SET, _)) => Content::MemberAttributes,
        // `AlarmRequest.action`: 0 is GET.
        Some((ALARM, body)) if number(body, 1) == Some(0) => Content::AlarmList,
        Some((number, _)) => {
            Content::Write(WRITES.iter().find(|(known, _)| *known == number).map_or("unknown", |(_, name)| name))
        }
        None => Content::Write("unknown"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/etcd");
    const FIRST: &str = "0000000000000000-0000000000000000.wal";

    /// A log directory with the given files.
    fn log(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    fn fixture(name: &str) -> Vec<u8> {
        fs::read(format!("{FIXTURES}/{name}.wal")).unwrap()
    }

    /// Whatever `bytes` hold beyond the log of the fixture `copy`.
    fn beyond_copy(bytes: &[u8]) -> Result<Growth, WalError> {
        growth(log(&[(FIRST, &fixture("copy"))]).path(), log(&[(FIRST, bytes)]).path())
    }

    fn contents(growth: &Growth) -> Vec<Content> {
        let content = |record: &Record| match record {
            Record::Entry { content, .. } => Some(*content),
            _ => None,
        };
        growth.records.iter().filter_map(content).collect()
    }

    /// How many bytes of `bytes` hold records.
    fn used(bytes: &[u8]) -> usize {
        bytes.len() - bytes.iter().rev().take_while(|&&byte| byte == 0).count()
    }

    #[test]
    fn real_logs_say_what_was_done_to_the_new_etcd() {
        use Content::{AlarmList, ClusterVersion, Election, MemberAttributes, Write};
        for (name, expected) in [
            ("copy", &[][..]),
            ("untouched", &[]),
            ("asked", &[AlarmList]),
            ("put", &[Write("put")]),
            ("put-killed", &[Write("put")]),
            ("put-deleted", &[Write("put"), Write("delete")]),
            ("txn", &[Write("txn")]),
            ("lease-granted", &[Write("lease grant")]),
            ("lease-revoked", &[Write("lease revoke")]),
            ("compacted", &[Write("delete"), Write("compaction")]),
            ("downgraded", &[Write("downgrade")]),
            ("alarmed", &[Write("alarm")]),
            ("member-updated", &[Write("membership change")]),
        ] {
            let growth = beyond_copy(&fixture(name)).unwrap();
            let started = if name == "copy" { &[][..] } else { &[Election, MemberAttributes, ClusterVersion] };
            assert_eq!(contents(&growth), [started, expected].concat(), "{name}");
            // 120 puts, a deletion, a lease, a compaction, and what etcd wrote by itself.
            assert!((126..132).contains(&growth.copied), "{name}: {}", growth.copied);
        }
    }

    #[test]
    fn entries_are_numbered_on() {
        let growth = beyond_copy(&fixture("put")).unwrap();
        let indices = growth.records.iter().filter_map(|record| match record {
            Record::Entry { index, .. } => Some(*index),
            _ => None,
        });
        assert!(indices.eq(growth.copied + 1..=growth.copied + 4));
    }

    #[test]
    fn what_came_after_an_entry_is_found() {
        let log = log(&[(FIRST, &fixture("put"))]);
        let last = growth(log.path(), log.path()).unwrap().copied;
        let contents_after = |index| {
            let records = after(log.path(), index).unwrap();
            contents(&Growth { copied: index, records })
        };
        assert_eq!(contents_after(last), []);
        assert_eq!(contents_after(last - 2), [Content::ClusterVersion, Content::Write("put")]);
        assert_eq!(u64::try_from(contents_after(0).len()).unwrap(), last);
    }

    #[test]
    fn a_log_that_is_not_the_copys_is_told() {
        let put = fixture("put");
        let mut changed = put.clone();
        changed[5_000] ^= 1;
        let copy = fixture("copy");
        for (what, bytes) in [
            ("another cluster's", &fixture("empty")[..]),
            ("changed where the copy has it too", &changed),
            ("shorter", &copy[..used(&copy) / 2]),
            ("empty", &[]),
        ] {
            assert!(matches!(beyond_copy(bytes), Err(WalError::Diverged(_))), "{what}");
        }
        let none = growth(log(&[(FIRST, &copy)]).path(), log(&[]).path());
        assert!(matches!(none, Err(WalError::Diverged(_))), "{none:?}");
        let none = growth(log(&[("0.tmp", &copy)]).path(), log(&[(FIRST, &copy)]).path());
        assert!(matches!(none, Err(WalError::Missing(_))), "{none:?}");
    }

    #[test]
    fn bytes_that_are_no_record_are_never_passed_over() {
        let put = fixture("put");
        let (begin, end) = (used(&fixture("copy")).next_multiple_of(8), used(&put));
        for at in begin..end {
            let mut changed = put.clone();
            changed[at] ^= 0x10;
            match beyond_copy(&changed) {
                Err(WalError::Unreadable { .. }) => {}
                // A padding byte: the record is whole.
                Ok(growth) => assert!(contents(&growth).contains(&Content::Write("put")), "{at}"),
                Err(error) => panic!("{at}: {error}"),
            }
        }
        // Cut off anywhere, as by a power loss, inside the last record: then it is not whole, and said to be so.
        for cut in end - 7..end {
            assert!(matches!(beyond_copy(&put[..cut]), Err(WalError::Unreadable { .. })), "{cut}");
        }
        // A write that was lost in the middle, with something behind it.
        let mut hole = put.clone();
        hole[begin..begin + 8].fill(0);
        assert!(matches!(beyond_copy(&hole), Err(WalError::Unreadable { .. })));
    }

    #[test]
    fn a_copy_with_a_torn_end_is_compared_up_to_there() {
        let put = fixture("put");
        // Within the entry: behind it there is only the record that it is committed.
        let torn = &put[..used(&put) - 60];
        let compare = |new: &[u8]| growth(log(&[(FIRST, torn)]).path(), log(&[(FIRST, new)]).path());
        // The new etcd never opened it.
        assert_eq!(contents(&compare(torn).unwrap()), []);
        // It did, and cut the end off.
        let mut whole = 0;
        for length in (0..torn.len()).step_by(8) {
            whole += usize::from(compare(&torn[..length]).is_ok());
        }
        assert_eq!(whole, 1, "the end of the last whole record is one place");
        // It wrote something there: what, is not known to the copy.
        assert!(contents(&compare(&put).unwrap()).contains(&Content::Write("put")));
    }

    #[test]
    fn a_log_goes_on_in_the_next_file() {
        // Cut the log of the new etcd where that of the copy ends, and go on as etcd does: with the sum so far.
        let (copy, put) = (fixture("copy"), fixture("put"));
        let cut = used(&copy).next_multiple_of(8);
        let mut reader = Reader::open(log(&[(FIRST, &copy)]).keep().join(FIRST)).unwrap();
        while reader.next().unwrap().is_some() {}
        let mut next = frame(&[&[0x08, 4, 0x10][..], &varint(reader.sum.unwrap().into())].concat());
        next.extend(&put[cut..]);
        let second = "0000000000000001-0000000000000090.wal";

        let copied = log(&[(FIRST, &copy)]);
        let new = log(&[(FIRST, &put[..cut]), (second, &next), ("1.tmp", b"x")]);
        assert_eq!(contents(&growth(copied.path(), new.path()).unwrap()), contents(&beyond_copy(&put).unwrap()));

        let gap = log(&[(FIRST, &put[..cut]), ("0000000000000002-0000000000000090.wal", &next)]);
        let error = growth(copied.path(), gap.path());
        assert!(matches!(error, Err(WalError::Gap(_))), "{error:?}");

        next[12] ^= 1;
        let foreign = log(&[(FIRST, &put[..cut]), (second, &next)]);
        let error = growth(copied.path(), foreign.path());
        assert!(matches!(error, Err(WalError::Unreadable { .. })), "{error:?}");
    }

    #[test]
    fn a_request_is_harmless_only_if_known_to_be() {
        for (request, expected) in [
            (&[][..], Content::Write("unknown")),
            (&[0x08, 1], Content::Write("unknown")), // an id without a request
            (&[0x08, 1, 0x22, 0], Content::Write("put")),
            (&[0x08, 1, 0x1a, 0], Content::Write("unknown")), // range
            (&[0x08, 1, 0xc2, 0x3e, 0], Content::Write("unknown")), // auth enable
            (&[0x12, 3, b'P', b'U', b'T'], Content::Write("unknown")), // a request of etcd 2
            (&[0x08, 1, 0xa2, 0x51, 0], Content::ClusterVersion),
            (&[0x08, 1, 0xa2, 0x51, 0, 0x22, 0], Content::Write("unknown")), // two requests
            (&[0x08, 1, 0x52, 0], Content::AlarmList),
            (&[0x08, 1, 0x52, 2, 0x08, 2], Content::Write("alarm")),
            (&[0x08, 1, 0xff], Content::Write("unknown")),
        ] {
            assert_eq!(request_content(request), expected, "{request:x?}");
        }
    }

    fn varint(mut number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number > 0x7f {
            bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
            number >>= 7;
        }
        bytes.push(u8::try_from(number).unwrap());
        bytes
    }

    fn frame(record: &[u8]) -> Vec<u8> {
        let padding = record.len().next_multiple_of(8) - record.len();
        let marked = if padding == 0 { 0 } else { 0x80 | padding as u64 };
        let length = record.len() as u64 | (marked << 56);
        [&length.to_le_bytes()[..], record, &vec![0; padding]].concat()
    }
}
