"""The command line, as a user meets it: the real command, in a directory with modules."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

import plait
from plait import cli_commands, cli_map
from plait.options import BACKENDS as BACKEND_NAMES
from plait.options import START_METHODS
from tests.start import Program

# -P: the current directory is on sys.path only if plait puts it there, as with the script.
COMMAND = [sys.executable, "-P", "-m", "plait.cli"]
ENVIRONMENT = {
    **{
        name: text for name, text in os.environ.items() if name not in ("FORCE_COLOR", "PYTHONPATH")
    },
    "COLUMNS": "200",
}
BACKENDS = ("serial", "threads", "processes")
ENDLESS = ("--range", "0", str(10**30))

TASKS = '''
import os, subprocess, sys

SIZE = 3

def square(x):
    return x * x

async def later(x):
    return x

class Photo:
    @staticmethod
    def open(name):
        return f"photo of {name}"

class Broken(Exception):
    """Pickle cannot build it, and its text is none."""
    def __init__(self, one, two):
        super().__init__(one)
    def __str__(self):
        raise RuntimeError

def fail(x):
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x

def break_(x):
    raise Broken(1, 2)

def leave(x):
    if x == 1:
        os._exit(7)
    return x

def chatter(x):
    print("printed")
    print("more", file=sys.__stdout__)
    os.write(1, b"written\\n")
    subprocess.run(["echo", "echoed"], check=True)
    return x

def ask(x):
    print("asking")
    with open("pipe") as pipe:
        return pipe.readline()

def wait(x):
    """Item 1 says that it runs, and waits for a line from the pipe."""
    if x == 1:
        print("running", file=sys.stderr, flush=True)
        with open("pipe") as pipe:
            return pipe.readline()
    return x
'''


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def plait_map(here: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run ``plait map`` to its end; texts as a terminal would show them."""
    done = subprocess.run(
        [*COMMAND, "map", *arguments],
        cwd=here,
        env=ENVIRONMENT,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def lines(text: str) -> list[Any]:
    """Read JSON Lines, as strictly as other languages do."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def values(here: Path, *arguments: str, stdin: bytes = b"") -> list[Any]:
    """Run ``plait map``, which must do well and say nothing else, and return the values."""
    done = plait_map(here, *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    results = lines(done.stdout)
    assert [result["index"] for result in results] == list(range(len(results)))
    return [result["value"] for result in results]


@contextmanager
def running(here: Path, *arguments: str) -> Iterator[Program[str]]:
    """Run ``plait map`` with pipes to its three streams; it must have ended at the end."""
    with Program(
        [*COMMAND, "map", *arguments],
        cwd=here,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
            process.wait(timeout=30)
        finally:
            process.kill()


def read_line(process: Program[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def read_rest(process: Program[str]) -> tuple[list[Any], str]:
    """Return the results and the messages that are left.

    These end when nobody has the stream any more: neither plait nor a process of its.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    results = lines(process.stdout.read())
    return results, process.stderr.read()


# --- Results -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_results_are_json_lines_in_order(here: Path, backend: str) -> None:
    done = plait_map(here, "tasks:square", "--range", "-2", "2", "--backend", backend)
    assert (done.returncode, done.stderr) == (0, "")
    assert lines(done.stdout) == [
        {"index": index, "item": item, "value": item * item}
        for index, item in enumerate(range(-2, 3))
    ]


@pytest.mark.parametrize(
    ("function", "value"), [("tasks:Photo.open", "photo of x"), ("tasks:later", "x")]
)
def test_functions_may_be_dotted_or_coroutine_functions(
    here: Path, function: str, value: str
) -> None:
    assert values(here, function, "x") == [value]


def test_installed_functions_work(here: Path) -> None:
    arguments = ("math:factorial", "--range", "1", "5", "--backend", "threads")
    assert values(here, *arguments) == [1, 2, 6, 24, 120]


def test_options_reach_the_run(here: Path) -> None:
    options = "--max-workers=2 --chunksize=3 --buffersize=50 --start-method=spawn --report"
    done = plait_map(
        here, "tasks:square", "--range", "1", "9", "--backend", "processes", *options.split()
    )
    assert done.returncode == 0
    assert [result["value"] for result in lines(done.stdout)] == [x * x for x in range(1, 10)]
    assert "processes x 2: it was asked for." in done.stderr
    assert "9 done, 0 of them with an error" in done.stderr


@pytest.mark.parametrize("rate", ["50/s", "50"])
def test_tasks_start_at_a_rate(here: Path, rate: str) -> None:
    (here / "clock.py").write_text("import time\ndef read(_): return time.monotonic()\n")
    arguments = ("clock:read", "--range", "1", "5", "--backend", "threads", "--rate", rate)
    starts = values(here, *arguments)
    assert max(starts) - min(starts) >= 0.06  # four times 20 ms, and what is made up for


@pytest.mark.parametrize("order", ["--ordered", "--no-ordered"])
def test_order_of_the_results(here: Path, order: str) -> None:
    os.mkfifo(here / "pipe")
    options = ("--backend", "threads", "--max-workers", "2", "--chunksize", "1", order)
    with running(here, "tasks:wait", "--range", "1", "2", *options) as process:
        if order == "--no-ordered":
            assert read_line(process) == {"index": 1, "item": 2, "value": 2}
        (here / "pipe").write_text("done")
        results, _ = read_rest(process)
    assert [result["item"] for result in results] == ([1, 2] if order == "--ordered" else [1])


def test_values_without_a_form_in_json(here: Path) -> None:
    (here / "odd.py").write_text(
        """
import dataclasses, datetime, decimal, enum, math, pathlib, uuid

@dataclasses.dataclass
class Point:
    x: float
    path: pathlib.Path

class Color(enum.Enum):
    RED = "red"

class Silent:
    def __repr__(self):
        raise RuntimeError

class Array:
    def tolist(self):
        return [1, [2]]

circle = []
circle.append(circle)
deep = []
for _ in range(200_000):
    deep = [deep]

VALUES = {
    "nan": math.nan, "inf": [math.inf, {"a": -math.inf}], "path": pathlib.Path("a/b"),
    "bytes": b"\\xff", "dataclass": Point(math.nan, pathlib.Path("p")), "set": {3, 1, 2},
    "mixed set": {1, "a"}, "tuple": (1, (2,)), "date": datetime.date(2024, 1, 2),
    "decimal": decimal.Decimal("1.10"), "uuid": uuid.UUID(int=1), "enum": Color.RED,
    "array": Array(), "class": Array, "complex": 1j, "silent": Silent(), "circle": circle,
    "keys": {(1, 2): 1, pathlib.Path("k"): 2, None: 3, 4: 4}, "text": "ü", "half": "\\udcff",
    "huge": 10**5000, "deep": deep, "none": None,
}
"""
    )
    done = plait_map(here, "odd:VALUES.get", *(names := list(EXPECTED)), "deep")
    assert (done.returncode, done.stderr) == (0, "")
    *results, deep = lines(done.stdout)
    assert deep["value"] == "<list whose repr raised RecursionError>"
    assert {result["item"]: result["value"] for result in results} == EXPECTED
    assert names == [result["item"] for result in results]


EXPECTED = {
    "nan": "NaN",
    "inf": ["Infinity", {"a": "-Infinity"}],
    "path": "a/b",
    "bytes": repr(b"\xff"),
    "dataclass": {"x": "NaN", "path": "p"},
    "set": [1, 2, 3],
    "mixed set": ["a", 1],
    "tuple": [1, [2]],
    "date": "2024-01-02",
    "decimal": "1.10",
    "uuid": "00000000-0000-0000-0000-000000000001",
    "enum": "red",
    "array": [1, [2]],
    "class": "<class 'odd.Array'>",
    "complex": "1j",
    "silent": "<Silent whose repr raised RuntimeError>",
    "circle": ["[[...]]"],
    "keys": {"(1, 2)": 1, "k": 2, "null": 3, "4": 4},
    "text": "ü",
    "half": "\udcff",
    "huge": hex(10**5000),
    "none": None,
}


@pytest.mark.parametrize("options", [[name] for name in BACKENDS] + [["processes", "spawn"]])
def test_what_tasks_print_goes_to_stderr(here: Path, options: list[str]) -> None:
    backend, *start_method = options
    arguments = [f"--start-method={name}" for name in start_method]
    done = plait_map(here, "tasks:chatter", "a", "b", "--backend", backend, *arguments)
    assert done.returncode == 0
    assert [result["value"] for result in lines(done.stdout)] == ["a", "b"]
    for word in ("printed", "more", "written", "echoed"):  # threads may mix their lines
        assert done.stderr.count(word) == 2


@pytest.mark.parametrize("backend", ["auto", "serial", "threads"])
def test_what_tasks_print_is_shown_at_once(here: Path, backend: str) -> None:
    os.mkfifo(here / "pipe")
    with running(here, "tasks:ask", "x", "--backend", backend) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "asking\n"
        (here / "pipe").write_text("told")
        assert read_line(process)["value"] == "told"


def test_what_a_module_prints_when_imported_goes_to_stderr(here: Path) -> None:
    (here / "loud.py").write_text("print('hello')\ndef f(x): return x\n")
    done = plait_map(here, "loud:f", "1")
    assert lines(done.stdout) == [{"index": 0, "item": "1", "value": "1"}]
    assert done.stderr == "hello\n"


# --- Items -------------------------------------------------------------------------------


def test_arguments_are_texts(here: Path) -> None:
    assert values(here, "builtins:str.upper", "a", "ü", "", "--", "-x") == ["A", "Ü", "", "-X"]


def test_patterns_stand_for_files(here: Path) -> None:
    for name in ("b.jpg", "a.jpg", "c[1].jpg", "c1.jpg"):
        (here / name).touch()
    given = ("?.jpg", "*.png", "c[1].jpg", "https://x.org/?q=1", "[")
    assert values(here, "builtins:str", *given) == ["a.jpg", "b.jpg", *given[1:]]


@pytest.mark.parametrize("source", ["items.txt", "-"])
def test_lines_of_a_file_are_items(here: Path, source: str) -> None:
    text = b"\xef\xbb\xbfone\r\n\n two \n\xff.jpg\nlast"  # with a byte order mark
    (here / "items.txt").write_bytes(text)
    found = values(here, "builtins:str", "--input", source, stdin=text)
    assert found == ["one", " two ", "\udcff.jpg", "last"]


@pytest.mark.parametrize("source", ["items.jsonl", "-"])
def test_lines_may_be_json(here: Path, source: str) -> None:
    text = b'1\n\n{"a": [2.5]}\n  \n"text"\r\nnull'
    (here / "items.jsonl").write_bytes(text)
    done = plait_map(here, "builtins:repr", "--jsonl", "--input", source, stdin=text)
    assert [result["item"] for result in lines(done.stdout)] == [1, {"a": [2.5]}, "text", None]
    assert [result["value"] for result in lines(done.stdout)][1] == "{'a': [2.5]}"


def test_arguments_may_be_json(here: Path) -> None:
    assert values(here, "math:sqrt", "--jsonl", "4", "2.25") == [2.0, 1.5]


def test_no_lines_are_no_mistake(here: Path) -> None:
    assert values(here, "tasks:square", "--input", "-") == []
    assert values(here, "tasks:square", "-0") == []


def test_a_pipe_that_nobody_named_must_have_something(here: Path) -> None:
    """Where a program has no terminal, stdin may be anything, and items may be forgotten."""
    done = plait_map(here, "tasks:square")
    assert done.returncode == 2
    assert done.stderr.endswith("Standard input was empty; with --input - it may be.\n")
    with Path(os.devnull).open() as nothing:
        done = subprocess.run(
            [*COMMAND, "map", "math:sqrt"], stdin=nothing, capture_output=True, text=True
        )
    assert done.returncode == 2
    assert done.stderr.endswith("or with --input FILE, or pipe them in.\n")


@pytest.mark.parametrize("kind", ["pipe", "file", "socket"])
def test_what_is_piped_in_is_the_input_where_no_other_is_named(here: Path, kind: str) -> None:
    (here / "items.txt").write_text("a\nb\n")
    ours, theirs = socket.socketpair()
    with ours, theirs, (here / "items.txt").open() as file:
        ours.sendall(b"a\nb\n")
        ours.shutdown(socket.SHUT_WR)
        stdin: Any = {"pipe": subprocess.PIPE, "file": file, "socket": theirs}[kind]
        with Program(
            [*COMMAND, "map", "builtins:str.upper"],
            cwd=here,
            env=ENVIRONMENT,
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            results, _ = process.communicate("a\nb\n" if kind == "pipe" else None, timeout=60)
    assert [result["value"] for result in lines(results)] == ["A", "B"]


@pytest.mark.parametrize("named", [["x"], ["--range", "7", "7"], ["--input", "items.txt"]])
def test_what_is_piped_in_is_left_alone_where_items_are_named(here: Path, named: list[str]) -> None:
    (here / "items.txt").write_text("x")
    (value,) = values(here, "builtins:repr", *named, stdin=b"a\nb\n")
    assert value in ("'x'", "7")


@pytest.mark.parametrize("option", ["-0", "--null"])
def test_items_of_the_input_may_end_with_nul(here: Path, option: str) -> None:
    names = b"a\nb\0 c \r\0\0\xff.jpg\0last"
    found = values(here, "builtins:str", option, stdin=names)
    assert found == ["a\nb", " c \r", "\udcff.jpg", "last"]
    (here / "names").write_bytes(b'[1,\n2]\0"x"\0')
    assert values(here, "builtins:len", option, "--jsonl", "--input", "names") == [2, 1]


def test_a_broken_item_that_ends_with_nul_is_told_by_its_number(here: Path) -> None:
    done = plait_map(here, "builtins:len", "-0", "--jsonl", stdin=b"[]\0{\0")
    assert done.returncode == 2
    assert done.stderr.startswith("plait: standard input, item 2, is not JSON: ")


def test_names_from_find_arrive_as_they_are(here: Path) -> None:
    for name in ("one\ntwo.jpg", "b.jpg"):
        (here / name).touch()
    command = f"find . -name '*.jpg' -print0 | {shlex.join(COMMAND)} map -0 os.path:basename"
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=here,
        env=ENVIRONMENT,
        capture_output=True,
        timeout=60,
        check=True,
    )
    found = {result["value"] for result in lines(done.stdout.decode())}
    assert found == {"one\ntwo.jpg", "b.jpg"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_open_input_is_read_as_needed(here: Path, backend: str) -> None:
    # With --buffersize 1 a result is there before the next item is read.
    options = ("--jsonl", "--backend", backend, "--buffersize", "1")
    with running(here, "tasks:square", "--input", "-", *options) as process:
        assert process.stdin is not None
        for item in range(20):
            process.stdin.write(f"{item}\n")
            process.stdin.flush()
            assert read_line(process) == {"index": item, "item": item, "value": item * item}
        process.stdin.close()
        assert read_rest(process) == ([], "")
    assert process.returncode == 0


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_a_broken_line_is_told_after_the_results_before_it(here: Path, backend: str) -> None:
    (here / "items.jsonl").write_text("1\n\n2\n{nonsense}\n3\n")
    done = plait_map(
        here, "tasks:square", "--input", "items.jsonl", "--jsonl", "--backend", backend
    )
    assert done.returncode == 2
    assert [result["value"] for result in lines(done.stdout)] == [1, 4]
    assert done.stderr.startswith("plait: items.jsonl, line 4, is not JSON: ")


# --- Errors of tasks ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_errors_of_tasks_are_results(here: Path, backend: str) -> None:
    done = plait_map(here, "tasks:fail", "--range", "0", "3", "--backend", backend)
    assert (done.returncode, done.stderr) == (1, "plait: 2 of 4 tasks failed\n")
    even, odd, *_ = lines(done.stdout)
    assert even == {"index": 0, "item": 0, "value": 0}
    trace = odd["error"].pop("traceback")
    assert odd == {"index": 1, "item": 1, "error": {"type": "ValueError", "message": "1 is odd"}}
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "in fail" in trace
    assert "ValueError: 1 is odd" in trace
    assert "plait/worker.py" not in trace


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_error_can_be_told(here: Path, backend: str) -> None:
    done = plait_map(here, "tasks:break_", "1", "--backend", backend)
    assert done.returncode == 1
    (result,) = lines(done.stdout)
    assert result["error"]["type"] == "tasks.Broken"
    assert "in break_" in result["error"]["traceback"]


def test_an_error_stays_an_error_whatever_the_item(here: Path) -> None:
    item = "[" * 600 + "NaN" + "]" * 600
    done = plait_map(here, "tasks:fail", "--jsonl", "1", "NaN", item)
    assert done.returncode == 1
    odd, nan, deep = lines(done.stdout)
    assert (odd["item"], nan["item"]) == (1, "NaN")
    assert odd["error"]["message"] == "1 is odd"
    assert deep["error"]["type"] == "TypeError"


def test_a_dead_worker_is_the_error_of_its_task(here: Path) -> None:
    done = plait_map(here, "tasks:leave", "--range", "0", "2", "--backend", "processes")
    assert (done.returncode, done.stderr) == (1, "plait: 1 of 3 tasks failed\n")
    first, dead, last = lines(done.stdout)
    assert (first["value"], last["value"]) == (0, 2)
    assert dead["error"]["type"] == "plait.errors.WorkerDied"
    assert "exited with code 7" in dead["error"]["message"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_on_error_raise_ends_the_input(here: Path, backend: str) -> None:
    done = plait_map(here, "tasks:fail", *ENDLESS, "--on-error", "raise", "--backend", backend)
    assert done.returncode == 1
    assert "tasks failed; nothing was started after the first error\n" in done.stderr
    results = lines(done.stdout)
    assert [result["index"] for result in results] == list(range(len(results)))
    assert "error" in results[1]


def test_a_number_that_came_as_text_gets_a_hint(here: Path) -> None:
    done = plait_map(here, "math:sqrt", "4", "9")
    assert done.returncode == 1
    assert lines(done.stdout)[0]["error"]["type"] == "TypeError"
    assert "the item '4' was text" in done.stderr
    assert "with --jsonl it is read as JSON" in done.stderr


# --- Wrong usage -------------------------------------------------------------------------

MISTAKES = {
    "no colon": ("math.sqrt 4", "'math.sqrt' names no function: write math:sqrt, with a colon"),
    "a name only": ("sqrt 4", "'sqrt' names no function: write MODULE:FUNCTION"),
    "no function": ("math: 4", "'math:' names no function: write MODULE:FUNCTION"),
    "a file": ("tasks.py:square 4", "Write tasks: a module is named without .py and slashes."),
    "a path": ("a/b.py:f 4", "'a/b.py' is no name of a module. Write a.b: a module"),
    "no module": ("nowhere:f 4", "there is no module nowhere, neither in "),
    "no package": ("nowhere.sub:f 4", "no module nowhere.sub (nowhere is missing), neither in "),
    "no submodule": ("json.nowhere:f 4", "there is no module json.nowhere, neither in "),
    "missing import": ("needs:f 4", "the module needs was found, but it imports nowhere, which"),
    "import fails": ("broken:f 4", "while it was imported: ZeroDivisionError: division by zero ("),
    "import exits": ("leaves:f 4", "the module leaves raised an error while it was imported: Sys"),
    "syntax": ("wrong:f 4", "while it was imported: SyntaxError: "),
    "typing mistake": ("tasks:sqare 4", "no function 'sqare'. Did you mean tasks:square?"),
    "in a class": ("tasks:Photo.opne 4", "no function 'opne'. Did you mean tasks:Photo.open?"),
    "not callable": ("tasks:SIZE 4", "tasks:SIZE is no function but int: 3."),
    "no items": ("math:sqrt", "there are no items: name them as arguments, with --range A B, or"),
    "two sources": ("math:sqrt 4 --range 1 2", "from one source, and here are arguments and --ra"),
    "all sources": ("math:sqrt 4 --range 1 2 --input -", "are arguments and --range and --input."),
    "null with arguments": ("math:sqrt 4 -0", "--null is for --input, or what is piped in; here"),
    "null with a range": ("math:sqrt --range 1 2 --null", "or what is piped in; here are --range."),
    "empty range": ("math:sqrt --range 2 1", "--range 2 1 is empty: the smaller number is first."),
    "range of JSON": ("math:sqrt --range 1 2 --jsonl", "--range makes integers anyway."),
    "broken item": ("math:sqrt --jsonl x", "the argument 'x' is not JSON: Expecting value at col"),
    "long item": (
        f"math:sqrt --jsonl {'1' * 5000}",
        " is not JSON: Exceeds the limit (4300 digits)",
    ),
    "deep item": (f"math:sqrt --jsonl {'[' * 130_000}", " is not JSON: it is nested too deeply."),
    "no file": ("math:sqrt --input nowhere.txt", "nowhere.txt cannot be read: No such file or dir"),
    "a directory": ("math:sqrt --input .", ". cannot be read: Is a directory."),
    "backend": ("math:sqrt 4 --backend ray", "backend='ray' is not allowed: backend must be one"),
    "workers": ("math:sqrt 4 --max-workers 0", "max_workers=0 is not allowed: max_workers must b"),
    "rate": ("math:sqrt 4 --rate 10/x", "rate='10/x' is not allowed: rate must be a text like"),
    "no number": ("math:sqrt 4 --chunksize x", "chunksize='x' is not allowed: chunksize must be"),
    "on error": ("math:sqrt 4 --on-error finish", "on_error must be one of 'return', 'raise'."),
    "coroutine": ("tasks:later 4 --backend threads", "'asyncio' or 'auto' for a coroutine functi"),
    "option": ("math:sqrt 4 --workers 2", "--workers"),
    "nothing": ("", "Missing argument 'MODULE:FUNCTION'."),
}


@pytest.mark.parametrize(("typed", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_get_a_sentence(here: Path, typed: str, sentence: str) -> None:
    (here / "needs.py").write_text("import nowhere\n")
    (here / "broken.py").write_text("x = 1\n1 / 0\n")
    (here / "leaves.py").write_text("raise SystemExit(3)\n")
    (here / "wrong.py").write_text("def f(:\n")
    done = plait_map(here, *typed.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    if "Usage:" not in done.stderr:  # click's own
        assert done.stderr.startswith("plait: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("module", "line"), [("helper", 2), ("wrong", 1), ("caller", 2)])
def test_a_failed_import_says_where(here: Path, module: str, line: int) -> None:
    (here / "helper.py").write_text("import json\nint('x')\n")
    (here / "wrong.py").write_text("def f(:\n")
    (here / "caller.py").write_text("import json\njson.loads('{')\n")
    done = plait_map(here, f"{module}:f", "4")
    assert f"({here / module}.py, line {line})." in done.stderr


def test_stdout_that_is_closed(here: Path) -> None:
    command = [*COMMAND, "map", "math:sqrt", "4"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "plait: standard output is closed, so the results could go nowhere.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_results_that_cannot_be_written(here: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "map", "tasks:square", *ENDLESS],
            cwd=here,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("plait: the results cannot be written: ")
    assert "Traceback" not in done.stderr


# --- Leaving early -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_a_closed_pipe_ends_it_quietly(here: Path, backend: str) -> None:
    with running(here, "tasks:square", *ENDLESS, "--backend", backend) as process:
        assert read_line(process) == {"index": 0, "item": 0, "value": 0}
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_ctrl_c_keeps_what_is_done(here: Path, backend: str) -> None:
    with running(here, "tasks:square", *ENDLESS, "--backend", backend) as process:
        first = read_line(process)
        process.send_signal(signal.SIGINT)
        rest, messages = read_rest(process)
    assert process.returncode == 130
    results = [first, *rest]
    assert [result["value"] for result in results] == [x * x for x in range(len(results))]
    assert messages.startswith("plait: interrupted; what runs may finish")
    assert f"plait: interrupted; outcomes done and printed: {len(results)}\n" in messages


@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_ends_the_waiting_for_an_item(here: Path, backend: str) -> None:
    options = ("--jsonl", "--backend", backend, "--buffersize", "1")
    with running(here, "tasks:square", "--input", "-", *options) as process:
        assert process.stdin is not None
        process.stdin.write("3\n")
        process.stdin.flush()
        assert read_line(process)["value"] == 9
        process.send_signal(signal.SIGINT)
        rest, messages = read_rest(process)
    assert (process.returncode, rest) == (130, [])
    assert "outcomes done and printed: 1\n" in messages


@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_lets_the_running_task_finish(here: Path, backend: str) -> None:
    os.mkfifo(here / "pipe")
    options = ("--backend", backend, "--max-workers", "1", "--chunksize", "1")
    with running(here, "tasks:wait", "--range", "1", "100", *options) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("plait: interrupted; what runs may finish")
        (here / "pipe").write_text("finished")
        results, messages = read_rest(process)
    assert process.returncode == 130
    assert results[0] == {"index": 0, "item": 1, "value": "finished"}
    assert len(results) < 100
    assert messages == f"plait: interrupted; outcomes done and printed: {len(results)}\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_twice_ends_the_running_task(here: Path, backend: str) -> None:
    os.mkfifo(here / "pipe")
    with running(here, "tasks:wait", "--range", "1", "1", "--backend", backend) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("plait: interrupted; what runs may finish")
        process.send_signal(signal.SIGINT)
        assert read_rest(process) == ([], "plait: ended now; what ran is lost\n")
    assert process.returncode == 130


# --- Help, version, progress -------------------------------------------------------------


def plait_command(*arguments: str) -> str:
    return subprocess.run(
        [*COMMAND, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout


OPTIONS = """
--range --input --null --jsonl --backend --max-workers --chunksize --buffersize --start-method
--on-error --ordered --no-ordered --progress --no-progress --report
"""


def test_help_explains() -> None:
    text = plait_command("map", "--help")
    assert "  plait map math:factorial --range 1 10 " in text
    assert "Exit codes: 0 all well, 1 some tasks failed, 2 wrong usage, 130 interrupted." in text
    for option in OPTIONS.split():
        assert f" {option} " in text


def test_option_values_in_the_help_are_those_of_the_options() -> None:
    assert cli_commands._BACKENDS == BACKEND_NAMES
    assert cli_commands._START_METHODS == START_METHODS
    assert cli_commands._ON_ERROR == cli_map.ON_ERROR


def test_plait_alone_shows_help() -> None:
    assert plait_command() == plait_command("--help")
    assert "Call a function with every item" in plait_command()


def test_version() -> None:
    assert plait_command("--version") == f"plait {plait.__version__}\n"
    cli_main = [sys.executable, "-c", "from plait.cli_commands import *; run_command_line()"]
    done = subprocess.run([*cli_main, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"plait {plait.__version__}\n"  # as click says it


SLOW = {"asyncio", "cloudpickle", "numpy", "psutil", "pydantic", "rich", "typer", "logging"}
RUNS = {"plait.calls", "plait.runs"}


@pytest.mark.parametrize(
    ("typed", "others"),
    [
        ("--version", {"click", "typing", "inspect", "json", *RUNS}),
        ("--help", {"json", *RUNS}),
        ("map --help", {"json", *RUNS}),
        ("map math:factorial --range 1 10", {"pathlib", "socket", "subprocess"}),
    ],
)
def test_a_command_loads_no_more_than_it_needs(typed: str, others: set[str]) -> None:
    """What is slow to load makes every command slow to start."""
    program = """
        import sys
        before = set(sys.modules)
        from plait.cli import main
        try:
            main()
        finally:
            print(*set(sys.modules) - before, file=sys.stderr)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *typed.split()],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(done.stderr.split())
    assert loaded & (SLOW | others) == set()
    assert len(loaded) <= (15 if typed == "--version" else 180)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("plait ", {"map", "plan", "sweep"}),
        ("plait map --max", {"--max-workers", "--max-tasks-per-child"}),
        ("plait map math:sqrt --backend p", {"processes"}),
        ("plait sweep math:sqrt --j", {"--jsonl", "--json"}),
    ],
)
def test_a_shell_completes_what_is_typed(typed: str, expected: set[str]) -> None:
    words = typed.split(" ")
    environment = {
        **ENVIRONMENT,
        "_PLAIT_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=True)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_told_how_to_complete(shell: str) -> None:
    environment = {**ENVIRONMENT, "_PLAIT_COMPLETE": f"{shell}_source"}
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=True)
    assert f"_PLAIT_COMPLETE={shell}_complete" in done.stdout


def test_help_that_nobody_reads_to_its_end_is_no_mistake() -> None:
    with Program(
        [*COMMAND, "map", "--help"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize("option", ["by default", "--no-progress"])
def test_a_terminal_shows_progress(here: Path, option: str) -> None:
    ours, theirs = os.openpty()
    command = [*COMMAND, "map", "tasks:square", "--range", "1", "3"]
    with Program(
        [*command, option] if option != "by default" else command,
        cwd=here,
        env={**ENVIRONMENT, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    ) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: read_terminal(ours), b"")).decode()
        assert process.stdout is not None
        assert [result["value"] for result in lines(process.stdout.read())] == [1, 4, 9]
    os.close(ours)
    assert process.returncode == 0
    assert ("square" in shown and "3/3" in shown) == (option == "by default")


def read_terminal(fd: int) -> bytes:
    """Read what a terminal was sent; Linux ends it with an error."""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""


def test_progress_on_request(here: Path) -> None:
    done = plait_map(here, "tasks:square", "--range", "1", "3", "--progress")
    assert "3/3" in done.stderr
    assert [result["value"] for result in lines(done.stdout)] == [1, 4, 9]


def test_a_signal_that_does_not_interrupt_a_wait_is_heard() -> None:
    """It came just before the wait, or, as here, to another thread: C has it, Python not yet."""
    from plait.cli_shared import hearing_signals

    woken: SimpleQueue[int] = SimpleQueue()
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda signum, _: heard.append(signum))
    try:
        with hearing_signals(woken.put):
            kill = threading.Thread(
                target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            )
            kill.start()
            assert woken.get(timeout=20) == signal.SIGUSR1
            kill.join()
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)
