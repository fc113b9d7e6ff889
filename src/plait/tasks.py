"""What the far side knows of tasks: the Call to make, the Stretch that was run.

The rest is in outcome.py, which hands these on: a worker does without it.
"""

from __future__ import annotations

from contextvars import Context
from functools import partial
from typing import Any, NamedTuple

from plait.foreign import shown

__all__ = ["Call", "Stretch", "Times", "short"]


class Call(NamedTuple):
    """How a function is applied to an item: style "one" is ``fn(item)``, "star" ``fn(*item)``.

    With style "task" the item is itself a function with its arguments, see ``worker.invoke``.
    """

    fn: Any
    style: str = "one"

    @property
    def name(self) -> str:
        """What the function is called in sentences."""
        return _name(self.fn)

    def text(self, item: Any) -> str:
        """Return the call of an item as it would be written, to be part of a sentence."""
        if self.style == "star":
            return f"{self.name}(*{short(item)})"
        if self.style == "one":
            return f"{self.name}({short(item)})"
        fn, args, kwargs = item
        if isinstance(getattr(fn, "__self__", None), Context):  # run in the context of its submit
            fn, *args = args
        given = [*map(short, args), *(f"{name}={short(value)}" for name, value in kwargs.items())]
        return f"{_name(fn)}({', '.join(given)})"


def _name(fn: Any) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    return getattr(fn, "__name__", None) or type(fn).__name__


Times = tuple[float, float]
"""When a task began (monotonic seconds) and how long it took (seconds); bare, as it travels."""


class Stretch(NamedTuple):
    """Tasks of a chunk that have been run, as the far side tells it.

    ``errors`` maps a place in ``values`` to the error there; ``times`` has one entry for
    each task, or a single one for them all; ``is_last``: nothing more of the chunk comes.
    """

    values: list[Any]
    errors: dict[int, BaseException]
    times: list[Times]
    is_last: bool = True
    queued_s: float = 0.0  # of these times the worker had no CPU for so long


def short(item: object, limit: int = 60) -> str:
    """Return a repr that fits into a sentence, whatever the object's own repr does."""
    text = shown(item)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
