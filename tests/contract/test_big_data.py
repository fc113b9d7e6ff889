"""Large arguments and results: equal, one's own, and their memory comes back."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plait
from plait import pools, segments
from plait.backends.contract import Setting
from plait.heartbeat import has_gil
from plait.host import monotonic
from plait.outcome import Call, Chunk
from plait.segments import SEGMENT_BYTES, SegmentStore, SegmentView
from tests.conftest import Way, children, close_all, files, only, wait_gone

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
Array = Any  # of numpy

COUNT = 40_000  # numbers in an array that is worth a segment
NBYTES = 8 * COUNT
DEADLINE_S = 10.0


def full(number: float, count: int = COUNT) -> Array:
    return np.full(count, float(number))


def is_full(array: Array, number: float) -> bool:
    return bool((array == number).all())


def pools_of(way: Way, max_workers: int = 2) -> list[Any]:
    """Return the warm pools that maps with so many workers use: two if several ran at once."""
    warm = [warm for warm in pools._pools.warm if warm.key[1:3] == (max_workers, way.name)]
    return [one.backend for one in warm]


def pool_of(way: Way, max_workers: int = 2) -> Any:
    """Return the warm pool of maps that ran one after the other."""
    (pool,) = pools_of(way, max_workers)
    return pool


def held_at_last(backend: Any) -> int:
    """Read what workers say until nothing is held; return how many bytes are in the end."""
    told = threading.Condition(backend.lock)
    with backend.lock:
        backend._turns.wait_until(
            lambda: not backend.store.held_bytes, told, monotonic() + DEADLINE_S
        )
    return int(backend.store.held_bytes)


def held_by_worker(_: object) -> int:
    """Return how much a worker has in use of its memory for results."""
    stores = [one for one in gc.get_objects() if isinstance(one, SegmentStore)]
    return sum(one.held_bytes for one in stores)


def memory_of(fd: int) -> int:
    """Return how many bytes of memory a file takes."""
    return os.fstat(fd).st_blocks * 512


# --- Every kind arrives as it was ----------------------------------------------------------


def make(kind: str) -> Any:
    """Make a large thing; on whatever side, it is the same one."""
    array = np.arange(COUNT, dtype=np.float64).reshape(200, -1)
    data = bytes(range(256)) * 1000
    fixed = array.copy()
    fixed.flags.writeable = False
    objects = np.empty(30_000, object)
    objects[:] = [None, "text", 1.5] * 10_000
    things: dict[str, Callable[[], Any]] = {
        "bytes": lambda: data,
        "bytearray": lambda: bytearray(data),
        "memoryview": lambda: memoryview(data),
        "text": lambda: "text " * 50_000,
        "array": lambda: array,
        "matrix in the order of Fortran": lambda: np.asfortranarray(array),
        "transposed": lambda: array.T,
        "every other number": lambda: array[::2, ::3],
        "backwards": lambda: array[::-1],
        "read-only": lambda: fixed,
        "of objects": lambda: objects,
        "of records": lambda: np.zeros(30_000, dtype=[("a", "i4"), ("b", "f8")]),
        "of times": lambda: np.arange(COUNT).astype("datetime64[s]"),
        "without numbers": lambda: np.empty((0, 5)),
        "of no dimension": lambda: np.array(2.5),
        "a list of arrays": lambda: [array, array[:5], array * 2],
        "a dict of arrays": lambda: {"a": array, "b": array.T, "c": data},
        "a tuple": lambda: (data, 1, bytearray(data), [array]),
        "many small arrays": lambda: [np.full(100, n) for n in range(500)],
        "a list of numbers": lambda: list(range(60_000)),
    }
    return things[kind]() if kind else list(things)


KINDS = make("")


def is_same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return bool(
            one.dtype == other.dtype
            and one.flags.writeable == other.flags.writeable
            and np.array_equal(one, other)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    return bool(one == other)


@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
def test_arguments_of_every_kind_arrive_as_they_were(way: Way, chunksize: Any) -> None:
    def arrived(kind: str, item: Any) -> bool:
        return is_same(item, make(kind))

    items = [make(kind) for kind in KINDS]
    values = plait.map(
        way.fn(arrived), KINDS, items, chunksize=chunksize, max_workers=2, **way.options
    )
    assert dict(zip(KINDS, values, strict=True)) == dict.fromkeys(KINDS, True)
    assert all(is_same(item, make(kind)) for kind, item in zip(KINDS, items, strict=True))


@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
def test_results_of_every_kind_arrive_as_they_were(way: Way, chunksize: Any) -> None:
    values = plait.map(way.fn(make), KINDS, chunksize=chunksize, max_workers=2, **way.options)
    same = {kind: is_same(value, make(kind)) for kind, value in zip(KINDS, values, strict=True)}
    assert same == dict.fromkeys(KINDS, True)


def test_an_item_that_is_large_by_itself_arrives(way: Way) -> None:
    items = [make(kind) for kind in KINDS]
    values = plait.map(way.fn(lambda item: item), items, max_workers=2, **way.options)
    same = {kind: is_same(value, make(kind)) for kind, value in zip(KINDS, values, strict=True)}
    assert same == dict.fromkeys(KINDS, True)


def test_every_size_arrives_whole(way: Way) -> None:
    def echo(kind: str, data: Any) -> Any:
        return kind, type(data) is MAKERS[kind], data

    limits = (64 * 1024, SEGMENT_BYTES)
    sizes = [0, 1, 4095, 4096, *(limit + more for limit in limits for more in (-1, 0, 1, 4097))]
    sent = [(kind, MAKERS[kind](os.urandom(size))) for kind in MAKERS for size in sizes]
    got = plait.starmap(way.fn(echo), sent, max_workers=2, **way.options)
    assert got == [(kind, True, data) for kind, data in sent]
    assert all(type(data) is MAKERS[kind] for kind, _, data in got)


MAKERS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
}


def test_what_a_function_carries_arrives(way: Way) -> None:
    array, data = full(3), b"x" * 300_000

    def closure(x: int) -> Any:
        return x, is_full(array, 3), data == b"x" * 300_000

    def default(x: int, array: Array = array, data: bytes = data) -> Any:
        return x, is_full(array, 3), data == b"x" * 300_000

    for fn in (closure, default, lambda x: closure(x)):
        values = plait.map(way.fn(fn), range(5), max_workers=2, **way.options)
        assert values == [(x, True, True) for x in range(5)]


@only("serial", "threads", "server", "spawn")
def test_what_a_partial_carries_arrives(way: Way) -> None:
    def task(array: Array, x: int, data: bytes) -> Any:
        return x, is_full(array, 3), data == b"x" * 300_000

    fn = partial(task, full(3), data=b"x" * 300_000)
    values = plait.map(fn, range(5), max_workers=2, **way.options)
    assert values == [(x, True, True) for x in range(5)]


@only("serial", "threads", "asyncio")
def test_where_memory_is_shared_nothing_is_copied(way: Way) -> None:
    def change(array: Array) -> Array:
        array += 1
        return array

    items = [full(n) for n in range(5)]
    values = plait.map(way.fn(change), items, max_workers=2, **way.options)
    for n, (item, value) in enumerate(zip(items, values, strict=True)):
        assert item is value
        assert is_full(item, n + 1)


# --- What a task, or the caller, changes ---------------------------------------------------


def add_one(array: Array) -> float:
    array += 1
    return float(array[0])


KEPT: dict[Any, Any] = {}  # of a worker, from task to task


def add_one_and_keep(array: Array) -> float:
    array += 1
    KEPT[len(KEPT)] = array
    return float(array[0])


def add_one_and_fail(array: Array) -> Any:
    array += 1
    raise LookupError(float(array[0]))


def clear_kept(_: object) -> None:
    KEPT.clear()


@pytest.fixture
def nothing_kept(process_way: Way) -> Iterator[None]:
    """Have the workers forget what tasks kept, before and after a test."""
    options = {"max_workers": 1, "chunksize": 1, **process_way.options}
    plait.map(clear_kept, range(2), **options)
    yield
    plait.map(clear_kept, range(2), **options)


@pytest.mark.parametrize("chunksize", [1, 5, "auto"])
def test_what_a_task_changes_is_seen_by_no_other_task(process_way: Way, chunksize: Any) -> None:
    array = full(1)
    options: dict[str, Any] = {"max_workers": 1, **process_way.options}
    assert plait.map(add_one, [array] * 20, chunksize=chunksize, **options) == [2.0] * 20
    assert is_full(array, 1)


@pytest.mark.parametrize("chunksize", [1, 5])
def test_what_a_task_changed_and_kept_is_seen_by_no_other_task(
    process_way: Way, nothing_kept: None, chunksize: int
) -> None:
    array = full(1)
    options: dict[str, Any] = {"max_workers": 1, **process_way.options}
    values = plait.map(add_one_and_keep, [array] * 20, chunksize=chunksize, **options)
    assert values == [2.0] * 20
    assert is_full(array, 1)


@pytest.mark.parametrize("chunksize", [1, 5])
def test_what_a_failed_task_changed_is_seen_by_no_other_task(
    process_way: Way, chunksize: int
) -> None:
    array = full(1)
    values: list[Any] = plait.map(
        add_one_and_fail,
        [array] * 20,
        chunksize=chunksize,
        max_workers=1,
        on_error="return",
        **process_way.options,
    )
    assert [error.args for error in values] == [(2.0,)] * 20
    assert is_full(array, 1)


def run_lane(
    backend: Any, fn: Any, chunks: Iterable[Chunk], *, keeps: bool = True
) -> dict[int, Any]:
    """Run chunks through a lane whose items are known to stay as they are; values by index."""
    lane = backend.open_lane(Call(fn), Setting(keeps_items=keeps))
    found: dict[int, Any] = {}
    try:
        for chunk in chunks:
            lane.submit(chunk)
            while lane.pending:
                for finished in lane.wait_outcomes():
                    for outcome in finished.outcomes():
                        found[outcome.index] = outcome.value if outcome.ok else outcome.error
    finally:
        lane.close()
    return found


@pytest.mark.parametrize("task", [add_one, add_one_and_keep])
@pytest.mark.parametrize("size", [1, 4])
def test_what_is_laid_down_for_many_chunks_is_seen_unchanged_by_all(
    process_way: Way, task: Any, size: int
) -> None:
    array = full(1)
    with plait.Executor(1, **process_way.executor) as executor:
        backend: Any = executor._backend
        chunks = [Chunk(first, [array] * size) for first in range(0, 5 * size, size)]
        assert run_lane(backend, task, chunks) == dict.fromkeys(range(5 * size), 2.0)
        assert is_full(array, 1)
        executor.submit(clear_kept, 0).result()
        executor.submit(abs, 0).result()
        assert held_at_last(backend) == 0


def test_a_task_that_is_tried_again_gets_its_argument_as_it_was(
    process_way: Way, tmp_path: Path
) -> None:
    def fail_once(array: Array) -> float:
        value = add_one(array)
        mark = tmp_path / str(array[1])
        if not mark.exists():
            mark.touch()
            raise LookupError("the first time")
        return value

    items = [full(n) for n in range(6)]
    values = plait.map(fail_once, items, max_workers=2, retries=1, **process_way.options)
    assert values == [n + 1 for n in range(6)]
    assert held_at_last(pool_of(process_way)) == 0


@pytest.mark.parametrize("chunksize", [1, 4, "auto"])
def test_an_item_that_is_changed_between_two_maps_arrives_changed(way: Way, chunksize: Any) -> None:
    def first(array: Array) -> float:
        return float(array[0])

    array, data = full(0), bytearray(300_000)
    for number in range(1, 5):
        array += 1
        data[:] = bytes([number]) * len(data)
        items: list[Any] = [array, data] * 6
        values = plait.map(way.fn(first), items, chunksize=chunksize, max_workers=2, **way.options)
        assert values == [number] * 12


@only("serial", "server", "spawn")
def test_a_generator_may_fill_the_same_buffer_for_each_item(way: Way) -> None:
    buffer = full(0)

    def states() -> Iterator[Array]:
        for number in range(30):
            buffer[:] = number
            yield buffer

    def read(array: Array) -> tuple[float, bool]:
        return float(array[0]), is_full(array, array[0])

    # An item is read only when the one before it is on its way.
    values = plait.imap(read, states(), buffersize=1, max_workers=2, **way.options)
    assert list(values) == [(number, True) for number in range(30)]
    values = iter(plait.map(read, states(), chunksize=1, max_workers=2, **way.options))
    assert list(values) == [(number, True) for number in range(30)]


class Frames:
    """Items that are read into the same buffer, one after the other."""

    def __init__(self) -> None:
        self.buffer = full(0)

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[Array]:
        for number in range(20):
            self.buffer[:] = number
            yield self.buffer


@only("serial", "server", "spawn")
def test_a_sequence_may_fill_the_same_buffer_for_each_item(way: Way) -> None:
    values = plait.map(
        lambda array: float(array[5]), Frames(), chunksize=1, max_workers=2, **way.options
    )
    assert values == list(range(20))


def test_what_the_caller_writes_into_a_result_is_in_no_other_result(process_way: Way) -> None:
    options: dict[str, Any] = {"max_workers": 1, "chunksize": 1, **process_way.options}
    first = plait.map(full, range(10), **options)
    for n, array in enumerate(first):
        array += 100
        assert is_full(array, n + 100)
    second = plait.map(full, range(10), **options)
    for number in (3, 5, 7):
        first[number] = None  # its memory is used for what comes next
    third = plait.map(full, range(10), **options)
    del second
    fourth = plait.map(full, range(10), **options)
    for n, array in enumerate(first):
        assert array is None or is_full(array, n + 100)
    for values in (third, fourth):
        assert all(is_full(array, n) for n, array in enumerate(values))


# --- Results stay --------------------------------------------------------------------------


def with_pid(n: int) -> tuple[int, Array, bytes]:
    return os.getpid(), full(n), bytes([n]) * 200_000


def are_right(results: list[tuple[int, Array, bytes]]) -> bool:
    return all(
        is_full(array, n) and data == bytes([n]) * 200_000
        for n, (_, array, data) in enumerate(results)
    )


def test_results_stay_when_their_pool_is_closed(process_way: Way, clean: None) -> None:
    results = plait.map(with_pid, range(8), chunksize=1, max_workers=2, **process_way.options)
    close_all()
    assert not wait_gone(children())
    assert are_right(results)
    results[0][1][:] = 9  # and can be written to
    assert is_full(results[0][1], 9)
    assert are_right(plait.map(with_pid, range(8), max_workers=2, **process_way.options))


def test_results_stay_when_their_worker_is_killed(process_way: Way) -> None:
    options: dict[str, Any] = {"max_workers": 2, "chunksize": 1, **process_way.options}
    results = plait.map(with_pid, range(8), **options)
    pids = {pid for pid, _, _ in results}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert not wait_gone(pids)
    assert are_right(results)
    for _ in range(3):
        assert are_right(plait.map(with_pid, range(8), **options))
    assert are_right(results)


def test_results_stay_when_thousands_come_after_them(process_way: Way) -> None:
    options: dict[str, Any] = {"max_workers": 2, **process_way.options}
    results = plait.map(with_pid, range(8), **options)
    count = SEGMENT_BYTES // 8
    later = plait.imap(partial(full, count=count), range(3000), **options)
    sample: list[Array] = []
    for n, array in enumerate(later):
        assert array[0] == array[-1] == n
        if n % 300 == 0:
            sample.append(array)
    assert are_right(results)
    assert all(is_full(array, 300 * n) for n, array in enumerate(sample))


def test_results_stay_when_their_worker_was_replaced(process_way: Way, clean: None) -> None:
    with plait.Executor(2, max_tasks_per_child=2, **process_way.executor) as executor:
        futures = [executor.submit(with_pid, n) for n in range(12)]
        results = [future.result() for future in futures]
        assert len({pid for pid, _, _ in results}) >= 6
        assert are_right(results)
    assert are_right(results)
    del results, futures


FORK = """
import os, sys, warnings
import numpy as np
import plait

