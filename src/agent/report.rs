//! From what a worker saw to what people and programs read: `/status` and `/pods`. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::board::Snapshot;
use super::pod::{CONFIG_SEEN, RestartPolicy, StaticPod};
use super::probe::PostStart;
use super::status::{ContainerSummary, PodSummary, TerminationSummary};
use super::step::{SANDBOX, attempt_of, belongs_to, instances, is_running, name_of, uid_of};
use super::translate::{self, Node};
use crate::logline;
use crate::runtime::{Container, State, Termination};

/// One pod for `/status`.
pub fn summary(snapshot: &Snapshot, now: Timestamp) -> PodSummary {
    let containers = containers(snapshot);
    let Some(pod) = &snapshot.pod else { return leftover(snapshot) };
    let phase = phase(pod, &containers);
    let ready = phase == "Running" && containers.iter().filter(|seen| !seen.init).all(|seen| seen.summary.ready);
    PodSummary {
        namespace: pod.key.namespace.clone(),
        name: pod.key.name.clone(),
        uid: pod.uid.clone(),
        origin: Some(pod.origin.clone()),
        phase: phase.to_owned(),
        ready,
        message: message(snapshot, pod, &containers, ready || phase == "Succeeded", now),
        containers: containers.into_iter().map(|container| container.summary).collect(),
        update: snapshot.update.clone(),
    }
}

/// One pod for `/pods`, as a kubelet shows it; `None` for one that is no longer wanted.
pub fn pod(snapshot: &Snapshot, node: &Node) -> Option<Pod> {
    let pod = snapshot.pod.as_ref()?;
    let containers = containers(snapshot);
    let mut object = pod.to_pod();
    let annotations = object.metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_SEEN.to_owned(), snapshot.seen.to_string());
    let phase = phase(pod, &containers);
    let (init, regular) = containers.split_at(pod.init_containers().len());
    let uninitialized = if regular.iter().any(Seen::has_run) { Vec::new() } else { names(init, Seen::is_through) };
    let lasting = containers.iter().filter(|seen| !seen.init);
    let unready = names(lasting, |seen| phase == "Running" && seen.summary.ready);
    // `None` is true.
    let condition = |type_: &str, why_not: Option<(&str, String)>| PodCondition {
        type_: type_.to_owned(),
        status: if why_not.is_none() { "True" } else { "False" }.to_owned(),
        reason: why_not.as_ref().map(|(reason, _)| (*reason).to_owned()).filter(|reason| !reason.is_empty()),
        message: why_not.map(|(_, message)| message).filter(|message| !message.is_empty()),
        ..PodCondition::default()
    };
    let not_ready = match phase {
        "Succeeded" => Some(("PodCompleted", String::new())),
        "Failed" => Some(("PodFailed", String::new())),
        _ => (!unready.is_empty())
            .then(|| ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))),
    };
    let not_initialized = (!uninitialized.is_empty()).then(|| {
        ("ContainersNotInitialized", format!("containers with incomplete status: [{}]", uninitialized.join(" ")))
    });
    let running = snapshot.containers.values().find(|container| is_running(container));
    let pod_ip = if pod.host_network() {
        // Also while it is down: its endpoints stay where its clients know them.
        Some(node.address)
    } else {
        snapshot.containers.values().find(|c| name_of(c) == SANDBOX && is_running(c)).and_then(|c| c.ip)
    };
    // Its containers may be older than this agent.
    let own = snapshot.containers.values().filter(|container| belongs_to(container, pod));
    let began = own.map(|container| container.created_at).chain([snapshot.seen]).min().unwrap_or(snapshot.seen);
    let statuses = |list: &[Seen<'_>]| list.iter().map(Seen::status).collect::<Vec<_>>();
    object.status = Some(PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(vec![
            condition("PodReadyToStartContainers", running.is_none().then_some(("", String::new()))),
            condition("Initialized", not_initialized),
            condition("Ready", not_ready.clone()),
            condition("ContainersReady", not_ready),
            condition("PodScheduled", None),
        ]),
        host_ip: Some(node.address.to_string()),
        host_ips: Some(vec![HostIP { ip: node.address.to_string() }]),
        pod_ip: pod_ip.map(|ip| ip.to_string()),
        pod_ips: pod_ip.map(|ip| vec![PodIP { ip: ip.to_string() }]),
        qos_class: Some(translate::qos_class(pod).to_owned()),
        start_time: Some(Time(began)),
        init_container_statuses: (!init.is_empty()).then(|| statuses(init)),
        container_statuses: Some(statuses(regular)),
        ..PodStatus::default()
    });
    Some(object)
}

