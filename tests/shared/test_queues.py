"""Queues: as in ``queue``, between processes, and whoever is killed."""

from __future__ import annotations

import contextlib
import gc
import mmap
import multiprocessing as mp
import os
import pickle
import queue as stdlib
import random
import signal
import subprocess
import sys
import threading
import time
import types
import unittest
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.errors import DeadlockError, NotPicklable, SharedDataGone
from plait.shared import (
    LifoQueue,
    PriorityQueue,
    Queue,
    ShutDown,
    ledgers,
    libc,
    queue_core,
    stores,
)
from tests.start import Program

ROOT = Path(__file__).parents[2]
KINDS = (Queue, LifoQueue, PriorityQueue)
WAYS = ("fork", "spawn", "plait", "subprocess")
RUN = "import pickle, sys; fn, args = pickle.load(sys.stdin.buffer); fn(*args)"


def start_subprocess(fn: Callable[..., None], *args: Any) -> Program[bytes]:
    path = os.pathsep.join([str(ROOT), *sys.path])
    child = Program(
        [sys.executable, "-c", RUN], stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    )
    assert child.stdin is not None
    child.stdin.write(pickle.dumps((fn, args)))
    child.stdin.close()
    return child


@contextlib.contextmanager
def running(way: str, fn: Callable[..., None], jobs: list[tuple[Any, ...]]) -> Iterator[None]:
    """Run a function in a process for each tuple of arguments, and see them end well."""
    if way == "plait":
        thread = threading.Thread(
            target=plait.starmap,
            args=(fn, jobs),
            kwargs={"backend": "processes", "max_workers": len(jobs), "chunksize": 1},
        )
        thread.start()
        yield
        thread.join(30)
        assert not thread.is_alive()
    elif way == "subprocess":
        children = [start_subprocess(fn, *args) for args in jobs]
        yield
        assert [child.wait(30) for child in children] == [0] * len(jobs)
    else:
        context: Any = mp.get_context(way)
        processes = [context.Process(target=fn, args=args) for args in jobs]
        for process in processes:
            process.start()
        yield
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [0] * len(jobs)


def forked(fn: Callable[..., Any], *args: Any) -> int:
    """Fork a child that does something and nothing else; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        fn(*args)
    except BaseException:
        os._exit(1)
    os._exit(0)


def wait_dead(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def until(condition: Callable[[], object]) -> None:
    """Look until something is so: what another process does inside a call cannot tell of itself."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def sleeps(pid: int) -> bool:
    """Whether the main thread of a process sleeps on a word of memory."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/syscall").read_text().split()
        return fields[0] == str(libc._FUTEX[os.uname().machine])
    return False


# --- As in queue ---------------------------------------------------------------------------

test_queue = pytest.importorskip("test.test_queue")
MODULE = types.SimpleNamespace(
    Queue=Queue,
    LifoQueue=LifoQueue,
    PriorityQueue=PriorityQueue,
    Empty=stdlib.Empty,
    Full=stdlib.Full,
    ShutDown=ShutDown,
)


class AsInCPython(test_queue.BaseQueueTestMixin):  # type: ignore[misc,name-defined]
    """CPython's own tests; those of ``shutdown`` are there from 3.13 on."""

    kind: type[Queue]

    def setUp(self) -> None:
        self.queue = MODULE
        self.type2test = self.kind
        super().setUp()


class TestQueueAsInCPython(AsInCPython, unittest.TestCase):
    kind = Queue


class TestLifoQueueAsInCPython(AsInCPython, unittest.TestCase):
    kind = LifoQueue


class TestPriorityQueueAsInCPython(AsInCPython, unittest.TestCase):
    kind = PriorityQueue


@pytest.mark.parametrize("kind", KINDS)
def test_shutdown_is_graceful_or_immediate(kind: type[Queue]) -> None:
    queue = kind()
    queue.put_many([1, 2])
    queue.shutdown()
    assert queue.is_shutdown
    with pytest.raises(ShutDown):
        queue.put(3)
    assert sorted(queue) == [1, 2]
    with pytest.raises(ShutDown):
        queue.get_nowait()

    queue = kind()
    queue.put_many([1, 2])
    assert queue.unfinished_tasks == 2
    queue.shutdown(immediate=True)
    assert list(queue) == []
    queue.join()
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()


