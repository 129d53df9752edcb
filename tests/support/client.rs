//! Clients of the API server that miss nothing: not one bad answer, and not one write.
//!
//! [`Load`] asks with fresh connections, 50 times a second: creates and gets, of built-in and of custom objects, with
//! `admin.conf`. What is acknowledged is remembered. Beside it an informer lists, watches, and watches on from where it
//! was when its connection ends; it lists again only when told that this is too long ago.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use plinth::kubeconfig;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

/// Time from one question to the next.
const INTERVAL: Duration = Duration::from_millis(20);
/// What takes longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long the API server may take for what is no part of the load.
const SETUP: Duration = Duration::from_mins(1);
/// Pause before an informer watches again (client-go: 800 ms, here it should meet what happens).
const AGAIN: Duration = Duration::from_millis(100);

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const MARKS: &str = "/apis/e2e.plinth.dev/v1/namespaces/default/marks";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A client with the rights of a kubeconfig.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    server: String,
}

impl Client {
    /// With `/etc/kubernetes/admin.conf`.
    pub fn admin() -> Self {
        Self::of("/etc/kubernetes/admin.conf")
    }

    /// With the kubeconfig at `path`. No connection is used twice.
    pub fn of(path: &str) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let found = kubeconfig::credentials(path, &std::fs::read_to_string(path).unwrap()).unwrap();
        let identity = format!("{}{}", found.certificate_pem, found.key_pem.expose());
        let http = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .tls_certs_only([reqwest::Certificate::from_pem(found.ca_pem.as_bytes()).unwrap()])
            .identity(reqwest::Identity::from_pem(identity.as_bytes()).unwrap())
            .build()
            .unwrap();
        Self { http, server: found.server }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.server))
    }

    /// Asks once; the answer's status, and what it says.
    pub async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value), String> {
        let mut request = self.request(method, path).timeout(PATIENCE);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| format!("{error:?}"))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| format!("{error:?}"))?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Asks until the answer is good; what it says.
    ///
    /// # Panics
    /// When no answer was good within a minute.
    pub async fn get(&self, path: &str) -> Value {
        let deadline = Instant::now() + SETUP;
        loop {
            let answer = self.ask(Method::GET, path, None).await;
            match answer {
                Ok((status, value)) if status.is_success() => return value,
                answer => assert!(Instant::now() < deadline, "{path}: {answer:?}"),
            }
            sleep(AGAIN).await;
        }
    }

    /// Makes the kind `Mark`, and waits until it is served.
    async fn define_marks(&self) {
        let schema = json!({ "type": "object", "properties": { "spec": { "type": "object" } } });
        let body = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": "marks.e2e.plinth.dev" },
            "spec": {
                "group": "e2e.plinth.dev",
                "names": { "kind": "Mark", "plural": "marks" },
                "scope": "Namespaced",
                "versions": [{
                    "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema },
                }],
            },
        });
        let (status, answer) = self.ask(Method::POST, CRDS, Some(&body)).await.unwrap();
        assert!(status.is_success() || status == StatusCode::CONFLICT, "{status}: {answer}");
        self.get(MARKS).await;
        // The API server makes creates wait until a new kind is 5 s old (apiextensions: `customresource_handler.go`).
        let first = json!({
            "apiVersion": "e2e.plinth.dev/v1", "kind": "Mark", "metadata": { "generateName": "first-" }, "spec": {},
        });
        let answer = self.request(Method::POST, MARKS).timeout(SETUP).json(&first).send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
    }

    /// Names of the objects at `path` that belong to `run`.
    async fn names(&self, path: &str, run: &str) -> (BTreeSet<String>, String) {
        let list = self.get(&format!("{path}?labelSelector=run%3D{run}")).await;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        (items.iter().filter_map(name).collect(), version)
    }
}

fn name(object: &Value) -> Option<String> {
    object["metadata"]["name"].as_str().map(str::to_owned)
}

/// What became of a load.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How many questions were asked.
    pub asked: usize,
    /// Those without a good answer in time: how long after the start, and what came instead.
    pub failed: Vec<(Duration, String)>,
    /// The slowest good answer.
    pub slowest: Duration,
    /// Acknowledged creates.
    pub acknowledged: usize,
    /// Longest time without an acknowledged create.
    pub longest_gap: Duration,
    /// Acknowledged creates that are not there in the end.
    pub missing: BTreeSet<String>,
    /// Acknowledged creates (of built-in objects) that the informer was never told of.
    pub unseen: BTreeSet<String>,
    /// How often the informer's watch ended.
    pub watches_ended: usize,
    /// How often it had to list again: a fresh API server knows no older versions.
    pub listed_again: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first: Vec<_> =
            self.failed.iter().take(5).map(|(at, why)| format!("{:.2} s: {why:.200}", at.as_secs_f64())).collect();
        write!(
            f,
            "{} of {} requests failed {first:?}, slowest {:.2} s; {} creates, longest gap {:.2} s, {} missing, {} unseen by \
             an informer whose watch ended {} times and that listed {} times again",
            self.failed.len(),
            self.asked,
            self.slowest.as_secs_f64(),
            self.acknowledged,
            self.longest_gap.as_secs_f64(),
            self.missing.len(),
            self.unseen.len(),
            self.watches_ended,
            self.listed_again,
        )
    }
}

impl Report {
    /// Itself, if nothing that was acknowledged is missing or was kept from the informer.
    #[track_caller]
    pub fn lost_nothing(self) -> Self {
        assert!(self.acknowledged > 0 && self.missing.is_empty() && self.unseen.is_empty(), "{self} {self:?}");
        self
    }

