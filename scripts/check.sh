#!/usr/bin/env bash
# Everything that can be known about the source without running it: format,
# lints, documentation, dependencies, licences, shell scripts.
#
#   scripts/check.sh
#
# Installs the tools that it misses: through rustup, apt, and from source into
# the cache, at the versions below.
# Every check runs, whatever the ones before it said; the exit code is 1 if one
# failed.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

CARGO_DENY=0.20.2
CARGO_MACHETE=0.9.2

TOOLS=$PLINTH_CACHE/tools

main() {
    cd "$REPO"
    ensure_tools
    export CLIPPY_CONF_DIR=$SCRIPTS

    check "format" cargo fmt --check
    check "lints" cargo clippy --locked --all-targets --all-features -- -D warnings
    check "documentation" env RUSTDOCFLAGS="-D warnings" \
        cargo doc --locked --no-deps --document-private-items --quiet
    check "unused dependencies" "$TOOLS/bin/cargo-machete" --with-metadata
    check "dependency bans and licences" "$TOOLS/bin/cargo-deny" --locked --log-level error \
        --config scripts/deny.toml check --hide-inclusion-graph bans licenses sources
    check "shell scripts" shell_scripts

    [[ ${#failed[@]} -eq 0 ]] || die "failed: ${failed[*]}"
    say "all checks passed"
}

ensure_tools() {
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
    have shellcheck || apt_install shellcheck
    cargo_tool cargo-machete "$CARGO_MACHETE" "a minute"
    cargo_tool cargo-deny "$CARGO_DENY" "3 minutes"
}

# cargo_tool NAME VERSION ESTIMATE: exactly this version, so that a check does
# not begin to fail because somebody published something.
cargo_tool() {
    local name=$1 version=$2 estimate=$3 start
    [[ $("$TOOLS/bin/$name" --version 2>/dev/null) != *"$version" ]] || return 0
    start=$(now)
    say "$name $version: installing from source (about $estimate on 2 cores, once)"
    # Its own target directory: the tool's dependencies are not the project's.
    CARGO_TARGET_DIR=$TOOLS/target cargo install --locked --quiet --root "$TOOLS" "$name@$version"
    rm -rf "$TOOLS/target"
    say "$name $version: installed in $(since "$start")"
}

failed=()

check() {
    local name=$1 start
    shift
    start=$(now)
    if "$@"; then
        say "$name: ok ($(since "$start"))"
    else
        say "$name: FAILED ($(since "$start"))"
        failed+=("$name")
    fi
}

shell_scripts() {
    git ls-files -z -- '*.sh' .ci/run | xargs -0 shellcheck -x
}

main
