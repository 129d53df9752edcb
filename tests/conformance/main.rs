//! Behaves the agent as a kubelet does that has nothing but manifests? Black-box checks on a real engine.
//!
//! They are numbered as the table in the README, which says where plinth differs on purpose. What happened is taken
//! from the engine ([`history`]) and from the agent's socket ([`node`]). Most checks share one machine and one agent
//! and run beside each other; those that stop the agent have a machine of their own. They need root, so they are
//! marked as ignored:
//!
//! ```console
//! # cargo test --test conformance -- --ignored
//! ```
//!
//! The machines are those of the end-to-end tests, whose documentation tells how to run them.

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong in here fails the test
#![allow(clippy::print_stdout)] // what the body of a test says goes to the test that started it

mod history;
mod node;
mod sources;

#[path = "../e2e/command.rs"]
#[allow(dead_code)] // another test crate uses the rest of it
mod command;
#[path = "../e2e/host.rs"]
#[allow(dead_code)]
mod host;
#[path = "../e2e/sandbox.rs"]
#[allow(dead_code)]
mod sandbox;

/// A test for each check, all on one machine.
macro_rules! together {
    ($($group:ident: $($check:ident),+;)+) => {
        $($(#[test]
        #[ignore = "end to end"]
        fn $check() {
            sandbox::together(stringify!($check), $group::$check, node::account);
        })+)+
    };
}

together! {
    sources:
        check_01_a_valid_manifest_runs,
        check_02_json_without_an_extension_runs,
        check_03_a_dot_file_is_ignored_until_it_is_renamed,
        check_04_any_extension_will_do,
        check_05_a_subdirectory_is_ignored;
}
