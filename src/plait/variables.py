"""Context variables on their way to worker processes.

A ContextVar has no name by which another process could find it, and pickle refuses it. One
that is an attribute of a module is found there; another, of a script or a notebook, is made
once in each worker, with the same default, and from then on is the same wherever it comes.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from contextvars import Context, ContextVar
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["MAIN_MODULES", "reduce_variable"]

MAIN_MODULES = ("__main__", "__mp_main__")
"""What a program's own module is called: in the program, and in children of multiprocessing."""

_places: dict[ContextVar[Any], tuple[str, str] | None] = {}  # where each was found
_made: dict[tuple[int, int], ContextVar[Any]] = {}  # those of other processes, made here
_keys: dict[ContextVar[Any], tuple[int, int]] = {}  # and their keys, should they travel on


def reduce_variable(variable: ContextVar[Any]) -> tuple[Any, ...]:
    """Return how pickle is to carry a variable, as ``__reduce__`` does."""
    if variable not in _places:
        _places[variable] = _find(variable)
    place = _places[variable]
    if place is not None:
        return _named, place
    key = _keys.get(variable, (os.getpid(), id(variable)))
    default: tuple[Any, ...] = ()
    with suppress(LookupError):
        default = (Context().run(variable.get),)
    return _make, (key, variable.name, default)


def _find(variable: ContextVar[Any]) -> tuple[str, str] | None:
    for name, module in list(sys.modules.items()):
        if name not in MAIN_MODULES and isinstance(module, ModuleType):
            for attribute, value in list(vars(module).items()):
                if value is variable:
                    return name, attribute
    return None


def _named(module: str, attribute: str) -> Any:
    return getattr(import_module(module), attribute)


def _make(key: tuple[int, int], name: str, default: tuple[Any, ...]) -> ContextVar[Any]:
    if key[0] == os.getpid():  # it has come home
        return next(known for known in _places if id(known) == key[1])
    if key not in _made:
        # There is one for each variable of the parent, as if it were made at the top of a module.
        made: ContextVar[Any] = (
            ContextVar(name, default=default[0]) if default else ContextVar(name)
        )
        _made[key] = made
        _keys[made] = key
    return _made[key]
