"""A list that threads and processes have in common: ``List``. How it is done: replica.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableSequence
from operator import index as as_int
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, overload

from plait.shared.cells import label_of, only_one
from plait.shared.replica import ATOMS, MANY, Change, Replica, copy_of

if TYPE_CHECKING:
    from plait.shared.data_lock import DataLock
    from plait.shared.locks import RLock
    from plait.shared.memory import Place

__all__ = ["List"]

T = TypeVar("T")
EXTEND, APPEND, INSERT, SET, DELETE, ORDER, REVERSE, REPEAT, CLEAR = range(MANY, MANY + 9)


class List(MutableSequence[T]):
    """A list for threads and processes, that can be sent to any of them at any time.

    It has the methods of ``list``. Each of them is atomic, and sees all that was done before it, by
    any thread of any process. Several that belong together: ``with data.lock:``, an ``RLock``.

    Each process has a copy of the list in its memory, and a log, shared by all, tells what the
    others do. So an operation costs some microseconds, however long the list is; and each process
    pays once for what others did since its last one: about as long as they took. Iteration,
    ``copy`` and comparison copy the list first.

    What comes out is a copy, made by pickle, for everybody: also in the process that has put it in.
    ``data[0].append(1)`` changes that copy alone: assign it again, ``data[0] = [*data[0], 1]``.
    What is shared itself is not copied: ``List([List()])`` and ``Dict({"a": List()})`` are live at
    every level. Where a value cannot be unpickled, say for want of its module, each operation there
    raises that error.

    Args:
        items: what is in it at first.
        name: what it is called in messages.

    Attributes:
        lock: to be held for several operations in one. If its holder dies, the next one who takes
            it gets ``OwnerDied``; single operations are whole or did not happen, and go on.

    Raises:
        NotPicklable: for a value that cannot be sent; nothing is changed then.
        SharedDataGone: when it arrives after all who had it have ended.

    >>> data = List([3, 1])
    >>> data.append(2)
    >>> data.sort()
    >>> data
    List([1, 2, 3])
    >>> with data.lock:
    ...     data[0] += 10
    >>> data[:2], len(data)
    ([11, 2], 3)
    """

    def __init__(self, items: Iterable[T] = (), name: str = "") -> None:
        label = label_of(List, name)
        self._set_up(Replica.create(label, list, _apply, list(items)))

    def _set_up(self, replica: Replica[list[T]]) -> None:
        self._replica = replica
        only_one(replica.key, lambda: self)

    @property
    def lock(self) -> RLock:
        """The lock to hold for several operations in one.

        >>> data = List([1, 2])
        >>> with data.lock:
        ...     if 2 in data:
        ...         data.remove(2)
        """
        return self._replica.lock

    # --- To read -------------------------------------------------------------------------

    @overload
    def __getitem__(self, index: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> T | list[T]:
        return self._replica.get(index)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return self._replica.look(len)

    def __iter__(self) -> Iterator[T]:
        return iter(self.copy())

    def __reversed__(self) -> Iterator[T]:
        return reversed(self.copy())

    def __contains__(self, value: object) -> bool:
        return self._replica.look(lambda items: value in items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, List):
            return self is other or self._items() == other._items()
        return self._items() == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as that of list

    def __add__(self, other: Iterable[T]) -> list[T]:
        return self.copy() + list(other)

    def __mul__(self, count: SupportsIndex) -> list[T]:
        return self.copy() * count

    __rmul__ = __mul__

    @recursive_repr("List([...])")
    def __repr__(self) -> str:
        return f"List({self._items()!r})"

    def copy(self) -> list[T]:
        """Return what is in it now, as a plain list.

        >>> List([1, 2]).copy()
        [1, 2]
        """
        return self._replica.items(list.copy)  # type: ignore[no-any-return]

    def _items(self) -> list[T]:
        """Return what is in it now, not as copies: to be looked at only."""
        return self._replica.look(list.copy)

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return where a value is first. Raises ValueError if it is not there.

        >>> List("abc").index("b")
        1
        """
        return self._replica.look(
            lambda items: items.index(value, start, len(items) if stop is None else stop)
        )

    def count(self, value: Any) -> int:
        """Return how often a value is there.

        >>> List("abba").count("a")
        2
        """
        return self._replica.look(lambda items: items.count(value))

    # --- To change -----------------------------------------------------------------------

    def append(self, value: T) -> None:
        """Add a value at the end. Raises NotPicklable.

        >>> data = List()
        >>> data.append(1)
        """
        self._replica.change((APPEND, value))

    def extend(self, values: Iterable[T]) -> None:
        """Add all values at the end, all at once. Raises NotPicklable.

        >>> data = List([1])
        >>> data.extend(range(2, 4))
        >>> data
        List([1, 2, 3])
        """
        if values is self:
            self *= 2
        else:
            self._replica.change((EXTEND, list(values)))

    def __iadd__(self, values: Iterable[T]) -> List[T]:
        self.extend(values)
        return self

    def __imul__(self, count: SupportsIndex) -> List[T]:
        self._replica.change((REPEAT, as_int(count)))
        return self

    def insert(self, index: SupportsIndex, value: T) -> None:
        """Put a value in front of the one at an index. Raises NotPicklable.

        >>> data = List([1, 3])
        >>> data.insert(1, 2)
        >>> data
        List([1, 2, 3])
        """
        self._replica.change((INSERT, as_int(index), value))

    @overload
    def __setitem__(self, index: SupportsIndex, value: T) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[T]) -> None: ...
    def __setitem__(self, index: SupportsIndex | slice, value: Any) -> None:
        if isinstance(index, slice):
            where, values = _plain(index), list(value)
            self._replica.change(
                (SET, where, values), lambda items: _check_sizes(items, where, values)
            )
        else:
            at = as_int(index)
            self._replica.change((SET, at, value), lambda items: _check_index(items, at))

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        if isinstance(index, slice):
            where = _plain(index)
            self._replica.change((DELETE, where), lambda items: where.indices(len(items)))
        else:
            at = as_int(index)
            self._replica.change((DELETE, at), lambda items: _check_index(items, at))

    def pop(self, index: SupportsIndex = -1) -> T:
        """Remove the value at an index, and return it. Raises IndexError.

        >>> data = List([1, 2, 3])
        >>> data.pop(), data.pop(0)
        (3, 1)
        """
        at = as_int(index)

        def decide(items: list[T]) -> tuple[Change, T]:
            if not items:
                raise IndexError("pop from empty list")
            return (DELETE, at), items[at]

        popped = self._replica.decide(decide)
        return popped if type(popped) in ATOMS else copy_of(popped)

    def remove(self, value: T) -> None:
        """Remove a value where it is first. Raises ValueError if it is not there.

        >>> data = List("abba")
        >>> data.remove("b")
        >>> "".join(data)
        'aba'
        """
        self._replica.decide(lambda items: ((DELETE, items.index(value)), None))

    def reverse(self) -> None:
        """Turn it round.

        >>> data = List([1, 2])
        >>> data.reverse()
        >>> data
        List([2, 1])
        """
        self._replica.change((REVERSE,))

    def sort(self, *, key: Callable[[T], Any] | None = None, reverse: bool = False) -> None:
        """Sort it, as ``list.sort`` does. The key function is called in this process only.

        Others wait for it, and so they do if it takes long.

        >>> data = List(["b", "A", "c"])
        >>> data.sort(key=str.lower, reverse=True)
        >>> data
        List(['c', 'b', 'A'])
        """

        def decide(items: list[T]) -> tuple[Change | None, None]:
            keys: list[Any] = items if key is None else [key(item) for item in copy_of(items)]
            order = sorted(range(len(keys)), key=keys.__getitem__, reverse=reverse)
            return (ORDER, order), None

        self._replica.decide(decide)

    def clear(self) -> None:
        """Remove all.

        >>> data = List([1, 2])
        >>> data.clear()
        >>> data
        List([])
        """
        self._replica.change((CLEAR,))

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self._replica.place, self._replica.lock)


