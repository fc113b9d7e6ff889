"""Find uses of data by several workers that no lock keeps apart, also where all went well.

The rule is that of Eraser (Savage, Burrows, Nelson, Sobalvarro, Anderson: "Eraser: A Dynamic Data
Race Detector for Multithreaded Programs", ACM TOCS 15(4), 1997): for each object, keep the set of
locks that were held at every use so far. If it becomes empty, and more than one worker uses the
object, and one of them changes it, there is no lock that guards it. Until a second worker comes it
is being made ready, and needs none; while all only read it, neither.

What is known of an object is a replica (replica.py), so that all processes add to the same. Locks
know nothing of this: who holds which is asked when a checked object is used, and only then.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from plait.errors import Access, RaceFound
from plait.shared.cells import known, only_one
from plait.shared.dicts import Dict
from plait.shared.lists import List
from plait.shared.locks import Lock, RLock
from plait.shared.replica import WHOLE, Change, Replica
from plait.shared.whereabouts import is_alive, whoami

if TYPE_CHECKING:
    from plait.shared.data_lock import DataLock
    from plait.shared.memory import Place

__all__ = ["checked"]

Data = TypeVar("Data", bound=MutableSequence[Any] | MutableMapping[Any, Any])
Worker = tuple[int, int]
"""A process, and the system's number of a thread."""
LockId = tuple[bytes, int]

MOST_KEPT = 16
NEW, EXCLUSIVE, SHARED, MODIFIED = range(4)
"""Nobody has used it; one worker has; several have read it; several have, and it was changed."""
caller = sys._getframe  # noqa: SLF001  it is documented


class Known(NamedTuple):
    """What is known of an object.

    Attributes:
        maker: the worker that has it checked.
        phase: see above.
        common: the locks that were held at every use since there are several workers.
        uses: the last read and the last write of each worker.
    """

    maker: Worker
    phase: int = NEW
    common: frozenset[LockId] = frozenset()
    uses: tuple[tuple[Worker, Access], ...] = ()

    def after(self, worker: Worker, access: Access, locks: frozenset[LockId]) -> Known:
        """Return what is known after one more use."""
        is_alone = self.phase == NEW or (self.phase == EXCLUSIVE and self.uses[0][0] == worker)
        if is_alone:
            phase, common = EXCLUSIVE, locks
        else:
            phase = MODIFIED if access.kind == "write" or self.phase == MODIFIED else SHARED
            common = locks if self.phase == EXCLUSIVE else self.common & locks
        if (worker, access) in self.uses:
            uses = self.uses
        else:
            others = [one for one in self.uses if (one[0], one[1].kind) != (worker, access.kind)]
            uses = (*others, (worker, access))[-MOST_KEPT:]
        return Known(self.maker, phase, common, uses)

    def race(self, worker: Worker, access: Access) -> tuple[Access, Access] | None:
        """Return two uses that nothing keeps apart: another's, and this one or the one before."""
        if self.phase != MODIFIED or self.common:
            return None
        mine = [access, *(use for who, use in self.uses if who == worker and use != access)]
        others = [use for who, use in reversed(self.uses) if who != worker]
        # Best are two that have indeed no lock in common; else some third use is to blame.
        others.sort(key=lambda use: bool(set(use.locks) & set(access.locks)))
        pairs = ((other, my) for my in mine for other in others if "write" in (other.kind, my.kind))
        return next(pairs, None)


class _Watch:
    """Keeps what is known of one object up to date, and tells of races."""

    def __init__(self, what: str, book: Replica[list[Known]], report: str) -> None:
        self.what, self.book, self.report = what, book, report
        self._told: set[tuple[str, str]] = set()

    def note(self, kind: str, method: str, frame: FrameType) -> None:
        """Note a use of the object, by who calls."""
        worker = os.getpid(), threading.get_native_id()
        locks = _held_by(worker[1])
        code = frame.f_code
        where = f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"
        access = Access(_name(), kind, method, where, tuple(sorted(locks.values())))

        def decide(content: list[Known]) -> tuple[Change | None, Known]:
            before = content[0]
            if _is_over(before, worker):
                before = Known(before.maker)
            after = before.after(worker, access, frozenset(locks))
            return (None if after == content[0] else (WHOLE, [after])), after

        race = self.book.decide(decide).race(worker, access)
        if race is not None:
            self._tell(RaceFound.of(self.what, *race), frame)

    def _tell(self, race: RaceFound, frame: FrameType) -> None:
        if self.report == "raise":
            raise race
        places = race.first.where, race.second.where
        if places not in self._told:
            self._told.add(places)
            code = frame.f_code
            warnings.warn_explicit(f"{race}", RuntimeWarning, code.co_filename, frame.f_lineno)


def _held_by(tid: int) -> dict[LockId, str]:
    """Return the locks of plait that a thread holds, and what they are called."""
    held = {}
    for reference in known.valuerefs():
        lock = reference()
        if isinstance(lock, Lock):
            cell = lock._cell  # noqa: SLF001  it is what a lock is
            if cell.owner == tid:
                held[cell.arena.region.ident, cell.offset] = cell.label
    return held


