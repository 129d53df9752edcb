use proptest::prelude::*;

use super::super::pod::tests::pod;
use super::*;
use crate::runtime::Termination;

/// A pod's world without a runtime: what [`step`] asks for is done here, at once.
struct World {
    now: Timestamp,
    containers: BTreeMap<String, Container>,
    health: BTreeMap<String, Health>,
    unready: Vec<Unready>,
    dependency_ready_at: Option<Timestamp>,
    booted_at: Timestamp,
    state: PodState,
    timings: Timings,
    log: Vec<String>,
    next_id: u32,
    waiting: BTreeMap<String, Waiting>,
    wake_at: Option<Timestamp>,
    gone: bool,
}

impl World {
    fn new() -> Self {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        Self {
            now,
            containers: BTreeMap::new(),
            health: BTreeMap::new(),
            unready: Vec::new(),
            dependency_ready_at: None,
            booted_at: now,
            state: PodState::default(),
            timings: Timings::default(),
            log: Vec::new(),
            next_id: 0,
            waiting: BTreeMap::new(),
            wake_at: None,
            gone: false,
        }
    }

    fn decide(&self, desired: Option<&StaticPod>) -> Step {
        let observed = Observed {
            containers: &self.containers,
            health: &self.health,
            unready: &self.unready,
            dependency_ready_at: self.dependency_ready_at,
            booted_at: self.booted_at,
        };
        step(desired, &observed, self.now, &self.state, &self.timings)
    }

    /// Decides and acts until nothing is left to do now; returns what was done.
    fn settle(&mut self, desired: Option<&StaticPod>) -> Vec<String> {
        self.log.clear();
        for _ in 0..100 {
            let decision = self.decide(desired);
            self.state = decision.state;
            self.waiting = decision.waiting;
            self.wake_at = decision.wake_at;
            self.gone = decision.gone;
            if decision.actions.is_empty() || decision.gone {
                return self.log.clone();
            }
            for action in &decision.actions {
                self.act(action, desired);
            }
        }
        panic!("does not settle: {:#?}", self.log);
    }

    /// The same for an edit, long enough for the next one not to be waited for.
    fn settle_edit(&mut self, edited: &StaticPod) -> Vec<String> {
        let mut done = self.settle(Some(edited));
        self.now = after(self.now, EDITS_SETTLE);
        done.extend(self.settle(Some(edited)));
        done
    }

    fn act(&mut self, action: &Action, desired: Option<&StaticPod>) {
        match action {
            Action::Stop(stops) => {
                for stop in stops {
                    self.log.push(format!("stop {} {}s", self.short(&stop.id), stop.grace.as_secs()));
                    self.end(&stop.id, 143);
                }
            }
            Action::Remove { id } => {
                self.log.push(format!("remove {}", self.short(id)));
                let removed = self.containers.remove(id).expect("only what is there is removed");
                assert!(!is_running(&removed), "a running container is stopped first");
            }
            Action::Discard { uid } => {
                assert!(self.containers.values().all(|c| uid_of(c) != uid), "a directory in use is kept");
                self.log.push("discard".to_owned());
            }
            Action::Pull { container } => {
                self.log.push(format!("pull {container}"));
                self.state.pulled(container);
            }
            Action::Create { container, attempt } => {
                let pod = desired.expect("nothing is created for a pod that is to be removed");
                self.log.push(format!("create {container}/{attempt}"));
                self.create(pod, container, *attempt);
                self.state.created(container);
            }
            Action::Start { container, id } => {
                self.log.push(format!("start {}", self.short(id)));
                self.start(id);
                self.state.succeeded(container);
            }
        }
    }

    fn create(&mut self, pod: &StaticPod, container: &str, attempt: u32) -> String {
        self.next_id += 1;
        let id = format!("id{:04}", self.next_id);
        let place = pod.init_containers().iter().position(|init| init.name == container).unwrap_or_default();
        let mut labels = vec![
            (labels::POD_UID, pod.uid.clone()),
            (labels::SPEC_HASH, pod.hash.clone()),
            (labels::CONTAINER_NAME, container.to_owned()),
            (labels::RESTART_COUNT, attempt.to_string()),
            (GRACE_LABEL, pod.grace().as_secs().to_string()),
        ];
        labels.extend(pod.is_sidecar(container).then(|| (SIDECAR_LABEL, place.to_string())));
        let container = Container {
            id: id.clone(),
            name: format!("{container}_{}_{attempt}", pod.uid),
            labels: labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            image: String::new(),
            image_id: String::new(),
            state: State::Created { error: None },
            created_at: self.now,
            ip: None,
            log_path: None,
        };
        assert!(self.containers.values().all(|other| other.name != container.name), "names are unique");
        self.containers.insert(id.clone(), container);
        id
    }

