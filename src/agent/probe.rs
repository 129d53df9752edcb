//! Probes: when they run, what their results mean, and how they ask.
//!
//! # Guarantees
//! - Results belong to one container id: a new process starts with none, so nothing is stale after a restart.
//! - Until the start-up probe has passed no other probe runs; after liveness or start-up has failed for good, nothing
//!   is asked again until there is a new container.
//! - One connection per probe, no proxy, no certificate verification (the kubelet's rules); each bounded in time.
//!
//! # Failure
//! A probe that cannot be performed at all (the runtime is away) has no result and changes nothing.

mod grpc;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use reqwest::header::HeaderValue;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::steer::PROBE_SOURCE;
use super::translate::expand;
use crate::clock::Clock;
use crate::error::root_cause;
use crate::runtime::{ExecOutput, Runtime, RuntimeError};

/// How often a pod that others wait for is asked (see [`super::pod::AFTER`]).
const EAGER_PERIOD: Duration = Duration::from_millis(20);
/// The same, for a pod that has not answered within [`EAGER_FOR`].
const PATIENT_PERIOD: Duration = Duration::from_millis(500);
/// How long a pod is asked every [`EAGER_PERIOD`].
const EAGER_FOR: Duration = Duration::from_mins(1);
/// As the kubelet's prober calls itself.
const USER_AGENT: &str = "kube-probe/1.37";
/// How much of an answer is read (kubelet: `maxRespBodyLength`).
const MAX_BODY: usize = 10 << 10;

/// Which of the three probes of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// `startupProbe`.
    Startup,
    /// `livenessProbe`.
    Liveness,
    /// `readinessProbe`.
    Readiness,
}

impl ProbeKind {
    /// As the kubelet's metrics and messages call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }
}

/// What the probes of one container have come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// The start-up probe has passed, or there is none.
    pub started: bool,
    /// Started, and the readiness probe passes or there is none.
    pub ready: bool,
    /// Liveness or start-up has failed for good, and why: the container is to be stopped.
    pub failed: Option<(ProbeKind, String)>,
    /// The last failure of any probe since the last success.
    pub message: Option<String>,
    /// How often a probe has failed.
    pub failures: u32,
    /// The last of these failures, whatever came after it.
    pub failure: Option<String>,
    /// Where its `postStart` hook is; `None` when it has succeeded or there is none. No probe runs before.
    pub post_start: Option<PostStart>,
}

/// A `postStart` hook that has not succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PostStart {
    /// It runs; the container does not count as started.
    Runs,
    /// It failed, and why: the container is to be stopped.
    Failed(String),
}

impl Health {
    /// Of a container that has just been seen running.
    pub fn initial(container: &Container) -> Self {
        let started = container.startup_probe.is_none();
        Self { started, ready: started && container.readiness_probe.is_none(), ..Self::default() }
    }

    /// Takes in what a probe reports.
    pub fn apply(&mut self, container: &Container, report: &Report) {
        let failure = match &report.outcome {
            Outcome::Success => None,
            Outcome::Warning(why) => Some(format!("{} probe: {why}", report.kind.as_str())),
            Outcome::Failure(why) | Outcome::Unknown(why) => {
                Some(format!("{} probe failed: {why}", report.kind.as_str()))
            }
        };
        match (report.kind, report.verdict) {
            (ProbeKind::Startup, Some(true)) => {
                self.started = true;
                self.ready = container.readiness_probe.is_none();
            }
            (ProbeKind::Readiness, Some(ready)) => self.ready = ready,
            (kind, Some(false)) => {
                self.ready = false;
                let why = failure.clone().unwrap_or_default();
                self.failed = Some((kind, format!("{why}, will be restarted")));
            }
            _ => {}
        }
        if matches!(report.outcome, Outcome::Failure(_)) {
            self.failures += 1;
            self.failure.clone_from(&failure);
        }
        self.message = failure;
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Success,
    /// The same, with a remark.
    Warning(String),
    /// It answered wrongly or not at all; with the reason.
    Failure(String),
    /// The probe could not be performed; counts for nothing.
    Unknown(String),
}

impl Outcome {
    /// Whether it counts as a success.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Success | Self::Warning(_))
    }
}

