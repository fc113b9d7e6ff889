"""``plait map MODULE:FUNCTION ITEM...``: run the tasks, and print their outcomes.

Used by cli.py. Results are JSON Lines on stdout, and nothing else ever is (see cli_shared.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import plait
from plait.cli_items import Source, UsageError, load_function
from plait.cli_shared import (
    FAILED,
    INTERRUPTED,
    CtrlC,
    OutputError,
    exit_codes,
    hearing_signals,
    read_number,
    read_numbers,
    say,
    shout,
    take_stdout,
    text_hint,
)
from plait.errors import OptionError, PlaitError
from plait.json_lines import json_line
from plait.options import OptionArgs, Options
from plait.server_process import start_early

if TYPE_CHECKING:
    from plait.outcome import Outcome

__all__ = ["run_map"]

ON_ERROR = ("return", "raise")  # "finish" is "return" here: each line is an outcome
NUMBERS = (
    "max_workers",
    "chunksize",
    "buffersize",
    "retries",
    "task_timeout",
    "rate",
    "timeout",
    "memory_limit",
    "max_tasks_per_child",
)


def run_map(typed: dict[str, Any]) -> int:
    """Do what was typed, and return the exit code."""
    if typed["progress"] is None:
        typed["progress"] = _is_watched()
    with exit_codes(), take_stdout() as out:
        source, function = Source.of(typed), typed.pop("function")
        has_report = typed.pop("report")
        options = _options_of(typed)
        if options["backend"] == "processes":
            start_early()  # while the function's module is imported
        with source.open() as items:
            mapping = _Mapping(load_function(function), items, options, out)
            try:
                code = mapping.run()
            finally:
                if has_report:
                    say(str(mapping.report))
            if mapping.hint is not None and not source.jsonl:
                say(f"plait: {mapping.hint}")
        return code


def _options_of(typed: dict[str, Any]) -> OptionArgs:
    given = {
        **typed,
        **{name: read_number(typed[name]) for name in NUMBERS},
        "backoff": read_numbers(typed["backoff"]),
    }
    if given["on_error"] not in ON_ERROR:
        allowed = "one of " + ", ".join(map(repr, ON_ERROR))
        raise OptionError("on_error", given["on_error"], allowed)
    Options.of(given)
    return cast("OptionArgs", given)


def _is_watched() -> bool:
    """Whether a bar helps: results that run over the terminal show the progress themselves."""
    return sys.stderr is not None and sys.stderr.isatty() and not os.isatty(1)


# --- The run -----------------------------------------------------------------------------


class _Mapping:
    """One ``plait map``: runs, prints what is done, and hears Ctrl-C.

    The first Ctrl-C stops the reading of input; what runs can finish and is printed. The
    second ends the program here and now; its workers do not outlive it.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        source: Iterable[Any],
        options: OptionArgs,
        out: BinaryIO,
    ) -> None:
        self._run = plait.run(function, source, **options)
        self._stops_at_error = options["on_error"] == "raise"
        self._out = out
        self._printed = 0
        self.hint: str | None = None  # for an item that the function took for a number

    @property
    def report(self) -> plait.Report:
        """The run in numbers."""
        return self._run.report

    def run(self) -> int:
        """Run the tasks, print their outcomes, and return the exit code for them."""
        self._ctrl_c = CtrlC(self._stop, "plait: ended now; what ran is lost\n")
        try:
            with hearing_signals(self._hear), self._run:
                for outcome in self._run:
                    self._print(outcome)
        except (UsageError, PlaitError):
            self._tell_failures()
            raise
        self._tell_failures()
        if self._ctrl_c.is_interrupted:
            say(f"plait: interrupted; outcomes done and printed: {self._printed}")
            return INTERRUPTED
        return FAILED if self.report.errors else 0

    def _hear(self, signum: int) -> None:
        self._ctrl_c.hear(signum)
        self._run.wake()

    def _stop(self) -> None:
        shout("plait: interrupted; what runs may finish, Ctrl-C again ends it\n")
        self._run.stop()

    def _print(self, outcome: Outcome) -> None:
        try:
            self._out.write(json_line(outcome))
            self._out.flush()
        except OSError as error:
            raise OutputError(error) from None
        self._printed += 1
        if outcome.error is not None and self.hint is None:
            self.hint = text_hint(outcome.item, outcome.error)

    def _tell_failures(self) -> None:
        if self.report.errors:
            rest = "; nothing was started after the first error" if self._stops_at_error else ""
            say(f"plait: {self.report.errors} of {self.report.tasks} tasks failed{rest}")
