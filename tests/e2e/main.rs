//! The real binary on a real engine, from an empty host to an empty host.
//!
//! Each test gets a machine of its own ([`sandbox`]), and two run beside each other at most. They are marked as
//! ignored because they need root and take minutes:
//!
//! ```console
//! # cargo test --test e2e -- --ignored
//! ```
//!
//! `PLINTH_BIN` is the plinth under test, if not the one that cargo built; `PLINTH_REQUIRE_DOCKER=1` makes a test that
//! cannot run a failure. Lines that begin with `e2e:` are figures and what was skipped.

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong in here fails the test
#![allow(clippy::print_stdout)] // what the body of a test says goes to the test that started it

mod build;
#[path = "../support/client.rs"]
#[allow(dead_code, unreachable_pub)] // another test crate uses the rest of it
mod client;
mod command;
mod configuration;
mod engine;
mod foreground;
mod host;
mod killed;
mod lifecycle;
mod machine;
mod reboot;
mod rerun;
mod reset;
mod sandbox;
mod unfinished;
mod upgrade;

use sandbox::Machine;

#[test]
#[ignore = "end to end"]
fn lifecycle() {
    sandbox::run("lifecycle", Machine::Shared, lifecycle::from_init_to_reset_and_again);
}

#[test]
#[ignore = "end to end"]
fn reboot() {
    sandbox::run("reboot", Machine::Alone, reboot::everything_comes_back_without_the_cli);
}

#[test]
#[ignore = "end to end"]
fn output_and_exit_codes() {
    sandbox::run("output_and_exit_codes", Machine::Shared, machine::output_and_exit_codes);
}

#[test]
#[ignore = "end to end"]
fn killed_init_and_reset() {
    sandbox::run("killed_init_and_reset", Machine::Shared, killed::first_init_and_reset);
}

#[test]
#[ignore = "end to end"]
fn killed_change() {
    sandbox::run("killed_change", Machine::Shared, killed::a_change);
}

#[test]
#[ignore = "end to end"]
fn killed_upgrade() {
    sandbox::run("killed_upgrade", Machine::Shared, killed::an_upgrade);
}

#[test]
#[ignore = "end to end"]
fn killed_upgrade_too() {
    sandbox::run("killed_upgrade_too", Machine::Shared, killed::an_upgrade_too);
}

#[test]
#[ignore = "end to end"]
fn unfinished_init_with_other_flags() {
    sandbox::run("unfinished_init_with_other_flags", Machine::Shared, unfinished::other_flags_take_over);
}

#[test]
#[ignore = "end to end"]
fn foreground() {
    sandbox::run("foreground", Machine::Shared, foreground::the_agent_is_this_process);
}

#[test]
#[ignore = "end to end"]
fn configuration_file() {
    sandbox::run("configuration_file", Machine::Shared, configuration::a_kubeadm_file_shapes_the_cluster);
}

#[test]
#[ignore = "end to end"]
fn engine_restart() {
    sandbox::run("engine_restart", Machine::Shared, engine::the_control_plane_survives_the_engine);
}

#[test]
#[ignore = "end to end"]
fn another_build() {
    sandbox::run("another_build", Machine::Shared, build::an_agent_of_another_build_is_restarted_and_adopts);
}

#[test]
#[ignore = "end to end"]
fn reset_with_proof() {
    sandbox::run("reset_with_proof", Machine::Shared, reset::whatever_is_in_its_way);
}

#[test]
#[ignore = "end to end"]
fn rerun_changes_flags() {
    sandbox::run("rerun_changes_flags", Machine::Shared, rerun::flags_change_one_component_at_a_time);
}

#[test]
#[ignore = "end to end"]
fn rerun_repairs_drift() {
    sandbox::run("rerun_repairs_drift", Machine::Shared, rerun::drift_is_shown_and_repaired);
}

#[test]
#[ignore = "end to end"]
fn rerun_by_plan() {
    sandbox::run("rerun_by_plan", Machine::Shared, rerun::a_plan_is_performed_as_it_was_shown);
}

#[test]
#[ignore = "end to end"]
fn upgrade_and_back() {
    sandbox::run("upgrade_and_back", Machine::Shared, upgrade::to_the_next_version_and_back_and_forth);
}

#[test]
#[ignore = "end to end"]
fn upgrade_killed() {
    sandbox::run("upgrade_killed", Machine::Shared, upgrade::killed_with_etcd_away_it_goes_on_or_back);
}

#[test]
#[ignore = "end to end"]
fn upgrade_interrupted() {
    sandbox::run("upgrade_interrupted", Machine::Shared, upgrade::interrupted_it_goes_on_and_a_skew_is_refused);
}

#[test]
#[ignore = "end to end"]
fn upgrade_of_a_broken_cluster() {
    sandbox::run(
        "upgrade_of_a_broken_cluster",
        Machine::Shared,
        upgrade::a_broken_api_server_is_mended_by_flags_and_by_rollback,
    );
}