options = dict(backend="processes", start_method=sys.argv[1], max_workers=2, chunksize=1)

def full(n):
    return np.full(40_000, float(n)), bytes([n]) * 200_000

results = plait.map(full, range(6), **options)
results[1][0][:] = 100
kept = results[5]
gate, opener = os.pipe()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # there are threads
    pid = os.fork()
if pid == 0:
    os.close(opener)
    os.read(gate, 1)  # until the parent has done the rest
    right = [(array == (100 if n == 1 else n)).all() for n, (array, _) in enumerate(results)]
    del results, kept
    own = plait.map(full, range(2), **options)
    right += [(array == n).all() for n, (array, _) in enumerate(own)]
    print("child", all(right), flush=True)
    os._exit(0)
del results
right = []
for first in range(50, 200, 10):
    later = plait.map(full, range(first, first + 10), **options)
    right += [(array == first + n).all() for n, (array, _) in enumerate(later)]
os.close(opener)
os.waitpid(pid, 0)
print("parent", all(right), (kept[0] == 5).all())
"""


def test_a_forked_child_still_sees_results_that_its_parent_dropped(
    process_way: Way, run_python: RunPython
) -> None:
    done = run_python("-W", "error", "-c", FORK, process_way.name)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["child True", "parent True True"]


AT_EXIT = """
import sys
import numpy as np
import plait

