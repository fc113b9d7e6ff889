"""Hold the README to its word: kill, hang, leak, fail and interrupt, and count what was done.

Run it: python examples/proof.py    (or: make proof; some claims only: proof.py kills leaks; Linux)

Each claim is a sentence of the README. What was done is counted by a witness that plait does not
know: a private file to which each task appends lines. The program exits with 1 if a claim fails.
It has no ``if __name__ == "__main__":``, as none is needed.
"""

import contextlib
import faulthandler
import io
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import plait
from plait import OwnerDied
from plait.shared import Lock

faulthandler.dump_traceback_later(90, exit=True)  # a hang is a failure, too

# If a worker ran this file once more, it would find the folder of the first run, and add a line.
FOLDER = Path(os.environ.get("PLAIT_PROOF") or tempfile.mkdtemp(prefix="plait-proof-"))
os.environ["PLAIT_PROOF"] = str(FOLDER)

PYTHON = [sys.executable, "-W", "error"]
SOON_S = 5.0  # a busy machine gets more than the second that it takes


class Witness:
    """A file to which tasks append lines, each in one write: also two at once, or before a kill."""

    def __init__(self, name: str) -> None:
        self.path = FOLDER / name

    def tell(self, what: str, n: int = 0) -> None:
        """Append a line: what, the number of the task, the process."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, f"{what} {n} {os.getpid()}\n".encode())
        finally:
            os.close(file)

    def heard(self, what: str) -> Counter[int]:
        """Return how often that was told of each task."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        told = [line.split() for line in lines]
        return Counter(int(n) for word, n, _ in told if word == what)

    def pids(self) -> set[int]:
        """Return the processes that told something."""
        return {int(line.split()[2]) for line in self.path.read_text().splitlines()}


main = Witness("main")
main.tell("start")


class Failed(Exception):
    """A claim that does not hold, and what was counted."""


def check(fact: object, counted: str) -> None:
    """Raise Failed unless something is so."""
    if not fact:
        raise Failed(counted)


def each_once(count: int, but: set[int] = frozenset()) -> Counter[int]:  # type: ignore[assignment]
    """Return the counter in which every task has one, but for some."""
    return Counter(n for n in range(count) if n not in but)


# --- The claims ------------------------------------------------------------------------------
# Each function returns what was counted, or raises.

Proof = Callable[[], str]
CLAIMS: list[tuple[str, str, Proof]] = []


def claim(words: str, done: str) -> Callable[[Proof], Proof]:
    """Note a function as the proof of what the README says."""

    def note(proof: Proof) -> Proof:
        CLAIMS.append((words, done, proof))
        return proof

    return note


@contextmanager
def killer() -> Iterator[Callable[[], None]]:
    """Give a function with which a task asks to be killed, from outside, and waits for it."""
    path = FOLDER / f"victims-{time.monotonic_ns()}"
    os.mkfifo(path)

    def kill_all() -> None:
        with path.open() as pids:
            for pid in pids:
                os.kill(int(pid), signal.SIGKILL)

    def die() -> None:
        with path.open("w") as pids:
            pids.write(f"{os.getpid()}\n")
        time.sleep(60)

    thread = threading.Thread(target=kill_all)
    thread.start()
    with path.open("w"):  # the reader sees the end when this is closed
        try:
            yield die
        finally:
            pass
    thread.join()


@claim(
    "a worker that is killed fails one task, not the rest",
    "60 tasks on 2 processes, 6 workers killed by SIGKILL from outside",
)
def kills() -> str:
    witness, victims = Witness("kills"), set(range(5, 60, 10))

    with killer() as die:

        def task(n: int) -> int:
            witness.tell("begin", n)
            if n in victims:
                die()
            witness.tell("end", n)
            return n * n

        values: list[Any] = plait.map(
            task, range(60), backend="processes", max_workers=2, chunksize=1, on_error="return"
        )
    dead = {n for n, value in enumerate(values) if isinstance(value, plait.WorkerDied)}
    right = [n for n in range(60) if values[n] == n * n]
    counted = f"{len(dead)} WorkerDied, {len(right)} values of a loop, in order"
    check(dead == victims and len(right) == 54, counted)
    check(witness.heard("begin") == each_once(60), "tasks began twice, or not at all")
    check(witness.heard("end") == each_once(60, victims), "tasks ended twice, or not at all")
    return f"{counted}; each task begun once, each other ended once"


