"""Measure several ways to do the same work side by side. Starts no process, opens no file.

A shared machine is now fast and now slow, so the ways take turns (A B C A B C ...) and each
is compared with another in its own round. The figure is the median of those ratios, not the
ratio of two medians that may stem from different minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any, Literal

__all__ = ["UNITS", "Bar", "LeftOut", "Measure", "Pace", "Race", "Role", "Way", "quartiles", "race"]

Measure = Callable[[], float]
"""Does the work once, and returns the figure that counts: seconds, megabytes, tasks per second."""

Role = Literal["ours", "peer", "yardstick"]

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "MB": 1.0, "tasks/s": 1.0}
"""What a figure is divided by to be shown in a unit."""

FEW, FAR = 3, 3.0  # so many rounds are enough for who needs so many times longer than plait


class LeftOut(Exception):
    """A way cannot take part, or not any longer; the text says why."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do the work.

    Attributes:
        measure: does it once; raises LeftOut if it cannot.
        role: a yardstick is no engine: a plain loop, bare processes.
        estimate: foretells from a small share of the work what the whole would take.
    """

    measure: Measure
    role: Role = "peer"
    estimate: Measure | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a race may last.

    Attributes:
        rounds: how many, at most.
        limit_s: a way that takes longer than this for its warm-up is left out.
        budget_s: a way that has spent this long on its rounds sits out the rest.
    """

    rounds: int
    limit_s: float = 60.0
    budget_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Race:
    """What a race measured: the figures of each way, round by round; None: it sat out."""

    title: str
    unit: str
    figures: dict[str, list[float | None]]
    roles: dict[str, Role]
    left_out: dict[str, str]

    @property
    def ours(self) -> str:
        """The way that is plait's: what the others are compared with."""
        return next(way for way, role in self.roles.items() if role == "ours")

    @property
    def peers(self) -> list[str]:
        """The ways of the peers that took part."""
        return [way for way in self.figures if self.roles[way] == "peer"]

    def taken(self, way: str) -> list[float]:
        """Return the figures of the rounds in which a way took part."""
        return [figure for figure in self._of(way) if figure is not None]

    def typical(self, way: str) -> float:
        """Return the median of ``taken``."""
        return median(self.taken(way))

    def ratios(self, way: str, to: str) -> list[float]:
        """Return how many times the figure of another a way had, by rounds that both ran."""
        pairs = zip(self._of(way), self._of(to), strict=True)
        return [one / other for one, other in pairs if one is not None and other is not None]

    def ratio(self, way: str, to: str) -> float:
        """Return the median of ``ratios``."""
        return median(self.ratios(way, to))

    def lowest(self, among: Iterable[str]) -> str | None:
        """Return the way with the lowest median among those that took part, if any did."""
        return min((way for way in among if way in self.figures), key=self.typical, default=None)

    def _of(self, way: str) -> list[float | None]:
        if way in self.left_out:
            raise LeftOut(f"{way}: {self.left_out[way]}")
        return self.figures[way]

    def __str__(self) -> str:
        width = max(map(len, [*self.figures, *self.left_out]))
        names = (f"{name:>10}" for name in ("median", "min", "max", "ratio"))
        lines = [
            f"{self.title}  ({self.unit}; ratio to {self.ours})",
            f"{'':{width}} {' '.join(names)}  {'quartiles':>17} {'rounds':>7}",
            *(self._line(way, width) for way in self.figures),
            *(f"{way:{width}}   left out: {reason}" for way, reason in self.left_out.items()),
        ]
        return "\n".join(lines)

    def _line(self, way: str, width: int) -> str:
        shown = [figure / UNITS[self.unit] for figure in self.taken(way)]
        ratios = self.ratios(way, self.ours)
        low, high = quartiles(ratios)
        return (
            f"{way:{width}} {median(shown):10.2f} {min(shown):10.2f} {max(shown):10.2f} "
            f"{median(ratios):10.3f}  {f'{low:.3f} - {high:.3f}':>17} {len(shown):7}"
        )


def quartiles(numbers: list[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile."""
    if len(numbers) == 1:
        return numbers[0], numbers[0]
    low, _, high = quantiles(numbers, n=4, method="inclusive")
    return low, high


def race(title: str, ways: Mapping[str, Way], pace: Pace, *, unit: str = "ms") -> Race:
    """Warm up every way, then let them take turns.

    Who fails or takes too long is left out, and the race says why. If that is plait's own way,
    there is nothing to compare with, and LeftOut is raised.
    """
    raced = Race(title, unit, {}, {name: way.role for name, way in ways.items()}, {})
    for name, way in ways.items():
        try:
            _warm_up(way, pace.limit_s)
        except LeftOut as reason:
            _leave_out(raced, name, reason)
        else:
            raced.figures[name] = []
    _take_turns(raced, ways, pace)
    return raced


def _take_turns(raced: Race, ways: Mapping[str, Way], pace: Pace) -> None:
    spent = dict.fromkeys(raced.figures, 0.0)
    for _ in range(pace.rounds):
        if spent[raced.ours] > pace.budget_s:
            return  # there is nothing left to be compared with
        for name, figures in list(raced.figures.items()):
            if spent[name] > pace.budget_s or _is_far_behind(raced, name):
                figures.append(None)
                continue
            started = perf_counter()
            try:
                figures.append(ways[name].measure())
            except LeftOut as reason:
                _leave_out(raced, name, reason)
            spent[name] += perf_counter() - started


def _warm_up(way: Way, limit_s: float) -> None:
    if way.estimate is not None:
        foretold = way.estimate()
        if foretold > limit_s:
            raise LeftOut(f"would take about {foretold:.0f} s by a sample")
        if foretold > limit_s / 6:
            return  # the sample has warmed it up
    way.measure()


def _is_far_behind(raced: Race, name: str) -> bool:
    """Whether more rounds would say nothing new: they are for those that are close."""
    taken = raced.taken(name)
    return len(taken) >= FEW and median(taken) > FAR * raced.typical(raced.ours)


def _leave_out(raced: Race, name: str, reason: LeftOut) -> None:
    if raced.roles[name] == "ours":
        raise reason
    raced.figures.pop(name, None)
    raced.left_out[name] = str(reason)


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
        return f"{verdict}  {self.figure:8.3f} {sign} {self.limit:<6.3g}  {self.claim}"

    def as_dict(self) -> dict[str, Any]:
        """Return it for a file."""
        names = ("claim", "figure", "limit", "is_floor", "holds")
        return {name: getattr(self, name) for name in names}