options = dict(backend="processes", start_method=sys.argv[1], max_workers=2, chunksize=1)
held = plait.map(np.zeros, [100_000] * 4, **options)
executor = plait.Executor(1, "processes", start_method=sys.argv[1])
future = executor.submit(np.zeros, 100_000)
plait.map(np.sum, held, **options)
"""


def test_a_program_may_end_with_results_in_hand(process_way: Way, run_python: RunPython) -> None:
    done = run_python("-X", "dev", "-W", "error", "-c", AT_EXIT, process_way.name)
    assert (done.returncode, done.stderr) == (0, "")


# --- Arguments stay, for a worker that keeps them ------------------------------------------


def keep(key: int, array: Array) -> None:
    KEPT[key] = array[10:20] if key % 2 else array


def look_at_kept(_: object) -> dict[int, tuple[float, float]]:
    return {key: (float(part.min()), float(part.max())) for key, part in KEPT.items()}


@pytest.mark.parametrize("chunksize", [1, 4])
def test_an_argument_that_a_worker_keeps_stays_as_it_was(
    process_way: Way, nothing_kept: None, chunksize: int
) -> None:
    options: dict[str, Any] = {"max_workers": 1, **process_way.options}
    arrays = [full(n) for n in range(8)]
    plait.map(keep, range(8), arrays, chunksize=chunksize, **options)
    del arrays
    for number in range(4):
        plait.map(add_one, [full(100 + n) for n in range(10)], chunksize=chunksize, **options)
        captured = full(200 + number)
        plait.map(lambda _, array=captured: array * 2, range(3), **options)
    expected = {n: (float(n), float(n)) for n in range(8)}
    assert plait.map(look_at_kept, [0], **options) == [expected]
    assert pool_of(process_way, 1).store.held_bytes >= 8 * NBYTES
    plait.map(clear_kept, [0], **options)
    assert held_at_last(pool_of(process_way, 1)) == 0


def test_an_array_that_was_kept_and_comes_again_stays_as_it_was(process_way: Way) -> None:
    with plait.Executor(1, **process_way.executor) as executor:
        backend: Any = executor._backend
        array = full(7)
        run_lane(backend, partial(keep, 0), [Chunk(n, [array]) for n in range(4)])
        for number in range(10):
            run_lane(backend, add_one, [Chunk(0, [full(number)] * 3)])
        assert executor.submit(look_at_kept, 0).result() == {0: (7, 7)}


class Unreadable:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ZeroDivisionError


def keep_any(item: Any) -> None:
    KEPT[0] = item


def test_what_is_kept_stays_though_its_array_comes_with_a_chunk_that_cannot_be_read(
    process_way: Way,
) -> None:
    with plait.Executor(1, **process_way.executor) as executor:
        backend: Any = executor._backend
        array = full(7)
        chunks = [Chunk(n, [array]) for n in range(3)]
        chunks.append(Chunk(3, [array, Unreadable()], together=True))
        found = run_lane(backend, keep_any, chunks)
        assert isinstance(found[4], ZeroDivisionError)
        found = run_lane(backend, keep_any, [])
        for number in range(10):
            run_lane(backend, add_one, [Chunk(0, [full(number)] * 3)])
        assert executor.submit(look_at_kept, 0).result() == {0: (7, 7)}


class ReadableLater:
    """Cannot be unpickled the first time."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return _read_later, (self.mark,)


