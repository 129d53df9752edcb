use std::sync::LazyLock;

use proptest::prelude::*;

use super::super::pod::Origin;
use super::super::step::SANDBOX;
use super::*;
use crate::proc::Process;
use crate::runtime::{Termination, labels};

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
    Container { name: id.to_owned(), ..Container::bare(id, &labels, state, ago(60)) }
}

/// A pod whose old version is proven; what differs is said by each case.
struct Case {
    old: StaticPod,
    new: StaticPod,
    containers: BTreeMap<String, Container>,
    memory: Option<Memory>,
    stopping: BTreeSet<String>,
    obstacle: Option<&'static str>,
    tried_since: Option<Timestamp>,
    ends: usize,
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
            memory: Some(Memory { proven: Arc::new(old_pod.clone()), rejected: None }),
            old: old_pod,
            new: new_pod,
            containers,
            stopping: BTreeSet::new(),
            obstacle: None,
            tried_since: Some(ago(60)),
            ends: 0,
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
            stopping: &self.stopping,
            obstacle: self.obstacle,
            tried_since: self.tried_since,
            ends: self.ends,
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

fn twice(case: &mut Case) {
    case.ends = 2;
}

fn untried(case: &mut Case) {
    case.tried_since = None;
}

#[test]
fn what_is_to_be_done() {
    let until = |started: i64| Course::Try(Some(ago(started) + SignedDuration::from_secs(30)));
    let reject = |reason: &str| Course::Reject(reason.to_owned());
    let with_memory = |memory: Option<Memory>| Case::new(running(60), None).with(|case| case.memory = memory);
    let cases = vec![
        ("the first version of a pod", with_memory(None), Course::Run),
        ("a change", Case::new(running(60), None).with(unsteered), Course::Steer),
        ("clients are kept away", Case::new(running(60), None), Course::Try(None)),
        ("it has just started", Case::new(running(60), Some(running(0))), until(0)),
        ("it takes its time", Case::new(running(60), Some(running(29))), until(29)),
        ("its time is over", Case::new(running(60), Some(running(30))), reject("not ready within 30 s")),
        (
            "it ended, who knows of what",
            Case::new(running(60), Some(exited(137))).with(|case| case.ends = 1),
            Course::Try(None),
        ),
        ("it ended again", Case::new(running(60), Some(exited(3))).with(twice), reject("c exited with code 3")),
        (
            "it ended well, which is no better",
            Case::new(running(60), Some(exited(0))).with(twice),
            reject("c exited with code 0"),
        ),
        (
            "it ended, and is not to start again",
            Case::new(running(60), Some(exited(3))).with(|case| {
                (case.new.spec.restart_policy, case.ends) = (Some("Never".to_owned()), 1);
            }),
            reject("c exited with code 3"),
        ),
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
            Case::new(running(60), Some(exited(1))).with(twice).with(|case| case.answers = true),
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
        (
            "back to the one that is still ending",
            Case::new(running(1), Some(running(60))).with(|case| case.stopping = ["new".to_owned()].into()),
            Course::Keep("the file's version is still ending from before".to_owned()),
        ),
        ("a cold start", Case::new(exited(137), None).with(unsteered).with(untried), until(0)),
        ("a cold start goes on", Case::new(exited(137), Some(running(5))).with(unsteered), until(5)),
        (
            "a cold start that waits for an image",
            Case::new(exited(137), None).with(unsteered).with(|case| case.tried_since = Some(ago(29))),
            until(29),
        ),
        ("an image that never comes", Case::new(exited(137), None).with(unsteered), reject("not ready within 30 s")),
        (
            "one that cannot be started again and again",
            Case::new(exited(137), Some(State::Created { error: None })).with(unsteered),
            reject("not ready within 30 s"),
        ),
        (
            "a cold start, and an agent that comes back late",
            Case::new(exited(137), Some(running(60))).with(unsteered).with(|case| case.tried_since = None),
            until(0),
        ),
        (
            "a cold start, and an agent that came back late",
            Case::new(exited(137), Some(running(60))).with(unsteered).with(|case| case.tried_since = Some(ago(10))),
            until(10),
        ),
        (
            "back to the one that was to end, and could not be stopped",
            Case::new(running(1), Some(running(60))).with(|case| case.tried_since = None),
            Course::Keep("the trial of the file's version starts over".to_owned()),
        ),
        (
            "a cold start without luck",
            Case::new(exited(137), Some(exited(1))).with(unsteered).with(twice),
            reject("c exited with code 1"),
        ),
        ("a reboot in the middle", Case::new(exited(137), Some(exited(137))).with(unsteered).with(untried), until(0)),
        (
            "a reboot in the middle, and the next agent tries",
            Case::new(exited(137), Some(exited(137))).with(unsteered).with(|case| case.tried_since = Some(now())),
            until(0),
        ),
        ("the old one dies meanwhile", Case::new(exited(137), Some(running(5))), Course::Unsteer),
        ("clients are let in", Case::new(exited(137), Some(running(5))).with(unsteered), until(5)),
        ("it dies before the new one starts", Case::new(exited(137), None), Course::Unsteer),
        (
            "both end, who knows of what",
            Case::new(exited(137), Some(exited(137)))
                .with(unsteered)
                .with(|case| (case.tried_since, case.ends) = (Some(ago(9)), 1)),
            until(9),
        ),
        (
            "both end, and the new one once more",
            Case::new(exited(137), Some(exited(1))).with(unsteered).with(twice),
            reject("c exited with code 1"),
        ),
        (
            "both end, and the new one does not come back",
            Case::new(exited(137), Some(exited(137))).with(unsteered),
            reject("not ready within 30 s"),
        ),
        (
            "a cold start of which all containers are lost",
            Case::new(running(1), None).with(unsteered).with(untried).with(|case| case.containers.clear()),
            until(0),
        ),
        (
            "somebody removes the old one in the middle",
            Case::new(running(1), Some(running(5))).with(|case| drop(case.containers.remove("old"))),
            Course::Unsteer,
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
    let memory = Memory { proven: Arc::new(case.old.clone()), rejected: Some(rejected) };
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
fn three_are_too_many() {
    let mut case = Case::new(running(60), Some(running(1)));
    case.containers.insert("other".to_owned(), container("other", &pod("i:3", None), running(2)));
    assert_eq!(case.course(), Course::Keep("what was tried before goes first".to_owned()));
}

#[test]
fn two_with_one_uid_would_have_the_same_names() {
    let (old, new) = (pod("i:1", Some("a")), pod("i:2", Some("a")));
    let mut case = Case::new(running(60), None).with(unsteered);
    case.containers = [("old".to_owned(), container("old", &old, running(60)))].into();
    case.memory = Some(Memory { proven: Arc::new(old), rejected: None });
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
fn the_second_of_two_takes_over() {
    let case = |old, new| Case::new(old, new).containers;
    let [old, new] = ["i:1", "i:2"].map(|image| pod(image, None));
    for (what, containers, proven, expected) in [
        ("a take-over", case(running(60), Some(running(1))), &new, true),
        ("a trial", case(running(60), Some(running(1))), &old, false),
        ("the old one is gone", case(exited(0), Some(running(1))), &new, false),
        ("the new one has ended since", case(running(60), Some(exited(1))), &new, false),
        ("the new one has not started", case(running(60), None), &new, false),
    ] {
        assert_eq!(takes_over(&containers, proven), expected, "{what}");
    }
    let mut sandbox = container("sandbox", &new, running(1));
    sandbox.labels.insert(labels::CONTAINER_NAME.to_owned(), SANDBOX.to_owned());
    let mut containers = case(running(60), None);
    containers.insert("sandbox".to_owned(), sandbox);
    assert!(!takes_over(&containers, &new));
}

#[test]
fn who_listens_is_said_by_the_owner() {
    let case = Case::new(running(60), Some(running(1)));
    let listener = |container: Option<&str>| Listener {
        address: std::net::Ipv4Addr::UNSPECIFIED.into(),
        port: 1,
        process: Some(Process { pid: 1, command: "c".to_owned(), container: container.map(str::to_owned) }),
    };
    let unknown = Listener { process: None, ..listener(None) };
    let [old, agent, new] = [listener(Some("old")), listener(None), listener(Some("new"))];
    for (listeners, expected) in [
        (vec![old.clone(), agent.clone()], false),
        (vec![old.clone(), agent.clone(), unknown, listener(Some("other"))], false),
        (vec![old, agent.clone(), new.clone()], true),
        // The old one has died since.
        (vec![agent, new], true),
        (vec![], false),
    ] {
        assert_eq!(listens(&listeners, &case.containers, &case.new), expected, "{listeners:?}");
    }
}

#[test]
fn a_fifth_more_than_the_old_one_has_must_be_free() {
    let directory = tempfile::tempdir().unwrap();
    let proc = Proc::new(directory.path());
    let file = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    assert!(has_room(&proc, &[7]).unwrap_err().contains("meminfo"));
    file("7/status", "Name:\tkube-apiserver\nVmRSS:\t  204800 kB\n".to_owned());
    file("8/status", "Name:\tkube-apiserver\nVmRSS:\t  102400 kB\n".to_owned());
    for (available, pids, expected) in [
        (245_760, &[7][..], Ok(())),
        (245_759, &[7], Err("239 MiB of memory are available, and the old one has 200 MiB".to_owned())),
        (245_760, &[7, 8], Err("240 MiB of memory are available, and the old one has 300 MiB".to_owned())),
        (368_640, &[7, 8], Ok(())),
        // One that has just ended needs nothing.
        (0, &[9], Ok(())),
    ] {
        file("meminfo", format!("MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n"));
        assert_eq!(has_room(&proc, pids), expected, "{available} {pids:?}");
    }
}

#[test]
fn memory_survives_the_agent_and_the_containers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proven");
    let web = pod("i:1", None);
    assert_eq!(recall(&path, &web.key, "node"), None);
    assert_eq!(all_proven(&path, "node"), []);
    let rejected = Some(Rejection { hash: "h".to_owned(), reason: "r".to_owned() });
    let memory = Memory { proven: Arc::new(web), rejected };
    keep(&path, &memory).unwrap();
    let key = &memory.proven.key;
    assert_eq!(recall(&path, key, "node").as_ref(), Some(&memory));
    assert_eq!(recall(&path, &PodKey { name: "other".to_owned(), ..key.clone() }, "node"), None);
    assert_eq!(all_proven(&path, "node"), [Arc::clone(&memory.proven)]);
    forget(&path, key).unwrap();
    assert_eq!(recall(&path, key, "node"), None);
}

/// A host of one such pod, on which what [`course`] says is done at once. Image `i:4` and above never get ready, `i:6` and
/// above exit.
struct Host {
    now: Timestamp,
    file: u8,
    containers: BTreeMap<String, Container>,
    memory: Option<Memory>,
    steerable: bool,
    /// What an agent forgets when it ends.
    obstacle: Option<String>,
    tried: Option<(String, Timestamp)>,
    ends: usize,
    steered: bool,
    /// Hashes of those of which one was killed while it was being tried.
    killed: BTreeSet<String>,
    next_id: u32,
}

const BAD: u8 = 4;
const EXITS: u8 = 6;

impl Host {
    fn new() -> Self {
        let mut host = Self {
            now: now(),
            file: 0,
            containers: BTreeMap::new(),
            memory: None,
            steerable: true,
            obstacle: None,
            tried: None,
            ends: 0,
            steered: false,
            killed: BTreeSet::new(),
            next_id: 0,
        };
        host.settle();
        host
    }

    fn of(number: u8) -> StaticPod {
        static PODS: LazyLock<Vec<StaticPod>> =
            LazyLock::new(|| (0..8).map(|number| pod(&format!("i:{number}"), None)).collect());
        PODS[usize::from(number)].clone()
    }

    fn new_agent(&mut self) {
        (self.obstacle, self.tried, self.steered) = (None, None, false);
    }

    fn running(&self) -> Vec<String> {
        self.containers.values().filter(|c| is_running(c)).map(|c| c.labels[labels::SPEC_HASH].clone()).collect()
    }

    /// Has `pod` running, by the means of [`step`](super::super::step::step).
    fn run(&mut self, pod: &StaticPod) {
        // Its crash loop would have no end.
        let since = self.tried.as_ref().map(|(_, since)| *since);
        let counts = |end: Timestamp| since.is_none_or(|since| end >= since);
        let anew = |c: &Container| match &c.state {
            State::Exited(end) => belongs_to(c, pod) && counts(end.finished_at),
            _ => false,
        };
        let exits = (EXITS..8).any(|number| Self::of(number).hash == pod.hash);
        let idle = exits && (since.is_none() || self.ends >= ENDS) && self.containers.values().any(anew);
        if self.containers.values().any(|c| belongs_to(c, pod) && (is_running(c) || idle)) {
            return;
        }
        self.containers.retain(|_, c| !belongs_to(c, pod));
        self.next_id += 1;
        let id = format!("{:04}", self.next_id);
        let state = State::Running { pid: 1, started_at: self.now };
        self.containers.insert(id.clone(), container(&id, pod, state));
        if exits {
            self.end(&id);
        }
    }

    fn end(&mut self, id: &str) {
        if let Some((tried, _)) = &self.tried
            && self.containers.get(id).is_some_and(|c| is_running(c) && c.labels[labels::SPEC_HASH] == *tried)
        {
            self.ends += 1;
        }
        let State::Exited(mut end) = exited(1) else { unreachable!() };
        end.finished_at = self.now;
        if let Some(container) = self.containers.get_mut(id) {
            container.state = State::Exited(end);
        }
    }

    fn course(&self) -> (StaticPod, Course) {
        let pod = Self::of(self.file);
        let tried_since = self.tried.as_ref().filter(|(hash, _)| *hash == pod.hash).map(|(_, since)| *since);
        let runs = self.running().contains(&pod.hash);
        let course = course(&Facts {
            pod: &pod,
            containers: &self.containers,
            memory: self.memory.as_ref(),
            stopping: &BTreeSet::new(),
            obstacle: self.obstacle.as_ref().filter(|hash| **hash == pod.hash).map(|_| "no"),
            tried_since,
            ends: self.ends,
            steered: self.steered,
            answers: tried_since.is_some() && runs && self.file < BAD,
            failed: None,
            now: self.now,
        });
        (pod, course)
    }

    fn act(&mut self) -> Course {
        let (pod, course) = self.course();
        let before = self.running();
        match &course {
            Course::Run => {
                self.tried = None;
                self.containers.retain(|_, c| belongs_to(c, &pod));
                self.steered = false;
                self.run(&pod);
                if self.file < BAD {
                    self.memory = Some(Memory { proven: Arc::new(pod.clone()), rejected: None });
                }
            }
            Course::Keep(_) => {
                self.tried = None;
                let kept = Arc::clone(&self.memory.as_ref().unwrap().proven);
                self.containers.retain(|_, c| belongs_to(c, &kept));
                self.steered = false;
                self.run(&kept);
            }
            Course::Unsteer => self.steered = false,
            Course::Steer if self.steerable => self.steered = true,
            Course::Steer => self.obstacle = Some(pod.hash.clone()),
            Course::Try(_) => {
                if self.tried.as_ref().is_none_or(|(hash, _)| *hash != pod.hash) {
                    (self.tried, self.ends) = (Some((pod.hash.clone(), self.now)), 0);
                }
                self.run(&pod);
            }
            Course::Prove => self.memory = Some(Memory { proven: Arc::new(pod.clone()), rejected: None }),
            Course::Reject(reason) => {
                let rejected = Rejection { hash: pod.hash.clone(), reason: reason.clone() };
                self.memory.as_mut().unwrap().rejected = Some(rejected);
            }
        }
        let after = self.running();
        // Two run only while one is tried, or is just taking over; and then clients are kept from the new one.
        if after.len() > 1 {
            assert!(after.len() == 2 && self.steered, "{course:?}: {after:?}");
            assert!(matches!(course, Course::Try(_) | Course::Prove | Course::Reject(_)), "{course:?}");
        }
        // What is proven stops only when another one is, or when there was no way to protect it.
        let proven = self.memory.as_ref().map(|memory| memory.proven.hash.clone());
        if let Some(proven) = proven.filter(|proven| before.contains(proven)) {
            assert!(after.contains(&proven) || self.obstacle.is_some(), "{course:?}: {before:?} {after:?}");
        }
        course
    }

    /// Somebody kills a container.
    fn kill(&mut self, id: &str) {
        self.note_killed(id);
        self.end(id);
    }

    fn note_killed(&mut self, id: &str) {
        let hash = self.containers[id].labels[labels::SPEC_HASH].clone();
        if self.tried.as_ref().is_some_and(|(tried, _)| *tried == hash) {
            self.killed.insert(hash);
        }
    }

    fn settle(&mut self) {
        for _ in 0..50 {
            let before = (self.containers.clone(), self.memory.clone());
            let course = self.act();
            let quiet = matches!(course, Course::Run | Course::Keep(_) | Course::Try(_));
            if quiet && before == (self.containers.clone(), self.memory.clone()) {
                return;
            }
        }
        panic!("does not settle: {:#?}", self.course().1);
    }
}

#[derive(Debug, Clone, Copy)]
enum Happening {
    Edit(u8),
    Acts(usize),
    Settle,
    Crash(usize),
    Lose(usize),
    NewAgent,
    Reboot,
    Time(i64),
    Steerable(bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (0..8_u8).prop_map(Happening::Edit),
        (1..4_usize).prop_map(Happening::Acts),
        Just(Happening::Settle),
        (0..3_usize).prop_map(Happening::Crash),
        (0..3_usize).prop_map(Happening::Lose),
        Just(Happening::NewAgent),
        Just(Happening::Reboot),
        (0..40_i64).prop_map(Happening::Time),
        any::<bool>().prop_map(Happening::Steerable),
    ]
}

impl Host {
    fn endure(&mut self, happening: Happening) {
        let id = |host: &Self, which: usize| host.containers.keys().nth(which).cloned();
        match happening {
            Happening::Edit(number) => self.file = number,
            Happening::Acts(count) => (0..count).for_each(|_| drop(self.act())),
            Happening::Settle => self.settle(),
            Happening::Crash(which) => {
                if let Some(id) = id(self, which) {
                    self.kill(&id);
                }
            }
            Happening::Lose(which) => {
                if let Some(id) = id(self, which) {
                    self.note_killed(&id);
                    self.containers.remove(&id);
                }
            }
            Happening::NewAgent => self.new_agent(),
            Happening::Reboot => {
                self.new_agent();
                self.containers.keys().cloned().collect::<Vec<_>>().iter().for_each(|id| self.end(id));
            }
            Happening::Time(seconds) => self.now += SignedDuration::from_secs(seconds),
            Happening::Steerable(steerable) => self.steerable = steerable,
        }
    }
}

/// After all of this, with `last` in the file.
fn ends_well(happenings: Vec<Happening>, last: u8) {
    let mut host = Host::new();
    for happening in happenings {
        host.endure(happening);
    }
    host.steerable = true;
    host.file = last;
    for _ in 0..3 {
        host.settle();
        host.now += SignedDuration::from_secs(60);
    }
    host.settle();
    let memory = host.memory.clone().unwrap();
    let wanted = Host::of(last).hash;
    assert_eq!(host.running(), std::slice::from_ref(&memory.proven.hash));
    if memory.proven.hash != wanted {
        assert_eq!(memory.rejected.map(|rejected| rejected.hash).as_ref(), Some(&wanted));
        // Who was killed while it was tried has ended, whatever it is worth.
        assert!(last >= BAD || host.killed.contains(&wanted), "{last} is rejected");
    }
    assert!(last < BAD || memory.proven.hash != wanted);
}

#[test]
fn what_once_went_wrong_ends_well() {
    use Happening::{Acts, Crash, Edit, NewAgent, Reboot, Time};
    for (happenings, last) in [
        // The old one had no time left by the clock of its own trial.
        (vec![Edit(1), Acts(2), Time(30), Acts(1)], 0),
        (vec![Time(30), Edit(1), Acts(3)], 0),
        // An agent comes back late to a trial that nothing runs beside.
        (vec![Edit(2), Reboot, Acts(1), Time(30), NewAgent], 2),
        (vec![Edit(1), Acts(2), Time(30), Crash(0), NewAgent], 1),
        // Killed in its trial.
        (vec![Reboot, Edit(3), Acts(1), Crash(1)], 3),
    ] {
        ends_well(happenings, last);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_one_runs_in_the_end(happenings in prop::collection::vec(happening(), 0..30), last in 0..8_u8) {
        ends_well(happenings, last);
    }
}
