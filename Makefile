# Each target does its own set-up in .venv; a machine with Python 3.11 or newer and make is enough.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.fairlead-installed

# Tests and checks: one thread a process, no network, no telemetry.
QUIET := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
	HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1 NO_MKDOCS_2_WARNING=1

.PHONY: help setup demo test test-all check bench docs format clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP)  ## make .venv and install Fairlead in it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Fairlead needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (the first time takes some minutes)" >&2
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

demo: $(STAMP)  ## intentional design on the pocket model, start to finish (under 5 minutes)
	$(BIN)/fairlead demo

test: $(STAMP)  ## the tests, without the slow ones
	$(QUIET) $(BIN)/python -m pytest -q -n $(WORKERS) -m 'not slow and not browser'

test-all: $(STAMP)  ## every test
	$(QUIET) $(BIN)/python -m pytest -q -n $(WORKERS)

check: $(STAMP)  ## format, lint, types, layers, documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(QUIET) $(BIN)/pyright
	$(BIN)/lint-imports
	$(QUIET) $(BIN)/python scripts/cli_reference.py --check
	$(QUIET) $(BIN)/python scripts/results.py --check
	$(QUIET) $(BIN)/python scripts/check_docs.py
	$(QUIET) $(BIN)/mkdocs build --strict --quiet

format: $(STAMP)  ## rewrite files as `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(QUIET) $(BIN)/python scripts/cli_reference.py

bench: $(STAMP)  ## ratios of DESIGN section 9, measured side by side
	@for script in benchmarks/bench_*.py; do \
		echo "== $$script"; OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python $$script || exit 1; \
	done

docs: $(STAMP)  ## the documentation site, into site/
	$(QUIET) $(BIN)/python scripts/cli_reference.py
	$(QUIET) $(BIN)/mkdocs build --strict

clean:  ## remove caches and built files; .venv and runs stay
	rm -rf site dist build .pytest_cache .ruff_cache .import_linter_cache .hypothesis
