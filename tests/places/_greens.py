"""All that plait offers, among greenlets; run by gevents.py and eventlets.py after the patching.

They set ``sleep``, ``spawn`` (which returns what has ``wait``) and ``within`` (a limit of time).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import plait
from plait.shared import (
    Barrier,
    Condition,
    Counter,
    Dict,
    Event,
    List,
    Lock,
    Pipe,
    Queue,
    RLock,
    Semaphore,
    Value,
    who_holds,
)

sleep: Any = None
spawn: Any = None
within: Any = None

ticks = 0
offset = 5
WAYS: dict[str, dict[str, Any]] = {
    "serial": {"backend": "serial"},
    "threads": {"backend": "threads"},
    "server": {"backend": "processes", "start_method": "server"},
    "spawn": {"backend": "processes", "start_method": "spawn"},
}


def tick() -> None:
    global ticks
    while True:
        sleep(0.005)
        ticks += 1


def check(what: str, do: Callable[[], Any], expected: Any, least: int = 2) -> None:
    """Check what a call returns, and that other greenlets ran beside it."""
    before = ticks
    with within(40):
        value = do()
    print(f"{what:<24} {ticks - before:>5} ticks", flush=True)
    assert value == expected, (what, value)
    assert ticks - before >= least, (what, ticks - before)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Return what calls return that run in a greenlet each."""
    return [one.wait() for one in [spawn(call) for call in calls]]


def nap(x: int) -> int:
    time.sleep(0.02)
    return x + offset


def work(x: int) -> int:
    return sum(range(50_000)) + x


def fail(x: int) -> int:
    time.sleep(0.1)
    raise KeyError(x)


async def coroutine(x: int) -> int:
    await asyncio.sleep(0.1)
    return x + offset


def caught(do: Callable[[], Any]) -> str:
    try:
        do()
    except Exception as error:
        return type(error).__name__
    return ""


def check_calls() -> None:
    plus = [x + offset for x in range(12)]
    for name, way in WAYS.items():
        two = {**way, "max_workers": 2}
        check(f"map, {name}", lambda two=two: plait.map(nap, range(12), **two), plus)
        check(f"imap, {name}", lambda two=two: list(plait.imap(nap, iter(range(12)), **two)), plus)
        check(
            f"error, {name}",
            lambda two=two: caught(lambda: plait.map(fail, [1], **two)),
            "KeyError",
        )
        check(
            f"three at once, {name}",
            lambda two=two: together(*[lambda: plait.map(nap, range(12), **two)] * 3),
            [plus] * 3,
        )
        check(
            f"tries, {name}",
            lambda two=two: caught(lambda: plait.map(fail, [1], retries=2, backoff=0.02, **two)),
            "KeyError",
        )
        if name != "serial":
            check(
                f"limit, {name}",
                lambda two=two: caught(
                    lambda: plait.map(time.sleep, [1.5], task_timeout=0.1, **two)
                ),
                "TaskTimeout",
            )
        if name != "serial":
            check(f"executor, {name}", lambda way=way: executor(way), plus * 2)
    check("auto, waiting", lambda: plait.map(nap, range(60)), [x + offset for x in range(60)])
    values = [work(x) for x in range(800)]
    check("auto, computing", lambda: plait.map(work, range(800)), values)
    check("coroutines", lambda: plait.map(coroutine, range(12)), plus, least=1)
    check("nested", lambda: plait.map(nested, range(3), backend="threads"), [plus] * 3)
    check("died", died, 9)
    plait.shutdown()


def executor(way: dict[str, Any]) -> list[int]:
    with plait.Executor(2, **way) as pool:
        futures = [pool.submit(nap, x) for x in range(12)]
        return [future.result() for future in futures] + list(pool.map(nap, range(12)))


def nested(_: int) -> list[int]:
    return plait.map(nap, range(12), backend="processes", max_workers=2)


def died() -> int:
    with plait.run(lambda x: time.sleep(0.05) or os._exit(x), [9], backend="processes") as run:
        (outcome,) = run
    assert isinstance(outcome.error, plait.WorkerDied)
    return int(outcome.error.exitcode or 0)