def test_shutdown_is_that_of_queue_where_it_has_one() -> None:
    assert getattr(stdlib, "ShutDown", ShutDown) is ShutDown
    assert issubclass(ShutDown, Exception)


def test_priority_queue_gives_equal_ones_in_order_and_leaves_alone_what_cannot_be_compared() -> (
    None
):
    queue = PriorityQueue()
    queue.put_many([Ranked(n % 3, n) for n in range(30)])
    got = [queue.get() for _ in range(30)]
    assert [one.name for one in got] == sorted(range(30), key=lambda n: n % 3)
    queue.put(1)
    with pytest.raises(TypeError):
        queue.put("a")
    assert queue.get_many(9) == [1]


class Ranked:
    def __init__(self, rank: int, name: int) -> None:
        self.rank, self.name = rank, name

    def __lt__(self, other: Ranked) -> bool:
        return self.rank < other.rank


@pytest.mark.parametrize("kind", KINDS)
def test_random_work_agrees_with_that_of_queue(kind: type[Queue]) -> None:
    """Areas grow, wrap around and are left; sizes go from nothing to beyond the first area."""
    chance = random.Random(3)
    ours, theirs = kind(), getattr(stdlib, kind.__name__)()
    for number in range(3000):
        if chance.random() < 0.52 + 0.1 * (number < 1000):
            size = chance.choice([0, 1, 50, 500, 30_000])
            item = (chance.random(), number, bytes(size))
            ours.put(item)
            theirs.put(item)
        elif not theirs.empty():
            assert ours.get() == theirs.get()
        assert ours.qsize() == theirs.qsize()
    while not theirs.empty():
        assert ours.get() == theirs.get()
    assert ours.empty()


def test_items_of_main_and_lambdas_travel_and_what_cannot_is_told() -> None:
    queue = Queue()
    queue.put(lambda x: x + 1)
    assert queue.get()(1) == 2
    with pytest.raises(NotPicklable, match="lock"):
        queue.put({"a": threading.Lock()})
    with pytest.raises(NotPicklable):
        queue.put_many([1, threading.Lock()])
    assert queue.empty()


def test_wrong_arguments() -> None:
    queue = Queue()
    with pytest.raises(ValueError, match="non-negative"):
        queue.get(timeout=-1)
    with pytest.raises(ValueError, match="most=0"):
        queue.get_many(0)
    assert Queue(-1).maxsize == 0


def test_an_item_whose_comparison_uses_the_queue_is_an_error_and_does_no_harm() -> None:
    queue = PriorityQueue(name="jobs")
    queue.put(Meddler())
    _used.append(queue)
    try:
        with pytest.raises(DeadlockError, match="PriorityQueue 'jobs'"):
            queue.put(Meddler())
    finally:
        _used.clear()
    assert queue.qsize() == 1
    assert wait_dead(forked(queue.get)) == 0


_used: list[PriorityQueue] = []


class Meddler:
    def __lt__(self, other: object) -> bool:
        return bool(_used) and _used[0].empty()


# --- Between processes -----------------------------------------------------------------------


def produce(queue: Queue, name: int, count: int) -> None:
    for number in range(count):
        queue.put((name, number))


def pass_on(queue: Queue, results: Queue) -> None:
    for item in queue:
        results.put(item)
    results.put(None)


@pytest.mark.parametrize("way", WAYS)
def test_many_producers_and_consumers_lose_and_double_nothing(way: str) -> None:
    jobs, results = Queue(maxsize=7), Queue()
    with running(way, pass_on, [(jobs, results)] * 2):
        with running(way, produce, [(jobs, name, 150) for name in range(3)]):
            pass
        jobs.shutdown()
        got: Counter[Any] = Counter()
        while got[None] < 2:
            got[results.get(timeout=20)] += 1
    del got[None]
    assert got == Counter((name, number) for name in range(3) for number in range(150))


@pytest.mark.parametrize("kind", KINDS)
def test_items_of_a_producer_keep_their_order(kind: type[Queue]) -> None:
    queue = kind()
    with running("fork", produce, [(queue, name, 300) for name in range(2)]):
        pass
    got = [queue.get() for _ in range(600)]
    for name in range(2):
        order = [number for who, number in got if who == name]
        assert order == sorted(order, reverse=kind is LifoQueue)


