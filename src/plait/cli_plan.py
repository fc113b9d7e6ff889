"""``plait plan MODULE:FUNCTION ITEM...``: which backend would be chosen, and why.

Used by cli.py. The table is on stdout; what the function prints is on stderr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plait
from plait.cli_items import Source, UsageError, load_function
from plait.cli_shared import (
    OutputError,
    exit_codes,
    leave_for_task,
    read_number,
    take_stdout,
)
from plait.errors import PlaitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["run_plan"]


def run_plan(typed: dict[str, Any]) -> int:
    """Do what was typed, and return the exit code."""
    with exit_codes(), take_stdout() as out:
        given = {"max_workers": read_number(typed["max_workers"])}
        source = Source.of(typed)
        with source.open() as items:
            fn = load_function(typed["function"])
            plan = _make_plan(fn, items, given, jsonl=source.jsonl)
        try:
            out.write(f"{plan}\n".encode())
            out.flush()
        except OSError as error:
            raise OutputError(error) from None
        return 0


def _make_plan(
    fn: Callable[..., Any], items: Iterable[Any], given: Any, *, jsonl: bool
) -> plait.Plan:
    try:
        return plait.plan(fn, items, **given)
    except (PlaitError, UsageError):
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  the function may raise anything
        leave_for_task(error, "a task failed, so there is no plan", jsonl=jsonl)
