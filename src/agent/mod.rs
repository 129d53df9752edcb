//! The static-pod agent: the kubelet's static-pod half, on a container runtime.
//!
//! [`run`] reads the manifests ([`source`]), keeps one [`worker`] per pod name, and tells them where to look; each
//! worker decides with the pure [`step`] and acts. [`server`] shows what they see.
//!
//! # Guarantees
//! - One agent per root, by file lock. It never touches a container without its label.
//! - Containers outlive the agent: on shutdown they are left running, and the next agent takes them over by label
//!   without touching what is right.
//! - A crash is acted on when it happens (events); what events miss is caught by a complete list every 15 s. While a
//!   container of a pod is being stopped or its image pulled, the rest of that pod waits, as with a kubelet.
//! - Nothing of a source is removed before that source has been read once; no source holds up another one.
//! - No decision needs the API server.
//!
//! # Assumptions
//! Nobody else starts or restarts our containers; the runtime restarts none by itself.
//!
//! # Failure
//! While the runtime is away the agent waits, says so in `/status`, and then restarts only what really died. A SIGKILL
//! at any instant loses nothing but back-off.

pub mod blocking;
pub mod board;
pub mod client;
pub mod entry;
pub mod events;
pub mod hook;
pub mod host;
pub mod kubelet_api;
pub mod kubelet_config;
pub mod ledger;
pub(crate) mod log_choice;
pub mod logfile;
pub mod lookup;
pub mod message;
pub mod metrics;
pub mod mirror;
pub mod node;
pub mod pod;
pub mod ports;
pub mod probe;
pub mod projection;
pub mod quantity;
pub mod report;
pub mod seccomp;
pub mod server;
pub mod source;
pub mod status;
pub mod steer;
pub mod step;
pub mod surge;
pub mod translate;
pub mod volume;
pub mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use self::board::Board;
use self::events::Recorder;
use self::ledger::{Ledger, NoLedger, Writer};
use self::logfile::LogDirectories;
use self::metrics::Metrics;
use self::node::Registration;
use self::pod::{PodKey, SourceKind, StaticPod, resolve_order};
use self::probe::Prober;
use self::server::Door;
use self::source::Published;
use self::source::file::FileSource;
use self::source::http::{Endpoint, HttpSource};
use self::source::memory::recall_source;
use self::step::{Timings, doubled, uid_of};
use self::translate::LogLimits;
use self::worker::{Message, Shared, Wanted, Worker};
use crate::clock::Clock;
use crate::cluster::connection;
use crate::fsx::{self, FsError, Lock};
use crate::kubeconfig;
use crate::layout::Layout;
use crate::proc::Proc;
use crate::runtime::{Container, Event, EventKind, Runtime, RuntimeError, labels};

/// How long the lock is tried for: others only peek at it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How soon a runtime that is away is asked again, at first and at most.
const AWAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How soon all containers are listed when an event speaks of an unknown pod: those that come together need one list.
const UNKNOWN_SETTLES: Duration = Duration::from_millis(100);
/// How soon a worker that has failed is started again, at first and at most.
const WORKER_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Settings of an agent.
#[derive(Clone)]
pub struct Options {
    /// Every path the agent uses but the manifests'.
    pub layout: Layout,
    /// Directory of the manifests, or a single one; absolute.
    pub manifests: Option<PathBuf>,
    /// Where further manifests are asked for.
    pub url: Option<Endpoint>,
    /// Name of the node; pod names end in it.
    pub node_name: String,
    /// Address of the node; that of the default route when `None`.
    pub node_address: Option<IpAddr>,
    /// Image of sandboxes, e.g. `registry.k8s.io/pause:3.10.2`.
    pub pause_image: String,
    /// Where creations are recorded.
    pub ledger: Arc<dyn Ledger>,
    /// Waiting times.
    pub timings: Timings,
    /// How often the manifests are read without an event (kubelet: `fileCheckFrequency`, 20 s).
    pub file_check_period: Duration,
    /// How often the URL is asked (kubelet: `httpCheckFrequency`, 20 s).
    pub http_check_period: Duration,
    /// What is kept of the containers' logs.
    pub log_limits: LogLimits,
    /// Where links to the logs are made for those that collect them (kubelet: `podLogsDir`); absolute.
    pub pod_logs: PathBuf,
    /// Remarks about these settings, for `/status`.
    pub notes: Vec<String>,
    /// How often all containers are listed without an event.
    pub relist_period: Duration,
    /// The kubelet's interface, where it is served.
    pub kubelet_api: Option<kubelet_api::Settings>,
    /// How this host is registered as a node of its cluster; not at all when `None`.
    pub register: Option<Registration>,
}

