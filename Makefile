.PHONY: demo test test-all lint docs bench bench-regression bench-density bench-sampling bench-boltzmann bench-tables bench-speed clean
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

bench: bench-regression bench-density bench-tables bench-sampling bench-boltzmann bench-speed

DATA ?=
bench-regression: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/regression.py $(if $(DATA),--data $(DATA))

bench-density: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/density.py

bench-tables: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/tables.py $(if $(DATA),--data $(DATA))

bench-sampling: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/sampling.py

bench-boltzmann: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/boltzmann.py $(if $(DATA),--data $(DATA))

bench-speed: $(INSTALLED)
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) demo runs dist .pytest_cache .mypy_cache .ruff_cache
