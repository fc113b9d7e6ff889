"""Modules that workers have from the start: imported once, never stale, and never with threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.host import cpu_count
from tests.conftest import Way, children, close_all, only, wait_gone

pytestmark = pytest.mark.usefixtures("clean", "empty_server")

PROCESSES: dict[str, Any] = {"backend": "processes", "start_method": "server", "chunksize": 1}

# A module of the user's: says in a file which process has imported it.
NOTES = """
import os
with open({path!r}, "a") as file:
    print(os.getpid(), file=file)
VALUE = {value!r}
def value(_=None):
    return VALUE
"""


@pytest.fixture
def empty_server() -> Iterator[None]:
    """Begin with a server that has imported nothing, and leave none to other tests."""
    close_all()
    yield
    close_all()


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for modules, from which this process imports."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def write(path: Path, notes: Path, value: object = 1) -> None:
    path.write_text(NOTES.format(path=str(notes), value=value))


def importers(notes: Path) -> list[int]:
    return [int(line) for line in notes.read_text().split()] if notes.exists() else []


def where(name: str) -> Callable[[int], tuple[int, bool]]:
    def task(_: int) -> tuple[int, bool]:
        return os.getpid(), name in sys.modules

    return task


def imported(name: str) -> Callable[[int], Any]:
    """A task that uses a module of which its parent knows nothing."""

    def task(_: int) -> Any:
        from importlib import import_module

        return import_module(name).value()

    return task


# --- Once for all ----------------------------------------------------------------------------


def test_workers_have_it_from_the_start_and_it_was_imported_once(
    modules: Path, notes: Path
) -> None:
    write(modules / "tool.py", notes)
    for workers in (2, 3, 1):
        given: dict[str, Any] = {"max_workers": workers, "preload": ("tool", "tool"), **PROCESSES}
        found = plait.map(where("tool"), range(6), **given)
        assert {has_it for _, has_it in found} == {True}
        assert not {pid for pid, _ in found} & set(importers(notes))
    trial, server = importers(notes)
    assert trial != server
    assert os.getpid() not in (trial, server)
    assert "tool" not in sys.modules


def test_a_pool_that_has_preloaded_more_serves_who_asks_for_less(
    modules: Path, notes: Path
) -> None:
    write(modules / "tool.py", notes)
    given: dict[str, Any] = {"max_workers": 1, **PROCESSES}
    ((without, _),) = plait.map(where("tool"), [0], **given)
    ((first, _),) = plait.map(where("tool"), [0], preload=("tool",), **given)
    ((again, _),) = plait.map(where("tool"), [0], preload=("tool",), **given)
    assert without != first == again
    ((another, _),) = plait.map(where("tool"), [0], preload=("tool", "colorsys"), **given)
    assert another != first


def test_an_executor_and_what_it_imports(modules: Path, notes: Path) -> None:
    write(modules / "tool.py", notes)
    with plait.Executor(2, "processes", preload=("tool",)) as executor:
        assert executor.submit(where("tool"), 0).result()[1]
    assert len(importers(notes)) == 2


def test_the_parts_of_a_package(modules: Path, notes: Path) -> None:
    (modules / "pack" / "inner").mkdir(parents=True)
    (modules / "pack" / "__init__.py").write_text("")
    write(modules / "pack" / "inner" / "tool.py", notes)  # in a namespace package
    given: dict[str, Any] = {"max_workers": 1, "preload": ("pack.inner.tool",), **PROCESSES}
    assert plait.map(where("pack.inner.tool"), [0], **given)[0][1]
    assert not {"pack", "pack.inner"} & set(sys.modules)


def test_it_is_found_from_where_the_parent_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Path
) -> None:
    """The folder and the path are those at the time of the call, not of the server's start."""
    given: dict[str, Any] = {"max_workers": 1, **PROCESSES}
    plait.map(abs, [1], **given)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for place in ("here", "there"):
        folder = tmp_path / place
        folder.mkdir()
        write(folder / "tool.py", notes, place)
        monkeypatch.chdir(folder)
        close_pools()
        assert plait.map(where("tool"), [0], preload=("tool",), **given)[0][1]
        assert plait.map(imported("tool"), [0], preload=("tool",), **given) == [place]


