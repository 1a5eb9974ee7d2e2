# Every target makes what it needs first: `make release` on a fresh machine needs python3 (>= 3.11, with venv) and a C++
# compiler, nothing else and no root. CI calls the same targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Extra options for installing torch, e.g. TORCH_OPTIONS="--index-url <PyTorch's CPU wheel index>" to spare the CUDA build.
TORCH_OPTIONS ?=
PIP    := $(BIN)/python -m pip --disable-pip-version-check
SAY    := @printf '\n==> %s\n'

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONHASHSEED := 0

.DEFAULT_GOAL := help
.PHONY: help setup runtimes release report test check fix rebuild bench lock train-demo schema clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1  \t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(VENV)/.ready ## create .venv with everything pinned, and compile llama.cpp once (cached)

runtimes: $(VENV)/.ready ## cross-compile the programs of all three targets (some minutes once, then cached)
	$(SAY) 'building the programs of all three targets (some minutes once, then cached)'
	@edge-release toolchain build

release: runtimes ## the main job: build, check, sign and publish all nine variants
	$(SAY) 'building and checking the variants (dvc repro)'
	@dvc repro
	$(SAY) 'signing'
	@edge-release sign
	$(SAY) 'publishing'
	@edge-release publish

report: $(VENV)/.ready ## write the report of what was built, or why the gate refused it: build/report/
	@edge-release report

test: runtimes ## run the tests (those that need a service say how to enable them)
	$(SAY) 'testing'
	@python -m pytest -n auto --dist loadfile

check: $(VENV)/.ready ## lint, types, import contracts, workflow and schema checks
	$(SAY) 'ruff'
	@ruff check .
	@ruff format --check .
	$(SAY) 'mypy'
	@mypy
	$(SAY) 'import-linter'
	@lint-imports
	@if [ -d .github/workflows ]; then printf '\n==> zizmor\n'; zizmor --offline --quiet .github/workflows; fi

fix: $(VENV)/.ready ## let ruff mend what it can
	@ruff check --fix .
	@ruff format .

rebuild: $(VENV)/.ready ## repeat the release in a clean folder; fails unless every digest is equal
	$(SAY) 'rebuilding in a clean folder with an empty DVC cache'
	@edge-release rebuild

bench: $(VENV)/.ready ## measure quantize and verify beside their peers
	@python -m tests.bench.bench_quantize
	@python -m tests.bench.bench_verify

schema: $(VENV)/.ready ## write manifests/schema/ anew from the code
	@python -m pipeline.stages.schema manifests/schema

train-demo: $(VENV)/.ready ## train the demo teacher again (long) and write its prompt files
	@edge-release train-demo --out models/demo

lock: ## resolve requirements/*.in into pinned, hashed requirements/*.txt
	@for f in base all; do uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header \
		--python-version 3.11 requirements/$$f.in --output-file requirements/$$f.txt; done

clean: ## remove what was built here (not the registry, not the caches)
	rm -rf build $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .benchmarks *.egg-info

$(VENV)/.ready: requirements/all.txt pyproject.toml pipeline/toolchain/source.py pipeline/toolchain/host.py
	$(SAY) 'creating $(VENV)'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edge-release needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@command -v c++ >/dev/null || { echo 'edge-release needs a C++ compiler: apt install g++ (or ask for it)'; exit 4; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo 'python3 has no venv: apt install python3-venv'; exit 4; }
	$(SAY) 'installing torch (pinned, first)'
	@$(PIP) install $(TORCH_OPTIONS) torch==2.13.0
	$(SAY) 'installing the pinned dependencies'
	@$(PIP) install --no-deps --require-hashes -r requirements/all.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(SAY) 'building llama.cpp from its pinned source (some minutes once, then cached in ~/.cache/edge-release)'
	@wheel="$$(edge-release toolchain host)" && $(PIP) install --quiet --no-deps --force-reinstall "$$wheel"
	@touch $@
