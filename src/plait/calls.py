"""What the functions of api.py do: check what they are given, make a Run, and view it.

Used by aio.py, executor.py and sweeping.py, too. Arguments are checked here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from plait.beside import LongTask
from plait.choice import is_coroutine
from plait.clocks import monotonic
from plait.errors import OptionError
from plait.foreign import attempt
from plait.inputs import can_slice, is_iterable, rest_of
from plait.options import Options
from plait.outcome import Call
from plait.preload import check_preload
from plait.quick import Start, join, total_of
from plait.runs import Run

if TYPE_CHECKING:
    from plait.backends.contract import Backend
    from plait.plans import Plan
    from plait.throttle import Pace

__all__ = [
    "are_at_hand",
    "attach",
    "check",
    "collect",
    "collect_values",
    "go_beside",
    "go_on",
    "listed",
    "make_plan",
    "make_run",
    "prepare",
    "style_of",
    "values_of",
    "yield_values",
]


def collect_values(
    fn: Callable[..., Any],
    style: str,
    iterables: tuple[Iterable[Any], ...],
    given: Any,
    start: Start | None = None,
) -> list[Any]:
    """Do what ``map`` and ``starmap`` promise, from a quick start on if there was one."""
    options = check(fn, given).with_order(ordered=True)
    if start is None:
        made = prepare(Call(fn, style), iterables, options, keeps=True)
    else:
        made = go_on(start, options) if start.claim.is_ours else start.beside.run
    return collect(made, options)


def go_on(start: Start, options: Options) -> Run:
    """Make a Run of what a quick start has left; the task in which it may be counts as done."""
    iterables, done = start.iterables, len(start.items)
    items: Any = start.raising_rest()
    if start.fatal is None and are_at_hand(iterables):
        # Nobody else reads from these: the plain loop may still be about to, beside a helper.
        rests = tuple(rest_of(iterable, done) for iterable in iterables)
        items = rests[0] if len(rests) == 1 else join(rests)
    return Run(
        Call(start.fn, start.style),
        items,
        start.total,
        options,
        keeps=True,
        start=start,
        first=done,
        is_stored=are_stored(start.iterables),
        is_at_hand=are_at_hand(start.iterables),
    )


def go_beside(start: Start) -> None:
    """Go on with a map whose first moment has no end, as its thread is in a long task.

    That thread begins nothing after it without asking for the claim: so its tasks are as many
    from now on, until one of the two has it. (Before ``until`` it would begin the next one.)
    """
    is_last = monotonic() >= start.until and len(start.items) == len(start.values) + 1
    if not is_last or not are_at_hand(start.iterables):
        return
    run = go_on(start, Options().with_order(ordered=True))
    task = LongTask(start.before, start.thread, start.claim, start.imports, start.heart)
    run.begin_beside(task)


def yield_values(
    fn: Callable[..., Any], iterables: tuple[Iterable[Any], ...], given: Any
) -> Iterator[Any]:
    """Do what ``imap`` promises."""
    options = check(fn, given).with_order(ordered=True)
    return values_of(prepare(Call(fn, style_of(iterables)), iterables, options), options.on_error)


def make_run(fn: Callable[..., Any], iterables: tuple[Iterable[Any], ...], given: Any) -> Run:
    """Do what ``run`` promises."""
    options = check(fn, {"on_error": "return", **given}).with_order(ordered=False)
    return prepare(Call(fn, style_of(iterables)), iterables, options)


def make_plan(fn: Callable[..., Any], iterables: tuple[Iterable[Any], ...], given: Any) -> Plan:
    """Do what ``plan`` promises."""
    options = check(fn, given).with_order(ordered=True)
    made = prepare(Call(fn, style_of(iterables)), iterables, options, keeps=True)
    try:
        return made.explain()
    except BaseException as error:
        attach(error, made)
        raise


# --- From arguments to a Run -------------------------------------------------------------


def check(fn: object, given: Any) -> Options:
    """Check the function and the options against each other."""
    if not callable(fn):
        raise TypeError(f"plait needs a function to call, not {type(fn).__name__}: {fn!r}")
    options = Options.of(given)
    check_preload(options.preload)
    if is_coroutine(fn) and options.backend not in ("auto", "asyncio"):
        raise OptionError(
            "backend", options.backend, "'asyncio' or 'auto' for a coroutine function"
        )
    if options.backend == "asyncio" and not is_coroutine(fn):
        allowed = "another one: 'asyncio' is for coroutine functions (async def), and this is none"
        raise OptionError("backend", options.backend, allowed)
    return options


def prepare(
    call: Call,
    iterables: tuple[Iterable[Any], ...],
    options: Options,
    *,
    backend: Backend | None = None,
    pace: Pace | None = None,
    keeps: bool = False,
) -> Run:
    """Make a Run over the items, the tuples of items if there are several iterables."""
    for place, iterable in enumerate(iterables, 1):
        if not is_iterable(iterable):
            raise TypeError(f"the {_nth(place)} input is no iterable but {type(iterable).__name__}")
    if not iterables:
        raise TypeError("plait needs at least one iterable of items")
    if options.executor is not None:
        backend, pace = options.executor.backend_for_calls(), options.executor.pace
    total = total_of(iterables)
    is_one = len(iterables) == 1 and can_slice(iterables[0])
    items = iterables[0] if is_one else join(iterables)
    return Run(
        call,
        items,
        total,
        options,
        backend=backend,
        pace=pace,
        keeps=keeps,
        is_stored=keeps and are_stored(iterables),
        is_at_hand=are_at_hand(iterables),
    )


def are_stored(iterables: tuple[Iterable[Any], ...]) -> bool:
    """Whether all items are there already: what makes them as it goes may use one object again."""
    return all(type(iterable) in (list, tuple) for iterable in iterables)


def are_at_hand(iterables: tuple[Iterable[Any], ...]) -> bool:
    """Whether any thread may read them: nothing of the user's runs, or waits, for the next item."""
    return all(map(can_slice, iterables))


