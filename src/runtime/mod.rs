//! The container runtime, as little of it as the agent needs.
//!
//! # Contract
//! Every implementation passes `tests/contract.rs`: Docker for real, the fake always.
//! - `start` of a running, `stop` of a dead and `remove` of an absent container succeed.
//! - A container never starts by itself and is never restarted by the runtime.
//! - `stop` returns when the container is no longer running; `remove` when its name is free.
//! - Events carry no state: they say "look at this container again". They may be lost; nobody depends on them alone.
//! - Only containers whose `plinth.dev/agent` label equals the given id are ever listed or reported.

pub mod docker;
pub mod fake;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tokio::io::AsyncWrite;

/// Labels on our containers. The `io.kubernetes.*` ones are the kubelet's; ownership is [`labels::AGENT`] alone.
pub mod labels {
    /// Value: the id of the agent (of the root) that made the container. Nothing without it is ever touched.
    pub const AGENT: &str = "plinth.dev/agent";
    /// Value: see `agent::pod`; a running container whose hash is the wanted one is left alone.
    pub const SPEC_HASH: &str = "plinth.dev/spec-hash";
    /// Value: how many times this container of this pod was started before, decimal.
    pub const RESTART_COUNT: &str = "plinth.dev/restart-count";
    /// Name of the static pod, with the node's name appended as the kubelet does.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// Namespace of the pod.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// UID of the pod.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// What kind of source the pod comes from: `file` or `http`.
    pub const SOURCE: &str = "plinth.dev/source";
    /// Name of the container within the pod, or `POD` for the sandbox.
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
}

/// What went wrong below the trait.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The engine does not answer: not running, no permission, connection lost. Worth retrying.
    #[error("the container runtime does not answer: {0}")]
    Unreachable(String),
    /// There is no such container (or exec).
    #[error("no such container `{0}`")]
    NoSuchContainer(String),
    /// That is no image reference.
    #[error("`{0}` is not an image reference")]
    InvalidImage(String),
    /// There is no such image on this host.
    #[error("image `{0}` is not present")]
    NoSuchImage(String),
    /// The registry refused or could not be reached.
    #[error("cannot pull image `{image}`: {reason}")]
    Pull {
        /// The reference asked for.
        image: String,
        /// The engine's words.
        reason: String,
    },
    /// Another container has the name.
    #[error("the container name `{0}` is taken")]
    NameTaken(String),
    /// The engine understood and refused or failed.
    #[error("cannot {operation}: {reason}")]
    Refused {
        /// What was asked: "create container `x`", …
        operation: String,
        /// The engine's words.
        reason: String,
    },
    /// An exec did not end in time. The process inside may live on (the engine cannot end it).
    #[error("no answer within {}s", .0.as_secs_f32())]
    TimedOut(Duration),
}

impl RuntimeError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// The operations the agent, the preflight checks and `reset` use.
pub trait Runtime: Send + Sync + 'static {
    /// Facts about the engine; also the cheapest way to learn whether it answers.
    fn info(&self) -> impl Future<Output = Result<RuntimeInfo>> + Send;
    /// All containers of `agent`, in any state, fully inspected, in no particular order.
    fn list(&self, agent: &str) -> impl Future<Output = Result<Vec<Container>>> + Send;
    /// One container, by id or name; `None` when there is none.
    fn inspect(&self, id: &str) -> impl Future<Output = Result<Option<Container>>> + Send;
    /// Creates a container and returns its id. Does not start it, does not pull.
    fn create(&self, spec: &ContainerSpec) -> impl Future<Output = Result<String>> + Send;
    /// Starts a created or exited container.
    fn start(&self, id: &str) -> impl Future<Output = Result<()>> + Send;
    /// Sends the stop signal, and SIGKILL after `grace`; returns when it is no longer running.
    fn stop(&self, id: &str, grace: Duration) -> impl Future<Output = Result<()>> + Send;
    /// Removes a container with its anonymous volumes; a running one is killed first.
    fn remove(&self, id: &str) -> impl Future<Output = Result<()>> + Send;
    /// The image's facts, or `None` when it is not on this host.
    fn image(&self, reference: &str) -> impl Future<Output = Result<Option<Image>>> + Send;
    /// Pulls an image, reporting progress as it comes.
    fn pull(
        &self,
        reference: &str,
        progress: &(dyn Fn(PullProgress) + Sync),
    ) -> impl Future<Output = Result<()>> + Send;
    /// Removes an image's name (and data when nothing else uses it); absent is done.
    fn remove_image(&self, reference: &str) -> impl Future<Output = Result<()>> + Send;
    /// Runs `command` inside a running container and waits for its end.
    fn exec(&self, id: &str, command: &[String], timeout: Duration) -> impl Future<Output = Result<ExecOutput>> + Send;
    /// Starts a command inside a running container, for somebody who talks with it. It goes on when the session is
    /// dropped, without stdin.
    fn open_exec(&self, id: &str, spec: &ExecSpec) -> impl Future<Output = Result<Session>> + Send;
    /// Tells the command of the session `exec` the size of its terminal, in columns and lines.
    fn resize_exec(&self, exec: &str, width: u16, height: u16) -> impl Future<Output = Result<()>> + Send;
    /// Waits for the end of the command of the session `exec`; its exit code.
    fn exec_code(&self, exec: &str) -> impl Future<Output = Result<i64>> + Send;
    /// The last `lines` lines a container wrote, stdout and stderr interleaved as written.
    fn logs(&self, id: &str, lines: usize) -> impl Future<Output = Result<String>> + Send;
    /// What a container writes to stdout and stderr, interleaved as written: what there is, across rotations, and what
    /// comes if that is asked for. Ends when there is no more, and when a container that is followed ends.
    fn read_log(&self, id: &str, query: LogQuery) -> BoxStream<'static, Result<Vec<u8>>>;
    /// Changes of `agent`'s containers, from now on. Ends with an error when the connection is lost.
    fn events(&self, agent: &str) -> BoxStream<'static, Result<Event>>;
}

