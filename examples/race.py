"""A race: two workers change the same data, and what one does is lost. How to see it, and end it.

Run it: python examples/race.py
"""

import plait
from plait import shared

TIMES = 50_000
WORKERS = 2


def count_without_lock() -> None:
    """1. `+= 1` reads, adds and writes. Who reads between the two of another undoes his work."""
    number, start = shared.Value(int), shared.Barrier(WORKERS)

    def count(_: int) -> None:
        start.wait()
        for _ in range(TIMES):
            number.value += 1

    plait.map(count, range(WORKERS), backend="processes", max_workers=WORKERS, chunksize=1)
    lost = WORKERS * TIMES - number.value
    print(f"{WORKERS} x {TIMES:,} makes {number.value:,}: {lost:,} are lost")


def count_with_lock() -> None:
    """2. With a lock the three steps of one come after those of the other."""
    number, start, lock = shared.Value(int), shared.Barrier(WORKERS), shared.Lock("number")

    def count(_: int) -> None:
        start.wait()
        for _ in range(TIMES):
            with lock:  # or `with number:`, which is its own lock; or number.add()
                number.value += 1

    plait.map(count, range(WORKERS), backend="processes", max_workers=WORKERS, chunksize=1)
    lost = WORKERS * TIMES - number.value
    print(f"{WORKERS} x {TIMES:,} makes {number.value:,}: {lost:,} are lost")


def find() -> None:
    """3. checked() finds a race even where nothing went wrong this time."""
    names, start = shared.checked([]), shared.Barrier(WORKERS)

    def add(name: str) -> None:
        start.wait()
        names.append(name)

    try:
        plait.map(add, ["Ada", "Grace"], backend="threads", max_workers=WORKERS, chunksize=1)
    except plait.RaceFound as race:
        print(race)


def find_none() -> None:
    """4. With a lock there is nothing to be found."""
    names, start, lock = shared.checked([]), shared.Barrier(WORKERS), shared.Lock("names")

    def add(name: str) -> None:
        start.wait()
        with lock:
            names.append(name)

    plait.map(add, ["Ada", "Grace"], backend="threads", max_workers=WORKERS, chunksize=1)
    with lock:
        print(sorted(names))


for way in (count_without_lock, count_with_lock, find, find_none):
    print(f"\n{way.__doc__}")
    way()
