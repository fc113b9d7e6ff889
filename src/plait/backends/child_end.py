"""End a worker process in peace: call its exit functions and write what is in its open files.

Used by child_main.py for a worker that its pool lets go; server.py and preloader.py say what a
fork has from its parent. A worker leaves by ``os._exit``, deep in the server's own code, so
nothing of this would happen by itself.
"""

from __future__ import annotations

import _io
import atexit
import gc
import sys
import weakref
from collections.abc import Iterable
from typing import Any

from plait.bare import signal

__all__ = ["LEAVE_S", "LEAVE_SIGNAL", "end_in_peace", "leave_finalizers", "settle_files"]

LEAVE_S = 2.0
"""How long exit functions, finalizers and files may take; then the kernel ends the worker."""

LEAVE_SIGNAL = int(getattr(signal, "SIGALRM", 0))
"""By which it does that."""

# The classes in C of all file objects. Those of ``io`` would ask objects for their class.
ANY_FILE, ANY_TEXT = _io._IOBase, _io._TextIOBase  # noqa: SLF001

_inherited: list[Any] = []  # files that were open before the fork


def end_in_peace() -> None:
    """Call what was registered with ``atexit``, and write what open files still hold.

    ``weakref.finalize`` and multiprocessing's finalizers are registered there. Threads that tasks
    have left are not waited for.
    """
    _set_deadline()
    atexit._run_exitfuncs()  # noqa: SLF001  as multiprocessing does
    flush_files([*_inherited, *open_files()])


def _set_deadline() -> None:
    """Have the kernel end this process after LEAVE_S, also where Python cannot run any more."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        signal.setitimer(signal.ITIMER_REAL, LEAVE_S)


def open_files() -> list[Any]:
    """Return the file objects of this process; without those that were frozen before a fork."""
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, ANY_FILE)}
    return [one for one in objects if type(one) in kinds] if kinds else []


def flush_files(files: Iterable[Any]) -> None:
    """Write what files hold; those that write to other files come first: text, compressed data.

    Compressed files are closed, because they are damaged without their last bytes.
    """
    for file in sorted(files, key=_rank):
        try:
            file.close() if _rank(file) == COMPRESSED else file.flush()
        except ValueError:  # it is closed, or detached
            continue
        except Exception as error:  # noqa: BLE001  a full disk, or a class of the user's own
            print(f"Exception ignored in {file!r}: {error!r}", file=sys.stderr)  # noqa: T201


def _rank(file: Any) -> int:
    kind = type(file)
    if issubclass(kind, ANY_TEXT):
        return TEXT
    is_compressed = any((base.__module__, base.__name__) in COMPRESSING for base in kind.__mro__)
    return COMPRESSED if is_compressed else BINARY


TEXT, COMPRESSED, BINARY = range(3)
COMPRESSING = {("gzip", "GzipFile"), ("bz2", "BZ2File"), ("lzma", "LZMAFile")}


def settle_files() -> None:
    """Before a fork: write what open files hold, or each worker would write it once more.

    They are remembered. Once they are frozen the garbage collector does not show them.
    """
    _inherited[:] = [*_inherited, *open_files()]
    flush_files(_inherited)


def leave_finalizers() -> None:
    """In a fork: leave finalizers of older objects to the process that made these objects.

    A temporary folder of a preloaded module belongs to all workers.
    """
    for one in list(getattr(weakref.finalize, "_registry", ())):
        one.atexit = False
