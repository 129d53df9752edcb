//! A host with an engine and an agent that runs static pods from a directory, and nothing else of Kubernetes; asked
//! from outside, through the engine and the agent's socket.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::command;
use crate::history::{History, Life};
use crate::host::{self, docker, service, shell};

/// Name of the node: a host's may have capitals, a node's has none.
pub(crate) const NAME: &str = "node-1";

/// For everything that is to happen some time: the computer may be busy.
pub(crate) const LIMIT: Duration = Duration::from_mins(2);

/// A workload with a shell, and the same under another name.
pub(crate) const IMAGE: &str = "plinth-test/busybox:1";
pub(crate) const OTHER_IMAGE: &str = "plinth-test/busybox:2";

/// Scripts: runs until it is told to end; does not care about being told.
pub(crate) const STAY: &str = "trap 'exit 0' TERM; sleep 9999 & wait";
pub(crate) const IGNORE: &str = "trap '' TERM; while :; do sleep 9999; done";

/// The wait of a container that crashes again and again, in seconds.
pub(crate) const CRASH_BACK_OFF: f64 = 3.0;

/// Settings of the agent: waits are shorter than usual.
const CONFIG: (&str, &str) = (
    "/opt/work/kubelet.yaml",
    "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: manifests
fileCheckFrequency: 5s
httpCheckFrequency: 200ms
crashLoopBackOff: {maxContainerRestartPeriod: 3s}
",
);

const MANIFESTS: &str = "/opt/work/manifests";
const SOCKET: &str = "/run/plinth/agent.sock";
const LOG: &str = "/var/log/plinth/agent.log";

static NODE: LazyLock<Node> = LazyLock::new(Node::start);

/// The node of this machine; the first who asks starts it.
pub(crate) fn node() -> &'static Node {
    &NODE
}

/// A node.
pub(crate) struct Node {
    history: History,
}

#[allow(clippy::unused_self)] // who asks it knows that it runs
impl Node {
    fn start() -> Self {
        docker(&format!("tag {IMAGE} {OTHER_IMAGE}"));
        shell(&format!("hostname Node-1; mkdir -p {MANIFESTS} /var/log/plinth")).ok();
        fs::write(CONFIG.0, CONFIG.1).unwrap();
        let node = Self { history: History::begin() };
        node.start_agent();
        node
    }

    /// Starts the agent, and waits until it knows its engine.
    pub(crate) fn start_agent(&self) {
        let command = format!("{} agent --config {} --hostname-override Node-1", host::binary(), CONFIG.0);
        service(&command, LOG);
        eventually(|| match self.get("/healthz") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// Changes settings for the agents that are started from now on: a field's line, or a new one.
    pub(crate) fn configure(&self, field: &str, value: &str) {
        let text = fs::read_to_string(CONFIG.0).unwrap();
        let mut lines: Vec<_> = text.lines().filter(|line| !line.starts_with(&format!("{field}:"))).collect();
        let line = format!("{field}: {value}\n");
        lines.push(&line);
        fs::write(CONFIG.0, lines.join("\n")).unwrap();
    }

    /// The agent's process.
    pub(crate) fn agent(&self) -> i32 {
        i32::try_from(self.status()["pid"].as_i64().unwrap()).unwrap()
    }

    /// Asks the agent's socket: code and body.
    fn get(&self, path: &str) -> Result<(u16, String), String> {
        let mut stream = UnixStream::connect(SOCKET).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut answer = String::new();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: agent\r\n\r\n").map_err(|error| error.to_string())?;
        stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no code")?;
        Ok((code, body.to_owned()))
    }

    /// The answer to `/status`.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").unwrap().1).unwrap()
    }

    /// All pods as `/pods` shows them.
    pub(crate) fn pods(&self) -> Vec<Value> {
        let mut list: Value = serde_json::from_str(&self.get("/pods").unwrap().1).unwrap();
        list["items"].as_array_mut().map(std::mem::take).unwrap()
    }

    /// One of them, if it is there.
    pub(crate) fn pod(&self, name: &str) -> Option<Value> {
        let full = format!("{name}-{NAME}");
        self.pods().into_iter().find(|pod| pod["metadata"]["name"] == full.as_str())
    }

    /// The agent's containers in the engine, in a format of `docker ps`.
    pub(crate) fn containers(&self, format: &str) -> Vec<String> {
        let mut docker = Command::new("docker");
        docker.args(["ps", "--all", "--no-trunc", "--filter=label=plinth.dev/agent", "--format", format]);
        command::run(&mut docker, LIMIT).ok().stdout.lines().map(str::to_owned).collect()
    }

    /// Why a manifest is not run as it is, if `/status` says so.
    pub(crate) fn rejection(&self, file: &str) -> Option<String> {
        let path = self.path(file);
        let status = self.status();
        let rejected = status["sources"].as_array().unwrap().iter().flat_map(|one| one["rejected"].as_array().unwrap());
        let mut found = rejected.filter(|one| Path::new(one["file"].as_str().unwrap()) == path);
        found.next().map(|one| one["reason"].as_str().unwrap().to_owned())
    }

    /// Where a manifest is.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        Path::new(MANIFESTS).join(file)
    }

