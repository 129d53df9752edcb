//! The contract of `plinth::runtime`, sentence by sentence, for each of its implementations.
//!
//! The fake always runs it. Docker runs it when an engine answers; `PLINTH_REQUIRE_DOCKER=1` makes its absence fail.

#![allow(clippy::unwrap_used, clippy::expect_used)] // the sentences are test code, though no test functions

mod support;

use std::time::{Duration, Instant};

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};
use plinth::runtime::{
    Event, EventKind, ExecSpec, LogQuery, Output, Result, Runtime as _, RuntimeError, Session, State,
};
use support::lab::{BUSYBOX, DockerLab, Does, Exec, FakeLab, Lab};
use tokio::io::AsyncWriteExt as _;

/// Longer than any grace in here.
const LONG: Duration = Duration::from_secs(30);

async fn the_engine_tells_about_itself(lab: impl Lab) {
    let info = lab.runtime().info().await.unwrap();
    assert!(!info.name.is_empty() && !info.version.is_empty() && !info.storage_driver.is_empty(), "{info:?}");
    assert!(info.api_version.starts_with("1."), "{info:?}");
    assert!(info.cpus > 0 && info.memory > 0 && [1, 2].contains(&info.cgroup_version), "{info:?}");
}

async fn start_of_a_running_container_succeeds(lab: impl Lab) {
    let id = lab.run("a", Does::Run).await;
    let pid = lab.pid(&id).await;
    lab.runtime().start(&id).await.unwrap();
    assert_eq!(lab.pid(&id).await, pid);
}

async fn start_of_an_exited_container_runs_it_again(lab: impl Lab) {
    let id = lab.run("a", Does::Run).await;
    let first = lab.pid(&id).await;
    lab.runtime().stop(&id, LONG).await.unwrap();
    lab.runtime().start(&id).await.unwrap();
    assert_ne!(lab.pid(&id).await, first);
}

async fn start_of_an_absent_container_says_so(lab: impl Lab) {
    let error = lab.runtime().start("none").await.unwrap_err();
    assert!(matches!(&error, RuntimeError::NoSuchContainer(id) if id == "none"), "{error:?}");
}

async fn a_failed_start_leaves_the_reason(lab: impl Lab) {
    let spec = lab.spec("a", Does::NotExist);
    let id = lab.runtime().create(&spec).await.unwrap();
    let error = lab.runtime().start(&id).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Refused { reason, .. } if reason.contains("no such file")), "{error:?}");
    let state = lab.state(&id).await;
    assert!(matches!(&state, State::Created { error: Some(why) } if why.contains("no such file")), "{state:?}");
    assert!(lab.runtime().inspect(&id).await.unwrap().unwrap().log_path.is_some());
}

async fn a_container_cannot_join_the_network_of_one_that_does_not_run(lab: impl Lab) {
    let owner = lab.runtime().create(&lab.spec("owner", Does::Run)).await.unwrap();
    let mut spec = lab.spec("a", Does::Run);
    spec.network = format!("container:{owner}");
    let id = lab.runtime().create(&spec).await.unwrap();
    let error = lab.runtime().start(&id).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Refused { .. }), "{error:?}");
    lab.runtime().start(&owner).await.unwrap();
    lab.runtime().start(&id).await.unwrap();
    lab.pid(&id).await;
}

async fn stop_of_a_dead_container_succeeds(lab: impl Lab) {
    let id = lab.run("a", Does::Exit3).await;
    let end = lab.end_of(&id).await;
    lab.runtime().stop(&id, LONG).await.unwrap();
    assert_eq!(lab.state(&id).await, State::Exited(end));
    lab.runtime().stop("none", LONG).await.unwrap();

    let never = lab.runtime().create(&lab.spec("b", Does::Run)).await.unwrap();
    lab.runtime().stop(&never, LONG).await.unwrap();
    assert_eq!(lab.state(&never).await, State::Created { error: None });
}

async fn stop_returns_when_the_container_no_longer_runs(lab: impl Lab) {
    let obedient = lab.run("a", Does::Run).await;
    let started = Instant::now();
    lab.runtime().stop(&obedient, LONG).await.unwrap();
    let state = lab.state(&obedient).await;
    assert!(matches!(&state, State::Exited(end) if end.exit_code == 0), "{state:?}");
    assert!(started.elapsed() < LONG);
}

