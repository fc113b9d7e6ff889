"""What was measured, as text: Markdown for the README, JSON's dicts, the bars. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.pairs import UNITS, Race, quartiles

if TYPE_CHECKING:
    from benchmarks.bench import Section

__all__ = ["as_dict", "bars", "heading", "markdown", "shown"]

WORKERS_NOTE = (
    "2 workers, warm pools, except where said. Ways take turns; a ratio is the median of those "
    "of the single rounds. `Pool` is multiprocessing.Pool; it, ProcessPoolExecutor, mpire and "
    "pebble fork. `(chunksize=...)`: the size, of several, with which that engine was fastest."
)

QUICK_NOTE = (
    "The quick run: less work, three rounds each, and no loky, pebble, Ray and Dask. Its figures "
    "are a first look."
)


def heading(facts: dict[str, Any]) -> str:
    """Return a few lines about the machine, the versions, and what is not part of the run."""
    engines = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    text = f"{', '.join(facts['machine'].values())}; load {facts['load before']}.\n{engines}."
    return text + f"\n{QUICK_NOTE}" if facts["is quick"] else text


def bars(sections: Iterable[Section]) -> str:
    """Return a line for each bar, and for each claim that failed."""
    lines = [""]
    for section in sections:
        lines.extend(str(bar) for bar in section.bars)
        if section.error:
            lines.append(f"FAILED  {section.claim}: {section.error}")
    return "\n".join(lines)


def as_dict(facts: dict[str, Any], sections: Iterable[Section]) -> dict[str, Any]:
    """Return everything, each round's figures included."""
    found = [
        {
            "claim": section.claim,
            "races": [asdict(race) for race in section.races],
            "notes": section.notes,
            "bars": [bar.as_dict() for bar in section.bars],
            "error": section.error,
        }
        for section in sections
    ]
    units = "seconds, MB or tasks per second; a race's unit is that of its tables"
    return {**facts, "figures are in": units, "claims": found}


def markdown(facts: dict[str, Any], sections: list[Section]) -> str:
    """Return the short table, the bars, and the full tables."""
    races = [race for section in sections for race in section.races]
    parts = [
        "# Benchmarks",
        heading(facts),
        WORKERS_NOTE,
        "\n".join(_summary(races)),
        "## Bars",
        "```text" + bars(sections) + "\n```",
    ]
    for section in sections:
        parts.append(f"## {section.claim}")
        parts.extend("\n".join(_full(race)) for race in section.races)
        parts.extend(section.notes)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def shown(figure: float, unit: str) -> str:
    """Return a figure with its unit, three digits of it.

    >>> shown(0.01234, "ms"), shown(7.5, "ms"), shown(1234.5, "tasks/s")
    ('12.3 ms', '7.50 s', '1,230 tasks/s')
    """
    if unit in ("ms", "us") and figure >= 1:
        unit = "s"
    elif unit == "us" and figure >= 1e-3:
        unit = "ms"
    value = figure / UNITS[unit]
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    if value >= 1000:
        value = float(f"{value:.3g}")
    return f"{value:,.{digits}f} {'µs' if unit == 'us' else unit}"


def _summary(races: Iterable[Race]) -> Iterable[str]:
    """One row for each race: plait, its best peer, how the two compare, and the others."""
    yield "| work | plait | best peer | plait / best | the others, as multiples of plait |"
    yield "| --- | --- | --- | --- | --- |"
    for race in races:
        best = (max if race.unit == "tasks/s" else min)(race.peers, key=race.typical, default=None)
        ours = shown(race.typical(race.ours), race.unit)
        cells = [race.title, ours, "", "", _others(race, best)]
        if best is not None:
            cells[2] = f"{shown(race.typical(best), race.unit)} {best}"
            cells[3] = f"{race.ratio(race.ours, best):.2f}"
        yield f"| {' | '.join(cells)} |"


def _others(race: Race, best: str | None) -> str:
    others = [way for way in race.figures if way not in (best, race.ours)]
    texts = [f"{way} {race.ratio(way, race.ours):.2f}" for way in sorted(others, key=race.typical)]
    texts += [f"{way}: {reason}" for way, reason in race.left_out.items() if "would" in reason]
    return ", ".join(texts)


def _full(race: Race) -> Iterable[str]:
    yield f"**{race.title}**"
    yield ""
    yield f"| | median | min | max | ratio to {race.ours} | quartiles | rounds |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for way in race.figures:
        taken = race.taken(way)
        times = (shown(figure, race.unit) for figure in (race.typical(way), min(taken), max(taken)))
        low, high = quartiles(race.ratios(way, race.ours))
        ratio = f"{race.ratio(way, race.ours):.3f}"
        cells = [way, *times, ratio, f"{low:.3f} to {high:.3f}", str(len(taken))]
        yield f"| {' | '.join(cells)} |"
    for way, reason in race.left_out.items():
        yield f"| {way} | left out: {reason} | | | | | |"