    /// Writes a manifest as careful people do: elsewhere, and then renamed.
    pub(crate) fn put(&self, file: &str, text: &str) {
        let written = self.path(&format!(".{file}.new"));
        fs::write(&written, text).unwrap();
        fs::rename(written, self.path(file)).unwrap();
    }

    /// Takes a manifest away.
    pub(crate) fn take(&self, file: &str) {
        fs::remove_file(self.path(file)).unwrap();
    }

    /// What happened to the containers of a pod, oldest first.
    pub(crate) fn lives(&self, pod: &str) -> Vec<Life> {
        self.history.of(pod)
    }

    /// The running container of a pod.
    pub(crate) fn running(&self, pod: &str, container: &str) -> Option<Life> {
        self.lives(pod).into_iter().rfind(|life| life.container == container && life.runs())
    }

    /// Waits until a container runs that `fits`.
    #[track_caller]
    pub(crate) fn until_runs(&self, pod: &str, container: &str, fits: impl Fn(&Life) -> bool) -> Life {
        eventually(|| {
            let found = self.running(pod, container).filter(&fits);
            found.ok_or_else(|| format!("{container} of {pod} does not run (like that): {:#?}", self.lives(pod)))
        })
    }

    /// Waits until a start of a container has ended, and returns it.
    #[track_caller]
    pub(crate) fn until_ended(&self, pod: &str, container: &str, attempt: u32) -> Life {
        eventually(|| {
            let mut lives = self.lives(pod).into_iter();
            let found =
                lives.find(|life| life.container == container && life.attempt == attempt && life.died.is_some());
            found.ok_or_else(|| format!("{container}/{attempt} of {pod} does not end"))
        })
    }

    /// Waits until nothing of a pod is left in the engine.
    #[track_caller]
    pub(crate) fn until_gone(&self, pod: &str) -> Vec<Life> {
        eventually(|| {
            let lives = self.lives(pod);
            let left: Vec<_> = lives.iter().filter(|life| life.removed.is_none()).collect();
            if left.is_empty() { Ok(lives) } else { Err(format!("there still is {left:#?}")) }
        })
    }

    /// Waits until `/pods` shows of a pod what is looked for.
    #[track_caller]
    pub(crate) fn until_shown<T>(&self, pod: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        eventually(|| {
            let shown = self.pod(pod).ok_or_else(|| format!("{pod} is not in /pods"))?;
            if let Some(found) = look(&shown) {
                return Ok(found);
            }
            thread::sleep(Duration::from_millis(100)); // there are others who ask
            Err(format!("/pods shows {shown:#}"))
        })
    }

    /// Waits until everything that is in the directory now has been read: a pod that comes later runs.
    #[track_caller]
    pub(crate) fn until_read(&self, check: &str) {
        let marker = format!("{check}-later");
        self.put(&format!("{marker}.yaml"), &Manifest::named(&marker).text());
        self.until_runs(&marker, "c", |_| true);
        self.take(&format!("{marker}.yaml"));
    }

    /// Waits until a manifest is rejected, for a reason that has these words.
    #[track_caller]
    pub(crate) fn until_rejected(&self, file: &str, words: &[&str]) {
        eventually(|| {
            let reason = self.rejection(file).ok_or_else(|| format!("{file} is not rejected"))?;
            let missing = words.iter().find(|word| !reason.contains(*word));
            missing.map_or(Ok(()), |word| Err(format!("`{word}` is not in: {reason}")))
        });
    }

    /// Runs a line of shell in a running container, and returns what it writes.
    #[track_caller]
    pub(crate) fn within(&self, life: &Life, script: &str) -> String {
        let mut docker = Command::new("docker");
        docker.args(["exec", &life.id, "sh", "-c", script]);
        command::run(&mut docker, LIMIT).ok().stdout.trim_end().to_owned()
    }

