#!/usr/bin/env bash
# Everything that has to pass, as root, on a machine with nothing but the Rust
# and Go toolchains:
#
#   scripts/test.sh [SECTION…]
#
# Sections, all of them by default, in this order:
#   check      scripts/check.sh: format, lints, docs, dependencies, licences
#   release    the release build; does scripts/images.sh agree with it?
#   unit       cargo test in a sandbox: unit tests, goldens, and the runtime's
#              contract on its engine
#   e2e        tests marked #[ignore = "end to end"], on the release binary;
#              each starts the sandboxes that it needs
#
# Sandboxes (scripts/sandbox.sh) neither see nor harm a cluster of the host.
# Every section runs, whatever those before it said.
#
# Environment:
#   PLINTH_CACHE      tools, images, prepared engine, build output
#   CARGO_TARGET_DIR  build output, if it shall be elsewhere
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SECTIONS=(check release unit e2e)

main() {
    case ${1:-} in
    -h | --help) help "${BASH_SOURCE[0]}" ;;
    --section)
        "section_$2"
        return
        ;;
    esac
    local section start all
    all=$(now)
    cd "$REPO"
    require_root
    ensure_build_tools
    CARGO_TARGET_DIR=$(cargo_target)
    export CARGO_TARGET_DIR

    failed=()
    [[ $# -gt 0 ]] || set -- "${SECTIONS[@]}"
    for section in "$@"; do
        [[ " ${SECTIONS[*]} " == *" $section "* ]] || die "no section $section: ${SECTIONS[*]}"
        say "$section"
        start=$(now)
        # A process of its own: in the condition of an if, a function would run
        # on after its first failing command.
        if scripts/test.sh --section "$section"; then
            say "$section: ok ($(since "$start"))"
        else
            say "$section: FAILED ($(since "$start"))"
            failed+=("$section")
        fi
    done
    [[ ${#failed[@]} -eq 0 ]] || die "failed after $(since "$all"): ${failed[*]}"
    say "passed in $(since "$all")"
    say "the sandboxes are gone; to undo the rest:"
    how_to_undo >&2
}

section_check() { scripts/check.sh; }

section_release() {
    say "building plinth (7 minutes on 2 cores the first time, then only what changed)"
    cargo build --locked --release
    PLINTH=$CARGO_TARGET_DIR/release/plinth scripts/tests/images.sh
}

section_unit() {
    # Fetched and built outside: a sandbox has no way out.
    cargo test --locked --no-run
    PLINTH_REQUIRE_DOCKER=1 scripts/sandbox.sh cargo test --locked --offline --no-fail-fast
}

section_e2e() {
    scripts/sandbox.sh --prepare
    # The release binary under test, driven by tests that are quickly built. Two
    # run beside each other; one that asserts figures waits until it is alone.
    PLINTH_REQUIRE_DOCKER=1 PLINTH_BIN=$CARGO_TARGET_DIR/release/plinth \
        cargo test --locked --no-fail-fast --test e2e --test faults --test etcd --test surge --test node --test kubelet_api --test upgrade --test conformance --test systemd -- --ignored --test-threads=2
}

main "$@"
