"""Which of several ways is good enough, by times of the same rounds, which vary. Pure.

Used by sweeps.py and sweep_words.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import TypeVar

from plait.scaling import Range

__all__ = [
    "as_good_as_best",
    "best_way",
    "excess",
    "is_worse",
    "quartiles",
    "worse_than_best",
]

Key = TypeVar("Key")

# A way is as good as the best if it takes no more than NEAR longer; where rounds differ by more
# than that among themselves, if it takes no more than the middle half of them differs, but never
# more than FAR. For five rounds that is 2.4 standard errors of their median: of ways that are
# alike the first is taken in nine of ten sweeps, even where the noise is 20%. (With half of that
# it was in eight: the best has been picked as the best, by its luck, too.)
NEAR, FAR = 0.03, 0.15


def quartiles(values: Sequence[float]) -> Range:
    """Return between which values the middle half is.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 50.0])
    Range(low=2.0, high=4.0)
    """
    if len(values) < 2:
        return Range(values[0], values[0])
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Range(low, high)


def excess(times: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Compare times with others that were measured in the same rounds.

    Returns by which share they are longer, as the median of the rounds (noise that falls on a
    whole round falls out of it), and how much of that may be noise.
    """
    ratios = [mine / other for mine, other in zip(times, others, strict=True)]
    low, high = quartiles(ratios)
    return median(ratios) - 1, min(FAR, max(NEAR, high - low))


def as_good_as_best(
    times: Mapping[Key, Sequence[float]], loops: Sequence[float] | None = None
) -> Key:
    """Return the first way that is as good as the best, by the times of each round.

    The ways stand in the order of preference: sizes from the smallest up. With ``loops``, which
    are worse than the best, it has to be better than these, too: on a noisy machine a way may be
    hardly worse than the best, and hardly better than none.

    >>> as_good_as_best({1: [1.0, 1.0], 2: [0.51, 0.52], 4: [0.5, 0.51], 8: [0.55, 0.6]})
    2
    """
    best = best_way(times)
    good = [way for way in times if not is_worse(times[way], times[best])]
    return next((way for way in good if loops is None or is_worse(loops, times[way])), best)


def worse_than_best(times: Mapping[Key, Sequence[float]]) -> Key | None:
    """Return the first way beyond the best that is worse; None if there is none.

    >>> worse_than_best({1: [1.0, 1.0], 2: [0.51, 0.52], 4: [0.5, 0.51], 8: [0.55, 0.6]})
    8
    """
    ways = list(times)
    best = best_way(times)
    beyond = ways[ways.index(best) + 1 :]
    return next((way for way in beyond if is_worse(times[way], times[best])), None)


def best_way(times: Mapping[Key, Sequence[float]]) -> Key:
    """Return the way with the shortest median; of two that are equal the first."""
    return min(times, key=lambda way: median(times[way]))


def is_worse(times: Sequence[float], others: Sequence[float]) -> bool:
    """Whether times are longer than others of the same rounds, and not by noise alone."""
    longer, noise = excess(times, others)
    return longer > noise
