"""What tasks print is there before their results, whatever the environment makes of streams.

A stream that is no terminal is buffered as a whole, unless PYTHONUNBUFFERED is set. So these are
programs of their own, with a pipe for their output and next to nothing in their environment.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.backends.voices import OutputReader
from tests.conftest import Way

BUFFERED: dict[str, str] = {}
UNBUFFERED = {"PYTHONUNBUFFERED": "1"}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=[BUFFERED, UNBUFFERED], ids=["buffered", "unbuffered"])
def buffering(request: pytest.FixtureRequest) -> dict[str, str]:
    """What the environment says of Python's buffers."""
    environ: dict[str, str] = request.param
    return environ


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program with next to nothing in its environment; its output is a pipe."""

    def run(
        program: str,
        *arguments: str,
        encoding: str = "utf-8",
        flags: tuple[str, ...] = (),
        shell: str = "",
        ignored: str = "",
        **environ: str,
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "program.py").write_text("import plait\n" + textwrap.dedent(program))
        command = [sys.executable, *flags, "program.py", *arguments]
        if shell or ignored:
            trap = f"trap '' {ignored}; " if ignored else ""
            command = ["sh", "-c", f'{trap}exec "$@" {shell}', "sh", *command]
        return subprocess.run(
            command,
            encoding=encoding,
            capture_output=True,
            cwd=tmp_path,
            timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8", **environ},
            check=False,
        )

    return run


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what a program printed, having seen that it complained of nothing."""
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def one_thread(way: Way) -> dict[str, int]:
    """Several threads that print into the program's stream mix their lines, in any library."""
    return {"max_workers": 1} if way.name == "threads" else {}


# --- Before the results --------------------------------------------------------------------


def test_what_tasks_print_is_there_before_map_returns(
    run: Run, way: Way, buffering: dict[str, str]
) -> None:
    program = f"""
        def task(x):
            print("task", x)
        async def coroutine(x):
            task(x)
        fn = coroutine if {way.name == "asyncio"} else task
        plait.map(fn, range(4), **{way.options | one_thread(way)})
        print("end")
    """
    *printed, end = lines_of(run(program, **buffering))
    assert (sorted(printed), end) == ([f"task {x}" for x in range(4)], "end")


def test_what_tasks_print_is_there_before_a_future_is_done(
    run: Run, way: Way, buffering: dict[str, str]
) -> None:
    program = f"""
        with plait.Executor(max_workers=1, **{way.executor}) as executor:
            for x in range(4):
                executor.submit(print, "task", x).result()
                print("result", x)
    """
    if way.name == "asyncio":
        program = program.replace("(print, ", "(coroutine, ")
        program = "async def coroutine(*args): print(*args)\n" + textwrap.dedent(program)
    expected = [f"{word} {x}" for x in range(4) for word in ("task", "result")]
    assert lines_of(run(program, **buffering)) == expected


def test_the_command_line_hands_on_what_tasks_print(
    run: Run, way: Way, tmp_path: Path, buffering: dict[str, str]
) -> None:
    (tmp_path / "job.py").write_text(
        f"{'async ' if way.name == 'asyncio' else ''}def task(x):\n    print('task', x)\n"
    )
    arguments = ["map", "job:task", "--range", "1", "4", "--backend", way.options["backend"]]
    if way.is_process:
        arguments += ["--start-method", way.name]
    for name, value in one_thread(way).items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    done = run("import plait.cli; plait.cli.main()", *arguments, **buffering)
    assert done.returncode == 0
    assert sorted(done.stderr.splitlines()) == [f"task {x}" for x in range(1, 5)]
    assert len(done.stdout.splitlines()) == 4


def test_a_program_that_ends_at_once_has_handed_on_what_workers_printed(
    run: Run, process_way: Way, buffering: dict[str, str]
) -> None:
    program = f"""
        import os
        plait.map(print, range(4), max_workers=1, **{process_way.options})
        os._exit(0)
    """
    assert lines_of(run(program, **buffering)) == ["0", "1", "2", "3"]


