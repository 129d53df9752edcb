//! Asking a running etcd, through its JSON gateway.
//!
//! The gateway is etcd's gRPC interface on the same port: one POST for each call, 64-bit numbers as strings, bytes as
//! base64, fields with their zero value left out, and a stream as one JSON object a line. Questions asked here leave
//! nothing in etcd's log, so that they do not stand in the way of [`may_put_back`](super::may_put_back): alarms are
//! read from the status, because etcd writes a log entry for the list of alarms.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Url;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep, timeout};

use super::bolt::{self, BoltError};
use super::series::Series;
use crate::fsx::{self, FsError, effect};
use crate::health::{Trust, Unhealthy, client, explain};

/// How long one answer may take. etcd itself gives a request up to 7 s (`ReqTimeout` with its default election time-out).
const ANSWER: Duration = Duration::from_secs(10);
/// How long a snapshot may stand still.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a snapshot may take in all; longer than any disk needs for etcd's greatest database (8 GiB).
const SNAPSHOT: Duration = Duration::from_hours(1);
/// How often a version that is waited for is asked.
const POLL: Duration = Duration::from_millis(100);
/// How long one line of a stream may be; etcd sends 32 KiB at once, which is 44 KiB in base64.
const LINE_LIMIT: usize = 4 * 1024 * 1024;

/// Why etcd did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The CA certificate, the client certificate or its key cannot be used.
    #[error("cannot build the client for etcd")]
    Client(#[source] reqwest::Error),
    /// No answer, or none that can be believed.
    #[error("etcd does not answer `{question}`")]
    NoAnswer {
        /// What was asked.
        question: &'static str,
        /// What came instead.
        #[source]
        reason: Unhealthy,
    },
    /// It answered that it will not.
    #[error("etcd refuses `{question}`: {message}")]
    Refused {
        /// What was asked.
        question: &'static str,
        /// etcd's words, without its `etcdserver: `.
        message: String,
    },
    /// It answered something else than this plinth expects.
    #[error("cannot understand etcd's answer to `{question}`")]
    Answer {
        /// What was asked.
        question: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The cluster did not take the version in time.
    #[error("etcd's cluster is still at version {cluster}, its data at {storage}, after {} s; {wanted} was asked for", waited.as_secs())]
    Version {
        /// What was waited for.
        wanted: Series,
        /// What the cluster said last.
        cluster: String,
        /// What it said of its data.
        storage: String,
        /// For how long.
        waited: Duration,
    },
    /// The snapshot's own checksum is not that of what was received.
    #[error("the snapshot was damaged on its way: its checksum is wrong")]
    Checksum,
    /// The snapshot cannot be written.
    #[error(transparent)]
    File(#[from] FsError),
    /// The snapshot is no database.
    #[error(transparent)]
    Database(#[from] BoltError),
}

type Result<T> = std::result::Result<T, ClientError>;

/// Versions, as `/version` tells them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Versions {
    /// Of the program that answers, `3.7.0`.
    #[serde(rename = "etcdserver")]
    pub server: String,
    /// That all members agreed on, `3.7.0`; `not_decided` while there is none.
    #[serde(rename = "etcdcluster")]
    pub cluster: String,
    /// The oldest etcd that may open its data, `3.7.0`; empty before 3.6.
    #[serde(rename = "storage", default)]
    pub storage: String,
}

/// What one member says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whose answer, at which revision.
    pub header: Header,
    /// Of the program that answers.
    pub version: String,
    /// Size of its database file, in bytes.
    #[serde(default, deserialize_with = "number")]
    pub db_size: u64,
    /// How much of that is in use, in bytes.
    #[serde(default, deserialize_with = "number")]
    pub db_size_in_use: u64,
    /// The member that leads; 0 while none does.
    #[serde(default, deserialize_with = "number")]
    pub leader: u64,
    /// Index of the last entry in its log that is applied.
    #[serde(default, deserialize_with = "number")]
    pub raft_applied_index: u64,
    /// Alarms, and that there is no leader, in etcd's words.
    #[serde(default)]
    pub errors: Vec<String>,
    /// A downgrade that was enabled and is not done.
    #[serde(default)]
    pub downgrade_info: DowngradeInfo,
}

/// What every answer begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Header {
    /// Who answers.
    #[serde(default, deserialize_with = "number")]
    pub member_id: u64,
    /// The revision of its data.
    #[serde(default, deserialize_with = "number")]
    pub revision: u64,
    /// The term of its leader.
    #[serde(default, deserialize_with = "number")]
    pub raft_term: u64,
}

