"""Keep pools warm between calls, and let them go when nobody came for a while.

Starting processes for each ``plait.map`` would cost more than many maps. Calls from several
threads share a pool, and take turns. For a call that would have to wait for processes that
others keep busy there is a second pool, of a worker for each CPU at most; there are no more
than these two. (A pool of threads starts such workers itself; event loops are not shared at
all, for a coroutine that calls plait holds its loop up meanwhile.) One janitor thread, asleep
until the next pool is due, closes what was idle for IDLE_S; the rest is closed at exit. Before
this process is forked, the janitor and the idle pools of threads end: a process with several
threads is not to be forked (Python 3.12 warns of it).
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from plait.backends import open_backend
from plait.backends.contract import Setting
from plait.errors import PlaitError, WorkerStartError
from plait.host import cpu_count, monotonic
from plait.outcome import Call, Chunk
from plait.sentinel import wait_gone
from plait.shield import Shield

if TYPE_CHECKING:
    from types import TracebackType

    from plait.backends.contract import Backend, Lane
    from plait.options import Options
    from plait.plans import Plan

__all__ = ["Lease", "begin_to_warm", "close_idle", "is_warm"]

IDLE_S = 30.0
MOST_ALIKE = 2
GONE_S = 1.0
"""How long a fork waits for the end of the janitor, which may be closing a pool."""

Key = tuple[str, int, str | None, int | None]


class _Warm:
    """A pool and who uses it; one that is not kept takes no new users."""

    def __init__(self, key: Key, preload: set[str], backend: Backend) -> None:
        self.key = key
        self.preload = preload
        self.backend = backend
        self.users = 0
        self.idle_since = 0.0
        self.is_kept = True

    @property
    def is_crowded(self) -> bool:
        """Whether a call would have to wait for the tasks of others."""
        return self.users > 0 and self.backend.is_crowded


class _Pools:
    """The warm pools of this process, and the thread that lets them go."""

    def __init__(self) -> None:
        # Guards the two below. Not to be taken by way of the condition: that is Python code, and an
        # exception from outside may strike as it has the lock, and nobody gives it back.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.warm: list[_Warm] = []
        self.janitor: threading.Thread | None = None

    def lease(self, plan: Plan, options: Options, max_workers: int) -> Backend:
        if plan.backend == "serial" or options.initializer is not None:  # for one call only
            return open_backend(plan.backend, max_workers, options)
        key = (
            plan.backend,
            max_workers,
            options.start_method,
            options.max_tasks_per_child,
        )
        with self.lock:
            preload = set(options.preload)
            fitting = [warm for warm in self.warm if self._fits(warm, key, preload)]
            warm = next((warm for warm in fitting if not warm.is_crowded), None)
            is_loop = plan.backend == "asyncio"
            if warm is None and (is_loop or len(fitting) < MOST_ALIKE):
                has_all = is_loop or not fitting
                workers = max_workers if has_all else min(max_workers, cpu_count())
                with suppress(*([WorkerStartError] if fitting else [])):
                    warm = _Warm(key, preload, self._open(plan, workers, options))
                    self.warm.append(warm)
                    self.changed.notify()
            warm = warm or min(fitting, key=lambda warm: warm.users)
            warm.is_kept &= self._has_janitor()
            warm.users += 1
            return warm.backend

    def _open(self, plan: Plan, max_workers: int, options: Options) -> Backend:
        """Open a pool; idle ones make room for it where the system would not give more."""
        idle = [warm for warm in self.warm if not warm.users]
        short = [warm for warm in idle if warm.backend.shortage]
        self._close_some(short)
        try:
            return open_backend(plan.backend, max_workers, options, is_shared=True)
        except WorkerStartError:
            if len(idle) == len(short):
                raise
            self._close_some([warm for warm in idle if warm not in short])
        return open_backend(plan.backend, max_workers, options, is_shared=True)

    def _close_some(self, old: list[_Warm]) -> None:
        self._take_out(old)
        _close_each(old)

    def _take_out(self, old: list[_Warm]) -> list[_Warm]:
        """Give no more calls to some pools, and return them; called with the lock."""
        self.warm = [warm for warm in self.warm if warm not in old]
        return old

    def _fits(self, warm: _Warm, key: Key, preload: set[str]) -> bool:
        # More than what was asked for does no harm; less would be no answer to who asked.
        is_alike = warm.key == key and warm.preload >= preload
        return is_alike and warm.is_kept and warm.backend.is_usable

    def release(self, backend: Backend, *, keep: bool) -> bool:
        """Give a pool back; False: nobody uses it any more, and it is to be closed."""
        with self.lock:
            warm = next((warm for warm in self.warm if warm.backend is backend), None)
            if warm is not None:
                warm.users -= 1
                warm.idle_since = monotonic()
                warm.is_kept &= keep and backend.is_usable
                if warm.is_kept or warm.users:
                    return True
                self.warm.remove(warm)
        return False

    def _has_janitor(self) -> bool:
        """Have idle pools closed later; False if the system allows no further thread."""
        if self.janitor is None:  # the first pool, or the first call after a fork
            janitor = threading.Thread(target=self._let_go, name="plait-janitor", daemon=True)
            try:
                janitor.start()
            except RuntimeError:
                return False
            self.janitor = janitor
        return True

    def _let_go(self) -> None:
        while True:
            with self.lock:
                if self.janitor is not threading.current_thread():  # this process is being forked
                    return
                # A pool may wait up to twice its time: nobody wakes the janitor at each
                # release, which would cost more than a small map.
                self.changed.wait(IDLE_S if self.warm else None)
                old = self._take_old()
            _close_each(old)

    def _take_old(self) -> list[_Warm]:
        due = monotonic() - IDLE_S
        old = [warm for warm in self.warm if not warm.users and warm.idle_since <= due]
        return self._take_out(old)

    def close_idle(self) -> None:
        with self.changed:
            idle = self._take_out([warm for warm in self.warm if not warm.users])
            for warm in self.warm:
                warm.is_kept = False  # it closes with its last call
        _close_each(idle)

    def close(self) -> None:
        with self.lock:
            old = self._take_out(self.warm)
        _close_each(old)

    def end_threads(self) -> None:
        """End the janitor and the idle pools of threads."""
        with self.changed:
            idle = [warm for warm in self.warm if warm.key[0] == "threads" and not warm.users]
            self._take_out(idle)
            janitor, self.janitor = self.janitor, None
            self.changed.notify()
        _close_each(idle)
        if janitor is not None and janitor is not threading.current_thread():
            janitor.join(GONE_S)  # it may be closing a pool
            wait_gone(janitor.native_id or 0)

    def abandon(self) -> None:
        for warm in self.warm:
            warm.backend.abandon()
        self.__init__()  # type: ignore[misc]  # a new lock, too: another thread may have held it


def _close_each(old: list[_Warm]) -> None:
    for warm in old:
        warm.backend.close()


_pools = _Pools()


@atexit.register
def _close_all() -> None:
    """Close the pools.

    Exit functions run in the reverse order of their registration: this one comes after that of
    executor.py, which imports this module, and whose tasks need their workers; and before that
    of server_process.py, which is imported here.
    """
    _pools.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_pools.end_threads,
        after_in_child=_pools.abandon,
    )


def close_idle() -> None:
    """Close the pools that no call uses, and let the others close with their last call."""
    _pools.close_idle()


class Lease:
    """A pool for a plan with room for so many workers, a warm one if there is one.

    For a ``with`` block, at whose end it is given back.

    Not a generator: the garbage collector would close that by itself, before the block has ended.
    """

    def __init__(self, plan: Plan, options: Options, max_workers: int) -> None:
        self._asked = (plan, options, max_workers)
        self._backend: Backend | None = None

    def __enter__(self) -> Backend:
        try:
            with Shield():  # a pool that nobody knows of would never be closed
                self._backend = _pools.lease(*self._asked)
        except BaseException as error:
            self._give_back(error)
            raise
        return self._backend

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._give_back(error)

    def _give_back(self, error: BaseException | None) -> None:
        backend, self._backend = self._backend, None
        if backend is None:
            return
        # What else comes out here came from outside (Ctrl-C, another signal handler's exception)
        # and may have struck anywhere: only a pool that knows itself to be whole is used again.
        is_sound = error is None or isinstance(error, (PlaitError, GeneratorExit))
        is_kept = True
        try:
            with Shield():
                is_kept = _pools.release(backend, keep=is_sound or backend.is_whole)
        finally:
            if not is_kept:
                backend.close()


def is_warm(backend: str) -> bool:
    """Whether a pool of that kind stands ready."""
    return any(warm.key[0] == backend and warm.is_kept for warm in list(_pools.warm))


def begin_to_warm(backend: Backend, fn: Callable[..., Any]) -> Lane:
    """Start all workers of a pool of processes; they are ready when nothing of the lane is pending.

    For tasks that have a time at which they start. Those which were sent to workers that are not
    ready yet, or have to import what the function needs, would all start at once, when these are.
    """
    lane = backend.open_lane(Call(partial(_do_nothing, fn)), Setting(starts_all=True))
    if not backend.traits.shares_memory:
        lane.submit(*(Chunk(place, (place,)) for place in range(backend.max_workers)))
    return lane


def _do_nothing(_fn: object, _item: int) -> None:
    """Show that a worker is ready."""
