"""The first moment of a map: a plain loop, and often all that there is to do.

Used by api.py for a map without options, before anything else of plait is loaded. The tasks
run where they are, one by one and each timed, as the first of the sample would (probe.py). If
the input ends in time, so does the map. If not, or if something is raised, calls.py makes a
Run that begins with what was done here. Nothing runs twice, and an item is read when the one
before it is done.
"""

from __future__ import annotations

from itertools import chain
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType

from plait.clocks import monotonic, read_thread_clock

TYPE_CHECKING = False  # as in typing, which takes longer to load than all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, NoReturn

    from plait.outcome import Times

__all__ = ["CATCH", "Start", "join", "suits", "total_of"]

BUDGET_S = 0.001
"""A map that is over sooner needs nothing else. No longer, for a loop with clocks is slower."""

# What a task raises in the caller's thread is its outcome, as in a worker, but for one thing:
# a KeyboardInterrupt here is the user's Ctrl-C at the running program.
CATCH = (Exception, SystemExit, GeneratorExit)

CO_COROUTINE = 0x80  # as in inspect
NO_COROUTINES = (type, BuiltinFunctionType, MethodDescriptorType)


def suits(fn: object, iterables: tuple[object, ...]) -> bool:
    """Whether this is without doubt a function that is no coroutine function, and items.

    What is unusual, and what is wrong, has more time: choice.py and calls.py look closer.
    """
    are_items = [getattr(type(iterable), "__iter__", None) for iterable in iterables]
    return bool(are_items) and all(are_items) and _is_plain(fn)


def _is_plain(fn: object) -> bool:
    if type(fn) is MethodType:
        fn = fn.__func__
    if type(fn) is FunctionType:
        # The mark is that of inspect.markcoroutinefunction().
        return not (fn.__code__.co_flags & CO_COROUTINE or hasattr(fn, "_is_coroutine_marker"))
    return type(fn) in NO_COROUTINES


def total_of(iterables: tuple[Any, ...]) -> int | None:
    """Return how many items there will be, if all of the iterables know."""
    try:
        return min(len(iterable) for iterable in iterables)
    except (TypeError, OverflowError):  # it has no length, or one beyond sys.maxsize
        return None


def join(iterables: tuple[Iterable[Any], ...]) -> Iterator[Any]:
    """Return the items: of several iterables, tuples with one of each."""
    return iter(iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=False)


class Start:
    """The first tasks of a map, run in a plain loop.

    Attributes:
        total: how many items the whole input has, None if that is not known.
        items, values, errors, times: of the tasks that are done, as in ``outcome.Finished``.
        rest: the items that come after them.
        is_cut: whether that is just what is left of the input, as time was up.
        before, after: the clocks of the thread.
    """

    def __init__(self, iterables: tuple[Iterable[Any], ...]) -> None:
        self.total = total_of(iterables)
        self.items: list[Any] = []
        self.values: list[Any] = []
        self.errors: dict[int, BaseException] = {}
        self.times: list[Times] = []
        self.rest = join(iterables)
        self.is_cut = False
        self.before = self.after = read_thread_clock()

    def run(self, fn: Callable[..., Any], style: str) -> bool:
        """Run tasks until the input ends: True. False if time was up, or something was raised."""
        items, values, times, is_star = self.items, self.values, self.times, style == "star"
        started = monotonic()
        until = started + BUDGET_S
        try:
            for item in self.rest:
                started = monotonic()
                if started >= until:
                    self.rest = chain((item,), self.rest)
                    self.is_cut = True
                    break
                items.append(item)
                value = fn(*item) if is_star else fn(item)
                times.append((started, monotonic() - started))
                values.append(value)
            else:
                return True
        except BaseException as error:  # noqa: BLE001  what was done is not lost by it
            self._note(error, started)
        self.after = read_thread_clock()
        return False

    def _note(self, error: BaseException, started: float) -> None:
        """Keep what a task raised as its outcome; anything else will come out of ``rest``."""
        place = len(self.values)
        if len(self.items) > place and isinstance(error, CATCH):
            self.errors[place] = error
            self.times.append((started, monotonic() - started))
            self.values.append(None)
        else:
            self.rest = map(_raise, [error])
        done = len(self.values)  # Ctrl-C may have come between two steps
        del self.items[done:], self.times[done:]


def _raise(error: BaseException) -> NoReturn:
    raise error
