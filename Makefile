# Every target sets up what it needs; `make setup` is a no-op when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PEERS := $(VENV)/peers

.PHONY: help setup demo test lint format bench indexbench soak docs clean
.DEFAULT_GOAL := help

help: ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## Make .venv with the pinned dependencies and .venv/bin/safehold

$(STAMP): requirements/lock.txt pyproject.toml
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || scripts/debian-packages setup
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/lock.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	$(BIN)/python -m compileall -q src
	touch $@

$(PEERS)/.ready: $(STAMP) requirements/bench.txt
	$(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	touch $@

demo: setup ## Back up a disk twice, destroy it, restore both generations, prove it (no root needed)
	@scripts/debian-packages demo
	@scripts/demo $(BIN)

test: setup ## Run the tests
	@scripts/debian-packages test
	$(BIN)/pytest -n 2 --dist worksteal

lint: setup ## Check style, types, layers and that the docs are complete
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/make-docs --check

format: setup ## Format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: setup ## Compare with restic, borg and nbdkit in one run; writes docs/benchmarks.md
	@scripts/debian-packages bench
	@$(MAKE) --no-print-directory $(PEERS)/.ready
	$(BIN)/python -m bench.peers
	$(BIN)/python -m bench.trees
	$(BIN)/python -m bench.volumes
	$(BIN)/python -m bench.nbd

indexbench: setup ## Measure the chunk index at 100 million rows in 512 MiB; takes root and the better part of an hour
	$(BIN)/python -m bench.index

soak: setup ## Run the long tests
	@scripts/debian-packages test
	$(BIN)/pytest -n 2 -m soak

docs: setup ## Generate the command line reference
	$(BIN)/python scripts/make-docs

clean: ## Remove what setup made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
