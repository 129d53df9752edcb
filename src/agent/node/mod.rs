//! This host as a node of the cluster: its object, its Lease, and the mirrors of its static pods.
//!
//! # Guarantees
//! - No pod of this host depends on it. What fails is a warning in `/status` and tried again later.
//! - Nothing is done with more rights than those of a node: the Node authorizer and `NodeRestriction` allow all of it.
//! - While nothing happens, requests are one for the Lease every 10 s, one for the status every 5 min, and the renewal
//!   of two watches.

pub mod capacity;
pub mod conditions;
pub mod flags;
mod lease;
pub mod object;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node as NodeKind, Taint};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use self::capacity::Capacity;
use self::conditions::{Readings, Seen, conditions, counts};
use self::object::{Facts, Machine, Report, is_ready, kubelet_version, remarks, status_patch};
use super::blocking::apart;
use super::board::Board;
use super::host::default_address;
use super::mirror;
use super::translate::Node;
use crate::clock::Clock;
use crate::cluster::connection::Connection;
use crate::cluster::follow::{AskError, BackOff, Change, Follower, Selection, ask};
use crate::proc::Proc;
use crate::release::DEFAULT_VERSION;
use crate::runtime::{Runtime, RuntimeInfo};

/// How often it is looked whether the status has changed (kubelet: `nodeStatusUpdateFrequency`).
const LOOK: Duration = Duration::from_secs(10);
/// How often the engine is asked for its version: it may be replaced while containers run.
const ENGINE: Duration = Duration::from_mins(5);
/// How soon a task that failed by a defect is started again.
const DEFECT: Duration = Duration::from_mins(1);
/// How soon labels that were refused are sent again: who may give them is seldom changed.
const LABELS: Duration = Duration::from_mins(5);
/// By what its warnings are known.
const WHO: &str = "node";

/// How this host is registered as a node.
#[derive(Debug, Clone)]
pub struct Registration {
    /// kubeconfig of the node, e.g. `/etc/kubernetes/kubelet.conf`; need not be there yet.
    pub kubeconfig: PathBuf,
    /// Labels of the object besides the usual ones.
    pub labels: BTreeMap<String, String>,
    /// Taints of a new object besides that of plinth.
    pub taints: Vec<Taint>,
    /// Port of the kubelet's API, where it is served.
    pub kubelet_port: Option<u16>,
}

/// What the tasks work with.
#[derive(Debug)]
pub struct Context<R> {
    /// How to register.
    pub registration: Registration,
    /// The API server.
    pub connection: Arc<Connection>,
    /// The static pods.
    pub board: Arc<Board>,
    /// Facts about the node.
    pub node: Node,
    /// Whether its address was given, and is right even if nobody else reaches it.
    pub has_given_address: bool,
    /// The engine.
    pub runtime: Arc<R>,
    /// Root of the host's files.
    pub root: PathBuf,
    /// Where pods write.
    pub state: PathBuf,
    /// The kernel's facts.
    pub proc: Proc,
    /// Time.
    pub clock: Clock,
}

/// Starts everything that makes this host a node, as soon as it has an address that others reach; ends with the set.
pub fn start<R: Runtime>(mut context: Context<R>) -> JoinSet<()> {
    let mut all = JoinSet::new();
    all.spawn(async move {
        while context.node.address.is_loopback() && !context.has_given_address {
            let why = "not registered: this host has no default route and so no address that others reach; the agent's \
                       `--node-ip` gives one";
            context.board.remark(WHO, vec![why.to_owned()]);
            sleep(LOOK).await;
            context.node.address = default_address().unwrap_or(context.node.address);
        }
        let mut tasks = tasks(context);
        while tasks.join_next().await.is_some() {}
    });
    all
}

fn tasks<R: Runtime>(context: Context<R>) -> JoinSet<()> {
    let context = Arc::new(context);
    let uid = Arc::new(watch::Sender::new(None));
    let mirrors = mirror::Context {
        connection: Arc::clone(&context.connection),
        board: Arc::clone(&context.board),
        node: context.node.clone(),
        node_uid: uid.subscribe(),
        clock: context.clock.clone(),
    };
    let lease = lease::Context {
        connection: Arc::clone(&context.connection),
        board: Arc::clone(&context.board),
        name: context.node.name.clone(),
        node_uid: uid.subscribe(),
        clock: context.clock.clone(),
    };
    let board = &context.board;
    let mut tasks = JoinSet::new();
    tasks.spawn(attended(Arc::clone(board), mirror::WHO, move || mirror::run(mirrors.clone())));
    tasks.spawn(attended(Arc::clone(board), lease::WHO, move || lease::run(lease.clone())));
    let board = Arc::clone(board);
    tasks.spawn(attended(board, WHO, move || Task::new(Arc::clone(&context), Arc::clone(&uid)).run()));
    tasks
}