@claim(
    "A task that had finished is not run again, except among tiny tasks; "
    "`chunksize=1` rules that out, too.",
    "60 tasks with retries=1, 6 workers killed at the first try of a task",
)
def kills_with_retries() -> str:
    witness, victims = Witness("retries"), set(range(5, 60, 10))

    with killer() as die:

        def task(n: int) -> int:
            witness.tell("begin", n)
            if n in victims and witness.heard("begin")[n] == 1:
                die()
            witness.tell("end", n)
            return n * n

        values = plait.map(
            task, range(60), backend="processes", max_workers=2, chunksize=1, retries=1
        )
    begun, ended = witness.heard("begin"), witness.heard("end")
    counted = f"{begun.total()} tries of {len(begun)} tasks, {ended.total()} of them ended"
    check(values == [n * n for n in range(60)], "another list than the loop's")
    check(begun == each_once(60) + Counter(victims), counted)
    check(ended == each_once(60), counted)
    return f"the list of a loop; {counted}, each task once"


@claim(
    "If a worker process is killed, hangs or takes too much memory, only the task that it was "
    "running fails",
    "20 tasks; one never ends and ignores SIGTERM, one takes 400 MB of the 250 that it may have",
)
def hangs() -> str:
    witness = Witness("hangs")

    def task(n: int) -> int:
        if n == 5:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(1)
        if n == 12:
            block = bytearray(os.urandom(1)) * 400_000_000
            time.sleep(30)
            del block
        witness.tell("end", n)
        return n * n

    values: list[Any] = plait.map(
        task, range(20), backend="processes", max_workers=2, chunksize=1,
        task_timeout=2.5, memory_limit="250MB", on_error="return",
    )  # fmt: skip
    late, large = values[5], values[12]
    counted = f"{type(late).__name__}, {type(large).__name__}"
    check(isinstance(late, plait.TaskTimeout), counted)
    check(isinstance(large, plait.MemoryLimitExceeded), counted)
    others = [n for n in range(20) if n not in (5, 12)]
    check([values[n] for n in others] == [n * n for n in others], "other values than the loop's")
    check(witness.heard("end") == each_once(20, {5, 12}), "tasks ended twice, or not at all")
    return f"{counted}, 18 values of a loop; 18 tasks ended, each once"


class Unpicklable(Exception):
    """An exception that cannot travel."""

    def __init__(self) -> None:
        super().__init__("cannot travel")
        self.lock = threading.Lock()