def _is_over(before: Known, worker: Worker) -> bool:
    """Whether who has it checked is the only one left: he may have waited for the others to end."""
    others = {who for who, _ in before.uses} - {worker}
    return bool(others) and worker == before.maker and not any(map(_lives, others))


def _lives(worker: Worker) -> bool:
    pid, tid = worker
    if pid == os.getpid():  # after join() the system may still have it for a moment
        return any(thread.native_id == tid for thread in threading.enumerate())
    return is_alive(pid, tid)


def _name() -> str:
    pid, _, process = whoami().partition(" ")
    return f"{threading.current_thread().name} of {process} (pid {pid})"


# --- What users have instead of the object ------------------------------------------------------


def checked(data: Data, report: str = "raise") -> Data:
    """Return an object like this list or dict, that tells of uses which no lock keeps apart.

    It is for learners and for tests; each use costs 10 us and more. Two workers that use the data,
    one of them to change it, and hold no lock of plait in common, have a race, even if nothing went
    wrong this time. A ``list`` or ``dict`` is checked among threads, a ``plait.shared.List`` or
    ``Dict`` among processes, too: send what ``checked`` returns. Single operations of those are
    atomic; what needs a lock are several that belong together: look whether it is empty, then pop.

    As long as one worker uses it, no lock is needed; nor when all the others have ended, for the
    thread that called ``checked``. Of other ways to keep workers apart (a ``threading.Lock``, an
    event, one that begins when another has ended) it does not know, and reports them. Iterating is
    one read, when it begins.

    Args:
        data: a list, a dict, or a shared one.
        report: "raise": the use raises ``RaceFound`` and is not done. "warn": a ``RuntimeWarning``,
            once for each two places.

    Raises:
        RaceFound: by any use, as soon as a race is known; it tells of two uses, and where.

    >>> import threading
    >>> from plait.shared import Lock, checked
    >>> data, lock = checked([]), Lock("results")
    >>> def produce():
    ...     with lock:
    ...         data.append(1)
    >>> threads = [threading.Thread(target=produce) for _ in range(2)]
    >>> for thread in threads:
    ...     thread.start()
    >>> for thread in threads:
    ...     thread.join()
    >>> len(data)
    2
    """
    if report not in ("raise", "warn"):
        raise ValueError(f'report={report!r} must be "raise" or "warn"')
    kind = type(data).__name__
    maker = os.getpid(), threading.get_native_id()
    book = Replica.create(f"Checked {kind}", list, _apply, [Known(maker)])
    return cast("Data", _wrapped(data, _Watch(kind, only_one(book.key, lambda: book), report)))


def _wrapped(data: Any, watch: _Watch) -> _Checked:
    return (_CheckedDict if isinstance(data, Mapping) else _CheckedList)(data, watch)


def _noting(kind: str, method: str) -> Callable[..., Any]:
    """Return a method that notes that it is called, and does what that of the data does."""

    def use(self: _Checked, *args: Any, **options: Any) -> Any:
        self._watch.note(kind, method, caller(1))
        result = getattr(self._data, method)(*args, **options)
        return self if result is self._data else result

    use.__name__ = method
    return use


class _Checked:
    """Passes all on to the data."""

    def __init__(self, data: Any, watch: _Watch) -> None:
        self._data, self._watch = data, watch

    @property
    def lock(self) -> RLock:
        """The lock of shared data."""
        lock: RLock = self._data.lock
        return lock

    def __repr__(self) -> str:
        return f"checked({self._data!r})"

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        if not isinstance(self._data, List | Dict):
            raise TypeError(
                f"checked({self._watch.what}) is for threads: processes would have a copy each. "
                "Use a plait.shared.List or Dict."
            )
        watch = self._watch
        return _arrive, (self._data, watch.book.place, watch.book.lock, watch.report)


class _CheckedList(_Checked):
    pass


class _CheckedDict(_Checked):
    pass


_READ_BY_BOTH = "__len__ __iter__ __reversed__ __contains__ __eq__ __getitem__ copy"
_WRITTEN_BY_BOTH = "__setitem__ __delitem__ clear pop"
_METHODS: tuple[tuple[type[_Checked], str, str], ...] = (
    (_CheckedList, "read", f"{_READ_BY_BOTH} __add__ __mul__ __rmul__ index count"),
    (_CheckedList, "write", f"{_WRITTEN_BY_BOTH} append extend insert remove reverse sort"),
    (_CheckedList, "write", "__iadd__ __imul__"),
    (_CheckedDict, "read", f"{_READ_BY_BOTH} __or__ __ror__ get keys values items"),
    (_CheckedDict, "write", f"{_WRITTEN_BY_BOTH} popitem setdefault update __ior__"),
)
for _class, _kind, _names in _METHODS:
    for _method in _names.split():
        setattr(_class, _method, _noting(_kind, _method))
MutableSequence.register(_CheckedList)
MutableMapping.register(_CheckedDict)


def _arrive(data: Any, place: Place, lock: DataLock, report: str) -> _Checked:
    book = only_one((place.ident, 0), lambda: Replica.at(place, lock, list, _apply))
    return _wrapped(data, _Watch(type(data).__name__, book, report))


def _apply(content: list[Known], change: Change) -> None:
    content[:] = change[1]
