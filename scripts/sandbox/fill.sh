#!/usr/bin/env bash
# Runs in a sandbox on the host's network: loads what every sandbox's engine
# shall hold and copies the engine's storage, at rest, to DIR.
#
#   fill.sh DIR RELEASE…
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

main() {
    local dir=$1
    shift
    "$SCRIPTS/images.sh" "$@"
    import_busybox

    local dockerd
    dockerd=$(</var/run/docker.pid)
    kill "$dockerd"
    while [[ -e /proc/$dockerd && $(awk '{ print $3 }' "/proc/$dockerd/stat") != Z ]]; do
        sleep 0.02
    done

    # Of the same file system as the sandboxes, so that they can link.
    rm -rf "$dir"
    mkdir "$dir"
    cp --archive --link /var/lib/docker/overlay2 "$dir/" 2>/dev/null ||
        cp --archive /var/lib/docker/overlay2 "$dir/"
    cp --archive /var/lib/docker/image "$dir/"
}

# A workload with a shell, for tests.
import_busybox() {
    local root applet
    root=$(mktemp -d)
    chmod 755 "$root"
    mkdir -p "$root"/{bin,etc,tmp}
    for applet in $(/bin/busybox --list); do
        ln -s busybox "$root/bin/$applet"
    done
    # Last: it lists itself, too.
    cp --remove-destination /bin/busybox "$root/bin/"
    echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
    tar -C "$root" --owner=0 --group=0 -c . |
        docker import --change 'ENV PATH=/bin' --change 'CMD ["sh"]' - plinth-test/busybox:1 >/dev/null
    rm -rf "$root"
}

main "$@"
