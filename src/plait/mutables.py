"""What changes an object, told from its type alone: none of the object's own code is run.

Used by bytecode.py and effects.py. Pure. An attribute is looked up as
``inspect.getattr_static`` does, and whether something is a list is told from its type's
bases: ``isinstance`` may ask the object.
"""

from __future__ import annotations

from array import array
from collections import Counter, UserDict, UserList, defaultdict, deque
from collections.abc import MutableMapping, MutableSequence, MutableSet
from inspect import getattr_static
from types import FunctionType, MemberDescriptorType, ModuleType
from typing import Any, Final, NamedTuple

__all__ = [
    "NOTHING",
    "UNKNOWN",
    "VERBS",
    "Names",
    "Value",
    "can_store",
    "is_apart",
    "method_of",
    "package_of",
    "verb",
]

NOTHING: Final = object()
"""Stands for an object of which nothing is known."""

VERBS = {
    "append": "appends to",
    "appendleft": "appends to",
    "extend": "extends",
    "extendleft": "extends",
    "fromlist": "extends",
    "frombytes": "extends",
    "insert": "inserts into",
    "add": "adds to",
    "update": "updates",
    "subtract": "updates",
    "setdefault": "stores into",
    "fill": "stores into",
    "put": "stores into",
    "clear": "clears",
    "sort": "sorts",
    "partition": "sorts",
    "reverse": "reorders",
    "rotate": "reorders",
    "move_to_end": "reorders",
    "byteswap": "changes",
    "resize": "changes",
    "difference_update": "removes from",
    "intersection_update": "removes from",
    "symmetric_difference_update": "updates",
    "pop": "removes from",
    "popleft": "removes from",
    "popitem": "removes from",
    "remove": "removes from",
    "discard": "removes from",
}
SEQUENCE = frozenset({"append", "extend", "insert", "pop", "remove", "clear", "reverse"})
MAPPING = frozenset({"update", "setdefault", "pop", "popitem", "clear"})
SET = frozenset({"add", "discard", "remove", "pop", "clear"})
METHODS: dict[type, frozenset[str]] = {
    list: SEQUENCE | {"sort"},
    dict: MAPPING | {"subtract", "move_to_end"},
    set: SET
    | {"update", "difference_update", "intersection_update", "symmetric_difference_update"},
    bytearray: SEQUENCE,
    deque: SEQUENCE | {"appendleft", "extendleft", "popleft", "rotate"},
    array: SEQUENCE - {"clear"} | {"fromlist", "frombytes", "byteswap"},
    UserDict: MAPPING,
    UserList: SEQUENCE | {"sort"},
}
ABSTRACT: dict[type, frozenset[str]] = {
    MutableMapping: MAPPING,
    MutableSequence: SEQUENCE,
    MutableSet: SET,
}
"""What is one of these may lie on disk or elsewhere: known only where the user wrote it."""
ARRAY = frozenset({"sort", "fill", "put", "partition", "resize", "byteswap"})
FACTORIES = (list, dict, set, deque, Counter, bytearray)

# What is there for several workers, or is meant to be another in each of them.
APART = {"threading", "_thread", "queue", "_queue", "logging", "multiprocessing", "asyncio"} | {
    *("_asyncio", "concurrent", "contextvars", "_contextvars", "plait", "mmap", "ctypes"),
    *("_ctypes", "shelve", "dbm", "sqlite3"),
}

_mro = type.__dict__["__mro__"].__get__
_module = type.__dict__["__module__"].__get__
_name = type.__dict__["__name__"].__get__
_vars = type.__dict__["__dict__"].__get__


def _bases_of(obj: object) -> tuple[type, ...]:
    """Return the type of an object and all that it inherits from."""
    bases: tuple[type, ...] = _mro(type(obj))
    return bases


def _kind_of(obj: object) -> str:
    """Return the name of an object's type."""
    return str(_name(type(obj)))


def package_of(kind: type) -> str:
    """Return the package that a type is from."""
    return str(_module(kind)).partition(".")[0]


