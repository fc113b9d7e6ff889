"""Memory runs out: the task runs again alone, and the rest goes on with fewer workers."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.errors import MemoryLimitExceeded
from plait.outcome import Finished
from plait.squeeze import Squeeze
from tests.conftest import Way

pytestmark = pytest.mark.timeout(60)


def test_it_halves_once_a_shortage_and_comes_back() -> None:
    squeeze = Squeeze(8)
    errors: dict[int, BaseException] = {0: MemoryLimitExceeded(), 1: MemoryLimitExceeded()}
    squeeze.take_in([Finished(4, [1, 2, 3], [None] * 3, errors, [], "process-1", 1)])
    assert (squeeze.size, squeeze.least) == (4, 4)
    assert [n for n in range(9) if squeeze.must_be_alone(n)] == [4, 5]
    for size in (5, 6, 7, 8, 8):
        squeeze.take_in([Finished(9, [0] * 40, [0] * 40, {}, [], "process-1", 1)])
        assert squeeze.size == size
    assert "2 tasks ran out of it" in squeeze.text
    assert "4 workers at the least, of 8" in squeeze.text


@pytest.mark.usefixtures("clean")
def test_over_its_limit_a_task_is_tried_again_alone(process_way: Way, tmp_path: Path) -> None:
    """While it runs again no other task of the call does."""

    def task(n: int) -> int:
        mine = tmp_path / str(os.getpid())
        mine.touch()
        try:
            if n == 7:
                if not (tmp_path / "first").exists():
                    (tmp_path / "first").touch()
                    kept = bytearray(400_000_000)
                    kept[::4096] = b"x" * len(kept[::4096])
                    while True:
                        pass
                return -sum(1 for path in tmp_path.iterdir() if path != mine)
            return n
        finally:
            mine.unlink()

    given: dict[str, Any] = {"max_workers": 4, "memory_limit": "200MB", **process_way.options}
    run = plait.run(task, range(60), retries=1, backoff=0, ordered=True, chunksize=1, **given)
    values = [outcome.value for outcome in run]
    # "first", and what the worker that was killed has left.
    assert values.pop(7) >= -2
    assert values == [n for n in range(60) if n != 7]
    assert "1 tasks ran out of it and were tried again alone" in run.report.memory
    assert "with 2 workers at the least, of 4" in str(run.report)


CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def limited() -> Any:
    """Make a cgroup with little memory, where that is allowed; return its folder."""
    v2 = not CGROUP.exists()
    folder = (CGROUP.parent if v2 else CGROUP) / f"plait-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text("400000000")
        (folder / "cgroup.procs").read_text()
    except OSError:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip("takes the right to make a cgroup with a limit of memory")
    yield folder
    folder.rmdir()


PROGRAM = """
import sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
import os, plait
def task(n):
    kept = bytearray(150_000_000)
    kept[::4096] = b"x" * len(kept[::4096])
    return n
run = plait.run(task, range(12), backend="processes", max_workers=4, retries=4, backoff=0,
                chunksize=1, ordered=True)
print([outcome.value for outcome in run] == list(range(12)))
print(run.report.memory)
"""


def test_in_a_cgroup_that_is_too_small_for_all_workers(limited: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(limited)], capture_output=True, text=True, timeout=50
    )
    ok, memory = done.stdout.splitlines()
    assert ok == "True"
    assert "ran out of it" in memory
    assert "at the least, of 4" in memory
