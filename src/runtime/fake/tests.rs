use std::time::Duration;

use tokio::time::Instant;

use super::*;

const LONG: Duration = Duration::from_secs(30);

fn spec(name: &str) -> ContainerSpec {
    ContainerSpec {
        name: name.to_owned(),
        image: "i".to_owned(),
        labels: BTreeMap::from([(labels::AGENT.to_owned(), "me".to_owned())]),
        ..ContainerSpec::default()
    }
}

fn fake() -> FakeRuntime {
    let fake = FakeRuntime::new(Clock::fixed(jiff::Timestamp::UNIX_EPOCH));
    fake.add_image("i");
    fake
}

async fn run(fake: &FakeRuntime, name: &str, program: Program) -> String {
    fake.set_program("i", program);
    let id = fake.create(&spec(name)).await.unwrap();
    fake.start(&id).await.unwrap();
    id
}

fn exit_code(fake: &FakeRuntime, id: &str) -> Option<i64> {
    match fake.container(id)?.state {
        State::Exited(end) => Some(end.exit_code),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_takes_as_long_as_the_program_but_not_longer_than_the_grace() {
    let cases = [
        (Program::default(), 0, 0),
        (Program::default().stops_after(Duration::from_secs(2), 5), 2, 5),
        (Program::default().stops_after(Duration::from_mins(1), 5), 30, KILLED),
        (Program::default().ignores_stop(), 30, KILLED),
    ];
    for (program, seconds, code) in cases {
        let fake = fake();
        let id = run(&fake, "a", program.clone()).await;
        let begun = Instant::now();
        fake.stop(&id, LONG).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), seconds, "{program:?}");
        assert_eq!(exit_code(&fake, &id), Some(code), "{program:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_goes_down_waits_for_each_stop_timeout() {
    for (timeout, seconds, code) in [(None, 10, KILLED), (Some(LONG), 20, 5)] {
        let fake = fake();
        fake.set_program("i", Program::default().stops_after(Duration::from_secs(20), 5));
        let id = fake.create(&ContainerSpec { stop_timeout: timeout, ..spec("a") }).await.unwrap();
        fake.start(&id).await.unwrap();
        let begun = Instant::now();
        fake.shut_down().await;
        assert_eq!((begun.elapsed().as_secs(), exit_code(&fake, &id)), (seconds, Some(code)));
        assert!(fake.info().await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_returns_early_when_the_process_is_killed_meanwhile() {
    let fake = fake();
    let id = run(&fake, "a", Program::default().ignores_stop()).await;
    let begun = Instant::now();
    let killed = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        fake.kill("a", 9);
    };
    let (stopped, ()) = tokio::join!(fake.stop(&id, LONG), killed);
    stopped.unwrap();
    assert_eq!((begun.elapsed().as_secs(), exit_code(&fake, &id)), (3, Some(9)));
}

#[tokio::test(start_paused = true)]
async fn a_scripted_exit_ends_only_the_run_it_belongs_to() {
    let fake = fake();
    let id = run(&fake, "a", Program::default().exits_after(Duration::from_secs(10), 1)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    fake.kill(&id, 2);
    fake.start(&id).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(exit_code(&fake, &id), None, "the first run's time is over, the second's is not");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(exit_code(&fake, &id), Some(1));
}

#[tokio::test]
async fn faults_come_in_order_and_are_used_up() {
    let fake = fake();
    fake.fail_next(Op::Create, RuntimeError::NameTaken("one".to_owned()));
    fake.fail_next(Op::Create, RuntimeError::Unreachable("two".to_owned()));
    assert!(matches!(fake.create(&spec("a")).await, Err(RuntimeError::NameTaken(_))));
    assert!(fake.create(&spec("a")).await.unwrap_err().is_unreachable());
    assert!(fake.containers().is_empty());
    fake.create(&spec("a")).await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_hides_an_effect() {
    let fake = fake();
    fake.lose_next_answer(Op::Create);
    assert!(fake.create(&spec("a")).await.unwrap_err().is_unreachable());
    assert!(matches!(fake.create(&spec("a")).await, Err(RuntimeError::NameTaken(_))));
}

#[tokio::test]
async fn while_the_engine_is_away_containers_run_and_may_die() {
    let fake = fake();
    let id = run(&fake, "a", Program::default()).await;
    let mut events = fake.events("me");
    fake.go_away();
    assert!(events.next().await.unwrap().unwrap_err().is_unreachable());
    assert!(events.next().await.is_none());
    assert!(fake.events("me").next().await.unwrap().is_err());
    assert!(fake.list("me").await.unwrap_err().is_unreachable());
    assert_eq!(fake.running(), ["a"]);
    fake.kill(&id, 1);
    fake.come_back();
    assert_eq!(fake.list("me").await.unwrap().len(), 1);
    assert_eq!(exit_code(&fake, &id), Some(1));
}

#[tokio::test]
async fn lost_events_leave_the_stream_open() {
    let fake = fake();
    let mut events = fake.events("me");
    fake.lose_events(true);
    let id = run(&fake, "a", Program::default()).await;
    fake.lose_events(false);
    fake.kill_for_memory(&id);
    let kinds = [events.next().await.unwrap().unwrap().kind, events.next().await.unwrap().unwrap().kind];
    assert_eq!(kinds, [EventKind::Other, EventKind::Died]);
}

#[tokio::test(start_paused = true)]
async fn a_pull_reports_takes_its_time_and_makes_the_image_present() {
    let fake = fake();
    fake.add_to_registry("new");
    fake.set_pull_time(Duration::from_secs(7));
    let begun = Instant::now();
    let steps = Mutex::new(Vec::new());
    fake.pull("new", &|step| steps.lock().unwrap().push(step.status)).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 7);
    assert_eq!(*steps.lock().unwrap(), ["Pulling from new", "Downloading", "Pull complete"]);
    assert!(fake.image("new").await.unwrap().is_some());
}

#[tokio::test]
async fn calls_are_recorded_by_name_failed_ones_too() {
    let fake = fake();
    let id = run(&fake, "a", Program::default()).await;
    fake.inspect(&id).await.unwrap();
    fake.stop(&id, LONG).await.unwrap();
    fake.fail_next(Op::Remove, RuntimeError::Unreachable(String::new()));
    fake.remove(&id).await.unwrap_err();
    assert_eq!(fake.changes(), ["create a", "start a", "stop a", "remove a"]);
    assert_eq!(fake.count(Op::Inspect), 1);
    let stop = fake.calls().into_iter().find(|call| call.op == Op::Stop).unwrap();
    assert_eq!(stop.limit, Some(LONG));
    fake.forget_calls();
    assert!(fake.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_has_its_effect_at_the_end() {
    let fake = fake();
    fake.set_latency(Op::Create, Duration::from_secs(2));
    let spec = spec("a");
    let create = fake.create(&spec);
    let early = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        fake.containers().len()
    };
    let (created, seen) = tokio::join!(create, early);
    created.unwrap();
    assert_eq!((seen, fake.containers().len()), (0, 1));
}
