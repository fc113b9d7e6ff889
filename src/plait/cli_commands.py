"""The command line: what can be typed, and what the help says about it.

Used by cli.py. The work of a command is in a module of its own, which is loaded when the command
runs: so ``--help`` and the completion of a shell load click, and next to nothing of plait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import click

import plait

__all__ = ["run_command_line"]

INTERRUPTED = 130  # as in cli_shared.py, which takes longer to load

# click keeps the lines of a paragraph that begins with \b as they are.
MAP_HELP = """\
Call a function with every item and print the results as JSON Lines.

FUNCTION is imported from MODULE, which is installed or in the current directory. \
Items come from the arguments, from --range, or from --input, one on each line, which \
may be endless. Where none of these is given and something is piped in, that is the input. \
Items are text, unless --jsonl says that they are JSON.

Each line on stdout is one result: {"index": 0, "item": "a.jpg", "value": 17}, or, \
in place of the value, {"error": {"type": ..., "message": ..., "traceback": ...}}. \
Everything else goes to stderr, what your function prints too.

\b
Examples:
  plait map math:factorial --range 1 10 --backend threads
  plait map math:sqrt --jsonl 4 2.25
  plait map photos:thumbnail 'photos/*.jpg' --report > thumbnails.jsonl
  cat urls.txt | plait map pages:fetch --max-workers 20
  find . -name '*.jpg' -print0 | plait map -0 photos:thumbnail
"""
MAP_EPILOG = """\
What JSON does not have: NaN and infinity become "NaN", "Infinity" and "-Infinity"; \
integers of thousands of digits hexadecimal strings; dataclasses and mappings objects; \
sets sorted lists; arrays lists; paths, decimals and UUIDs strings; dates ISO 8601; \
enum members their value; anything else its repr.

Exit codes: 0 all well, 1 some tasks failed, 2 wrong usage, 130 interrupted. \
Ctrl-C lets the running tasks finish; Ctrl-C again ends at once.
"""
PLAN_HELP = """\
Measure the first tasks, and say which backend plait map would choose for the rest, and why.

The first items are run, for 10 to 80 ms or until one has been; their results are dropped. The \
table has a row for each way, with the seconds that it is predicted to take.

FUNCTION and items are as for plait map.

\b
Examples:
  plait plan tools:square --range 1 100000
  plait plan photos:thumbnail 'photos/*.jpg'
  plait plan pages:fetch --input urls.txt --max-workers 8
"""
PLAN_EPILOG = """\
Exit codes: 0 all well, 1 a task failed, 2 wrong usage, 130 interrupted.
"""
SWEEP_HELP = """\
Run a function over items with pools of many sizes, and say which one pays.

For each backend and size a pool is opened, does the whole work and is closed, again and \
again, in turns with the plain loop. So name no more items than take a second or two.

FUNCTION and items are as for plait map. The table of times goes to stdout.

\b
Examples:
  plait sweep tools:square --range 1 1000 --sizes 2,4,8 --plot sweep.png
  plait sweep pages:parse 'pages/*.html' --backends processes
  plait sweep pages:fetch --input urls.txt --backends threads --sizes 4,16,64 --json -
"""
SWEEP_EPILOG = """\
Exit codes: 0 all well, 1 a task failed, 2 wrong usage, 130 interrupted. \
Ctrl-C ends it when threads have finished what they run; Ctrl-C again ends it at once.
"""


def run_command_line() -> NoReturn:
    """Run what was typed, and leave the program with its exit code."""
    try:
        code = _plait.main(prog_name="plait", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:  # Ctrl-C before a command could hear it
        code = INTERRUPTED
    sys.exit(code)


# --- Commands, options and arguments as their help shows them ------------------------------


class _Command(click.Command):
    """A command whose help has the options under headings, and a word on each argument."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", "Other options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class _Argument(click.Argument):
    """An argument with a help text, which click has since 8.5."""

    section = "Arguments"

    def __init__(self, names: list[str], *, text: str, **settings: Any) -> None:
        super().__init__(names, **settings)
        self.text = text

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:  # noqa: ARG002
        return self.human_readable_name, self.text


