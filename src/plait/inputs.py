"""Where the items come from: read by whoever iterates, or by a thread of their own.

A generator may wait for its next item as long as it likes: a line of standard input, a
message, a result of an earlier task. Meanwhile results that are there must be handed
out, and items that were read must be run. So where results are handed out one by one and
the input could wait (it has no length), a thread reads it, and nobody else waits for it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Protocol, cast

from plait.host import monotonic

__all__ = [
    "DirectInput",
    "Input",
    "SlicedInput",
    "Span",
    "ThreadedInput",
    "can_slice",
    "is_iterable",
    "rest_of",
]

READ_S = 0.005
"""Reading this long at a time; then it is looked whether something finished."""
CLOSE_S = 1.0
"""How long the end of a reading thread is waited for; the user's generator may be stuck."""
GROWTH = 4
MOST_COPIED = 65_536


class Input(Protocol):
    """The items of a run, on their way in."""

    error: BaseException | None  # what the user's iterator raised

    @property
    def has_grown(self) -> bool:
        """Whether a list was made longer since it was looked at."""
        ...

    @property
    def has_shrunk(self) -> bool:
        """Whether items that were taken are not there any more: a list was made shorter."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing more to take."""
        ...

    def allow(self, count: int) -> None:
        """Let so many items be read, counted from the first."""
        ...

    def take(self, count: int) -> Sequence[Any]:
        """Return up to ``count`` of the next items: those that can be had without waiting."""
        ...

    def wait(self, timeout: float | None = None) -> None:
        """Block until there is something to take, the end, a ``wake``, or time is up."""
        ...

    def wake(self) -> None:
        """End a ``wait``; may be called from a signal handler."""
        ...

    def close(self) -> None:
        """Read no more."""
        ...


class _StopReading(KeyboardInterrupt):
    """Raised by a signal handler in the thread that waits for an item, to end the waiting."""


class DirectInput:
    """Items that are read by whoever takes them: as with the plain loop, in its thread."""

    has_grown = has_shrunk = False

    def __init__(self, items: Iterator[Any], *, one_by_one: bool = False) -> None:
        self._items = items
        self._one_by_one = one_by_one  # another item might have to be waited for
        self._reading: int | None = None  # the thread that is in the user's iterator
        self.error: BaseException | None = None
        self.has_ended = False

    def allow(self, count: int) -> None:
        """Do nothing: nothing is read before it is taken."""

    def take(self, count: int) -> list[Any]:
        """Read up to ``count`` items, fewer if the input is slow."""
        items: list[Any] = []
        step = 1
        until = monotonic() + READ_S
        try:
            self._reading = threading.get_ident()
            while len(items) < count and not self.has_ended:
                before = len(items)
                items.extend(islice(self._items, min(step, count - before)))
                self.has_ended = len(items) == before
                if self._one_by_one or monotonic() > until:
                    break
                step *= GROWTH
        except Exception as error:  # noqa: BLE001  raised once what was read is finished
            self.error = error
            self.has_ended = True
        except _StopReading:
            self.has_ended = True
        finally:
            self._reading = None
        return items

    def wait(self, timeout: float | None = None) -> None:
        """Return at once: taking is waiting."""

    def wake(self) -> None:
        """Leave the user's iterator, if this is a signal handler that came amid it."""
        if self._reading == threading.get_ident():
            raise _StopReading

    def close(self) -> None:
        """Read no more."""
        self.has_ended = True


def is_iterable(items: object) -> bool:
    """Whether Python's ``iter`` takes it: also what has ``__getitem__`` alone.

    It is not tried: what an ``__iter__`` does, it is to do once.
    """
    return isinstance(items, Iterable) or hasattr(type(items), "__getitem__")


def can_slice(items: object) -> bool:
    """Whether a slice of these items is the same as what an iterator gives, and cheaper.

    The slice of a range is two numbers, and that of an array one stretch of memory, where a
    list would have an object for each item; that of a list is a copy, made at once.
    """
    kind = type(items)
    if kind in (list, tuple, Span):
        return True
    if kind is range:
        return _has_length(cast("range", items))
    is_array = kind.__name__ == "ndarray" and kind.__module__ == "numpy"
    return is_array and bool(getattr(items, "ndim", 0))


def _has_length(items: range) -> bool:
    try:
        return len(items) >= 0
    except OverflowError:  # it has more items than fit into a number of the machine's
        return False