async fn stop_kills_after_the_grace(lab: impl Lab) {
    let stubborn = lab.run("a", Does::IgnoreStop).await;
    let started = Instant::now();
    lab.runtime().stop(&stubborn, Duration::from_secs(1)).await.unwrap();
    let state = lab.state(&stubborn).await;
    assert!(matches!(&state, State::Exited(end) if end.exit_code == 137 && !end.oom_killed), "{state:?}");
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
}

async fn remove_of_an_absent_container_succeeds(lab: impl Lab) {
    lab.runtime().remove("none").await.unwrap();
}

async fn remove_returns_when_the_name_is_free(lab: impl Lab) {
    let spec = lab.spec("a", Does::IgnoreStop);
    let first = lab.run("a", Does::IgnoreStop).await;
    let error = lab.runtime().create(&spec).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::NameTaken(name) if *name == spec.name), "{error:?}");

    lab.runtime().remove(&first).await.unwrap();
    assert_eq!(lab.runtime().inspect(&first).await.unwrap(), None);
    let second = lab.runtime().create(&spec).await.unwrap();
    assert_ne!(first, second);
}

async fn removes_of_one_container_at_once_all_succeed(lab: impl Lab) {
    let id = lab.run("a", Does::Run).await;
    let (one, other) = tokio::join!(lab.runtime().remove(&id), lab.runtime().remove(&id));
    one.unwrap();
    other.unwrap();
    assert_eq!(lab.runtime().inspect(&id).await.unwrap(), None);
}

async fn a_container_neither_starts_nor_restarts_by_itself(lab: impl Lab) {
    let created = lab.runtime().create(&lab.spec("a", Does::Run)).await.unwrap();
    let killed = lab.run("b", Does::Run).await;
    lab.sigkill(&killed, lab.pid(&killed).await);
    let end = lab.end_of(&killed).await;
    assert_eq!(end.exit_code, 137);
    tokio::time::sleep(Duration::from_millis(300)).await; // Docker's own first back-off is 100 ms
    assert_eq!(lab.state(&created).await, State::Created { error: None });
    assert_eq!(lab.state(&killed).await, State::Exited(end));
}

async fn the_end_of_a_container_is_known(lab: impl Lab) {
    let id = lab.run("a", Does::Exit3).await;
    let end = lab.end_of(&id).await;
    assert_eq!((end.exit_code, end.oom_killed, end.error.as_str()), (3, false, ""));
    let created = lab.runtime().inspect(&id).await.unwrap().unwrap().created_at;
    assert!(created <= end.started_at && end.started_at <= end.finished_at, "{created} {end:?}");
}

async fn a_container_is_found_by_id_and_by_name(lab: impl Lab) {
    let spec = lab.spec("a", Does::Run);
    let id = lab.run("a", Does::Run).await;
    let by_id = lab.runtime().inspect(&id).await.unwrap().unwrap();
    let by_name = lab.runtime().inspect(&spec.name).await.unwrap().unwrap();
    assert_eq!(by_id, by_name);
    assert_eq!((&by_id.id, &by_id.name, &by_id.image), (&id, &spec.name, &spec.image));
    for (key, value) in &spec.labels {
        assert_eq!(by_id.labels.get(key), Some(value));
    }
    let image = lab.runtime().image(&spec.image).await.unwrap().unwrap();
    assert_eq!(by_id.image_id, image.id);
    assert!(by_id.log_path.is_some());
    assert_eq!(lab.runtime().inspect("none").await.unwrap(), None);
}