impl Options {
    /// The usual settings for the manifests of `layout` on the node `node_name`.
    pub fn new(layout: Layout, node_name: impl Into<String>, pause_image: impl Into<String>) -> Self {
        Self {
            manifests: Some(layout.manifests()),
            url: None,
            pod_logs: layout.pod_logs(),
            layout,
            node_name: node_name.into(),
            node_address: None,
            pause_image: pause_image.into(),
            ledger: Arc::new(NoLedger),
            timings: Timings::default(),
            file_check_period: Duration::from_secs(20),
            http_check_period: Duration::from_secs(20),
            log_limits: LogLimits::default(),
            notes: Vec::new(),
            relist_period: Duration::from_secs(15),
            kubelet_api: None,
            register: None,
        }
    }
}

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Another one runs for this root.
    #[error("another agent runs already{}", .holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked {
        /// Its process id.
        holder: Option<i32>,
    },
    /// A directory, the lock, the id or the socket could not be made.
    #[error(transparent)]
    Files(#[from] FsError),
    /// The id in the file is not one; nobody can say which containers are ours.
    #[error("`{}` does not hold 16 hexadecimal digits", path.display())]
    AgentId {
        /// The file.
        path: PathBuf,
    },
    /// No random number could be had for the id.
    #[error("the system gives no random numbers")]
    Random,
    /// The HTTP client of the probes could not be built.
    #[error("cannot build the HTTP client of the probes")]
    Prober(#[source] reqwest::Error),
    /// A source died, and with it all news of its pods.
    #[error("the source `{location}` ended{}", .reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}")))]
    Source {
        /// Path or URL.
        location: String,
        /// What it says of it.
        reason: Option<String>,
    },
    /// The socket's server ended.
    #[error("the agent's socket stopped answering")]
    Server(#[source] std::io::Error),
}

/// Runs the agent until `shutdown`. Containers go on running afterwards.
pub async fn run<R: Runtime>(
    options: Options,
    runtime: R,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let layout = &options.layout;
    fsx::create_directories(&layout.state(), 0o700)?;
    let _lock = lock(&layout.agent_lock()).await?;
    fsx::create_directories(&layout.pods(), 0o750)?;
    let agent_id = agent_id(&layout.agent_id())?;
    let listener = server::bind(&layout.socket())?;
    let proc = Proc::new(layout.proc());
    let node = host::node(&proc, &layout.state(), &options.node_name, options.node_address);
    let runtime = Arc::new(runtime);
    let (recorder, events) = Recorder::new();
    let mut board = Board::new(Metrics::new(env!("CARGO_PKG_VERSION")));
    if options.register.is_some() {
        board = board.telling(recorder, clock.clone());
    }
    let board = Arc::new(board);
    board.set_problem(Some("the container runtime has not answered yet".to_owned()));
    let door = Door {
        board: Arc::clone(&board),
        node: node.clone(),
        agent_id: agent_id.clone(),
        started_at: clock.now(),
        clock: clock.clone(),
    };
    let shared = Arc::new(Shared {
        prober: Prober::new(Arc::clone(&runtime), clock.clone()).map_err(AgentError::Prober)?,
        runtime,
        clock: clock.clone(),
        timings: options.timings,
        agent_id,
        node,
        pods: layout.pods(),
        proven: layout.proven(),
        kubeconfig: layout.kubernetes().join(kubeconfig::AGENT_FILE),
        seccomp: layout.below_root(Path::new(seccomp::DIRECTORY)),
        pause_image: options.pause_image.clone(),
        log_limits: options.log_limits,
        booted_at: host::booted_at(&proc),
        proc,
        ledger: Writer::new(Arc::clone(&options.ledger)),
        logs: LogDirectories { pods: options.pod_logs.clone(), containers: layout.container_logs() },
        board,
    });
    let (publish, published) = mpsc::unbounded_channel();
    let mut sources = Sources::default();
    if let Some(path) = options.manifests.clone() {
        let source = FileSource {
            path,
            node: options.node_name.clone(),
            pods: layout.pods(),
            period: options.file_check_period,
            events: true,
        };
        sources.start(source.unread(), source.run(clock.clone(), publish.clone()));
    }
    if let Some(endpoint) = options.url.clone() {
        let source = HttpSource {
            endpoint,
            node: options.node_name.clone(),
            pods: layout.pods(),
            period: options.http_check_period,
        };
        sources.start(source.unread(), source.run(clock, publish.clone()));
    }
    let known = sources.unread.values().map(|source| source.location.as_str()).collect::<Vec<_>>().join(", ");
    tracing::info!(agent = shared.agent_id, sources = known, "the agent runs");
    for note in &options.notes {
        tracing::warn!("{note}");
    }

    // All of it ends with the last line of this function.
    let _registered = options.register.clone().map(|registration| {
        let connection = Arc::new(connection::Connection::new(&registration.kubeconfig));
        let mut tasks = node::start(node::Context {
            connection: Arc::clone(&connection),
            registration,
            board: Arc::clone(&shared.board),
            node: shared.node.clone(),
            has_given_address: options.node_address.is_some(),
            runtime: Arc::clone(&shared.runtime),
            root: layout.root().to_path_buf(),
            state: layout.state(),
            proc: shared.proc.clone(),
            clock: shared.clock.clone(),
        });
        tasks.spawn(events::sink::run(events, Arc::clone(&connection), shared.node.name.clone()));
        if let Some(settings) = options.kubelet_api.clone() {
            let context = Arc::new(kubelet_api::Context {
                settings,
                pki: layout.kubelet_pki(),
                connection,
                board: Arc::clone(&shared.board),
                node: shared.node.clone(),
                runtime: Arc::clone(&shared.runtime),
                ledger: shared.ledger.clone(),
                clock: shared.clock.clone(),
            });
            tasks.spawn(node::attended(Arc::clone(&shared.board), kubelet_api::WHO, move || {
                kubelet_api::run(Arc::clone(&context))
            }));
        }
        tasks
    });
    let hub = Hub::new(shared, &options, sources.unread.clone());
    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        error = sources.ended() => Err(error),
        // Not while `publish` is there; a source that ends says more.
        () = Box::pin(hub.run(published)) => Err(AgentError::Source { location: known, reason: None }),
        ended = server::serve(listener, door) => ended.map_err(AgentError::Server),
    };
    fsx::remove_file(&options.layout.socket())?;
    tracing::info!("the agent stops; containers go on");
    result
}

/// The tasks of the sources.
#[derive(Default)]
struct Sources {
    unread: BTreeMap<SourceKind, Published>,
    tasks: JoinSet<String>,
    locations: HashMap<tokio::task::Id, String>,
}

impl Sources {
    fn start(&mut self, unread: Published, task: impl Future<Output = ()> + Send + 'static) {
        let location = unread.location.clone();
        self.unread.insert(unread.source, unread);
        let returned = location.clone();
        let handle = self.tasks.spawn(async move {
            task.await;
            returned
        });
        self.locations.insert(handle.id(), location);
    }

    /// Completes when one of them ends, which none is to do while the agent runs.
    async fn ended(&mut self) -> AgentError {
        match self.tasks.join_next().await {
            // Without any source the agent tends to what it may find, which is nothing.
            None => std::future::pending().await,
            Some(Ok(location)) => AgentError::Source { location, reason: None },
            Some(Err(error)) => AgentError::Source {
                location: self.locations.get(&error.id()).cloned().unwrap_or_default(),
                reason: Some(error.to_string()),
            },
        }
    }
}

async fn lock(path: &Path) -> Result<Lock, AgentError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Lock::try_take(path)? {
            Ok(lock) => return Ok(lock),
            Err(holder) if Instant::now() >= deadline => return Err(AgentError::Locked { holder }),
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The id of the agent of this root: made once, never changed, because it is what our containers are known by.
fn agent_id(path: &Path) -> Result<String, AgentError> {
    if let Some(bytes) = fsx::read_optional(path)? {
        let id = String::from_utf8_lossy(&bytes).trim().to_owned();
        let valid = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        return if valid { Ok(id) } else { Err(AgentError::AgentId { path: path.to_path_buf() }) };
    }
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| AgentError::Random)?;
    let id = pod::identity::hex(&random);
    fsx::write_atomic(path, format!("{id}\n").as_bytes(), 0o600)?;
    Ok(id)
}

/// Brings sources, runtime and workers together.
struct Hub<R> {
    shared: Arc<Shared<R>>,
    relist_period: Duration,
    notes: Vec<String>,
    /// By kind, as last published.
    sources: BTreeMap<SourceKind, Published>,
    workers: HashMap<PodKey, Handle>,
    tasks: JoinSet<()>,
    /// Whose task it is.
    owners: HashMap<tokio::task::Id, PodKey>,
    /// Workers that ended in a panic.
    failures: BTreeMap<PodKey, Failure>,
    /// When all containers are to be listed, if before the next time that they are anyway.
    list_at: Option<Instant>,
    /// Which pod a UID belongs to, as far as known.
    uids: HashMap<String, PodKey>,
    /// A first list has been seen.
    listed: bool,
}

/// Whether the runtime answered all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    New,
    Kept,
}

