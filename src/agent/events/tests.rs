use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::agent::pod::StaticPod;
use crate::agent::step::Stop;
use crate::runtime::{State, Termination, labels};

const MANIFEST: &str =
    "apiVersion: v1\nkind: Pod\nmetadata: {name: web, uid: u1}\nspec:\n  containers:\n  - {name: c, image: 'i:1'}\n";

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_795_000_000 + seconds).unwrap()
}

fn snapshot(containers: &[(&str, &str, State)]) -> Snapshot {
    let pod = Arc::new(StaticPod::read(MANIFEST, std::path::Path::new("/m/web.yaml"), "vm").unwrap());
    let container = |(id, name, state): &(&str, &str, State)| {
        let labels = [(labels::CONTAINER_NAME, *name), (labels::POD_UID, "u1")];
        let container = Container { image: "i:1".into(), ..Container::bare(*id, &labels, state.clone(), at(0)) };
        ((*id).to_owned(), container)
    };
    let containers = containers.iter().map(container).collect();
    Snapshot { containers, ..Snapshot::bare(&pod.key.clone(), Some(pod), at(0)) }
}

fn created() -> State {
    State::Created { error: None }
}

fn running() -> State {
    State::Running { pid: 1, started_at: at(0) }
}

fn exited() -> State {
    let (started_at, finished_at) = (at(0), at(1));
    State::Exited(Termination { exit_code: 1, oom_killed: false, error: String::new(), started_at, finished_at })
}

fn told(before: Option<&Snapshot>, after: &Snapshot) -> Vec<String> {
    let line = |event: Event| format!("{} {}: {}", event.kind.as_str(), event.reason, event.message);
    between(before, after, at(2)).into_iter().map(line).collect()
}

fn doing(snapshot: Snapshot, doing: Doing) -> Snapshot {
    Snapshot { doing: Some(doing), ..snapshot }
}

/// The image of `c` was pulled, and `c` is not made yet.
fn pulled() -> Snapshot {
    Snapshot { pulled: BTreeSet::from(["c".to_owned()]), ..snapshot(&[]) }
}

fn waiting(reason: &'static str, message: &str) -> Snapshot {
    waiting_of("c", reason, message)
}

fn waiting_of(name: &str, reason: &'static str, message: &str) -> Snapshot {
    let waiting = Waiting { reason, message: message.into(), until: None };
    Snapshot { waiting: BTreeMap::from([(name.to_owned(), waiting)]), ..snapshot(&[]) }
}

fn health(failures: u32, message: &str, post_start: Option<PostStart>) -> Snapshot {
    // Another probe has passed since, or the same one.
    let health = Health { failures, failure: Some(message.into()), message: None, post_start, ..Health::default() };
    Snapshot { health: BTreeMap::from([("a".to_owned(), health)]), ..snapshot(&[("a", "c", running())]) }
}