def _read_later(mark: Path) -> int:
    if not mark.exists():
        mark.touch()
        raise LookupError("not yet")
    return 5


def test_what_a_function_carries_stays_though_it_could_not_be_loaded_at_first(
    process_way: Way, nothing_kept: None, tmp_path: Path
) -> None:
    array, later = full(7), ReadableLater(tmp_path / "mark")

    def task(key: int) -> Any:
        keep(2 * key, array)
        return later

    options: dict[str, Any] = {"max_workers": 1, "chunksize": 1, **process_way.options}
    values = plait.map(task, range(3), on_error="return", **options)
    assert isinstance(values[0], LookupError)
    assert values[1:] == [5, 5]
    for number in range(5):
        plait.map(add_one, [full(number)] * 4, **options)
    assert plait.map(look_at_kept, [0], **options) == [{2: (7, 7), 4: (7, 7)}]


def test_what_a_task_left_to_a_child_of_its_own_stays_as_it_was(
    process_way: Way, tmp_path: Path
) -> None:
    gate, answer = tmp_path / "gate", tmp_path / "answer"
    os.mkfifo(gate)
    os.mkfifo(answer)

    def leave_to_a_child(array: Array) -> None:
        if array[0] != 7:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy may have threads
            pid = os.fork()
        if pid == 0:
            try:
                gate.read_text()
                answer.write_text(str(is_full(array, 7)))
            finally:
                os._exit(0)

    with plait.Executor(1, **process_way.executor) as executor:
        backend: Any = executor._backend
        run_lane(backend, leave_to_a_child, [Chunk(0, [full(7), full(0)])])
        for number in range(5):
            run_lane(backend, add_one, [Chunk(0, [full(number) for _ in range(4)])])
        gate.write_text("open")
        assert answer.read_text() == "True"


