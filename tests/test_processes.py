"""What only processes have to promise: code that travels, warm pools, the parent's world."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plait
from plait import pools
from tests.conftest import Way
from tests.start import Program

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

SCRIPT = """
import sys, plait
print(sum(plait.map(lambda x: x * x, range(1000), backend="processes", start_method=sys.argv[1])))
"""


def test_a_script_needs_no_guard(process_way: Way, tmp_path: Path, run_python: RunPython) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_python("-W", "error", "script.py", process_way.name)
    assert (done.stdout, done.stderr) == ("332833500\n", "")


def test_a_script_on_stdin(process_way: Way, run_python: RunPython) -> None:
    done = run_python("-W", "error", "-", process_way.name, stdin=SCRIPT)
    assert (done.stdout, done.stderr) == ("332833500\n", "")


def test_a_script_on_the_command_line(process_way: Way, run_python: RunPython) -> None:
    done = run_python("-W", "error", "-c", SCRIPT, process_way.name)
    assert (done.stdout, done.stderr) == ("332833500\n", "")


def test_a_module_run_with_m(process_way: Way, tmp_path: Path, run_python: RunPython) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_python("-W", "error", "-m", "script", process_way.name)
    assert (done.stdout, done.stderr) == ("332833500\n", "")


MAIN = """
import functools, sys, plait
from dataclasses import dataclass

print("main runs", flush=True)
options = dict(backend="processes", start_method=sys.argv[1], max_workers=2)
OFFSET = 100

@dataclass(frozen=True)
class Point:
    x: int
    def mirrored(self):
        return Point(-self.x)
    def plus(self, n):
        return self.x + n

class Adder:
    def __init__(self, n): self.n = n
    def __call__(self, x): return x + self.n

class Odd(Exception):
    def __init__(self, number, text):
        super().__init__(text)
        self.number = number

def shifted(x): return x + OFFSET
def nested(n):
    def inner(x): return shifted(x) + n
    return inner
def fail(x): raise Odd(x, "odd")

print(plait.map(shifted, [1, 2], **options))
print(plait.map(nested(1000), [1, 2], **options))
print(plait.map(Adder(5), [1, 2], **options))
print(plait.map(functools.partial(shifted, ), [1, 2], **options))
print(plait.map(Point(3).plus, [1, 2], **options))
print(plait.map(Point.mirrored, [Point(1), Point(2)], **options) == [Point(-1), Point(-2)])
try:
    plait.map(fail, [7], **options)
except Odd as error:
    print(type(error) is Odd, error.number, error)