    fn start(&mut self, id: &str) {
        let uid = uid_of(&self.containers[id]).to_owned();
        let others = self.containers.values().filter(|c| uid_of(c) != uid && is_running(c)).count();
        assert_eq!(others, 0, "two pods of one name never run");
        self.containers.get_mut(id).unwrap().state = State::Running { pid: 1, started_at: self.now };
    }

    fn end(&mut self, id: &str, exit_code: i64) {
        let finished_at = self.now;
        let container = self.containers.get_mut(id).unwrap();
        let State::Running { started_at, .. } = container.state else { return };
        let error = String::new();
        container.state = State::Exited(Termination { exit_code, oom_killed: false, error, started_at, finished_at });
        self.health.remove(id);
    }

    fn short(&self, id: &str) -> String {
        let container = &self.containers[id];
        format!("{}/{}", name_of(container), attempt_of(container))
    }

    fn id(&self, short: &str) -> String {
        self.containers.keys().find(|id| self.short(id) == short).unwrap_or_else(|| panic!("no {short}")).clone()
    }

    fn crash(&mut self, short: &str, exit_code: i64) {
        let id = self.id(short);
        self.end(&id, exit_code);
    }

    fn pass(&mut self, seconds: u64) {
        self.now = after(self.now, Duration::from_secs(seconds));
    }

    fn running(&self) -> Vec<String> {
        self.containers.keys().filter(|id| is_running(&self.containers[*id])).map(|id| self.short(id)).collect()
    }
}

fn web(more: &str) -> StaticPod {
    pod(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  hostNetwork: true\n  \
         terminationGracePeriodSeconds: 7\n  {more}\n  containers: [{{name: c, image: 'i:1'}}]\n"
    ))
}

fn two(more: &str) -> StaticPod {
    pod(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  {more}\n  \
         initContainers: [{{name: i1, image: 'i:1'}}, {{name: i2, image: 'i:1'}}]\n  \
         containers: [{{name: a, image: 'i:1'}}, {{name: b, image: 'i:1'}}]\n"
    ))
}

/// The pod of [`two`], running after its init containers have succeeded.
fn two_initialized() -> (World, StaticPod) {
    let mut world = World::new();
    let pod = two("");
    world.settle(Some(&pod));
    for init in ["i1/0", "i2/0"] {
        world.crash(init, 0);
        world.settle(Some(&pod));
    }
    (world, pod)
}

#[test]
fn a_pod_is_created_and_started_and_then_left_alone() {
    let mut world = World::new();
    let pod = web("");
    assert_eq!(world.settle(Some(&pod)), ["create c/0", "start c/0"]);
    assert_eq!(world.settle(Some(&pod)), Vec::<String>::new());
    assert_eq!(world.wake_at, None, "time alone changes nothing");
}

#[test]
fn after_an_edit_the_first_creation_waits_until_no_further_one_comes() {
    let version = |version: usize| web(&format!("hostname: v{version}"));
    // When edits come, how long the old container takes to stop, and how long after the last edit its spec is used.
    for (case, edits, stop, wait) in [
        ("one edit, stopped at once", &[0][..], 0, 300),
        ("one edit, stopped in time", &[0], 200, 300),
        ("one edit, stopped slowly", &[0], 1_000, 1_000),
        ("each too soon for the last", &[0, 299, 598, 700], 0, 300),
    ] {
        let mut world = World::new();
        let start = world.now;
        assert_eq!(world.settle(Some(&version(0))).len(), 2, "{case}: a first start never waits");
        let mut pod = version(0);
        for (index, at) in edits.iter().enumerate() {
            world.now = after(start, Duration::from_millis(*at));
            pod = version(index + 1);
            let decision = world.decide(Some(&pod));
            world.state = decision.state;
            if index == 0 {
                assert!(matches!(decision.actions[..], [Action::Stop(_)]), "{case}");
                world.now = after(world.now, Duration::from_millis(stop));
                for action in decision.actions {
                    world.act(&action, Some(&pod));
                }
            }
            let done = world.settle(Some(&pod));
            assert!(stop >= 300 || !done.iter().any(|done| done.starts_with("create")), "{case}: {done:?}");
        }
        let due = after(start, Duration::from_millis(edits.last().unwrap() + wait));
        if stop < 300 {
            assert_eq!(world.wake_at, Some(due), "{case}");
            assert_eq!(world.waiting["c"].message, "the manifest has just changed", "{case}");
            world.now = due;
            let done = world.settle(Some(&pod));
            assert_eq!(done[..2], ["create c/0", "start c/0"], "{case}");
        }
        assert_eq!((world.running(), world.now), (vec!["c/0".to_owned()], due), "{case}");
    }
}

#[test]
fn an_agent_without_memory_leaves_alone_what_is_right() {
    let mut world = World::new();
    let pod = web("");
    world.settle(Some(&pod));
    world.state = PodState::default();
    assert_eq!(world.settle(Some(&pod)), Vec::<String>::new());
}

