"""Standard output and error of a worker: what a task prints is on its way before its result.

Used by server.py and child_main.py only. Both streams are pipes to the parent, so that what C
code and programs of a task print arrives as well. A stream that is no terminal is buffered as a
whole, by Python and by the C library: what a task printed would come with the end of its worker,
or never. So here both are buffered by lines, and what is left is flushed before each result.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.backends.messages import Texts

__all__ = ["Streams", "buffer_lines"]

STREAMS = ((1, "stdout"), (2, "stderr"))
FALLBACK = ("utf-8", "backslashreplace")
"""Encoding and errors of a stream made anew, until the parent has told its own."""


def buffer_lines() -> None:
    """Have both streams buffered by lines, in Python and in C; forks of this process keep that.

    The objects stay the same: a module that was preloaded may have taken one of them.
    """
    is_unbuffered = getattr(sys.stdout, "write_through", False)  # python -u: for C, too
    for _, name in STREAMS:
        with suppress(AttributeError, OSError, ValueError):  # none, another kind, closed, detached
            getattr(sys, name).reconfigure(line_buffering=True)
    if not is_unbuffered:
        _buffer_lines_of_c()


class Streams:
    """What a worker's sys.stdout and sys.stderr are to be between two tasks."""

    def __init__(self) -> None:
        self._texts: Texts | None = None
        # Not sys.stdout: a module that was loaded before may have put something else there.
        self._out: Any = sys.__stdout__
        self._err: Any = sys.__stderr__

    def take(self, out_fd: int, err_fd: int) -> None:
        """Let both lead to the parent."""
        for number, fd in ((1, out_fd), (2, err_fd)):
            os.dup2(fd, number)
            os.close(fd)
        self.mend()

    def adopt(self, texts: Texts) -> None:
        """Turn text to bytes as the parent would, who reads them."""
        if texts == self._texts:
            return
        self._texts = texts
        for (_, name), (encoding, errors) in zip(STREAMS, texts, strict=True):
            with suppress(Exception):  # an encoding of the user's own; or a stream of that kind
                getattr(sys, name).reconfigure(encoding=encoding, errors=errors)

    def keep(self) -> None:
        """Keep the streams as they are now: the initializer may have put its own there."""
        self._out, self._err = sys.stdout, sys.stderr
        self.mend()

    def flush(self) -> None:
        """Send what was printed and not sent: lines that have not ended, and what C holds."""
        out, err = sys.stdout, sys.stderr
        try:
            out.flush()
            err.flush()
        except Exception:  # noqa: BLE001  a task may have put anything there
            _flush_all(out, err, self._out, self._err)
        else:
            if out is not self._out or err is not self._err:
                _flush_all(self._out, self._err)
        _flush_c()

    def mend(self) -> None:
        """Put both in order again if a task has closed or replaced them."""
        out, err = sys.stdout, sys.stderr
        if out is not self._out or err is not self._err or _is_closed(out) or _is_closed(err):
            self._make_anew()

    def _make_anew(self) -> None:
        # With buffers of their own: whoever keeps the old one may close it, or what it writes to.
        texts = self._texts or (FALLBACK, FALLBACK)
        for (number, name), (encoding, errors) in zip(STREAMS, texts, strict=True):
            own = self._out if number == 1 else self._err
            if getattr(sys, name) is own and not _is_closed(own):
                continue
            if own is getattr(sys, f"__{name}__") or _is_closed(own):
                own = _open(number, encoding, errors)
                setattr(sys, f"__{name}__", own)
            setattr(sys, name, own)
        self._out, self._err = sys.stdout, sys.stderr


def _open(number: int, encoding: str, errors: str) -> Any:
    """Return a new stream; None, as Python has it, if a task has closed the file itself."""
    try:
        return open(number, "w", 1, encoding, errors, closefd=False)
    except OSError:
        return None


def _is_closed(stream: Any) -> bool:
    return stream is None or bool(getattr(stream, "closed", False))


def _flush_all(*streams: Any) -> None:
    for stream in streams:
        with suppress(Exception):  # closed, or none, or whatever a task has put there
            stream.flush()


# --- The streams of the C library --------------------------------------------------------

_flush_c: Callable[[], object] = int  # does nothing, where the C library is not known


def _buffer_lines_of_c() -> None:
    """Have C's stdout buffered by lines; its stderr is not buffered at all."""


if sys.platform == "linux":
    # Not ctypes, which takes a millisecond to load.
    from _ctypes import _SimpleCData, call_function, dlopen, dlsym

    _IOLBF = 1

    _Pointer: Any = type("c_void_p", (_SimpleCData,), {"_type_": "P"})
    _main_program: Any = None  # which has the C library
    _library = dlopen(_main_program, 0)
    _stdout = _Pointer.from_address(dlsym(_library, "stdout"))
    # Of stdout alone: to flush all streams waits for those on which another thread reads. It
    # takes half a microsecond.
    _flush_c = partial(call_function, dlsym(_library, "fflush"), (_stdout,))

    def _buffer_lines_of_c() -> None:
        call_function(dlsym(_library, "setvbuf"), (_stdout, None, _IOLBF, 0))
