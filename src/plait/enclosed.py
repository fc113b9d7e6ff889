"""What is shared and goes along with a result: it is noted here while that is pickled.

A pickle of something shared says where its memory is, in a process that has it. A task lets go of
what it made as it returns; so a worker process keeps what is noted here until its parent has it,
too (backends/child_main.py). ``shared/memory.py`` notes it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["noted"]

noted: set[Any] | None = None
"""The regions that are pickled now, for who wants to know; None: nobody does."""
