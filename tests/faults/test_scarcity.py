"""The system gives little: few open files, few processes. What there is does the work.

Only where no worker can be had at all it is an error, which names what was refused; and without
a backend in the call not even then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.timeout(60)]

# Runs some calls under a limit, and prints as JSON what came of them.
START = """
import json, os, resource, sys, time
import plait

def count_files():
    return len(os.listdir("/proc/self/fd"))

def allow(files):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))

def pid_of(n):
    time.sleep(0.005)
    return os.getpid()

def square(n):
    end = time.monotonic() + 0.01
    while time.monotonic() < end:
        pass
    return n * n

given = {"backend": "processes", "max_workers": 64, "chunksize": 1}
"""

Tell = Callable[..., Any]


@pytest.fixture
def tell(run_python: Callable[..., Any], tmp_path: Path) -> Tell:
    """Run a program, and return what it tells."""

    def run(program: str, *arguments: str) -> Any:
        (tmp_path / "program.py").write_text(START + program)
        done = run_python("program.py", *arguments)
        assert done.stderr == ""
        return json.loads(done.stdout)

    return run


FEW_FILES = """
allow(int(sys.argv[1]))
given["start_method"] = sys.argv[2]
told = []
for _ in range(2):
    told.append([len(set(plait.map(pid_of, range(150), **given))), count_files()])
run = plait.run(pid_of, range(100), **given)
list(run)
shortage = str(run.report)
allow(200)
while len(set(plait.map(pid_of, range(100), **given))) <= told[0][0]:
    pass  # every second it is tried to have more
print(json.dumps([told, shortage]))
"""


@pytest.mark.parametrize(("files", "method"), [(40, "server"), (64, "server"), (64, "spawn")])
def test_with_few_open_files_fewer_workers_do_it(tell: Tell, files: int, method: str) -> None:
    told, shortage = tell(FEW_FILES, str(files), method)
    for workers, count in told:
        assert 1 < workers < files / 4
        assert count < files - 8  # the program can go on to open some
    assert told[0][1] == told[1][1]
    assert "of 64: EMFILE: this process may not open more files" in shortage


NO_FILES = """
before = count_files()
allow(before + int(sys.argv[1]))
texts = set()
for _ in range(20):
    try:
        plait.map(abs, range(10), **given)
    except plait.WorkerStartError as error:
        texts.add(str(error))
after = count_files()
allow(200)
print(json.dumps([before, after, sorted(texts), plait.map(abs, [-1, -2], **given)]))
"""


@pytest.mark.parametrize("room", [0, 2, 4, 6, 9, 12])
def test_no_files_for_a_worker_are_a_clear_error_and_nothing_leaks(tell: Tell, room: int) -> None:
    before, after, texts, values = tell(NO_FILES, str(room))
    (text,) = texts
    assert text.startswith("No worker process can be started. EMFILE: ")
    assert after <= before + 2  # the server, which stays
    assert values == [1, 2]


FALL_BACK = """
allow(count_files() + 5)
run = plait.run(square, range(100), max_workers=8)
values = sorted(outcome.value for outcome in run)
print(json.dumps([values, str(run.report)]))
"""


def test_auto_goes_on_without_processes(tell: Tell) -> None:
    values, report = tell(FALL_BACK)
    assert values == [n * n for n in range(100)]
    assert "EMFILE" in report
    assert "changed on the way" in report


# A module for the server: after some forks the system refuses. (A real limit of processes binds
# no superuser, as whom tests may run.)
NO_FORK = """
import errno, os

fork, left = os.fork, [{left}]

def fork_or_fail():
    if not left[0]:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    left[0] -= 1
    return fork()

os.fork = fork_or_fail
"""
FEW_PROCESSES = """
given |= {"preload": ("no_fork",), "max_workers": 8}
try:
    run = plait.run(pid_of, range(100), **given)
    told = [len({outcome.value for outcome in run}), run.report.shortage]
except plait.WorkerStartError as error:
    told = [0, str(error)]
run = plait.run(square, range(100), max_workers=8, preload=("no_fork",))
values = sorted(outcome.value for outcome in run)
print(json.dumps([told, values, str(run.report)]))
"""


@pytest.mark.parametrize("left", [0, 1, 3])
def test_few_processes(tell: Tell, tmp_path: Path, left: int) -> None:
    (tmp_path / "no_fork.py").write_text(NO_FORK.format(left=left))
    (workers, text), values, report = tell(FEW_PROCESSES)
    assert workers == left
    assert "EAGAIN: too many processes" in text
    assert values == [n * n for n in range(100)]
    if not left:
        assert text.startswith("No worker process can be started.")
        assert "EAGAIN: too many processes" in report
