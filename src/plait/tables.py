"""Tables of a few rows: as text for people at a terminal, as HTML for notebooks. Pure.

Used by whatever prints figures side by side. (rich draws prettier ones, and takes longer to
import than most plans take to make.)
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["duration_text", "escape", "html_table", "text_table"]

UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return rows below a header, the cells of a column flush right.

    Those of the first ``left`` columns and of the last one are flush left.

    >>> print(text_table(("way", "seconds", "why"), [("loop", "1.5", ""), ("threads", "12", "x")]))
    way      seconds  why
    loop         1.5
    threads       12  x
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    last = len(widths) - 1
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if place < left or place == last else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", bold: int | None = None
) -> str:
    """Return the same as an HTML table; the row at place ``bold`` stands out.

    >>> html_table(("a",), [("1 < 2",)])
    '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>1 &lt; 2</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = []
    for place, row in enumerate(rows):
        style = ' style="font-weight: bold"' if place == bold else ""
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body.append(f"<tr{style}>{cells}</tr>")
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{top}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def escape(text: str) -> str:
    """Return text as HTML; the module html, to do so, loads a table of all named characters."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def duration_text(seconds: float) -> str:
    """Say a time in three digits.

    >>> duration_text(0.0123), duration_text(95.5), duration_text(2e-7)
    ('12.3 ms', '95.5 s', '200 ns')
    """
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    for unit, size in UNITS:
        if seconds >= 0.9995 * size:
            return f"{seconds / size:.3g} {unit}"
    return "0 s" if not seconds else f"{seconds / 1e-9:.1g} ns"
