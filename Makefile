# The commands of the project. Each one first installs what it needs into .venv and nowhere else.
#   make train ARGS="model=vit"   train, test with MC dropout, log        make lint        ruff and mypy
#   make test                     the fast tests                          make test-slow   the tests marked slow, and:
#   make test-releases            the callbacks under older releases of Lightning
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CONSTRAINED := --constraint constraints.txt
# The oldest release that we support and the last of the minor release after it; constraints.txt has the newest.
OLD_LIGHTNING := 2.4.0 2.5.6
OLD_RUNS := $(OLD_LIGHTNING:%=test-lightning-%)

.PHONY: train test test-slow test-releases $(OLD_RUNS) lint format clean

train: .venv/train.ok
	$(BIN)/python scripts/train.py $(or $(ARGS),model=vit)

test: .venv/dev.ok
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-slow: .venv/dev.ok .venv/torch-uncertainty.ok test-releases
	$(BIN)/python -m pytest -n 2 -m "slow or fault" --timeout 1200 $(ARGS)

test-releases: $(OLD_RUNS)

# Everything but Lightning comes from the main environment; tests/conftest.py checks that Lightning does not.
$(OLD_RUNS): test-lightning-%: .venv/lightning-%.ok
	LIGHTNING_RELEASE=$* PYTHONPATH=$(CURDIR)/.venv/lightning-$* \
		$(BIN)/python -m pytest -n 2 -m "not slow" tests/callbacks tests/checkpoints tests/test_clock.py

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
	$(PIP) $(CONSTRAINED) --editable .
	@touch $@

.venv/dev.ok: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) $(CONSTRAINED) --editable '.[dev,vision,dashboard,slurm]'
	@touch $@ .venv/train.ok

# Without what it depends on, which is in the main environment; --target does not replace what is there.
.venv/lightning-%.ok: | .venv/dev.ok
	rm -rf .venv/lightning-$*
	$(PIP) --no-deps --target .venv/lightning-$* lightning==$* pytorch-lightning==$*
	@touch $@

# For one test: the metrics alone, which need no more than this.
.venv/torch-uncertainty.ok: constraints.txt | .venv/dev.ok
	rm -rf .venv/torch-uncertainty
	$(PIP) --no-deps $(CONSTRAINED) --target .venv/torch-uncertainty torch-uncertainty seaborn einops
	@touch $@
