//! A machine of its own for each test.
//!
//! The test re-executes itself below `scripts/sandbox.sh`; there the body runs as plain code that owns the host.

use std::fs::File;
use std::io::Write as _;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use crate::host;

/// Names the test whose body is to run, inside a sandbox.
pub(crate) const INSIDE: &str = "PLINTH_E2E_INSIDE";

/// A body that takes longer hangs.
const LIMIT: Duration = Duration::from_mins(10);

/// For the sandbox itself, and for the account of what went wrong.
const AROUND: Duration = Duration::from_secs(90);

/// Lines with this prefix are shown also when the test succeeds.
pub(crate) const NOTE: &str = "e2e: ";

/// What else may happen on this computer meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// One other test.
    Shared,
    /// Nothing: the test asserts figures.
    Alone,
}

/// Runs `body` on a fresh machine, as the test `name`.
pub(crate) fn run(name: &str, machine: Machine, body: fn()) {
    if let Ok(inside) = std::env::var(INSIDE) {
        // Sandboxes are not nested.
        if inside == name {
            within(body);
        }
        return;
    }
    if skipped(name) {
        return;
    }
    let _turn = Turn::take(machine);
    let begin = Instant::now();
    let (status, output) = enter(name, &["--exact", name, "--ignored", "--nocapture"], &[]);
    let took = begin.elapsed().as_secs_f64();
    assert!(status.success(), "{name}: {status} after {took:.1} s\n{output}");
    for line in output.lines().filter_map(|line| line.strip_prefix(NOTE)) {
        tell(&format!("{NOTE}{name}: {line}\n"));
    }
    tell(&format!("{NOTE}{name}: passed in {took:.1} s\n"));
}

/// A figure worth showing.
pub(crate) fn note(text: &str) {
    println!("{NOTE}{text}");
}

/// Whether the test `name` cannot run here, which is then told.
pub(crate) fn skipped(name: &str) -> bool {
    let Err(reason) = possible() else { return false };
    assert!(std::env::var_os("PLINTH_REQUIRE_DOCKER").is_none_or(|value| value != "1"), "{reason}");
    tell(&format!("{NOTE}{name}: SKIPPED: {reason}\n"));
    true
}

fn possible() -> Result<(), String> {
    if !Uid::effective().is_root() {
        return Err("sandboxes need root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|directory| directory.join("dockerd").exists()) {
        return Err("there is no dockerd; `scripts/sandbox.sh --prepare` installs it".to_owned());
    }
    Ok(())
}

/// To stderr even where the test harness captures what tests print: nobody should take skipped for passed.
pub(crate) fn tell(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

/// Runs this program with `arguments` on a machine of its own, with `name` as [`INSIDE`]; its status and its output.
pub(crate) fn enter(name: &str, arguments: &[&str], variables: &[(&str, &Path)]) -> (ExitStatus, String) {
    let log = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output: File = log.reopen().unwrap();
    let mut child = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/sandbox.sh"))
        .arg("--")
        .arg(std::env::current_exe().unwrap())
        .args(arguments)
        .env(INSIDE, name)
        .envs(variables.iter().copied())
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stderr(output.try_clone().unwrap())
        .stdout(output)
        .spawn()
        .unwrap();
    let status = wait(&mut child, LIMIT + AROUND).unwrap_or_else(|| {
        // It takes the sandbox away on SIGTERM; the kernel does if even that hangs.
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        wait(&mut child, Duration::from_secs(30)).unwrap_or_else(|| {
            child.kill().unwrap();
            child.wait().unwrap()
        })
    });
    (status, std::fs::read_to_string(log.path()).unwrap())
}

/// Waits for the end of `child`; `None` when `limit` is over.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Runs the body; whatever goes wrong, the machine is described before it goes.
fn within(body: fn()) {
    host::install_plinth();
    let (sender, result) = mpsc::channel();
    thread::spawn(move || sender.send(panic::catch_unwind(AssertUnwindSafe(body))));
    let problem = match result.recv_timeout(LIMIT) {
        Ok(Ok(())) => return,
        Ok(Err(_)) => "failed, see above".to_owned(),
        Err(_) => format!("not done after {} s", LIMIT.as_secs()),
    };
    host::describe();
    panic!("{problem}");
}

/// The right to use a share of the computer: there are two, and [`Machine::Alone`] takes both.
pub(crate) struct Turn(usize);

static FREE: Mutex<usize> = Mutex::new(2);
static FREED: Condvar = Condvar::new();

impl Turn {
    /// Waits for it.
    pub(crate) fn take(machine: Machine) -> Self {
        let shares = if machine == Machine::Alone { 2 } else { 1 };
        let free = FREE.lock().unwrap();
        *FREED.wait_while(free, |free| *free < shares).unwrap() -= shares;
        Self(shares)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *FREE.lock().unwrap() += self.0;
        FREED.notify_all();
    }
}
