//! The fake runtime with components in its containers that answer: each listens where its flags say, etcd keeps what the
//! API server is given in its data directory, and all of it ends with the container.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_util::stream::BoxStream;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::DURING;
use super::etcd::{Etcd, Store};
use crate::fsx::disk::Disk;
use crate::runtime::fake::FakeRuntime;
use crate::runtime::{
    Container, ContainerSpec, Event, ExecOutput, ExecSpec, Image, LogQuery, PullProgress, Result, Runtime, RuntimeInfo,
    Session, State, labels,
};

/// The engine of one world. Clones are the same one.
#[derive(Clone)]
pub(super) struct Engine {
    pub(super) fake: FakeRuntime,
    disk: Disk,
    servers: Arc<Mutex<BTreeMap<String, Vec<Server>>>>,
    ailment: Arc<Mutex<Option<Ailment>>>,
}

/// What makes one component of the new release exit each time, as if it did not know one of its flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ailment {
    /// etcd, once it has brought its data to its own format.
    Etcd,
    /// The same after a client's write.
    WrittenEtcd,
    /// The API server.
    ApiServer,
}

impl Ailment {
    /// Whether this component has it; if so, it does what it does before its end.
    fn ends(self, name: &str, spec: &ContainerSpec, disk: &Disk) -> bool {
        match (self, name) {
            (Self::ApiServer, "kube-apiserver") => spec.image.ends_with(":v1.37.1"),
            (Self::Etcd | Self::WrittenEtcd, "etcd") if !spec.image.contains(":3.6.") => {
                let data = Flags::of(spec).get("data-dir").to_owned();
                let serves = Etcd::start(Path::new(&data), &spec.image, disk).is_some();
                if serves && self == Self::WrittenEtcd {
                    let store = Store::of(Path::new(&data), disk);
                    let mut objects = store.read();
                    objects.insert(DURING.to_owned(), json!({}));
                    store.write(&objects);
                }
                true
            }
            _ => false,
        }
    }
}

impl Engine {
    /// `fake` with its containers at work.
    pub(super) fn new(fake: FakeRuntime, disk: Disk, ailment: &Arc<Mutex<Option<Ailment>>>) -> Self {
        let engine = Self { fake, disk, servers: Arc::default(), ailment: Arc::clone(ailment) };
        engine.settle();
        engine
    }

    /// The computer loses its power: nothing runs any more.
    pub(super) fn power_loss(fake: &FakeRuntime) {
        for container in fake.containers() {
            if matches!(container.state, State::Running { .. }) {
                fake.kill(&container.id, 255);
            }
        }
    }

    fn changed(&self, what: &str) {
        self.settle();
        self.disk.point(what);
    }

    /// Lets exactly the components answer that have a running container.
    fn settle(&self) {
        let mut servers = self.servers();
        let containers = self.fake.containers();
        let runs = |id: &str| containers.iter().any(|c| c.id == id && matches!(c.state, State::Running { .. }));
        servers.retain(|_, servers| servers.iter().all(|server| runs(&server.container)));
        for container in containers.iter().filter(|container| runs(&container.id)) {
            let name = container.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or_default();
            if servers.contains_key(&name) {
                continue;
            }
            let Some(spec) = self.fake.spec(&container.id) else { continue };
            let ailment = *self.ailment.lock().unwrap_or_else(PoisonError::into_inner);
            if ailment.is_some_and(|ailment| ailment.ends(&name, &spec, &self.disk)) {
                self.fake.write_log(&container.id, "Error: unknown flag: --of-another-release\n");
                self.fake.kill(&container.id, 1);
                continue;
            }
            match Server::of(&name, container, &spec, &self.disk) {
                Some(listening) => _ = servers.insert(name, listening),
                None => self.fake.kill(&container.id, 1),
            }
        }
    }

    fn servers(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Server>>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it ends, so that the addresses are free.
    pub(super) fn end(&self) {
        self.servers().clear();
    }
}

impl Runtime for Engine {
    async fn info(&self) -> Result<RuntimeInfo> {
        self.fake.info().await
    }

    async fn list(&self, agent: &str) -> Result<Vec<Container>> {
        self.fake.list(agent).await
    }

