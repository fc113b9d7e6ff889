"""Memory that two processes share: laying buffers down, reading them, letting them go."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import resource
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plait
from plait import segments, wire
from plait.backends.messages import new_file_fd
from plait.segments import PAGE, SEGMENT_BYTES, SHARE, Placing, SegmentStore, SegmentView
from tests.properties.conftest import examples

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
MakeStore = Callable[..., SegmentStore]

SIZE = 3 * SEGMENT_BYTES // 2  # of a buffer that is worth a segment


@pytest.fixture
def make_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeStore]:
    """Make stores, each on a real file; ``limit``: how many bytes there are for all of them."""
    stores: list[SegmentStore] = []

    def make(limit: int | None = None, stores_in_all: int = 1) -> SegmentStore:
        if limit is not None:
            monkeypatch.setattr(segments, "memory_bytes", lambda: limit * SHARE)
        stores.append(SegmentStore(new_file_fd("plait-test"), stores_in_all))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make_store: MakeStore) -> SegmentStore:
    return make_store()


def view_of(store: SegmentStore) -> SegmentView:
    return SegmentView(os.dup(store.fd))


def filled(number: int, size: int = SIZE) -> bytes:
    return bytes([number % 256]) * size


def place(store: SegmentStore, data: bytes) -> int:
    """Lay data down and return its offset."""
    segment = store.place(memoryview(data))
    assert segment is not None
    assert segment[1] == len(data)
    return segment[0]


def read(store: SegmentStore, offset: int, size: int = SIZE) -> bytes:
    """Read what the file has, as another process would."""
    return os.pread(store.fd, size, offset)


def memory_of(fd: int) -> int:
    """Return how many bytes of memory a file takes."""
    return os.fstat(fd).st_blocks * 512


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Have no file of this process grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- The store -----------------------------------------------------------------------------


def test_what_is_placed_is_in_the_file_where_it_was_said(store: SegmentStore) -> None:
    sizes = [1, PAGE - 1, PAGE, PAGE + 1, SIZE, 1_000_003]
    offsets = [place(store, filled(n, size)) for n, size in enumerate(sizes)]
    for n, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        assert offset % PAGE == 0
        assert read(store, offset, size) == filled(n, size)


def test_the_memory_of_a_segment_that_was_released_is_used_first(store: SegmentStore) -> None:
    first, second, third = (place(store, filled(n)) for n in range(3))
    store.release(first)
    assert place(store, filled(4)) == first
    store.release(second)
    assert place(store, filled(5, 2 * SIZE)) > third  # too large for the gap
    assert place(store, filled(6, PAGE)) == second
    assert place(store, filled(7, PAGE)) == second + PAGE  # what is left of it
    assert read(store, third) == filled(2)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)])
def test_neighbours_that_were_released_are_one_gap(
    store: SegmentStore, order: tuple[int, ...]
) -> None:
    offsets = [place(store, filled(n, PAGE)) for n in range(3)]
    last = place(store, filled(9))
    for n in order:
        store.release(offsets[n])
    assert place(store, filled(5, 3 * PAGE)) == offsets[0]
    assert read(store, last) == filled(9)


def test_an_empty_store_begins_at_its_start_again(make_store: MakeStore) -> None:
    store = make_store(limit=10 * PAGE)
    offsets = [place(store, filled(n, 2 * PAGE)) for n in range(5)]
    for offset in offsets[::-2] + offsets[1::2]:
        store.release(offset)
    assert store.held_bytes == 0
    assert place(store, filled(1, 10 * PAGE)) == 0


def test_a_segment_is_held_until_each_holder_has_let_go(store: SegmentStore) -> None:
    offset = place(store, filled(1))
    store.retain(offset)
    store.retain(offset)
    for _ in range(2):
        store.release(offset)
        assert store.held_bytes == SIZE
        assert place(store, filled(2)) != offset
        store.release(SIZE)
    store.release(offset)
    assert store.held_bytes == 0
    assert place(store, filled(3)) == offset


def test_a_full_store_takes_nothing_until_something_is_released(make_store: MakeStore) -> None:
    store = make_store(limit=4 * PAGE)
    first, second = (place(store, filled(n, 2 * PAGE)) for n in range(2))
    assert store.place(memoryview(b"x")) is None
    store.release(first)
    assert store.place(memoryview(filled(1, 3 * PAGE))) is None  # only two pages are free
    assert place(store, filled(3, 2 * PAGE)) == first
    assert read(store, second, 2 * PAGE) == filled(1, 2 * PAGE)


def test_stores_of_many_workers_share_what_there_is(make_store: MakeStore) -> None:
    store = make_store(limit=40 * PAGE, stores_in_all=4)
    assert store.place(memoryview(filled(1, 11 * PAGE))) is None
    assert place(store, filled(1, 10 * PAGE)) == 0


def test_a_store_is_empty_where_files_may_not_be_large(store: SegmentStore) -> None:
    with file_limit(PAGE):
        assert store.place(memoryview(filled(1))) is None
    assert store.held_bytes == 0


def test_a_buffer_that_cannot_be_written_takes_no_room(make_store: MakeStore) -> None:
    store = make_store(limit=100 * PAGE)
    first = place(store, filled(1, PAGE))
    with file_limit(4 * PAGE):  # the file has its size already, but cannot be written to
        assert store.place(memoryview(filled(2, 8 * PAGE))) is None
    assert store.held_bytes == PAGE
    assert read(store, first, PAGE) == filled(1, PAGE)
    assert place(store, filled(3, 99 * PAGE)) == PAGE


def test_a_buffer_is_written_whole_even_if_the_kernel_takes_it_in_pieces(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:5000], at))
    data = os.urandom(SIZE)
    assert read(store, place(store, data)) == data


def test_trimming_gives_back_what_is_not_worth_keeping(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "KEPT_BYTES", 2 * SIZE)
    offsets = [place(store, filled(n)) for n in range(6)]
    assert memory_of(store.fd) == store.touched == 6 * SIZE
    for offset in offsets[1:]:
        store.release(offset)
    store.trim()
    assert memory_of(store.fd) == store.touched == 2 * SIZE
    assert read(store, offsets[0]) == filled(0)
    assert [place(store, filled(n)) for n in range(6)] == [n * SIZE for n in range(1, 7)]


def test_trimming_never_cuts_off_what_is_held(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "KEPT_BYTES", 0)
    offsets = [place(store, filled(n)) for n in range(6)]
    for offset in offsets[:3]:
        store.release(offset)
    store.trim()
    assert [read(store, offset) for offset in offsets[3:]] == [filled(n) for n in range(3, 6)]
    for offset in offsets[3:]:
        store.release(offset)
    store.trim()
    assert memory_of(store.fd) == 0


def test_a_closed_store_takes_nothing_and_can_be_left(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "KEPT_BYTES", 0)
    offset = place(store, filled(1))
    fd = store.fd
    store.close()
    store.close()
    assert not is_open(fd)
    assert store.place(memoryview(filled(2))) is None
    store.release(offset)
    store.trim()  # a lane may be closed after its pool
    assert store.held_bytes == 0


def test_several_threads_may_place_and_release(store: SegmentStore) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        held: list[int] = []
        for turn in range(60):
            held.append(place(store, filled(number)))
            if turn % 3:
                offset = held.pop(0)
                if read(store, offset) != filled(number):
                    wrong.append(number)
                store.release(offset)
        for offset in held:
            store.release(offset)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert store.held_bytes == 0
    assert place(store, filled(1)) == 0


LIMIT_PAGES = 24


@examples(150)
@given(st.lists(st.tuples(st.sampled_from("pppprrt"), st.integers(0, 1000)), max_size=80))
def test_live_segments_never_overlap_and_keep_what_is_in_them(
    steps: list[tuple[str, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "memory_bytes", lambda: LIMIT_PAGES * PAGE * SHARE + 100)
        store = SegmentStore(new_file_fd("plait-test"), 1)
        live: dict[int, tuple[bytes, int]] = {}  # (content, holders) by offset
        try:
            for number, (step, draw) in enumerate(steps):
                _do(step, draw, number, store, live)
                _check(store, live)
            for offset, (_, holders) in live.items():
                for _ in range(holders):
                    store.release(offset)
            assert place(store, filled(1, LIMIT_PAGES * PAGE)) == 0
        finally:
            store.close()


def _do(
    step: str, draw: int, number: int, store: SegmentStore, live: dict[int, tuple[bytes, int]]
) -> None:
    if step == "p":
        data = filled(number + 1, 1 + draw * 37 % (6 * PAGE))
        segment = store.place(memoryview(data))
        if segment is not None:
            assert segment[0] not in live
            assert segment[1] == len(data)
            live[segment[0]] = (data, 1)
    elif live:
        offset = sorted(live)[draw % len(live)]
        data, holders = live.pop(offset)
        if step == "t":
            store.retain(offset)
        else:
            store.release(offset)
        holders += 1 if step == "t" else -1
        if holders:
            live[offset] = (data, holders)


def _check(store: SegmentStore, live: dict[int, tuple[bytes, int]]) -> None:
    end = 0
    for offset in sorted(live):
        data, _ = live[offset]
        assert offset >= end
        end = offset + -(-len(data) // PAGE) * PAGE
        assert os.pread(store.fd, len(data), offset) == data
    assert end <= LIMIT_PAGES * PAGE
    assert store.held_bytes == sum(-(-len(data) // PAGE) * PAGE for data, _ in live.values())


# --- What comes again ------------------------------------------------------------------------


def test_a_small_buffer_is_not_worth_a_segment(store: SegmentStore) -> None:
    placing = Placing(store)
    small = bytes(SEGMENT_BYTES - 1)
    for _ in range(3):
        assert placing(pickle.PickleBuffer(small)) is None
    assert store.held_bytes == 0


def test_what_comes_once_is_held_by_the_caller_only(store: SegmentStore) -> None:
    placing = Placing(store)
    data = filled(1)
    segment = placing(pickle.PickleBuffer(data))
    assert segment is not None
    assert read(store, *segment) == data
    store.release(segment[0])
    assert store.held_bytes == 0


def test_what_comes_again_stays_from_the_second_time_on(store: SegmentStore) -> None:
    placing = Placing(store)
    data = filled(1)
    found = [placing(pickle.PickleBuffer(data)) for _ in range(5)]
    assert len(set(found)) == 2
    for segment in found:
        assert segment is not None
        assert read(store, *segment) == data
        store.release(segment[0])
    assert store.held_bytes == SIZE
    assert placing(pickle.PickleBuffer(data)) == found[1]
    store.release(SIZE)
    placing.forget()
    assert store.held_bytes == 0
    placing.forget()


def test_a_forgotten_object_is_laid_down_as_it_is_now(store: SegmentStore) -> None:
    placing = Placing(store)
    data = bytearray(filled(1))
    for _ in range(3):
        placing(pickle.PickleBuffer(data))
    placing.forget()
    data[:] = filled(2)
    segment = placing(pickle.PickleBuffer(data))
    assert segment is not None
    assert read(store, *segment) == filled(2)


def test_an_object_is_not_taken_for_one_that_was_there_before_it(store: SegmentStore) -> None:
    placing = Placing(store)
    for number in range(60):  # each may get the address of one that is gone
        data = filled(number)
        for _ in range(number % 3 + 1):
            segment = placing(pickle.PickleBuffer(data))
            assert segment is not None
            assert read(store, *segment) == data
            store.release(segment[0])


def test_parts_of_one_object_are_not_taken_for_each_other(store: SegmentStore) -> None:
    import numpy as np

    whole = memoryview(os.urandom(2 * SIZE))
    array: Any = np.frombuffer(whole, np.uint8)
    placing = Placing(store)
    for _ in range(3):
        for part in (whole[:SIZE], whole[SIZE:], array[:SIZE], array[SIZE:], array[1 : SIZE + 1]):
            segment = placing(pickle.PickleBuffer(part))
            assert segment is not None
            assert read(store, *segment) == bytes(part)


def test_only_the_last_few_objects_are_remembered(store: SegmentStore) -> None:
    placing = Placing(store)
    data = [filled(number) for number in range(segments.MOST_KNOWN + 1)]

    def give(number: int) -> int:
        segment = placing(pickle.PickleBuffer(data[number]))
        assert segment is not None
        store.release(segment[0])
        return segment[0]

    kept = [give(0), give(0)][1]
    for number in range(1, segments.MOST_KNOWN):
        give(number)
    assert give(0) == kept  # it is in use, and now the last one
    for number in range(1, segments.MOST_KNOWN + 1):
        give(number)
    assert store.held_bytes == (segments.MOST_KNOWN - 1) * SIZE  # the first one is let go of
    placing.forget()
    assert store.held_bytes == 0


def test_an_object_that_grew_leaves_no_memory_behind(store: SegmentStore) -> None:
    placing = Placing(store)
    data = bytearray(filled(1))
    for size in (SIZE, SIZE, 2 * SIZE, 2 * SIZE, SIZE):
        data[:] = filled(2, size)
        segment = placing(pickle.PickleBuffer(data))
        assert segment is not None
        assert read(store, *segment) == data
        store.release(segment[0])
    placing.forget()
    assert store.held_bytes == 0


def test_what_found_no_room_is_tried_again(make_store: MakeStore) -> None:
    store = make_store(limit=SIZE)
    placing = Placing(store)
    other = place(store, filled(9))
    data = filled(1)
    assert [placing(pickle.PickleBuffer(data)) for _ in range(3)] == [None] * 3
    store.release(other)
    assert placing(pickle.PickleBuffer(data)) == (0, SIZE)
    assert read(store, 0) == data
    store.release(0)
    placing.forget()
    assert store.held_bytes == 0


# --- The view --------------------------------------------------------------------------------


def test_a_view_reads_what_was_laid_down(store: SegmentStore) -> None:
    view = view_of(store)
    for size in (1, PAGE, SIZE, SIZE + 1):
        data = os.urandom(size)
        memory = view.open((place(store, data), size))
        assert memory == data
        assert (memory.format, memory.readonly, memory.nbytes) == ("B", False, size)


def test_what_is_changed_through_a_view_is_seen_by_nobody_else(store: SegmentStore) -> None:
    offset = place(store, filled(1))
    views = [view_of(store), view_of(store)]
    mine, theirs = (view.open((offset, SIZE)) for view in views)
    mine[:] = filled(2)
    assert theirs == read(store, offset) == filled(1)
    theirs[:] = filled(3)
    assert mine == filled(2)


def test_a_segment_is_released_when_nothing_refers_to_it(store: SegmentStore) -> None:
    import numpy as np

    view = view_of(store)
    offset = place(store, filled(1))
    memory = view.open((offset, SIZE))
    array = np.frombuffer(memory, np.uint8).reshape(-1, 2)
    row = array[5]
    del memory, array
    assert view.is_held(offset)
    assert not view.released
    del row
    assert not view.is_held(offset)
    assert view.take_released() == [offset]
    assert view.take_released() == []


@pytest.mark.parametrize("place_of_last", [0, 1, 2])
def test_a_segment_that_is_opened_several_times_is_released_once(
    store: SegmentStore, place_of_last: int
) -> None:
    view = view_of(store)
    segment = (place(store, filled(1)), SIZE)
    memories = [view.open(segment) for _ in range(3)]
    last = memories[place_of_last]
    memories.clear()
    assert last == filled(1)
    del last
    assert not view.is_held(segment[0])
    assert view.take_released() == [segment[0]]


def test_a_segment_that_is_opened_while_it_is_held_is_as_it_was_laid_down(
    store: SegmentStore,
) -> None:
    view = view_of(store)
    segment = (place(store, filled(1)), SIZE)
    changed = view.open(segment)
    changed[:] = filled(2)
    again = view.open(segment)  # by another task, which is to see nothing of that
    assert again == filled(1)
    again[:] = filled(3)
    assert changed == filled(2)


def test_a_segment_that_is_opened_again_is_as_it_was_laid_down(store: SegmentStore) -> None:
    view = view_of(store)
    segment = (place(store, filled(1)), SIZE)
    for _ in range(3):
        memory = view.open(segment)
        assert memory == filled(1)
        memory[:] = filled(2)
        del memory


def test_what_is_written_into_freed_memory_is_read_there(store: SegmentStore) -> None:
    view = view_of(store)
    for number in range(5):
        offset = place(store, filled(number))
        assert offset == 0
        memory = view.open((offset, SIZE))
        assert memory == filled(number)
        memory[:] = filled(number + 100)  # such pages would cover what comes next
        del memory
        for freed in view.take_released():
            store.release(freed)


def test_a_segment_that_is_not_wanted_is_released_unless_it_is_held(store: SegmentStore) -> None:
    view = view_of(store)
    wanted, unwanted = ((place(store, filled(n)), SIZE) for n in range(2))
    memory = view.open(wanted)
    view.drop(wanted)
    view.drop(unwanted)
    assert view.take_released() == [unwanted[0]]
    assert memory == filled(0)


def test_a_segment_that_spans_the_end_of_the_store_can_be_read(make_store: MakeStore) -> None:
    store = make_store(limit=4 * PAGE + 17)  # of which whole pages are used
    view = view_of(store)
    data = os.urandom(4 * PAGE - 3)
    assert view.open((place(store, data), len(data))) == data


def test_where_nothing_can_be_mapped_segments_are_copied(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("there is a limit of address space")

    view = view_of(store)
    segment = (place(store, filled(1)), SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", refuse)
        memory = view.open(segment)
    assert view.take_released() == [segment[0]]
    store.release(segment[0])
    place(store, filled(2))
    assert memory == filled(1)
    memory[:] = filled(3)
    assert view.open(segment) == filled(2)  # now it can


def test_a_view_closes_its_file_and_waits_for_no_collector(store: SegmentStore) -> None:
    gc.disable()
    try:
        fd = os.dup(store.fd)
        view = SegmentView(fd)
        memory = view.open((place(store, filled(1)), SIZE))
        gone = weakref.ref(view)
        del view
        assert gone() is None
        assert not is_open(fd)
        assert memory == filled(1)
    finally:
        gc.enable()


def test_a_view_of_nothing_can_be_dropped() -> None:
    SegmentView(-1)


def test_a_view_that_goes_frees_what_is_not_held(store: SegmentStore) -> None:
    view = view_of(store)
    offsets = [place(store, filled(n)) for n in range(8)]
    memories = [view.open((offset, SIZE)) for offset in offsets]
    held = {n: memories[n] for n in (2, 3, 6)}
    held[3][:10] = filled(99, 10)
    del memories
    assert memory_of(store.fd) == 8 * SIZE
    del view
    assert memory_of(store.fd) == 3 * SIZE
    assert held[2] == filled(2)
    assert held[3] == filled(99, 10) + filled(3, SIZE - 10)
    assert held[6] == filled(6)


def test_what_was_never_opened_is_freed_with_the_view_as_well(store: SegmentStore) -> None:
    view = view_of(store)
    memory = view.open((place(store, filled(1)), SIZE))
    for n in range(5):  # results that nobody read before their worker died
        place(store, filled(n))
    del view
    assert memory == filled(1)
    assert memory_of(store.fd) == SIZE


def test_what_is_held_at_a_fork_is_never_released(store: SegmentStore) -> None:
    view = view_of(store)
    before, after = ((place(store, filled(n)), SIZE) for n in range(2))
    memory = view.open(before)
    view.pin()
    other = view.open(after)
    del memory, other
    assert view.take_released() == [after[0]]
    assert view.is_held(before[0])  # by the copy, for all that is known here
    view.drop(before)
    assert not view.released
    del view
    assert read(store, before[0]) == filled(0)


FORK = """
import os
from plait.backends.messages import new_file_fd
from plait.segments import SegmentStore, SegmentView

