"""What workers print, log and warn comes out in the parent, as if it had been said there."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.backends import child
from tests.conftest import Way


class Keeper(logging.Handler):
    """Keeps the records that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """Let this test's logger keep its records, from level INFO up."""
    logger = logging.getLogger("tests.voices")
    handler = Keeper()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_records_reach_the_handlers_of_the_parent(process_way: Way, keeper: Keeper) -> None:
    def task(x: int) -> int:
        logger = logging.getLogger("tests.voices")
        logger.debug("not this")
        logger.info("item %d", x, extra={"size": x * 10})
        try:
            raise KeyError(x)
        except KeyError:
            logger.exception("failed")
        return os.getpid()

    pids = plait.map(task, range(10), max_workers=2, chunksize=2, **process_way.options)
    infos = {r.plait_task: r for r in keeper.records if r.levelno == logging.INFO}  # type: ignore[attr-defined]
    errors = [record for record in keeper.records if record.levelno == logging.ERROR]
    assert len(keeper.records) == 20
    assert sorted(infos) == list(range(10))
    for index, record in infos.items():
        assert record.getMessage() == f"item {index}"
        assert record.__dict__["size"] == index * 10
        assert record.__dict__["plait_worker"].startswith("process-")
        assert record.processName == record.__dict__["plait_worker"]
        assert record.process == pids[index]
        assert record.funcName == "task"
    for record in errors:
        assert record.exc_text is not None
        assert f"KeyError: {record.__dict__['plait_task']}" in record.exc_text
        assert "Traceback" in logging.Formatter().format(record)


def test_levels_and_filters_are_those_of_the_parent_now(process_way: Way, keeper: Keeper) -> None:
    def task(x: int) -> None:
        logging.getLogger("tests.voices").info("%d", x)

    logger = logging.getLogger("tests.voices")

    def refuse_odd(record: logging.LogRecord) -> bool:
        return int(record.getMessage()) % 2 == 0

    given = {"max_workers": 1, **process_way.options}
    logger.addFilter(refuse_odd)
    plait.map(task, range(4), **given)
    logger.removeFilter(refuse_odd)
    assert [record.getMessage() for record in keeper.records] == ["0", "2"]
    logger.setLevel(logging.ERROR)
    plait.map(task, range(4), **given)
    logger.setLevel(logging.INFO)
    assert len(keeper.records) == 2
    plait.map(task, range(4), **given)
    assert len(keeper.records) == 6


def test_an_extra_that_cannot_travel_goes_as_text(process_way: Way, keeper: Keeper) -> None:
    def task(_: int) -> None:
        import threading

        logging.getLogger("tests.voices").info("held", extra={"lock": threading.Lock(), "n": 3})

    plait.map(task, [0], **process_way.options)
    (record,) = keeper.records
    assert record.__dict__["n"] == 3
    assert "lock" in record.__dict__["lock"]


def test_printed_lines_come_out_whole_through_the_parents_streams(process_way: Way) -> None:
    def task(x: int) -> int:
        for part in ("out", f"-{x}", "\n"):
            print(part, end="", flush=True)
        os.write(1, b"raw-%d\n" % x)
        subprocess.run(["echo", f"sub-{x}"], check=True)
        print(f"err-{x}", file=sys.stderr)
        return x

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        plait.map(task, range(20), max_workers=2, chunksize=3, **process_way.options)
    words = ("out", "raw", "sub")
    assert sorted(out.getvalue().splitlines()) == sorted(
        f"{word}-{x}" for word in words for x in range(20)
    )
    assert sorted(err.getvalue().splitlines()) == sorted(f"err-{x}" for x in range(20))


def test_what_a_task_printed_is_out_before_its_result(process_way: Way) -> None:
    out = io.StringIO()

    def task(x: int) -> int:
        print(f"<{x}>")
        return x

    with contextlib.redirect_stdout(out):
        given = {"max_workers": 2, "chunksize": 1, "ordered": False, **process_way.options}
        for value in plait.imap(task, range(30), **given):
            assert f"<{value}>\n" in out.getvalue()


def test_lines_may_begin_with_who_printed_them(process_way: Way) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        plait.map(print, ["a", "b"], max_workers=1, prefix_output=True, **process_way.options)
    first, second = out.getvalue().splitlines()
    assert first.startswith("[process-")
    assert (first.split("] ")[1], second.split("] ")[1]) == ("a", "b")


def test_a_line_that_never_ended_is_not_lost(process_way: Way) -> None:
    def task(x: int) -> None:
        print(x, end=" ")
        sys.stdout.flush()

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        plait.map(task, range(3), max_workers=1, **process_way.options)
    assert out.getvalue() == "0 1 2 \n"