def test_each_print_is_there_before_its_result(
    run: Run, process_way: Way, buffering: dict[str, str]
) -> None:
    """From Python, from C, and from a program; amid a line, too, which goes on with the next."""
    program = f"""
        import ctypes, io, subprocess, sys
        def task(x):
            printf = ctypes.CDLL(None).printf
            print("python", x)
            printf(b"C %d\\n", x)
            subprocess.run(["echo", "program", str(x)])
            if x % 2:
                print("amid a line of Python: ", end="")
            else:
                printf(b"amid a line of C: ")
        given = dict(max_workers=1, chunksize=1, buffersize=1, **{process_way.options})
        sys.stdout = io.StringIO()
        seen = [sys.stdout.getvalue() for _ in plait.imap(task, range(4), **given)]
        seen.append(sys.stdout.getvalue())
        sys.stdout = sys.__stdout__
        print(seen)
    """
    (line,) = lines_of(run(program, **buffering))
    *seen, end = ast.literal_eval(line)
    expected = ""
    for x, text in enumerate(seen):
        expected += f"python {x}\nC {x}\nprogram {x}\n"
        assert text.startswith(expected)  # it may be further already
        expected += "amid a line of Python: " if x % 2 else "amid a line of C: "
    assert end == expected + "\n"


def test_what_the_initializer_prints_is_there_before_the_first_result(
    run: Run, process_way: Way, buffering: dict[str, str]
) -> None:
    program = f"""
        def start():
            print("started", end=" ")
        given = dict(max_workers=1, initializer=start, **{process_way.options})
        plait.map(print, ["task"], **given)
        print("end")
    """
    assert lines_of(run(program, **buffering)) == ["started task", "end"]


def test_a_task_that_leaves_a_line_open_on_threads_leaves_it_to_python(run: Run) -> None:
    program = """
        plait.map(lambda x: print(x, end=" "), range(3), backend="threads", max_workers=1)
        print("end")
    """
    assert lines_of(run(program)) == ["0 1 2 end"]


# --- Of a worker that dies -----------------------------------------------------------------


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 9)", "os._exit(3)", "os.abort()"])
def test_what_was_printed_before_a_crash_is_there(
    run: Run, process_way: Way, ending: str, buffering: dict[str, str]
) -> None:
    program = f"""
        import ctypes, os, subprocess
        def task(_):
            print("python")
            ctypes.CDLL(None).puts(b"C")
            subprocess.run(["echo", "program"])
            {ending}
        (error,) = plait.map(task, [0], on_error="return", **{process_way.options})
        print(type(error).__name__)
    """
    assert lines_of(run(program, **buffering)) == ["python", "C", "program", "WorkerDied"]


# --- Into which streams --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "allowed"),
    [("latin-1:strict", "é"), ("ascii:backslashreplace", "\\xe9\\u20ac"), ("utf-8", "é€")],
)
@pytest.mark.parametrize("backend", ["serial", "server", "spawn"])
def test_text_becomes_bytes_as_it_does_in_the_parent(
    run: Run, backend: str, codec: str, allowed: str
) -> None:
    """Also that of programs, which print the bytes of the locale."""
    options = {"backend": "processes", "start_method": backend}
    program = f"""
        import subprocess, sys
        def task(_):
            encoding, errors = sys.stdout.encoding, sys.stdout.errors
            print("é€".encode(encoding, "ignore").decode(encoding) or "é€")
            try:
                print("€")
            except UnicodeEncodeError:
                print("refused")
            return encoding, errors
        options = {options if backend != "serial" else {"backend": "serial"}}
        (seen,) = plait.map(task, [0], **options)
        assert seen == (sys.stdout.encoding, sys.stdout.errors), seen
    """
    encoding, _, errors = codec.partition(":")
    done = run(program, encoding=encoding, PYTHONIOENCODING=codec)
    second = "refused" if errors == "strict" else "€".encode(encoding, errors or "strict").decode()
    assert lines_of(done) == [allowed, second]