/// Which part of a log is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// The last so many lines of what there is; all of them when `None`.
    pub tail: Option<u64>,
    /// Only lines written since then; counted in whole seconds, rounded down.
    pub since: Option<Timestamp>,
    /// Each line begins with the time it was written, RFC 3339 in nanoseconds, and a blank.
    pub timestamps: bool,
    /// Wait for more until the container ends.
    pub follow: bool,
}

/// Facts about the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// "docker".
    pub name: &'static str,
    /// Engine version, e.g. `20.10.24`.
    pub version: String,
    /// API version it speaks, e.g. `1.41`.
    pub api_version: String,
    /// Storage driver, e.g. `overlay2`.
    pub storage_driver: String,
    /// Where it keeps images and containers, e.g. `/var/lib/docker`.
    pub data_root: PathBuf,
    /// Who sets up cgroups.
    pub cgroup_driver: CgroupDriver,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Default log driver, e.g. `json-file`.
    pub logging_driver: String,
    /// The engine runs without root.
    pub rootless: bool,
    /// Number of usable CPUs.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Warnings the engine itself gives.
    pub warnings: Vec<String>,
}

/// Who sets up cgroups for the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The engine writes to the cgroup file system.
    Cgroupfs,
    /// The engine asks systemd for scopes.
    Systemd,
    /// No cgroup management (rootless on cgroup v1).
    None,
}

/// A container as the runtime sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Full id.
    pub id: String,
    /// Name without leading slash.
    pub name: String,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// Image reference it was created with.
    pub image: String,
    /// Image id (`sha256:…`).
    pub image_id: String,
    /// What it is doing.
    pub state: State,
    /// When it was created.
    pub created_at: Timestamp,
    /// Its address on the default bridge, when it has one.
    pub ip: Option<IpAddr>,
    /// The json-file log on the host, when that log driver is used; known from the first start on, also when that failed.
    pub log_path: Option<PathBuf>,
}

#[cfg(test)]
impl Container {
    /// With these labels, and nothing that is not said.
    pub(crate) fn bare(id: impl Into<String>, labels: &[(&str, &str)], state: State, created_at: Timestamp) -> Self {
        Self {
            id: id.into(),
            name: String::new(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            image: String::new(),
            image_id: String::new(),
            state,
            created_at,
            ip: None,
            log_path: None,
        }
    }
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Never started, or its start failed (then with the engine's words).
    Created {
        /// Why the start failed, if it did.
        error: Option<String>,
    },
    /// Its process runs.
    Running {
        /// Process id on the host.
        pid: i32,
        /// Since when.
        started_at: Timestamp,
    },
    /// Its process has ended.
    Exited(Termination),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Termination {
    /// Exit code; 128 + signal for a killed process.
    pub exit_code: i64,
    /// The engine saw the kernel kill it for lack of memory. `false` proves nothing: with cgroup v1 on recent kernels
    /// Docker is not told, and only exit code 137 remains.
    pub oom_killed: bool,
    /// What the engine has to say about it; mostly empty.
    pub error: String,
    /// When it had started.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// An image on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `sha256:…`.
    pub id: String,
    /// Size in bytes.
    pub size: u64,
    /// `repository@sha256:…` names; empty for an image that was built or imported here.
    pub digests: Vec<String>,
    /// The user it runs as unless told otherwise; empty for root.
    pub user: String,
}

/// One step of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// Layer id, empty for messages about the whole image.
    pub layer: String,
    /// "Downloading", "Extracting", …
    pub status: String,
    /// Bytes done and in total, where known.
    pub bytes: Option<(u64, u64)>,
}

/// How an exec ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code of the command.
    pub exit_code: i64,
    /// stdout and stderr, at most 10 KiB (kubelet: `maxRespBodyLength` of exec probes).
    pub output: String,
}

impl ExecOutput {
    /// Bytes of output that are kept.
    pub const LIMIT: usize = 10 << 10;

