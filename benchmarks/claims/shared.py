"""Locks, numbers, queues and containers for several processes, beside those of multiprocessing.

What is compared is a line in one of the tables below: a path, like "multiprocessing.Lock", whose
last part is called without arguments. A row of plait.shared that is not there (yet) is noted.
All of it is measured in the host of the loop, which has one thread and may fork.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_longlong
from functools import partial
from importlib import import_module
from itertools import repeat
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.bare import halves_s
from benchmarks.pairs import Way
from benchmarks.station import Station, check

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.pairs import Race

__all__ = ["run"]

HOST = "loop"
OURS = "plait.shared"
LOCKS = ("plait.shared.Lock", "multiprocessing.Lock", "threading.Lock")
QUEUES = ("plait.shared.Queue", "multiprocessing.Queue", "faster_fifo.Queue")
LOCK_BAR, CONTENDED_BAR, VALUE_BAR, QUEUE_BAR, CONTAINER_BAR = 2.5, 1.5, 2.0, 2.0, 3.0
LENGTH = 100


def made(path: str, *arguments: Any) -> Any:
    """Return what is made by a path, like "multiprocessing.Lock"."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)(*arguments)


def exists(path: str) -> bool:
    module, _, name = path.rpartition(".")
    return hasattr(import_module(module), name)