def test_it_is_the_same_object_when_it_comes_back() -> None:
    queue = Queue(3, name="jobs", redeliver=True)
    assert pickle.loads(pickle.dumps(queue)) is queue
    assert repr(queue) == "<plait.shared Queue 'jobs': 0 items>"


def test_a_queue_whose_holders_are_gone_is_told() -> None:
    read, write = os.pipe()
    pid = forked(lambda: os.write(write, pickle.dumps(Queue())))
    assert wait_dead(pid) == 0
    data = os.read(read, 10_000)
    os.close(read)
    os.close(write)
    with pytest.raises(SharedDataGone, match="Queue"):
        pickle.loads(data)


def expect_shutdown(queue: Queue, verb: str) -> None:
    try:
        queue.get() if verb == "get" else queue.put("more")
    except ShutDown:
        return
    raise AssertionError


@pytest.mark.parametrize("immediate", [False, True])
@pytest.mark.parametrize("verb", ["get", "put"])
def test_shutdown_wakes_who_is_blocked_elsewhere(verb: str, immediate: bool) -> None:
    queue = Queue(1)
    if verb == "put":
        queue.put("full")
    children = [forked(expect_shutdown, queue, verb) for _ in range(2)]
    until(lambda: all(map(sleeps, children)))
    began = time.monotonic()
    queue.shutdown(immediate)
    assert [wait_dead(pid) for pid in children] == [0, 0]
    assert time.monotonic() - began < 0.9  # it did not take the look of each second
    assert queue.qsize() == (verb == "put" and not immediate)


def test_ctrl_c_interrupts_a_wait_at_once() -> None:
    queue = Queue()
    child = start_subprocess(interruptible, queue)
    until(lambda: sleeps(child.pid))
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == 0
    assert time.monotonic() - began < 0.9
    queue.put(1)
    assert queue.get() == 1


def interruptible(queue: Queue) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        queue.get()


def test_waiting_takes_no_cpu_and_timeouts_are_kept() -> None:
    queue = Queue()
    began, cpu = time.monotonic(), time.thread_time()
    with pytest.raises(stdlib.Empty):
        queue.get(timeout=1.2)
    assert 1.2 <= time.monotonic() - began < 2
    assert time.thread_time() - cpu < 0.02


def test_join_waits_for_consumers_of_other_processes() -> None:
    queue = Queue()
    queue.put_many(range(20))
    queue.shutdown()
    with running("fork", work_through, [(queue,)] * 2):
        queue.join()
        assert queue.unfinished_tasks == 0


def work_through(queue: Queue) -> None:
    for _ in queue:
        queue.task_done()


# --- Memory ------------------------------------------------------------------------------------


def used_bytes(queue: Queue) -> int:
    return os.fstat(queue._region._fd).st_blocks * 512


def test_large_items_travel_whole() -> None:
    numpy = pytest.importorskip("numpy")
    queue = Queue()
    array = numpy.arange(1_250_000, dtype="float64")
    data = random.Random(1).randbytes(10_000_000)
    pid = forked(queue.put_many, [data, array])
    assert queue.get() == data
    came = queue.get()
    assert numpy.array_equal(came, array)
    came[0] = 1  # it is ours
    assert wait_dead(pid) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_memory_grows_with_what_waits_and_is_given_back(kind: type[Queue]) -> None:
    queue = kind()
    for _ in range(3):
        for number in range(40):
            queue.put((number, bytes(1_000_000)))
        assert used_bytes(queue) > 40_000_000
        for _ in range(40):
            queue.get()
        assert used_bytes(queue) < 1_000_000


def test_memory_is_used_again_in_steady_state() -> None:
    queue = Queue()
    for _ in range(50):
        queue.put_many([bytes(1000)] * 100)
        queue.get_many(100)
    assert used_bytes(queue) < 300_000
    queue = Queue(redeliver=True)
    stuck = Queue(redeliver=True)
    stuck.put("of a slow consumer")
    stuck.get()
    for one in (queue, stuck):
        for number in range(3000):
            one.put(number)
            assert one.get() == number
            assert one._keeper is not None
            if one is stuck:  # as if another thread had taken the first one
                one._keeper.words[
                    stores.HEAD_WORDS + 2 + 4 * (one._keeper.words[0] & one._keeper._mask)
                ] = 1
            one.task_done()
    assert used_bytes(queue) < 200_000
    assert used_bytes(stuck) < 400_000
    assert stuck.unfinished_tasks == 1


