"""Tiny tasks that run together: whichever way is fastest for a function, the same comes out."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from plait.tasks import Call
from plait.worker import FIRST_PART, run_together

ITEMS = [str(n) if n % 70 != 69 else "none" for n in range(FIRST_PART * 20)]
EXPECTED = [int(item) if item != "none" else None for item in ITEMS]


def parse(text: str) -> int:
    return int(text)


class Parser:
    def parse(self, text: str) -> int:
        return int(text)


def parse_with(text: str, base: int) -> int:
    return int(text, base)


WAYS: dict[str, tuple[Any, str, Any]] = {
    "function": (parse, "one", ITEMS),
    "method": (Parser().parse, "one", ITEMS),
    "class": (int, "one", ITEMS),
    "partial": (partial(parse_with, base=10), "one", ITEMS),
    "star": (parse_with, "star", [(item, 10) for item in ITEMS]),
    "star, in C": (int, "star", [(item, 10) for item in ITEMS]),
}


@pytest.mark.parametrize("until", [None, float("inf")], ids=["at once", "in parts"])
@pytest.mark.parametrize("way", WAYS)
def test_values_and_errors_are_at_their_places(way: str, until: float | None) -> None:
    fn, style, items = WAYS[way]
    stretch = run_together(Call(fn, style), items, until=until)
    assert stretch.values == EXPECTED
    assert list(stretch.errors) == [n for n, value in enumerate(EXPECTED) if value is None]
    assert {type(error) for error in stretch.errors.values()} == {ValueError}
    assert stretch.is_last


def never(_: Any) -> Any:
    raise StopIteration


@pytest.mark.parametrize("fn", [never, next])
def test_stop_iteration_is_an_error_and_no_end(fn: Any) -> None:
    items = [iter(()), iter(()), iter(())]
    stretch = run_together(Call(fn), items)
    assert stretch.values == [None] * 3
    assert {type(error) for error in stretch.errors.values()} == {StopIteration}


@pytest.mark.parametrize("way", WAYS)
def test_they_go_on_where_they_stopped(way: str) -> None:
    fn, style, items = WAYS[way]
    first = run_together(Call(fn, style), items, until=0.0)  # it is later than that already
    assert first.values == []
    half = len(items) // 2
    part = run_together(Call(fn, style), items[:half], after=first)
    whole = run_together(Call(fn, style), items[half:], after=part)
    assert whole.values is part.values
    assert whole.values == EXPECTED
    assert sorted(whole.errors) == [n for n, value in enumerate(EXPECTED) if value is None]