class Poisoned(Exception):
    """An exception whose copy cannot be built: that exits."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (9,)


def raise_value_error() -> None:
    error = ValueError("wrong", 17)
    error.place = "here"  # type: ignore[attr-defined]
    raise error


def raise_unpicklable() -> None:
    raise Unpicklable


def raise_poisoned() -> None:
    raise Poisoned


def raise_interrupt() -> None:
    raise KeyboardInterrupt


BAD = {3: raise_value_error, 6: raise_unpicklable, 9: raise_poisoned, 12: raise_interrupt}
BAD |= {15: lambda: sys.exit(4), 18: lambda: os._exit(5)}


@claim(
    "Your exception arrives as itself, with the worker's traceback",
    "20 tasks; 6 of them raise a ValueError, an unpicklable error, one whose unpickling exits, "
    "KeyboardInterrupt, or call sys.exit and os._exit",
)
def bad_errors() -> str:
    witness = Witness("errors")

    def task(n: int) -> int:
        if n in BAD:
            BAD[n]()
        witness.tell("end", n)
        return n * n

    values: list[Any] = plait.map(
        task, range(20), backend="processes", max_workers=2, chunksize=1, on_error="return"
    )
    others = [n for n in range(20) if n not in BAD]
    check([values[n] for n in others] == [n * n for n in others], "other values than the loop's")
    names = [type(values[n]).__name__ for n in BAD]
    check(all(isinstance(values[n], BaseException) for n in BAD), ", ".join(names))
    own = values[3]
    check(type(own) is ValueError and own.args == ("wrong", 17), repr(own))
    check(own.place == "here" and "raise_value_error" in str(own.__cause__), "not as itself")
    check(isinstance(values[12], KeyboardInterrupt) and values[15].code == 4, ", ".join(names))
    check(isinstance(values[18], plait.WorkerDied), names[-1])
    check(witness.heard("end") == each_once(20, set(BAD)), "tasks ended twice, or not at all")
    return f"{', '.join(names)}; 14 values of a loop, each task once"


PATHS = [f"/{n}" for n in range(40)]
BROKEN = "/33"


@contextmanager
def flaky_server(asked: Counter[str]) -> Iterator[str]:
    """Start a server that fails with 503 for the first two tries of each fifth page."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                asked[self.path] += 1
                tries = asked[self.path]
            is_down = self.path == BROKEN or (int(self.path[1:]) % 5 == 0 and tries < 3)
            self.send_response(503 if is_down else 200)
            self.end_headers()
            self.wfile.write(b"page " + self.path.encode())

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@claim(
    "pages = plait.map(fetch, urls, retries=3, task_timeout=10)  # 4 tries, 10 s each",
    "40 pages of a local server that answers 8 of them twice with 503, and one always",
)
def flaky() -> str:
    asked: Counter[str] = Counter()
    opener = build_opener(ProxyHandler({}))

    def fetch(url: str) -> str:
        try:
            with opener.open(url) as page:
                text: bytes = page.read()
                return text.decode()
        except HTTPError as error:
            error.close()
            raise

    with flaky_server(asked) as address:
        urls = [address + path for path in PATHS]
        values: list[Any] = plait.map(
            fetch, urls, retries=3, task_timeout=10, backoff=0.01, on_error="return"
        )
    expected = {path: 4 if path == BROKEN else 3 if int(path[1:]) % 5 == 0 else 1 for path in PATHS}
    counted = f"the server counted {asked.total()} requests of {len(asked)} pages"
    check(asked == Counter(expected), counted)
    error = values.pop(int(BROKEN[1:]))
    check(getattr(error, "code", None) == 503, repr(error))
    check(values == [f"page {path}" for path in PATHS if path != BROKEN], "other pages")
    return f"{counted}, {asked[BROKEN]} of the broken one; 39 pages in order, one HTTPError 503"


INTERRUPTED = """
import os, signal, time, plait

def task(n):
    time.sleep(0.02)
    file = os.open({witness!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"end %d %d\\n" % (n, os.getpid()))
    os.close(file)
    if n == 20:
        os.killpg(int(os.environ["GROUP"]), signal.SIGINT)  # as Ctrl-C on a terminal does
    return n

os.environ.setdefault("GROUP", str(os.getpid()))
"""


@claim(
    "done = [o.value for o in error.plait_run.outcomes if o.ok]  # what was finished is not lost",
    "a program of its own is interrupted by Ctrl-C, with its workers, amid 10,000 tasks",
)
def interrupt() -> str:
    witness = Witness("interrupt")
    program = INTERRUPTED.format(witness=str(witness.path)) + textwrap.dedent("""
        try:
            plait.map(task, range(10_000), backend="processes", max_workers=2)
        except KeyboardInterrupt as error:
            print(*[o.value for o in error.plait_run.outcomes if o.ok])
        """)
    done = subprocess.run(
        [*PYTHON, "-c", program], capture_output=True, text=True, start_new_session=True, timeout=60
    )
    check(done.returncode == 0 and not done.stderr, done.stderr[-200:])
    values, ended = Counter(map(int, done.stdout.split())), witness.heard("end")
    counted = f"{ended.total()} tasks ended, {values.total()} values in the interrupt"
    check(20 in ended and ended.total() < 10_000, counted)
    check(values == ended and max(ended.values()) == 1, counted)
    return f"{counted}: the same ones"


