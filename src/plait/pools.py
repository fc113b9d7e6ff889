"""Keep pools warm between calls, and let them go when nobody came for a while.

Starting processes for each ``plait.map`` would cost more than many maps. Calls from
several threads share a pool. One janitor thread, asleep until the next pool is due,
closes what was idle for IDLE_S; the rest is closed at exit.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from plait.backends import open_backend
from plait.errors import WorkerStartError
from plait.host import monotonic

if TYPE_CHECKING:
    from plait.backends.contract import Backend
    from plait.options import Options
    from plait.plans import Plan

__all__ = ["is_warm", "leased"]

IDLE_S = 30.0

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
            warm = next((warm for warm in self.warm if self._fits(warm, key, preload)), None)
            if warm is None:
                backend = self._open(plan, max_workers, options)
                warm = _Warm(key, preload, backend)
                self.warm.append(warm)
                warm.is_kept = self._wake_janitor()
            warm.users += 1
            return warm.backend

    def _open(self, plan: Plan, max_workers: int, options: Options) -> Backend:
        """Open a pool; idle ones make room for it where the system would not give more."""
        idle = [warm for warm in self.warm if not warm.users]
        short = [warm for warm in idle if getattr(warm.backend, "shortage", "")]
        self._close_some(short)
        try:
            return open_backend(plan.backend, max_workers, options)
        except WorkerStartError:
            if len(idle) == len(short):
                raise
            self._close_some([warm for warm in idle if warm not in short])
        return open_backend(plan.backend, max_workers, options)

    def _close_some(self, old: list[_Warm]) -> None:
        self.warm = [warm for warm in self.warm if warm not in old]
        for warm in old:
            warm.backend.close()

    def _fits(self, warm: _Warm, key: Key, preload: set[str]) -> bool:
        # More than what was asked for does no harm; less would be no answer to who asked.
        is_alike = warm.key == key and warm.preload >= preload
        return is_alike and warm.is_kept and warm.backend.is_usable

    def release(self, backend: Backend, *, keep: bool) -> None:
        with self.lock:
            warm = next((warm for warm in self.warm if warm.backend is backend), None)
            if warm is not None:
                warm.users -= 1
                warm.idle_since = monotonic()
                warm.is_kept &= keep and backend.is_usable
                if warm.is_kept or warm.users:
                    return
                self.warm.remove(warm)
        backend.close()

    def _wake_janitor(self) -> bool:
        """Have idle pools closed later; False if the system allows no further thread."""
        if self.janitor is None:
            janitor = threading.Thread(target=self._let_go, name="plait-janitor", daemon=True)
            try:
                janitor.start()
            except RuntimeError:
                return False
            self.janitor = janitor
        self.changed.notify()
        return True

    def _let_go(self) -> None:
        while True:
            with self.lock:
                # A pool may wait up to twice its time: nobody wakes the janitor at each
                # release, which would cost more than a small map.
                self.changed.wait(IDLE_S if self.warm else None)
                old = self._take_old()
            for backend in old:
                backend.close()

    def _take_old(self) -> list[Backend]:
        due = monotonic() - IDLE_S
        old = [warm for warm in self.warm if not warm.users and warm.idle_since <= due]
        self.warm = [warm for warm in self.warm if warm not in old]
        return [warm.backend for warm in old]

    def close(self) -> None:
        with self.lock:
            old, self.warm = self.warm, []
        for warm in old:
            warm.backend.close()

    def abandon(self) -> None:
        for warm in self.warm:
            warm.backend.abandon()
        self.__init__()  # type: ignore[misc]  # a new lock, too: another thread may have held it


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
    os.register_at_fork(after_in_child=_pools.abandon)


@contextmanager
def leased(plan: Plan, options: Options, max_workers: int) -> Iterator[Backend]:
    """Give a pool for a plan with room for so many workers, a warm one if there is one."""
    backend = _pools.lease(plan, options, max_workers)
    is_sound = False
    try:
        yield backend
        is_sound = True
    except (Exception, GeneratorExit):
        is_sound = True
        raise
    finally:
        # Ctrl-C may have struck anywhere: a pool that was in use then is not used again.
        _pools.release(backend, keep=is_sound)


def is_warm(backend: str) -> bool:
    """Whether a pool of that kind stands ready."""
    return any(warm.key[0] == backend and warm.is_kept for warm in list(_pools.warm))
