"""What a worker says besides its results and its output: log records, warnings, last words.

Used by child_main.py only. Log records and warnings go through the channel, each at once: what
a worker said before it crashed has been said. (What it prints: child_streams.py.)
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from plait.backends.messages import LAST_WORDS_AT, Levels, Said, encode
from plait.foreign import attempt, shown
from plait.wire import PROTOCOL

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from plait.channel import Sender

__all__ = ["Voice", "keep_last_words"]

MAIN_PROCESS = "MainProcess"
"""What logging takes the name of each process for that multiprocessing did not start."""


def keep_last_words(page_fd: int, end_signal: int) -> None:
    """Have the interpreter note on the status page where it is as it crashes, or is ended.

    It can do so in C code too, and when Python cannot run any more.
    """
    os.lseek(page_fd, LAST_WORDS_AT, os.SEEK_SET)
    faulthandler.enable(page_fd)
    if hasattr(faulthandler, "register"):
        faulthandler.register(end_signal, page_fd, all_threads=False, chain=True)


class Voice:
    """Forwards log records and warnings, with the mark of the worker and of its task."""

    def __init__(self, worker: str, sender: Sender, task: Callable[[], int | None]) -> None:
        """``task`` returns the index of the running task, if one runs."""
        self._worker = worker
        self._sender = sender
        self._task = task
        self._pid = os.getpid()
        self._levels: Levels | None = None
        warnings.showwarning = self._forward_warning

    def adopt(self, levels: Levels | None) -> None:
        """Log what the parent's loggers would log; None: it has not imported logging."""
        if levels is None or levels == self._levels:
            return
        import logging

        if self._levels is None:
            logging.getLogger().addHandler(_make_handler(self._forward_record))
        before = self._levels.by_logger if self._levels else {}
        for name in {*before, *levels.by_logger}:
            level, is_disabled = levels.by_logger.get(name, (logging.NOTSET, False))
            logger = logging.getLogger(name)
            logger.setLevel(level)
            logger.disabled = is_disabled
        logging.disable(levels.disabled)
        self._levels = levels

    def _forward_record(self, record: logging.LogRecord) -> None:
        facts = dict(record.__dict__)
        facts["msg"], facts["args"] = record.getMessage(), None
        if record.exc_info:
            facts["exc_text"] = _traceback_text(record)
        facts["exc_info"] = None
        if facts.get("processName") == MAIN_PROCESS:  # unless the task has given itself a name
            facts["processName"] = self._worker
        facts["plait_worker"], facts["plait_task"] = self._worker, self._task()
        self._say("record", facts)

    def _forward_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,  # noqa: ARG002
        line: str | None = None,  # noqa: ARG002
    ) -> None:
        self._say(
            "warning",
            {"message": message, "category": category, "filename": filename, "lineno": lineno},
        )

    def _say(self, kind: str, facts: dict[str, Any]) -> None:
        if os.getpid() != self._pid:  # a copy that a task forked: the channel is not its own
            text = facts.get("msg", facts.get("message"))
            with suppress(OSError):
                os.write(2, f"{text}\n".encode(errors="backslashreplace"))
            return
        self._sender.send_soon(encode(Said(kind, _pickle_facts(facts))))


def _make_handler(forward: Callable[[logging.LogRecord], None]) -> logging.Handler:
    import logging

    class Forwarder(logging.Handler):
        """Sends records to the parent."""

        def emit(self, record: logging.LogRecord) -> None:
            try:
                forward(record)
            except Exception:  # noqa: BLE001  the rule of logging: never fail the task for it
                self.handleError(record)

    return Forwarder()


def _traceback_text(record: logging.LogRecord) -> str:
    import logging

    assert record.exc_info is not None
    return record.exc_text or logging.Formatter().formatException(record.exc_info)


def _pickle_facts(facts: dict[str, Any]) -> bytes:
    """Pickle what can be; of the rest (an ``extra`` that holds a lock) its repr goes."""
    data, broken = attempt(pickle.dumps, facts, PROTOCOL)
    if broken is None:
        return data  # type: ignore[no-any-return]
    safe = {}
    for name, value in facts.items():
        if attempt(pickle.dumps, value, PROTOCOL)[1] is None:
            safe[name] = value
        else:
            safe[name] = UserWarning if isinstance(value, type) else shown(value)
    return pickle.dumps(safe, PROTOCOL)
