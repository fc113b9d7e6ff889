"""Large buffers beside the channel: shared memory, mapped by who reads it and never copied there.

Each side of a channel has a file without a name (memfd on Linux) that both have open from the
start. The side that sends lays a buffer down in its ``SegmentStore``, and what goes through the
channel is where: offset and size. The other side reads it through a ``SegmentView``, a private
mapping: what it changes there nobody else sees. When nothing refers to a segment any more, the
sender is told so with the next message, and writes the next buffer there: memory that is
in place already takes a tenth of the time of fresh memory.

Nothing has a name, so nothing is left behind, whoever is killed; and a small /dev/shm does not
matter.
"""

from __future__ import annotations

import mmap
import os
import pickle
import threading
import weakref
from bisect import insort
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from plait.host import memory_bytes

__all__ = ["SEGMENT_BYTES", "Placing", "Segment", "SegmentStore", "SegmentView"]

SEGMENT_BYTES = 128 * 1024
"""A buffer below this is cheaper in the channel."""
SHARE = 4
"""The stores of both directions may each become this part of the memory that we may use."""
KEPT_BYTES = 256 << 20
"""So much memory a store keeps when nothing is in it, to be written again."""
MOST_KNOWN = 16
PAGE = mmap.PAGESIZE

Segment = tuple[int, int]
"""Where a buffer lies in a store: offset and size in bytes. Bare, as it travels."""


class SegmentStore:
    """The memory of one side, in which it lays down buffers for the other.

    A segment is taken up by ``place``, may be held by several (``retain``), and is free again
    when each of them has let it go (``release``). May be used by several threads.
    """

    fd = -1

    def __init__(self, fd: int, stores: int) -> None:
        """Use a file, the store of one of so many that share what memory there is."""
        self.fd = fd
        self._stores = stores
        self._limit = -1  # bytes; known when it is needed
        self._lock = threading.Lock()  # guards the four below
        self._holders: dict[int, int] = {}  # of a segment, by its offset
        self._sizes: dict[int, int] = {}
        self._free: list[tuple[int, int]] = []  # (offset, size) of gaps, in order
        self._end = 0  # nothing lies behind it
        self.touched = 0  # bytes from the start that take memory, or did

    def place(self, buffer: memoryview) -> Segment | None:
        """Copy a buffer to where the other side can read it; None if there is no room."""
        size = _in_pages(buffer.nbytes)
        with self._lock:
            if self._limit < 0:
                self._open()
            offset = self._take_up(size)
            if offset is None:
                return None
            self.touched = max(self.touched, offset + size)
        try:
            self._write(buffer, offset)
        except OSError:  # there is no memory
            self.release(offset)
            return None
        return offset, buffer.nbytes

    def _open(self) -> None:
        limit = memory_bytes() // SHARE // self._stores // PAGE * PAGE
        try:
            os.truncate(self.fd, limit)
        except OSError:  # files are limited
            limit = 0
        self._limit = limit

    def _take_up(self, size: int) -> int | None:
        """Find the first gap that is large enough: low memory has been touched before."""
        for place, (offset, room) in enumerate(self._free):
            if room >= size:
                self._free[place : place + 1] = (
                    [(offset + size, room - size)] if room > size else []
                )
                break
        else:
            offset = self._end
            if offset + size > self._limit:
                return None
            self._end += size
        self._sizes[offset], self._holders[offset] = size, 1
        return offset

    def _write(self, buffer: memoryview, offset: int) -> None:
        # By the kernel, not through a mapping: it fills fresh pages without clearing them first,
        # nearly twice as fast, and lets other threads run meanwhile.
        while buffer.nbytes:
            written = os.pwrite(self.fd, buffer, offset)
            buffer, offset = buffer[written:], offset + written

    def retain(self, offset: int) -> None:
        """Count one more who holds a segment."""
        with self._lock:
            self._holders[offset] += 1

    def release(self, offset: int) -> None:
        """Count one less; the last one sets the memory free."""
        with self._lock:
            self._holders[offset] -= 1
            if not self._holders[offset]:
                del self._holders[offset]
                insort(self._free, (offset, self._sizes.pop(offset)))
                self._merge()

    def _merge(self) -> None:
        """Join gaps that lie side by side; one at the end is no gap."""
        merged: list[tuple[int, int]] = []
        for offset, size in self._free:
            if merged and sum(merged[-1]) == offset:
                offset, size = merged[-1][0], merged.pop()[1] + size
            merged.append((offset, size))
        if merged and sum(merged[-1]) == self._end:
            self._end = merged.pop()[0]
        self._free = merged

    @property
    def held_bytes(self) -> int:
        """How much is in use."""
        return sum(self._sizes.values())

    def trim(self) -> None:
        """Give memory back that is not worth keeping; whoever has finished something calls it."""
        with self._lock:
            keep = max(self._end, KEPT_BYTES)
            if (
                self.fd >= 0 and self.touched > keep
            ):  # nobody reads there, so the end of the file may be cut off
                os.truncate(self.fd, keep)
                os.truncate(self.fd, self._limit)
                self.touched = keep

    def __del__(self) -> None:
        """Close the file of a store that was dropped as it was made."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Let go of the memory; who has mapped a segment still has it."""
        with self._lock:
            fd, self.fd = self.fd, -1  # first: another thread may run while it is closed
            if fd >= 0:
                os.close(fd)


