//! What tests say about the fake's world, and what they ask about it afterwards.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

/// An operation of [`Runtime`](crate::runtime::Runtime), to aim faults at and to count calls by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // each is the method of the same name
pub enum Op {
    Info,
    List,
    Inspect,
    Create,
    Start,
    Stop,
    Remove,
    Image,
    Pull,
    RemoveImage,
    Exec,
    Logs,
    Events,
}

impl Op {
    /// Whether it changes containers or images, or is meant to.
    pub fn is_change(self) -> bool {
        matches!(self, Self::Create | Self::Start | Self::Stop | Self::Remove | Self::Pull | Self::RemoveImage)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::List => "list",
            Self::Inspect => "inspect",
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Remove => "remove",
            Self::Image => "image",
            Self::Pull => "pull",
            Self::RemoveImage => "remove-image",
            Self::Exec => "exec",
            Self::Logs => "logs",
            Self::Events => "events",
        })
    }
}

/// One call somebody made, in the order the calls came in; failed ones too.
///
/// Displays as `stop k8s_etcd_…`, so that a test can compare lists of strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What was asked.
    pub op: Op,
    /// Of what: a container's *name* (whether named by id or by name; the text as given when there is none), an
    /// image reference, an agent id; empty for [`Op::Info`].
    pub target: String,
    /// The grace of a stop, the time-out of an exec.
    pub limit: Option<Duration>,
    /// The clock's time.
    pub at: Timestamp,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.op)?;
        if !self.target.is_empty() {
            write!(f, " {}", self.target)?;
        }
        Ok(())
    }
}

/// How the process of a container behaves. The default runs until it is told to stop, obeys at once with exit
/// code 0, writes nothing, and answers every exec with exit code 0.
///
/// ```
/// # use std::time::Duration;
/// # use plinth::runtime::fake::Program;
/// let crashes = Program::default().exits_after(Duration::from_secs(1), 2).writes("bind: address already in use\n");
/// let stubborn = Program::default().ignores_stop();
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub(super) start_error: Option<String>,
    pub(super) exit: Option<(Duration, i64)>,
    pub(super) stop: Option<(Duration, i64)>,
    pub(super) output: String,
    pub(super) exec: (i64, String),
    pub(super) exec_takes: Duration,
}

impl Default for Program {
    fn default() -> Self {
        Self {
            start_error: None,
            exit: None,
            stop: Some((Duration::ZERO, 0)),
            output: String::new(),
            exec: (0, String::new()),
            exec_takes: Duration::ZERO,
        }
    }
}

impl Program {
    /// The engine cannot start it and says why, as for a missing binary; the container stays `Created`.
    #[must_use]
    pub fn fails_to_start(mut self, reason: impl Into<String>) -> Self {
        self.start_error = Some(reason.into());
        self
    }

    /// It ends by itself after this time (of `tokio::time`), zero meaning before `start` returns.
    #[must_use]
    pub fn exits_after(mut self, delay: Duration, exit_code: i64) -> Self {
        self.exit = Some((delay, exit_code));
        self
    }

    /// It needs this long to end after the stop signal; SIGKILL at the end of the grace cuts it short.
    #[must_use]
    pub fn stops_after(mut self, delay: Duration, exit_code: i64) -> Self {
        self.stop = Some((delay, exit_code));
        self
    }

    /// It ignores the stop signal, so that only SIGKILL after the grace ends it, with exit code 137.
    #[must_use]
    pub fn ignores_stop(mut self) -> Self {
        self.stop = None;
        self
    }

    /// It writes this each time it starts.
    #[must_use]
    pub fn writes(mut self, output: impl Into<String>) -> Self {
        self.output = output.into();
        self
    }

    /// Every exec in it ends with this.
    #[must_use]
    pub fn answers_exec(mut self, exit_code: i64, output: impl Into<String>) -> Self {
        self.exec = (exit_code, output.into());
        self
    }

    /// Every exec in it takes this long, or times out.
    #[must_use]
    pub fn exec_takes(mut self, time: Duration) -> Self {
        self.exec_takes = time;
        self
    }
}