def test_nothing_is_left_open() -> None:
    def files() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    Queue()
    before = files()
    for _ in range(100):
        queue = Queue()
        queue.put(1)
    del queue
    assert files() <= before


# --- Whoever is killed ---------------------------------------------------------------------------


class Fuse:
    """Kill this process at the n-th bytecode of plait.shared that it comes to."""

    def __init__(self, length: int) -> None:
        self.left = length

    def __call__(self, frame: types.FrameType, event: str, _: Any) -> Any:
        if "plait/shared" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def with_fuse(length: int, fn: Callable[[], Any]) -> None:
    sys._getframe().f_trace_opcodes = True  # or 3.12 tells of no opcode at all
    sys.settrace(Fuse(length))
    fn()
    sys.settrace(None)


ACTS: dict[str, Callable[[Queue], Any]] = {
    "put": lambda queue: queue.put((5, "new")),
    "put something large": lambda queue: queue.put((5, "new" * 40_000)),
    "get": lambda queue: queue.get(),
    "shutdown": lambda queue: queue.shutdown(immediate=True),
}


@pytest.mark.soak
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("make", [*KINDS, "redeliver"])
def test_a_process_may_be_killed_at_any_bytecode(act: str, make: Any) -> None:
    """An item is in the queue or it is not, and the queue goes on."""
    length, step, status = 1, 13, -9
    while status == -9:
        queue = Queue(redeliver=True) if make == "redeliver" else make()
        queue.put_many([(3, "c"), (1, "a"), (9, "z")])
        status = wait_dead(forked(with_fuse, length, lambda q=queue: ACTS[act](q)))
        check_whole(queue, act, is_kept=make == "redeliver")
        length += step
    assert status == 0
    assert length > 100


def check_whole(queue: Queue, act: str, *, is_kept: bool) -> None:
    before = {(3, "c"), (1, "a"), (9, "z")}
    if queue.is_shutdown:
        assert {*queue} <= before
        return
    queue._look()
    count = queue.qsize()
    queue.put((7, "later"))
    got = queue.get_many(9)
    assert len(got) == count + 1
    assert (7, "later") in got
    new = {*got} - before - {(7, "later")}
    assert all(name.startswith("newnew") or name == "new" for _, name in new)
    if act == "get" and not is_kept:
        assert len(before - {*got}) <= 1
    elif act != "shutdown":
        assert before <= {*got}
    assert len(got) == len({*got})


def put_and_count(queue: Queue, name: int, counts: mmap.mmap) -> None:
    for number in range(100_000):
        queue.put((name, number))
        counts[4 * name : 4 * name + 4] = (number + 1).to_bytes(4, "little")


@pytest.mark.parametrize("seed", range(15))
def test_killed_producers_leave_whole_items_and_block_nobody(seed: int) -> None:
    chance = random.Random(seed)
    queue = Queue(maxsize=chance.choice([0, 5]))
    counts = mmap.mmap(-1, 64)
    children = [forked(put_and_count, queue, name, counts) for name in range(2)]
    got: list[Any] = [queue.get(timeout=20) for _ in range(chance.randrange(1, 200))]
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        assert wait_dead(pid) == -9
        got += [
            queue.get(timeout=20) for _ in range(chance.randrange(5) if pid == children[0] else 0)
        ]
    with contextlib.suppress(stdlib.Empty):
        while True:
            got.append(queue.get_nowait())
    for name in range(2):
        numbers = [number for who, number in got if who == name]
        done = int.from_bytes(counts[4 * name : 4 * name + 4], "little")
        assert numbers == list(range(len(numbers)))
        assert len(numbers) in (done, done + 1)
    queue.put("it goes on")
    assert queue.get(timeout=1) == "it goes on"


def consume(queue: Queue, seen: mmap.mmap, first: int) -> None:
    for number in queue:
        seen[first + number] += 1
        if queue._redeliver:
            queue.task_done()


