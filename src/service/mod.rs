//! How the agent is kept alive: a systemd unit where systemd runs, otherwise a process of its own session.
//!
//! # Guarantees
//! - [`Manager::start`] is idempotent: a running agent is left alone.
//! - After [`Manager::stop`] no agent of this root runs; its containers do.
//! - What is made on the host is announced to the caller before it is made.

mod build;
#[cfg(test)]
pub(crate) mod in_process;
mod systemd;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;

use crate::fsx::{self, FsError, Holder, Lock};
use crate::journal::{Creation, Ledger};
use crate::layout::Layout;
use crate::proc::{Proc, ProcError};

pub use build::{creations as binary_creations, install, keep, outdated};

/// Name of the systemd unit.
pub const UNIT: &str = "plinth-agent.service";

/// How long an agent may take to end after SIGTERM; it has nothing to do but close its socket.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// At this size the log of a detached agent is moved to `agent.log.1` when an agent starts.
const LOG_LIMIT: u64 = 10 * 1024 * 1024;

/// The agent could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FsError),
    /// The unit file could not be rendered.
    #[error("cannot render the systemd unit")]
    Render(#[from] tera::Error),
    /// A child process could not be started.
    #[error("cannot run `{program}`")]
    Spawn {
        /// What was to be run.
        program: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// `systemctl` refused.
    #[error("`systemctl {arguments}` failed: {output}")]
    Systemctl {
        /// Its arguments.
        arguments: String,
        /// Its exit code; `None` when a signal ended it.
        code: Option<i32>,
        /// What it printed.
        output: String,
    },
    /// The agent does not end.
    #[error("the agent (pid {pid}) does not end, not even by SIGKILL")]
    Unstoppable {
        /// Its process id.
        pid: i32,
    },
    /// An agent runs, but not as a process that can be seen from here. Nobody is signalled on a guess.
    #[error("an agent holds `{}`, and no process that can be seen from here is it", lock.display())]
    Unseen {
        /// The agent's lock.
        lock: PathBuf,
    },
    /// `/proc` cannot be read.
    #[error(transparent)]
    Proc(#[from] ProcError),
}

/// The command line of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCommand {
    /// Absolute path of plinth.
    pub program: PathBuf,
    /// `agent` and its flags.
    pub arguments: Vec<String>,
}

/// Who keeps the agent alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// systemd, through a unit that is enabled: the agent comes back after a crash and after a boot.
    Systemd,
    /// Nobody: a process of its own session. The host's init system has to start it at boot.
    Detached,
}

impl Manager {
    /// systemd where it is PID 1 (`sd_booted(3)`: `/run/systemd/system` is a directory).
    pub fn detect(layout: &Layout) -> Self {
        if layout.root().join("run/systemd/system").is_dir() { Self::Systemd } else { Self::Detached }
    }

    /// What [`Manager::start`] makes on the host, for the journal.
    pub fn creations(self, layout: &Layout) -> Vec<Creation> {
        match self {
            Self::Systemd => {
                vec![unit_creation(), Creation::File { path: layout.unit() }]
            }
            Self::Detached => {
                let log = layout.agent_log();
                let mut made: Vec<_> = fsx::missing_directories(log.parent().unwrap_or(&log))
                    .into_iter()
                    .map(|path| Creation::Directory { path })
                    .collect();
                made.push(Creation::File { path: old_log(&log) });
                made.push(Creation::File { path: log });
                made
            }
        }
    }

    /// Makes sure that the agent runs. Returns the child process if this call started one itself.
    pub async fn start(self, command: &AgentCommand, layout: &Layout) -> Result<Option<Child>, ServiceError> {
        match self {
            Self::Systemd => systemd::start(command, layout).await.map(|()| None),
            Self::Detached if running(layout)? != Holder::Free => Ok(None),
            Self::Detached => detach(command, layout),
        }
    }

    /// Ends the agent of this root, and keeps it from coming back.
    pub async fn stop(self, layout: &Layout) -> Result<(), ServiceError> {
        if self == Self::Systemd {
            systemd::stop(layout).await?;
        }
        // Also where systemd runs: an agent may have been started by hand.
        end_process(layout).await
    }

    /// The line that starts the agent at boot, for the local init system; `None` where systemd does it.
    pub fn boot_line(self, command: &AgentCommand) -> Option<String> {
        (self == Self::Detached).then(|| command_line(command))
    }
}

/// Makes systemd forget the unit whose file was removed.
pub async fn forget_unit() -> Result<(), ServiceError> {
    systemd::forget().await
}

