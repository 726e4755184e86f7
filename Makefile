# Everything runs in a virtual environment of its own; `make` alone shows what there is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-lowest test-newest check format docs install clean

help: ## show this list
	@grep -hE '^[a-z -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 26

install: $(VENV)/installed ## create .venv and install basinguard with its development tools

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

demo: install ## fine-tune, guard, calibrate, export and prove it on TinyWorld
	$(BIN)/basinguard demo

test: install ## the default test tier: no network, two processes, three to six minutes on two idle cores
	$(BIN)/python -m pytest

test-long: install ## the slow proofs
	$(BIN)/python -m pytest -m "long"

test-lowest test-newest: test-%: $(VENV)-%/installed ## the default tier with the lowest (newest) versions we support
	$(VENV)-$*/bin/python -m pytest

$(VENV)-%/installed: tests/constraints/%.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-$*/bin/python -m pip install --quiet --editable . --group dev --constraint tests/constraints/$*.txt
	@touch $@

check: install ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## apply the formatter and safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## build the manual in runs/site, offline; first installs what builds it
	$(BIN)/python -m pip install --quiet --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean: ## remove the environment and everything runs have written
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest runs .pytest_cache .mypy_cache .ruff_cache
