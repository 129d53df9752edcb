//! A machine with systemd as PID 1, and how to ask it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// For a command on the machine: everything that waits for a control plane takes less.
const LIMIT_SECONDS: u32 = 120;

/// Names this test, inside of the sandbox that its machine is made in.
const INSIDE: &str = "PLINTH_SYSTEMD_INSIDE";

/// Runs `body` in a sandbox, as the ignored test `name`, which re-executes itself for that.
pub(crate) fn in_sandbox(name: &str, body: fn()) {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        return body();
    }
    let status = script("sandbox.sh")
        .arg("--")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(INSIDE, name)
        .status()
        .unwrap();
    assert!(status.success(), "{name}: {status}, see above");
}

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name))
}

/// A container with systemd, Docker and plinth. It goes with the sandbox.
pub(crate) struct Machine {
    name: &'static str,
}

/// A container of the control plane: what all of it stays equal for as long as nobody restarts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    id: String,
    state: String,
    pid: String,
    started_at: String,
}

impl Container {
    pub(crate) fn is_running(&self) -> bool {
        self.state == "running"
    }
}

impl Machine {
    /// Boots it, with plinth where an administrator would have installed it.
    pub(crate) fn boot(name: &'static str) -> Self {
        let plinth = std::env::var("PLINTH_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_plinth").to_owned());
        systemd_machine(&["start", name, "--volume", &format!("{plinth}:/usr/local/bin/plinth:ro")]);
        Self { name }
    }

    /// Shuts it down and boots it again.
    pub(crate) fn reboot(&self) {
        systemd_machine(&["reboot", self.name]);
    }

    /// Runs a line of shell.
    pub(crate) fn attempt(&self, line: &str) -> Output {
        let limit = LIMIT_SECONDS.to_string();
        Command::new("docker")
            .args(["exec", "--env", "CI=1", self.name, "timeout", &limit, "bash", "-ec", line])
            .output()
            .unwrap()
    }

    /// What a line of shell writes, which succeeds.
    #[track_caller]
    pub(crate) fn run(&self, line: &str) -> String {
        let output = self.attempt(line);
        let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(output.status.success(), "{line}: {}\n{stdout}\n{stderr}", output.status);
        stdout.trim().to_owned()
    }

    /// A property of a unit.
    pub(crate) fn property(&self, unit: &str, property: &str) -> String {
        self.run(&format!("systemctl show --property={property} --value {unit}"))
    }

    /// What plinth says with `-o json`, whatever its exit code.
    #[track_caller]
    pub(crate) fn plinth(&self, arguments: &str) -> Value {
        let output = self.attempt(&format!("plinth {arguments} -o json"));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("plinth {arguments}: {error}: {output:?}"))
    }

    /// The containers that plinth made, running or not, by component.
    pub(crate) fn containers(&self) -> BTreeMap<String, Container> {
        let format = r#"{{index .Config.Labels "io.kubernetes.container.name"}} {{.Id}} {{.State.Status}} {{.State.Pid}} {{.State.StartedAt}}"#;
        let list = "docker ps --all --quiet --filter label=plinth.dev/agent";
        let lines = self.run(&format!("{list} | xargs --no-run-if-empty docker inspect --format '{format}'"));
        let container = |line: &str| {
            let [name, id, state, pid, started_at] =
                line.split(' ').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap();
            (name, Container { id, state, pid, started_at })
        };
        lines.lines().map(container).collect()
    }

    /// What restart count the agent reports of each component, once it has adopted all four.
    pub(crate) fn restarts(&self) -> Vec<(String, u64)> {
        until("an agent with four containers", || {
            let status = self.plinth("status");
            let pods = status["agent"]["pods"].as_array()?;
            let containers = pods.iter().flat_map(|pod| pod["containers"].as_array().into_iter().flatten());
            let adopted: Vec<_> = containers
                .filter(|container| container["containerId"].is_string())
                .map(|container| {
                    (container["name"].as_str().unwrap().to_owned(), container["restartCount"].as_u64().unwrap())
                })
                .collect();
            (adopted.len() == 4).then_some(adopted)
        })
    }

    /// Waits until all four components say that they are healthy. Only looks: a dry run repairs nothing.
    pub(crate) fn await_health(&self) {
        until("a healthy control plane", || {
            self.plinth("init --dry-run")["plan"]["steps"].as_array()?.is_empty().then_some(())
        });
    }

    /// Seconds on the kernel's clock, which systemd's `…Monotonic` properties show in microseconds.
    pub(crate) fn seconds(&self) -> f64 {
        let uptime = self.run("cat /proc/uptime");
        uptime.split(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            let account = "plinth status; docker ps --all; journalctl --no-pager --lines 60";
            eprintln!("{}", String::from_utf8_lossy(&self.attempt(account).stdout));
        }
    }
}

fn systemd_machine(arguments: &[&str]) {
    let status = script("systemd-machine.sh").args(arguments).status().unwrap();
    assert!(status.success(), "systemd-machine.sh {arguments:?}: {status}");
}

/// Repeats `attempt` until it gives something.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(u64::from(LIMIT_SECONDS));
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {LIMIT_SECONDS} s for {what}");
        thread::sleep(Duration::from_millis(100));
    }
}