@claim(
    "Exit code 0: all well; 1: some tasks failed; 2: wrong usage; 130: interrupted.",
    "the same on the command line, with `plait map`",
)
def interrupt_command() -> str:
    witness = Witness("command")
    (FOLDER / "tasks.py").write_text(INTERRUPTED.format(witness=str(witness.path)))
    command = [sys.executable, "-m", "plait.cli", "map", "tasks:task", "--range", "0", "9999"]
    command += ["--backend", "processes", "--max-workers", "2"]
    done = subprocess.run(
        command, cwd=FOLDER, capture_output=True, text=True, start_new_session=True, timeout=60
    )
    lines, ended = done.stdout.count('"value"'), witness.heard("end")
    counted = f"exit code {done.returncode}, {lines} results printed, {ended.total()} tasks ended"
    check(done.returncode == 130 and 20 < lines == ended.total() < 10_000, counted)
    return counted


# --- What is left ----------------------------------------------------------------------------


def in_use() -> tuple[int, int, int, int]:
    """Count descriptors, threads, child processes and their children, and blocks in /dev/shm."""
    children = {os.getpid()}
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    while more := {pid for pid, parent in parents.items() if parent in children} - children:
        children |= more
    blocks = [path.name for path in Path("/dev/shm").glob("*plait*")]
    return (
        len(list(Path("/proc/self/fd").iterdir())),
        threading.active_count(),
        len(children) - 1,
        len(blocks),
    )


@claim(
    "the rest of its chunk runs elsewhere and the pool goes on",
    "15 calls on threads and 15 on processes, in each an error, in 5 a killed worker",
)
def leaks() -> str:
    def task(n: int) -> int:
        time.sleep(0.005)
        if n % 20 == 3:
            raise ValueError(n)
        if n % 60 == 47:
            os.kill(os.getpid(), signal.SIGKILL)
        return n * n

    def call(number: int) -> None:
        first = 20 * number
        for backend in ("threads", "processes"):
            items = [n for n in range(first, first + 20) if backend[0] == "p" or n % 60 != 47]
            values: list[Any] = plait.map(
                task, items, backend=backend, max_workers=2, chunksize=4, on_error="return"
            )
            right = [n * n for n in items if n % 20 != 3 and n % 60 != 47]
            check([v for v in values if isinstance(v, int)] == right, "other values")

    used = []
    for number in range(15):
        call(number)
        used.append(in_use())  # a worker that was killed may be replaced, or not yet
    before, after = map(max, zip(*used[:4], strict=True)), map(min, zip(*used[-4:], strict=True))
    counts = list(zip(before, after, strict=True))
    counted = "; ".join(
        f"{early} to {late} {what}"
        for what, (early, late) in zip(
            ("descriptors", "threads", "processes", "shared blocks"), counts, strict=True
        )
    )
    check(all(late <= early for early, late in counts), counted)
    return f"{counted}: the most after the first calls, the least after the last"


ABANDONED = """
import os, subprocess, sys, time, plait
from plait.shared import List
shared = List(range(100))

def task(n):
    if n == 5:
        subprocess.Popen(["sh", "-c", "echo ready; sleep 60"])
    time.sleep(0 if n < 5 else 60)
    return bytes(1_000_000)

plait.map(task, range(10), backend="processes", max_workers=2)
"""


