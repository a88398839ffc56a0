.PHONY: demo test test-all docs lint bench clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The first two targets are all the set-up that a fresh machine with Python and make needs.
demo: $(INSTALLED)
	$(BIN)/thalweg demo --out demo

# The gate: all tests but the slow ones, on two cores, one thread each.
test: $(INSTALLED) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(INSTALLED) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

bench: bench-classification bench-sequences bench-ranking bench-regression bench-density bench-tables bench-anomaly bench-sampling bench-boltzmann bench-forecasting bench-speed

# A benchmark that can use real data takes DATA=FOLDER.
DATA ?=
bench-%: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/$*.py $(if $(DATA),--data $(DATA))

clean:
	rm -rf $(VENV) demo runs site dist .pytest_cache .mypy_cache .ruff_cache