/// A pod without spec: being removed, or left alone because its source cannot be read.
fn leftover(snapshot: &Snapshot) -> PodSummary {
    let running = snapshot.containers.values().filter(|container| is_running(container)).count();
    PodSummary {
        namespace: snapshot.key.namespace.clone(),
        name: snapshot.key.name.clone(),
        uid: snapshot.containers.values().next().map(|c| uid_of(c).to_owned()).unwrap_or_default(),
        origin: None,
        phase: if running > 0 { "Running" } else { "Pending" }.to_owned(),
        ready: false,
        message: Some(if snapshot.remarks.is_empty() {
            format!("is being removed; {running} containers still run")
        } else {
            snapshot.remarks.join("; ")
        }),
        containers: Vec::new(),
        update: None,
    }
}

/// One container of a pod, put together.
struct Seen<'a> {
    snapshot: &'a Snapshot,
    spec: &'a Spec,
    /// It is to run to its end before the regular ones start; not so a sidecar.
    init: bool,
    newest: Option<&'a Container>,
    summary: ContainerSummary,
    ended: Option<(&'a Container, &'a Termination)>,
    previous: Option<(&'a Container, &'a Termination)>,
}

fn regular<'a, 'b>(pod: &StaticPod, containers: &'b [Seen<'a>]) -> impl Iterator<Item = &'b Seen<'a>> {
    containers.iter().skip(pod.init_containers().len())
}

fn containers(snapshot: &Snapshot) -> Vec<Seen<'_>> {
    let Some(pod) = &snapshot.pod else { return Vec::new() };
    let init = pod.init_containers().len();
    let all = pod.all_containers().enumerate();
    all.map(|(index, spec)| seen(snapshot, pod, spec, index < init && !pod.is_sidecar(&spec.name))).collect()
}

fn seen<'a>(snapshot: &'a Snapshot, pod: &'a StaticPod, spec: &'a Spec, init: bool) -> Seen<'a> {
    let all = instances(&snapshot.containers, pod, &spec.name);
    let newest = all.last().copied();
    let ended = |container: &'a Container| match &container.state {
        State::Exited(termination) => Some((container, termination)),
        _ => None,
    };
    let last = newest.and_then(ended);
    let previous = all.iter().rev().skip(1).find_map(|container| ended(container));
    // While the sandbox cannot be had, its reason is that of all of them.
    let waiting = snapshot.waiting.get(&spec.name).or_else(|| {
        let runs = newest.is_some_and(is_running);
        snapshot.waiting.get(SANDBOX).filter(|_| !runs)
    });
    let health = newest.and_then(|container| snapshot.health.get(&container.id)).cloned().unwrap_or_default();
    let mut summary = ContainerSummary {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        container_id: newest.map(|container| container.id.clone()),
        restart_count: newest.map_or(0, attempt_of),
        last_termination: last.or(previous).map(|(container, termination)| TerminationSummary {
            container_id: container.id.clone(),
            exit_code: termination.exit_code,
            reason: reason(termination).to_owned(),
            message: spoken(snapshot, container, termination),
            finished_at: termination.finished_at,
        }),
        ..ContainerSummary::default()
    };
    match newest.map(|container| &container.state) {
        Some(State::Running { pid, started_at }) if health.post_start != Some(PostStart::Runs) => {
            "running".clone_into(&mut summary.state);
            summary.pid = Some(*pid);
            summary.started_at = Some(*started_at);
            summary.started = health.started;
            summary.ready = !init && health.ready;
            summary.message = health.message.unwrap_or_default();
        }
        Some(State::Exited(termination)) if waiting.is_none() => {
            "terminated".clone_into(&mut summary.state);
            reason(termination).clone_into(&mut summary.reason);
            summary.ready = init && termination.exit_code == 0;
        }
        state => {
            "waiting".clone_into(&mut summary.state);
            waiting.map_or("ContainerCreating", |waiting| waiting.reason).clone_into(&mut summary.reason);
            summary.message = waiting.map(|waiting| waiting.message.clone()).unwrap_or_default();
            if let Some(State::Created { error: Some(error) }) = state {
                if summary.message.is_empty() {
                    "RunContainerError".clone_into(&mut summary.reason);
                    summary.message.clone_from(error);
                }
            } else if summary.message.is_empty() {
                summary.message = snapshot.doing.as_ref().map(ToString::to_string).unwrap_or_default();
            }
        }
    }
    Seen { snapshot, spec, init, newest, summary, ended: last, previous }
}

/// Why it ended: in the engine's words, its own, or else those of its log.
fn spoken(snapshot: &Snapshot, container: &Container, end: &Termination) -> String {
    if !end.error.is_empty() {
        return end.error.clone();
    }
    let words = snapshot.last_words.get(&container.id).cloned().unwrap_or_default();
    if words.message.is_empty() { words.line } else { words.message }
}

