"""How another Python like this one is started, or why none can be.

Used by server_process.py and whoever starts a fresh interpreter. In most programs
``sys.executable`` is Python. In others it is the program itself (a frozen one, uwsgi, one that
embeds Python): to start that would run the program a second time. Or it is empty, or wrong. So
it is looked at first.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["freeze_support", "python_command", "why_not"]

ARGUMENT = "--plait-worker"
"""The first argument of a frozen program that is to become a process of plait's."""

PYTHONS = ("python", "pypy", "graalpy")
ADVICE = f"Set sys.executable to a Python {sys.version_info[0]}.{sys.version_info[1]} interpreter."
FREEZE_ADVICE = "Call plait.freeze_support() in the first line of the program."


class _State:
    """What is known of this program."""

    def __init__(self) -> None:
        self.has_support = False  # it comes to freeze_support() before anything else
        self.pythons: dict[str, bool] = {}  # by path: whether it is one
        self.fine: set[str] = set()  # paths of those that can be started


_state = _State()


def freeze_support() -> None:
    """Let a frozen program start worker processes: call this first in its main module.

    A program that was frozen to an executable has no Python interpreter that could be a worker.
    plait starts the executable again instead, with arguments of its own. This function then
    becomes the worker and does not return; otherwise it does nothing. Whatever the program does
    before this call is done again in the worker.

    PyInstaller needs no call: plait brings a hook for it.

    >>> import plait
    >>> plait.freeze_support()
    """
    _state.has_support = True
    if sys.argv[1:2] == [ARGUMENT]:
        _become_worker(sys.argv[2:])


def _become_worker(arguments: list[str]) -> NoReturn:
    from importlib import import_module

    end = arguments.index("--")
    module, name, *numbers = arguments[:end]
    sys.path[:] = arguments[end + 1 :]
    getattr(import_module(module), name)(*map(int, numbers))
    os._exit(0)


def is_frozen() -> bool:
    """Whether this program was made into an executable (PyInstaller, cx_Freeze, Nuitka, ...)."""
    return bool(getattr(sys, "frozen", False)) or hasattr(
        sys.modules.get("__main__"), "__compiled__"
    )


def why_not() -> str:
    """Return why no other Python can be started, as a sentence and what to try; "" if it can."""
    path = sys.executable
    if path in _state.fine and not is_frozen():
        return ""
    again = "starting it would run this program a second time"
    if path and _state.has_support and (is_frozen() or not _is_python(path)):
        return ""
    if is_frozen():
        return f"This program is frozen: sys.executable is {path!r}, and {again}. {FREEZE_ADVICE}"
    if not path:
        return f"sys.executable is {path!r}, so no Python interpreter is known. {ADVICE}"
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):  # noqa: PTH113  loads less
        return f"sys.executable is {path!r}, which is not a program that can be run. {ADVICE}"
    if not _is_python(path):
        text = f"sys.executable is {path!r}, which is not a Python interpreter, and {again}."
        return f"{text} {ADVICE}"
    _state.fine.add(path)
    return ""


def _is_python(path: str) -> bool:
    """Whether a program takes Python's arguments, as far as can be seen without starting it."""
    is_known = _state.pythons.get(path)
    if is_known is None:
        is_known = _state.pythons[path] = _look_at(path)
    return is_known


def _look_at(path: str) -> bool:
    try:
        is_this = os.path.samefile(path, "/proc/self/exe")  # noqa: PTH121
    except OSError:
        is_this = False
    if is_this:
        # Python has taken its own arguments away from those of the script. A program that embeds
        # it has not, or Python was told of none.
        return bool(sys.orig_argv) and sys.orig_argv != sys.argv
    return os.path.basename(path).lower().startswith(PYTHONS)  # noqa: PTH119


def python_command(function: str, *numbers: int) -> list[str]:
    """Return the command by which a fresh Python calls ``module.function(*numbers)``.

    It has this Python's ``-O``, ``-W`` and ``-X`` settings and its ``sys.path``, and heeds the
    environment and the site as little as this one (``-I``, ``-E``, ``-s``, ``-S``). Raises OSError
    if there is none.
    """
    if reason := why_not():
        raise OSError(reason)
    module, _, name = function.rpartition(".")
    call = [module, name, *map(str, numbers), "--", *sys.path]
    if is_frozen() or not _is_python(sys.executable):
        return [sys.executable, ARGUMENT, *call]
    arguments = [sys.executable]
    arguments += [letter for name, letter in _APART.items() if getattr(sys.flags, name)]
    if sys.flags.optimize:
        arguments.append("-" + "O" * sys.flags.optimize)
    for warning in sys.warnoptions:
        arguments += ["-W", warning]
    for name, value in sys._xoptions.items():  # noqa: SLF001  documented by CPython
        arguments += ["-X", name if value is True else f"{name}={value}"]
    return [*arguments, "-c", _BOOT, *call]


_APART = {"isolated": "-I", "ignore_environment": "-E", "no_user_site": "-s", "no_site": "-S"}

# Run as `-c BOOT module function numbers... -- sys.path...`. Another Python says so and ends. There
# is no garbage while modules are loaded, and looking for it takes a tenth of that time.
_BOOT = (
    "import gc, sys; "
    f"sys.version_info[:2] == {tuple(sys.version_info[:2])} or sys.exit("
    "'This is Python %d.%d; the program that started it runs on "
    f"{sys.version_info[0]}.{sys.version_info[1]}.' % sys.version_info[:2]); "
    "gc.disable(); n = sys.argv.index('--'); sys.path[:] = sys.argv[n + 1:]; "
    "from importlib import import_module; module = import_module(sys.argv[1]); gc.enable(); "
    "getattr(module, sys.argv[2])(*map(int, sys.argv[3:n]))"
)
