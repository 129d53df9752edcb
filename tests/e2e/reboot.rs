//! A boot: nothing that ran does, `/run` is empty, and nobody types a command.

use std::time::{Duration, Instant};

use crate::host::{LONG, SOON, agent_pid, all_running, eventually, gone, healthy, plinth, service, shell, sigkill};
use crate::lifecycle::boot_line;
use crate::sandbox::note;

pub(crate) fn everything_comes_back_without_the_cli() {
    let begin = Instant::now();
    let init = plinth("init").ok();
    healthy(SOON);
    let took = begin.elapsed();
    // It takes about as long; a component that crashes and is waited for takes ten seconds more. Another program may
    // have had the processors: what a boot can do shows in the best of three.
    let again = (0..3).map(|_| boot(&boot_line(&init.stdout))).find(|again| *again <= took.mul_f64(3.0));
    note(&format!("init {:.2} s, the same after a boot {again:.2?}", took.as_secs_f64()));
    assert!(again.is_some(), "init took {took:?}, and no boot less than three times that");
    all_running(SOON);
}

/// From an engine that answers to a healthy control plane, after everything was lost that a boot loses.
fn boot(line: &str) -> Duration {
    sigkill(agent_pid().expect("an agent runs"));
    // Some end by themselves with those before them.
    shell("docker ps --quiet | xargs --max-args=1 docker kill");
    stop_engine();
    // A directory in memory, new at each boot; /run itself is where the sandbox's engine lives.
    std::fs::remove_dir_all("/run/plinth").unwrap();

    start_engine();
    // The unit comes after docker.service, and that is up when it answers.
    await_engine();
    let begin = Instant::now();
    service(line, "/var/log/plinth/agent.log");
    healthy(LONG);
    begin.elapsed()
}

fn engine_pid() -> i32 {
    std::fs::read_to_string("/run/docker.pid").unwrap().trim().parse().unwrap()
}

/// Stops the engine as its service manager does.
pub(crate) fn stop_engine() {
    let pid = engine_pid();
    shell(&format!("kill -TERM {pid}")).ok();
    gone(pid);
}

/// The engine crashes.
pub(crate) fn kill_engine() {
    sigkill(engine_pid());
}

/// Starts the engine; it takes a moment until it answers.
pub(crate) fn start_engine() {
    service("dockerd", "/var/log/dockerd.log");
}

/// Waits until the engine answers.
pub(crate) fn await_engine() {
    eventually(Duration::from_secs(30), || {
        let version = shell("docker version");
        if version.status.success() { Ok(()) } else { Err(version.to_string()) }
    });
}
