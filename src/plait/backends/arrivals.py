"""Shared memory that comes with results: we take it before the worker that made it lets it go.

Its own module, as most programs share nothing, and need not load what this does.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from plait.errors import SharedDataGone
from plait.shared.memory import Place, Region

__all__ = ["take_over"]


def take_over(places: Iterable[tuple[Any, ...]]) -> list[Region]:
    """Return the regions at these places: they stay for as long as the list does.

    What cannot be had is left out. It is told when the result is unpickled, to who waits for it.
    """
    regions = []
    for place in places:
        with suppress(SharedDataGone, OSError):
            regions.append(Region.at(Place(*place), "result"))
    return regions