def _arrive(place: Place, lock: DataLock) -> List[Any]:
    def made() -> List[Any]:
        data: List[Any] = List.__new__(List)
        data._replica = Replica.at(place, lock, list, _apply)  # noqa: SLF001
        return data

    return only_one((place.ident, 0), made)


def _plain(where: slice) -> slice:
    """Return a slice of nothing but numbers of Python's own."""
    parts = (where.start, where.stop, where.step)
    return slice(*(None if part is None else as_int(part) for part in parts))


def _check_index(items: list[Any], index: int) -> None:
    if not -len(items) <= index < len(items):
        raise IndexError("list assignment index out of range")


def _check_sizes(items: list[Any], where: slice, values: list[Any]) -> None:
    if where.step not in (None, 1):
        list(items)[where] = values  # raises what a list does


def _put_whole(items: list[Any], values: list[Any]) -> None:
    items[:] = values


def _put_in_order(items: list[Any], order: list[int]) -> None:
    items[:] = [items[place] for place in order]


_HOW: tuple[Callable[..., object], ...] = (
    _put_whole,
    list.extend,
    list.append,
    list.insert,
    list.__setitem__,
    list.__delitem__,
    _put_in_order,
    list.reverse,
    list.__imul__,
    list.clear,
)  # by the numbers above


def _apply(items: list[Any], change: Change) -> None:
    _HOW[change[0]](items, *change[1:])
