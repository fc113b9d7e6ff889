"""Locks: what threading's do, their journeys, and what is told of owners that have ended."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import pickle
import resource
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import plait
from plait import compiled
from plait.errors import DeadlockError, OwnerDied, SharedDataGone
from plait.shared import List, Lock, RLock, arena, libc, locks, memory, seats
from plait.shared.deadlocks import Lookout
from plait.shared.whereabouts import is_alive
from tests.conftest import PROCESS_WAYS, Way, only
from tests.shared.puppet import (
    SOON_S,
    Puppet,
    begin_in_thread,
    end_of_thread,
    is_kept,
    is_waited_for,
    keep,
    puppets,
    until,
)

both = pytest.mark.parametrize("cls", [Lock, RLock])
pytestmark = pytest.mark.usefixtures("no_files_left")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOOK_S", SOON_S)


def elsewhere(fn: Callable[..., Any], *args: Any) -> Any:
    """Do it in another thread, and wait for that."""
    begin_in_thread("elsewhere", fn, *args)
    return end_of_thread("elsewhere")


# --- As in threading -------------------------------------------------------------------------


@both
def test_a_lock_is_held_within_with_and_free_after_it(cls: type[Lock]) -> None:
    lock = cls()
    assert not lock.locked()
    with lock as acquired:
        assert acquired is True
        assert lock.locked()
        assert elsewhere(lock.acquire, False) is False
    assert not lock.locked()
    assert elsewhere(take, lock)[0]


@both
def test_a_lock_is_free_after_an_error_within_with(cls: type[Lock]) -> None:
    lock = cls()
    with pytest.raises(ZeroDivisionError), lock:
        _ = 1 / 0
    assert not lock.locked()


@both
def test_a_timeout_is_waited_for_and_no_longer(cls: type[Lock]) -> None:
    lock = cls()
    with lock:
        started = time.monotonic()
        assert elsewhere(lock.acquire, True, 0.15) is False
        assert 0.15 <= time.monotonic() - started < 5
        assert elsewhere(lock.acquire, True, 0) is False
    assert lock.acquire(timeout=0)
    lock.release()


@both
@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((False, 1), ValueError),
        ((False, 0), ValueError),
        ((True, -2), ValueError),
        ((True, math.nan), ValueError),
        ((True, threading.TIMEOUT_MAX * 2), OverflowError),
        ((True, "1"), TypeError),
        ((True, None), TypeError),
    ],
)
def test_wrong_timeouts_are_refused_as_threading_does(
    cls: type[Lock], args: tuple[Any, ...], error: type[Exception]
) -> None:
    for lock in (cls(), threading.Lock()):
        with pytest.raises(error):
            lock.acquire(*args)
        assert not lock.locked()


def test_what_to_do_on_the_owners_death_is_checked() -> None:
    with pytest.raises(ValueError, match="on_owner_death='retry' must be"):
        Lock(on_owner_death="retry")


@both
def test_to_release_what_one_has_not_is_refused(cls: type[Lock]) -> None:
    lock = cls("results")
    text = rf"cannot release {cls.__name__} 'results': this thread has not acquired it"
    with pytest.raises(RuntimeError, match=text):
        lock.release()
    with lock:
        with pytest.raises(RuntimeError, match=text):
            elsewhere(lock.release)
        assert lock.locked()
    with pytest.raises(RuntimeError, match=text), lock:
        lock.release()


def test_an_rlock_is_released_as_often_as_it_was_acquired() -> None:
    lock = RLock()
    with lock, lock:
        assert lock.acquire()
        lock.release()
        assert elsewhere(lock.acquire, False) is False
    assert not lock.locked()


def test_a_lock_that_one_has_is_a_deadlock_unless_one_does_not_wait() -> None:
    lock = Lock("mine")
    with lock:
        assert lock.acquire(False) is False
        assert lock.acquire(timeout=0) is False
        with pytest.raises(DeadlockError, match=r"waits for Lock 'mine', which it has already"):
            lock.acquire()
        with pytest.raises(DeadlockError, match=r"test_locks.py:\d+ in test_a_lock_that"), lock:
            pass
        assert lock.locked()
    assert not lock.locked()


def test_a_lock_tells_who_has_it() -> None:
    lock = Lock("results")
    assert repr(lock) == "<plait.shared Lock 'results': unlocked>"
    with lock:
        assert f"Lock 'results': held by MainProcess (pid {os.getpid()})>" in repr(lock)
    assert repr(RLock()) == "<plait.shared RLock: unlocked>"


def test_a_lock_keeps_threads_apart() -> None:
    lock, total = Lock(), [0]

    def add() -> None:
        for _ in range(500):
            with lock:
                before = total[0]
                os.sched_yield()
                total[0] = before + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == [2000]


# --- Journeys --------------------------------------------------------------------------------


def take(lock: Lock) -> tuple[bool, int]:
    with lock:
        return lock.locked(), os.getpid()


def is_held(lock: Lock) -> bool:
    return not lock.acquire(blocking=False)


def take_from(box: dict[str, Any]) -> bool:
    assert box["locks"][0] is box["again"]
    return is_held(box["again"])


@only("threads", *PROCESS_WAYS)
def test_a_lock_travels_as_argument_in_a_container_in_a_closure_and_as_global(way: Way) -> None:
    lock = Lock("traveller")
    scope: dict[str, Any] = {"GLOBAL": lock}
    exec("def of_global(_): return not GLOBAL.acquire(blocking=False)", scope)
    with lock:
        options = {**way.options, "max_workers": 2}
        assert plait.map(is_held, [lock, lock], **options) == [True, True]
        assert plait.map(lambda _: is_held(lock), [1, 2], **options) == [True, True]
        assert plait.map(scope["of_global"], [1, 2], **options) == [True, True]
        boxes = [{"locks": [lock], "again": lock}] * 2
        assert plait.map(take_from, boxes, **options) == [True, True]
    assert [held for held, _ in plait.map(take, [lock] * 3, **options)] == [True] * 3
    assert not lock.locked()


@pytest.mark.usefixtures("clean")
def test_a_lock_made_before_or_after_the_workers_reaches_several_pools(process_way: Way) -> None:
    early = Lock("early")
    with (
        plait.Executor(max_workers=1, **process_way.executor) as one,
        plait.Executor(max_workers=1, **process_way.executor) as two,
    ):
        pids = {pool.submit(take, early).result()[1] for pool in (one, two)}
        assert len(pids) == 2
        late = Lock("late")
        for lock in (early, late):
            with lock:
                assert [pool.submit(is_held, lock).result() for pool in (one, two)] == [True, True]
            assert {pool.submit(take, lock).result()[1] for pool in (one, two)} == pids


def test_pickled_twice_it_arrives_as_one_object(puppet: Puppet) -> None:
    lock = Lock("one")
    assert pickle.loads(pickle.dumps(lock)) is lock
    puppet.do(keep, lock)
    assert puppet.do(is_kept, lock)


def test_that_it_arrives_in_many_threads_at_once_makes_one_object(puppet: Puppet) -> None:
    def arrive(data: bytes) -> int:
        start, found = threading.Barrier(8), []

        def load() -> None:
            start.wait()
            found.append(pickle.loads(data))

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len({id(lock) for lock in found})

    lock = Lock()
    assert puppet.do(arrive, pickle.dumps(lock)) == 1


def test_it_goes_on_from_whom_it_came_to_when_its_maker_has_ended(pair: list[Puppet]) -> None:
    maker, other = pair
    lock = maker.do(Lock, "made elsewhere")
    maker.kill()
    assert other.do(take, lock) == (True, other.pid)
    with lock:
        assert other.do(is_held, lock)


def test_it_is_gone_with_all_who_had_it(pair: list[Puppet]) -> None:
    maker, other = pair
    data = maker.do(lambda: pickle.dumps(keep(Lock("short-lived"))))
    maker.kill()
    with pytest.raises(SharedDataGone, match=rf"This Lock cannot be found: .*{maker.pid}") as told:
        other.do(pickle.loads, data)
    assert told.value.what == "Lock"


MULTIPROCESSING = """
import multiprocessing, os, sys
from plait.shared import Lock

