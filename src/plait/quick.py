"""The first moment of a map: a plain loop, and often all that there is to do.

Used by api.py for a map without options, before anything else of plait is loaded. The tasks
run where they are, one by one and each timed, as the first of the sample would (probe.py). If
the input ends in time, so does the map. If not, or if something is raised, calls.py makes a
Run that begins with what was done here. If one of the tasks takes long, that Run begins beside it
(beside.py). Nothing runs twice, and an item is read when the one before it is done.
"""

from __future__ import annotations

import sys
from _contextvars import copy_context  # as in contextvars
from _thread import allocate_lock, get_ident, get_native_id, start_new_thread  # as in threading
from itertools import chain
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType

from plait.clocks import monotonic, read_thread_clock
from plait.imports import Imports
from plait.sentinel import sentinel

TYPE_CHECKING = False  # as in typing, which takes longer to load than all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, NoReturn

    from plait.heartbeat import Heartbeat
    from plait.outcome import Times
    from plait.sentinel import Watch

__all__ = ["CATCH", "Claim", "Start", "join", "suits", "total_of"]

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
    except Exception:  # noqa: BLE001  no length, one beyond sys.maxsize, or one that is wrong
        return None


def join(iterables: tuple[Iterable[Any], ...]) -> Iterator[Any]:
    """Return the items: of several iterables, tuples with one of each."""
    return iter(iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=False)


class Claim:
    """Decide, once and for all, which of two threads goes on with a run: the first that asks.

    Who asks again gets the same answer, so an interrupt between two steps does no harm.

    >>> claim = Claim()
    >>> claim.is_taken, claim.take(), claim.take(), claim.is_taken
    (False, True, True, True)
    """

    __slots__ = ("_owner",)

    def __init__(self) -> None:
        self._owner: dict[str, int] = {}

    def take(self) -> bool:
        """Take the claim if nobody has it; return whether the calling thread has it."""
        # One step for all threads, also where there is no GIL.
        return self._owner.setdefault("thread", get_ident()) == get_ident()

    @property
    def is_ours(self) -> bool:
        """Whether the calling thread has it."""
        return self._owner.get("thread") == get_ident()

    @property
    def is_taken(self) -> bool:
        """Whether a thread has it."""
        return bool(self._owner)


class Start:
    """The first tasks of a map, run in a plain loop.

    Attributes:
        fn, style, iterables: what is mapped, and how (see ``tasks.Call``).
        total: how many items the whole input has, None if that is not known.
        items, values, errors: of the tasks that are done, as in ``outcome.Finished``.
        begun, seconds: when each of them began, and how long it took. (A tuple for each would be
            something for the garbage collector to look at, which may look at all of a program.)
        rest: the items that come after them.
        until: a task that ends after this time is the last one of the loop.
        fatal: what ended it that is no task's outcome.
        before, after: the clocks of the thread.
        claim: whoever takes it goes on with the rest. This thread does, at the end; if it is in
            a long task, another one may have done so before.
        beside: the other one and what it made of the rest, if it has the claim; see beside.py.
        context: the context variables at the beginning.
        thread: the identifiers of this thread, Python's and the system's.
        imports: tells whether one of them imported something.
        heart: of the last task, if that took a while: who holds the GIL.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        style: str,
        iterables: tuple[Any, ...],
        go_beside: Callable[[Start], None] = lambda _: None,
    ) -> None:
        """``go_beside`` is called in a thread of its own if a task takes long."""
        self._go_beside = go_beside
        self.fn = fn
        self.style = style
        self.iterables = iterables
        self.total = total_of(iterables)
        self.items: list[Any] = []
        self.values: list[Any] = []
        self.errors: dict[int, BaseException] = {}
        self.begun: list[float] = []
        self.seconds: list[float] = []
        self.rest = join(iterables)
        self.until = float("inf")
        self.fatal: BaseException | None = None
        self.claim = Claim()
        self.beside: Any = None
        self.context = copy_context()
        self.thread = (get_ident(), get_native_id())
        self.imports = Imports()
        self.heart: Heartbeat | None = None
        self._starts_heart = allocate_lock()
        self.before = self.after = read_thread_clock()

    def run(self) -> bool:
        """Run tasks until the input ends: True. False if time was up, or something was raised."""
        watch, is_over = None, False
        try:
            if self.total is None or self.total > 1:
                watch = sentinel.arm(self._hear_of_long_task, self._hear_of_slow_task)
            is_over = self._run()
        except BaseException as error:  # noqa: BLE001  it came before or after the tasks
            self.fatal = error
        while not self._is_ended(watch):
            pass
        return is_over and self.claim.is_ours and self.fatal is None

    def _is_ended(self, watch: Watch | None) -> bool:
        """End the watch and settle whose the rest is; False if an interrupt came into it.

        That is kept: to leave before this is settled would leave a helper at work.
        """
        try:
            sentinel.disarm(watch)
            self.imports.settle()
            self.claim.take()
            self._end_heart()
        except BaseException as error:  # noqa: BLE001
            self.fatal = error
            return False
        return True

    def cancel(self) -> None:
        """End what a helper has begun, where the caller's thread did not come to take it over."""
        if self.beside is not None and not self.claim.is_ours:
            self.beside.run.cancel()

    def _hear_of_slow_task(self) -> None:
        modules = len(sys.modules)
        from plait.heartbeat import Heartbeat

        self.imports.leave_out(len(sys.modules) - modules)
        with self._starts_heart:
            if not self.claim.is_taken:
                self.heart = Heartbeat()
                self.heart.start()
                self.heart.resume(self.thread[1])

    def _end_heart(self) -> None:
        with self._starts_heart:  # it is started by now, or will not be
            heart = self.heart
        if heart is not None:
            heart.pause()
            heart.stop()

    def _hear_of_long_task(self) -> None:
        self.imports.settle()
        start_new_thread(self.context.run, (self._go_beside, self))

    def _run(self) -> bool:
        fn, items, values = self.fn, self.items, self.values
        begun, seconds = self.begun, self.seconds
        is_star = self.style == "star"
        started = monotonic()
        until = self.until = started + BUDGET_S
        try:
            for item in self.rest:
                started = monotonic()
                if started >= until:
                    self.rest = chain((item,), self.rest)
                    break
                items.append(item)
                value = fn(*item) if is_star else fn(item)
                ended = monotonic()
                begun.append(started)
                seconds.append(ended - started)
                values.append(value)
                # Before the next item is read: after a long task that may be another thread's.
                if ended >= until and len(values) != self.total:
                    break
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
            self.begun.append(started)
            self.seconds.append(monotonic() - started)
            self.values.append(None)
        else:
            self.fatal = error
        done = len(self.values)  # Ctrl-C may have come between two steps
        del self.items[done:], self.begun[done:], self.seconds[done:]

    @property
    def times(self) -> list[Times]:
        """The times of the tasks that are done, as in ``outcome.Finished``."""
        return list(zip(self.begun, self.seconds, strict=True))

    def raising_rest(self) -> Iterator[Any]:
        """Return the items that come after those that are done; what ended it comes out there."""
        return self.rest if self.fatal is None else map(_raise, [self.fatal])


def _raise(error: BaseException) -> NoReturn:
    raise error