def test_bytes_that_are_no_text_pass_where_the_parent_lets_them_pass(
    run: Run, process_way: Way
) -> None:
    program = f"""
        import os
        plait.map(lambda _: os.write(1, b"raw \\xff\\n"), [0], **{process_way.options})
    """
    done = run(program, encoding="latin-1", PYTHONIOENCODING="utf-8:surrogateescape")
    assert lines_of(done) == ["raw \xff"]
    done = run(program, encoding="ascii", PYTHONIOENCODING="ascii:strict")
    assert lines_of(done) == [r"raw \ufffd"]


def test_a_stream_that_takes_every_character_gets_every_character(process_way: Way) -> None:
    text = "é€ \U0001f600 \udcff"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        plait.map(print, [text], **process_way.options)
    assert out.getvalue() == text + "\n"


def test_a_stream_that_a_task_puts_in_place_is_its_own(process_way: Way) -> None:
    """What it holds comes before the result; the next task has the worker's streams again."""

    def task(x: int) -> str:
        print("before", x)
        if x == 1:
            sys.stdout = io.TextIOWrapper(sys.stdout.buffer, "utf-8")
            print("wrapped")
        elif x == 2:
            sys.stdout = kept = io.StringIO()
            print("kept")
            return kept.getvalue()
        return ""

    out = io.StringIO()
    given = {"max_workers": 1, "chunksize": 1, **process_way.options}
    with contextlib.redirect_stdout(out):
        assert plait.map(task, range(4), **given) == ["", "", "kept\n", ""]
    assert out.getvalue() == "before 0\nbefore 1\nwrapped\nbefore 2\nbefore 3\n"


def test_streams_that_the_initializer_puts_in_place_stay(process_way: Way) -> None:
    def start() -> None:
        class Loud(io.TextIOBase):
            """Writes all in capitals."""

            def __init__(self, stream: Any) -> None:
                self.stream = stream

            def write(self, text: str) -> int:
                return int(self.stream.write(text.upper()))

        sys.stdout = Loud(sys.stdout)

    def task(x: int) -> None:
        print("task", x)
        if x == 1:
            sys.stdout = io.StringIO()

    out = io.StringIO()
    given = {"max_workers": 1, "chunksize": 1, "initializer": start, **process_way.options}
    with contextlib.redirect_stdout(out):
        plait.map(task, range(3), **given)
    assert out.getvalue() == "TASK 0\nTASK 1\nTASK 2\n"


def test_a_task_may_close_the_files_themselves(process_way: Way) -> None:
    def task(x: int) -> int:
        if x == 1:
            sys.stdout.close()
            os.close(1)
        print("task", x, file=sys.stderr)
        return x

    err = io.StringIO()
    given = {"max_workers": 1, "chunksize": 1, **process_way.options}
    with contextlib.redirect_stderr(err):
        assert plait.map(task, range(4), **given) == [0, 1, 2, 3]
    assert err.getvalue() == "".join(f"task {x}\n" for x in range(4))


def test_a_module_that_was_preloaded_prints_where_tasks_print(
    run: Run, tmp_path: Path, buffering: dict[str, str]
) -> None:
    """It has taken the stream that was there; what it printed itself comes once."""
    (tmp_path / "early.py").write_text(
        "import sys\nout = sys.stdout\nprint('imported', end=' ')\n"
        "def task(x):\n    print('task', x, file=out)\n"
    )
    program = """
        import sys
        sys.path.insert(0, "")
        def task(x):
            import early
            early.task(x)
        for _ in range(2):
            given = dict(preload=("early",), max_workers=1, backend="processes")
            plait.map(task, range(2), **given)
        print("end")
    """
    *printed, end = lines_of(run(program, **buffering))
    assert sorted(printed) == ["imported task 0", "task 0", "task 1", "task 1"]
    assert end == "end"


def test_a_program_that_prints_for_ever_does_not_hold_up_the_parent() -> None:
    reader = OutputReader("stdout", os.open("/dev/zero", os.O_RDONLY))
    assert reader.read() is None  # that is no line
    assert not reader.has_ended
    reader.close()


