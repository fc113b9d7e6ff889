"""Outcomes as JSON Lines, whatever their items and values are.

JSON has no NaN, no bytes, no sets, no circles: what it lacks is replaced by what says
most of it, and a result never fails to be printed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from plait.errors import RemoteError, RemoteTraceback
from plait.outcome import short
from plait.wire_errors import traceback_text

if TYPE_CHECKING:
    from plait.outcome import Outcome

__all__ = ["json_line"]


def json_line(outcome: Outcome) -> bytes:
    """Return an outcome as a line of JSON, whatever its item and value are."""
    record: dict[str, Any] = {"index": outcome.index, "item": outcome.item}
    if outcome.error is None:
        record["value"] = outcome.value
    else:
        record["error"] = _describe(outcome, outcome.error)
    if outcome.attempt > 1:
        record["attempt"] = outcome.attempt
    # What UTF-8 cannot have are halves of surrogate pairs, from names of files. Python's
    # escape for them is the one of JSON.
    return _encode(record).encode("utf-8", "backslashreplace") + b"\n"


def _encode(record: dict[str, Any]) -> str:
    with suppress(*UNENCODABLE):
        return _ENCODER.encode(record)
    return _ENCODER.encode({name: _encodable(part) for name, part in record.items()})


def _encodable(part: object) -> Any:
    with suppress(*UNENCODABLE):
        cleaned = _clean(part)
        _ENCODER.encode(cleaned)
        return cleaned
    return short(part)  # nested more deeply than Python can follow


def _describe(outcome: Outcome, error: BaseException) -> dict[str, str]:
    if isinstance(error, RemoteError):
        type_name, message = error.type_name, error.text
    else:
        cls = type(error)
        module_name = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
        type_name, message = module_name + cls.__qualname__, _text(error)
    return {"type": type_name, "message": message, "traceback": _trace(outcome, error)}


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  a broken __str__ must not hide the error
        return short(error)


def _trace(outcome: Outcome, error: BaseException) -> str:
    """Return the traceback of where the task ran, in another process too."""
    deepest: BaseException = error
    seen: set[int] = set()
    while deepest.__cause__ is not None and id(deepest) not in seen:
        seen.add(id(deepest))
        deepest = deepest.__cause__
    if isinstance(deepest, RemoteTraceback) and outcome.pid != os.getpid():
        return deepest.text
    return traceback_text(error)


def _plain(value: object) -> Any:
    """Return something closer to JSON for what JSON does not have; never raises."""
    try:
        return _convert(value)
    except Exception:  # noqa: BLE001  the object's own code failed
        return short(value, sys.maxsize)


def _convert(value: Any) -> Any:
    for kinds, convert in _conversions().items():
        if isinstance(value, kinds):
            return convert(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # arrays of the standard library and of NumPy, its numbers too
        return value.tolist()
    return short(value, sys.maxsize)


def _sorted(values: Iterable[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


@cache
def _conversions() -> dict[type | tuple[type, ...], Callable[[Any], Any]]:
    # Most results are plain, and these take a while to load.
    from datetime import date, time
    from decimal import Decimal
    from enum import Enum
    from pathlib import PurePath
    from uuid import UUID

    return {
        PurePath: str,
        (set, frozenset): _sorted,
        Mapping: dict,
        Enum: lambda member: member.value,
        (date, time): lambda moment: moment.isoformat(),
        (Decimal, UUID): str,
    }


# A key or a NaN that JSON does not have, a circle, a huge number, a nest too deep.
UNENCODABLE = (TypeError, ValueError, RecursionError)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain)


def _clean(value: Any, parents: tuple[int, ...] = ()) -> Any:
    """Return a copy without what JSON cannot say: NaN, keys that are no text, circles."""
    if isinstance(value, float | int):
        return _clean_number(value)
    if value is None or isinstance(value, str):
        return value
    if id(value) in parents:
        return short(value)
    inside = (*parents, id(value))
    if isinstance(value, dict):
        return {_key(key): _clean(entry, inside) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(entry, inside) for entry in value]
    return _clean(_plain(value), inside)


def _clean_number(value: float) -> float | str:
    if isinstance(value, int):
        try:
            str(value)
        except ValueError:  # more digits than Python writes, or reads
            return hex(value)
        return value
    return value if math.isfinite(value) else NOT_FINITE.get(value, "NaN")


def _key(key: object) -> str | int | None:
    plain = key if isinstance(key, str | int | None) else _plain(key)
    return plain if isinstance(plain, str | int | None) else short(key, sys.maxsize)


NOT_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}