def held(lock, pipe):
    pipe.send(not lock.acquire(blocking=False))
    pipe.recv()
    with lock:
        pipe.send(os.getpid())
        if pipe.recv() == "die":
            os._exit(3)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    for end in ("go", "die"):
        lock = Lock("given")
        ours, theirs = context.Pipe()
        child = context.Process(target=held, args=(lock, theirs))
        with lock:
            child.start()
            assert ours.recv() is True
        ours.send("go")
        pid = ours.recv()
        assert lock.locked() and f"(pid {pid})" in repr(lock), repr(lock)
        ours.send(end)
        child.join()
        try:
            with lock:
                print("free")
        except Exception as error:
            print(type(error).__name__, error.pid == pid, error.owner.partition("-")[0])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_it_is_given_to_the_children_of_multiprocessing(
    method: str, run_python: Callable[..., Any], tmp_path: Any
) -> None:
    script = tmp_path / "script.py"
    script.write_text(MULTIPROCESSING)
    done = run_python(str(script), method)
    name = {"fork": "Fork", "spawn": "Spawn", "forkserver": "ForkServer"}[method]
    assert done.stdout == f"free\nOwnerDied True {name}Process\n", done.stderr


def in_fork(fn: Callable[[], Any]) -> Any:
    """Do it in a forked child. For puppets: they have but one thread, unless a test wants more."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, pickle.dumps(fn()))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(data)


def test_a_cell_that_a_forked_child_may_have_is_not_given_out_again(puppet: Puppet) -> None:
    def drop_and_make() -> bool:
        lock = Lock("inherited")
        before = lock._cell.offset
        go, went = os.pipe()
        pid = os.fork()
        if not pid:
            os.read(go, 1)
            os._exit(int(lock.acquire(blocking=False)))
        del lock
        with Lock("new") as _:
            os.write(went, b"x")
            _, status = os.waitpid(pid, 0)
        os.close(go)
        os.close(went)
        return os.waitstatus_to_exitcode(status) == 1 and Lock()._cell.offset != before

    assert puppet.do(drop_and_make)


def test_a_child_forked_while_a_thread_makes_locks_can_make_and_use_them(puppet: Puppet) -> None:
    def fork_often() -> bool:
        stop = threading.Event()
        old = Lock("old")

        def make() -> None:
            while not stop.is_set():
                with Lock(), old:
                    pass

        def use() -> tuple[int, bool]:
            lock = Lock("in the child")
            with lock, old:
                return lock._cell.holder.pid, old._cell.holder.pid == os.getpid()

        threads = [threading.Thread(target=make) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                pid, is_noted = in_fork(use)
                assert is_noted
                assert pid != os.getpid()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        return True

    assert puppet.do(fork_often)


def test_what_a_parent_holds_its_forked_child_has_not(puppet: Puppet) -> None:
    def fork_within() -> Any:
        lock = Lock("the parent's")

        def release() -> Any:
            held = not lock.acquire(blocking=False)
            try:
                lock.release()
            except RuntimeError as error:
                return held, str(error)

        with lock:
            return in_fork(release)

    text = 'cannot release Lock "the parent\'s": this thread has not acquired it'
    assert puppet.do(fork_within) == (True, text)


# --- Owners that have ended ------------------------------------------------------------------

ENDS: dict[str, Callable[[], Any]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "a segmentation fault": lambda: ctypes.string_at(0),
    "os._exit": lambda: os._exit(0),
    "another program in its place": lambda: os.execv("/bin/true", ["true"]),
}


def hold(lock: Lock) -> int:
    lock.acquire()
    return threading.get_native_id()


@both
@pytest.mark.parametrize("end", ENDS)
def test_the_next_owner_is_told_once_that_the_last_one_ended(
    puppet: Puppet, cls: type[Lock], end: str
) -> None:
    lock = cls("results")
    puppet.do(hold, lock)
    puppet.begin(ENDS[end])
    puppet.end()
    with pytest.raises(OwnerDied) as told:
        lock.acquire()
    error = told.value
    assert (error.what, error.pid, error.owner) == (
        f"{cls.__name__} 'results'",
        puppet.pid,
        "MainProcess",
    )
    assert 0 <= error.held_s < 60
    assert "test_locks.py" in error.stack
    assert "in hold" in error.stack
    assert str(error).startswith(
        f"MainProcess (pid {puppet.pid}) ended while it held {cls.__name__} 'results', taken "
    )
    assert "What it guards may be half written. The lock is free now." in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.__dict__) == (str(error), error.__dict__)
    assert not lock.locked()
    with lock:
        pass


def test_an_owner_that_ends_as_it_should_with_the_lock_is_told_of_too(puppet: Puppet) -> None:
    lock = Lock()
    puppet.do(hold, lock)
    assert puppet.end() == 0
    with pytest.raises(OwnerDied, match=rf"pid {puppet.pid}"):
        lock.acquire()


@both
def test_a_thread_that_ended_with_the_lock_is_told_of(cls: type[Lock]) -> None:
    lock = cls("a thread's")
    elsewhere(hold, lock)
    with pytest.raises(OwnerDied, match=rf"pid {os.getpid()}") as told:
        lock.acquire()
    assert "in hold" in told.value.stack
    with lock:
        pass


@both
def test_the_death_of_an_owner_can_be_ignored(puppet: Puppet, cls: type[Lock]) -> None:
    lock = cls(on_owner_death="ignore")
    puppet.do(hold, lock)
    puppet.kill()
    with lock:
        assert lock.locked()
        assert elsewhere(lock.acquire, False) is False
    assert not lock.locked()


@both
def test_one_of_those_who_wait_is_told_and_the_others_have_it(
    puppet: Puppet, cls: type[Lock], soon: None
) -> None:
    lock = cls("awaited")
    puppet.do(hold, lock)

    def wait() -> str:
        try:
            with lock:
                return "had it"
        except OwnerDied:
            return "was told"

    names = ["a", "b", "c"]
    for name in names:
        begin_in_thread(name, wait)
    until(lambda: is_waited_for(lock, by=3))
    puppet.kill()
    assert sorted(end_of_thread(name) for name in names) == ["had it", "had it", "was told"]


def test_a_try_without_waiting_is_told_too(puppet: Puppet) -> None:
    lock = Lock()
    puppet.do(hold, lock)
    puppet.kill()
    with pytest.raises(OwnerDied):
        lock.acquire(blocking=False)
    assert lock.acquire(blocking=False)
    lock.release()


def test_a_worker_of_plait_is_called_by_its_name() -> None:
    lock = Lock("results")

    def die(place: int) -> None:
        lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    died: list[Any] = plait.map(die, [0], backend="processes", max_workers=1, on_error="return")
    (error,) = died
    assert type(error) is plait.WorkerDied
    with pytest.raises(OwnerDied) as told:
        lock.acquire()
    assert (told.value.pid, told.value.owner) == (error.pid, error.worker)
    assert "in test_a_worker_of_plait_is_called_by_its_name.<locals>.die" in told.value.stack
    assert "plait/worker.py" not in told.value.stack


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_who_died_before_it_was_noted_is_not_taken_for_the_one_before(
    kind: type[Lock], puppet: Puppet
) -> None:
    lock = kind("hasty")
    with lock:
        pass
    assert lock.acquire()
    lock.release()
    puppet.do(lambda given: libc.try_lock(given._mutex), lock)  # as acquire begins
    puppet.kill()
    with pytest.raises(OwnerDied, match=r"A process \(pid unknown\)") as told:
        lock.acquire()
    assert told.value.pid == 0


# --- Waiting, and Ctrl-C ---------------------------------------------------------------------


def test_waiting_takes_no_cpu(puppet: Puppet) -> None:
    def wait(given: Lock) -> tuple[float, float]:
        thread_s, process_s = time.thread_time(), time.process_time()
        assert given.acquire(timeout=0.5) is False
        return time.thread_time() - thread_s, time.process_time() - process_s

    lock = Lock()
    with lock:
        assert max(puppet.do(wait, lock)) < 0.1
        begin_in_thread("waits", wait, lock)
        assert end_of_thread("waits")[0] < 0.1


@both
def test_ctrl_c_reaches_a_main_thread_that_waits(puppet: Puppet, cls: type[Lock]) -> None:
    lock = cls("contended")
    with lock:
        puppet.begin(take, lock)
        until(lambda: is_waited_for(lock))
        puppet.interrupt()
        with pytest.raises(KeyboardInterrupt):
            puppet.answer()
        assert not is_waited_for(lock)
    assert puppet.do(take, lock)[0]


def test_nothing_is_closed_while_one_waits(puppet: Puppet) -> None:
    """A Ctrl-C in a finalizer is lost: looks for a deadlock left one behind each time."""

    def wait(given: Lock) -> tuple[int, int]:
        closed, looks, found = 0, 0, 0

        def close(region: memory.Region, real: Callable[..., None] = memory.Region.__del__) -> None:
            nonlocal closed
            closed += 1
            real(region)

        def look(lookout: Lookout, real: Callable[..., None] = Lookout.look) -> None:
            nonlocal looks, found
            real(lookout)
            looks, found = looks + 1, len(memory._known)
            if looks == 3:
                raise TimeoutError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory.Region, "__del__", close)
            patch.setattr(Lookout, "look", look)
            try:
                given.acquire()
            except TimeoutError:
                return closed, found
        return -1, -1

    unknown = arena.Arena.create()  # to the puppet, which finds it when it looks
    with (lock := Lock()):
        closed, found = puppet.do(wait, lock)
    assert closed == 0
    assert found > 1
    assert unknown.region.nbytes


def test_a_handler_runs_while_the_main_thread_waits(puppet: Puppet) -> None:
    def wait(given: Lock) -> int:
        calls: list[int] = []
        signal.signal(signal.SIGUSR1, lambda *_: calls.append(1))
        with given:
            return len(calls)

    lock = Lock()
    with lock:
        puppet.begin(wait, lock)
        until(lambda: is_waited_for(lock))
        os.kill(puppet.pid, signal.SIGUSR1)
    assert puppet.answer() == 1


@both
@pytest.mark.parametrize("with_statement", [True, False])
def test_ctrl_c_right_after_it_was_locked_lets_go(
    puppet: Puppet, cls: type[Lock], with_statement: bool
) -> None:
    def interrupted(given: Lock, with_statement: bool) -> bool:
        real = given._new_site

        def new_site(key: int, frame: FrameType) -> int:
            signal.raise_signal(signal.SIGINT)
            return real(key, frame)

        given._new_site = new_site
        try:
            if with_statement:
                with given:
                    return False
            given.acquire()
        except KeyboardInterrupt:
            return not given.locked()
        return False

    assert puppet.do(interrupted, cls(), with_statement)


def test_ctrl_c_on_the_death_of_the_owner_tells_of_that(pair: list[Puppet]) -> None:
    def interrupted(given: Lock) -> str:
        real = libc.consistent

        def consistent(mutex: Any) -> int:
            vars(libc)["consistent"] = real
            raise KeyboardInterrupt

        vars(libc)["consistent"] = consistent
        try:
            given.acquire()
        except KeyboardInterrupt as error:
            return error.__notes__[0]
        return ""

    lock = Lock("half done")
    pair[0].do(hold, lock)
    pair[0].kill()
    assert f"(pid {pair[0].pid}) ended while it held Lock 'half done'" in pair[1].do(
        interrupted, lock
    )
    with lock:
        pass


@pytest.mark.skipif(compiled.fast is None, reason="the part in C was not built, or is not wanted")
@pytest.mark.parametrize("make", [Lock, RLock, lambda: List[int]().lock])
def test_no_ctrl_c_comes_between_locking_and_the_block_or_leaves_it_locked(
    puppet: Puppet, make: Callable[[], Lock]
) -> None:
    """In Python one can come at the beginning of ``__exit__``: then it stays locked."""

    def interrupted(given: Lock) -> int:
        heard = 0
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        while heard < 300 and not given.locked():
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.0003)  # once: none comes outside of this
                while True:
                    with given:
                        pass
            heard += 1
        return heard if not given.locked() else 0

    assert puppet.do(interrupted, make()) == 300


def test_what_only_c_can_get_wrong() -> None:
    lock = Lock()
    for wrong in ({"timeout": 1, "blocks": True}, {"blocking": True, "blocked": 1}):
        with pytest.raises(TypeError, match=r"unexpected keyword argument '(blocks|blocked)'"):
            lock.acquire(**wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        lock.acquire(True, 1, 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="multiple values for argument 'blocking'"):
        lock.acquire(True, blocking=True)  # type: ignore[misc]
    with pytest.raises(TypeError):
        lock.acquire(timeout="soon")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        lock.__exit__()  # type: ignore[call-arg]
    with pytest.raises((RuntimeError, AttributeError)):
        object.__new__(Lock).acquire()
    with pytest.raises((RuntimeError, AttributeError)):
        object.__new__(Lock).release()
    with pytest.raises((RuntimeError, AttributeError)), object.__new__(Lock):
        pass
    assert not lock.locked()
    assert lock.acquire(timeout=0.0, blocking=True)
    lock.release()
    assert lock.acquire(False, -1)
    lock.release()


def test_processes_with_the_part_in_c_and_without_share_a_lock(
    puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kind() -> str:
        return Lock.acquire.__class__.__name__

    monkeypatch.setenv(compiled.WITHOUT, "1")
    lock = RLock("of both")
    with puppets(1) as (plain,):
        assert plain.do(kind) == "function"
        plain.do(hold, lock)
        assert not puppet.do(lambda given: given.acquire(timeout=0), lock)
        plain.kill()
    with pytest.raises(OwnerDied, match=r"in hold") as told:
        lock.acquire()
    assert told.value.stack
    puppet.do(hold, lock)
    with puppets(1) as (plain,):
        assert not plain.do(lambda given: given.acquire(timeout=0), lock)
        puppet.kill()
        with pytest.raises(OwnerDied, match=rf"\(pid {puppet.pid}\) .*\n.*\n.*in hold"):
            plain.do(take, lock)


# --- Many of them ----------------------------------------------------------------------------


def test_ten_thousand_locks_take_few_files_and_leave_none() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2000):
        Lock()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    many = [Lock() for _ in range(10_000)]
    assert len({(lock._cell.arena, lock._cell.offset) for lock in many}) == 10_000
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 100
    del many  # and the fixture looks


def test_a_thousand_locks_travel_and_leave_no_file_there(puppet: Puppet) -> None:
    def count() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    before = puppet.do(count)
    lock = [Lock()]
    for _ in range(2):
        many = [Lock() for _ in range(1000)]
        assert all(puppet.do(lambda given: [take(one)[0] for one in given], many))
        del many
        gc.collect()
        assert puppet.do(count) <= before
    del lock


def test_names_without_end_find_room() -> None:
    for number in range(30_000):
        lock = Lock(f"a lock with a name that is its own, number {number}")
    assert repr(lock) == f"<plait.shared {lock._cell.label}: unlocked>"
    assert lock._cell.label.endswith(", number 29999'")


def test_a_full_text_area_costs_the_place_not_the_process(puppet: Puppet) -> None:
    def fill_and_hold(given: Lock) -> None:
        area = given._cell.arena
        for size in (900, 90, 9):
            while area.texts.add(os.urandom(size).hex()):
                pass
        given.acquire()

    lock = Lock("crowded")
    puppet.do(fill_and_hold, lock)
    assert repr(lock) == f"<plait.shared Lock 'crowded': held by a process (pid {puppet.pid})>"
    puppet.kill()
    with pytest.raises(OwnerDied, match=rf"A process \(pid {puppet.pid}\)"):
        lock.acquire()
    arena._made.clear()  # the next locks are to have room for places


def test_a_lock_that_is_dropped_while_held_stays_where_the_kernel_looks_for_it(
    puppet: Puppet,
) -> None:
    def drop_held() -> bool:
        lock = Lock("dropped")
        lock.acquire()
        ident, data = lock._cell.arena.region.ident, pickle.dumps(lock)
        del lock
        for _ in range(3 * arena.CELLS):
            Lock().__reduce__()  # travels: its cell is not used again, so arenas come and go
        gc.collect()
        assert ident in {one.region.ident for one in arena.arenas()}
        again = pickle.loads(data)
        assert again.locked()
        again.release()
        with again:
            return True

    assert puppet.do(drop_held)


def test_an_arena_goes_with_the_last_of_its_locks(puppet: Puppet) -> None:
    def use_and_drop() -> bool:
        gc.disable()
        arena._made.clear()
        lock = Lock()
        here = weakref.ref(lock._cell.arena)
        seat = lock._cell.arena.seat()
        arena._made.clear()
        del lock
        return here() is None and seat.is_mine

    assert puppet.do(use_and_drop)


def test_more_threads_than_seats_wait_unseen(monkeypatch: pytest.MonkeyPatch, soon: None) -> None:
    monkeypatch.setattr(arena, "SEATS", 2)
    monkeypatch.setattr(arena, "_made", [])
    lock = Lock("crowded")
    names = [f"waits {number}" for number in range(5)]
    with lock:
        for name in names:
            begin_in_thread(name, take, lock)
        until(lambda: is_waited_for(lock, by=2))
    assert all(end_of_thread(name)[0] for name in names)


def test_threads_that_come_and_go_take_few_seats(soon: None) -> None:
    lock = Lock()
    for _ in range(12):
        with lock:
            begin_in_thread("waits", take, lock)
            until(lambda: is_waited_for(lock))
        end_of_thread("waits")
    assert len(list(lock._cell.arena.seats())) < 12


def test_a_seat_is_not_that_of_a_later_thread_of_the_same_number(soon: None) -> None:
    lock = Lock()
    seat = lock._cell.arena.seat()
    assert not seat.is_free
    seat._large[seats.START] += 1
    assert seat.is_free


def test_two_processes_count_together(tmp_path: Path) -> None:
    lock = Lock()
    path = tmp_path / "count"
    path.write_text("0")

    def count(given: Lock) -> None:
        for _ in range(300):
            with given, path.open("r+") as file:
                number = int(file.read())
                file.seek(0)
                file.write(str(number + 1))

    with puppets(2) as two:
        for one in two:
            one.begin(count, lock)
        for one in two:
            one.answer()
    assert path.read_text() == "600"


def test_who_cannot_be_looked_up_is_not_taken_for_dead(puppet: Puppet) -> None:
    def look_without_files() -> tuple[bool, bool]:
        me = os.getpid()
        lock = Lock()
        seat = lock._cell.arena.seat()
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
        try:
            return is_alive(me, me), seat.is_free
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, most)

    assert puppet.do(look_without_files) == (True, False)
    assert not is_alive(1 << 22, 1 << 22)