/// Whether the cluster is on its way to an earlier version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DowngradeInfo {
    /// It is.
    pub enabled: bool,
    /// To which, `3.6.0`.
    pub target_version: String,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// Its number.
    #[serde(rename = "ID", default, deserialize_with = "number")]
    pub id: u64,
    /// Its name; empty before it has started for the first time.
    #[serde(default)]
    pub name: String,
    /// Where others reach it.
    #[serde(rename = "peerURLs", default)]
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    #[serde(rename = "clientURLs", default)]
    pub client_urls: Vec<String>,
    /// It does not vote yet.
    #[serde(rename = "isLearner", default)]
    pub is_learner: bool,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Size of its file.
    pub bytes: u64,
    /// Revision of the data in it.
    pub revision: u64,
}

/// A client of one member.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: Url,
}

impl Client {
    /// A client of the member at `url`, e.g. `https://127.0.0.1:2379`. It shows who it is (kubeadm: the
    /// `etcd/healthcheck-client` or `apiserver-etcd-client` certificate) only to whom `trust` believes.
    pub fn new(url: Url, trust: &Trust) -> Result<Self> {
        Ok(Self { http: client(trust).map_err(ClientError::Client)?, url })
    }

    /// The versions of program, cluster and data.
    pub async fn versions(&self) -> Result<Versions> {
        const QUESTION: &str = "version";
        let answer = self.http.get(self.at("/version")).timeout(ANSWER).send().await;
        self.read(QUESTION, answer).await
    }

    /// What the member says of itself.
    pub async fn status(&self) -> Result<Status> {
        self.post("status", "/v3/maintenance/status", &json!({})).await
    }

    /// The members of the cluster, as the majority of them know it.
    pub async fn members(&self) -> Result<Vec<Member>> {
        #[derive(Deserialize)]
        struct Answer {
            members: Vec<Member>,
        }
        let answer: Answer = self.post("member list", "/v3/cluster/member/list", &json!({})).await?;
        Ok(answer.members)
    }

    /// Tells the cluster where the member `id` will be reached by others: before it moves to another address.
    pub async fn update_peer_urls(&self, id: u64, urls: &[String]) -> Result<()> {
        let question = json!({ "ID": id.to_string(), "peerURLs": urls });
        self.post::<serde_json::Value>("member update", "/v3/cluster/member/update", &question).await.map(drop)
    }

    /// Whether the cluster can go back to `series`; the refusal says why not.
    pub async fn validate_downgrade(&self, series: Series) -> Result<()> {
        self.downgrade("downgrade validate", &json!({ "action": "VALIDATE", "version": series.to_string() })).await
    }

    /// Sends the cluster back to `series`, one minor version, and waits until data and cluster are there: then that
    /// etcd can start. May be repeated, also by another process; what is done is not done again.
    pub async fn downgrade_to(&self, series: Series, deadline: Duration) -> Result<()> {
        let begin = Instant::now();
        let status = self.status().await?;
        let under_way = status.downgrade_info.enabled && series.is_of(&status.downgrade_info.target_version);
        if !under_way && !series.is_of(&self.versions().await?.cluster) {
            let question = json!({ "action": "ENABLE", "version": series.to_string() });
            self.downgrade("downgrade enable", &question).await?;
        }
        self.wait_for_version(series, deadline.saturating_sub(begin.elapsed())).await
    }

    /// Ends a downgrade that is enabled; none is fine. While one is, the cluster goes no further up than its target.
    ///
    /// On the new etcd this takes the downgrade back. On the old one it completes it: etcd does that by itself some
    /// seconds after the start, and whoever stops it before finds the next upgrade stuck at the old version.
    pub async fn end_downgrade(&self) -> Result<()> {
        if self.status().await?.downgrade_info.enabled {
            self.downgrade("downgrade cancel", &json!({ "action": "CANCEL" })).await?;
        }
        Ok(())
    }