#[test]
fn a_container_that_was_created_before_the_agent_died_is_only_started() {
    let mut world = World::new();
    let pod = web("");
    world.create(&pod, "c", 0);
    assert_eq!(world.settle(Some(&pod)), ["start c/0"]);
}

#[test]
fn init_containers_run_in_order_and_the_sandbox_before_them() {
    let mut world = World::new();
    let pod = two("");
    assert_eq!(world.settle(Some(&pod)), ["create POD/0", "start POD/0", "create i1/0", "start i1/0"]);
    assert_eq!(world.waiting["a"].reason, "PodInitializing");
    world.crash("i1/0", 0);
    assert_eq!(world.settle(Some(&pod)), ["create i2/0", "start i2/0"]);
    world.crash("i2/0", 0);
    let rest = ["create a/0", "create b/0", "start a/0", "start b/0"];
    assert_eq!(world.settle(Some(&pod)), rest);
    assert_eq!(world.settle(Some(&pod)), Vec::<String>::new());
}

#[test]
fn a_failed_init_container_is_tried_again_with_back_off_unless_the_policy_is_never() {
    let mut world = World::new();
    let pod = two("");
    world.settle(Some(&pod));
    world.crash("i1/0", 1);
    assert_eq!(world.settle(Some(&pod)), ["create i1/1", "start i1/1"]);
    world.crash("i1/1", 1);
    assert_eq!(world.settle(Some(&pod)), ["remove i1/0"]);
    assert_eq!(world.waiting["i1"].reason, "CrashLoopBackOff");

    let mut world = World::new();
    let pod = two("restartPolicy: Never");
    world.settle(Some(&pod));
    world.crash("i1/0", 1);
    assert_eq!(world.settle(Some(&pod)), ["stop POD/0 2s"], "the pod has failed");
}

/// A plain init container between two sidecars, of which the first has a start-up probe.
fn with_sidecars(more: &str) -> StaticPod {
    pod(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  hostNetwork: true\n  {more}\n  \
         terminationGracePeriodSeconds: 7\n  initContainers:\n  \
         - {{name: s1, image: 'i:1', restartPolicy: Always, startupProbe: {{tcpSocket: {{port: 1}}}}}}\n  \
         - {{name: i, image: 'i:1'}}\n  - {{name: s2, image: 'i:1', restartPolicy: Always}}\n  \
         containers: [{{name: a, image: 'i:1'}}, {{name: b, image: 'i:1'}}]\n"
    ))
}

fn pass_start_up(world: &mut World, short: &str) {
    world.health.insert(world.id(short), Health { started: true, ready: true, ..Health::default() });
}

/// The pod of [`with_sidecars`] with all of its containers running.
fn world_with_sidecars(pod: &StaticPod) -> World {
    let mut world = World::new();
    world.settle(Some(pod));
    pass_start_up(&mut world, "s1/0");
    world.settle(Some(pod));
    world.crash("i/0", 0);
    world.settle(Some(pod));
    let mut running = world.running();
    running.sort();
    assert_eq!(running, ["POD/0", "a/0", "b/0", "s1/0", "s2/0"]);
    world
}

#[test]
fn a_sidecar_starts_in_its_place_and_the_next_when_it_has_started() {
    let mut world = World::new();
    let pod = with_sidecars("");
    assert_eq!(world.settle(Some(&pod)), ["create POD/0", "start POD/0", "create s1/0", "start s1/0"]);
    world.health.insert(world.id("s1/0"), Health::default());
    assert_eq!(world.settle(Some(&pod)), Vec::<String>::new(), "its start-up probe has not passed");
    assert_eq!(world.waiting["a"].reason, "PodInitializing");
    pass_start_up(&mut world, "s1/0");
    assert_eq!(world.settle(Some(&pod)), ["create i/0", "start i/0"]);
    world.crash("s1/0", 0);
    assert_eq!(world.settle(Some(&pod)), ["create s1/1", "start s1/1"], "it is restarted beside the init container");
    world.crash("i/0", 0);
    let rest = ["create s2/0", "start s2/0", "create a/0", "create b/0", "start a/0", "start b/0"];
    assert_eq!(world.settle(Some(&pod)), rest, "what is behind the pod is not waited for again");
    assert_eq!(world.settle(Some(&pod)), Vec::<String>::new());
    world.state = PodState::default();
    assert_eq!(world.settle(Some(&pod)), Vec::<String>::new(), "after a new agent");
}

