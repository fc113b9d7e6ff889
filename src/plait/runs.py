"""The loop: take the sample, choose, feed chunks, wait, and record what finished.

All functions of calls.py are views of a Run: ``map`` collects it, ``imap`` yields its
values, ``run`` hands it out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from plait import pools
from plait.backends.contract import Setting
from plait.choice import decide, is_coroutine, look_ahead
from plait.chunks import MOST_TASKS, TOGETHER_S, ChunkSizer
from plait.errors import RunTimeout, TaskError
from plait.host import monotonic
from plait.inputs import (
    READ_S,
    DirectInput,
    Input,
    SlicedInput,
    ThreadedInput,
    can_slice,
)
from plait.limits import Limits
from plait.outcome import Call, Chunk, Finished, Outcome
from plait.plan import Plan, Sample
from plait.probe import Probe
from plait.progress import Show, show_progress
from plait.report import Report
from plait.retry import Retries, RetryPolicy

if TYPE_CHECKING:
    from plait.backends.contract import Backend, Lane
    from plait.options import Options
    from plait.quick import Start

__all__ = ["Run"]

# Where results are read as they come, so many chunks' worth of tasks may wait unread.
UNREAD_CHUNKS = 4
LEAST_UNREAD = 8  # for each worker
UNREAD_TASKS = 128 * 1024  # but no more than so many, in all


class Run:
    """One call of a function over many items: an iterator over its Outcomes.

    Work is done while you iterate, or wait for it. Leaving the loop or the ``with``
    block early leaves nothing running.

    >>> import plait
    >>> with plait.run(len, ["a", "bb"], backend="serial") as run:
    ...     [outcome.value for outcome in run]
    [1, 2]

    Attributes:
        plan: what was decided, and why (None until it was).
        report: the run in numbers, up to now.
    """

    def __init__(
        self,
        call: Call,
        items: Iterable[Any],
        total: int | None,
        options: Options,
        *,
        backend: Backend | None = None,
        keeps: bool = False,
        start: Start | None = None,
        is_stored: bool = False,
    ) -> None:
        """Prepare a run over ``items``, ``total`` of them if that is known.

        ``backend`` is a pool to use; ``keeps`` is for who collects everything anyway;
        ``start`` is what was done already: ``items`` are those after it, ``total`` counts all;
        ``is_stored``: all items are there already, and nobody changes them before the end.
        """
        self.plan: Plan | None = None
        self.report = Report()
        self._call = call
        self._total = total
        self._items = items if can_slice(items) else iter(items)
        self._input: Input = DirectInput(iter(()))  # until it starts
        self._options = options
        self._backend = backend
        self._keeps = keeps
        self._is_stored = is_stored or type(items) is range
        self._start = start
        self._kept: dict[int, Finished] = {}  # by first index; what was not handed out
        self._fed = 0
        self._is_held_up = False  # nothing more may be read before something is handed out
        self._handed_out = 0
        self._half_read = (-1, 0)  # of the stretch that begins so, that many tasks were handed out
        self._depth = 1  # chunks that a worker may have at once
        self._feeds = True  # false once the input ended, an error stopped it, or it was cancelled
        self._is_stopped = False  # by an error, or by who called stop(): nothing new starts
        self._setting = Setting(
            Limits.of(options), prefix_output=options.prefix_output, keeps_items=is_stored
        )
        self._retries = Retries(RetryPolicy(options), _draw)
        self._bell: SimpleQueue[None] = SimpleQueue()  # rung to end a wait for the next try
        self._deadline = math.inf
        self._lane: Lane | None = None
        self._is_cancelled = False
        self._show: Show | None = None
        self._started = 0.0
        self._stretches = self._run()
        self._outcomes: Generator[Outcome] | None = None  # made when it is needed: it refers to us

    # --- What users see ----------------------------------------------------------------

    def __iter__(self) -> Iterator[Outcome]:
        # A generator of its own, so that leaving a for-loop ends the run there and then. The
        # run itself is part of a cycle, and would wait for the garbage collector.
        try:
            yield from self._open_outcomes()
        finally:
            self.cancel()

    def __next__(self) -> Outcome:
        return next(self._open_outcomes())

    def _open_outcomes(self) -> Generator[Outcome]:
        if self._outcomes is None:
            self._outcomes = self._iterate()
        return self._outcomes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Stop: nothing new starts, what runs is ended (a thread: waited for).

        May be called from any thread; where another one is iterating, that one ends it.
        """
        self._is_cancelled = True
        self.stop()
        # A generator that is running, in another thread, cannot be closed (CPython 3.11 may crash
        # of it); but it was woken.
        for generator in (self._outcomes, self._stretches):
            if generator is not None and not getattr(generator, "gi_running", False):
                with suppress(ValueError):
                    generator.close()

    def stop(self) -> None:
        """Start nothing new, no further try either; what runs goes on, and its outcomes come.

        May be called from any thread, and from a signal handler.
        """
        self._is_stopped = True
        self._feeds = False
        self._bell.put(None)
        self.wake()

    def wake(self) -> None:
        """Have the thread that waits for outcomes look around; may be called from anywhere."""
        if self._lane is not None:
            self._lane.wake()
        self._input.wake()

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcomes that are known and were not handed out, in the order of the input."""
        kept = [self._kept[first] for first in sorted(self._kept)]
        outcomes = [outcome for finished in kept for outcome in finished.outcomes()]
        first, places = self._half_read
        if first not in self._kept:
            return outcomes
        read = range(first, first + places)
        return [outcome for outcome in outcomes if outcome.index not in read]

    def __repr__(self) -> str:
        return f"<Run of {self._call.fn!r}: {self.report.tasks} done, {self.report.errors} failed>"

    # --- What calls.py uses ------------------------------------------------------------

    def stretches(self) -> Iterator[Finished]:
        """Yield finished stretches of tasks, in the order that the options ask for."""
        stretches = _in_order(self._stretches) if self._options.ordered else self._stretches
        for finished in stretches:
            yield finished
            self._handed_out += len(finished.values)
            if not self._keeps:
                del self._kept[finished.first]
        if self._input.error is not None:
            raise self._input.error

    def collect(self) -> None:
        """Run to the end, or to the first error that stops it."""
        try:
            for finished in self._stretches:
                if finished.errors and self._options.on_error == "raise":
                    break
        finally:
            self._stretches.close()
        if self._input.error is not None:
            raise self._input.error

    def finished(self) -> list[Finished]:
        """Return what finished and was not handed out, in the order that the options ask for."""
        order = sorted(self._kept) if self._options.ordered else self._kept
        return [self._kept[first] for first in order]

    # --- The loop ----------------------------------------------------------------------

    def _iterate(self) -> Generator[Outcome]:
        for finished in self.stretches():
            for place, outcome in enumerate(finished.outcomes(), 1):
                self._half_read = (finished.first, place)
                yield outcome

    def _run(self) -> Generator[Finished]:
        """Yield stretches as they finish; closing it ends what runs."""
        with ExitStack() as stack:
            self._show = stack.enter_context(
                show_progress(self._options.progress, self._call.name, self._total)
            )
            self._started = self._start.before[0] if self._start else monotonic()
            if self._options.timeout is not None:
                self._deadline = self._started + self._options.timeout
            stack.callback(self._stop_clock)
            self._input = self._open_input()
            stack.callback(self._input.close)
            yield from self._take_sample()
            if self.plan is None:
                self.plan = self.report.plan = self._choose(None)
            if self._feeds or (self._retries and not self._is_stopped):
                yield from self._work(self._open(stack), self.plan)

    def _open_input(self) -> Input:
        """Read the input here, or in a thread if somebody waits for results meanwhile."""
        if can_slice(self._items):
            return SlicedInput(cast("Sequence[Any]", self._items))
        self._items = iter(self._items)
        if self._total is not None or (self._keeps and self._options.timeout is None):
            return DirectInput(self._items)
        if self._options.backend == "serial" and self._options.timeout is None:  # the plain loop
            return DirectInput(self._items, one_by_one=True)
        return ThreadedInput(self._items, self.wake)

    def _open(self, stack: ExitStack) -> Lane:
        assert self.plan is not None
        backend = self._backend
        if backend is None:
            options = self._options
            if self.plan.sample and self.plan.backend == "serial":  # it ran before the sample
                options = replace(options, initializer=None)
            backend = stack.enter_context(pools.leased(self.plan, options))
        self._depth = backend.traits.queue_depth
        self._lane = lane = backend.open_lane(self._call, self._setting)
        stack.callback(self._close_lane, lane)
        return lane

    def _close_lane(self, lane: Lane) -> None:
        is_late = monotonic() >= self._deadline
        for finished in (
            *lane.close(patience_s=0.0 if is_late else None),
            *self._retries.give_up(),
        ):
            self._note(finished)
        self.report.abandoned += lane.abandoned
        self.report.shared_bytes = max(self.report.shared_bytes, lane.shared_bytes)

    def _work(self, lane: Lane, plan: Plan) -> Iterator[Finished]:
        sizer = ChunkSizer(
            plan.chunksize,
            plan.max_workers,
            plan.sample.task_s if plan.sample else None,
            plan.sample.tasks if plan.sample else 0,
            self._most_tasks(plan.max_workers),
        )
        while not self._is_cancelled:
            is_full = self._feed(lane, sizer, plan.max_workers)
            if self._is_stopped:
                yield from self._settle(self._retries.give_up())
            if not (lane.pending or self._feeds or self._retries):
                return
            if not self._feeds or self._fed == self._total:
                lane.end_input()
            self._check_time()
            if lane.pending:
                batch = lane.wait_outcomes(self._patience() if is_full else 0.0)
                for finished in batch:
                    sizer.learn(len(finished.values), finished.seconds)
                yield from self._settle(batch)
            elif self._feeds and not self._is_held_up:
                self._input.wait(self._patience())
            else:
                self._await_next_try()

    def _most_tasks(self, workers: int) -> int:
        """Return how large a chunk may be: where memory is constant, all chunks share its bound."""
        if self._keeps:
            return MOST_TASKS
        return max(1, UNREAD_TASKS // (UNREAD_CHUNKS * workers * self._depth))

    def _settle(self, batch: list[Finished]) -> list[Finished]:
        """Record what is final; all of it, before the reader may leave at the first."""
        for finished in batch:
            self._setting.limits.time.learn(finished)
        final = batch
        if self._retries.are_possible and not self._is_stopped:
            now = monotonic()
            final = [part for finished in batch for part in self._retries.keep(finished, now)]
        for finished in final:
            self._note(finished)
        self._stop_clock()
        return final

    def _patience(self) -> float | None:
        """Return how long may be waited before there is something else to do, in seconds."""
        due = min(self._deadline, self._retries.due)
        return None if due == math.inf else max(0.0, due - monotonic())

    def _await_next_try(self) -> None:
        with suppress(Empty):
            self._bell.get(timeout=self._patience())

    def _check_time(self) -> None:
        if monotonic() >= self._deadline:
            assert self._options.timeout is not None
            where = ""
            if not self.report.tasks and self._options.initializer is not None:
                where = " Perhaps the initializer takes so long."
            raise RunTimeout(self._options.timeout, self.report.tasks, where)

    def _feed(self, lane: Lane, sizer: ChunkSizer, workers: int) -> bool:
        """Submit what the workers can use now; False if reading took so long that we stopped."""
        while (retry := self._retries.take_due(monotonic())) is not None:
            self.report.retries += 1
            lane.submit(retry)
        chunks: list[Chunk] = []
        began = started = monotonic()
        try:
            while self._feeds:
                size = sizer.next(None if self._total is None else self._total - self._fed)
                room = workers * (self._depth if size.brief else 1) - lane.pending
                if len(chunks) >= room:
                    return True
                first = self._fed
                items = self._take(size.tasks, size.tasks * workers * self._depth, workers)
                if not len(items):
                    return True
                # A limit is for one task: so each has its own time, and nothing runs twice.
                limits = self._setting.limits
                together = size.together and not limits.are_set
                # Between two chunks a worker's memory is looked at: so none waits behind another.
                brief = size.brief and limits.memory_bytes is None
                chunks.append(Chunk(first, items, together, brief))
                now = monotonic()
                # An item may be changed as the next one is read: so it is packed before.
                if not self._is_stored or now - started > TOGETHER_S:
                    started = now
                    lane.submit(*chunks)
                    chunks = []
                    if now - began > READ_S:
                        return False
            return True
        finally:
            if chunks:
                lane.submit(*chunks)

    def _take(self, count: int, in_flight: int, workers: int) -> Sequence[Any]:
        """Take items, at most ``count`` and as many as may be under way or wait unread."""
        if not self._feeds:
            return []
        if not self._keeps:
            asked = self._options.buffersize
            auto = max(UNREAD_CHUNKS * in_flight, LEAST_UNREAD * workers)
            allowed = self._handed_out + (asked if isinstance(asked, int) else auto)
            self._input.allow(allowed)
            count = min(count, allowed - self._fed)
            self._is_held_up = count <= 0
        items = self._input.take(count)
        self._fed += len(items)
        if self._input.has_ended:
            self._feeds = False
        return items

    def _note(self, finished: Finished) -> None:
        """Record what finished; for an error that stops the run, stop feeding."""
        if not finished.values:  # the end of a chunk that was cancelled
            return
        self._kept[finished.first] = finished
        self.report.add(finished)
        for place, error in finished.errors.items():
            if not isinstance(error, TaskError):  # which says it all by itself
                _add_note(error, self._call, finished.outcome(place))
            if self._options.on_error == "raise":
                self._feeds = False
                self._is_stopped = True
        if self._show is not None:
            self._show(self.report.tasks, self._total)

    def _stop_clock(self) -> None:
        self.report.wall_s = monotonic() - self._started

    # --- The choice --------------------------------------------------------------------

    def _take_sample(self) -> Iterator[Finished]:
        """Where the choice is ours, run the first tasks here and choose."""
        options = self._options
        is_open = options.backend == "auto" and self._backend is None
        if not is_open or is_coroutine(self._call.fn) or options.memory_limit is not None:
            return
        if self._options.initializer is not None:
            self._options.initializer(*self._options.initargs)
        probe = Probe(self._call, self._take_now, self._sample_limit)
        if self._start is not None and self._start.values:
            self._fed = len(self._start.values)
            yield from self._settle([probe.take_over(self._start)])
        while self._feeds and (finished := probe.step()) is not None:
            if probe.has_abandoned:
                self.report.abandoned += 1
                self._check_time()  # it may be the whole call's time that is over
            yield from self._settle([finished])
            self._check_time()
            look_ahead(self._options, probe.sample, self._remaining)
        self.plan = self.report.plan = self._choose(probe.sample)

    def _sample_limit(self) -> float | None:
        """Return how long the next task of the sample may take, in seconds; None: unlimited."""
        given = self._setting.limits.time.seconds
        left = self._deadline - monotonic()
        if given is None:
            return left if self._options.has_deadline else None
        return min(given, left)

    def _take_now(self, count: int) -> Sequence[Any]:
        """Take items for the sample; wait for the first if need be."""
        while self._feeds:
            items = self._take(count, count, 1)
            if len(items):
                return items
            self._input.wait(self._patience())
            self._check_time()
        return []

    def _choose(self, sample: Sample | None) -> Plan:
        if self._backend is not None:
            name, workers = self._backend.traits.name, self._backend.max_workers
            return Plan(name, workers, self._options.chunksize, "it is open.")
        return decide(self._call.fn, self._options, sample, remaining=self._remaining)

    @property
    def _remaining(self) -> int | None:
        """How many tasks were not fed yet; None: unknown."""
        if not self._feeds:
            return 0
        return None if self._total is None else self._total - self._fed


def _draw() -> float:
    """Draw a number from 0 to 1."""
    from random import random  # few runs try anything again

    return random()  # noqa: S311


def _in_order(stretches: Iterator[Finished]) -> Iterator[Finished]:
    """Hold back what came too early."""
    early: list[tuple[int, Finished]] = []
    due = 0
    for stretch in stretches:
        heapq.heappush(early, (stretch.first, stretch))
        while early and early[0][0] == due:
            _, ready = heapq.heappop(early)
            due += len(ready.values)
            yield ready


def _add_note(error: BaseException, call: Call, outcome: Outcome) -> None:
    note = (
        f"plait: task {outcome.index}, {call.text(outcome.item)}, "
        f"attempt {outcome.attempt}, on {outcome.worker} (pid {outcome.pid})"
    )
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
