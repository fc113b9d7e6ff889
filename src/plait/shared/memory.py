"""Memory that several processes have: a file without a name, which dies with its last holder.

A region is a memfd: it lies in no folder, and the kernel frees it when the last process that has
it has let go of it or has ended, by whatever signal. Another process finds it through one that has
it, at /proc/<pid>/fd/<fd>, which the kernel opens for the same user only. So an object can be
pickled to any process of this user and machine, worker or not, as long as its maker, or who
pickled it, still has it. For results of tasks, workers see to that (see ``enclosed``).

Who frees it: nobody has to. Each process unmaps it when nothing there refers to it any more.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import struct
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from typing import Literal, NamedTuple
from weakref import WeakValueDictionary

from plait import enclosed
from plait.errors import PlaitError, SharedDataGone
from plait.shared import libc

if sys.platform == "linux":
    import fcntl

__all__ = ["HEAD_BYTES", "Mark", "Place", "Region", "boot_id", "regions_of"]

MAGIC = b"plait01\n"
ID_BYTES = 16
LINK = "/memfd:plait-"
FLOCK = struct.Struct("hhqqi")  # as fcntl(2) has it, where plait.shared works
HEAD_BYTES = 64
"""A region begins with what it is: magic, identity; the rest is zero."""


class Place(NamedTuple):
    """Where another process finds a region.

    Attributes:
        ident: 16 random bytes: a number of a file may mean another one later.
        boot: of the machine, since it was started.
        holders: processes that have it, and its file's number there.
    """

    ident: bytes
    boot: str
    holders: tuple[tuple[int, int], ...]


class Region:
    """A piece of shared memory; the same object for all who ask for it in a process.

    Attributes:
        memory: all of it, its head too.
        address: of its first byte, in this process.
    """

    def __init__(self, fd: int, place: Place) -> None:
        self._fd = fd
        self._place = place
        self._map()

    @classmethod
    def create(cls, nbytes: int, kind: str) -> Region:
        """Make a region of a kind, with so much room after its head, all zero."""
        if not libc.is_supported:
            raise NotImplementedError(
                "plait.shared needs Linux: it uses memory files and robust mutexes, which this "
                "system has not, or has not been tried on."
            )
        fd = os.memfd_create(f"plait-{kind}", os.MFD_CLOEXEC)
        os.truncate(fd, HEAD_BYTES + nbytes)
        ident = os.urandom(ID_BYTES)
        os.pwrite(fd, MAGIC + ident, 0)
        region = cls(fd, Place(ident, boot_id(), ((os.getpid(), fd),)))
        with _lock:
            _known[ident] = region
        return region

    @classmethod
    def at(cls, place: Place, what: str) -> Region:
        """Return a region that another process has made, ``what`` it is for messages.

        Raises SharedDataGone.
        """
        with _lock:
            region = _known.get(place.ident)
            if region is None:
                region = _known[place.ident] = cls(_open(place, what), place)
        return region

    def _map(self) -> None:
        self.memory = mmap.mmap(self._fd, 0)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    @property
    def place(self) -> Place:
        """Where others find it: at its maker, and here. Who asks is about to pickle it."""
        if enclosed.noted is not None:
            enclosed.noted.add(self)
        here = (os.getpid(), self._fd)
        holders = (*(one for one in self._place.holders[:1] if one != here), here)
        return self._place._replace(holders=holders)

    @property
    def ident(self) -> bytes:
        """What tells it from all others."""
        return self._place.ident

    @property
    def nbytes(self) -> int:
        """How much room there is after the head."""
        return len(self.memory) - HEAD_BYTES

    def words(
        self, offset: int, nbytes: int, kind: Literal["B", "I", "Q", "q"] = "Q"
    ) -> memoryview[int]:
        """Return a part, as numbers of a kind (as in struct). One is written all at once."""
        return memoryview(self.memory)[offset : offset + nbytes].cast(kind)

    def grow(self, nbytes: int) -> None:
        """Have room for so many bytes, and map all of it; what was mapped before stays valid.

        To be called under a lock that all who grow it take.
        """
        if os.fstat(self._fd).st_size < HEAD_BYTES + nbytes:
            os.truncate(self._fd, HEAD_BYTES + nbytes)
        if self.nbytes < nbytes:
            self._map()  # the old mapping lasts as long as views of it do

    def mark(self, *numbers: int) -> Mark:
        """Say that what has these numbers is so, until the mark is closed. Raises OSError."""
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        return Mark(fd, numbers)

    def is_marked(self, number: int) -> bool:
        """Whether any process has a mark of this number."""
        with suppress(OSError):  # a system on which none can be made
            return _lock_byte(self._fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, number) != fcntl.F_UNLCK
        return False

    def keep_mapped(self) -> None:
        """Have it stay where it is until this process ends, whatever becomes of this object."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.memory))

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._fd)


