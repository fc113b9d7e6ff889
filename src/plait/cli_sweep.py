"""``plait sweep MODULE:FUNCTION ITEM...``: how long it takes with each pool size.

Used by cli.py. The table is on stdout, or JSON in its place; all else is on stderr.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import plait
from plait.cli_items import Source, UsageError, load_function
from plait.cli_shared import (
    CtrlC,
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

__all__ = ["run_sweep"]

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
    with (
        exit_codes(),
        take_stdout() as out,
        hearing_signals(CtrlC(_stop, "plait: ended now\n").hear),
    ):
        _check_files(plot, json)
        source = Source.of(typed)
        with source.open() as items:
            swept = _run(load_function(typed["function"]), items, given, jsonl=source.jsonl)
        _put_out(swept, out, plot, json)
        return 0


def _stop() -> NoReturn:
    shout("plait: interrupted; threads finish what they run, Ctrl-C again ends it\n")
    raise KeyboardInterrupt


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
