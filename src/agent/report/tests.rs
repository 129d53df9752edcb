use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::board::LastWords;
use super::super::pod::tests::pod as read;
use super::super::probe::Health;
use super::super::step::Waiting;
use super::*;
use crate::runtime::labels;

const NOW: i64 = 1_800_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

fn snapshot(states: &[(u32, State)]) -> Snapshot {
    let pod = Arc::new(read(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: kube-apiserver, namespace: kube-system}\nspec:\n  hostNetwork: true\n  \
         containers: [{name: kube-apiserver, image: 'k:1', readinessProbe: {tcpSocket: {port: 1}}}]\n",
    ));
    let containers: BTreeMap<_, _> = states
        .iter()
        .map(|(attempt, state)| {
            let attempt = attempt.to_string();
            let labels = [
                (labels::POD_UID, pod.uid.as_str()),
                (labels::SPEC_HASH, &pod.hash),
                (labels::CONTAINER_NAME, "kube-apiserver"),
                (labels::RESTART_COUNT, &attempt),
            ];
            let container = Container {
                image: "k:1".into(),
                image_id: "sha256:1".into(),
                ..Container::bare(format!("id{attempt}"), &labels, state.clone(), at(0))
            };
            (container.id.clone(), container)
        })
        .collect();
    Snapshot { containers, ..Snapshot::bare(&pod.key.clone(), Some(pod), at(0)) }
}

fn running() -> State {
    State::Running { pid: 42, started_at: at(0) }
}

fn ended(exit_code: i64) -> State {
    State::Exited(Termination {
        exit_code,
        oom_killed: false,
        error: String::new(),
        started_at: at(0),
        finished_at: at(1),
    })
}

fn wait(snapshot: &mut Snapshot, reason: &'static str, message: &str, until: Option<i64>) {
    let waiting = Waiting { reason, message: message.into(), until: until.map(at) };
    snapshot.waiting.insert("kube-apiserver".into(), waiting);
}

fn node() -> Node {
    Node {
        name: "node".into(),
        address: "192.0.2.2".parse().unwrap(),
        storage: 1 << 30,
        apparmor: false,
        memory: 1,
        cpus: 1,
        dns: crate::agent::host::Dns::default(),
        may_protect_from_oom: true,
    }
}

fn message_of(snapshot: &Snapshot) -> String {
    summary(snapshot, at(2)).message.expect("it is not well")
}

#[test]
fn a_pod_that_is_well_says_nothing() {
    let mut snapshot = snapshot(&[(0, running())]);
    let health = Health { started: true, ready: true, ..Health::default() };
    snapshot.health.insert("id0".into(), health);
    let summary = summary(&snapshot, at(2));
    assert!(summary.ready);
    assert_eq!((summary.phase.as_str(), summary.message), ("Running", None));
    assert_eq!(summary.containers[0].pid, Some(42));
}

#[test]
fn a_container_that_starts_again_leaves_its_pod_running() {
    let phase = |states: &[(u32, State)]| summary(&snapshot(states), at(2)).phase;
    let created = State::Created { error: None };
    assert_eq!(phase(&[(0, created.clone())]), "Pending");
    assert_eq!(phase(&[(0, ended(1)), (1, created)]), "Running");
}

#[test]
fn a_crash_loop_is_told_in_one_line() {
    let mut snapshot = snapshot(&[(1, ended(1)), (2, ended(1))]);
    wait(&mut snapshot, "CrashLoopBackOff", "back-off 20s", Some(22));
    let line = "bind: address already in use".to_owned();
    snapshot.last_words.insert("id2".into(), LastWords { line, message: String::new() });
    assert_eq!(
        message_of(&snapshot),
        "kube-apiserver crashed 3 times, last exit code 1: bind: address already in use; restarts in 20 s"
    );
    let summary = summary(&snapshot, at(2));
    assert_eq!((summary.phase.as_str(), summary.containers[0].state.as_str()), ("Running", "waiting"));
}

