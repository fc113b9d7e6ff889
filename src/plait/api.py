"""What a user can call; what happens is in calls.py and runs.py, which are loaded when needed.

``import plait`` loads this module: it imports nothing that takes time. The same for asyncio
programs is in aio.py, and for ``concurrent.futures`` in executor.py.
"""

from __future__ import annotations

import gc
import sys

from plait.quick import Start, suits

TYPE_CHECKING = False  # as in typing, which takes longer to load than all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeVar, Unpack

    from plait.options import OptionArgs
    from plait.plans import Plan
    from plait.runs import Run

    T = TypeVar("T")

__all__ = ["imap", "map", "plan", "run", "shutdown", "starmap"]


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
    return _map(fn, "one" if len(iterables) == 1 else "star", iterables, options)


def starmap(
    fn: Callable[..., T], tuples: Iterable[Iterable[Any]], /, **options: Unpack[OptionArgs]
) -> list[T]:
    """Call a function with every tuple of arguments, ``fn(*item)``, and return the values.

    Everything else is as with ``map``.

    >>> import plait
    >>> plait.starmap(pow, [(2, 5), (3, 2)])
    [32, 9]
    """
    return _map(fn, "star", (tuples,), options)


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
    _load(options)
    from plait.calls import yield_values

    return yield_values(fn, iterables, options)


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
    _load(options)
    from plait.calls import make_run

    return make_run(fn, iterables, options)


def plan(
    fn: Callable[..., Any], /, *iterables: Iterable[Any], **options: Unpack[OptionArgs]
) -> Plan:
    """Measure the first tasks and return the Plan for the rest; ``print`` shows why.

    The first items are run, for 10 to 80 ms or until one has been, and what they return is
    dropped; nothing else is run and no worker is started. The Plan is that which ``map`` would
    follow now, with all that is known: a table of what each way is predicted to take, the reason
    for the choice, and what would change it. With ``backend=`` given there is nothing to choose,
    and nothing is run.

    Args:
        fn: the function.
        *iterables: the items. Of an iterator those that were run are gone.
        **options: see ``plait.Options``.

    Raises:
        What the function or the input raises, and OptionError, UnknownOption.

    >>> import time, plait
    >>> chosen = plait.plan(time.sleep, [0.005] * 1000)
    >>> chosen.backend, chosen.max_workers
    ('threads', 32)
    """
    _load(options)
    from plait.calls import make_plan

    return make_plan(fn, iterables, options)


def shutdown() -> None:
    """Close the pools of workers that are kept between calls, and wait for the end of the workers.

    Worker processes call their exit functions first (``atexit``, ``weakref.finalize``, those of
    multiprocessing) and write their open files; they have 2 s for it. Without this call, pools are
    closed when they were idle for 30 to 60 s, and at the end of the program.

    A pool that a call of another thread uses now closes when that call ends. An ``Executor``
    stays open. The next call starts new workers.

    >>> import plait
    >>> plait.map(abs, [-1, 2], backend="threads")
    [1, 2]
    >>> plait.shutdown()
    """
    pools = sys.modules.get("plait.pools")
    if pools is not None:
        pools.close_idle()
    server_process = sys.modules.get("plait.server_process")
    if server_process is not None:
        server_process.server.close_unused()


def _map(fn: Any, style: str, iterables: tuple[Iterable[Any], ...], options: Any) -> list[Any]:
    start = None
    try:
        if not options and suits(fn, iterables):
            start = Start(fn, style, iterables, _go_beside)
            if start.run():
                return start.values
        _load(options)
        from plait.calls import collect_values

        return collect_values(fn, style, iterables, options, start)
    except BaseException:
        if start is not None:
            start.cancel()
        raise


def _go_beside(start: Start) -> None:
    from plait.calls import go_beside

    go_beside(start)


def _load(options: Any) -> None:
    """Load calls.py, with most of plait; where processes are wanted, while their server loads, too.

    (A call with a memory limit wants processes.) The garbage collector rests meanwhile: there is
    nothing for it to find, and looking takes a tenth of the time.
    """
    wants_processes = options.get("backend") == "processes" or options.get("memory_limit")
    if wants_processes:
        from plait.server_process import start_early

        start_early()
    if "plait.calls" in sys.modules:
        return
    is_on = gc.isenabled()
    gc.disable()
    try:
        if wants_processes:
            import plait.backends.processes
        import plait.calls  # noqa: F401  to be imported from
    finally:
        if is_on:
            gc.enable()
