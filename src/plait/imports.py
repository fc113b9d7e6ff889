"""Whether the first tasks import something: a measure of the program's beginning, not of them."""

from __future__ import annotations

import sys

__all__ = ["Imports", "is_amid_import"]

FILES = "<frozen importlib"  # how the names of the import system's own files begin


class Imports:
    """Tells whether anything was imported since it was made.

    Plait's own threads import things, too: they ``settle`` that before, or ``leave_out`` theirs.
    """

    __slots__ = ("_modules", "found")

    def __init__(self) -> None:
        self._modules = len(sys.modules)
        self.found: bool | None = None  # not settled yet

    def settle(self) -> bool:
        """Find out whether there was an import until now, if that was not done before."""
        if self.found is None:
            self.found = len(sys.modules) > self._modules
        return self.found

    def leave_out(self, modules: int) -> None:
        """Do not count so many modules."""
        self._modules += modules

    def look(self, ident: int) -> bool:
        """Whether a thread, given by its identifier, is in an import now."""
        frame = sys._current_frames().get(ident)  # noqa: SLF001  it is documented
        # Down to plait's own: the program that called it may be a module that is being imported.
        while frame is not None and not frame.f_globals.get("__name__", "").startswith("plait."):
            if frame.f_code.co_filename.startswith(FILES):
                self.found = True
                return True
            frame = frame.f_back
        return False


def is_amid_import(ident: int) -> bool:
    """Whether a thread, given by its identifier, runs code of a module that is not imported yet."""
    frame = sys._current_frames().get(ident)  # noqa: SLF001  it is documented
    while frame is not None:
        if frame.f_code.co_filename.startswith(FILES):
            return True
        frame = frame.f_back
    return False
