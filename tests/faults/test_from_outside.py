"""An exception from outside strikes the thread that drives a pool: it reaches the caller.

What had finished is not lost, other calls on the same pool go on, and so does the next one.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.backends import dispatcher, process_lane, processes, turns
from tests.conftest import Way

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.timeout(60)]


class Alarm(Exception):
    """What the handler of a signal raises."""


armed = [True]


def raise_alarm(*_: object) -> None:
    if armed[0]:
        raise Alarm


SIGUSR1 = signal.SIGUSR1
SIGRTMIN = signal.SIGRTMIN  # which no Shield holds back


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = {number: signal.signal(number, raise_alarm) for number in (SIGUSR1, SIGRTMIN)}
    armed[0] = True
    yield
    armed[0] = False
    for number, one in before.items():
        signal.signal(number, one)


@pytest.fixture(autouse=True)
def collected(clean: None) -> Iterator[None]:
    """Let go of what the frames of errors know before files are counted."""
    yield
    gc.collect()


def listed(n: int) -> list[int]:
    return [n]


def pid_of(_: int) -> int:
    return os.getpid()


def given(way: Way) -> dict[str, Any]:
    return {"max_workers": 2, "chunksize": 2, **way.options}


def test_it_strikes_while_the_pool_is_waited_for(process_way: Way) -> None:
    """Nothing was being changed: the pool stays, with its workers."""
    home = os.getpid()

    def task(n: int) -> int:
        if n == 5:
            while Path(f"/proc/{home}/stat").read_text().rpartition(")")[2].split()[0] != "S":
                os.sched_yield()  # it is at work
            os.kill(home, SIGUSR1)
            signal.pause()  # until it is ended
        return os.getpid()

    before = set(plait.map(pid_of, range(20), **given(process_way)))
    with pytest.raises(Alarm) as caught:
        plait.map(task, range(6), **given(process_way) | {"chunksize": 1})
    done = caught.value.plait_run.outcomes  # type: ignore[attr-defined]
    assert {outcome.index for outcome in done} < {0, 1, 2, 3, 4, 5}
    after = set(plait.map(pid_of, range(20), **given(process_way)))
    assert before & after  # one of them was ended


def test_one_that_no_shield_holds_back_strikes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"max_workers": 2, "chunksize": 2, "backend": "processes"}
    before = set(plait.map(pid_of, range(20), **options))
    with monkeypatch.context() as patch:
        strike_in(turns.Turns, "_select", SIGRTMIN, patch, after=False)
        with pytest.raises(Alarm):
            map_again_and_again(options)
    assert set(plait.map(pid_of, range(20), **options)) & before


STEPS: list[tuple[Any, str]] = [
    (dispatcher.Dispatcher, "take"),
    (dispatcher.Dispatcher, "sort"),
    (dispatcher.Dispatcher, "balance"),
    (dispatcher.Dispatcher, "_give"),
    (processes.ProcessBackend, "_hear"),
    (processes.ProcessBackend, "_take_results"),
    (processes.ProcessBackend, "_deliver"),
    (process_lane.ProcessLane, "_unpack_report"),
    (process_lane.ProcessLane, "_settle"),
]


def strike_in(
    cls: Any, name: str, number: int, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> list[str]:
    """Have a signal come at the second call of a method in the main thread."""
    method: Callable[..., Any] = getattr(cls, name)
    calls: list[str] = []

    def struck(*args: Any, **kwargs: Any) -> Any:
        is_main = threading.current_thread() is threading.main_thread()
        calls.extend([name] * is_main)
        is_due = is_main and len(calls) == 2
        if is_due and not after:
            signal.raise_signal(number)
        value = method(*args, **kwargs)
        if is_due:
            signal.raise_signal(number)
        return value

    monkeypatch.setattr(cls, name, struck)
    return calls


def map_again_and_again(options: dict[str, Any]) -> None:
    while True:  # the other thread may do what is struck
        plait.map(listed, range(40), **options)


@pytest.mark.parametrize("number", [SIGUSR1, SIGRTMIN])
@pytest.mark.parametrize("after", [False, True])
def test_it_strikes_amid_the_books(
    after: bool, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread maps on the same pool all the time, and all of its results are right."""
    options: dict[str, Any] = {"max_workers": 2, "chunksize": 2, "backend": "processes"}
    results: list[Any] = []
    is_over = threading.Event()

    def map_on() -> None:
        while not is_over.is_set():
            # Only a task that ran as the pool was given up may fail with it: it is tried again.
            results.append(plait.map(listed, range(30), retries=5, **options))

    other = threading.Thread(target=map_on)
    other.start()
    try:
        for cls, name in STEPS:
            with monkeypatch.context() as patch:
                calls = strike_in(cls, name, number, patch, after=after)
                with pytest.raises(Alarm) as caught:
                    map_again_and_again(options)
            assert len(calls) >= 2
            for outcome in caught.value.plait_run.outcomes:  # type: ignore[attr-defined]
                assert outcome.value == [outcome.index]
            assert plait.map(listed, range(5), **options) == [[n] for n in range(5)]
    finally:
        is_over.set()
        other.join()
    assert results
    assert all(values == [[n] for n in range(30)] for values in results)