def marked(token: str) -> set[int]:
    """Return the processes that have inherited a mark."""
    found = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's, or it has just ended
            if token.encode() in environ.read_bytes():
                found.add(int(environ.parent.name))
    return found


def await_ends(pids: set[int], seconds: float) -> set[int]:
    """Wait until processes have ended, and return those that have not."""
    left, deadline = set(), time.monotonic() + seconds
    for pid in pids:
        with contextlib.suppress(ProcessLookupError), ExitStack() as stack:
            file = os.pidfd_open(pid)
            stack.callback(os.close, file)
            if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
                left.add(pid)
    return left


@claim(
    "When your program ends, by SIGKILL too, nothing that it started is left.",
    "a program with workers, a program that a task started, shared data: killed by SIGKILL",
)
def orphans() -> str:
    token = f"PLAIT_PROOF_MARK={os.urandom(8).hex()}"
    temporary = FOLDER / "temporary"
    temporary.mkdir()
    name, _, value = token.partition("=")
    before = set(Path("/dev/shm").glob("*plait*"))
    program = subprocess.Popen(
        [sys.executable, "-c", ABANDONED],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, name: value, "TMPDIR": str(temporary)},
    )
    assert program.stdout is not None
    with program, program.stdout:
        check(program.stdout.readline() == "ready\n", "it did not come so far")
        alive = marked(token)
        program.kill()
    left = await_ends(alive, SOON_S) | marked(token)
    files = [*temporary.iterdir(), *(set(Path("/dev/shm").glob("*plait*")) - before)]
    counted = f"{len(alive)} processes before, {len(left)} after, {len(files)} files left"
    check(len(alive) >= 4 and not left and not files, counted)
    return counted


# --- Other words -----------------------------------------------------------------------------


@claim(
    "A process that is killed while it holds a lock frees it, and the next one gets `OwnerDied`",
    "10 workers take a lock, one after the other, and are killed with it",
)
def locks() -> str:
    lock, witness = Lock("proof"), Witness("locks")

    def task(n: int) -> None:
        has_lock = False
        while not has_lock:  # each death is told once, and then the lock is free
            with contextlib.suppress(OwnerDied):
                has_lock = lock.acquire()
        witness.tell("locked", n)
        os.kill(os.getpid(), signal.SIGKILL)

    plait.map(task, range(10), backend="processes", max_workers=2, chunksize=1, on_error="return")
    counted = f"{witness.heard('locked').total()} had the lock"
    check(witness.heard("locked") == each_once(10), counted)
    try:
        with lock:
            raise Failed("no OwnerDied")
    except OwnerDied as error:
        check("task" in str(error), str(error))
        return f"{counted}; this program is the next one, and OwnerDied names the task"


@claim(
    "Workers' log records, prints and warnings come out in your program, prints before the result "
    "of their task, and also those of a worker that was killed.",
    "20 tasks print a line; one is killed right after it",
)
def prints() -> str:
    said = io.StringIO()

    def task(n: int) -> int:
        print(f"line {n}")
        if n == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    with contextlib.redirect_stdout(said):
        run = plait.run(
            task, range(20), backend="processes", max_workers=2, chunksize=1, on_error="return"
        )
        late = [out.index for out in run if f"line {out.index}\n" not in said.getvalue()]
    lines = Counter(said.getvalue().splitlines())
    counted = f"{lines.total()} lines, {len(late)} of them after their result"
    check(lines == Counter(f"line {n}" for n in range(20)) and not late, counted)
    return counted


