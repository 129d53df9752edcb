//! A control plane under systemd: on a machine with systemd as PID 1 and Docker as one of its services.
//!
//! It needs root and takes minutes, so it is ignored by default:
//!
//! ```console
//! # cargo test --test systemd -- --ignored
//! ```
//!
//! `PLINTH_BIN` is the plinth under test, if not the one that cargo built. Lines that begin with `systemd:` are figures.

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong in here fails the test
#![allow(clippy::print_stderr)] // figures, and the account of a failure

mod machine;

use std::time::{Duration, Instant};

use machine::{Machine, in_sandbox, until};

const UNIT: &str = "plinth-agent.service";

/// How much longer than `init` the control plane may take after a boot, from when Docker is up. It takes about as long;
/// a component that crashes and is waited for takes ten seconds more.
const BOOT_FACTOR: f64 = 3.0;

#[test]
#[ignore = "end to end"]
fn the_life_of_a_machine() {
    in_sandbox("the_life_of_a_machine", || {
        let machine = Machine::boot("m1");
        let init = init_makes_a_unit(&machine);
        a_killed_agent_comes_back_and_adopts(&machine);
        a_stopped_agent_leaves_the_containers(&machine);
        init_repairs_the_unit(&machine);
        the_agent_outlives_docker(&machine);
        a_boot_brings_everything_back(&machine, init);
        reset_leaves_nothing(&machine);
        reset_stops_an_agent_whose_unit_file_is_gone(&machine);
    });
}

fn figure(what: &str, took: Duration) {
    eprintln!("systemd: {what}: {:.2} s", took.as_secs_f64());
}

/// Returns how long it took.
fn init_makes_a_unit(machine: &Machine) -> Duration {
    let begin = Instant::now();
    machine.run("plinth init");
    let took = begin.elapsed();
    figure("init", took);

    assert_eq!(machine.run(&format!("systemctl is-enabled {UNIT}")), "enabled");
    assert_eq!(machine.run(&format!("systemctl is-active {UNIT}")), "active");
    assert_eq!(machine.property(UNIT, "NeedDaemonReload"), "no");
    assert_eq!(machine.run(&format!("systemd-analyze verify {UNIT} 2>&1")), "");
    machine.await_health();
    assert!(machine.containers().len() == 4 && machine.containers().values().all(machine::Container::is_running));
    assert!(machine.restarts().iter().all(|(_, count)| *count == 0));
    took
}

fn a_killed_agent_comes_back_and_adopts(machine: &Machine) {
    let before = machine.containers();
    let pid = machine.property(UNIT, "MainPID");
    let begin = Instant::now();
    machine.run(&format!("kill -KILL {pid}"));
    until("another agent", || (machine.plinth("status")["agent"]["pid"].as_u64()?.to_string() != pid).then_some(()));
    figure("agent killed until the next one answers", begin.elapsed());

    assert!(machine.restarts().iter().all(|(_, count)| *count == 0));
    assert_eq!(machine.property(UNIT, "NRestarts"), "1");
    assert_eq!(machine.containers(), before);
}

fn a_stopped_agent_leaves_the_containers(machine: &Machine) {
    let before = machine.containers();
    machine.run(&format!("systemctl stop {UNIT}"));
    assert_eq!(machine.property(UNIT, "Result"), "success");
    assert_eq!(machine.containers(), before);
    let status = machine.plinth("status");
    assert_eq!(status["well"], false);
    assert!(status["problems"][0].as_str().unwrap().starts_with("no agent runs"), "{status}");
    machine.run("! test -e /run/plinth");

    machine.run(&format!("systemctl start {UNIT}"));
    assert!(machine.restarts().iter().all(|(_, count)| *count == 0));
    assert_eq!(machine.containers(), before);
}