#[test]
fn a_sidecar_is_restarted_whatever_the_policy_of_the_pod_and_with_back_off() {
    for policy in ["Always", "OnFailure", "Never"] {
        for exit_code in [0, 1] {
            let pod = with_sidecars(&format!("restartPolicy: {policy}"));
            let mut world = world_with_sidecars(&pod);
            world.crash("s2/0", exit_code);
            assert_eq!(world.settle(Some(&pod)), ["create s2/1", "start s2/1"], "{policy} {exit_code}");
            world.crash("s2/1", exit_code);
            assert_eq!(world.settle(Some(&pod)), ["remove s2/0"], "{policy} {exit_code}");
            assert_eq!(world.waiting["s2"].reason, "CrashLoopBackOff");
        }
    }
}

#[test]
fn a_sidecar_that_fails_its_probe_is_restarted_alone() {
    let pod = with_sidecars("");
    let mut world = world_with_sidecars(&pod);
    let failed = Some((ProbeKind::Liveness, "it failed".to_owned()));
    world.health.insert(world.id("s2/0"), Health { failed, ..Health::default() });
    assert_eq!(world.settle(Some(&pod)), ["stop s2/0 7s", "create s2/1", "start s2/1"]);
}

#[test]
fn sidecars_do_not_keep_a_pod_from_its_end() {
    for (policy, exit_code) in [("Never", 1), ("Never", 0), ("OnFailure", 0)] {
        let pod = with_sidecars(&format!("restartPolicy: {policy}"));
        let mut world = world_with_sidecars(&pod);
        world.crash("a/0", 0);
        assert_eq!(world.settle(Some(&pod)), Vec::<String>::new());
        world.crash("b/0", exit_code);
        assert_eq!(world.settle(Some(&pod)), ["stop s2/0 7s", "stop s1/0 7s", "stop POD/0 2s"], "{policy}");
    }
}

#[test]
fn sidecars_stop_after_the_regular_containers_in_reverse_order_even_without_the_manifest() {
    let pod = with_sidecars("");
    let mut world = world_with_sidecars(&pod);
    world.state = PodState::default();
    let decision = world.decide(None);
    let [Action::Stop(stops)] = decision.actions.as_slice() else { panic!("{decision:?}") };
    let turns: Vec<_> = stops.iter().map(|stop| (stop.container.as_str(), stop.turn)).collect();
    assert_eq!(turns, [("a", 0), ("b", 0), ("s2", 1), ("s1", 2)]);
    let timings = world.timings;
    world.state.failed("b", "KillContainerError", "it hangs".into(), world.now, &timings);
    let decision = world.decide(None);
    let [Action::Stop(stops)] = decision.actions.as_slice() else { panic!("{decision:?}") };
    assert_eq!(stops.len(), 1, "the sidecars wait until all regular containers are stopped: {stops:?}");
    world.pass(1);
    assert_eq!(world.settle(None)[4..6], ["stop POD/0 2s", "remove POD/0"]);
}

#[test]
fn a_sidecar_counts_on_in_a_new_sandbox() {
    let pod = with_sidecars("");
    let mut world = world_with_sidecars(&pod);
    world.crash("POD/0", 137);
    let done = world.settle(Some(&pod));
    let stops = ["stop a/0 7s", "stop b/0 7s", "stop s2/0 7s", "stop s1/0 7s", "remove i/0"];
    assert_eq!(done[..5], stops);
    assert_eq!(done[5..9], ["create POD/1", "start POD/1", "create s1/1", "start s1/1"]);
}

#[test]
fn restart_policies() {
    for (policy, exit_code, restarted) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 0, false),
        ("Never", 1, false),
    ] {
        let mut world = World::new();
        let pod = web(&format!("restartPolicy: {policy}"));
        world.settle(Some(&pod));
        world.crash("c/0", exit_code);
        let expected: &[&str] = if restarted { &["create c/1", "start c/1"] } else { &[] };
        assert_eq!(world.settle(Some(&pod)), expected, "{policy} {exit_code}");
        world.state = PodState::default();
        assert_eq!(world.settle(Some(&pod)), Vec::<String>::new(), "{policy} {exit_code} after a new agent");
    }
}

#[test]
fn crash_back_off_is_the_kubelets() {
    let mut world = World::new();
    let pod = web("");
    world.settle(Some(&pod));
    for (attempt, wait) in [(0, 0), (1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 300), (7, 300)] {
        world.crash(&format!("c/{attempt}"), 1);
        if wait > 0 {
            assert_eq!(world.settle(Some(&pod)), [format!("remove c/{}", attempt - 1)]);
            assert_eq!(world.wake_at, Some(after(world.now, Duration::from_secs(wait))), "{attempt}");
            let message = format!("back-off {wait}s restarting failed container=c pod=web-node-1_default({})", pod.uid);
            assert_eq!(world.waiting["c"].message, message);
            world.pass(wait);
        }
        let done = world.settle(Some(&pod));
        assert_eq!(done[..2], [format!("create c/{}", attempt + 1), format!("start c/{}", attempt + 1)]);
    }
    world.pass(601);
    world.crash("c/8", 1);
    assert_eq!(world.settle(Some(&pod))[0], "create c/9", "after ten minutes of running it starts over");
    world.crash("c/9", 1);
    world.settle(Some(&pod));
    assert_eq!(world.wake_at, Some(after(world.now, Duration::from_secs(10))));
}