@claim(
    'Its processes need no `if __name__ == "__main__":` guard and take lambdas, closures and '
    "whatever a script or a notebook cell defines.",
    "this file has no guard; a lambda and a closure on processes, started in both ways",
)
def no_guard() -> str:
    witness = Witness("guard")

    def square(n: int) -> int:
        witness.tell("end", n)
        return n * n

    workers: set[int] = set()
    for method in ("server", "spawn"):
        options: dict[str, Any] = {"backend": "processes", "start_method": method}
        check(plait.map(square, range(10), **options) == [n * n for n in range(10)], "other values")
        values = plait.map(lambda n: (n, os.getpid()), range(10), **options)
        check([n for n, _ in values] == list(range(10)), "other values")
        workers |= {pid for _, pid in values}
    check(os.getpid() not in workers, "it ran here")
    check(witness.heard("end") == each_once(10) + each_once(10), "tasks ran twice, or not at all")
    starts = main.heard("start").total()
    check(starts == 1, f"this file was run {starts} times")
    return f"this file was run {starts} time, its functions in other processes, each task once"


@claim(
    "a list, in order; raises your function's own error",
    "600 tasks of 0 to 30 ms without any option, of which one fails",
)
def order() -> str:
    witness = Witness("order")

    def task(n: int) -> int:
        witness.tell("begin", n)
        time.sleep(0.03 if n % 100 == 0 else 0.001 * (n % 3))
        if n == 599:
            raise LookupError(n)
        witness.tell("end", n)
        return n * n

    try:
        plait.map(task, range(600))
    except LookupError as error:
        check(error.args == (599,), repr(error))
        done = {o.index: o.value for o in error.plait_run.outcomes if o.ok}  # type: ignore[attr-defined]
    else:
        raise Failed("no error")
    begun, ended = witness.heard("begin"), witness.heard("end")
    counted = f"{begun.total()} tasks begun, {ended.total()} ended, {len(done)} values"
    check(max(begun.values()) == 1 and done == {n: n * n for n in ended}, counted)
    witness.path.unlink()
    check(plait.map(task, range(599)) == [n * n for n in range(599)], "another list than a loop's")
    check(witness.heard("begin") == each_once(599), "tasks ran twice, or not at all")
    return f"its LookupError; {counted}; without that task the loop's list, each task once"


# --- The table -------------------------------------------------------------------------------

WIDTHS = (38, 34, 38, 7)


def row(*cells: str) -> str:
    """Return a row of the table, its cells folded."""
    columns = [
        textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, WIDTHS, strict=True)
    ]
    height = max(map(len, columns))
    padded = [column + [""] * (height - len(column)) for column in columns]
    return "\n".join(
        "  ".join(part.ljust(width) for part, width in zip(line, WIDTHS, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    )


def is_said(words: str) -> bool:
    """Whether the README has these words."""
    readme = Path(__file__).parent.parent / "README.md"
    return " ".join(words.split()) in " ".join(readme.read_text(encoding="utf-8").split())


def judge(words: str, proof: Proof) -> tuple[str, str]:
    """Return what was counted, and the verdict."""
    try:
        counted = proof()
        return (counted, "holds") if is_said(words) else ("the README does not say so", "FAILS")
    except Failed as failed:
        return str(failed), "FAILS"
    except Exception as error:  # noqa: BLE001  whatever it is, the claim does not hold
        return repr(error), "FAILS"


asked = sys.argv[1:]
if unknown := set(asked) - {proof.__name__ for _, _, proof in CLAIMS}:
    sys.exit(f"There is no such claim: {', '.join(unknown)}.")
CLAIMS = [one for one in CLAIMS if not asked or one[2].__name__ in asked]

started = time.monotonic()
rules = row(*("-" * width for width in WIDTHS))
print(row("what the README says", "what was done", "what was counted", "verdict"), rules, sep="\n")
failures = 0
try:
    for words, done, proof in CLAIMS:
        counted, verdict = judge(words, proof)
        failures += verdict != "holds"
        print(row(words, done, counted, verdict), "", sep="\n", flush=True)
finally:
    shutil.rmtree(FOLDER)
seconds = time.monotonic() - started
print(f"{len(CLAIMS) - failures} of {len(CLAIMS)} claims hold, in {seconds:.1f} s")
sys.exit(bool(failures))
