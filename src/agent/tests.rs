//! The whole agent on the in-memory runtime, with time paused.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::ledger::tests::Gated;
use super::*;
use crate::journal::{Creation, JournalError, Record};
use crate::runtime::fake::{FakeRuntime, Op, Program};
use crate::runtime::{ContainerSpec, State};

mod sources;
mod timing;
mod uids;

/// What the agents of a host have recorded as made, and not as gone.
#[derive(Default)]
struct Recorded(Mutex<BTreeSet<Creation>>);

impl Ledger for Recorded {
    fn record(&self, records: &[Record]) -> Result<(), JournalError> {
        let mut recorded = self.0.lock().unwrap();
        for record in records {
            match record {
                Record::Make { what } => _ = recorded.insert(what.clone()),
                Record::Gone { what } => _ = recorded.remove(what),
                other => panic!("{other:?}"),
            }
        }
        Ok(())
    }
}

/// A host with an agent that can be stopped and started again.
struct Host {
    root: TempDir,
    clock: Clock,
    fake: FakeRuntime,
    recorded: Arc<Recorded>,
    ledger: Arc<dyn Ledger>,
    agent: Option<(CancellationToken, JoinHandle<Result<(), AgentError>>)>,
    tick: Duration,
    _ticker: JoinSet<()>,
}

impl Host {
    fn new() -> Self {
        Self::ticking(Duration::from_millis(10))
    }

    /// One whose clock goes in larger steps, for tests that take many minutes of it.
    fn ticking(tick: Duration) -> Self {
        let clock = Clock::fixed(jiff::Timestamp::now());
        let fake = FakeRuntime::new(clock.clone());
        for image in ["i:1", "i:2", "pause:1"] {
            fake.add_image(image);
        }
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(Layout::new(root.path()).manifests()).unwrap();
        let mut ticker = JoinSet::new();
        let moving = clock.clone();
        ticker.spawn(async move {
            loop {
                sleep(tick).await;
                moving.advance(tick.try_into().unwrap());
            }
        });
        let recorded = Arc::new(Recorded::default());
        let ledger = Arc::clone(&recorded) as Arc<dyn Ledger>;
        Self { root, clock, fake, recorded, ledger, agent: None, tick, _ticker: ticker }
    }

    fn started() -> Self {
        let mut host = Self::new();
        host.start();
        host
    }

    fn layout(&self) -> Layout {
        Layout::new(self.root.path())
    }

    fn start(&mut self) {
        self.start_with(|_| {});
    }

    fn start_with(&mut self, change: impl FnOnce(&mut Options)) {
        let mut options = Options::new(self.layout(), "node", "pause:1");
        options.file_check_period = self.tick * 10;
        options.ledger = Arc::clone(&self.ledger);
        change(&mut options);
        let shutdown = CancellationToken::new();
        let agent = tokio::spawn(run(options, self.fake.clone(), self.clock.clone(), shutdown.clone()));
        self.agent = Some((shutdown, agent));
    }

    async fn stop(&mut self) {
        let (shutdown, agent) = self.agent.take().unwrap();
        shutdown.cancel();
        agent.await.unwrap().unwrap();
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.layout().manifests().join(format!("{name}.yaml")), text).unwrap();
    }

    fn delete(&self, name: &str) {
        std::fs::remove_file(self.layout().manifests().join(format!("{name}.yaml"))).unwrap();
    }

    /// Names of running containers, without UID and attempt.
    fn running(&self) -> Vec<String> {
        let mut names: Vec<_> = self.fake.running().iter().map(|name| short(name)).collect();
        names.sort();
        names
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_mins(15);
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what}: {:#?}\n{:#?}", self.fake.changes(), self.fake.containers());
            sleep(self.tick).await;
        }
    }

    async fn until_running(&self, names: &[&str]) {
        self.until(&format!("{names:?} run"), |host| host.running() == names).await;
    }

    /// Everything below the directories of log links, with where links lead.
    fn logs(&self) -> BTreeMap<String, Option<String>> {
        fn walk(directory: &Path, found: &mut BTreeMap<String, Option<String>>) {
            for path in std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()) {
                let target = std::fs::read_link(&path).ok().map(|target| target.display().to_string());
                if target.is_none() {
                    walk(&path, found);
                }
                found.insert(path.display().to_string(), target);
            }
        }
        let mut found = BTreeMap::new();
        walk(&self.layout().pod_logs(), &mut found);
        walk(&self.layout().container_logs(), &mut found);
        found
    }

    /// Links to the log of every container there is, and nothing else; each known to the ledger.
    fn assert_logs(&self) {
        let mut wanted = BTreeMap::new();
        for container in self.fake.containers().iter().filter(|container| container.labels.contains_key(labels::AGENT))
        {
            let label = |key: &str| container.labels[key].as_str();
            let (pod, namespace, name) =
                (label(labels::POD_NAME), label(labels::POD_NAMESPACE), label(labels::CONTAINER_NAME));
            let Some(file) = container.log_path.as_ref().filter(|_| name != step::SANDBOX) else { continue };
            let directory = self.layout().pod_logs().join(format!("{namespace}_{pod}_{}", label(labels::POD_UID)));
            let inner = directory.join(name).join(format!("{}.log", label(labels::RESTART_COUNT)));
            let outer = self.layout().container_logs().join(format!("{pod}_{namespace}_{name}-{}.log", container.id));
            wanted.insert(directory.display().to_string(), None);
            wanted.insert(directory.join(name).display().to_string(), None);
            wanted.insert(outer.display().to_string(), Some(inner.display().to_string()));
            wanted.insert(inner.display().to_string(), Some(file.display().to_string()));
        }
        assert_eq!(self.logs(), wanted);
        let recorded = self.recorded.0.lock().unwrap();
        for (path, target) in wanted {
            let path = path.into();
            let what = if target.is_some() { Creation::File { path } } else { Creation::Directory { path } };
            assert!(recorded.contains(&what), "{what:?} is not in {recorded:#?}");
        }
        for container in self.fake.containers().iter().filter(|container| container.name != "foreign") {
            assert!(recorded.contains(&Creation::Container { id: container.id.clone() }), "{container:?}");
        }
    }

    async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::UnixStream::connect(self.layout().socket()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn status(&self) -> status::AgentStatus {
        let answer = self.get("/status").await;
        serde_json::from_str(&answer[answer.find('{').unwrap()..=answer.rfind('}').unwrap()]).unwrap()
    }
}

/// `k8s_c_web-node_default_<uid>_0` → `c_web-node_default`.
fn short(name: &str) -> String {
    name.split('_').skip(1).take(3).collect::<Vec<_>>().join("_")
}

fn pod(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  {more}\nspec:\n  hostNetwork: true\n  \
         containers: [{{name: c, image: '{image}'}}]\n"
    )
}