async fn only_containers_of_the_agent_are_listed_in_whatever_state(lab: impl Lab) {
    let created = lab.runtime().create(&lab.spec("a", Does::Run)).await.unwrap();
    let running = lab.run("b", Does::Run).await;
    let exited = lab.run("c", Does::Exit3).await;
    lab.end_of(&exited).await;

    let mut listed = lab.runtime().list(lab.agent()).await.unwrap();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    let ids: Vec<&str> = listed.iter().map(|container| container.id.as_str()).collect();
    assert_eq!(ids, [&created, &running, &exited]);
    for container in listed {
        assert_eq!(lab.runtime().inspect(&container.id).await.unwrap(), Some(container));
    }
    // A longer and a shorter id are somebody else's.
    assert_eq!(lab.runtime().list(&format!("{}0", lab.agent())).await.unwrap(), []);
    assert_eq!(lab.runtime().list(&lab.agent()[..9]).await.unwrap(), []);
}

async fn next(events: &mut BoxStream<'static, Result<Event>>) -> Event {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
        let event = event.expect("an event").expect("an open stream").unwrap();
        if event.kind != EventKind::Other {
            return event;
        }
    }
}

async fn changes_of_the_agents_containers_are_reported(lab: impl Lab) {
    let mut events = lab.runtime().events(lab.agent()); // from here on, however late it is read
    let mut others = lab.runtime().events("somebody-else");
    let id = lab.run("a", Does::Run).await;
    let event = |kind| Event { container: id.clone(), pod_uid: "uid-of-a".to_owned(), kind };
    assert_eq!(next(&mut events).await, event(EventKind::Started));
    lab.sigkill(&id, lab.pid(&id).await);
    assert_eq!(next(&mut events).await, event(EventKind::Died));
    assert!(matches!(lab.state(&id).await, State::Exited(_)), "the event says: look again");
    lab.runtime().start(&id).await.unwrap();
    assert_eq!(next(&mut events).await, event(EventKind::Started));
    lab.runtime().stop(&id, LONG).await.unwrap();
    assert_eq!(next(&mut events).await, event(EventKind::Died));
    lab.runtime().remove(&id).await.unwrap();
    assert_eq!(next(&mut events).await, event(EventKind::Removed));
    let silence = tokio::time::timeout(Duration::from_millis(50), others.next()).await;
    assert!(silence.is_err(), "{silence:?}");
}

async fn an_absent_image_is_told_apart(lab: impl Lab) {
    assert_eq!(lab.runtime().image("plinth-test/none:1").await.unwrap(), None);
    let mut spec = lab.spec("a", Does::Run);
    "plinth-test/none:1".clone_into(&mut spec.image);
    let error = lab.runtime().create(&spec).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::NoSuchImage(image) if *image == spec.image), "{error:?}");
}

async fn an_image_goes_by_its_name_and_may_be_gone(lab: impl Lab) {
    let second = format!("plinth-test/{}:1", lab.agent());
    lab.tag(&second);
    assert!(lab.runtime().image(&second).await.unwrap().is_some());
    lab.runtime().remove_image(&second).await.unwrap();
    assert_eq!(lab.runtime().image(&second).await.unwrap(), None);
    lab.runtime().remove_image(&second).await.unwrap();
    assert!(lab.runtime().image(BUSYBOX).await.unwrap().is_some());
}

async fn a_failed_pull_gives_the_registrys_reason(lab: impl Lab) {
    let reference = "127.0.0.1:1/plinth-test/none:1";
    let error = lab.runtime().pull(reference, &|_| {}).await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Pull { image, reason } if image == reference && !reason.is_empty()),
        "{error:?}"
    );
}

async fn exec_reports_exit_code_and_output(lab: impl Lab) {
    let id = lab.run("exec", Does::Run).await;
    let output = lab.runtime().exec(&id, &lab.exec(Exec::Fail7), LONG).await.unwrap();
    assert_eq!((output.exit_code, output.output.as_str()), (7, "hello\n"));
    let output = lab.runtime().exec(&id, &lab.exec(Exec::WriteMuch), LONG).await.unwrap();
    assert_eq!((output.exit_code, output.output.len()), (0, 10 << 10));
}

async fn exec_is_over_when_its_time_is(lab: impl Lab) {
    let id = lab.run("exec", Does::Run).await;
    let limit = Duration::from_millis(300);
    let started = Instant::now();
    let error = lab.runtime().exec(&id, &lab.exec(Exec::Hang), limit).await.unwrap_err();
    assert!(matches!(error, RuntimeError::TimedOut(time) if time == limit), "{error:?}");
    assert!(started.elapsed() >= limit && started.elapsed() < LONG);
}

