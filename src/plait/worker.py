"""The far side: run a chunk. The only place in plait that calls the user's function.

Every backend ends here, in a thread, a process or the caller itself; only coroutines
are awaited elsewhere (backends/asyncio_loop.py), and reported in the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import starmap
from types import FunctionType, MethodType
from typing import Any

from plait.host import monotonic
from plait.tasks import Call, Stretch, Times

__all__ = [
    "CATCH_ALL",
    "FLUSH_S",
    "depth",
    "enter_worker",
    "invoke",
    "run_apart",
    "run_one",
    "run_together",
    "take_name",
]

# In a worker, whatever a task raises is that task's outcome: SystemExit and
# KeyboardInterrupt too. The caller's own thread must stay interruptible, see serial.py.
CATCH_ALL: tuple[type[BaseException], ...] = (BaseException,)

# Results that took this long in all are put into safety before the next task starts.
FLUSH_S = 0.001

# So many tiny tasks are run without a look at the clock, where it is looked at all.
FIRST_PART, MOST_PART = 16, 2048
PART_S = 0.002


_depth = 0
name = ""


def enter_worker() -> None:
    """Note that this process is a worker: what its tasks map runs inside them."""
    global _depth
    _depth = 1


def take_name(called: str) -> None:
    """Note what this worker is called in messages: process-2."""
    global name
    name = called


def depth() -> int:
    """Return 1 in a worker process, 0 elsewhere."""
    return _depth


def invoke(task: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> Any:
    """Call a function that travels with its arguments: how an executor's tasks are run."""
    fn, args, kwargs = task
    return fn(*args, **kwargs)


def run_one(
    call: Call,
    given: Any,
    load: Callable[[Any], Any] | None = None,
    dump: Callable[[Any], Any] | None = None,
    catch: tuple[type[BaseException], ...] = CATCH_ALL,
) -> tuple[Any, BaseException | None, Times]:
    """Run a task: its value (None if it failed), its error, and its times.

    ``load`` makes the item from its travelling form, ``dump`` that of the value; if one of
    them raises, the task has failed.
    """
    started = monotonic()
    try:
        item = given if load is None else load(given)
        value = call.fn(*item) if call.style == "star" else call.fn(item)
        if dump is not None:
            value = dump(value)
    except catch as error:  # returned from here: kept in a variable it would be part of a cycle
        return None, error, (started, monotonic() - started)
    return value, None, (started, monotonic() - started)


def run_apart(
    call: Call,
    items: Sequence[Any],
    *,
    load: Callable[[Any], Any] | None = None,
    dump: Callable[[Any], Any] | None = None,
    begin: Callable[[int], bool] = lambda _: True,
    catch: tuple[type[BaseException], ...] = CATCH_ALL,
    flush_s: float = FLUSH_S,
    stops: bool = False,
) -> Iterator[Stretch]:
    """Run tasks one by one, each timed, and yield what is done so far now and then.

    ``begin`` hears the place of each task before it starts; False stops. With ``stops`` an error
    is the last that it does.
    """
    values: list[Any] = []
    errors: dict[int, BaseException] = {}
    times: list[Times] = []
    unsent_since = monotonic()
    last = len(items) - 1  # the user may make a list shorter meanwhile
    for place, given in enumerate(items):
        if not begin(place) or (stops and errors):
            yield Stretch(values, errors, times)
            return
        value, error, (started, seconds) = run_one(call, given, load, dump, catch)
        if error is not None:
            errors[len(values)] = error
            error = None  # who takes the errors may free them
        values.append(value)
        times.append((started, seconds))
        is_last = place == last
        if is_last or started + seconds - unsent_since >= flush_s:
            yield Stretch(values, errors, times, is_last)
            values, errors, times = [], {}, []
            unsent_since = monotonic()


def run_together(
    call: Call,
    items: Sequence[Any],
    *,
    catch: tuple[type[BaseException], ...] = CATCH_ALL,
    start: int = 0,
    until: float | None = None,
    after: Stretch | None = None,
    stops: bool = False,
) -> Stretch:
    """Run tiny tasks, from a place on, at the speed of a loop that does nothing else, timed as one.

    With ``until`` it looks at the clock now and then, and stops when it is as late as that:
    tasks may turn out to be not so tiny. They can go on where those of ``after`` have stopped:
    then that grows. With ``stops`` an error is the last that it does.
    """
    values: list[Any] = []
    errors: dict[int, BaseException] = {}
    before_s = 0.0
    started = now = monotonic()
    first = started
    if after is not None:
        values, errors, ((first, before_s),), *_ = after
    extend = _extender(call)
    offset = start - len(values)  # of an item from its value
    total = len(items) - offset
    size = total if until is None else FIRST_PART
    while len(values) < total and (until is None or now < until):
        done = len(values)
        part = items[done + offset : min(done + size, total) + offset]
        if not len(part):  # somebody has made the list shorter
            break
        try:
            extend(values, call.fn, part)
            if len(values) < done + len(part):  # to list.extend(), a StopIteration is the end
                raise StopIteration
        except catch as error:
            errors[len(values)] = error
            values.append(None)
            if stops:
                break
        if until is not None:
            before, now = now, monotonic()
            size = min(2 * size, MOST_PART) if now - before < PART_S else max(1, size // 4)
    times = [(first, before_s + monotonic() - started)]
    return Stretch(values, errors, times, len(values) >= total)


def _extender(call: Call) -> Callable[[list[Any], Callable[..., Any], Iterable[Any]], None]:
    """Return the fastest way to extend values by those of some items.

    What came before an error is kept by all of them, so the length tells whose it is. A function
    in Python is called faster by a loop in Python, which the interpreter goes on with inside it:
    map() takes 1.1 to 1.4 times as long, and with a function in C the same or less.
    """
    if call.style == "star":
        return _extend_by_starmap
    is_python = type(call.fn) in (FunctionType, MethodType)
    return _extend_by_loop if is_python else _extend_by_map


def _extend_by_loop(values: list[Any], fn: Callable[..., Any], items: Iterable[Any]) -> None:
    for item in items:
        values.append(fn(item))  # noqa: PERF401  a comprehension loses all of them to an error


def _extend_by_map(values: list[Any], fn: Callable[..., Any], items: Iterable[Any]) -> None:
    values.extend(map(fn, items))


def _extend_by_starmap(values: list[Any], fn: Callable[..., Any], items: Iterable[Any]) -> None:
    values.extend(starmap(fn, items))
