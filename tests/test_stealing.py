"""Tasks that wait behind a long one go to a worker that is free; each runs once."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import plait
from plait.backends.messages import TOGETHER, StatusPage, new_page_fd
from plait.backends.process_lane import Job, ProcessLane
from plait.backends.process_worker import Worker
from plait.backends.stealing import find_victim, is_about_to_begin, skipped, take_back
from plait.channel import Channel
from plait.outcome import Attempt, Chunk
from plait.segments import SegmentView

from .conftest import Way

LANE = cast(ProcessLane, object())


@pytest.fixture
def ends() -> Iterator[tuple[Worker, StatusPage]]:
    """Give the parent's view of a worker, and the worker's view of the page."""
    ours, theirs = socket.socketpair()
    fd = new_page_fd()
    worker = Worker(1, "process-1", Channel(ours), StatusPage(fd), SegmentView(-1), [])
    worker.is_ready = True
    page = StatusPage(fd)
    yield worker, page
    ours.close()
    theirs.close()
    worker.page.close()
    page.close()
    os.close(fd)


Ends = tuple[Worker, StatusPage]


def give(worker: Worker, first: int, count: int, **facts: Any) -> Job:
    items = [*range(first, first + count)]
    job = Job(LANE, Chunk(first, items, **facts), list(items), [])
    worker.last_seq += 1
    job.seq = worker.last_seq
    worker.jobs.append(job)
    return job


def items_of(jobs: list[Job]) -> list[list[Any]]:
    assert [job.items for job in jobs] == [job.chunk.items for job in jobs]
    return [job.items for job in jobs]


def test_what_comes_after_the_running_task_is_taken_in_halves(ends: Ends) -> None:
    worker, page = ends
    job = give(worker, 10, 6)
    assert page.begin(1, 0)
    assert find_victim([worker], LANE) == (worker, job)
    assert items_of(take_back(worker, job)) == [[11, 12, 13], [14, 15]]
    assert job.chunk.items == [10]
    assert not page.begin(1, 1)


def test_a_chunk_that_waits_behind_another_is_taken_whole(ends: Ends) -> None:
    worker, page = ends
    give(worker, 0, 1)
    waiting = give(worker, 1, 1)
    assert page.begin(1, 0)
    assert find_victim([worker], LANE) == (worker, waiting)
    assert items_of(take_back(worker, waiting)) == [[1]]
    assert not page.begin(2, 0)


def test_who_goes_on_between_the_look_and_the_note_keeps_the_task(ends: Ends) -> None:
    worker, page = ends
    job = give(worker, 0, 3)
    assert page.begin(1, 0)
    assert find_victim([worker], LANE) == (worker, job)
    assert page.begin(1, 1)  # it was quicker than take_back()
    assert items_of(take_back(worker, job)) == [[2]]
    assert not page.begin(1, 2)


def test_a_task_that_was_noted_but_skipped_is_run_again(ends: Ends) -> None:
    """The worker notes the task, we say that the chunk is not wanted, it looks, we look."""
    worker, page = ends
    job = give(worker, 0, 3)
    assert page.begin(1, 0)
    worker.page.cancel(1)  # as take_back() begins
    assert not page.begin(1, 1)
    assert items_of(take_back(worker, job)) == [[2]]
    job.done = 1  # its report: of the first task only, and the last
    rest = skipped(job)
    assert rest is not None
    assert items_of([rest]) == [[1]]
    job.done = 2
    assert skipped(job) is None


def test_nothing_is_taken_that_is_about_to_begin(ends: Ends) -> None:
    worker, page = ends
    give(worker, 0, 3)
    assert find_victim([worker], LANE) is None  # or two free workers would play ball with it
    assert page.begin(1, 2)
    assert find_victim([worker], LANE) is None


def test_all_is_taken_from_a_worker_that_is_still_starting(ends: Ends) -> None:
    worker, page = ends
    worker.is_ready = False
    job = give(worker, 0, 2)
    assert find_victim([worker], LANE) == (worker, job)
    assert items_of(take_back(worker, job)) == [[0], [1]]
    assert not page.begin(1, 0)


def test_it_is_known_who_is_about_to_begin(ends: Ends) -> None:
    worker, page = ends
    assert not is_about_to_begin(worker, LANE)
    give(worker, 0, 2)
    assert is_about_to_begin(worker, LANE)
    assert page.begin(1, 0)
    assert not is_about_to_begin(worker, LANE)


def test_a_task_that_is_tried_again_stays_where_it_is(ends: Ends) -> None:
    worker, page = ends
    give(worker, 0, 1)
    job = give(worker, 1, 1)
    attempt = Attempt(ValueError(), "process-2", 1, 0.0, 0.0)
    job.chunk = Chunk(1, [1], earlier=(attempt,))
    assert page.begin(1, 0)
    assert find_victim([worker], LANE) is None  # it was to avoid another worker


def test_tiny_tasks_are_not_taken(ends: Ends) -> None:
    worker, page = ends
    give(worker, 0, 3, together=True)
    assert page.begin(1, TOGETHER)
    assert find_victim([worker], LANE) is None


def test_nothing_is_taken_twice(ends: Ends) -> None:
    worker, page = ends
    job = give(worker, 0, 3)
    assert page.begin(1, 0)
    take_back(worker, job)
    assert find_victim([worker], LANE) is None


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with path.open("r+b", buffering=0):  # or what is written is gone when nobody has it open
        yield path


def wait_for_the_others(item: tuple[Path, int]) -> int:
    """Write a byte; the first one waits until the three others of its chunk have done so."""
    fifo, number = item
    with fifo.open("r+b", buffering=0) as pipe:
        if 0 < number < 4:
            pipe.write(b"x")
        left = 0 if number else 3
        while left:
            left -= len(pipe.read(left))
    with fifo.with_name("log").open("ab", buffering=0) as log:
        log.write(f"{number} {os.getpid()}\n".encode())
    return number


def test_tasks_behind_one_that_waits_for_them_run_elsewhere(process_way: Way, fifo: Path) -> None:
    """It could never end if they had to wait for it."""
    items = [(fifo, number) for number in range(8)]  # two chunks, for two workers
    options: Any = {**process_way.options, "max_workers": 2}
    assert plait.map(wait_for_the_others, items, chunksize=4, **options) == [*range(8)]
    ran = Counter(line.split()[0] for line in fifo.with_name("log").read_text().splitlines())
    assert ran == Counter("01234567")


def test_a_worker_that_dies_after_its_tasks_were_taken_fails_only_its_own(
    process_way: Way, fifo: Path
) -> None:

    def run(number: int) -> int:
        result = wait_for_the_others((fifo, number))
        if not number:
            os._exit(3)
        return result

    options: Any = {**process_way.options, "max_workers": 2, "on_error": "return"}
    values: list[Any] = plait.map(run, range(8), chunksize=4, **options)
    died, *others = values
    assert isinstance(died, plait.WorkerDied)
    assert others == [*range(1, 8)]
    ran = Counter(line.split()[0] for line in fifo.with_name("log").read_text().splitlines())
    assert ran == Counter("01234567")