# --- The memory comes back -----------------------------------------------------------------


def test_nothing_is_held_when_a_map_is_over(process_way: Way) -> None:
    captured = full(5)
    options: dict[str, Any] = {"max_workers": 2, **process_way.options}
    for chunksize in (1, 3, "auto"):
        items = [full(n) for n in range(20)]
        plait.map(lambda a: a + captured, [*items, *items], chunksize=chunksize, **options)
        assert held_at_last(pool_of(process_way)) == 0


def test_nothing_is_held_for_a_function_that_carries_the_same_bytes_twice(
    process_way: Way,
) -> None:
    data = bytes(200_000)
    pair = [data, data]

    def task(n: int) -> int:
        return len(data) + len(pair) + n

    options: dict[str, Any] = {"max_workers": 2, **process_way.options}
    assert plait.map(task, range(3), **options) == [200_002, 200_003, 200_004]
    assert held_at_last(pool_of(process_way)) == 0


def test_results_are_gone_when_they_were_dropped(way: Way) -> None:
    if not (has_gil() or way.is_process or way.name == "serial"):
        pytest.skip("without a GIL what a thread has made goes when that thread runs again")
    options: dict[str, Any] = {"max_workers": 2, "chunksize": 1, **way.options}
    gc.disable()  # it would come late: large arrays are few objects
    try:
        results = plait.map(way.fn(full), range(6), **options)
        alive = [weakref.ref(array) for array in results]
        del results
        assert [array() for array in alive] == [None] * 6
        for array in plait.imap(way.fn(full), range(6), buffersize=2, **options):
            alive.append(weakref.ref(array))
        del array
        assert [array() for array in alive] == [None] * 12
    finally:
        gc.enable()


@pytest.mark.parametrize("count", [3, 3000])
def test_a_map_that_measured_is_gone_with_its_results(count: int) -> None:
    """Without the collector, whatever the first moments left behind."""
    gc.collect()
    gc.disable()
    try:
        results = plait.map(lambda n: Box(n) if n else time.sleep(0.002), range(count))
        alive = [weakref.ref(box) for box in results[1:]]
        del results
        assert [box() for box in alive] == [None] * (count - 1)
    finally:
        gc.enable()


