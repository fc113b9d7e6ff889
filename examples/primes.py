"""Count primes: work that computes, so plait measures it and chooses processes by itself.

Run it: python examples/primes.py [below]
"""

import argparse
import math
import time

import plait

STEP = 500_000


def primes_below(stop: int) -> list[int]:
    """Find small primes with the sieve of Eratosthenes."""
    is_prime = bytearray([1]) * stop
    is_prime[:2] = bytes(min(stop, 2))
    for n in range(2, math.isqrt(stop) + 1):
        if is_prime[n]:
            is_prime[n * n :: n] = bytes(len(range(n * n, stop, n)))
    return [n for n in range(stop) if is_prime[n]]


def count_primes(numbers: range) -> int:
    """Sieve a stretch of numbers anywhere: strike out what a small prime divides."""
    start, stop = numbers.start, numbers.stop
    is_prime = bytearray([1]) * len(numbers)
    for p in small_primes:
        if p * p >= stop:
            break
        first = max(p * p, -(-start // p) * p)
        is_prime[first - start :: p] = bytes(len(range(first, stop, p)))
    return sum(is_prime) - sum(n in numbers for n in (0, 1))


parser = argparse.ArgumentParser(description="Count the primes below a number.")
parser.add_argument("below", type=int, nargs="?", default=200_000_000)
below = parser.parse_args().below

small_primes = primes_below(math.isqrt(below) + 1)  # travels with the function that uses it
stretches = [range(start, min(start + STEP, below)) for start in range(0, below, STEP)]

run = plait.run(count_primes, stretches, on_error="raise")
count = sum(outcome.unwrap() for outcome in run)
print(f"There are {count:,} primes below {below:,}.\n")
print(f"{run.report}\n")

# The plain loop, on every tenth stretch: is the prediction of its time true?
part = stretches[::10]
started = time.perf_counter()
for stretch in part:
    count_primes(stretch)
loop_s = (time.perf_counter() - started) * len(stretches) / len(part)
print(f"The plain loop takes about {loop_s:.2f} s (measured on every tenth stretch), ", end="")
print(f"plait took {run.report.wall_s:.2f} s: {loop_s / run.report.wall_s:.2f} times faster.")
