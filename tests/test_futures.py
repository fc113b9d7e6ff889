"""Futures that whoever waits resolves: many threads at once, Ctrl-C, forks, and random programs."""

from __future__ import annotations

import selectors
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plait
from plait import futures
from plait.backends.turns import Turns
from plait.clocks import monotonic
from tests.conftest import Way
from tests.contract.test_executor import DEADLINE_S, Gates, InThread, gates, note_looks, opened
from tests.properties.conftest import examples

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

__all__ = ["gates"]  # a fixture


# --- Who drives ----------------------------------------------------------------------------------


@pytest.fixture
def turns() -> Iterator[Turns]:
    made = Turns()
    yield made
    made.close()


class Waiters:
    """Threads that wait in Turns, each for something of its own."""

    def __init__(self, turns: Turns, conditions: list[threading.Condition]) -> None:
        self._turns = turns
        self._let_go: set[int] = set()
        self._asked = [threading.Semaphore(0) for _ in conditions]
        self.threads = [
            InThread(lambda n=n, c=c: self._wait(n, c))  # type: ignore[misc]
            for n, c in enumerate(conditions)
        ]
        for asked in self._asked:
            assert asked.acquire(timeout=DEADLINE_S)
        with turns.lock:
            pass  # now one of them drives, and the others sleep

    def _wait(self, number: int, condition: threading.Condition) -> int:
        def is_done() -> bool:
            self._asked[number].release()
            return number in self._let_go

        with self._turns.lock:
            self._turns.wait_until(is_done, condition, monotonic() + 3 * DEADLINE_S)
            assert number in self._let_go, "time was up"
        return number

    def let_go(self, number: int, *, is_told: bool = True) -> None:
        self._let_go.add(number)
        if is_told:
            self._turns.ring()