    /// What `docker inspect` says of a container.
    pub(crate) fn inspect(&self, life: &Life) -> Value {
        let mut all: Value = serde_json::from_str(&docker(&format!("inspect {}", life.id))).unwrap();
        all[0].take()
    }
}

/// Repeats `attempt` until it gives something; the test fails after [`LIMIT`].
#[track_caller]
pub(crate) fn eventually<T>(attempt: impl FnMut() -> Result<T, String>) -> T {
    host::eventually(LIMIT, attempt)
}

/// No two containers of the pod with the same name ran at the same time, nor any two of different UIDs.
#[track_caller]
pub(crate) fn assert_no_overlap(lives: &[Life]) {
    for (index, one) in lives.iter().enumerate() {
        for other in &lives[index + 1..] {
            let (Some(begin), Some(other_begin)) = (one.started, other.started) else { continue };
            let end = |life: &Life| life.died.map_or(f64::INFINITY, |(at, _)| at);
            let overlap = begin < end(other) && other_begin < end(one);
            let rivals = one.uid != other.uid || one.container == other.container;
            assert!(!(overlap && rivals), "ran at the same time: {one:#?} {other:#?}");
        }
    }
}

/// What explains the failure of a check: its pods are called as it is numbered, and those of others begin with `x-`.
pub(crate) fn account(name: &str) -> String {
    let number = name.strip_prefix("check_").and_then(|rest| rest.get(..2));
    let pods = number.map_or_else(|| "x-".to_owned(), |number| format!("c{number}"));
    let line = format!(
        "docker ps --all --no-trunc --format '{{{{.Names}}}} {{{{.Status}}}}' --filter name=_{pods}
         echo; grep -e {pods} {LOG} | tail -n 40; echo; tail -n 5 {LOG}
         echo; plinth status | grep -e {pods}; uptime; true"
    );
    shell(&line).stdout
}

/// The grace of a pod that a check does not give its own: who is told to end before its shell has set a trap does not
/// hear it.
const GRACE: &str = "  terminationGracePeriodSeconds: 3\n";

/// A manifest to be.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    name: String,
    image: String,
    script: String,
    container: String,
    spec: String,
    metadata: String,
    others: String,
    host_network: bool,
}

impl Manifest {
    /// One container `c` that stays, on the host's network, which needs no sandbox; it ends at once when told to.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: IMAGE.to_owned(),
            script: STAY.to_owned(),
            container: String::new(),
            spec: String::new(),
            metadata: String::new(),
            others: String::new(),
            host_network: true,
        }
    }

    /// With this image.
    pub(crate) fn image(mut self, image: &str) -> Self {
        image.clone_into(&mut self.image);
        self
    }

    /// The container runs this line of shell.
    pub(crate) fn script(mut self, script: &str) -> Self {
        script.clone_into(&mut self.script);
        self
    }

    /// More about the container, in flow style.
    pub(crate) fn container(mut self, more: &str) -> Self {
        self.container += &format!(", {more}");
        self
    }

    /// More about the pod's specification: lines of YAML without indentation.
    pub(crate) fn spec(mut self, more: &str) -> Self {
        for line in more.lines() {
            self.spec += &format!("  {line}\n");
        }
        self
    }

    /// More about its metadata, in flow style.
    pub(crate) fn metadata(mut self, more: &str) -> Self {
        self.metadata += &format!(", {more}");
        self
    }

    /// With another container, in flow style.
    pub(crate) fn and(mut self, container: &str) -> Self {
        self.others += &format!("  - {container}\n");
        self
    }

    /// With a network, and so a sandbox, of its own.
    pub(crate) fn own_network(mut self) -> Self {
        self.host_network = false;
        self
    }

    /// As YAML.
    pub(crate) fn text(&self) -> String {
        let Self { name, container, spec, metadata, others, host_network, .. } = self;
        let c = one("c", &self.image, &self.script, container);
        let grace = if spec.contains("terminationGracePeriodSeconds:") { "" } else { GRACE };
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}{metadata}}}\nspec:\n  hostNetwork: {host_network}\n\
             {grace}{spec}  containers:\n  - {c}\n{others}"
        )
    }
}

/// A container that runs a line of shell, in flow style.
pub(crate) fn one(name: &str, image: &str, script: &str, more: &str) -> String {
    format!("{{name: {name}, image: {image}, command: [sh, -c, {}]{more}}}", Value::from(script))
}

/// Lets time pass that a check is about: nothing happens in it.
pub(crate) fn pass(time: Duration) {
    thread::sleep(time);
}

/// Seconds since `begin`.
pub(crate) fn since(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64()
}
