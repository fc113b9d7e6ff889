"""What a user can call. Arguments are checked here, once; what happens is in run.py.

The same for asyncio programs is in aio.py, and for ``concurrent.futures`` in executor.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from plait.choice import is_coroutine
from plait.errors import OptionError
from plait.options import OptionArgs, Options
from plait.outcome import Call
from plait.run import Run

if TYPE_CHECKING:
    from typing import Unpack

    from plait.backends import Backend

__all__ = [
    "attach",
    "check",
    "imap",
    "listed",
    "map",
    "prepare",
    "run",
    "starmap",
    "style_of",
    "values_of",
]

T = TypeVar("T")


def map(  # noqa: A001  the name that Python gave it
    fn: Callable[..., T], /, *iterables: Iterable[Any], **options: Unpack[OptionArgs]
) -> list[T]:
    """Call a function with every item, on the right kind of worker, and return the values.

    Like ``list(builtins.map(fn, *iterables))``: values in the order of the input, with
    several iterables one argument from each, up to the end of the shortest.

    Args:
        fn: the function; a coroutine function runs on asyncio. For worker processes it may
            be a lambda, a closure, or defined in a script or notebook.
        *iterables: the items.
        **options: see ``plait.Options``.

    Returns:
        A list with one value per item (``ordered=False``: in the order of completion).

    Raises:
        The function's own exception, the first in the order of the input that is known
        when the run stops; with ``on_error="finish"`` an ExceptionGroup of them all. Its
        attribute ``plait_run`` is the Run with all that was finished.
        OptionError, UnknownOption: before anything runs.

    >>> import plait
    >>> plait.map(pow, [2, 3], [5, 2])
    [32, 9]
    """
    return _map(Call(fn, style_of(iterables)), iterables, options)


def starmap(
    fn: Callable[..., T], tuples: Iterable[Iterable[Any]], /, **options: Unpack[OptionArgs]
) -> list[T]:
    """Call a function with every tuple of arguments, ``fn(*item)``, and return the values.

    Everything else is as with ``map``.

    >>> import plait
    >>> plait.starmap(pow, [(2, 5), (3, 2)])
    [32, 9]
    """
    return _map(Call(fn, "star"), (tuples,), options)


def imap(
    fn: Callable[..., T], /, *iterables: Iterable[Any], **options: Unpack[OptionArgs]
) -> Iterator[T]:
    """Like ``map``, but read the input as it is needed and yield values as they are ready.

    Memory stays constant, however long the input: ``buffersize`` bounds how far the
    input is read ahead and how many values wait unread. Closing the generator, or
    dropping it, ends what still runs.

    Args:
        fn: the function.
        *iterables: the items; endless ones are welcome.
        **options: see ``plait.Options``; ``ordered=False`` yields in order of completion.

    Raises:
        As ``map``, when the value that failed is due. ``on_error="finish"`` leaves failed
        tasks out and raises the ExceptionGroup at the end.

    >>> import itertools, plait
    >>> squares = plait.imap(lambda x: x * x, itertools.count())
    >>> next(squares), next(squares), next(squares)
    (0, 1, 4)
    >>> squares.close()
    """
    checked = check(fn, options).with_order(ordered=True)
    return values_of(prepare(Call(fn, style_of(iterables)), iterables, checked), checked.on_error)


def run(fn: Callable[..., Any], /, *iterables: Iterable[Any], **options: Unpack[OptionArgs]) -> Run:
    """Return an iterator over the Outcome of every task; errors are outcomes, too.

    Outcomes come in the order of completion, or with ``ordered=True`` in that of the
    input. With ``on_error="raise"`` the first error ends the reading of the input.
    An error of the input itself (a generator that raises) is raised after the outcomes
    of all that was read before it.

    >>> import plait
    >>> for outcome in plait.run(lambda x: 1 / x, [1, 0, 4]):
    ...     print(outcome.index, outcome.value if outcome.ok else repr(outcome.error))
    0 1.0
    1 ZeroDivisionError('division by zero')
    2 0.25
    """
    checked = check(fn, {"on_error": "return", **options}).with_order(ordered=False)
    return prepare(Call(fn, style_of(iterables)), iterables, checked)


# --- From arguments to a Run -------------------------------------------------------------


def check(fn: object, given: Any) -> Options:
    """Check the function and the options against each other."""
    if not callable(fn):
        raise TypeError(f"plait needs a function to call, not {type(fn).__name__}: {fn!r}")
    options = Options.of(given)
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
    keeps: bool = False,
) -> Run:
    """Make a Run over the items, the tuples of items if there are several iterables."""
    for place, iterable in enumerate(iterables, 1):
        if not isinstance(iterable, Iterable):
            raise TypeError(f"the {_nth(place)} input is no iterable but {type(iterable).__name__}")
    if not iterables:
        raise TypeError("plait needs at least one iterable of items")
    items = iterables[0] if len(iterables) == 1 else zip(*iterables, strict=False)
    return Run(call, items, _total(iterables), options, backend=backend, keeps=keeps)


def _total(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """Return how many items there will be, if all of the iterables know."""
    try:
        return min(len(iterable) for iterable in iterables)  # type: ignore[arg-type]
    except (TypeError, OverflowError):  # it has no length, or one beyond sys.maxsize
        return None


def _nth(place: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(place, f"{place}th")


def style_of(iterables: tuple[Iterable[Any], ...]) -> str:
    """Return how a function is applied to what ``prepare`` makes of these iterables."""
    return "one" if len(iterables) == 1 else "star"


# --- From a Run to values ----------------------------------------------------------------


def _map(call: Call, iterables: tuple[Iterable[Any], ...], given: Any) -> list[Any]:
    options = check(call.fn, given).with_order(ordered=True)
    made = prepare(call, iterables, options, keeps=True)
    try:
        made.collect()
    except BaseException as error:  # Ctrl-C, too, carries what was finished
        attach(error, made)
        raise
    return listed(made, options)


def listed(made: Run, options: Options) -> list[Any]:
    """Return all values of a finished run, or raise what its errors ask for."""
    stretches = made.finished()
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
    with suppress(AttributeError):  # of a class that has no room for attributes
        error.plait_run = made  # type: ignore[attr-defined]
    return error
