PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

# Processes share the cores better when idle threads sleep.
export OMP_WAIT_POLICY ?= passive

.PHONY: quickstart smollm2 test test-lowest fuzz audit lint install install-test pretrain clean

quickstart: install  ## train and test on this machine, with what comes in the package
	$(BIN)/adapters-pl fit --config quickstart.yaml
	$(BIN)/adapters-pl test

DATA ?=
smollm2: $(VENV)/.installed-gguf  ## a real model of 135 M parameters; DATA=FOLDER in the published layout, else it is fetched
	$(BIN)/adapters-pl base fetch smollm2
	$(BIN)/adapters-pl fit --config lora_smollm2.yaml --config data/commonsense_small.yaml \
		$(if $(DATA),--data.root $(DATA))
	$(BIN)/adapters-pl test

test: install-test lint  ## everything that CI runs
	$(BIN)/python -m pytest -n 2 --durations=25

test-lowest:  ## the tests with the lowest versions that pyproject.toml allows; the oldest torch brings CUDA along
	$(PYTHON) -m venv $(VENV)-lowest
	$(PYTHON) tests/helpers/lowest_versions.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip --disable-pip-version-check -q install -c $(VENV)-lowest/constraints.txt -e ".[test]"
	$(VENV)-lowest/bin/python -m pytest -n 2

EXAMPLES ?= 10000
SEED ?= $(shell date +%s)
fuzz: install-test  ## ten thousand changed inputs; SEED=... draws the same ones again
	@echo "SEED=$(SEED)"
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/cli/test_fuzz.py --hypothesis-seed=$(SEED) \
		--hypothesis-show-statistics --show-capture=no

audit:  ## the pins: within the ranges, not withdrawn, without known weaknesses; as far as the network allows
	$(PYTHON) -m venv $(VENV)-audit
	-$(VENV)-audit/bin/python -m pip --disable-pip-version-check -q --retries 1 install pip-audit
	$(VENV)-audit/bin/python tests/helpers/audit.py

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The pinned torch comes first: other packages then find it there and fetch no other build.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-gguf: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e ".[gguf]"
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e ".[test]"
	@touch $@

pretrain: install  ## make the embedded base again (about a quarter of an hour on two cores)
	$(BIN)/python -m adapters_pl.quickstart.pretrain

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-audit build dist .mypy_cache .pytest_cache .ruff_cache