class Box:
    def __init__(self, n: int) -> None:
        self.n = n


def test_results_of_futures_are_gone_when_they_were_dropped(way: Way) -> None:
    gc.disable()
    try:
        with plait.Executor(2, **way.executor) as executor:
            futures = [executor.submit(way.fn(full), n) for n in range(6)]
            alive = [weakref.ref(future.result()) for future in futures]
            del futures
            assert executor.submit(way.fn(abs), -1).result() == 1
            assert executor.submit(way.fn(abs), -1).result() == 1
            if way.name == "threads":  # each of the two has gone on to another task
                both = threading.Barrier(2)
                for met in [executor.submit(both.wait) for _ in range(2)]:
                    met.result()
            assert [array() for array in alive] == [None] * 6
    finally:
        gc.enable()


def test_a_worker_holds_nothing_when_its_results_were_dropped(process_way: Way) -> None:
    options: dict[str, Any] = {"max_workers": 1, "chunksize": 1, **process_way.options}
    results = plait.map(with_pid, range(10), **options)
    held = plait.map(held_by_worker, [0], **options)[0]
    assert held >= 10 * NBYTES
    del results[:5]
    assert plait.map(held_by_worker, [0], **options)[0] == held // 2
    del results
    assert plait.map(held_by_worker, [0], **options) == [0]


def test_results_that_nobody_read_are_dropped(process_way: Way) -> None:
    options: dict[str, Any] = {"max_workers": 1, "chunksize": 1, **process_way.options}
    for _ in range(3):
        values = plait.imap(with_pid, range(1000), buffersize=20, **options)
        next(values)
        values.close()  # type: ignore[attr-defined]
    del values
    assert plait.map(held_by_worker, [0], **options) == [0]
    assert held_at_last(pool_of(process_way, 1)) == 0


def test_a_result_that_cannot_be_unpickled_is_dropped(process_way: Way) -> None:
    def task(n: int) -> Any:
        return [full(n), Unreadable()]

    options: dict[str, Any] = {"max_workers": 1, "chunksize": 1, **process_way.options}
    values = plait.map(task, range(4), on_error="return", **options)
    assert all(isinstance(value, plait.NotPicklable) for value in values)
    del values
    gc.collect()  # tracebacks make cycles
    assert plait.map(held_by_worker, [0], **options) == [0]