#[test]
fn what_changes_is_told_with_the_kubelets_words() {
    const PRESENT: &str = "Normal Pulled: Container image \"i:1\" already present on machine";
    const CREATED: &str = "Normal Created: Container created";
    const STARTED: &str = "Normal Started: Container started";
    let one = |state| snapshot(&[("a", "c", state)]);
    let pulling = || Doing::Pulling { container: "c".into(), image: "i:1".into() };
    let stopping = || {
        let stop = |container: &str| Stop {
            container: container.into(),
            id: "a".into(),
            grace: std::time::Duration::ZERO,
            turn: 0,
            why: "its manifest changed".into(),
        };
        Doing::Stopping(vec![stop("c"), stop(SANDBOX)])
    };
    let rows: [(&str, Snapshot, Snapshot, &[&str]); 20] = [
        ("nothing", one(running()), one(running()), &[]),
        ("a container is made", snapshot(&[]), one(created()), &[PRESENT, CREATED]),
        ("and starts", one(created()), one(running()), &[STARTED]),
        ("both at once", snapshot(&[]), one(running()), &[PRESENT, CREATED, STARTED]),
        ("the sandbox is nobody's business", snapshot(&[]), snapshot(&[("s", SANDBOX, running())]), &[]),
        (
            "an image is pulled",
            snapshot(&[]),
            doing(snapshot(&[]), pulling()),
            &["Normal Pulling: Pulling image \"i:1\""],
        ),
        (
            "and has been",
            doing(snapshot(&[]), pulling()),
            pulled(),
            &["Normal Pulled: Successfully pulled image \"i:1\""],
        ),
        ("the container is made from it", pulled(), one(created()), &[CREATED]),
        ("a pull is given up", doing(snapshot(&[]), pulling()), snapshot(&[]), &[]),
        (
            "it is stopped",
            one(running()),
            doing(one(running()), stopping()),
            &["Normal Killing: Stopping container c: its manifest changed"],
        ),
        ("it ended", one(running()), one(exited()), &[]),
        ("it ended before anybody looked", snapshot(&[]), one(exited()), &[PRESENT, CREATED, STARTED]),
        ("the same of one that was made", one(created()), one(exited()), &[STARTED]),
        (
            "it crashes",
            one(exited()),
            waiting("CrashLoopBackOff", "back-off 10s"),
            &["Warning BackOff: Back-off restarting failed container c in pod web-vm_default(u1)"],
        ),
        ("it waits on", waiting("CrashLoopBackOff", "back-off 10s"), waiting("CrashLoopBackOff", "back-off 10s"), &[]),
        (
            "its image is away",
            snapshot(&[]),
            waiting("ErrImagePull", "no such host"),
            &["Warning Failed: Failed to pull image: no such host", "Warning Failed: Error: ErrImagePull"],
        ),
        (
            "a sandbox cannot be made",
            snapshot(&[]),
            waiting_of(SANDBOX, "CreateContainerError", "no space"),
            &["Warning FailedCreatePodSandBox: Failed to create pod sandbox: no space"],
        ),
        (
            "or is about to be",
            snapshot(&[]),
            waiting_of(SANDBOX, "ContainerCreating", "the manifest has just changed"),
            &[],
        ),
        (
            "a probe fails",
            health(0, "", None),
            health(1, "liveness probe failed: 500", None),
            &["Warning Unhealthy: Liveness probe failed: 500"],
        ),
        (
            "a hook fails",
            health(0, "", None),
            health(0, "", Some(PostStart::Failed("exit code 1".into()))),
            &["Warning FailedPostStartHook: PostStartHook failed: exit code 1"],
        ),
    ];
    for (name, before, after, expected) in rows {
        assert_eq!(told(Some(&before), &after), expected, "{name}");
    }
}

#[test]
fn what_was_there_before_this_agent_is_no_news() {
    assert_eq!(told(None, &snapshot(&[("a", "c", running())])), Vec::<String>::new());
    assert_eq!(told(None, &waiting("CreateContainerError", "no")), ["Warning Failed: Error: no"]);
}

#[test]
fn an_event_refers_to_the_static_pod_and_its_container() {
    let gone = Snapshot { pod: None, ..snapshot(&[("a", "c", running())]) };
    let event = between(Some(&snapshot(&[])), &gone, at(2)).remove(0);
    let expected = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web-vm", "uid": "u1",
        "fieldPath": "spec.containers{c}",
    });
    assert_eq!(serde_json::to_value(&event.object).unwrap(), expected);
    assert_eq!(event.at, at(2));
}

#[test]
fn a_recorder_never_waits() {
    let (recorder, mut events) = Recorder::new();
    let event = between(Some(&snapshot(&[])), &snapshot(&[("a", "c", running())]), at(0)).remove(0);
    for _ in 0..QUEUE + 5 {
        recorder.record(event.clone());
    }
    let taken = std::iter::from_fn(|| events.try_recv().ok()).count();
    assert_eq!(taken, QUEUE);
}