/// A defect of ours that one pod brings out.
struct Failure {
    why: String,
    /// In a row.
    count: u32,
    again_at: Instant,
}

struct Handle {
    wanted: watch::Sender<Wanted>,
    /// Sources that its containers may come from.
    sources: BTreeSet<SourceKind>,
    /// UIDs of pods it runs or has yet to clear away.
    uids: BTreeSet<String>,
    messages: mpsc::UnboundedSender<Message>,
}

impl Handle {
    /// Forgets the UIDs of pods that have neither any of its `containers` nor a directory, which goes last, below `pods`.
    fn forget_uids(&mut self, containers: &[Container], pods: &Path) {
        let wanted = self.wanted.borrow();
        // One that is being removed holds what it has until it ends.
        if let Some(wanted) = wanted.uid() {
            let is_used = |uid: &str| containers.iter().any(|container| uid_of(container) == uid);
            self.uids.retain(|uid| uid == wanted || is_used(uid) || pods.join(uid).exists());
        }
    }
}

impl<R: Runtime> Hub<R> {
    fn new(shared: Arc<Shared<R>>, options: &Options, sources: BTreeMap<SourceKind, Published>) -> Self {
        Self {
            shared,
            relist_period: options.relist_period,
            notes: options.notes.clone(),
            sources,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            owners: HashMap::new(),
            failures: BTreeMap::new(),
            list_at: None,
            uids: HashMap::new(),
            listed: false,
        }
    }

