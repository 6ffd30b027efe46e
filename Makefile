# The two commands of the README, and the checks that CI runs. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The demos are files named after their backbones; that of tiny-colar is what evaluate.py runs by itself.
BACKBONE ?= tiny-colar
STUDY ?= $(patsubst configs/study/%.yaml,%,$(wildcard configs/study/*.yaml))
DEMOS := $(patsubst configs/evaluate/demo/%.yaml,%,$(wildcard configs/evaluate/demo/*.yaml))
# Two processes that take over from each other what is left, so that what tests of a file share is made once.
TWO := -n 2 --dist worksteal

# Two workers fill two cores: more threads of torch's would wait for one another.
test quick: export OMP_NUM_THREADS := 1

.PHONY: demo known-backbone study test quick lint install clean

demo: known-backbone install ## Parallel test-time scaling on a shipped model, with no arguments to think of.
	$(BIN)/python evaluate.py $(if $(filter-out tiny-colar,$(BACKBONE)),--config configs/evaluate/demo/$(BACKBONE).yaml)

known-backbone:
	@$(if $(filter $(DEMOS),$(BACKBONE)),:,$(error there is no demo of BACKBONE=$(BACKBONE); choose one of: $(strip $(DEMOS))))

study: install ## The study, hours on two cores; a part of it by STUDY=controls-tiny-codi. Killed, it goes on by the same command.
	$(foreach part,$(STUDY),$(BIN)/python -m commands.study --study configs/study/$(part).yaml &&) true

test: install ## The test suite. Its quick part alone runs 95 % of the core's lines at least; measuring that slows tests by a half.
	$(BIN)/python -m pytest $(TWO) -m "not slow" --cov=latent_tts --cov-report=term:skip-covered --cov-fail-under=95
	$(BIN)/python -m pytest $(TWO) -m slow

quick: install ## The part of it that takes less than a minute.
	$(BIN)/python -m pytest $(TWO) -m "not slow and not gpu"

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
