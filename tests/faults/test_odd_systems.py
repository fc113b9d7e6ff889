"""Systems that lack something: no /proc, and a Python that warns of files without an encoding."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(60)

WITHOUT_PROC = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]


def can_hide_proc() -> bool:
    """Whether a program can be run here without /proc; that takes privileges."""
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run([*WITHOUT_PROC, "test", "!", "-e", "/proc/self"], capture_output=True)
    return done.returncode == 0


PROGRAM = """
import plait

def make(n):
    return len(bytearray(200_000_000)) + n

given = {"backend": "processes", "max_workers": 2}
print(plait.map(abs, [-1, -2], **given), plait.map(abs, [-1, -2]))
try:
    plait.map(make, range(2), memory_limit="100MB", **given)
except plait.OptionError as error:
    print(error)
try:
    plait.shared.Lock()
except plait.PlaitError as error:
    print(error)
with plait.Executor(backend="processes", max_workers=1) as executor:
    print(executor.submit(abs, -3).result())
"""


@pytest.mark.skipif(not can_hide_proc(), reason="takes the right to unmount /proc")
def test_without_proc_what_needs_it_is_refused() -> None:
    done = subprocess.run(
        [*WITHOUT_PROC, sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=50
    )
    assert done.stderr == ""
    values, limit, shared, future = done.stdout.splitlines()
    assert (values, future) == ("[1, 2] [1, 2]", "3")
    assert limit.startswith("memory_limit=100000000 is not allowed: memory_limit must be left out")
    assert "/proc" in limit
    assert "plait.shared finds its data through /proc" in shared


WARNED = """
import time
import plait
from plait.shared import Lock, Queue

def spin(n):
    end = time.monotonic() + 0.005
    while time.monotonic() < end:
        pass
    return n

lock, queue = Lock(), Queue()
def with_lock(n):
    with lock:
        queue.put(n)
    return n

print(plait.map(spin, range(50)) == list(range(50)))
for method in ("server", "spawn"):
    given = {"backend": "processes", "max_workers": 2, "start_method": method}
    print(plait.map(with_lock, range(5), memory_limit="1GB", task_timeout=10, **given))
print(plait.plan(spin, range(10000)).backend != "")
"""


def test_each_file_is_opened_with_an_encoding(
    run_python: Callable[..., Any], tmp_path: Any
) -> None:
    flags = ("-X", "warn_default_encoding", "-W", "error")
    done = run_python(*flags, "-c", WARNED, PLAIT_CACHE_DIR=str(tmp_path / "cache"))
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["True", *["[0, 1, 2, 3, 4]"] * 2, "True"]
