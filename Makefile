# `make quickstart` and `make test` each take a fresh clone to a finished result, with an environment of its own in .venv.
# PIP_ARGS goes to every pip install: another build of torch, for example.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: quickstart test ci slow lint types site bench reliability clean

quickstart: $(VENV)/.installed
	$(BIN)/unified run recipes/quickstart.yaml

# two at a time: each test computes on one thread
test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n 2

ci: test lint types site slow

# a file's tests stay together: they share what was run for all of them
slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# the built-in plugins are imported as unified_plugins; the type checker finds them by that name through a link
types: $(VENV)/.dev
	mkdir -p $(VENV)/typing
	ln -sfn ../../plugins $(VENV)/typing/unified_plugins
	MYPYPATH=$(VENV)/typing $(BIN)/mypy -p unified -p unified_plugins

# the documentation, into build/site; a warning is an error, and nothing is fetched but the packages of the extra `docs`
site: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict --quiet

# kills, faults, hostile inputs, the sandbox: an hour; writes the counts into docs/reliability.md (--short: minutes, does not)
reliability: $(VENV)/.dev
	$(BIN)/python -m tests.reliability $(RELIABILITY_ARGS)

# speed against TRL (in an environment of its own, .bench/venv) and a hand-written loop; BENCH_ARGS="--only sft --pairs 3"
bench: $(VENV)/.installed
	PIP_ARGS="$(PIP_ARGS)" $(BIN)/python -m benchmarks $(BENCH_ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e ".[dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
