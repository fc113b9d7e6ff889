"""Take tasks back from a worker that has not begun them, for one that has nothing to do.

Used by backends/processes.py at the end of a run, when nothing more comes: one worker is free,
while behind a task that takes long, at another one, others wait. Which task a worker has
begun is on its status page, and there it looks before each task whether its chunk is still wanted.
So this needs no answer from a worker that may be busy for long:

    1. we note that the chunk is not wanted;  2. we look which of its tasks was begun last.

What comes after that task is ours again: before it begins the next one, the worker notes it
first, where we have not seen it, and only then looks, and finds that it is not wanted. The task
that we saw may run or not: the worker may have looked after 1, and skipped it. So if its report
of the chunk ends before that task, ``skipped`` is the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from plait import wire
from plait.backends.messages import TOGETHER
from plait.backends.process_lane import Job, ProcessLane

if TYPE_CHECKING:
    from plait.backends.process_worker import Worker
    from plait.outcome import Chunk

__all__ = ["find_victim", "is_about_to_begin", "skipped", "take_back"]


def find_victim(workers: Iterable[Worker], lane: ProcessLane) -> tuple[Worker, Job] | None:
    """Return the chunk of a lane, and its worker, in which most tasks were not begun."""
    found = [
        (worker, job)
        for worker in workers
        if worker.page.is_shared
        for job in worker.jobs
        if job.lane is lane and _count_waiting(worker, job)
    ]
    return max(found, key=lambda pair: _count_waiting(*pair), default=None)


def is_about_to_begin(worker: Worker, lane: ProcessLane) -> bool:
    """Whether a worker will soon begin a chunk of a lane, behind whose first task others wait."""
    if not (worker.jobs and worker.is_ready and worker.page.is_shared):
        return False
    job = worker.jobs[0]
    has_more = len(job.chunk.items) > 1 or len(worker.jobs) > 1
    return job.lane is lane and has_more and worker.page.running()[0] < job.seq


def _count_waiting(worker: Worker, job: Job) -> int:
    """Return how many tasks of a job wait behind another task, or for their worker to be ready."""
    if job.is_taken_back or job.chunk.together or job.chunk.earlier:
        return 0
    if job is worker.jobs[0] and worker.is_ready and worker.page.running()[0] != job.seq:
        return 0  # it is about to begin with it
    return len(job.chunk.items) - _next_place(worker, job)


def take_back(worker: Worker, job: Job) -> list[Job]:
    """Return the tasks of a job that its worker has not begun, and will not, as one or two jobs."""
    worker.page.cancel(job.seq)
    start = _next_place(worker, job)
    job.is_taken_back = True
    chunk, items = job.chunk, job.items
    job.chunk, job.items = chunk.part(0, start), items[:start]
    job.segments = _segments(job.items)
    half = start + -(-(len(items) - start) // 2)
    parts = [(start, half), (half, len(items))]
    return [_part(job.lane, chunk, items, *part) for part in parts if part[0] < part[1]]


def skipped(job: Job) -> Job | None:
    """Return what a worker, at the end of a job that was taken back, has not run of its part."""
    if not job.is_taken_back or job.done >= len(job.chunk.items):
        return None
    return _part(job.lane, job.chunk, job.items, job.done, len(job.items))


def _part(lane: ProcessLane, chunk: Chunk, items: list[object], start: int, end: int) -> Job:
    return Job(lane, chunk.part(start, end), items[start:end], _segments(items[start:end]))


def _next_place(worker: Worker, job: Job) -> int:
    """Return the first task of a job that was not begun; all of it may be."""
    seq, place = worker.page.running()
    if seq == job.seq:
        return len(job.chunk.items) if place == TOGETHER else place + 1
    # A worker takes its jobs in order; what it ended before it began this one, we have not heard.
    return 0 if seq < job.seq else len(job.chunk.items)


def _segments(items: list[object]) -> list[int]:
    return [offset for item in items for offset, _ in wire.segments_in(item)]
