# Everything a contributor or CI runs. Each target makes what it needs in $(VENV) first; stamps there keep the
# second call quick, and a changed pyproject.toml or pin installs again.

PYTHON ?= python3
VENV   ?= .venv

# Containers often forbid Python to write bytecode. The suite starts a gateway some hundred times, so it is compiled once.
export PYTHONDONTWRITEBYTECODE :=

BIN     := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-installed
SUITE   := $(VENV)/.suite-installed
UV      := $(shell command -v uv 2>/dev/null)

ifneq ($(UV),)
MAKE_VENV = $(UV) venv --quiet --allow-existing --python "$(PYTHON)" $(VENV)
INSTALL   = $(UV) pip install --quiet --python $(BIN)/python
else
MAKE_VENV = "$(PYTHON)" -m venv $(VENV)
INSTALL   = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
endif

# The package itself comes last, from the checkout: its build backend is pinned with the rest, so nothing is fetched.
INSTALL_SELF = $(INSTALL) --no-build-isolation --no-deps --editable .

# The oldest Python that is supported, asked of an interpreter that may be too old to read anything else.
IS_RECENT = -c 'import sys; sys.exit(sys.version_info < (3, 11))'

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast coverage audit lint format lock screenshots clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUNTIME) ## hold a conversation through the gateway, offline, and keep serving
	$(BIN)/gateway demo

# Tests mostly wait, so each core takes two workers. Files come in the order of tests/conftest.py, not
# by their number of tests: the long ones have few, and would come last, one beside idle cores.
WORKERS = $(shell expr 2 \* "$$(getconf _NPROCESSORS_ONLN)")

test: $(SUITE) ## run every test
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-fast: $(SUITE) ## run the tests that take seconds, on all cores
	$(BIN)/pytest -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# A promise made in a module's docstring, and the tests that mirror those modules.
PURE       = $(shell grep -rl --include='*.py' 'No I/O' gateway | sort | paste -sd,)
PURE_TESTS = \
	tests/client/test_answer.py tests/client/test_blocks.py tests/client/test_pieces.py \
	tests/cluster/test_appends.py tests/cluster/test_keys.py tests/cluster/test_liveness.py \
	tests/cluster/test_marks.py tests/cluster/test_settings.py tests/cluster/test_versions.py \
	tests/cli/test_chart.py tests/emulator tests/relay tests/telemetry tests/downstream/reading \
	tests/downstream/turns tests/upstream/test_descriptors.py tests/upstream/test_reassembly.py \
	tests/upstream/test_sdp.py tests/upstream/test_stun.py

coverage: $(SUITE) ## fail unless every branch of the files marked "No I/O" is tested
	$(BIN)/coverage run -m pytest -q -m "not slow" $(PURE_TESTS)
	$(BIN)/coverage report --include=$(PURE)

# In a separate environment: the auditor must not be among the pins that it audits. The suite's pins include the runtime's.
audit: | $(BIN)/python ## ask the package index for advisories about the pinned packages
	@test -x $(VENV)-audit/bin/python || "$(PYTHON)" -m venv $(VENV)-audit
	@$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes --requirement .ci/requirements-audit.txt
	$(BIN)/python .ci/audit.py $(VENV)-audit/bin/pip-audit .ci/requirements-test.txt

lint: $(SUITE) ## check format, rules, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(SUITE) ## put the sources into their format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

screenshots: $(SUITE) ## make the pictures in docs/images again
	SCREENSHOTS=write $(BIN)/pytest -q tests/e2e/test_screenshots.py

clean: ## remove everything that was made here, the virtual environment included
	rm -rf $(VENV) $(VENV)-audit build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find gateway tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { echo "make: no $(PYTHON) found; name a Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" $(IS_RECENT) || { echo "make: Python 3.11 or newer is needed, and $(PYTHON) is $$("$(PYTHON)" -V 2>&1); name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(MAKE_VENV) || { echo "make: $(PYTHON) could not make $(VENV); on Debian: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }

# An environment made by uv has no pip; one that was made before the floor rose is too old.
.PHONY: installer
installer: | $(BIN)/python
	@$(BIN)/python $(IS_RECENT) || { echo "make: $(VENV) holds a Python older than 3.11; run make clean first" >&2; exit 1; }
ifeq ($(UV),)
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(BIN)/python -m ensurepip >/dev/null
endif

$(RUNTIME): pyproject.toml .ci/requirements.txt | installer
	$(INSTALL) --require-hashes --requirement .ci/requirements.txt
	$(INSTALL_SELF)
	@touch $@

$(SUITE): pyproject.toml .ci/requirements-test.txt | installer
	$(INSTALL) --require-hashes --requirement .ci/requirements-test.txt
	$(INSTALL_SELF)
	@touch $@

# Pins are universal: one file for every platform and every Python from the floor up.
COMPILE = "$(or $(UV),$(wildcard $(BIN)/uv))" pip compile --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet $(LOCK_FLAGS)

lock: ## resolve the pins again (LOCK_FLAGS=--upgrade takes newer ones); needs uv
	@test -n "$(or $(UV),$(wildcard $(BIN)/uv))" || { echo "make: lock needs uv (python3 -m pip install uv)" >&2; exit 1; }
	$(COMPILE) pyproject.toml --group build --extra server --extra redis --extra test --output-file .ci/requirements-test.txt
	$(COMPILE) pyproject.toml --group build --extra server --extra redis --constraint .ci/requirements-test.txt --output-file .ci/requirements.txt
	$(COMPILE) --group audit --output-file .ci/requirements-audit.txt
	@! grep -n '://' .ci/requirements*.txt || { echo "make: a pin names a host" >&2; exit 1; }
