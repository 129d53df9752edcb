#!/usr/bin/env bash
# PID 1 of a sandbox (scripts/sandbox.sh starts it in fresh namespaces): makes
# the machine, then runs the command. When it ends, the kernel kills the rest.
#
#   init.sh host|private DIR ENGINE COMMAND [ARGUMENT…]  3>STDERR
exec 2>&3 3>&-
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# What a cluster of the host would have left under the overlays.
CLUSTER_PATHS=(
    /etc/docker /etc/kubernetes /etc/systemd/system/{,multi-user.target.wants/}plinth-agent.service
    /usr/local/bin/plinth /usr/libexec/kubernetes
    /var/lib/docker /var/lib/etcd /var/lib/kubelet /var/lib/plinth
    /var/log/{containers,plinth,pods}
)

main() {
    local network=$1 dir=$2 engine=$3
    shift 3

    # /proc is still the host's here, so this is the pid that the host sees.
    read -r pid _ </proc/self/stat
    echo "$pid" >"$dir/pid"

    mount --make-rprivate /
    mount -t proc proc /proc
    hostname plinth-sandbox
    make_files "$dir"
    [[ $network == host ]] || make_network
    make_engine "$network" "$dir" "$engine"

    cd "$PWD" # the same path, now below the overlays
    unset DOCKER_HOST DOCKER_CONTEXT DOCKER_CONFIG KUBECONFIG
    export PLINTH_SANDBOX=1 PLINTH_SANDBOX_DIR=$dir/scratch
    "$@"
}

make_files() {
    local dir=$1 path layers
    # In a container the cache itself may be on an overlay, which can carry
    # neither another overlay nor an engine.
    [[ $(stat --file-system --format %T "$dir") != overlayfs ]] || mount -t tmpfs tmpfs "$dir"
    mkdir -p "$dir/scratch"

    for path in /etc /opt /usr /var; do
        layers=$dir/overlay$path
        mkdir -p "$layers"/{upper,work}
        mount -t overlay overlay "$path" \
            -o "lowerdir=$path,upperdir=$layers/upper,workdir=$layers/work"
    done
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -m 1777 /run/lock

    rm -rf "${CLUSTER_PATHS[@]}"
    echo "127.0.1.1 plinth-sandbox" >>/etc/hosts
}

# All that is wanted is an address that is not loopback and a default route, so
# both ends of the pair stay in here. (A dummy device would do, where the kernel
# has them.)
make_network() {
    ip link set lo up
    ip link add eth0 type veth peer name uplink
    ip link set uplink up
    ip link set eth0 up
    ip address add 10.213.0.2/24 dev eth0
    ip route add default via 10.213.0.1
}

make_engine() {
    local network=$1 dir=$2 engine=$3
    mkdir -p /var/lib/docker /etc/docker "$dir/docker"
    [[ -z $engine ]] || copy_engine "$engine" "$dir/docker"
    # Not on the overlay: the engine's storage driver is one itself.
    mount --bind "$dir/docker" /var/lib/docker

    # In the file, so that a test that restarts the engine need not know.
    if [[ $network == host ]]; then
        # The host's rules are not ours, nor is its docker0, which an engine
        # without a bridge would even remove: it gets one that nobody uses.
        ip link show plinth-prepare >/dev/null 2>&1 || ip link add plinth-prepare type bridge
        ip address replace 198.18.213.1/30 dev plinth-prepare
        echo '{ "bridge": "plinth-prepare", "iptables": false, "ip-forward": false }'
    else
        echo "{ \"cgroup-parent\": \"/plinth-sandbox-${dir##*/}\" }"
    fi >/etc/docker/daemon.json

    setsid dockerd >/var/log/dockerd.log 2>&1 </dev/null &
    await_docker 30 || die "the sandbox's dockerd does not answer: $(tail -n 5 /var/log/dockerd.log)"
}

# copy_engine FROM TO: layers are never written again, so links will do; the
# files that describe them are.
copy_engine() {
    cp --archive --link "$1/overlay2" "$2/" 2>/dev/null || cp --archive "$1/overlay2" "$2/"
    cp --archive "$1/image" "$2/"
}

main "$@"
