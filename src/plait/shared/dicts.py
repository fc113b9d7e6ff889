"""A dict that threads and processes have in common: ``Dict``. How it is done: replica.py."""

from __future__ import annotations

import pickle
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, TypeVar, overload

from plait import wire
from plait.shared.cells import label_of, only_one
from plait.shared.replica import ATOMS, MANY, Change, Replica, copy_of

if TYPE_CHECKING:
    from plait.shared.data_lock import DataLock
    from plait.shared.locks import RLock
    from plait.shared.memory import Place

__all__ = ["Dict"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")
UPDATE, SET, DELETE, CLEAR = range(MANY, MANY + 4)
NOTHING: Any = object()
SAFE_KEYS = frozenset({int, str, bytes, bool, type(None)})


class Dict(MutableMapping[K, V]):
    """A dict for threads and processes, that can be sent to any of them at any time.

    It has the methods of ``dict``, keeps the order in which keys came, and is in all else like
    ``List``: each method is atomic; ``with data.lock:`` makes one of several; each process has a
    copy; ``keys()``, ``values()``, ``items()`` and iteration are of what was there at that moment;
    values come out as copies, for everybody, and are assigned again to change them, but for those
    that are shared themselves: ``Dict({"a": List()})["a"].append(1)``.

    A key has to equal its copy, as numbers, texts and tuples of them do, or no other process would
    find it: ``object()`` and NaN do not.

    Args:
        items: what is in it at first: a mapping, or pairs.
        name: what it is called in messages. (For a key of that name give a mapping.)
        more: keys, as texts, and their values.

    Attributes:
        lock: to be held for several operations in one. If its holder dies, the next one who takes
            it gets ``OwnerDied``; single operations are whole or did not happen, and go on.

    Raises:
        NotPicklable: for a key or value that cannot be sent; nothing is changed then.
        TypeError: for a key that cannot be one.
        SharedDataGone: when it arrives after all who had it have ended.

    >>> data = Dict({"a": 1})
    >>> data["b"] = 2
    >>> with data.lock:
    ...     data["a"] += 10
    >>> data
    Dict({'a': 11, 'b': 2})
    >>> data.get("c", 0), list(data)
    (0, ['a', 'b'])
    """

    def __init__(
        self,
        items: Mapping[K, V] | Iterable[tuple[K, V]] = (),
        name: str = "",
        **more: Any,
    ) -> None:
        if more and name:
            raise TypeError(
                f"is name={name!r} a key, or what messages call this Dict? Give the keys as a "
                f"mapping: Dict({{'name': {name!r}, ...}}), or Dict({{...}}, {name!r})"
            )
        label = label_of(Dict, name)
        whole = _plain(items) | more
        _check_keys(whole)
        self._replica: Replica[dict[K, V]] = Replica.create(label, dict, _apply, whole)
        only_one(self._replica.key, lambda: self)

    @classmethod
    def fromkeys(cls, keys: Iterable[K], value: Any = None, /) -> Dict[K, Any]:
        """Return a new Dict with these keys, all of the same value. Raises NotPicklable.

        >>> Dict.fromkeys("ab", 0)
        Dict({'a': 0, 'b': 0})
        """
        return cls(dict.fromkeys(keys, value))

    @property
    def lock(self) -> RLock:
        """The lock to hold for several operations in one.

        >>> data = Dict({"a": 1})
        >>> with data.lock:
        ...     if "a" in data:
        ...         del data["a"]
        """
        return self._replica.lock

    # --- To read -------------------------------------------------------------------------

    def __getitem__(self, key: K) -> V:
        return self._replica.get(key)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return self._replica.look(len)

    def __iter__(self) -> Iterator[K]:
        return iter(self.keys())

    def __reversed__(self) -> Iterator[K]:
        return reversed([*self.keys()])

    def __contains__(self, key: object) -> bool:
        return self._replica.look(lambda items: key in items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Dict):
            return self is other or self._items() == other._items()
        return self._items() == other if isinstance(other, dict) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as that of dict

    def __or__(self, other: Mapping[K, V]) -> dict[K, V]:
        return self.copy() | _plain(other)

    def __ror__(self, other: Mapping[K, V]) -> dict[K, V]:
        return _plain(other) | self.copy()

    @recursive_repr("Dict({...})")
    def __repr__(self) -> str:
        return f"Dict({self._items()!r})"

    def copy(self) -> dict[K, V]:
        """Return what is in it now, as a plain dict.

        In one piece: ``dict(data)`` would ask for one key after the other.

        >>> Dict({"a": 1}).copy()
        {'a': 1}
        """
        return self._replica.items(dict.copy)  # type: ignore[no-any-return]

    def _items(self) -> dict[K, V]:
        """Return what is in it now, not as copies: to be looked at only."""
        return self._replica.look(dict.copy)

    @overload
    def get(self, key: K, default: None = None, /) -> V | None: ...
    @overload
    def get(self, key: K, default: V | D, /) -> V | D: ...
    def get(self, key: K, default: Any = None, /) -> Any:
        """Return the value of a key, or something else.

        >>> Dict({"a": 1}).get("b", 0)
        0
        """
        return self._replica.pick(dict.get, key, default)

    def keys(self) -> KeysView[K]:
        """Return the keys that are there now.

        >>> Dict({"a": 1}).keys()
        dict_keys(['a'])
        """
        return dict.fromkeys(self._replica.items(list)).keys()

    def values(self) -> ValuesView[V]:
        """Return the values that are there now.

        >>> Dict({"a": 1}).values()
        dict_values([1])
        """
        return self.copy().values()

    def items(self) -> ItemsView[K, V]:
        """Return the pairs that are there now.

        >>> Dict({"a": 1}).items()
        dict_items([('a', 1)])
        """
        return self.copy().items()

    # --- To change -----------------------------------------------------------------------

    def __setitem__(self, key: K, value: V) -> None:
        if type(key) not in SAFE_KEYS:
            _check_key(key)
        self._replica.change((SET, key, value))

    def __delitem__(self, key: K) -> None:
        self.pop(key)

    @overload
    def setdefault(self: Dict[K, D | None], key: K, default: None = None, /) -> D | None: ...
    @overload
    def setdefault(self, key: K, default: V, /) -> V: ...
    def setdefault(self, key: K, default: Any = None, /) -> Any:
        """Return the value of a key; let it have this one if it has none yet. Raises NotPicklable.

        >>> data = Dict()
        >>> data.setdefault("a", 1), data.setdefault("a", 2)
        (1, 1)
        """
        _check_key(key)

        def decide(items: dict[K, V]) -> tuple[Change | None, Any]:
            if key in items:
                return None, items[key]
            return (SET, key, default), default

        found = self._replica.decide(decide)
        return found if found is default else copy_of(found)

    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, default: V | D, /) -> V | D: ...
    def pop(self, key: K, default: Any = NOTHING, /) -> Any:
        """Remove a key, and return its value; or the default, if the key is not there.

        Raises KeyError where there is no default either.

        >>> data = Dict({"a": 1})
        >>> data.pop("a"), data.pop("a", None)
        (1, None)
        """

        def decide(items: dict[K, V]) -> tuple[Change | None, Any]:
            if key in items:
                _check_key(key)
                return (DELETE, key), items[key]
            if default is NOTHING:
                raise KeyError(key)
            return None, default

        popped = self._replica.decide(decide)
        return popped if type(popped) in ATOMS or popped is default else copy_of(popped)

    def popitem(self) -> tuple[K, V]:
        """Remove the key that came last, and return it with its value. Raises KeyError.

        >>> Dict({"a": 1, "b": 2}).popitem()
        ('b', 2)
        """

        def decide(items: dict[K, V]) -> tuple[Change, tuple[K, V]]:
            if not items:
                raise KeyError("popitem(): dictionary is empty")
            key, value = next(reversed(items.items()))
            return (DELETE, key), (key, value)

        popped: tuple[K, V] = copy_of(self._replica.decide(decide))
        return popped

    def update(self, items: Any = (), /, **more: Any) -> None:
        """Set the values of many keys, all at once. Raises NotPicklable.

        >>> data = Dict({"a": 1})
        >>> data.update({"b": 2}, c=3)
        >>> data
        Dict({'a': 1, 'b': 2, 'c': 3})
        """
        new = _plain(items) | more
        _check_keys(new)
        self._replica.change((UPDATE, new))

    def __ior__(self, other: Mapping[K, V] | Iterable[tuple[K, V]]) -> Dict[K, V]:
        self.update(other)
        return self

    def clear(self) -> None:
        """Remove all.

        >>> data = Dict({"a": 1})
        >>> data.clear()
        >>> data
        Dict({})
        """
        self._replica.change((CLEAR,))

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self._replica.place, self._replica.lock)


