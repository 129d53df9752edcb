#!/usr/bin/env bash
# Writes the pinned Go module that a component image is built from.
#
#   scripts/images/pin.sh kubernetes 1.37.1
#   scripts/images/pin.sh etcd 3.7.0
#
# One directory per minor release, so that releases live side by side and a
# patch release is a change of two files. Run it when a release is added or
# moved; go.mod and go.sum are committed and nothing is resolved when images
# are built.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"

[[ $# -eq 2 ]] || { echo "usage: $0 kubernetes|etcd VERSION" >&2; exit 2; }
what=$1 version=v${2#v}
minor=${version%.*}          # v1.37.1 -> v1.37
dir=$what-$minor
mkdir -p "$dir"

# upstream_mod MODULE@VERSION: path of the module's own go.mod, as downloaded.
upstream_mod() {
    go mod download -json "$1" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p'
}

case $what in
kubernetes)
    mod=$(upstream_mod "k8s.io/kubernetes@$version")
    staging=v0.${version#v1.} # v1.37.1 -> v0.37.1
    {
        echo "module plinth.dev/images/$dir"
        echo
        grep '^go ' "$mod"
        # The release's own runtime settings: a main package takes them from
        # the main module, which here is ours.
        sed -n '/^godebug/,/^)/p' "$mod"
        echo
        for name in kube-apiserver kube-controller-manager kube-scheduler; do
            echo "tool k8s.io/kubernetes/cmd/$name"
        done
        echo
        echo "require k8s.io/kubernetes $version"
        echo
        # In its own repository Kubernetes replaces its staging modules by
        # directories; outside they are published as v0.MINOR.PATCH.
        echo "replace ("
        sed -n 's|^\t\(k8s.io/[^ ]*\) => ./staging/.*|\1|p' "$mod" | while read -r module; do
            echo "	$module => $module $staging"
        done
        echo ")"
    } >"$dir/go.mod"
    ;;
etcd)
    mod=$(upstream_mod "go.etcd.io/etcd/server/v3@$version")
    {
        echo "module plinth.dev/images/$dir"
        echo
        grep '^go ' "$mod"
        echo
        for module in server etcdctl etcdutl; do
            echo "tool go.etcd.io/etcd/$module/v3"
        done
        echo
        echo "require ("
        for module in server etcdctl etcdutl; do
            echo "	go.etcd.io/etcd/$module/v3 $version"
        done
        echo ")"
    } >"$dir/go.mod"
    ;;
*)
    echo "$0: $what: kubernetes or etcd" >&2
    exit 2
    ;;
esac

(cd "$dir" && go mod tidy)
echo "$dir: pinned at $version"