    /// Waits until the cluster and the data are of `series`. An etcd that does not answer meanwhile is asked again.
    pub async fn wait_for_version(&self, series: Series, deadline: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            let answer = self.versions().await;
            let is_over = begin.elapsed() >= deadline;
            match answer {
                Ok(versions) if series.is_of(&versions.cluster) && series.is_of(&versions.storage) => return Ok(()),
                Ok(Versions { cluster, storage, .. }) if is_over => {
                    return Err(ClientError::Version { wanted: series, cluster, storage, waited: deadline });
                }
                Err(error) if is_over => return Err(error),
                _ => sleep(POLL).await,
            }
        }
    }

    /// Writes a snapshot of the data to `path` (0600), whole or not at all. `progress` is told the bytes that are there
    /// and those expected in all.
    ///
    /// Its last 32 bytes are the SHA-256 of the rest, as `etcdctl snapshot save` leaves them and `etcdutl snapshot
    /// restore` expects them.
    pub async fn snapshot(&self, path: &Path, progress: &mut (dyn FnMut(u64, u64) + Send)) -> Result<Snapshot> {
        let temporary = fsx::temporary(path);
        let taken = match self.receive_snapshot(&temporary, progress).await {
            Ok(bytes) => fsx::rename(&temporary, path).map(|()| bytes).map_err(ClientError::File),
            Err(error) => Err(error),
        };
        match taken {
            Ok(bytes) => Ok(Snapshot { bytes, revision: bolt::read(path)?.revision }),
            Err(error) => {
                // The error that is told is the first one.
                let _ = fsx::remove_file(&temporary);
                Err(error)
            }
        }
    }

    async fn receive_snapshot(&self, path: &Path, progress: &mut (dyn FnMut(u64, u64) + Send)) -> Result<u64> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Line {
            Result(Part),
            Error(Complaint),
        }
        #[derive(Deserialize)]
        struct Part {
            #[serde(default)]
            blob: String,
            #[serde(default, deserialize_with = "number")]
            remaining_bytes: u64,
        }
        const QUESTION: &str = "snapshot";
        let broken = |reason| ClientError::NoAnswer { question: QUESTION, reason };
        let odd = |source| ClientError::Answer { question: QUESTION, source };

        fsx::remove_file(path)?;
        let mut options = tokio::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(path).await;
        let mut file = effect::change(path, || file).map_err(FsError::of("create", path))?;
        let request = self.http.post(self.at("/v3/maintenance/snapshot")).timeout(SNAPSHOT).json(&json!({}));
        let mut answer = request.send().await.map_err(|error| broken(explain(&error)))?;
        let mut sum = Sum::new();
        let mut lines = Lines::default();
        loop {
            let chunk = timeout(SILENCE, answer.chunk()).await.map_err(|_| broken(Unhealthy::NoAnswer(SILENCE)))?;
            let Some(chunk) = chunk.map_err(|error| broken(explain(&error)))? else { break };
            for line in lines.add(&chunk).ok_or_else(|| broken(Unhealthy::Broken("an endless line".into())))? {
                let part = match serde_json::from_slice(&line).map_err(odd)? {
                    Line::Result(part) => part,
                    Line::Error(complaint) => return Err(complaint.about(QUESTION)),
                };
                let blob = BASE64_STANDARD.decode(part.blob).map_err(|error| odd(serde::de::Error::custom(error)))?;
                file.write_all(&blob).await.map_err(FsError::of("write", path))?;
                let there = sum.add(&blob);
                progress(there, there + part.remaining_bytes);
            }
        }
        if !lines.is_empty() {
            return Err(broken(Unhealthy::Broken("it ended within a line".into())));
        }
        let bytes = sum.verify()?;
        let synced = file.sync_all().await;
        effect::sync(path, || synced).map_err(FsError::of("sync", path))?;
        Ok(bytes)
    }

    async fn downgrade(&self, question: &'static str, body: &serde_json::Value) -> Result<()> {
        self.post::<serde_json::Value>(question, "/v3/maintenance/downgrade", body).await.map(drop)
    }

    fn at(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(path);
        url
    }

    async fn post<T: DeserializeOwned>(
        &self,
        question: &'static str,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T> {
        let answer = self.http.post(self.at(path)).timeout(ANSWER).json(body).send().await;
        self.read(question, answer).await
    }

    async fn read<T: DeserializeOwned>(
        &self,
        question: &'static str,
        answer: reqwest::Result<reqwest::Response>,
    ) -> Result<T> {
        let no_answer = |error: reqwest::Error| {
            let reason = if error.is_timeout() { Unhealthy::NoAnswer(ANSWER) } else { explain(&error) };
            ClientError::NoAnswer { question, reason }
        };
        let answer = answer.map_err(no_answer)?;
        let is_success = answer.status().is_success();
        let body = answer.bytes().await.map_err(no_answer)?;
        if is_success {
            return serde_json::from_slice(&body).map_err(|source| ClientError::Answer { question, source });
        }
        let complaint: Complaint =
            serde_json::from_slice(&body).map_err(|source| ClientError::Answer { question, source })?;
        Err(complaint.about(question))
    }
}

