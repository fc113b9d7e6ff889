"""What a function would change outside itself: read in its code, without running anything.

Worker processes have copies: what a function appends there to a global list, the caller
never sees. ``shared_writes`` says so before it happens. Used where a plan is made. It
reports what it is sure of and is silent about the rest: an argument of the task, what is
made in it, and objects whose type says nothing. It follows functions of the same module.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dis import opmap
from functools import partial
from inspect import getattr_static
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from plait.bytecode import HANDLERS, Frame, Scope
from plait.mutables import NOTHING, UNKNOWN, VERBS, Names, Value, method_of, package_of

__all__ = ["shared_writes"]

MOST_FINDINGS = 5
MOST_HOPS = 8
"""So many partials, wrappers and methods around a function are taken off."""
MOST_DEPTH = 2
"""Functions are followed that a function calls, and those that these call."""
MOST_BYTES = 8192
"""Of bytecode in all: what is larger is not read."""

WRITES = {
    opmap[name]
    for name in HANDLERS.keys() & opmap.keys()
    if name.startswith(("STORE", "DELETE")) and "FAST" not in name
}
"""Instructions that may change something outside, by number."""
INERT = {type(None), bool, int, float, str, tuple, type, ModuleType, FunctionType}
INERT |= {BuiltinFunctionType}
"""Types of objects that are changed by such an instruction only, or by a method of that name."""


def shared_writes(fn: Callable[..., Any]) -> tuple[str, ...]:
    """Say what ``fn`` changes outside itself that worker processes would not share.

    Sentence fragments, at most 5. Nothing is called, nothing raised.

    >>> done = []
    >>> shared_writes(lambda x: done.append(x))
    ('it appends to the global list done',)
    """
    found: dict[str, None] = {}
    with suppress(Exception):  # a hint that is missing does no harm
        _Reader(found).open(fn)
    return tuple(found)[:MOST_FINDINGS]


class _Reader:
    """Reads a function and what belongs to it; ``found`` keeps the findings in order."""

    def __init__(self, found: dict[str, None]) -> None:
        self.found = found
        self.home = ""
        self._left = MOST_BYTES
        self._globals: dict[str, Any] | None = None
        self._read: set[tuple[object, ...]] = set()

    def open(self, fn: Any) -> None:
        """Take off what is around a function, and read it."""
        given: list[Value] = []
        named: Names = {}
        for _ in range(MOST_HOPS):
            kind = type(fn)
            if kind is FunctionType:
                self._read_root(fn, given, named)
                fn = fn.__dict__.get("__wrapped__", NOTHING)
            elif kind is partial:
                given += [Value(value, "bound", "") for value in fn.args]
                named |= {name: Value(fn.keywords[name], "bound", name) for name in fn.keywords}
                fn = fn.func
            elif kind is MethodType:
                given.insert(0, Value(fn.__self__, "", ""))
                fn = fn.__func__
            else:
                fn, given = _inside(fn, given)

    def _read_root(self, fn: FunctionType, given: list[Value], named: Names) -> None:
        self._globals = fn.__globals__
        self.home = str(fn.__globals__.get("__name__")).partition(".")[0]
        params = fn.__code__.co_varnames[: fn.__code__.co_argcount]
        defaults = fn.__defaults__ or ()
        kept = {
            **dict(zip(params[len(params) - len(defaults) :], defaults, strict=True)),
            **(fn.__kwdefaults__ or {}),
        }
        for name in params[len(given) : len(given) + 1]:  # this one is what a task is given
            kept.pop(name, None)
        names = {name: Value(value, "default", name) for name, value in kept.items()}
        names |= {
            name: value._replace(path=name) for name, value in zip(params, given, strict=False)
        }
        self._read_function(fn, names | named, 0)

    def follow(self, fn: object, depth: int, owner: Value | None = None) -> None:
        """Read a function that is used, if it is of the same module and not too deep."""
        if type(fn) is not FunctionType or depth >= MOST_DEPTH:
            return
        if fn.__globals__ is self._globals:
            params = fn.__code__.co_varnames[: min(fn.__code__.co_argcount, 1)]
            names = {} if owner is None else dict.fromkeys(params, owner)
            self._read_function(fn, names, depth + 1)

    def _read_function(self, fn: FunctionType, names: Names, depth: int) -> None:
        free = fn.__code__.co_freevars
        for name, cell in zip(free, fn.__closure__ or (), strict=True):
            try:
                names[name] = Value(cell.cell_contents, "captured", name)
            except ValueError:  # nothing was put into it yet
                continue
        self._read_code(fn.__code__, Scope(names, frozenset(free), fn.__globals__, depth))

    def _read_code(self, code: CodeType, scope: Scope) -> None:
        names = scope.names
        key = (code, *(id(value.obj) for value in names.values()))
        if key in self._read or len(code.co_code) > self._left:
            return
        self._read.add(key)
        self._left -= len(code.co_code)
        if _may_change(code, scope):
            Frame(self, scope).read(code)
        else:
            for name in code.co_names:
                self.follow(scope.globals.get(name, NOTHING), scope.depth)
        for const in code.co_consts:
            if isinstance(const, CodeType):
                inner = {name: names[name] for name in const.co_freevars if name in names}
                captured = scope.captured.intersection(const.co_freevars)
                self._read_code(const, scope._replace(names=inner, captured=captured))

    def note(self, text: str) -> None:
        """Keep a finding, once."""
        self.found[f"it {text}"] = None


def _may_change(code: CodeType, scope: Scope) -> bool:
    """Whether it is worth following some code step by step: a look that takes no time."""
    names = code.co_names
    if scope.names or not WRITES.isdisjoint(code.co_code[::2]):
        return True
    is_inert = all(type(scope.globals.get(name)) in INERT for name in names)
    return not (is_inert and VERBS.keys().isdisjoint(names))


def _inside(fn: Any, given: list[Value]) -> tuple[Any, list[Value]]:
    """Return what a class, a wrapper that is no function, or a callable object runs."""
    kind = type(fn)
    if issubclass(kind, type):
        return method_of(fn, "__init__"), [UNKNOWN, *given]
    wrapped = getattr_static(fn, "__wrapped__", NOTHING)  # of functools.lru_cache, for one
    if wrapped is not NOTHING or package_of(kind) == "builtins":
        return wrapped, given
    return method_of(kind, "__call__"), [Value(fn, "", ""), *given]
