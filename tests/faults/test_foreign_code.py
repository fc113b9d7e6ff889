"""What objects bring along raises, whatever it is: one task fails, and nothing else does.

And what comes from outside, out of a signal handler, is not taken for it.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest

import plait
from plait import wire
from plait.foreign import attempt
from plait.wire_errors import load_error, pack_error
from tests.conftest import Way

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.timeout(60)]


class Odd(BaseException):
    """Of no kind that anybody expects."""


KINDS = [
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    RecursionError,
    MemoryError,
    Odd,
    ValueError,
]


def fail(kind: type[BaseException], times: int = 1) -> Any:
    raise kind("refused")


class OnArrival:
    """Raises where it is unpickled."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        return fail, (self.kind,)


class OnDeparture:
    """Raises where it is pickled."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        fail(self.kind)


CLASSES = (OnArrival, OnDeparture)
# At these places something is wrong, in tasks of which the others are well.
BAD = {3 * n + 1: (cls, kind) for n, (cls, kind) in enumerate(product(CLASSES, KINDS))}
TASKS = 3 * len(BAD) + 3


def make(n: int) -> Any:
    if n not in BAD:
        return n
    cls, kind = BAD[n]
    return cls(kind)


def check(error: Any, kind: type[BaseException]) -> None:
    assert isinstance(error, plait.NotPicklable)
    if kind is RecursionError:  # cloudpickle has words of its own for that
        assert "recursion" in str(error).lower()
    else:
        assert kind.__name__ in str(error)
        assert type(error.__cause__) is kind


@pytest.mark.parametrize("chunksize", [1, 4, "auto"])
def test_results(process_way: Way, chunksize: Any) -> None:
    given = {"max_workers": 2, "chunksize": chunksize, "on_error": "return", **process_way.options}
    values = plait.map(make, range(TASKS), **given)
    assert [n for n, value in enumerate(values) if n != value] == list(BAD)
    for n, (_, kind) in BAD.items():
        check(values[n], kind)


@pytest.mark.parametrize("chunksize", [1, 4, "auto"])
def test_items(process_way: Way, chunksize: Any) -> None:
    given = {"max_workers": 2, "chunksize": chunksize, "on_error": "return", **process_way.options}
    values = plait.map(lambda item: item, [make(n) for n in range(TASKS)], **given)
    assert [n for n, value in enumerate(values) if n != value] == list(BAD)
    for n, (cls, kind) in BAD.items():
        if cls is OnArrival and issubclass(kind, Exception):  # raised by the task
            assert type(values[n]) is kind
        else:
            check(values[n], kind)


def test_among_tiny_tasks(process_way: Way) -> None:
    def task(n: int) -> Any:
        return OnDeparture(SystemExit) if n == 9000 else OnArrival(Odd) if n == 11_000 else n

    given = {"max_workers": 2, "on_error": "return", **process_way.options}
    values = plait.map(task, range(20_000), **given)
    assert isinstance(values[9000], plait.NotPicklable)
    assert isinstance(values[11_000], plait.NotPicklable)
    assert [n for n, value in enumerate(values) if n != value] == [9000, 11_000]


def test_futures(process_way: Way) -> None:
    with plait.Executor(max_workers=2, **process_way.executor) as executor:
        for kind in KINDS:
            futures = [executor.submit(abs, -1), executor.submit(OnArrival, kind)]
            futures += [executor.submit(OnDeparture, kind), executor.submit(id, OnDeparture(kind))]
            futures += [executor.submit(abs, -2)]
            assert [futures[0].result(), futures[4].result()] == [1, 2]
            for future in futures[1:4]:
                check(future.exception(), kind)


def test_auto_goes_on_in_the_loop() -> None:
    def task(n: int) -> Any:
        return OnDeparture(SystemExit)

    made = plait.run(task, range(3000))
    assert all(type(outcome.value) is OnDeparture for outcome in made)


# --- Errors as odd as can be ---------------------------------------------------------------


class Hostile(Exception):
    """Each of its parts raises what is no Exception."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise Odd

    def __str__(self) -> str:
        raise SystemExit

    def __repr__(self) -> str:
        raise KeyboardInterrupt

    def __reduce__(self) -> Any:
        raise GeneratorExit


def refuse(*_: object) -> Any:
    raise Odd


for name in ("__traceback__", "__cause__", "__context__", "__notes__", "args"):
    setattr(Hostile, name, property(refuse, lambda self, value: None))


def hostile(n: int) -> int:
    if n == 5:
        raise Hostile
    return n


