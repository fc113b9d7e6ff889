"""What the tests of shared data have in common."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from plait.shared import Lock, arena
from tests.conftest import close_all
from tests.shared.puppet import Puppet, puppets


def open_files() -> int:
    close_all()
    Lock()  # the arena that gives it out stays, this one or another
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def no_files_left() -> Iterator[None]:
    """Assert that as many files are open after a test as before."""
    arena._made.clear()  # a fresh one will not be full amid the test
    arena._roomy.clear()
    before = open_files()
    yield
    assert open_files() <= before


@pytest.fixture
def puppet() -> Iterator[Puppet]:
    with puppets(1) as (one,):
        yield one


@pytest.fixture
def pair() -> Iterator[list[Puppet]]:
    with puppets(2) as two:
        yield two