def close_pools() -> None:
    """Close the pools and not the server."""
    from plait import pools

    pools._pools.close()


def test_another_server_preloads_it_as_well(modules: Path, notes: Path) -> None:
    write(modules / "tool.py", notes)
    with plait.Executor(1, "processes", preload=("tool",)) as executor:
        pid, _ = executor.submit(where("tool"), 0).result()
        (server,) = children() - {pid}
        os.kill(server, signal.SIGKILL)
        assert not wait_gone({server, pid})
        assert executor.submit(where("tool"), 0).result()[1]
    assert len(importers(notes)) == 4


def test_auto_and_the_command_line(modules: Path, notes: Path, run_python: Any) -> None:
    write(modules / "tool.py", notes)
    assert plait.map(abs, [-1], preload=("tool",)) == [1]
    assert importers(notes) == []
    place = {"PYTHONPATH": str(modules)}
    arguments = ["map", "tool:value", "--range", "1", "3", "--backend", "processes"]
    done = run_python("-m", "plait.cli", *arguments, "--preload", "tool", **place)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(set(importers(notes))) == 3  # the program, a trial, the server
    done = run_python("-m", "plait.cli", *arguments, "--preload", "nope", **place)
    assert done.returncode == 2
    assert "'nope' cannot be found" in done.stderr


