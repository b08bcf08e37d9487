# `make demo` and `make test` need Python 3.11 or newer with pip and venv, and nothing else.

PYTHON ?= python3
BIN := .venv/bin
MMSEARCH := $(BIN)/mmsearch

.PHONY: demo test test-fast lint

.venv/installed: pyproject.toml constraints.txt
	@echo "== 1. a virtual environment in .venv"
	$(PYTHON) -m venv .venv
	@echo "== 2. install mmsearch with the versions of constraints.txt"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/installed
	@echo "== 3. search: 20 trials, 2 workers"
	$(MMSEARCH) launch --trials 20 --workers 2
	@echo "== 4. retrain the best trial"
	$(MMSEARCH) retrain-best
	@echo "== 5. export the trial table"
	$(MMSEARCH) export --format md --sort best

lint: .venv/installed
	@echo "== 3. ruff and mypy --strict"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	@echo "== 4. pytest"
	$(BIN)/pytest

test-fast: .venv/installed
	$(BIN)/pytest -m 'not slow'
