use super::super::pod::Origin;
use super::super::step::SANDBOX;
use super::*;
use crate::runtime::Termination;

fn pod(image: &str, uid: Option<&str>) -> StaticPod {
    let uid = uid.map_or_else(String::new, |uid| format!(", uid: {uid}"));
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, annotations: {{plinth.dev/update: surge}}{uid}}}\n\
         spec:\n  hostNetwork: true\n  containers:\n  - name: c\n    image: {image}\n\
         \x20   readinessProbe: {{httpGet: {{port: 1}}}}\n\
         \x20   startupProbe: {{httpGet: {{port: 1}}, failureThreshold: 3, periodSeconds: 10}}\n"
    );
    StaticPod::read(&text, Origin::File(Path::new("/m/web.yaml")), "node").unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

fn running(seconds: i64) -> State {
    State::Running { pid: 1, started_at: ago(seconds) }
}

fn exited(code: i64) -> State {
    let (started_at, finished_at) = (ago(2), ago(1));
    State::Exited(Termination { exit_code: code, oom_killed: false, error: String::new(), started_at, finished_at })
}

fn container(id: &str, pod: &StaticPod, state: State) -> Container {
    let labels = [
        (labels::POD_UID, pod.uid.as_str()),
        (labels::SPEC_HASH, pod.hash.as_str()),
        (labels::CONTAINER_NAME, "c"),
        (labels::RESTART_COUNT, "0"),
    ];
    Container {
        id: id.to_owned(),
        name: id.to_owned(),
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        image: String::new(),
        image_id: String::new(),
        state,
        created_at: ago(60),
        ip: None,
        log_path: None,
    }
}

/// A pod whose old version is proven; what differs is said by each case.
struct Case {
    old: StaticPod,
    new: StaticPod,
    containers: BTreeMap<String, Container>,
    memory: Option<Memory>,
    obstacle: Option<&'static str>,
    tried_since: Option<Timestamp>,
    steered: bool,
    answers: bool,
    failed: Option<&'static str>,
}

