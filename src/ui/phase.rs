//! Phases, the tasks in them, and transfers of bytes.

use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::mode::Progress;
use super::printer::Printer;

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// Lines a task may write at once …
const BURST: u32 = 20;

/// … and how long it takes until it may write one more. Normal starts stay below it; a crash loop does not flood.
const REFILL: Duration = Duration::from_secs(5);

/// A named part of a command. Dropped without [`Phase::done`] or [`Phase::failed`], it vanishes without a word.
#[derive(Debug)]
pub struct Phase {
    printer: Printer,
    name: String,
    begin: Instant,
    bar: ProgressBar,
    lines: Throttle,
}

impl Phase {
    pub(super) fn begin(printer: Printer, name: &str) -> Self {
        let bar = spinner(&printer, "{spinner} {prefix} {wide_msg} {elapsed}");
        bar.set_prefix(name.to_owned());
        Self { printer, name: name.to_owned(), begin: Instant::now(), bar, lines: Throttle::new() }
    }

    /// What is being done or waited for.
    pub fn update(&mut self, text: &str) {
        self.bar.set_message(text.to_owned());
        if self.lines.lets_through(text) {
            self.say(text);
        }
    }

    /// One of several things that are done or waited for at the same time.
    pub fn task(&self, name: &str) -> Task {
        let bar = spinner(&self.printer, "  {spinner} {prefix} {wide_msg}");
        bar.set_prefix(name.to_owned());
        Task {
            printer: self.printer.clone(),
            phase: self.name.clone(),
            name: name.to_owned(),
            begin: self.begin,
            bar,
            lines: Throttle::new(),
        }
    }

    /// Something whose bytes are counted, such as an image being pulled.
    pub fn transfer(&self, name: &str) -> Transfer {
        let bar = self.printer.bars().add(ProgressBar::new(0));
        bar.set_style(style("  {prefix} [{bar:30}] {bytes}/{total_bytes} {wide_msg}"));
        bar.set_prefix(name.to_owned());
        self.say(name);
        Transfer { printer: self.printer.clone(), phase: self.name.clone(), name: name.to_owned(), bar, quarter: 0 }
    }

    /// It succeeded; `text` says with what.
    pub fn done(self, text: &str) {
        self.end("32", "✓", text);
    }

    /// It failed; `text` says at what. The reason follows as the command's error.
    pub fn failed(self, text: &str) {
        self.end("31", "✗", text);
    }

    fn end(self, color: &str, mark: &str, text: &str) {
        self.bar.finish_and_clear();
        let seconds = self.begin.elapsed().as_secs_f32();
        match self.printer.mode().progress {
            Progress::Bars => {
                let mark = self.printer.paint(color, mark);
                self.printer.line(&format!("{mark} {}: {text} ({seconds:.1} s)", self.name));
            }
            Progress::Lines => self.say(&format!("{text} ({seconds:.1} s)")),
            Progress::Hidden => {}
        }
    }

    fn say(&self, text: &str) {
        say(&self.printer, &self.name, text);
    }
}

/// See [`Phase::task`]. Vanishes when dropped.
#[derive(Debug)]
pub struct Task {
    printer: Printer,
    phase: String,
    name: String,
    begin: Instant,
    bar: ProgressBar,
    lines: Throttle,
}

impl Task {
    /// What is being waited for. Saying the same again says nothing.
    pub fn update(&mut self, text: &str) {
        self.bar.set_message(text.to_owned());
        if self.lines.lets_through(text) {
            say(&self.printer, &self.phase, &format!("{}: {text}", self.name));
        }
    }

    /// It is done; `text` says how, and the time since the phase began is added.
    pub fn done(self, text: &str) {
        let text = format!("{}: {text} ({:.1} s)", self.name, self.begin.elapsed().as_secs_f32());
        self.bar.finish_and_clear();
        match self.printer.mode().progress {
            Progress::Bars => self.printer.line(&format!("  {} {text}", self.printer.paint("32", "✓"))),
            Progress::Lines => say(&self.printer, &self.phase, &text),
            Progress::Hidden => {}
        }
    }
}

/// See [`Phase::transfer`]. Vanishes when dropped.
#[derive(Debug)]
pub struct Transfer {
    printer: Printer,
    phase: String,
    name: String,
    bar: ProgressBar,
    quarter: u64,
}

impl Transfer {
    /// So many bytes of so many are there. The total may grow while its parts become known.
    pub fn update(&mut self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        let quarter = done.saturating_mul(4).checked_div(total).unwrap_or(0).min(3);
        if quarter > self.quarter {
            self.quarter = quarter;
            let text = format!("{}: {} % of {}", self.name, quarter * 25, HumanBytes(total));
            say(&self.printer, &self.phase, &text);
        }
    }

    /// What is done beside the bytes ("extracting").
    pub fn message(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// All bytes are there.
    pub fn done(self) {
        self.bar.finish_and_clear();
        say(&self.printer, &self.phase, &format!("{}: done", self.name));
    }
}

/// A line of a phase, where progress is told in lines.
fn say(printer: &Printer, phase: &str, text: &str) {
    if printer.mode().progress == Progress::Lines {
        printer.line(&format!("[{phase}] {text}"));
    }
}

fn spinner(printer: &Printer, template: &str) -> ProgressBar {
    let bar = printer.bars().add(ProgressBar::new_spinner().with_style(style(template)));
    if printer.mode().progress == Progress::Bars {
        bar.enable_steady_tick(TICK);
    }
    bar
}

/// A template is ours and tested; a broken one would still be a bar.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// Keeps lines from repeating and from flooding.
#[derive(Debug)]
struct Throttle {
    last: String,
    tokens: u32,
    refilled: Instant,
}

impl Throttle {
    fn new() -> Self {
        Self { last: String::new(), tokens: BURST, refilled: Instant::now() }
    }