struck: list[int] = []


class Odd:
    """As the fourth of them is unpickled here for the first time, a signal comes."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.n == 3 and not struck:
            struck.append(self.n)
            signal.raise_signal(SIGUSR1)


def test_what_was_being_unpickled_is_not_lost(process_way: Way) -> None:
    """It is unpickled once more, at the end."""
    struck.clear()
    with pytest.raises(Alarm) as caught:
        plait.map(Odd, range(4), chunksize=4, max_workers=1, **process_way.options)
    outcomes = caught.value.plait_run.outcomes  # type: ignore[attr-defined]
    assert [outcome.value.n for outcome in outcomes] == [0, 1, 2, 3]


class Ringing:
    """A signal comes while it is pickled, the first times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __reduce__(self) -> tuple[Any, ...]:
        self.times -= 1
        if self.times >= 0:
            signal.raise_signal(SIGUSR1)
        return Ringing, (0,)


class AlarmLikePickle(AttributeError):
    """Of the kind that pickle raises where cloudpickle may do better."""


class Handler:
    def __call__(self, *_: object) -> None:
        raise Alarm


def raise_like_pickle(*_: object) -> None:
    raise AlarmLikePickle


@pytest.mark.parametrize(
    ("ring", "times", "error"),
    [
        (raise_alarm, 9, Alarm),
        (functools.partial(raise_alarm), 9, Alarm),
        (Handler(), 9, Alarm),
        (raise_like_pickle, 1, AlarmLikePickle),
    ],
)
def test_it_strikes_while_an_item_is_pickled(
    ring: Callable[..., None], times: int, error: type[Exception]
) -> None:
    """It is no fault of the item, whatever the handler is, and however often it comes."""
    signal.signal(SIGUSR1, ring)
    with pytest.raises(error):
        plait.map(repr, [Ringing(times)], backend="processes", max_workers=1)


def test_it_is_no_news_of_workers_whatever_its_class() -> None:
    """Neither is a future failed by it, nor are those that wait behind it."""

    def raise_own(*_: object) -> None:
        raise plait.PoolClosed

    home = os.getpid()

    def task(_: int) -> int:
        while Path(f"/proc/{home}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            os.sched_yield()  # it is at work
        os.kill(home, SIGRTMIN)
        return 1

    signal.signal(SIGRTMIN, raise_own)
    with plait.Executor(1, "processes") as pool:
        futures = [pool.submit(task, 0), pool.submit(abs, -2)]
        with pytest.raises(plait.PoolClosed):
            futures[1].result(30)
        signal.signal(SIGRTMIN, signal.SIG_IGN)
        assert [future.result(30) for future in futures] == [1, 2]


def strike(is_over: threading.Event, after_s: float) -> None:
    main = threading.main_thread().ident
    if main is not None and not is_over.wait(after_s):
        signal.pthread_kill(main, SIGUSR1)


@pytest.mark.soak  # at moments that are drawn
@pytest.mark.parametrize("seed", range(2))
def test_it_strikes_anywhere(seed: int) -> None:
    """And no call waits for ever, nor gives a wrong result."""
    options: dict[str, Any] = {"max_workers": 2, "chunksize": 2, "backend": "processes"}
    draw = random.Random(seed)
    for _ in range(15):
        is_over = threading.Event()
        striker = threading.Thread(target=strike, args=(is_over, draw.uniform(0.0001, 0.01)))
        striker.start()
        try:
            armed[0] = True
            values = plait.map(listed, range(60), **options)
            armed[0] = False
        except Alarm as error:
            run = getattr(error, "plait_run", None)
            for outcome in run.outcomes if run is not None else ():
                assert outcome.value == [outcome.index]
        else:
            assert values == [[n] for n in range(60)]
        is_over.set()
        striker.join()
        armed[0] = False
        assert plait.map(listed, range(3), **options) == [[0], [1], [2]]