class Placing:
    """Lays buffers down, one that comes again and again only once.

    It remembers the last few objects. One that it meets for the second time stays where
    it is then, until it is forgotten.
    """

    def __init__(self, store: SegmentStore) -> None:
        self._store = store
        self._known: dict[int, tuple[object, Segment | None]] = {}  # by id; None: met once

    def __call__(self, buffer: pickle.PickleBuffer) -> Segment | None:
        """Return a segment that the caller holds, or None if the buffer is not worth one."""
        raw = buffer.raw()
        if raw.nbytes < SEGMENT_BYTES:
            return None
        key = id(raw.obj)
        known, segment = self._known.pop(key, (None, None))
        if segment is not None and segment[1] != raw.nbytes:  # it has grown
            self._store.release(segment[0])
            segment = None
        is_kept = segment is not None
        if segment is None:
            segment = self._store.place(raw)
            is_kept = segment is not None and known is not None
        if segment is not None and is_kept:
            self._store.retain(segment[0])  # for the caller; the first one is ours
        self._known[key] = (raw.obj, segment if is_kept else None)
        if len(self._known) > MOST_KNOWN:
            self._forget(next(iter(self._known)))
        return segment

    def _forget(self, key: int) -> None:
        _, segment = self._known.pop(key)
        if segment is not None:
            self._store.release(segment[0])

    def forget(self) -> None:
        """Let go of what is remembered: it may be changed from now on."""
        for key in list(self._known):
            self._forget(key)


class SegmentView:
    """What the other side has laid down, read through one private mapping of its file."""

    def __init__(self, fd: int) -> None:
        """Read a file, which is closed with the view; -1 is none."""
        self._fd = fd
        self._memory: mmap.mmap | None = None
        # By offset: the objects whose end sets a segment free.
        self._leases: dict[int, weakref.ref[Any]] = {}
        self.released: deque[int] = deque()  # offsets that the other side is to be told of
        self.seen = 0  # bytes from the start that had something in them
        self._pinned: set[int] = set()
        _views.add(self)

    def open(self, segment: Segment) -> memoryview:
        """Return the memory of a segment; when nothing refers to it any more, it is released."""
        offset, size = segment
        self.seen = max(self.seen, offset + size)
        if self.is_held(offset):  # and may have been changed by who holds it
            return self._copy(segment)
        memory = self._map()
        if memory is None:
            self.released.append(offset)
            return self._copy(segment)
        lease = _array_type(_in_pages(size)).from_buffer(memory, offset)
        self._leases[offset] = weakref.ref(lease, self._on_end(offset, size))
        return memoryview(lease).cast("B")[:size]

    def _map(self) -> mmap.mmap | None:
        if self._memory is None:
            flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
            prot = mmap.PROT_READ | mmap.PROT_WRITE
            with suppress(OSError, ValueError):  # there is a limit of address space
                self._memory = mmap.mmap(self._fd, 0, flags, prot)
        return self._memory

    def _copy(self, segment: Segment) -> memoryview:
        offset, size = segment
        buffer = memoryview(bytearray(size))
        done = 0
        while done < size:
            done += os.preadv(self._fd, [buffer[done:]], offset + done)
        return buffer

    def _on_end(self, offset: int, size: int) -> Callable[[weakref.ref[Any]], None]:
        me = weakref.ref(self)  # a view is not to wait for the garbage collector

        def end(lease: weakref.ref[Any]) -> None:
            view = me()
            if view is not None:
                view._end(lease, offset, size)  # noqa: SLF001

        return end

    def _end(self, lease: weakref.ref[Any], offset: int, size: int) -> None:
        """Forget a segment; may be called amid anything, by whoever drops the last reference."""
        if self._leases.get(offset) is not lease:  # it has been opened again meanwhile
            return
        is_free = offset not in self._pinned and self._memory is not None
        if is_free and self._memory is not None:
            # Pages that were changed here would cover what is written there next.
            self._memory.madvise(mmap.MADV_DONTNEED, offset, _in_pages(size))
        del self._leases[offset]
        if is_free:
            self.released.append(offset)

    def is_held(self, offset: int) -> bool:
        """Whether something refers to a segment, here or in a forked copy of this process."""
        return offset in self._leases or offset in self._pinned

    def drop(self, segment: Segment) -> None:
        """Release a segment that was never opened."""
        if not self.is_held(segment[0]):
            self.released.append(segment[0])

    def take_released(self) -> list[int]:
        """Return what was released since the last time."""
        released = []
        while self.released:
            released.append(self.released.popleft())
        return released

    def pin(self) -> None:
        """Never release what is held now: a forked copy of this process reads it, too."""
        self._pinned.update(self._leases)

    def __del__(self) -> None:
        """Let go of the file; what is held stays as it is, as long as it is held."""
        if self._memory is not None and self._leases:
            self._give_back_the_rest()
        if self._fd >= 0:
            os.close(self._fd)

    def _give_back_the_rest(self) -> None:
        """Free the memory between the segments that are held: the other side is gone."""
        if self._pinned or not hasattr(mmap, "MADV_REMOVE"):
            return
        sizes = {offset: len(lease() or b"") for offset, lease in list(self._leases.items())}
        end = max((offset + size for offset, size in sizes.items() if size), default=0)
        os.truncate(self._fd, end)
        if not end:  # this program ends, and what was held has gone before
            return
        with mmap.mmap(self._fd, end) as memory:
            start = 0
            for offset in sorted(sizes):
                if offset > start:
                    memory.madvise(mmap.MADV_REMOVE, start, offset - start)
                start = max(start, offset + sizes[offset])


def _in_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


@lru_cache(maxsize=64)
def _array_type(size: int) -> Any:
    import ctypes

    return ctypes.c_ubyte * size


_views: weakref.WeakSet[SegmentView] = weakref.WeakSet()


def _pin_all() -> None:
    for view in _views.copy():
        view.pin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pin_all)