/// Runs `task` again should it end, which is a defect: the pods have nothing to do with it.
pub(super) async fn attended<F>(board: Arc<Board>, who: &'static str, task: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        // That of the last one.
        board.remark(who, Vec::new());
        let mut one = JoinSet::new();
        one.spawn(task());
        if let Some(Err(error)) = one.join_next().await {
            board.remark(who, vec![format!("a defect of this program: {error}")]);
        }
        sleep(DEFECT).await;
    }
}

/// The object in the API server, as far as known.
#[derive(Debug)]
enum Observed {
    /// The API server is away, and why, if it has been asked.
    Unknown(Option<AskError>),
    /// There is none.
    None,
    /// This one.
    Is(Box<DynamicObject>),
}

/// Keeps the object of the node.
struct Task<R> {
    context: Arc<Context<R>>,
    uid: Arc<watch::Sender<Option<String>>>,
    machine: Machine,
    observed: Observed,
    /// Version of the API server.
    api_server: Option<String>,
    engine: Option<(RuntimeInfo, Instant)>,
    seen: Seen,
    last: Option<Report>,
    problem: Option<String>,
    /// Since when there is one.
    problem_since: Option<Instant>,
    /// Why labels were refused, and when.
    labels_refused: Option<(String, Instant)>,
}

impl<R: Runtime> Task<R> {
    fn new(context: Arc<Context<R>>, uid: Arc<watch::Sender<Option<String>>>) -> Self {
        let machine = Machine::read(&context.proc, &context.root);
        Self {
            context,
            uid,
            machine,
            observed: Observed::Unknown(None),
            api_server: None,
            engine: None,
            seen: Seen::default(),
            last: None,
            problem: None,
            problem_since: None,
            labels_refused: None,
        }
    }

    async fn run(mut self) {
        let selection = Selection { resource: resource(), fields: format!("metadata.name={}", self.context.node.name) };
        let hints = self.context.board.answers();
        let mut follower = Follower::start(Arc::clone(&self.context.connection), selection, hints);
        let mut changes = self.context.board.changes();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut back_off = BackOff::default();
        let mut again_at: Option<Instant> = None;
        loop {
            tokio::select! {
                change = follower.next() => match change {
                    Some(change) => self.take(change),
                    None => return,
                },
                // The board is there as long as its reader.
                _ = changes.changed() => if self.problem == self.context.board.problem() { continue },
                _ = look.tick() => {}
                () = tokio::time::sleep_until(again_at.unwrap_or_else(Instant::now)), if again_at.is_some() => {}
            }
            while let Some(change) = follower.try_next() {
                self.take(change);
            }
            if again_at.is_some_and(|at| Instant::now() < at) {
                continue;
            }
            let result = self.settle().await;
            again_at = result.is_err().then(|| Instant::now() + back_off.pause());
            if result.is_ok() {
                back_off = BackOff::default();
            }
            self.context.board.remark(WHO, self.warnings(result.err()));
        }
    }

    fn take(&mut self, change: Change) {
        self.observed = match change {
            Change::Listed(objects) => {
                // It may be another one by now.
                self.api_server = None;
                objects.into_iter().next().map_or(Observed::None, |object| Observed::Is(Box::new(object)))
            }
            Change::Is(object) => Observed::Is(Box::new(object)),
            Change::Gone(_) => Observed::None,
            Change::Lost(why) => Observed::Unknown(Some(why)),
        };
        let uid = match &self.observed {
            // Whether it is still there will be seen.
            Observed::Unknown(_) => return,
            Observed::None => None,
            Observed::Is(object) => object.metadata.uid.clone(),
        };
        self.uid.send_if_modified(|known| {
            let is_other = *known != uid;
            if is_other {
                self.last = None;
                self.labels_refused = None;
                *known = uid;
            }
            is_other
        });
    }

    fn warnings(&self, error: Option<AskError>) -> Vec<String> {
        match (&self.observed, error) {
            (Observed::Unknown(why), _) => {
                why.iter().map(|why| format!("the API server cannot be asked: {}", why.told())).collect()
            }
            (_, Some(error)) => vec![format!("cannot be registered or reported: {}", error.told())],
            (Observed::Is(object), None) => {
                let refused = self.labels_refused.iter().map(|(why, _)| format!("cannot have its labels: {why}"));
                remarks(object).into_iter().chain(refused).collect()
            }
            (Observed::None, None) => Vec::new(),
        }
    }

