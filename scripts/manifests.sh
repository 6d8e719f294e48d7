#!/usr/bin/env bash
# Checks what is deployed, without a cluster and without the network: style of the YAML and of the Dockerfiles, that
# every kustomization builds, and that every object fits Kubernetes' own schemas to the letter.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
command -v kubectl >/dev/null || { echo "manifests: kubectl is missing (on Debian: kubernetes-client)" >&2; exit 2; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$bin/yamllint" --strict deploy protos .yamllint .hadolint.yaml
"$bin/hadolint" --config .hadolint.yaml services/*/Dockerfile

for folder in deploy/k8s/*/kustomization.yaml deploy/k8s/*/*/kustomization.yaml; do
    [ -e "$folder" ] || continue
    folder=$(dirname "$folder")
    if grep -q '^kind: Component' "$folder/kustomization.yaml"; then
        continue # a component builds only inside an overlay
    fi
    built=$scratch/${folder//\//-}.yaml
    kubectl kustomize "$folder" > "$built"
    "$bin/kubernetes-validate" --strict --quiet "$built"
    echo "manifests: $folder: $(grep -c '^kind:' "$built") objects ok"
done
"$bin/kubernetes-validate" --strict --quiet deploy/k8s/*.yaml
