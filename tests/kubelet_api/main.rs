//! The kubelet's interface on a real API server and engine: who may ask, and what `kubectl logs` and `exec` get.
//!
//! Root and an engine are needed, so the tests are marked as ignored:
//!
//! ```console
//! # cargo test --test kubelet_api -- --ignored
//! ```
//!
//! How they run is told by the end-to-end tests, whose machines these are.

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong in here fails the test
#![allow(clippy::print_stdout)] // what the body of a test says goes to the test that started it

mod cases;
mod face;

#[path = "../support/machines.rs"]
mod machines;

use machines::{command, host, sandbox};

machines::cases!(
    Shared:
    the_api_server_says_who_may_ask,
    the_logs_of_a_mirror_are_those_of_its_containers,
    commands_run_in_the_containers_of_a_mirror,
    a_port_that_is_taken_is_had_later_and_reset_leaves_nothing,
);