    /// Runs until its sources are gone.
    async fn run(mut self, mut published: mpsc::UnboundedReceiver<Published>) {
        // Files are there at once. Of two pods with one name theirs runs, and so they come first.
        while self.sources.get(&SourceKind::File).is_some_and(|files| !files.was_tried()) {
            let Some(first) = published.recv().await else { return };
            self.take(first);
        }
        loop {
            let (mut events, _pump) = self.connect().await;
            let mut relist = interval(self.relist_period);
            relist.set_missed_tick_behavior(MissedTickBehavior::Delay);
            relist.tick().await;
            loop {
                tokio::select! {
                    event = events.recv() => match event {
                        Some(Ok(event)) => self.route(&event),
                        Some(Err(error)) => break self.lost(&error.to_string()),
                        None => break self.lost("its events ended"),
                    },
                    () = self.shared.board.lost.notified() => break,
                    () = sleep_until(self.list_at.unwrap_or_else(Instant::now)), if self.list_at.is_some() => {
                        if !self.list(Connection::Kept).await { break }
                    }
                    _ = relist.tick() => if !self.list(Connection::Kept).await { break },
                    more = published.recv() => match more {
                        Some(published) => self.take(published),
                        None => return,
                    },
                    Some(ended) = self.tasks.join_next_with_id() => self.reap(ended),
                }
            }
        }
    }

