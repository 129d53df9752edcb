//! The engine goes away and comes back, with everything that ran in it.

use std::thread;
use std::time::{Duration, Instant};

use crate::host::{COMPONENTS, LONG, SOON, agent_pid, all_running, check, docker, eventually, healthy, plinth};
use crate::reboot::{await_engine, kill_engine, start_engine, stop_engine};
use crate::sandbox::note;

pub(crate) fn the_control_plane_survives_the_engine() {
    plinth("init").ok();
    let agent = agent_pid();
    for (how, take_away) in [("stopped", stop_engine as fn()), ("killed", kill_engine)] {
        let before = all_running(SOON);
        take_away();
        thread::sleep(Duration::from_secs(3));
        start_engine();
        await_engine();
        let begin = Instant::now();
        // The API server may still answer: a killed engine leaves its containers, and ends them when it is back.
        eventually(LONG, || {
            let running = all_running(LONG);
            let pid = |name: &str| (before[name].pid, running[name].pid);
            check(COMPONENTS.iter().all(|name| pid(name).0 != pid(name).1), || format!("still {before:?}"))
        });
        healthy(LONG);
        note(&format!("healthy {:.2} s after an engine that was {how} is back", begin.elapsed().as_secs_f64()));
        assert_eq!(agent_pid(), agent);
        assert_eq!(docker("ps --quiet").lines().count(), COMPONENTS.len());
    }
    let again = plinth("init").ok();
    assert!(again.stdout.contains("nothing is to be done"), "{again}");
}
