# The same targets for people and for CI. A machine needs make and Python 3.11 or later:
# make PYTHON=python3.12 takes another one, make VENV=/somewhere puts the installation elsewhere.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PINNED := deploy/requirements-dev.txt
INSTALLED := $(VENV)/installed

.PHONY: run install test test-all lint bench

run: install
	$(BIN)/python run.py serve

install: $(INSTALLED)

$(INSTALLED): $(PINNED)
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"Python 3.11 or later is needed: name one as in make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(PINNED)
	@touch $@

# make test TESTS="tests/test_store.py -k page" runs some of them. Each of the processes has servers of its own.
test: install
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile $(TESTS)

# With those marked slow.
test-all: install
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile -m "slow or not slow" $(TESTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python run.py bench --scenario all
