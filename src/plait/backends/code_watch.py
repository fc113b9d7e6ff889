"""Notice that code changed since a worker imported it.

A warm worker has the modules of yesterday in memory, and so has the server that preloaded some
for its workers. In a notebook the user edits a module, reloads it, maps again, and must not get
yesterday's answer.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from types import CodeType, ModuleType
from typing import Any

from plait.variables import MAIN_MODULES

__all__ = ["CodeWatch", "Stamp", "are_stale", "stamps_of_own"]

Stamp = tuple[str, int, int]
"""The state of a file: its path, when it was changed, its size."""

# The standard library, and all that lies in the folder of this Python or virtual environment.
_INSTALLED = (os.path.dirname(os.__file__) + os.sep, sys.prefix + os.sep)  # noqa: PTH120


class CodeWatch:
    """Remembers the state of the user's modules; ``changed`` compares and remembers anew."""

    def __init__(self) -> None:
        self._files: dict[str, Stamp] = {}  # by module
        self._preloaded: dict[str, Stamp] = {}  # of modules that only the workers have
        self._codes: dict[tuple[str, str], CodeType] = {}

    def changed(self, fn: Callable[..., Any]) -> bool:
        """Whether a module of the user's was edited, or ``fn`` reloaded, since the last call.

        All modules count that are loaded here and lie outside the installed packages: a
        function of an unchanged module may call one of a changed module.
        """
        is_changed = False
        for name, file in _own_modules(tuple(map(id, sys.modules.values()))):
            is_changed |= _differs(self._files, name, _stamp(file))
        for name, before in self._preloaded.items():
            is_changed |= _differs(self._preloaded, name, _stamp(before[0]))
        fn = _unwrap(fn)
        code = getattr(fn, "__code__", None)
        module = getattr(fn, "__module__", None)
        if isinstance(code, CodeType) and module not in (None, *MAIN_MODULES):
            is_changed |= _differs(self._codes, (str(module), fn.__qualname__), code)
        return is_changed

    def watch(self, preloaded: dict[str, Stamp]) -> None:
        """Look at the files of modules, too, that workers have from the start."""
        self._preloaded = preloaded


def stamps_of_own(names: Iterable[str]) -> dict[str, Stamp]:
    """Return the stamps of those modules that are the user's own, by name."""
    own = dict(_own_modules(tuple(map(id, sys.modules.values()))))
    return {name: _stamp(own[name]) for name in names if name in own}


def are_stale(stamps: dict[str, Stamp]) -> bool:
    """Whether one of these files has changed."""
    return any(_stamp(stamp[0]) != stamp for stamp in stamps.values())


def _differs(known: dict[Any, Any], key: Any, now: Any) -> bool:
    before = known.setdefault(key, now)
    known[key] = now
    return bool(before != now)


def _unwrap(fn: Any) -> Any:
    while isinstance(fn, partial):
        fn = fn.func
    return inspect.unwrap(getattr(fn, "__func__", fn))


def _stamp(file: str) -> Stamp:
    try:
        status = os.stat(file)  # noqa: PTH116  a string at hand, once for each module and map
    except OSError:
        return file, 0, 0
    return file, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1)
def _own_modules(identities: tuple[int, ...]) -> list[tuple[str, str]]:  # noqa: ARG001  the cache's key
    """Return name and file of all modules that are not installed packages."""
    own = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
        if file and not file.startswith(_INSTALLED) and name.partition(".")[0] != "plait":
            own.append((name, file))
    return own
