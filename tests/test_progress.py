"""The bar: on a terminal, where others write too, in a notebook, and in a file."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import plait
from plait import progress
from tests.start import Program


class Screen:
    """What a terminal shows: as much of one as a bar needs."""

    def __init__(self) -> None:
        self.rows = [""]
        self._row = self._column = 0

    def write(self, text: str) -> None:
        for code, steps, command, character in re.findall(
            r"(\x1b\[[?]?(\d*)[;\d]*([A-Za-z]))|(.|\s)", text
        ):
            if not code:
                self._put(character)
            elif command == "A":
                self._row -= int(steps or 1)
            elif command == "K":
                self.rows[self._row] = ""

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._row += 1
            if self._row == len(self.rows):
                self.rows.append("")
        else:
            row = self.rows[self._row].ljust(self._column)
            self.rows[self._row] = row[: self._column] + character + row[self._column + 1 :]
            self._column += 1


TASKS = """
    import logging, sys, threading, plait
    logging.basicConfig(format="log: %(message)s", level=logging.INFO)
    logging.getLogger("out").addHandler(logging.StreamHandler(sys.stdout))
    before = [sys.stderr, sys.stdout]

    def f(x):
        logging.info("line %d", x)
        logging.getLogger("out").info("twice %d", x)
        print("printed", x)
        threading.Event().wait(0.01)
        if x % 4 == 0:
            raise ValueError(x)
        return x

"""
RUN = "sum(outcome.ok for outcome in plait.run(f, range(12), progress=True, {options}))"


def on_terminal(tmp_path: Path, code: str, stdout: int | None = None) -> list[str]:
    """Run a program with a terminal as its streams, and return what that shows at the end."""
    ours, theirs = os.openpty()
    environment = {name: text for name, text in os.environ.items() if name != "FORCE_COLOR"}
    with Program(
        [sys.executable, "-c", dedent(TASKS) + code],
        cwd=tmp_path,
        env={**environment, "TERM": "xterm", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: read_terminal(ours), b"")).decode()
        assert process.wait(60) == 0, shown
    os.close(ours)
    screen = Screen()
    screen.write(shown)
    return [row.rstrip() for row in screen.rows]


def read_terminal(fd: int) -> bytes:
    """Read what a terminal was sent; Linux ends it with an error."""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""


@pytest.mark.parametrize("options", ["backend='threads', max_workers=1", "backend='processes'"])
def test_log_lines_stand_above_the_bar_each_in_its_row(tmp_path: Path, options: str) -> None:
    """A handler that was made before the bar has the stream that was there then."""
    rows = on_terminal(tmp_path, RUN.format(options=options))
    for x in range(12):
        assert rows.count(f"log: line {x}") == 1
        assert rows.count(f"log: twice {x}") == rows.count(f"twice {x}") == 1
        assert rows.count(f"printed {x}") == 1
    (bar,) = [row for row in rows if "12/12" in row]
    assert re.fullmatch(r"f +━+ 12/12 3 failed +[\d.,]+/s +\d:\d\d:\d\d +\d:\d\d:\d\d", bar)
    assert not [row for row in rows if "━" in row and row != bar]


def test_handlers_have_their_streams_again_when_the_bar_is_gone(tmp_path: Path) -> None:
    check = """
handlers = [*logging.getLogger().handlers, *logging.getLogger("out").handlers]
assert [sys.stderr, sys.stdout] == before == [handler.stream for handler in handlers]
"""
    on_terminal(tmp_path, RUN.format(options="max_workers=1") + check)


def test_what_is_printed_into_a_file_stays_there_while_a_terminal_shows_a_bar(
    tmp_path: Path,
) -> None:
    with (tmp_path / "out.txt").open("wb") as out:
        rows = on_terminal(tmp_path, RUN.format(options="backend='serial'"), out.fileno())
    printed = (tmp_path / "out.txt").read_text().splitlines()
    assert [row for row in printed if "printed" in row] == [f"printed {x}" for x in range(12)]
    assert [row for row in printed if "twice" in row] == [f"twice {x}" for x in range(12)]
    assert not [row for row in rows if "printed" in row]
    assert rows.count("log: line 11") == 1


def test_without_a_terminal_it_is_one_line_at_the_end(run_python: Any) -> None:
    code = dedent(TASKS) + RUN.format(options="backend='threads'")
    done = run_python("-c", code)
    assert (done.returncode, done.stdout.count("printed")) == (0, 12)
    (bar,) = [row for row in done.stderr.splitlines() if "/12" in row]
    assert "12/12 3 failed" in bar


def test_a_sweep_has_a_bar_too(capsys: pytest.CaptureFixture[str]) -> None:
    plait.sweep(abs, range(3), backends=["threads"], sizes=[1], repeats=1, progress=True)
    assert "4/4" in capsys.readouterr().err


def test_without_stderr_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert plait.map(abs, range(3), progress=True) == [0, 1, 2]


def test_a_bar_in_words() -> None:
    assert progress._picture("f<x>", 5, 20, 2, 2.0) == {
        "text/plain": "f<x>: 5/20, 2 failed, 2.5/s, 2.0 s, 6.0 s left",
        "text/html": '<progress value="5" max="20"></progress> '
        "f&lt;x&gt;: 5/20, 2 failed, 2.5/s, 2.0 s, 6.0 s left",
    }
    assert progress._picture("f", 1000, None, 0, 0.0) == {
        "text/plain": "f: 1,000/?, 0.0 s",
        "text/html": "<progress></progress> f: 1,000/?, 0.0 s",
    }


NOTEBOOK = """
    import nbclient, nbformat
    cells = [
        "import plait",
        "list(plait.run(lambda x: 1 / x, range(3), progress=True));",
        "plait.map(abs, range(300), backend='processes', progress=True);",
        "plait.map(abs, [], progress=True);",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=50, kernel_name="python3").execute()
    for cell in book.cells:
        print([output.get("data", output) for output in cell.outputs])
"""


def test_a_notebook_shows_one_bar_in_each_cell_and_nothing_empty(run_python: Any) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    done = run_python("-c", dedent(NOTEBOOK))
    assert done.returncode == 0, done.stderr
    nothing, failing, mapping, empty = map(ast.literal_eval, done.stdout.splitlines())
    assert nothing == [] == empty
    ((first,), (second,)) = failing, mapping
    assert first["text/plain"].startswith("<lambda>: 3/3, 1 failed, ")
    assert second["text/plain"].startswith("abs: 300/300, ")
    assert second["text/html"].startswith('<progress value="300" max="300"></progress> abs: 300/')
