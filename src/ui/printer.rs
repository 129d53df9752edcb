//! Who writes, and where to.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressDrawTarget};
use serde::Serialize;
use tracing_subscriber::fmt::MakeWriter;

use super::mode::{Format, Mode, Progress};
use super::phase::Phase;

type Sink = Mutex<Box<dyn Write + Send>>;

/// The only writer to stdout and stderr. Cheap to clone; clones share the terminal.
#[derive(Clone)]
pub struct Printer {
    shared: Arc<Shared>,
}

struct Shared {
    mode: Mode,
    bars: MultiProgress,
    out: Sink,
    err: Sink,
}

impl std::fmt::Debug for Printer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Printer").field("mode", &self.shared.mode).finish_non_exhaustive()
    }
}

impl Printer {
    /// A printer to the process's own stdout and stderr.
    pub fn new(mode: Mode) -> Self {
        let target = match mode.progress {
            Progress::Bars => ProgressDrawTarget::stderr(),
            Progress::Lines | Progress::Hidden => ProgressDrawTarget::hidden(),
        };
        Self::assemble(mode, target, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    /// A printer for tests, with what it wrote. Bars are not drawn; all else is as in `mode`.
    pub fn capture(mode: Mode) -> (Self, Captured) {
        let captured = Captured::default();
        let (out, err) = (Box::new(captured.out.clone()), Box::new(captured.err.clone()));
        (Self::assemble(mode, ProgressDrawTarget::hidden(), out, err), captured)
    }

    fn assemble(
        mode: Mode,
        target: ProgressDrawTarget,
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
    ) -> Self {
        let bars = MultiProgress::with_draw_target(target);
        Self { shared: Arc::new(Shared { mode, bars, out: Mutex::new(out), err: Mutex::new(err) }) }
    }

    /// How this printer talks.
    pub fn mode(&self) -> Mode {
        self.shared.mode
    }

    /// Writes a command's result to stdout: `value` as one JSON document, or `text` (a line end is added where
    /// missing; an empty text is no output).
    ///
    /// # Errors
    /// When stdout cannot take it (a full disk); not when its reader went away.
    pub fn result<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> io::Result<()> {
        let mut text = match self.mode().format {
            Format::Json => serde_json::to_string_pretty(value)?,
            Format::Text => text(),
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        match self.write(&self.shared.out, text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }

    /// Passes bytes that are not plinth's own on to stdout, as they are.
    ///
    /// # Errors
    /// When stdout cannot take them; of kind `BrokenPipe` when its reader went away.
    pub fn output(&self, bytes: &[u8]) -> io::Result<()> {
        self.write(&self.shared.out, bytes)
    }

    /// A line that people must see: `warning: …`.
    pub fn warning(&self, text: &str) {
        let label = self.paint("33", "warning:");
        self.line(&format!("{label} {text}"));
    }

    /// A failure: `error: …`, its causes, one per line, and hints.
    pub fn error(&self, error: &dyn std::error::Error, hints: &[String]) {
        let mut lines = vec![format!("{} {error}", self.paint("31", "error:"))];
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        lines.extend(causes.map(|cause| format!("  caused by: {cause}")));
        if !hints.is_empty() {
            lines.push(String::new());
        }
        lines.extend(hints.iter().map(|hint| format!("{} {hint}", self.paint("36", "hint:"))));
        self.line(&lines.join("\n"));
    }

    /// Text for people that is shown in any mode, such as an autopsy or a question's context.
    pub fn line(&self, text: &str) {
        // There is nobody left to tell when stderr is gone.
        let _ = self.write(&self.shared.err, format!("{text}\n").as_bytes());
    }

    /// Begins a phase; `name` is the one `--skip-phases` knows.
    pub fn phase(&self, name: &str) -> Phase {
        Phase::begin(self.clone(), name)
    }

    /// Where `tracing` writes its logs: stderr, never through a bar.
    pub fn log_writer(&self) -> LogWriter {
        LogWriter(self.clone())
    }

    /// Text without a line end, for a question.
    pub(super) fn prompt(&self, text: &str) {
        let _ = self.write(&self.shared.err, text.as_bytes());
    }

    pub(super) fn bars(&self) -> &MultiProgress {
        &self.shared.bars
    }

    /// `text` in the colour of an SGR `code`, where colours are wanted.
    pub(super) fn paint(&self, code: &str, text: &str) -> String {
        if self.mode().color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn write(&self, sink: &Sink, bytes: &[u8]) -> io::Result<()> {
        self.shared.bars.suspend(|| {
            let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
            sink.write_all(bytes)?;
            sink.flush()
        })
    }
}

/// See [`Printer::log_writer`].
#[derive(Debug, Clone)]
pub struct LogWriter(Printer);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&self.0.shared.err, bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// What a printer made by [`Printer::capture`] wrote.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    out: Buffer,
    err: Buffer,
}

impl Captured {
    /// All of stdout so far.
    pub fn out(&self) -> String {
        self.out.text()
    }

    /// All of stderr so far.
    pub fn err(&self) -> String {
        self.err.text()
    }
}

#[derive(Debug, Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Mode = Mode { progress: Progress::Lines, format: Format::Text, color: false };

    #[test]
    fn results_are_text_or_json() {
        let value = serde_json::json!({ "done": true });
        for (format, expected) in [(Format::Text, "all done\n"), (Format::Json, "{\n  \"done\": true\n}\n")] {
            let (printer, captured) = Printer::capture(Mode { format, ..PLAIN });
            printer.result(&value, || "all done".into()).unwrap();
            assert_eq!((captured.out().as_str(), captured.err().as_str()), (expected, ""));
        }
        let (printer, captured) = Printer::capture(PLAIN);
        printer.result(&value, String::new).unwrap();
        assert_eq!(captured.out(), "");
    }

    #[test]
    fn hidden_progress_hides_phases_but_not_warnings() {
        let (printer, captured) = Printer::capture(Mode { progress: Progress::Hidden, ..PLAIN });
        printer.phase("certs").done("by the way");
        printer.warning("look out");
        assert_eq!((captured.out().as_str(), captured.err().as_str()), ("", "warning: look out\n"));
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write `x`")]
    struct Outer(#[source] io::Error);

    #[test]
    fn errors_come_with_causes_and_hints() {
        let error = Outer(io::Error::other("disk full"));
        let (printer, captured) = Printer::capture(PLAIN);
        printer.error(&error, &["free some space".into(), "try again".into()]);
        assert_eq!(
            captured.err(),
            "error: cannot write `x`\n  caused by: disk full\n\nhint: free some space\nhint: try again\n"
        );
        let (printer, captured) = Printer::capture(Mode { color: true, ..PLAIN });
        printer.error(&error, &[]);
        assert!(captured.err().starts_with("\x1b[31merror:\x1b[0m cannot"), "{:?}", captured.err());
    }

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_error_but_a_full_disk_is() {
        for (kind, fine) in [(io::ErrorKind::BrokenPipe, true), (io::ErrorKind::StorageFull, false)] {
            let sink = || Box::new(Failing(kind));
            let printer = Printer::assemble(PLAIN, ProgressDrawTarget::hidden(), sink(), sink());
            assert_eq!(printer.result(&1, || "text".into()).is_ok(), fine);
            printer.warning("nobody reads this");
        }
    }

    #[test]
    fn logs_go_to_stderr() {
        let (printer, captured) = Printer::capture(PLAIN);
        let subscriber =
            tracing_subscriber::fmt().with_writer(printer.log_writer()).without_time().with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || tracing::info!(target: "t", "hello"));
        assert_eq!((captured.out().as_str(), captured.err().as_str()), ("", " INFO t: hello\n"));
    }
}
