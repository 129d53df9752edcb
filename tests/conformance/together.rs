//! Many tests on one machine, beside each other.
//!
//! The first one to come runs this program again inside a sandbox, with the arguments that chose it and the others.
//! There the bodies run; each leaves its result in a file, where its test outside finds it.

use std::cell::RefCell;
use std::panic;
use std::path::Path;
use std::sync::{Once, OnceLock};
use std::time::Instant;

use tempfile::TempDir;

use crate::host;
use crate::sandbox::{INSIDE, Machine, NOTE, Turn, enter, skipped, tell};

/// What [`INSIDE`] says here.
const TOGETHER: &str = "together";

/// Names the directory of the results.
const RESULTS: &str = "PLINTH_E2E_RESULTS";

/// How many run at a time: they wait most of the time.
const BESIDE: &str = "--test-threads=16";

/// The first word about a body that failed.
const FAILED: &str = "failed: ";

/// Where the results are, and what the program inside wrote.
static ALL: OnceLock<(TempDir, String)> = OnceLock::new();

/// Makes the machine theirs.
static SET_UP: Once = Once::new();

thread_local! {
    /// What this thread's body has told.
    static TOLD: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `body`, as the test `name`, on one machine together with all others that are run in this way and that the
/// arguments of this program choose. If it fails, `account` tells about it.
pub(crate) fn run(name: &str, body: fn(), account: fn(&str) -> String) {
    if let Ok(inside) = std::env::var(INSIDE) {
        if inside == TOGETHER {
            among_others(name, body, account);
        }
        return;
    }
    if skipped(name) {
        return;
    }
    let (results, output) = ALL.get_or_init(run_all);
    let result = std::fs::read_to_string(results.path().join(name));
    let result = result.unwrap_or_else(|_| panic!("{name} has not ended:\n{output}"));
    for line in result.lines().filter_map(|line| line.strip_prefix(NOTE)) {
        tell(&format!("{NOTE}{name}: {line}\n"));
    }
    let problem = result.strip_prefix(FAILED);
    assert!(problem.is_none(), "{}", problem.unwrap_or_default());
}

/// A figure worth showing.
pub(crate) fn note(text: &str) {
    crate::sandbox::note(text);
    TOLD.with_borrow_mut(|told| *told += &format!("{NOTE}{text}\n"));
}

fn run_all() -> (TempDir, String) {
    let _turn = Turn::take(Machine::Shared);
    let results = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let given: Vec<_> = std::env::args().skip(1).collect();
    let mut arguments = vec![BESIDE];
    // The number of threads is ours; it is given as one argument or as two.
    let mut given = given.iter().map(String::as_str);
    while let Some(argument) = given.next() {
        match argument {
            "--test-threads" => drop(given.next()),
            "--nocapture" => {}
            other if other.starts_with("--test-threads=") => {}
            other => arguments.push(other),
        }
    }
    let begin = Instant::now();
    let (status, output) = enter(TOGETHER, &arguments, &[(RESULTS, results.path())]);
    tell(&format!("{NOTE}{TOGETHER}: {status} after {:.1} s\n", begin.elapsed().as_secs_f64()));
    (results, output)
}

fn among_others(name: &str, body: fn(), account: fn(&str) -> String) {
    SET_UP.call_once(|| {
        host::install_plinth();
        panic::set_hook(Box::new(|info| TOLD.with_borrow_mut(|told| *told += &format!("{FAILED}{info}"))));
    });
    let result = panic::catch_unwind(body);
    let mut told = TOLD.take();
    if result.is_err() {
        // Notes go after the problem.
        let notes: String = told.drain(..told.find(FAILED).unwrap_or_default()).collect();
        let account = panic::catch_unwind(|| account(name)).unwrap_or_default();
        told = format!("{told}\n{notes}{account}");
    }
    std::fs::write(Path::new(&std::env::var_os(RESULTS).unwrap()).join(name), told).unwrap();
    assert!(result.is_ok(), "{name}");
}
