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

mod away;
mod change;
mod churn;
mod history;
mod host_and_volumes;
mod identity;
mod inside;
mod life;
mod node;
mod probes;
mod sources;
mod together;
mod web;

#[path = "../support/machines.rs"]
mod machines;

use machines::{command, host, sandbox};

/// A test for each check: all on one machine, or each on its own.
macro_rules! checks {
    (together: $($group:ident: $($check:ident)+;)+) => {
        $($(#[test]
        #[ignore = "end to end"]
        fn $check() {
            together::run(stringify!($check), $group::$check, node::account);
        })+)+
    };
    (alone: $($group:ident: $($check:ident)+;)+) => {
        $($(#[test]
        #[ignore = "end to end"]
        fn $check() {
            sandbox::run(stringify!($check), sandbox::Machine::Shared, $group::$check);
        })+)+
    };
}

checks! {
    together:
    sources:
        check_01_a_valid_manifest_runs
        check_02_json_without_an_extension_runs
        check_03_a_dot_file_is_ignored_until_it_is_renamed
        check_04_any_extension_will_do
        check_05_a_subdirectory_is_ignored
        check_06_of_several_documents_only_the_first_counts
        check_07_other_kinds_are_refused
        check_08_a_pod_needs_a_name
        check_09_references_to_api_objects_are_refused
        extra_a_link_is_followed
        extra_a_file_may_be_written_in_place
        extra_manifests_are_yaml_1_1;
    identity:
        check_10_the_name_ends_in_the_nodes_and_the_namespace_is_default
        check_11_the_kubelets_annotations_are_there
        check_12_comments_and_white_space_change_nothing;
    change:
        check_13_the_old_pod_is_gone_before_the_new_one_is_made
        check_14_the_old_pod_has_its_grace
        check_15_of_many_quick_edits_only_the_last_counts
        check_16_a_removed_pod_is_stopped_and_leaves_nothing
        check_17_a_file_that_is_renamed_is_another_pod
        check_18_of_two_files_with_one_pod_name_one_runs
        check_19_a_file_that_breaks_keeps_its_pod
        extra_an_edit_during_the_grace_replaces_the_one_before;
    life:
        check_22_a_killed_container_is_restarted_at_once
        check_23_who_crashes_again_and_again_waits
        check_25_a_pod_that_has_succeeded_is_not_run_again
        check_26_on_failure_restarts_failures_only
        check_27_init_containers_run_in_order_and_to_success
        check_28_a_sidecar_starts_first_and_stops_last
        check_29_a_pod_whose_sandbox_is_removed_is_made_anew
        check_30_an_image_that_is_missing_is_told_and_waited_for;
    probes:
        check_31_liveness_restarts_and_readiness_does_not
        check_32_a_probe_may_have_its_own_grace
        check_33_a_start_up_probe_holds_back_the_others
        check_34_https_is_not_verified_and_redirects_are_followed_on_one_host;
    host_and_volumes:
        check_35_networks_are_the_hosts_or_shared_in_the_pod
        check_36_host_paths_are_made_or_waited_for
        check_37_an_empty_dir_in_memory_lives_as_long_as_its_pod
        extra_resources_become_the_engines;
    inside:
        extra_names_are_looked_up_as_the_pod_wants
        extra_a_host_port_that_is_taken_is_named_and_waited_for
        extra_a_container_has_the_rights_that_its_pod_gives
        extra_a_seccomp_profile_may_be_the_nodes
        extra_a_grpc_probe_asks_the_health_service
        extra_a_registry_gets_the_credentials_of_dockers_file
        extra_a_container_may_choose_its_stop_signal;
}

checks! {
    alone:
    away:
        check_20_a_new_agent_changes_nothing_that_is_right
        check_21_a_pod_removed_meanwhile_has_its_hook_and_its_grace
        extra_an_edit_while_the_agent_is_away_lets_nothing_overlap
        extra_an_engine_that_is_away_gets_what_was_changed_meanwhile
        extra_a_directory_that_is_away_keeps_its_pods_and_is_followed_when_it_is_back
        extra_a_url_may_hold_a_list_of_pods;
}

#[test]
#[ignore = "end to end"]
fn churn() {
    sandbox::run("churn", sandbox::Machine::Alone, churn::sixty_pods_at_random);
}
