#!/usr/bin/env bash
# Generates servox/v1 from protos/; `--check` fails when the stubs in the tree are not what the protos give.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$python" -m grpc_tools.protoc -Iprotos --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" protos/servox/v1/*.proto
echo '"""Generated from protos/servox/v1 by scripts/stubs.sh; never edited."""' > "$out/servox/v1/__init__.py"
if [ "${1:-}" = --check ]; then
    diff -r --exclude=__pycache__ "$out/servox/v1" servox/v1 && echo "servox/v1 matches protos/"
else
    cp "$out"/servox/v1/* servox/v1/
fi
