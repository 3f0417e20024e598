# Every target sets up what it needs: `make demo` and `make test` work in a fresh clone with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench docs clean

help:  ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# A stamp per extra: installed once, again only when the requirements change.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

demo: $(VENV)/.installed-demo  ## Train five VAEs on real digits, three seeds each, and write the report; goes on where it stopped
	$(BIN)/latentflows demo --out $(RUNS)/demo --resume

test: $(VENV)/.installed-test  ## Run the tests
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-test $(VENV)/.installed-lint  ## Format check, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(VENV)/.installed-test  ## Run the benchmarks (minutes; peers are compared where they are installed)
	$(BIN)/python -m benchmarks.run

docs: $(VENV)/.installed-docs  ## Build the documentation site into site/
	$(BIN)/zensical build

clean:  ## Remove the environment and everything built
	rm -rf $(VENV) site dist build
