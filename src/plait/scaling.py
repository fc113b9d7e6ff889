"""How throughput follows the number of workers: the law of scaling, fitted to measurements. Pure.

It is Gunther's Universal Scalability Law (arXiv:0808.1431): N workers do

    C(N) = N / (1 + a (N - 1) + b N (N - 1))

times as much as one. ``a`` is the contention: the share of the work that only one can do at a
time. ``b`` is the coherency: what each pair of workers costs, in waiting for each other or in
sharing what there is one of, a CPU perhaps. With b = 0 it is Amdahl's law (1967), which rises to
1 / a; with b > 0 there is a peak, at sqrt((1 - a) / b), after which more workers do less.

Used by sweeps.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

__all__ = ["LEAST_SIZES", "Law", "Range", "fit_law", "fit_rounds"]

LEAST_SIZES = 3
"""So many sizes above one worker are needed to tell contention from coherency."""
LEAST_ROUNDS = 3
"""Fewer rounds say nothing about how sure a fit is."""
RESAMPLES = 400
CONFIDENCE = 0.9


class Range(NamedTuple):
    """From, to."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Law:
    """How throughput follows the number of workers.

    Attributes:
        one: the throughput of one worker, in tasks a second.
        contention: ``a`` in the law, from 0 up.
        coherency: ``b`` in the law, from 0 up.
        misfit: by how much it misses the measurements, as a share of them (root mean square).
        contention_range: where ``a`` is with 90% confidence; None: there were too few rounds.
        coherency_range: the same for ``b``.
        peak_range: the same for the peak.
    """

    one: float
    contention: float
    coherency: float
    misfit: float = 0.0
    contention_range: Range | None = None
    coherency_range: Range | None = None
    peak_range: Range | None = None

    @property
    def is_amdahl(self) -> bool:
        """Whether it is Amdahl's law: workers do not get into each other's way, they only wait."""
        return self.coherency == 0

    @property
    def peak(self) -> float:
        """The number of workers with the most throughput; infinity if more never do less.

        >>> Law(1.0, contention=0.02, coherency=0.005).peak
        14.0
        """
        if self.contention >= 1:  # one is the best
            return 1.0
        if self.coherency == 0:
            return math.inf
        return max(1.0, math.sqrt((1 - self.contention) / self.coherency))

    @property
    def limit(self) -> float:
        """How many times as much as one all workers can do at most, however many they are.

        >>> Law(1.0, contention=0.25, coherency=0.0).limit
        4.0
        """
        if not math.isinf(self.peak):
            return self.capacity(self.peak)
        return 1 / self.contention if self.contention else math.inf

    def capacity(self, workers: float) -> float:
        """Return how many times as much as one so many workers do: C(N).

        >>> Law(1.0, contention=0.5, coherency=0.0).capacity(3)
        1.5
        """
        others = workers - 1
        return workers / (1 + self.contention * others + self.coherency * workers * others)

    def throughput(self, workers: float) -> float:
        """Return how many tasks a second so many workers do."""
        return self.one * self.capacity(workers)


# --- The fit -----------------------------------------------------------------------------


def fit_law(throughputs: Mapping[int, float]) -> Law | None:
    """Fit the law to throughputs by the number of workers, that of one worker among them.

    The law is linear in what it is about: N / C(N) - 1 = a (N - 1) + b N (N - 1). So a and b
    are found by least squares, neither below 0. Each size has the weight (C(N) / N)²: then it is
    relative errors of the times that count, those of large pools no more than those of small ones.

    Returns None if there are fewer than three sizes above one: two numbers can be fitted to two
    sizes whatever they are.

    >>> law = fit_law({1: 10.0, 2: 18.94, 4: 33.73, 8: 52.7})
    >>> round(law.contention, 2), round(law.coherency, 3)
    (0.05, 0.003)
    """
    one = throughputs[1]
    capacities = {size: rate / one for size, rate in throughputs.items() if size > 1}
    if len(capacities) < LEAST_SIZES:
        return None
    contention, coherency = _least_squares(capacities)
    law = Law(one, contention, coherency)
    return replace(law, misfit=_misfit(law, capacities))


def _misfit(law: Law, capacities: Mapping[int, float]) -> float:
    errors = [law.capacity(size) / measured - 1 for size, measured in capacities.items()]
    return math.sqrt(sum(error * error for error in errors) / len(errors))


def _least_squares(capacities: Mapping[int, float]) -> tuple[float, float]:
    """Return a and b, from 0 up, that fit best: the free solution, or the best on an edge."""
    rows = []
    for size, capacity in capacities.items():
        weight = capacity / size
        rows.append((weight * (size - 1), weight * size * (size - 1), 1 - weight))
    uu, uv, vv, uy, vy = (
        math.fsum(row[left] * row[right] for row in rows)
        for left, right in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2))
    )
    determinant = uu * vv - uv * uv
    if determinant > 0:
        a, b = (uy * vv - vy * uv) / determinant, (vy * uu - uy * uv) / determinant
        if a >= 0 and b >= 0:
            return a, b
    # A convex sum has its least value on an edge then: with b = 0 (Amdahl), or with a = 0.
    edges = (max(0.0, uy / uu), 0.0), (0.0, max(0.0, vy / vv))
    return min(edges, key=lambda ab: _squares(rows, *ab))


def _squares(rows: Sequence[tuple[float, float, float]], a: float, b: float) -> float:
    return math.fsum((a * u + b * v - y) ** 2 for u, v, y in rows)


def fit_rounds(rounds: Sequence[Mapping[int, float]]) -> Law | None:
    """Fit the law to several rounds of measurements, and say how sure that is.

    The law is that of the medians. For its confidence the rounds are drawn anew, with
    replacement and always the same way (the bootstrap, Efron 1979), and fitted again; the ranges
    have the middle 90% of what comes out.
    """
    law = fit_law(_medians(rounds))
    if law is None or len(rounds) < LEAST_ROUNDS:
        return law
    from random import Random  # it takes longer to load than all of this

    draw = Random(0)  # noqa: S311  the same rounds are to give the same ranges
    drawn = [fit_law(_medians(draw.choices(rounds, k=len(rounds)))) for _ in range(RESAMPLES)]
    laws = [other for other in drawn if other is not None]
    return replace(
        law,
        contention_range=_middle([other.contention for other in laws]),
        coherency_range=_middle([other.coherency for other in laws]),
        peak_range=_middle([other.peak for other in laws]),
    )


def _medians(rounds: Sequence[Mapping[int, float]]) -> dict[int, float]:
    return {size: median(each[size] for each in rounds) for size in rounds[0]}


def _middle(values: list[float]) -> Range:
    ordered = sorted(values)
    edge = round((1 - CONFIDENCE) / 2 * (len(ordered) - 1))
    return Range(ordered[edge], ordered[-1 - edge])