def test_a_prefix_stands_where_lines_begin(process_way: Way) -> None:
    out = io.StringIO()
    given = {"max_workers": 1, "prefix_output": True, **process_way.options}
    with contextlib.redirect_stdout(out):
        plait.map(print, ["10 %\r20 %\x0b\u2028"], **given)
    assert out.getvalue().count("[process-") == 1
    assert out.getvalue().endswith("] 10 %\r20 %\x0b\u2028\n")


# --- In odd surroundings -------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_program_without_standard_streams_has_its_results(
    run: Run, process_way: Way, tmp_path: Path, closed: str
) -> None:
    """The numbers 0 to 2 are then given to the first files that the program opens."""
    program = f"""
        import pathlib, subprocess
        def task(x):
            print("task", x)
            subprocess.run(["echo", "program", str(x)])
            return x
        for _ in range(2):
            values = plait.map(task, range(4), **{process_way.options})
        pathlib.Path("values").write_text(repr(values))
    """
    done = run(program, shell=closed)
    assert done.returncode == 0
    assert (tmp_path / "values").read_text() == "[0, 1, 2, 3]"
    assert done.stderr == ""
    if ">" not in closed.replace("2>", ""):
        expected = [f"{word} {x}" for word in ("program", "task") for x in range(4)]
        assert sorted(done.stdout.splitlines()) == sorted(2 * expected)


@pytest.mark.parametrize("flag", ["-I", "-E"])
def test_workers_heed_the_environment_no_more_than_the_program(
    run: Run, process_way: Way, tmp_path: Path, flag: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('customized')\n")
    program = f"plait.map(print, range(2), max_workers=1, **{process_way.options})"
    path = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere"}
    assert lines_of(run(program, flags=(flag,), **path)) == ["0", "1"]


def test_a_site_that_puts_streams_of_its_own_in_place_harms_nobody(
    run: Run, process_way: Way, tmp_path: Path, buffering: dict[str, str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import codecs, sys\nsys.stdout = codecs.getwriter('utf-8')(sys.stdout.buffer)\n"
    )
    program = f"""
        plait.map(print, ["é", "€"], max_workers=1, **{process_way.options})
        print("end")
    """
    done = run(program, PYTHONPATH=str(tmp_path), **buffering)
    assert lines_of(done) == ["é", "€", "end"]


def test_a_program_in_the_background_hands_on_what_tasks_print(
    run: Run, process_way: Way, tmp_path: Path
) -> None:
    """A shell has it ignore Ctrl-C, and nohup a hang-up; its input is empty."""
    program = f"plait.map(print, range(2), max_workers=1, **{process_way.options})"
    (tmp_path / "a folder").mkdir()
    done = run(program, shell="</dev/null", ignored="INT HUP", TMPDIR=str(tmp_path / "a folder"))
    assert lines_of(done) == ["0", "1"]


# --- In a notebook -------------------------------------------------------------------------

NOTEBOOK = """
    import nbclient, nbformat
    ways = {
        "server": "backend='processes'",
        "spawn": "backend='processes', start_method='spawn'",
        "threads": "backend='threads', max_workers=1",
        "serial": "backend='serial'",
    }
    cells = ["import plait; executor = plait.Executor(backend='processes', max_workers=1)"]
    for way, given in ways.items():
        cells.append(f"plait.map(lambda x: print('{way}', x), range(4), {given});")
    cells.append("[executor.submit(print, 'executor', x).result() for x in range(4)];")
    cells.append("list(plait.imap(lambda x: print('imap', x), range(4), backend='processes'));")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=50, kernel_name="python3").execute()
    for cell in book.cells:
        texts = [output["text"] for output in cell.outputs if output.get("name") == "stdout"]
        print(sorted("".join(texts).splitlines()))
"""


def test_what_tasks_print_is_in_the_cell_of_a_notebook(run: Run) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    done = run(NOTEBOOK)
    assert done.returncode == 0, done.stderr
    words = ("server", "spawn", "threads", "serial", "executor", "imap")
    expected = [[], *([f"{word} {x}" for x in range(4)] for word in words)]
    assert [ast.literal_eval(line) for line in done.stdout.splitlines()] == expected
