//! A host below a temporary root: a disk that can lose its power, the fake runtime, plinth and its agent in this process.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::engine::{Ailment, Engine};
use super::etcd::Store;
use crate::agent::{self, Options};
use crate::apply::{Host, Launch};
use crate::clock::Clock;
use crate::config::Cluster;
use crate::fsx::disk::{Crash, Disk, Tree};
use crate::fsx::{self, Holder};
use crate::init::{self, Init, InitError, Request};
use crate::journal::{Creation, Journal, Ledger};
use crate::layout::Layout;
use crate::plan;
use crate::release::Component;
use crate::reset::{self, Made, Report};
use crate::runtime::fake::FakeRuntime;
use crate::runtime::{Container, State, labels};
use crate::service::{self, AgentCommand, Manager, in_process};
use crate::takedown;
use crate::ui::{Format, Mode, Printer, Progress};

/// Each world has a loopback address of its own, where its components listen: of its process, and of itself there.
static WORLDS: AtomicU8 = AtomicU8::new(1);

/// How the world ended at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum End {
    /// SIGKILL of the command; the agent was killed too and has been started again, as systemd does.
    Command,
    /// SIGKILL of the command and of the agent.
    Both,
    /// Power loss: see [`Crash::unsynced_lost`].
    UnsyncedLost,
    /// Power loss: see [`Crash::content_lost`].
    ContentLost,
    /// Power loss: see [`Crash::state_kept`].
    StateKept,
}

impl End {
    /// Those that differ most come first.
    pub(super) const ALL: [Self; 5] =
        [Self::Both, Self::UnsyncedLost, Self::ContentLost, Self::StateKept, Self::Command];

    fn is_power_loss(self) -> bool {
        !matches!(self, Self::Command | Self::Both)
    }
}

/// What there was after one effect.
pub(super) struct Point {
    pub(super) what: String,
    crash: Crash,
    engine: FakeRuntime,
    agent_ran: bool,
}

impl Point {
    /// What this end leaves; `None` where it is the same as another one.
    fn left_by(&self, end: End) -> Option<&Tree> {
        match end {
            End::Command => self.agent_ran.then_some(&self.crash.killed),
            End::Both => Some(&self.crash.killed),
            End::UnsyncedLost => Some(&self.crash.unsynced_lost),
            End::ContentLost => Some(&self.crash.content_lost),
            End::StateKept => Some(&self.crash.state_kept),
        }
    }

    /// A number for the state that this end leaves.
    pub(super) fn state(&self, end: End) -> Option<u64> {
        let tree = self.left_by(end)?;
        let runs = |container: &Container| matches!(container.state, State::Running { .. }) && !end.is_power_loss();
        let containers: Vec<_> = self.engine.containers().iter().map(|one| (one.id.clone(), runs(one))).collect();
        let mut hasher = DefaultHasher::new();
        (end, tree, containers).hash(&mut hasher);
        Some(hasher.finish())
    }
}

/// A host.
pub(super) struct World {
    root: TempDir,
    pub(super) layout: Layout,
    address: Ipv4Addr,
    disk: Disk,
    engine: Engine,
    agent: Arc<Agent>,
    ailment: Arc<Mutex<Option<Ailment>>>,
    /// What was there before plinth.
    foreign: Tree,
    /// Phases that `init` skips.
    pub(super) skipped: Vec<String>,
}

impl World {
    pub(super) fn new() -> Self {
        // A sync costs nothing there, and what it means is not for the kernel to say here.
        let root = tempfile::Builder::new().tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let layout = Layout::new(root.path());
        for directory in ["etc", "run", "usr/local/bin", "var/lib", "var/log"] {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        std::fs::write(root.path().join("etc/hostname"), "theirs").unwrap();
        std::fs::write(root.path().join("plinth"), "a program").unwrap();
        let foreign = Tree::of(root.path());
        let disk = Disk::watch(root.path());
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, high, low, WORLDS.fetch_add(1, Ordering::Relaxed));
        let fake = FakeRuntime::new(Clock::system());
        let ailment = Arc::default();
        let engine = Engine::new(fake, disk.clone(), &ailment);
        let agent = Agent::new(layout.clone(), engine.clone());
        in_process::set(root.path(), Some(agent.clone()));
        let skipped = vec!["preflight".to_owned()];
        let world = Self { root, layout, address, disk, engine, agent, ailment, foreign, skipped };
        for cluster in ["2", "v1.36.3"].map(|goal| world.cluster(goal)) {
            for component in Component::ALL {
                world.engine.fake.add_image(&cluster.image(component));
            }
        }
        world
    }