#[test]
fn a_failed_creation_does_not_advance_the_crash_back_off() {
    let mut world = World::new();
    let pod = web("");
    world.settle(Some(&pod));
    world.crash("c/0", 1);
    let decision = world.decide(Some(&pod));
    assert_eq!(decision.actions, [Action::Create { container: "c".into(), attempt: 1 }]);
    world.state = decision.state;
    world.state.failed("c", "CreateContainerError", "no space".into(), world.now, &Timings::default());
    world.settle(Some(&pod));
    assert_eq!((world.waiting["c"].reason, world.waiting["c"].message.as_str()), ("CreateContainerError", "no space"));
    world.pass(1);
    assert_eq!(world.settle(Some(&pod)), ["create c/1", "start c/1"]);
    world.crash("c/1", 1);
    world.settle(Some(&pod));
    assert_eq!(world.wake_at, Some(after(world.now, Duration::from_secs(10))));
}

#[test]
fn a_container_that_cannot_be_started_counts_as_crashed() {
    let mut world = World::new();
    let pod = web("");
    let id = world.create(&pod, "c", 0);
    world.containers.get_mut(&id).unwrap().state = State::Created { error: Some("no such file".into()) };
    assert_eq!(world.settle(Some(&pod)), ["create c/1", "start c/1"]);
}

#[test]
fn a_clock_set_back_does_not_stretch_the_wait() {
    let mut world = World::new();
    let pod = web("");
    world.settle(Some(&pod));
    world.crash("c/0", 1);
    world.settle(Some(&pod));
    world.crash("c/1", 1);
    world.now = world.now.checked_sub(SignedDuration::from_hours(5)).unwrap();
    assert_eq!(world.settle(Some(&pod))[0], "create c/2");
}

#[test]
fn a_dependency_that_comes_back_cuts_back_off_short() {
    let mut world = World::new();
    let pod = web("");
    world.settle(Some(&pod));
    for attempt in 0..3 {
        world.crash(&format!("c/{attempt}"), 1);
        world.pass(40);
        world.settle(Some(&pod));
    }
    world.crash("c/3", 1);
    assert_eq!(world.settle(Some(&pod)), ["remove c/2"]);
    world.dependency_ready_at = Some(world.now);
    assert_eq!(world.settle(Some(&pod)), Vec::<String>::new(), "it was ready before the crash");
    world.pass(1);
    world.dependency_ready_at = Some(world.now);
    assert_eq!(world.settle(Some(&pod))[0], "create c/4");
}

#[test]
fn a_new_spec_starts_when_the_old_containers_are_gone() {
    let mut world = World::new();
    let old = web("");
    let new = web("hostIPC: true");
    world.settle(Some(&old));
    let done = world.settle_edit(&new);
    assert_eq!(done, ["stop c/0 7s", "remove c/0", "discard", "create c/0", "start c/0"]);
    assert!(world.containers.values().all(|container| belongs_to(container, &new)));
}

#[test]
fn a_new_spec_starts_without_the_old_ones_back_off() {
    let mut world = World::new();
    let old = web("");
    world.settle(Some(&old));
    for attempt in 0..3 {
        world.crash(&format!("c/{attempt}"), 1);
        world.pass(40);
        world.settle(Some(&old));
    }
    world.crash("c/3", 1);
    let new = web("hostIPC: true");
    assert_eq!(world.settle_edit(&new).last().unwrap(), "start c/0");
    world.crash("c/0", 1);
    assert_eq!(world.settle(Some(&new))[0], "create c/1");
}

#[test]
fn the_same_uid_with_another_spec_is_replaced_as_well() {
    let mut world = World::new();
    let old = StaticPod { uid: "pinned".into(), ..web("") };
    let new = StaticPod { uid: "pinned".into(), ..web("hostIPC: true") };
    world.settle(Some(&old));
    assert_eq!(world.settle_edit(&new), ["stop c/0 7s", "remove c/0", "create c/0", "start c/0"]);
}

#[test]
fn a_removed_pod_is_stopped_with_its_own_grace_even_by_an_agent_that_never_saw_its_manifest() {
    let mut world = World::new();
    world.settle(Some(&web("")));
    world.state = PodState::default();
    assert_eq!(world.settle(None), ["stop c/0 7s", "remove c/0"]);
    assert!(world.gone);
}

#[test]
fn a_sandbox_is_stopped_after_its_inhabitants() {
    let (mut world, _) = two_initialized();
    let done = world.settle(None);
    assert_eq!(done[..3], ["stop a/0 30s", "stop b/0 30s", "stop POD/0 2s"]);
    assert!(world.gone && world.containers.is_empty());
}

