//! A runtime to try things on, with programs whose behaviour a test can choose, and nothing left behind.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use plinth::clock::Clock;
use plinth::runtime::docker::Docker;
use plinth::runtime::fake::{FakeRuntime, Program};
use plinth::runtime::{ContainerSpec, Runtime, State, labels};
use tokio::sync::OnceCell;

/// Image with Debian's static busybox and its applets, made on demand and kept for the next run.
pub const BUSYBOX: &str = "plinth-test/busybox:1";

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// Runs until told to stop, and obeys at once with exit code 0.
    Run,
    /// Ignores the stop signal.
    IgnoreStop,
    /// Ends at once with exit code 3.
    Exit3,
    /// Writes the lines `one`, `two`, `three` and runs on.
    Write,
    /// Cannot be started: there is no such program.
    NotExist,
}

/// What to run inside a container, with what to expect of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exec {
    /// Writes `hello` and fails with exit code 7.
    Fail7,
    /// Writes 20,000 times `x` and succeeds.
    WriteMuch,
    /// Writes `hello`, then what it reads, and fails with exit code 7.
    Echo,
    /// Takes a minute.
    Hang,
}

/// A runtime, and an agent id that nobody else uses. All containers of that id go away when it is dropped.
pub trait Lab {
    /// The runtime under test.
    type Runtime: Runtime;
    /// The runtime under test.
    fn runtime(&self) -> &Self::Runtime;
    /// The agent id that is ours alone.
    fn agent(&self) -> &str;
    /// Sets image and program.
    fn program(&self, spec: &mut ContainerSpec, does: Does);
    /// The command that does this in a container that does [`Does::Run`].
    fn exec(&self, exec: Exec) -> Vec<String>;
    /// SIGKILL from outside, not through the runtime.
    fn sigkill(&self, id: &str, pid: i32);
    /// Gives [`BUSYBOX`] a second name.
    fn tag(&self, reference: &str);

    /// A container of ours on the host's network; `name` needs to be unique within the test only.
    fn spec(&self, name: &str, does: Does) -> ContainerSpec {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut spec = ContainerSpec {
            name: format!("{}-{name}", self.agent()),
            network: "host".to_owned(),
            labels: BTreeMap::from([
                label(labels::AGENT, self.agent()),
                label(labels::POD_UID, &format!("uid-of-{name}")),
                label(labels::CONTAINER_NAME, name),
            ]),
            log_max_size: 10 << 20,
            log_max_files: 5,
            ..ContainerSpec::default()
        };
        self.program(&mut spec, does);
        spec
    }

    /// Creates and starts a container; returns its id.
    async fn run(&self, name: &str, does: Does) -> String {
        let id = self.runtime().create(&self.spec(name, does)).await.unwrap();
        self.runtime().start(&id).await.unwrap();
        id
    }

    /// The state of a container that is there.
    async fn state(&self, id: &str) -> State {
        self.runtime().inspect(id).await.unwrap().unwrap_or_else(|| panic!("no container `{id}`")).state
    }

    /// The pid of a container that runs.
    async fn pid(&self, id: &str) -> i32 {
        match self.state(id).await {
            State::Running { pid, .. } => pid,
            other => panic!("`{id}` does not run: {other:?}"),
        }
    }

