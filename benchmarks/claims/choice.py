"""What a choice by measurement costs: plait without options beside every way by hand.

For each workload (workloads.py) every way is tuned (tuning.py); those that come near the best
race plait without any option. Its regret is its time as a multiple of that of the best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.bench import refused
from benchmarks.ground import Ground, prepared
from benchmarks.pairs import LeftOut, Race
from benchmarks.station import Station, check
from benchmarks.tables import shown
from benchmarks.tuning import AUTO, LOOP, Tuner, entries, stay_out
from benchmarks.workloads import WORKLOADS, Work, Workload

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["Choice", "best_of", "chosen", "followed", "run"]

PLANS = 3
FACTOR = 1.5  # so far from what was measured may a prediction be


class Choice(NamedTuple):
    """What plait chose."""

    backend: str
    workers: int
    predicted_s: float | None
    reason: str
    took_s: float | None = None

    def __str__(self) -> str:
        return self.backend if self.backend == "serial" else f"{self.backend} x {self.workers}"


# --- In the hosts ------------------------------------------------------------------------


def first_s(station: Station, name: str, count: int, ground: Ground) -> float:
    """Return the seconds of the first ``plait.map`` of a program, which starts its workers."""
    plait: Any = import_module("plait")
    work = WORKLOADS[name].make(ground, count, next(station.turns))
    started = perf_counter()
    results = plait.map(work.fn, work.items)
    seconds = perf_counter() - started
    check(name, is_right=work.is_right(results))
    return seconds


def chosen(station: Station, name: str, count: int, ground: Ground) -> Choice:
    """Return what a map chooses without options; it stops when it has chosen.

    Where it cannot know how many items will come it begins modestly, and what counts is what it
    does a second later.
    """

    def stop_when_chosen(run: Any, _: object) -> list[Any]:
        with run:
            for _ in run:
                plan = run.plan
                is_settled = plan and (not plan.facts or plan.facts.remaining is not None)
                if is_settled or run.report.wall_s > PROVISIONAL_S:
                    break
        return []

    work = WORKLOADS[name].make(ground, count, next(station.turns))
    return map_with(work, stop_when_chosen)[1]


PROVISIONAL_S = 1.0


def followed(station: Station, name: str, count: int, ground: Ground) -> Choice:
    """Return what a whole map chose, by which it ended, and how long it took.

    The prediction is the first one, made after some milliseconds.
    """
    calls: Any = import_module("plait.calls")
    work = WORKLOADS[name].make(ground, count, next(station.turns))
    values, choice = map_with(work, calls.collect)
    check(name, is_right=work.is_right(values))
    return choice


def map_with(work: Work, collect: Any) -> tuple[list[Any], Choice]:
    """Map, but have ``collect`` do the run, which a map does not hand out."""
    plait: Any = import_module("plait")
    calls: Any = import_module("plait.calls")
    runs: list[Any] = []

    def note(run: Any, options: Any) -> list[Any]:
        runs.append(run)
        values: list[Any] = collect(run, options)
        return values

    usual, calls.collect = calls.collect, note
    try:
        values = plait.map(work.fn, work.items)
    finally:
        calls.collect = usual
    plan, report = runs[0].plan, runs[0].report
    predicted_s = getattr(report, "predicted_s", None)
    choice = Choice(plan.backend, plan.max_workers, predicted_s, plan.reason, report.wall_s)
    return values, choice


# --- The claim ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one workload."""

    workload: Workload
    regret: float
    best: str
    to_loop: float
    choices: list[Choice]
    took_s: float
    first_s: float

    @property
    def is_right(self) -> bool:
        """Whether the right family was chosen, each time."""
        return all(choice.backend in self.workload.families for choice in self.choices)

    @property
    def predicted(self) -> float | None:
        """The time that was predicted, as a multiple of what that run took then."""
        ratios = [
            choice.predicted_s / choice.took_s
            for choice in self.choices
            if choice.predicted_s is not None and choice.took_s is not None
        ]
        return median(ratios) if ratios else None

    def cells(self) -> Iterator[str]:
        """Yield the row of the summary."""
        yield self.workload.name
        yield shown(self.took_s, "ms")
        yield f"{self.regret:.2f}"
        yield self.best
        yield f"{self.to_loop:.2f}"
        found = ", ".join(dict.fromkeys(map(str, self.choices)))
        yield found if self.is_right else f"{found} (not {' or '.join(self.workload.families)})"
        yield "" if self.predicted is None else f"{self.predicted:.2f}"
        yield shown(self.first_s, "ms")


