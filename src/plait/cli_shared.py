"""What the commands share: numbers, stdout, exit codes, signals.

stdout is for results. While a command runs, file descriptor 1 leads to stderr, for this process
and for all that it starts, and only plait itself writes to what stdout was before.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from plait.bare import socketpair
from plait.cli_items import UsageError
from plait.errors import OptionError, PlaitError, UnknownOption
from plait.wire_errors import traceback_text

if TYPE_CHECKING:
    from types import FrameType

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "USAGE",
    "CtrlC",
    "OutputError",
    "exit_codes",
    "hearing_signals",
    "leave",
    "leave_for_task",
    "read_number",
    "read_numbers",
    "say",
    "shout",
    "take_stdout",
    "text_hint",
]

FAILED, USAGE, INTERRUPTED = 1, 2, 128 + signal.SIGINT
CLOSED_PIPE = 128 + 13  # what a shell shows for a program that SIGPIPE ended
END = b"\0"  # no signal has this number
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it
FIRST_PAUSE_S, MOST_PAUSE_S = 0.005, 1.0  # between two tries to wake the main thread

# --- Numbers -----------------------------------------------------------------------------


def read_number(text: str | None) -> float | str | None:
    """Return what may be a number as one; whether it had to be, the options know."""
    for kind in (int, float):
        with suppress(ValueError):
            return None if text is None else kind(text)
    return text


def read_numbers(text: str) -> Any:
    """Return one number, or several with commas between them as a tuple."""
    numbers = [read_number(part) for part in text.split(",")]
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def text_hint(item: object, error: BaseException) -> str | None:
    """Say how to have an item read as a number, if that may be why its task failed."""
    if not isinstance(item, str) or isinstance(read_number(item), str):
        return None
    if not isinstance(error, TypeError | AttributeError):
        return None
    return (
        f"the item {item!r} was text, as all items are; "
        "with --jsonl it is read as JSON, a number for example"
    )


def leave_for_task(error: BaseException, text: str, *, jsonl: bool) -> NoReturn:
    """End the command as a task has raised something: show that, and say what follows from it."""
    say(traceback_text(error))
    run = getattr(error, "plait_run", None)
    failed = next((one for one in run.outcomes if one.error is error), None) if run else None
    hint = text_hint(failed.item, error) if failed and not jsonl else None
    leave(FAILED, f"{text}{f'; {hint}' if hint else ''}")


# --- Standard streams, exit codes --------------------------------------------------------


class OutputError(Exception):
    """The results cannot be written: nobody reads them any more, or the disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the results cannot be written: {error.strerror}.")
        self.is_closed_pipe = isinstance(error, BrokenPipeError)


@contextmanager
def take_stdout() -> Iterator[BinaryIO]:
    """Keep stdout for the results, and let all else that is printed go to stderr.

    The copy is not inherited by workers, so whoever reads it sees its end when plait ends.
    """
    try:
        saved = os.dup(1)
    except OSError:
        raise UsageError("standard output is closed, so the results could go nowhere.") from None
    stderr = os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else 2
    os.dup2(stderr, 1)
    out = os.fdopen(saved, "wb")
    try:
        with redirect_stdout(sys.stderr):
            yield out
    finally:
        with suppress(OSError):  # each line was flushed, and what could not be has been told
            out.close()


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what ends the command into a sentence on stderr and an exit code."""
    # What was loaded until now stays to the end: looking through it would take long, there too.
    gc.freeze()
    gc.enable()  # cli.py disabled it
    try:
        yield
    except (UsageError, OptionError, UnknownOption) as error:
        leave(USAGE, str(error))
    except PlaitError as error:
        leave(FAILED, str(error))
    except OutputError as error:
        if error.is_closed_pipe:  # as with "| head": no mistake, and nothing to say
            sys.exit(CLOSED_PIPE)
        leave(FAILED, str(error))
    except KeyboardInterrupt:
        leave(INTERRUPTED, "interrupted")


def leave(code: int, text: str) -> NoReturn:
    """End the command, with a sentence on stderr."""
    say(f"plait: {text}")
    sys.exit(code)


def say(text: str) -> None:
    """Write a line to stderr."""
    with suppress(OSError):  # stderr may be a closed pipe
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)  # noqa: T201


def shout(text: str) -> None:
    """Write to stderr from a signal handler, which may have come amid another write."""
    with suppress(OSError):
        start = "\n" + SHOW_CURSOR if os.isatty(2) else ""
        os.write(2, (start + text).encode())


# --- Signals -----------------------------------------------------------------------------


class CtrlC:
    """Hears Ctrl-C: the first is handled by the main thread, the second ends the program.

    Wherever the main thread is: it may be in a system call of a task, or wait for a thread that
    runs a task, which cannot be ended but by ending all.
    """

    def __init__(self, on_first: Callable[[], object], last_words: str) -> None:
        """Call ``on_first`` in the main thread, and say ``last_words`` before the end."""
        self._on_first = on_first
        self._last_words = last_words
        self._has_heard = False
        self.is_interrupted = False
        # Not where nohup has it ignored.
        self._is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._is_ours:
            signal.signal(signal.SIGINT, self._interrupt)
            signal.signal(signal.SIGURG, lambda *_: None)  # it wakes the main thread, no more

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self.is_interrupted:
            self.is_interrupted = True
            self._on_first()

    def hear(self, signum: int) -> None:
        """Take in a signal, in a thread of its own; see ``hearing_signals``."""
        if signum != signal.SIGINT or not self._is_ours:
            return
        if self._has_heard:
            shout(self._last_words)
            os._exit(INTERRUPTED)  # raising would wait for the threads, which cannot be ended
        self._has_heard = True
        threading.Thread(target=self._wake, name="plait-wake", daemon=True).start()

    def _wake(self) -> None:
        """Have the main thread handle Ctrl-C, which it does when it does not sleep.

        It was perhaps about to. Another signal wakes it, unless it is about to even now. (A SIGINT
        would be taken for a second Ctrl-C, for which a pool does not put its books in order.)
        """
        main, pause_s = threading.main_thread().ident, FIRST_PAUSE_S
        assert main is not None
        while not self.is_interrupted:
            signal.pthread_kill(main, signal.SIGURG)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_PAUSE_S)


@contextmanager
def hearing_signals(wake: Callable[[int], object]) -> Iterator[None]:
    """Have no signal wait for its handler longer than it must.

    One that arrives between Python's last look for signals and the system call in which the
    main thread goes to sleep is handled when that wakes up, which may be never. What C
    writes to the wakeup file then is seen by a thread, which calls ``wake`` with the signal's
    number, to wake the main thread.
    """
    reader, writer = socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while (heard := reader.recv(1)) != END:
            wake(heard[0])

    thread = threading.Thread(target=listen, name="plait-signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.setblocking(True)
        writer.send(END)
        thread.join()
        reader.close()
        writer.close()
