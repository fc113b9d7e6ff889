"""One content for all processes: each has a copy of its own, and a log tells what others did to it.

This is a replicated state machine. Every operation, a read too, takes the lock of the content,
does to the copy of this process what the log tells of others, and then itself: so it sees all that
was done before it, by whomever (it is linearizable). A change appends what it did to the log. A
change is told by its effect, ``del content[3]`` and not ``remove(x)``: the same has to come of it
everywhere. The alternative, a thread in one process that keeps the content and answers through
sockets, costs a round trip for every operation, of about 10 us where this takes 1 to 3 us, more
where that process is busy; and the content dies with it.

What was done to a copy and what the log says must never differ, though a thread may be interrupted
(Ctrl-C), forked or killed at any place:

1. ``_seen`` is the state of the log up to which the copy has come. It is STALE from before a
   change of the copy until after it. Who finds it STALE makes the copy anew from the log.
2. A change is pickled first: what cannot be pickled, changes nothing.
3. Then the copy is changed: what raises an error there, is not told to anybody.
4. Then it is written to the log. If in between a signal handler of this thread has used the same
   content, which a recursive lock lets it do, the log's state is not what it was: begin again.

No object that a program has, or gets, is in a copy: of what is put in, the copy has what comes of
its pickle; what is read comes out as a copy again. Otherwise ``data[0].append(1)`` would be seen in
the process that does it, for a while, and in no other.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from plait import wire
from plait.errors import NotPicklable
from plait.shared import libc
from plait.shared.data_lock import DataLock
from plait.shared.log import OFFSETS, SHIFT, SIZE_BYTES, STATE, Log, framed

if TYPE_CHECKING:
    from plait.shared.memory import Place

__all__ = ["ATOMS", "MANY", "WHOLE", "Change", "Replica", "copy_of"]

Content = TypeVar("Content", bound=Sized)
Result = TypeVar("Result")
Change = tuple[Any, ...]
"""What was done: the number of a kind of change, and what that needs. It is pickled."""

WHOLE = 0
"""The kind of change after which the content is what comes with it, whatever it was."""
MANY = 1
"""The kind of change that adds all values of the list, or dict, that comes with it."""
ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None)})
"""What nobody can change, and need not be copied."""
BY_CLOUDPICKLE = -1
STALE = -1
LOG_BYTES = 64 * 1024
LOCK_OF = "the lock of "
_dumps, PROTOCOL = pickle.dumps, wire.PROTOCOL


class Replica(Generic[Content]):
    """A content that all processes have, as it is in this one.

    Args:
        fresh: makes an empty content.
        apply: does a change to a content. It must do the same in every process.

    Attributes:
        lock: is held for each operation.
    """

    def __init__(
        self,
        log: Log,
        lock: DataLock,
        fresh: Callable[[], Content],
        apply: Callable[[Content, Change], None],
    ) -> None:
        self.lock = lock
        self._log = log
        self._mutex = lock._mutex  # noqa: SLF001  each operation locks it, without a call of Python
        self._fresh, self._apply = fresh, apply
        self._content = fresh()
        self._seen = STALE
        self._has_objects = False  # but atoms; True for good, once there were any
        self._limit = self._few = self._few_limit = 0

    @classmethod
    def create(
        cls,
        label: str,
        fresh: Callable[[], Content],
        apply: Callable[[Content, Change], None],
        whole: object,
    ) -> Replica[Content]:
        """Make a new one, that begins with ``whole``. Raises NotPicklable."""
        log = Log.create(label.partition(" ")[0].lower(), _packed((WHOLE, whole)))
        made = cls(log, DataLock(f"{LOCK_OF}{label}"), fresh, apply)
        # Now, as long as what is in it exists: it may have shared data that nobody else keeps.
        made.look(len)
        return made

    @classmethod
    def at(
        cls,
        place: Place,
        lock: DataLock,
        fresh: Callable[[], Content],
        apply: Callable[[Content, Change], None],
    ) -> Replica[Content]:
        """Return one that another process has made. Raises SharedDataGone."""
        label = lock._cell.label.removeprefix(LOCK_OF)  # noqa: SLF001
        return cls(Log.at(place, label), lock, fresh, apply)

    @property
    def place(self) -> Place:
        """Where others find its log."""
        return self._log.region.place

    @property
    def key(self) -> tuple[bytes, int]:
        """What it is known by in this process."""
        return self._log.region.ident, 0

    # Ctrl-C may come after any call, so after a lock was taken, too. Therefore it is taken within
    # the try, by a call of C. To release what one has not, does nothing: it was not taken by this
    # thread at all, or the first try would have taken it once more.

    def get(self, key: Any) -> Any:
        """Return a copy of what the content has at an index, or a key."""
        try:
            if code := _try_lock(self._mutex):
                self.lock.wait(code)
            if self._log.words[STATE] != self._seen:
                self._catch_up()
            found = self._content[key]  # type: ignore[index]
        finally:
            _unlock(self._mutex)
        return found if type(found) in ATOMS else copy_of(found)

    def pick(self, read: Callable[..., Any], *args: Any) -> Any:
        """Return a copy of the value that a function reads from the content, with ``args``.

        The last of these may be a default, which is returned as it is.
        """
        try:
            if code := _try_lock(self._mutex):
                self.lock.wait(code)
            if self._log.words[STATE] != self._seen:
                self._catch_up()
            found = read(self._content, *args)
        finally:
            _unlock(self._mutex)
        return found if type(found) in ATOMS or found is args[-1] else copy_of(found)

    def look(self, read: Callable[[Content], Result]) -> Result:
        """Return what a function reads from the content as it is now.

        What comes out of it is to be copied before a user gets it, as by the others.
        """
        try:
            if code := _try_lock(self._mutex):
                self.lock.wait(code)
            if self._log.words[STATE] != self._seen:
                self._catch_up()
            return read(self._content)
        finally:
            _unlock(self._mutex)

    def items(self, read: Callable[[Content], Any]) -> Any:
        """Return what a function makes of the content, a list say, with copies of the values."""
        made = self.look(read)
        return copy_of(made) if self._has_objects else made

    def change(self, change: Change, check: Callable[[Content], object] | None = None) -> None:
        """Do a change, unless ``check`` raises an error. Raises NotPicklable."""
        record = _packed(change)
        if type(change[-1]) not in ATOMS:
            change = self._owned(change, record)
        try:
            if code := _try_lock(self._mutex):
                self.lock.wait(code)
            if self._log.words[STATE] != self._seen:
                self._catch_up()
            if check is not None:
                check(self._content)
            self._commit(change, record)
        finally:
            _unlock(self._mutex)

    def decide(self, decide: Callable[[Content], tuple[Change | None, Result]]) -> Result:
        """Do the change, if any, that a function makes of the content as it is now.

        It returns the change, and what is returned here. Raises NotPicklable.
        """
        try:
            if code := _try_lock(self._mutex):
                self.lock.wait(code)
            if self._log.words[STATE] != self._seen:
                self._catch_up()
            change, result = decide(self._content)
            if change is not None:
                record = _packed(change)
                if type(change[-1]) not in ATOMS:
                    change = self._owned(change, record)
                self._commit(change, record)
            return result
        finally:
            _unlock(self._mutex)

    def _owned(self, change: Change, record: bytes) -> Change:
        """Return a change with values that no program has. Raises NotPicklable."""
        if change[0] == MANY and _is_of_atoms(change[1]):
            return change
        self._has_objects = True
        try:
            return _loaded(record[SIZE_BYTES:])
        except Exception as error:
            raise NotPicklable.on_arrival("value", error) from error

    # --- With the lock held --------------------------------------------------------------

    def _catch_up(self) -> None:
        """Do to the copy what others have done."""
        log = self._log
        while (state := log.words[STATE]) != self._seen:
            seen = self._seen
            goes_on = seen != STALE and seen >> SHIFT == state >> SHIFT
            first = seen & OFFSETS if goes_on else log.start(state)
            changes = [_loaded(record) for record in log.records(first, state & OFFSETS)]
            if self._seen != seen:  # loading them has run code that used this very content
                continue
            content = self._content if goes_on else self._fresh()
            self._seen = STALE
            for change in changes:
                if type(change[-1]) not in ATOMS and not self._has_objects:
                    self._has_objects = change[0] > MANY or not _is_of_atoms(change[1])
                self._apply(content, change)
            self._content = content
            self._seen = state
            if not goes_on:
                self._set_limit(state)

    def _commit(self, change: Change, record: bytes) -> None:
        """Do a change to the copy, and tell it to all."""
        log = self._log
        while True:
            state = log.words[STATE]
            new = state + len(record)
            where = slice(state & OFFSETS, new & OFFSETS)
            if where.stop > log.mapped:
                log.reach(where.stop)
            words, memory = log.words, log.region.memory
            if self._seen != state:
                self._catch_up()
                continue
            self._seen = STALE
            self._apply(self._content, change)
            if words[STATE] == state:
                # No call is made before it is done: no signal handler runs.
                memory[where] = record
                words[STATE] = new
                self._seen = new
                break
            self._seen = STALE
        if where.stop > self._limit or (
            where.stop > self._few_limit and len(self._content) < self._few
        ):
            self._begin_anew(new)

    def _begin_anew(self, state: int) -> None:
        """Have the log begin with what the content is now."""
        try:
            record = _packed((WHOLE, self._content))
        except Exception:  # noqa: BLE001  a value that can be pickled only once
            self._limit += self._limit  # the log will do for a while
            return
        if self._seen == state:
            self._seen = self._log.begin_anew(state, record)
            self._set_limit(self._seen)

    def _set_limit(self, state: int) -> None:
        """Say where the log is long enough: longer than 64 KiB, and than twice the content.

        Or longer than 64 KiB, if next to nothing is left of what was there when it began.
        """
        start, size = self._log.start(state), self._log.first_size(state)
        self._limit = start + size + max(LOG_BYTES, 2 * size)
        self._few, self._few_limit = len(self._content) // 4, start + LOG_BYTES


def copy_of(value: Any) -> Any:
    """Return a copy of a value; what cannot be changed is its own. Raises NotPicklable."""
    kind = type(value)
    if kind in ATOMS or (kind is tuple and ATOMS.issuperset(map(type, value))):
        return value
    try:
        return pickle.loads(pickle.dumps(value, wire.PROTOCOL))
    except Exception:  # noqa: BLE001  whatever it is, cloudpickle may do better
        return wire.load(wire.pack(value, "value"))


def _is_of_atoms(content: Any) -> bool:
    if type(content) is dict:
        return ATOMS.issuperset(map(type, content)) and _is_of_atoms([*content.values()])
    return ATOMS.issuperset(map(type, content))


def _packed(change: Change) -> bytes:
    """Return a change as a record. Raises NotPicklable."""
    try:
        data = _dumps(change, PROTOCOL)
    except Exception:  # noqa: BLE001  whatever it is, cloudpickle may do better
        data = None
    if data is None or wire.MAIN in data:  # which is another module elsewhere
        kind, *what = change
        packed = wire.pack(what[0] if len(what) == 1 else what, "value")
        data = pickle.dumps((BY_CLOUDPICKLE, kind, len(what), packed), wire.PROTOCOL)
    return framed(data)


def _loaded(record: bytes) -> Change:
    change: Change = pickle.loads(record)
    if change[0] == BY_CLOUDPICKLE:
        _, kind, count, packed = change
        what = wire.load(packed)
        return (kind, what) if count == 1 else (kind, *what)
    return change


if libc.is_supported:
    _try_lock, _unlock = libc.try_lock, libc.unlock