    async fn inspect(&self, id: &str) -> Result<Option<Container>> {
        self.fake.inspect(id).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String> {
        let created = self.fake.create(spec).await;
        self.changed(&format!("create {}", spec.name));
        created
    }

    async fn start(&self, id: &str) -> Result<()> {
        let started = self.fake.start(id).await;
        self.changed(&format!("start {id}"));
        started
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<()> {
        let stopped = self.fake.stop(id, grace).await;
        self.changed(&format!("stop {id}"));
        stopped
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let removed = self.fake.remove(id).await;
        self.changed(&format!("remove {id}"));
        removed
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        self.fake.image(reference).await
    }

    async fn pull(&self, reference: &str, progress: &(dyn Fn(PullProgress) + Sync)) -> Result<()> {
        let pulled = self.fake.pull(reference, progress).await;
        self.changed(&format!("pull {reference}"));
        pulled
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        self.fake.remove_image(reference).await
    }

    async fn exec(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        self.fake.exec(id, command, timeout).await
    }

    async fn open_exec(&self, id: &str, spec: &ExecSpec) -> Result<Session> {
        self.fake.open_exec(id, spec).await
    }

    async fn resize_exec(&self, exec: &str, width: u16, height: u16) -> Result<()> {
        self.fake.resize_exec(exec, width, height).await
    }

    async fn exec_code(&self, exec: &str) -> Result<i64> {
        self.fake.exec_code(exec).await
    }

    async fn logs(&self, id: &str, lines: usize) -> Result<String> {
        self.fake.logs(id, lines).await
    }

    fn read_log(&self, id: &str, query: LogQuery) -> BoxStream<'static, Result<Vec<u8>>> {
        self.fake.read_log(id, query)
    }

    fn events(&self, agent: &str) -> BoxStream<'static, Result<Event>> {
        self.fake.events(agent)
    }
}

/// The command line of a component.
struct Flags(BTreeMap<String, String>);

impl Flags {
    fn of(spec: &ContainerSpec) -> Self {
        let words = spec.entrypoint.iter().chain(&spec.command);
        let flags = words.filter_map(|word| word.strip_prefix("--")?.split_once('='));
        Self(flags.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

/// What a component says.
#[derive(Clone)]
enum Voice {
    /// That it is well.
    Health,
    /// Objects, while there is an etcd, and of which version it is.
    Objects(Store, String),
    /// What etcd's gateway does.
    Etcd(Weak<Etcd>),
}

/// A component at work.
struct Server {
    container: String,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// It ends with its server, and not with those it still talks to.
    etcd: Option<Arc<Etcd>>,
}

impl Server {
    /// Where the component listens; `None` where it would exit.
    fn of(name: &str, container: &Container, spec: &ContainerSpec, disk: &Disk) -> Option<Vec<Self>> {
        let flags = Flags::of(spec);
        let pair = |certificate: &str, key: &str| {
            let files = [certificate, key].map(|flag| fs::read(flags.get(flag)).ok());
            let [Some(certificate), Some(key)] = files else { return None };
            config(&certificate, &key)
        };
        let at = |host: &str, port: &str| format!("{host}:{port}").parse::<SocketAddr>().ok();
        let start = |address, tls, voice| Self::start(container.id.clone(), address, tls, voice);
        Some(match name {
            "etcd" => {
                let tls = pair("cert-file", "key-file")?;
                let gateway = flags.get("listen-client-urls").strip_prefix("https://")?.parse().ok()?;
                let health = flags.get("listen-metrics-urls").strip_prefix("http://")?.parse().ok()?;
                let etcd = Arc::new(Etcd::start(Path::new(flags.get("data-dir")), &spec.image, disk)?);
                let voice = Voice::Etcd(Arc::downgrade(&etcd));
                let mut servers = vec![start(gateway, Some(tls), voice.clone()), start(health, None, voice)];
                servers[0].etcd = Some(etcd);
                servers
            }
            "kube-apiserver" => {
                let tls = pair("tls-cert-file", "tls-private-key-file")?;
                let etcd = Path::new(flags.get("tls-cert-file")).ancestors().nth(4)?.join("var/lib/etcd");
                let address = at(flags.get("advertise-address"), flags.get("secure-port"))?;
                let version = spec.image.rsplit(':').next().unwrap_or_default().to_owned();
                vec![start(address, Some(tls), Voice::Objects(Store::of(&etcd, disk), version))]
            }
            "kube-controller-manager" => {
                vec![start(at(flags.get("bind-address"), "10257")?, Some(OWN.clone()), Voice::Health)]
            }
            _ => vec![start(at(flags.get("bind-address"), "10259")?, Some(OWN.clone()), Voice::Health)],
        })
    }

    fn start(container: String, address: SocketAddr, tls: Option<Arc<ServerConfig>>, voice: Voice) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (tls, voice, ended) = (tls.clone(), voice.clone(), Arc::clone(&ended));
                thread::spawn(move || match tls {
                    None => serve(stream, &voice, &ended),
                    Some(config) => {
                        let session = ServerConnection::new(config).unwrap();
                        serve(StreamOwned::new(session, stream), &voice, &ended);
                    }
                });
            }
        });
        Self { container, address, stop, thread: Some(thread), etcd: None }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Controller manager and scheduler serve certificates of their own making.
static OWN: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    config(own.cert.pem().as_bytes(), own.signing_key.serialize_pem().as_bytes()).unwrap()
});

