"""What a task makes and returns: it arrives, whatever becomes of its worker; nobody keeps it."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import plait
from plait.backends.child_main import _Worker
from plait.backends.messages import TAKEN, WORDS
from plait.errors import NotPicklable, SharedDataGone, TaskTimeout, WorkerDied
from plait.shared import (
    Array,
    Barrier,
    BoundedSemaphore,
    Condition,
    Counter,
    Dict,
    Event,
    LifoQueue,
    List,
    Lock,
    Pipe,
    PriorityQueue,
    Queue,
    RLock,
    Semaphore,
    Value,
    checked,
)
from tests.conftest import PROCESS_WAYS, Way, wait_gone

MB = 1024 * 1024


def filled(queue: Any) -> Any:
    queue.put_many([1, 2])
    return queue


def pipe_end() -> Any:
    left, right = Pipe()
    right.send("sent")
    return left


def array() -> Any:
    return Array(float, [1.5, 2.5])


MAKERS: dict[str, Callable[[], Any]] = {
    "Lock": Lock,
    "RLock": RLock,
    "Semaphore": lambda: Semaphore(2),
    "BoundedSemaphore": lambda: BoundedSemaphore(2),
    "Condition": Condition,
    "Event": Event,
    "Barrier": lambda: Barrier(1),
    "Value": lambda: Value(int, 7),
    "Counter": lambda: Counter(7),
    "Array": array,
    "Queue": lambda: filled(Queue()),
    "redelivered": lambda: filled(Queue(redeliver=True)),
    "LifoQueue": lambda: filled(LifoQueue()),
    "PriorityQueue": lambda: filled(PriorityQueue()),
    "List": lambda: List(["a"]),
    "Dict": lambda: Dict({"a": 1}),
    "checked": lambda: checked(List(["a"])),
    "Pipe": Pipe,
    "Connection": pipe_end,
}
CASES = [*(("server", kind) for kind in MAKERS), ("spawn", "all of them")]
"""All at once where workers take long to start."""
each_kind = pytest.mark.parametrize(("way", "kind"), CASES, indirect=["way"])


def is_well(kind: str, made: Any) -> bool:
    """Use what has arrived, as who made it left it."""
    if kind == "all of them":
        return all(is_well(one, made[one]) for one in MAKERS)
    if kind in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"):
        with made:
            return True
    if kind == "Event":
        made.set()
        return bool(made.wait(0))
    if kind == "Barrier":
        return bool(made.wait(1) == 0)
    if kind in ("Value", "Counter"):
        return bool(made.add(1) == 8)
    if "Queue" in kind or kind == "redelivered":
        return {made.get(timeout=1), made.get(timeout=1)} == {1, 2}
    if kind == "Pipe":
        left, right = made
        left.send(3)
        return bool(right.recv() == 3)
    if kind == "Connection":  # the other end was let go of
        assert made.recv() == "sent"
        with pytest.raises(EOFError):
            made.recv()
        return True
    return list(made) == ([1.5, 2.5] if kind == "Array" else ["a"])


class Gone:
    """Kills who pickled it as it is unpickled, before what comes after it is."""

    def __reduce__(self) -> Any:
        return come_after, (os.getpid(),)

    def __repr__(self) -> str:
        return "Gone()"


def come_after(pid: int) -> Gone:
    if pid != os.getpid():
        os.kill(pid, signal.SIGKILL)
        assert not wait_gone({pid})
    return Gone()


def make(kind: str) -> Any:
    if kind == "all of them":
        return {one: make(one) for one in MAKERS}
    return MAKERS[kind]()


def make_in_containers(kind: str) -> Any:
    return [Gone(), {"it": (make(kind), kind)}]


class Carrier(Exception):
    """An error with something shared."""


class StubbornCarrier(Exception):
    """One that pickle alone cannot build."""

    def __init__(self, gone: Gone, made: Any, text: str) -> None:
        super().__init__(text)
        self.gone, self.made = gone, made


def fail_with(kind: str) -> None:
    raise Carrier(Gone(), make(kind))


def fail_stubbornly_with(kind: str) -> None:
    raise StubbornCarrier(Gone(), make(kind), "no")


@each_kind
def test_what_a_task_makes_arrives(way: Way, kind: str) -> None:
    for made in plait.map(make, [kind] * 3, max_workers=2, **way.options):
        assert is_well(kind, made)


@each_kind
def test_it_arrives_within_others_after_its_worker_has_ended(way: Way, kind: str) -> None:
    (held,) = plait.map(make_in_containers, [kind], max_workers=1, **way.options)
    assert is_well(kind, held[1]["it"][0])


@each_kind
def test_it_arrives_with_an_error_after_its_worker_has_ended(way: Way, kind: str) -> None:
    options = {"max_workers": 1, **way.options}
    (outcome,) = plait.run(fail_with, [kind], **options)
    assert isinstance(outcome.error, Carrier)
    assert is_well(kind, outcome.error.args[1])
    (outcome,) = plait.run(fail_stubbornly_with, [kind], **options)
    assert isinstance(outcome.error, StubbornCarrier)
    assert is_well(kind, outcome.error.made)


def test_many_small_tasks_sent_together(process_way: Way) -> None:
    with plait.Executor(max_workers=2, **process_way.executor) as executor:
        values = list(executor.map(count_up, range(2000)))
    assert [value if isinstance(value, int) else value[0] for value in values] == [*range(2000)]


def count_up(n: int) -> Any:
    return n if n % 50 else List([n])


@pytest.mark.parametrize("chunksize", [1, 3])
def test_it_arrives_from_workers_that_end_at_once(chunksize: int, process_way: Way) -> None:
    arrays = plait.map(
        numbered, range(6), max_workers=2, max_tasks_per_child=chunksize, chunksize=chunksize,
        **process_way.options,
    )  # fmt: skip
    assert [list(array) for array in arrays] == [[n] for n in range(6)]


def numbered(n: int) -> Array:
    return Array(int, [n])


def test_it_arrives_by_futures_that_are_read_after_the_pool_is_closed(process_way: Way) -> None:
    with plait.Executor(max_workers=2, **process_way.executor) as executor:
        futures = [executor.submit(numbered, n) for n in range(6)]
    assert [list(future.result()) for future in futures] == [[n] for n in range(6)]


def test_it_waits_for_who_reads_late(process_way: Way) -> None:
    """Nobody reads the channels meanwhile, and the workers have nothing else to do."""
    done = Semaphore(0, on_owner_death="ignore")

    def task(n: int) -> Array:
        done.release()
        return numbered(n)

    arrays: Iterator[Array] = plait.imap(
        task, range(8), max_workers=2, chunksize=1, **process_way.options
    )
    first = next(arrays)
    for _ in range(2):  # the first one of each worker
        assert done.acquire(timeout=30)
    assert [list(array) for array in (first, *arrays)] == [[n] for n in range(8)]


def test_it_arrives_though_the_next_task_is_ended(process_way: Way) -> None:
    found: list[Any] = plait.map(
        array_or_sleep, [0, 1, 0], max_workers=1, chunksize=3, task_timeout=0.3, on_error="return",
        **process_way.options,
    )  # fmt: skip
    assert [type(one) for one in found] == [Array, TaskTimeout, Array]
    assert list(found[0]) == list(found[2]) == [0]


def array_or_sleep(seconds: int) -> Array:
    time.sleep(60 * seconds)
    return Array(int, 1)


def test_what_was_lost_with_its_worker_is_told(process_way: Way) -> None:
    """It was sent, but nobody read that before the worker was killed."""
    go = Event()

    def task(n: int) -> Array:
        if n == 1:
            assert go.wait(30)
        if n == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.002)  # or it is not sent before the next task begins
        return numbered(n)

    outcomes = iter(plait.run(task, range(3), max_workers=1, chunksize=3, **process_way.options))
    first = next(outcomes)
    assert list(first.value) == [0]
    go.set()
    assert not wait_gone({first.pid})
    lost, killed = sorted(outcomes, key=lambda outcome: outcome.index)
    assert isinstance(lost.error, NotPicklable)
    assert isinstance(lost.error.__cause__, SharedDataGone)
    assert f"pid {first.pid}, has it any more: it has ended" in str(lost.error)
    assert isinstance(killed.error, WorkerDied)


def test_who_is_condemned_stays_until_it_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the parent looks; where it is gone, that is the end."""
    words = [0] * WORDS

    def wait() -> None:
        heard.append(len(worker._sent))
        if not told:
            raise EOFError
        words[TAKEN] = told.pop(0)

    worker: Any = object.__new__(_Worker)
    worker._page, worker._receiver = SimpleNamespace(words=words), SimpleNamespace(wait=wait)
    worker._sent, worker._sent_ever = deque([{1}, {2}]), 5
    told, heard = [4, 4, 5], list[int]()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    words[TAKEN] = 3
    worker._stay_until_taken()
    assert (heard, worker._sent) == ([2, 1, 1], deque())
    worker._stay_until_taken()
    worker._sent.append({3})
    worker._sent_ever += 1
    with pytest.raises(EOFError):
        worker._stay_until_taken()


