//! An in-memory runtime with scripted faults, for tests.
//!
//! It keeps the contract of [`Runtime`] (`tests/contract.rs` holds it to that), answers at once, and does nothing a
//! test did not ask for: no process ends, no image appears, no call fails by itself. Ids, process ids and addresses
//! count up from one run to the next in the same way. Points in time come from the [`Clock`]; whatever takes time
//! waits by `tokio::time`, so tests run with time paused.
//!
//! ```
//! # use std::time::Duration;
//! # use plinth::clock::Clock;
//! # use plinth::runtime::{ContainerSpec, Runtime, RuntimeError};
//! # use plinth::runtime::fake::{FakeRuntime, Op, Program};
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
//! let fake = FakeRuntime::new(Clock::fixed(jiff::Timestamp::UNIX_EPOCH));
//! fake.add_image("etcd:3.7");
//! fake.set_program("etcd:3.7", Program::default().stops_after(Duration::from_secs(2), 0));
//! fake.fail_next(Op::Create, RuntimeError::Unreachable("restarting".to_owned()));
//!
//! let spec = ContainerSpec { name: "a".to_owned(), image: "etcd:3.7".to_owned(), ..ContainerSpec::default() };
//! assert!(fake.create(&spec).await.is_err());
//! let id = fake.create(&spec).await?;
//! fake.start(&id).await?;
//! fake.kill("a", 137); // as somebody outside would
//! assert_eq!(fake.changes(), ["create a", "create a", "start a"]);
//! # Ok::<(), RuntimeError>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod script;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

pub use self::script::{Call, Op, Program};
use super::{
    CgroupDriver, Container, ContainerSpec, Event, EventKind, ExecOutput, ExecSpec, Image, LogQuery, Output,
    PullProgress, Result, Runtime, RuntimeError, RuntimeInfo, Session, State, Termination, labels,
};
use crate::clock::Clock;

/// Exit code of a process that SIGKILL ended: 128 + 9.
const KILLED: i64 = 137;

/// What a container without a stop timeout gets from an engine that goes down, as from Docker.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The in-memory runtime. Clones share one world.
#[derive(Debug, Clone)]
pub struct FakeRuntime {
    clock: Clock,
    world: Arc<Mutex<World>>,
    /// Bumped whenever a process ends, for those who wait for one.
    ended: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct World {
    containers: BTreeMap<String, Entry>,
    created: u32,
    started: i32,
    images: BTreeMap<String, Image>,
    registry: BTreeSet<String>,
    pulls_take: Duration,
    programs: BTreeMap<String, Program>,
    failures: BTreeMap<Op, VecDeque<RuntimeError>>,
    panics: BTreeMap<Op, u32>,
    lost_answers: BTreeMap<Op, u32>,
    latency: BTreeMap<Op, Duration>,
    away: bool,
    losing_events: bool,
    calls: Vec<Call>,
    subscribers: Vec<Subscriber>,
}

#[derive(Debug, Clone)]
struct Entry {
    container: Container,
    spec: ContainerSpec,
    /// Lines, each with its end if it has one and when it was written.
    log: Vec<(Timestamp, String)>,
}

#[derive(Debug)]
struct Subscriber {
    agent: String,
    sender: mpsc::UnboundedSender<Result<Event>>,
}

/// What a test says and asks. Wherever a container is meant, its id or its name will do.
impl FakeRuntime {
    /// An engine without images and containers.
    pub fn new(clock: Clock) -> Self {
        Self { clock, world: Arc::default(), ended: watch::Sender::new(0) }
    }

    /// Another engine with the containers, images and programs that this one has now, and nothing else that was
    /// scripted.
    #[must_use]
    pub fn fork(&self) -> Self {
        let world = self.world();
        let copy = World {
            containers: world.containers.clone(),
            created: world.created,
            started: world.started,
            images: world.images.clone(),
            registry: world.registry.clone(),
            pulls_take: world.pulls_take,
            programs: world.programs.clone(),
            ..World::default()
        };
        Self { clock: self.clock.clone(), world: Arc::new(Mutex::new(copy)), ended: watch::Sender::new(0) }
    }

    /// Makes an image present on the host.
    pub fn add_image(&self, reference: &str) {
        let image = fake_image(reference);
        self.world().images.insert(reference.to_owned(), image);
    }