class _Option(click.Option):
    """An option that stands under a heading."""

    def __init__(self, names: list[str], *, section: str, **settings: Any) -> None:
        super().__init__(names, **settings)
        self.section = section


def _offer(*words: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return what a shell asks for the words that an option takes."""
    return lambda _, __, begun: [word for word in words if word.startswith(begun)]


# Any text is one: the shell completes the names of files.
FILE = click.Path(readable=False)
SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "show_default": True,
    "max_content_width": 110,
}

_argument = partial(click.argument, cls=_Argument)
_source = partial(click.option, cls=_Option, section="Items, from one of these sources")
_work = partial(click.option, cls=_Option, section="How they are run")
_care = partial(click.option, cls=_Option, section="When something goes wrong")
_output = partial(click.option, cls=_Option, section="What is shown")


@click.group(
    invoke_without_command=True,
    context_settings=SETTINGS,
    help="Run your function over your items on the right kind of worker, and lose nothing.",
)
@click.version_option(plait.__version__, message="plait %(version)s")
@click.pass_context
def _plait(context: click.Context) -> None:
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


_FUNCTION_HELP = "Where to find it, for example math:sqrt or images:Photo.open."
_ITEM_HELP = "The items. Patterns like '*.jpg' stand for the files that they match."
_RANGE_HELP = "The integers from A to B, both included."
_INPUT_HELP = (
    "A file with one item on each line; - is standard input, which is also read where something "
    "is piped in and no items are named."
)
_NULL_HELP = "Items of the input end with a NUL, not with a line: find -print0, git ls-files -z."
_JSONL_HELP = "Items are JSON values: 4 is a number, [1, 2] a list."


def _takes_items(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the arguments and options that say what to call, and with what."""
    for decorate in (
        _source("--jsonl", is_flag=True, help=_JSONL_HELP),
        _source("-0", "--null", is_flag=True, help=_NULL_HELP),
        _source("--input", "input_", type=FILE, metavar="FILE", help=_INPUT_HELP),
        _source("--range", "range_", type=int, nargs=2, metavar="A B", help=_RANGE_HELP),
        _argument("items", metavar="ITEM...", nargs=-1, type=FILE, text=_ITEM_HELP),
        _argument("function", metavar="MODULE:FUNCTION", text=_FUNCTION_HELP),
    ):
        command = decorate(command)
    return command


# --- The commands --------------------------------------------------------------------------


def _command(name: str, summary: str, epilog: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Add a command, whose help begins with its first line."""
    short = summary.partition("\n")[0]
    return _plait.command(name, cls=_Command, help=summary, short_help=short, epilog=epilog)


_BACKENDS = ("auto", "serial", "threads", "processes", "asyncio")
_START_METHODS = ("server", "spawn")
_ON_ERROR = ("return", "raise")
_BACKEND_HELP = "The kind of worker; auto measures the first tasks and chooses."
_WORKERS_HELP = "How many at most."
_CHUNK_HELP = "Tasks sent together."
_BUFFER_HELP = "Items read ahead, or done and waiting for their turn to be printed."
_START_HELP = "Processes are forked from a small server, or each started as a fresh Python."
_PRELOAD_HELP = "A module that workers have from the start, for example numpy; may be repeated."
_ERROR_HELP = "After a task failed: go on, or start nothing more."
_RETRIES_HELP = "Further tries of a task that failed."
_BACKOFF_HELP = "Before a further try, up to S * FACTOR^(tries - 1) seconds, at most MAX."
_TASK_TIMEOUT_HELP = "Seconds that one task may take, or 5x: five times the median so far."
_TIMEOUT_HELP = "Seconds that all of it may take."
_RATE_HELP = "How many tasks may start in a time: 10/s, 100/min, 5000/h, tries included."
_MEMORY_HELP = "What a worker process may have, for example 2GB; only for processes."
_MOST_TASKS_HELP = "Replace a worker process after so many tasks."
_PREFIX_HELP = "Begin lines that worker processes print with the worker's name."
_ORDER_HELP = "Print results in the order of the items, or as soon as they are there."
_PROGRESS_HELP = "A bar on stderr; by default where stderr is a terminal and stdout is none."
_REPORT_HELP = "At the end, the run in numbers, on stderr."


@_command("map", MAP_HELP, MAP_EPILOG)
@_takes_items
@_work(
    "--backend",
    default="auto",
    metavar="|".join(_BACKENDS),
    shell_complete=_offer(*_BACKENDS),
    help=_BACKEND_HELP,
)
@_work("--max-workers", metavar="N", help=_WORKERS_HELP)
@_work("--chunksize", default="auto", metavar="N|auto", help=_CHUNK_HELP)
@_work("--buffersize", default="auto", metavar="N|auto", help=_BUFFER_HELP)
@_work(
    "--start-method",
    metavar="|".join(_START_METHODS),
    shell_complete=_offer(*_START_METHODS),
    help=_START_HELP,
)
@_work("--preload", multiple=True, metavar="NAME", help=_PRELOAD_HELP)
@_care(
    "--on-error",
    default="return",
    metavar="|".join(_ON_ERROR),
    shell_complete=_offer(*_ON_ERROR),
    help=_ERROR_HELP,
)
@_care("--retries", default="0", metavar="N", help=_RETRIES_HELP)
@_care("--backoff", default="0.1,2,30", metavar="S[,FACTOR,MAX]", help=_BACKOFF_HELP)
@_care("--task-timeout", metavar="S|Nx", help=_TASK_TIMEOUT_HELP)
@_care("--rate", metavar="N/s", help=_RATE_HELP)
@_care("--timeout", metavar="S", help=_TIMEOUT_HELP)
@_care("--memory-limit", metavar="SIZE", help=_MEMORY_HELP)
@_care("--max-tasks-per-child", metavar="N", help=_MOST_TASKS_HELP)
@_output("--ordered/--no-ordered", default=True, help=_ORDER_HELP)
@_output("--progress/--no-progress", default=None, help=_PROGRESS_HELP)
@_output("--prefix-output", is_flag=True, help=_PREFIX_HELP)
@_output("--report", is_flag=True, help=_REPORT_HELP)
def _map(**typed: Any) -> int:
    from plait.cli_map import run_map

    return run_map(typed)


@_command("plan", PLAN_HELP, PLAN_EPILOG)
@_takes_items
@_work("--max-workers", metavar="N", help=_WORKERS_HELP)
def _plan(**typed: Any) -> int:
    from plait.cli_plan import run_plan

    return run_plan(typed)


_compared = partial(click.option, cls=_Option, section="What is compared")
_POOLS = ("threads", "processes", "asyncio")
_POOLS_HELP = "threads, processes, asyncio; a coroutine function is for asyncio."
_SIZES_HELP = "Numbers of workers; three or more above 1 show a law of scaling."
_REPEATS_HELP = "How often each is measured; one round more goes before and does not count."
_PLOT_HELP = "Draw throughput by size into a .png or .svg file; needs plait[plot]."
_JSON_HELP = "Write all times, of each round too, as JSON; - is stdout, in place of the table."
_BAR_HELP = "A bar on stderr; by default where that is a terminal."


@_command("sweep", SWEEP_HELP, SWEEP_EPILOG)
@_takes_items
@_compared(
    "--backends",
    default="threads,processes",
    metavar="NAME,...",
    shell_complete=_offer(*_POOLS),
    help=_POOLS_HELP,
)
@_compared("--sizes", default="1,2,4,8", metavar="N,...", help=_SIZES_HELP)
@_compared("--repeats", default="5", metavar="N", help=_REPEATS_HELP)
@_compared("--chunksize", default="auto", metavar="N|auto", help=_CHUNK_HELP)
@_output("--plot", type=FILE, metavar="FILE", help=_PLOT_HELP)
@_output("--json", "json_", type=FILE, metavar="FILE|-", help=_JSON_HELP)
@_output("--progress/--no-progress", default=None, help=_BAR_HELP)
def _sweep(**typed: Any) -> int:
    from plait.cli_sweep import run_sweep

    return run_sweep(typed)
