//! The machines of the end-to-end tests, for the crates beside them: `use machines::{command, host, sandbox};` at the root
//! of a crate is what they expect.

#![allow(dead_code, unused_imports, unused_macros)] // each crate uses another part of it

#[path = "../e2e/command.rs"]
pub(crate) mod command;
#[path = "../e2e/host.rs"]
pub(crate) mod host;
#[path = "../e2e/sandbox.rs"]
pub(crate) mod sandbox;

/// A test for each function of `cases`, on a machine of its own.
macro_rules! cases {
    ($machine:ident: $($case:ident),+ $(,)?) => {
        $(#[test]
        #[ignore = "end to end"]
        fn $case() {
            crate::sandbox::run(stringify!($case), crate::sandbox::Machine::$machine, crate::cases::$case);
        })+
    };
}
pub(crate) use cases;