/// Whether an agent of this root runs, and as which process. A process that does not have the lock's file open is not
/// the agent, whatever that file says: it is left from an earlier one, or of another PID namespace.
pub fn running(layout: &Layout) -> Result<Holder, ServiceError> {
    let lock = layout.agent_lock();
    Ok(match Lock::holder(&lock)? {
        Holder::Process(pid) if !Proc::new(layout.proc()).has_open(pid, &lock)? => Holder::Unknown,
        holder => holder,
    })
}

/// Whether the unit that plinth made starts the agent at boot; also where plinth made none, so that whoever supervises
/// the agent otherwise is left alone.
pub fn starts_at_boot(layout: &Layout, ledger: &Ledger) -> bool {
    !ledger.has(&unit_creation()) || systemd::is_enabled(layout)
}

/// Whether the unit is there and enabled.
pub fn unit_is_enabled(layout: &Layout) -> bool {
    systemd::is_enabled(layout)
}

fn unit_creation() -> Creation {
    Creation::Unit { name: UNIT.to_owned() }
}

/// Leaves the terminal's session; called by the agent itself, first thing, when it was started detached.
pub fn leave_session() {
    // Fails only for a process group leader, which has no terminal's signals to fear either.
    let _ = nix::unistd::setsid();
}

fn detach(command: &AgentCommand, layout: &Layout) -> Result<Option<Child>, ServiceError> {
    let log = layout.agent_log();
    fsx::create_directories(log.parent().unwrap_or(Path::new("/")), 0o700)?;
    if std::fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_LIMIT) {
        fsx::rename(&log, &old_log(&log))?;
    }
    let output = fsx::open_append(&log, 0o600)?;
    let errors: File = output.try_clone().map_err(FsError::of("open", &log))?;
    #[cfg(test)]
    if in_process::start(layout) {
        return Ok(None);
    }
    tokio::process::Command::new(&command.program)
        .args(&command.arguments)
        .arg("--detached")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map(Some)
        .map_err(|source| ServiceError::Spawn { program: command.program.display().to_string(), source })
}

async fn end_process(layout: &Layout) -> Result<(), ServiceError> {
    #[cfg(test)]
    in_process::stop(layout);
    let mut last = Holder::Unknown;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // An agent that is just starting has not written its process id yet.
        last = until(layout, |holder| holder != Holder::Unknown).await?;
        match last {
            Holder::Free => return Ok(()),
            Holder::Unknown => break,
            // It has the lock's file open, so it is the agent; if it ends just now, there is nobody to signal. One that
            // is stopped (SIGSTOP) does not see SIGTERM before it goes on.
            Holder::Process(pid) => {
                let _ = kill(Pid::from_raw(pid), signal).and_then(|()| kill(Pid::from_raw(pid), Signal::SIGCONT));
            }
        }
        if until(layout, |holder| holder == Holder::Free).await? == Holder::Free {
            return Ok(());
        }
    }
    Err(match last {
        Holder::Process(pid) => ServiceError::Unstoppable { pid },
        Holder::Free | Holder::Unknown => ServiceError::Unseen { lock: layout.agent_lock() },
    })
}