    /// Waits until a container has ended.
    async fn end_of(&self, id: &str) -> plinth::runtime::Termination {
        let over = async {
            loop {
                if let State::Exited(termination) = self.state(id).await {
                    return termination;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), over).await.unwrap_or_else(|_| panic!("`{id}` does not end"))
    }
}

fn unique_agent() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("contract-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The in-memory runtime.
pub struct FakeLab {
    fake: FakeRuntime,
    agent: String,
}

impl FakeLab {
    /// Always there.
    pub async fn open() -> Option<Self> {
        let fake = FakeRuntime::new(Clock::system());
        fake.add_image(BUSYBOX);
        Some(Self { fake, agent: unique_agent() })
    }
}

impl Lab for FakeLab {
    type Runtime = FakeRuntime;

    fn runtime(&self) -> &FakeRuntime {
        &self.fake
    }

    fn agent(&self) -> &str {
        &self.agent
    }

    fn program(&self, spec: &mut ContainerSpec, does: Does) {
        BUSYBOX.clone_into(&mut spec.image);
        let program = match does {
            Does::Run => Program::default(),
            Does::IgnoreStop => Program::default().ignores_stop(),
            Does::Exit3 => Program::default().exits_after(Duration::ZERO, 3),
            Does::Write => Program::default().writes("one\ntwo\nthree\n"),
            Does::NotExist => Program::default().fails_to_start("exec: \"/none\": no such file or directory"),
        };
        self.fake.set_program(&spec.labels[labels::CONTAINER_NAME], program);
    }

    fn exec(&self, exec: Exec) -> Vec<String> {
        let program = match exec {
            Exec::Fail7 | Exec::Echo => Program::default().answers_exec(7, "hello\n"),
            Exec::WriteMuch => Program::default().answers_exec(0, "x".repeat(20_000)),
            Exec::Hang => Program::default().exec_takes(Duration::from_mins(1)),
        };
        self.fake.set_program("exec", program);
        Vec::new()
    }

    fn sigkill(&self, id: &str, _pid: i32) {
        self.fake.kill(id, 137);
    }

    fn tag(&self, reference: &str) {
        self.fake.add_image(reference);
    }
}

/// The Docker Engine of this machine (`DOCKER_HOST` or the default).
pub struct DockerLab {
    docker: Docker,
    agent: String,
}

impl DockerLab {
    /// `None` when no engine answers; then it says so, past libtest's capture.
    ///
    /// # Panics
    /// When no engine answers and `PLINTH_REQUIRE_DOCKER=1`.
    pub async fn open() -> Option<Self> {
        static IMPORT: OnceCell<()> = OnceCell::const_new();
        let docker = Docker::connect(std::env::var("DOCKER_HOST").ok().as_deref()).unwrap();
        if let Err(error) = docker.info().await {
            let required = std::env::var("PLINTH_REQUIRE_DOCKER").is_ok_and(|value| value == "1");
            assert!(!required, "PLINTH_REQUIRE_DOCKER=1, but {error}");
            let _ = writeln!(std::io::stderr(), "skipped: no docker ({error})");
            return None;
        }
        IMPORT.get_or_init(|| import_busybox(&docker)).await;
        Some(Self { docker, agent: unique_agent() })
    }
}

async fn import_busybox(docker: &Docker) {
    if docker.image(BUSYBOX).await.unwrap().is_some() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("bin");
    for directory in ["bin", "tmp", "etc"] {
        std::fs::create_dir(root.path().join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", bin.join("busybox")).expect("a static busybox (Debian: busybox-static)");
    let installed = Command::new(bin.join("busybox")).args(["--install", "-s"]).arg(&bin).status().unwrap();
    assert!(installed.success());
    // Links made outside point outside.
    for entry in std::fs::read_dir(&bin).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/bin/busybox", &path).unwrap();
        }
    }
    let mut tar =
        Command::new("tar").arg("-C").arg(root.path()).args(["-c", "."]).stdout(Stdio::piped()).spawn().unwrap();
    let layers = tar.stdout.take().unwrap();
    let import = Command::new("docker").args(["-H", docker.host(), "import", "-", BUSYBOX]).stdin(layers).output();
    let import = import.unwrap();
    assert!(import.status.success(), "docker import: {}", String::from_utf8_lossy(&import.stderr));
    assert!(tar.wait().unwrap().success());
}

impl DockerLab {
    /// Runs the Docker CLI against the engine under test; its output, or its complaint.
    fn cli(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("docker").args(["-H", self.docker.host()]).args(arguments).output();
        let output = output.map_err(|error| format!("docker: {error}"))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(format!("docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
        }
    }
}

impl Drop for DockerLab {
    fn drop(&mut self) {
        let ours = format!("label={}={}", labels::AGENT, self.agent);
        let cleaned = self.cli(&["ps", "--all", "--quiet", "--filter", &ours]).and_then(|left| {
            let left: Vec<&str> = left.lines().collect();
            if left.is_empty() {
                Ok(String::new())
            } else {
                self.cli(&[&["rm", "--force", "--volumes"], &left[..]].concat())
            }
        });
        // A second panic would abort and hide the first.
        assert!(cleaned.is_ok() || std::thread::panicking(), "{cleaned:?}");
    }
}

impl Lab for DockerLab {
    type Runtime = Docker;

    fn runtime(&self) -> &Docker {
        &self.docker
    }

    fn agent(&self) -> &str {
        &self.agent
    }

    fn program(&self, spec: &mut ContainerSpec, does: Does) {
        BUSYBOX.clone_into(&mut spec.image);
        let script = match does {
            // The first process of a pid namespace gets only signals it asked for.
            Does::Run => "trap 'exit 0' TERM; while :; do sleep 60 & wait; done",
            Does::IgnoreStop => "trap '' TERM; while :; do sleep 60; done",
            // Docker dates the start after the end where the process is quicker than its own bookkeeping.
            Does::Exit3 => "sleep 0.2; exit 3",
            Does::Write => "echo one; echo two >&2; echo three; exec sleep 60",
            Does::NotExist => {
                spec.entrypoint = vec!["/none".to_owned()];
                return;
            }
        };
        spec.entrypoint = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    }

    fn exec(&self, exec: Exec) -> Vec<String> {
        let script = match exec {
            Exec::Fail7 => "echo hello; exit 7",
            Exec::WriteMuch => "head -c 20000 /dev/zero | tr '\\0' x",
            Exec::Echo => "echo hello; cat; exit 7",
            Exec::Hang => "sleep 60",
        };
        ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
    }

    fn sigkill(&self, _id: &str, pid: i32) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    fn tag(&self, reference: &str) {
        self.cli(&["tag", BUSYBOX, reference]).unwrap();
    }
}