fn config(certificate: &[u8], key: &[u8]) -> Option<Arc<ServerConfig>> {
    crate::health::testing::install_provider();
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<std::result::Result<Vec<_>, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_slice(key).ok()?;
    ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).ok().map(Arc::new)
}

/// Answers until the peer goes away or the container ends.
fn serve(stream: impl Read + Write, voice: &Voice, ended: &AtomicBool) {
    let mut stream = BufReader::new(stream);
    while let Some((method, path, body)) = request(&mut stream) {
        if ended.load(Ordering::SeqCst) {
            return;
        }
        let (status, body) = match voice {
            Voice::Objects(store, _) if !store.is_served() => ("500 Internal Server Error", "no etcd".to_owned()),
            Voice::Objects(_, version) if path == "/version" => {
                ("200 OK", json!({ "gitVersion": version }).to_string())
            }
            Voice::Objects(store, _) if path.starts_with("/api") => object(store, &method, &path, &body),
            Voice::Etcd(etcd) => {
                let Some(etcd) = etcd.upgrade() else { return };
                ("200 OK", etcd.answer(&path, &body))
            }
            Voice::Objects(..) | Voice::Health => ("200 OK", "ok".to_owned()),
        };
        let kind = if body.starts_with('{') { "application/json" } else { "text/plain" };
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        if stream.get_mut().write_all((head + &body).as_bytes()).is_err() {
            return;
        }
    }
}

fn request(stream: &mut impl BufRead) -> Option<(String, String, Vec<u8>)> {
    let mut line = String::new();
    let mut read = |stream: &mut dyn BufRead| {
        line.clear();
        (stream.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_owned())
    };
    let first = read(stream)?;
    let (method, path) = first.split_once(' ')?;
    let mut length = 0;
    loop {
        let header = read(stream)?.to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let path = path.split([' ', '?']).next()?;
    Some((method.to_owned(), path.to_owned(), body))
}

fn lease(name: &str) -> Value {
    let host = nix::unistd::gethostname().unwrap();
    let holder = format!("{}_1", host.to_string_lossy());
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": name, "namespace": "kube-system" },
        "spec": { "holderIdentity": holder, "renewTime": format!("{:.6}", Timestamp::now()) },
    })
}

fn object(store: &Store, method: &str, path: &str, body: &[u8]) -> (&'static str, String) {
    let mut objects = store.read();
    let known = |path: &str| objects.get(path).cloned();
    let status = |code: u16, reason: &str| {
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code })
            .to_string()
    };
    let given: Value = serde_json::from_slice(body).unwrap_or_default();
    // Whoever runs leads, and says so all the time.
    if let Some((_, name)) = path.split_once("/leases/") {
        return ("200 OK", lease(name).to_string());
    }
    match method {
        "POST" if store.refuses(path) => ("403 Forbidden", status(403, "Forbidden")),
        "GET" => match known(path) {
            Some(object) => ("200 OK", object.to_string()),
            None => ("404 Not Found", status(404, "NotFound")),
        },
        "POST" => {
            let path = format!("{path}/{}", given["metadata"]["name"].as_str().unwrap_or_default());
            if known(&path).is_some() {
                return ("409 Conflict", status(409, "AlreadyExists"));
            }
            objects.insert(path, given.clone());
            store.write(&objects);
            ("201 Created", given.to_string())
        }
        _ => ("405 Method Not Allowed", status(405, "MethodNotAllowed")),
    }
}
