"""An asyncio program that computes and keeps its beat: the work is done by processes.

Run it: python examples/responsive.py
"""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

import plait

BEAT_S = 0.05
LIMITS = [400_000 + 1_000 * number for number in range(24)]


def sum_of_roots(limit: int) -> float:
    """Compute for a while."""
    return math.fsum(math.sqrt(n) for n in range(limit))


class Ticker:
    """Wakes up every 50 ms, as a server or a user interface has to, and notes how late it was."""

    def __init__(self) -> None:
        self.lateness: list[float] = []

    async def tick(self) -> None:
        """Tick until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + BEAT_S
            await asyncio.sleep(BEAT_S)
            self.lateness.append(clock() - due)

    def __str__(self) -> str:
        worst_ms = 1000 * max(self.lateness)
        return f"beats: {len(self.lateness):>2}, late by {worst_ms:.0f} ms at most"


@contextmanager
def ticking() -> Iterator[Ticker]:
    """Let a ticker tick for the time of a with-block."""
    ticker = Ticker()
    task = asyncio.create_task(ticker.tick())
    try:
        yield ticker
    finally:
        task.cancel()


async def main() -> None:
    with ticking() as ticker:
        await asyncio.sleep(0)  # let it start
        in_the_loop = [sum_of_roots(limit) for limit in LIMITS]
        await asyncio.sleep(BEAT_S)  # let it notice
    print(f"in the loop:  {ticker}")

    with ticking() as ticker:
        in_processes = await plait.amap(sum_of_roots, LIMITS, backend="processes")
        await asyncio.sleep(BEAT_S)
    print(f"in processes: {ticker}")

    print(f"same results: {in_processes == in_the_loop}")


asyncio.run(main())
