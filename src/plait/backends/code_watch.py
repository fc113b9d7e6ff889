"""Notice that code changed since a worker imported it.

A warm worker has the modules of yesterday in memory. In a notebook the user edits a
module, reloads it, maps again, and must not get yesterday's answer.
"""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
from collections.abc import Callable
from functools import lru_cache, partial
from types import CodeType, ModuleType
from typing import Any

__all__ = ["CodeWatch"]

_INSTALLED = tuple({path + os.sep for path in sysconfig.get_paths().values()})


class CodeWatch:
    """Remembers the state of the user's modules; ``changed`` compares and remembers anew."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[int, int]] = {}
        self._codes: dict[tuple[str, str], CodeType] = {}

    def changed(self, fn: Callable[..., Any]) -> bool:
        """Whether a module of the user's was edited, or ``fn`` reloaded, since the last call.

        All modules count that are loaded here and lie outside the installed packages: a
        function of an unchanged module may call one of a changed module.
        """
        is_changed = False
        for file in _own_files(len(sys.modules)):
            is_changed |= _differs(self._files, file, _stamp(file))
        fn = _unwrap(fn)
        code = getattr(fn, "__code__", None)
        module = getattr(fn, "__module__", None)
        if isinstance(code, CodeType) and module not in (None, "__main__"):
            is_changed |= _differs(self._codes, (str(module), fn.__qualname__), code)
        return is_changed


def _differs(known: dict[Any, Any], key: Any, now: Any) -> bool:
    before = known.setdefault(key, now)
    known[key] = now
    return bool(before != now)


def _unwrap(fn: Any) -> Any:
    while isinstance(fn, partial):
        fn = fn.func
    return inspect.unwrap(getattr(fn, "__func__", fn))


def _stamp(file: str) -> tuple[int, int]:
    try:
        status = os.stat(file)  # noqa: PTH116  a string at hand, once for each module and map
    except OSError:
        return (0, 0)
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1)
def _own_files(module_count: int) -> tuple[str, ...]:  # noqa: ARG001  the key of the cache
    """Return the source files of all modules that are not installed packages."""
    files = []
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
        if file and not file.startswith(_INSTALLED):
            files.append(file)
    return tuple(files)
