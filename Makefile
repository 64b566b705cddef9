# The commands of the project. Each one first installs what it needs into .venv and nowhere else.
#   make train ARGS="model=vit"   train, test with MC dropout, log        make lint        ruff and mypy
#   make test                     the fast tests                          make test-slow   the tests marked slow
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test test-slow lint format clean

train: .venv/train.ok
	$(BIN)/python scripts/train.py $(or $(ARGS),model=vit)

test: .venv/dev.ok
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-slow: .venv/dev.ok
	$(BIN)/python -m pytest -m slow --timeout 1200 $(ARGS)

lint: .venv/dev.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev.ok
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/train.ok: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

.venv/dev.ok: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev,vision,dashboard,slurm]'
	@touch $@ .venv/train.ok