@pytest.mark.parametrize("redeliver", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_of_killed_consumers_each_loses_one_item_at_most_and_none_with_redeliver(
    seed: int, redeliver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_core, "LOOK_S", 0.05)
    chance = random.Random(seed)
    count, kills = 2000, 3
    queue = Queue(redeliver=redeliver)
    # A process has bytes of its own, for nobody adds to a byte in one step.
    seen = mmap.mmap(-1, count * (kills + 1))
    for number in range(count):
        queue.put(number)
    victims = [forked(consume, queue, seen, count * n) for n in range(kills)]
    survivor = forked(consume, queue, seen, count * kills)
    for pid in victims:
        limit = chance.randrange(50, count)
        until(lambda: queue.qsize() < limit)  # noqa: B023  it is called at once
        os.kill(pid, signal.SIGKILL)
    assert [wait_dead(pid) for pid in victims] == [-9] * kills
    queue.shutdown()
    assert wait_dead(survivor) == 0
    times = [sum(seen[number + count * n] for n in range(kills + 1)) for number in range(count)]
    lost, doubled = times.count(0), sum(max(0, one - 1) for one in times)
    assert doubled <= (kills if redeliver else 0)
    assert lost <= (0 if redeliver else kills)
    if redeliver:
        queue.join()
    assert queue.empty()


def take_and_tell(queue: Queue, count: int, told: int) -> None:
    for _ in range(count):
        queue.get()
    os.write(told, b"x")
    signal.pause()


@pytest.mark.parametrize("redeliver", [False, True])
def test_join_waits_for_nobody_who_is_dead(
    redeliver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_core, "LOOK_S", 0.05)
    queue = Queue(redeliver=redeliver)
    queue.put_many("abcd")
    read, write = os.pipe()
    pid = forked(take_and_tell, queue, 2, write)
    assert os.read(read, 1) == b"x"
    os.close(read)
    os.close(write)
    assert (queue.qsize(), queue.unfinished_tasks) == (2, 4)
    os.kill(pid, signal.SIGKILL)
    wait_dead(pid)
    if redeliver:
        assert [queue.get(), *queue.get_many(1)] == ["c", "d"]
        assert queue.get_many(9) == ["a", "b"]  # they come back as soon as there is nothing else
        for left in (3, 2, 1, 0):
            queue.task_done()
            assert queue.unfinished_tasks == left
    else:
        assert queue.get_many(9) == ["c", "d"]
        queue.task_done()
        queue.task_done()
    queue.join()


def test_after_shutdown_getters_wait_for_what_may_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_core, "LOOK_S", 0.05)
    queue = Queue(redeliver=True)
    queue.put("a")
    read, write = os.pipe()
    pid = forked(take_and_tell, queue, 1, write)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    queue.shutdown()
    with pytest.raises(stdlib.Empty):
        queue.get(timeout=0.1)
    os.kill(pid, signal.SIGKILL)
    wait_dead(pid)
    for item in queue:  # what we have ourselves is not waited for
        assert item == "a"
        queue.task_done()


def take_and_finish(queue: Queue) -> None:
    queue.get()
    queue.task_done()


def test_task_done_is_for_what_the_thread_took() -> None:
    queue = Queue(redeliver=True)
    queue.put_many("ab")
    assert queue.get() == "a"
    thread = threading.Thread(target=take_and_finish, args=(queue,))
    thread.start()
    thread.join()
    assert queue._keeper is not None
    assert [entry.record for entry in queue._keeper._entries()] == [(pickle.dumps("a", 5), 0)]
    queue.task_done()
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()


def test_a_wake_up_that_was_lost_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the producer had been killed before it rang."""
    monkeypatch.setattr(queue_core, "LOOK_S", 0.1)
    queue = Queue()
    pid = forked(queue.get)
    until(lambda: sleeps(pid))
    queue._locked(queue._put_mutex, queue._add, stores.encode(1), 1)
    assert wait_dead(pid) == 0


def test_many_dead_consumers_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers.Ledger, "LINES", 4)
    queue = Queue()
    queue.put_many(range(12))
    for _ in range(10):
        assert wait_dead(forked(queue.get)) == 0
    assert queue.get() == 10
    assert queue.get() == 11
    queue.task_done()
    queue.task_done()
    queue.join()
