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

So each thing has one owner at any moment, and only the owner reads or changes it:

    what                                    before the claim   the helper has it   called back
    feed (input, numbers), retries, plan,
      lane, pilot, report, ``rest``         caller             helper              caller
    the tasks of the caller's step: those
      it is in, and those after them        caller             caller              caller
    the measurements of the probe           caller             caller              caller
    ``early``, ``error``                    helper             helper              caller

The caller's thread keeps the tasks of its step that it will not run after all, some milliseconds
of work, and gives them back when it owns the feed again. ``claim`` and ``_ended`` pass
ownership on; ``must_stop``, ``stop`` and ``wake`` may be used by any thread. While the helper only
looks it reads the clocks of the other thread and how many tasks remain, as a guess.

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
from _thread import allocate_lock, get_ident, get_native_id
from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Protocol

from plait.clocks import ThreadClock, clock_of_thread, monotonic
from plait.heartbeat import Heartbeat, Tally
from plait.imports import Imports
from plait.quick import Claim
from plait.sentinel import sentinel

if TYPE_CHECKING:
    from plait.outcome import Finished
    from plait.plans import Plan
    from plait.sentinel import Watch

__all__ = ["Beside", "LongTask"]

LOOK_S = 0.03
LOOK_ON_S = 0.02
"""How long it is watched who holds the GIL; if that has been watched since the task began."""

PATIENCE_S = 2.0
"""How long a helper is waited for that is to leave because the run is ended from outside."""

BRISK_S = 0.000_5
"""How long a thread keeps the GIL while a helper wants it."""


class LongTask:
    """A task that a thread is in, since the clocks of that thread were read."""

    def __init__(
        self,
        before: ThreadClock,
        thread: tuple[int, int],
        claim: Claim,
        imports: Imports,
        heart: Heartbeat | None = None,
        tasks: int = 0,
    ) -> None:
        """``heart`` beats already; ``tasks`` were measured before it."""
        self.tasks = tasks
        self.heart = heart
        self.before = before
        self.thread = thread
        self.claim = claim
        self.imports = imports

    @property
    def is_over(self) -> bool:
        """Whether its thread has gone on."""
        return self.claim.is_taken

    def clocks(self) -> ThreadClock:
        """Read the clocks of its thread, until now."""
        return clock_of_thread(*self.thread)

    def begin_anew(self) -> None:
        """Count what it has done until now for nothing."""
        self.before, self.heart = self.clocks(), None

    @property
    def is_amid_import(self) -> bool:
        """Whether the call itself is part of an import: at the top of a module, for example.

        To pickle what that module defines then waits for the end of the import, and so for the
        long task: there is nothing to be done beside it.
        """
        return self.imports.is_amid_import

    @property
    def is_importing(self) -> bool:
        """Whether it is in an import now: what the first task does, and the others do not."""
        return self.imports.look(self.thread[0])


class Conducted(Protocol):
    """What the helper needs of a run."""

    rest: Generator[Finished]

    @property
    def begun(self) -> int:
        """How many tasks were taken from the input."""
        ...

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
    """The helper of a run: watched tasks, and what was done beside one of them.

    Attributes:
        must_stop: the helper is to leave; the caller's thread waits for that.
        is_driving: the helper has the run.
        has_helped: a helper was started.
        error: what ended the helper's work.
        early: what it has finished.
    """

    def __init__(self, run: Conducted) -> None:
        self.run = run
        self.must_stop = False
        self.is_driving = False
        self.has_helped = False
        self.error: BaseException | None = None
        self.early: list[Finished] = []
        self._task: LongTask | None = None
        self._watch: Watch | None = None
        self._ended = allocate_lock()  # held by the helper from before it takes the claim
        self._leavings: list[ExitStack] = []  # what the helper has to close; who pops it does

    # --- In the caller's thread --------------------------------------------------------

    def begin(self, before: ThreadClock, heart: Heartbeat | None = None, tasks: int = 0) -> None:
        """Watch the tasks that begin now, at these readings of the clocks.

        ``heart`` beats for them; ``tasks`` were measured before.
        """
        thread = (get_ident(), get_native_id())
        task = LongTask(before, thread, Claim(), Imports(), heart, tasks)
        self.watch(task)
        context = copy_context()
        self._watch = sentinel.arm(lambda: self._start_thread(context.run, task))

    def watch(self, task: LongTask) -> None:
        """Let this be the task that a helper may go on beside."""
        self._task = task

    def end(self) -> bool:
        """End the watch, and the helper with it; return whether something was imported.

        From here on the caller's thread owns the run again. To call it again does no harm.
        """
        task = self._task
        if task is None:
            return False
        sentinel.disarm(self._watch)
        self._watch = None  # it refers to us
        if not task.claim.take():
            self._call_back()
        return task.imports.settle()

    def _call_back(self) -> None:
        """Have the helper stop, and wait until it has."""
        self._tell_to_stop()
        with self._ended:
            self.must_stop = False

    def _tell_to_stop(self) -> None:
        self.must_stop = True
        self.run.wake()

    def leave(self, stack: ExitStack) -> None:
        """End the helper as ``end`` does, before a run is closed: by ``stack``, which is in use.

        An exception, as of a second Ctrl-C, does not end the waiting: what the helper works with
        is about to be closed. Should it not come within PATIENCE_S (it may wait for a lock of the
        user's that the caller's thread holds), all that is to be closed is left to it.
        """
        task = self._task
        if task is None or task.claim.take():
            return
        deadline, interrupt = monotonic() + PATIENCE_S, None
        is_back = False
        while not is_back and monotonic() < deadline:
            try:
                self._tell_to_stop()
                is_back = self._ended.acquire(timeout=PATIENCE_S)
            except BaseException as error:  # noqa: BLE001  raised below
                interrupt = error
        if not is_back:
            self._leavings.append(stack.pop_all())
            is_back = self._ended.acquire(blocking=False)
        if is_back:
            self._ended.release()
            self._close_leavings()
        if interrupt is not None:
            raise interrupt

    def _close_leavings(self) -> None:
        with suppress(IndexError):  # the other thread does it
            self._leavings.pop().close()

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
        plan = None if task.is_over or task.is_amid_import else self._plan(task, held_share)
        if plan is None or plan.backend == "serial":
            return
        with self._ended:
            if task.claim.take():
                self.run.follow(plan)
                self._drive()
        self._close_leavings()

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
        # To plan is to pickle the function, while the task may change what it refers to: whatever
        # comes of that, the caller's thread goes on alone, and meets it again if it is real.
        except Exception:  # noqa: BLE001
            return None

    def _drive(self) -> None:
        self.is_driving = True
        begun = self.run.begun
        try:
            for finished in self.run.rest:
                if finished.values:
                    self.early.append(finished)
                if self.must_stop:
                    return
        except BaseException as error:  # noqa: BLE001  raised in the caller's thread
            # If nothing was begun the caller's thread tries again: what was to be pickled may have
            # been changed amid it, by the long task.
            if self.run.begun > begun:
                self.error = error
        finally:
            self.is_driving = False


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
