//! Exit codes, hints and causes: how a failure reaches the person who ran the command.

use std::error::Error;
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

/// The innermost cause of `error`, or itself where it has none: HTTP clients say what happened there, and outside only
/// that something did.
pub fn root_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause
}

/// `error` with its causes, in one line.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error: &&(dyn Error + 'static)| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// An error that knows what its reader can do about it.
pub trait Hint {
    /// One line each, printed after the error as `hint: …`; empty where there is nothing useful to say.
    fn hints(&self) -> Vec<String>;
}