/// What the task of one container tells its worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which container.
    pub container_id: String,
    /// Which probe.
    pub kind: ProbeKind,
    /// The last answer.
    pub outcome: Outcome,
    /// What it means, when the threshold is reached and the meaning changed.
    pub verdict: Option<bool>,
    /// The answer to an [eager question](Watch::eager), not to a probe.
    pub eager: bool,
}

/// Counts consecutive answers against the thresholds of a probe. Pure.
#[derive(Debug, Clone)]
pub struct Tracker {
    success_threshold: i32,
    failure_threshold: i32,
    verdict: Option<bool>,
    last: Option<bool>,
    streak: i32,
}

impl Tracker {
    /// Of a probe that has not been asked yet.
    pub fn new(kind: ProbeKind, probe: &Probe) -> Self {
        // kubelet: readiness starts as a failure, liveness as a success, start-up as unknown.
        let verdict = match kind {
            ProbeKind::Startup => None,
            ProbeKind::Liveness => Some(true),
            ProbeKind::Readiness => Some(false),
        };
        Self {
            success_threshold: probe.success_threshold.unwrap_or(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3),
            verdict,
            last: None,
            streak: 0,
        }
    }

    /// Takes in an answer; returns the new verdict when it changed.
    pub fn record(&mut self, outcome: &Outcome) -> Option<bool> {
        if matches!(outcome, Outcome::Unknown(_)) {
            return None;
        }
        let success = outcome.is_success();
        self.streak = if self.last == Some(success) { self.streak.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        if self.streak < threshold || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        self.verdict
    }
}

/// Where a container is asked.
#[derive(Debug, Clone)]
pub struct Target {
    /// Id in the runtime.
    pub container_id: String,
    /// When its process started.
    pub started_at: Timestamp,
    /// Host of probes that name none: the pod's address, or the node's on the host's network.
    pub address: IpAddr,
}

/// Performs single probes.
#[derive(Debug)]
pub struct Prober<R> {
    runtime: Arc<R>,
    http: reqwest::Client,
    /// The same, from [`PROBE_SOURCE`].
    steered: reqwest::Client,
    clock: Clock,
}

impl<R> Clone for Prober<R> {
    fn clone(&self) -> Self {
        Self {
            runtime: Arc::clone(&self.runtime),
            http: self.http.clone(),
            steered: self.steered.clone(),
            clock: self.clock.clone(),
        }
    }
}

impl<R: Runtime> Prober<R> {
    /// A prober that runs exec probes in `runtime`.
    pub fn new(runtime: Arc<R>, clock: Clock) -> Result<Self, reqwest::Error> {
        // Taken already when main has done so; either way there is one afterwards.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = |from: Option<IpAddr>| {
            reqwest::Client::builder()
                .local_address(from)
                .user_agent(USER_AGENT)
                .default_headers(
                    [(reqwest::header::CONNECTION, HeaderValue::from_static("close"))].into_iter().collect(),
                )
                .no_proxy()
                .tls_danger_accept_invalid_certs(true)
                .pool_max_idle_per_host(0)
                .redirect(reqwest::redirect::Policy::custom(|attempt| {
                    let previous = attempt.previous();
                    let asked = previous.first().and_then(|url| url.host_str());
                    if asked != attempt.url().host_str() {
                        attempt.stop()
                    } else if previous.len() >= 10 {
                        attempt.error("too many redirects")
                    } else {
                        attempt.follow()
                    }
                }))
                .build()
        };
        Ok(Self { runtime, http: client(None)?, steered: client(Some(PROBE_SOURCE.into()))?, clock })
    }

    /// The same, but its HTTP requests come from [`PROBE_SOURCE`] and reach one that is being tried.
    #[must_use]
    pub fn steered(&self) -> Self {
        Self { http: self.steered.clone(), ..self.clone() }
    }

