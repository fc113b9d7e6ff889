"""One worker makes numbers, another takes them: with a Lock, with a Condition, with a Queue.

On threads, and by one other argument on processes.

Run it: python examples/producer_consumer.py
"""

import time
from collections.abc import Callable
from typing import Any

import plait
from plait import shared

COUNT = 500


def with_lock(backend: Any) -> list[int]:
    """Lock: neither changes the list while the other does. There is no way to wait but to ask."""
    numbers: shared.List[int] = shared.List()
    lock = shared.Lock("numbers")

    def produce() -> None:
        for number in range(COUNT):
            with lock:
                numbers.append(number)

    def consume() -> list[int]:
        taken: list[int] = []
        while len(taken) < COUNT:
            with lock:
                if numbers:  # without the lock, another consumer could come before the pop
                    taken.append(numbers.pop(0))
                    continue
            time.sleep(0.001)
        return taken

    return side_by_side(backend, produce, consume)


def with_condition(backend: Any) -> list[int]:
    """Condition: a lock, and a way to sleep until the other says that something is there."""
    numbers: shared.List[int] = shared.List()
    changed = shared.Condition()

    def produce() -> None:
        for number in range(COUNT):
            with changed:
                numbers.append(number)
                changed.notify()

    def consume() -> list[int]:
        taken: list[int] = []
        while len(taken) < COUNT:
            with changed:
                changed.wait_for(lambda: len(numbers) > 0)
                taken.append(numbers.pop(0))
        return taken

    return side_by_side(backend, produce, consume)


def with_queue(backend: Any) -> list[int]:
    """Queue: list, lock and condition in one; it has an end, and holds the producer back."""
    queue = shared.Queue(maxsize=50)

    def produce() -> None:
        for number in range(COUNT):
            queue.put(number)
        queue.shutdown()

    def consume() -> list[int]:
        return list(queue)

    return side_by_side(backend, produce, consume)


def side_by_side(
    backend: Any, produce: Callable[[], None], consume: Callable[[], list[int]]
) -> list[int]:
    """Have both run at the same time; return what was consumed."""
    with plait.Executor(max_workers=2, backend=backend) as executor:
        producing, consuming = executor.submit(produce), executor.submit(consume)
        producing.result()
        return consuming.result()


for way in (with_lock, with_condition, with_queue):
    print(f"\n{way.__doc__}")
    for backend in ("threads", "processes"):
        taken = way(backend)
        print(f"  on {backend}: {len(taken)} numbers, in order: {taken == list(range(COUNT))}")
