"""What PyInstaller needs to know of plait; PyInstaller finds it by the entry point of its name.

The hook adds what plait imports by name. The run-time hook lets the frozen program become a
worker before it runs any code of its own (see interpreter.py).
"""

from __future__ import annotations

import os

__all__ = ["get_hook_dirs"]


def get_hook_dirs() -> list[str]:
    """Return the folders of hooks, for PyInstaller."""
    return [os.path.dirname(__file__)]  # noqa: PTH120  loads less