fn init_repairs_the_unit(machine: &Machine) {
    let before = machine.containers();
    assert_eq!(machine.plinth("init")["changed"], false);

    // Whether the agent may go on as it is.
    for (damage, keeps_the_agent) in [
        (format!("systemctl disable --now {UNIT}"), false),
        (format!("systemctl disable {UNIT}"), true),
        (format!("rm /etc/systemd/system/{UNIT}"), true),
        (format!("rm /etc/systemd/system/{UNIT}; systemctl daemon-reload"), true),
    ] {
        let pid = machine.property(UNIT, "MainPID");
        machine.run(&damage);
        let status = machine.plinth("status");
        let problems = status["problems"].as_array().unwrap().iter().filter_map(|problem| problem.as_str());
        assert!(problems.into_iter().any(|problem| problem.contains("does not start at boot")), "{damage}: {status}");

        let begin = Instant::now();
        assert_eq!(machine.plinth("init")["changed"], true, "{damage}");
        figure(&format!("init after `{damage}`"), begin.elapsed());
        assert_eq!(machine.run(&format!("systemctl is-enabled {UNIT}")), "enabled", "{damage}");
        assert_eq!(machine.run(&format!("systemctl is-active {UNIT}")), "active", "{damage}");
        assert_eq!(machine.property(UNIT, "NeedDaemonReload"), "no", "{damage}");
        assert_eq!(machine.property(UNIT, "MainPID") == pid, keeps_the_agent, "{damage}");
        assert_eq!(machine.containers(), before, "{damage}");
        assert_eq!(machine.plinth("init")["changed"], false, "{damage}");
    }
}

fn the_agent_outlives_docker(machine: &Machine) {
    let agent = machine.property(UNIT, "MainPID");
    for outage in [
        "systemctl restart docker",
        "systemctl stop docker.socket docker; sleep 5; systemctl start docker.socket docker",
    ] {
        machine.run(outage);
        let begin = Instant::now();
        machine.await_health();
        figure(&format!("healthy after `{outage}`"), begin.elapsed());
        assert_eq!(machine.property(UNIT, "MainPID"), agent, "{outage}");
    }
}

fn a_boot_brings_everything_back(machine: &Machine, init: Duration) {
    // Another program may have had the processors: what a boot can do shows in the best of three.
    let quick = (0..3).map(|_| boot(machine)).find(|took| *took <= init.mul_f64(BOOT_FACTOR));
    assert!(quick.is_some(), "no boot within {BOOT_FACTOR} times the {init:?} of init");
    assert_eq!(machine.plinth("init")["changed"], false);
}

/// From Docker that is up to a healthy control plane.
fn boot(machine: &Machine) -> Duration {
    let boot_id = "cat /proc/sys/kernel/random/boot_id";
    let before = machine.run(boot_id);
    machine.reboot();
    assert_ne!(machine.run(boot_id), before);
    machine.await_health();

    let docker: f64 = machine.property("docker.service", "ActiveEnterTimestampMonotonic").parse().unwrap();
    let took = Duration::from_secs_f64(machine.seconds() - docker / 1e6);
    figure("healthy after a boot, from when Docker is up", took);
    took
}

fn reset_leaves_nothing(machine: &Machine) {
    let begin = Instant::now();
    machine.run("plinth reset --force");
    figure("reset", begin.elapsed());
    nothing_is_left(machine);
}

fn nothing_is_left(machine: &Machine) {
    assert_eq!(machine.run("systemctl list-unit-files --no-legend 'plinth*' || true"), "");
    assert_eq!(machine.run("systemctl list-units --all --no-legend 'plinth*'"), "");
    assert_eq!(machine.run("find /etc/systemd -name 'plinth*'"), "");
    assert_eq!(machine.run("ls -d /etc/kubernetes /var/lib/etcd /var/lib/plinth /run/plinth 2>/dev/null || true"), "");
    assert_eq!(machine.run("docker ps --all --quiet"), "");
    assert_eq!(machine.run("pgrep --list-full '^(etcd|kube-|plinth)' || true"), "");
}

/// systemd goes by what it has loaded, and would start a killed agent again in the middle of the reset.
fn reset_stops_an_agent_whose_unit_file_is_gone(machine: &Machine) {
    machine.run("plinth init --skip-phases wait-control-plane,cluster-admins");
    machine.run(&format!("rm /etc/systemd/system/{UNIT}"));
    machine.run("plinth reset --force");
    // Longer than RestartSec.
    std::thread::sleep(Duration::from_secs(2));
    nothing_is_left(machine);
}
