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
from io import FileIO, TextIOWrapper
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.backends.messages import Texts

__all__ = ["Streams", "buffer_lines", "take_back_stderr"]

STREAMS = ("stdout", "stderr")
FALLBACK = ("utf-8", "backslashreplace")
"""Encoding and errors of a stream made anew, until the parent has told its own."""


def buffer_lines() -> None:
    """Have both streams buffered by lines, in Python and in C; forks of this process keep that.

    The objects stay the same: a module that is preloaded may take one of them.
    """
    is_unbuffered = _is_unbuffered(sys.stdout)  # python -u: for C, too
    for name in STREAMS:
        with suppress(AttributeError, OSError, ValueError):  # none, another kind, closed, detached
            getattr(sys, name).reconfigure(line_buffering=True)
    if not is_unbuffered:
        _buffer_lines_of_c()


def take_back_stderr(fd: int) -> None:
    """Let standard error be what it is for the parent, and say there what was said until now.

    ``fd`` is a copy of it. -1: it was not changed. See server_process.py.
    """
    if fd < 0:
        return
    said = os.pread(2, os.fstat(2).st_size, 0)
    os.dup2(fd, 2)
    os.close(fd)
    own = sys.__stderr__
    if own is not None:  # it may believe that it writes to a file, in which it can move about
        kind = (own.encoding, own.errors)
        own = open(2, "w", 1, *kind, closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = own  # type: ignore[misc]
    with suppress(OSError):
        os.write(2, said)


class Streams:
    """What a worker's sys.stdout and sys.stderr are to be between two tasks."""

    def __init__(self) -> None:
        self._is_unbuffered = _is_unbuffered(sys.__stdout__)
        self._texts: Texts | None = None
        self._fds: tuple[int, ...] = ()  # the ends of the pipes, should a task close the others
        self._inherited = sys.__stdout__, sys.__stderr__
        # Not sys.stdout: a module that was loaded before may have put something else there.
        self._out: Any = sys.__stdout__
        self._err: Any = sys.__stderr__

    def take(self, out_fd: int, err_fd: int) -> None:
        """Let both lead to the parent."""
        self._fds = (out_fd, err_fd)
        for place, fd in enumerate(self._fds):
            os.dup2(fd, place + 1)
            os.set_inheritable(fd, False)
        # Those of before may believe that they write to a file, in which they can move about.
        self._out = self._err = None
        self._make_anew()

    def adopt(self, texts: Texts) -> None:
        """Turn text to bytes as the parent would, who reads them."""
        if texts == self._texts:
            return
        self._texts = texts
        for name, (encoding, errors) in zip(STREAMS, texts, strict=True):
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

    def flush_all(self) -> None:
        """Do the same at the end, also for streams that somebody has kept from before."""
        self.flush()
        _flush_all(*self._inherited)

    def mend(self) -> None:
        """Put both in order again if a task has closed or replaced them."""
        out, err = sys.stdout, sys.stderr
        if out is not self._out or err is not self._err or _is_closed(out) or _is_closed(err):
            self._make_anew()

    def _make_anew(self) -> None:
        self._out = self._mended(0, self._out)
        self._err = self._mended(1, self._err)

    def _mended(self, place: int, own: Any) -> Any:
        """Put a stream in its place again, or a new one, and return it."""
        name = STREAMS[place]
        if getattr(sys, name) is own and not _is_closed(own):
            return own
        if _is_closed(own) or own is getattr(sys, f"__{name}__"):
            # With a buffer of its own: whoever keeps the old one may close what that writes to.
            own = self._open(place)
            setattr(sys, f"__{name}__", own)
        setattr(sys, name, own)
        return own

    def _open(self, place: int) -> Any:
        encoding, errors = self._texts[place] if self._texts else FALLBACK
        number = place + 1
        try:
            os.fstat(number)
        except OSError:  # a task has closed the file itself
            if not self._fds:
                return None  # as Python has it
            os.dup2(self._fds[place], number)
        if not self._is_unbuffered:
            return open(number, "w", 1, encoding, errors, closefd=False)
        raw: Any = FileIO(number, "w", closefd=False)
        return TextIOWrapper(raw, encoding, errors, write_through=True)


def _is_unbuffered(stream: Any) -> bool:
    return bool(getattr(stream, "write_through", False))


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
