"""The functions of the workloads (workloads.py): small pieces of everyday work.

They are not in tasks.py, because what they import is not to be in the workers of other claims.
"""

from __future__ import annotations

import importlib
import json
import sys
import zlib
from functools import cache
from pathlib import Path
from time import sleep
from typing import Any

from benchmarks.tasks import ARRAY_ITEMS, burn

__all__ = [
    "MATRIX_ROWS",
    "counted_up",
    "download",
    "import_and_burn",
    "lines_in",
    "middle",
    "nap_and_burn",
    "odd_total",
    "packed_size",
    "product",
    "records_in",
]

MATRIX_ROWS = 400


def nap_and_burn(seconds: float, loops: int) -> int:
    """Wait, then compute."""
    sleep(seconds)
    return burn(loops)


def download(port: int, number: int) -> int:
    """Return the size of what the server sends."""
    from http.client import HTTPConnection  # this module is in every host

    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/{number}")
    size = len(connection.getresponse().read())
    connection.close()
    return size


def lines_in(path: str) -> int:
    """Return how many lines end in a file."""
    return Path(path).read_bytes().count(b"\n")


def records_in(text: str) -> int:
    """Return the length of a list in JSON."""
    return len(json.loads(text))


def packed_size(data: bytes) -> int:
    """Return the size of the data, compressed."""
    return len(zlib.compress(data))


def middle(array: Any) -> float:
    """Return the middle item of an array, sorted. A stable sort takes longer."""
    import numpy as np

    return float(np.sort(array, kind="stable")[len(array) // 2])


def odd_total(array: Any) -> float:
    """Return the sum of 2x + 1, by a long way, which takes several more arrays of that size."""
    import numpy as np

    return float(np.sqrt((array * 2.0 + 1.0) ** 2).sum())


def counted_up(start: int) -> Any:
    """Return an array of 8 MB that counts up from a number."""
    import numpy as np

    return np.arange(ARRAY_ITEMS) * 1.0 + start


def product(value: int) -> float:
    """Return an item of a product of two matrices. BLAS uses all CPUs, unless told not to."""
    return float(((_ones() * value) @ _ones())[0, 0])


@cache
def _ones() -> Any:
    import numpy as np

    return np.ones((MATRIX_ROWS, MATRIX_ROWS))


def import_and_burn(folder: str, module: str, loops: int) -> int:
    """Import a module of that folder, if this process has not done so before, and compute."""
    if module not in sys.modules:
        importlib.invalidate_caches()
        sys.path[:] = [*(path for path in sys.path if path != folder), folder]
    return burn(loops) + int(importlib.import_module(module).ANSWER)
