"""Figures side by side: as text and as HTML."""

from __future__ import annotations

import doctest

import pytest

from plait import tables
from plait.tables import duration_text, html_table, text_table


def test_the_examples_in_its_docstrings() -> None:
    assert doctest.testmod(tables).failed == 0


def test_a_table_without_rows_is_its_header() -> None:
    assert text_table(("a", "b"), ()) == "a  b"


def test_nothing_in_a_cell_becomes_markup() -> None:
    html = html_table(("<b>",), [("a & b",), ("</td>",)], caption="x > y", bold=1)
    assert "<caption>x &gt; y</caption>" in html
    assert "<th>&lt;b&gt;</th>" in html
    assert '<tr><td>a &amp; b</td></tr><tr style="font-weight: bold"><td>&lt;/td&gt;' in html


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.99996, "1 s"), (999.9, "1,000 s"), (4321.0, "4,321 s"), (0.0, "0 s"), (5e-10, "0.5 ns")],
)
def test_a_duration_has_three_digits_at_most(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
