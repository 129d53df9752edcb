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
# help SCRIPT: prints the comment at its head, which is its manual, and exits.
help() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$1"
    exit 0
}
have() { command -v "$1" >/dev/null 2>&1; }

# now / since: wall-clock figures with a tenth of a second.
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f s", b - a }'; }

# Where rustup and Go's own installer put things; sudo and cron forget it. Before
# the distribution's, which are older.
for dir in /usr/local/go/bin "$HOME/.cargo/bin"; do
    [[ :$PATH: == *:$dir:* || ! -d $dir ]] || PATH=$dir:$PATH
done
unset dir

# added UNDO: notes how to take away what a script adds to the machine, for the
# end of this run and of later ones.
added() {
    mkdir -p "$PLINTH_CACHE"
    grep --quiet --line-regexp --fixed-strings --regexp="$1" "$PLINTH_CACHE/undo" 2>/dev/null ||
        printf '%s\n' "$1" >>"$PLINTH_CACHE/undo"
}
# how_to_undo: those lines, the last first, and the cache itself.
how_to_undo() {
    [[ ! -e $PLINTH_CACHE/undo ]] || tac "$PLINTH_CACHE/undo" | sed 's/^/    /'
    printf '    rm -r %s\n' "$PLINTH_CACHE"
}

require_root() {
    [[ $EUID -eq 0 ]] || die "must be root: sudo $0"
}

systemd_is_pid_1() { [[ -d /run/systemd/system ]]; }

# apt_install PACKAGE…: from Debian, without recommendations.
apt_install() {
    local start log
    start=$(now)
    require_root
    have apt-get || die "missing: $*; no apt-get here, install them by hand"
    say "installing $* with apt (up to a minute)"
    log=$(mktemp)
    # The lists of a fresh machine are absent or old; fetch them only then.
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >"$log" 2>&1; then
        apt-get update >>"$log" 2>&1 || true
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >>"$log" 2>&1 ||
            die "apt-get install $*: $(tail -n 5 "$log")"
    fi
    rm -f "$log"
    added "apt-get purge $*"
    say "installed $* in $(since "$start")"
}

# ensure_docker_packages: the programs, running or not. iptables is only
# recommended by docker.io, and dockerd does not start without it.
ensure_docker_packages() {
    local missing=()
    have dockerd || missing+=(docker.io)
    have iptables || missing+=(iptables)
    [[ ${#missing[@]} -eq 0 ]] || apt_install "${missing[@]}"
}

# ensure_docker: an engine that answers on the default socket, also after a
# reboot where systemd runs.
ensure_docker() {
    if ! docker version >/dev/null 2>&1; then
        ensure_docker_packages
        if systemd_is_pid_1; then
            say "starting the Docker Engine (systemctl enable --now docker)"
            systemctl enable --now --quiet docker
        else
            say "starting the Docker Engine by hand: no systemd here (log: /var/log/dockerd.log)"
            setsid --fork dockerd >>/var/log/dockerd.log 2>&1 </dev/null
            # shellcheck disable=SC2016  # for the reader's shell
            added 'kill $(cat /var/run/docker.pid)'
        fi
        await_docker 30 || die "the Docker Engine does not answer after 30 s: journalctl -u docker, or /var/log/dockerd.log"
    fi
}

# await_docker SECONDS: until the engine answers.
await_docker() {
    local deadline=$((SECONDS + $1))
    until docker version >/dev/null 2>&1; do
        [[ $SECONDS -lt $deadline ]] || return 1
        sleep 0.05
    done
}

# ensure_build_tools: a C compiler for aws-lc, and Rust.
ensure_build_tools() {
    local missing=()
    have cc || missing+=(gcc)
    [[ -e /usr/include/stdlib.h ]] || missing+=(libc6-dev)
    [[ ${#missing[@]} -eq 0 ]] || apt_install "${missing[@]}"
    cargo_is_new_enough || install_rust
}

# cargo_is_new_enough: as new as Cargo.toml asks for, which Debian 12's is not.
cargo_is_new_enough() {
    local least present
    least=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml")
    present=$(cargo --version 2>/dev/null | cut -d ' ' -f 2)
    [[ -n $present && $(printf '%s\n' "$least" "$present" | sort --version-sort | head -n 1) == "$least" ]]
}

install_rust() {
    local start script
    start=$(now)
    have curl || apt_install curl ca-certificates
    say "installing Rust with rustup (about a minute)"
    script=$(mktemp)
    curl --fail --silent --show-error --location --max-time 60 --output "$script" https://sh.rustup.rs ||
        die "no cargo, and rustup cannot be fetched: install Rust 1.91 or later (https://rustup.rs)"
    sh "$script" -y --quiet --profile minimal >/dev/null
    rm -f "$script"
    PATH=$HOME/.cargo/bin:$PATH
    added "rustup self uninstall"
    say "installed $(cargo --version) in $(since "$start")"
}

# cargo_target: where builds go. Out of the repository, so that a fresh clone
# finds the last one's dependencies built.
cargo_target() { echo "${CARGO_TARGET_DIR:-$PLINTH_CACHE/target}"; }

# ensure_images RELEASE…: present in the engine of the default socket.
ensure_images() { "$SCRIPTS/images.sh" "$@"; }