def test_a_task_may_return_what_it_was_given(process_way: Way) -> None:
    given = Array(int, [5]), Lock()
    came: list[Any] = plait.map(list, [given] * 3, max_workers=2, **process_way.options)
    assert all(one == [*given] for one in came)


# --- Nobody keeps it ---------------------------------------------------------------------


def files_of(pid: int, kind: str) -> int:
    """Return how many files of a kind a process has open."""
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += f"memfd:plait-{kind}" in os.readlink(link)  # noqa: PTH115
        except OSError:  # it was closed meanwhile
            continue
    return found


def wait_until_none(pid: int, kind: str) -> None:
    """Wait until a process has let go; nothing else tells of it, so this looks again and again."""
    until = time.monotonic() + 10
    while files_of(pid, kind):
        assert time.monotonic() < until
        time.sleep(0.001)


def mapped_bytes(pid: int) -> int:
    """Return for how much of arrays a process has memory."""
    found = 0
    is_array = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            is_array = "memfd:plait-array" in line
        elif is_array and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


def large(_: int) -> tuple[int, Array]:
    array = Array("B", 32 * MB)
    array.memory()[:] = b"x" * array.nbytes
    return os.getpid(), array


@pytest.mark.usefixtures("no_files_left")
@pytest.mark.parametrize("chunksize", [1, 2])
def test_the_memory_is_freed_once_all_have_dropped_it(chunksize: int, process_way: Way) -> None:
    made = plait.map(large, range(2), max_workers=1, chunksize=chunksize, **process_way.options)
    ((pid, array), _) = made
    assert array[32 * MB - 1] == ord("x")
    wait_until_none(pid, "array")  # the worker has nothing to do, and yet lets go of it
    assert mapped_bytes(pid) == 0
    del made, array, _
    gc.collect()
    assert mapped_bytes(os.getpid()) == files_of(os.getpid(), "array") == 0