"""


def test_everything_defined_in_main_travels(
    process_way: Way, tmp_path: Path, run_python: RunPython
) -> None:
    (tmp_path / "main.py").write_text(MAIN)
    done = run_python("-W", "error", "main.py", process_way.name)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "main runs",  # once: no worker runs the main module again
        "[101, 102]",
        "[1101, 1102]",
        "[6, 7]",
        "[101, 102]",
        "[4, 5]",
        "True",
        "True 7 odd",
    ]


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def times(self, x: int) -> int:
        return self.factor * x

    def __call__(self, x: int) -> int:
        return self.factor * x


def test_all_kinds_of_callables(process_way: Way) -> None:
    captured = 10

    def closure(x: int) -> int:
        return x + captured

    kinds: list[tuple[Callable[..., Any], list[int]]] = [
        (closure, [11, 12]),
        (lambda x: -x, [-1, -2]),
        (functools.partial(pow, 2), [2, 4]),
        (Scale(3).times, [3, 6]),
        (Scale(4), [4, 8]),
        (str, ["1", "2"]),  # type: ignore[list-item]
        ([10, 20, 30].__getitem__, [20, 30]),
    ]
    for fn, expected in kinds:
        assert plait.map(fn, [1, 2], max_workers=2, **process_way.options) == expected


def test_a_function_travels_once_per_worker_and_run(process_way: Way) -> None:
    class Counted:
        packed = 0

        def __call__(self, x: int) -> int:
            return x

        def __reduce__(self) -> Any:
            Counted.packed += 1
            return Scale, (1,)

    plait.map(Counted(), range(50), chunksize=1, max_workers=2, **process_way.options)
    assert Counted.packed == 1


def test_folder_path_arguments_and_environment_are_the_parents(
    process_way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: int) -> tuple[str, list[str], list[str], str | None]:
        return str(Path.cwd()), sys.path, sys.argv, os.environ.get("PLAIT_SEEN")

    plait.map(abs, [1], max_workers=2, **process_way.options)  # the pool is warm already
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "here")
    cwd, path, argv, _ = plait.map(look, [1], max_workers=2, **process_way.options)[0]
    assert (cwd, path, argv) == (str(tmp_path), sys.path, sys.argv)
    monkeypatch.setenv("PLAIT_SEEN", "yes")
    with plait.Executor(1, **process_way.executor) as fresh:
        assert fresh.submit(look, 1).result()[3] == "yes"


# --- Stale code --------------------------------------------------------------------------


def write_module(folder: Path, answer: str) -> None:
    (folder / "edited_module.py").write_text(
        f"import edited_helper\ndef ask(_):\n    return {answer!r} + edited_helper.TAIL\n"
    )


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "edited_helper.py").write_text("TAIL = ''\n")
    write_module(tmp_path, "one")
    import edited_module  # type: ignore[import-not-found]

    yield edited_module
    del sys.modules["edited_module"], sys.modules["edited_helper"]


def test_an_edited_module_is_not_run_stale(process_way: Way, tmp_path: Path, edited: Any) -> None:
    options = {"max_workers": 2, **process_way.options}
    assert plait.map(edited.ask, [0], **options) == ["one"]
    write_module(tmp_path, "three")
    assert plait.map(edited.ask, [0], **options) == ["three"]
    (tmp_path / "edited_helper.py").write_text("TAIL = ' and more'\n")
    assert plait.map(edited.ask, [0], **options) == ["three and more"]


def test_a_reloaded_function_is_not_run_stale(
    process_way: Way, tmp_path: Path, edited: Any
) -> None:
    import importlib

    options = {"max_workers": 2, **process_way.options}
    assert plait.map(edited.ask, [0], **options) == ["one"]
    before = (tmp_path / "edited_module.py").stat()
    write_module(tmp_path, "two")
    importlib.reload(edited)
    os.utime(tmp_path / "edited_module.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert plait.map(edited.ask, [0], **options) == ["two"]


def test_unchanged_code_keeps_the_workers(process_way: Way, edited: Any) -> None:
    def pid(_: int) -> int:
        return os.getpid()

    options = {"max_workers": 1, **process_way.options}
    before = plait.map(pid, [0], **options)
    plait.map(edited.ask, [0], **options)
    plait.map(edited.ask, [0], **options)
    assert plait.map(pid, [0], **options) == before


# --- What cannot travel --------------------------------------------------------------------


class Holder:
    def __init__(self) -> None:
        self.name = "holder"
        self.parts = {"good": 1, "bad": threading.Lock()}


class Unreadable:
    """Can be pickled, and not unpickled."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return _refuse, (self.value,)


def _refuse(value: int) -> None:
    raise ZeroDivisionError(f"refused {value}")


@pytest.mark.parametrize("chunksize", [1, 5, 30])
def test_an_item_that_cannot_be_pickled_fails_alone(process_way: Way, chunksize: int) -> None:
    items = [*range(10), Holder(), *range(11, 20), Holder()]
    run = plait.run(
        lambda x: x, items, ordered=True, chunksize=chunksize, max_workers=2, **process_way.options
    )
    outcomes = list(run)
    assert [outcome.index for outcome in outcomes] == list(range(21))
    assert [outcome.index for outcome in outcomes if not outcome.ok] == [10, 20]
    error = outcomes[10].error
    assert isinstance(error, plait.NotPicklable)
    assert error.path == "item.parts['bad']"
    assert "item.parts['bad'] is a _thread.lock" in str(error)


@pytest.mark.parametrize("chunksize", [1, 5, 30])
def test_an_item_that_cannot_be_unpickled_fails_alone(process_way: Way, chunksize: int) -> None:
    items = [*range(10), Unreadable(3), *range(11, 20)]
    outcomes = list(
        plait.run(
            lambda x: x,
            items,
            ordered=True,
            chunksize=chunksize,
            max_workers=2,
            **process_way.options,
        )
    )
    assert [outcome.index for outcome in outcomes if not outcome.ok] == [10]
    assert isinstance(outcomes[10].error, ZeroDivisionError)
    assert [outcome.value for outcome in outcomes if outcome.ok] == [*range(10), *range(11, 20)]


