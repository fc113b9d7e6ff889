"""Show how far a run is: a bar on stderr, or whatever the user's function does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plait.options import Progress

__all__ = ["show_progress"]

Show = Callable[[int, int | None], object]


@contextmanager
def show_progress(option: Progress, title: str, total: int | None) -> Iterator[Show | None]:
    """Give a function to be called with (tasks done, total), or None where nothing is shown."""
    if callable(option):
        yield option
    elif not option:
        yield None
    else:
        with _bar(title, total) as show:
            yield show


@contextmanager
def _bar(title: str, total: int | None) -> Iterator[Show]:
    from importlib.util import find_spec

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # In a notebook rich wants ipywidgets; where they are missing, text does.
    jupyter = None if find_spec("ipywidgets") else False
    console = Console(file=sys.stderr, force_jupyter=jupyter)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done, total: progress.update(task, completed=done, total=total)