#[test]
fn a_pod_whose_sandbox_died_is_rebuilt_with_its_init_containers() {
    let (mut world, pod) = two_initialized();
    world.crash("POD/0", 137);
    let done = world.settle(Some(&pod));
    let expected =
        ["stop a/0 30s", "stop b/0 30s", "remove i1/0", "remove i2/0", "create POD/1", "start POD/1", "create i1/0"];
    assert_eq!(done[..7], expected);
    world.crash("i1/0", 0);
    world.settle(Some(&pod));
    world.crash("i2/0", 0);
    let done = world.settle(Some(&pod));
    assert_eq!(done[..4], ["create a/1", "create b/1", "start a/1", "start b/1"]);
}

#[test]
fn a_pod_whose_sandbox_was_removed_is_rebuilt_as_well() {
    let (mut world, pod) = two_initialized();
    let sandbox = world.id("POD/0");
    world.containers.remove(&sandbox);
    let done = world.settle(Some(&pod));
    let expected =
        ["stop a/0 30s", "stop b/0 30s", "remove i1/0", "remove i2/0", "create POD/0", "start POD/0", "create i1/0"];
    assert_eq!(done[..7], expected);
}

#[test]
fn after_a_boot_init_containers_run_again() {
    let mut world = World::new();
    let pod = web("initContainers: [{name: i, image: 'i:1'}]");
    world.settle(Some(&pod));
    world.crash("i/0", 0);
    world.settle(Some(&pod));
    world.crash("c/0", 137);
    world.pass(60);
    world.booted_at = world.now;
    world.state = PodState::default();
    assert_eq!(world.settle(Some(&pod)), ["create i/1", "start i/1"]);
    world.crash("i/1", 0);
    assert_eq!(world.settle(Some(&pod))[..2], ["create c/1", "start c/1"]);
}

#[test]
fn liveness_and_start_up_failures_restart_with_the_probes_own_grace() {
    for (kind, field) in [(ProbeKind::Liveness, "livenessProbe"), (ProbeKind::Startup, "startupProbe")] {
        let mut world = World::new();
        let pod = pod(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  hostNetwork: true\n  containers:\n  - name: c\n    \
             image: 'i:1'\n    {field}: {{tcpSocket: {{port: 1}}, terminationGracePeriodSeconds: 3}}\n"
        ));
        world.settle(Some(&pod));
        let failed = Some((kind, "it failed".to_owned()));
        world.health.insert(world.id("c/0"), Health { failed, ..Health::default() });
        assert_eq!(world.settle(Some(&pod)), ["stop c/0 3s", "create c/1", "start c/1"]);
    }
}

fn hooked() -> StaticPod {
    pod(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  terminationGracePeriodSeconds: 7\n  containers:\n  \
         - {name: a, image: 'i:1', lifecycle: {postStart: {exec: {command: [x]}}}}\n  - {name: b, image: 'i:1'}\n",
    )
}

fn post_start(world: &mut World, short: &str, post_start: Option<PostStart>) {
    world.health.insert(world.id(short), Health { started: true, ready: true, post_start, ..Health::default() });
}

#[test]
fn while_a_post_start_hook_runs_the_next_container_is_not_started() {
    let mut world = World::new();
    let pod = hooked();
    for expected in [&["create POD/0"][..], &["start POD/0"], &["create a/0", "create b/0"], &["start a/0"]] {
        let decision = world.decide(Some(&pod));
        world.state = decision.state;
        world.log.clear();
        decision.actions.iter().for_each(|action| world.act(action, Some(&pod)));
        assert_eq!(world.log, expected);
    }
    post_start(&mut world, "a/0", Some(PostStart::Runs));
    assert_eq!(world.settle(Some(&pod)), Vec::<String>::new());
    assert_eq!(world.waiting["a"].reason, "ContainerCreating");
    post_start(&mut world, "a/0", None);
    assert_eq!(world.settle(Some(&pod)), ["start b/0"]);
}

#[test]
fn a_failed_post_start_hook_kills_and_restarts_the_container() {
    let mut world = World::new();
    let pod = hooked();
    world.settle(Some(&pod));
    post_start(&mut world, "a/0", Some(PostStart::Failed("exit code 1".into())));
    let decision = world.decide(Some(&pod));
    let [Action::Stop(stops)] = decision.actions.as_slice() else { panic!("{decision:?}") };
    assert_eq!((stops[0].why.as_str(), stops[0].grace.as_secs()), ("FailedPostStartHook: exit code 1", 7));
    assert_eq!(world.settle(Some(&pod))[1..], ["create a/1", "start a/1"]);
}

