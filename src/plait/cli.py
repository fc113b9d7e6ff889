"""The command line, and ``plait map MODULE:FUNCTION ITEM...``.

Results are JSON Lines on stdout, and nothing else ever is (see cli_shared.py). Other commands have
modules of their own.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

import plait
from plait import cli_plan, cli_sweep
from plait.cli_items import UsageError, load_function, open_items
from plait.cli_shared import (
    FAILED,
    INTERRUPTED,
    Function,
    Input,
    Items,
    Jsonl,
    OutputError,
    Range,
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
from plait.options import BACKENDS, START_METHODS, OptionArgs, Options
from plait.server_process import start_early

if TYPE_CHECKING:
    from types import FrameType

    from plait.outcome import Outcome

__all__ = ["app", "main"]

ON_ERROR = ("return", "raise")  # "finish" is "return" here: each line is an outcome

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Run your function over your items on the right kind of worker, and lose nothing.",
)


def main() -> None:
    """Run the command line; does not return."""
    app(prog_name="plait")


@app.callback(invoke_without_command=True)
def _plait(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        typer.echo(f"plait {plait.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


cli_plan.add_to(app)
cli_sweep.add_to(app)


# --- plait map ---------------------------------------------------------------------------

# In a paragraph that begins with \b every release of typer keeps the lines as they are.
MAP_HELP = """\
Call a function with every item and print the results as JSON Lines.

FUNCTION is imported from MODULE, which is installed or in the current directory. \
Items come from the arguments, from --range, or from --input, one on each line, which \
may be endless. \
They are text, unless --jsonl says that they are JSON.

Each line on stdout is one result: {"index": 0, "item": "a.jpg", "value": 17}, or, \
in place of the value, {"error": {"type": ..., "message": ..., "traceback": ...}}. \
Everything else goes to stderr, what your function prints too.

\bExamples:
  plait map math:factorial --range 1 10
  plait map math:sqrt --jsonl 4 2.25
  plait map photos:thumbnail 'photos/*.jpg' --report > thumbnails.jsonl
  cat urls.txt | plait map pages:fetch --input - --max-workers 20
"""
MAP_EPILOG = """\
What JSON does not have: NaN and infinity become "NaN", "Infinity" and "-Infinity"; \
integers of thousands of digits hexadecimal strings; dataclasses and mappings objects; \
sets sorted lists; arrays lists; paths, decimals and UUIDs strings; dates ISO 8601; \
enum members their value; anything else its repr.