@pytest.mark.parametrize("chunksize", [1, 5, 30])
def test_a_result_that_cannot_be_pickled_fails_alone(process_way: Way, chunksize: int) -> None:
    def task(n: int) -> Any:
        return Holder() if n == 10 else [n]

    outcomes = list(
        plait.run(
            task,
            range(20),
            ordered=True,
            chunksize=chunksize,
            max_workers=2,
            **process_way.options,
        )
    )
    assert [outcome.index for outcome in outcomes if not outcome.ok] == [10]
    error = outcomes[10].error
    assert isinstance(error, plait.NotPicklable)
    assert error.path == "result.parts['bad']"
    assert [o.value for o in outcomes if o.ok] == [[n] for n in range(20) if n != 10]


def test_a_result_that_cannot_be_unpickled_fails_alone(process_way: Way) -> None:
    def task(n: int) -> Any:
        return Unreadable(n) if n == 10 else [n]

    outcomes = list(plait.run(task, range(20), ordered=True, chunksize=5, **process_way.options))
    assert [outcome.index for outcome in outcomes if not outcome.ok] == [10]
    error = outcomes[10].error
    assert isinstance(error, plait.NotPicklable)
    assert "cannot be unpickled: ZeroDivisionError: refused 10" in str(error)


def test_bad_results_among_tiny_tasks_fail_alone(process_way: Way) -> None:
    def task(n: int) -> Any:
        return threading.Lock() if n % 5000 == 4999 else (n, n)

    outcomes = list(
        plait.run(task, range(20_000), ordered=True, max_workers=2, **process_way.options)
    )
    assert [o.index for o in outcomes if not o.ok] == [4999, 9999, 14999, 19999]
    assert all(o.value == (o.index, o.index) for o in outcomes if o.ok)


def test_a_function_that_cannot_be_pickled_says_why(process_way: Way) -> None:
    lock = threading.Lock()

    def task(n: int) -> int:
        with lock:
            return n

    with pytest.raises(plait.NotPicklable) as caught:
        plait.map(task, range(3), **process_way.options)
    assert caught.value.path == "function.__closure__['lock']"


def test_a_function_that_cannot_be_imported_fails_each_task(
    process_way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import types

    ghost = types.ModuleType("ghost_module")
    exec("def task(n): return n", ghost.__dict__)
    monkeypatch.setitem(sys.modules, "ghost_module", ghost)
    outcomes = list(plait.run(ghost.task, range(3), **process_way.options))
    for outcome in outcomes:
        assert isinstance(outcome.error, ModuleNotFoundError)
        assert "ghost_module" in str(outcome.error)


# --- Big data ------------------------------------------------------------------------------


def test_arrays_travel_beside_the_pickle(process_way: Way) -> None:
    import numpy as np

    def scale(array: Any) -> Any:
        array *= 2  # a copy of the worker's own
        return array

    arrays = [np.full((1000, 100), n, dtype=float) for n in range(5)]
    results = plait.map(scale, arrays, max_workers=2, **process_way.options)
    for n, (array, result) in enumerate(zip(arrays, results, strict=True)):
        assert (array == n).all()
        assert (result == 2 * n).all()
        result += 1  # what comes back can be written to


def test_large_frames_in_both_directions_do_not_deadlock(process_way: Way) -> None:
    blobs = [bytes([n]) * 3_000_000 for n in range(8)]
    results = plait.map(
        lambda blob: blob + b"!", blobs, chunksize=2, max_workers=2, **process_way.options
    )
    assert results == [blob + b"!" for blob in blobs]


# --- Pools -----------------------------------------------------------------------------------


def test_idle_pools_are_let_go(
    process_way: Way, monkeypatch: pytest.MonkeyPatch, clean: None
) -> None:
    plait.map(abs, [1], **process_way.options)
    (warm,) = pools._pools.warm
    closed = threading.Event()
    close = warm.backend.close

    def noted() -> None:
        close()
        closed.set()

    monkeypatch.setattr(type(warm.backend), "close", lambda self: noted())
    monkeypatch.setattr(pools, "IDLE_S", 0.0)
    with pools._pools.changed:
        pools._pools.changed.notify()
    assert closed.wait(10)
    assert not pools._pools.warm


FORKS = """
import os, sys, plait
options = dict(backend="processes", start_method=sys.argv[1], max_workers=2)
print(plait.map(abs, [-1], **options), flush=True)
pid = os.fork()
if pid == 0:
    print("child", plait.map(abs, [-2], **options), flush=True)
    sys.exit()
os.waitpid(pid, 0)
print(plait.map(abs, [-3], **options), flush=True)
"""


def test_a_program_that_forks_has_pools_of_its_own(process_way: Way, run_python: RunPython) -> None:
    done = run_python("-W", "always", "-c", FORKS, process_way.name)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[1]", "child [2]", "[3]"]


def test_a_program_that_forks_beside_idle_threads_is_not_told_that_it_has_several(
    run_python: RunPython,
) -> None:
    """-W error would hide it: until Python 3.15 that fork has no warning at all."""
    code = FORKS.replace('"processes", start_method=sys.argv[1]', '"threads"')
    done = run_python("-W", "always", "-c", code)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[1]", "child [2]", "[3]"]


AT_EXIT = """
import pathlib, sys, time, plait
executor = plait.Executor(1, "processes", start_method=sys.argv[1])
executor.submit(time.sleep, 0.2)
executor.submit(pathlib.Path("done").touch)
"""


def test_what_was_submitted_is_done_before_the_program_ends(
    process_way: Way, run_python: RunPython, tmp_path: Path
) -> None:
    done = run_python("-X", "dev", "-W", "error", "-c", AT_EXIT, process_way.name)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "done").exists()