async fn exec_needs_a_running_container(lab: impl Lab) {
    let command = lab.exec(Exec::Fail7);
    let error = lab.runtime().exec("none", &command, LONG).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::NoSuchContainer(id) if id == "none"), "{error:?}");
    let id = lab.runtime().create(&lab.spec("exec", Does::Run)).await.unwrap();
    let error = lab.runtime().exec(&id, &command, LONG).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Refused { .. }), "{error:?}");
    let spec = ExecSpec { command, stdout: true, ..ExecSpec::default() };
    let error = lab.runtime().open_exec("none", &spec).await.err().unwrap();
    assert!(matches!(&error, RuntimeError::NoSuchContainer(id) if id == "none"), "{error:?}");
    let error = lab.runtime().open_exec(&id, &spec).await.err().unwrap();
    assert!(matches!(error, RuntimeError::Refused { .. }), "{error:?}");
}

async fn a_session_carries_both_directions_and_the_end_of_stdin(lab: impl Lab) {
    let id = lab.run("exec", Does::Run).await;
    let spec = ExecSpec { command: lab.exec(Exec::Echo), stdin: true, stdout: true, stderr: true, tty: false };
    let Session { id: exec, output, mut input } = lab.runtime().open_exec(&id, &spec).await.unwrap();
    // More than fits anywhere in between: what comes back has to be read meanwhile.
    let told = "x".repeat(300_000);
    let send = async {
        input.write_all(told.as_bytes()).await.unwrap();
        input.shutdown().await.unwrap();
    };
    let both = async { tokio::join!(send, output.try_collect::<Vec<_>>()).1.unwrap() };
    let parts = tokio::time::timeout(LONG, both).await.expect("an end of the output");
    let parts = parts.into_iter().map(|part| match part {
        Output::Stdout(part) => part,
        Output::Stderr(part) => panic!("{part:?}"),
    });
    let text = String::from_utf8(parts.flatten().collect()).unwrap();
    assert!(text == format!("hello\n{told}"), "{} bytes: {:.40}", text.len(), text);
    assert_eq!(lab.runtime().exec_code(&exec).await.unwrap(), 7);
}

async fn logs_are_the_last_lines_of_both_streams(lab: impl Lab) {
    let id = lab.run("a", Does::Write).await;
    let written = async {
        while lab.runtime().logs(&id, 10).await.unwrap().lines().count() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, written).await.unwrap();
    // Two pipes have no common order.
    let mut all: Vec<String> = lab.runtime().logs(&id, 10).await.unwrap().lines().map(str::to_owned).collect();
    all.sort();
    assert_eq!(all, ["one", "three", "two"]);
    assert_eq!(lab.runtime().logs(&id, 2).await.unwrap().lines().count(), 2);
    assert_eq!(lab.runtime().logs(&id, 0).await.unwrap(), "");
    let error = lab.runtime().logs("none", 1).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::NoSuchContainer(id) if id == "none"), "{error:?}");
}

/// All that `query` gives, as text.
async fn read(lab: &impl Lab, id: &str, query: LogQuery) -> Result<String> {
    let all = lab.runtime().read_log(id, query).try_collect::<Vec<_>>();
    let all = tokio::time::timeout(LONG, all).await.expect("an end of the log")?;
    Ok(String::from_utf8(all.concat()).unwrap())
}

async fn a_log_is_read_as_asked(lab: impl Lab) {
    let id = lab.run("a", Does::Write).await;
    let written = async {
        while read(&lab, &id, LogQuery::default()).await.unwrap().lines().count() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, written).await.unwrap();
    for (tail, lines) in [(0, 0), (2, 2), (9, 3)] {
        let query = LogQuery { tail: Some(tail), ..LogQuery::default() };
        assert_eq!(read(&lab, &id, query).await.unwrap().lines().count(), lines, "{tail}");
    }
    let now = Timestamp::now();
    for (since, lines) in [(-60, 3), (60, 0)] {
        let since = Some(now + SignedDuration::from_secs(since));
        let query = LogQuery { since, ..LogQuery::default() };
        assert_eq!(read(&lab, &id, query).await.unwrap().lines().count(), lines, "{since:?}");
    }
    let text = read(&lab, &id, LogQuery { timestamps: true, ..LogQuery::default() }).await.unwrap();
    for line in text.lines() {
        let (stamp, word) = line.split_once(' ').unwrap();
        assert_eq!(stamp.len(), "2026-11-21T11:12:13.123456789Z".len(), "{line}");
        assert!(now.duration_since(stamp.parse().unwrap()).abs() < SignedDuration::from_mins(1), "{line}");
        assert!(["one", "two", "three"].contains(&word), "{line}");
    }
    let error = read(&lab, "none", LogQuery::default()).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::NoSuchContainer(id) if id == "none"), "{error:?}");
}

