"""Data that several workers use at once, safely: between threads, and between processes.

The names are those of ``threading``, ``queue`` and ``multiprocessing``, and so is what they do. All
of them can be sent to any worker at any time, as arguments, in closures or as globals. A process
that dies while it holds a lock frees it, and the next one is told; a deadlock is an error.
"""

from plait.shared.deadlocks import Holdings, Row, who_holds
from plait.shared.dicts import Dict
from plait.shared.lists import List
from plait.shared.locks import Lock, RLock
from plait.shared.races import checked

__all__ = ["Dict", "Holdings", "List", "Lock", "RLock", "Row", "checked", "who_holds"]
