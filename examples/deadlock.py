"""A deadlock: two workers hold a lock each, and wait for the other's. One of them is told.

Run it: python examples/deadlock.py
"""

from typing import Any

import plait
from plait import shared


def cross(backend: Any) -> None:
    """Take two locks, one worker in this order and one in that."""
    left, right = shared.Lock("left"), shared.Lock("right")
    both_hold_one = shared.Barrier(2)

    def take(first: shared.Lock, second: shared.Lock) -> str:
        with first:
            both_hold_one.wait()
            with second:
                return "Has both locks, now that the other one has given up."

    orders = [(left, right), (right, left)]
    run = plait.run(lambda order: take(*order), orders, backend=backend, max_workers=2, chunksize=1)
    for outcome in run:
        print(outcome.value if outcome.ok else outcome.error)


def in_order(backend: Any) -> None:
    """Take them in the same order everywhere: that is the remedy."""
    left, right = shared.Lock("left"), shared.Lock("right")

    def take(_: int) -> str:
        with left, right:
            return "Has both locks."

    print(*plait.map(take, range(2), backend=backend, max_workers=2, chunksize=1), sep="\n")


for backend in ("threads", "processes"):
    for way in (cross, in_order):
        print(f"\n{way.__doc__} On {backend}:")
        way(backend)