    /// A configuration that says which version it is, or how verbose the scheduler is.
    pub(super) fn cluster(&self, goal: &str) -> Cluster {
        let mut cluster = Cluster::example();
        let verbosity = if goal.starts_with('v') {
            cluster.version = goal.parse().unwrap();
            "2"
        } else {
            goal
        };
        let address = self.address.to_string();
        let bind = ("bind-address".to_owned(), address.clone());
        cluster.advertise_address = self.address.into();
        cluster.controller_manager.extra_args = vec![bind.clone()];
        cluster.scheduler.extra_args = vec![bind, ("v".to_owned(), verbosity.to_owned())];
        let urls = [
            ("listen-metrics-urls", format!("http://{address}:2381")),
            ("listen-client-urls", format!("https://{address}:2379")),
        ];
        cluster.etcd.options.extra_args = urls.map(|(name, url)| (name.to_owned(), url)).to_vec();
        cluster.timeouts.control_plane_component_health_check = Duration::from_secs(20);
        cluster.timeouts.kubernetes_api_call = Duration::from_secs(10);
        cluster
    }

    /// From now on the new release has this, or nothing any more.
    pub(super) fn falls_ill(&self, ailment: Option<Ailment>) {
        *self.ailment.lock().unwrap_or_else(PoisonError::into_inner) = ailment;
    }

    pub(super) fn journal(&self) -> Journal {
        Journal::of(&self.layout)
    }

    pub(super) fn ledger(&self) -> Ledger {
        self.journal().ledger().unwrap()
    }

    /// What etcd has.
    pub(super) fn store(&self) -> Store {
        Store::of(&self.layout.below_root(&self.cluster("2").etcd.data_dir), &self.disk)
    }

    /// `plinth init`, as the command line does it; `false` when there was nothing to do.
    pub(super) async fn init(&self, cluster: &Cluster, running: Option<&Cluster>) -> Result<bool, InitError> {
        let mut cluster = cluster.clone();
        cluster.host.external_ca = running.is_none() && plan::external_ca(&self.layout, &cluster, &self.ledger());
        let cluster = &cluster;
        let request = Request {
            cluster,
            running,
            committed: self.ledger().committed,
            skip_phases: &self.skipped,
            plan: None,
            ignored: &[],
            renew: true,
            engine_address: "unix:///run/docker.sock",
        };
        let (journal, clock, printer) = (self.journal(), Clock::system(), printer());
        let init = Init::new(request, self.host(&journal, &clock, &printer))?;
        if init.plan().await?.plan.is_empty() {
            return Ok(false);
        }
        Box::pin(init.perform(std::future::pending())).await.map(|_| true)
    }

    /// `plinth reset`.
    pub(super) async fn reset(&self) -> Result<Report, reset::ResetError> {
        let (journal, clock, printer) = (self.journal(), Clock::system(), printer());
        let host = self.host(&journal, &clock, &printer);
        let _lock = init::lock(&self.layout)?.expect("nobody else is at work");
        let made = Made::find(&self.layout, &self.engine, &self.ledger()).await?;
        reset::run(&host, &made, reset::Options::default()).await
    }

    fn host<'a>(&'a self, journal: &'a Journal, clock: &'a Clock, printer: &'a Printer) -> Host<'a, Engine> {
        let command = AgentCommand { program: self.root.path().join("plinth"), arguments: vec!["agent".to_owned()] };
        let launch = Launch::Service { manager: Manager::Detached, command };
        Host { layout: &self.layout, journal, runtime: &self.engine, clock, printer, launch }
    }

