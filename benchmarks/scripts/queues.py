"""Items per second from one process to another: plait's queue and others, in turns.

python benchmarks/scripts/queues.py [ROUNDS]; faster_fifo is taken along where it is installed.
"""

from __future__ import annotations

import multiprocessing as mp
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from plait.shared import Pipe, Queue

COUNT = 40_000
ITEMS: dict[str, Any] = {"5": 5, "100 letters": "x" * 100, "a dict": {"a": 1, "b": [1, 2, 3]}}
fork: Any = mp.get_context("fork")


def produce(queue: Any, item: Any) -> None:
    for _ in range(COUNT):
        queue.put(item)


def echo(end: Any, count: int) -> None:
    for _ in range(count):
        end.send(end.recv())


def items_per_s(make: Callable[[], Any], item: Any) -> float:
    queue = make()
    child = fork.Process(target=produce, args=(queue, item))
    child.start()
    queue.get()
    started = time.perf_counter()
    for _ in range(COUNT - 1):
        queue.get()
    taken_s = time.perf_counter() - started
    child.join()
    return COUNT / taken_s


def round_trip_us(make: Callable[[], Any], count: int = 5000) -> float:
    here, there = make()
    child = fork.Process(target=echo, args=(there, count))
    child.start()
    started = time.perf_counter()
    for number in range(count):
        here.send(number)
        here.recv()
    taken_s = time.perf_counter() - started
    child.join()
    return taken_s / count * 1e6


def main(rounds: int) -> None:
    ways: dict[str, Callable[[], Any]] = {"plait": Queue, "multiprocessing": fork.Queue}
    try:
        import faster_fifo  # type: ignore[import-not-found,unused-ignore]

        ways["faster_fifo"] = faster_fifo.Queue
    except ImportError:
        pass
    for name, item in ITEMS.items():
        figures = [[items_per_s(make, item) for make in ways.values()] for _ in range(rounds)]
        for column, way in enumerate(ways):
            speed = median(row[column] for row in figures)
            ratio = median(row[0] / row[column] for row in figures)
            print(f"{name:12} {way:16} {speed:9,.0f} items/s, plait is {ratio:.2f} times as fast")
    pairs = [(round_trip_us(Pipe), round_trip_us(fork.Pipe)) for _ in range(rounds)]
    ours, theirs = (median(column) for column in zip(*pairs, strict=True))
    print(f"there and back in a pipe: plait {ours:.1f} µs, multiprocessing {theirs:.1f} µs")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