    fn lets_through(&mut self, text: &str) -> bool {
        if self.last == text {
            return false;
        }
        let earned = self.refilled.elapsed().as_secs() / REFILL.as_secs();
        if earned > 0 {
            self.tokens = BURST.min(self.tokens.saturating_add(u32::try_from(earned).unwrap_or(BURST)));
            self.refilled = Instant::now();
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        text.clone_into(&mut self.last);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::mode::{Format, Mode};

    const PLAIN: Mode = Mode { progress: Progress::Lines, format: Format::Text, color: false };

    #[tokio::test(start_paused = true)]
    async fn plain_lines_carry_the_phase() {
        let (printer, captured) = Printer::capture(PLAIN);
        let mut certs = printer.phase("certs");
        certs.update("making 2 certificates");
        certs.done("2 certificates made");
        let wait = printer.phase("wait-control-plane");
        let mut etcd = wait.task("etcd");
        let mut api = wait.task("kube-apiserver");
        etcd.update("connection refused");
        api.update("connection refused");
        api.update("connection refused");
        tokio::time::advance(Duration::from_millis(1500)).await;
        etcd.done("healthy");
        api.update("/readyz 500: etcd");
        drop(api);
        wait.failed("the control plane is not healthy");
        assert_eq!(
            captured.err(),
            "[certs] making 2 certificates\n\
             [certs] 2 certificates made (0.0 s)\n\
             [wait-control-plane] etcd: connection refused\n\
             [wait-control-plane] kube-apiserver: connection refused\n\
             [wait-control-plane] etcd: healthy (1.5 s)\n\
             [wait-control-plane] kube-apiserver: /readyz 500: etcd\n\
             [wait-control-plane] the control plane is not healthy (1.5 s)\n"
        );
        assert_eq!(captured.out(), "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_loop_does_not_flood() {
        let (printer, captured) = Printer::capture(PLAIN);
        let phase = printer.phase("wait");
        let mut task = phase.task("etcd");
        let lines = || captured.err().lines().count();
        for n in 0..1000 {
            task.update(&format!("reason {}", n % 2));
        }
        assert_eq!(lines(), 20);
        tokio::time::advance(REFILL).await;
        task.update("reason a");
        task.update("reason b");
        assert_eq!(lines(), 21);
        tokio::time::advance(REFILL * 100).await;
        for n in 0..1000 {
            task.update(&format!("reason {}", n % 2));
        }
        assert_eq!(lines(), 41);
    }

    #[test]
    fn a_transfer_tells_its_quarters() {
        let (printer, captured) = Printer::capture(PLAIN);
        let phase = printer.phase("images");
        let mut pull = phase.transfer("etcd:3.7.0-0");
        for done in 0..=100 {
            pull.update(done << 20, 100 << 20);
        }
        pull.update(5, 0);
        pull.done();
        assert_eq!(
            captured.err(),
            "[images] etcd:3.7.0-0\n\
             [images] etcd:3.7.0-0: 25 % of 100.00 MiB\n\
             [images] etcd:3.7.0-0: 50 % of 100.00 MiB\n\
             [images] etcd:3.7.0-0: 75 % of 100.00 MiB\n\
             [images] etcd:3.7.0-0: done\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_terminal_only_ends_stay() {
        for (color, expected) in [
            (false, "  ✓ etcd: healthy (0.0 s)\n✓ wait: all healthy (0.0 s)\n✗ addons: refused (0.0 s)\n"),
            (
                true,
                "  \x1b[32m✓\x1b[0m etcd: healthy (0.0 s)\n\x1b[32m✓\x1b[0m wait: all healthy (0.0 s)\n\
                 \x1b[31m✗\x1b[0m addons: refused (0.0 s)\n",
            ),
        ] {
            let (printer, captured) = Printer::capture(Mode { progress: Progress::Bars, color, ..PLAIN });
            let mut wait = printer.phase("wait");
            wait.update("for the control plane");
            let mut etcd = wait.task("etcd");
            etcd.update("connection refused");
            etcd.done("healthy");
            let mut pull = wait.transfer("image");
            pull.update(3, 4);
            pull.done();
            wait.done("all healthy");
            printer.phase("addons").failed("refused");
            assert_eq!(captured.err(), expected);
        }
    }

    #[test]
    fn hidden_progress_says_nothing() {
        let (printer, captured) = Printer::capture(Mode { progress: Progress::Hidden, ..PLAIN });
        let mut phase = printer.phase("certs");
        phase.update("making");
        phase.task("a").done("made");
        phase.transfer("b").done();
        phase.done("made");
        assert_eq!(captured.err(), "");
    }

    #[test]
    fn the_templates_are_templates() {
        for template in [
            "{spinner} {prefix} {wide_msg} {elapsed}",
            "  {spinner} {prefix} {wide_msg}",
            "  {prefix} [{bar:30}] {bytes}/{total_bytes} {wide_msg}",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