def is_apart(obj: object) -> bool:
    """Whether an object is made for several workers, as locks, queues and loggers are."""
    return any(package_of(base) in APART for base in _bases_of(obj))


def verb(obj: object, method: str, home: str) -> str | None:
    """Say what a method does to an object: "appends to". None: nothing that is known of.

    ``home`` is the user's package, whose classes are taken at their word.

    >>> verb([], "append", "")
    'appends to'
    >>> verb([], "index", "") is None
    True
    """
    return VERBS[method] if method in VERBS and method in _methods(obj, home) else None


def can_store(obj: object, home: str) -> bool:
    """Whether ``obj[key] = value`` changes something that is in the memory of this process."""
    is_own = package_of(type(obj)) == home and not issubclass(type(obj), type)
    return bool(_methods(obj, home)) or (is_own and not is_apart(obj))


def _methods(obj: object, home: str) -> frozenset[str]:
    if is_apart(obj):
        return frozenset()
    if (package_of(type(obj)), _kind_of(obj)) == ("numpy", "ndarray"):
        return ARRAY if _has_own_memory(obj) else frozenset()
    bases = _bases_of(obj)
    known = next((METHODS[base] for base in bases if base in METHODS), frozenset[str]())
    if not known and package_of(type(obj)) in (home, "collections", "os"):
        known = next((ABSTRACT[base] for base in bases if base in ABSTRACT), known)
    return known


def _has_own_memory(array: Any) -> bool:
    """Whether an array of numpy's lies in no foreign buffer: that may be shared memory."""
    kind = type(array)
    while type(array) is kind:
        array = array.base
    return array is None or type(array) is bytes


def _look(obj: object, name: str) -> Any:
    """Return an attribute if that runs no code, else NOTHING."""
    value = getattr_static(obj, name, NOTHING)
    if type(value) is MemberDescriptorType and not issubclass(type(obj), type):
        try:
            return value.__get__(obj)  # of __slots__
        except AttributeError:  # it is not set
            return NOTHING
    has_get = any("__get__" in _vars(base) for base in _bases_of(value))
    return NOTHING if has_get and not issubclass(type(obj), ModuleType) else value


def _element_of(obj: Any) -> Any:
    """Return some object like those in a container, or NOTHING."""
    kind = type(obj)
    if issubclass(kind, defaultdict):
        factory = defaultdict.__dict__["default_factory"].__get__(obj)
        if any(factory is known for known in FACTORIES):
            return factory()
    if issubclass(kind, dict):
        return next(iter(dict.values(obj)), NOTHING)
    if issubclass(kind, list) and list.__len__(obj):
        return list.__getitem__(obj, 0)
    return NOTHING


def method_of(kind: type, name: str) -> Any:
    """Return a function that a class has under a name, or NOTHING."""
    found = next((_vars(base)[name] for base in _mro(kind) if name in _vars(base)), NOTHING)
    return found if type(found) is FunctionType else NOTHING


class Value(NamedTuple):
    """An object, and how the function comes by it.

    ``where`` is "global", "captured", "default" or "bound"; "in" of what is in a container,
    whose description is the ``path``; "" of an attribute.
    """

    obj: Any
    where: str
    path: str

    def __str__(self) -> str:
        if self.where == "in":
            return f"a {_kind_of(self.obj)} in {self.path}"
        return " ".join(("the", *self.where.split(), _kind_of(self.obj), self.path))

    def attribute(self, name: str) -> Value:
        """Return what an attribute of it is, as far as looking runs no code."""
        if self.obj is NOTHING:
            return UNKNOWN
        return Value(_look(self.obj, name), "", self.named(name))

    def named(self, attribute: str) -> str:
        """Return what one of its attributes is called."""
        if self.where == "in":
            return f"{attribute} of {self}"
        is_long = " of " in self.path
        return f"{attribute} of {self.path}" if is_long else f"{self.path}.{attribute}"

    def element(self) -> Value:
        """Return what stands for the things in it."""
        return UNKNOWN if self.obj is NOTHING else Value(_element_of(self.obj), "in", str(self))


UNKNOWN = Value(NOTHING, "", "")
Names = dict[str, Value]
