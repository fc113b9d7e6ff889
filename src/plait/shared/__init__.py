"""Data that several workers use at once, safely: between threads, and between processes.

The names are those of ``threading``, ``queue`` and ``multiprocessing``, and so is what they do. All
of them can be sent to any worker at any time, as arguments, in closures or as globals. A process
that dies while it holds a lock frees it, and the next one is told; a deadlock is an error.
"""

from plait.shared.arrays import Array
from plait.shared.deadlocks import Holdings, Row, who_holds
from plait.shared.dicts import Dict
from plait.shared.lists import List
from plait.shared.locks import Lock, RLock
from plait.shared.pipes import Connection, Pipe
from plait.shared.queues import LifoQueue, PriorityQueue, Queue, ShutDown
from plait.shared.races import checked
from plait.shared.sync import Barrier, BoundedSemaphore, Condition, Event, Semaphore
from plait.shared.values import Counter, Value

JoinableQueue = SimpleQueue = Queue  # which is all that multiprocessing has by these names


def __dir__() -> list[str]:
    """Return what users call."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


__all__ = [
    "Array",
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Connection",
    "Counter",
    "Dict",
    "Event",
    "Holdings",
    "JoinableQueue",
    "LifoQueue",
    "List",
    "Lock",
    "Pipe",
    "PriorityQueue",
    "Queue",
    "RLock",
    "Row",
    "Semaphore",
    "ShutDown",
    "SimpleQueue",
    "Value",
    "checked",
    "who_holds",
]
