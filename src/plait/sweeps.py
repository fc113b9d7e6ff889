"""The result of a sweep, what follows from its times, and its looks.

Made by sweeping.py. The parts are worked out elsewhere: the law of scaling and the choice of a
size in scaling.py, tables and sentences in sweep_words.py, the picture in sweep_chart.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from statistics import median

from plait.ranking import as_good_as_best, best_way, is_worse
from plait.scaling import LEAST_SIZES, Law, fit_rounds
from plait.sweep_chart import Chart, Curve, draw
from plait.sweep_rows import LOOP, Row, Way
from plait.sweep_words import (
    HEADER,
    LAW_HEADER,
    LAW_NOTE,
    busy_text,
    cells,
    law_cells,
    law_record,
    row_record,
    sentence,
    summary,
)
from plait.tables import escape, html_table, text_table

__all__ = ["Sweep"]

BUSY = 0.1  # from so much waiting on, other programs have a say in the result


@dataclass(frozen=True)
class Sweep:
    """How long some work takes with each backend and pool size. ``print`` it, or ``plot`` it.

    Attributes:
        function: the name of the function.
        tasks: how many items there were.
        cpus: how many CPUs this process could use.
        loops: what the plain loop took in each round, in seconds.
        rows: one for each backend and size; times in seconds: ``open_s``, ``run_s``,
            ``close_s``, ``total_s`` (medians), ``min_s``, ``spread`` (quartiles); ``speedup``,
            ``efficiency``; ``timings`` has those of each round.
        waited: the share of its time for which the loop waited for a free CPU, as other programs
            had them all (0 where the system does not tell: anywhere but on Linux).
    """

    function: str
    tasks: int
    cpus: int
    loops: tuple[float, ...] = field(repr=False)
    rows: tuple[Row, ...]
    waited: float = 0.0

    # --- What follows ------------------------------------------------------------------

    @property
    def loop_s(self) -> float:
        """What the plain loop took, in seconds: the median."""
        return median(self.loops)

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends."""
        return tuple(dict.fromkeys(row.backend for row in self.rows))

    @property
    def best(self) -> Way:
        """What took the shortest time: a backend and a number of workers."""
        return best_way(self._times)

    @property
    def recommended(self) -> Way:
        """What has the fewest workers of all that is as good as the best; perhaps the loop.

        As good is what takes no more than 3% longer, or than the rounds vary (up to 15%). To open
        and to close the pool counts, too: it is recommended for so much work.
        """
        pools = self._times
        del pools[LOOP]
        is_worth_it = is_worse(self.loops, pools[best_way(pools)])
        return as_good_as_best(pools, self.loops) if is_worth_it else LOOP

    @cached_property
    def laws(self) -> dict[str, Law | None]:
        """The law of scaling of each backend; None where there are too few sizes.

        One worker is the pool of one if there was one, and else the loop. Throughput is tasks
        by the total: to open and to close the pool belongs to what cannot be shared.
        """
        return {name: fit_rounds(self._throughputs(name)) for name in self.backends}

    def of(self, backend: str) -> tuple[Row, ...]:
        """Return the rows of one backend, by size."""
        return tuple(row for row in self.rows if row.backend == backend)

    @property
    def _times(self) -> dict[Way, Sequence[float]]:
        """The times of each way, the one with the fewest workers first."""
        rows = sorted(self.rows, key=lambda row: (row.workers, row.total_s))
        return {LOOP: self.loops, **{row.way: row.totals for row in rows}}

    def _throughputs(self, backend: str) -> list[dict[int, float]]:
        """Return tasks a second by size, in each round."""
        rows = self.of(backend)
        return [
            {1: self.tasks / loop} | {row.workers: self.tasks / row.totals[place] for row in rows}
            for place, loop in enumerate(self.loops)
        ]

    # --- In words ----------------------------------------------------------------------

    def __str__(self) -> str:
        table = text_table(HEADER, cells(self.rows, self.loops, self.recommended))
        laws = law_cells(self.laws)
        law_text = f"{text_table(LAW_HEADER, laws)}\n{LAW_NOTE}" if laws else self._no_law_text
        return "\n\n".join((self._title, table, "\n".join(self._sentences), law_text))

    def _repr_html_(self) -> str:
        ways = [LOOP, *(row.way for row in self.rows)]
        table = html_table(
            HEADER,
            cells(self.rows, self.loops, self.recommended),
            self._title,
            bold=ways.index(self.recommended),
        )
        words = "<br>".join(map(escape, self._sentences))
        laws = law_cells(self.laws)
        law_text = html_table(LAW_HEADER, laws, LAW_NOTE) if laws else escape(self._no_law_text)
        return f"{table}<p>{words}</p>{law_text}"

    @property
    def _title(self) -> str:
        rounds = len(self.loops)
        return (
            f"{self.function}, {self.tasks:,} task{'s' * (self.tasks != 1)}: medians of {rounds} "
            f"round{'s' * (rounds != 1)}, on {self.cpus} CPU{'s' * (self.cpus != 1)}"
        )

    @property
    def _sentences(self) -> list[str]:
        of_each = [sentence(self.of(name)) for name in self.backends]
        busy = [] if self.waited < BUSY else [busy_text(self.waited)]
        return [f"Recommended: {self.recommended}.", *of_each, *busy]

    @property
    def _no_law_text(self) -> str:
        sizes = {row.workers for row in self.rows if row.workers > 1}
        return (
            f"No law of scaling: it takes {LEAST_SIZES} sizes above 1 to tell what holds workers "
            f"up, and here {'is' if len(sizes) == 1 else 'are'} {len(sizes)}."
        )

    # --- As JSON, as a picture ---------------------------------------------------------

    def to_json(self) -> str:
        """Return all of it as JSON: times in seconds, of each round, too; no peak is null."""
        record = {
            "function": self.function,
            "tasks": self.tasks,
            "cpus": self.cpus,
            "waited": self.waited,
            "loop": {**summary(self.loops), "rounds": self.loops},
            "rows": list(map(row_record, self.rows)),
            "laws": {name: law and law_record(law) for name, law in self.laws.items()},
            "best": self.best._asdict(),
            "recommended": self.recommended._asdict(),
        }
        return json.dumps(record, indent=2)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw throughput by the number of workers into a file: PNG or SVG, by its name.

        Raises ValueError for another kind of file, and ImportError without matplotlib
        (``pip install plait[plot]``).

        >>> sweep.plot("sweep.png")  # doctest: +SKIP
        """
        recommended = self.recommended
        curves = [
            Curve(
                name,
                {row.workers: [self.tasks / s for s in row.totals] for row in self.of(name)},
                self.laws[name],
                recommended.workers if recommended.backend == name else None,
            )
            for name in self.backends
        ]
        loop = self.tasks / self.loop_s
        draw(path, Chart(self._title, f"Recommended: {recommended}.", curves, loop, self.cpus))
