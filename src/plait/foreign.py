"""Run the code of the user's objects (pickling, ``repr``, attributes), and tell whose an error is.

The code of an object may raise anything, SystemExit too. Such an error is about the object, and
fails one task. But an error from outside may strike there: a signal handler raised it, or another
thread did with PyThreadState_SetAsyncExc. That one belongs to the caller, whatever its class. Two
kinds show in the traceback. The others do not come again when the call is repeated.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from plait.bare import signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, TracebackType

__all__ = [
    "Ended",
    "attempt",
    "is_from_outside",
    "settle",
    "shown",
    "text_of",
    "without_own_frames",
]


class Ended(BaseException):
    """End a task because plait says so: never the error of an object."""


def attempt(do: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
    """Call a function; return its value and None, or None and the error of the object itself.

    The function is called again if it fails, so it must be one that may be. Raises errors that
    came from outside.

    >>> value, error = attempt(int, "x")
    >>> type(error).__name__
    'ValueError'
    """
    value, error = _call(do, args)
    if error is None:
        return value, None
    try:
        return settle(error, do, *args)
    finally:
        del error  # in a variable it would be part of a cycle, with all that our callers know


def text_of(error: BaseException) -> str:
    """Return what an error says, whatever its own ``__str__`` does.

    >>> text_of(KeyError(1))
    '1'
    """
    text = attempt(str, error)[0]
    return "<its text cannot be shown>" if text is None else text


def shown(obj: object) -> str:
    """Return the ``repr`` of an object, or what became of it.

    >>> shown("a")
    "'a'"
    """
    text, broken = attempt(repr, obj)
    if broken is not None:
        text = f"<{type(obj).__qualname__} whose repr raised {type(broken).__name__}>"
        del broken
    return text  # type: ignore[no-any-return]


def settle(
    first: BaseException, do: Callable[..., Any], *args: Any
) -> tuple[Any, BaseException | None]:
    """Do the rest of ``attempt`` after a first call that has failed."""
    second: BaseException | None = None
    try:
        if isinstance(first, Ended) or is_from_outside(first):
            raise first
        value, second = _call(do, args)
        if second is not None and CONTEXT.__get__(second) is first:  # where that is being handled
            CONTEXT.__set__(second, None)
        if second is None and isinstance(first, MemoryError | RecursionError):
            return value, None  # there was no room for it before
        if second is not None and type(second) is type(first):
            return None, second
        if second is not None:  # one of them is from outside
            _, third = _call(do, args)
            if third is not None and type(third) is not type(second):
                if type(third) is not type(first):
                    return None, third
                first = second
        raise first
    finally:
        del first, second


def _call(do: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    try:
        return do(*args), None
    except BaseException as error:  # noqa: BLE001  whose it is, is to be found out
        return None, error


def without_own_frames(tb: TracebackType | None) -> TracebackType | None:
    """Return a traceback without plait's own frames on top."""
    while tb is not None and tb.tb_frame.f_globals.get("__name__", "").startswith("plait."):
        tb = tb.tb_next
    return tb


# Attributes of every exception, past whatever its class has put in their place.
CONTEXT: Any = vars(BaseException)["__context__"]
TRACEBACK: Any = vars(BaseException)["__traceback__"]


def is_from_outside(error: BaseException) -> bool:
    """Whether its traceback tells that a signal handler raised an error."""
    handlers = set(_handler_codes())
    step: TracebackType | None = TRACEBACK.__get__(error)
    innermost = step
    while step is not None:
        if step.tb_frame.f_code in handlers:
            return True
        innermost, step = step, step.tb_next
    # Python's own handler of Ctrl-C has no frame: no statement raised what it raises.
    if not isinstance(error, KeyboardInterrupt):
        return False
    return innermost is None or not _is_at_raise(innermost)


def _is_at_raise(step: TracebackType) -> bool:
    from opcode import opmap

    return step.tb_frame.f_code.co_code[step.tb_lasti] == opmap["RAISE_VARARGS"]


def _handler_codes() -> Iterator[CodeType]:
    for signum in range(1, signal.NSIG):
        try:
            handler: Any = signal.getsignal(signum)
        except (OSError, ValueError):  # not every number is that of a signal
            continue
        if not callable(handler):
            continue
        while isinstance(handler, partial):
            handler = handler.func
        if not hasattr(handler, "__code__"):  # an object that can be called, unless it is C's
            handler = type(handler).__call__
        code = getattr(handler, "__code__", None)
        if code is not None:
            yield code
