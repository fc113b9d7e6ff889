"""Let a run go on beside a task of its sample that takes long.

The first tasks run in the caller's thread, and nobody knows how long one takes before it is
over. After 20 ms the sentinel notices that it is still in one, and a thread is started that does
what the caller's thread would: it looks at the clocks, and at who holds the GIL, chooses, opens
workers, feeds them, and keeps what they have finished. When the long task is over its thread
takes back the run where it is, and the helper ends. So nothing waits for the long task but those
who need its result, and it is still the caller's own thread that runs it: Ctrl-C reaches it.

Two threads want the rest of the run then. Who takes the ``claim`` has it:

    the caller's thread                          the helper
    takes the claim when the task is over        takes the claim before it opens workers
    has it: it goes on, there is no helper       has it: it works until it is called back
    has it not: calls the helper back, waits     has it not: it ends

While there is a helper, threads of this process are switched every half a millisecond at most
(sys.setswitchinterval). Python lets a thread that computes go on for 5 ms each time another one
asks for the GIL; the helper reads files and starts workers, and asks for it after every call of
the system. And where the task calls the system itself, as to look for a file, more often than
every 5 ms, each call starts those 5 ms anew, and the helper may get no turn for as long as the
task runs (the convoy of https://bugs.python.org/issue7946).

Used by runs.py, and by calls.py for the first moment of a map (quick.py).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from _thread import LockType, allocate_lock, get_ident, get_native_id
from collections.abc import Callable, Generator
from contextvars import copy_context
from typing import TYPE_CHECKING, Protocol

from plait.clocks import ThreadClock, clock_of_thread
from plait.errors import PlaitError
from plait.heartbeat import Heartbeat, Tally
from plait.imports import Imports
from plait.sentinel import sentinel

if TYPE_CHECKING:
    from plait.outcome import Finished
    from plait.plans import Plan
    from plait.sentinel import Watch

__all__ = ["Beside", "LongTask"]

LOOK_S = 0.03
LOOK_ON_S = 0.02
"""How long it is watched who holds the GIL; if that has been watched since the task began."""

BRISK_S = 0.000_5
"""How long a thread keeps the GIL while a helper wants it."""


class LongTask:
    """A task that a thread is in, since the clocks of that thread were read."""

    def __init__(
        self,
        before: ThreadClock,
        thread: tuple[int, int],
        claim: LockType,
        imports: Imports,
        heart: Heartbeat | None = None,
    ) -> None:
        """``heart`` beats already."""
        self.heart = heart
        self.before = before
        self.thread = thread
        self.claim = claim
        self.imports = imports

    @property
    def is_over(self) -> bool:
        """Whether its thread has gone on."""
        return self.claim.locked()

    def clocks(self) -> ThreadClock:
        """Read the clocks of its thread, until now."""
        return clock_of_thread(*self.thread)

    def begin_anew(self) -> None:
        """Count what it has done until now for nothing."""
        self.before, self.heart = self.clocks(), None

    @property
    def is_importing(self) -> bool:
        """Whether it is in an import now: what the first task does, and the others do not."""
        return self.imports.look(self.thread[0])


class Conducted(Protocol):
    """What the helper needs of a run."""

    rest: Generator[Finished]

    def plan_beside(self, task: LongTask, held_share: float | None) -> Plan | None:
        """Make a plan while a task is still running; None: there is nothing left to do."""
        ...

    def follow(self, plan: Plan) -> None:
        """Let this be the plan of ``rest``."""
        ...

    def wake(self) -> None:
        """Have whoever waits in ``rest`` look around."""
        ...


class Beside:
    """The helper of a run: watched tasks, and what was done beside one of them."""

    def __init__(self, run: Conducted) -> None:
        self.run = run
        self.must_stop = False
        self.has_helped = False  # a helper was started
        self.error: BaseException | None = None
        self.early: list[Finished] = []  # what it has finished
        self._task: LongTask | None = None
        self._watch: Watch | None = None
        self._ended = allocate_lock()  # held by the helper from before it takes the claim

    # --- In the caller's thread --------------------------------------------------------

    def begin(self, before: ThreadClock, heart: Heartbeat | None = None) -> None:
        """Hear that a task begins, at these readings of the clocks; ``heart`` beats for it."""
        thread = (get_ident(), get_native_id())
        self._task = task = LongTask(before, thread, allocate_lock(), Imports(), heart)
        context = copy_context()
        self._watch = sentinel.arm(lambda: self._start_thread(context.run, task))

    def end(self) -> bool:
        """Hear that it is over; whether it has imported something."""
        watch, self._watch = self._watch, None  # it refers to us
        sentinel.disarm(watch)
        assert self._task is not None
        if not self._task.claim.acquire(blocking=False):
            self.come_back()
        return self._task.imports.settle()

    def come_back(self) -> None:
        """Have the helper stop, and wait until it has."""
        self.must_stop = True
        self.run.wake()
        with self._ended:
            self.must_stop = False

    # --- In the helper -----------------------------------------------------------------

    def _start_thread(self, run: Callable[..., None], task: LongTask) -> None:
        task.imports.settle()
        self.has_helped = True
        thread = threading.Thread(
            target=run, args=(self.go, task), name="plait-beside", daemon=True
        )
        thread.start()

    def go(self, task: LongTask) -> None:
        """Go on with the run if that is worth it, until called back."""
        with brisk_switching:
            self._go(task)

    def _go(self, task: LongTask) -> None:
        held_share = self._look(task)
        plan = None if task.is_over else self._plan(task, held_share)
        if plan is None or plan.backend == "serial":
            return
        with self._ended:
            if task.claim.acquire(blocking=False):
                self.run.follow(plan)
                self._drive()

    def _look(self, task: LongTask) -> float | None:
        """Return for what share of a while the task holds the GIL; it imports nothing meanwhile."""
        while True:
            is_importing = task.is_importing
            tally = self._watch_gil(task)
            if task.is_over or not (is_importing or task.is_importing):
                return tally.held_share
            task.begin_anew()

    def _watch_gil(self, task: LongTask) -> Tally:
        """Watch for a while, and return what was seen; also before, if something beats already."""
        if task.heart is not None:
            time.sleep(LOOK_ON_S)
            return task.heart.tally
        heart = Heartbeat()
        heart.start()
        heart.resume(task.thread[1])
        try:
            time.sleep(LOOK_S)
        finally:
            heart.stop()
        return heart.tally

    def _plan(self, task: LongTask, held_share: float | None) -> Plan | None:
        try:
            return self.run.plan_beside(task, held_share)
        except PlaitError:  # the caller's thread will meet it, too
            return None

    def _drive(self) -> None:
        try:
            for finished in self.run.rest:
                if finished.values:
                    self.early.append(finished)
                if self.must_stop:
                    return
        except BaseException as error:  # noqa: BLE001  raised in the caller's thread
            self.error = error


class _BriskSwitching:
    """Have the threads of this process switched often, while anyone is in it."""

    def __init__(self) -> None:
        self._inside = 0
        self._lock = threading.Lock()
        self._usual_s = self._ours_s = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._usual_s = sys.getswitchinterval()
                if self._usual_s > BRISK_S:
                    sys.setswitchinterval(BRISK_S)
                self._ours_s = sys.getswitchinterval()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            # Where someone else has set it since, it stays as they want it.
            if not self._inside and sys.getswitchinterval() == self._ours_s:
                # Python cuts off parts of a microsecond, which what it returns may lack.
                sys.setswitchinterval(self._usual_s + 1e-7)

    def leave_child(self) -> None:
        """In the child of a fork, where the threads that were in it are gone."""
        self._lock = threading.Lock()
        if self._inside:
            self._inside = 1
            self.__exit__()


brisk_switching = _BriskSwitching()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=brisk_switching.leave_child)