    /// Makes an image present on the host with these facts (its user, say).
    pub fn add_image_with(&self, reference: &str, image: Image) {
        self.world().images.insert(reference.to_owned(), image);
    }

    /// Makes an image available for pulls. Pulls of anything else are refused as the registry would.
    pub fn add_to_registry(&self, reference: &str) {
        self.world().registry.insert(reference.to_owned());
    }

    /// Every later pull takes this long.
    pub fn set_pull_time(&self, time: Duration) {
        self.world().pulls_take = time;
    }

    /// How processes behave, by the container's name within its pod (label [`labels::CONTAINER_NAME`]) or else by
    /// the image reference. Holds for later starts, stops and execs, of existing containers too.
    pub fn set_program(&self, key: &str, program: Program) {
        self.world().programs.insert(key.to_owned(), program);
    }

    /// The next call of `op` fails with `error` and has no effect. Several add up, in order.
    pub fn fail_next(&self, op: Op, error: RuntimeError) {
        self.world().failures.entry(op).or_default().push_back(error);
    }

    /// The next `count` calls of `op` panic, as a defect of the caller's would.
    pub fn panic_next(&self, op: Op, count: u32) {
        self.world().panics.insert(op, count);
    }

    /// The next call of `op` takes effect, but its answer is lost: the caller sees `Unreachable`.
    pub fn lose_next_answer(&self, op: Op) {
        *self.world().lost_answers.entry(op).or_default() += 1;
    }

    /// Every later call of `op` takes this long before it has an effect.
    pub fn set_latency(&self, op: Op, time: Duration) {
        self.world().latency.insert(op, time);
    }

    /// The engine stops answering and event streams break; containers run on, as with Docker's `live-restore`.
    /// For an engine that takes its containers with it, [`kill`](Self::kill) them as well.
    pub fn go_away(&self) {
        let mut world = self.world();
        world.away = true;
        for subscriber in world.subscribers.drain(..) {
            // A receiver that is gone does not care.
            let _ = subscriber.sender.send(Err(unreachable_engine()));
        }
    }

    /// The engine goes down in good order: it stops answering, and stops every container within its stop timeout. Ends
    /// when all of them have ended.
    pub async fn shut_down(&self) {
        self.go_away();
        let containers: Vec<_> = {
            let world = self.world();
            world.containers.iter().map(|(id, entry)| (id.clone(), entry.spec.stop_timeout)).collect()
        };
        let stops = containers.iter().map(|(id, timeout)| self.signal(id, timeout.unwrap_or(STOP_TIMEOUT)));
        futures_util::future::join_all(stops).await;
    }

    /// The engine answers again. Event streams have to be asked for again.
    pub fn come_back(&self) {
        self.world().away = false;
    }

    /// While `true` no event reaches anybody; streams stay open.
    pub fn lose_events(&self, lose: bool) {
        self.world().losing_events = lose;
    }

    /// The process of a running container ends with this exit code, by no call of ours.
    ///
    /// # Panics
    /// When there is no such container or it does not run: the test is wrong.
    pub fn kill(&self, id: &str, exit_code: i64) {
        self.end(id, exit_code, false);
    }

    /// The kernel kills the process of a running container for lack of memory.
    ///
    /// # Panics
    /// When there is no such container or it does not run.
    pub fn kill_for_memory(&self, id: &str) {
        self.end(id, KILLED, true);
    }

    /// The container disappears by somebody else's hand (`docker rm -f`).
    ///
    /// # Panics
    /// When there is no such container.
    pub fn remove_behind_our_back(&self, id: &str) {
        let id = self.world().id_of(id).unwrap_or_else(|| panic!("no container `{id}`"));
        self.discard(&id);
    }

    /// A container writes to its log.
    ///
    /// # Panics
    /// When there is no such container.
    pub fn write_log(&self, id: &str, text: &str) {
        let now = self.clock.now();
        let mut world = self.world();
        match world.entry(id) {
            Some(entry) => entry.write(now, text),
            None => panic!("no container `{id}`"),
        }
    }

    /// All containers of all agents, oldest first.
    pub fn containers(&self) -> Vec<Container> {
        self.world().containers.values().map(|entry| entry.container.clone()).collect()
    }

    /// One container, if it is there.
    pub fn container(&self, id: &str) -> Option<Container> {
        self.world().entry(id).map(|entry| entry.container.clone())
    }