#[tokio::test(start_paused = true)]
async fn a_pod_starts_restarts_changes_and_goes() {
    let host = Host::started();
    host.write("web", &pod("web", "i:1", ""));
    host.until_running(&["c_web-node_default"]).await;
    let first = host.fake.running()[0].clone();
    assert!(first.ends_with("_0"), "{first}");

    host.fake.kill(&first, 137);
    host.until("it is restarted", |host| host.fake.running().first().is_some_and(|name| name.ends_with("_1"))).await;

    host.write("web", &pod("web", "i:2", ""));
    host.until("it is replaced", |host| {
        host.fake.containers().iter().any(|c| c.image == "i:2" && matches!(c.state, State::Running { .. }))
    })
    .await;
    host.until("the old ones are gone", |host| host.fake.containers().len() == 1).await;

    host.delete("web");
    host.until("it is gone", |host| host.fake.containers().is_empty()).await;
    host.until("its directories are gone", |host| std::fs::read_dir(host.layout().pods()).unwrap().count() == 0).await;
    assert!(host.status().await.pods.is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_many_quick_edits_only_the_last_is_made() {
    let host = Host::started();
    host.write("web", &pod("web", "i:1", ""));
    host.until_running(&["c_web-node_default"]).await;
    for version in 0..100 {
        host.write("web", &pod("web", "i:1", &format!("labels: {{v: v{version}}}")));
        sleep(Duration::from_millis(50)).await;
    }
    host.write("web", &pod("web", "i:2", ""));
    host.until("the last one runs", |host| {
        host.fake.containers().iter().any(|c| c.image == "i:2" && step::is_running(c))
    })
    .await;
    assert_eq!(host.fake.count(Op::Create), 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_takes_over_what_is_right() {
    let mut host = Host::started();
    host.write("web", &pod("web", "i:1", ""));
    host.until_running(&["c_web-node_default"]).await;
    host.until("the manifest is kept", |host| host.fake.count(Op::Start) == 1).await;
    sleep(Duration::from_secs(1)).await;
    host.stop().await;
    assert_eq!(host.running(), ["c_web-node_default"], "containers outlive the agent");
    host.fake.forget_calls();
    host.start();
    sleep(Duration::from_mins(1)).await;
    assert_eq!(host.fake.changes(), Vec::<String>::new());
    assert_eq!(host.running(), ["c_web-node_default"]);
}

#[tokio::test(start_paused = true)]
async fn what_changed_while_the_agent_was_away_never_overlaps_and_gets_its_grace() {
    let mut host = Host::new();
    host.fake.set_program("i:1", Program::default().stops_after(Duration::from_secs(5), 0));
    host.start();
    host.write("web", &pod("web", "i:1", ""));
    host.write("gone", &pod("gone", "i:1", ""));
    host.until_running(&["c_gone-node_default", "c_web-node_default"]).await;
    host.stop().await;
    host.write("web", &pod("web", "i:2", ""));
    host.delete("gone");
    host.start();
    host.until("both are stopped by SIGTERM, and the new one runs", |host| {
        let images: Vec<_> = host.fake.containers().iter().map(|c| c.image.clone()).collect();
        assert!(host.running().iter().filter(|name| name.contains("web")).count() <= 1);
        images == ["i:2"] && host.running() == ["c_web-node_default"]
    })
    .await;
    assert!(!host.fake.changes().iter().any(|change| change.starts_with("kill")));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_breaks_keeps_its_pod_even_over_a_restart() {
    let mut host = Host::started();
    host.write("web", &pod("web", "i:1", ""));
    host.until_running(&["c_web-node_default"]).await;
    sleep(Duration::from_secs(1)).await;
    host.write("web", "kind: [");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(host.running(), ["c_web-node_default"]);
    host.stop().await;
    host.start();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(host.running(), ["c_web-node_default"]);
    let status = host.status().await;
    assert!(status.sources[0].rejected[0].reason.contains("last good"), "{status:#?}");
    let id = host.fake.running()[0].clone();
    host.fake.kill(&id, 1);
    host.until("it is even restarted", |host| host.fake.running().first().is_some_and(|name| name.ends_with("_1")))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_directory_keeps_its_pods_and_an_empty_one_stops_them() {
    let mut host = Host::started();
    host.write("web", &pod("web", "i:1", ""));
    host.until_running(&["c_web-node_default"]).await;
    sleep(Duration::from_secs(1)).await;
    std::fs::remove_dir_all(host.layout().manifests()).unwrap();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(host.running(), ["c_web-node_default"]);
    assert!(host.status().await.sources[0].problem.is_some());
    host.stop().await;
    host.start();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(host.running(), ["c_web-node_default"]);
    std::fs::create_dir(host.layout().manifests()).unwrap();
    host.until("it is stopped", |host| host.fake.containers().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn lost_events_are_made_up_for() {
    let host = Host::started();
    host.fake.lose_events(true);
    host.write("web", &pod("web", "i:1", ""));
    host.until_running(&["c_web-node_default"]).await;
    let first = host.fake.running()[0].clone();
    host.fake.kill(&first, 1);
    host.until("it is restarted", |host| host.fake.running().first().is_some_and(|name| name.ends_with("_1"))).await;
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_was_away_finds_only_the_dead_restarted() {
    let host = Host::started();
    host.write("a", &pod("a", "i:1", ""));
    host.write("b", &pod("b", "i:1", ""));
    host.until_running(&["c_a-node_default", "c_b-node_default"]).await;
    sleep(Duration::from_secs(1)).await;
    let names = host.fake.running();
    let dead = names.iter().find(|name| name.contains("_a-")).unwrap();
    host.fake.forget_calls();
    host.fake.go_away();
    sleep(Duration::from_mins(1)).await;
    let status = host.status().await;
    assert!(status.problem.as_deref().is_some_and(|problem| problem.contains("does not answer")), "{status:#?}");
    host.fake.come_back();
    host.fake.kill(dead, 1);
    host.until("both run", |host| host.fake.running().len() == 2).await;
    sleep(Duration::from_secs(30)).await;
    assert!(host.fake.changes().iter().all(|change| change.contains("_a-node_")), "{:?}", host.fake.changes());
    assert_eq!(host.status().await.problem, None);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_back_before_its_successor_ran_has_its_manifest_kept_again() {
    let host = Host::started();
    host.write("a", &pod("a", "i:1", ""));
    host.until_running(&["c_a-node_default"]).await;
    host.pass(1_000).await;
    host.fake.fail_next(Op::Create, RuntimeError::Refused { operation: "do it".into(), reason: "no".into() });
    host.write("a", &pod("a", "i:2", ""));
    host.until("the first version is gone", |host| host.fake.containers().is_empty()).await;
    host.write("a", &pod("a", "i:1", ""));
    host.until_running(&["c_a-node_default"]).await;
    host.pass(1_000).await;
    let uid = host.status().await.pods.remove(0).uid;
    assert!(host.layout().pods().join(uid).join("manifest.json").exists());
}

#[tokio::test(start_paused = true)]
async fn what_ends_with_the_runtime_is_restarted_with_it_and_without_back_off() {
    let host = Host::started();
    host.write("a", &pod("a", "i:1", ""));
    host.until_running(&["c_a-node_default"]).await;
    for _ in 0..3 {
        host.fake.go_away();
        host.fake.kill(&host.fake.running()[0], 137);
        sleep(Duration::from_secs(5)).await;
        host.fake.come_back();
        let back = Instant::now();
        host.until("it runs again", |host| host.fake.running().len() == 1).await;
        assert!(Instant::now() - back < Duration::from_secs(5));
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_container_is_never_touched() {
    let host = Host::started();
    let labels =
        [(labels::AGENT, "0000000000000000"), (labels::POD_NAME, "web-node"), (labels::POD_NAMESPACE, "default")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let spec = ContainerSpec { name: "foreign".into(), image: "i:1".into(), labels, ..ContainerSpec::default() };
    let foreign = host.fake.create(&spec).await.unwrap();
    host.fake.start(&foreign).await.unwrap();
    host.write("web", &pod("web", "i:1", ""));
    host.until("ours runs too", |host| host.running().len() == 2).await;
    host.delete("web");
    host.until("ours is gone", |host| host.fake.containers().len() == 1).await;
    assert!(matches!(host.fake.container(&foreign).unwrap().state, State::Running { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_slow_stop_of_one_pod_holds_up_no_other_and_the_newest_spec_wins() {
    let host = Host::started();
    host.fake.set_program("i:1", Program::default().stops_after(Duration::from_secs(20), 0));
    host.write("slow", &pod("slow", "i:1", ""));
    host.until_running(&["c_slow-node_default"]).await;
    host.write("slow", &pod("slow", "i:2", "labels: {v: one}"));
    sleep(Duration::from_secs(2)).await;
    host.write("slow", &pod("slow", "i:2", "labels: {v: two}"));
    let before = Instant::now();
    host.write("fast", &pod("fast", "i:2", ""));
    host.until("the other starts", |host| host.running().contains(&"c_fast-node_default".to_owned())).await;
    assert!(before.elapsed() < Duration::from_secs(2));
    host.until("the slow one is replaced", |host| {
        host.fake.containers().iter().all(|c| c.image == "i:2") && host.running().len() == 2
    })
    .await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(host.fake.count(Op::Create), 3, "the version in between was never made");
}

/// The only thread that may block is busy for as long as the gate is closed, as with a volume that takes long to remove.
#[test]
fn slow_file_work_of_one_pod_holds_up_neither_the_socket_nor_another_pod() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let host = Host::started();
        host.fake.set_program("i:1", Program::default().stops_after(Duration::from_secs(1), 0));
        host.write("slow", &pod("slow", "i:1", ""));
        host.write("other", &pod("other", "i:2", ""));
        host.until_running(&["c_other-node_default", "c_slow-node_default"]).await;
        let directory = |host: &Host| std::fs::read_dir(host.layout().pods()).unwrap().count();
        host.until("both manifests are kept", |host| directory(host) == 2).await;
        host.delete("slow");
        host.until("it is being stopped", |host| host.fake.count(Op::Stop) == 1).await;
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || gate.recv());
        host.until("its container is gone", |host| host.fake.containers().len() == 1).await;
        host.fake.kill(&host.fake.running()[0], 1);
        host.until("the other is restarted", |host| host.fake.count(Op::Start) == 3).await;
        assert!(host.get("/healthz").await.starts_with("HTTP/1.1 200"));
        assert_eq!(directory(&host), 2, "the directory waits for its turn");
        open.send(()).unwrap();
        busy.await.unwrap().unwrap();
        host.until("it is gone as well", |host| directory(host) == 1).await;
    });
}

#[tokio::test(start_paused = true)]
async fn events_of_unknown_pods_cost_one_list_and_removals_none() {
    let host = Host::started();
    host.until("the agent listed", |host| host.fake.count(Op::List) == 1).await;
    host.fake.set_program("i:1", Program::default().exits_after(Duration::from_millis(50), 0));
    let agent = std::fs::read_to_string(host.layout().agent_id()).unwrap().trim().to_owned();
    let mut strangers = Vec::new();
    for number in 0..5 {
        let labels = [(labels::AGENT, agent.clone()), (labels::POD_UID, format!("unknown-{number}"))];
        let labels = labels.map(|(key, value)| (key.to_owned(), value)).into();
        let spec =
            ContainerSpec { name: format!("x{number}"), image: "i:1".into(), labels, ..ContainerSpec::default() };
        let id = host.fake.create(&spec).await.unwrap();
        host.fake.start(&id).await.unwrap();
        strangers.push(id);
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(host.fake.count(Op::List), 2);
    for id in strangers {
        host.fake.remove(&id).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(host.fake.count(Op::List), 2);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_fails_again_and_again_is_started_less_and_less_often_and_shown() {
    let host = Host::started();
    host.until("the agent listed", |host| host.fake.count(Op::List) == 1).await;
    host.write("good", &pod("good", "i:2", ""));
    host.until_running(&["c_good-node_default"]).await;
    host.fake.panic_next(Op::Create, 4);
    host.write("bad", &pod("bad", "i:1", ""));
    host.until("it failed", |host| host.fake.count(Op::Create) == 2).await;
    sleep(Duration::from_millis(500)).await;
    let warnings = host.status().await.warnings;
    assert!(
        warnings.iter().any(|warning| warning.contains("bad-node") && warning.contains("panicked")),
        "{warnings:?}"
    );
    host.until_running(&["c_bad-node_default", "c_good-node_default"]).await;
    let of_bad = |call: &crate::runtime::fake::Call| call.op == Op::Create && call.target.contains("_bad-");
    let at: Vec<_> = host.fake.calls().into_iter().filter(of_bad).map(|call| call.at).collect();
    let gaps: Vec<_> = at.windows(2).map(|pair| elapsed(pair[0], pair[1]).as_secs()).collect();
    assert_eq!(gaps, [1, 2, 4, 8]);
    sleep(Duration::from_mins(3)).await;
    assert_eq!(host.status().await.warnings, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_breaks_counts_as_failed() {
    let host = Host::started();
    host.fake.panic_next(Op::Exec, 1);
    host.write("web", &hooked("i:1", "postStart: {exec: {command: [x]}}"));
    host.until("it is stopped and started again", |host| host.fake.count(Op::Start) == 2).await;
    assert_eq!(host.fake.count(Op::Stop), 1);
}

#[tokio::test(start_paused = true)]
async fn last_words_that_the_runtime_could_not_give_are_asked_for_again() {
    let host = Host::started();
    host.write("web", &pod("web", "i:1", "").replace("hostNetwork", "restartPolicy: Never\n  hostNetwork"));
    host.until_running(&["c_web-node_default"]).await;
    let name = host.fake.running()[0].clone();
    host.fake.write_log(&name, "no such flag\n");
    host.fake.fail_next(Op::Logs, RuntimeError::Unreachable("it restarts".to_owned()));
    host.fake.kill(&name, 2);
    host.until("it is asked again", |host| host.fake.count(Op::Logs) == 2).await;
    sleep(Duration::from_secs(1)).await;
    let message = host.status().await.pods[0].message.clone();
    assert_eq!(message.as_deref(), Some("c ended: exit code 2: no such flag"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_the_one_it_names() {
    let host = Host::started();
    host.fake.set_program("i:1", Program::default().answers_exec(1, "not yet"));
    let etcd = pod("etcd", "i:1", "")
        .replace("image: 'i:1'", "image: 'i:1', readinessProbe: {initialDelaySeconds: 30, exec: {command: [ready]}}");
    host.write("a-server", &pod("server", "i:2", "annotations: {plinth.dev/after: etcd}"));
    host.write("etcd", &etcd);
    host.until_running(&["c_etcd-node_default"]).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(host.running(), ["c_etcd-node_default"]);
    let status = host.status().await;
    let message = status.pods.iter().find(|pod| pod.name == "server-node").unwrap().message.clone().unwrap();
    assert!(message.contains("waits for etcd-node") && message.contains("not yet"), "{message}");
    host.fake.set_program("i:1", Program::default().answers_exec(0, ""));
    let before = Instant::now();
    host.until_running(&["c_etcd-node_default", "c_server-node_default"]).await;
    assert!(before.elapsed() < Duration::from_millis(100), "the delay of the probe does not count");
}

#[tokio::test(start_paused = true)]
async fn a_pod_starts_beside_the_one_it_uses_and_comes_back_when_that_is_ready() {
    let host = Host::started();
    host.fake.set_program("i:1", Program::default().answers_exec(1, "not yet"));
    host.fake.set_program("i:2", Program::default().exits_after(Duration::from_secs(1), 1));
    let etcd = pod("etcd", "i:1", "")
        .replace("image: 'i:1'", "image: 'i:1', readinessProbe: {initialDelaySeconds: 30, exec: {command: [ready]}}");
    host.write("server", &pod("server", "i:2", "annotations: {plinth.dev/uses: etcd}"));
    host.write("etcd", &etcd);
    // The first restart is at once; the second one has to wait ten seconds.
    host.until("it has crashed twice", |host| host.fake.count(Op::Create) == 3).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(host.running(), ["c_etcd-node_default"]);
    host.fake.set_program("i:1", Program::default().answers_exec(0, ""));
    let before = Instant::now();
    host.until_running(&["c_etcd-node_default", "c_server-node_default"]).await;
    assert!(before.elapsed() < Duration::from_millis(100), "its back-off is over");
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_one_whose_worker_starts_later() {
    let host = Host::started();
    host.fake.set_program("i:2", Program::default().answers_exec(1, "not yet"));
    let last = pod("z", "i:2", "").replace("image: 'i:2'", "image: 'i:2', readinessProbe: {exec: {command: [ready]}}");
    host.write("a", &pod("a", "i:1", "annotations: {plinth.dev/after: z}"));
    host.write("z", &last);
    host.until_running(&["c_z-node_default"]).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(host.running(), ["c_z-node_default"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_leaves_behind_that_vanished_while_no_agent_ran_is_removed() {
    let mut host = Host::started();
    host.write("web", &pod("web", "i:1", ""));
    host.until_running(&["c_web-node_default"]).await;
    sleep(Duration::from_secs(1)).await;
    host.stop().await;
    let id = host.fake.containers()[0].id.clone();
    host.fake.remove_behind_our_back(&id);
    host.delete("web");
    host.start();
    host.until("its directory is gone", |host| std::fs::read_dir(host.layout().pods()).unwrap().count() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_is_pulled_and_trouble_with_it_is_told() {
    let host = Host::started();
    host.write("web", &pod("web", "j:1", ""));
    host.until("a pull is tried", |host| host.fake.count(Op::Pull) > 0).await;
    sleep(Duration::from_secs(1)).await;
    let status = host.status().await;
    assert!(status.pods[0].message.as_deref().unwrap().contains("j:1"), "{status:#?}");
    assert_eq!(status.pods[0].containers[0].reason, "ErrImagePull");
    let before = Instant::now();
    host.fake.add_image("j:1");
    host.until_running(&["c_web-node_default"]).await;
    assert!(before.elapsed() < Duration::from_secs(7), "an image brought by hand is found before the next pull");
}

#[tokio::test(start_paused = true)]
async fn a_pod_with_a_sandbox_is_rebuilt_when_the_sandbox_dies() {
    let host = Host::started();
    let two = "apiVersion: v1\nkind: Pod\nmetadata: {name: two}\nspec:\n  containers: [{name: a, image: 'i:1'}, {name: b, image: 'i:2'}]\n";
    host.write("two", two);
    host.until_running(&["POD_two-node_default", "a_two-node_default", "b_two-node_default"]).await;
    let sandbox = host.fake.running().into_iter().find(|name| name.contains("POD")).unwrap();
    let spec =
        host.fake.running().into_iter().find_map(|name| host.fake.spec(&name).filter(|s| s.image == "i:1")).unwrap();
    assert!(spec.network.starts_with("container:"));
    host.fake.kill(&sandbox, 137);
    host.until("all are new", |host| {
        host.fake.running().len() == 3 && host.fake.running().iter().all(|name| name.ends_with("_1"))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_socket_shows_everything() {
    let host = Host::started();
    host.write("web", &pod("web", "i:1", ""));
    host.write("bad", "kind: Deployment\napiVersion: apps/v1\n");
    host.until_running(&["c_web-node_default"]).await;
    sleep(Duration::from_secs(1)).await;
    assert!(host.get("/healthz").await.ends_with("ok"));
    let pods = host.get("/pods").await;
    assert!(pods.contains(r#""kind":"PodList""#) && pods.contains(r#""phase":"Running""#), "{pods}");
    assert!(host.get("/metrics").await.contains("plinth_agent_pods 1"));
    let status = host.status().await;
    assert_eq!(status.pods[0].name, "web-node");
    assert!(status.pods[0].ready);
    assert_eq!(status.pods[0].message, None);
    assert!(status.sources[0].rejected[0].reason.contains("Deployment"));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(host.layout().socket()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(start_paused = true)]
async fn a_second_agent_is_refused_and_names_the_first() {
    let host = Host::started();
    sleep(Duration::from_secs(1)).await;
    let options = Options::new(host.layout(), "node", "pause:1");
    let error = run(options, host.fake.clone(), host.clock.clone(), CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("another agent runs already (pid {})", std::process::id()));
}

#[test]
fn the_agents_id_is_made_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent-id");
    let id = agent_id(&path).unwrap();
    assert_eq!(id.len(), 16);
    assert_eq!(agent_id(&path).unwrap(), id);
    std::fs::write(&path, "").unwrap();
    assert!(agent_id(Path::new(&path)).is_err(), "an empty id would make foreign containers ours");
}

fn probed(probe: &str) -> String {
    pod("web", "i:1", "").replace("image: 'i:1'", &format!("image: 'i:1', {probe}: {{exec: {{command: [check]}}}}"))
}

#[tokio::test(start_paused = true)]
async fn a_failing_liveness_probe_restarts_after_three_periods() {
    let host = Host::started();
    host.fake.set_program("i:1", Program::default().answers_exec(0, ""));
    host.write("web", &probed("livenessProbe"));
    host.until_running(&["c_web-node_default"]).await;
    sleep(Duration::from_mins(1)).await;
    assert_eq!(host.fake.count(Op::Create), 1);
    host.fake.set_program("i:1", Program::default().answers_exec(1, "deadlock"));
    let before = Instant::now();
    host.until("it is restarted", |host| host.fake.running().first().is_some_and(|name| name.ends_with("_1"))).await;
    assert!((20..=31).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn readiness_is_not_stale_after_a_restart() {
    let host = Host::started();
    host.fake.set_program("i:1", Program::default().answers_exec(0, ""));
    host.write("web", &probed("readinessProbe"));
    host.until_running(&["c_web-node_default"]).await;
    sleep(Duration::from_secs(30)).await;
    assert!(host.status().await.pods[0].ready);
    host.fake.set_program("i:1", Program::default().answers_exec(1, "warming up"));
    let id = host.fake.running()[0].clone();
    host.fake.kill(&id, 1);
    host.until("it is restarted", |host| host.fake.running().first().is_some_and(|name| name.ends_with("_1"))).await;
    sleep(Duration::from_millis(100)).await;
    let pod = &host.status().await.pods[0];
    assert!(!pod.ready && !pod.containers[0].ready, "{pod:#?}");
    assert!(pod.message.as_deref().unwrap().contains("warming up"), "{pod:#?}");
    sleep(Duration::from_mins(2)).await;
    assert_eq!(host.fake.count(Op::Create), 2, "readiness never restarts");
}

#[tokio::test(start_paused = true)]
async fn a_start_up_probe_holds_back_the_others_and_restarts_when_it_fails() {
    let host = Host::started();
    host.fake.set_program("i:1", Program::default().answers_exec(1, ""));
    let text = probed("startupProbe").replace(
        "[check]}}",
        "[check]}, periodSeconds: 1, failureThreshold: 5}, readinessProbe: {exec: {command: [ready]}}",
    );
    host.write("web", &text);
    host.until_running(&["c_web-node_default"]).await;
    let before = Instant::now();
    host.until("it is restarted", |host| host.fake.running().first().is_some_and(|name| name.ends_with("_1"))).await;
    assert!((4..=6).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
    let pod = &host.status().await.pods[0];
    assert!(!pod.containers[0].started && !pod.ready);
    host.fake.set_program("i:1", Program::default().answers_exec(0, ""));
    sleep(Duration::from_secs(3)).await;
    let pod = &host.status().await.pods[0];
    assert!(pod.containers[0].started && pod.ready);
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_explained() {
    let host = Host::started();
    host.fake.set_program("i:1", Program::default().writes("no such flag\n").exits_after(Duration::from_millis(50), 2));
    host.write("web", &pod("web", "i:1", ""));
    host.until("it crashed twice", |host| host.fake.count(Op::Start) == 2).await;
    sleep(Duration::from_secs(1)).await;
    let pod = &host.status().await.pods[0];
    let message = pod.message.as_deref().unwrap();
    assert!(message.starts_with("c crashed 2 times, last exit code 2: no such flag; restarts in "), "{message}");
    assert_eq!(pod.containers[0].reason, "CrashLoopBackOff");
    sleep(Duration::from_secs(11)).await;
    assert_eq!(host.fake.count(Op::Start), 3);
}

#[tokio::test(start_paused = true)]
async fn a_termination_message_is_shown_also_by_the_next_agent_and_goes_with_its_container() {
    let mut host = Host::started();
    host.fake.set_program("i:1", Program::default().exits_after(Duration::from_millis(100), 2));
    let text = pod("web", "i:1", "").replace("name: c,", "name: c, terminationMessagePath: /why,");
    host.write("web", &text.replace("spec:\n", "spec:\n  restartPolicy: Never\n"));
    let file = |host: &Host| {
        let spec = host.fake.containers().last().and_then(|container| host.fake.spec(&container.id))?;
        Some(spec.mounts.iter().find(|mount| mount.target == "/why")?.source.clone())
    };
    host.until("it is created", |host| file(host).is_some()).await;
    let never = file(&host).unwrap();
    std::fs::write(&never, "the disk is full").unwrap();
    host.until("it ended", |host| host.running().is_empty()).await;
    for _ in 0..2 {
        sleep(Duration::from_secs(1)).await;
        let status = host.status().await;
        let end = status.pods[0].containers[0].last_termination.clone().unwrap();
        assert_eq!((end.exit_code, end.message.as_str()), (2, "the disk is full"));
        assert!(host.get("/pods").await.contains("\"message\":\"the disk is full\""));
        host.stop().await;
        host.start();
    }
    host.write("web", &text);
    host.until("it crashed and was restarted", |host| host.fake.count(Op::Start) == 4).await;
    sleep(Duration::from_secs(1)).await;
    assert!(!never.exists());
    let last = file(&host).unwrap();
    let files = std::fs::read_dir(last.parent().unwrap()).unwrap().count();
    assert_eq!(files, host.fake.containers().len(), "those of removed instances are gone");
}

fn with_sidecars(more: &str) -> String {
    pod("web", "i:1", "").replace(
        "spec:\n",
        &format!(
            "spec:\n  {more}\n  terminationGracePeriodSeconds: 10\n  initContainers:\n  \
             - {{name: s1, image: 'i:2', restartPolicy: Always, startupProbe: {{exec: {{command: [x]}}, periodSeconds: 1, \
             failureThreshold: 60}}, readinessProbe: {{exec: {{command: [x]}}, periodSeconds: 1}}}}\n  \
             - {{name: s2, image: 'i:2', restartPolicy: Always}}\n"
        ),
    )
}

#[tokio::test(start_paused = true)]
async fn sidecars_start_before_and_stop_after_the_regular_containers_within_the_grace() {
    let host = Host::started();
    host.fake.set_program("s1", Program::default().answers_exec(1, "not yet"));
    host.write("web", &with_sidecars(""));
    host.until_running(&["POD_web-node_default", "s1_web-node_default"]).await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!(host.running().len(), 2, "the others wait for its start-up probe");
    let status = host.status().await;
    assert_eq!((status.pods[0].phase.as_str(), status.pods[0].ready), ("Pending", false));
    host.fake.set_program("s1", Program::default().ignores_stop());
    host.until("all run", |host| host.running().len() == 4).await;
    sleep(Duration::from_secs(3)).await;
    let status = host.status().await;
    assert!(status.pods[0].ready, "{status:#?}");
    assert!(host.get("/pods").await.contains("initContainerStatuses"));

    host.fake.set_program("c", Program::default().stops_after(Duration::from_secs(3), 0));
    host.fake.set_program("s2", Program::default().stops_after(Duration::from_secs(4), 0));
    host.fake.forget_calls();
    host.delete("web");
    host.until("it is gone", |host| host.fake.containers().is_empty()).await;
    let stops: Vec<_> = host.fake.calls().into_iter().filter(|call| call.op == Op::Stop).collect();
    let begin = stops[0].at;
    let seen: Vec<_> = stops
        .iter()
        .map(|stop| (short(&stop.target), seconds(elapsed(begin, stop.at)), seconds(stop.limit.unwrap())))
        .collect();
    let expected = [("c", 0, 10), ("s2", 3, 7), ("s1", 7, 3), ("POD", 10, 2)];
    assert_eq!(seen, expected.map(|(name, at, grace)| (format!("{name}_web-node_default"), at, grace)));
}

#[tokio::test(start_paused = true)]
async fn a_pod_with_sidecars_ends_when_its_regular_containers_have() {
    let host = Host::started();
    host.fake.set_program("c", Program::default().exits_after(Duration::from_secs(3), 0));
    host.write("web", &with_sidecars("restartPolicy: Never"));
    host.until("all run", |host| host.running().len() == 4).await;
    let sidecar = host.fake.running().into_iter().find(|name| name.contains("_s2_")).unwrap();
    host.fake.kill(&sidecar, 0);
    host.until("the sidecar runs again", |host| host.running().len() == 4).await;
    host.until("it ended", |host| host.running().is_empty()).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(host.running(), Vec::<String>::new());
    let pod = host.status().await.pods.remove(0);
    assert_eq!(pod.phase, "Succeeded");
    let counts: Vec<_> = pod.containers.iter().map(|c| (c.name.as_str(), c.restart_count)).collect();
    assert_eq!(counts, [("s1", 0), ("s2", 1), ("c", 0)]);
}

/// A pod whose container has this lifecycle, and ten seconds of grace.
fn hooked(image: &str, lifecycle: &str) -> String {
    pod("web", image, "")
        .replace("spec:\n", "spec:\n  terminationGracePeriodSeconds: 10\n")
        .replace("name: c,", &format!("name: c, lifecycle: {{{lifecycle}}},"))
}

#[tokio::test(start_paused = true)]
async fn a_container_counts_as_started_when_its_post_start_hook_has_ended() {
    for hook in ["exec: {command: [x]}", "sleep: {seconds: 5}"] {
        let host = Host::started();
        host.fake.set_program("i:1", Program::default().exec_takes(Duration::from_secs(5)));
        host.write("web", &hooked("i:1", &format!("postStart: {{{hook}}}")));
        host.until_running(&["c_web-node_default"]).await;
        sleep(Duration::from_secs(4)).await;
        let pod = host.status().await.pods.remove(0);
        let container = &pod.containers[0];
        assert_eq!((pod.phase.as_str(), container.state.as_str()), ("Pending", "waiting"), "{hook}");
        assert_eq!(container.reason, "ContainerCreating");
        assert_eq!(pod.message.as_deref(), Some("the postStart hook of c runs"));
        sleep(Duration::from_secs(2)).await;
        assert!(host.status().await.pods[0].ready, "{hook}");
        assert_eq!(host.fake.count(Op::Start), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_post_start_hook_restarts_the_container_with_back_off() {
    let host = Host::started();
    host.fake.set_program("i:1", Program::default().answers_exec(3, "no such user"));
    host.write("web", &hooked("i:1", "postStart: {exec: {command: [x]}}"));
    host.until("it is restarted", |host| host.fake.count(Op::Start) == 2).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!((host.fake.count(Op::Start), host.fake.count(Op::Stop)), (2, 2));
    assert_eq!(host.status().await.pods[0].containers[0].reason, "CrashLoopBackOff");
    host.fake.set_program("i:1", Program::default());
    host.until("it runs at last", |host| host.running().len() == 1).await;
    sleep(Duration::from_secs(1)).await;
    assert!(host.status().await.pods[0].ready);
}

fn surging(image: &str, probes: &str) -> String {
    let probes = format!("image: '{image}', readinessProbe: {{httpGet: {{port: 1}}}}, {probes}");
    pod("web", image, "annotations: {plinth.dev/update: surge}").replace(&format!("image: '{image}'"), &probes)
}

impl Host {
    /// `text` is what served last, by what is kept on disk.
    fn has_proven(&self, text: &str) {
        let path = self.layout().manifests().join("web.yaml");
        let proven = StaticPod::read(text, pod::Origin::File(&path), "node").unwrap();
        let memory = surge::Memory { proven: Arc::new(proven), rejected: None };
        surge::keep(&self.layout().proven(), &memory).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_serving_version_of_a_surging_pod_is_restarted_like_any_other() {
    let text = surging("i:1", "livenessProbe: {exec: {command: [check]}}");
    let hooked = surging("i:1", "lifecycle: {postStart: {exec: {command: [x]}}}");
    // The hook has failed a second time by now, and the probe has not.
    for (text, stops) in [(text, 1), (hooked, 2)] {
        let mut host = Host::new();
        host.has_proven(&text);
        host.fake.set_program("i:1", Program::default().answers_exec(1, "deadlock"));
        host.write("web", &text);
        host.start();
        host.until("it is restarted", |host| host.fake.count(Op::Start) == 2).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!((host.fake.count(Op::Start), host.fake.count(Op::Stop)), (2, stops), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cold_start_waits_for_an_image_only_as_long_as_for_an_answer() {
    let startup = "startupProbe: {httpGet: {port: 1}, failureThreshold: 3, periodSeconds: 10}";
    for pull in [Duration::ZERO, Duration::from_hours(1)] {
        let mut host = Host::new();
        host.fake.set_pull_time(pull);
        host.has_proven(&surging("i:1", startup));
        host.write("web", &surging("j:1", startup));
        host.start();
        let before = Instant::now();
        host.until("the proven one runs", |host| host.running() == ["c_web-node_default"]).await;
        assert!((30..40).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
        let update = host.status().await.pods[0].update.clone().unwrap();
        assert_eq!(update.rejected.as_deref(), Some("not ready within 30 s"));
    }
}

fn elapsed(begin: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(begin)).unwrap()
}

/// Whole seconds, rounded.
fn seconds(duration: Duration) -> u64 {
    (duration + Duration::from_millis(500)).as_secs()
}

/// Seconds from the removal of the pod to each exec and stop, and the grace of the latter.
async fn removal(host: &Host) -> Vec<(Op, u64, u64)> {
    let begin = host.clock.now();
    host.until("it is gone", |host| host.fake.containers().is_empty()).await;
    let calls = host.fake.calls().into_iter().filter(|call| call.at >= begin);
    calls
        .filter(|call| matches!(call.op, Op::Exec | Op::Stop))
        .map(|call| {
            (call.op, seconds(elapsed(begin, call.at)), call.limit.filter(|_| call.op == Op::Stop).map_or(0, seconds))
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_counts_against_the_grace_of_which_two_seconds_are_left() {
    for (takes, at, grace) in [(3, 3, 7), (9, 9, 2), (60, 10, 2)] {
        let host = Host::started();
        let program = Program::default().exec_takes(Duration::from_secs(takes)).ignores_stop();
        host.fake.set_program("i:1", program);
        host.write("web", &hooked("i:1", "preStop: {exec: {command: [x]}}"));
        host.until_running(&["c_web-node_default"]).await;
        sleep(Duration::from_secs(1)).await;
        host.delete("web");
        assert_eq!(removal(&host).await, [(Op::Exec, 0, 0), (Op::Stop, at, grace)], "{takes}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_runs_whoever_stops_the_container() {
    let text = hooked("i:1", "preStop: {exec: {command: [x]}}");
    for (case, down, edit) in [("removed", true, None), ("edited", true, Some("i:2")), ("edited", false, Some("i:2"))] {
        let mut host = Host::started();
        host.fake.set_program("i:1", Program::default().exec_takes(Duration::from_secs(3)));
        host.write("web", &text);
        host.until_running(&["c_web-node_default"]).await;
        if down {
            host.stop().await;
        }
        match edit {
            Some(image) => host.write("web", &pod("web", image, "")),
            None => host.delete("web"),
        }
        if down {
            host.start();
        }
        host.until("the old one is gone", |host| host.fake.containers().iter().all(|c| c.image == "i:2")).await;
        let calls: Vec<_> = host.fake.calls().into_iter().filter(|c| matches!(c.op, Op::Exec | Op::Stop)).collect();
        assert_eq!(calls.len(), 2, "{case} {down}: {calls:?}");
        assert_eq!(calls[0].op, Op::Exec);
        let waited = calls[1].at.duration_since(calls[0].at);
        assert!((2.9..3.2).contains(&waited.as_secs_f64()), "{case} {down}: {waited}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_hooks_of_sidecars_run_before_their_turn() {
    let host = Host::started();
    let text = with_sidecars("").replace("name: s2,", "name: s2, lifecycle: {preStop: {sleep: {seconds: 4}}},");
    host.fake.set_program("c", Program::default().stops_after(Duration::from_secs(3), 0));
    host.write("web", &text);
    host.until("all run", |host| host.running().len() == 4).await;
    sleep(Duration::from_secs(1)).await;
    host.delete("web");
    let stops: Vec<_> = removal(&host).await.into_iter().filter(|(op, ..)| *op == Op::Stop).collect();
    assert_eq!(stops, [(Op::Stop, 0, 10), (Op::Stop, 4, 6), (Op::Stop, 4, 6), (Op::Stop, 4, 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_sub_path_is_mounted_and_one_that_leads_out_is_explained() {
    let host = Host::started();
    let volume = host.root.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::os::unix::fs::symlink("/", volume.join("out")).unwrap();
    let with = |path: &str| {
        pod("web", "i:1", "")
            .replace("spec:\n", &format!("spec:\n  volumes: [{{name: v, hostPath: {{path: {}}}}}]\n", volume.display()))
            .replace("name: c,", &format!("name: c, volumeMounts: [{{name: v, mountPath: /v, {path}}}],"))
    };
    host.write("web", &with("subPath: out"));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(host.fake.count(Op::Create), 0);
    let message = host.status().await.pods.remove(0).message.unwrap();
    assert!(message.contains("subPath `out`"), "{message}");
    host.write("web", &with("subPathExpr: part"));
    host.until_running(&["c_web-node_default"]).await;
    let spec = host.fake.spec(&host.fake.running()[0]).unwrap();
    assert_eq!(spec.mounts[0].source, std::fs::canonicalize(volume.join("part")).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_pod_has_its_grace_also_from_an_engine_that_goes_down() {
    let host = Host::started();
    host.fake.set_program("i:1", Program::default().stops_after(Duration::from_secs(40), 0));
    host.write("web", &pod("web", "i:1", "").replace("spec:\n", "spec:\n  terminationGracePeriodSeconds: 60\n"));
    host.until_running(&["c_web-node_default"]).await;
    host.fake.shut_down().await;
    let State::Exited(end) = host.fake.containers()[0].state.clone() else { panic!("it still runs") };
    assert_eq!(end.exit_code, 0, "it was not killed");
    host.fake.come_back();
    host.until("it runs again", |host| host.running().len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_reads_about_itself_in_files() {
    let items = "[{path: labels, fieldRef: {fieldPath: metadata.labels}}, \
                 {path: on/name, mode: 0400, fieldRef: {fieldPath: metadata.name}}, \
                 {path: memory, resourceFieldRef: {containerName: c, resource: limits.memory, divisor: 1Mi}}]";
    for volume in [
        format!("downwardAPI: {{defaultMode: 0440, items: {items}}}"),
        format!("projected: {{defaultMode: 0440, sources: [{{downwardAPI: {{items: {items}}}}}]}}"),
    ] {
        use std::os::unix::fs::PermissionsExt as _;
        let host = Host::started();
        let text = pod("web", "i:1", "labels: {app: web, tier: front}")
            .replace("spec:\n", &format!("spec:\n  volumes: [{{name: v, {volume}}}]\n"))
            .replace(
                "name: c,",
                "name: c, resources: {limits: {memory: 64Mi}}, volumeMounts: [{name: v, mountPath: /v}],",
            );
        host.write("web", &text);
        host.until_running(&["c_web-node_default"]).await;
        let mount = host.fake.spec(&host.fake.running()[0]).unwrap().mounts[0].clone();
        assert_eq!((mount.target.as_str(), mount.read_only), ("/v", true));
        for (path, mode, content) in
            [("labels", 0o440, "app=\"web\"\ntier=\"front\""), ("on/name", 0o400, "web-node"), ("memory", 0o440, "64")]
        {
            let file = mount.source.join(path);
            assert_eq!(std::fs::read_to_string(&file).unwrap(), content, "{path}");
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, mode, "{path}");
        }
        host.delete("web");
        host.until("nothing is left", |host| std::fs::read_dir(host.layout().pods()).unwrap().count() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_creation_whose_answer_was_lost_is_found_by_its_name() {
    let host = Host::started();
    host.fake.lose_next_answer(Op::Create);
    host.write("web", &pod("web", "i:1", ""));
    host.until_running(&["c_web-node_default"]).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(host.fake.containers().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn logs_are_linked_for_as_long_as_their_container_is_there() {
    let mut host = Host::started();
    let with_sandbox = pod("web", "i:1", "").replace("hostNetwork: true", "hostNetwork: false");
    host.write("web", &with_sandbox);
    host.until_running(&["POD_web-node_default", "c_web-node_default"]).await;
    host.pass(1_000).await;
    host.assert_logs();
    assert_eq!(host.logs().values().flatten().count(), 2, "none for the sandbox");
    for _ in 0..2 {
        host.fake.kill(host.fake.running().iter().find(|name| name.contains("_c_")).unwrap(), 1);
        host.pass(15_000).await;
        host.assert_logs();
    }
    assert_eq!(host.logs().values().flatten().count(), 4, "the one that runs, and the last one that ended");

    // What is missing is made again by the next agent, and what an agent did not live to remove goes.
    host.stop().await;
    let dead = host.fake.containers().into_iter().find(|c| matches!(c.state, State::Exited(_))).unwrap();
    host.fake.remove_behind_our_back(&dead.id);
    let links: Vec<_> = host.logs().into_iter().filter_map(|(path, target)| target.map(|_| path)).collect();
    for path in links.iter().filter(|path| !path.contains(&dead.id) && !path.ends_with("/1.log")) {
        std::fs::remove_file(path).unwrap();
    }
    host.start();
    host.pass(1_000).await;
    host.assert_logs();
    assert_eq!(host.logs().values().flatten().count(), 2);

    host.write("web", &with_sandbox.replace("i:1", "i:2"));
    host.until("it is replaced", |host| host.fake.containers().iter().any(|c| c.image == "i:2")).await;
    host.pass(1_000).await;
    host.assert_logs();

    host.delete("web");
    host.until("it is gone", |host| host.fake.containers().is_empty()).await;
    host.pass(1_000).await;
    assert!(host.logs().is_empty());
    let recorded = host.recorded.0.lock().unwrap().clone();
    let left: Vec<_> = recorded.iter().filter(|c| !matches!(c, Creation::Directory { .. })).collect();
    assert_eq!(left, [&Creation::Container { id: dead.id }], "its end was not seen");
    assert!(host.layout().pod_logs().is_dir() && host.layout().container_logs().is_dir());
}

#[tokio::test(start_paused = true)]
async fn logs_of_a_pod_that_vanished_while_no_agent_ran_are_unlinked() {
    let mut host = Host::started();
    host.write("web", &pod("web", "i:1", ""));
    host.until_running(&["c_web-node_default"]).await;
    host.pass(1_000).await;
    host.stop().await;
    host.delete("web");
    host.fake.remove_behind_our_back(&host.fake.running()[0]);
    host.start();
    host.until("nothing is left", |host| {
        host.logs().is_empty() && std::fs::read_dir(host.layout().pods()).unwrap().count() == 0
    })
    .await;
}

/// In real time: a paused clock waits for threads that block.
#[tokio::test]
async fn a_journal_that_hangs_holds_up_only_what_it_has_to_record() {
    let limit = Duration::from_mins(1);
    let patiently = async |what: &str, condition: &dyn Fn() -> bool| {
        let deadline = std::time::Instant::now() + limit;
        while !condition() {
            assert!(std::time::Instant::now() < deadline, "{what}");
            sleep(Duration::from_millis(10)).await;
        }
    };
    let mut host = Host::new();
    let ledger = Arc::new(Gated::default());
    host.ledger = Arc::clone(&ledger) as Arc<dyn Ledger>;
    host.start();
    let probe = "livenessProbe: {periodSeconds: 1, exec: {command: [x]}}";
    host.write("probed", &pod("probed", "i:1", "").replace("name: c,", &format!("name: c, {probe},")));
    patiently("a probe is asked", &|| host.fake.count(Op::Exec) > 0).await;
    let running = host.fake.running();
    patiently("the books are kept", &|| !ledger.appends().is_empty()).await;

    ledger.shut();
    let volume = host.root.path().join("volume/of/its/own");
    let text = pod("web", "i:1", "")
        .replace("spec:\n", &format!("spec:\n  volumes: [{{name: v, hostPath: {{path: {}}}}}]\n", volume.display()))
        .replace("name: c,", "name: c, volumeMounts: [{name: v, mountPath: /v}],");
    host.write("web", &text);
    let probes = host.fake.count(Op::Exec);
    patiently("probes go on", &|| host.fake.count(Op::Exec) >= probes + 3).await;
    host.fake.kill(&running[0], 1);
    patiently("a crash is acted on", &|| host.fake.running().iter().any(|name| name.ends_with("_1"))).await;
    assert!(!volume.exists(), "what is to be recorded first has to wait");
    assert_eq!(host.running().len(), 1);

    ledger.open();
    patiently("then it is made", &|| host.running().len() == 2).await;
    assert!(volume.is_dir());
    patiently("the rest is recorded as well", &|| {
        let recorded: BTreeSet<_> = ledger.appends().concat().into_iter().map(|record| format!("{record:?}")).collect();
        host.fake.containers().iter().all(|c| recorded.iter().any(|record| record.contains(&c.id)))
    })
    .await;
}

/// What may happen to a host.
#[derive(Debug, Clone)]
enum Happening {
    Write { name: usize, image: usize },
    Break(usize),
    Delete(usize),
    Kill(usize),
    RemoveBehindOurBack(usize),
    Fail(Op),
    Lose(Op),
    GoAway,
    ComeBack,
    LoseEvents(bool),
    RestartAgent,
    Time(u64),
}

fn happening() -> impl proptest::strategy::Strategy<Value = Happening> {
    use proptest::prelude::*;
    let op = prop_oneof![
        Just(Op::List),
        Just(Op::Inspect),
        Just(Op::Create),
        Just(Op::Start),
        Just(Op::Stop),
        Just(Op::Remove),
        Just(Op::Logs)
    ];
    prop_oneof![
        4 => (0..3_usize, 0..2_usize).prop_map(|(name, image)| Happening::Write { name, image }),
        1 => (0..3_usize).prop_map(Happening::Break),
        2 => (0..3_usize).prop_map(Happening::Delete),
        3 => (0..8_usize).prop_map(Happening::Kill),
        1 => (0..8_usize).prop_map(Happening::RemoveBehindOurBack),
        2 => op.clone().prop_map(Happening::Fail),
        2 => op.prop_map(Happening::Lose),
        1 => Just(Happening::GoAway),
        1 => Just(Happening::ComeBack),
        1 => any::<bool>().prop_map(Happening::LoseEvents),
        2 => Just(Happening::RestartAgent),
        4 => (0..20_000_u64).prop_map(Happening::Time),
    ]
}

impl Host {
    /// No pod name has running containers of two specs.
    fn assert_no_overlap(&self) {
        let mut specs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for container in self.fake.containers() {
            if matches!(container.state, State::Running { .. })
                && let Some(key) = key_of(&container)
            {
                specs.entry(key.to_string()).or_default().insert(container.labels[labels::SPEC_HASH].clone());
            }
        }
        assert!(specs.values().all(|specs| specs.len() == 1), "two pods of one name run: {specs:?}");
    }

    async fn pass(&self, milliseconds: u64) {
        for _ in 0..milliseconds.div_ceil(100) {
            sleep(Duration::from_millis(100)).await;
            self.assert_no_overlap();
        }
    }

    async fn endure(&mut self, happening: Happening) {
        const NAMES: [&str; 3] = ["one", "two", "three"];
        let ours: Vec<_> = self.fake.containers().into_iter().filter(|c| c.name != "foreign").map(|c| c.id).collect();
        let pick = |which: usize| ours.get(which % ours.len().max(1)).cloned();
        match happening {
            Happening::Write { name, image } => self.write(NAMES[name], &pod(NAMES[name], ["i:1", "i:2"][image], "")),
            Happening::Break(name) => self.write(NAMES[name], "kind: ["),
            Happening::Delete(name) => {
                let _ = std::fs::remove_file(self.layout().manifests().join(format!("{}.yaml", NAMES[name])));
            }
            Happening::Kill(which) => {
                if let Some(id) = pick(which)
                    && matches!(self.fake.container(&id).unwrap().state, State::Running { .. })
                {
                    self.fake.kill(&id, 137);
                }
            }
            Happening::RemoveBehindOurBack(which) => {
                if let Some(id) = pick(which) {
                    self.fake.remove_behind_our_back(&id);
                }
            }
            Happening::Fail(op) => {
                let error = RuntimeError::Refused { operation: "do it".into(), reason: "no".into() };
                self.fake.fail_next(op, error);
            }
            Happening::Lose(op) => self.fake.lose_next_answer(op),
            Happening::GoAway => self.fake.go_away(),
            Happening::ComeBack => self.fake.come_back(),
            Happening::LoseEvents(lose) => self.fake.lose_events(lose),
            Happening::RestartAgent => {
                // As by SIGKILL.
                let (_, agent) = self.agent.take().unwrap();
                agent.abort();
                let _ = agent.await;
                // Which ends its threads too: time does not go on before those that block have ended.
                sleep(Duration::from_millis(1)).await;
                self.start();
            }
            Happening::Time(milliseconds) => self.pass(milliseconds).await,
        }
        self.pass(100).await;
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 10,
        max_shrink_iters: 300,
        failure_persistence: None,
        ..proptest::prelude::ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_the_host_ends_as_its_manifests_say(
        happenings in proptest::collection::vec(happening(), 0..25),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut host = Host::started();
            let spec = ContainerSpec { name: "foreign".into(), image: "i:1".into(), ..ContainerSpec::default() };
            let foreign = host.fake.create(&spec).await.unwrap();
            host.fake.start(&foreign).await.unwrap();
            for happening in happenings {
                host.endure(happening).await;
            }
            host.fake.come_back();
            host.fake.lose_events(false);
            host.write("one", &pod("one", "i:1", ""));
            host.write("two", &pod("two", "i:2", ""));
            let _ = std::fs::remove_file(host.layout().manifests().join("three.yaml"));
            host.until("the host is as its manifests say", |host| {
                host.assert_no_overlap();
                let running: Vec<_> = host.fake.containers().into_iter()
                    .filter(|c| matches!(c.state, State::Running { .. }) && c.name != "foreign")
                    .map(|c| (short(&c.name), c.image))
                    .collect();
                let wanted = [("c_one-node_default", "i:1"), ("c_two-node_default", "i:2")];
                running.len() == 2 && wanted.iter().all(|(name, image)| {
                    running.iter().any(|(have, of)| have == name && of == image)
                })
            }).await;
            host.pass(60_000).await;
            let left = host.fake.containers().len();
            assert!(left <= 5, "the foreign one, two that run, and at most one dead one of each: {left}");
            assert!(matches!(host.fake.container(&foreign).unwrap().state, State::Running { .. }));
            let uids: BTreeSet<_> = host.status().await.pods.into_iter().map(|pod| pod.uid).collect();
            let directories: BTreeSet<_> = std::fs::read_dir(host.layout().pods()).unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            assert_eq!(directories, uids, "no directory of a pod that is gone is left");
            host.assert_logs();
        });
    }
}
