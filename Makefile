# make train: set up and run the main job on the embedded demo data; make test: set up and run the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help train test test-fast wheel lowest lint docs notebooks format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# constraints.txt pins the versions that the figures in docs/ were measured with
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,dev,docs,tensorboard,ray,submitit,optuna,export]'
	@touch $@

train: $(READY) ## train on the demo data and print the results; ARGS="+category=tile seed=1" adds settings
	$(BIN)/python -m gaussad_pl.train data=demo $(ARGS)

# a process per core with one thread each: most tests are too small for two threads
test: $(READY) ## run the tests; the notebooks have a target of their own
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal --ignore tests/test_notebooks.py $(ARGS)

test-fast: $(READY) ## run the fast tests, in under a minute
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

wheel: $(READY) ## build the wheel and predict with it in an environment made by the steps of the Dockerfile
	VENV=$(VENV) .ci/wheel

lowest: ## run the fast tests with the lowest versions of all packages
	PYTHON=$(PYTHON) .ci/lowest

lint: $(READY) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# not --quiet, which hides the warnings from --strict, too
docs: $(READY) ## build the documentation into build/docs; a broken link is an error
	$(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

notebooks: $(READY) ## run the notebooks of the documentation, and print what they print
	$(BIN)/python -m pytest tests/test_notebooks.py -s $(ARGS)

format: $(READY) ## fix style issues and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and all generated files
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache runs multirun data/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
