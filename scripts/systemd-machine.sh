#!/usr/bin/env bash
# A Debian 12 machine with systemd as PID 1 and its own Docker Engine, as a
# container: for what only a service manager can show.
#
#   scripts/systemd-machine.sh build                     image into the cache
#   scripts/systemd-machine.sh start NAME [DOCKER_ARG…]  boot it; build if needed
#   scripts/systemd-machine.sh exec NAME COMMAND…        run a command on it
#   scripts/systemd-machine.sh reboot NAME               files stay, /run does not,
#                                                        and the boot id is new
#   scripts/systemd-machine.sh remove NAME
#
# It runs on the engine of the default socket, so in tests inside of
# scripts/sandbox.sh. Its engine has the images that the sandbox's has. Give it
# the program to test with, say, -v DIR:DIR:ro as DOCKER_ARG.
#
# Environment:
#   PLINTH_CACHE        the image's archive is in its images/
#   PLINTH_SANDBOX_DIR  as scripts/sandbox.sh sets it: the machine's engine
#                       keeps its data there; else in a volume
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

IMAGE=plinth-test/systemd:1
ARCHIVE=$PLINTH_CACHE/images/plinth-test_systemd_1.tar
PACKAGES=systemd,systemd-sysv,dbus,docker.io,iptables,iproute2,procps,ca-certificates

main() {
    case "${1:-} $#" in
    '-h 1' | '--help 1') help "${BASH_SOURCE[0]}" ;;
    'build 1') build ;;
    'start '*) start "${@:2}" ;;
    'exec '*) docker exec "${@:2}" ;;
    'reboot 2')
        docker restart --time 60 "$2" >/dev/null
        await_boot "$2"
        ;;
    'remove 2') docker rm --force --volumes "$2" >/dev/null ;;
    *)
        echo "usage: $0 build | start NAME [DOCKER_ARG…] | exec NAME COMMAND… | reboot NAME | remove NAME" >&2
        exit 2
        ;;
    esac
}

# build: needs a Debian mirror, but no engine.
build() {
    local work start
    [[ ! -s $ARCHIVE ]] || return 0
    require_root
    have debootstrap || apt_install debootstrap
    start=$(now)
    say "$IMAGE: building with debootstrap (a minute)"
    mkdir -p "$(dirname "$ARCHIVE")"
    work=$(mktemp -d)
    debootstrap --variant=minbase --include="$PACKAGES" bookworm "$work" >"$ARCHIVE.log" 2>&1 ||
        die "debootstrap failed: $(tail -n 3 "$ARCHIVE.log")"
    rm -rf "$work"/{var/lib/apt/lists/*,var/cache/apt/*,usr/share/doc/*,usr/share/locale/*,usr/share/man/*}
    : >"$work/etc/machine-id" # made at the first boot
    tar -C "$work" -cf "$ARCHIVE.partial" .
    mv "$ARCHIVE.partial" "$ARCHIVE"
    rm -rf "$work" "$ARCHIVE.log"
    say "$IMAGE: built in $(since "$start"), kept as $ARCHIVE"
}

start() {
    local name=${1:?NAME} storage
    shift
    build

    storage=(--volume /var/lib/docker)
    if [[ -n ${PLINTH_SANDBOX_DIR:-} ]]; then
        mkdir "$PLINTH_SANDBOX_DIR/$name"
        cp --archive /var/lib/docker/image "$PLINTH_SANDBOX_DIR/$name/"
        cp --archive /var/lib/docker/overlay2 "$PLINTH_SANDBOX_DIR/$name/"
        storage=(--volume "$PLINTH_SANDBOX_DIR/$name:/var/lib/docker")
    fi

    # After that copy, which has no use for it.
    docker image inspect "$IMAGE" >/dev/null 2>&1 || docker import "$ARCHIVE" "$IMAGE" >/dev/null

    # --privileged in detail, without the one capability that a confined host
    # may not have itself.
    docker run --detach --name "$name" --hostname "$name" \
        --cap-add ALL --cap-drop SYS_RESOURCE --device-cgroup-rule 'a *:* rwm' \
        --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
        --security-opt systempaths=unconfined --cgroupns private \
        --tmpfs /run --tmpfs /tmp --env container=docker --stop-signal SIGRTMIN+3 \
        --volume "$SCRIPTS/systemd-machine/boot.sh:/sbin/boot.sh:ro" \
        "${storage[@]}" "$@" "$IMAGE" /sbin/boot.sh >/dev/null
    await_boot "$name"
}

await_boot() {
    local deadline=$((SECONDS + 60))
    until [[ $(docker exec "$1" systemctl is-system-running 2>/dev/null) =~ ^(running|degraded)$ ]]; do
        [[ $SECONDS -lt $deadline ]] || die "$1 does not boot: $(docker logs --tail 5 "$1" 2>&1)"
        sleep 0.1
    done
}

main "$@"
