# Every target makes what it needs first: `make release` on a fresh machine needs python3 (>= 3.11, with venv) and a C++
# compiler, nothing else and no root. CI calls the same targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Python compiles what is imported when it first is; compiling all of torch beforehand takes half a minute (--no-compile).
# Extra options for installing torch, e.g. TORCH_OPTIONS="--index-url <PyTorch's CPU wheel index>" to spare the CUDA build.
TORCH_OPTIONS ?=
TORCH  := 2.13.0
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# Tests wait for processes a good deal of their time, so that there is one worker more than processors.
# Options for `make test`, e.g. TESTS="--durations=20 tests/unit".
TESTS  ?=
TIERS  := tiny-edge mid-tier large
SAY    := @printf '\n==> %s\n'
# In a job of GitHub Actions, the commands of .venv for the steps that follow.
STEPS  := @test -z "$$GITHUB_PATH" || echo '$(CURDIR)/$(BIN)' >> "$$GITHUB_PATH"

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONHASHSEED := 0

.DEFAULT_GOAL := help
.PHONY: help setup setup-base setup-control emulators runtimes release report demo lab test check fix rebuild bench bench-gateway bench-delta bench-faults bench-simulation bench-control bench-forecast bench-scheduler lock train-demo kernel-costs schema clean
.PHONY: ci-build ci-gate ci-kubeconfig ci-summary image-files image-sign $(TIERS)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1  \t/p' $(MAKEFILE_LIST) | expand -t 22

setup: $(VENV)/.ready ## create .venv with everything pinned, and compile llama.cpp once (cached)
	$(STEPS)

setup-base: $(VENV)/.base ## create .venv with what verifies, signs and checks GGUF files: no torch, no compiler
	$(STEPS)

setup-control: $(VENV)/.control ## create .venv with what deploys and steers: no torch, no compiler
	$(STEPS)

emulators: ## install QEMU's user mode where it is missing (through sudo, unless this is root)
	@command -v qemu-aarch64 >/dev/null && command -v qemu-riscv64 >/dev/null || { sudo=; test "$$(id -u)" = 0 || sudo=sudo; \
		$$sudo apt-get update --quiet && $$sudo apt-get install --yes --quiet --no-install-recommends qemu-user; }

runtimes: $(VENV)/.ready ## cross-compile the programs of all three targets (some minutes once, then cached)
	$(SAY) 'building the programs of all three targets (some minutes once, then cached)'
	@edge-release toolchain build

release: runtimes ## the main job: build, check, sign and publish all nine variants
	$(SAY) 'building and checking the variants (dvc repro)'
	@test -e dvc.lock || { dvc repro --quiet --glob teacher emulators 'runtime@*' && $(MAKE) --no-print-directory --jobs 2 $(TIERS); }
	@dvc repro
	$(SAY) 'signing'
	@edge-release sign
	$(SAY) 'publishing'
	@edge-release publish

# DVC makes one stage at a time. In a fresh clone the tiers are made side by side first, each in its order, but for what
# takes times; what fails here, `dvc repro` does again and explains.
MADE = $(foreach stage,distill convert calibrate sensitivity search quantize reference check-emulated certify,'$(stage)@$@*')
large: MADE = shard
$(TIERS):
	@dvc repro --quiet --single-item --glob $(MADE) || true

report: $(VENV)/.ready ## write the report of what was built, or why the gate refused it: build/report/
	@edge-release report

demo: $(VENV)/.dev ## serve the release: two nodes, a large server, the gateway; show where requests go (Ctrl-C ends it)
	$(SAY) 'the release, served'
	@edge-release demo

lab: $(VENV)/.dev ## load, break, measure and tune four nodes, a large server, gateway and controller on this machine (docs/lab.md)
	@edge-release lab

test: runtimes $(VENV)/.dev ## run the tests (those that need a service say how to enable them)
	$(SAY) 'testing'
	@python -m pytest -n $$(($$(nproc) + 1)) --dist loadfile --no-loadscope-reorder -m "not workflow and not kube" $(TESTS)

check: $(VENV)/.dev ## lint, types, import contracts, workflow and schema checks
	$(SAY) 'ruff'
	@ruff check .
	@ruff format --check .
	$(SAY) 'mypy'
	@mypy
	$(SAY) 'import-linter'
	@lint-imports
	$(SAY) 'workflows'
	@check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	@zizmor --offline --quiet .github

fix: $(VENV)/.dev ## let ruff mend what it can
	@ruff check --fix .
	@ruff format .

rebuild: $(VENV)/.ready ## repeat the release in a clean folder; fails unless every digest is equal
	$(SAY) 'rebuilding in a clean folder with an empty DVC cache'
	@edge-release rebuild

bench: $(VENV)/.ready ## measure quantize and verify beside their peers
	@python -m tests.bench.bench_quantize
	@python -m tests.bench.bench_verify

bench-gateway: $(VENV)/.dev ## measure what the gateway costs beside nginx, Envoy and LiteLLM, and what it adds to a server's time
	@python -m tests.bench.bench_gateway
	@python -m tests.bench.bench_overhead

bench-delta: $(VENV)/.dev ## measure what an update moves beside whole files, zstd patches and content-defined chunks (needs zstd)
	@python -m tests.bench.bench_delta

bench-scheduler: $(VENV)/.dev ## measure how long kube-scheduler waits for the extender at 1,000 nodes
	@python -m tests.bench.bench_scheduler

bench-faults: $(VENV)/.dev ## kill, freeze, slow down and switch what stands behind the gateway under load (25 minutes)
	@python -m tests.bench.bench_faults

