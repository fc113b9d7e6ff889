"""The loop: take the sample, choose, feed chunks, wait, and record what finished.

All functions of calls.py are views of a Run: ``map`` collects it, ``imap`` yields its
values, ``run`` hands it out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from inspect import GEN_CLOSED, getgeneratorstate, signature
from queue import Empty, SimpleQueue
from time import process_time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from plait import costs, pools
from plait.audit import Audit
from plait.backends.contract import Setting
from plait.beside import Beside
from plait.choice import Question, decide, is_coroutine, look_ahead
from plait.endings import Ending, end_later, is_collecting
from plait.errors import PoolGivenUp, RunTimeout, TaskError, WorkerStartError
from plait.feed import Feed, Room
from plait.foreign import attempt
from plait.host import monotonic, queued_s
from plait.inputs import is_iterable
from plait.limits import Limits
from plait.outcome import Call, Chunk, Finished, Outcome
from plait.pilot import Machine, Pilot
from plait.plans import Plan, with_lengths
from plait.probe import Probe
from plait.progress import Show, show_progress
from plait.report import Report
from plait.retry import Retries, RetryPolicy
from plait.squeeze import Squeeze
from plait.throttle import Throttle

if TYPE_CHECKING:
    from plait.backends.contract import Backend, Lane
    from plait.beside import LongTask
    from plait.model import Sample
    from plait.options import Options
    from plait.quick import Start
    from plait.throttle import Pace

__all__ = ["Run"]


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
        pace: Pace | None = None,
        keeps: bool = False,
        start: Start | None = None,
        first: int = 0,
        is_stored: bool = False,
        is_at_hand: bool = False,
    ) -> None:
        """Prepare a run over ``items``, ``total`` of them if that is known.

        ``backend`` is a pool to use, ``pace`` that of an executor; ``keeps`` is for who collects
        everything anyway;
        ``start`` is what was done already: ``items`` are those after it, from number ``first`` on,
        ``total`` counts all;
        ``is_stored``: all items are there already, and nobody changes them before the end;
        ``is_at_hand``: any thread may read them.
        """
        self.plan: Plan | None = None
        self.report = Report()
        self._call = call
        self._feed = Feed(
            items,
            total,
            options,
            first=first,
            keeps=keeps,
            is_stored=is_stored,
            is_at_hand=is_at_hand,
        )
        self._audit = Audit()
        self._options = options
        self._backend = backend
        self._keeps = keeps
        self._start = start
        self._kept: dict[int, Finished] = {}  # by first index; what was not handed out
        self._half_read = (-1, 0)  # of the stretch that begins so, that many tasks were handed out
        self._is_stopped = False  # by an error, or by who called stop(): nothing new starts
        self._setting = Setting(
            Limits.of(options),
            prefix_output=options.prefix_output,
            keeps_items=is_stored,
            in_one_piece=keeps and options.progress is False,
        )
        self._retries = Retries(RetryPolicy(options), _draw)
        self._throttle = Throttle.of(options, pace)
        self._squeeze: Squeeze | None = None  # of a lane on processes whose tasks are tried again
        self._is_held = False  # nothing is submitted: a task waits to run alone, or does
        self._bell: SimpleQueue[None] = SimpleQueue()  # rung to end a wait for the next try
        self._deadline = math.inf
        self._looked_late = False
        self._pool: Backend | None = None
        self._lane: Lane | None = None
        self._pilot: Pilot | None = None  # of the lane
        self._no_processes: str | None = None  # why none can be had, if that has turned out
        self._is_cancelled = False
        self._show: Show | None = None
        self._started = start.before[0] if start else 0.0  # else it has not begun
        self._stack = Ending()  # what is to be done at the end
        self._has_begun = False
        self._explains = False  # nothing but the sample is run
        self._probe: Probe | None = None
        self.beside: Beside | None = None  # the helper of the sample
        self.rest = self._follow_plans()  # what comes after the sample
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
        # What waits does not start any more, also where another thread has yet to hear of this.
        if self._lane is not None:
            self._lane.refuse()
        self.stop()
        # A generator that is running, in another thread, cannot be closed (CPython 3.11 may crash
        # of it); but it was woken.
        generators = [one for one in (self._outcomes, self._stretches) if one is not None]
        for generator in generators:
            if not getattr(generator, "gi_running", False):
                with suppress(ValueError):
                    generator.close()
        if getgeneratorstate(self._stretches) == GEN_CLOSED:  # or it never began
            if is_collecting():
                end_later(self._end)
            else:
                self._end()

    def _end(self) -> None:
        self._end_beside()
        self._stack.close()

    def stop(self) -> None:
        """Start nothing new, no further try either; what runs goes on, and its outcomes come.

        May be called from any thread, and from a signal handler.
        """
        self._is_stopped = True
        self._feed.stop()
        self.wake()

    def wake(self) -> None:
        """Have the thread that waits for outcomes look around; may be called from anywhere."""
        if self._bell.empty():
            self._bell.put(None)
        if self._lane is not None:
            self._lane.wake()
        self._feed.wake()

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

    def __dir__(self) -> list[str]:
        """Return what users call; the rest is for other modules."""
        names = {"cancel", "outcomes", "plan", "report", "stop"}
        return [name for name in super().__dir__() if name in names or name.startswith("__")]

    def __repr__(self) -> str:
        return f"<Run of {self._call.fn!r}: {self.report.tasks} done, {self.report.errors} failed>"

    # --- What calls.py uses ------------------------------------------------------------

    def stretches(self) -> Iterator[Finished]:
        """Yield finished stretches of tasks, in the order that the options ask for."""
        stretches = _in_order(self._stretches) if self._options.ordered else self._stretches
        for finished in stretches:
            yield finished
            self._feed.handed_out += len(finished.values)
            if not self._keeps:
                del self._kept[finished.first]
        if self._feed.error is not None:
            raise self._feed.error

    def collect(self) -> None:
        """Run to the end, or to the first error that stops it."""
        try:
            for finished in self._stretches:
                if finished.errors and self._options.on_error == "raise":
                    break
        finally:
            self._stretches.close()
        if self._feed.error is not None:
            raise self._feed.error

    def explain(self) -> Plan:
        """Run the sample and nothing else, and return the plan for the rest, in full."""
        self._explains = True
        with self._stack:
            self._begin()
            for finished in self._take_sample():
                if finished.errors and self._options.on_error == "raise":
                    raise finished.errors[min(finished.errors)]
            if self._feed.error is not None:
                raise self._feed.error
            if self.plan is None:
                self.follow(self._choose())
        assert self.plan is not None
        return self.plan

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
        with self._stack:
            self._begin()
            yield from self._take_sample()
            # They refer to us: who drops a run is not to wait for the collector.
            self.beside = self._probe = None
            if self.plan is None:
                self.follow(self._choose())
            yield from self.rest
            # The helper may have been through with it before its own last task failed.
            yield from self._follow_plans()
            if not self._is_cancelled:
                if self._is_stopped:  # in the sample
                    yield from self._settle([])
                self._check_tasks()

    def _check_tasks(self) -> None:
        """Raise InternalError unless every task that was taken has one outcome, and one only."""
        feed, audit = self._feed, self._audit
        for chunk in feed.returned:  # the run was stopped before they were taken again
            audit.add(chunk.first, len(chunk.items))
        audit.check(feed.numbered, may_lack=feed.has_shrunk)
        feed.check_growth()

    def _begin(self) -> None:
        if self._has_begun:  # by the helper, for a map whose first task took long
            return
        self._has_begun = True
        stack, options = self._stack, self._options
        report = self.report  # to refer to us would be a circle
        self._show = stack.enter_context(
            show_progress(
                options.progress, self._call.name, self._feed.total, lambda: report.errors
            )
        )
        self._started = self._started or monotonic()
        if options.timeout is not None:
            self._deadline = self._started + options.timeout
        stack.callback(self._stop_clock)
        self._feed.open(self.wake)
        stack.callback(self._feed.close)
        stack.callback(self._give_up_retries)
        stack.callback(self.rest.close)
        stack.callback(self._end_beside)

    def _end_beside(self) -> None:
        """Call back the helper, should it still be at work, before anything is closed.

        If it does not come, it closes what is left here itself, when it leaves.
        """
        if self.beside is not None:
            self.beside.leave(self._stack)

    def _give_back_rest(self, lane: Lane) -> None:
        """Give back what a lane that is closed has not settled, each task once."""
        known = self._retries.numbers
        while (chunk := lane.take_back()) is not None:
            for place in range(len(chunk.items)):
                number = chunk.first + place
                if number not in known and not self._audit.is_settled(number):
                    known.add(number)
                    self._feed.give_back(chunk.part(place, place + 1))

    def _give_up_retries(self) -> None:
        for finished in self._retries.give_up():
            self._note(finished)

    def follow(self, plan: Plan) -> None:
        """Let this be the plan from now on."""
        if self.report.plan is not None:
            self.report.earlier_plans.append(self.report.plan)
        self.plan = self.report.plan = plan

    def _follow_plans(self) -> Generator[Finished]:
        """Do what remains: by the plan, and if another turns out to be better, by that."""
        self._begin()
        while self._has_more():
            with Ending() as stack:
                try:
                    yield from self._work(self._open(stack))
                except WorkerStartError as error:
                    yield from self._fall_back(error)
                else:
                    self._measure_costs()

    def _fall_back(self, error: WorkerStartError) -> Iterator[Finished]:
        """Go on without processes, if they were our choice; what was not begun is given back.

        With others, if their pool was given up because of somebody else.
        """
        plan, options, lane = self.plan, self._options, self._lane
        is_other = isinstance(error, PoolGivenUp)
        is_ours = options.backend == "auto" and plan is not None and plan.backend == "processes"
        if self._backend is not None or options.initializer or not (is_other or is_ours):
            raise error
        if lane is not None:
            yield from self._settle([*lane.close(), *lane.lost])
            self._give_back_rest(lane)
        if is_other or plan is None:
            return
        self._no_processes = f"{error}"
        other = self._choose(plan.sample)
        if self._is_for_another_thread(other):
            other = replace(other, backend="threads")
        if self._no_processes not in other.reason:
            other = replace(other, reason=f"{other.reason} {error}")
        self.follow(other)

    def _has_more(self) -> bool:
        if self._is_cancelled:
            return False
        return self._feed.is_open or (bool(self._retries) and not self._is_stopped)

    def _measure_costs(self) -> None:
        """At the end of a long call on processes, measure what they cost, if that is not known."""
        plan, backend = self.plan, self._pool
        if plan is None or backend is None or self._is_stopped or plan.backend != "processes":
            return
        if plan.facts is not None and costs.are_due(monotonic() - self._started):
            costs.keep(costs.measure(backend))

    def _open(self, stack: Ending) -> Room:
        plan = self.plan
        assert plan is not None
        left = {earlier.backend for earlier in self.report.earlier_plans}
        self._pilot = pilot = Pilot(plan, self._options, monotonic(), left, self._machine())
        backend = self._backend
        if backend is None:
            options = self._options
            if plan.sample and plan.backend == "serial":  # it ran before the sample
                options = replace(options, initializer=None)
            backend = stack.enter_context(pools.Lease(plan, options, pilot.capacity))
        self._pool = backend
        self._is_held = False
        if backend.traits.can_kill and self._retries.are_possible:
            self._squeeze = self._squeeze or Squeeze(pilot.workers)
        depth = backend.traits.queue_depth if self._throttle is None else 1
        lane = backend.open_lane(self._call, self._setting)
        stack.callback(self._close_lane, lane)
        if self._throttle is not None and self._throttle.has_pace:
            self._warm_up(backend)
        self._lane = lane
        return Room(lane, self._feed.make_sizer(plan, depth), depth)

    def _warm_up(self, backend: Backend) -> None:
        """Have worker processes ready before tasks get the times at which they start."""
        self._lane = lane = pools.begin_to_warm(backend, self._call.fn)
        while lane.pending and not self._is_cancelled and monotonic() < self._deadline:
            if self.beside is not None and self.beside.must_stop:
                break
            lane.wait_outcomes(self._patience(tries=False))
        lane.close()

    def _machine(self) -> Machine:
        return Machine(queued_s, process_time, is_for_tasks=self._feed.is_at_hand)

    def _close_lane(self, lane: Lane) -> None:
        is_late = monotonic() >= self._deadline
        self._settle(lane.close(patience_s=0.0 if is_late else None))
        self.report.abandoned += lane.abandoned
        if self._pool is not None:
            self.report.shortage = self._pool.shortage or self.report.shortage
        self.report.shared_bytes = max(self.report.shared_bytes, lane.shared_bytes)

    def _work(self, room: Room) -> Iterator[Finished]:
        """Yield what finishes, until all is done, or nothing is left that the old plan began."""
        lane, pilot, feed = room.lane, self._pilot, self._feed
        assert pilot is not None
        while not self._is_cancelled:
            if self.beside is not None and self.beside.must_stop:
                yield NOTHING  # the helper leaves here, and the caller's thread goes on
            workers = self._set_places(room, pilot)
            look_at = math.inf if pilot.is_leaving else self._fill(room, workers)
            if self._is_stopped and self._retries:
                yield from self._settle([])
            if not (lane.pending or (not pilot.is_leaving and (feed.is_open or self._retries))):
                return
            # What waits behind another task is not given to other workers if these are too many.
            if feed.has_given_all and self._throttle is None:
                lane.end_input()
            self._check_time_with(lane)
            if lane.pending:
                # A plan that is left tries nothing again.
                is_held = pilot.is_leaving or self._is_held
                has_room = lane.pending < workers * room.depth and not is_held
                batch = lane.wait_outcomes(self._patience(look_at, tries=has_room))
                self._note_memory(batch)
                final = self._settle(batch)
                self._learn(batch, room)
                yield from final
            elif feed.is_open and not feed.is_held_up and look_at == math.inf:
                feed.wait(self._patience())
            else:
                self._await_next_try(look_at)

    def _set_places(self, room: Room, pilot: Pilot) -> int:
        """Return how many workers are to be busy now, and say how many chunks each may have."""
        room.depth, squeeze = pilot.depth(room.most_depth), self._squeeze
        if squeeze is None or squeeze.size >= squeeze.most:
            return pilot.workers
        room.depth = 1
        return min(pilot.workers, squeeze.size)

    def _note_memory(self, batch: list[Finished]) -> None:
        """Go on with fewer workers if memory ran out, or with more again."""
        if self._squeeze is not None:
            self._squeeze.take_in(batch)
            self.report.memory = self._squeeze.text

    def _must_wait_alone(self, lane: Lane) -> bool:
        """Hold all others back if the next task is to run alone; whether it waits for that."""
        squeeze = self._squeeze
        if squeeze is not None and squeeze.must_be_alone(self._retries.next_due(monotonic())):
            self._is_held = True
        return self._is_held and lane.pending > 0

    def _fill(self, room: Room, workers: int) -> float:
        """Submit what workers have room for: tasks that are due to be tried again come first.

        Return when to do it again, if nothing finishes before.
        """
        if self._is_held and room.lane.pending:
            return math.inf
        self._is_held = False
        if self._throttle is not None:
            return self._fill_slowly(room, workers, self._throttle)
        while room.lane.pending < workers * room.depth and not self._must_wait_alone(room.lane):
            retry = self._retries.take_due(monotonic())
            if retry is None:
                is_full = self._feed.fill(room, workers, self._setting)
                return math.inf if is_full else 0.0
            self.report.retries += 1
            room.lane.submit(retry)
        return math.inf

    def _fill_slowly(self, room: Room, workers: int, throttle: Throttle) -> float:
        """Do the same one by one, as ``rate`` and ``slow_down_on`` let tasks start."""
        lane, feed = room.lane, self._feed
        while lane.pending < throttle.limit(workers) and not self._must_wait_alone(lane):
            if not throttle.start(now := monotonic()):
                return throttle.due
            retry = self._retries.take_due(now)
            if retry is not None:
                self.report.retries += 1
                lane.submit(retry)
                continue
            fed = feed.fed
            is_full = feed.fill(room, lane.pending + 1, self._setting)
            if feed.fed == fed:
                throttle.give_back()
                break
            if not is_full:
                return 0.0
        return math.inf

    def _learn(self, batch: list[Finished], room: Room) -> None:
        """Learn from what finished how large chunks are to be, how many, and by which plan."""
        pilot = self._pilot
        assert pilot is not None
        for finished in batch:
            room.sizer.learn(len(finished.values), finished.seconds)
        if self.plan is not None and self.plan.is_guess:
            self._learn_lengths(self.plan, batch)
        is_full = self._feed.is_open
        if self._throttle is not None:
            self._slow_down(self._throttle, batch)
            is_full = is_full and not self._throttle.is_limiting
        progress = room.lane.take_progress()
        pilot.learn(batch, now := monotonic(), progress, is_full=is_full)
        has_rest = self._feed.is_open or room.lane.left
        if pilot.is_due(now) and has_rest and not self._is_stopped:
            self._look_again(pilot, batch[-1] if batch else None, now)

    def _learn_lengths(self, plan: Plan, batch: list[Finished]) -> None:
        """Note how long tasks take, for a plan that was made before one was over."""
        seconds = [
            finished.seconds / len(finished.values)
            for finished in batch
            if finished.values and not finished.errors
        ]
        if seconds:
            self.plan = self.report.plan = with_lengths(plan, seconds)

    def _slow_down(self, throttle: Throttle, batch: list[Finished]) -> None:
        """Have fewer tasks run at once if those that finished tell of an overload."""
        throttle.learn(batch, monotonic())
        window, report = throttle.window, self.report
        if window is not None and window.decreases:
            report.decreases, report.least_at_once = window.decreases, window.lowest
            report.at_once = window.size

    def _look_again(self, pilot: Pilot, last: Finished | None, now: float) -> None:
        """Change to another plan if what was seen since speaks for it."""
        lane = self._lane
        assert lane is not None
        remaining = self._feed.remaining
        if remaining is not None:
            remaining += lane.left
        sample = pilot.look_again(remaining, max(1, self.report.tasks), now)
        if sample is not None:
            plan = self._choose(sample, last, lane.left)
            if pilot.is_worth(plan) and not self._is_for_another_thread(plan):
                pilot.is_leaving = True
                self._feed.give_back(lane.take_back())
                self.follow(plan)

    def _is_for_another_thread(self, plan: Plan) -> bool:
        """Whether the helper drives, and its plan is the loop: that is the caller's thread's."""
        return plan.backend == "serial" and self._has_helper

    @property
    def _has_helper(self) -> bool:
        """Whether it is the helper that drives."""
        return self.beside is not None and self.beside.is_driving

    def _settle(self, batch: list[Finished]) -> list[Finished]:
        """Record what is final; all of it, before the reader may leave at the first."""
        for finished in batch:
            self._setting.limits.time.learn(finished)
        final = batch
        try:
            if self._retries.are_possible:
                now = monotonic()
                final = [part for finished in batch for part in self._retries.keep(finished, now)]
                if self._is_stopped:  # what would be tried again is not: another error ended it
                    final += self._retries.give_up()
        finally:  # the user's ``retry_on`` may raise
            for finished in final:
                self._note(finished)
            self._stop_clock()
        return final

    def _patience(self, look_at: float = math.inf, *, tries: bool = True) -> float | None:
        """Return how long may be waited before there is something else to do, in seconds.

        Nothing starts before ``look_at``, if that is given. Otherwise ``tries`` says whether a task
        that is to be tried again could be, when that is due.
        """
        if look_at == math.inf and tries:
            look_at = self._retries.due
        due = min(self._deadline, look_at)
        return None if due == math.inf else max(0.0, due - monotonic())

    def _await_next_try(self, look_at: float = math.inf) -> None:
        """Wait until a task is to be tried again, or the reader lets more be read.

        At ``look_at`` the next task may start, if that is given.
        """
        if look_at == math.inf and not (self._retries or self._has_helper):
            # All outcomes were handed out, or wait for one before them that will never come.
            self._audit.check(self._feed.numbered)
        self._rest(look_at)

    def _rest(self, until: float) -> None:
        """Wait until then, or until something wakes this thread."""
        with suppress(Empty):
            self._bell.get(timeout=self._patience(until))

    def _check_time_with(self, lane: Lane) -> None:
        """Check the time, but have the lane looked at once more when it is over.

        The reader may have taken the time, while the last results lay there.
        """
        assert self._pool is not None
        may_look = bool(lane.pending) and not self._pool.traits.runs_in_caller
        if may_look and not self._looked_late and monotonic() >= self._deadline:
            self._looked_late = True
        else:
            self._check_time()

    def _check_time(self) -> None:
        if monotonic() >= self._deadline:
            assert self._options.timeout is not None
            where = ""
            if not self.report.tasks and self._options.initializer is not None:
                where = " Perhaps the initializer takes so long."
            raise RunTimeout(self._options.timeout, self.report.tasks, where)

    def _note(self, finished: Finished) -> None:
        """Record what finished; for an error that stops the run, stop feeding."""
        if not finished.values:  # the end of a chunk that was cancelled
            return
        self._audit.add(finished.first, len(finished.values))
        self._kept[finished.first] = finished
        self.report.add(finished)
        for place, error in finished.errors.items():
            if not isinstance(error, TaskError):  # which says it all by itself
                _add_note(error, self._call, finished.outcome(place))
            if self._options.on_error == "raise":
                self._feed.stop()
                self._is_stopped = True
        if self._show is not None:
            self._show(self.report.tasks, self._feed.total)

    def _stop_clock(self) -> None:
        self.report.wall_s = monotonic() - self._started

    # --- The choice --------------------------------------------------------------------

    def _take_sample(self) -> Iterator[Finished]:
        """Where the choice is ours, run the first tasks here and choose."""
        options = self._options
        is_open = options.backend == "auto" and self._backend is None
        if not is_open or is_coroutine(self._call.fn) or options.memory_limit is not None:
            return
        if options.initializer is not None:
            options.initializer(*options.initargs)
        if self._probe is not None:  # the helper has begun
            yield from self._come_back()
            return
        probe = self._probe = self._make_probe()
        look_at_s = 0.0
        with closing(probe):
            yield from self._take_over(probe)
            while self._feed.is_open and (finished := probe.step()) is not None:
                if probe.has_abandoned:
                    probe.has_abandoned = False
                    self.report.abandoned += 1
                    self._check_time()  # it may be the whole call's time that is over
                yield from self._settle_early(finished)
                if self.plan is not None:
                    yield from self._take_early()
                    return
                self._check_time()
                if probe.spent_s >= look_at_s and not self._explains:
                    look_ahead(options, probe.sample, self._feed.remaining)
                    look_at_s = 2 * probe.spent_s
        self.follow(self._choose(probe.sample, probe.last))

    def _settle_early(self, finished: Finished) -> list[Finished]:
        """Record what is final of the sample."""
        final = self._settle([finished])
        if self._throttle is not None:
            self._throttle.learn([finished], monotonic())
        return final

    def _make_probe(self) -> Probe:
        feed = self._feed
        if feed.reads_anywhere and not (self._options.has_deadline or self._explains):
            self.beside = Beside(self)
        return Probe(
            self._call,
            self._take_now,
            self._sample_limit,
            lambda: feed.remaining,
            self.beside,
            feed.give_back,
            is_alone=feed.is_at_hand,
        )

    def _take_over(self, probe: Probe) -> Iterator[Finished]:
        """Count what ran before there was a run."""
        start = self._start
        if start is not None and start.values:
            yield from self._settle([probe.take_over(start)])

    def plan_beside(self, task: LongTask, held_share: float | None) -> Plan | None:
        """Make a plan while a task of the sample is still running; None: there is no rest to plan.

        Called by the helper, as is ``follow`` then.
        """
        if self._feed.remaining == 0:
            return None
        return self._choose(Probe.peek(task, held_share))

    @property
    def begun(self) -> int:
        """How many tasks were taken from the input and not given back."""
        return self._feed.fed

    def begin_beside(self, task: LongTask) -> None:
        """Go on, as the helper, with what a quick start has left while it is in its last task."""
        start = self._start
        assert start is not None
        self._probe = probe = self._make_probe()
        start.beside = beside = self.beside
        assert beside is not None
        beside.watch(task)
        self._begin()  # while nobody else has this run
        done = self._feed.numbered - 1
        if done:
            beside.early += self._settle([probe.take_over(start, 0, done)])
        beside.go(task)
        if not task.claim.is_ours:  # nobody will come for this run: it is to go, with what it knows
            start.beside = self.beside = self._start = self._probe = None
            self._stack.pop_all()

    def _come_back(self) -> Iterator[Finished]:
        """Go on in the caller's thread, after the long task of a quick start."""
        start, probe = self._start, self._probe
        assert start is not None
        assert probe is not None
        assert self.beside is not None
        self.beside.end()
        start.beside = None  # it refers to us, and we to the start
        if start.fatal is not None:
            raise start.fatal
        yield from self._settle([probe.take_over(start, len(start.values) - 1)])
        yield from self._take_early()

    def _take_early(self) -> Iterator[Finished]:
        """Yield what the helper has finished, and raise what ended it."""
        beside = self.beside
        assert beside is not None
        early, beside.early = beside.early, []
        yield from early
        if beside.error is not None:
            raise beside.error

    def _sample_limit(self) -> float | None:
        """Return how long the next task of the sample may take, in seconds; None: unlimited."""
        given = self._setting.limits.time.seconds
        left = self._deadline - monotonic()
        if given is None:
            return left if self._options.has_deadline else None
        return min(given, left)

    def _take_now(self, count: int) -> Chunk:
        """Take tasks for the sample; wait for the first if need be.

        But not for the reader, nor while a task is to be tried again, which the sample does not
        do: the next item may not come before that one's value does.
        """
        feed, throttle = self._feed, self._throttle
        while True:
            if throttle is not None:
                count = 1
                self._await_start(throttle)
            chunk = feed.take(count, count, 1)
            if throttle is not None and not len(chunk.items):
                throttle.give_back()
            if len(chunk.items) or not feed.is_open or feed.is_held_up or self._retries:
                return chunk
            feed.wait(self._patience())
            self._check_time()

    def _await_start(self, throttle: Throttle) -> None:
        """Wait until another task may start, and count that; or until the run is stopped."""
        while not throttle.start(monotonic()) and self._feed.is_open:
            self._rest(throttle.due)
            self._check_time()

    def _choose(
        self, sample: Sample | None = None, last: Finished | None = None, left: int = 0
    ) -> Plan:
        """Make a plan; ``left`` tasks were taken from the input and can be given back."""
        if self._backend is not None:
            name, workers = self._backend.traits.name, self._backend.max_workers
            return Plan(name, workers, self._options.chunksize, "it is open.")
        spent_s = monotonic() - self._started
        remaining = self._feed.remaining
        if remaining is not None:
            remaining += left
        has_processes = self.plan is not None and self.plan.backend == "processes"
        question = Question(
            self._call.fn,
            self._options,
            sample,
            remaining,
            last,
            spent_s,
            has_processes and self._no_processes is None,
            self._no_processes,
        )
        return decide(question, in_full=self._explains)