ENDS = """
import sys, plait
from plait.server_process import ServerProcess
plait.map(abs, [-1], backend="processes", start_method=sys.argv[1])
ServerProcess._start = lambda self: print("a server was started at exit")
"""


def test_no_server_is_started_at_exit(process_way: Way, run_python: RunPython) -> None:
    done = run_python("-X", "dev", "-W", "error", "-c", ENDS, process_way.name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_map_inside_a_task_starts_no_processes(process_way: Way) -> None:
    def inner(_: int) -> tuple[str, set[int]]:
        run = plait.run(lambda _: os.getpid(), range(5), backend="processes")
        pids = {outcome.value for outcome in run}
        assert run.plan is not None
        return run.plan.reason, pids - {os.getpid()}

    reason, others = plait.map(inner, [0], **process_way.options)[0]
    assert "inside a worker" in reason
    assert not others


def test_imap_runs_in_constant_memory(process_way: Way) -> None:
    def rss_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    values = plait.imap(lambda x: x * x, itertools.count(), max_workers=2, **process_way.options)
    assert sum(itertools.islice(values, 10_000)) == sum(x * x for x in range(10_000))
    gc.collect()
    before = rss_bytes()
    assert sum(1 for _ in itertools.islice(values, 100_000)) == 100_000
    assert rss_bytes() - before < 20_000_000
    values.close()  # type: ignore[attr-defined]


def test_random_numbers_differ_between_workers(process_way: Way) -> None:
    def draw(_: int) -> tuple[int, float]:
        import random

        return os.getpid(), random.random()

    with plait.Executor(2, **process_way.executor) as executor:
        draws = list(executor.map(draw, range(50), chunksize=1))
    assert len({number for _, number in draws}) == 50


def test_ctrl_c_carries_what_was_finished_and_leaves_nothing(
    process_way: Way, tmp_path: Path
) -> None:
    script = textwrap.dedent(
        """
        import os, sys, time, plait
        def task(n):
            if n == 3:
                print("started", flush=True)
                time.sleep(600)
            return n
        try:
            plait.map(task, range(10), chunksize=1, max_workers=1, backend="processes",
                      start_method=sys.argv[1])
        except KeyboardInterrupt as error:
            print([outcome.value for outcome in error.plait_run.outcomes], flush=True)
        print(plait.map(abs, [-1], backend="processes", start_method=sys.argv[1]))
        """
    )
    with Program(
        [sys.executable, "-c", script, process_way.name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(2)
        out, err = process.communicate(timeout=30)
    assert out.splitlines() == ["[0, 1, 2]", "[1]"]
    assert err == ""
