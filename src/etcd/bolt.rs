//! Reading etcd's database file, `member/snap/db`, of a stopped etcd; a snapshot is such a file too.
//!
//! The format is bbolt's (`internal/common/{meta,page,bucket}.go`): pages of equal size, the first two with the roots
//! of the last two transactions, of which the younger one with a right sum counts. A bucket is a B+ tree of pages, or
//! one small page inside its parent's value. All numbers are little endian here; etcd's own, in keys and values, are
//! big endian.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::fsx::FsError;

/// Why a database cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    /// The system refused, or the file ends too early.
    #[error(transparent)]
    File(#[from] FsError),
    /// The file is not a database, or is damaged.
    #[error("`{}` is not a whole etcd database: {what}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// What the database of a stopped etcd says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// The revision at which an etcd that starts with it begins, before it applies what the log has on top.
    pub revision: u64,
    /// Index of the last log entry that is in it.
    pub applied: u64,
    /// The oldest etcd that may open it, `3.7.0`. Before 3.6 etcd did not write this down.
    pub storage_version: Option<String>,
    /// The version that the cluster last agreed on, `3.7.0`.
    pub cluster_version: Option<String>,
    /// How many members the cluster has.
    pub members: usize,
}

/// Reads what `path` says about itself; some pages, however large the file is.
pub(super) fn read(path: &Path) -> Result<Contents, BoltError> {
    let database = Database::open(path)?;
    let number = |key: &[u8]| -> Result<u64, BoltError> {
        let value = database.get(b"meta", key)?;
        Ok(value.and_then(|value| Some(u64::from_be_bytes(value.get(..8)?.try_into().ok()?))).unwrap_or(0))
    };
    let text = |bucket: &[u8], key: &[u8]| -> Result<Option<String>, BoltError> {
        Ok(database.get(bucket, key)?.map(|value| String::from_utf8_lossy(&value).into_owned()))
    };
    // A key of bucket `key` is its revision: 8 bytes main, `_`, 8 bytes sub. Compaction may have removed the newest
    // (etcd, `mvcc/kvstore.go`, `restore`). An empty store is at revision 1.
    let newest = database.last_key(b"key")?;
    let newest = newest.and_then(|key| Some(u64::from_be_bytes(key.get(..8)?.try_into().ok()?)));
    let compacted = number(b"finishedCompactRev")?.max(number(b"scheduledCompactRev")?);
    Ok(Contents {
        revision: newest.unwrap_or(1).max(compacted).max(1),
        applied: number(b"consistent_index")?,
        storage_version: text(b"meta", b"storageVersion")?,
        cluster_version: text(b"cluster", b"clusterVersion")?,
        members: database.count(b"members")?,
    })
}

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const PAGE_HEADER: usize = 16;
/// Of a branch page's and a leaf page's elements alike.
const ELEMENT: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
/// Of a leaf element: its value is a bucket.
const IS_BUCKET: u32 = 0x01;
/// Header of a bucket: number of its root page, sequence.
const BUCKET_HEADER: usize = 16;
/// Without the checksum at its end.
const META_BYTES: usize = 56;
/// No tree is deeper: with two keys a page this would be 2³² pages.
const DEPTH: usize = 32;
/// More than the greatest value etcd accepts by default (1.5 MiB) by far.
const PAGE_LIMIT: u64 = 1 << 28;

struct Database {
    path: PathBuf,
    file: File,
    page_size: u64,
    /// Number of the first page that was never used.
    end: u64,
    root: u64,
}

struct Meta {
    page_size: u64,
    root: u64,
    end: u64,
    transaction: u64,
}

impl Database {
    fn open(path: &Path) -> Result<Self, BoltError> {
        let file = File::open(path).map_err(FsError::of("open", path))?;
        // The second is one page on; while the first is damaged, how much that is has to be tried (bbolt does too).
        let first = meta(&file, 0);
        let second = match &first {
            Some(meta_page) => meta(&file, meta_page.page_size),
            None => (0..=6).find_map(|exponent| meta(&file, 1024 << exponent)),
        };
        let newest = first.into_iter().chain(second).max_by_key(|meta| meta.transaction);
        let Meta { page_size, root, end, .. } =
            newest.ok_or_else(|| BoltError::Malformed { path: path.to_path_buf(), what: "no meta page is right" })?;
        Ok(Self { path: path.to_path_buf(), file, page_size, end, root })
    }

    fn malformed(&self, what: &'static str) -> BoltError {
        BoltError::Malformed { path: self.path.clone(), what }
    }

