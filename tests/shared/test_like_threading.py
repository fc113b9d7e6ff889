"""The shared classes do in threads what CPython's own tests ask of threading's.

Those tests are not part of every interpreter. What they cannot be asked is skipped by name, each
with the difference that is documented.
"""

from __future__ import annotations

import threading
import unittest
from collections.abc import Callable
from typing import Any

import pytest

from plait import shared

lock_tests: Any = pytest.importorskip("test.lock_tests")

REPR = "its repr says where it is shared: <plait.shared Lock: unlocked>"
OWNED = "a shared lock belongs to the thread that acquired it: no other one can release it"
ALONE = "a thread that waits for itself is told so, by DeadlockError"
FORKED = "a child that is forked shares the lock: it is not made anew there"
ONE_PROCESS = "a Condition takes the locks of plait.shared: a threading.Lock is of one process"


def but(**reasons: str) -> Callable[[type[unittest.TestCase]], type[unittest.TestCase]]:
    """Skip some inherited tests, each for a reason."""

    def change(case: type[unittest.TestCase]) -> type[unittest.TestCase]:
        for name, reason in reasons.items():
            if hasattr(case, name):  # not every version of Python has all
                setattr(case, name, unittest.skip(reason)(lambda self: None))
        return case

    return change


def in_threads(case: type[unittest.TestCase]) -> type[unittest.TestCase]:
    """Have tests that forget a lock which they hold do so in a thread that ends."""

    def apart(inherited: Callable[[unittest.TestCase], None]) -> Any:
        def test(self: unittest.TestCase) -> None:
            with lock_tests.Bunch(lambda: inherited(self), 1):
                pass

        return test

    for name in ("test_acquire_destroy", "test_timeout"):
        setattr(case, name, apart(getattr(case, name)))
    return case


@in_threads
@but(
    test_repr=REPR,
    test_locked_repr=REPR,
    test_reacquire=ALONE,
    test_state_after_timeout=ALONE,
    test_different_thread=OWNED,
    test_at_fork_reinit=FORKED,
)
class TestLock(lock_tests.LockTests):  # type: ignore[misc]
    locktype = shared.Lock


@in_threads
@but(test_repr=REPR, test_locked_repr=REPR)
class TestRLock(lock_tests.RLockTests):  # type: ignore[misc]
    locktype = shared.RLock


@but(test_repr=REPR, test_at_fork_reinit=FORKED)
class TestEvent(lock_tests.EventTests):  # type: ignore[misc]
    eventtype = shared.Event


@but(test_acquire=ONE_PROCESS)
class TestCondition(lock_tests.ConditionTests):  # type: ignore[misc]
    condtype = shared.Condition


class TestConditionWithLock(TestCondition):
    @staticmethod
    def condtype() -> shared.Condition:  # type: ignore[override]
        return shared.Condition(shared.Lock())


class TestThreadingsConditionWithOurLocks(TestCondition):
    @staticmethod
    def condtype() -> threading.Condition:  # type: ignore[override]
        return threading.Condition(shared.RLock())  # type: ignore[arg-type]


@but(test_repr=REPR)
class TestSemaphore(lock_tests.SemaphoreTests):  # type: ignore[misc]
    semtype = shared.Semaphore


@but(test_repr=REPR)
class TestSemaphoreThatKeepsNoBalance(lock_tests.SemaphoreTests):  # type: ignore[misc]
    @staticmethod
    def semtype(value: int = 1) -> shared.Semaphore:
        return shared.Semaphore(value, on_owner_death="ignore")

    def test_constructor(self) -> None:
        with pytest.raises(ValueError, match="value=-1 must be 0 or more"):
            self.semtype(value=-1)


@but(test_repr=REPR)
class TestBoundedSemaphore(lock_tests.BoundedSemaphoreTests):  # type: ignore[misc]
    semtype = shared.BoundedSemaphore


@but(test_repr=REPR)
class TestBarrier(lock_tests.BarrierTests):  # type: ignore[misc]
    barriertype = shared.Barrier


# --- What those say that were skipped, in our words ----------------------------------------


def test_a_condition_takes_our_locks() -> None:
    lock = shared.Lock()
    condition = shared.Condition(lock)
    taken: list[bool] = []

    def try_it() -> None:
        taken.append(lock.acquire(blocking=False))
        if taken[-1]:
            lock.release()

    def elsewhere() -> bool:
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
        return taken[-1]

    with condition:
        assert not elsewhere()
    assert elsewhere()
    condition.acquire()
    assert not elsewhere()
    condition.release()
    assert elsewhere()
    with pytest.raises(TypeError, match=r"must be a Lock or RLock of plait\.shared"):
        shared.Condition(threading.Lock())  # type: ignore[arg-type]


def test_what_they_are_called() -> None:
    assert repr(shared.Lock("a")) == "<plait.shared Lock 'a': unlocked>"
    assert repr(shared.Semaphore(3)) == "<plait.shared Semaphore: value=3>"
    bounded = shared.BoundedSemaphore(3)
    bounded.acquire()
    assert repr(bounded) == "<plait.shared BoundedSemaphore: value=2/3>"
    event = shared.Event("go")
    assert repr(event) == "<plait.shared Event 'go': unset>"
    event.set()
    assert repr(event) == "<plait.shared Event 'go': set>"
    barrier = shared.Barrier(3)
    assert repr(barrier) == "<plait.shared Barrier: waiters=0/3>"
    barrier.abort()
    assert repr(barrier) == "<plait.shared Barrier: broken>"
    condition = shared.Condition()
    assert repr(condition) == (
        "<plait.shared Condition: <plait.shared RLock: unlocked>, 0 waiting>"
    )


def test_a_lock_that_a_thread_has_cannot_be_waited_for() -> None:
    lock = shared.Lock()
    with lock, pytest.raises(Exception, match="this thread waits for Lock"):
        lock.acquire(timeout=0.01)
    assert lock.acquire(blocking=False)
    lock.release()
