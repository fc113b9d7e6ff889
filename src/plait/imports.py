"""Whether the first tasks import something: a measure of the program's beginning, not of them."""

from __future__ import annotations

import sys
from _thread import get_ident

__all__ = ["Imports"]

# By module, a weak reference to the lock that its import holds. There is no public way to ask
# what another thread imports; to walk the frames of a thread that runs has given objects that are
# no frames (CPython 3.11).
_LOCKS = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", {})


class Imports:
    """Tells whether anything was imported since it was made, by the thread that made it.

    Plait's own threads import things, too: they ``settle`` that before, or ``leave_out`` theirs.
    """

    __slots__ = ("_before", "_modules", "found")

    def __init__(self) -> None:
        self._modules = len(sys.modules)
        self._before = imported_by(get_ident()) if _LOCKS else frozenset()
        self.found: bool | None = None  # not settled yet

    @property
    def is_amid_import(self) -> bool:
        """Whether it was made amid an import: by a call at the top of a module, for example."""
        return bool(self._before)

    def settle(self) -> bool:
        """Find out whether there was an import until now, if that was not done before."""
        if self.found is None:
            self.found = len(sys.modules) > self._modules
        return self.found

    def leave_out(self, modules: int) -> None:
        """Do not count so many modules."""
        self._modules += modules

    def look(self, ident: int) -> bool:
        """Whether a thread, given by its identifier, is in an import now that began since."""
        is_in_one = bool(_LOCKS) and not imported_by(ident) <= self._before
        if is_in_one:
            self.found = True
        return is_in_one


def imported_by(ident: int) -> frozenset[str]:
    """Return the names of the modules that a thread is importing at this moment."""
    locks = [reference() for reference in list(_LOCKS.values())]
    return frozenset(lock.name for lock in locks if lock is not None and lock.owner == ident)