#[test]
fn a_sidecar_has_not_started_before_its_hook_has_ended() {
    let mut world = World::new();
    let pod = with_sidecars("");
    world.settle(Some(&pod));
    post_start(&mut world, "s1/0", Some(PostStart::Runs));
    assert_eq!(world.settle(Some(&pod)), Vec::<String>::new());
    post_start(&mut world, "s1/0", None);
    assert_eq!(world.settle(Some(&pod)), ["create i/0", "start i/0"]);
}

#[test]
fn readiness_never_restarts() {
    let mut world = World::new();
    let pod = web("");
    world.settle(Some(&pod));
    world.health.insert(world.id("c/0"), Health { started: true, message: Some("503".into()), ..Health::default() });
    assert_eq!(world.settle(Some(&pod)), Vec::<String>::new());
}

fn unready(world: &World, started: bool) -> Unready {
    Unready {
        key: PodKey { namespace: "default".into(), name: "etcd-node-1".into() },
        started_at: started.then_some(world.now),
        budget: Duration::from_mins(4),
        reason: "connection refused".into(),
    }
}

#[test]
fn a_held_pod_is_created_but_started_only_when_the_hold_ends() {
    let mut world = World::new();
    let pod = web("");
    world.unready = vec![unready(&world, true)];
    assert_eq!(world.settle(Some(&pod)), ["create c/0"]);
    assert_eq!(world.waiting["c"].message, "waits for etcd-node-1 (connection refused)");
    world.unready.clear();
    assert_eq!(world.settle(Some(&pod)), ["start c/0"]);
}

#[test]
fn the_hold_lasts_as_long_as_the_named_pod_may_take() {
    for started in [true, false] {
        let mut world = World::new();
        let pod = web("");
        world.unready = vec![unready(&world, started)];
        world.settle(Some(&pod));
        world.pass(239);
        assert_eq!(world.settle(Some(&pod)), Vec::<String>::new());
        assert_eq!(world.wake_at, Some(after(world.now, Duration::from_secs(1))));
        world.pass(1);
        assert_eq!(world.settle(Some(&pod)), ["start c/0"]);
    }
}

#[test]
fn the_hold_is_for_the_first_start_only() {
    let mut world = World::new();
    let pod = web("");
    world.settle(Some(&pod));
    world.unready = vec![unready(&world, true)];
    world.crash("c/0", 1);
    assert_eq!(world.settle(Some(&pod)), ["create c/1", "start c/1"]);
}

#[test]
fn a_held_pod_with_a_sandbox_is_not_even_created() {
    let mut world = World::new();
    world.unready = vec![unready(&world, true)];
    assert_eq!(world.settle(Some(&two(""))), Vec::<String>::new());
}

#[test]
fn of_each_container_the_last_dead_one_is_kept() {
    let mut world = World::new();
    let pod = web("");
    world.settle(Some(&pod));
    for attempt in 0..4 {
        world.crash(&format!("c/{attempt}"), 1);
        world.pass(300);
        world.settle(Some(&pod));
    }
    let mut left: Vec<_> = world.containers.keys().map(|id| world.short(id)).collect();
    left.sort();
    assert_eq!(left, ["c/3", "c/4"]);
}

#[test]
fn pull_policies() {
    let with = |policy: &str| {
        pod(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  hostNetwork: true\n  \
             containers: [{{name: c, image: 'i:1', imagePullPolicy: {policy}}}]\n"
        ))
    };
    let mut world = World::new();
    assert_eq!(world.settle(Some(&with("Always"))), ["pull c", "create c/0", "start c/0"]);
    world.crash("c/0", 1);
    assert_eq!(world.settle(Some(&with("Always")))[..2], ["pull c", "create c/1"]);

    let mut world = World::new();
    let pod = with("IfNotPresent");
    world.state = world.decide(Some(&pod)).state;
    world.state.image_missing("c", world.now);
    assert_eq!(world.settle(Some(&pod)), ["pull c", "create c/0", "start c/0"]);

    let mut world = World::new();
    let pod = with("Never");
    world.state = world.decide(Some(&pod)).state;
    world.state.image_missing("c", world.now);
    assert_eq!(world.settle(Some(&pod)), Vec::<String>::new());
    assert_eq!(world.waiting["c"].reason, "ErrImageNeverPull");
    world.pass(5);
    assert_eq!(world.settle(Some(&pod)), ["create c/0", "start c/0"], "it may have been brought by hand");
}

