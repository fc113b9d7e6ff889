"""``plait sweep``, as a user meets it: the real command, in a directory with modules."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from plait import cli_shared, cli_sweep
from tests.start import Program
from tests.test_cli import COMMAND, ENVIRONMENT, plait_command, read_terminal

TASKS = '''
import os, sys, threading

def square(x):
    print("printed")
    return x * x

async def later(x):
    return x

def fail(x):
    if x == 3:
        raise ValueError("three")
    return x

def leave(x):
    raise SystemExit(7)

def wait(x):
    """On a worker, say that it runs, and wait for a line from the pipe."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and "PLAIT_WORKER" not in os.environ:
        return x
    print("running", file=sys.stderr, flush=True)
    with open("pipe") as pipe:
        return pipe.readline()
'''
QUICK = ("--backends", "threads", "--sizes", "1,2", "--repeats", "1")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def plait_sweep(here: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "sweep", *arguments],
        cwd=here,
        env=ENVIRONMENT,
        input=stdin,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_the_table_is_on_stdout_and_all_else_is_not(here: Path) -> None:
    done = plait_sweep(here, "tasks:square", "--range", "1", "3", *QUICK)
    assert done.returncode == 0
    title, _, header, loop, one, two, *_ = done.stdout.splitlines()
    assert title.startswith("square, 3 tasks: medians of 1 round, on ")
    assert header.split()[:6] == ["backend", "workers", "open", "run", "close", "total"]
    assert loop.startswith("loop ")
    assert [line.split()[:2] for line in (one, two)] == [["threads", "1"], ["threads", "2"]]
    assert "\nRecommended: " in done.stdout
    assert "printed" not in done.stdout
    # For each item, way and round, with the one for warm-up; threads print amid each other.
    assert done.stderr.replace("\n", "") == "printed" * 3 * 3 * 2


def test_both_backends_and_four_sizes_unless_others_are_named(here: Path) -> None:
    done = plait_sweep(here, "math:sqrt", "--range", "1", "3", "--repeats", "1", "--json", "-")
    rows = json.loads(done.stdout)["rows"]
    assert [(row["backend"], row["workers"]) for row in rows] == [
        (backend, workers) for backend in ("threads", "processes") for workers in (1, 2, 4, 8)
    ]


def test_a_coroutine_function(here: Path) -> None:
    done = plait_sweep(here, "tasks:later", "a", "b", "--sizes", "1,2", "--repeats", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nasyncio " in done.stdout


@pytest.mark.parametrize("source", ["numbers.txt", "-"])
def test_items_come_from_where_map_has_them_from(here: Path, source: str) -> None:
    (here / "numbers.txt").write_text("1\n4\n9\n")
    done = plait_sweep(here, "math:sqrt", "--input", source, "--jsonl", *QUICK, stdin="1\n4\n9\n")
    assert done.returncode == 0
    assert done.stdout.startswith("sqrt, 3 tasks: ")


def test_json_in_place_of_the_table_which_goes_to_stderr(here: Path) -> None:
    done = plait_sweep(here, "math:sqrt", "--range", "1", "3", *QUICK, "--json", "-")
    assert json.loads(done.stdout)["tasks"] == 3
    assert "\nRecommended: " in done.stderr


def test_json_and_a_picture_into_files(here: Path) -> None:
    files = ("--json", "sweep.json", "--plot", "sweep.png")
    done = plait_sweep(here, "math:sqrt", "--range", "1", "3", *QUICK, *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nRecommended: " in done.stdout
    assert json.loads((here / "sweep.json").read_text())["function"] == "sqrt"
    assert (here / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_results_that_cannot_be_written(here: Path) -> None:
    done = plait_sweep(here, "math:sqrt", "--range", "1", "3", *QUICK, "--json", "/dev/full")
    assert done.returncode == 1
    assert done.stderr == "plait: the results cannot be written: No space left on device.\n"


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_a_task_that_fails_ends_it(here: Path, backend: str) -> None:
    options = ("--backends", backend, "--sizes", "2", "--repeats", "1")
    done = plait_sweep(here, "tasks:fail", "--range", "1", "4", *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ValueError: three\nplait: task 2, fail(3), attempt 1, on " in done.stderr
    assert done.stderr.endswith("plait: a task failed, so there is nothing to compare\n")


def test_a_task_that_leaves_python_is_one_that_fails(here: Path) -> None:
    done = plait_sweep(here, "tasks:leave", "--range", "1", "4", *QUICK)
    assert (done.returncode, done.stdout) == (1, "")
    assert "SystemExit: 7\n" in done.stderr


def test_a_number_that_came_as_text_gets_a_hint(here: Path) -> None:
    done = plait_sweep(here, "math:sqrt", "4", "9", *QUICK)
    assert done.returncode == 1
    assert done.stderr.endswith(
        "nothing to compare; the item '4' was text, as all items are; "
        "with --jsonl it is read as JSON, a number for example\n"
    )


MISTAKES = {
    "no function": ("math.sqrt 4", "'math.sqrt' names no function: write math:sqrt"),
    "no items": ("math:sqrt", "there are no items: name them as arguments, with --range"),
    "an empty input": ("math:sqrt --input -", "there are no items: the input is empty."),
    "a broken line": ("math:sqrt --jsonl x", "the argument 'x' is not JSON"),
    "no such backend": ("math:sqrt 4 --backends threads,gpu", "must be some of 'threads', 'proc"),
    "auto": ("math:sqrt 4 --backends auto", "backends=['auto'] is not allowed"),
    "size 0": ("math:sqrt 4 --sizes 2,0", "sizes=(2, 0) is not allowed: sizes must be whole"),
    "no size": ("math:sqrt 4 --sizes two", "sizes=('two',) is not allowed"),
    "no round": ("math:sqrt 4 --repeats 0", "repeats must be a whole number from 1 up"),
    "a chunk": ("math:sqrt 4 --chunksize x", "chunksize='x' is not allowed"),
    "a coroutine function": ("tasks:later 4 --backends threads", "for a coroutine function"),
    "a picture": ("math:sqrt 4 --plot a.bmp", "drawn as .png or .svg, and 'a.bmp' is neither."),
    "a folder": ("math:sqrt 4 --plot no/a.png", "no/a.png cannot be written: there is no folder"),
    "for JSON": ("math:sqrt 4 --json no/a.json", "no/a.json cannot be written: there is no"),
}


@pytest.mark.parametrize(("typed", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_get_a_sentence_before_anything_runs(
    here: Path, typed: str, sentence: str
) -> None:
    done = plait_sweep(here, *typed.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("plait: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@contextmanager
def waiting(here: Path, backend: str) -> Iterator[Program[str]]:
    """Start a sweep whose only task waits on a worker, and send it Ctrl-C."""
    os.mkfifo(here / "pipe")
    options = ("--backends", backend, "--sizes", "2", "--repeats", "1")
    with Program(
        [*COMMAND, "sweep", "tasks:wait", "--range", "1", "1", *options],
        cwd=here,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "running\n"
            process.send_signal(signal.SIGINT)
            assert process.stderr.readline().startswith("plait: interrupted; threads finish")
            yield process
        finally:
            process.kill()


def test_ctrl_c_ends_processes(here: Path) -> None:
    with waiting(here, "processes") as process:
        assert process.communicate(timeout=30) == ("", "plait: interrupted\n")
    assert process.returncode == 130


def test_ctrl_c_lets_threads_finish(here: Path) -> None:
    with waiting(here, "threads") as process:
        (here / "pipe").write_text("finished")
        assert process.communicate(timeout=30) == ("", "plait: interrupted\n")
    assert process.returncode == 130


def test_ctrl_c_twice_ends_all(here: Path) -> None:
    with waiting(here, "threads") as process:
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "plait: ended now\n")
    assert process.returncode == 130


def test_the_main_thread_is_woken_until_it_has_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once was not enough: it may be about to sleep then, too. One sweep of 75 hung for that."""
    attempts = SimpleQueue[tuple[int, int]]()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "pthread_kill", lambda *given: attempts.put(given))
    ctrl_c = cli_shared.CtrlC(cli_sweep._stop, "the end\n")
    ctrl_c.hear(signal.SIGURG)  # that is ours
    assert attempts.empty()
    ctrl_c.hear(signal.SIGINT)
    for _ in range(3):
        assert attempts.get(timeout=30) == (threading.main_thread().ident, signal.SIGURG)
    with pytest.raises(KeyboardInterrupt):
        ctrl_c._interrupt(signal.SIGINT, None)
    for thread in threading.enumerate():
        if thread.name == "plait-wake":
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.parametrize("option", ["by default", "--no-progress"])
def test_a_terminal_shows_progress(here: Path, option: str) -> None:
    ours, theirs = os.openpty()
    command = [*COMMAND, "sweep", "math:sqrt", "--range", "1", "3", *QUICK]
    with Program(
        [*command, option] if option != "by default" else command,
        cwd=here,
        env={**ENVIRONMENT, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: read_terminal(ours), b"")).decode()
        assert process.stdout is not None
        assert b"Recommended: " in process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert ("sqrt" in shown and "6/6" in shown) == (option == "by default")


OPTIONS = (
    "--range --input --jsonl --backends --sizes --repeats --chunksize --plot --json --progress"
)


def test_help_explains() -> None:
    text = plait_command("sweep", "--help")
    assert "  plait sweep tools:square --range 1 1000 --sizes 2,4,8 " in text
    assert "Exit codes: 0 all well, 1 a task failed, 2 wrong usage, 130 interrupted." in text
    assert "plait[plot]" in text
    for option in OPTIONS.split():
        assert f" {option} " in text
    assert "sweep" in plait_command("--help")
