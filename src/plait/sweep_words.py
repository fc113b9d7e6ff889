"""A sweep in tables, in plain words, and in JSON's terms. Pure.

Used by sweeps.py, as text for a terminal and as HTML for notebooks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from plait.ranking import as_good_as_best, best_way, excess, is_worse, quartiles, worse_than_best
from plait.sweep_rows import LOOP, Row, Way
from plait.tables import duration_text

if TYPE_CHECKING:
    from plait.scaling import Law, Range

__all__ = [
    "HEADER",
    "LAW_HEADER",
    "LAW_NOTE",
    "busy_text",
    "cells",
    "law_cells",
    "law_record",
    "row_record",
    "sentence",
    "summary",
]

HEADER = (
    *("backend", "workers", "open", "run", "close", "total", "min", "quartiles"),
    *("speed-up", "efficiency", ""),
)
LAW_HEADER = ("law of scaling", "contention", "coherency", "peak", "misfit", "")
LAW_NOTE = """\
Contention: the share of the work that only one can do at a time. Coherency: what each
pair of workers costs. Peak: with more workers than that it takes longer. In brackets
where each is with 90% confidence; misfit: how far the law is from the times above, on
which, and not on the law, the recommendation rests."""


def cells(rows: Iterable[Row], loops: Sequence[float], recommended: Way) -> list[tuple[str, ...]]:
    """Return the cells of the table: the loop, and a line for each backend and size."""
    loop = duration_text(median(loops))
    spread = (duration_text(min(loops)), _span_text(quartiles(loops)))
    mark = {recommended: "<-"}
    return [
        ("loop", "", "", loop, "", loop, *spread, "1.00", "", mark.get(LOOP, "")),
        *((*_row_cells(row), mark.get(row.way, "")) for row in rows),
    ]


def _row_cells(row: Row) -> tuple[str, ...]:
    times = (row.open_s, row.run_s, row.close_s, row.total_s, row.min_s)
    return (
        row.backend,
        str(row.workers),
        *map(duration_text, times),
        _span_text(row.spread),
        f"{row.speedup:.2f}" if row.speedup >= 0.01 else f"{row.speedup:.1g}",
        f"{row.efficiency:.0%}",
    )


def sentence(rows: Sequence[Row]) -> str:
    """Say what one backend brings, and from where on more of it brings nothing, or harm."""
    by_size = {row.workers: row for row in rows}
    times = {size: row.totals for size, row in by_size.items()}
    best = best_way(times)
    if not is_worse(rows[0].loops, times[best]):
        return f"{rows[0].backend.capitalize()}: the loop is as fast, or faster."
    size = as_good_as_best(times, rows[0].loops)
    text = f"{by_size[size].way}: {by_size[size].speedup:.2f} times as fast as the loop."
    return f"{text[0].upper()}{text[1:]} {_more_text(size, by_size, times)}"


def _more_text(size: int, by_size: Mapping[int, Row], times: Mapping[int, Sequence[float]]) -> str:
    more = [other for other in times if other > size]
    if not more:
        return "More were not tried."
    worse = worse_than_best(times)
    if worse is None:
        return "More bring nothing here."
    longer, _ = excess(times[worse], times[best_way(times)])
    hurt = f"{by_size[worse].way} take {longer:.0%} longer."
    return hurt if worse == more[0] else f"More bring nothing; {hurt}"


def busy_text(waited: float) -> str:
    """Say that others were at work."""
    return (
        f"Other programs had the CPUs: the loop waited for one {waited:.0%} of its time. "
        "Sweep again when they are done."
    )


def law_cells(laws: Mapping[str, Law | None]) -> list[tuple[str, ...]]:
    """Return the cells of the table of laws."""
    return [
        (
            backend,
            f"{law.contention:.2g}{_range_text(law.contention_range)}",
            f"{law.coherency:.2g}{_range_text(law.coherency_range)}",
            f"{_peak_text(law.peak)}{_range_text(law.peak_range)}",
            f"{law.misfit:.0%}",
            "(Amdahl's)" if law.is_amdahl else "(Gunther's)",
        )
        for backend, law in laws.items()
        if law is not None
    ]


def _span_text(values: Range) -> str:
    """Say from when to when, with one unit where that is enough: 5.1 - 5.4 ms."""
    low, high = map(duration_text, values)
    number, unit = low.split()
    return f"{number if unit == high.split()[1] else low} - {high}"


def _range_text(values: Range | None) -> str:
    return f" ({_peak_text(values.low)} - {_peak_text(values.high)})" if values else ""


def _peak_text(value: float) -> str:
    return "none" if math.isinf(value) else f"{value:.2g}"


# --- JSON --------------------------------------------------------------------------------


def summary(times: Sequence[float]) -> dict[str, Any]:
    """Return what is said of times in JSON."""
    low, high = quartiles(times)
    return {"median_s": median(times), "min_s": min(times), "quartiles_s": [low, high]}


def row_record(row: Row) -> dict[str, Any]:
    """Return a row for JSON."""
    return {
        **row.way._asdict(),
        "open_s": row.open_s,
        "run_s": row.run_s,
        "close_s": row.close_s,
        "total": summary(row.totals),
        "speedup": row.speedup,
        "efficiency": row.efficiency,
        "rounds": [timing._asdict() for timing in row.timings],
    }


def law_record(law: Law) -> dict[str, Any]:
    """Return a law for JSON, which has no infinity: a peak that there is none of is null."""
    ranges = {
        "contention_90": law.contention_range,
        "coherency_90": law.coherency_range,
        "peak_90": law.peak_range,
    }
    return {
        "contention": law.contention,
        "coherency": law.coherency,
        "peak": _finite(law.peak),
        "misfit": law.misfit,
        **{name: values and list(map(_finite, values)) for name, values in ranges.items()},
    }


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value
