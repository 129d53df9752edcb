//! An `init` or `reset` that does not come to its end.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{Ended, start};
use crate::host::{SOON, Tree, all_running, container_ids, kubectl, plinth, plinth_command};
use crate::sandbox::note;

pub(crate) fn other_flags_take_over() {
    let empty = Tree::of_host();
    for (signal, instant) in [(Signal::SIGKILL, 100), (Signal::SIGKILL, 2000), (Signal::SIGINT, 1500)] {
        let ended = until("init", signal, instant);
        if signal == Signal::SIGINT {
            assert!(matches!(ended.status.code(), Some(0 | 1)), "{ended}");
            assert!(ended.status.success() || ended.stderr.contains("run the same command again"), "{ended}");
        }
        let other = "init --service-cidr 10.97.0.0/16 --node-name other --apiserver-bind-port 6444";
        if ended.status.success() {
            note(&format!("init was done in less than {instant} ms"));
            reset_by_the_next(&empty);
            continue;
        }
        finished_by(other, instant);
        let address = kubectl("get service kubernetes -o jsonpath={.spec.clusterIP}").ok().stdout;
        assert_eq!(address, "10.97.0.1");
        reset_by_the_next(&empty);
    }
}

/// Starts plinth and sends it `signal` after so many milliseconds.
fn until(arguments: &str, signal: Signal, instant: u64) -> Ended {
    let mut command = start(&mut plinth_command(arguments));
    thread::sleep(Duration::from_millis(instant));
    // Not after its end: somebody else may have its pid by then.
    if command.child.try_wait().unwrap().is_none() {
        kill(Pid::from_raw(i32::try_from(command.child.id()).unwrap()), signal).unwrap();
    }
    command.end(SOON)
}

fn finished_by(arguments: &str, instant: u64) {
    let init = plinth(arguments).ok();
    note(&format!("after {instant} ms: finished in {:.2} s", init.took.as_secs_f64()));
    assert_eq!(kubectl("get --raw=/readyz").ok().stdout, "ok");
    for (component, container) in all_running(SOON) {
        assert_eq!(container.restarts, 0, "{component}");
    }
    assert_eq!(container_ids().len(), 4);
    // Committed: there is nothing left to do, with no flags and with the same.
    for again in ["init", arguments] {
        let again = plinth(again).ok();
        assert!(again.stdout.contains("nothing is to be done"), "{again}");
    }
}

fn reset_by_the_next(empty: &Tree) {
    plinth("reset --force").ok();
    assert_eq!(empty.difference(&Tree::of_host()), Vec::<String>::new());
    assert!(container_ids().is_empty());
}
