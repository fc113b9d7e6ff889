"""checked(): finds what no lock keeps apart, and is silent where one does."""

from __future__ import annotations

import doctest
import os
import pickle
import threading
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence
from typing import Any

import pytest

import plait
from plait.shared import Dict, List, Lock, RLock, checked, races
from tests.shared.far import Far

FILE = __file__


@pytest.fixture(scope="module")
def far() -> Iterator[Far]:
    with Far() as process:
        yield process


def in_thread(work: Callable[[], object], name: str) -> Exception | None:
    """Run something in a thread of its own, to its end; return what it raised."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def found_by(*works: Callable[[], object]) -> list[Exception | None]:
    """Run them one after the other, a thread for each: nothing can go wrong."""
    return [in_thread(work, f"thread {number}") for number, work in enumerate(works)]


def test_the_examples_are_true() -> None:
    assert doctest.testmod(races).failed == 0


def test_a_producer_and_a_consumer_without_a_lock_are_found_though_all_went_well() -> None:
    data = checked([])

    def produce() -> None:
        for number in range(10):
            data.append(number)

    def consume() -> None:
        while data:
            data.pop()

    nothing, race = found_by(produce, consume)
    assert nothing is None
    assert isinstance(race, plait.RaceFound)
    assert race.what == "list"
    assert race.first.who == f"thread 0 of MainProcess (pid {os.getpid()})"
    assert (race.first.kind, race.first.method, race.first.locks) == ("write", "append", ())
    line = produce.__code__.co_firstlineno + 2
    assert race.first.where.startswith(f"{FILE}:{line} in ")
    assert race.second.who.startswith("thread 1 of ")
    assert race.second.method == "pop"
    assert race.second.where.startswith(f"{FILE}:{consume.__code__.co_firstlineno + 2} in ")
    for text in ("thread 0", "thread 1", f"{FILE}:{line}", "holding no lock"):
        assert text in str(race)
    again = pickle.loads(pickle.dumps(race))
    assert (again.first, again.second, str(again)) == (race.first, race.second, str(race))


def test_it_is_found_while_both_run_too() -> None:
    data, both = checked({"n": 0}), threading.Barrier(2)
    found = []

    def work() -> None:
        try:
            for _ in range(50):
                both.wait()
                data["n"] += 1
        except plait.RaceFound as race:
            found.append(race)
            both.abort()
        except threading.BrokenBarrierError:
            pass

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_it_is_silent_with_the_lock(kind: Any) -> None:
    data, lock = checked([]), kind("jobs")

    def produce() -> None:
        for number in range(10):
            with lock:
                data.append(number)

    def consume() -> None:
        with lock:
            while data:
                data.pop()

    assert found_by(produce, consume, produce, consume) == [None] * 4
    assert len(data) == 0  # all others have ended


def test_two_that_hold_different_locks_hold_none_in_common() -> None:
    data, one, other = checked([]), Lock("one"), Lock("other")

    def work(*locks: Any) -> None:
        for lock in locks:
            lock.acquire()
        data.append(1)
        for lock in locks:
            lock.release()

    works = [lambda: work(one, other), lambda: work(one), lambda: work(other)]
    *nothing, race = found_by(*works)
    assert nothing == [None, None]
    assert isinstance(race, plait.RaceFound)
    assert race.first.locks == ("Lock 'one'",)
    assert race.second.locks == ("Lock 'other'",)


def test_reading_needs_no_lock_until_somebody_writes() -> None:
    data = checked([1, 2])
    read: Callable[[], object] = lambda: data[0] + len(data)  # noqa: E731
    assert found_by(read, read, read) == [None] * 3
    (race,) = found_by(lambda: data.append(3))
    assert isinstance(race, plait.RaceFound)
    assert {race.first.kind, race.second.kind} == {"read", "write"}
    assert race.first.who.startswith("thread 2 of ")


def test_who_reads_what_others_write_without_a_lock_is_found() -> None:
    data, lock = checked({}), Lock()

    def write() -> None:
        with lock:
            data["a"] = 1

    nothing, race = found_by(write, lambda: data.get("a"))
    assert nothing is None  # two, and only the first has written: it may have made it ready
    assert race is None
    (race,) = found_by(write)
    assert isinstance(race, plait.RaceFound)
    assert (race.first.method, race.second.method) == ("get", "__setitem__")


def test_one_worker_needs_no_lock() -> None:
    data = checked([])
    for number in range(3):
        data += [number]
        data *= 2
    assert data[-1] == 2
    assert repr(data) == f"checked({list(data)!r})"


def test_who_has_it_checked_needs_none_when_the_others_have_ended() -> None:
    data, lock = checked([]), Lock()

    def work() -> None:
        with lock:
            data.append(1)

    assert found_by(work, work, work) == [None] * 3
    assert data == [1, 1, 1]
    data.append(2)


def test_but_while_they_run_it_does() -> None:
    data, lock, has_added, may_end = checked([]), Lock(), threading.Event(), threading.Event()

    def work() -> None:
        with lock:
            data.append(1)
        has_added.set()
        may_end.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    has_added.wait()
    with pytest.raises(plait.RaceFound) as caught:
        data.pop()
    assert caught.value.first.locks == ("Lock",)
    may_end.set()
    for thread in threads:
        thread.join()


def test_it_can_warn_and_goes_on() -> None:
    data = checked([], report="warn")

    def work() -> None:
        data.append(1)

    in_thread(work, "a")
    with pytest.warns(RuntimeWarning, match="no lock in common") as told:
        assert found_by(work, work) == [None, None]
    assert len(told) == 1  # for two places, once
    assert told[0].filename == FILE
    assert len(data) == 3


def test_wrong_arguments_and_journeys_are_refused() -> None:
    with pytest.raises(ValueError, match="report='shout'"):
        checked([], report="shout")
    with pytest.raises(TypeError, match=r"plait\.shared\.List"):
        pickle.dumps(checked([]))


@pytest.mark.parametrize(
    ("data", "plain"),
    [([3, 1, 2], [3, 1, 2]), (List([3, 1, 2]), [3, 1, 2])],
    ids=["list", "List"],
)
def test_a_checked_list_is_one(data: Any, plain: list[int]) -> None:
    data = checked(data)
    both: tuple[Any, ...] = data, plain
    assert isinstance(data, MutableSequence)
    for one in both:
        one.sort(key=lambda x: -x)
        one[1:2] = [7, 8]
        del one[0]
        one.insert(0, 5)
    assert list(data) == plain
    assert plain == data
    assert data != []
    assert (data.index(7), data[1:], [*data, 1], 2 * data) == (1, plain[1:], [*plain, 1], plain * 2)


def test_a_checked_dict_is_one() -> None:
    data: Any = checked({"a": 1})
    assert issubclass(type(data), MutableMapping)
    data |= {"b": 2}
    data.update(c=3)
    assert data == {"a": 1, "b": 2, "c": 3}
    assert (data.pop("a"), data.setdefault("d", 4), data.popitem()) == (1, 4, ("d", 4))
    assert dict(data) == dict(data.items()) == data.copy()


# --- Between processes ------------------------------------------------------------------------


def test_processes_are_found_too(far: Far) -> None:
    data = checked(List([1, 2], name="jobs"))
    data.append(3)
    with pytest.raises(plait.RaceFound) as caught:
        far.run("while data: data.pop()", data=data)
    race = caught.value
    assert race.what == "List"
    assert race.first.who == f"MainThread of MainProcess (pid {os.getpid()})"
    assert race.first.where.startswith(f"{FILE}:")
    assert race.second.who == f"MainThread of MainProcess (pid {far.process.pid})"
    with pytest.raises(plait.RaceFound):  # both are told
        data.append(4)


def test_processes_with_a_lock_are_not(far: Far) -> None:
    data, lock = checked(Dict({"n": 0})), Lock()
    add = "for _ in range(20):\n    with lock: data['n'] += 1"
    with lock:
        data["n"] += 1
    far.run(add, data=data, lock=lock)
    exec(add, {"data": data, "lock": lock})
    with lock:
        assert data["n"] == 41


def test_the_lock_of_the_data_is_one(far: Far) -> None:
    data = checked(List([1]))
    source = "with data.lock:\n    if data: data.append(data[-1] + 1)"
    for _ in range(3):
        far.run(source, data=data)
        exec(source, {"data": data})
    with data.lock:
        assert len(data) == 7


def test_a_process_that_has_ended_is_in_nobodys_way() -> None:
    data = checked(List([1]))
    with Far() as other:
        other.run("data.append(2)", data=data)
    data.append(3)
    assert list(data) == [1, 2, 3]


def test_tasks_of_a_map_are_found() -> None:
    data = checked([])
    both = threading.Barrier(2)

    def work(number: int) -> None:
        both.wait()
        data.append(number)

    with pytest.raises(plait.RaceFound):
        plait.map(work, range(2), backend="threads", max_workers=2, chunksize=1)