    /// Waits for the runtime, follows its events, and lists what is there.
    async fn connect(&mut self) -> (mpsc::UnboundedReceiver<Result<Event, RuntimeError>>, JoinSet<()>) {
        let (mut pause, longest) = AWAY;
        loop {
            // Followed before listing, so that nothing falls in between.
            let mut stream = self.shared.runtime.events(&self.shared.agent_id);
            let (sender, receiver) = mpsc::unbounded_channel();
            let mut pump = JoinSet::new();
            pump.spawn(async move {
                while let Some(event) = stream.next().await {
                    if sender.send(event).is_err() {
                        return;
                    }
                }
            });
            if self.list(Connection::New).await {
                return (receiver, pump);
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    fn lost(&self, reason: &str) {
        tracing::warn!(reason, "lost the container runtime");
        let reason = reason.strip_prefix("the container runtime does not answer: ").unwrap_or(reason);
        self.shared.board.set_problem(Some(format!("the container runtime does not answer: {reason}")));
    }

    /// Lists all containers and hands them out; `false` when the runtime does not answer.
    async fn list(&mut self, connection: Connection) -> bool {
        let containers = match self.shared.runtime.list(&self.shared.agent_id).await {
            Ok(containers) => containers,
            Err(error) => {
                self.lost(&error.to_string());
                return false;
            }
        };
        self.shared.board.set_problem(None);
        let mut by_pod: BTreeMap<PodKey, Vec<Container>> = BTreeMap::new();
        self.uids.clear();
        for container in containers {
            if let Some(key) = key_of(&container) {
                self.uids.insert(uid_of(&container).to_owned(), key.clone());
                by_pod.entry(key).or_default().push(container);
            }
        }
        self.listed = true;
        let now = Instant::now();
        // Whoever has gone on for some time since is well.
        self.failures.retain(|_, failure| now < failure.again_at + 2 * WORKER_AGAIN.1);
        self.list_at = self.failures.values().map(|failure| failure.again_at).filter(|at| *at > now).min();
        for (key, handle) in &mut self.workers {
            // A worker that is just ending needs neither.
            if connection == Connection::New {
                let _ = handle.messages.send(Message::Reconnected);
            }
            let containers = by_pod.remove(key).unwrap_or_default();
            handle.forget_uids(&containers, &self.shared.pods);
            let _ = handle.messages.send(Message::Listed(containers));
        }
        self.assign(by_pod);
        self.sweep().await;
        true
    }

    /// Removes directories and log links of pods that neither are wanted nor have containers: what a pod leaves behind
    /// whose containers went while no agent was there to see it. A proven spec may run again as long as its pod is
    /// wanted.
    async fn sweep(&self) {
        let mut proven = surge::all_proven(&self.shared.proven, &self.shared.node.name);
        if !proven.is_empty() {
            let wanted = source::merge(&self.sources).pods;
            for pod in proven.extract_if(.., |pod| !wanted.contains_key(&pod.key) && self.is_complete(pod.source)) {
                if let Err(error) = surge::forget(&self.shared.proven, &pod.key) {
                    tracing::warn!(pod = %pod.key, %error, "cannot forget the proven version of a pod that is gone");
                }
            }
        }
        let is_used = |uid: &str| self.uids.contains_key(uid) || proven.iter().any(|pod| pod.uid == uid);
        for uid in volume::present(&self.shared.pods).into_iter().filter(|uid| !is_used(uid)) {
            let known = recall_source(&self.shared.pods, &uid).map_or_else(
                || SourceKind::ALL.into_iter().all(|source| self.is_complete(source)),
                |source| self.is_complete(source),
            );
            if known && let Err(error) = self.shared.discard(&uid).await {
                tracing::warn!(uid, %error, "cannot remove the directory of a pod that is gone");
            }
        }
    }

    /// Whether all pods of this kind of source are known: it has been read, or there is none.
    fn is_complete(&self, source: SourceKind) -> bool {
        self.sources.get(&source).is_none_or(|published| published.complete)
    }

    fn take(&mut self, published: Published) {
        let known = self.sources.get(&published.source);
        for rejection in &published.rejected {
            if !known.is_some_and(|known| known.rejected.contains(rejection)) {
                tracing::warn!(file = rejection.file, reason = rejection.reason, "rejected");
            }
        }
        if let Some(problem) = &published.problem
            && known.is_none_or(|known| known.problem.as_ref() != Some(problem))
        {
            tracing::warn!(source = published.location, problem, "a source has a problem");
        }
        if let Some(remark) = &published.remark
            && known.is_none_or(|known| known.remark.as_ref() != Some(remark))
        {
            tracing::info!(source = published.location, remark, "about a source");
        }
        self.sources.insert(published.source, published);
        self.assign(BTreeMap::new());
    }

    /// Tells every worker what is wanted; starts those that are missing, from the containers found.
    fn assign(&mut self, mut found: BTreeMap<PodKey, Vec<Container>>) {
        let source::Merged { pods, shadowed } = source::merge(&self.sources);
        let orders = resolve_order(pods.values().map(AsRef::as_ref));
        let waited_for: BTreeSet<_> =
            orders.values().flat_map(|order| order.wait_for.iter().chain(&order.uses)).cloned().collect();
        let held_up = self.held_up(&pods, &found);
        let board = &self.shared.board;
        board.metrics.set_pods(pods.len());
        let sources = self.sources.values().map(|source| source.status(&shadowed)).collect();
        board.set_sources(sources, self.warnings(&pods, &held_up));
        if !self.listed {
            return;
        }
        let keys: BTreeSet<_> = pods.keys().chain(self.workers.keys()).chain(found.keys()).cloned().collect();
        for key in keys {
            let containers = found.remove(&key).unwrap_or_default();
            let mut sources = match self.workers.get(&key) {
                Some(handle) => handle.sources.clone(),
                None => containers.iter().map(|container| self.source_of(container)).collect(),
            };
            let is_held_up = held_up.contains_key(&key);
            if is_held_up && containers.is_empty() && !self.workers.contains_key(&key) {
                continue;
            }
            let wanted = match pods.get(&key).filter(|_| !is_held_up) {
                Some(pod) => {
                    sources.insert(pod.source);
                    self.uids.insert(pod.uid.clone(), key.clone());
                    let order = orders.get(&key).cloned().unwrap_or_default();
                    Wanted::Run { pod: Arc::clone(pod), order, eager: waited_for.contains(&key) }
                }
                None if sources.iter().all(|source| self.is_complete(*source)) => Wanted::Remove,
                // Whether a source has it that has not been read yet is not known.
                None => Wanted::Keep,
            };
            match self.workers.get_mut(&key) {
                Some(handle) => {
                    handle.sources = sources;
                    handle.uids.extend(wanted.uid().map(str::to_owned));
                    handle.wanted.send_if_modified(|present| {
                        let differs = *present != wanted;
                        *present = wanted;
                        differs
                    });
                }
                None => self.start(key, wanted, sources, containers),
            }
        }
        let all_known = SourceKind::ALL.into_iter().all(|source| self.is_complete(source));
        let tended = || pods.keys().chain(self.workers.keys()).cloned().collect();
        self.shared.board.set_tended(all_known.then(tended));
    }

    /// Pods that cannot start yet, each with the one that has its UID until it is gone: both would be in one directory,
    /// and the end of the one would delete the data of the other.
    fn held_up(
        &self,
        pods: &BTreeMap<PodKey, Arc<StaticPod>>,
        found: &BTreeMap<PodKey, Vec<Container>>,
    ) -> BTreeMap<PodKey, PodKey> {
        let tended =
            self.workers.iter().flat_map(|(key, handle)| handle.uids.iter().map(move |uid| (uid.as_str(), key)));
        let left = found.iter().flat_map(|(key, left)| left.iter().map(move |container| (uid_of(container), key)));
        let holders: BTreeSet<_> = tended.chain(left).collect();
        let other = |pod: &StaticPod| holders.iter().find(|(uid, key)| *uid == pod.uid && **key != pod.key);
        pods.values().filter_map(|pod| Some((pod.key.clone(), other(pod)?.1.clone()))).collect()
    }

    /// Where the pod of a container comes from. What an earlier plinth made without saying so came from a file.
    fn source_of(&self, container: &Container) -> SourceKind {
        let label = container.labels.get(labels::SOURCE).and_then(|name| SourceKind::named(name));
        label.or_else(|| recall_source(&self.shared.pods, uid_of(container))).unwrap_or(SourceKind::File)
    }

    fn start(&mut self, key: PodKey, wanted: Wanted, sources: BTreeSet<SourceKind>, containers: Vec<Container>) {
        if self.failures.get(&key).is_some_and(|failure| Instant::now() < failure.again_at) {
            // With the list that is due then.
            return;
        }
        let uids = containers.iter().map(uid_of).chain(wanted.uid()).map(str::to_owned).collect();
        let (wanted, wanted_by_worker) = watch::channel(wanted);
        let (messages, messages_to_worker) = mpsc::unbounded_channel();
        let worker =
            Worker::new(Arc::clone(&self.shared), key.clone(), wanted_by_worker, messages_to_worker, containers);
        self.workers.insert(key.clone(), Handle { wanted, sources, uids, messages });
        let task = self.tasks.spawn(worker.run());
        self.owners.insert(task.id(), key);
    }

    fn route(&mut self, event: &Event) {
        if let Some(handle) = self.uids.get(&event.pod_uid).and_then(|key| self.workers.get(key)) {
            // A worker that is just ending does not need it.
            let _ = handle.messages.send(Message::Look(event.container.clone(), event.kind));
        } else if event.kind != EventKind::Removed {
            // Ours by its label, but of no pod that we know. Of one that is gone, its removal is the last echo.
            self.list_soon(Instant::now() + UNKNOWN_SETTLES);
        }
    }

    fn list_soon(&mut self, at: Instant) {
        self.list_at = Some(self.list_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// A worker has ended: its pod is gone, or it failed. If the pod is wanted (again), another one starts.
    fn reap(&mut self, ended: Result<(tokio::task::Id, ()), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        // Every task has been entered.
        let Some(key) = self.owners.remove(&id) else { return };
        self.workers.remove(&key);
        match ended {
            Ok(_) => {
                self.failures.remove(&key);
                self.uids.retain(|_, pod| *pod != key);
            }
            Err(error) => {
                let count = self.failures.get(&key).map_or(1, |failure| failure.count + 1);
                let pause = doubled(WORKER_AGAIN.0, count - 1, WORKER_AGAIN.1);
                tracing::error!(pod = %key, %error, count, again_in = ?pause, "a worker failed");
                let again_at = Instant::now() + pause;
                self.failures.insert(key, Failure { why: error.to_string(), count, again_at });
                // What it knew went with it; the next one starts from a list.
                self.list_soon(again_at);
            }
        }
        self.assign(BTreeMap::new());
    }

    fn warnings(&self, pods: &BTreeMap<PodKey, Arc<StaticPod>>, held_up: &BTreeMap<PodKey, PodKey>) -> Vec<String> {
        let node = &self.shared.node;
        let mut warnings = self.notes.clone();
        let remarks = self.sources.values().filter_map(|source| Some((&source.location, source.remark.as_ref()?)));
        warnings.extend(remarks.map(|(location, remark)| format!("{location}: {remark}")));
        warnings.extend(
            held_up.iter().map(|(pod, holder)| format!("{pod} has the UID of {holder} and starts once that is gone")),
        );
        if !node.may_protect_from_oom && pods.values().any(|pod| translate::wants_oom_protection(pod, node)) {
            warnings.push(
                "without CAP_SYS_RESOURCE containers run with no protection from the OOM killer (oom_score_adj)"
                    .to_owned(),
            );
        }
        warnings.extend(self.failures.iter().map(|(key, failure)| {
            format!(
                "a defect of this program keeps pod {key} from being tended (failure {}): {}",
                failure.count, failure.why
            )
        }));
        warnings.extend(ports::rivals(pods.values().map(AsRef::as_ref)));
        warnings
    }
}

fn key_of(container: &Container) -> Option<PodKey> {
    Some(PodKey {
        namespace: container.labels.get(labels::POD_NAMESPACE)?.clone(),
        name: container.labels.get(labels::POD_NAME)?.clone(),
    })
}

#[cfg(test)]
mod tests;
