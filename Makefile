# Each target works alone on a fresh clone: it makes the environment and fetches the data that it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
WORKERS ?= 2
# Two threads unless the user says otherwise: busy cores make torch ten times slower.
export OMP_NUM_THREADS ?= 2

.PHONY: help install data campaign test test-slow check report ui manifest clean
.DEFAULT_GOAL := help

help:            ## show this list
	@grep -hE '^[a-z-]+: .*## |^[a-z-]+:  +## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 22

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "setting up the environment in $(VENV): minutes the first time"
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print('\n'.join(p['dependencies'] + p['optional-dependencies']['dev']))" > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -r $(VENV)/requirements.txt -c constraints.txt
	@touch $@

install: $(STAMP)  ## make the environment

data: $(STAMP)  ## fetch and prepare the embedded text and policy
	@$(BIN)/python -m flows.setup --preset embedded

campaign: $(STAMP)  ## run the embedded campaign: the main job
	@$(BIN)/python -m flows.setup --preset embedded
	@$(BIN)/python -m flows.research --preset embedded $(ARGS)

# A file of tests stays in one process, in the order of the folders: the long ones come in the middle.
test: $(STAMP)  ## run the tests, on two cores at once
	@$(BIN)/python -m flows.setup --preset embedded
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)  ## run the long tests too
	@$(BIN)/python -m flows.setup --preset embedded
	$(BIN)/python -m pytest

check: $(STAMP)  ## ruff, mypy, import contracts, frozen files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m frozen_env verify

report: $(STAMP)  ## write the latest campaign's report, one HTML page
	@$(BIN)/python -m flows.report $(ARGS)

ui: $(STAMP)  ## serve the MLflow and Prefect pages, addresses printed
	@$(BIN)/python -m flows.ui

manifest: $(STAMP)  ## pin the frozen files after a deliberate change
	$(BIN)/python -m frozen_env manifest --write

clean:           ## remove the environment and caches; data and mlruns stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
