//! The replacement of a running kube-apiserver, new-first, on a real engine: what its clients notice of it.
//!
//! Root and an engine are needed, so the tests are marked as ignored:
//!
//! ```console
//! # cargo test --test surge -- --ignored
//! ```
//!
//! How they run is told by the end-to-end tests, whose machines these are.

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong in here fails the test
#![allow(clippy::print_stdout)] // what the body of a test says goes to the test that started it

mod cases;
mod slice;

#[path = "../support/client.rs"]
#[allow(dead_code, unreachable_pub)] // another test crate uses the rest of it
mod client;
#[path = "../support/machines.rs"]
mod machines;

use machines::{command, host, sandbox};

machines::cases!(
    Alone:
    a_good_change_fails_no_request,
    a_bad_change_fails_no_request,
    an_agent_killed_in_the_middle_fails_no_request,
    an_agent_killed_at_the_take_over_keeps_the_service,
    a_bad_change_is_given_up_at_a_cold_start,
    the_agent_may_do_nothing_else,
);