def _arrive(place: Place, lock: DataLock) -> Dict[Any, Any]:
    def made() -> Dict[Any, Any]:
        data: Dict[Any, Any] = Dict.__new__(Dict)
        data._replica = Replica.at(place, lock, dict, _apply)  # noqa: SLF001
        return data

    return only_one((place.ident, 0), made)


def _plain(items: Any) -> dict[Any, Any]:
    return items.copy() if isinstance(items, Dict) else dict(items)


def _check_keys(items: dict[Any, Any]) -> None:
    for key in items:
        _check_key(key)


def _check_key(key: object) -> None:
    """Raise TypeError for a key that another process would not find, NotPicklable, or nothing."""
    hash(key)
    if type(key) in SAFE_KEYS:
        return
    copy = _copy(key)
    if copy != key or hash(copy) != hash(key):
        raise TypeError(
            f"{key!r} cannot be a key of a shared Dict: its copy, which other processes get, does "
            "not equal it. Give its class __eq__ and __hash__, or use a number, a text or a tuple."
        )


def _copy(key: object) -> Any:
    try:
        return pickle.loads(pickle.dumps(key, wire.PROTOCOL))
    except Exception:  # noqa: BLE001  whatever it is, cloudpickle may do better
        return wire.load(wire.pack(key, "key"))


def _put_whole(items: dict[Any, Any], values: dict[Any, Any]) -> None:
    items.clear()
    items.update(values)


_HOW: tuple[Callable[..., object], ...] = (
    _put_whole,
    dict.update,
    dict.__setitem__,
    dict.__delitem__,
    dict.clear,
)  # by the numbers above


def _apply(items: dict[Any, Any], change: Change) -> None:
    _HOW[change[0]](items, *change[1:])