def _nth(place: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(place, f"{place}th")


def style_of(iterables: tuple[Iterable[Any], ...]) -> str:
    """Return how a function is applied to what ``prepare`` makes of these iterables."""
    return "one" if len(iterables) == 1 else "star"


# --- From a Run to values ----------------------------------------------------------------


def collect(made: Run, options: Options) -> list[Any]:
    """Do a run and return all of its values, or raise what its errors ask for."""
    try:
        made.collect()
    except BaseException as error:  # Ctrl-C, too, carries what was finished
        attach(error, made)
        raise
    return listed(made, options)


def listed(made: Run, options: Options) -> list[Any]:
    """Return all values of a finished run, or raise what its errors ask for."""
    stretches = made.finished()
    if not made.report.errors:
        return _joined([finished.values for finished in stretches])
    values: list[Any] = []
    errors: list[BaseException] = []
    for finished in stretches:
        place = len(values)
        values += finished.values
        if not finished.is_given_up:  # another error ended the run
            errors += [finished.errors[key] for key in sorted(finished.errors)]
        if options.on_error == "return":
            for offset, error in finished.errors.items():
                values[place + offset] = error
    if errors and options.on_error == "raise":
        raise attach(errors[0], made)
    if errors and options.on_error == "finish":
        raise attach(_group(errors, made), made)
    return values


def _joined(lists: list[list[Any]]) -> list[Any]:
    """Join lists that nobody needs any more: the longest takes in the others.

    A plain loop makes one list and no copy; here most values are not copied either.
    """
    if not lists:
        return []
    longest = max(range(len(lists)), key=lambda place: len(lists[place]))
    values = lists[longest]
    values[:0] = chain.from_iterable(lists[:longest])
    for part in lists[longest + 1 :]:
        values += part
    return values


def values_of(made: Run, on_error: str) -> Iterator[Any]:
    """Yield the values of a run one by one, or raise what its errors ask for."""
    errors: list[BaseException] = []
    try:
        for finished in made.stretches():
            if not finished.errors:
                yield from finished.values
            elif on_error == "finish":
                errors += finished.errors.values()
                yield from (outcome.value for outcome in finished.outcomes() if outcome.ok)
            elif on_error == "return":
                outcomes = finished.outcomes()
                yield from (out.value if out.ok else out.error for out in outcomes)
            else:
                yield from (outcome.unwrap() for outcome in finished.outcomes())
    except BaseException as error:
        attach(error, made)
        raise
    finally:
        made.cancel()
    if errors:
        raise attach(_group(errors, made), made)


def _group(errors: list[BaseException], made: Run) -> BaseException:
    return BaseExceptionGroup(f"{len(errors)} of {made.report.tasks} tasks failed", errors)


def attach(error: BaseException, made: Run) -> BaseException:
    """Let an exception carry the run that it ends."""
    attempt(setattr, error, "plait_run", made)  # of a class that may have no room for it
    return error
