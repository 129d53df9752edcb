//! The host as a node of its own cluster, on a real API server: its object, its Lease, and the mirrors of its static pods.
//!
//! Root and an engine are needed, so the tests are marked as ignored:
//!
//! ```console
//! # cargo test --test node -- --ignored
//! ```
//!
//! How they run is told by the end-to-end tests, whose machines these are.

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong in here fails the test
#![allow(clippy::print_stdout)] // what the body of a test says goes to the test that started it

mod cases;

#[path = "../support/machines.rs"]
mod machines;

use machines::{command, host, sandbox};

machines::cases!(
    Shared:
    the_node_is_shown_as_a_kubelets,
    a_mirror_comes_back_and_its_container_does_not_notice,
    a_mirror_follows_its_file,
    nobody_else_takes_the_mirrors_away,
    what_was_missed_is_caught_up_with,
    pods_of_the_api_server_are_told,
    events_have_the_kubelets_reasons,
    the_node_goes_when_nobody_asks_for_it,
);