impl Case {
    fn new(old: State, new: Option<State>) -> Self {
        let (old_pod, new_pod) = (pod("i:1", None), pod("i:2", None));
        let mut containers = BTreeMap::from([("old".to_owned(), container("old", &old_pod, old))]);
        containers.extend(new.map(|state| ("new".to_owned(), container("new", &new_pod, state))));
        Self {
            memory: Some(Memory { proven: old_pod.hash.clone(), rejected: None }),
            old: old_pod,
            new: new_pod,
            containers,
            obstacle: None,
            tried_since: Some(ago(60)),
            steered: true,
            answers: false,
            failed: None,
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn course_of(&self, pod: &StaticPod) -> Course {
        course(&Facts {
            pod,
            containers: &self.containers,
            memory: self.memory.as_ref(),
            obstacle: self.obstacle,
            tried_since: self.tried_since,
            steered: self.steered,
            answers: self.answers,
            failed: self.failed,
            now: now(),
        })
    }

    fn course(&self) -> Course {
        self.course_of(&self.new)
    }
}

fn unsteered(case: &mut Case) {
    case.steered = false;
}

#[test]
fn what_is_to_be_done() {
    let until = |started: i64| Course::Try(Some(ago(started) + SignedDuration::from_secs(30)));
    let reject = |reason: &str| Course::Reject(reason.to_owned());
    let with_memory = |memory: Option<Memory>| Case::new(running(60), None).with(|case| case.memory = memory);
    let cases = [
        ("the first version of a pod", with_memory(None), Course::Run),
        ("a change", Case::new(running(60), None).with(unsteered), Course::Steer),
        ("clients are kept away", Case::new(running(60), None), Course::Try(None)),
        ("it has just started", Case::new(running(60), Some(running(0))), until(0)),
        ("it takes its time", Case::new(running(60), Some(running(29))), until(29)),
        ("its time is over", Case::new(running(60), Some(running(30))), reject("not ready within 30 s")),
        ("it ended", Case::new(running(60), Some(exited(3))), reject("c exited with code 3")),
        ("it ended well, which is no better", Case::new(running(60), Some(exited(0))), reject("c exited with code 0")),
        (
            "it cannot start",
            Case::new(running(60), Some(State::Created { error: Some("no such file".to_owned()) })),
            reject("c did not start: no such file"),
        ),
        ("it was created", Case::new(running(60), Some(State::Created { error: None })), Course::Try(None)),
        (
            "a probe failed for good",
            Case::new(running(60), Some(running(1))).with(|case| case.failed = Some("liveness")),
            reject("liveness"),
        ),
        ("it answers", Case::new(running(60), Some(running(1))).with(|case| case.answers = true), Course::Prove),
        (
            "it answered in the last moment",
            Case::new(running(60), Some(running(99))).with(|case| case.answers = true),
            Course::Prove,
        ),
        (
            "it answered and ended",
            Case::new(running(60), Some(exited(1))).with(|case| case.answers = true),
            reject("c exited with code 1"),
        ),
        (
            "clients cannot be kept away",
            Case::new(running(60), None).with(unsteered).with(|case| case.obstacle = Some("no memory")),
            Course::Run,
        ),
        (
            "an agent comes back in the middle",
            Case::new(running(60), Some(running(1))).with(unsteered),
            Course::Keep("the trial of the file's version starts over".to_owned()),
        ),
        ("a cold start", Case::new(exited(137), None).with(unsteered), Course::Try(None)),
        ("a cold start goes on", Case::new(exited(137), Some(running(5))).with(unsteered), until(5)),
        (
            "a cold start without luck",
            Case::new(exited(137), Some(exited(1))).with(unsteered),
            reject("c exited with code 1"),
        ),
        (
            "a reboot in the middle",
            Case::new(exited(137), Some(exited(137))).with(unsteered).with(|case| case.tried_since = None),
            Course::Try(None),
        ),
        (
            "a reboot in the middle, and the next agent tries",
            Case::new(exited(137), Some(exited(137))).with(unsteered).with(|case| case.tried_since = Some(now())),
            Course::Try(None),
        ),
        ("the old one dies meanwhile", Case::new(exited(137), Some(running(5))), until(5)),
        (
            "nothing is left to go back to",
            Case::new(running(1), None).with(|case| case.containers.clear()),
            Course::Run,
        ),
    ];
    for (what, case, expected) in cases {
        assert_eq!(case.course(), expected, "{what}");
    }
}

#[test]
fn a_rejected_version_waits_for_a_change() {
    let case = Case::new(running(60), None).with(unsteered);
    let rejected = Rejection { hash: case.new.hash.clone(), reason: "c exited with code 1".to_owned() };
    let memory = Memory { proven: case.old.hash.clone(), rejected: Some(rejected) };
    let case = case.with(|case| case.memory = Some(memory));
    let kept = Course::Keep("running: proven, file: rejected (c exited with code 1)".to_owned());
    assert_eq!(case.course(), kept);
    assert_eq!(case.course_of(&pod("i:3", None)), Course::Steer);
    assert_eq!(case.course_of(&case.old), Course::Run);
    // Not after a reboot either.
    let cold =
        case.with(|case| case.containers = [("old".to_owned(), container("old", &case.old, exited(137)))].into());
    assert_eq!(cold.course(), kept);
}

#[test]
fn two_with_one_uid_would_have_the_same_names() {
    let (old, new) = (pod("i:1", Some("a")), pod("i:2", Some("a")));
    let mut case = Case::new(running(60), None).with(unsteered);
    case.containers = [("old".to_owned(), container("old", &old, running(60)))].into();
    case.memory = Some(Memory { proven: old.hash.clone(), rejected: None });
    assert_eq!(case.course_of(&new), Course::Run);
}

#[test]
fn a_sandbox_is_no_start() {
    let mut case = Case::new(running(60), None);
    let mut sandbox = container("sandbox", &case.new, running(99));
    sandbox.labels.insert(labels::CONTAINER_NAME.to_owned(), SANDBOX.to_owned());
    case.containers.insert("sandbox".to_owned(), sandbox);
    assert_eq!(case.course(), Course::Try(None));
}

#[test]
fn memory_survives_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("u")).unwrap();
    assert_eq!(recall(directory.path(), "u"), None);
    let rejected = Some(Rejection { hash: "h".to_owned(), reason: "r".to_owned() });
    let memory = Memory { proven: "p".to_owned(), rejected };
    keep(directory.path(), "u", &memory).unwrap();
    assert_eq!(recall(directory.path(), "u"), Some(memory));
}
