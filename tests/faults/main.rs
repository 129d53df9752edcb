//! What goes wrong on real hosts, made to happen: each time init says why, quickly, and with the right exit code.
//!
//! After each case the cause is mended, and the same command finishes what it began; then `reset` leaves an empty
//! host. The tests need root and an engine of their own each, so they are marked as ignored:
//!
//! ```console
//! # cargo test --test faults -- --ignored
//! ```
//!
//! How they run is told by the end-to-end tests, whose machines these are.

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong in here fails the test
#![allow(clippy::print_stdout)] // what the body of a test says goes to the test that started it

mod cases;
mod patient;

#[path = "../support/machines.rs"]
mod machines;

use machines::{command, host, sandbox};

machines::cases!(
    Shared:
    port_taken,
    etcd_data_of_another_cluster,
    flags_that_are_not_understood,
    image_missing,
    engine_down,
    disk_full,
    certificates_of_the_future,
    address_of_another_host,
    killed_again_and_again,
    broken_manifest_of_somebody_else,
);
