PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

# Processes share the cores better when idle threads sleep.
export OMP_WAIT_POLICY ?= passive
# What one process has compiled, the next ones read.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart smollm2 test test-lowest fuzz audit lint style types pytest install install-test pretrain clean

quickstart: install  ## train and test on this machine, with what comes in the package
	$(BIN)/adapters-pl fit --config quickstart.yaml
	$(BIN)/adapters-pl test

DATA ?=
smollm2: $(VENV)/.installed-gguf  ## a real model of 135 M parameters; DATA=FOLDER in the published layout, else it is fetched
	$(BIN)/adapters-pl base fetch smollm2
	$(BIN)/adapters-pl fit --config lora_smollm2.yaml --config data/commonsense_small.yaml \
		$(if $(DATA),--data.root $(DATA))
	$(BIN)/adapters-pl test

test: style  ## everything that CI runs; types are checked beside the tests
	$(MAKE) -j 2 types pytest

pytest: install-test
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

lint: style types

style: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-test
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

# The pip that comes with Python may be years old, and resolves at a third of the speed.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	-$(PIP) install -c constraints.txt pip

# The pinned torch comes first: other packages then find it there and fetch no other build.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-gguf: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e ".[gguf]"
	@touch $@

# Of what is installed, the tests import a fourth, which is compiled then.
$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --no-compile -c constraints.txt torch
	$(PIP) install --no-compile -c constraints.txt -e ".[test]"
	@touch $(VENV)/.installed $@

pretrain: install  ## make the embedded base again (about a quarter of an hour on two cores)
	$(BIN)/python -m adapters_pl.quickstart.pretrain

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-audit build dist .mypy_cache .pytest_cache .ruff_cache
