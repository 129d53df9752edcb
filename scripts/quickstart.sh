#!/usr/bin/env bash
# From a fresh machine to a healthy Kubernetes control plane.
#
#   scripts/quickstart.sh [ARGUMENT…]     arguments are passed to plinth init
#
# (For another release than v1.37.1, run scripts/images.sh with it first.)
#
# Installs what is missing (Docker Engine, a C compiler, Rust), starts the
# engine, builds plinth and installs it as /usr/local/bin/plinth, gets the
# component images, and runs `plinth init`. Done again, it finds everything done:
# it takes seconds and restarts nothing.
#
# Environment:
#   PLINTH_CACHE      build output and image archives (default ~/.cache/plinth)
#   CARGO_TARGET_DIR  build output, if it shall be elsewhere
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

RELEASE=v1.37.1 # what plinth init brings up when nothing else is asked for
PLINTH=/usr/local/bin/plinth
ADMIN_CONF=/etc/kubernetes/admin.conf

main() {
    case ${1:-} in -h | --help) help "${BASH_SOURCE[0]}" ;; esac
    local start
    start=$(now)

    require_root
    ensure_build_tools
    ensure_docker
    build_release
    install_plinth
    PLINTH=$PLINTH ensure_images "$RELEASE"

    say "plinth init"
    "$PLINTH" init "$@"
    show_health
    say "done in $(since "$start")"
    next_steps
}

build_release() {
    local start
    start=$(now)
    say "building plinth (7 minutes on 2 cores the first time, then only what changed)"
    # From the repository: its .cargo/config.toml counts.
    (cd "$REPO" && CARGO_TARGET_DIR=$(cargo_target) cargo build --release --locked --quiet)
    say "built in $(since "$start")"
}

# An agent may be running the file: replaced by rename, and only by another one.
install_plinth() {
    local built
    built=$(cargo_target)/release/plinth
    if cmp --silent "$built" "$PLINTH"; then
        say "$PLINTH: up to date"
    else
        install -D --mode 0755 "$built" "$PLINTH.new"
        mv "$PLINTH.new" "$PLINTH"
        say "$PLINTH: installed"
    fi
}

show_health() {
    if have kubectl; then
        say "kubectl get --raw='/readyz?verbose'"
        kubectl --kubeconfig "$ADMIN_CONF" get --raw='/readyz?verbose'
    else
        say "plinth status"
        "$PLINTH" status
    fi
}

next_steps() {
    cat <<END

To use the cluster:
    export KUBECONFIG=$ADMIN_CONF
    kubectl get namespaces        (kubectl: https://kubernetes.io/docs/tasks/tools)
    plinth status
    There is no Node and no pod network yet: pods stay Pending.

To undo everything:
    plinth reset                  the control plane, its data and the agent
    docker image rm \$(docker image ls --quiet 'registry.k8s.io/*')
    rm $PLINTH
END
    how_to_undo
}

main "$@"