#[test]
fn failed_pulls_back_off_and_the_image_is_looked_for_meanwhile() {
    let mut world = World::new();
    let pod = web("");
    let timings = Timings::default();
    world.state = world.decide(Some(&pod)).state;
    world.state.image_missing("c", world.now);
    world.state.pull_failed("c", "cannot pull".into(), world.now, &timings);
    world.settle(Some(&pod));
    assert_eq!(world.waiting["c"].reason, "ErrImagePull");
    world.pass(5);
    assert_eq!(world.decide(Some(&pod)).actions, [Action::Create { container: "c".into(), attempt: 0 }]);
    world.state.image_missing("c", world.now);
    world.pass(5);
    assert_eq!(world.decide(Some(&pod)).actions, [Action::Pull { container: "c".into() }]);
    world.state.pull_failed("c", "cannot pull".into(), world.now, &timings);
    world.state.image_missing("c", world.now);
    world.settle(Some(&pod));
    assert_eq!(world.waiting["c"].reason, "ImagePullBackOff");
}

/// What may happen to a pod.
#[derive(Debug, Clone)]
enum Happening {
    Edit(u8),
    Remove,
    Crash {
        which: usize,
        exit_code: i64,
    },
    Unhealthy(usize),
    Vanish(usize),
    Time(u64),
    NewAgent,
    /// The next steps are decided, but only so many of their actions are done.
    Interrupt(usize),
    Fail(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (0..5_u8).prop_map(Happening::Edit),
        Just(Happening::Remove),
        (0..8_usize, 0..2_i64).prop_map(|(which, exit_code)| Happening::Crash { which, exit_code }),
        (0..8_usize).prop_map(Happening::Unhealthy),
        (0..8_usize).prop_map(Happening::Vanish),
        (0..700_u64).prop_map(Happening::Time),
        Just(Happening::NewAgent),
        (0..4_usize).prop_map(Happening::Interrupt),
        (0..3_u8).prop_map(Happening::Fail),
    ]
}

fn variant(number: u8) -> StaticPod {
    match number {
        0 => web(""),
        1 => web("hostPID: true"),
        2 => two(""),
        3 => with_sidecars(""),
        _ => StaticPod { uid: web("").uid, ..web("hostIPC: true") },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// [`World::act`] asserts on the way that no two pods of one name run, that running containers are never removed,
    /// and that only known containers are named.
    #[test]
    fn whatever_happens_it_converges(happenings in prop::collection::vec(happening(), 0..30), last in 0..5_u8) {
        let mut world = World::new();
        let mut desired = None;
        for happening in happenings {
            let ids: Vec<_> = world.containers.keys().cloned().collect();
            let pick = |which: usize| ids.get(which % ids.len().max(1)).cloned();
            match happening {
                Happening::Edit(number) => desired = Some(variant(number)),
                Happening::Remove => desired = None,
                Happening::Crash { which, exit_code } => {
                    if let Some(id) = pick(which) {
                        world.end(&id, exit_code);
                    }
                }
                Happening::Unhealthy(which) => {
                    if let Some(id) = pick(which) {
                        let failed = Some((ProbeKind::Liveness, String::new()));
                        world.health.insert(id, Health { failed, ..Health::default() });
                    }
                }
                Happening::Vanish(which) => {
                    if let Some(id) = pick(which) {
                        world.containers.remove(&id);
                    }
                }
                Happening::Time(seconds) => world.pass(seconds),
                Happening::NewAgent => world.state = PodState::default(),
                Happening::Interrupt(actions) => {
                    let decision = world.decide(desired.as_ref());
                    world.state = decision.state;
                    for action in decision.actions.iter().take(actions) {
                        world.act(action, desired.as_ref());
                    }
                    continue;
                }
                Happening::Fail(which) => {
                    let name = ["c", "a", SANDBOX][usize::from(which)];
                    let timings = world.timings;
                    world.state.failed(name, "RunContainerError", String::new(), world.now, &timings);
                    world.state.image_missing(name, world.now);
                }
            }
            world.settle(desired.as_ref());
        }
        let wanted = variant(last);
        for _ in 0..20 {
            world.settle(Some(&wanted));
            let ids: Vec<_> = world.containers.keys().cloned().collect();
            for id in ids {
                if name_of(&world.containers[&id]) == "s1" && is_running(&world.containers[&id]) {
                    world.health.entry(id).or_insert(Health { started: true, ready: true, ..Health::default() });
                }
            }
            for init in ["i", "i1", "i2"] {
                let ids: Vec<_> = world.containers.keys().cloned().collect();
                for id in ids {
                    if name_of(&world.containers[&id]) == init {
                        world.end(&id, 0);
                    }
                }
            }
            world.pass(400);
        }
        let mut names: Vec<_> = world.running().iter().map(|short| short.split('/').next().unwrap().to_owned()).collect();
        names.sort();
        let expected: &[&str] = match last {
            2 => &["POD", "a", "b"],
            3 => &["POD", "a", "b", "s1", "s2"],
            _ => &["c"],
        };
        prop_assert_eq!(names, expected);
        prop_assert_eq!(world.settle(Some(&wanted)), Vec::<String>::new());
        for _ in 0..5 {
            world.settle(None);
            world.pass(400);
        }
        prop_assert!(world.gone && world.containers.is_empty());
    }
}