@pytest.mark.parametrize("ending", ["SIGKILL", "SIGSEGV", "exit"])
def test_last_words_arrive(process_way: Way, keeper: Keeper, ending: str) -> None:
    def task(_: int) -> None:
        logging.getLogger("tests.voices").warning("logged")
        print("printed")
        print("amid a line", end="", flush=True)
        if ending == "exit":
            os._exit(3)
        os.kill(os.getpid(), getattr(signal, ending))

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        values: list[Any] = plait.map(task, [0], on_error="return", **process_way.options)
    assert isinstance(values[0], plait.WorkerDied)
    assert out.getvalue() == "printed\namid a line\n"
    assert [record.getMessage() for record in keeper.records] == ["logged"]


def test_what_is_said_while_nobody_reads_blocks_no_task(
    process_way: Way, keeper: Keeper, tmp_path: Path
) -> None:
    """One result is read, then none for a while: the worker goes on all the same."""
    os.mkfifo(tmp_path / "done")

    def task(x: int) -> int:
        if x == 1:  # on the other worker
            for number in range(5000):  # more than the channel takes
                logging.getLogger("tests.voices").info("%d %s", number, "x" * 100)
            print("y" * 200_000)
            (tmp_path / "done").write_text("done")
        return x

    out = io.StringIO()
    given = {"max_workers": 2, "chunksize": 1, **process_way.options}
    with contextlib.redirect_stdout(out):
        values = plait.imap(task, range(3), **given)
        assert next(values) == 0
        assert (tmp_path / "done").read_text() == "done"  # and nobody has read anything
        assert list(values) == [1, 2]
    assert len(keeper.records) == 5000
    assert len(out.getvalue()) == 200_001


def test_much_output_in_little_time(process_way: Way) -> None:
    def task(x: int) -> int:
        for _ in range(100):
            print(f"{x}:" + "z" * 5000)
        return x

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        plait.map(task, range(8), max_workers=2, **process_way.options)
    lines = out.getvalue().splitlines()
    assert len(lines) == 800
    assert {line.partition(":")[2] for line in lines} == {"z" * 5000}


def warn(x: int) -> int:
    warnings.warn("look out", UserWarning, stacklevel=1)
    return x


def test_warnings_reach_the_filters_of_the_parent_once_per_location(process_way: Way) -> None:
    given = {"max_workers": 2, "chunksize": 1, **process_way.options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        plait.map(warn, range(10), **given)
    assert [str(warning.message) for warning in caught] == ["look out"]
    assert caught[0].category is UserWarning
    assert caught[0].filename == __file__


def test_a_warning_is_an_error_where_the_parent_says_so(process_way: Way) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="look out"):
            plait.map(warn, range(3), **process_way.options)
        warnings.simplefilter("ignore")
        assert plait.map(warn, range(3), **process_way.options) == [0, 1, 2]


def test_a_task_that_closes_its_streams_harms_nobody(process_way: Way) -> None:
    def task(x: int) -> int:
        if x == 1:
            sys.stdout.close()
            os.close(2)
        else:
            print(f"task {x}")
        return x

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        given = {"max_workers": 1, "chunksize": 1, **process_way.options}
        assert plait.map(task, range(4), **given) == [0, 1, 2, 3]
    assert out.getvalue() == "task 0\ntask 2\ntask 3\n"


def test_a_handler_that_fails_harms_no_task(
    process_way: Way, keeper: Keeper, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(record: logging.LogRecord) -> bool:
        raise ValueError("a bad filter")

    def task(x: int) -> int:
        logging.getLogger("tests.voices").info("hello")
        return x

    keeper.addFilter(fail)
    assert plait.map(task, range(3), **process_way.options) == [0, 1, 2]
    assert "a bad filter" in capsys.readouterr().err


def test_what_the_initializer_says_arrives(process_way: Way) -> None:
    def start() -> None:
        print("started")

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        given = {"max_workers": 1, **process_way.options}
        plait.map(abs, range(3), initializer=start, **given)
    assert out.getvalue() == "started\n"


@pytest.mark.usefixtures("clean")
def test_output_of_what_a_task_left_running_arrives_later(
    process_way: Way, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(_: int) -> None:
        subprocess.Popen(["sh", "-c", "sleep 0.1; echo later"])

    given = {"max_workers": 1, **process_way.options}
    plait.map(task, [0], **given)
    plait.map(time.sleep, [0.5], **given)
    assert capsys.readouterr().out == "later\n"
    assert child  # the fixture closes it
