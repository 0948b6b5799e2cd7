# Python 3.11+, pip and make are needed; each target puts into .venv what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Installed without bytecode, for speed; where Python may not write it, each process would compile all libraries again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow bench miniature check clean

$(VENV)/.%: pyproject.toml constraints.txt   # an extra of pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[$*]'
	touch $@

demo: $(VENV)/.train    ## the main job on the embedded model: about a quarter of an hour on 2 cores
	$(BIN)/xft run smollm2-135m-demo --out runs/demo

check: $(VENV)/.dev     ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check             ## what CI runs; two processes, a test file in one of them
	OMP_NUM_THREADS=1 $(BIN)/pytest -rs -n 2 --dist loadfile

test-slow: $(VENV)/.slow ## the minutes-long tests
	$(BIN)/pytest -rs -m slow

bench: $(VENV)/.train   ## docs/performance.md on an idle machine, but for 1.3B, memory limits and mergekit: an hour or two
	$(BIN)/python benchmarks/moe_layer.py
	$(BIN)/python benchmarks/training_step.py --layouts copy delta adapter
	$(BIN)/python benchmarks/merge_step.py
	$(BIN)/python benchmarks/streams.py
	$(BIN)/python benchmarks/whole_job.py --layouts delta adapter

miniature: $(VENV)/.train ## the data of experiments/miniature, in runs/miniature: minutes
	$(BIN)/python -m experiments.miniature runs/miniature

clean:                  ## remove the environment and caches, keep runs
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