def each_s(work: Callable[[int], object], times: int) -> float:
    """Return the seconds of one of so many times, that a function is told to do."""
    work(times // 10)  # what is done for the first time takes longer
    started = perf_counter()
    work(times)
    return (perf_counter() - started) / times


# --- Locks -------------------------------------------------------------------------------


def with_it(lock: Any, times: int) -> None:
    for _ in repeat(None, times):
        with lock:
            pass


def by_methods(lock: Any, times: int) -> None:
    for _ in repeat(None, times):
        lock.acquire()
        lock.release()


FORMS = {"with": with_it, "acquire and release": by_methods}


def lock_s(station: Station, path: str, form: str, times: int) -> float:
    """Return the seconds to acquire and release a lock that nobody else wants."""
    del station
    return each_s(partial(FORMS[form], made(path)), times)


def contended_s(station: Station, path: str, times: int) -> float:
    """Return the seconds in which two processes count to so many each, with one lock."""
    lock, number = made(path), made("multiprocessing.RawValue", c_longlong)

    def count(times: int) -> None:
        for _ in repeat(None, times):
            with lock:
                number.value += 1

    seconds = halves_s(station, count, [[times], [times]])
    check(path, is_right=number.value == 2 * times)
    return seconds


# --- Numbers -----------------------------------------------------------------------------


def add(value: Any, times: int) -> None:
    for _ in repeat(None, times):
        value.add(1)


def add_under_lock(value: Any, times: int) -> None:
    for _ in repeat(None, times):
        with value.get_lock():
            value.value += 1


VALUES = {
    "plait.shared.Value.add": ("plait.shared.Value", int, add),
    "plait.shared.Value, with": ("plait.shared.Value", int, add_under_lock),
    "multiprocessing.Value, with": ("multiprocessing.Value", "q", add_under_lock),
}


def value_s(station: Station, name: str, times: int) -> float:
    """Return the seconds to add to a number, so that no other process comes in between."""
    del station
    path, kind, work = VALUES[name]
    value = made(path, kind)
    seconds = each_s(partial(work, value), times)
    check(name, is_right=value.value == times + times // 10)
    return seconds


# --- Queues ------------------------------------------------------------------------------


def queue_s(station: Station, path: str, times: int) -> float:
    """Return the seconds for each of so many numbers, from one process to another."""
    queue, total = made(path), made("multiprocessing.RawValue", c_longlong)

    def work(is_putting: bool) -> None:  # noqa: FBT001
        if is_putting:
            for number in range(times):
                queue.put(number)
            if hasattr(queue, "join_thread"):  # else its thread would end with the process
                queue.close()
                queue.join_thread()
        else:
            total.value = sum(queue.get() for _ in repeat(None, times))

    seconds = halves_s(station, work, [[True], [False]])
    check(path, is_right=total.value == sum(range(times)))
    return seconds / times


# --- Containers --------------------------------------------------------------------------


def append(content: Any, times: int) -> None:
    for number in range(times):
        content.append(number)


def get_item(content: Any, times: int) -> None:
    for number in range(times):
        content[number % LENGTH]


def set_item(content: Any, times: int) -> None:
    for number in range(times):
        content[number % LENGTH] = number


def length(content: Any, times: int) -> None:
    for _ in repeat(None, times):
        len(content)


def is_in(content: Any, times: int) -> None:
    for number in range(times):
        number in content  # noqa: B015


CONTAINERS: dict[str, tuple[str, Any, dict[str, Callable[[Any, int], None]]]] = {
    "List": (
        "list",
        range(LENGTH),
        {"append": append, "list[i]": get_item, "list[i] = x": set_item, "len(list)": length},
    ),
    "Dict": (
        "dict",
        {number: number for number in range(LENGTH)},
        {"dict[k]": get_item, "dict[k] = x": set_item, "k in dict": is_in, "len(dict)": length},
    ),
}
"""Their names; what the manager calls them; what is in them; what is done with them."""


def our_container_s(station: Station, name: str, operation: str, times: int) -> float:
    """Return the seconds of one operation of a container of plait.shared."""
    del station
    _, content, operations = CONTAINERS[name]
    return each_s(partial(operations[operation], made(f"{OURS}.{name}", content)), times)


def managed_s(station: Station, name: str, operation: str, times: int) -> float:
    """Return the same of one in a process of multiprocessing.Manager."""
    del station
    method, content, operations = CONTAINERS[name]
    with made("multiprocessing.Manager") as manager:
        return each_s(partial(operations[operation], getattr(manager, method)(content)), times)


# --- The claim ---------------------------------------------------------------------------


def run(bench: Bench) -> None:
    run_locks(bench)
    run_values(bench)
    run_queues(bench)
    for name in CONTAINERS:
        run_container(bench, name)


def run_locks(bench: Bench) -> None:
    for form in FORMS:
        ways = side_by_side(bench, LOCKS, lock_s, form, bench.pick(20_000, 2_000))
        race = bench.race(f"A lock that nobody else wants, {form}", ways, rounds=31, unit="us")
        hold(bench, f"a free lock, {form}", race, LOCKS[0], LOCKS[1], LOCK_BAR)
    times = bench.pick(20_000, 2_000)
    ways = side_by_side(bench, LOCKS[:2], contended_s, times)
    race = bench.race(f"Two processes count to {times:,} with one lock", ways, rounds=31)
    hold(bench, "two processes, one lock", race, LOCKS[0], LOCKS[1], CONTENDED_BAR)


def run_values(bench: Bench) -> None:
    names = list(VALUES)
    ways = side_by_side(bench, names, value_s, bench.pick(20_000, 2_000))
    race = bench.race("A number, one more", ways, rounds=31, unit="us")
    for name in names[:2]:
        hold(bench, "a number, one more", race, name, names[2], VALUE_BAR)


def run_queues(bench: Bench) -> None:
    if is_there(bench, QUEUES[0]):
        times = bench.pick(20_000, 2_000)
        ways = side_by_side(bench, QUEUES, queue_s, times)
        title = f"A number through a queue, of {times:,} from one process to another"
        race = bench.race(title, ways, rounds=15, unit="us")
        claim = f"numbers through a queue: {QUEUES[0]} is so many times as fast as {QUEUES[1]}"
        bench.at_least(claim, race.ratio(QUEUES[1], QUEUES[0]), QUEUE_BAR)


def run_container(bench: Bench, name: str) -> None:
    if not is_there(bench, f"{OURS}.{name}"):
        return
    times = bench.pick(2_000, 500)
    for operation in CONTAINERS[name][2]:
        ways = {
            f"{OURS}.{name}": bench.ours(HOST, our_container_s, name, operation, times),
            "Manager": peer(bench, managed_s, name, operation, times),
        }
        race = bench.race(f"{name}: {operation}", ways, rounds=15, unit="us")
        claim = f"{operation}: {OURS}.{name} is so many times as fast as multiprocessing.Manager"
        bench.at_least(claim, race.ratio("Manager", f"{OURS}.{name}"), CONTAINER_BAR)


def side_by_side(
    bench: Bench, names: tuple[str, ...] | list[str], measure: Callable[..., float], *args: Any
) -> dict[str, Way]:
    """Return a way for each, all in one host; the first one is plait's."""
    ways = {names[0]: bench.ours(HOST, measure, names[0], *args)}
    for name in names[1:]:
        ways[name] = peer(bench, measure, name, *args)
    return ways


def peer(bench: Bench, measure: Callable[..., float], *args: Any) -> Way:
    """Return the way of a peer, in that host."""
    return Way(partial(bench.call, HOST, measure, *args))


def hold(bench: Bench, what: str, race: Race, ours: str, peer: str, limit: float) -> None:
    bench.at_most(f"{what}: {ours} / {peer}", race.ratio(ours, peer), limit)


def is_there(bench: Bench, path: str) -> bool:
    """Whether plait.shared has it; else a note says that it was not measured."""
    if not exists(path):
        bench.note(f"There is no {path}: not measured.")
        return False
    return True