/// Waits for an answer that is good, for no longer than [`STOP_GRACE`]; the last one otherwise.
async fn until(layout: &Layout, good: impl Fn(Holder) -> bool) -> Result<Holder, ServiceError> {
    let deadline = tokio::time::Instant::now() + STOP_GRACE;
    loop {
        let holder = running(layout)?;
        if good(holder) || tokio::time::Instant::now() >= deadline {
            return Ok(holder);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn old_log(log: &Path) -> PathBuf {
    log.with_extension("log.1")
}

/// The command as one line, quoted for a shell and for systemd alike.
fn command_line(command: &AgentCommand) -> String {
    let quote = |word: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@".contains(c);
        if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{word}'") }
    };
    std::iter::once(command.program.to_string_lossy().as_ref())
        .chain(command.arguments.iter().map(String::as_str))
        .map(quote)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (tempfile::TempDir, Layout) {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fsx::create_directories(&layout.state(), 0o700).unwrap();
        (root, layout)
    }

    /// An agent that does what the real one does with its lock: `flock(1)` holds it, with the pid inside.
    fn pretend(layout: &Layout, script: &str) -> AgentCommand {
        let lock = layout.agent_lock();
        let script = format!("exec 9>>'{0}'; flock -x 9; echo $$ > '{0}'; {script}", lock.display());
        AgentCommand { program: "/bin/bash".into(), arguments: vec!["-c".into(), script] }
    }

    async fn until_running(layout: &Layout) -> i32 {
        loop {
            if let Holder::Process(pid) = running(layout).unwrap() {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn the_manager_follows_the_host() {
        let (root, layout) = layout();
        assert_eq!(Manager::detect(&layout), Manager::Detached);
        std::fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
        assert_eq!(Manager::detect(&layout), Manager::Systemd);
    }

    #[test]
    fn the_agent_runs_from_where_a_boot_finds_it() {
        let (root, layout) = layout();
        let build = root.path().join("build");
        std::fs::write(&build, "one").unwrap();
        let command = AgentCommand { program: build.clone(), arguments: vec!["agent".into()] };
        let mut ledger = Ledger::default();
        for made in binary_creations(&command, &layout) {
            ledger.insert(made);
        }
        assert!(ledger.has_file(&layout.binary()));
        for content in ["one", "two"] {
            std::fs::write(&build, content).unwrap();
            let installed = install(&command, &layout, &ledger).unwrap();
            assert_eq!(installed, AgentCommand { program: layout.binary(), arguments: vec!["agent".into()] });
            assert_eq!(std::fs::read_to_string(layout.binary()).unwrap(), content);
            assert_eq!(install(&installed, &layout, &ledger).unwrap(), installed);
        }
    }

    #[test]
    fn what_plinth_did_not_install_is_left_alone() {
        let (root, layout) = layout();
        let build = root.path().join("build");
        std::fs::write(&build, "new").unwrap();
        let command = AgentCommand { program: build, arguments: vec!["agent".into()] };
        fsx::create_directories(layout.binary().parent().unwrap(), 0o755).unwrap();
        for (theirs, program) in [("old", &command.program), ("new", &layout.binary())] {
            std::fs::write(layout.binary(), theirs).unwrap();
            assert_eq!(binary_creations(&command, &layout), []);
            assert_eq!(install(&command, &layout, &Ledger::default()).unwrap().program, *program);
            assert_eq!(std::fs::read_to_string(layout.binary()).unwrap(), theirs);
        }
    }

    #[tokio::test]
    async fn a_detached_agent_is_started_once_and_stopped() {
        let (_root, layout) = layout();
        let command = pretend(&layout, "while :; do sleep 0.02; done");
        let mut child = Manager::Detached.start(&command, &layout).await.unwrap().unwrap();
        until_running(&layout).await;
        assert!(Manager::Detached.start(&command, &layout).await.unwrap().is_none());
        let (stopped, exit) = tokio::join!(Manager::Detached.stop(&layout), child.wait());
        stopped.unwrap();
        exit.unwrap();
        assert_eq!(running(&layout).unwrap(), Holder::Free);
    }

    #[tokio::test]
    async fn an_agent_that_ignores_sigterm_is_killed() {
        let (_root, layout) = layout();
        let command = pretend(&layout, "trap '' TERM; while :; do sleep 0.02; done");
        let mut child = Manager::Detached.start(&command, &layout).await.unwrap().unwrap();
        until_running(&layout).await;
        let (stopped, exit) = tokio::join!(Manager::Detached.stop(&layout), child.wait());
        stopped.unwrap();
        assert!(!exit.unwrap().success());
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_only_has_the_number_of_the_agent_is_never_signalled() {
        let (_root, layout) = layout();
        // What an agent that was killed left in the file; the system has given its number to somebody else since.
        let mut bystander = tokio::process::Command::new("/bin/sleep").arg("600").kill_on_drop(true).spawn().unwrap();
        let lock = layout.agent_lock();
        std::fs::write(&lock, format!("{}\n", bystander.id().unwrap())).unwrap();
        let holder = File::open(&lock).unwrap();
        holder.lock().unwrap();
        assert_eq!(running(&layout).unwrap(), Holder::Unknown);
        let error = Manager::Detached.stop(&layout).await.unwrap_err();
        assert!(matches!(&error, ServiceError::Unseen { lock: path } if *path == lock), "{error:?}");
        assert!(bystander.try_wait().unwrap().is_none(), "it runs on");
        drop(holder);
        Manager::Detached.stop(&layout).await.unwrap();
        assert!(bystander.try_wait().unwrap().is_none(), "it runs on");
    }

    #[test]
    fn only_a_unit_of_ours_has_to_start_at_boot() {
        let (_root, layout) = layout();
        let mut ledger = Ledger::default();
        assert!(starts_at_boot(&layout, &ledger));
        ledger.insert(unit_creation());
        assert!(!starts_at_boot(&layout, &ledger));
    }

    #[test]
    fn the_boot_line_quotes_what_a_shell_would_split() {
        let command =
            AgentCommand { program: "/usr/local/bin/plinth".into(), arguments: vec!["agent".into(), "--x=a b".into()] };
        assert_eq!(Manager::Detached.boot_line(&command).unwrap(), "/usr/local/bin/plinth agent '--x=a b'");
        assert_eq!(Manager::Systemd.boot_line(&command), None);
    }
}