/// How the gateway says no.
#[derive(Deserialize)]
struct Complaint {
    message: String,
}

impl Complaint {
    fn about(self, question: &'static str) -> ClientError {
        let message = self.message.strip_prefix("etcdserver: ").unwrap_or(&self.message).to_owned();
        ClientError::Refused { question, message }
    }
}

/// A 64-bit number, which the gateway writes as a string.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// A stream of bytes, taken apart at its line ends.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// The lines that `bytes` completes; `None` when one gets too long.
    fn add(&mut self, bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
        let mut lines = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            self.0.extend(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.0);
            if !line.is_empty() {
                lines.push(line);
            }
        }
        self.0.extend(rest);
        (self.0.len() <= LINE_LIMIT).then_some(lines)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The SHA-256 of a stream whose last bytes are just that.
struct Sum {
    context: digest::Context,
    /// What may be the sum.
    tail: Vec<u8>,
    bytes: u64,
}

impl Sum {
    const BYTES: usize = 32;

    fn new() -> Self {
        Self { context: digest::Context::new(&digest::SHA256), tail: Vec::new(), bytes: 0 }
    }

    /// Adds bytes; returns how many there are now.
    fn add(&mut self, bytes: &[u8]) -> u64 {
        self.bytes += bytes.len() as u64;
        self.tail.extend(bytes);
        let before = self.tail.len().saturating_sub(Self::BYTES);
        self.context.update(&self.tail[..before]);
        self.tail.drain(..before);
        self.bytes
    }

