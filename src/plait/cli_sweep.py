"""``plait sweep MODULE:FUNCTION ITEM...``: how long it takes with each pool size.

Used by cli.py. The table is on stdout, or JSON in its place; all else is on stderr.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import plait
from plait.cli_items import Source, UsageError, load_function
from plait.cli_shared import (
    INTERRUPTED,
    OutputError,
    exit_codes,
    hearing_signals,
    leave_for_task,
    read_number,
    read_numbers,
    say,
    shout,
    take_stdout,
)
from plait.errors import PlaitError
from plait.sweep_chart import check_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

__all__ = ["run_sweep"]

FIRST_PAUSE_S, MOST_PAUSE_S = 0.005, 1.0
"""Between two attempts to wake the main thread."""

STDOUT = "-"


def run_sweep(typed: dict[str, Any]) -> int:
    """Do what was typed, and return the exit code."""
    progress, plot, json = typed["progress"], typed["plot"], typed["json_"]
    given = {
        "backends": typed["backends"].split(","),
        "sizes": _listed(read_numbers(typed["sizes"])),
        "repeats": read_number(typed["repeats"]),
        "chunksize": read_number(typed["chunksize"]),
        "progress": _is_terminal() if progress is None else progress,
    }
    with exit_codes(), take_stdout() as out, hearing_signals(_CtrlC().hear):
        _check_files(plot, json)
        source = Source.of(typed)
        with source.open() as items:
            swept = _run(load_function(typed["function"]), items, given, jsonl=source.jsonl)
        _put_out(swept, out, plot, json)
        return 0


class _CtrlC:
    """Hears Ctrl-C: the first ends the sweep, the second all, wherever the main thread is.

    It may wait for a thread that runs a task, which cannot be ended but by ending all.
    """

    def __init__(self) -> None:
        self._has_heard = False
        self._is_interrupted = False
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup ignores it
            signal.signal(signal.SIGINT, self._interrupt)
            signal.signal(signal.SIGURG, lambda *_: None)  # it wakes the main thread, no more

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self._is_interrupted:
            self._is_interrupted = True
            shout("plait: interrupted; threads finish what they run, Ctrl-C again ends it\n")
            raise KeyboardInterrupt

    def hear(self, signum: int) -> None:
        """Take in a signal, in a thread of its own."""
        if signum != signal.SIGINT:
            return
        if self._has_heard:
            shout("plait: ended now\n")
            os._exit(INTERRUPTED)
        self._has_heard = True
        threading.Thread(target=self._wake, name="plait-wake", daemon=True).start()

    def _wake(self) -> None:
        """Have the main thread handle Ctrl-C, which it does when it does not sleep.

        It was perhaps about to. Another signal wakes it, unless it is about to even now. (A SIGINT
        would be taken for a second Ctrl-C, for which a pool does not put its books in order.)
        """
        main, pause_s = threading.main_thread().ident, FIRST_PAUSE_S
        assert main is not None
        while not self._is_interrupted:
            signal.pthread_kill(main, signal.SIGURG)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_PAUSE_S)


def _listed(numbers: Any) -> tuple[Any, ...]:
    return numbers if isinstance(numbers, tuple) else (numbers,)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _check_files(plot: str | None, json: str | None) -> None:
    """See whether there will be a place for the results, before they are worked for."""
    if plot is not None:
        try:
            check_path(plot)
        except (ValueError, ImportError) as error:
            raise UsageError(f"{error}.") from None
    for name in (plot, json):
        if name not in (None, STDOUT) and not os.access(Path(name).parent, os.W_OK):
            raise UsageError(
                f"{name} cannot be written: there is no folder that can be written into."
            )


def _run(
    fn: Callable[..., Any], items: Iterable[Any], given: dict[str, Any], *, jsonl: bool
) -> plait.Sweep:
    stored = list(items) if not isinstance(items, range) else items
    if not len(stored):
        raise UsageError("there are no items: the input is empty.")
    try:
        return plait.sweep(fn, stored, **given)
    except PlaitError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  the function may raise anything
        leave_for_task(error, "a task failed, so there is nothing to compare", jsonl=jsonl)


def _put_out(swept: plait.Sweep, out: BinaryIO, plot: str | None, json: str | None) -> None:
    """Write what was found to where it was asked for."""
    table = f"{swept}\n"
    if json == STDOUT:
        say(table)
    _write(out, f"{swept.to_json()}\n" if json == STDOUT else table)
    try:
        if json not in (None, STDOUT):
            Path(json).write_text(f"{swept.to_json()}\n", encoding="utf-8")
        if plot is not None:
            swept.plot(plot)
    except OSError as error:
        raise OutputError(error) from None


def _write(out: BinaryIO, text: str) -> None:
    try:
        out.write(text.encode("utf-8", "backslashreplace"))
        out.flush()
    except OSError as error:
        raise OutputError(error) from None
