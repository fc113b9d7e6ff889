"""A fresh script: the squares of 1 to 10 on two worker processes, by one way or another."""

from __future__ import annotations

import sys


def square(x: int) -> int:
    return x * x


def squares(way: str) -> list[int]:
    """Compute with plait, with a start method of multiprocessing, or in a "loop"."""
    items = range(1, 11)
    if way == "loop":
        return list(map(square, items))
    if way == "plait":
        import plait

        return plait.map(square, items, backend="processes", max_workers=2)
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(2, mp_context=get_context(way)) as executor:
        return list(executor.map(square, items))


if __name__ == "__main__":
    assert squares(sys.argv[1]) == [1, 4, 9, 16, 25, 36, 49, 64, 81, 100]
