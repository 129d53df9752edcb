#!/usr/bin/env bash
# The list of images that scripts/images.sh falls back to, without a plinth
# binary, is the list that plinth prints.
#
#   PLINTH=BINARY scripts/tests/images.sh
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

main() {
    [[ -n ${PLINTH:-} ]] || die "PLINTH: which binary?"
    local release own table
    "$PLINTH" config images list >/dev/null
    for release in v1.37.1 v1.36.3; do
        own=$("$SCRIPTS/images.sh" --list "$release")
        table=$(PLINTH=/bin/false "$SCRIPTS/images.sh" --list "$release")
        [[ $own == "$table" ]] ||
            die "$release: $(diff <(echo "$own") <(echo "$table") | grep '^[<>]')  (< plinth, > scripts/images.sh)"
        say "$release: $(wc -l <<<"$own") images, the same in plinth and in scripts/images.sh"
    done
}

main
