#!/usr/bin/env bash
# Generates servox/v1 and servox/inference from protos/; `--check` fails when the stubs in the tree are not what the
# protos give.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

generate() { "$python" -m grpc_tools.protoc --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" "$@"; }

generate -Iprotos protos/servox/v1/*.proto
# The package `inference` is foreign and its name could be anybody's in Python: there it lies under servox.
generate -Iservox/inference=protos/inference servox/inference/open_inference.proto

for package in v1 inference; do
    source=protos/servox/v1
    [ $package = v1 ] || source=protos/$package
    echo "\"\"\"Generated from $source by scripts/stubs.sh; never edited.\"\"\"" > "$out/servox/$package/__init__.py"
    if [ "${1:-}" = --check ]; then
        diff -r --exclude=__pycache__ "$out/servox/$package" "servox/$package" && echo "servox/$package matches protos/"
    else
        mkdir -p "servox/$package"
        cp "$out/servox/$package"/* "servox/$package/"
    fi
done
