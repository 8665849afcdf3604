# The developer interface. Every target makes its own .venv when there is none and is quick when nothing changed.
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTHON ?= python3

.PHONY: bench bench-profile demo test test-unit test-servers test-e2e check fmt docs help faults
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV) what pyproject.toml names, once" >&2
	@if command -v uv >/dev/null 2>&1; then \
	  [ -x $(BIN)/python ] || uv venv -q --python '>=3.11' $(VENV) && \
	  uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or later is needed; name one: make PYTHON=python3.12 …" >&2; exit 1; }; \
	  [ -x $(BIN)/pip ] || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || \
	    { rm -rf $(VENV); echo "Python cannot make a venv: apt-get install python3-venv, then make again" >&2; exit 1; }; \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

demo: $(STAMP) ## the main job end to end on a throwaway MySQL and Kafka (ARGS="--rows 50000 --kafka real")
	@$(BIN)/cdc-relay demo $(ARGS)

test: $(STAMP) ## every test, on a real MySQL, MariaDB and Kafka that the tests start themselves (ARGS: only these)
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	@$(MAKE) --no-print-directory -j3 test-unit test-servers test-e2e
endif

# Side by side, since those with servers mostly wait; each starts servers of its own.
test-unit: $(STAMP)
	$(BIN)/python -m pytest -q tests/unit
test-servers: $(STAMP)
	$(BIN)/python -m pytest -q tests --ignore=tests/unit --ignore=tests/e2e
test-e2e: $(STAMP)
	$(BIN)/python -m pytest -q tests/e2e

bench: $(STAMP) ## figures on a real MySQL and a real Kafka, some minutes (ARGS="--full --out FILE.json", ARGS=--help)
	$(BIN)/python -m tests.benchmarks $(ARGS)

bench-profile: $(STAMP) ## where the processor time of a row goes, step by step
	$(BIN)/python -m tests.benchmarks profile $(ARGS)

faults: $(STAMP) ## a random mix of all faults while writers write (FAULTS_SEED, FAULTS_MINUTES=10), then the verdict
	$(BIN)/python -m tests.e2e.faults

check: $(STAMP) ## ruff, mypy --strict, import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_import_direction.py

fmt: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## write the generated parts of the documentation
	$(BIN)/python docs/generate.py
