#!/usr/bin/env bash
# Measures plinth beside what the same host does without it, in one sandbox.
#
#   scripts/bench.sh [--quick] [--rounds N] [--only PARTS] [--gate] [-o text|json]
#                    [--binary PATH]
#
# Prints a table: figure, median with minimum and maximum, the floor (plain
# Docker doing the same, measured in the same run), ratio, goal, met or not.
#   --quick        2 rounds and a shorter look at the idle agent, about 3 minutes
#   --rounds N     5 unless given, about 8 minutes
#   --only PARTS   of agent, pods, crashes, crowd and upgrade only these; init, its
#                  rerun and reset are always measured
#   --gate         exit 1 when a goal is missed
#   -o json        the same as JSON, with every sample
#   --binary PATH  measure this plinth; else the release build is made first
#
# Wall-clock times depend on what else the host does: compare within one run.
# What exactly each figure is: scripts/bench/figures.py.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
    local binary='' arguments=()
    while [[ $# -gt 0 ]]; do
        case $1 in
        -h | --help) help "${BASH_SOURCE[0]}" ;;
        --quick | --gate) arguments+=("$1") ;;
        --rounds | --only | -o)
            [[ $# -gt 1 ]] || usage
            arguments+=("$1" "$2")
            shift
            ;;
        --binary)
            [[ $# -gt 1 ]] || usage
            binary=$(realpath "$2")
            shift
            ;;
        *) usage ;;
        esac
        shift
    done
    require_root
    have python3 || apt_install python3
    if [[ -z $binary ]]; then
        ensure_build_tools
        (cd "$REPO" && CARGO_TARGET_DIR=$(cargo_target) cargo build --release --locked --quiet)
        binary=$(cargo_target)/release/plinth
    fi
    exec "$SCRIPTS/sandbox.sh" -- python3 -B "$SCRIPTS/bench/main.py" --binary "$binary" "${arguments[@]}"
}

usage() {
    echo "usage: $0 [--quick] [--rounds N] [--only PARTS] [--gate] [-o text|json] [--binary PATH]" >&2
    exit 2
}

main "$@"
