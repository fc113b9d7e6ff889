"""The yardsticks: bare processes that do the work of a claim and nothing else.

They run in the host of the engine "loop", which has one thread and may fork. Each is there
before the clock starts, as the workers of a warm pool are.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Any

from benchmarks.station import Station, check

__all__ = ["balanced", "halves_s", "round_trips_per_s"]

Bare = tuple[int, socket.socket]
"""The pid of a process, and our end of its socket pair."""


def balanced(durations: Sequence[int], parts: int) -> list[list[int]]:
    """Split tasks into parts that take equally long: the longest first, each to the least."""
    split: list[list[int]] = [[] for _ in range(parts)]
    sums = [0] * parts
    for duration in sorted(durations, reverse=True):
        least = sums.index(min(sums))
        split[least].append(duration)
        sums[least] += duration
    return split


def halves_s(station: Station, fn: Callable[[Any], object], parts: list[list[Any]]) -> float:
    """Return the seconds of as many processes as there are parts, each with one in a plain loop."""
    del station

    def work(theirs: socket.socket, part: list[Any]) -> None:
        theirs.recv(1)
        for item in part:
            fn(item)
        theirs.send(b"!")

    bare = [_fork(partial(work, part=part)) for part in parts]
    started = perf_counter()
    for _, ours in bare:
        ours.send(b"!")
    for _, ours in bare:
        ours.recv(1)
    seconds = perf_counter() - started
    _end(bare)
    return seconds


def round_trips_per_s(
    station: Station, fn: Callable[[Any], object], item: object, count: int, workers: int
) -> float:
    """Return the tasks per second of one small message there and one back for each task.

    So many workers, each with a socket pair, and one loop around epoll: what a parent could
    reach that had nothing else to do.
    """
    del station

    def work(theirs: socket.socket) -> None:
        while message := theirs.recv(4096):
            index, item = pickle.loads(message)
            theirs.send(pickle.dumps((index, fn(item))))

    bare = [_fork(work) for _ in range(workers)]
    _exchange([ours for _, ours in bare], [item] * (2 * workers))  # now all of them are there
    started = perf_counter()
    results = _exchange([ours for _, ours in bare], [item] * count)
    seconds = perf_counter() - started
    _end(bare)
    check("the bare prototype", is_right=results == [fn(item)] * count)
    return count / seconds


def _exchange(workers: list[socket.socket], items: list[object]) -> list[object]:
    """Keep each worker busy with one item after the other; return the results, in order."""
    by_number = {worker.fileno(): worker for worker in workers}
    results: list[object] = [None] * len(items)
    waiting = enumerate(items)
    with select.epoll() as poll:
        for worker, task in zip(workers, waiting, strict=False):
            worker.send(pickle.dumps(task))
            poll.register(worker, select.EPOLLIN)
        missing = len(items)
        while missing:
            for number, _ in poll.poll():
                worker = by_number[number]
                index, result = pickle.loads(worker.recv(4096))
                results[index] = result
                missing -= 1
                for next_task in islice(waiting, 1):
                    worker.send(pickle.dumps(next_task))
    return results


def _fork(work: Callable[[socket.socket], None]) -> Bare:
    """Start a process that has one end of a socket pair; return its pid and the other end."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    code = 1
    try:
        ours.close()
        work(theirs)
        code = 0
    except BaseException:  # noqa: BLE001  nothing of the parent's may run in its copy
        traceback.print_exc()
    os._exit(code)


def _end(bare: list[Bare]) -> None:
    for _, ours in bare:
        ours.shutdown(socket.SHUT_RDWR)  # its copies in those forked later end with it
        ours.close()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid, _ in bare]
    check("a bare process", is_right=not any(codes))