/// Names of those in `list` that are not `right`.
fn names<'a, 'b: 'a>(list: impl IntoIterator<Item = &'a Seen<'b>>, right: impl Fn(&Seen<'b>) -> bool) -> Vec<&'a str> {
    list.into_iter().filter(|seen| !right(seen)).map(|seen| seen.summary.name.as_str()).collect()
}

impl Seen<'_> {
    /// It runs, or did once.
    fn has_run(&self) -> bool {
        self.summary.state != "waiting" || self.summary.restart_count > 0
    }

    /// As an init container it lets the next one start: it has ended well, or as a sidecar has started.
    fn is_through(&self) -> bool {
        if self.init { self.ended.is_some_and(|(_, end)| end.exit_code == 0) } else { self.summary.started }
    }

    fn status(&self) -> ContainerStatus {
        let summary = &self.summary;
        let id = |container: &Container| format!("docker://{}", container.id);
        let message = |container: &Container, end: &Termination| {
            let own = self.snapshot.last_words.get(&container.id).map_or("", |words| words.message.as_str());
            match (end.error.as_str(), own) {
                ("", "") => None,
                (text, "") | ("", text) => Some(text.to_owned()),
                (error, own) => Some(format!("{error}: {own}")),
            }
        };
        let terminated = |(container, end): (&Container, &Termination)| ContainerStateTerminated {
            container_id: Some(id(container)),
            exit_code: i32::try_from(end.exit_code).unwrap_or(i32::MAX),
            finished_at: Some(Time(end.finished_at)),
            started_at: Some(Time(end.started_at)),
            reason: Some(reason(end).to_owned()),
            message: message(container, end),
            signal: None,
        };
        let state = match summary.state.as_str() {
            "running" => ContainerState {
                running: Some(ContainerStateRunning { started_at: summary.started_at.map(Time) }),
                ..ContainerState::default()
            },
            "terminated" => ContainerState { terminated: self.ended.map(terminated), ..ContainerState::default() },
            _ => ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some(summary.reason.clone()),
                    message: (!summary.message.is_empty()).then(|| summary.message.clone()),
                }),
                ..ContainerState::default()
            },
        };
        // A container that waits for its restart shows how it ended as its last state.
        let last = if summary.state == "waiting" { self.ended.or(self.previous) } else { self.previous };
        ContainerStatus {
            name: summary.name.clone(),
            image: self.spec.image.clone().unwrap_or_default(),
            image_id: self.newest.map(|container| container.image_id.clone()).unwrap_or_default(),
            container_id: self.newest.map(id),
            ready: summary.ready,
            started: Some(summary.started),
            restart_count: i32::try_from(summary.restart_count).unwrap_or(i32::MAX),
            state: Some(state),
            last_state: Some(ContainerState { terminated: last.map(terminated), ..ContainerState::default() }),
            ..ContainerStatus::default()
        }
    }
}

fn reason(termination: &Termination) -> &'static str {
    if termination.oom_killed {
        "OOMKilled"
    } else if !termination.error.is_empty() {
        "ContainerCannotRun"
    } else if termination.exit_code == 0 {
        "Completed"
    } else {
        "Error"
    }
}

