//! Real etcds of two versions on the same data: what `plinth::etcd` promises of going there and back.
//!
//! Root and an engine are needed, so the tests are marked as ignored:
//!
//! ```console
//! # cargo test --test etcd -- --ignored
//! ```
//!
//! How they run is told by the end-to-end tests, whose machines these are.

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong in here fails the test
#![allow(clippy::print_stdout)] // what the body of a test says goes to the test that started it

mod cases;
mod lab;

#[path = "../support/machines.rs"]
mod machines;

use machines::{command, host, sandbox};

machines::cases!(
    Shared:
    an_upgrade_that_served_nothing_is_undone,
    an_upgrade_that_served_goes_back_by_downgrade,
    every_kind_of_write_is_noticed,
    a_snapshot_is_one_for_etcds_own_tools,
    a_member_moves_to_another_address,
);
