"""Pools of 2, 4 and 8 processes: what they cost for tiny tasks, and at which size one pays.

Run it: python examples/squares_by_pool_size.py [--plot sweep.png]
"""

import argparse
import time

import plait

NUMBERS = range(1, 11)
SIZES = (2, 4, 8)


def square(n: int) -> int:
    return n * n


def square_slowly(n: int) -> int:
    """Add n to itself n times, again and again: some milliseconds of pure computing."""
    for _ in range(20_000):
        total = sum([n] * n)
    return total


def squares_of_pool(size: int) -> list[int]:
    """Open a pool, use it once, and close it."""
    with plait.Executor(max_workers=size, backend="processes") as pool:
        return list(pool.map(square, NUMBERS))


parser = argparse.ArgumentParser(description="Squares by pools of several sizes.")
parser.add_argument("--plot", metavar="FILE", help="draw the sweep, as .png or .svg")
plot = parser.parse_args().plot

squares_of_pool(1)  # the first pool of a program starts the server that forks the workers

# To square ten numbers takes microseconds: all of this time is what the pool itself costs.
for size in SIZES:
    started = time.perf_counter()
    squares = squares_of_pool(size)
    print(f"{size} processes: {squares} in {1000 * (time.perf_counter() - started):.1f} ms")

started = time.perf_counter()
squares = [square(n) for n in NUMBERS]
print(f"the plain loop: {squares} in {1000 * (time.perf_counter() - started):.3f} ms\n")

# Work that takes longer than to open a pool. A sweep measures each size several times, in
# turns with the loop, and says which one pays: for pure computing, as many as there are CPUs.
work = list(NUMBERS) * 10
sweep = plait.sweep(square_slowly, work, backends=("processes",), sizes=SIZES, repeats=3)
print(sweep)

if plot:
    sweep.plot(plot)
    print(f"\nThe picture is in {plot}.")
