//! Upgrades of a cluster that is in use, good ones and bad ones, on a real engine: not one acknowledged write is lost.
//!
//! Root and an engine are needed, so the tests are marked as ignored:
//!
//! ```console
//! # cargo test --test upgrade -- --ignored
//! ```
//!
//! How they run is told by the end-to-end tests, whose machines these are.

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong in here fails the test
#![allow(clippy::print_stdout)] // what the body of a test says goes to the test that started it

mod cases;

#[path = "../support/client.rs"]
#[allow(dead_code, unreachable_pub)] // another test crate uses the rest of it
mod client;
#[path = "../support/machines.rs"]
mod machines;

use machines::{command, host, sandbox};

machines::cases!(
    Alone:
    an_upgrade_in_use,
    an_upgrade_of_the_api_server_in_use,
    an_image_that_exits,
    a_flag_that_is_refused_after_etcd_was_exchanged,
    an_api_server_that_is_never_ready,
    an_etcd_that_cannot_start,
);