store = SegmentStore(new_file_fd("plait-test"), 1)
view = SegmentView(os.dup(store.fd))
memory = view.open(store.place(memoryview(b"1" * 500_000)))
memory[:3] = b"our"
gate, opener = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(opener)
    os.read(gate, 1)  # until the parent has done the rest
    ok = bytes(memory) == b"our" + b"1" * 499_997
    memory[:] = b"3" * 500_000
    del memory, view
    os._exit(0 if ok else 1)
del memory
assert view.take_released() == []
other = view.open(store.place(memoryview(b"2" * 500_000)))
del other
assert view.take_released() == [503808]
del view
os.close(opener)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_forked_child_sees_what_was_held_then(run_python: RunPython) -> None:
    done = run_python("-X", "dev", "-W", "error", "-c", FORK)
    assert (done.stdout, done.stderr) == ("0\n", "")


AT_EXIT = """
import os, numpy
from plait.backends.messages import new_file_fd
from plait.segments import SegmentStore, SegmentView

store = SegmentStore(new_file_fd("plait-test"), 1)
view = SegmentView(os.dup(store.fd))
held = numpy.frombuffer(view.open(store.place(memoryview(bytes(500_000)))), "u1")
unread = store.place(memoryview(bytes(500_000)))
"""


def test_a_program_may_end_while_it_holds_segments(run_python: RunPython) -> None:
    done = run_python("-X", "dev", "-W", "error", "-c", AT_EXIT)
    assert (done.returncode, done.stderr) == (0, "")