class Mark:
    """A file that is open in this process, and in all that were forked since: see Region.mark.

    It is a lock on bytes, of the kind that belongs to the open file (F_OFD_SETLK in fcntl(2)) and
    not to a process: the kernel takes it away when the last who has that file open closes it, ends,
    or becomes another program. Nobody else needs to notice, or to be alive.
    """

    _fd = -1

    def __init__(self, fd: int, numbers: tuple[int, ...]) -> None:
        self._file = os.fstat(fd)
        self._numbers = numbers
        self._fd = fd
        for number in numbers:
            _lock_byte(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, number)

    def take_off(self) -> None:
        """Have it say nothing any more, whoever has it still open."""
        for number in self._numbers:
            _lock_byte(self._fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, number)

    def close(self) -> None:
        """Close it in this process."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close_inherited(self) -> None:
        """Close it where that may have been done already, and its number be something else's.

        So it is in a child, if a thread was about to close it when another one forked.
        """
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._fd), self._file):
                os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        if self._fd >= 0:  # Ctrl-C came before it was kept, or closed
            self.close_inherited()


def _lock_byte(fd: int, command: int, kind: int, number: int) -> int:
    """Change a lock, or ask for what is in its way; return of which kind that is."""
    flock = FLOCK.pack(kind, os.SEEK_SET, number, 1, 0)
    found: int = FLOCK.unpack(fcntl.fcntl(fd, command, flock))[0]
    return found


_lock = threading.RLock()  # guards what is known; a collection may come while it is held
_known: WeakValueDictionary[bytes, Region] = WeakValueDictionary()


def _open(place: Place, what: str) -> int:
    if place.boot != boot_id():
        raise SharedDataGone(what, "it was made on another machine, or before this one was started")
    for pid, fd in place.holders:
        path = f"/proc/{pid}/fd/{fd}"
        try:
            if not os.readlink(path).startswith(LINK):  # noqa: PTH115  to open it may do anything
                continue
            found = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if _is_it(found, place.ident):
                return found
            os.close(found)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # it is there, but we have too many
                raise
    pids = " and ".join(f"{pid}" for pid, _ in place.holders)
    raise SharedDataGone(
        what,
        f"none who had it, pid {pids}, has it any more: it has ended, or let go of it, before this "
        "has arrived",
    )


def _is_it(fd: int, ident: bytes) -> bool:
    """Whether a file is that region, of this user: what is in it may be unpickled later."""
    found = os.fstat(fd)
    is_ours = stat.S_ISREG(found.st_mode) and found.st_nlink == 0 and found.st_uid == os.geteuid()
    return is_ours and os.pread(fd, len(MAGIC) + ID_BYTES, 0) == MAGIC + ident


def regions_of(pid: int, kind: str) -> list[Region]:
    """Return all regions of a kind that a process of this user has."""
    found = []
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with suppress(OSError, SharedDataGone):
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith(LINK + kind):  # noqa: PTH115
                    ident = _ident_at(pid, int(fd))
                    found.append(Region.at(Place(ident, boot_id(), ((pid, int(fd)),)), kind))
    return found


def _ident_at(pid: int, fd: int) -> bytes:
    with open(f"/proc/{pid}/fd/{fd}", "rb") as file:  # noqa: PTH123
        return file.read(len(MAGIC) + ID_BYTES)[len(MAGIC) :]


@lru_cache
def boot_id() -> str:
    """Return what tells this machine, since it was started, from all others."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:  # noqa: PTH123
            return file.read().strip()
    except OSError as error:
        raise PlaitError(
            f"plait.shared finds its data through /proc, and cannot read it here: {error}. "
            "Mount /proc, or share nothing: return results instead."
        ) from error


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