ORDERS = [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (3, 0, 5, 1, 4, 2)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("conditions", [1, 2, 6])
def test_each_thread_is_woken_in_its_turn(
    turns: Turns, order: tuple[int, ...], conditions: int
) -> None:
    shared = [threading.Condition(turns.lock) for _ in range(conditions)]
    waiters = Waiters(turns, [shared[n % conditions] for n in range(6)])
    for number in order:
        waiters.let_go(number)
        assert waiters.threads[number].value() == number


@pytest.mark.parametrize("conditions", [1, 3])
def test_several_threads_that_are_let_go_together_are_all_woken(
    turns: Turns, conditions: int
) -> None:
    shared = [threading.Condition(turns.lock) for _ in range(conditions)]
    waiters = Waiters(turns, [shared[n % conditions] for n in range(6)])
    for together in ((0, 3, 4), (1, 2, 5)):
        for number in together:
            waiters.let_go(number, is_told=False)
        turns.ring()
        assert [waiters.threads[number].value() for number in together] == list(together)


def test_somebody_drives_as_long_as_anybody_waits(turns: Turns) -> None:
    ours, theirs = socket.socketpair()
    arrived = threading.Condition(turns.lock)
    waiters: Waiters

    def hear(*_: object) -> None:
        waiters.let_go(ours.recv(1)[0])

    turns.watch(ours, selectors.EVENT_READ, hear)
    waiters = Waiters(turns, [arrived] * 5)
    for number in (2, 0, 4, 1, 3):
        theirs.send(bytes([number]))
        assert waiters.threads[number].value() == number
    turns.unwatch(ours)
    ours.close()
    theirs.close()


def test_threads_that_sleep_while_another_drives_get_their_results(
    process_way: Way, gates: Gates
) -> None:
    with opened(process_way, 5) as pool:
        for number, order in enumerate([(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)]):
            futures = [pool.submit(gates.task((number, n))) for n in range(5)]
            gates.await_begun(5)
            looks = [note_looks(future) for future in futures]
            waiters = [InThread(future.result) for future in futures]
            for looked in looks:
                looked(2)
            for n in order:
                gates.open((number, n))
                assert waiters[n].value() == (number, n)


def test_the_keeper_and_waiting_threads_take_turns(process_way: Way, gates: Gates) -> None:
    with opened(process_way, 2) as pool:
        for number in range(12):
            called = threading.Semaphore(0)
            first = pool.submit(gates.task((number, 1)))
            second = pool.submit(gates.task((number, 2)))
            if number % 2:  # then the keeper drives at once
                first.add_done_callback(lambda _, called=called: called.release())  # type: ignore[misc]
            gates.await_begun(2)
            waiter = InThread((first if number % 3 else second).result)
            for n in (1, 2) if number % 4 < 2 else (2, 1):
                gates.open((number, n))
            assert waiter.value() == (number, 1 if number % 3 else 2)
            if number % 2:
                assert called.acquire(timeout=DEADLINE_S)
            for n, future in ((1, first), (2, second)):
                assert InThread(future.result).value() == (number, n)


def test_every_future_of_many_threads_is_resolved_once(process_way: Way) -> None:
    called: Counter[int] = Counter()
    guard = threading.Lock()

    def note(future: Future[int]) -> None:
        with guard:
            called[future.result()] += 1

    def work(start: int) -> int:
        futures = []
        for n in range(start, start + 100):
            futures.append(pool.submit(abs, -n))
            futures[-1].add_done_callback(note)
            if n % 7 == 0:
                assert futures[-1].result() == n
            if n % 11 == 0:
                assert [future.result() for future in futures] == list(range(start, n + 1))
        return sum(future.result() for future in futures)

    with opened(process_way, 2) as pool:
        threads = {start: InThread(lambda s=start: work(s)) for start in range(0, 600, 100)}  # type: ignore[misc]
        for start, thread in threads.items():
            assert thread.value() == sum(range(start, start + 100))
    assert called == Counter(range(600))


def test_a_dead_worker_is_told_to_who_waits_for_it(process_way: Way, gates: Gates) -> None:
    def die() -> None:
        import os

        os._exit(3)

    with opened(process_way, 3) as pool:
        futures = [pool.submit(gates.task(n)) for n in range(2)]
        gates.await_begun(2)
        waiters = [InThread(future.result) for future in futures]
        dead = InThread(pool.submit(die).exception)
        assert isinstance(dead.value(), plait.WorkerDied)
        for n in (1, 0):
            gates.open(n)
            assert waiters[n].value() == n


def test_who_waits_is_told_that_there_are_no_workers(process_way: Way) -> None:
    def prepare() -> None:
        raise LookupError("no licence")

    with opened(process_way, 2, initializer=prepare) as pool:
        waiters = [InThread(pool.submit(abs, n).result) for n in range(6)]
        for waiter in waiters:
            with pytest.raises(plait.WorkerStartError, match="no licence"):
                waiter.value()


def test_the_keeper_is_not_woken_for_each_of_many_futures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(futures, "TAKE_OVER_S", 10 * DEADLINE_S)
    with opened(Way("server"), 1) as pool:
        rests = []
        for n in range(50):
            assert pool.submit(pow, n, 2).result() == n * n
            rests.append(pool._desk._keeper_rests)  # type: ignore[attr-defined]
    assert not any(rests)


def test_the_keeper_drives_at_once_if_somebody_wants_to_be_called_back(
    monkeypatch: pytest.MonkeyPatch, gates: Gates
) -> None:
    monkeypatch.setattr(futures, "TAKE_OVER_S", 10 * DEADLINE_S)
    with opened(Way("server"), 1) as pool:
        assert pool.submit(pow, 2, 2).result() == 4  # the keeper is between two looks
        future = pool.submit(gates.task(1))
        called = threading.Event()
        future.add_done_callback(lambda _: called.set())
        gates.open(1)
        assert called.wait(DEADLINE_S)


# --- Random programs -----------------------------------------------------------------------------

Program = list[tuple[str, int]]
steps = st.tuples(
    st.sampled_from(("submit", "submit", "wait", "ask", "callback", "cancel", "error")),
    st.integers(0, 30),
)
programs = st.lists(st.lists(steps, max_size=12), min_size=1, max_size=4)


class Conduct:
    """Several threads that use the futures of one executor, their own and each other's."""

    def __init__(self, pool: plait.Executor) -> None:
        self._pool = pool
        self._futures: list[tuple[int, Future[int]]] = []  # with what is expected
        self._expected: Counter[int] = Counter()  # callbacks, by future
        self._called: Counter[int] = Counter()
        self._guard = threading.Lock()

    def run(self, program: Program) -> None:
        for verb, number in program:
            if verb in ("submit", "error") or not self._futures:
                self._submit(verb, number)
            else:
                self._use(verb, *self._futures[number % len(self._futures)])

    def _submit(self, verb: str, number: int) -> None:
        if verb == "error":
            self._futures.append((-1, self._pool.submit(int, "no number")))
        else:
            self._futures.append((number, self._pool.submit(abs, -number)))

    def _use(self, verb: str, expected: int, future: Future[int]) -> None:
        if verb == "wait":
            self._check(expected, future)
        elif verb == "cancel":
            future.cancel()
        elif verb == "ask":
            with suppress(TimeoutError, CancelledError):
                future.exception(timeout=0)
        else:
            with self._guard:
                self._expected[id(future)] += 1
            future.add_done_callback(self._note)

    def _note(self, future: Future[int]) -> None:
        with self._guard:
            self._called[id(future)] += 1

    def _check(self, expected: int, future: Future[int]) -> None:
        try:
            assert future.result(timeout=DEADLINE_S) == expected
        except CancelledError:
            assert future.cancelled()
        except ValueError:
            assert expected == -1

    def check(self) -> None:
        for expected, future in self._futures:
            self._check(expected, future)
            assert future.done()
        self._pool.submit(abs, 0).result()  # callbacks come right after the results
        assert self._called <= self._expected


@pytest.fixture(scope="module")
def shared_pools() -> Iterator[dict[str, plait.Executor]]:
    with (
        opened(Way("server")) as server,
        opened(Way("threads")) as threads,
        opened(Way("serial")) as serial,
    ):
        yield {"server": server, "threads": threads, "serial": serial}


@pytest.mark.timeout(100)
@pytest.mark.parametrize("name", ["server", "threads", "serial"])
@examples(40)
@given(programs)
def test_whatever_threads_do_each_future_ends(
    shared_pools: dict[str, plait.Executor], name: str, programs: list[Program]
) -> None:
    conduct = Conduct(shared_pools[name])
    threads = [InThread(lambda p=program: conduct.run(p)) for program in programs]  # type: ignore[misc]
    for thread in threads:
        thread.value()
    conduct.check()


# --- Ctrl-C, forks, and the end of the program ---------------------------------------------------

INTERRUPTED = """
import os, signal, sys, threading
from pathlib import Path
import plait

os.mkfifo("start")
os.mkfifo("heard")
start, heard = (os.open(name, os.O_RDWR) for name in ("start", "heard"))
me = os.getpid()
signals = 0

def interrupted(*_):
    global signals
    signals += 1
    os.write(heard, b"!")
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupted)

def task(n):
    if n % 10 == 5:
        os.kill(me, signal.SIGINT)
        with open("heard") as file:
            file.read(1)
    return n

def first():
    with open("start") as file:
        file.read(1)

values = []

def collect():
    while len(values) < len(futures):
        values.append(futures[len(values)].result())

def collect_all():
    while True:
        try:
            return collect()
        except KeyboardInterrupt:
            pass

pool = plait.Executor(1, "processes", start_method=sys.argv[1])
pool.submit(first)
futures = [pool.submit(task, n) for n in range(200)]
others = [pool.submit(abs, -n) for n in range(50)]
elsewhere = threading.Thread(target=lambda: [future.result() for future in others])
if sys.argv[2] == "crowded":
    elsewhere.start()
os.write(start, b"!")
collect_all()
print(values == list(range(200)), signals)
print([future.result() for future in others] == list(range(50)))
pool.shutdown()
if sys.argv[2] == "crowded":
    elsewhere.join()
"""


@pytest.mark.parametrize("where", ["alone", "crowded"])
def test_ctrl_c_while_waiting_loses_no_future(
    process_way: Way, run_python: RunPython, where: str
) -> None:
    done = run_python("-X", "dev", "-W", "error", "-c", INTERRUPTED, process_way.name, where)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["True 20", "True"]


INTERRUPTED_SUBMIT = """
import os, signal, sys
import plait

class Slow:
    def __reduce__(self):
        signal.raise_signal(signal.SIGINT)
        return int, (3,)

signal.alarm(15)  # rather than wait for ever
with plait.Executor(1, "processes", start_method=sys.argv[1]) as pool:
    print(pool.submit(abs, -1).result())  # the worker is free, so what comes next is packed
    try:
        pool.submit(abs, Slow())
    except KeyboardInterrupt:
        print("interrupted")
    print(pool.submit(abs, -2).result())
print("done")
"""


def test_ctrl_c_while_an_argument_is_packed_does_not_keep_the_executor_from_ending(
    process_way: Way, run_python: RunPython
) -> None:
    done = run_python("-X", "dev", "-W", "error", "-c", INTERRUPTED_SUBMIT, process_way.name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["1", "interrupted", "2", "done"]


FORKED = """
import os, sys, warnings
import plait

pool = plait.Executor(2, sys.argv[1], start_method=sys.argv[2] or None)
before = pool.submit(pow, 2, 3)
assert before.result() == 8
started = pool.submit(pow, 2, 4)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # there are threads
    pid = os.fork()
if pid == 0:
    for use in (lambda: pool.submit(pow, 2, 5), lambda: pool.map(pow, [2], [5])):
        try:
            use()
        except plait.PoolClosed as error:
            print("child:", type(error).__name__)
    print("child:", before.result())
    pool.shutdown()
    with plait.Executor(1, sys.argv[1], start_method=sys.argv[2] or None) as own:
        print("child:", own.submit(pow, 2, 6).result(), flush=True)
    sys.exit()
os.waitpid(pid, 0)
print("parent:", started.result(), pool.submit(pow, 2, 5).result())
pool.shutdown()
"""


@pytest.mark.parametrize("name", ["server", "spawn", "threads"])
def test_a_forked_child_cannot_use_the_executor(name: str, run_python: RunPython) -> None:
    way = Way(name)
    backend, start_method = way.executor["backend"], way.executor.get("start_method", "")
    done = run_python("-W", "error", "-c", FORKED, backend, start_method)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "child: PoolClosed",
        "child: PoolClosed",
        "child: 8",
        "child: 64",
        "parent: 16 32",
    ]


MAPS = """
import sys
import plait

with plait.Executor(2, sys.argv[1], start_method=sys.argv[2] or None) as pool:
    for _ in range(500):  # the reader is at the end before the thread that feeds it
        assert list(pool.map(abs, range(-4, 0), chunksize=1)) == [4, 3, 2, 1]
        assert next(pool.map(abs, range(-20, 0), chunksize=1)) == 20
print("done")
"""


@pytest.mark.parametrize("name", ["server", "threads"])
def test_many_maps_of_an_executor_come_to_their_end(name: str, run_python: RunPython) -> None:
    way = Way(name)
    backend, start_method = way.executor["backend"], way.executor.get("start_method", "")
    done = run_python("-W", "error", "-c", MAPS, backend, start_method)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


FORGOTTEN = """
import sys, threading
import plait

pool = plait.Executor(2, sys.argv[1], start_method=sys.argv[2] or None)
futures = [pool.submit(pow, n, 2) for n in range(50)]
waiter = threading.Thread(target=futures[-1].result)
waiter.start()
"""


@pytest.mark.parametrize("name", ["server", "spawn", "threads"])
def test_a_program_ends_though_nobody_shut_its_executor_down(
    name: str, run_python: RunPython
) -> None:
    way = Way(name)
    backend, start_method = way.executor["backend"], way.executor.get("start_method", "")
    done = run_python("-X", "dev", "-W", "error", "-c", FORGOTTEN, backend, start_method)
    assert (done.returncode, done.stderr) == (0, "")