@pytest.mark.usefixtures("no_files_left")
@pytest.mark.parametrize("chunksize", [1, 50, 200])
def test_many_arrays_of_a_worker_leave_no_file(chunksize: int, process_way: Way) -> None:
    made = plait.run(
        numbered, range(200), max_workers=1, chunksize=chunksize, **process_way.options
    )
    pids = set()
    for outcome in made:
        pids.add(outcome.pid)
        assert list(outcome.value) == [outcome.index]
    (pid,) = pids
    del made, outcome
    gc.collect()
    wait_until_none(pid, "array")
    assert files_of(os.getpid(), "array") == 0
    assert files_of(pid, "arena") <= 2


def keep_count(n: int) -> tuple[int, Array]:
    return files_of(os.getpid(), "array"), numbered(n)


def test_a_worker_lets_go_within_a_long_chunk(process_way: Way) -> None:
    """Each waits for the one before to have arrived; it was let go of as the next was sent."""
    turns = Semaphore(1, on_owner_death="ignore")

    def task(n: int) -> tuple[int, Array]:
        assert turns.acquire(timeout=30)
        time.sleep(0.002)  # or it is not sent before the next task begins
        return keep_count(n)

    counts = []
    for outcome in plait.run(task, range(20), max_workers=1, chunksize=20, **process_way.options):
        counts.append(outcome.value[0])
        turns.release()
    assert max(counts) <= 2 * 2  # each array has two files


SHARES_NOTHING = """
import sys, plait

def task(n):
    return [n], "plait.shared.memory" in sys.modules

def fail(n):
    raise ValueError([n])

if __name__ == "__main__":
    options = dict(backend="processes", start_method=sys.argv[1])
    print({loaded for _, loaded in plait.map(task, range(100), **options)})
    print({str(outcome.error) for outcome in plait.run(fail, [3, 3], **options)})
    print("plait.shared.memory" in sys.modules)
"""


@pytest.mark.parametrize("method", PROCESS_WAYS)
def test_who_shares_nothing_loads_nothing_of_it(
    method: str, run_python: Any, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SHARES_NOTHING)
    ended = run_python("-W", "error", "script.py", method)
    assert (ended.stdout, ended.stderr) == ("{False}\n{'[3]'}\nFalse\n", "")
