"""Who uses which segment of the memory in which items and functions lie.

Used by backends/processes.py and dispatcher.py, with the pool's lock held. docs/design.md has the
table; how segments are made is in segments.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plait.backends.process_lane import Job
    from plait.backends.process_worker import Worker
    from plait.segments import SegmentStore

__all__ = ["Holdings"]


class Holdings:
    """Counts for a store what jobs and workers hold; a worker may hold a segment once."""

    def __init__(self, store: SegmentStore) -> None:
        self._store = store

    def retain(self, offset: int) -> None:
        """Note that another job has a segment."""
        self._store.retain(offset)

    def hold(self, worker: Worker, offsets: Iterable[int]) -> None:
        """Note that a worker uses segments."""
        for offset in set(offsets) - worker.held:
            self._store.retain(offset)
            worker.held.add(offset)

    def let_go_of(self, worker: Worker, offsets: Iterable[int]) -> None:
        """Note that it does not any more."""
        for offset in worker.held.intersection(offsets):
            worker.held.remove(offset)
            self._store.release(offset)

    def settle(self, worker: Worker, job: Job, held: tuple[int, ...]) -> None:
        """Let go of a finished job's segments, but for what its worker goes on using."""
        self.hold(worker, held)
        self.let_go_of(worker, set(job.segments).difference(held))
        self.drop(job)

    def drop(self, job: Job) -> None:
        """Let go of the segments of a job that is over, or never began."""
        while job.segments:
            self._store.release(job.segments.pop())
