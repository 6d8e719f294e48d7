# Every target sets up what it needs; nothing has to be done by hand first.
PYTHON ?= python3
BIN := .venv/bin
# uv does not read pip's find-links; where pip is told of a CPU build of torch, uv must be told as well.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
STAMP := .venv/.installed

.PHONY: setup demo paper bench-gpu test lint type proto conformance schemathesis contracts manifests images tools

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Servox needs Python 3.11 or later: make PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]' -c constraints.txt
	touch $@

demo: setup  ## the main job on what speech there is, under the sound protocol
	$(BIN)/servox demo

paper: setup  ## the same under the paper's recipe
	$(BIN)/servox demo --protocol ser-evals

test: setup  ## the whole suite
	$(BIN)/python -m pytest -n auto --dist loadgroup --max-worker-restart=0

bench-gpu:  ## engines on this machine's GPU, in an environment of its own with CUDA builds
	test -x .venv-gpu/bin/python || $(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check uv
	UV_FIND_LINKS= .venv-gpu/bin/uv pip install --quiet --python .venv-gpu/bin/python -e '.[gpu,export]' -c constraints.txt
	.venv-gpu/bin/python -m bench.gpu $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python docs/tables.py --check

type: setup
	$(BIN)/mypy

proto: setup  ## generate the stubs again
	scripts/stubs.sh

conformance: setup  ## NVIDIA's tritonclient against a running embedder
	$(BIN)/python -m pytest tests/embedder/test_tritonclient.py -n0 -rs

schemathesis: setup  ## the whole HTTP schema, many examples an operation, against a running prober
	SERVOX_SCHEMA_EXAMPLES=300 $(BIN)/python -m pytest tests/prober/http/test_schema.py -n0 -s

contracts: setup tools  ## protos: style, breaking changes, stubs in step
	PYTHON=$(BIN)/python scripts/contracts.sh

manifests: setup tools  ## Kubernetes and Dockerfiles, offline and strict
	scripts/manifests.sh

images: setup  ## what each image installs, in environments of their own: the server imports, torch does not
	$(BIN)/python scripts/images_dry_run.py

tools:  ## what only the checks need: Debian's chromium and kubectl, buf and playwright-core from npm
	missing=; command -v chromium >/dev/null || missing=chromium; \
	command -v kubectl >/dev/null || missing="$$missing kubernetes-client"; \
	test -z "$$missing" || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; }
	test -x node_modules/.bin/buf || npm install --no-save --no-package-lock --ignore-scripts --silent