    /// Keeps as much of the output as is ever kept; bytes that are not text become `U+FFFD`.
    pub fn new(exit_code: i64, output: &[u8]) -> Self {
        let kept = &output[..output.len().min(Self::LIMIT)];
        Self { exit_code, output: String::from_utf8_lossy(kept).into_owned() }
    }
}

/// A command that somebody talks with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is a stream, or not
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// It has a stdin.
    pub stdin: bool,
    /// Its stdout is wanted.
    pub stdout: bool,
    /// Its stderr is wanted.
    pub stderr: bool,
    /// It has a terminal, where both outputs are one.
    pub tty: bool,
}

/// A command that runs.
pub struct Session {
    /// Names it for [`Runtime::resize_exec`] and [`Runtime::exec_code`].
    pub id: String,
    /// What it writes; ends with it.
    pub output: BoxStream<'static, Result<Output>>,
    /// Its stdin, which ends by shutdown.
    pub input: Box<dyn AsyncWrite + Send + Unpin>,
}

/// A part of what a command writes. With a terminal everything is stdout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// To stdout.
    Stdout(Vec<u8>),
    /// To stderr.
    Stderr(Vec<u8>),
}

/// "Look at this container again."
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Full id.
    pub container: String,
    /// UID of its pod, from the labels.
    pub pod_uid: String,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Its process started.
    Started,
    /// Its process ended.
    Died,
    /// It was removed.
    Removed,
    /// Anything else worth another look.
    Other,
}

/// Everything needed to create a container, in the runtime's terms: the pod is already translated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is a switch of the engine's
pub struct ContainerSpec {
    /// Unique on the host, `k8s_<container>_<pod>_<namespace>_<uid>_<attempt>`.
    pub name: String,
    /// Image reference.
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub entrypoint: Vec<String>,
    /// Replaces the image's command when not empty.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// Labels, [`labels::AGENT`] among them.
    pub labels: BTreeMap<String, String>,
    /// Bind mounts and tmpfs.
    pub mounts: Vec<Mount>,
    /// `host`, `none`, `default` (Docker's bridge) or `container:<id>`.
    pub network: String,
    /// `host`, `shareable`, `container:<id>`; empty for the engine's default.
    pub ipc: String,
    /// `host`, `container:<id>`; empty for its own.
    pub pid: String,
    /// `host`, or empty for its own.
    pub uts: String,
    /// Host name inside; empty for the engine's default. Not allowed with a joined network.
    pub hostname: String,
    /// Published ports; only on a container that owns its network namespace.
    pub ports: Vec<PortBinding>,
    /// `uid`, `uid:gid` or a name; `None` for the image's.
    pub user: Option<String>,
    /// Supplemental groups.
    pub groups: Vec<String>,
    /// All capabilities and devices.
    pub privileged: bool,
    /// Root file system is read-only.
    pub read_only: bool,
    /// Capabilities on top of the engine's default set.
    pub capabilities_add: Vec<String>,
    /// Capabilities taken from the engine's default set.
    pub capabilities_drop: Vec<String>,
    /// The engine's `--security-opt` values (seccomp, apparmor, no-new-privileges).
    pub security_options: Vec<String>,
    /// Kernel parameters of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// How long the engine waits between the stop signal and SIGKILL when it stops the container by itself, because
    /// it is going down; whole seconds, `None` for its default. Stops that we ask for say their own.
    pub stop_timeout: Option<Duration>,
    /// The signal that asks it to end, e.g. `SIGUSR1`; `None` for the image's or SIGTERM.
    pub stop_signal: Option<String>,
    /// Limits.
    pub resources: Resources,
    /// `oom_score_adj`, -1000 to 1000; `None` leaves it alone.
    pub oom_score_adj: Option<i64>,
    /// stdin stays open.
    pub stdin: bool,
    /// stdin closes after the first attach ends.
    pub stdin_once: bool,
    /// A terminal is allocated.
    pub tty: bool,
    /// Log rotation: bytes per file.
    pub log_max_size: u64,
    /// Log rotation: number of files.
    pub log_max_files: u32,
}

/// Limits of a container, in the engine's units; zero means unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative weight, 2 to 262144.
    pub cpu_shares: i64,
    /// Microseconds of CPU per period.
    pub cpu_quota: i64,
    /// Microseconds.
    pub cpu_period: i64,
    /// Bytes; swap is not added to it.
    pub memory: i64,
}

/// A mount of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: String,
    /// Not writable from inside.
    pub read_only: bool,
    /// The mounts below it, when it is read-only.
    pub below: Below,
    /// How mounts made later travel.
    pub propagation: Propagation,
}

/// What a read-only mount means for the mounts below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Below {
    /// They are left as they are.
    #[default]
    Writable,
    /// They are read-only where engine and kernel can do that (Docker 25, Linux 5.12).
    ReadOnlyIfPossible,
    /// They are read-only, or the container is not made.
    ReadOnly,
}

/// How mounts made after the container's start travel between it and the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// From the host to the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortBinding {
    /// Port inside.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Address on the host; `None` for all.
    pub host_ip: Option<IpAddr>,
    /// Port on the host.
    pub host_port: u16,
}
