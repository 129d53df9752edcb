#!/usr/bin/env bash
# Makes the component images of one or more Kubernetes releases present in the
# local Docker Engine.
#
#   scripts/images.sh v1.37.1 [v1.36.3 …]
#   scripts/images.sh --list v1.37.1       which images these are
#
# For each image, the first that works:
#   1. it is there already;
#   2. docker pull, bounded in time;
#   3. an archive that an earlier run left in the cache;
#   4. a build from the Go modules pinned under scripts/images/, into an image
#      laid out like upstream's, and then an archive in the cache.
#
# Environment:
#   PLINTH_CACHE                archives are in its images/ (default ~/.cache/plinth)
#   PLINTH                      the plinth binary that is asked for the list
#   PLINTH_PULL_ANSWER_TIMEOUT  seconds for the registry to answer at all (20)
#   PLINTH_PULL_TIMEOUT         seconds for one image to arrive (900); 0: never pull
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

RECIPES=$SCRIPTS/images
ARCHIVES=$PLINTH_CACHE/images
ANSWER_TIMEOUT=${PLINTH_PULL_ANSWER_TIMEOUT:-20}
PULL_TIMEOUT=${PLINTH_PULL_TIMEOUT:-900}

# The pause image is not in plinth's list: the control plane's own pods need no
# sandbox, other static pods do.
PAUSE_IMAGE=registry.k8s.io/pause:3.10.2

main() {
    [[ ${1:-} != -h && ${1:-} != --help ]] || help "${BASH_SOURCE[0]}"
    if [[ $# -eq 0 ]]; then
        echo "usage: $0 RELEASE…" >&2
        exit 2
    fi
    if [[ $1 == --list ]]; then
        list_images "v${2#v}"
        return
    fi
    have docker || die "no docker command: install the engine first (scripts/quickstart.sh does)"
    docker version >/dev/null 2>&1 || die "the Docker Engine does not answer (docker version)"

    local version image images
    for version in "$@"; do
        images=$(list_images "v${version#v}")
        for image in $images; do
            ensure_image "$image"
        done
    done
}

# list_images VERSION: one image per line, the control plane's own as plinth
# would run them. What only pods on nodes need (CoreDNS) is pulled there.
list_images() {
    local version=$1 plinth listed
    plinth=${PLINTH:-$(command -v plinth || true)}
    if [[ -n $plinth ]] &&
        listed=$("$plinth" config images list --kubernetes-version "$version" 2>/dev/null); then
        grep -E '/(etcd|kube-[a-z-]+):' <<<"$listed" | grep -v '/kube-proxy:'
    else
        table "$version"
    fi
    echo "$PAUSE_IMAGE"
}

# table VERSION: the same list for a machine where plinth is not built yet.
# scripts/tests/images.sh holds it to what plinth prints.
table() {
    local version=$1 etcd name
    case $version in
    v1.37.*) etcd=3.7.0-0 ;;
    v1.36.*) etcd=3.6.8-0 ;;
    v1.35.*) etcd=3.6.6-0 ;;
    *) die "$version: not a release that plinth knows (v1.35, v1.36, v1.37)" ;;
    esac
    for name in kube-apiserver kube-controller-manager kube-scheduler; do
        echo "registry.k8s.io/$name:$version"
    done
    echo "registry.k8s.io/etcd:$etcd"
}

ensure_image() {
    local image=$1 archive start
    archive=$ARCHIVES/$(tr '/:' '__' <<<"$image").tar
    start=$(now)

    if docker image inspect "$image" >/dev/null 2>&1; then
        say "$image: present"
    elif pull "$image"; then
        say "$image: pulled in $(since "$start")"
    elif [[ -s $archive ]]; then
        docker load --quiet --input "$archive" >/dev/null
        say "$image: loaded from $archive in $(since "$start")"
    else
        build "$image"
        save "$image" "$archive"
        say "$image: built in $(since "$start"), kept as $archive"
    fi
}

# One registry serves all images: when it does not answer for the first one,
# the others do not wait for it again.
registry_answers=yes

# pull IMAGE: two bounds, because a slow line is no reason to build for minutes,
# while a registry that cannot be reached should cost seconds.
pull() {
    local image=$1 log pid deadline
    [[ $registry_answers == yes && $PULL_TIMEOUT -gt 0 ]] || return 1
    say "$image: pulling (at most $ANSWER_TIMEOUT s for an answer, $PULL_TIMEOUT s in all)"

    log=$(mktemp)
    timeout "$PULL_TIMEOUT" docker pull "$image" >"$log" 2>&1 &
    pid=$!
    deadline=$((SECONDS + ANSWER_TIMEOUT))
    # The first line of output is the registry's answer (or the refusal).
    while kill -0 "$pid" 2>/dev/null && [[ ! -s $log && $SECONDS -lt $deadline ]]; do
        sleep 0.1
    done
    [[ -s $log ]] || kill "$pid" 2>/dev/null || true

    local status=0
    wait "$pid" || status=$?
    if [[ $status -ne 0 ]]; then
        say "$image: not pulled: $(tail -n 1 "$log" | grep . || echo 'no answer')"
        # "manifest unknown" is the registry's word about one image only.
        grep -qi 'manifest' "$log" || registry_answers=no
    fi
    rm -f "$log"
    return "$status"
}

