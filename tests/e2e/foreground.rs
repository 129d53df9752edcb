//! `plinth init --foreground`: the agent of a container, or of another supervisor.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::start;
use crate::host::{LONG, SOON, agent_pid, all_running, check, eventually, healthy_if, plinth, plinth_command};

pub(crate) fn the_agent_is_this_process() {
    let mut init = start(&mut plinth_command("init --foreground"));
    let pid = i32::try_from(init.child.id()).unwrap();
    healthy_if(LONG, || init.child.try_wait().unwrap().is_none());
    eventually(SOON, || check(init.stdout().contains("control plane is healthy"), || init.stdout()));
    assert_eq!(agent_pid(), Some(pid));
    let before = all_running(SOON);

    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    init.end(SOON).ok();
    assert_eq!(agent_pid(), None);

    let again = plinth("init").ok();
    let detached = agent_pid().expect("an agent runs");
    assert_ne!(detached, pid, "{again}");
    assert_eq!(all_running(SOON), before);
}
