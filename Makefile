# The two commands are `make demo` and `make test`; each makes .venv and installs what it needs when that is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
# One thread for what is small: more are hardly faster there, and on a busy machine their kernels wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test lint fuzz bench study study-check wheel clean help

help:
	@echo 'make demo   set up, train HDGE on handwritten digits, evaluate it, write a report (minutes on a CPU)'
	@echo 'make test   set up, run the tests with coverage'
	@echo 'make lint   ruff and mypy'
	@echo 'make fuzz   thousands of random inputs, fifty kills, four processes (some half an hour)'
	@echo 'make bench  time loss, kernels, training, sampling, evaluation and start-up against rivals, two processes against one (some twenty minutes)'
	@echo 'make study  the runs behind docs/study.md that have no row yet, in the background (hours; make study STUDY="--npz DIR" ...)'
	@echo 'make study-check  one random run of each of its tables again'
	@echo 'make wheel  build the wheel into dist/'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "ebmhybrid needs Python 3.10 or newer; name one with make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: setup.cfg pyproject.toml | $(VENV)/bin/python
	@echo 'installing (PyTorch is several GB; this happens once)'
	$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.base
	$(PIP) --editable '.[lint]'
	@touch $@

demo: $(VENV)/.base
	$(ONE_THREAD) $(BIN)/ebmhybrid train --recipe digits_hdge
	$(ONE_THREAD) $(BIN)/ebmhybrid eval --attack fgsm --attack pgd

test: $(VENV)/.test
	$(ONE_THREAD) $(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What is marked fuzz is left out of `make test`.
fuzz: $(VENV)/.test
	EBMHYBRID_FUZZ=nightly $(ONE_THREAD) $(BIN)/python -m pytest -m fuzz tests
	EBMHYBRID_FUZZ=nightly $(ONE_THREAD) $(BIN)/python -m pytest tests/fuzz

bench: $(VENV)/.base
	$(BIN)/python -m benchmarks

# Stops with `kill $$(cat runs/study.pid)` and goes on where it was; then `python -m benchmarks.study write`.
study: $(VENV)/.base
	mkdir -p runs
	$(ONE_THREAD) nohup $(BIN)/python -m benchmarks.study run $(STUDY) > runs/study.log 2>&1 & echo $$! > runs/study.pid
	@echo 'log: runs/study.log'

study-check: $(VENV)/.base
	$(ONE_THREAD) $(BIN)/python -m benchmarks.study check $(STUDY)

wheel: $(VENV)/bin/python
	rm -rf build dist
	$(BIN)/python -m pip --disable-pip-version-check --quiet wheel --no-deps --wheel-dir dist .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
