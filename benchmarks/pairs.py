"""Time several ways to do the same work side by side.

A shared machine is now fast and now slow, so the ways take turns (A B C A B C ...) and each
is compared with the reference in its own round. The figure is the median of those ratios,
not the ratio of two medians that may stem from different minutes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

__all__ = ["Bar", "Measure", "Race", "race", "timed", "typical"]

Measure = Callable[[], float]
"""Does the work once, and returns the seconds that count."""

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def timed(work: Callable[[], object], expected: object = None) -> Measure:
    """Measure the whole of ``work``, and see that its answer, if it has one, is right.

    Neither that nor the disposal of the answer counts.
    """

    def measure() -> float:
        gc.collect()
        started = perf_counter()
        answer = work()
        seconds = perf_counter() - started
        assert answer is None or expected is None or answer == expected, "a wrong answer"
        return seconds

    return measure


def typical(work: Callable[[], object], times: int) -> Measure:
    """Measure work of microseconds: the median of so many calls."""

    def measure_one() -> float:
        started = perf_counter()
        work()
        return perf_counter() - started

    return lambda: median(measure_one() for _ in range(times))


@dataclass(frozen=True, slots=True)
class Race:
    """What a race measured: the seconds of each way, round by round."""

    title: str
    reference: str
    unit: str
    seconds: dict[str, list[float]]

    def ratios(self, way: str) -> list[float]:
        """Return how many times longer than the reference a way took, by round."""
        base = self.seconds[self.reference]
        return [ours / theirs for ours, theirs in zip(self.seconds[way], base, strict=True)]

    def ratio(self, way: str) -> float:
        """Return the median of ``ratios``."""
        return median(self.ratios(way))

    def __str__(self) -> str:
        rounds = len(self.seconds[self.reference])
        width = max(map(len, self.seconds))
        names = (f"{name:>10}" for name in ("median", "min", "max", "ratio"))
        head = f"{'':{width}} {' '.join(names)}  {'quartiles':>15}"
        title = f"{self.title}  ({self.unit}, {rounds} rounds, ratio to {self.reference})"
        return "\n".join([title, head, *(self._line(way, width) for way in self.seconds)])

    def _line(self, way: str, width: int) -> str:
        times = [seconds / UNITS[self.unit] for seconds in self.seconds[way]]
        low, high = _quartiles(self.ratios(way))
        return (
            f"{way:{width}} {median(times):10.2f} {min(times):10.2f} {max(times):10.2f} "
            f"{self.ratio(way):10.3f}  {f'{low:.3f} - {high:.3f}':>15}"
        )


def _quartiles(numbers: list[float]) -> tuple[float, float]:
    if len(numbers) == 1:
        return numbers[0], numbers[0]
    low, _, high = quantiles(numbers, n=4, method="inclusive")
    return low, high


def race(
    title: str, ways: Mapping[str, Measure], *, rounds: int, reference: str, unit: str = "ms"
) -> Race:
    """Warm up every way, then let them take turns."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for measure in ways.values():
        measure()
    for _ in range(rounds):
        for way, measure in ways.items():
            seconds[way].append(measure())
    return Race(title, reference, unit, seconds)


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that is claimed to stay below a limit (or above, if ``is_floor``)."""

    claim: str
    figure: float
    limit: float
    is_floor: bool = False

    @property
    def holds(self) -> bool:
        """Whether the claim is true of this run."""
        return self.figure >= self.limit if self.is_floor else self.figure <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.is_floor else "<="
        verdict = "holds " if self.holds else "missed"
        return f"{verdict}  {self.figure:8.3f} {sign} {self.limit:<6g}  {self.claim}"

    def as_dict(self) -> dict[str, Any]:
        """Return it for a file."""
        names = ("claim", "figure", "limit", "is_floor", "holds")
        return {name: getattr(self, name) for name in names}