    /// How many bytes there are, if they end with their sum. A database is a multiple of 512 bytes; without the sum's 32
    /// on top there is none (`etcdutl`, `hasChecksum`).
    fn verify(self) -> Result<u64> {
        let whole = self.bytes % 512 == Self::BYTES as u64;
        if whole && self.context.finish().as_ref() == self.tail { Ok(self.bytes) } else { Err(ClientError::Checksum) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::health::testing::{Server, install_provider};

    fn client_of(server: &Server) -> Client {
        install_provider();
        Client::new(server.url("/"), &Trust::Plain).unwrap()
    }

    #[tokio::test]
    async fn a_status_is_read_as_etcd_writes_it() {
        let server = Server::plain(
            "200 OK",
            r#"{"header":{"cluster_id":"9151734699010623715", "member_id":"3153101805118352275", "revision":"122", "raft_term":"3"},
                "version":"3.7.0", "dbSize":"28672", "leader":"3153101805118352275", "raftIndex":"4", "raftTerm":"3",
                "raftAppliedIndex":"4", "errors":["memberID:3153101805118352275 alarm:NOSPACE "], "dbSizeInUse":"20480",
                "storageVersion":"3.6.0", "dbSizeQuota":"2147483648",
                "downgradeInfo":{"enabled":true, "targetVersion":"3.6.0"}}"#,
        );
        let status = client_of(&server).status().await.unwrap();
        assert_eq!(status.header, Header { member_id: 3_153_101_805_118_352_275, revision: 122, raft_term: 3 });
        assert_eq!((status.db_size, status.db_size_in_use, status.raft_applied_index), (28_672, 20_480, 4));
        assert_eq!(status.leader, status.header.member_id);
        assert!(status.downgrade_info.enabled && status.errors[0].contains("NOSPACE"), "{status:?}");

        // The gateway leaves out what is zero: no leader, nothing stored.
        let server = Server::plain("200 OK", r#"{"header":{}, "version":"3.6.8", "downgradeInfo":{}}"#);
        let status = client_of(&server).status().await.unwrap();
        assert_eq!((status.leader, status.header.revision, status.downgrade_info.enabled), (0, 0, false));
    }

    #[tokio::test]
    async fn refusals_nonsense_and_silence_are_told_apart() {
        for (status, body, expected) in [
            (
                "400 Bad Request",
                r#"{"code":3, "message":"etcdserver: invalid downgrade target version"}"#,
                "etcd refuses `downgrade validate`: invalid downgrade target version",
            ),
            ("502 Bad Gateway", "<html>", "cannot understand etcd's answer to `downgrade validate`"),
            ("200 OK", "<html>", "cannot understand etcd's answer to `downgrade validate`"),
        ] {
            let server = Server::plain(status, body);
            let error = client_of(&server).validate_downgrade("3.6.0".parse().unwrap()).await.unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let gone = Server::plain("200 OK", "").stopped();
        let error = client_of(&gone).members().await.unwrap_err();
        assert!(matches!(error, ClientError::NoAnswer { reason: Unhealthy::Refused, .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_version_is_waited_for_with_a_deadline() {
        let server = Server::plain("200 OK", r#"{"etcdserver":"3.7.0","etcdcluster":"3.6.0","storage":"3.7.0"}"#);
        let client = client_of(&server);
        let wait = |text: &str| client.wait_for_version(text.parse().unwrap(), Duration::ZERO);
        let error = wait("3.6.0").await.unwrap_err().to_string();
        assert_eq!(error, "etcd's cluster is still at version 3.6.0, its data at 3.7.0, after 0 s; 3.6 was asked for");
        let server = Server::plain("200 OK", r#"{"etcdserver":"3.7.0","etcdcluster":"3.6.0","storage":"3.6.0"}"#);
        client_of(&server).wait_for_version("3.6.8".parse().unwrap(), Duration::ZERO).await.unwrap();
    }

    /// What etcd streams for `content`, in pieces of `size` bytes.
    fn stream(content: &[u8], size: usize) -> String {
        let mut left = content.len();
        let lines = content.chunks(size).map(|piece| {
            left -= piece.len();
            let blob = BASE64_STANDARD.encode(piece);
            json!({ "result": { "remaining_bytes": left.to_string(), "blob": blob } }).to_string() + "\n"
        });
        lines.collect()
    }

    /// A database with its sum.
    fn database() -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/etcd/copy.db");
        let mut content = fs::read(path).unwrap();
        content.resize(content.len().next_multiple_of(4096), 0);
        let sum = digest::digest(&digest::SHA256, &content);
        content.extend(sum.as_ref());
        content
    }

    async fn save(body: &str) -> (tempfile::TempDir, PathBuf, Result<Snapshot>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("snapshot.db");
        let snapshot = client_of(&Server::plain("200 OK", body)).snapshot(&path, &mut |_, _| {}).await;
        (directory, path, snapshot)
    }

    #[tokio::test]
    async fn a_snapshot_is_there_whole() {
        use std::os::unix::fs::PermissionsExt as _;
        let content = database();
        for size in [content.len(), 32 * 1024, 1000, 7 * 32] {
            let (directory, path, snapshot) = save(&stream(&content, size)).await;
            assert_eq!(snapshot.unwrap(), Snapshot { bytes: content.len() as u64, revision: 122 });
            assert_eq!(fs::read(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
    }

    #[tokio::test]
    async fn a_snapshot_is_not_there_at_all_if_it_is_not_whole() {
        let content = database();
        let mut damaged = content.clone();
        damaged[9_000] ^= 1;
        let whole = stream(&content, 32 * 1024);
        let cut = whole.trim_end().rfind('\n').unwrap() + 1;
        let error_line = "{\"error\":{\"code\":14,\"message\":\"etcdserver: no leader\"}}\n";
        for (what, body, expected) in [
            ("damaged", stream(&damaged, 32 * 1024), "the snapshot was damaged on its way: its checksum is wrong"),
            ("without its end", whole[..cut].to_owned(), "the snapshot was damaged on its way: its checksum is wrong"),
            ("cut within a line", whole[..whole.len() - 9].to_owned(), "etcd does not answer `snapshot`"),
            ("nothing", String::new(), "the snapshot was damaged on its way: its checksum is wrong"),
            ("an error", whole[..cut].to_owned() + error_line, "etcd refuses `snapshot`: no leader"),
            ("nonsense", "<html>\n".to_owned(), "cannot understand etcd's answer to `snapshot`"),
        ] {
            let (directory, _, snapshot) = save(&body).await;
            assert_eq!(snapshot.unwrap_err().to_string(), expected, "{what}");
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "{what}");
        }
    }
}