    /// Performs `probe` once.
    pub async fn ask(&self, probe: &Probe, container: &Container, target: &Target) -> Outcome {
        let limit = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1));
        let answer = async {
            if let Some(get) = &probe.http_get {
                self.http_get(get, container, target).await
            } else if let Some(tcp) = &probe.tcp_socket {
                let host = tcp.host.clone().filter(|host| !host.is_empty());
                let host = host.unwrap_or_else(|| target.address.to_string());
                let port = port(&tcp.port, container);
                match TcpStream::connect((host.as_str(), port)).await {
                    Ok(_) => Outcome::Success,
                    Err(error) => Outcome::Failure(format!("connect to {host}:{port}: {error}")),
                }
            } else if let Some(grpc) = &probe.grpc {
                grpc::check(target.address, grpc).await
            } else if let Some(exec) = &probe.exec {
                let command = command(exec, container);
                match self.exec(&command, target, limit).await {
                    Ok(output) if output.exit_code == 0 => Outcome::Success,
                    Ok(output) => {
                        let last = output.output.lines().last().unwrap_or_default();
                        Outcome::Failure(format!("exit code {}: {}", output.exit_code, shortened(last)))
                    }
                    Err(error @ RuntimeError::TimedOut(_)) => Outcome::Failure(error.to_string()),
                    Err(error) => Outcome::Unknown(error.to_string()),
                }
            } else {
                Outcome::Success
            }
        };
        // The exec limit is the runtime's; it gets a moment to say so itself.
        let slack = if probe.exec.is_some() { Duration::from_millis(500) } else { Duration::ZERO };
        timeout(limit + slack, answer)
            .await
            .unwrap_or_else(|_| Outcome::Failure(format!("no answer within {}s", limit.as_secs())))
    }

    /// Runs `command` in the container.
    pub async fn exec(&self, command: &[String], target: &Target, limit: Duration) -> Result<ExecOutput, RuntimeError> {
        self.runtime.exec(&target.container_id, command, limit).await
    }

    /// Sends the request of `get` and returns the answer, its body unread; the error names the URL. `user_agent`
    /// takes the place of the probes'.
    pub async fn get(
        &self,
        get: &HTTPGetAction,
        container: &Container,
        target: &Target,
        user_agent: Option<&str>,
    ) -> Result<reqwest::Response, String> {
        let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
        let host = match get.host.as_deref().filter(|host| !host.is_empty()) {
            Some(host) => host.to_owned(),
            None => target.address.to_string(),
        };
        let host = if host.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{host}]") } else { host };
        let path = get.path.as_deref().unwrap_or("/");
        let path = path.strip_prefix('/').unwrap_or(path);
        let url = format!("{scheme}://{host}:{}/{path}", port(&get.port, container));
        let mut request = self.http.get(&url);
        for header in get.http_headers.iter().flatten() {
            request = request.header(&header.name, &header.value);
        }
        if let Some(user_agent) = user_agent {
            request = request.header(reqwest::header::USER_AGENT, user_agent);
        }
        request.send().await.map_err(|error| format!("GET {url}: {}", root_cause(&error)))
    }

    async fn http_get(&self, get: &HTTPGetAction, container: &Container, target: &Target) -> Outcome {
        let mut response = match self.get(get, container, target, None).await {
            Ok(response) => response,
            Err(why) => return Outcome::Failure(why),
        };
        let url = response.url().to_string();
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            let location = response.headers().get(reqwest::header::LOCATION).filter(|_| status.is_redirection());
            return location.map_or(Outcome::Success, |to| {
                let to = shortened(&String::from_utf8_lossy(to.as_bytes()));
                Outcome::Warning(format!("GET {url}: {}: not followed to {to}", status.as_u16()))
            });
        }
        let mut body = Vec::new();
        while body.len() < MAX_BODY
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(&chunk);
        }
        Outcome::Failure(format!("GET {url}: {}{}", status.as_u16(), first_problem(&String::from_utf8_lossy(&body))))
    }
}

/// The command of an exec probe. Of its container's variables it sees those with a plain value (kubelet:
/// `ExpandContainerCommandOnlyStatic`).
fn command(exec: &ExecAction, container: &Container) -> Vec<String> {
    let mut env = Vec::new();
    for variable in container.env.iter().flatten() {
        if let Some(value) = &variable.value {
            let value = expand(value, &env);
            env.push((variable.name.clone(), value));
        }
    }
    exec.command.iter().flatten().map(|text| expand(text, &env)).collect()
}

/// The line of a health endpoint's answer that says what is wrong: Kubernetes marks it with `[-]`.
fn first_problem(body: &str) -> String {
    let line = body.lines().find(|line| line.starts_with("[-]")).or_else(|| body.lines().next()).unwrap_or_default();
    if line.is_empty() { String::new() } else { format!(": {}", shortened(line)) }
}

fn shortened(line: &str) -> String {
    line.chars().take(160).collect()
}