async fn a_log_is_followed_to_the_end_of_its_container(lab: impl Lab) {
    let follow = LogQuery { follow: true, ..LogQuery::default() };
    let id = lab.run("a", Does::Write).await;
    let mut log = lab.runtime().read_log(&id, follow);
    let mut text = String::new();
    while text.lines().count() < 3 {
        let part = tokio::time::timeout(LONG, log.next()).await.expect("a line").expect("an open log").unwrap();
        text.push_str(std::str::from_utf8(&part).unwrap());
    }
    let silence = tokio::time::timeout(Duration::from_millis(50), log.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    lab.runtime().stop(&id, Duration::ZERO).await.unwrap();
    let rest = tokio::time::timeout(LONG, log.try_collect::<Vec<_>>()).await.expect("an end of the log").unwrap();
    assert!(rest.concat().is_empty(), "{rest:?}");
    assert_eq!(read(&lab, &id, follow).await.unwrap().lines().count(), 3, "one that has ended is not waited for");
}

/// Each sentence becomes a test of each implementation.
macro_rules! contract {
    ($($sentence:ident),+ $(,)?) => {
        mod fake {
            $(#[tokio::test]
            async fn $sentence() {
                if let Some(lab) = super::FakeLab::open().await {
                    super::$sentence(lab).await;
                }
            })+
        }
        mod docker {
            $(#[tokio::test]
            async fn $sentence() {
                if let Some(lab) = super::DockerLab::open().await {
                    super::$sentence(lab).await;
                }
            })+
        }
    };
}

contract!(
    the_engine_tells_about_itself,
    start_of_a_running_container_succeeds,
    start_of_an_exited_container_runs_it_again,
    start_of_an_absent_container_says_so,
    a_failed_start_leaves_the_reason,
    a_container_cannot_join_the_network_of_one_that_does_not_run,
    stop_of_a_dead_container_succeeds,
    stop_returns_when_the_container_no_longer_runs,
    stop_kills_after_the_grace,
    remove_of_an_absent_container_succeeds,
    remove_returns_when_the_name_is_free,
    removes_of_one_container_at_once_all_succeed,
    a_container_neither_starts_nor_restarts_by_itself,
    the_end_of_a_container_is_known,
    a_container_is_found_by_id_and_by_name,
    only_containers_of_the_agent_are_listed_in_whatever_state,
    changes_of_the_agents_containers_are_reported,
    an_absent_image_is_told_apart,
    an_image_goes_by_its_name_and_may_be_gone,
    a_failed_pull_gives_the_registrys_reason,
    exec_reports_exit_code_and_output,
    exec_is_over_when_its_time_is,
    exec_needs_a_running_container,
    a_session_carries_both_directions_and_the_end_of_stdin,
    logs_are_the_last_lines_of_both_streams,
    a_log_is_read_as_asked,
    a_log_is_followed_to_the_end_of_its_container,
);

#[tokio::test]
async fn a_failed_test_leaves_no_containers() {
    let Some(lab) = DockerLab::open().await else { return };
    let agent = lab.agent().to_owned();
    let docker = lab.runtime().clone();
    let failed = tokio::spawn(async move {
        lab.run("a", Does::IgnoreStop).await;
        assert_eq!(lab.runtime().list(lab.agent()).await.unwrap(), [], "as a test fails");
    });
    assert!(failed.await.unwrap_err().is_panic());
    assert_eq!(docker.list(&agent).await.unwrap(), []);
}
