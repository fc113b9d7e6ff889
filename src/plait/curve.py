"""Throughput by the number of tasks at once, as it was read, and which numbers are good enough.

Used by climb.py. Pure. Readings at the same size differ by chance; how much is learned from
them, and two sizes are only told apart where chance does not explain it.
"""

from __future__ import annotations

import math

__all__ = ["Curve"]

NEAR = 0.9
"""A size is good if it has this share of the best throughput."""
ASSUMED_NOISE = 0.06
"""Relative deviation of a reading, until it is known."""
MOST_NOISE = 0.5
"""Where readings differ by more, their mean is taken for what it is."""
SURE = 2.0
"""By so many deviations the throughput of two sizes must differ to be different."""
FEW_READINGS = 3
"""So often a size is read before another one is read again."""
MOST_READINGS = 6
"""A size is read so often at most before it is judged."""


class Curve:
    """Throughput by size, as far as it was read; readings of the same size differ by chance."""

    def __init__(self) -> None:
        self._readings: dict[int, list[float]] = {}
        self._noise = ASSUMED_NOISE

    def __contains__(self, size: int) -> bool:
        return size in self._readings

    def note(self, size: int, rate: float) -> None:
        """Take in a reading: tasks in a second."""
        self._readings.setdefault(size, []).append(rate)
        self._noise = self._find_noise()

    def rate(self, size: int) -> float:
        """Return the mean of the readings."""
        readings = self._readings[size]
        return sum(readings) / len(readings)

    def count(self, size: int) -> int:
        """Return how many readings there are."""
        return len(self._readings.get(size, ()))

    @property
    def sizes(self) -> list[int]:
        """All that were read, in order."""
        return sorted(self._readings)

    def _find_noise(self) -> float:
        """Return the relative deviation of one reading; a guess has the weight of two of them."""
        squares, freedom = 2 * ASSUMED_NOISE**2, 2
        for size, readings in self._readings.items():
            mean = self.rate(size)
            if mean > 0:
                squares += sum((reading / mean - 1) ** 2 for reading in readings)
                freedom += len(readings) - 1
        return min(math.sqrt(squares / freedom), MOST_NOISE)

    def error(self, size: int) -> float:
        """Return the relative deviation of the mean of a size."""
        return self._noise / math.sqrt(self.count(size))

    def best(self) -> int:
        """Return the size with the best throughput, less what may have been luck."""
        return max(self._readings, key=self.sure_rate)

    def sure_rate(self, size: int) -> float:
        """Return the throughput of a size, less what may have been luck."""
        return self.rate(size) * (1 - self.error(size))

    def is_good(self, size: int) -> bool:
        """Whether a size has about the best throughput."""
        return self.rate(size) >= NEAR * self.sure_rate(self.best())

    def doubt(self, size: int, here: int) -> int | None:
        """Return which size to read again to know whether ``size`` is good; None: it is clear.

        It is the one that was read less, but at first the one where we are: going to and fro
        takes time.
        """
        best = self.best()
        share = self.rate(size) / max(self.sure_rate(best), 1e-9)
        error = math.hypot(self.error(size), self.error(best))
        if size == best or abs(share - NEAR) > SURE * error:
            return None
        either = (here, size, best) if here in (size, best) else (size, best)
        fewest = min(either, key=lambda one: max(self.count(one), FEW_READINGS))
        return None if self.count(fewest) >= MOST_READINGS else fewest