def check_shared() -> None:
    lock, number = Lock("a lock"), Value(int, 0)

    def add(_: int = 0) -> int:
        for _ in range(5):
            with lock:
                before = number.value
                time.sleep(0.002)
                number.value = before + 1
        return 0

    check("lock", lambda: together(*[add] * 4) and number.value, 20)
    number.value = 0
    check(
        "lock, also processes",
        lambda: (
            together(add, add, lambda: plait.map(add, range(2), backend="processes", max_workers=2))
            and number.value
        ),
        20,
    )

    def add_in_value() -> None:
        for _ in range(5):
            with number:
                before = number.value
                sleep(0.02)
                number.value = before + 1

    number.value = 0
    check(
        "value", lambda: together(add_in_value, *[lambda: number.add(1)] * 5) and number.value, 10
    )
    rlock = RLock()

    def enter_twice(_: int) -> bool:
        with rlock, rlock:
            sleep(0.02)
            return rlock._is_owned()

    check("rlock", lambda: together(*[lambda: enter_twice(1)] * 3), [True] * 3)
    check("own deadlock", lambda: spawn(lambda: own_deadlock(lock)).wait(), "DeadlockError", 0)
    check("not the owner", lambda: not_the_owner(lock), "RuntimeError", 0)
    check("owner ended", lambda: owner_ended(), ["OwnerDied", True], 0)
    check("no false deadlock", no_false_deadlock, [1, 2], 50)
    for name, result in (("condition", conditions), ("event", events), ("barrier", barriers)):
        check(name, result, True)
    semaphore = Semaphore(0)
    check(
        "semaphore", lambda: together(semaphore.acquire, lambda: later(semaphore.release))[0], True
    )
    queue = Queue()
    check(
        "queue",
        lambda: together(lambda: queue.get(timeout=5), lambda: later(lambda: queue.put(7)))[0],
        7,
    )
    check("queue, from a process", lambda: from_process(queue), [0, 1, 2])
    left, right = Pipe()
    check("pipe", lambda: together(right.recv, lambda: later(lambda: left.send("word")))[0], "word")
    numbers, names, count = List([1]), Dict(), Counter()
    together(*[lambda: (numbers.append(2), names.update(a=1), count.add(1))] * 5)
    assert (len(numbers), dict(names), count.value) == (6, {"a": 1}, 5)
    for _ in range(1100):  # more than there are seats
        spawn(lambda: Condition_wait(cond)).wait()
    assert not who_holds()


cond = Condition()


def Condition_wait(condition: Condition) -> bool:  # noqa: N802
    with condition:
        return condition.wait(0)


def later(do: Callable[[], Any]) -> Any:
    sleep(0.1)
    return do()


def own_deadlock(lock: Lock) -> str:
    with lock:
        return caught(lock.acquire)


def not_the_owner(lock: Lock) -> str:
    with lock:
        return str(spawn(lambda: caught(lock.release)).wait())


def owner_ended() -> list[Any]:
    lock = Lock()
    spawn(lock.acquire).wait()
    values = [caught(lock.acquire), lock.acquire()]
    lock.release()
    return values


def no_false_deadlock() -> list[int]:
    """Two greenlets hold one lock each that the other wants, in turn, for longer than a look."""
    one, two = Lock(), Lock()

    def hold(first: Lock, number: int) -> int:
        with first:
            sleep(1.3)
        return number

    def both(number: int) -> int:
        with one, two:
            return number

    started = [spawn(lambda: hold(one, 0)), spawn(lambda: hold(two, 0))]
    values = together(lambda: both(1), lambda: both(2))
    for one_ in started:
        one_.wait()
    return values


def conditions() -> bool:
    condition = Condition()

    def notify() -> None:
        sleep(0.05)
        with condition:
            condition.notify_all()

    def wait() -> bool:
        with condition:
            return condition.wait(5)

    return together(wait, wait, notify)[:2] == [True, True]


def events() -> bool:
    event = Event()
    return bool(together(lambda: event.wait(5), lambda: later(event.set))[0])


def barriers() -> bool:
    barrier = Barrier(2)
    return sorted(together(lambda: barrier.wait(5), lambda: later(barrier.wait))) == [0, 1]


def from_process(queue: Any) -> list[int]:
    def put(x: int) -> None:
        time.sleep(0.03)
        queue.put(x)

    call = spawn(lambda: plait.map(put, range(3), backend="processes", max_workers=1))
    values = [queue.get(timeout=10) for _ in range(3)]
    call.wait()
    return values


def main() -> None:
    spawn(tick)
    check_calls()
    check_shared()
    value = asyncio.run(plait.amap(nap, range(3), backend="processes", max_workers=1))
    assert value == [5, 6, 7]
