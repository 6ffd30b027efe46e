# The two commands of the README, and the checks that CI runs. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BACKBONE ?= tiny-coconut

.PHONY: demo test lint install clean

demo: install ## Parallel test-time scaling on the shipped model, with no arguments to think of.
	$(BIN)/python evaluate.py

test: install ## The test suite.
	$(BIN)/python -m pytest -n 2

lint: install ## Lint and type check.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed

# A half-finished install leaves no stamp, so the next call starts over.
$(VENV)/.installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV)