#[test]
fn a_termination_message_goes_before_the_log_and_is_shown_whole_in_the_api_object() {
    let mut snapshot = snapshot(&[(0, ended(1))]);
    let message = "E1121 0] disk is full\nsee the manual\nbye\n".to_owned();
    snapshot.last_words.insert("id0".into(), LastWords { line: "logged".into(), message: message.clone() });
    wait(&mut snapshot, "CrashLoopBackOff", "", Some(12));
    let last = summary(&snapshot, at(2)).containers[0].last_termination.clone().unwrap();
    assert_eq!(last.message, message);
    assert!(message_of(&snapshot).contains("exit code 1: disk is full; restarts"), "{}", message_of(&snapshot));
    let object = pod(&snapshot, &node()).unwrap();
    let status = object.status.unwrap().container_statuses.unwrap().remove(0);
    assert_eq!(status.last_state.unwrap().terminated.unwrap().message, Some(message));
}

#[test]
fn the_moment_between_two_instances_still_tells_the_crash() {
    let words = |snapshot: &mut Snapshot| {
        snapshot.last_words.insert("id1".into(), LastWords { line: "unknown flag".into(), ..LastWords::default() });
        message_of(snapshot)
    };
    let expected = "kube-apiserver crashed 2 times, last exit code 1: unknown flag; is being started again";
    let mut before = snapshot(&[(0, ended(1)), (1, ended(1))]);
    wait(&mut before, "ContainerCreating", "", None);
    assert_eq!(words(&mut before), expected);
    assert_eq!(words(&mut snapshot(&[(1, ended(1)), (2, State::Created { error: None })])), expected);
}

#[test]
fn what_a_container_says_does_nothing_to_a_terminal() {
    let escape = "\u{1b}]0;owned\u{7}".to_owned();
    let shown = "\\u{1b}]0;owned\\u{7}";
    let mut crashed = snapshot(&[(0, ended(1))]);
    crashed.last_words.insert("id0".into(), LastWords { line: escape.clone(), message: String::new() });
    wait(&mut crashed, "CrashLoopBackOff", "", Some(12));
    let mut spoke = crashed.clone();
    spoke.last_words.insert("id0".into(), LastWords { line: String::new(), message: escape.clone() });
    let mut unready = snapshot(&[(0, running())]);
    unready.health.insert("id0".into(), Health { started: true, message: Some(escape), ..Health::default() });
    for case in [crashed, spoke, unready] {
        let message = message_of(&case);
        assert!(message.contains(shown) && !message.contains(char::is_control), "{message:?}");
    }
}

#[test]
fn every_other_trouble_has_its_line() {
    let mut held = snapshot(&[(0, State::Created { error: None })]);
    wait(&mut held, "ContainerCreating", "waits for etcd-node (connection refused)", None);
    assert_eq!(message_of(&held), "waits for etcd-node (connection refused)");

    let mut pull = snapshot(&[]);
    wait(&mut pull, "ImagePullBackOff", "cannot pull image `k:1`: no route", Some(12));
    assert_eq!(message_of(&pull), "cannot pull image `k:1`: no route; tried again in 10 s");

    let mut never = snapshot(&[]);
    wait(&mut never, "ErrImageNeverPull", "", Some(12));
    assert!(message_of(&never).starts_with("image k:1 is not present"));

    let mut unready = snapshot(&[(0, running())]);
    let failed = "readiness probe failed: GET https://127.0.0.1:6443/readyz: 500".to_owned();
    unready.health.insert("id0".into(), Health { started: true, message: Some(failed), ..Health::default() });
    assert_eq!(message_of(&unready), "kube-apiserver: readiness probe failed: GET https://127.0.0.1:6443/readyz: 500");

    let start = snapshot(&[(0, State::Created { error: Some("exec: not found".into()) })]);
    assert!(message_of(&start).contains("exec: not found"));

    let mut oom = snapshot(&[(0, ended(137))]);
    if let Some(Container { state: State::Exited(end), .. }) = oom.containers.get_mut("id0") {
        end.oom_killed = true;
    }
    wait(&mut oom, "CrashLoopBackOff", "", Some(12));
    assert!(message_of(&oom).contains("killed for lack of memory"));

    let mut gone = snapshot(&[(0, running())]);
    gone.pod = None;
    assert!(message_of(&gone).contains("is being removed"));
}

#[test]
fn a_pod_on_the_hosts_network_has_its_address_while_it_is_down() {
    for containers in [vec![], vec![(0, ended(1))], vec![(0, running())]] {
        let status = pod(&snapshot(&containers), &node()).unwrap().status.unwrap();
        assert_eq!(status.pod_ip.as_deref(), Some("192.0.2.2"), "{containers:?}");
        assert_eq!(status.pod_ips.unwrap()[0].ip, "192.0.2.2", "{containers:?}");
    }
}

