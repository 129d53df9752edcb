# shellcheck shell=bash
# What the scripts beside this file share. To be sourced; sets strict mode.

set -euo pipefail

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034  # for the scripts that source this file
REPO=$(dirname "$SCRIPTS")

# Everything worth keeping between runs and too large for the repository.
PLINTH_CACHE=${PLINTH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/plinth}

say() { printf '==> %s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# now / since: wall-clock figures with a tenth of a second.
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f s", b - a }'; }

# first_line: like head -n 1, but drains its input, so that the writer is not
# killed by SIGPIPE under pipefail.
first_line() { sed -n 1p; }
