# `make demo` and `make test` need Python 3.11 or newer with pip and venv, and nothing else.

PYTHON ?= python3
BIN := .venv/bin
MMSEARCH := $(BIN)/mmsearch

.PHONY: demo test test-fast lint bench bench-quick bench-ray

INSTALL := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt

.venv/bin/python:
	@echo "== 1. a virtual environment in .venv"
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "== 2. install mmsearch with the versions of constraints.txt"
	$(INSTALL) -e .
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "== 2. install mmsearch and what its tests need, with the versions of constraints.txt"
	$(INSTALL) -e '.[dev]'
	@touch $@ .venv/installed

demo: .venv/installed
	@echo "== 3. search: 20 trials, 2 workers"
	$(MMSEARCH) launch --trials 20 --workers 2
	@echo "== 4. retrain the best trial"
	$(MMSEARCH) retrain-best
	@echo "== 5. write the report"
	$(MMSEARCH) report
	@echo "== 6. export the trial table"
	$(MMSEARCH) export --format md --sort best

lint: .venv/installed-dev
	@echo "== 3. ruff and mypy --strict"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	@echo "== 4. pytest"
	$(BIN)/pytest -n auto --maxprocesses 4

test-fast: .venv/installed-dev
	$(BIN)/pytest -n auto --maxprocesses 4 -m 'not slow'

# Ray has an environment of its own, which finds torch and Optuna in .venv; without it Ray Tune is left out.
.venv/ray/installed: benchmarks/requirements-ray.txt constraints.txt .venv/installed
	@echo "== 3. install Ray Tune in .venv/ray"
	$(BIN)/python -m venv .venv/ray
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		"$$(.venv/ray/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth"
	.venv/ray/bin/pip install -qq --disable-pip-version-check -c constraints.txt -r $<
	@touch $@

bench-ray: .venv/ray/installed

bench: .venv/installed bench-ray
	@echo "== 4. mmsearch, a plain Optuna script and Ray Tune, side by side: about 2.5 hours"
	$(BIN)/python benchmarks/bench.py

bench-quick: .venv/installed
	@echo "== 3. a little of each comparison, to see that it runs"
	$(BIN)/python benchmarks/bench.py --quick