#[test]
fn the_api_object_has_a_kubelets_status() {
    let mut snapshot = snapshot(&[(0, ended(1)), (1, running())]);
    snapshot.health.insert("id1".into(), Health { started: true, ready: true, ..Health::default() });
    let pod = pod(&snapshot, &node()).unwrap();
    let status = pod.status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!((status.pod_ip.as_deref(), status.qos_class.as_deref()), (Some("192.0.2.2"), Some("BestEffort")));
    let conditions = status.conditions.unwrap();
    assert!(conditions.iter().all(|condition| condition.status == "True"), "{conditions:#?}");
    let container = &status.container_statuses.unwrap()[0];
    assert_eq!((container.restart_count, container.ready, container.started), (1, true, Some(true)));
    assert_eq!(container.container_id.as_deref(), Some("docker://id1"));
    let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
    assert!(pod.metadata.annotations.unwrap().contains_key(CONFIG_SEEN));
}

#[test]
fn the_wait_is_rounded_up() {
    let mut snapshot = snapshot(&[(0, ended(1))]);
    wait(&mut snapshot, "CrashLoopBackOff", "", Some(10));
    let now = at(2).checked_add(Duration::from_millis(400)).unwrap();
    assert!(summary(&snapshot, now).message.unwrap().ends_with("restarts in 8 s"));
}

#[test]
fn a_pod_with_init_containers_says_how_far_it_is() {
    let pod_of = Arc::new(read(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  hostNetwork: true\n  initContainers:\n  \
         - {name: once, image: 'i:1'}\n  - {name: side, image: 'i:1', restartPolicy: Always}\n  \
         containers: [{name: c, image: 'i:1'}]\n",
    ));
    let condition = |containers: &[(&str, u32, State, bool)], type_: &str| {
        let mut snapshot = Snapshot { pod: Some(Arc::clone(&pod_of)), ..snapshot(&[]) };
        for (index, (name, attempt, state, started)) in containers.iter().enumerate() {
            let attempt = attempt.to_string();
            let labels = [
                (labels::POD_UID, pod_of.uid.as_str()),
                (labels::SPEC_HASH, &pod_of.hash),
                (labels::CONTAINER_NAME, name),
                (labels::RESTART_COUNT, &attempt),
            ];
            let id = format!("id{index}");
            let container = Container::bare(&id, &labels, state.clone(), at(-60));
            let health = Health { started: *started, ready: *started, ..Health::default() };
            snapshot.health.insert(id.clone(), health);
            snapshot.containers.insert(id, container);
        }
        let status = pod(&snapshot, &node()).unwrap().status.unwrap();
        let began = if containers.is_empty() { 0 } else { -60 };
        assert_eq!(status.start_time, Some(Time(at(began))), "its containers are older than the agent");
        let found = status.conditions.unwrap().into_iter().find(|condition| condition.type_ == type_).unwrap();
        found.message.unwrap_or(found.status)
    };
    let incomplete = |names: &str| format!("containers with incomplete status: [{names}]");
    let (once, side) = (("once", 0, ended(0), false), ("side", 0, running(), true));
    for (containers, expected) in [
        (&[][..], incomplete("once side")),
        (&[("once", 0, ended(1), false)], incomplete("once side")),
        (std::slice::from_ref(&once), incomplete("side")),
        (&[once.clone(), ("side", 0, running(), false)], incomplete("side")),
        (&[once.clone(), side.clone()], "True".to_owned()),
        (&[once.clone(), side.clone(), ("c", 0, running(), true)], "True".to_owned()),
        // A sidecar that has crashed afterwards.
        (&[once.clone(), ("side", 0, ended(1), false), ("c", 0, running(), true)], "True".to_owned()),
    ] {
        assert_eq!(condition(containers, "Initialized"), expected, "{containers:?}");
    }
    let unready = |names: &str| format!("containers with unready status: [{names}]");
    let c = ("c", 0, running(), true);
    assert_eq!(condition(std::slice::from_ref(&once), "Ready"), unready("side c"));
    assert_eq!(condition(&[once.clone(), ("side", 0, ended(1), false), c.clone()], "ContainersReady"), unready("side"));
    assert_eq!(condition(&[once, side, c], "Ready"), "True");
}