HEADS = (
    "workload",
    "plait auto",
    "/ best",
    "the best",
    "/ for-loop",
    "chose",
    "predicted",
    "first",
)


def run(bench: Bench) -> None:
    verdicts: list[Verdict] = []
    try:
        with prepared() as ground:
            for workload in bench.workloads:
                verdicts.append(compare(bench, ground, workload))  # noqa: PERF401
    finally:  # it takes long: what was found until Ctrl-C is summed up, too
        if verdicts:
            sum_up(bench, verdicts)
    judge(bench, verdicts)


def sum_up(bench: Bench, verdicts: list[Verdict]) -> None:
    """Keep a table with a row for each workload."""
    table = [" | ".join(HEADS), " | ".join("---" for _ in HEADS)]
    table += [" | ".join(verdict.cells()) for verdict in verdicts]
    bench.note("\n" + "\n".join(f"| {row} |" for row in table) + "\n")
    bench.note(
        "The first: the first map of a fresh program, which starts its workers. Predicted: as a "
        "multiple of what the same run took."
    )


def compare(bench: Bench, ground: Ground, workload: Workload) -> Verdict:
    """Tune all ways, let the good ones race, and look at what plait chose."""
    tuner = Tuner(bench, workload, ground)
    heats = [tuner.tune(entry) for entry in entries(workload, is_quick=bench.is_quick)]
    reasons = stay_out(heats)
    ways = {
        heat.label: refused(reasons[heat.label]) if heat.label in reasons else tuner.way(heat)
        for heat in heats
    }
    count = bench.pick(*workload.tasks)
    race = bench.race(f"{workload.name}, {count:,} tasks", ways, rounds=9)
    args = (workload.name, count, ground)
    choices = [bench.call("plait auto", followed, *args) for _ in range(PLANS)]
    loop_s = next(heat.seconds for heat in heats if heat.label == LOOP)
    verdict = Verdict(
        workload,
        race.ratio(AUTO, best_of(race)),
        best_of(race),
        race.ratio(AUTO, LOOP) if LOOP in race.figures else race.typical(AUTO) / loop_s,
        choices,
        race.typical(AUTO),
        float(bench.call_fresh("plait auto", first_s, *args)),
    )
    say(bench, verdict)
    return verdict


def best_of(race: Race) -> str:
    """Return the best of all ways but plait auto."""
    best = race.lowest(way for way in race.figures if way != AUTO)
    if best is None:
        raise LeftOut(f"{race.title}: there is nothing to compare with")
    return best


def say(bench: Bench, verdict: Verdict) -> None:
    workload = verdict.workload
    right = " or ".join(workload.families)
    reasons = {str(choice): choice.reason for choice in verdict.choices}
    bench.note(
        f"{workload.name}: {verdict.regret:.2f} times the best ({verdict.best}), "
        f"{verdict.to_loop:.2f} times the for-loop. Right: {right}: {workload.why}. Chosen: "
        + "; ".join(f"{found}: {reason}" for found, reason in reasons.items())
    )


def judge(bench: Bench, verdicts: list[Verdict]) -> None:
    """Say what bars are to be held, over all workloads."""
    regrets = {verdict.workload.name: verdict.regret for verdict in verdicts}
    to_loop = {verdict.workload.name: verdict.to_loop for verdict in verdicts}
    worst, slowest = max(regrets, key=regrets.__getitem__), max(to_loop, key=to_loop.__getitem__)
    bench.at_most("plait auto / the best by hand, median", median(regrets.values()), 1.05)
    bench.at_most(f"plait auto / the best by hand, worst ({worst})", regrets[worst], 1.25)
    bench.at_most(f"plait auto / for-loop, worst ({slowest})", to_loop[slowest], 1.10)
    right = sum(verdict.is_right for verdict in verdicts)
    bench.at_least("workloads for which plait chose the right family", right, len(verdicts))
    predicted = [verdict.predicted for verdict in verdicts if verdict.predicted is not None]
    if predicted:
        near = sum(1 / FACTOR <= ratio <= FACTOR for ratio in predicted)
        bench.at_least(
            f"share of predictions within a factor of {FACTOR}", near / len(predicted), 0.9
        )
    else:
        bench.note("Its plans predict no times.")