Exit codes: 0 all well, 1 some tasks failed, 2 wrong usage, 130 interrupted. \
Ctrl-C lets the running tasks finish; Ctrl-C again ends at once.
"""

_Work = partial(typer.Option, rich_help_panel="How they are run")
_Care = partial(typer.Option, rich_help_panel="When something goes wrong")
_Output = partial(typer.Option, rich_help_panel="What is shown")

_BACKEND_HELP = "The kind of worker; auto measures the first tasks and chooses."
_BUFFER_HELP = "Items read ahead, or done and waiting for their turn to be printed."
_START_HELP = "Processes are forked from a small server, or each started as a fresh Python."
_PRELOAD_HELP = "A module that workers have from the start, for example numpy; may be repeated."
_ERROR_HELP = "After a task failed: go on, or start nothing more."
_BACKOFF_HELP = "Before a further try, up to S * FACTOR^(tries - 1) seconds, at most MAX."
_TASK_TIMEOUT_HELP = "Seconds that one task may take, or 5x: five times the median so far."
_RATE_HELP = "How many tasks may start in a time: 10/s, 100/min, 5000/h, tries included."
_MEMORY_HELP = "What a worker process may have, for example 2GB; only for processes."
_PREFIX_HELP = "Begin lines that worker processes print with the worker's name."
_ORDER_HELP = "Print results in the order of the items, or as soon as they are there."
_PROGRESS_HELP = "A bar on stderr; by default where stderr is a terminal and stdout is none."


@app.command("map", help=MAP_HELP, epilog=MAP_EPILOG)
def _map(
    function: Function,
    items: Items = None,
    *,
    range_: Range = None,
    input_: Input = None,
    jsonl: Jsonl = False,
    backend: Annotated[str, _Work(metavar="|".join(BACKENDS), help=_BACKEND_HELP)] = "auto",
    max_workers: Annotated[str | None, _Work(metavar="N", help="How many at most.")] = None,
    chunksize: Annotated[str, _Work(metavar="N|auto", help="Tasks sent together.")] = "auto",
    buffersize: Annotated[str, _Work(metavar="N|auto", help=_BUFFER_HELP)] = "auto",
    start_method: Annotated[
        str | None, _Work(metavar="|".join(START_METHODS), help=_START_HELP)
    ] = None,
    preload: Annotated[
        list[str] | None, _Work("--preload", metavar="NAME", help=_PRELOAD_HELP)
    ] = None,
    on_error: Annotated[str, _Care(metavar="|".join(ON_ERROR), help=_ERROR_HELP)] = "return",
    retries: Annotated[str, _Care(metavar="N", help="Further tries of a task that failed.")] = "0",
    backoff: Annotated[str, _Care(metavar="S[,FACTOR,MAX]", help=_BACKOFF_HELP)] = "0.1,2,30",
    task_timeout: Annotated[str | None, _Care(metavar="S|Nx", help=_TASK_TIMEOUT_HELP)] = None,
    rate: Annotated[str | None, _Care(metavar="N/s", help=_RATE_HELP)] = None,
    timeout: Annotated[
        str | None, _Care(metavar="S", help="Seconds that all of it may take.")
    ] = None,
    memory_limit: Annotated[str | None, _Care(metavar="SIZE", help=_MEMORY_HELP)] = None,
    max_tasks_per_child: Annotated[
        str | None, _Care(metavar="N", help="Replace a worker process after so many tasks.")
    ] = None,
    ordered: Annotated[bool, _Output("--ordered/--no-ordered", help=_ORDER_HELP)] = True,
    progress: Annotated[
        bool | None, _Output("--progress/--no-progress", help=_PROGRESS_HELP)
    ] = None,
    prefix_output: Annotated[bool, _Output("--prefix-output", help=_PREFIX_HELP)] = False,
    report: Annotated[
        bool, _Output("--report", help="At the end, the run in numbers, on stderr.")
    ] = False,
) -> None:
    given = {
        "backend": backend,
        "max_workers": read_number(max_workers),
        "chunksize": read_number(chunksize),
        "buffersize": read_number(buffersize),
        "start_method": start_method,
        "preload": tuple(preload or ()),
        "on_error": on_error,
        "retries": read_number(retries),
        "backoff": read_numbers(backoff),
        "task_timeout": read_number(task_timeout),
        "rate": read_number(rate),
        "timeout": read_number(timeout),
        "memory_limit": read_number(memory_limit),
        "max_tasks_per_child": read_number(max_tasks_per_child),
        "prefix_output": prefix_output,
        "ordered": ordered,
        "progress": _is_watched() if progress is None else progress,
    }
    with exit_codes(), take_stdout() as out:
        options = _check(given)
        if backend == "processes":
            start_early()  # while the function's module is imported
        with open_items(items or [], range_, input_, jsonl=jsonl) as source:
            mapping = _Mapping(load_function(function), source, options, out)
            try:
                code = mapping.run()
            finally:
                if report:
                    say(str(mapping.report))
            if mapping.hint is not None and not jsonl:
                say(f"plait: {mapping.hint}")
        raise typer.Exit(code)


def _check(given: dict[str, Any]) -> OptionArgs:
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
        self._is_interrupted = False
        self.hint: str | None = None  # for an item that the function took for a number

    @property
    def report(self) -> plait.Report:
        """The run in numbers."""
        return self._run.report

    def run(self) -> int:
        """Run the tasks, print their outcomes, and return the exit code for them."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup ignores it
            signal.signal(signal.SIGINT, self._interrupt)
        try:
            with hearing_signals(lambda _: self._run.wake()), self._run:
                for outcome in self._run:
                    self._print(outcome)
        except (UsageError, PlaitError):
            self._tell_failures()
            raise
        self._tell_failures()
        if self._is_interrupted:
            say(f"plait: interrupted; outcomes done and printed: {self._printed}")
            return INTERRUPTED
        return FAILED if self.report.errors else 0

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._is_interrupted:
            shout("plait: ended now; what ran is lost\n")
            os._exit(INTERRUPTED)  # raising would wait for the threads, which cannot be ended
        self._is_interrupted = True
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


if __name__ == "__main__":
    main()
