"""Show how far a run is: a bar on stderr or in a notebook, or whatever the user's function does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from plait.host import monotonic
from plait.tables import escape

if TYPE_CHECKING:
    from logging import StreamHandler

    from plait.options import Progress

__all__ = ["show_progress"]

Show = Callable[[int, int | None], object]
NOTEBOOK_S = 0.1
"""Between two pictures of a bar in a notebook: each is a message to the browser."""


@contextmanager
def show_progress(
    option: Progress, title: str, total: int | None, failures: Callable[[], int] = lambda: 0
) -> Iterator[Show | None]:
    """Give a function to be called with (tasks done, total), or None where nothing is shown.

    A bar also shows how many of the tasks have failed, as ``failures`` returns.
    """
    if callable(option):
        yield option
    elif option and _is_notebook():
        with _notebook_bar(title, failures) as show:
            yield show
    elif option and sys.stderr is not None:
        with _bar(title, total, failures) as show:
            yield show
    else:
        yield None


# --- On stderr -----------------------------------------------------------------------------


@contextmanager
def _bar(title: str, total: int | None, failures: Callable[[], int]) -> Iterator[Show]:
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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}", style="red"),
        TextColumn("{task.fields[rate]}", style="progress.data.speed"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(file=sys.stderr, force_jupyter=False)
    is_live = console.is_terminal
    streams = {id(one) for one in (sys.stderr, sys.stdout) if is_live and _is_terminal(one)}
    # Where stdout is a file, what is printed is for that file, and not for the terminal.
    progress = Progress(*columns, console=console, redirect_stdout=_is_terminal(sys.stdout))
    with progress, _logging_above(streams):
        started = monotonic()
        task = progress.add_task(title, total=total, failed="", rate="")

        def show(done: int, total: int | None) -> None:
            progress.update(
                task,
                completed=done,
                total=total,
                failed=_failed_text(failures()),
                rate=_rate_text(done, monotonic() - started),
            )

        yield show


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


@contextmanager
def _logging_above(streams: set[int]) -> Iterator[None]:
    """Have handlers of logging that write to the terminal do so above the bar.

    They have kept the stream that ``sys.stderr`` was, which rich has put another in the place of.
    """
    moved: list[tuple[StreamHandler[Any], Any]] = []
    logging = sys.modules.get("logging")
    for ref in getattr(logging, "_handlerList", ()):
        handler = ref()
        stream = getattr(handler, "stream", None)
        # What takes its stream from sys at each record does the right thing by itself.
        if id(stream) in streams and "stream" in vars(handler):
            moved.append((handler, stream))
            handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler, stream in moved:
            if handler.stream is not stream and hasattr(handler.stream, "rich_proxied_file"):
                handler.setStream(stream)


# --- In a notebook -------------------------------------------------------------------------


def _is_notebook() -> bool:
    """Whether there is a browser that shows HTML, and no terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


@contextmanager
def _notebook_bar(title: str, failures: Callable[[], int]) -> Iterator[Show]:
    """Show a bar in the output of a cell, from the first task on: before it there is nothing."""
    from IPython.display import display

    started = monotonic()
    shown_at = -NOTEBOOK_S
    handle: Any = None
    latest: dict[str, str] = {}

    def put(picture: dict[str, str]) -> None:
        nonlocal handle
        if handle is None:
            handle = display(picture, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            handle.update(picture, raw=True)

    def show(done: int, total: int | None) -> None:
        nonlocal shown_at, latest
        now = monotonic()
        latest = _picture(title, done, total, failures(), now - started)
        if now - shown_at >= NOTEBOOK_S:
            shown_at = now
            put(latest)
            latest = {}

    try:
        yield show
    finally:
        if latest:
            put(latest)


def _picture(
    title: str, done: int, total: int | None, failed: int, elapsed_s: float
) -> dict[str, str]:
    """Return a bar as text and as HTML."""
    parts = [f"{done:,}/{'?' if total is None else f'{total:,}'}"]
    parts += [_failed_text(failed), _rate_text(done, elapsed_s), f"{elapsed_s:.1f} s"]
    if total is not None and 0 < done < total:
        parts.append(f"{(total - done) * elapsed_s / done:.1f} s left")
    words = f"{title}: {', '.join(filter(None, parts))}"
    value = "" if total is None else f' value="{done}" max="{max(total, 1)}"'
    html = f"<progress{value}></progress> {escape(words)}"
    return {"text/plain": words, "text/html": html}


# --- Words ---------------------------------------------------------------------------------


def _failed_text(failed: int) -> str:
    return f"{failed:,} failed" if failed else ""


def _rate_text(done: int, elapsed_s: float) -> str:
    """Say how many tasks were done in a second.

    >>> _rate_text(2500, 2), _rate_text(3, 4), _rate_text(0, 1)
    ('1,250/s', '0.75/s', '')
    """
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    if not rate:
        return ""
    return f"{rate:,.0f}/s" if rate >= 99.95 else f"{rate:.3g}/s"
