//! The `plinth` command; see the library's documentation for the map.

use std::process::ExitCode;

fn main() -> ExitCode {
    plinth::cli::main()
}
