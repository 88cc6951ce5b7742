# One word for each thing that people do here. `make run` and `make test` set up what they need, once.
# PYTHON=/path/to/python3 chooses the interpreter; TESTS="tests/state -k ledger" chooses tests; WORKERS=n how many at a time.

SHELL := /bin/bash
PYTHON ?= python3
WORKERS ?= 2
TESTS ?= tests
export PYTHON
# Byte code is written as modules are first used: without it every start takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run test lint format crash soak bench local-model lock docs wheel clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## the environment in .venv, from requirements.lock
	@./setup.sh runtime

setup-dev: ## the same with the tools for tests and linters
	@./setup.sh dev

run: setup ## the main job, on this machine's logs
	@.venv/bin/perdure demo

test: setup-dev ## all tests
	@.venv/bin/python -m pytest -n $(WORKERS) --benchmark-disable $(TESTS)

lint: setup-dev ## linter, formatter (check only) and types
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

format: setup-dev ## let the formatter write
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

crash: setup-dev ## kill the daemon at every step, many times over
	@.venv/bin/python -m pytest tests/crash -n $(WORKERS) --timeout 1800 -o addopts="-v --import-mode=importlib"

soak: setup-dev ## months of schedule under a simulated clock
	@.venv/bin/python -m pytest tests/simulation -n $(WORKERS) --timeout 3600 -o addopts="-v --import-mode=importlib"

bench: setup-dev ## the measurements
	@.venv/bin/python -m pytest tests/benchmarks --benchmark-only

# Universal (one lock for each supported Python and machine), with hashes, and with no index's address in it.
LOCK = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url $(LOCK_FLAGS)
lock: setup-dev ## the lock files anew from pyproject.toml (LOCK_FLAGS=--upgrade takes current releases)
	@$(LOCK) pyproject.toml -o requirements.lock
	@$(LOCK) pyproject.toml --group dev --group setup -c requirements.lock -o requirements-dev.lock
	@$(LOCK) --group setup -c requirements-dev.lock -o requirements-setup.lock

docs: setup-dev ## the generated parts of docs/ anew
	@.venv/bin/python docs/generate.py

wheel: setup-dev ## dist/*.whl
	@.venv/bin/python -m build --wheel --no-isolation

clean: ## remove what make made, the environment too
	@rm -rf .venv .cache build dist src/*.egg-info
