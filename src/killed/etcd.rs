//! An etcd that runs in a fake container: it has its database locked, what is on its disk is what a real one of that
//! version has left (`tests/fixtures/etcd`), and it answers what is asked while one replaces another.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::fsx::disk::Disk;

/// How often an etcd tries to lock its database: others look at it now and then.
const ATTEMPTS: usize = 1000;

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/etcd/", $name))
    };
}

const OLD: [&[u8]; 2] = [fixture!("copy.wal"), fixture!("copy.db")];
const NEW: [&[u8]; 2] = [fixture!("untouched.wal"), fixture!("untouched.db")];
/// The log of the new one once somebody has written.
const WRITTEN: &[u8] = fixture!("put.wal");

/// Where it is listed what etcd and the API server refuse.
pub(super) const REFUSED: &str = "/refused";

/// What etcd keeps, by the API server's paths.
#[derive(Clone)]
pub(super) struct Store {
    member: PathBuf,
    disk: Disk,
}

impl Store {
    /// That in etcd's data directory.
    pub(super) fn of(data: &Path, disk: &Disk) -> Self {
        Self { member: data.join("member"), disk: disk.clone() }
    }

    pub(super) fn read(&self) -> BTreeMap<String, Value> {
        let text = fs::read(self.member.join("store")).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Durable when it returns, as etcd's writes are.
    pub(super) fn write(&self, objects: &BTreeMap<String, Value>) {
        self.durably(|| {
            fs::write(self.member.join("store"), serde_json::to_vec(objects).unwrap()).unwrap();
            if fs::read(self.log()).is_ok_and(|log| log == NEW[0]) {
                fs::write(self.log(), WRITTEN).unwrap();
            }
        });
    }

    /// Whether questions to `path` are refused: it is listed below [`REFUSED`].
    pub(super) fn refuses(&self, path: &str) -> bool {
        let refused = self.read().remove(REFUSED).unwrap_or_default();
        refused.as_array().into_iter().flatten().any(|refused| refused == path)
    }

    /// Whether an etcd has the data open.
    pub(super) fn is_served(&self) -> bool {
        let Ok(file) = File::open(self.database()) else { return false };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    fn durably(&self, act: impl FnOnce()) {
        self.disk.by_others(self.member.parent().unwrap(), || {
            for directory in ["wal", "snap"] {
                fs::create_dir_all(self.member.join(directory)).unwrap();
            }
            act();
        });
    }

    fn log(&self) -> PathBuf {
        self.member.join("wal/0000000000000000-0000000000000000.wal")
    }

    fn database(&self) -> PathBuf {
        self.member.join("snap/db")
    }

    fn becomes(&self, [log, database]: [&[u8]; 2]) {
        self.durably(|| {
            fs::write(self.log(), log).unwrap();
            fs::write(self.database(), database).unwrap();
        });
    }

    fn is_old(&self) -> bool {
        fs::read(self.database()).is_ok_and(|database| database == OLD[1])
    }
}

/// One that runs, and has the data for itself as long as it is there.
pub(super) struct Etcd {
    store: Store,
    is_old: bool,
    downgrades: Mutex<bool>,
    _lock: File,
}

impl Etcd {
    /// `None` where it would exit: another one runs, or the data are too new for it.
    pub(super) fn start(data: &Path, image: &str, disk: &Disk) -> Option<Self> {
        let (store, is_old) = (Store::of(data, disk), image.contains(":3.6."));
        if !store.database().exists() {
            store.becomes(if is_old { OLD } else { NEW });
            store.write(&BTreeMap::new());
        }
        let lock = File::open(store.database()).ok()?;
        let is_locked =
            (0..ATTEMPTS).any(|_| lock.try_lock().inspect_err(|_| thread::sleep(Duration::from_millis(1))).is_ok());
        if !is_locked || (is_old && !store.is_old()) {
            return None;
        }
        if !is_old && store.is_old() {
            store.becomes(NEW);
        }
        Some(Self { store, is_old, downgrades: Mutex::new(false), _lock: lock })
    }

    /// The gateway's answer.
    pub(super) fn answer(&self, path: &str, body: &[u8]) -> String {
        let version = if self.is_old { "3.6.8" } else { "3.7.0" };
        let storage = if self.store.is_old() { "3.6.0" } else { "3.7.0" };
        let mut downgrades = self.downgrades.lock().unwrap();
        match path {
            _ if self.store.refuses(path) => "refused".to_owned(),
            "/version" => json!({ "etcdserver": version, "etcdcluster": storage, "storage": storage }).to_string(),
            "/v3/cluster/member/list" => json!({ "members": [] }).to_string(),
            "/v3/maintenance/downgrade" => {
                let question: Value = serde_json::from_slice(body).unwrap_or_default();
                *downgrades = question["action"] == "ENABLE";
                if *downgrades && !self.is_old {
                    self.store.becomes(OLD);
                }
                json!({ "header": {}, "version": version }).to_string()
            }
            "/v3/maintenance/snapshot" => {
                let mut content = fs::read(self.store.database()).unwrap();
                content.resize(content.len().next_multiple_of(512), 0);
                let sum = digest::digest(&digest::SHA256, &content);
                content.extend(sum.as_ref());
                json!({ "result": { "blob": BASE64_STANDARD.encode(content) } }).to_string() + "\n"
            }
            "/v3/maintenance/status" => json!({
                "header": { "member_id": "1", "revision": "122", "raft_term": "2" },
                "version": version,
                "leader": "1",
                "downgradeInfo": { "enabled": *downgrades, "targetVersion": "3.6.0" },
            })
            .to_string(),
            _ => "ok".to_owned(),
        }
    }
}