# build IMAGE: compiles the programs and imports the image.
build() {
    local image=$1 name tag root
    name=${image##*/}
    tag=${name#*:}
    name=${name%%:*}
    root=$(mktemp -d)

    skeleton "$root"
    case $name in
    kube-apiserver) build_kubernetes "$root" "$name" "$tag" "about 4 minutes" ;;
    kube-controller-manager) build_kubernetes "$root" "$name" "$tag" "about a minute after kube-apiserver, else 4" ;;
    kube-scheduler) build_kubernetes "$root" "$name" "$tag" "seconds after the others, else 3 minutes" ;;
    etcd) build_etcd "$root" "${tag%-*}" ;;
    pause) build_pause "$root" ;;
    *)
        rm -rf "$root"
        die "$image: cannot be pulled, and there is no recipe to build it"
        ;;
    esac
    import "$root" "$image" "$name"
    rm -rf "$root"
}

# skeleton DIR: what upstream's distroless base holds and the programs use.
skeleton() {
    mkdir -p "$1"/{etc/ssl/certs,tmp,usr/local/bin}
    chmod 755 "$1" # mktemp made it private, and it becomes / of the image
    chmod 1777 "$1/tmp"
    cat >"$1/etc/passwd" <<-'END'
	root:x:0:0:root:/root:/sbin/nologin
	nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin
	nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin
	END
    cat >"$1/etc/group" <<-'END'
	root:x:0:
	nobody:x:65534:
	nonroot:x:65532:
	END
    echo 'hosts: files dns' >"$1/etc/nsswitch.conf"
}

build_kubernetes() {
    local root=$1 name=$2 version=$3 estimate=$4 minor package ldflags=
    minor=${version#v1.}
    # client-go's version is in the user agent, component-base's in /version.
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        ldflags+=" -X $package.gitVersion=$version -X $package.gitTreeState=clean"
        ldflags+=" -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}"
    done
    say "$name $version: compiling from its Go module ($estimate on 2 cores, the first time)"
    go_build "kubernetes-${version%.*}" "k8s.io/kubernetes $version" "$ldflags" \
        "k8s.io/kubernetes/cmd/$name" "$root/usr/local/bin/$name"
}

build_etcd() {
    local root=$1 version=v$2 program module
    say "etcd $version: compiling etcd, etcdctl and etcdutl from their Go modules (40 s on 2 cores, the first time)"
    for program in etcd etcdctl etcdutl; do
        module=go.etcd.io/etcd/$program/v3
        [[ $program != etcd ]] || module=go.etcd.io/etcd/server/v3
        go_build "etcd-${version%.*}" "$module $version" "" "$module" "$root/usr/local/bin/$program"
    done
}

build_pause() {
    say "pause: compiling (a second)"
    have cc || die "no C compiler for the pause image: apt-get install gcc libc6-dev"
    cc -Os -static -s -Wall -Wextra -Werror -o "$1/pause" "$RECIPES/pause/pause.c"
}

# go_build RECIPE REQUIRED LDFLAGS PACKAGE OUTPUT: REQUIRED is "module version",
# which the recipe's go.mod must pin.
go_build() {
    local recipe=$RECIPES/$1 required=$2 ldflags=$3 package=$4 output=$5
    have go || die "no Go toolchain to build images with, and no registry to pull them from: install Go 1.26 or later (https://go.dev/dl/)"
    [[ -d $recipe ]] || die "no recipe ${recipe#"$REPO/"}: scripts/images/pin.sh makes one"
    grep -qE "^(require )?[[:space:]]*$required( |\$)" "$recipe/go.mod" ||
        die "${recipe#"$REPO/"} does not pin $required: scripts/images/pin.sh moves it"

    # Stated, not inherited: the same source gives the same binary everywhere.
    CGO_ENABLED=0 GOFLAGS='-trimpath -mod=readonly -buildvcs=false' GOWORK=off \
        go -C "$recipe" build -ldflags "-s -w$ldflags" -o "$output" "$package"
}

# import DIR IMAGE NAME: as upstream's images, these set no entrypoint of their
# own choosing but pause: theirs is a wrapper that executes its arguments, which
# is what no entrypoint amounts to.
import() {
    local root=$1 image=$2 name=$3
    local changes=(--change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin')
    case $name in
    etcd) changes+=(--change 'EXPOSE 2379 2380 4001 7001') ;;
    pause) changes+=(--change 'ENTRYPOINT ["/pause"]' --change 'USER 65535:65535') ;;
    esac
    tar -C "$root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -c . |
        docker import "${changes[@]}" - "$image" >/dev/null
}

# save IMAGE ARCHIVE: under a temporary name first, so that an interrupted run
# leaves no half archive to be loaded by the next.
save() {
    mkdir -p "$(dirname "$2")"
    docker save --output "$2.partial" "$1"
    mv "$2.partial" "$2"
}

main "$@"