    /// Itself, if besides that every answer was good and in time.
    #[track_caller]
    pub fn flawless(self) -> Self {
        assert!(self.failed.is_empty(), "{self}");
        self.lost_nothing()
    }
}

/// Asks until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Report>,
}

impl Load {
    /// Starts; back when the first answers are there.
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let thread = {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(run(Client::admin(), &stop, &answered))
            })
        };
        while answered.load(Ordering::Relaxed) < 10 && !thread.is_finished() {
            thread::sleep(INTERVAL);
        }
        Self { stop, thread }
    }

    /// Stops, and asks what is there.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

async fn run(client: Client, stop: &AtomicBool, answered: &AtomicUsize) -> Report {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let run = format!("{}-{}", std::process::id(), now.as_millis());
    client.define_marks().await;
    let informer = Arc::new(Informer::default());
    let watching = tokio::spawn(inform(client.clone(), run.clone(), Arc::clone(&informer)));

    let start = Instant::now();
    let mut report = Report::default();
    let mut acknowledged = [BTreeSet::new(), BTreeSet::new()];
    let mut last_write = start;
    let mut asked = JoinSet::new();
    let mut tick = interval(INTERVAL);
    let mut take = |report: &mut Report, answer: Answer| {
        if let Some(why) = answer.failure {
            report.failed.push((answer.asked - start, why));
            return;
        }
        answered.fetch_add(1, Ordering::Relaxed);
        report.slowest = report.slowest.max(answer.answered - answer.asked);
        if let Some((kind, name)) = answer.created {
            acknowledged[kind].insert(name);
            report.longest_gap = report.longest_gap.max(answer.answered - last_write);
            last_write = answer.answered;
        }
    };
    while !stop.load(Ordering::Relaxed) {
        tokio::select! {
            _ = tick.tick() => {
                asked.spawn(ask(client.clone(), run.clone(), report.asked));
                report.asked += 1;
            }
            Some(answer) = asked.join_next() => take(&mut report, answer.unwrap()),
        }
    }
    while let Some(answer) = asked.join_next().await {
        take(&mut report, answer.unwrap());
    }

    report.acknowledged = acknowledged.iter().map(BTreeSet::len).sum();
    for (names, path) in acknowledged.iter().zip([MAPS, MARKS]) {
        let there = client.names(path, &run).await.0;
        report.missing.extend(names.difference(&there).cloned());
    }
    let unseen = || acknowledged[0].difference(&informer.seen.lock().unwrap()).cloned().collect::<BTreeSet<_>>();
    let deadline = Instant::now() + SETUP;
    while !unseen().is_empty() && Instant::now() < deadline {
        sleep(AGAIN).await;
    }
    watching.abort();
    report.unseen = unseen();
    report.watches_ended = informer.ended.load(Ordering::Relaxed);
    report.listed_again = informer.listed.load(Ordering::Relaxed) - 1;
    report
}

struct Answer {
    asked: Instant,
    answered: Instant,
    failure: Option<String>,
    /// Of which kind, and its name.
    created: Option<(usize, String)>,
}

/// One question: every second one creates, and every second of these something of ours.
async fn ask(client: Client, run: String, number: usize) -> Answer {
    let asked = Instant::now();
    let name = format!("load-{run}-{number}");
    let metadata = json!({ "name": name, "labels": { "run": run } });
    let (created, answer) = match number % 4 {
        0 => {
            let body = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata });
            (Some((0, name)), client.ask(Method::POST, MAPS, Some(&body)).await)
        }
        2 => {
            let body = json!({ "apiVersion": "e2e.plinth.dev/v1", "kind": "Mark", "metadata": metadata, "spec": {} });
            (Some((1, name)), client.ask(Method::POST, MARKS, Some(&body)).await)
        }
        1 => (None, client.ask(Method::GET, "/api/v1/namespaces/kube-system", None).await),
        _ => (None, client.ask(Method::GET, &format!("{MARKS}?limit=1"), None).await),
    };
    let failure = match answer {
        Ok((status, _)) if status.is_success() => None,
        Ok((status, body)) => Some(format!("{status}: {body}")),
        Err(why) => Some(why),
    };
    Answer { asked, answered: Instant::now(), failure, created }
}

#[derive(Default)]
struct Informer {
    seen: Mutex<BTreeSet<String>>,
    ended: AtomicUsize,
    listed: AtomicUsize,
}

async fn inform(client: Client, run: String, informer: Arc<Informer>) {
    let mut version = String::new();
    loop {
        if version.is_empty() {
            let (names, listed) = client.names(MAPS, &run).await;
            informer.seen.lock().unwrap().extend(names);
            informer.listed.fetch_add(1, Ordering::Relaxed);
            version = listed;
        }
        let query =
            format!("{MAPS}?watch=true&allowWatchBookmarks=true&labelSelector=run%3D{run}&resourceVersion={version}");
        if let Ok(mut answer) = client.request(Method::GET, &query).send().await {
            let mut rest = Vec::new();
            while let Ok(Some(chunk)) = answer.chunk().await {
                rest.extend_from_slice(&chunk);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    take(&informer, &mut version, &serde_json::from_slice(&line).unwrap_or_default());
                }
            }
        }
        informer.ended.fetch_add(1, Ordering::Relaxed);
        sleep(AGAIN).await;
    }
}

fn take(informer: &Informer, version: &mut String, event: &Value) {
    if event["type"] == "ADDED" {
        informer.seen.lock().unwrap().extend(name(&event["object"]));
    }
    if let Some(newer) = event["object"]["metadata"]["resourceVersion"].as_str() {
        newer.clone_into(version);
    }
    // The version is too old, or was never known.
    if event["type"] == "ERROR" || event["code"] == 410 {
        version.clear();
    }
}