    /// Registers the node, or tells what is new of it.
    async fn settle(&mut self) -> Result<(), AskError> {
        self.problem = self.context.board.problem();
        self.problem_since = self.problem.as_ref().and(self.problem_since.or_else(|| Some(Instant::now())));
        let context = Arc::clone(&self.context);
        let Context { registration, node, root, state, proc, .. } = &*context;
        if matches!(self.observed, Observed::Unknown(_)) {
            return Ok(());
        }
        let client = context.connection.client().await?;
        if self.api_server.is_none() {
            self.api_server = match ask(client.apiserver_version()).await {
                Ok(version) => Some(version.git_version),
                // It need not tell everybody.
                Err(error) if error.code().is_some() => None,
                Err(error) => return Err(error),
            };
        }
        self.ask_engine().await;
        let engine = self.engine.as_ref().map(|(info, _)| info);
        let huge_pages = root.join("sys/kernel/mm/hugepages");
        let capacity = Capacity::of(node, &huge_pages);
        let (proc, pods, images) = (proc.clone(), state.clone(), engine.map(|info| info.data_root.clone()));
        // A network file system may hang.
        let readings = apart(move || Readings::take(&proc, &pods, images.as_deref())).await;
        let missing = capacity.missing();
        let lacks =
            (!missing.is_empty()).then(|| format!("Missing node capacity for resources: {}", missing.join(", ")));
        let was_ready = matches!(&self.observed, Observed::Is(object) if is_ready(object));
        let lasts = self.problem_since.is_some_and(|since| counts(since.elapsed(), was_ready));
        let problem = self.problem.clone().filter(|_| lasts).or(lacks);
        let now = context.clock.now();
        let facts = Facts {
            node,
            labels: &registration.labels,
            taints: &registration.taints,
            machine: &self.machine,
            capacity: &capacity,
            engine: engine.map_or("", |info| &info.version),
            kubelet_version: kubelet_version(
                self.api_server.as_deref().unwrap_or_default(),
                DEFAULT_VERSION,
                env!("CARGO_PKG_VERSION"),
            ),
            kubelet_port: registration.kubelet_port,
        };
        let status = facts.status(conditions(&readings, &mut self.seen, problem.as_deref(), now));
        let nodes: Api<DynamicObject> = Api::all_with(client, &resource());
        let (name, how) = (node.name.as_str(), PatchParams::default());
        match &self.observed {
            Observed::Unknown(_) => {}
            Observed::None => {
                let report = Report::new(status, &[], now);
                match ask(nodes.create(&PostParams::default(), &facts.object(&report.status))).await {
                    Ok(object) => {
                        tracing::info!(node = name, "registered");
                        self.take(Change::Is(object));
                        self.last = Some(report);
                    }
                    // Of which news is under way.
                    Err(error) if error.code() == Some(409) => {}
                    Err(error) => return Err(error),
                }
            }
            Observed::Is(object) => {
                let labels = facts.labels_patch(object);
                if let Some((patch, report)) = status_patch(object, status, self.last.as_ref(), now) {
                    let object = ask(nodes.patch_status(name, &how, &Patch::Strategic(patch))).await?;
                    self.observed = Observed::Is(Box::new(object));
                    self.last = Some(report);
                }
                self.label(&nodes, labels).await?;
            }
        }
        Ok(())
    }

    /// Gives the node its labels. Where it may not have them, all else goes on.
    async fn label(&mut self, nodes: &Api<DynamicObject>, patch: Option<Value>) -> Result<(), AskError> {
        let Some(patch) = patch else {
            self.labels_refused = None;
            return Ok(());
        };
        if self.labels_refused.as_ref().is_some_and(|(_, at)| at.elapsed() < LABELS) {
            return Ok(());
        }
        match ask(nodes.patch(&self.context.node.name, &PatchParams::default(), &Patch::Merge(patch))).await {
            Ok(object) => {
                self.observed = Observed::Is(Box::new(object));
                self.labels_refused = None;
            }
            Err(error) if error.code().is_some() => self.labels_refused = Some((error.told(), Instant::now())),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Learns the version of the engine, where it has not been asked lately.
    async fn ask_engine(&mut self) {
        if self.engine.as_ref().is_some_and(|(_, at)| at.elapsed() < ENGINE) {
            return;
        }
        // While it does not answer, the last answer has to do.
        if let Ok(info) = self.context.runtime.info().await {
            self.engine = Some((info, Instant::now()));
        }
    }
}

fn resource() -> ApiResource {
    ApiResource::erase::<NodeKind>(&())
}
