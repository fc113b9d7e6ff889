# make demo   run the main job on real input
# make test   run the tests
# make proof  hold the README to its word
# Both create what they need: a virtual environment in .venv, and plait in it.

PYTHON ?= python3
VENV ?= .venv
PYFLAGS ?=
SECONDS ?= 300
CALLS ?= 20000
BENCH ?=
PLACES ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready

.PHONY: demo proof test test-places test-without-c places lint types bench bench-quick soak clean

demo: $(READY)
	$(BIN)/python examples/standard_library.py

proof: $(READY)
	$(BIN)/python examples/proof.py

test: $(READY)
	$(BIN)/python $(PYFLAGS) -m pytest

# The fast part of the tests, in surroundings that differ from yours.
test-places: $(READY)
	bash tests/environments $(BIN)/python

# What there is in C and in Python, in Python.
test-without-c: $(READY)
	PLAIT_WITHOUT_C=1 $(BIN)/python $(PYFLAGS) -m pytest tests/shared

# Where other people's packages are needed: each is installed in an environment of its own.
places: $(READY)
	$(BIN)/python -m tests.places $(PLACES)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# Beside the peers of the extra "bench". Ray and Dask take part where they are installed:
# $(BIN)/python -m pip install ray distributed
bench: $(BENCH_READY)
	$(BIN)/python -m benchmarks $(BENCH)

bench-quick: $(BENCH_READY)
	$(BIN)/python -m benchmarks --quick $(BENCH)

soak: $(READY)
	$(BIN)/python $(PYFLAGS) -m pytest -m soak
	$(BIN)/python -m tests.shared.kill_matrix --kills 1000
	$(BIN)/python -m tests.soak --seconds $(SECONDS)
	$(BIN)/python -m tests.properties.uneven 0 --count $(CALLS) --here --busy 4
	$(BIN)/python -m tests.properties.nested --count $(CALLS)

clean:
	rm -rf $(VENV) build dist src/plait/*.so

$(READY): pyproject.toml setup.py src/plait/_fast.c
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'plait needs Python 3.11 or newer')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	touch $@