bench-control: $(VENV)/.dev ## measure what a decision of the controller costs over 10,000 nodes
	@python -m tests.bench.bench_control

bench-forecast: $(VENV)/.dev ## compare pre-warming by forecast with reacting alone, on seeded weeks of traffic (some minutes)
	@python -m tests.bench.bench_forecast

bench-simulation: $(VENV)/.dev ## measure the simulation: requests a minute on one core, memory at 10,000 nodes; foresight against none
	@python -m tests.bench.bench_simulation

schema: $(VENV)/.dev ## write manifests/schema/ and docs/settings.md anew from the code
	@python -m pipeline.cli.schema manifests/schema docs/settings.md

kernel-costs: runtimes emulators ## count anew what a weight of each type costs on each target (pipeline/toolchain/instructions.json)
	@python -m pipeline.stages.kernel_costs pipeline/toolchain/instructions.json

train-demo: $(VENV)/.ready ## train the demo teacher again (long) and write its prompt files
	@edge-release train-demo --out models/demo

TOOLS := gguf|numpy|safetensors|scipy|tokenizers|torch|transformers|ziglang
lock: ## resolve requirements/*.in into pinned, hashed requirements/*.txt, and write requirements/tools.yaml
	@for f in all build control serve envoy base; do uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header \
		--python-version 3.11 $$(test $$f = all || echo --constraint requirements/all.txt) \
		requirements/$$f.in --output-file requirements/$$f.txt || exit; done
	@{ echo '# Versions that decide released bytes, those of all Pythons; stages depend on them (dvc.yaml). `make lock` writes this.'; \
		{ echo torch==$(TORCH); cat requirements/build.txt; } | sed -nE "s/^($(TOOLS))==([^ ]+).*/\1 \2/p" | sort | \
		awk '{ held[$$1] = held[$$1] (held[$$1] ? ", " : "") "\"" $$2 "\"" } END { for (name in held) print name ": [" held[name] "]" }' | sort; \
	} > requirements/tools.yaml

# What the workflows call (docs/github-actions.md). Values come as variables of the environment.
define RESTORE
@dvc remote add --quiet --local --default --force run-cache "$${DVC_REMOTE:-$(CURDIR)/build/run-cache}"
@dvc pull --quiet --run-cache --allow-missing
endef

ci-build: $(VENV)/.ready ## in CI: bring STAGES up to date, from and into the run-cache DVC_REMOTE (build/run-cache)
	$(RESTORE)
	@dvc repro --pull $$STAGES
	@dvc push --run-cache

ci-gate: $(VENV)/.ready emulators ## in CI: the same for PARTS, then take the stages CHECKED from build/handed, and finish
	$(RESTORE)
	@dvc repro --pull emulators $$PARTS
	@cp -R build/handed/. build/
	@dvc commit --force $$CHECKED
	@dvc repro --pull
	@dvc repro --force --single-item manifest
	@dvc push --run-cache

ci-kubeconfig: ## in CI: write KUBECONFIG_DATA to build/kubeconfig, for this user alone
	@mkdir -p build && umask 077 && printenv KUBECONFIG_DATA > build/kubeconfig

ci-summary: ## in CI: show build/report/report.md as the job's summary
	@cat build/report/report.md >> "$$GITHUB_STEP_SUMMARY"

image-files: ## fetch the released programs of CHANNEL, verified, for manifests/images/node/Dockerfile
	@for pair in amd64:x86_64 arm64:arm64 riscv64:riscv64; do \
		place="build/images/node/$${pair%:*}"; \
		edge-release pull "runtime-$${pair#*:}" --into "$$place" --channel "$${CHANNEL:-dev}" || exit; \
		cp -f "$$place/current/llama-server" "$$place/llama-server" || exit; \
	done

image-sign: ## in CI: sign the container image IMAGE@DIGEST as this workflow
	@cosign sign --yes "$$IMAGE@$$DIGEST"

clean: ## remove what was built here (not the registry, not the caches)
	rm -rf build $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .benchmarks *.egg-info

$(VENV)/.ready: requirements/build.txt requirements/tools.yaml pyproject.toml pipeline/toolchain/source.py pipeline/toolchain/host.py
	$(SAY) 'creating $(VENV)'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edge-release needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@command -v c++ >/dev/null || { echo 'edge-release needs a C++ compiler: apt install g++ (or ask for it)'; exit 4; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo 'python3 has no venv: apt install python3-venv'; exit 4; }
	$(SAY) 'installing torch (pinned, first)'
	@$(PIP) install --no-compile $(TORCH_OPTIONS) torch==$(TORCH)
	$(SAY) 'installing the pinned dependencies'
	@$(PIP) install --no-compile --no-deps --require-hashes -r requirements/build.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(SAY) 'building llama.cpp from its pinned source (some minutes once, then cached in ~/.cache/edge-release)'
	@wheel="$$(edge-release toolchain host)" && $(PIP) install --quiet --no-deps --force-reinstall "$$wheel"
	@touch $@

$(VENV)/.dev: requirements/all.txt $(VENV)/.ready
	$(SAY) 'installing what serves, tests and lints'
	@$(PIP) install --quiet --no-compile --no-deps --require-hashes -r requirements/all.txt
	@touch $@

$(VENV)/.control: requirements/control.txt pyproject.toml
	$(SAY) 'creating $(VENV) with what deploys and steers'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --no-deps --require-hashes -r requirements/control.txt
	@$(PIP) install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.base: requirements/base.txt pyproject.toml
	$(SAY) 'creating $(VENV) with the base install'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --no-deps --require-hashes -r requirements/base.txt
	@$(PIP) install --quiet --no-deps --editable .
	@touch $@