# --- Bulk: what pickle would copy into the pickle ----------------------------------------------

KINDS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
}
LARGE = os.urandom(100_000)


def main_function(**variables: Any) -> Any:
    """Return a function of a ``__main__`` that has these global variables."""
    scope = {"__name__": "__main__", **variables}
    exec("def fn():\n    return big", scope)
    return scope["fn"]


def closure(captured: Any) -> Callable[[], Any]:
    return lambda: captured


def default(given: Any) -> Callable[[], Any]:
    def fn(value: Any = given) -> Any:
        return value

    return fn


class Named:
    """A thing that only cloudpickle carries, for it is found under another name."""


PLACES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {  # how to put, and to get
    "itself": (lambda big: big, lambda obj: obj),
    "a tuple": (lambda big: (1, big), lambda obj: obj[1]),
    "a list": (lambda big: [big, 1], lambda obj: obj[0]),
    "a dict": (lambda big: {"a": big}, lambda obj: obj["a"]),
    "depth three": (lambda big: {"a": [(big,)]}, lambda obj: obj["a"][0][0]),
    "an argument of a partial": (lambda big: partial(print, big), lambda obj: obj.args[0]),
    "a keyword of a partial": (
        lambda big: partial(print, end=big),
        lambda obj: obj.keywords["end"],
    ),
    "a closure": (closure, lambda obj: obj()),
    "a default": (default, lambda obj: obj()),
    "a global of __main__": (lambda big: main_function(big=big), lambda obj: obj()),
    "a task of an executor": (lambda big: (len, (big,), {}), lambda obj: obj[1][0]),
    "arguments, with a lambda": (lambda big: (lambda: 1, (big,), {}), lambda obj: obj[1][0]),
}