    /// Names of the containers that run, oldest first.
    pub fn running(&self) -> Vec<String> {
        let running = |c: &Container| matches!(c.state, State::Running { .. });
        self.containers().into_iter().filter(running).map(|container| container.name).collect()
    }

    /// What a container was created from, if it is there.
    pub fn spec(&self, id: &str) -> Option<ContainerSpec> {
        self.world().entry(id).map(|entry| entry.spec.clone())
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.world().calls.clone()
    }

    /// How often `op` was called so far.
    pub fn count(&self, op: Op) -> usize {
        self.world().calls.iter().filter(|call| call.op == op).count()
    }

    /// The calls so far that change something, as `stop k8s_etcd_…`.
    pub fn changes(&self) -> Vec<String> {
        self.world().calls.iter().filter(|call| call.op.is_change()).map(Call::to_string).collect()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.world().calls.clear();
    }
}

impl FakeRuntime {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every call begins with: it is recorded, takes its time, and fails if so scripted.
    async fn begin(&self, op: Op, target: &str, limit: Option<Duration>) -> Result<()> {
        let (latency, panics) = {
            let mut world = self.world();
            let target = world.entry(target).map_or_else(|| target.to_owned(), |entry| entry.container.name.clone());
            world.calls.push(Call { op, target, limit, at: self.clock.now() });
            let panics = world.panics.get_mut(&op).filter(|count| **count > 0).map(|count| *count -= 1).is_some();
            (world.latency.get(&op).copied(), panics)
        };
        assert!(!panics, "asked to panic");
        if let Some(latency) = latency {
            tokio::time::sleep(latency).await;
        }
        let mut world = self.world();
        if world.away {
            return Err(unreachable_engine());
        }
        match world.failures.get_mut(&op).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// What every call with an effect ends with.
    fn answer<T>(&self, op: Op, value: T) -> Result<T> {
        let mut world = self.world();
        match world.lost_answers.get_mut(&op) {
            Some(count) if *count > 0 => {
                *count -= 1;
                Err(RuntimeError::Unreachable("the connection was lost before the answer".to_owned()))
            }
            _ => Ok(value),
        }
    }

    fn end(&self, id: &str, exit_code: i64, oom_killed: bool) {
        let id = self.world().id_of(id).unwrap_or_else(|| panic!("no container `{id}`"));
        assert!(self.finish(&id, None, exit_code, oom_killed), "container `{id}` does not run");
    }

    /// Ends the process of a container, if it runs and is the one meant (`run` is its pid; any when `None`).
    fn finish(&self, id: &str, run: Option<i32>, exit_code: i64, oom_killed: bool) -> bool {
        {
            let mut world = self.world();
            let Some(Entry { container, .. }) = world.containers.get_mut(id) else { return false };
            let State::Running { pid, started_at } = container.state else { return false };
            if run.is_some_and(|run| run != pid) {
                return false;
            }
            container.state = State::Exited(Termination {
                exit_code,
                oom_killed,
                error: String::new(),
                started_at,
                finished_at: self.clock.now(),
            });
            if oom_killed {
                world.tell(id, EventKind::Other);
            }
            world.tell(id, EventKind::Died);
        }
        self.ended.send_modify(|count| *count += 1);
        true
    }

    fn discard(&self, id: &str) {
        self.finish(id, None, KILLED, false);
        let mut world = self.world();
        world.tell(id, EventKind::Removed);
        world.containers.remove(id);
    }

    /// Sends the stop signal, and SIGKILL after `grace`.
    async fn signal(&self, id: &str, grace: Duration) {
        let running = {
            let mut world = self.world();
            let id = world.id_of(id);
            id.and_then(|id| world.pid_of(&id).map(|pid| (id, pid))).and_then(|(id, pid)| {
                let spec = world.known(&id).ok()?.spec.clone();
                Some((id, pid, world.program(&spec).stop))
            })
        };
        if let Some((id, run, obeys)) = running {
            let (delay, code) = match obeys {
                Some((delay, code)) if delay < grace || delay.is_zero() => (delay, code),
                _ => (grace, KILLED),
            };
            self.wait_for_end(&id, run, delay).await;
            self.finish(&id, Some(run), code, false);
        }
    }

    /// Waits until this run of the container is over, or the time is.
    async fn wait_for_end(&self, id: &str, run: i32, limit: Duration) {
        let mut ended = self.ended.subscribe();
        let over = async { while self.world().pid_of(id) == Some(run) && ended.changed().await.is_ok() {} };
        // Both outcomes are fine: the caller looks again.
        let _ = tokio::time::timeout(limit, over).await;
    }
}

impl Entry {
    fn write(&mut self, at: Timestamp, text: &str) {
        self.log.extend(text.split_inclusive('\n').map(|line| (at, line.to_owned())));
    }
}

impl World {
    fn id_of(&self, id_or_name: &str) -> Option<String> {
        if self.containers.contains_key(id_or_name) {
            return Some(id_or_name.to_owned());
        }
        self.containers
            .values()
            .find(|entry| entry.container.name == id_or_name)
            .map(|entry| entry.container.id.clone())
    }

