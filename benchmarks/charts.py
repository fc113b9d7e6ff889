"""What was measured, as pictures: bar charts for each claim, the curve of width, the regrets.

matplotlib is imported when it is used: without it everything else works.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.claims import choice, width
from benchmarks.pairs import Race, quartiles
from benchmarks.tables import shown

if TYPE_CHECKING:
    from benchmarks.bench import Section

__all__ = ["draw"]

COLOURS = {"ours": "#c2410c", "peer": "#7c8aa0", "yardstick": "#c9cfd8"}


def draw(out: Path, sections: Iterable[Section]) -> None:
    """Write a PNG file for each claim."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "figure.dpi": 130, "savefig.bbox": "tight"})
    for section in sections:
        if not section.races:
            continue
        drawn = {"width": _draw_width, "choice": _draw_regrets}
        figure = drawn.get(section.claim, _draw_ratios)(plt, section.races)
        figure.savefig(out / f"{section.claim}.png")
        plt.close(figure)


def _draw_ratios(plt: Any, races: list[Race]) -> Any:
    """One panel for each race, one bar for each way: how many times plait's figure it has."""
    heights = [len(race.figures) + 2.5 for race in races]
    figure, panels = plt.subplots(
        len(races),
        figsize=(7.5, 0.27 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axes, race in zip(panels[:, 0], races, strict=True):
        _draw_race(axes, race)
    figure.supxlabel("times plait's figure: the median of paired rounds, quartiles as a line")
    return figure


def _draw_race(axes: Any, race: Race) -> None:
    ways = sorted(race.figures, key=lambda way: race.ratio(way, race.ours), reverse=True)
    ratios = [race.ratio(way, race.ours) for way in ways]
    lows, highs = zip(*(quartiles(race.ratios(way, race.ours)) for way in ways), strict=True)
    lines = [
        [max(0.0, ratio - low) for ratio, low in zip(ratios, lows, strict=True)],
        [max(0.0, high - ratio) for ratio, high in zip(ratios, highs, strict=True)],
    ]
    colours = [COLOURS[race.roles[way]] for way in ways]
    axes.barh(ways, ratios, color=colours, xerr=lines, error_kw={"ecolor": "#444", "lw": 1})
    for place, way in enumerate(ways):
        text = f"  {ratios[place]:.2f} x, {shown(race.typical(way), race.unit)}"
        axes.text(highs[place], place, text, va="center", fontsize=8)
    if max(ratios) > 8:
        axes.set_xscale("log")
        axes.set_xlim(min(0.5, min(ratios) / 1.5), max(highs) * 8)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(0, max(highs) * 1.4)
    axes.axvline(1, color="#444", lw=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(race.title, loc="left")


def _draw_regrets(plt: Any, races: list[Race]) -> Any:
    """One bar for each race: how many times the best figure of all others plait's is."""
    figure, axes = plt.subplots(figsize=(7.5, 0.27 * len(races) + 1.2))
    bests = [choice.best_of(race) for race in reversed(races)]
    pairs = list(zip(reversed(races), bests, strict=True))
    regrets = [race.ratio(race.ours, best) for race, best in pairs]
    axes.barh([race.title for race, _ in pairs], regrets, color=COLOURS["ours"])
    for place, (race, best) in enumerate(pairs):
        text = f"  {regrets[place]:.2f} x {best}, {shown(race.typical(best), race.unit)}"
        axes.text(regrets[place], place, text, va="center", fontsize=8)
    axes.set_xlim(0, max(regrets) * 1.7)
    axes.axvline(1, color="#444", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("plait without options, as a multiple of the best way by hand", loc="left")
    return figure


def _draw_width(plt: Any, races: list[Race]) -> Any:
    """Tasks per second by the number of workers, on logarithmic scales."""
    figure, axes = plt.subplots(figsize=(7.5, 5))
    workers = [int(race.title.rsplit(" ", 1)[1]) for race in races]
    ideal = [number / width.NAP_S for number in workers]
    axes.plot(workers, ideal, color="#bbb", ls="--", label=width.IDEAL)
    for way in dict.fromkeys(way for race in races for way in race.figures):
        there = [(n, race) for n, race in zip(workers, races, strict=True) if way in race.figures]
        is_peer = races[0].roles[way] == "peer"
        axes.plot(
            [number for number, _ in there],
            [race.typical(way) for _, race in there],
            marker="o",
            ms=4,
            lw=1 if is_peer else 2,
            color={"ours": COLOURS["ours"], "yardstick": "#222"}.get(races[0].roles[way]),
            label=way,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(workers, [str(number) for number in workers])
    axes.set_xlabel("workers")
    axes.set_ylabel("tasks/s")
    axes.set_title("Tasks that sleep 3 ms, one message each, through one parent", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
