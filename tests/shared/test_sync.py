"""Conditions, semaphores, events and barriers, between threads and between processes."""

from __future__ import annotations

import doctest
import importlib
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import BrokenBarrierError
from types import FrameType
from typing import Any

import pytest

from plait.errors import OwnerDied
from plait.shared import Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore
from plait.shared.conditions import ANY as CONDITION_ANY
from plait.shared.events import ANY
from tests.shared.elsewhere import Elsewhere, elsewhere, in_subprocess, until
from tests.start import Program

__all__ = ["elsewhere"]
# Forked is what other people fork: that is asked for here.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
LONG = 20.0


@pytest.mark.parametrize("name", ["conditions", "semaphores", "events", "barriers"])
def test_the_examples_are_right(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"plait.shared.{name}")).failed == 0


MAKERS: list[Callable[[], Any]] = [
    Condition,
    lambda: Condition(Lock()),
    Semaphore,
    BoundedSemaphore,
    Event,
    lambda: Barrier(2, print, 1.5),
]


@pytest.mark.parametrize("make", MAKERS)
def test_what_arrives_where_it_is_known_is_the_same_object(make: Callable[[], Any]) -> None:
    thing = make()
    assert pickle.loads(pickle.dumps(thing)) is thing


# --- Events --------------------------------------------------------------------------------


def wait_twice(first: Event, second: Event) -> list[bool]:
    before = [first.is_set(), first.wait(0)]
    second.set()
    return [*before, first.wait(LONG), first.is_set()]


def test_an_event_that_is_set_wakes_who_waits(elsewhere: Elsewhere) -> None:
    go, ready = Event("go"), Event()
    done = elsewhere.start(wait_twice, go, ready)
    assert ready.wait(LONG)
    go.set()
    assert done.result(LONG) == [False, False, True, True]


def wait_and_tell(go: Event, ready: Event) -> bool:
    ready.set()
    return go.wait(LONG)


def test_an_event_that_is_set_and_cleared_at_once_wakes_who_waited(elsewhere: Elsewhere) -> None:
    go, ready = Event(), Event()
    done = elsewhere.start(wait_and_tell, go, ready)
    assert ready.wait(LONG)
    until(lambda: go._words[ANY] == 1)  # somebody waits
    go.set()
    go.clear()
    assert done.result(LONG) is True
    assert not go.wait(timeout=0.001)


# --- Semaphores ----------------------------------------------------------------------------


def take_until_none(semaphore: Semaphore) -> int:
    taken = 0
    while semaphore.acquire(blocking=False):
        taken += 1
    for _ in range(taken):
        semaphore.release()
    return taken


def test_a_semaphore_is_the_same_everywhere(elsewhere: Elsewhere) -> None:
    semaphore = Semaphore(3)
    with semaphore:
        assert elsewhere.start(take_until_none, semaphore).result(LONG) == 2
    assert semaphore.get_value() == 3


def release_some(semaphore: Semaphore, n: int) -> None:
    semaphore.release(n)


def test_a_semaphore_wakes_who_waits_as_a_signal(elsewhere: Elsewhere) -> None:
    semaphore = Semaphore(0, on_owner_death="ignore")
    done = elsewhere.start(release_some, semaphore, 2)
    assert semaphore.acquire(timeout=LONG)
    assert semaphore.acquire()
    done.result(LONG)
    assert not semaphore.acquire(blocking=False)
    assert not semaphore.acquire(timeout=0.001)


def release_too_often(semaphore: BoundedSemaphore) -> str:
    semaphore.acquire()
    semaphore.release()
    try:
        semaphore.release()
    except ValueError as error:
        return str(error)
    return ""


def test_a_bounded_semaphore_tells_of_a_release_too_many(elsewhere: Elsewhere) -> None:
    semaphore = BoundedSemaphore(2, "two")
    told = elsewhere.start(release_too_often, semaphore).result(LONG)
    assert told == "BoundedSemaphore 'two' released too many times"
    assert semaphore.get_value() == 2


def test_what_makes_no_sense_for_a_semaphore() -> None:
    with pytest.raises(ValueError, match="value=-1 must be 0 or more"):
        Semaphore(-1)
    with pytest.raises(ValueError, match='must be "release" or "ignore"'):
        Semaphore(on_owner_death="raise")
    with pytest.raises(ValueError, match="timeout"):
        Semaphore().acquire(blocking=False, timeout=1)
    with pytest.raises(ValueError, match="n=0 must be one or more"):
        Semaphore().release(0)


def count_up(semaphore: Semaphore, inside: Semaphore, times: int) -> int:
    most = 0
    for _ in range(times):
        with semaphore:
            inside.release()
            most = max(most, inside.get_value())
            inside.acquire()
    return most


def test_never_more_than_the_value_have_it(elsewhere: Elsewhere) -> None:
    semaphore, inside = Semaphore(2), Semaphore(0)
    done = [elsewhere.start(count_up, semaphore, inside, 200) for _ in range(3)]
    assert max(one.result(LONG) for one in done) <= 2
    assert (semaphore.get_value(), inside.get_value()) == (2, 0)


# --- Conditions ----------------------------------------------------------------------------


def wait_in_turn(condition: Condition, ready: Event, done: Semaphore) -> bool:
    with condition:
        ready.set()
        told = condition.wait(LONG)
        done.release()
    return told


def waiting(elsewhere: Elsewhere, condition: Condition, done: Semaphore) -> Future[bool]:
    """Have another one wait; it does when this returns."""
    ready = Event()
    future = elsewhere.start(wait_in_turn, condition, ready, done)
    assert ready.wait(LONG)
    with condition:  # can be had when the other waits, and not before
        return future


@pytest.mark.parametrize("lock", [Lock, RLock])
def test_who_came_first_is_notified_first(lock: type[Lock], elsewhere: Elsewhere) -> None:
    condition, done = Condition(lock()), Semaphore(0, on_owner_death="ignore")
    first, second, third = (waiting(elsewhere, condition, done) for _ in range(3))
    with condition:
        condition.notify()
    assert first.result(LONG)
    assert not second.done()
    with condition:
        condition.notify_all()
    assert second.result(LONG)
    assert third.result(LONG)
    assert done.get_value() == 3
    assert repr(condition).endswith("0 waiting>")


def test_a_condition_of_a_recursive_lock_gives_all_of_it_back(elsewhere: Elsewhere) -> None:
    condition, done = Condition(), Semaphore(0, on_owner_death="ignore")
    other = waiting(elsewhere, condition, done)
    with condition, condition:
        condition.notify()
        until(lambda: condition.wait(0.001) or done.get_value() == 1)
        assert condition._lock._recursion_count() == 2  # type: ignore[attr-defined]
    assert other.result(LONG)
    assert not condition.locked()


def test_a_condition_wants_its_lock_to_be_held() -> None:
    condition = Condition(name="news")
    with pytest.raises(RuntimeError, match="cannot wait: this thread has not acquired Condition"):
        condition.wait()
    with pytest.raises(RuntimeError, match="cannot notify: this thread has not acquired"):
        condition.notify()
    with condition:
        started = time.monotonic()
        assert not condition.wait(0.02)
        assert not condition.wait_for(lambda: False, 0.02)
        assert time.monotonic() - started >= 0.04


# --- Barriers ------------------------------------------------------------------------------


def meet(barrier: Barrier, times: int) -> list[int]:
    return [barrier.wait() for _ in range(times)]


class Count:
    """An action that can be sent."""

    def __init__(self) -> None:
        self.calls = Semaphore(0, on_owner_death="ignore")

    def __call__(self) -> None:
        self.calls.release()


def test_all_parties_pass_a_barrier_together(elsewhere: Elsewhere) -> None:
    action = Count()
    barrier = Barrier(3, action, timeout=LONG)
    others = [elsewhere.start(meet, barrier, 20) for _ in range(2)]
    rounds = zip(meet(barrier, 20), *(other.result(LONG) for other in others), strict=True)
    assert all(sorted(numbers) == [0, 1, 2] for numbers in rounds)
    assert action.calls.get_value() == 20
    assert (barrier.n_waiting, barrier.parties, barrier.broken) == (0, 3, False)


def wait_in_vain(barrier: Barrier) -> str:
    try:
        barrier.wait(LONG)
    except BrokenBarrierError as error:
        return str(error)
    return ""


def test_a_barrier_that_is_broken_says_why(elsewhere: Elsewhere) -> None:
    barrier = Barrier(3, name="start")
    other = elsewhere.start(wait_in_vain, barrier)
    until(lambda: barrier.n_waiting == 1)
    barrier.abort()
    assert other.result(LONG) == "Barrier 'start' is broken: it was aborted"
    with pytest.raises(BrokenBarrierError, match="it was aborted"):
        barrier.wait()
    barrier.reset()
    other = elsewhere.start(wait_in_vain, barrier)
    until(lambda: barrier.n_waiting == 1)
    barrier.reset()
    assert other.result(LONG) == "Barrier 'start' is broken: it was reset"
    other = elsewhere.start(wait_in_vain, barrier)
    until(lambda: barrier.n_waiting == 1)
    with pytest.raises(BrokenBarrierError, match="not all came in time"):
        barrier.wait(0.01)
    assert other.result(LONG) == "Barrier 'start' is broken: not all came in time"
    assert barrier.broken


def test_an_action_that_fails_breaks_the_barrier(elsewhere: Elsewhere) -> None:
    barrier = Barrier(2, action=fail)
    other = elsewhere.start(wait_in_vain, barrier)
    until(lambda: barrier.n_waiting == 1)
    with pytest.raises(KeyError):
        barrier.wait(LONG)
    assert other.result(LONG) == "Barrier is broken: its action failed"


def fail() -> None:
    raise KeyError


# --- Ctrl-C --------------------------------------------------------------------------------


def wait_for_ctrl_c(kind: str, condition: Condition, ready: Event) -> float:
    semaphore, event, barrier = Semaphore(0), Event(), Barrier(2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with condition:
            ready.set()
            waits: dict[str, Callable[[], Any]] = {
                "condition": condition.wait,
                "semaphore": semaphore.acquire,
                "event": event.wait,
                "barrier": barrier.wait,
            }
            waits[kind]()
    except KeyboardInterrupt:
        assert semaphore.acquire(blocking=False) is False
        assert (barrier.n_waiting, condition.locked()) == (0, False)
        return time.monotonic()
    return 0.0


@pytest.mark.parametrize("kind", ["condition", "semaphore", "event", "barrier"])
def test_ctrl_c_ends_a_wait(kind: str) -> None:
    condition, ready = Condition(), Event()
    with in_subprocess(wait_for_ctrl_c, kind, condition, ready) as child:
        assert child.stdout is not None
        assert ready.wait(LONG)
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        ended = pickle.loads(child.stdout.read())
    assert 0 < ended - sent < LONG


# --- Processes that are killed -------------------------------------------------------------


def hold(ready: Event, *semaphores: Semaphore) -> None:
    for semaphore in semaphores:
        semaphore.acquire()
    ready.set()
    signal.pause()


def kill(child: Program[bytes]) -> None:
    with child:
        child.kill()


def test_the_permits_of_a_process_that_was_killed_are_given_back() -> None:
    one, two, kept = Semaphore(1), BoundedSemaphore(2), Semaphore(1, on_owner_death="ignore")
    ready = Event()
    child = in_subprocess(hold, ready, one, two, two, kept)
    assert ready.wait(LONG)
    assert not one.acquire(blocking=False)
    got: list[bool] = []
    thread = threading.Thread(target=lambda: got.append(two.acquire(timeout=LONG)))
    thread.start()  # it waits already when the other one dies
    kill(child)
    thread.join()
    assert got == [True]
    assert one.acquire(blocking=False)
    assert two.get_value() == 1
    assert not kept.acquire(blocking=False)
    with pytest.raises(ValueError, match="too many"):
        two.release(2)


def test_what_a_process_had_released_stays_released_when_it_is_killed() -> None:
    semaphore, ready = Semaphore(0), Event()
    child = in_subprocess(release_and_hold, semaphore, ready)
    assert ready.wait(LONG)
    kill(child)
    semaphore._look_for_dead()
    assert semaphore.get_value() == 2
    assert take_until_none(semaphore) == 2


def release_and_hold(semaphore: Semaphore, ready: Event) -> None:
    semaphore.release(2)
    hold(ready)


def test_a_notification_is_not_for_one_that_was_killed() -> None:
    condition, ready, done = Condition(), Event(), Semaphore(0, on_owner_death="ignore")
    dead = in_subprocess(wait_in_turn, condition, ready, done)
    assert ready.wait(LONG)
    with condition:
        pass
    alive = in_subprocess(wait_in_turn, condition, ready := Event(), done)
    assert ready.wait(LONG)
    with condition:
        pass
    kill(dead)
    with condition:
        condition.notify()
    with alive:
        assert alive.stdout is not None
        assert pickle.loads(alive.stdout.read()) is True


def test_who_is_killed_with_a_notification_passes_it_on() -> None:
    condition, ready, done = Condition(), Event(), Semaphore(0, on_owner_death="ignore")
    dead = in_subprocess(wait_in_turn, condition, ready, done)
    assert ready.wait(LONG)
    with condition:
        pass
    alive = in_subprocess(wait_in_turn, condition, ready := Event(), done)
    assert ready.wait(LONG)
    with condition:
        dead.send_signal(signal.SIGSTOP)
        condition.notify()
        kill(dead)
    with alive:
        assert alive.stdout is not None
        assert pickle.loads(alive.stdout.read()) is True


def change_and_die(condition: Condition, state: Semaphore) -> None:
    with condition:
        state.release()
        os.kill(os.getpid(), signal.SIGKILL)
        condition.notify()


@pytest.mark.parametrize("on_owner_death", ["raise", "ignore"])
def test_who_is_killed_before_it_notifies_leaves_nobody_asleep(on_owner_death: str) -> None:
    condition = Condition(Lock(on_owner_death=on_owner_death))
    state = Semaphore(0, on_owner_death="ignore")
    with condition:
        with in_subprocess(change_and_die, condition, state):
            if on_owner_death == "ignore":
                assert condition.wait_for(state.get_value) == 1
            else:
                with pytest.raises(OwnerDied):
                    condition.wait_for(lambda: False)
        assert condition._lock._is_owned()  # what comes, a wait has the lock when it ends
    assert not condition.locked()


def test_a_party_that_is_killed_breaks_the_barrier() -> None:
    barrier = Barrier(3, name="start")
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(wait_in_vain(barrier)))
    thread.start()
    child = in_subprocess(wait_in_vain, barrier)
    until(lambda: barrier.n_waiting == 2)
    kill(child)
    thread.join()
    assert told == [
        f"Barrier 'start' is broken: MainProcess (pid {child.pid}) ended while it waited"
    ]
    with pytest.raises(BrokenBarrierError, match=f"pid {child.pid}"):
        barrier.wait()


def test_a_party_that_is_killed_in_the_action_breaks_the_barrier() -> None:
    barrier = Barrier(2, action=kill_me)
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(wait_in_vain(barrier)))
    thread.start()
    until(lambda: barrier.n_waiting == 1)
    with in_subprocess(wait_in_vain, barrier) as child:
        thread.join()
    assert f"(pid {child.pid}) ended while it waited" in told[0]


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- Killed at any step, and at any time ----------------------------------------------


# No line writes more than one word. PLAIT_TEST_STEP=opcode tries each instruction: half a minute.
STEP = os.environ.get("PLAIT_TEST_STEP", "line")
# Where the words are changed.
STEPS = tuple(
    f"/plait/shared/{name}.py"
    for name in ("sections", "conditions", "semaphores", "events", "barriers")
)


def kill_at(number: int, work: Callable[[], object]) -> bool:
    """Do work in a child that is killed at its n-th step in plait; whether it got there."""
    pid = os.fork()
    if not pid:
        left = number

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal left
            if not frame.f_code.co_filename.endswith(STEPS):
                return None
            frame.f_trace_opcodes = STEP == "opcode"
            if event == STEP:
                left -= 1
                if left < 0:
                    kill_me()
            return trace

        sys.settrace(trace)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def each_step(work: Callable[[], object], check: Callable[[], object]) -> int:
    number = 0
    while kill_at(number, work):
        check()
        number += 1
    check()
    return number


def crash_in_semaphore() -> int:
    semaphore = BoundedSemaphore(2)

    def work() -> None:
        semaphore.acquire()
        semaphore.acquire(timeout=0)
        semaphore.release(2)

    def check() -> None:
        assert semaphore.acquire(timeout=LONG)
        assert semaphore.acquire(timeout=LONG), semaphore
        assert not semaphore.acquire(blocking=False)
        semaphore.release(2)
        assert semaphore.get_value() == 2

    return each_step(work, check)


def crash_while_the_dead_are_reaped() -> int:
    number, got_there = 0, True
    while got_there:
        semaphore = BoundedSemaphore(2)
        os.waitpid(fork(take_all_and_die, semaphore), 0)
        assert semaphore.get_value() == 0
        got_there = kill_at(number, partial(take_and_give, semaphore))
        assert take_until_none(semaphore) == 2
        number += 1
    return number


def take_all_and_die(semaphore: Semaphore) -> None:
    while semaphore.acquire():
        if not semaphore.get_value():
            kill_me()


def take_and_give(semaphore: Semaphore) -> None:
    assert semaphore.acquire(timeout=0)
    semaphore.release()


def crash_in_event() -> int:
    event = Event()

    def work() -> None:
        event.set()
        event.clear()
        event.wait(0)

    def check() -> None:
        event.set()
        assert event.wait(LONG)
        event.clear()
        assert not event.wait(0)

    return each_step(work, check)


def crash_in_condition() -> int:
    condition = Condition(Lock(on_owner_death="ignore"))

    def work() -> None:
        with condition:
            condition.wait(0)
            condition.notify()

    def check() -> None:
        told: list[bool] = []

        def wait() -> None:
            with condition:
                entered.set()
                told.append(condition.wait(LONG))

        entered = threading.Event()
        thread = threading.Thread(target=wait)
        thread.start()
        entered.wait()
        with condition:
            condition.notify()
        thread.join()
        assert told == [True]

    return each_step(work, check)


def crash_in_barrier(action: Callable[[], object] | None, parties: int) -> int:
    barrier = Barrier(2, action)

    def work() -> None:
        if parties == 1:  # it is the only one, and gives up
            barrier.wait(0)
        else:
            other = threading.Thread(target=barrier.wait)
            other.start()
            until(lambda: barrier.n_waiting == 1)
            barrier.wait(LONG)
            other.join()

    def check() -> None:
        try:
            barrier.wait(0)
        except BrokenBarrierError:
            barrier.reset()
        assert (barrier.n_waiting, barrier.broken) == (0, False)
        other = threading.Thread(target=barrier.wait)
        other.start()
        barrier.wait(LONG)
        other.join()
        assert (barrier.n_waiting, barrier.broken) == (0, False)

    return each_step(work, check)


CRASHES: dict[str, Callable[[], int]] = {
    "semaphore": crash_in_semaphore,
    "reaping": crash_while_the_dead_are_reaped,
    "event": crash_in_event,
    "condition": crash_in_condition,
    "barrier": lambda: crash_in_barrier(None, 1),
    "last at a barrier": lambda: crash_in_barrier(None, 2),
    "action of a barrier": lambda: crash_in_barrier(int, 2),
}


def crash(name: str) -> int:
    warnings.simplefilter("ignore")
    for name_of_module in ("conditions", "semaphores", "barriers"):
        importlib.import_module(f"plait.shared.{name_of_module}").LOOK_S = 0.01  # type: ignore[attr-defined]
    run: Callable[[], int] = CRASHES[name]
    return run()


@pytest.mark.soak
@pytest.mark.parametrize("name", CRASHES)
def test_a_process_may_be_killed_at_any_step(name: str) -> None:
    with in_subprocess(crash, name) as child:  # one that has no threads to fork
        assert child.stdout is not None
        assert pickle.loads(child.stdout.read()) > 20


def work_for_ever(
    semaphore: Semaphore, event: Event, condition: Condition, barrier: Barrier
) -> None:
    while True:
        with semaphore:
            event.set()
        event.clear()
        try:
            with condition:
                condition.notify()
                condition.wait(0.001)
        except OwnerDied:
            pass
        try:
            barrier.wait(0.001)
        except BrokenBarrierError:
            barrier.reset()


def kill_at_random(seed: int) -> str:
    """Have three processes use all of it at once, and kill and replace one after the other."""
    warnings.simplefilter("ignore")
    dice = random.Random(seed)
    things = BoundedSemaphore(2), Event(), Condition(), Barrier(2)
    children: list[int] = []
    for _ in range(32):
        children.append(fork(work_for_ever, *things))
        if len(children) == 3:
            time.sleep(dice.random() * 0.02)  # the time of a death, not a wait
            end(children.pop(dice.randrange(3)))
    for child in children:
        end(child)
    return check_all(*things)


def fork(function: Callable[..., object], *args: Any) -> int:
    pid = os.fork()
    if not pid:
        try:
            function(*args)
        finally:
            os._exit(1)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])  # it had not failed before


def check_all(semaphore: Semaphore, event: Event, condition: Condition, barrier: Barrier) -> str:
    assert semaphore.acquire(timeout=LONG)
    assert semaphore.acquire(timeout=LONG)
    assert not semaphore.acquire(blocking=False)
    semaphore.release(2)
    event.set()
    assert event.wait(LONG)
    try:
        condition.acquire(timeout=LONG)
    except OwnerDied:
        condition.acquire(timeout=LONG)
    condition.notify_all()
    condition.release()
    barrier.reset()
    other = threading.Thread(target=barrier.wait)
    other.start()
    barrier.wait(LONG)
    other.join()
    return f"{semaphore!r} {barrier!r}"


def test_processes_are_killed_at_random_and_the_others_go_on() -> None:
    with in_subprocess(kill_at_random, 7) as child:
        assert child.stdout is not None
        told = pickle.loads(child.stdout.read())
    assert told == (
        "<plait.shared BoundedSemaphore: value=2/2> <plait.shared Barrier: waiters=0/2>"
    )


def die_with(lock: Lock) -> None:
    """Be killed when the lock is locked, and that is not yet noted."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if lock._cell.is_mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    lock.acquire()


@pytest.mark.parametrize("make", [Lock, RLock])
def test_who_waits_at_a_condition_is_not_taken_for_who_died_with_its_lock(
    make: Callable[[], Lock],
) -> None:
    lock = make()
    condition = Condition(lock)
    told: list[OwnerDied] = []

    def wait() -> None:
        try:
            with condition:
                condition.wait(LONG)
        except OwnerDied as error:
            told.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: condition._cell.words[CONDITION_ANY] == 1 and not lock.locked())
    pid = os.fork()
    if not pid:
        die_with(lock)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    thread.join(LONG)
    assert [error.pid for error in told] == [0]  # nobody knows who it was