# --- What cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "nope",
        "os.nope",
        "pack.nope",
        "nope.pack",
        "tool.nope",
        "",
        ".",
        "pack.",
        ".tool",
        "__main__",
    ],
)
def test_what_cannot_be_found_is_told_before_anything_is_imported(
    modules: Path, notes: Path, name: str
) -> None:
    write(modules / "tool.py", notes)
    (modules / "pack").mkdir()
    write(modules / "pack" / "__init__.py", notes)
    with pytest.raises(plait.OptionError, match=f"{name!r} cannot be found"):
        plait.map(abs, [1], backend="processes", preload=("tool", name))
    with pytest.raises(plait.OptionError, match=f"{name!r} cannot be found"):
        plait.Executor(backend="processes", preload=("tool", name))
    assert importers(notes) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"backend": "threads"}, "with backend='threads'"),
        ({"backend": "serial"}, "with backend='serial'"),
        ({"backend": "processes", "start_method": "spawn"}, "with start_method='spawn'"),
        ({"start_method": "spawn"}, "with start_method='spawn'"),
    ],
)
def test_who_has_no_server_cannot_preload(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(plait.OptionError, match=rf"preload must be \(\) {reason}: modules are"):
        plait.map(abs, [1], preload=("json",), **options)


@pytest.mark.parametrize("value", ["numpy", ["numpy"], (1,), None])
def test_it_is_a_tuple_of_names(value: Any) -> None:
    with pytest.raises(plait.OptionError, match="a tuple of the names of modules, like"):
        plait.map(abs, [1], preload=value)


# What a module does as it is imported, and what is said about it.
REFUSED = {
    "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()": (
        r"importing it started threads \(1\)"
    ),
    "import subprocess; process = subprocess.Popen(['sleep', '600'])": (
        "importing it started another process"
    ),
    "1 / 0": "importing it raised ZeroDivisionError: division by zero",
    "import sys; sys.exit('enough')": "importing it raised SystemExit: enough",
    "import os; os._exit(3)": "a process that imported it exited with code 3",
    "import os; os.kill(os.getpid(), 9)": "a process that imported it was killed by SIGKILL",
}


@pytest.mark.parametrize("code", REFUSED)
def test_what_cannot_be_preloaded_is_left_to_the_workers(modules: Path, code: str) -> None:
    (modules / "odd.py").write_text(code)
    given: dict[str, Any] = {"max_workers": 2, "preload": ("colorsys", "odd", "json"), **PROCESSES}
    with pytest.warns(RuntimeWarning, match=f"did not preload 'odd': {REFUSED[code]}"):
        found = plait.map(lambda _: {"colorsys", "odd", "json"} & set(sys.modules), [0, 1], **given)
    assert found == [{"colorsys", "json"}] * 2


def test_a_worker_imports_what_was_not_preloaded(modules: Path, notes: Path) -> None:
    write(modules / "odd.py", notes)
    with (modules / "odd.py").open("a") as file:
        file.write("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True)")
        file.write(".start()\n")
    given: dict[str, Any] = {"max_workers": 1, "preload": ("odd",), **PROCESSES}
    with pytest.warns(RuntimeWarning, match="started threads"):
        assert plait.map(imported("odd"), range(3), **given) == [1, 1, 1]
    assert len(importers(notes)) == 2  # the trial, and the worker


def test_a_module_that_was_mended_is_preloaded(modules: Path) -> None:
    (modules / "odd.py").write_text("1 / 0")
    with pytest.warns(RuntimeWarning, match="did not preload 'odd'"):
        plait.map(abs, [1], max_workers=1, preload=("odd",), **PROCESSES)
    (modules / "odd.py").write_text("mended = True")
    assert plait.map(where("odd"), [1], max_workers=2, preload=("odd",), **PROCESSES)[0][1]


def test_an_import_that_hangs_holds_up_nobody_else(modules: Path, tmp_path: Path) -> None:
    fifo, told = tmp_path / "fifo", tmp_path / "told"
    os.mkfifo(fifo)
    os.mkfifo(told)
    (modules / "slow.py").write_text(f"open({str(told)!r}, 'w').close()\nopen({str(fifo)!r})")
    caught: list[BaseException] = []

    def hang() -> None:
        try:
            plait.map(abs, [1], max_workers=1, preload=("slow",), timeout=2, **PROCESSES)
        except plait.RunTimeout as error:
            caught.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    told.read_text()  # it is being tried out
    assert plait.map(abs, [-1], max_workers=2, **PROCESSES) == [1]
    assert plait.map(where("json"), [0], max_workers=2, **PROCESSES)
    thread.join()
    assert len(caught) == 1
    # Its pool is closed, and another may ask for something else.
    close_pools()
    assert plait.map(where("colorsys"), [0], preload=("colorsys",), **PROCESSES)[0][1]


def test_a_module_that_prints_and_takes_signals(modules: Path, run_python: Any) -> None:
    """What is printed comes out once; whatever it does to signals, the server goes on."""
    (modules / "loud.py").write_text(
        "import signal\n"
        "print('loud is imported')\n"
        "signal.set_wakeup_fd(-1)\n"
        "for name in ('SIGCHLD', 'SIGTERM', 'SIGHUP'):\n"
        "    signal.signal(getattr(signal, name), signal.SIG_DFL)\n"
    )
    code = (
        "import os, plait\n"
        "given = dict(backend='processes', preload=('loud',), chunksize=1)\n"
        "for workers in (1, 2):\n"
        "    run = plait.run(lambda x: os._exit(3) if x == 1 else x, range(4),\n"
        "                    max_workers=workers, ordered=True, **given)\n"
        "    print([outcome.ok for outcome in run])\n"
    )
    done = run_python("-c", code, PYTHONPATH=str(modules))
    mixed = "[True, False, True, True]"
    assert done.stdout.splitlines() == ["loud is imported", mixed, mixed]
    assert (done.returncode, done.stderr) == (0, "")


# --- Never stale -----------------------------------------------------------------------------


def test_a_changed_module_is_not_used_in_a_warm_pool(modules: Path, notes: Path) -> None:
    given: dict[str, Any] = {"max_workers": 2, "preload": ("tool",), **PROCESSES}
    for value in (1, 22, 333):
        write(modules / "tool.py", notes, value)
        assert plait.map(imported("tool"), range(4), **given) == [value] * 4
        assert plait.map(where("tool"), range(4), **given)[0][1]
    assert len(importers(notes)) == 6  # once in a trial, once in the server


def test_a_changed_module_is_not_used_in_a_new_pool(modules: Path, notes: Path) -> None:
    for workers, value in enumerate((1, 22, 333), start=1):
        write(modules / "tool.py", notes, value)
        given: dict[str, Any] = {"max_workers": workers, "preload": ("tool",), **PROCESSES}
        assert plait.map(imported("tool"), range(4), **given) == [value] * 4


def test_a_part_of_it_that_changed_is_not_used(modules: Path, notes: Path) -> None:
    (modules / "tool.py").write_text("from part import value")
    given: dict[str, Any] = {"max_workers": 1, "preload": ("tool",), **PROCESSES}
    for value in (1, 22):
        write(modules / "part.py", notes, value)
        assert plait.map(imported("tool"), range(2), **given) == [value] * 2


def test_a_module_that_is_reloaded_here_is_new_there(modules: Path, notes: Path) -> None:
    from importlib import import_module, reload

    given: dict[str, Any] = {"max_workers": 2, "preload": ("tool",), **PROCESSES}
    write(modules / "tool.py", notes, 1)
    tool = import_module("tool")
    assert plait.map(tool.value, range(4), **given) == [1] * 4
    write(modules / "tool.py", notes, 22)
    reload(tool)
    assert plait.map(tool.value, range(4), **given) == [22] * 4


def test_an_executor_with_a_changed_module(modules: Path, notes: Path) -> None:
    write(modules / "tool.py", notes, 0)
    with plait.Executor(1, "processes", preload=("tool",)) as executor:
        for value in (1, 22):
            write(modules / "tool.py", notes, value)
            assert list(executor.map(imported("tool"), [0])) == [value]


def test_a_pool_that_did_not_ask_has_none_of_it(modules: Path, notes: Path) -> None:
    """It would not notice a change of the file."""
    write(modules / "tool.py", notes, 1)
    write(modules / "other.py", notes, 1)
    assert plait.map(where("tool"), [0], max_workers=1, preload=("tool",), **PROCESSES)[0][1]
    assert not plait.map(where("tool"), [0], max_workers=2, **PROCESSES)[0][1]
    given: dict[str, Any] = {"max_workers": 3, "preload": ("other",), **PROCESSES}
    assert plait.map(where("other"), [0], **given)[0][1]


# --- Numpy -------------------------------------------------------------------------------------


def threads_of_numpy(_: int) -> list[int]:
    import numpy  # noqa: F401
    from threadpoolctl import threadpool_info

    return [library["num_threads"] for library in threadpool_info()]


@pytest.mark.parametrize("workers", [1, cpu_count(), cpu_count() + 1])
def test_workers_times_threads_are_the_cpus(workers: int) -> None:
    given: dict[str, Any] = {"max_workers": workers, **PROCESSES}
    share = max(1, cpu_count() // workers)
    without = plait.map(threads_of_numpy, range(workers), **given)
    threads = plait.map(threads_of_numpy, range(workers), preload=("numpy",), **given)
    assert threads == without
    assert {count for counts in threads for count in counts} == {share}


def test_the_user_may_say_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    (threads,) = plait.map(
        threads_of_numpy, [0], max_workers=cpu_count(), preload=("numpy",), **PROCESSES
    )
    assert threads == [3]


def test_workers_draw_numbers_of_their_own() -> None:
    def draw(_: int) -> tuple[int, float, float]:
        import random

        import numpy

        return os.getpid(), random.random(), float(numpy.random.random())

    given: dict[str, Any] = {
        "max_workers": 1,
        "max_tasks_per_child": 1,
        "preload": ("numpy", "random"),
    }
    drawn = plait.map(draw, range(3), **given, **PROCESSES)
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == 3


@only("server")
def test_numpy_is_there_with_one_thread(way: Way) -> None:
    def look(_: int) -> tuple[bool, int]:
        return "numpy" in sys.modules, len([*Path("/proc/self/task").iterdir()])

    given: dict[str, Any] = {"max_workers": cpu_count(), "chunksize": 1, **way.options}
    assert plait.map(look, range(4), preload=("numpy",), **given) == [(True, 1)] * 4


def test_a_fresh_script_with_warnings_as_errors(run_python: Any) -> None:
    code = (
        "import sys, plait\n"
        "def has_numpy(_): return 'numpy' in sys.modules\n"
        "print(plait.map(has_numpy, range(4), backend='processes', preload=('numpy',)))\n"
    )
    done: subprocess.CompletedProcess[str] = run_python("-X", "dev", "-W", "error", "-c", code)
    assert (done.stdout, done.stderr) == ("[True, True, True, True]\n", "")