@pytest.mark.parametrize("chunksize", [3, "auto"])
def test_an_error_of_which_each_part_raises(process_way: Way, chunksize: Any) -> None:
    given = {"max_workers": 2, "chunksize": chunksize, **process_way.options}
    values = plait.map(hostile, range(12), on_error="return", **given)
    assert isinstance(values.pop(5), (Hostile, plait.RemoteError))
    assert values == [*range(5), *range(6, 12)]
    with pytest.raises((Hostile, plait.RemoteError)):
        plait.map(hostile, range(12), **given)


def chained(depth: int) -> BaseException:
    error: BaseException = ValueError(0)
    for n in range(1, depth):
        outer = ValueError(n)
        outer.__cause__, error = error, outer
    return error


def raise_chained(n: int) -> int:
    if n == 5:
        raise chained(5000)
    return n


def test_a_chain_of_5000_errors(process_way: Way) -> None:
    given = {"max_workers": 2, "on_error": "return", **process_way.options}
    values = plait.map(raise_chained, range(12), **given)
    error: Any = values.pop(5)
    assert values == [*range(5), *range(6, 12)]
    length = 0
    while isinstance(error, ValueError):
        assert error.args == (4999 - length,)
        error, length = error.__cause__, length + 1
    assert length == 5000
    assert isinstance(error, plait.RemoteTraceback)


def test_an_error_that_contains_itself() -> None:
    error = ValueError("round")
    error.args = (error,)
    assert isinstance(load_error(pack_error(error)), (ValueError, plait.RemoteError))
    error = ValueError("round")
    error.me = error  # type: ignore[attr-defined]
    error.__context__ = error.__cause__ = ValueError("and round")
    error.__context__.__context__ = error
    loaded = load_error(pack_error(error))
    assert loaded.me is loaded  # type: ignore[attr-defined]
    assert loaded.__context__ is not None
    assert loaded.__context__.__context__ is loaded


def test_what_is_logged_and_cannot_travel(process_way: Way, caplog: Any) -> None:
    def task(n: int) -> int:
        import logging

        thing = OnArrival(SystemExit) if n == 1 else OnDeparture(SystemExit)
        logging.getLogger("odd").warning("said", extra={"thing": thing})
        return n

    assert plait.map(task, range(3), max_workers=1, **process_way.options) == [0, 1, 2]
    assert [record.message for record in caplog.records] == ["said", "said"]


# --- From outside --------------------------------------------------------------------------


class Alarm(Exception):
    """What the handler of a signal raises."""


@contextmanager
def handled(kind: type[BaseException]) -> Iterator[None]:
    def handle(*_: object) -> None:
        raise kind

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


class Struck:
    """A signal comes as it is pickled, unpickled, or shown."""

    def __reduce__(self) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return Struck, ()

    def __repr__(self) -> str:
        signal.raise_signal(signal.SIGUSR1)
        return "<struck>"


def strike() -> str:
    signal.raise_signal(signal.SIGUSR1)
    return "struck"


class StruckOnArrival:
    def __reduce__(self) -> Any:
        return strike, ()


def test_what_a_signal_handler_raises_reaches_the_caller(process_way: Way) -> None:
    for kind in (Alarm, SystemExit, KeyboardInterrupt):
        check_outside(process_way, kind)
        gc.collect()  # the errors have seen all that was at work


def check_outside(way: Way, kind: type[BaseException]) -> None:
    given = {"max_workers": 2, "on_error": "return", **way.options}
    with handled(kind):
        for items in ([1, Struck()], [1, [Struck(), OnDeparture(ValueError)]]):
            with pytest.raises(kind):
                plait.map(lambda item: 0, items, **given)
        with pytest.raises(kind):
            plait.map(lambda n: StruckOnArrival(), [1, 2], **given)
        with plait.Executor(max_workers=2, **way.executor) as executor:
            with pytest.raises(kind):
                executor.submit(id, Struck())
            assert executor.submit(abs, -1).result() == 1
    assert plait.map(abs, [-1, -2], max_workers=2, **way.options) == [1, 2]


def test_what_comes_once_is_from_outside() -> None:
    struck: list[int] = []

    def once() -> str:
        struck.append(1)
        if len(struck) == 1:
            raise Odd
        return "done"

    with pytest.raises(Odd):
        attempt(once)
    assert attempt(fail, Odd)[1].__class__ is Odd
    with pytest.raises(KeyboardInterrupt):  # by Python's own handler
        attempt(signal.raise_signal, signal.SIGINT)
    with pytest.raises(plait.NotPicklable):
        wire.pack(OnDeparture(KeyboardInterrupt))
