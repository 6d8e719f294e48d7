#!/usr/bin/env bash
# NVIDIA's tritonclient against a running embedder; the last line is JSON.
#
#   conformance.sh ADDRESS MODEL [--descriptor FILE]
#   conformance.sh --build                                 only the environment, .cache/tritonclient
#
# tritonclient needs a protobuf older than ours, so it gets an environment of its own. Exit code 3: that environment
# cannot be built here.
set -euo pipefail
cd "$(dirname "$0")/.."
client=tritonclient==2.73.0
env=.cache/tritonclient
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}

if [ "$(cat "$env/.installed" 2>/dev/null)" != "$client" ]; then
    mkdir -p .cache
    building=$(mktemp -d .cache/tritonclient.XXXXXX) # several tests may build at a time: the first to finish stays
    trap 'rm -rf "$building"' EXIT
    { .venv/bin/uv venv --quiet --clear --relocatable --python .venv/bin/python "$building" \
        && .venv/bin/uv pip install --quiet --python "$building/bin/python" "${client/==/[grpc]==}"; } >&2 || exit 3
    echo "$client" > "$building/.installed"
    rm -rf "$env"
    mv -T "$building" "$env" 2>/dev/null || true
fi
[ "${1:-}" = --build ] || exec "$env/bin/python" scripts/conformance.py "$@"
