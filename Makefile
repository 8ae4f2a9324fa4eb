# Two commands do everything: `make quickstart` and `make test`. Each makes the environment if it is missing.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Half of the cores for tests: each worker computes with one thread.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup viewer quickstart test extras check format samples wheel-check clean

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP)  ## Make .venv with what constraints.txt pins.

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# Only files of the package are used and none of it is imported, so its 26 dependencies can stay away.
viewer: setup  ## Add the script of the report's volume viewer, so that its tests run too (2 MB; a browser is needed).
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt ipyniivue

quickstart: setup  ## Train on data_samples, evaluate, print the table (about 3 minutes on 2 cores).
	$(BIN)/medfocal train experiment=quickstart

test: setup  ## Run the tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

extras:  ## Run the tests of Slurm, Optuna, trackers, ONNX, bundles and DICOM in .venv-extras (installs Slurm where it may).
	PYTHON=$(PYTHON) bash .ci/extras

check: setup  ## Lint, types, configuration and import order.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/conf tests/architecture

format:  ## Let ruff format and mend what it can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

samples: setup  ## Write data_samples again.
	$(BIN)/python data_samples/make.py

wheel-check: setup  ## Build the wheel, install it outside the tree and train two steps with it.
	PYTHON=$(PYTHON) bash .ci/wheel

clean:  ## Remove what the targets above made, runs and .venv included.
	rm -rf .venv .venv-extras runs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
