"""The optional part in C (``_fast.c``), if it was built and is wanted.

It does what ``shared/lock_calls.py`` and ``running.py`` do, some times faster. Whoever wants to do
without it sets PLAIT_WITHOUT_C=1 in the environment.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from plait.greenlets import are_threads

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["WITHOUT", "fast"]

WITHOUT = "PLAIT_WITHOUT_C"

fast: ModuleType | None = None
"""The module, or None."""

if not os.environ.get(WITHOUT) and not are_threads():  # it knows nothing of greenlets
    with suppress(ImportError):  # there was no compiler
        fast = import_module("plait._fast")