    fn page(&self, number: u64) -> Result<Page, BoltError> {
        if number < 2 || number >= self.end {
            return Err(self.malformed("a page number beyond its end"));
        }
        let mut header = [0; PAGE_HEADER];
        let at = number * self.page_size;
        self.file.read_exact_at(&mut header, at).map_err(FsError::of("read", &self.path))?;
        let header = Page(header.to_vec());
        if header.u64(0) != Some(number) {
            return Err(self.malformed("a page is not the one that its place says"));
        }
        let overflow = u64::from(header.u32(12).unwrap_or_default());
        let size = self.page_size.saturating_mul(overflow + 1);
        if number + overflow >= self.end || size > PAGE_LIMIT {
            return Err(self.malformed("a page that is larger than it may be"));
        }
        let size = usize::try_from(size).map_err(|_| self.malformed("a page that does not fit into memory"))?;
        let mut page = vec![0; size];
        self.file.read_exact_at(&mut page, at).map_err(FsError::of("read", &self.path))?;
        Ok(Page(page))
    }

    /// The leaf page below `page` that `choose` leads to: given a branch page, it names one of its elements.
    fn descend(&self, mut page: Page, choose: impl Fn(&Page) -> Option<usize>) -> Result<Page, BoltError> {
        for _ in 0..DEPTH {
            match page.flags() {
                LEAF => return Ok(page),
                BRANCH => {
                    let child = choose(&page).and_then(|index| page.child(index));
                    page = self.page(child.ok_or_else(|| self.malformed("a branch page without its child"))?)?;
                }
                _ => return Err(self.malformed("a page of the wrong kind")),
            }
        }
        Err(self.malformed("a tree without leaves"))
    }

    /// The value of `key` and the flags of its element, in the tree below `root`.
    fn find(&self, root: Page, key: &[u8]) -> Result<Option<(u32, Vec<u8>)>, BoltError> {
        let leaf = self.descend(root, |branch| {
            // The last child whose first key is not greater; the first one when there is none.
            let after = (0..branch.count()).take_while(|&index| branch.branch_key(index).is_some_and(|k| k <= key));
            (branch.count() > 0).then(|| after.count().saturating_sub(1))
        })?;
        for index in 0..leaf.count() {
            let (flags, this, value) =
                leaf.leaf(index).ok_or_else(|| self.malformed("a leaf page that ends too early"))?;
            if this == key {
                return Ok(Some((flags, value.to_vec())));
            }
        }
        Ok(None)
    }

    /// The root page of the bucket `name`.
    fn bucket(&self, name: &[u8]) -> Result<Option<Page>, BoltError> {
        match self.find(self.page(self.root)?, name)? {
            None => Ok(None),
            Some((flags, value)) if flags & IS_BUCKET != 0 && value.len() >= BUCKET_HEADER => {
                let value = Page(value);
                match value.u64(0) {
                    Some(0) | None => Ok(Some(Page(value.0[BUCKET_HEADER..].to_vec()))),
                    Some(root) => self.page(root).map(Some),
                }
            }
            Some(_) => Err(self.malformed("a bucket that is none")),
        }
    }