NOTHING = Finished(-1, [], [], {}, [], "", 0)


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
    while early:  # the run was stopped before others that come first
        yield heapq.heappop(early)[1]


def _add_note(error: BaseException, call: Call, outcome: Outcome) -> None:
    note = (
        f"plait: task {outcome.index}, {call.text(outcome.item)}, "
        f"attempt {outcome.attempt}, on {outcome.worker} (pid {outcome.pid})"
    )
    attempt(_add, error, note)  # of a class of the user's, which may refuse it
    if isinstance(error, TypeError):
        hint, _ = attempt(_hint_of_style, call, outcome.item)
        if hint:
            attempt(_add, error, f"plait: {hint}")


def _add(error: BaseException, note: str) -> None:
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _hint_of_style(call: Call, item: Any) -> str:
    """Say how a function gets its arguments where map and starmap were mixed up; else nothing."""
    if call.style == "star" and not is_iterable(item):
        return "starmap needs a tuple of arguments for each task; map gives one argument."
    args = item if call.style == "star" else (item,)
    is_series = call.style != "task" and len(args) == 1 and type(args[0]) in (tuple, list)
    if is_series and not _takes(call.fn, args) and _takes(call.fn, args[0]):
        kind = type(args[0]).__name__
        return (
            f"the item is a {kind}, and map gives it as one argument. For an argument from each "
            "part: plait.starmap(fn, items), or plait.map(fn, xs, ys) in place of zip(xs, ys)."
        )
    return ""


def _takes(fn: Any, args: Any) -> bool:
    try:
        signature(fn).bind(*args)
    except (TypeError, ValueError):  # it has none
        return False
    return True
