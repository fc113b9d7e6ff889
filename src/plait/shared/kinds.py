"""The kinds of numbers that values and arrays have, and what does not fit into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.shared.cells import Cell

__all__ = ["CODES", "code_of", "store_number"]

CODES = "?bBhHiIqQfd"
KINDS: dict[Any, str] = {int: "q", float: "d", bool: "?"}


def code_of(kind: Any) -> str:
    """Return the code of a kind of numbers. Raises TypeError, ValueError."""
    code = KINDS.get(kind, kind) if isinstance(kind, type) else kind
    if isinstance(code, str) and len(code) == 1 and code in CODES:
        return code
    allowed = f"int, float, bool or one of the codes {' '.join(CODES)}"
    error = ValueError if isinstance(kind, str) else TypeError
    raise error(f"kind={kind!r} must be {allowed}; for objects there is plait.shared.List")


def store_number(numbers: memoryview[Any], index: int, new: object, cell: Cell) -> None:
    """Write a number; tell what is wrong where its kind cannot hold it."""
    try:
        numbers[index] = new
    except ValueError:
        low, high = _limits(numbers.format, 8 * numbers.itemsize)
        raise OverflowError(
            f"{new} does not fit into {cell.label}, which has room for {low} to {high}"
        ) from None
    except TypeError:
        kind = "numbers" if numbers.format in "fd" else "whole numbers"
        raise TypeError(f"{cell.label} holds {kind}, not {new!r}") from None


def _limits(code: str, bits: int) -> tuple[int, int]:
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if code in "bhiq" else (0, (1 << bits) - 1)
