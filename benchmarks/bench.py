"""What a claim has to hand: ways for races, and where its figures go.

A claim is a function ``run(bench)`` in a file of claims/. It makes ways, lets them race, and
says what bars are to be held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks import pairs
from benchmarks.engines import ENGINES, PROCESS_PEERS
from benchmarks.pairs import Bar, LeftOut, Measure, Pace, Race, Way
from benchmarks.station import best_chunksize
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from benchmarks.hosts import Hosts

__all__ = ["Bench", "Section", "refused"]

T = TypeVar("T")

QUICK_ROUNDS, FULL_ROUNDS = 3, 31
QUICK_LIMIT_S = 5.0
QUICK_BUDGET_S = 1.0  # three rounds of what is fast, one of what is not


@dataclass(slots=True)
class Section:
    """What one claim brought to light."""

    claim: str
    races: list[Race] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    error: str | None = None


class Bench:
    """One run of the benchmarks, quick or full."""

    def __init__(
        self,
        hosts: Hosts,
        *,
        is_quick: bool,
        most_rounds: int | None = None,
        workloads: Iterable[str] = WORKLOADS,
    ) -> None:
        self.hosts = hosts
        self.is_quick = is_quick
        self.workloads = [WORKLOADS[name] for name in workloads]
        self._most_rounds = most_rounds or (QUICK_ROUNDS if is_quick else FULL_ROUNDS)
        self.sections: list[Section] = []

    def begin(self, claim: str) -> Section:
        """Have what follows belong to a claim."""
        self.sections.append(Section(claim))
        return self.sections[-1]

    def pick(self, full: T, quick: T) -> T:
        """Return a size of the work."""
        return quick if self.is_quick else full

    def pace(self, rounds: int) -> Pace:
        """Return how long a race may last that has so many rounds in a full run."""
        rounds = min(rounds, self._most_rounds)
        return Pace(rounds, QUICK_LIMIT_S, QUICK_BUDGET_S) if self.is_quick else Pace(rounds)

    def allowed(self, names: Iterable[str]) -> list[str]:
        """Return those engines that this run has."""
        return [name for name in names if ENGINES[name].is_quick or not self.is_quick]

    # --- ways --------------------------------------------------------------------------

    def call(
        self,
        engine: str,
        function: Callable[..., Any],
        *args: Any,
        limit_s: float | None = None,
    ) -> Any:
        """Call ``function(station, *args)`` in the host of an engine; may raise LeftOut."""
        most_s = self.pace(1).limit_s
        limit_s = most_s if limit_s is None else min(limit_s, most_s)
        return self.hosts.get(engine).call(function, args, limit_s)

    def way(self, engine: str, measure: Callable[..., float], *args: Any) -> Way:
        """Return the way of an engine that is neither plait nor its peer."""
        return Way(self._measure(engine, measure, args), "yardstick")

    def ours(self, engine: str, measure: Callable[..., float], *args: Any) -> Way:
        """Return plait's way."""
        return Way(self._measure(engine, measure, args), "ours")

    def peers(
        self,
        measure: Callable[..., float],
        *args: Any,
        names: Iterable[str] = PROCESS_PEERS,
        sample: tuple[tuple[Any, ...], float] | None = None,
    ) -> dict[str, Way]:
        """Return the ways of the peers.

        ``sample`` is (other arguments, how many times more the whole work is): an engine that
        sends task by task tries these first, and is left out if the whole would take too long.
        """

        def estimate(name: str) -> Measure | None:
            if sample is None or not ENGINES[name].sends_singly:
                return None
            small, times = self._measure(name, measure, sample[0]), sample[1]
            return lambda: times * small()

        return {
            name: Way(self._measure(name, measure, args), "peer", estimate(name))
            for name in self.allowed(names)
        }

    def tuned(
        self,
        measure: Callable[..., float],
        *args: Any,
        sizes: list[int],
        names: Iterable[str] = PROCESS_PEERS,
    ) -> dict[str, Way]:
        """Return the ways of the peers, each with the chunk size with which it is fastest.

        ``measure`` takes the chunk size as its last argument.
        """
        ways = {}
        for name in self.allowed(names):
            try:
                best = self.call(name, best_chunksize, measure, args, sizes)
            except LeftOut as reason:
                ways[f"{name}, tuned"] = refused(str(reason))
            else:
                label = f"{name} (chunksize={best})"
                ways[label] = Way(self._measure(name, measure, (*args, best)))
        return ways

    def fresh(self, engine: str, measure: Callable[..., float], *args: Any) -> Measure:
        """Return a measure in a host of its own. It measures once: of memory, that is enough."""
        return cache(lambda: float(self.call_fresh(engine, measure, *args)))

    def call_fresh(self, engine: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call ``function(station, *args)`` in a new host; may raise LeftOut."""
        host = self.hosts.start(engine)
        try:
            return host.call(function, args, self.pace(1).limit_s)
        finally:
            host.close()

    def _measure(
        self, engine: str, measure: Callable[..., float], args: tuple[Any, ...]
    ) -> Measure:
        return lambda: float(self.call(engine, measure, *args))

    # --- figures -----------------------------------------------------------------------

    def race(self, title: str, ways: Mapping[str, Way], rounds: int, unit: str = "ms") -> Race:
        """Run a race, show it and keep it."""
        race = pairs.race(title, ways, self.pace(rounds), unit=unit)
        self.sections[-1].races.append(race)
        print(f"\n{race}", flush=True)
        return race

    def note(self, text: str) -> None:
        """Print a sentence, and keep it."""
        self.sections[-1].notes.append(text)
        print(text, flush=True)

    def at_most(self, claim: str, figure: float, limit: float) -> None:
        """Keep a bar: the figure is claimed not to be above the limit."""
        self.sections[-1].bars.append(Bar(claim, figure, limit))

    def at_least(self, claim: str, figure: float, limit: float) -> None:
        """Keep a bar: the figure is claimed not to be below the limit."""
        self.sections[-1].bars.append(Bar(claim, figure, limit, is_floor=True))

    def at_most_peers(
        self, claim: str, race: Race, limit: float, among: Iterable[str] | None = None
    ) -> None:
        """Keep a bar: plait's figure is at most so many times that of its best peer."""
        best = race.lowest(race.peers if among is None else among)
        if best is None:
            self.note(f"No peer took part: {claim} was not compared.")
        else:
            self.at_most(f"{claim}: plait / {best}", race.ratio(race.ours, best), limit)


def refused(reason: str) -> Way:
    """Return a way of a peer that cannot take part."""

    def measure() -> float:
        raise LeftOut(reason)

    return Way(measure)
