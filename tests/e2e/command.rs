//! Programs with a time limit, whose output is kept for the account of a failure.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::sandbox;

/// The last ones, oldest first.
static HISTORY: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// How many of them are kept.
const KEPT: usize = 6;

/// How many lines of each output are shown.
const SHOWN: usize = 40;

/// A program that has ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

/// A program that runs.
pub(crate) struct Running {
    command: String,
    pub(crate) child: Child,
    stdout: File,
    stderr: File,
    begin: Instant,
}

/// Runs `command` to its end.
///
/// # Panics
/// When it cannot be started, or is not done within `limit`.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Ended {
    start(command).end(limit)
}

/// Starts `command`. Its output goes to files: what it leaves running may keep them open for ever.
pub(crate) fn start(command: &mut Command) -> Running {
    let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().unwrap())
        .stderr(stderr.try_clone().unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    Running { command: format!("{command:?}"), child, stdout, stderr, begin: Instant::now() }
}

impl Running {
    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within `limit`.
    pub(crate) fn end(mut self, limit: Duration) -> Ended {
        let status = sandbox::wait(&mut self.child, limit).unwrap_or_else(|| {
            self.child.kill().unwrap();
            self.child.wait().unwrap()
        });
        let took = self.begin.elapsed();
        let [stdout, stderr] = [&self.stdout, &self.stderr].map(content);
        let ended = Ended { command: self.command, status, stdout, stderr, took };
        remember(&ended);
        assert!(took < limit + Duration::from_secs(1), "not done after {} s: {ended}", limit.as_secs());
        ended
    }

    /// What it has written so far.
    pub(crate) fn stdout(&self) -> String {
        content(&self.stdout)
    }
}

fn content(file: &File) -> String {
    // The writer shares the file's position, so that is left alone.
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Ended {
    /// Itself, if it succeeded.
    pub(crate) fn ok(self) -> Self {
        self.exits(0)
    }

    /// Itself, if it ended with this code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// stdout as the one JSON document that it is.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("stdout is not one document: {error}: {self}"))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, status, stdout, stderr, took } = self;
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        writeln!(f, "$ {command}: {how} after {:.2} s", took.as_secs_f64())?;
        for (name, text) in [("stdout", stdout), ("stderr", stderr)] {
            let lines = text.lines().count();
            for line in text.lines().take(SHOWN) {
                writeln!(f, "  {name}: {line}")?;
            }
            if lines > SHOWN {
                writeln!(f, "  {name}: … {} lines more", lines - SHOWN)?;
            }
        }
        Ok(())
    }
}

fn remember(ended: &Ended) {
    let mut history = HISTORY.lock().unwrap_or_else(PoisonError::into_inner);
    history.push_back(ended.to_string());
    if history.len() > KEPT {
        history.pop_front();
    }
}

/// What was run last, with its output.
pub(crate) fn history() -> String {
    let history = HISTORY.lock().unwrap_or_else(PoisonError::into_inner);
    history.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
}
