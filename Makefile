# PYTHON is any CPython from 3.11 on. VENV is created once and updated when the pins change. WORKERS is the number of
# test processes. Each needs up to 4 GiB and waits a third of its time, for processes that tests start, locks and
# timeouts, so that three use two cores.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
WORKERS ?= 3
RUN := $(VENV)/bin/python

.PHONY: demo check test versions lint oracle help

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

check: lint  ## Style, types and the tests that are not slow: before each commit.
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

test: $(VENV)/tested  ## Run the whole test suite.
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# What can differ under another pair of JAX and Flax versions: NNX modules, tracing, numerics, sharding, compiled programs,
# checkpoints, and what they are used for. Left out, since neither JAX nor Flax takes part, or only through these: data,
# teacher, launch, benchmarks, files and buckets, faults of the disk, README, measures of evaluation, and runs that train
# critics or students for longer than the other tests of the same functions.
VERSIONED := tests/models tests/objectives tests/mi tests/parallel tests/aot tests/inference \
	tests/evaluation/test_evaluator.py tests/training tests/test_compilation_cache.py tests/test_architecture.py \
	--ignore=tests/mi/test_estimate.py --ignore=tests/objectives/test_mi_cost.py \
	--ignore=tests/training/test_initial.py --ignore=tests/training/test_small_data.py

versions: $(VENV)/tested  ## Run the tests that depend on the versions of JAX and Flax.
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(VERSIONED)

lint: $(VENV)/tested  ## Style and types.
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

oracle: $(VENV)/tested  ## Install torch (CPU) and inference engines, so that the tests against them are not skipped.
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test,torch,engines]'