/// A port by number, or by its name in the container.
pub fn port(port: &IntOrString, container: &Container) -> u16 {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    number.and_then(|number| u16::try_from(number).ok()).unwrap_or(0)
}

/// The probes of one container; they end when this is dropped.
#[derive(Debug)]
pub struct Watch {
    tasks: JoinSet<()>,
}

impl Watch {
    /// Starts the probes of `container`. Reports whose receiver is gone are lost.
    pub fn start<R: Runtime>(
        prober: &Prober<R>,
        container: &Container,
        target: &Target,
        reports: &mpsc::UnboundedSender<Report>,
    ) -> Self {
        let mut tasks = JoinSet::new();
        let all = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
        if all.into_iter().any(Option::is_some) {
            let line = Line {
                prober: prober.clone(),
                container: container.clone(),
                target: target.clone(),
                reports: reports.clone(),
            };
            tasks.spawn(async move { line.run().await });
        }
        Self { tasks }
    }

    /// Asks the readiness handler as well, at once and every 20 ms until it answers, whatever the probe's delays and
    /// thresholds say. Reports come marked `eager`.
    pub fn eager<R: Runtime>(
        &mut self,
        prober: &Prober<R>,
        container: &Container,
        target: &Target,
        reports: &mpsc::UnboundedSender<Report>,
    ) {
        let Some(probe) = container.readiness_probe.clone() else { return };
        let line = Line {
            prober: prober.clone(),
            container: container.clone(),
            target: target.clone(),
            reports: reports.clone(),
        };
        self.tasks.spawn(async move { line.eager(&probe).await });
    }
}

struct Line<R> {
    prober: Prober<R>,
    container: Container,
    target: Target,
    reports: mpsc::UnboundedSender<Report>,
}

impl<R: Runtime> Line<R> {
    async fn run(&self) {
        if let Some(probe) = &self.container.startup_probe
            && !self.repeat(ProbeKind::Startup, probe).await
        {
            return;
        }
        let one = async |kind, probe: &Option<Probe>| {
            if let Some(probe) = probe {
                self.repeat(kind, probe).await;
            }
        };
        tokio::join!(
            one(ProbeKind::Readiness, &self.container.readiness_probe),
            one(ProbeKind::Liveness, &self.container.liveness_probe),
        );
    }

    /// Asks until there is nothing more to learn: start-up has passed (`true`), or start-up or liveness has failed.
    async fn repeat(&self, kind: ProbeKind, probe: &Probe) -> bool {
        let seconds = |value: Option<i32>, default: u64| value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default);
        let age = self.prober.clock.now().duration_since(self.target.started_at);
        let delay = Duration::from_secs(seconds(probe.initial_delay_seconds, 0));
        sleep(delay.saturating_sub(Duration::try_from(age).unwrap_or_default())).await;
        let mut tracker = Tracker::new(kind, probe);
        let mut ticks = interval(Duration::from_secs(seconds(probe.period_seconds, 10).max(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = None;
        loop {
            ticks.tick().await;
            let outcome = self.prober.ask(probe, &self.container, &self.target).await;
            let verdict = tracker.record(&outcome);
            if verdict.is_some() || last.as_ref() != Some(&outcome) {
                self.report(kind, &outcome, verdict, false);
            }
            last = Some(outcome);
            match (kind, verdict) {
                (ProbeKind::Startup, Some(passed)) => return passed,
                (ProbeKind::Liveness, Some(false)) => return false,
                _ => {}
            }
        }
    }

    async fn eager(&self, probe: &Probe) {
        let since = Instant::now();
        let mut last = None;
        loop {
            let outcome = self.prober.ask(probe, &self.container, &self.target).await;
            let done = outcome.is_success();
            if last.as_ref() != Some(&outcome) {
                self.report(ProbeKind::Readiness, &outcome, None, true);
            }
            if done {
                return;
            }
            last = Some(outcome);
            sleep(if since.elapsed() < EAGER_FOR { EAGER_PERIOD } else { PATIENT_PERIOD }).await;
        }
    }

    fn report(&self, kind: ProbeKind, outcome: &Outcome, verdict: Option<bool>, eager: bool) {
        let report =
            Report { container_id: self.target.container_id.clone(), kind, outcome: outcome.clone(), verdict, eager };
        // Nobody listens any more once the worker is gone.
        let _ = self.reports.send(report);
    }
}

#[cfg(test)]
mod tests;
