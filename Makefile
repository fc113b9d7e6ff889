# make demo   run the main job on real input
# make test   run the tests
# Both create what they need: a virtual environment in .venv, and plait in it.

PYTHON ?= python3
VENV ?= .venv
PYFLAGS ?=
SECONDS ?= 300
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types bench soak clean

demo: $(READY)
	$(BIN)/python examples/standard_library.py

test: $(READY)
	$(BIN)/python $(PYFLAGS) -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/dispatch.py
	$(BIN)/python benchmarks/faults.py

soak: $(READY)
	$(BIN)/python -m tests.soak --seconds $(SECONDS)

clean:
	rm -rf $(VENV) build dist

$(READY): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'plait needs Python 3.11 or newer')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
