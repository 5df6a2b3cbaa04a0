# The road for people who have just cloned the repository: `make demo`, then `make test`.
# Everything happens in .venv; an installation is repeated only when pyproject.toml has changed.

VENV   := .venv
BIN    := $(VENV)/bin
CONFIG ?= configs/demo.yaml
TESTS  ?= tests
# Test processes that run side by side; one file stays in one process, so its compiled functions are shared.
JOBS   ?= 2

# The first interpreter that is new enough; the names are tried in this order.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	if command -v $$python >/dev/null 2>&1 && $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$python; break; fi; done)

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help: ## print this list
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12
	@echo "Variables: CONFIG=$(CONFIG) (demo), TESTS=$(TESTS) JOBS=$(JOBS) (test), PYTHON=$(PYTHON)"

demo: $(VENV)/.installed ## take a tiny model down the whole road on this computer and write a report
	$(BIN)/rlhf pipeline --config $(CONFIG)

test: $(VENV)/.installed-dev ## run the tests (TESTS=tests/losses for some of them)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(TESTS)

lint: $(VENV)/.installed-dev ## check the style of the code
	$(BIN)/ruff check rlhf tests

clean: ## remove the environment and what tools left behind (runs/ is kept)
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find rlhf tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer was found (python3 is: $$(python3 --version 2>&1))." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; fi
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV): a minute or two, once"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV), with what the tests need: a few minutes, once"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed
