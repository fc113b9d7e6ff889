"""Deadlocks are told to one of their members; slow owners are none; who holds what is a table."""

from __future__ import annotations

import os
import pickle
import re
import select
import threading
from collections.abc import Callable
from typing import Any

import pytest

from plait.errors import DeadlockError
from plait.shared import Holdings, Lock, RLock, locks, seats, who_holds
from tests.shared.puppet import (
    SOON_S,
    Puppet,
    begin_in_thread,
    end_of_thread,
    is_waited_for,
    keep,
    puppets,
    until,
)

both = pytest.mark.parametrize("cls", [Lock, RLock])
pytestmark = pytest.mark.usefixtures("no_files_left", "soon")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOOK_S", SOON_S)


def hold(lock: Lock) -> None:
    lock.acquire()


def take(lock: Lock, timeout: float = -1) -> bool:
    """Return whether it was to be had; then it is free again."""
    acquired = lock.acquire(timeout=timeout)
    if acquired:
        lock.release()
    return acquired


def hold_and_take(mine: Lock, others: Lock, timeout: float = -1) -> str:
    """Hold one and wait for another: what came of it. The first is free then."""
    with mine:
        try:
            return "had it" if take(others, timeout) else "time was up"
        except DeadlockError as error:
            return str(error)


def hold_between(mine: Lock, others: Lock, held: threading.Event, go: threading.Event) -> str:
    with mine:
        held.set()
        go.wait()
        return _take_told(others)


def _take_told(lock: Lock) -> str:
    try:
        return "had it" if take(lock) else "time was up"
    except DeadlockError as error:
        return str(error)


def cycle_of_threads(made: list[Lock]) -> list[str]:
    """Each holds one lock, then wants that of the next, one after the other."""
    count = len(made)
    held = [threading.Event() for _ in made]
    go = [threading.Event() for _ in made]
    for at, lock in enumerate(made):
        begin_in_thread(f"t{at}", hold_between, lock, made[(at + 1) % count], held[at], go[at])
    for at in range(count):
        held[at].wait()
    for at in range(count):
        go[at].set()
        if at < count - 1:
            until(lambda: is_waited_for(made[(at + 1) % count]))  # noqa: B023
    return [end_of_thread(f"t{at}") for at in range(count)]


@both
@pytest.mark.parametrize("count", [2, 3])
def test_of_threads_in_a_cycle_the_one_that_came_last_is_told(cls: type[Lock], count: int) -> None:
    made = [cls(f"lock {at}") for at in range(count)]
    told = cycle_of_threads(made)
    assert told[:-1] == ["had it"] * (count - 1)
    assert told[-1].startswith(f"Deadlock: {count} threads wait for each other. This one, which ")
    assert not any(lock.locked() for lock in made)


def test_the_message_names_holdings_wants_and_places() -> None:
    (_, text) = cycle_of_threads([Lock("accounts"), Lock("journal")])
    for me, mine, other in (("t0", "accounts", "journal"), ("t1", "journal", "accounts")):
        assert re.search(
            rf"{me} of pid {os.getpid()} holds Lock '{mine}', taken \d+\.\d s ago at\n"
            r"    .*test_deadlocks\.py:\d+ in hold_between\n(      first called from .*\n)*"
            rf"  and has waited \d+\.\d s for Lock '{other}' at\n"
            r"    .*test_deadlocks\.py:\d+ in take\n"
            r"    .*test_deadlocks\.py:\d+ in _take_told\n",
            text + "\n",
        ), text


def test_the_error_has_a_text_for_each_member_and_can_be_pickled() -> None:
    errors: list[DeadlockError] = []
    one, two = Lock("one"), Lock("two")

    def hold_two_and_take_one() -> None:
        with two:
            try:
                take(one)
            except DeadlockError as error:
                errors.append(error)

    with one:
        begin_in_thread("other", hold_two_and_take_one)
        until(lambda: is_waited_for(one))
        try:
            take(two)
        except DeadlockError as error:
            errors.append(error)
    end_of_thread("other")
    (told,) = errors
    assert len(told.members) == 2
    copy = pickle.loads(pickle.dumps(told))
    assert (str(copy), copy.members) == (str(told), told.members)


@both
def test_two_processes_in_a_cycle(pair: list[Puppet], cls: type[Lock]) -> None:
    first, second = pair
    one, two = cls("one"), cls("two")
    second.do(hold, two)
    first.begin(hold_and_take, one, two)
    until(lambda: is_waited_for(two))
    second.begin(_take_told, one)
    text = second.answer()
    assert text.startswith("Deadlock: 2 threads wait for each other.")
    assert f"MainThread of pid {first.pid} holds {cls.__name__} 'one'" in text
    assert f"MainThread of pid {second.pid} holds {cls.__name__} 'two'" in text
    second.do(lambda given: given.release(), two)
    assert first.answer() == "had it"


def test_a_cycle_of_three_threads_over_two_processes_and_three_arenas(pair: list[Puppet]) -> None:
    first, second = pair
    a, b, c = Lock("a"), first.do(make_and_keep, "b"), second.do(make_and_keep, "c")
    assert len({lock._cell.arena for lock in (a, b, c)}) == 3
    second.do(hold, c)
    second.do(begin_in_thread, "second", hold_and_take, b, c)
    until(lambda: is_waited_for(c))
    first.begin(hold_and_take, a, b)
    until(lambda: is_waited_for(b))
    text = second.do(_take_told, a)
    assert text.startswith("Deadlock: 3 threads wait for each other.")
    assert f"second of pid {second.pid} holds Lock 'b'" in text
    assert f"MainThread of pid {first.pid} holds Lock 'a'" in text
    assert f"MainThread of pid {second.pid} holds Lock 'c'" in text
    second.do(lambda given: given.release(), c)
    assert second.do(end_of_thread, "second") == "had it"
    assert first.answer() == "had it"


def make_and_keep(name: str) -> Lock:
    """Make a lock in this process; its arena is that of this process."""
    return keep(Lock(name))  # type: ignore[no-any-return]


def test_one_member_with_a_timeout_and_it_is_no_deadlock(pair: list[Puppet]) -> None:
    first, second = pair
    one, two = Lock("one"), Lock("two")
    second.do(hold, two)
    first.begin(hold_and_take, one, two, 0.6)
    until(lambda: is_waited_for(two))
    assert second.do(_take_told, one) == "had it"
    assert first.answer() == "time was up"


def test_a_slow_owner_is_no_deadlock(pair: list[Puppet]) -> None:
    first, second = pair
    one, two = Lock("one"), Lock("two")
    with one:
        first.begin(hold_and_take, two, one)
        until(lambda: is_waited_for(one))
        second.begin(take, two)
        until(lambda: is_waited_for(two))
        assert not is_told(first)
        assert not is_told(second)
    assert first.answer() == "had it"
    assert second.answer() is True


def is_told(puppet: Puppet) -> bool:
    """Whether it has answered within some looks."""
    assert puppet._process.stdout is not None
    return bool(select.select([puppet._process.stdout], [], [], 6 * SOON_S)[0])


def test_a_wait_that_a_dead_thread_left_behind_is_not_believed(puppet: Puppet) -> None:
    """A thread died while it waited for ours; another one has its number, and holds a lock."""
    ours, theirs = Lock("ours"), Lock("theirs")
    puppet.do(hold, theirs)
    with ours:
        puppet.do(pretend_to_wait, ours)
        assert is_waited_for(ours)
        puppet.do(age_seat, ours)
        assert not is_waited_for(ours)
        assert take(theirs, 4 * SOON_S) is False
        begin_in_thread("wants", hold_and_take, Lock("third"), theirs)
        until(lambda: is_waited_for(theirs))
        puppet.do(lambda given: given.release(), theirs)
    assert end_of_thread("wants") == "had it"


def pretend_to_wait(lock: Lock) -> None:
    lock._cell.arena.seat().wait_for(lock._cell.offset, None, 1)


def age_seat(lock: Lock) -> None:
    lock._cell.arena.seat()._large[seats.START] -= 1


def test_a_cycle_that_does_not_hold_this_thread_is_left_to_its_members(
    pair: list[Puppet],
) -> None:
    one, two = Lock("one"), Lock("two")
    first, second = pair
    second.do(hold, two)
    first.begin(hold_and_take, one, two)
    until(lambda: is_waited_for(two))
    begin_in_thread("outside", take, one)
    until(lambda: is_waited_for(one))
    assert second.do(_take_told, one).startswith("Deadlock: 2 threads")
    second.do(lambda given: given.release(), two)
    assert first.answer() == "had it"
    assert end_of_thread("outside") is True


# --- The table -------------------------------------------------------------------------------


def test_the_table_of_holders() -> None:
    assert str(Holdings()) == "No lock is held."
    lock, other = Lock("results"), RLock("other")
    with lock, other:
        begin_in_thread("reader", take, lock)
        until(lambda: is_waited_for(lock))
        rows = {row.what: row for row in who_holds()}
        assert rows["RLock 'other'"].waiting == ()
        row = rows["Lock 'results'"]
        assert (row.pid, row.owner) == (os.getpid(), threading.get_native_id())
        assert 0 < row.held_s < 60
        assert "test_deadlocks.py" in row.stack
        (waiting,) = row.waiting
        assert waiting.startswith(f"waited for by reader of pid {os.getpid()} at\n")
        assert "in take" in waiting
        text = repr(who_holds())
        assert re.search(r"Lock 'results': held by pid \d+, thread \d+, for \d+\.\d s\n    ", text)
        assert "\n  waited for by reader" in text
    end_of_thread("reader")
    assert not {"Lock 'results'", "RLock 'other'"} & {row.what for row in who_holds()}


def test_the_table_shows_other_processes(puppet: Puppet) -> None:
    lock = Lock("theirs")
    puppet.do(hold, lock)
    (row,) = (row for row in who_holds() if row.what == "Lock 'theirs'")
    assert row.pid == puppet.pid
    assert "in hold" in row.stack
    assert puppet.do(lambda: [one.what for one in who_holds()]) == ["Lock 'theirs'"]


def test_a_killed_waiter_leaves_the_table() -> None:
    lock = Lock("wanted")
    with lock, puppets(1) as (one,):
        one.begin(take, lock)
        until(lambda: is_waited_for(lock))
        one.kill()
        assert not is_waited_for(lock)


def test_a_place_is_told_with_those_who_called_it_first() -> None:
    lock = Lock("helped")

    def through_helper(look: Callable[[], Any]) -> Any:
        hold(lock)
        try:
            return look()
        finally:
            lock.release()

    row = through_helper(lambda: next(row for row in who_holds() if "helped" in row.what))
    stack = row.stack.splitlines()
    assert stack[0].endswith(" in hold")
    assert all(line.startswith("  first called from ") for line in stack[1:])
