"""How much of their computing tasks hold the GIL: a thread wants to run often, and is late then.

Used by probe.py, while the first tasks run. The thread sleeps half a millisecond, wakes up, and
needs the GIL to go on. Where nothing holds it, that takes no time; where the tasks run Python, or
C code that does not let go of it, the thread waits until they do, at most the switch interval
(5 ms) if they are asked to. So what it measures is what another worker thread would meet. That it
had to wait is told by the system: a thread that sleeps once more than it wanted to has slept for
the GIL, however shortly, as it does where tasks let go of it again and again. (Where the system
does not count, anywhere but on Linux, only what is late by more than timers are shows.)
(The idea is that of gilknocker, https://github.com/milesgranger/gilknocker.)

What the tasks do between two looks is not seen, but is taken to be as it was at the next one. So
each beat counts for as much as the tasks computed until its end. On a busy machine they may have
had no CPU for the whole of it: then nobody wanted the GIL, or had it and could not go on. And where
it is this thread that had none, as theirs was on it, it gets one when they fall asleep: that it
finds the GIL free then tells nothing of what they have computed until then.

Who waits for the GIL is given it after the switch interval, but that begins anew whenever the
tasks' thread lets go of it for a moment, as it does between two steps of a sample: of tasks that
held it all the time there was not one beat in 80 ms. So a step does not begin before its first beat
has, and in a pause a beat that is late is waited for. Other beats that a pause comes into do not
count, for between two steps the tasks' thread lets go of the GIL.
"""

from __future__ import annotations

import sys
from _queue import Empty, SimpleQueue  # as in queue, but never for greenlets
from _thread import get_native_id
from contextlib import suppress
from time import thread_time

from plait import greenlets
from plait.clocks import cpu_of_thread, is_running, monotonic
from plait.host import QueueClock
from plait.sentinel import before_fork, wait_gone

# It is about threads: where gevent makes greenlets of them, this one is a thread all the same.
allocate_lock = greenlets.original("_thread", "allocate_lock")
start_new_thread = greenlets.original("_thread", "start_new_thread")

__all__ = ["Heartbeat", "Tally", "has_gil"]

BEATS_S = (0.000_5, 0.000_31, 0.000_67, 0.000_41, 0.000_83, 0.000_37, 0.000_59)
"""Uneven, or it would fall in step with tasks that sleep and work in turn, and never see them."""
GONE_S = 0.1
TURN_S = 0.001
"""For a beat to begin, or to end, is waited as long at the most."""
VERY_LATE_S = 0.001
LATE_S = 0.000_15
"""What a wake-up may take where the GIL is free: timers and the system are this inexact."""


def has_gil() -> bool:
    """Whether this interpreter has a global lock (not a free-threaded one, python/cpython PEP 703).

    >>> has_gil() in (True, False)
    True
    """
    is_enabled = getattr(sys, "_is_gil_enabled", None)
    return is_enabled is None or bool(is_enabled())


class Tally:
    """What beats have told, of one heart or of several.

    Attributes:
        beats: how many were counted.
    """

    def __init__(self) -> None:
        self.beats = 0
        self._free_s = 0.0  # what the tasks computed, as far as beats found the GIL free, or held
        self._held_s = 0.0

    def add(self, computed_s: float, *, is_held: bool) -> None:
        """Count a beat."""
        self.beats += 1
        if is_held:
            self._held_s += computed_s
        else:
            self._free_s += computed_s

    @property
    def held_share(self) -> float | None:
        """The share of the tasks' computing in which the GIL was held; None: not known yet."""
        if not has_gil():
            return 0.0
        known_s = self.known_s
        return self._held_s / known_s if known_s >= BEATS_S[0] else None

    @property
    def known_s(self) -> float:
        """How much computing there was in the beats that were counted, in seconds."""
        return self._free_s + self._held_s