def die_or_sum(array: Array) -> float:
    if array[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(array.sum())


@pytest.mark.parametrize("chunksize", [1, 4])
def test_what_a_worker_had_in_hand_comes_back_when_it_dies(
    process_way: Way, chunksize: int
) -> None:
    values = plait.map(
        die_or_sum,
        [full(n) for n in range(12)],
        chunksize=chunksize,
        max_workers=2,
        on_error="return",
        **process_way.options,
    )
    assert isinstance(values.pop(3), plait.WorkerDied)
    assert values == [n * COUNT for n in range(12) if n != 3]
    assert held_at_last(pool_of(process_way)) == 0


def test_what_a_worker_kept_comes_back_when_it_dies(process_way: Way, nothing_kept: None) -> None:
    options: dict[str, Any] = {"max_workers": 1, "chunksize": 1, **process_way.options}
    plait.map(keep, range(8), [full(n) for n in range(8)], **options)
    (pid,) = plait.map(lambda _: os.getpid(), [0], **options)
    backend = pool_of(process_way, 1)
    assert backend.store.held_bytes >= 8 * NBYTES
    os.kill(pid, signal.SIGKILL)
    assert held_at_last(backend) == 0


def test_what_a_worker_had_in_hand_comes_back_after_a_timeout(process_way: Way) -> None:
    def sleep_or_sum(array: Array) -> float:
        if array[0] == 3:
            time.sleep(60)
        return float(array.sum())

    values = plait.map(
        sleep_or_sum,
        [full(n) for n in range(6)],
        chunksize=1,
        max_workers=2,
        task_timeout=0.5,
        on_error="return",
        **process_way.options,
    )
    assert isinstance(values.pop(3), plait.TaskTimeout)
    assert values == [n * COUNT for n in range(6) if n != 3]
    assert held_at_last(pool_of(process_way)) == 0


def test_what_was_to_be_run_is_dropped_after_an_error(process_way: Way) -> None:
    def fail_at_three(array: Array) -> float:
        if array[0] == 3:
            raise LookupError("three")
        return float(array[0])

    for chunksize in (1, 4, "auto"):
        with pytest.raises(LookupError, match="three"):
            plait.map(
                fail_at_three,
                [full(n) for n in range(30)],
                chunksize=chunksize,
                max_workers=2,
                **process_way.options,
            )
        assert held_at_last(pool_of(process_way)) == 0


def test_a_cancelled_future_holds_nothing(process_way: Way, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    os.mkfifo(begun)

    def hang(array: Array) -> None:
        begun.write_text("begun")
        time.sleep(60)

    with plait.Executor(1, **process_way.executor) as executor:
        running = executor.submit(hang, full(1))
        waiting = executor.submit(add_one, full(2))
        assert begun.read_text() == "begun"
        assert waiting.cancel()
        assert running.cancel()
        assert executor.submit(add_one, full(3)).result() == 4
        executor.submit(abs, 1).result()  # with it comes what the one before it had
        assert held_at_last(executor._backend) == 0


def test_the_same_array_in_many_tasks_is_laid_down_at_most_twice(
    process_way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = count_placed(monkeypatch)
    array = full(3)
    items = [(n, array) for n in range(40)]
    values = plait.map(
        lambda item: item[0] + float(item[1][5]),
        items,
        chunksize=1,
        max_workers=2,
        **process_way.options,
    )
    assert values == [n + 3 for n in range(40)]
    assert len(placed) <= 2
    assert held_at_last(pool_of(process_way)) == 0


def count_placed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list in which the size of each array that is laid down is noted."""
    placed: list[int] = []
    place = SegmentStore.place

    def noted(self: SegmentStore, buffer: memoryview) -> Any:
        if buffer.nbytes == NBYTES:
            placed.append(buffer.nbytes)
        return place(self, buffer)

    monkeypatch.setattr(SegmentStore, "place", noted)
    return placed


def test_an_array_that_stays_is_laid_down_at_most_twice_for_a_lane(
    process_way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = count_placed(monkeypatch)
    array = full(3)
    with plait.Executor(2, **process_way.executor) as executor:
        backend: Any = executor._backend
        chunks = [Chunk(n, [(n, array)]) for n in range(20)]
        found = run_lane(backend, lambda item: item[0] + float(item[1][5]), chunks)
        assert found == {n: n + 3 for n in range(20)}
        assert len(placed) == 2
        assert held_at_last(backend) == 0


def test_memory_is_used_again(process_way: Way) -> None:
    with plait.Executor(2, **process_way.executor) as executor:
        backend: Any = executor._backend
        for number in range(5):
            values = executor.map(lambda a: a + 1, [full(n) for n in range(40)], chunksize=1)
            for n, array in enumerate(values):
                assert is_full(array, n + 1), number
        assert held_at_last(backend) == 0
        assert backend.store.touched <= 20 * NBYTES


def test_memory_for_arguments_is_given_back(
    process_way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "KEPT_BYTES", NBYTES)
    with plait.Executor(1, **process_way.executor) as executor:
        backend: Any = executor._backend
        found = run_lane(backend, add_one, [Chunk(0, [full(n) for n in range(20)])])
        assert found == {n: n + 1 for n in range(20)}
        assert held_at_last(backend) == 0
        run_lane(backend, abs, [Chunk(0, [1])])
        assert memory_of(backend.store.fd) <= NBYTES + 4096


def keep_little_memory() -> None:
    segments.KEPT_BYTES = NBYTES


def test_memory_for_results_is_given_back(process_way: Way) -> None:
    with plait.Executor(1, initializer=keep_little_memory, **process_way.executor) as executor:
        results = list(executor.map(full, range(20)))
        backend: Any = executor._backend
        (worker,) = backend.workers.values()
        assert memory_of(worker.view._fd) >= 20 * NBYTES
        del results
        for _ in range(2):
            executor.submit(abs, 1).result()
        assert memory_of(worker.view._fd) <= NBYTES + 4096


def test_neither_files_nor_memory_are_left_behind(process_way: Way, clean: None) -> None:
    options: dict[str, Any] = {"max_workers": 1, "chunksize": 1, **process_way.options}

    def round_trip() -> None:
        values = plait.map(lambda a: a + 1, [full(n) for n in range(8)], **options)
        assert all(is_full(array, n + 1) for n, array in enumerate(values))
        with plait.Executor(1, **process_way.executor) as executor:
            future = executor.submit(full, 5)
            values.append(future.result())
        assert is_full(values[-1], 5)

    round_trip()
    before = files()
    mapped = mappings()
    for _ in range(3):
        round_trip()
    assert files() == before
    assert mappings() == mapped
    assert held_at_last(pool_of(process_way, 1)) == 0


def mappings() -> int:
    """Return how many stores of workers this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum("plait-results" in line for line in lines)


# --- Errors --------------------------------------------------------------------------------


class Refused(Exception):
    """Carries what was refused."""

    def __init__(self, text: str, array: Array) -> None:
        super().__init__(text, array)
        self.more = array * 2


def refuse(n: int) -> None:
    raise Refused(f"number {n}", full(n))


def test_an_error_may_carry_a_large_array(way: Way) -> None:
    options: dict[str, Any] = {"max_workers": 2, "chunksize": 1, **way.options}
    errors = plait.map(way.fn(refuse), range(4), on_error="return", **options)
    for n, error in enumerate(errors):
        assert isinstance(error, Refused)
        text, array = error.args
        assert text == f"number {n}"
        assert is_full(array, n)
        assert is_full(error.more, 2 * n)
        array += 1  # it is one's own
        assert is_full(error.more, 2 * n)
    with pytest.raises(Refused) as caught:
        plait.map(way.fn(refuse), [7], **options)
    assert is_full(caught.value.args[1], 7)


def test_large_values_and_errors_may_be_mixed(way: Way) -> None:
    def task(n: int) -> Array:
        if n % 3 == 1:
            refuse(n)
        return full(n)

    for chunksize in (1, 5, "auto"):
        values = plait.map(
            way.fn(task),
            range(30),
            chunksize=chunksize,
            max_workers=2,
            on_error="return",
            **way.options,
        )
        for n, value in enumerate(values):
            assert isinstance(value, Refused) == (n % 3 == 1)
            assert is_full(value.args[1] if n % 3 == 1 else value, n)


def test_an_item_that_cannot_be_pickled_fails_alone_among_large_ones(process_way: Way) -> None:
    released = memoryview(bytes(200_000))
    released.release()
    items = [full(0), [full(1), threading.Lock()], full(2), [b"x" * 300_000, released], full(4)]
    for chunksize in (1, 5):
        values = plait.map(
            lambda array: array + 1,
            items,
            chunksize=chunksize,
            max_workers=1,
            on_error="return",
            **process_way.options,
        )
        for n, value in enumerate(values):
            assert isinstance(value, plait.NotPicklable) if n % 2 else is_full(value, n + 1)
        assert held_at_last(pool_of(process_way, 1)) == 0


# --- Without room --------------------------------------------------------------------------


def no_memory() -> None:
    vars(segments)["memory_bytes"] = lambda: 0


def little_memory() -> None:
    vars(segments)["memory_bytes"] = lambda: segments.SHARE * 3 * NBYTES


def small_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))


def no_mappings() -> None:
    SegmentView._map = lambda self: None  # type: ignore[method-assign]


LIMITS = [no_memory, little_memory, small_files, no_mappings]


@pytest.fixture
def nothing_limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a limit changes in this process."""
    monkeypatch.setitem(vars(segments), "memory_bytes", vars(segments)["memory_bytes"])
    monkeypatch.setattr(SegmentView, "_map", SegmentView._map)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", LIMITS)
@only("server")
def test_without_room_here_everything_arrives_through_the_channel(
    way: Way, nothing_limited: None, limit: Callable[[], None]
) -> None:
    with plait.Executor(2, **way.executor) as executor:
        backend: Any = executor._backend
        executor.submit(abs, 1).result()  # a worker has started
        limit()
        exchange(executor)
        if limit in (no_memory, small_files):
            assert backend.store.touched == 0
        assert held_at_last(backend) == 0


@pytest.mark.parametrize("limit", LIMITS)
def test_without_room_in_workers_everything_arrives_through_the_channel(
    process_way: Way, limit: Callable[[], None]
) -> None:
    with plait.Executor(2, initializer=limit, **process_way.executor) as executor:
        exchange(executor)
        assert held_at_last(executor._backend) == 0


def exchange(executor: plait.Executor) -> None:
    captured = full(5)

    def task(array: Array, data: bytes) -> tuple[Array, bytes]:
        return array + captured, data + b"!"

    arrays, datas = [full(n) for n in range(12)], [bytes([n]) * 200_000 for n in range(12)]
    for chunksize in (1, 4):
        values = list(executor.map(task, arrays, datas, chunksize=chunksize))
        for n, (array, data) in enumerate(values):
            assert is_full(array, n + 5)
            assert data == bytes([n]) * 200_000 + b"!"
            array += 1


# --- Many at once --------------------------------------------------------------------------


def test_several_threads_map_large_arrays_at_once(process_way: Way) -> None:
    wrong: list[int] = []
    done: list[int] = []

    def work(start: int) -> None:
        for number in range(start, start + 4):
            items = [full(100 * number + n) for n in range(10)]
            values = plait.map(
                lambda a: a + 1, items, chunksize=2, max_workers=2, **process_way.options
            )
            if not all(is_full(v, 100 * number + n + 1) for n, v in enumerate(values)):
                wrong.append(number)
        done.append(start)

    threads = [threading.Thread(target=work, args=(10 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 10, 20, 30]
    assert not wrong
    assert {held_at_last(pool) for pool in pools_of(process_way)} == {0}


def test_large_results_of_futures_are_each_ones_own(way: Way) -> None:
    def scale(array: Array, factor: int, *, offset: Array) -> Array:
        return array * factor + offset

    with plait.Executor(2, **way.executor) as executor:
        futures = [executor.submit(way.fn(scale), full(n), 2, offset=full(1)) for n in range(40)]
        results = [future.result() for future in futures]
        for array in results:
            array += 1
        assert all(is_full(array, 2 * n + 2) for n, array in enumerate(results))
    assert all(is_full(future.result(), 2 * n + 2) for n, future in enumerate(futures))


def test_tiny_tasks_on_large_arrays_are_right(way: Way) -> None:
    arrays = [full(n) for n in range(10)]
    items = [arrays[n % 10] for n in range(600)]
    values = plait.map(way.fn(lambda array: array[3]), items, max_workers=2, **way.options)
    assert values == [n % 10 for n in range(600)]
