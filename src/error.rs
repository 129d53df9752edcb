//! Exit codes and hints: how a failure reaches the person who ran the command.

use std::process::ExitCode;

/// How a command ended. The numbers are part of the interface (README, "Exit codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything asked for is done.
    Done,
    /// Something failed; what was asked for is not done.
    Failed,
    /// The command line or the configuration cannot be accepted; nothing was touched.
    Usage,
    /// A preflight check refused the host; nothing was touched.
    Preflight,
    /// Asked by `--detailed-exitcode`: something would change.
    Differs,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Preflight => 3,
            Exit::Differs => 10,
        })
    }
}

/// An error that knows what its reader can do about it.
pub trait Hint {
    /// One line each, printed after the error as `hint: …`; empty where there is nothing useful to say.
    fn hints(&self) -> Vec<String>;
}