class Heartbeat:
    """Beats, and counts, from each ``resume`` to the next ``pause``.

    Attributes:
        tally: what it has counted.
        cpu_s: the time on a CPU that its own thread took.
        native_id: by which the system knows the thread; 0: it has not begun.
    """

    def __init__(self, tally: Tally | None = None) -> None:
        """Go on with a tally."""
        self.tally = tally or Tally()
        self._bell: SimpleQueue[None] = SimpleQueue()  # rung to have the thread look around
        self._turns: SimpleQueue[None] = SimpleQueue()  # answers who waits for its thread
        self._is_awaited = False
        self._due_s = 0.0  # when the beat that goes on, or the first one, is late
        self._ended = allocate_lock()
        self._is_running = False
        self.native_id = 0
        self._is_resting = True
        # A clock that stands still in the pauses.
        self._counted_s = 0.0
        self._resumed_at: float | None = None
        self._pauses = 0
        self.cpu_s = 0.0
        self._number = 0  # of the beat
        self._tasks_id = 0  # the thread that runs the tasks

    def start(self) -> None:
        """Start its thread, which waits for ``resume``.

        Where no thread can be had there is none, and nothing is counted.
        """
        self._ended.acquire()
        self._is_running = self._is_awaited = True
        try:
            start_new_thread(self._serve, ())
        except RuntimeError:
            self._is_running = self._is_awaited = False
            self._ended.release()
            return
        _running.append(self)
        self._give_turn()

    def stop(self) -> None:
        """Stop, and wait for the end of the thread; may be called again."""
        if self._is_running:
            self._is_running = False
            with suppress(ValueError):  # a fork in another thread has stopped it
                _running.remove(self)
            self._bell.put(None)
            with suppress(RuntimeError):  # when Python ends, its other threads do not run
                self._ended.acquire(timeout=GONE_S)

    def resume(self, native_id: int = 0) -> None:
        """Beat and count from now on, while this thread runs tasks; 0: the calling one."""
        self._tasks_id = native_id or get_native_id()
        self._resumed_at = monotonic()
        if self._is_resting:
            self._is_awaited = True
            self._bell.put(None)
            self._give_turn()

    def pause(self) -> None:
        """Rest, and count no more; what is late now has been late until now."""
        self._counted_s, self._resumed_at = self._counted(), None
        if self._counted_s > self._due_s:
            self._is_awaited = True
            self._give_turn()
        self._pauses += 1

    def _give_turn(self) -> None:
        """Leave the GIL to its thread for a moment, until that rests or sleeps."""
        with suppress(Empty):
            self._turns.get(timeout=TURN_S)
        self._is_awaited = False

    def _end_turn(self) -> None:
        if self._is_awaited:
            self._is_awaited = False
            self._turns.put(None)

    def _counted(self) -> float:
        resumed_at = self._resumed_at
        return self._counted_s + (0.0 if resumed_at is None else monotonic() - resumed_at)

    def _serve(self) -> None:
        self.native_id = get_native_id()
        queue = QueueClock(every_s=0.0)
        try:
            while self._is_running:
                # Say so before looking. The other order sleeps through it: 1. we look, there is
                # a pause; 2. it ends, nobody rests, and the bell is not rung; 3. we rest.
                self._is_resting = True
                if self._resumed_at is None:
                    self._end_turn()
                    self._bell.get()
                self._is_resting = False
                if self._resumed_at is not None:
                    self._beat(queue)
        finally:
            queue.close()
            self._ended.release()

    def _beat(self, queue: QueueClock) -> None:
        queue.read_since_last()
        self._number += 1
        beat_s = BEATS_S[self._number % len(BEATS_S)]
        tasks_id, sleeps = self._tasks_id, count_sleeps()
        cpu_s, started, pauses = cpu_of_thread(tasks_id), self._counted(), self._pauses
        self._due_s = started + beat_s
        self._end_turn()
        with suppress(Empty):
            self._bell.get(timeout=beat_s)
        took_s, now_s = self._counted() - started, cpu_of_thread(tasks_id)
        computed_s = None if cpu_s is None or now_s is None else now_s - cpu_s
        slept, queued_s = count_sleeps() - sleeps, queue.read_since_last()
        is_blind = slept <= 1 and queued_s > LATE_S and not is_running(tasks_id)
        if pauses == self._pauses and not is_blind:
            self._count(beat_s, took_s, queued_s, computed_s, slept)
        self.cpu_s = thread_time()

    def _count(
        self, beat_s: float, took_s: float, queued_s: float, computed_s: float | None, sleeps: int
    ) -> None:
        """Count a beat, in which this thread waited so long for a CPU; the tasks computed so long.

        Where that cannot be known they are taken to have computed all the time.
        """
        if took_s < beat_s:  # a part of it fell into a pause
            return
        late_s = max(0.0, took_s - queued_s - beat_s)
        counts_s = beat_s + late_s if computed_s is None else computed_s
        # Asleep once for the beat, and again for the GIL; or so late that it can be nothing else.
        is_held = sleeps > 1 or late_s > (VERY_LATE_S if sleeps else LATE_S)
        self.tally.add(counts_s, is_held=is_held)


_running: list[Heartbeat] = []


def _end_all() -> None:
    """Before a fork: a process with several threads is not to be forked (Python 3.12 warns)."""
    while _running:
        heart = _running[-1]
        heart.stop()  # and it is none of them any more
        if heart.native_id:
            wait_gone(heart.native_id)


before_fork.append(_end_all)


def _count_sleeps() -> int:
    """Return how often the calling thread gave up its CPU to wait for something."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _count_none() -> int:
    return 0


try:
    import resource

    count_sleeps = _count_sleeps if hasattr(resource, "RUSAGE_THREAD") else _count_none
except ImportError:  # Windows: untested
    count_sleeps = _count_none
