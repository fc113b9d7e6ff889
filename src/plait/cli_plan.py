"""``plait plan MODULE:FUNCTION ITEM...``: which backend would be chosen, and why.

Used by cli.py. The table is on stdout; what the function prints is on stderr.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

import plait
from plait.cli_items import UsageError, load_function, open_items
from plait.cli_shared import (
    Function,
    Input,
    Items,
    Jsonl,
    OutputError,
    Range,
    exit_codes,
    leave_for_task,
    read_number,
    take_stdout,
)
from plait.errors import PlaitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["add_to"]

# In a paragraph that begins with \b every release of typer keeps the lines as they are.
HELP = """\
Measure the first tasks, and say which backend plait map would choose for the rest, and why.

The first items are run, for 10 to 80 ms or until one has been; their results are dropped. The \
table has a row for each way, with the seconds that it is predicted to take.

FUNCTION and items are as for plait map.

\bExamples:
  plait plan tools:square --range 1 100000
  plait plan photos:thumbnail 'photos/*.jpg'
  plait plan pages:fetch --input urls.txt --max-workers 8
"""
EPILOG = """\
Exit codes: 0 all well, 1 a task failed, 2 wrong usage, 130 interrupted.
"""

_Work = partial(typer.Option, rich_help_panel="What is chosen among")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan", help=HELP, epilog=EPILOG)(_plan)


def _plan(
    function: Function,
    items: Items = None,
    *,
    range_: Range = None,
    input_: Input = None,
    jsonl: Jsonl = False,
    max_workers: Annotated[str | None, _Work(metavar="N", help="How many at most.")] = None,
) -> None:
    given = {"max_workers": read_number(max_workers)}
    with exit_codes(), take_stdout() as out:
        with open_items(items or [], range_, input_, jsonl=jsonl) as source:
            plan = _make_plan(load_function(function), source, given, jsonl=jsonl)
        try:
            out.write(f"{plan}\n".encode())
            out.flush()
        except OSError as error:
            raise OutputError(error) from None


def _make_plan(
    fn: Callable[..., Any], source: Iterable[Any], given: Any, *, jsonl: bool
) -> plait.Plan:
    try:
        return plait.plan(fn, source, **given)
    except (PlaitError, UsageError):
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  the function may raise anything
        leave_for_task(error, "a task failed, so there is no plan", jsonl=jsonl)
