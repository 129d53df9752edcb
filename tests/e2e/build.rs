//! plinth installs itself, and replaces an agent of another build without touching a container.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::Command;

use crate::command::{Ended, run};
use crate::host::{LONG, SOON, Tree, agent_pid, all_running, binary, container_ids, docker, healthy, shell};

pub(crate) fn an_agent_of_another_build_is_restarted_and_adopts() {
    // As from a build directory: nothing is installed.
    let here = std::env::var("PLINTH_SANDBOX_DIR").unwrap() + "/plinth";
    std::fs::copy(binary(), &here).unwrap();
    std::fs::remove_file(binary()).unwrap();
    let empty = Tree::of_host();
    let plinth =
        |arguments: &str| -> Ended { run(Command::new(&here).args(arguments.split_whitespace()).env("CI", "1"), LONG) };
    plinth("init").ok();
    assert_eq!(runs(agent_pid_of(&plinth)), std::fs::read(&here).unwrap());
    std::fs::copy(&here, format!("{here}-old")).unwrap();

    // What is behind the end of an ELF file is not looked at.
    OpenOptions::new().append(true).open(&here).unwrap().write_all(b"another build").unwrap();
    let before = (agent_pid_of(&plinth), containers());
    let plan = plinth("plan").ok();
    assert!(plan.stdout.contains("agent: it is of another build of plinth [live]"), "{plan}");
    plinth("init").ok();
    healthy(SOON);
    let new = agent_pid_of(&plinth);
    assert_ne!(new, before.0);
    assert_eq!(containers(), before.1, "no container is touched");
    assert_eq!(runs(new), std::fs::read(binary()).unwrap());
    shell(&format!("cmp {here} {} && cmp {here}-old /var/lib/plinth/bin/plinth-*", binary())).ok();
    assert!(plinth("init").ok().stdout.contains("nothing is to be done"));
    assert_eq!(agent_pid_of(&plinth), new);

    // It runs what is installed, and takes that away as well.
    run(Command::new(binary()).args(["reset", "--force"]), LONG).ok();
    assert_eq!(empty.difference(&Tree::of_host()), Vec::<String>::new());
    std::fs::copy(&here, binary()).unwrap();
    assert_eq!((agent_pid(), container_ids().len()), (None, 0));
}

fn agent_pid_of(plinth: &impl Fn(&str) -> Ended) -> i64 {
    plinth("status -o json").json()["agent"]["pid"].as_i64().unwrap()
}

/// The program of that process.
fn runs(pid: i64) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/exe")).unwrap()
}

/// Ids and times of start.
fn containers() -> String {
    assert_eq!(all_running(SOON).len(), 4);
    let ids = container_ids().into_iter().collect::<Vec<_>>().join(" ");
    docker(&format!("inspect --format={{{{.Id}}}}@{{{{.State.StartedAt}}}}@{{{{.RestartCount}}}} {ids}"))
}
