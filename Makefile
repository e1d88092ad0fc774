# PYTHON is any CPython from 3.11 on; VENV is made once and kept up to date with the pins. WORKERS: of the test suite, each
# of which takes up to 4 GiB and hardly more than a core.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
WORKERS ?= 2
RUN := $(VENV)/bin/python

.PHONY: demo test lint oracle help

help:  ## Show what can be made.
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/'

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version) is too old: set PYTHON to a CPython from 3.11 on" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/tested: $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: $(VENV)/installed  ## Train a small student on the embedded word problems and show what it learned (minutes).
	$(RUN) -m cotmi_jax.train --config=configs/quickstart.py --workdir=$(DEMO)
	$(RUN) -m cotmi_jax.evaluate --workdir=$(DEMO) --split=test --examples=3

test: $(VENV)/tested  ## Run the whole test suite.
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/tested  ## Style and types.
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

oracle: $(VENV)/tested  ## Install torch (CPU), so that the tests against it are not skipped.
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test,torch]'
