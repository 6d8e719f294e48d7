#!/usr/bin/env bash
# Checks the contracts in protos/: style, breaking changes, and that the stubs under servox are what they generate.
#
#   contracts.sh [lint|breaking|stubs]...     all three without an argument
#
# Breaking changes are judged against the last release (the nearest tag v*), before the first release against where
# this branch left origin/main, else against the parent commit. CONTRACTS_BASE=<commit> names another base.
set -euo pipefail
cd "$(dirname "$0")/.."
buf=node_modules/.bin/buf
[ -x "$buf" ] || { echo "contracts: buf is missing; run 'npm install --no-save --no-package-lock --ignore-scripts'" >&2; exit 2; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

lint() {
    "$buf" lint protos
    "$buf" format protos --diff --exit-code
    echo "contracts: style ok"
}

commit() { git rev-parse --quiet --verify "$1^{commit}"; }

base() {
    local head tag fork
    if [ -n "${CONTRACTS_BASE:-}" ]; then
        commit "$CONTRACTS_BASE" && return
        echo "contracts: CONTRACTS_BASE=$CONTRACTS_BASE is no commit of this repository" >&2
        exit 2
    fi
    head=$(commit HEAD) || return 0
    tag=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null) && { commit "$tag"; return; }
    fork=$(git merge-base HEAD origin/main 2>/dev/null) && [ "$fork" != "$head" ] && { echo "$fork"; return; }
    commit HEAD^ || true
}

breaking() {
    local against
    against=$(base)
    if [ -z "$against" ]; then
        echo "contracts: WARNING: no earlier commit here (first commit, shallow clone or no git):" \
             "breaking changes were NOT checked; fetch the history or set CONTRACTS_BASE" >&2
        return
    fi
    if ! git cat-file -e "$against:protos" 2>/dev/null; then
        echo "contracts: $(git rev-parse --short "$against") has no protos/: nothing can break yet"
        return
    fi
    git archive "$against" protos | tar -x -C "$scratch"
    "$buf" breaking protos --against "$scratch/protos"
    echo "contracts: nothing breaks since $(git describe --tags --always "$against")"
}

stubs() { scripts/stubs.sh --check; }

[ $# -gt 0 ] || set -- lint breaking stubs
for step in "$@"; do
    case $step in
        lint | breaking | stubs) "$step" ;;
        *) echo "contracts: unknown step '$step'; give lint, breaking or stubs" >&2; exit 2 ;;
    esac
done