def there_and_back(obj: object) -> Any:
    return wire.load(pickle.loads(pickle.dumps(wire.pack(obj), wire.PROTOCOL)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_large_bytes_stay_outside_the_pickle(kind: str, place: str) -> None:
    put, get = PLACES[place]
    packed = wire.pack(put(KINDS[kind](LARGE)))
    assert len(packed[0]) < 5000
    loaded = get(wire.load(packed))
    assert type(loaded).__name__ == kind
    assert loaded == LARGE


@pytest.mark.parametrize("kind", KINDS)
def test_large_bytes_arrive_from_places_where_nobody_looks(kind: str) -> None:
    big = KINDS[kind](LARGE)
    for obj, get in (
        ([[[[[big]]]]], lambda obj: obj[0][0][0][0][0]),
        ([*range(100), big], lambda obj: obj[100]),
        (dict.fromkeys(range(20), big), lambda obj: obj[19]),
        ({"first": big, "deep": [[[[[big]]]]]}, lambda obj: obj["deep"][0][0][0][0][0]),
    ):
        assert get(there_and_back(obj)) == LARGE  # type: ignore[no-untyped-call]


def test_the_kind_of_bytes_does_not_depend_on_their_size() -> None:
    for size in (10, 70_000, 200_000):
        for kind in KINDS:
            assert type(there_and_back(KINDS[kind](LARGE[:1] * size))).__name__ == kind


class MyBytes(bytes):
    """Not what large bytes are made into again."""


def test_a_subclass_of_bytes_stays_one() -> None:
    loaded = there_and_back([MyBytes(LARGE)])
    assert type(loaded[0]) is MyBytes
    assert loaded[0] == LARGE


def test_a_bytearray_arrives_as_one_of_ones_own() -> None:
    data = bytearray(LARGE)
    loaded = there_and_back(data)
    loaded += b"more"
    loaded[0] ^= 1
    assert data == LARGE


@pytest.mark.parametrize("size", [10, 70_000, 200_000])
def test_one_bytearray_in_two_places_arrives_as_one(size: int) -> None:
    data = bytearray(size)
    first, second = there_and_back([data, data])
    assert first is second


def test_views_that_are_not_contiguous_travel_too() -> None:
    whole = memoryview(LARGE)
    for part in (whole[::-1], whole[10:], whole[::1]):
        assert there_and_back([part])[0] == part


@pytest.mark.parametrize("rows", [10, 1000])
def test_a_view_keeps_its_shape_and_what_its_numbers_mean(rows: int) -> None:
    import numpy as np

    array: Any = np.arange(rows * 20, dtype=float).reshape(rows, 20)
    view = memoryview(array)
    loaded = memoryview(there_and_back([view])[0])
    assert (loaded.shape, loaded.format) == (view.shape, view.format)
    assert loaded == view


def test_a_view_that_was_released_cannot_travel() -> None:
    view = memoryview(LARGE)
    view.release()
    for obj in (view, [view]):
        with pytest.raises(plait.NotPicklable):
            wire.pack(obj, "item")


def test_a_closure_with_an_empty_cell_travels() -> None:
    def make(is_set: bool) -> Callable[[], Any]:
        def fn() -> Any:
            return late

        if is_set:
            late = LARGE
        return fn

    assert there_and_back(make(True))() == LARGE
    with pytest.raises(NameError, match="late"):
        there_and_back(make(False))()


def test_what_was_packed_is_let_go_of_without_the_collector() -> None:
    gc.disable()
    try:
        for kind in (bytes, bytearray):
            data = kind(LARGE)
            before = sys.getrefcount(data)
            wire.pack([data])
            wire.load(wire.pack([data]))
            assert sys.getrefcount(data) == before
    finally:
        gc.enable()


COLLECT = """
import gc
from plait import wire
for _ in range(3):
    packed = wire.pack([memoryview(bytes(100_000))])
    loaded = wire.load(packed)
    del packed
    gc.collect()
    del loaded
    gc.collect()
"""


def test_a_view_that_was_packed_can_be_collected(run_python: RunPython) -> None:
    done = run_python("-X", "dev", "-W", "error", "-c", COLLECT)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_cannot_travel_beside_large_bytes_is_named() -> None:
    with pytest.raises(plait.NotPicklable) as caught:
        wire.pack({"big": LARGE, "lock": threading.Lock()}, "item")
    assert caught.value.path == "item['lock']"


# --- Laying down ---------------------------------------------------------------------------------


def large_things() -> dict[str, Any]:
    import numpy as np

    big = os.urandom(SIZE)
    array = np.arange(100_000, dtype=np.float64)
    return {
        "bytes": big,
        "bytearray": bytearray(big),
        "memoryview": memoryview(big),
        "a long text": "long text, " * 30_000,
        "a list of numbers": list(range(100_000)),
        "an array": array,
        "arrays": [array, array[::-1], array.reshape(1000, 100).T, array[:10]],
        "arrays and bytes": {"a": array, "b": big},
        "a closure": closure(array),
        "a closure and bytes": closure((array, big)),
        "a partial": partial(closure, array),
    }


THINGS = large_things()


def is_same(one: Any, other: Any) -> bool:
    import numpy as np

    if isinstance(one, partial):
        return is_same(one.args, other.args)
    if callable(one):
        return is_same(one(), other())
    if isinstance(one, np.ndarray):
        return bool(one.shape == other.shape and one.dtype == other.dtype and (one == other).all())
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=True)
        return len(one) == len(other) and all(is_same(*pair) for pair in pairs)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    return bool(type(one) is type(other) and one == other)


@pytest.mark.parametrize("name", THINGS)
def test_what_was_laid_down_is_loaded_through_the_view(store: SegmentStore, name: str) -> None:
    view = view_of(store)
    placing = Placing(store)
    sealed = wire.seal(THINGS[name], "item", placing)
    message = pickle.dumps(sealed, wire.PROTOCOL)
    assert len(message) < 100_000  # the rest is in the store
    for _ in range(2):
        loaded = wire.unseal(pickle.loads(message), view)
        assert is_same(THINGS[name], loaded)
        del loaded
    offsets = {offset for offset, _ in wire.segments_in(sealed)}
    assert offsets
    assert set(view.take_released()) == offsets
    for offset, _ in wire.segments_in(sealed):
        store.release(offset)
    placing.forget()
    assert store.held_bytes == 0


@pytest.mark.parametrize("name", THINGS)
def test_without_room_everything_stays_in_the_message(name: str) -> None:
    sealed = wire.seal(THINGS[name], "item", lambda _: None)
    assert wire.segments_in(sealed) == []
    message = pickle.dumps(sealed, wire.PROTOCOL)
    assert is_same(THINGS[name], wire.unseal(pickle.loads(message), SegmentView(-1)))


def test_what_has_room_is_laid_down_and_the_rest_is_not(make_store: MakeStore) -> None:
    store = make_store(limit=2 * SIZE)
    view = view_of(store)
    parts = [os.urandom(SIZE) for _ in range(4)]
    sealed = wire.seal(parts, "item", Placing(store))
    assert len(wire.segments_in(sealed)) == 2
    assert wire.unseal(pickle.loads(pickle.dumps(sealed, wire.PROTOCOL)), view) == parts


def test_a_plain_value_has_no_segments(store: SegmentStore) -> None:
    for value in (1, "text", None, b"bytes", (1, 2), [3]):
        assert wire.segments_in(wire.seal(value, "item", Placing(store))) == []
    assert store.held_bytes == 0


def test_an_array_that_was_loaded_can_be_written_to_if_the_first_one_could(
    store: SegmentStore,
) -> None:
    import numpy as np

    view = view_of(store)
    array = np.zeros(SIZE, np.uint8)
    fixed = np.zeros(SIZE, np.uint8)
    fixed.flags.writeable = False
    sealed = wire.seal([array, fixed], "item", Placing(store))
    for _ in range(2):
        free, bound = wire.unseal(sealed, view)
        assert (free.flags.writeable, bound.flags.writeable) == (True, False)
        assert not free.any()
        free += 1
        del free, bound
    assert not array.any()


def refuse(*_: object) -> None:
    raise ZeroDivisionError


class Unreadable:
    """Has a large part, and cannot be unpickled."""

    def __init__(self) -> None:
        import numpy as np

        self.part = np.zeros(SIZE)

    def __reduce__(self) -> Any:
        return refuse, (self.part, b"x" * SIZE)


def test_what_cannot_be_loaded_holds_nothing(store: SegmentStore) -> None:
    view = view_of(store)
    sealed = wire.seal([Unreadable(), filled(1)], "item", Placing(store))
    offsets = {offset for offset, _ in wire.segments_in(sealed)}
    assert len(offsets) >= 2
    with suppress(ZeroDivisionError):
        wire.unseal(sealed, view)
    assert set(view.take_released()) == offsets
