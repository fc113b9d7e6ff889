"""Run the same work with many pool sizes, in turns, and take the times.

What the times say is in sweeps.py. Every measured run opens a pool of its own, which nobody
else uses, and closes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from plait.backends import open_backend
from plait.calls import check, collect, prepare
from plait.choice import is_coroutine
from plait.clocks import ThreadClock, read_thread_clock
from plait.errors import OptionError, UnknownOption
from plait.host import cpu_count, monotonic
from plait.inputs import can_slice, is_iterable
from plait.options import BACKENDS as ALL_BACKENDS
from plait.options import Options
from plait.outcome import Call, Chunk
from plait.progress import show_progress
from plait.quick import CATCH
from plait.sweep_rows import LOOP, Row, Timing, Way
from plait.sweeps import Sweep
from plait.worker import depth

if TYPE_CHECKING:
    from typing import Unpack

    from plait.backends.contract import Backend
    from plait.options import OptionArgs

__all__ = ["sweep"]

BACKENDS = ("threads", "processes")
SIZES = (1, 2, 4, 8)
TICK_S = 1e-9  # nothing takes no time, though some clocks say so

# What a sweep varies itself, and the argument that says how.
VARIED = {
    "backend": "backends=('threads', 'processes')",
    "max_workers": "sizes=(1, 2, 4, 8)",
    "executor": "sizes=(1, 2, 4, 8)",
}


def sweep(
    fn: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    backends: Sequence[str] = BACKENDS,
    sizes: Sequence[int] = SIZES,
    repeats: int = 5,
    **options: Unpack[OptionArgs],
) -> Sweep:
    """Run a function over items with pools of many sizes, and say which one pays.

    For each backend and each size a pool is opened, does the whole work, and is closed, and so
    ``repeats`` times; the plain loop, too. They take turns, each round in another order, so that
    noise falls on all alike. One round more goes before and does not count: it imports what
    is needed. So the work is done ``(repeats + 1) * (1 + len(backends) * len(sizes))`` times.

    Args:
        fn: the function.
        items: read to their end before anything is measured.
        backends: some of "threads", "processes", "asyncio". A coroutine function is swept on
            asyncio where nothing else is named.
        sizes: numbers of workers.
        repeats: rounds that count.
        **options: see ``plait.Options``, but for ``backend`` and ``max_workers``. ``timeout`` is
            for one run; ``progress`` counts runs.

    Returns:
        A Sweep: ``print`` it, or ``plot("sweep.png")`` it.

    Raises:
        OptionError, UnknownOption, TypeError, ValueError: before anything runs.
        The function's own exception, as ``map`` raises it.

    >>> import plait
    >>> sweep = plait.sweep(abs, range(100), backends=["threads"], sizes=[2], repeats=1)
    >>> [(row.backend, row.workers) for row in sweep.rows]
    [('threads', 2)]
    """
    work = _check(fn, items, backends, repeats, options)
    ways = [LOOP, *(Way(name, size) for name in work.options for size in _check_sizes(sizes))]
    show = options.get("progress", False)
    times: dict[Way, list[Timing]] = {way: [] for way in ways}
    waits: list[float] = []
    with show_progress(show, work.call.name, (repeats + 1) * len(ways)) as tell:
        for done, (way, counts) in enumerate(_turns(ways, repeats), 1):
            before = read_thread_clock()
            timing = _measure(work, way)
            if counts:
                times[way].append(timing)
            if way == LOOP:
                waits.append(_share_waited(before))
            if tell is not None:
                tell(done, (repeats + 1) * len(ways))
    loops = tuple(max(timing.total_s, TICK_S) for timing in times[LOOP])
    rows = tuple(Row(*way, tuple(times[way]), loops) for way in ways[1:])
    return Sweep(work.call.name, len(work.items), cpu_count(), loops, rows, median(waits))


def _share_waited(before: ThreadClock) -> float:
    """Return the share of the time since then for which this thread waited for a free CPU."""
    wall, _, queued = (now - then for now, then in zip(read_thread_clock(), before, strict=True))
    return queued / wall if wall else 0.0


def _turns(ways: list[Way], repeats: int) -> Iterator[tuple[Way, bool]]:
    """Yield who is next, and whether it counts: once each in a round, in an order of its own.

    (In the same order each would always have to bear what the same one leaves behind.)
    """
    from random import Random  # it takes longer to load than all of this

    draw = Random(0)  # noqa: S311  the same turns every time
    yield from ((way, False) for way in ways)
    for _ in range(repeats):
        yield from ((way, True) for way in draw.sample(ways, len(ways)))


# --- At the door -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Work:
    """What is done again and again; ``options`` are those for each backend."""

    call: Call
    items: Sequence[Any]
    options: Mapping[str, Options]
    loop_options: Options

    @property
    def has_plain_loop(self) -> bool:
        """Whether the loop that people would write does all that the options ask for."""
        options = self.loop_options
        asks_more = options.has_deadline or options.retries or options.initializer
        return options.backend == "serial" and options.on_error == "raise" and not asks_more


def _check(
    fn: Callable[..., Any], items: Iterable[Any], backends: object, repeats: object, given: Any
) -> _Work:
    for name, argument in VARIED.items():
        if name in given:
            raise UnknownOption(name, f"A sweep tries several: say {argument}.")
    if not _is_count(repeats):
        raise OptionError("repeats", repeats, "a whole number from 1 up")
    each = {
        name: replace(check(fn, {**given, "backend": name}), progress=False, ordered=True)
        for name in _check_backends(fn, backends)
    }
    if not is_iterable(items):
        raise TypeError(f"the items are no iterable but {type(items).__name__}")
    stored: Any = items if can_slice(items) else list(items)
    if not len(stored):
        raise ValueError("plait.sweep needs at least one item, and there is none")
    name = "asyncio" if is_coroutine(fn) else "serial"
    # The loop need not obey what only processes can.
    alone: Any = {"backend": name, "memory_limit": None, "max_tasks_per_child": None, "preload": ()}
    return _Work(Call(fn), stored, each, replace(next(iter(each.values())), **alone))


def _check_backends(fn: Callable[..., Any], backends: object) -> tuple[str, ...]:
    names = _listed(backends)
    if names == BACKENDS and is_coroutine(fn):
        return ("asyncio",)
    if not names or not set(names) <= {*ALL_BACKENDS} - {"auto", "serial"}:
        allowed = "some of 'threads', 'processes', 'asyncio', in a tuple (the loop always runs)"
        raise OptionError("backends", backends, allowed)
    if "processes" in names and depth():
        allowed = "without 'processes' inside a task: a worker starts no processes of its own"
        raise OptionError("backends", backends, allowed)
    return tuple(dict.fromkeys(names))


def _check_sizes(sizes: object) -> list[int]:
    numbers = _listed(sizes)
    if not numbers or not all(map(_is_count, numbers)):
        raise OptionError("sizes", sizes, "whole numbers from 1 up, in a tuple like (2, 4, 8)")
    return sorted(set(numbers))


def _listed(given: object) -> tuple[Any, ...]:
    """Return a series as a tuple; an empty one for what is none, a single text too."""
    is_series = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    return tuple(given) if is_series else ()  # type: ignore[arg-type]  # it was looked at


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


# --- One run -----------------------------------------------------------------------------


def _measure(work: _Work, way: Way) -> Timing:
    if way == LOOP:
        return Timing(0.0, _run_loop(work), 0.0)
    return _run_pool(work, way, work.options[way.backend])


def _run_loop(work: _Work) -> float:
    """Return what the loop takes.

    Where something is raised, and where the options ask for more than a loop has, it is plait's
    own: that raises as ``map`` does, or tries again. Coroutines run one after the other.
    """
    fn, started = work.call.fn, monotonic()
    if work.has_plain_loop:
        try:
            values = [fn(item) for item in work.items]
            taken_s = monotonic() - started
        except CATCH:
            pass
        else:
            del values  # which takes time as well
            return taken_s
    options = work.loop_options
    return _run_pool(work, Way(options.backend, 1), options).run_s


def _run_pool(work: _Work, way: Way, options: Options) -> Timing:
    """Open a pool, do the work, and close it."""
    options = replace(options, max_workers=way.workers)
    started = monotonic()
    backend = open_backend(way.backend, way.workers, options)
    try:
        _await_answer(backend)
        opened = monotonic()
        made = prepare(work.call, (work.items,), options, backend=backend, keeps=True)
        values = collect(made, options)
        ran = monotonic()
    finally:
        backend.close()
    closed = monotonic()
    del values
    return Timing(opened - started, ran - opened, closed - ran)


def _await_answer(backend: Backend) -> None:
    """Wait until a worker has done an empty task; the others start when there is work for them."""
    lane = backend.open_lane(Call(_wait_for_nothing if backend.traits.takes_coroutines else bool))
    try:
        lane.submit(Chunk(0, [None]))
        while lane.pending:
            lane.wait_outcomes()
    finally:
        lane.close()


async def _wait_for_nothing(_: None) -> None:
    """Do what ``bool`` does for the others; that one has no module to be imported in a worker."""
