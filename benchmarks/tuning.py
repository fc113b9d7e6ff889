"""Every way to do a workload, and the setting with which each is fastest.

Used by claims/choice.py. An engine tries several numbers of workers and chunk sizes; its best
setting takes part in the race, if that is not far behind the best of all.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.pairs import FAR, LeftOut, Role, Way
from benchmarks.station import BRIEF_S, Station, check
from benchmarks.tables import shown
from benchmarks.workloads import WORKLOADS, Size, Workload

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.ground import Ground

__all__ = ["AUTO", "LOOP", "Entry", "Heat", "Setting", "Tuner", "entries", "stay_out"]

AUTO, LOOP = "plait auto", "for-loop"
FIXED = (AUTO, LOOP)  # nothing about them can be tuned
CLOSE = 2.0  # who took so many times longer than the best when it was tuned will not win
MOST_RACERS = 6  # besides the for-loop and plait auto
TUNING_LIMIT_S = 20.0
IN_QUICK = ("plait threads", "plait processes", "ThreadPoolExecutor", "Pool")


class Setting(NamedTuple):
    """With how many workers, and in chunks of which size."""

    workers: int
    chunksize: Size = None

    def __str__(self) -> str:
        return f"x {self.workers}" + (f" (chunksize={self.chunksize})" if self.chunksize else "")


ALONE = Setting(1)


class Entry(NamedTuple):
    """A way before it is tuned."""

    name: str
    engine: str
    settings: list[Setting]
    role: Role = "peer"


class Heat(NamedTuple):
    """A way as it was tuned; without a setting it cannot take part."""

    label: str
    engine: str
    role: Role
    setting: Setting | None
    seconds: float
    reason: str = ""


def work_s(station: Station, name: str, count: int, ground: Ground, setting: Setting) -> float:
    """Return the seconds of one map over a workload, on a warm pool."""
    work = WORKLOADS[name].make(ground, count, next(station.turns))
    seconds, results = station.timed_map(
        work.fn, work.items, workers=setting.workers, chunksize=setting.chunksize
    )
    check(f"{station.engine.name}, {name}", is_right=work.is_right(results))
    return seconds


# --- Which ways there are ----------------------------------------------------------------


def entries(workload: Workload, *, is_quick: bool) -> list[Entry]:
    """Return the ways to do a workload, plait auto first."""
    auto = Entry(AUTO, "plait auto", [ALONE], "ours")
    if workload.is_async:
        widths = [Setting(workers) for workers in (100, 32)]
        return [
            auto,
            Entry(LOOP, "asyncio", [ALONE], "yardstick"),
            Entry("plait asyncio", "plait asyncio", widths, "ours"),
            Entry("asyncio", "asyncio", widths),
        ]
    others = _others(workload)
    if is_quick:
        others = [entry._replace(settings=entry.settings[:1]) for entry in others]
        others = [entry for entry in others if entry.name in IN_QUICK]
    return [auto, Entry(LOOP, "loop", [ALONE], "yardstick"), *others]


def _others(workload: Workload) -> list[Entry]:
    """Return the engines, each with its settings: the most promising first."""

    def settings(widths: tuple[int, ...], *sizes: Size) -> list[Setting]:
        return [Setting(*pair) for pair in product(widths, sizes)]

    threads, processes = workload.threads, workload.processes
    sizes = workload.chunksizes
    by_all = settings(processes, *sizes, None)
    return [
        Entry("plait serial", "plait serial", [ALONE], "ours"),
        Entry("plait threads", "plait threads", settings(threads, None), "ours"),
        Entry("plait processes", "plait", settings(processes, None), "ours"),
        Entry("ThreadPoolExecutor", "ThreadPoolExecutor", settings(threads, None)),
        Entry("joblib threads", "joblib threads", settings(threads, *sizes[-1:], None)),
        Entry("ProcessPoolExecutor", "ProcessPoolExecutor", settings(processes, *sizes)),
        Entry("Pool", "Pool", by_all),
        Entry("joblib", "joblib", by_all),
        Entry("mpire", "mpire", by_all),
    ]


# --- Tuning ------------------------------------------------------------------------------


class Tuner:
    """Finds the best setting of each way; each setting is tried once, a brief one twice."""

    def __init__(self, bench: Bench, workload: Workload, ground: Ground) -> None:
        self._bench = bench
        self._workload = workload
        self._ground = ground
        self._count = bench.pick(*workload.tasks)
        self._best_s = float("inf")

    def tune(self, entry: Entry) -> Heat:
        """Return the best setting of a way."""
        tried: dict[Setting, float] = {}
        reason = ""
        for setting in entry.settings:
            try:
                tried[setting] = self._try(entry, setting)
            except LeftOut as error:
                reason = str(error)
                break
            if tried[setting] > FAR * self._best_s:
                break  # the best guess is first: the others will not be that much better
        if not tried:
            return Heat(f"{entry.name}, tuned", entry.engine, entry.role, None, 0.0, reason)
        setting = min(tried, key=tried.__getitem__)
        self._best_s = min(self._best_s, tried[setting])
        label = entry.name if setting == ALONE else f"{entry.name} {setting}"
        return Heat(label, entry.engine, entry.role, setting, tried[setting])

    def way(self, heat: Heat) -> Way:
        """Return a way for the race."""
        setting = heat.setting
        assert setting is not None
        return Way(lambda: self._work_s(heat.engine, self._count, setting), heat.role)

    def _try(self, entry: Entry, setting: Setting) -> float:
        few = min(self._count, 4 * setting.workers)  # its workers import what the tasks need
        self._work_s(entry.engine, few, setting)
        # The items have to be made, too.
        limit_s = None if entry.name in FIXED else min(TUNING_LIMIT_S, 4 * self._best_s + 3)
        seconds = self._work_s(entry.engine, self._count, setting, limit_s)
        if seconds < min(BRIEF_S, CLOSE * self._best_s):
            again = self._work_s(entry.engine, self._count, setting, limit_s)
            seconds = min(seconds, again)
        return seconds

    def _work_s(
        self, engine: str, count: int, setting: Setting, limit_s: float | None = None
    ) -> float:
        args = (self._workload.name, count, self._ground, setting)
        return float(self._bench.call(engine, work_s, *args, limit_s=limit_s))


def stay_out(heats: list[Heat]) -> dict[str, str]:
    """Return the reasons why ways do not race; who has none does. Pure.

    plait auto always races, the for-loop if it is not far behind, and of the others those
    that are close to the best.
    """
    seconds = {heat.label: heat.seconds for heat in heats if heat.setting is not None}
    # If plait auto is far ahead of all others, the best of these is still what it is measured by.
    best = min([taken for label, taken in seconds.items() if label != AUTO] or seconds.values())
    rivals = [label for label in sorted(seconds, key=seconds.__getitem__) if label not in FIXED]
    reasons = {heat.label: heat.reason for heat in heats if heat.setting is None}
    for label, taken in seconds.items():
        limit = {AUTO: float("inf"), LOOP: FAR}.get(label, CLOSE)
        if taken > limit * best or label in rivals[MOST_RACERS:]:
            times = f"{taken / best:.1f} times the best"
            reasons[label] = f"{shown(taken, 'ms')} when it was tuned, {times}"
    return reasons