class Span(Sequence[Any]):
    """A part of a list or tuple, from a place on, without a copy; its slices are lists.

    It ends where the list does, should that get shorter. It is pickled as what is in it.

    >>> span = Span(["a", "b", "c", "d"], 1)
    >>> span[:2], len(span), span[-1]
    (['b', 'c'], 3, 'd')
    """

    __slots__ = ("_items", "_start", "_stop")

    def __init__(self, items: Sequence[Any], start: int = 0, stop: int | None = None) -> None:
        self._items = items
        self._start = start
        self._stop = len(items) if stop is None else stop

    def __len__(self) -> int:
        return max(0, min(self._stop, len(self._items)) - self._start)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            part = self._items[self._start + start : self._start + stop : step]
            return part if type(part) is list else list(part)
        return self._items[self._start + range(len(self))[place]]

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self[:],)

    @property
    def has_grown(self) -> bool:
        """Whether there is more behind it: all of it reached to the end at first."""
        return self._stop < len(self._items)

    def part(self, start: int, stop: int) -> Span:
        """Return a part of it, without a copy."""
        return Span(self._items, self._start + start, self._start + stop)


def rest_of(items: Any, start: int) -> Sequence[Any]:
    """Return what can be sliced, from a place on, without a copy of its items."""
    kind = type(items)
    if kind is Span:
        return cast("Span", items).part(start, len(items))
    return Span(items, start) if kind in (list, tuple) else cast("Sequence[Any]", items[start:])


class SlicedInput:
    """Items that are there already, taken as slices."""

    error: BaseException | None = None

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = Span(items) if type(items) in (list, tuple) else items
        self._taken = 0

    @property
    def has_shrunk(self) -> bool:
        """Whether the list was made shorter than what was taken of it."""
        return self._taken > len(self._items)

    @property
    def has_grown(self) -> bool:
        """Whether the list was made longer."""
        return isinstance(self._items, Span) and self._items.has_grown

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing more to take."""
        return self._taken >= len(self._items)

    def allow(self, count: int) -> None:
        """Do nothing: nothing is read."""

    def take(self, count: int) -> Sequence[Any]:
        """Return the next ``count`` items; none for a count below 0."""
        start = self._taken
        self._taken = stop = min(start + max(count, 0), len(self._items))
        items = self._items
        if isinstance(items, Span) and stop - start > MOST_COPIED:
            return items.part(start, stop)  # to copy it takes as long as the tiniest of tasks
        return items[start:stop]

    def wait(self, timeout: float | None = None) -> None:
        """Return at once: nothing has to be waited for."""

    def wake(self) -> None:
        """Do nothing: nobody waits."""

    def close(self) -> None:
        """Take no more."""
        self._taken = len(self._items)


def _ignore() -> None:
    """Nobody waits any more."""


class ThreadedInput:
    """Items that a thread reads ahead, as far as it is allowed to."""

    has_grown = has_shrunk = False

    def __init__(self, items: Iterator[Any], on_arrival: Callable[[], None]) -> None:
        """``on_arrival`` is called when something can be taken after nothing could."""
        self._items = items
        self._on_arrival = on_arrival
        self._buffer: deque[Any] = deque()
        self._tokens: SimpleQueue[None] = SimpleQueue()  # a reentrant one, for signal handlers
        self._has_room = threading.Condition()  # guards the next two
        self._allowed = 0
        self._is_closed = False
        self._is_starving = False  # somebody wants to be told when an item arrives
        self._is_read = False  # to the end
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="plait-reader", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether all items were taken."""
        return self._is_read and not self._buffer

    def _read(self) -> None:
        count = 0
        try:
            while count < self._allowed or self._wait_for_room(count):
                self._buffer.append(next(self._items))
                count += 1
                if self._is_starving:
                    self._tell()
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001  raised where the results are read
            self.error = error
        self._is_read = True
        self._tell()

    def _wait_for_room(self, count: int) -> bool:
        with self._has_room:
            self._has_room.wait_for(lambda: count < self._allowed or self._is_closed)
            return not self._is_closed

    def _tell(self) -> None:
        self._is_starving = False
        self._tokens.put(None)
        self._on_arrival()

    def allow(self, count: int) -> None:
        """Let the thread read up to ``count`` items in all."""
        if count > self._allowed and not self._is_closed:
            with self._has_room:
                self._allowed = count
                self._has_room.notify()

    def take(self, count: int) -> list[Any]:
        """Return up to ``count`` items that were read."""
        items: list[Any] = []
        if not self._buffer:
            # Say so before looking again. The other order loses an item: 1. nothing is there;
            # 2. the thread reads one and sees that nobody is starving; 3. we wait for ever.
            self._is_starving = True
        while self._buffer and len(items) < count:
            items.append(self._buffer.popleft())
        return items

    def wait(self, timeout: float | None = None) -> None:
        """Block until there is something to take, the end, a ``wake``, or time is up."""
        self._is_starving = True
        if not self._buffer and not self._is_read:
            with suppress(Empty):
                self._tokens.get(timeout=timeout)

    def wake(self) -> None:
        """End a ``wait``."""
        self._tokens.put(None)

    def close(self) -> None:
        """Read no more; the thread ends once the user's iterator has returned."""
        with self._has_room:
            self._is_closed = True
            self._allowed = 0
            self._has_room.notify()
        self._is_read = True
        self._buffer.clear()
        self._on_arrival = _ignore  # what it refers to is not to wait for the garbage collector
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)
