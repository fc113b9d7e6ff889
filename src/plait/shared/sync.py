"""What threading has beside locks, for threads and processes: all of it in one place.

The state of each is words in shared memory, changed in sections (sections.py). Who waits sleeps on
such a word, or on that of its seat (seats.py), until another changes it. A process may be killed at
any moment, also just before it would have woken others: so each sleeper looks around once a
second, for what it has missed and for who has died. Else a wait costs no CPU; Ctrl-C ends it at
once.
"""

from plait.shared.barriers import Barrier
from plait.shared.conditions import Condition
from plait.shared.events import Event
from plait.shared.semaphores import BoundedSemaphore, Semaphore

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Semaphore"]
