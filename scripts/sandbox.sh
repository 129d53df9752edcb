#!/usr/bin/env bash
# Runs a command on what looks like a machine of its own.
#
#   scripts/sandbox.sh [--] COMMAND [ARGUMENT…]
#   scripts/sandbox.sh --prepare
#
# The command runs as root with its own
#   network    eth0 with 10.213.0.2/24 and a default route; nobody answers there
#   processes  PID 1 reaps, and all of them end with the command
#   files      /etc, /opt, /usr and /var are overlays: the host's files can be
#              read, nothing that is written stays. What a cluster of the host
#              has left there is hidden. /run is empty. All else is shared
#   engine     dockerd on unix:///var/run/docker.sock with the component images
#              and plinth-test/busybox:1, no containers, cgroups of its own; it
#              can be stopped and started as plain `dockerd`
# so that it neither sees nor harms a cluster of the host. The exit code is the
# command's. At the end, also by a signal, everything is gone; after SIGKILL no
# process stays, and the files go when the next sandbox starts.
#
# In the command's environment:
#   PLINTH_SANDBOX      1
#   PLINTH_SANDBOX_DIR  an empty directory on a real disk, removed at the end
# To look into a running one: nsenter --all --target "$(cat …/sandboxes/*/pid)"
#
# Sandboxes copy a prepared engine by hard links. The first one makes it (5 s
# with the images' archives in the cache; else pulled or built, see images.sh),
# or --prepare does, so that no test waits for it.
#
# Environment:
#   PLINTH_CACHE             the prepared engine and the sandboxes' files are in
#                            it; not below /etc, /opt, /usr or /var
#   PLINTH_SANDBOX_RELEASES  Kubernetes releases whose images are there
#                            (v1.37.1 v1.36.3)
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

RELEASES=${PLINTH_SANDBOX_RELEASES:-v1.37.1 v1.36.3}
SANDBOXES=$PLINTH_CACHE/sandboxes
ENGINES=$PLINTH_CACHE/sandbox-engines

main() {
    case ${1:-} in
    -h | --help) help "${BASH_SOURCE[0]}" ;;
    --) shift ;;
    --prepare) [[ $# -eq 1 ]] || usage ;;
    -* | '') usage ;;
    esac
    [[ $# -gt 0 ]] || usage

    require_root
    ensure_programs
    mkdir -p "$SANDBOXES" "$ENGINES"
    check_place
    remove_stale
    local engine
    engine=$ENGINES/$(engine_key)
    [[ -d $engine ]] || prepare "$engine"
    touch "$engine"
    [[ $1 == --prepare ]] || run private "$engine" "$@"
}

usage() {
    echo "usage: $0 [--] COMMAND [ARGUMENT…] | --prepare" >&2
    exit 2
}

ensure_programs() {
    ensure_docker_packages
    have ip || apt_install iproute2
    [[ -x /bin/busybox ]] || apt_install busybox-static
}

# An overlay's upper directory must not be below its lower one.
check_place() {
    case $(realpath "$SANDBOXES") in
    /etc/* | /opt/* | /usr/* | /var/*) die "sandboxes cannot live in $SANDBOXES: set PLINTH_CACHE" ;;
    esac
}

# engine_key: changes with anything that the prepared engine is made from.
engine_key() {
    {
        echo "$RELEASES"
        dockerd --version
        find "$SCRIPTS/images" "$SCRIPTS/images.sh" "$SCRIPTS/sandbox/fill.sh" -type f -print0 |
            sort -z | xargs -0 sha256sum
    } | sha256sum | cut -c 1-16
}

# prepare ENGINE: on the host's network, in case images must be fetched. The
# directory appears whole or not at all; of several sandboxes one makes it.
prepare() {
    local engine=$1 start
    exec 8>"$ENGINES/lock"
    flock 8
    if [[ ! -d $engine ]]; then
        start=$(now)
        say "sandbox: preparing an engine with the images of $RELEASES"
        # Other work trees may use another one; nobody has used these lately.
        find "$ENGINES" -mindepth 1 -maxdepth 1 -type d -mtime +2 -exec rm -rf {} +
        # shellcheck disable=SC2086  # a list of releases
        (run host "" "$SCRIPTS/sandbox/fill.sh" "$engine.partial" $RELEASES 8>&-)
        ip link delete plinth-prepare
        mv "$engine.partial" "$engine"
        say "sandbox: prepared in $(since "$start")"
    fi
    exec 8>&-
}

# run NETWORK ENGINE COMMAND…: exits with the command's code.
run() {
    local network=$1 engine=$2 namespaces=(--mount --pid --uts)
    shift 2
    [[ $network == host ]] || namespaces+=(--net)

    dir=$(mktemp -d "$SANDBOXES/XXXXXXXX")
    exec 9>"$dir/lock"
    flock 9
    trap 'trap "" INT TERM HUP; kill_all; remove "$dir"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM

    # Whatever ends this script ends unshare, that ends the sandbox's PID 1, and
    # with it the kernel ends every process in there, containers included.
    # unshare complains about such an end, so its standard error is not shown;
    # PID 1 gets the real one as descriptor 3.
    setpriv --pdeathsig KILL \
        unshare "${namespaces[@]}" --fork --kill-child \
        "$SCRIPTS/sandbox/init.sh" "$network" "$dir" "$engine" "$@" <&0 3>&2 2>/dev/null 9>&- &
    unshare_pid=$!
    local status=0
    wait "$unshare_pid" || status=$?
    [[ -s $dir/pid ]] || die "cannot make the sandbox's namespaces (in a container without CAP_SYS_ADMIN?)"
    exit "$status"
}

# kill_all: returns when the last process of the sandbox is gone, which the
# end of its PID 1 means.
kill_all() {
    [[ -n ${unshare_pid:-} ]] || return 0
    if [[ -s $dir/pid ]]; then
        kill -KILL "$(<"$dir/pid")" 2>/dev/null || true
    else
        kill -KILL "$unshare_pid" 2>/dev/null || true
    fi
    wait "$unshare_pid" 2>/dev/null || true
}

# remove DIR: the files and the containers' cgroups; mounts, network and
# processes have gone with their namespaces.
remove() {
    local dir=$1 cgroup attempt
    for attempt in {1..50}; do
        for cgroup in /sys/fs/cgroup{,/*}/"plinth-sandbox-${dir##*/}"; do
            [[ ! -d $cgroup ]] || find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
        done
        compgen -G "/sys/fs/cgroup{,/*}/plinth-sandbox-${dir##*/}" >/dev/null || break
        sleep 0.1
    done
    [[ $attempt -lt 50 ]] || warn "cgroups of sandbox ${dir##*/} are still busy"
    rm -rf "$dir"
}

# remove_stale: what killed sandboxes left. The owner of a living one holds its
# lock.
remove_stale() {
    local dir
    for dir in "$SANDBOXES"/*/; do
        dir=${dir%/}
        [[ -e $dir/lock ]] || continue
        exec 7<"$dir/lock"
        ! flock --nonblock 7 || remove "$dir"
        exec 7<&-
    done
}

main "$@"