    /// Does `operation` once, and returns what there was after each effect.
    pub(super) async fn record(&self, operation: impl AsyncFnOnce()) -> Vec<Point> {
        let points: Arc<Mutex<Vec<Point>>> = Arc::default();
        let (seen, fake, agent) = (Arc::clone(&points), self.engine.fake.clone(), Arc::clone(&self.agent));
        let root = self.root.path().display().to_string();
        self.disk.observe(move |what, crash| {
            let what = what.strip_prefix(&root).unwrap_or(what).to_owned();
            let (engine, agent_ran) = (fake.fork(), agent.runs());
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(Point { what, crash, engine, agent_ran });
        });
        operation().await;
        self.disk.look_away();
        std::mem::take(&mut *points.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the world what this end leaves at `point`.
    pub(super) fn crash(&mut self, point: &Point, end: End) {
        self.stop();
        self.disk.forget();
        point.left_by(end).expect("a state").restore(self.root.path());
        self.disk = Disk::watch(self.root.path());
        let fake = point.engine.fork();
        if end.is_power_loss() {
            Engine::power_loss(&fake);
        }
        self.engine = Engine::new(fake, self.disk.clone(), &self.ailment);
        self.agent = Agent::new(self.layout.clone(), self.engine.clone());
        in_process::set(self.root.path(), Some(self.agent.clone()));
        if end == End::Command {
            in_process::Agent::start(&*self.agent);
            // It was at work when the command was killed.
            while service::running(&self.layout).unwrap() == Holder::Free && self.agent.runs() {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn stop(&self) {
        in_process::Agent::stop(&*self.agent);
        self.engine.end();
    }

    /// Paths and containers that are on the host and that plinth would not find again.
    pub(super) fn leaked(&self) -> Vec<String> {
        let ledger = self.ledger();
        let known = ledger.paths();
        let trees: Vec<_> = ledger
            .creations()
            .filter_map(|creation| match creation {
                Creation::Tree { path } => Some(path.clone()),
                _ => None,
            })
            .chain([self.layout.state(), self.layout.run()])
            .collect();
        let foreign: Vec<_> = self.foreign.paths().map(|path| self.root.path().join(path)).collect();
        let is_known = |path: &PathBuf| {
            // What a writer that was killed leaves is found with the file.
            let temporary = |known: &PathBuf| fsx::temporary(known) == *path;
            foreign.contains(path)
                || known.contains(path)
                || known.iter().any(temporary)
                || trees.iter().any(|tree| path.starts_with(tree))
                || *path == fsx::temporary(&self.layout.binary())
        };
        let now = Tree::of(self.root.path());
        let paths = now.paths().map(|path| self.root.path().join(path)).filter(|path| !is_known(path));
        let agent = takedown::agent_id(&self.layout).unwrap();
        let containers = self.engine.fake.containers().into_iter();
        let containers = containers.filter(|container| container.labels.get(labels::AGENT) != agent.as_ref());
        paths.map(|path| path.display().to_string()).chain(containers.map(|container| container.name)).collect()
    }

    /// What there may be only while an operation is under way: another etcd's data, parts of files.
    pub(super) fn unfinished(&self) -> Vec<String> {
        let data = self.layout.below_root(&self.cluster("2").etcd.data_dir);
        let tree = Tree::of(self.root.path());
        let paths = tree.paths().map(|path| self.root.path().join(path));
        let found = paths.filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.starts_with(self.layout.etcd_swap())
                || (path.parent() == Some(&data) && name != "member")
                || name.contains("plinth-copy")
        });
        found.map(|path| path.display().to_string()).collect()
    }

    /// What is there beside what was there before plinth, containers included.
    pub(super) fn left(&self) -> Vec<String> {
        let containers = self.engine.fake.containers().into_iter().map(|container| container.name);
        self.foreign.difference(&Tree::of(self.root.path())).into_iter().chain(containers).collect()
    }

    /// Names of the containers that run, by component.
    pub(super) fn running(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .engine
            .fake
            .running()
            .iter()
            .map(|name| name.split('_').nth(1).unwrap_or_default().to_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop();
        in_process::set(self.root.path(), None);
        self.disk.forget();
    }
}

fn printer() -> Printer {
    Printer::capture(Mode { progress: Progress::Hidden, format: Format::Text, color: false }).0
}

/// The agent as a thread that is told to end.
struct Agent {
    layout: Layout,
    engine: Engine,
    thread: Mutex<Option<(CancellationToken, JoinHandle<()>)>>,
}

impl Agent {
    fn new(layout: Layout, engine: Engine) -> Arc<Self> {
        Arc::new(Self { layout, engine, thread: Mutex::default() })
    }

    fn runs(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|(stop, thread)| !stop.is_cancelled() && !thread.is_finished())
    }
}

impl in_process::Agent for Agent {
    fn start(&self) {
        let mut options = Options::new(self.layout.clone(), Cluster::example().node_name, "pause:1");
        options.ledger = Arc::new(Journal::of(&self.layout));
        let (engine, token) = (self.engine.clone(), CancellationToken::new());
        let stop = token.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let ended = runtime.block_on(Box::pin(agent::run(options, engine, Clock::system(), stop)));
            if let Err(error) = ended {
                println!("the agent: {error}: {error:?}");
            }
        });
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some((token, thread));
    }

    fn stop(&self) {
        let taken = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((token, thread)) = taken {
            token.cancel();
            thread.join().unwrap();
        }
    }
}
