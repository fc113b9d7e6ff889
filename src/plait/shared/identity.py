"""Which process that is: by its number and when it began, for numbers are given out again.

Both together are one number of 64 bits, so that shared memory is told of it in a single write.
"""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["is_running", "me", "own"]

_PID_BITS = 22
"""The kernel has no larger process numbers (PID_MAX_LIMIT)."""
own = [0]
"""Who this process is, once it has been asked for; 0 before, and in a fresh fork."""


def me() -> int:
    """Return who this process is; never 0."""
    if not own[0]:
        own[0] = _who(os.getpid())
    return own[0]


def is_running(who: int) -> bool:
    """Whether a process is there, and no zombie."""
    return who != 0 and _who(who & ((1 << _PID_BITS) - 1)) == who


def _who(pid: int) -> int:
    """Return who has that number now; 0: nobody."""
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        fields = file.read().rpartition(b")")[2].split()
        if fields[0] not in (b"Z", b"X"):
            return int(fields[19]) << _PID_BITS | pid
    return 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: own.__setitem__(0, 0))
