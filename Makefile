# `make quickstart` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
DALI ?= cuda130
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-$(DALI)

.PHONY: help setup quickstart test test-slow lint typecheck bench clean

help:
	@echo "setup       lay .venv with the package, the dev tools, OpenCV and one DALI build (DALI=cuda110|cuda120|cuda130)"
	@echo "quickstart  the main job on drawn images, from a raw archive to a prediction"
	@echo "test        the test suite;   test-slow  what takes minutes by nature"
	@echo "lint        ruff;             typecheck  pyright;             bench  the benchmarks"

setup: $(SETUP)

# Only one DALI build fits at a time, so the others leave first.
$(SETUP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.setup-*
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip uninstall --quiet --yes $(filter-out nvidia-dali-$(DALI),nvidia-dali-cuda110 nvidia-dali-cuda120 nvidia-dali-cuda130) 2>/dev/null
	$(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt --editable '.[dev,opencv,dali-$(DALI)]'
	touch $@

quickstart: setup
	$(BIN)/python -m in21k.cli.quickstart

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: setup
	mkdir -p .typecheck/in21k
	for folder in cli datapipe models preprocess shards training; do ln -sfn ../../$$folder .typecheck/in21k/$$folder; done
	$(BIN)/pyright

bench: setup
	$(BIN)/python -m benchmarks.tiny_hierarchy

clean:
	rm -rf $(VENV) .typecheck quickstart *.egg-info build dist