    fn get(&self, bucket: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>, BoltError> {
        let Some(root) = self.bucket(bucket)? else { return Ok(None) };
        Ok(self.find(root, key)?.map(|(_, value)| value))
    }

    /// How many keys a bucket has, for one with few.
    fn count(&self, bucket: &[u8]) -> Result<usize, BoltError> {
        let Some(root) = self.bucket(bucket)? else { return Ok(0) };
        match root.flags() {
            LEAF => Ok(root.count()),
            _ => Err(self.malformed("a bucket with more keys than it can have")),
        }
    }

    /// The greatest key of a bucket; `None` when it is empty or not there.
    fn last_key(&self, bucket: &[u8]) -> Result<Option<Vec<u8>>, BoltError> {
        let Some(root) = self.bucket(bucket)? else { return Ok(None) };
        let leaf = self.descend(root, |branch| branch.count().checked_sub(1))?;
        let Some(last) = leaf.count().checked_sub(1) else { return Ok(None) };
        let (_, key, _) = leaf.leaf(last).ok_or_else(|| self.malformed("a leaf page that ends too early"))?;
        Ok(Some(key.to_vec()))
    }
}

/// The meta page at byte `at`, if that is one and its sum is right.
fn meta(file: &File, at: u64) -> Option<Meta> {
    let mut page = [0; PAGE_HEADER + META_BYTES + 8];
    file.read_exact_at(&mut page, at).ok()?;
    let meta = Page(page[PAGE_HEADER..].to_vec());
    let right =
        meta.u32(0)? == MAGIC && meta.u32(4)? == VERSION && meta.u64(META_BYTES)? == fnv1a(&meta.0[..META_BYTES]);
    let page_size = u64::from(meta.u32(8)?);
    (right && page_size.is_power_of_two() && page_size >= 512).then_some(Meta {
        page_size,
        root: meta.u64(16)?,
        end: meta.u64(40)?,
        transaction: meta.u64(48)?,
    })
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The bytes of one page, with those of the pages it overflows into.
struct Page(Vec<u8>);

impl Page {
    fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.0.get(at..)?.get(..2)?.try_into().ok()?))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.0.get(at..)?.get(..4)?.try_into().ok()?))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.0.get(at..)?.get(..8)?.try_into().ok()?))
    }

    fn size_at(&self, at: usize) -> Option<usize> {
        self.u32(at).and_then(|size| usize::try_from(size).ok())
    }

    fn flags(&self) -> u16 {
        self.u16(8).unwrap_or_default()
    }

    fn count(&self) -> usize {
        self.u16(10).unwrap_or_default().into()
    }

    /// Page number in element `index` of a branch page.
    fn child(&self, index: usize) -> Option<u64> {
        self.u64(PAGE_HEADER + index * ELEMENT + 8)
    }

    /// Key of element `index` of a branch page; its position counts from the element.
    fn branch_key(&self, index: usize) -> Option<&[u8]> {
        let element = PAGE_HEADER + index * ELEMENT;
        self.0.get(element + self.size_at(element)?..)?.get(..self.size_at(element + 4)?)
    }

    /// Flags, key and value of element `index` of a leaf page.
    fn leaf(&self, index: usize) -> Option<(u32, &[u8], &[u8])> {
        let element = PAGE_HEADER + index * ELEMENT;
        let at = element + self.size_at(element + 4)?;
        let (key, rest) = self.0.get(at..)?.split_at_checked(self.size_at(element + 8)?)?;
        Some((self.u32(element)?, key, rest.get(..self.size_at(element + 12)?)?))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/etcd").join(format!("{name}.db"))
    }

    #[test]
    fn real_databases_say_revision_and_version() {
        for (name, revision, storage, cluster) in [
            ("empty", 1, Some("3.6.0"), Some("3.6.0")),
            // 120 puts and a deletion.
            ("copy", 122, Some("3.6.0"), Some("3.6.0")),
            ("untouched", 122, Some("3.7.0"), Some("3.7.0")),
            // All keys deleted, and the deletion compacted away: no key is left that could tell.
            ("compacted", 123, Some("3.7.0"), Some("3.7.0")),
        ] {
            let contents = read(&fixture(name)).unwrap();
            let versions = (contents.storage_version.as_deref(), contents.cluster_version.as_deref());
            assert_eq!((contents.revision, versions), (revision, (storage, cluster)), "{name}");
            assert!(contents.applied >= revision && contents.members == 1, "{name}: {contents:?}");
        }
    }

    #[test]
    fn of_two_meta_pages_the_right_one_counts() {
        let bytes = fs::read(fixture("copy")).unwrap();
        let whole = read(&fixture("copy")).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let with = |damaged: &[usize]| {
            let mut bytes = bytes.clone();
            for &at in damaged {
                bytes[at + 40] ^= 1;
            }
            fs::write(&path, bytes).unwrap();
            read(&path)
        };
        let (first, second) = (with(&[4096]).unwrap(), with(&[0]).unwrap());
        // One of them is the transaction before the last.
        assert!([&first, &second].contains(&&whole));
        assert!(first.revision.abs_diff(second.revision) <= 1);
        let error = with(&[0, 4096]).unwrap_err();
        assert!(error.to_string().contains("no meta page is right"), "{error}");
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let bytes = fs::read(fixture("copy")).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        for end in (0..bytes.len()).step_by(1000) {
            fs::write(&path, &bytes[..end]).unwrap();
            let _ = read(&path);
        }
        for at in (2 * 4096..bytes.len()).step_by(97) {
            let mut changed = bytes.clone();
            changed[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff);
            fs::write(&path, changed).unwrap();
            let _ = read(&path);
        }
        fs::write(&path, "no database").unwrap();
        assert!(read(&path).is_err());
        assert!(read(&directory.path().join("none")).is_err());
    }
}
