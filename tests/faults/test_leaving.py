"""How a worker leaves in peace: exit functions, finalizers and open files, and not for ever."""

from __future__ import annotations

import atexit
import gzip
import logging
import multiprocessing.util
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plait
from tests.conftest import Way, children, close_all, only, wait_gone

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.timeout(60)]

ONE: dict[str, Any] = {"backend": "processes", "max_workers": 1}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def once(do: Callable[[], object]) -> Callable[[int], int]:
    """A task that does something the first time that it runs in its worker."""

    def task(x: int) -> int:
        if not hasattr(sys, "plait_test_once"):
            sys.plait_test_once = do()  # type: ignore[attr-defined]
        return x

    return task


def note(path: Path, word: str) -> None:
    with path.open("a") as file:
        file.write(f"{word}\n")


class Thing:
    pass


def test_exit_functions_finalizers_and_files_are_not_lost(
    process_way: Way, notes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def do() -> list[Any]:
        thing = Thing()
        weakref.finalize(thing, note, notes, "finalize")
        atexit.register(note, notes, "atexit")
        atexit.register(logging.getLogger("tests").warning, "said at exit")
        multiprocessing.util.Finalize(None, note, (notes, "multiprocessing"), exitpriority=1)
        plain = (tmp_path / "plain").open("w")
        plain.write("plain")
        packed = gzip.open(tmp_path / "packed", "wt")  # noqa: SIM115
        packed.write("packed")
        binary = (tmp_path / "binary").open("wb")
        binary.write(b"binary")
        return [thing, plain, packed, binary]

    logging.getLogger("tests").setLevel(logging.WARNING)
    plait.map(once(do), range(3), max_workers=1, **process_way.options)
    plait.shutdown()
    assert sorted(notes.read_text().split()) == ["atexit", "finalize", "multiprocessing"]
    assert (tmp_path / "plain").read_text() == "plain"
    assert (tmp_path / "binary").read_bytes() == b"binary"
    with gzip.open(tmp_path / "packed", "rt") as file:
        assert file.read() == "packed"
    assert [record.getMessage() for record in caplog.records] == ["said at exit"]


def test_so_does_a_worker_of_an_executor_and_one_that_is_replaced(
    process_way: Way, notes: Path
) -> None:
    def do(_: int) -> None:
        atexit.register(note, notes, "atexit")

    with plait.Executor(1, max_tasks_per_child=1, **process_way.executor) as executor:
        list(executor.map(do, range(3)))
    assert notes.read_text().split() == ["atexit"] * 3


def test_so_does_a_worker_whose_task_was_ended(process_way: Way, notes: Path) -> None:
    def do(x: int) -> None:
        atexit.register(note, notes, "atexit")
        time.sleep(600)

    given = {"max_workers": 1, "task_timeout": 0.2, **process_way.options}
    with pytest.raises(plait.TaskTimeout):
        plait.map(do, [1], **given)
    plait.shutdown()
    assert notes.read_text().split() == ["atexit"]


def test_an_exit_function_that_hangs_is_ended_and_that_is_said(process_way: Way) -> None:
    def do() -> None:
        atexit.register(time.sleep, 600)

    plait.map(once(do), range(2), max_workers=1, **process_way.options)
    with pytest.warns(RuntimeWarning, match=r"process-1 .* was ended while it left"):
        plait.shutdown()
    assert not wait_gone(children(), 5)


def test_an_exit_function_that_fails_harms_nothing_else(
    process_way: Way, notes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def do() -> None:
        atexit.register(note, notes, "atexit")
        atexit.register(sys.exit, 3)
        atexit.register(lambda: 1 / 0)

    plait.map(once(do), range(2), max_workers=1, **process_way.options)
    plait.shutdown()
    assert notes.read_text().split() == ["atexit"]
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_file_that_cannot_be_written_is_said(
    process_way: Way, capfd: pytest.CaptureFixture[str]
) -> None:
    def do() -> Any:
        file = Path("/dev/full").open("w")  # noqa: SIM115
        file.write("lost")
        return file

    plait.map(once(do), range(2), max_workers=1, **process_way.options)
    plait.shutdown()
    assert "No space left on device" in capfd.readouterr().err


def test_a_copy_that_a_task_forks_calls_none(process_way: Way, notes: Path) -> None:
    def do(x: int) -> int:
        atexit.register(note, notes, "atexit")
        os.fork()
        return x

    assert plait.map(do, [1], max_workers=1, **process_way.options) == [1]
    plait.shutdown()
    assert notes.read_text().split() == ["atexit"]


# --- What workers have from the server -----------------------------------------------------

PRELOADED = """
import tempfile
folder = tempfile.TemporaryDirectory(dir={path!r})
log = open({path!r} + "/log", "w")
log.write("imported\\n")
"""


def test_what_a_preloaded_module_has_opened_belongs_to_all_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_all()
    (tmp_path / "opened.py").write_text(PRELOADED.format(path=str(tmp_path)))
    monkeypatch.syspath_prepend(str(tmp_path))

    def do(x: int) -> tuple[bool, int]:
        import opened  # type: ignore[import-not-found]

        opened.log.write(f"task {x}\n")
        return Path(opened.folder.name).exists(), os.getpid()

    given = {"preload": ("opened",), "max_tasks_per_child": 1, "chunksize": 1, **ONE}
    done = plait.map(do, range(3), **given)
    plait.shutdown()
    assert [exists for exists, _ in done] == [True] * 3
    assert len({pid for _, pid in done}) == 3
    words = (tmp_path / "log").read_text().split("\n")
    assert words == ["imported", "task 0", "task 1", "task 2", ""]
    assert tempfile.gettempdir()  # the folder itself ends with tmp_path


# --- plait.shutdown ------------------------------------------------------------------------


def test_shutdown_leaves_no_process(process_way: Way) -> None:
    plait.map(abs, range(3), max_workers=2, **process_way.options)
    assert children()
    plait.shutdown()
    assert not wait_gone(children())
    plait.shutdown()
    assert plait.map(abs, [-3], **process_way.options) == [3]


def test_shutdown_leaves_what_is_in_use(process_way: Way, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def task(x: int) -> int:
        with fifo.open() as file:
            file.read()
        return x

    values: list[int] = []
    call = threading.Thread(
        target=lambda: values.extend(plait.map(task, [1], max_workers=1, **process_way.options))
    )
    with plait.Executor(1, **process_way.executor) as executor:
        pid = executor.submit(os.getpid).result()
        call.start()
        with fifo.open("w") as file:  # the task runs
            plait.shutdown()
            assert executor.submit(os.getpid).result() == pid
            file.write("go on")
        call.join()
        assert values == [1]
        assert executor.submit(os.getpid).result() == pid
    plait.shutdown()
    assert not wait_gone(children())


@only("threads", "asyncio")
def test_shutdown_ends_threads(way: Way) -> None:
    plait.map(way.fn(abs), [-1, 2], **way.options)
    plait.shutdown()
    assert not [one for one in threading.enumerate() if one.name.startswith("plait-thread")]
