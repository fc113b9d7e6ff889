"""Factorials on a pool of threads: plait's executor is a concurrent.futures.Executor.

Run it: python examples/factorials.py
"""

import math
from concurrent.futures import Executor, as_completed

import plait

NUMBERS = range(1, 11)


def print_factorials(executor: Executor) -> None:
    """Work with any executor, be it the standard library's or plait's."""
    # map() starts at once and returns the values in the order of the input.
    for n, value in zip(NUMBERS, executor.map(math.factorial, NUMBERS), strict=True):
        print(f"{n:>2}! = {value}")

    # submit() returns a Future, and as_completed() hands out whichever is done.
    futures = {executor.submit(math.factorial, n): n for n in NUMBERS}
    digits = {futures[future]: len(str(future.result())) for future in as_completed(futures)}
    print(f"together they have {sum(digits.values())} digits")

    # What the function raises waits in its Future.
    error = executor.submit(math.factorial, -1).exception()
    print(f"-1! is none: {error}")


with plait.Executor(max_workers=4, backend="threads") as executor:
    print_factorials(executor)
