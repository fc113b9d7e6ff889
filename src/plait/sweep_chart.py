"""The picture of a sweep: throughput by the number of workers, and the law that it follows.

matplotlib is an extra (plot), and is imported when something is drawn. It draws into a file here,
without a window: nothing of the program's own pictures is touched, as it would be by pyplot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from plait.scaling import Law

__all__ = ["Chart", "Curve", "check_path", "draw"]

KINDS = (".png", ".svg")
COLOURS = {"threads": "#2563eb", "processes": "#c2410c", "asyncio": "#15803d"}
GREY = "#667085"
IDEAL = {"color": "#cbd2dc", "ls": "--", "lw": 1}
BESIDE = {
    "xytext": (12, 8),
    "textcoords": "offset points",
    "bbox": {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1},
}
STEPS = 200


class Curve(NamedTuple):
    """What one backend did.

    Attributes:
        name: the backend.
        rates: tasks a second by the number of workers, of each round.
        law: what they follow, if that is known.
        recommended: the size to be marked, if it is one of these.
    """

    name: str
    rates: Mapping[int, Sequence[float]]
    law: Law | None
    recommended: int | None

    @property
    def top(self) -> float:
        """The highest rate of the curve, measured or by the law."""
        highest = max(max(rates) for rates in self.rates.values())
        if self.law is None:
            return highest
        return max(highest, *map(self.law.throughput, _spread(max(self.rates))))


class Chart(NamedTuple):
    """All that is in the picture; ``loop`` is how many tasks a second the plain loop did."""

    title: str
    subtitle: str
    curves: Sequence[Curve]
    loop: float
    cpus: int

    @property
    def top(self) -> float:
        """The highest rate in the picture, measured or by a law."""
        return max(self.loop, *(curve.top for curve in self.curves))


def check_path(path: str | PathLike[str]) -> str:
    """Return the path of a picture that can be drawn; raises ValueError or ImportError."""
    name = fspath(path)
    if not name.lower().endswith(KINDS):
        raise ValueError(f"a sweep is drawn as {' or '.join(KINDS)}, and {name!r} is neither")
    try:
        import matplotlib as _  # noqa: F401  whether it is there
    except ImportError as error:
        text = "drawing a sweep needs matplotlib: pip install plait[plot]"
        raise ImportError(text, name="matplotlib") from error
    return name


def draw(path: str | PathLike[str], chart: Chart) -> None:
    """Draw a sweep into a file, PNG or SVG by its name."""
    name = check_path(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    _draw_frame(axes, chart)
    for place, curve in enumerate(chart.curves):
        # A little beside the others, so that no point hides another.
        _draw_curve(axes, curve, 2 ** (0.06 * (place - (len(chart.curves) - 1) / 2)))
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    figure.savefig(name)


def _draw_frame(axes: Any, chart: Chart) -> None:
    """Draw the axes, and what all curves are to be compared with."""
    sizes = sorted({1, *(size for curve in chart.curves for size in curve.rates)})
    line = _spread(sizes[-1])
    axes.plot(line, [chart.loop * size for size in line], **IDEAL, label="the loop x workers")
    axes.axhline(chart.loop, color=GREY, lw=1, ls=":", label="the loop")
    if chart.cpus <= sizes[-1]:
        axes.axvline(chart.cpus, color="#e4e7ec", lw=6, zorder=0, label="CPUs here")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlim(2**-0.3, sizes[-1] * 2**0.3)
    axes.set_ylim(0, 1.1 * chart.top)
    axes.set_xlabel("workers")
    axes.set_ylabel("tasks a second, opening and closing included")
    axes.set_title(f"{chart.title}\n{chart.subtitle}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(axes: Any, curve: Curve, beside: float) -> None:
    """Draw a faint point for each round, a full one for their median, and the law as a line."""
    colour = COLOURS.get(curve.name, GREY)
    sizes = sorted(curve.rates)
    places = [size * beside for size in sizes]
    for place, size in zip(places, sizes, strict=True):
        rates = curve.rates[size]
        axes.plot([place] * len(rates), rates, ".", color=colour, ms=5, alpha=0.4)
    medians = [median(curve.rates[size]) for size in sizes]
    axes.plot(places, medians, "o", color=colour, ms=6, label=f"{curve.name}: medians, rounds")
    if curve.law is not None:
        line = _spread(sizes[-1])
        rates = [curve.law.throughput(size) for size in line]
        axes.plot(line, rates, color=colour, lw=1.2, label=f"{curve.name}: law of scaling")
    if curve.recommended is not None:
        at = curve.recommended * beside, median(curve.rates[curve.recommended])
        axes.plot(*at, "o", ms=15, mfc="none", mec=colour, mew=1.5)
        axes.annotate("recommended", at, **BESIDE, color=colour, fontsize=9)


def _spread(last: int) -> list[float]:
    """Return many numbers of workers, for a smooth line."""
    return [last ** (step / STEPS) for step in range(STEPS + 1)]
