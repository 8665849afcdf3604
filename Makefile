# The developer interface. Every target makes its own .venv when there is none and is quick when nothing changed.
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTHON ?= python3

.PHONY: demo test check fmt help
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	  [ -d $(VENV) ] || uv venv -q $(VENV); \
	  uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	  [ -d $(VENV) ] || $(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv, then run make again" >&2; exit 1; }; \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

demo: $(STAMP) ## the main job end to end on a throwaway MySQL and Kafka (ARGS="--rows 50000")
	$(BIN)/cdc-relay demo $(ARGS)

test: $(STAMP) ## every test, on a real MySQL and a real Kafka that the tests start themselves
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP) ## ruff, mypy --strict, import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_import_direction.py

fmt: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
