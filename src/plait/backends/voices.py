"""Put out what workers said, as if it had been said here.

Lines go to this process's sys.stdout and sys.stderr, and on from there: they are not lost in a
crash of this process. Records go to its loggers, warnings through its filters. Called by the
thread that waits for a lane, never by whoever happens to drive: handlers, streams and filters
are the user's.
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from contextlib import suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from plait import greenlets
from plait.backends.messages import OUTPUT_BYTES, Said, Text, Texts
from plait.errors import NotPicklable
from plait.foreign import attempt, is_from_outside
from plait.wire_errors import detach

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OutputReader", "put_out", "warning"]

READ_BYTES = 1 << 16
# That of eventlet waits also where it must not.
_read = greenlets.original("os", "read")


class OutputReader:
    """The parent's end of a worker's standard output or error; gives whole lines."""

    def __init__(self, kind: str, fd: int) -> None:
        """``kind`` is "stdout" or "stderr"; reading ``fd`` must not block."""
        self.kind = kind
        self._fd = fd
        self._partial = b""  # a line that has not ended
        self.has_ended = False

    def fileno(self) -> int:
        """Return what to wait on; -1 once it is closed."""
        return self._fd

    def read(self) -> Said | None:
        """Return the lines that are there, if any; not for ever, if a program prints for ever."""
        pieces = [self._partial]
        left = OUTPUT_BYTES  # so much at most is there now, and what comes later can wait
        try:
            while left > 0 and (data := _read(self._fd, READ_BYTES)):
                pieces.append(data)
                left -= len(data)
            self.has_ended = left > 0
        except BlockingIOError:
            pass
        whole, newline, self._partial = b"".join(pieces).rpartition(b"\n")
        return Said(self.kind, whole + newline) if newline else None

    def read_rest(self) -> list[Said]:
        """Return all that is there; a line that has not ended ends here."""
        said = [] if self._fd < 0 else [self.read()]
        rest, self._partial = self._partial, b""
        if rest:
            said.append(Said(self.kind, rest + b"\n"))
        return [one for one in said if one is not None]

    def close(self) -> None:
        """Read no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def warning(text: str) -> Said:
    """Return a RuntimeWarning of plait's own, to be put out like those of workers."""
    facts = {"message": text, "category": RuntimeWarning, "filename": "sys", "lineno": 1}
    return Said("warning", pickle.dumps(facts))


def put_out(
    said: Said, worker: str, texts: Texts | None = None, *, is_prefixed: bool = False
) -> None:
    """Write, log or warn what a worker said; a handler that fails does not harm the run.

    ``texts`` are those that the worker has adopted, this process's own by default.
    """
    try:
        if said.kind in STREAMS:
            text = _decode(said.data, (texts or Texts.here())[STREAMS.index(said.kind)])
            _write(said.kind, _with_prefix(text, worker) if is_prefixed else text)
        else:
            facts, broken = attempt(pickle.loads, said.data)
            if broken is not None:
                raise NotPicklable.on_arrival(said.kind, detach(broken))
            _WAYS[said.kind](facts)
    except Exception as error:  # of the user's own stream, handler or filter
        if is_from_outside(error):
            raise
        with suppress(Exception):
            import traceback

            traceback.print_exc()


STREAMS = Texts._fields


def _decode(data: bytes, text: Text) -> str:
    """Return what was printed; a program that a task started may print any bytes."""
    encoding, errors = text
    try:
        return data.decode(encoding, errors if errors in REVERSIBLE else "strict")
    except UnicodeDecodeError:
        return data.decode(encoding, "replace")


REVERSIBLE = ("surrogateescape", "surrogatepass")


def _with_prefix(text: str, worker: str) -> str:
    lines = text.removesuffix("\n").split("\n")
    return "".join(f"[{worker}] {line}\n" for line in lines)


def _write(name: str, text: str) -> None:
    stream = getattr(sys, name)
    if stream is None or getattr(stream, "closed", False):
        return
    with suppress(OSError):  # nobody reads it any more
        try:
            stream.write(text)
        except UnicodeEncodeError:  # it is another stream now, or these are no characters
            encoding = stream.encoding
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        # Not those of other kinds: a notebook's would send a message for each.
        if isinstance(stream, TextIOWrapper):
            stream.flush()


def _log(facts: dict[str, Any]) -> None:
    import logging

    record = logging.makeLogRecord(facts)
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


_registries: dict[str, dict[Any, Any]] = {}  # by file: what was warned of already


def _warn(facts: dict[str, Any]) -> None:
    registry = _registries.setdefault(facts["filename"], {})
    warnings.warn_explicit(**facts, registry=registry)


_WAYS: dict[str, Callable[[dict[str, Any]], None]] = {"record": _log, "warning": _warn}