    fn entry(&mut self, id_or_name: &str) -> Option<&mut Entry> {
        let id = self.id_of(id_or_name)?;
        self.containers.get_mut(&id)
    }

    fn known(&mut self, id: &str) -> Result<&mut Entry> {
        self.entry(id).ok_or_else(|| RuntimeError::NoSuchContainer(id.to_owned()))
    }

    fn pid_of(&self, id: &str) -> Option<i32> {
        match self.containers.get(id)?.container.state {
            State::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    fn program(&self, spec: &ContainerSpec) -> Program {
        let by_name = spec.labels.get(labels::CONTAINER_NAME).and_then(|name| self.programs.get(name));
        by_name.or_else(|| self.programs.get(&spec.image)).cloned().unwrap_or_default()
    }

    fn tell(&mut self, id: &str, kind: EventKind) {
        let Some(Entry { container, .. }) = self.containers.get(id) else { return };
        if self.losing_events {
            return;
        }
        let Some(agent) = container.labels.get(labels::AGENT) else { return };
        let pod_uid = container.labels.get(labels::POD_UID).cloned().unwrap_or_default();
        let event = Event { container: id.to_owned(), pod_uid, kind };
        self.subscribers.retain(|to| to.agent != *agent || to.sender.send(Ok(event.clone())).is_ok());
    }
}

impl Runtime for FakeRuntime {
    async fn info(&self) -> Result<RuntimeInfo> {
        self.begin(Op::Info, "", None).await?;
        Ok(RuntimeInfo {
            name: "fake",
            version: "20.10.24".to_owned(),
            api_version: "1.41".to_owned(),
            storage_driver: "overlay2".to_owned(),
            data_root: PathBuf::from("/var/lib/docker"),
            cgroup_driver: CgroupDriver::Systemd,
            cgroup_version: 2,
            logging_driver: "json-file".to_owned(),
            rootless: false,
            cpus: 2,
            memory: 4 << 30,
            warnings: Vec::new(),
        })
    }

    async fn list(&self, agent: &str) -> Result<Vec<Container>> {
        self.begin(Op::List, agent, None).await?;
        let ours = |c: &Container| c.labels.get(labels::AGENT).is_some_and(|label| label == agent);
        Ok(self.containers().into_iter().filter(ours).collect())
    }

    async fn inspect(&self, id: &str) -> Result<Option<Container>> {
        self.begin(Op::Inspect, id, None).await?;
        Ok(self.container(id))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String> {
        self.begin(Op::Create, &spec.name, None).await?;
        let id = {
            let mut world = self.world();
            let Some(image) = world.images.get(&spec.image) else {
                return Err(RuntimeError::NoSuchImage(spec.image.clone()));
            };
            let image_id = image.id.clone();
            if world.id_of(&spec.name).is_some() {
                return Err(RuntimeError::NameTaken(spec.name.clone()));
            }
            world.created += 1;
            let id = format!("{:064x}", world.created);
            let container = Container {
                id: id.clone(),
                name: spec.name.clone(),
                labels: spec.labels.clone(),
                image: spec.image.clone(),
                image_id,
                state: State::Created { error: None },
                created_at: self.clock.now(),
                ip: None,
                log_path: None,
            };
            world.containers.insert(id.clone(), Entry { container, spec: spec.clone(), log: Vec::new() });
            id
        };
        self.answer(Op::Create, id)
    }

    async fn start(&self, id: &str) -> Result<()> {
        self.begin(Op::Start, id, None).await?;
        let (id, run, exit) = {
            let mut world = self.world();
            let Entry { container, spec, .. } = world.known(id)?;
            let (id, spec) = (container.id.clone(), spec.clone());
            if world.pid_of(&id).is_some() {
                drop(world);
                return self.answer(Op::Start, ());
            }
            let program = world.program(&spec);
            let failure = program.start_error.or_else(|| {
                let joined = spec.network.strip_prefix("container:")?;
                let owner = world.id_of(joined);
                let runs = owner.is_some_and(|owner| world.pid_of(&owner).is_some());
                (!runs).then(|| format!("cannot join network of a non running container: {joined}"))
            });
            world.started += 1;
            let pid = 1000 + world.started;
            let address = (spec.network == "default").then(|| {
                let [.., high, low] = world.created.to_be_bytes();
                IpAddr::V4(Ipv4Addr::new(172, 17, high, low))
            });
            let now = self.clock.now();
            let entry = world.known(&id)?;
            let Entry { container, .. } = entry;
            container.log_path = Some(PathBuf::from(format!("/var/lib/docker/containers/{id}/{id}-json.log")));
            if let Some(reason) = failure {
                match &mut container.state {
                    State::Exited(termination) => termination.error.clone_from(&reason),
                    state => *state = State::Created { error: Some(reason.clone()) },
                }
                return Err(RuntimeError::Refused {
                    operation: format!("start container `{}`", container.name),
                    reason,
                });
            }
            container.state = State::Running { pid, started_at: self.clock.now() };
            container.ip = address;
            entry.write(now, &program.output);
            world.tell(&id, EventKind::Started);
            (id, pid, program.exit)
        };
        match exit {
            Some((Duration::ZERO, code)) => {
                self.finish(&id, Some(run), code, false);
            }
            Some((delay, code)) => {
                let fake = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    fake.finish(&id, Some(run), code, false);
                });
            }
            None => {}
        }
        self.answer(Op::Start, ())
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<()> {
        self.begin(Op::Stop, id, Some(grace)).await?;
        self.signal(id, grace).await;
        self.answer(Op::Stop, ())
    }

    async fn remove(&self, id: &str) -> Result<()> {
        self.begin(Op::Remove, id, None).await?;
        let id = self.world().id_of(id);
        if let Some(id) = id {
            self.discard(&id);
        }
        self.answer(Op::Remove, ())
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        self.begin(Op::Image, reference, None).await?;
        Ok(self.world().images.get(reference).cloned())
    }

    async fn pull(&self, reference: &str, progress: &(dyn Fn(PullProgress) + Sync)) -> Result<()> {
        self.begin(Op::Pull, reference, None).await?;
        let (known, time) = {
            let world = self.world();
            (world.registry.contains(reference), world.pulls_take)
        };
        if !known {
            let reason = "manifest unknown".to_owned();
            return Err(RuntimeError::Pull { image: reference.to_owned(), reason });
        }
        let step = |layer: &str, status: &str, bytes| {
            progress(PullProgress { layer: layer.to_owned(), status: status.to_owned(), bytes });
        };
        step("", &format!("Pulling from {reference}"), None);
        step("0123456789ab", "Downloading", Some((512, 1024)));
        tokio::time::sleep(time).await;
        step("0123456789ab", "Pull complete", None);
        self.add_image(reference);
        self.answer(Op::Pull, ())
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        self.begin(Op::RemoveImage, reference, None).await?;
        {
            let mut world = self.world();
            if let Some(user) = world.containers.values().find(|entry| entry.spec.image == reference) {
                return Err(RuntimeError::Refused {
                    operation: format!("remove image `{reference}`"),
                    reason: format!("container {} is using it", user.container.name),
                });
            }
            world.images.remove(reference);
        }
        self.answer(Op::RemoveImage, ())
    }

    async fn exec(&self, id: &str, _command: &[String], timeout: Duration) -> Result<ExecOutput> {
        self.begin(Op::Exec, id, Some(timeout)).await?;
        let program = {
            let mut world = self.world();
            let Entry { container, spec, .. } = world.known(id)?;
            if !matches!(container.state, State::Running { .. }) {
                return Err(RuntimeError::Refused {
                    operation: format!("exec in container `{}`", container.name),
                    reason: "it is not running".to_owned(),
                });
            }
            let spec = spec.clone();
            world.program(&spec)
        };
        tokio::time::sleep(program.exec_takes.min(timeout)).await;
        if program.exec_takes > timeout {
            return Err(RuntimeError::TimedOut(timeout));
        }
        Ok(ExecOutput::new(program.exec.0, program.exec.1.as_bytes()))
    }

    /// The command writes the output that the program has, and then what it is told on stdin, until that ends.
    async fn open_exec(&self, id: &str, spec: &ExecSpec) -> Result<Session> {
        let text = self.exec(id, &spec.command, Duration::MAX).await?.output;
        let (input, echo) = tokio::io::duplex(1 << 10);
        let first = stream::iter([Ok(Output::Stdout(text.into_bytes()))]);
        let echo = spec.stdin.then_some(echo);
        let echoed = stream::unfold(echo, async |echo| {
            let (mut echo, mut part) = (echo?, vec![0; 1 << 10]);
            let length = tokio::io::AsyncReadExt::read(&mut echo, &mut part).await.unwrap_or(0);
            part.truncate(length);
            (length > 0).then_some((Ok(Output::Stdout(part)), Some(echo)))
        });
        Ok(Session { id: id.to_owned(), output: first.chain(echoed).boxed(), input: Box::new(input) })
    }

    async fn resize_exec(&self, exec: &str, width: u16, height: u16) -> Result<()> {
        self.begin(Op::Exec, &format!("{exec} {width}x{height}"), None).await
    }

    async fn exec_code(&self, exec: &str) -> Result<i64> {
        let mut world = self.world();
        let spec = world.known(exec)?.spec.clone();
        Ok(world.program(&spec).exec.0)
    }

    async fn logs(&self, id: &str, lines: usize) -> Result<String> {
        self.begin(Op::Logs, id, None).await?;
        let mut world = self.world();
        let log = &world.known(id)?.log;
        Ok(log[log.len().saturating_sub(lines)..].iter().map(|(_, line)| line.as_str()).collect())
    }

    fn read_log(&self, id: &str, query: LogQuery) -> BoxStream<'static, Result<Vec<u8>>> {
        let (fake, id) = (self.clone(), id.to_owned());
        let opened = async move {
            fake.begin(Op::Logs, &id, None).await?;
            let lines = fake.world().known(&id)?.log.len();
            let first = query.tail.map_or(0, |tail| lines.saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX)));
            let parts = stream::unfold(first, move |next| {
                let (fake, id) = (fake.clone(), id.clone());
                async move {
                    loop {
                        let (line, runs) = {
                            let mut world = fake.world();
                            let line = world.entry(&id)?.log.get(next).cloned();
                            (line, world.pid_of(&id).is_some())
                        };
                        match line {
                            Some((at, line)) => {
                                let shown = query.since.is_none_or(|since| at.as_second() >= since.as_second());
                                let stamp = if query.timestamps { format!("{at:.9} ") } else { String::new() };
                                let line = if shown { format!("{stamp}{line}") } else { String::new() };
                                return Some((Ok(line.into_bytes()), next + 1));
                            }
                            None if query.follow && runs => tokio::time::sleep(Duration::from_millis(10)).await,
                            None => return None,
                        }
                    }
                }
            });
            Ok(parts)
        };
        stream::once(opened).try_flatten().boxed()
    }

    fn events(&self, agent: &str) -> BoxStream<'static, Result<Event>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut world = self.world();
        world.calls.push(Call { op: Op::Events, target: agent.to_owned(), limit: None, at: self.clock.now() });
        let failure = world.failures.get_mut(&Op::Events).and_then(VecDeque::pop_front);
        match failure.or_else(|| world.away.then(unreachable_engine)) {
            Some(error) => {
                // The receiver is alive, just above.
                let _ = sender.send(Err(error));
            }
            None => world.subscribers.push(Subscriber { agent: agent.to_owned(), sender }),
        }
        stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver))).boxed()
    }
}

fn unreachable_engine() -> RuntimeError {
    RuntimeError::Unreachable("fake: connection refused".to_owned())
}

/// Facts that depend on the reference alone.
fn fake_image(reference: &str) -> Image {
    let digest = reference.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3) // FNV-1a
    });
    Image { id: format!("sha256:{digest:064x}"), size: 1 << 20, digests: Vec::new(), user: String::new() }
}