fn phase(pod: &StaticPod, containers: &[Seen<'_>]) -> &'static str {
    let policy = pod.restart_policy();
    let over = |seen: &Seen<'_>| seen.ended.is_some_and(|(_, end)| !policy.restarts(end.exit_code));
    let failed = |seen: &Seen<'_>| seen.ended.is_some_and(|(_, end)| end.exit_code != 0);
    if policy == RestartPolicy::Never && containers.iter().any(|seen| seen.init && failed(seen)) {
        return "Failed";
    }
    if regular(pod, containers).all(over) {
        return if regular(pod, containers).any(failed) { "Failed" } else { "Succeeded" };
    }
    let created = |seen: &Seen<'_>| {
        // Once it has run, its next start is another matter.
        seen.previous.is_some()
            || seen.newest.is_some_and(|container| match container.state {
                State::Created { error: None } => false,
                // As long as its postStart hook runs it is not.
                State::Running { .. } => seen.summary.state == "running",
                _ => true,
            })
    };
    if regular(pod, containers).all(created) { "Running" } else { "Pending" }
}

/// The one line about a pod that is not well, or that has something to say although it is.
fn message(
    snapshot: &Snapshot,
    pod: &StaticPod,
    containers: &[Seen<'_>],
    well: bool,
    now: Timestamp,
) -> Option<String> {
    if well {
        return (!snapshot.remarks.is_empty()).then(|| snapshot.remarks.join("; "));
    }
    let troubled = containers.iter().find(|seen| {
        let finished = seen.ended.is_some_and(|(_, end)| end.exit_code == 0) && seen.summary.state == "terminated";
        !(seen.summary.ready || finished || seen.summary.reason == "PodInitializing")
    });
    let Some(seen) = troubled else {
        return snapshot.doing.as_ref().map(ToString::to_string).or_else(|| Some("is starting".to_owned()));
    };
    let name = &seen.spec.name;
    let until = snapshot.waiting.get(name).and_then(|waiting| waiting.until);
    let until = until.or_else(|| snapshot.waiting.get(SANDBOX).and_then(|waiting| waiting.until));
    let again = until.map_or_else(String::new, |until| {
        let seconds = (until.duration_since(now).as_millis().max(0) + 999) / 1000;
        format!("; tried again in {seconds} s")
    });
    let summary = &seen.summary;
    let crashed = |end: &TerminationSummary| {
        let code = match end.reason.as_str() {
            "OOMKilled" => "killed for lack of memory".to_owned(),
            _ => format!("exit code {}", end.exit_code),
        };
        let lines: Vec<_> = end.message.lines().map(str::to_owned).collect();
        let line: String = logline::most_telling(&lines).unwrap_or_default().trim().chars().take(400).collect();
        if line.is_empty() { code } else { format!("{code}: {line}") }
    };
    let times = |count: u32| if count == 1 { "once".to_owned() } else { format!("{count} times") };
    let history = |end: &TerminationSummary| {
        // Until the next instance exists, the newest one is among those that crashed.
        let count = summary.restart_count + u32::from(seen.ended.is_some());
        format!("{name} crashed {}, last {}", times(count), crashed(end))
    };
    Some(match (summary.state.as_str(), summary.reason.as_str(), &summary.last_termination) {
        ("waiting", "CrashLoopBackOff", Some(end)) => {
            format!("{}{}", history(end), again.replace("tried again", "restarts"))
        }
        ("waiting", "CrashLoopBackOff", None) if failed_start(seen.newest).is_some() => {
            let why = failed_start(seen.newest).unwrap_or_default();
            format!("{name} cannot be started: {why}{again}")
        }
        ("waiting", "ErrImageNeverPull", _) => {
            format!(
                "image {} is not present, and imagePullPolicy is Never: bring the image to this host",
                summary.image
            )
        }
        ("waiting", "ContainerCreating", Some(end)) => {
            let doing = if summary.message.is_empty() { "is being started again" } else { summary.message.as_str() };
            format!("{}; {doing}{again}", history(end))
        }
        ("waiting", "ContainerCreating", None) if summary.message.is_empty() => format!("{name} is being started"),
        ("waiting", "ContainerCreating" | "ErrImagePull" | "ImagePullBackOff", _) => {
            format!("{}{again}", summary.message)
        }
        ("waiting", reason, _) => format!("{name}: {reason}: {}{again}", summary.message),
        ("terminated", _, Some(end)) => format!("{name} ended: {}", crashed(end)),
        _ if !summary.message.is_empty() => format!("{name}: {}", summary.message),
        _ if !summary.started => format!("{name} runs; its start-up probe has not answered yet"),
        (_, _, Some(end)) if summary.restart_count > 0 => {
            format!("{name} runs again after {}; its readiness probe has not answered yet", crashed(end))
        }
        _ => format!("{name} runs; its readiness probe has not answered yet"),
    })
    .map(|message| with_remarks(&logline::in_one_line(&message), &pod.warnings, &snapshot.remarks))
}

/// What the engine said when it could not start a container.
fn failed_start(container: Option<&Container>) -> Option<&str> {
    match container.map(|container| &container.state) {
        Some(State::Created { error }) => error.as_deref(),
        _ => None,
    }
}

fn with_remarks(message: &str, warnings: &[String], remarks: &[String]) -> String {
    // Warnings about the manifest are shown when the pod is well; a pod in trouble speaks of its trouble.
    let order: Vec<_> = remarks.iter().filter(|remark| !warnings.contains(remark)).cloned().collect();
    if order.is_empty() { message.to_owned() } else { format!("{message} ({})", order.join("; ")) }
}

/// All pods as the API's list.
pub fn pod_list(snapshots: &[Snapshot], node: &Node) -> k8s_openapi::List<Pod> {
    let items = snapshots.iter().filter_map(|snapshot| pod(snapshot, node)).collect();
    k8s_openapi::List { items, metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta::default() }
}

#[cfg(test)]
mod tests;
