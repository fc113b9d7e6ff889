"""What the C library and the kernel do for shared memory: robust mutexes, and waits on a word.

A robust mutex (pthread_mutexattr_setrobust, POSIX.1-2008) lies in memory that several processes
have. If the thread that holds it ends, however that comes about, the kernel marks it and wakes one
who waits; the next who locks it is told (EOWNERDEAD). A futex (https://docs.kernel.org, futex(2))
is a word in such memory on which threads wait for another to change it.

Short calls keep the GIL (PyDLL), which is faster; what may wait lets go of it (CDLL).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from plait import greenlets
from plait.shared import green

__all__ = [
    "MUTEX_BYTES",
    "OWNER_MASK",
    "consistent",
    "depth_of",
    "depth_word",
    "init_mutex",
    "is_abandoned",
    "is_own",
    "is_supported",
    "lock_until",
    "mutex_at",
    "owner_of",
    "owner_word",
    "try_lock",
    "unlock",
    "wait_word",
    "wake_word",
]

MUTEX_BYTES = 64
"""So much room has a mutex; it needs 40 bytes on most machines, 48 on some."""
_ERRORCHECK, _RECURSIVE, _ROBUST, _SHARED = 2, 1, 1, 1
_TID_MASK, _OWNER_DIED = 0x3FFF_FFFF, 0x4000_0000
OWNER_MASK = _TID_MASK
"""What of a mutex's word is the system's number of the thread that holds it."""
_WAIT, _WAKE, _EVERYBODY = 0, 1, 0x7FFF_FFFF
_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221}  # all little-endian


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def _timespec(seconds: float) -> _Timespec:
    whole = int(seconds)
    return _Timespec(whole, int((seconds - whole) * 1e9))


is_supported = (
    sys.platform == "linux"
    and hasattr(os, "memfd_create")
    and platform.machine() in _FUTEX
    and sys.maxsize > 1 << 32
)
"""Whether this system has all of that: Linux. (Elsewhere: untested, so refused.)"""

if is_supported:
    _held = ctypes.PyDLL(None)  # holds the GIL
    _free = ctypes.CDLL(None, use_errno=True)
    try_lock = _held.pthread_mutex_trylock
    """Lock a mutex, from mutex_at: 0, EBUSY, or EOWNERDEAD; then it is locked, too."""
    unlock = _held.pthread_mutex_unlock
    """Unlock a mutex: 0, or EPERM where another thread holds it, or none."""
    consistent = _held.pthread_mutex_consistent
    """Declare what a mutex guards to be in order again, after EOWNERDEAD; else EINVAL."""
    _clocklock = getattr(_free, "pthread_mutex_clocklock", None)  # glibc 2.30


is_own: Callable[[Any], bool] | None = None
"""Where threads are greenlets: whether the one that runs has what its thread has; else None."""


def mutex_at(address: int) -> Any:
    """Return a mutex for the functions here: a pointer in the form that ctypes is fastest with."""
    return ctypes.byref(ctypes.c_char.from_address(address))


def init_mutex(address: int, *, recursive: bool = False) -> None:
    """Make a mutex of zeroed memory."""
    attributes = ctypes.create_string_buffer(64)
    kind = _RECURSIVE if recursive else _ERRORCHECK
    _check(_held.pthread_mutexattr_init(attributes))
    _check(_held.pthread_mutexattr_setpshared(attributes, _SHARED))
    _check(_held.pthread_mutexattr_setrobust(attributes, _ROBUST))
    _check(_held.pthread_mutexattr_settype(attributes, kind))
    _check(_held.pthread_mutex_init(ctypes.c_void_p(address), attributes))


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))


def lock_until(mutex: Any, seconds: float) -> int:
    """Lock a mutex, and wait so long for it: 0, EOWNERDEAD, ETIMEDOUT, EDEADLK or another error.

    The C library goes on waiting where a signal comes: who wants to hear of Ctrl-C waits shortly.
    """
    code: int
    if _clocklock is not None:
        deadline = _timespec(time.monotonic() + seconds)
        code = _clocklock(mutex, time.CLOCK_MONOTONIC, ctypes.byref(deadline))
    else:
        # The wall clock may be set: callers wait again until their own time is up.
        deadline = _timespec(time.time() + seconds)
        code = _free.pthread_mutex_timedlock(mutex, ctypes.byref(deadline))
    return code


def owner_word(words: memoryview[int]) -> memoryview[int]:
    """Return the word of a mutex that says who holds it, besides other things: see OWNER_MASK.

    For who asks often; ``words`` are as for ``owner_of``.
    """
    at = _owner_word()
    return words[at : at + 1]


def owner_of(words: memoryview[int]) -> int:
    """Return the system's identifier of the thread that holds a mutex, 0 for none.

    ``words`` are its bytes, as 32-bit words.
    """
    owner: int = words[_owner_word()] & _TID_MASK
    return owner


def is_abandoned(words: memoryview[int]) -> bool:
    """Whether the kernel has freed a mutex, as its owner ended, and none has locked it since."""
    return words[_owner_word()] & _OWNER_DIED != 0


_place: list[int] = []
_sample = ctypes.create_string_buffer(MUTEX_BYTES)  # never freed: Ctrl-C may leave it locked


def _owner_word() -> int:
    """Find out where this C library keeps the owner: it is also what the kernel looks at."""
    if not _place:
        mutex = mutex_at(ctypes.addressof(_sample))
        init_mutex(ctypes.addressof(_sample))
        try_lock(mutex)
        words = [int.from_bytes(_sample.raw[at : at + 4], sys.byteorder) for at in range(0, 64, 4)]
        unlock(mutex)
        me = threading.get_native_id()
        _place.append(next(n for n, word in enumerate(words) if word & _TID_MASK == me))
    return _place[0]


def depth_of(words: memoryview[int]) -> int:
    """Return how often a recursive mutex is locked by its owner, who asks; words as above."""
    at, first = depth_word()
    return words[at] - first + 1


_depth: list[tuple[int, int]] = []


def depth_word() -> tuple[int, int]:
    """Find out where this C library counts that, and what it counts for the first time."""
    if not _depth:
        memory = ctypes.create_string_buffer(MUTEX_BYTES)
        mutex = mutex_at(ctypes.addressof(memory))
        init_mutex(ctypes.addressof(memory), recursive=True)
        words = memoryview(memory).cast("B").cast("I")
        try_lock(mutex)
        once = words.tolist()
        try_lock(mutex)
        try_lock(mutex)
        thrice = words.tolist()
        for _ in range(3):
            unlock(mutex)
        at = next(n for n, word in enumerate(once) if thrice[n] == word + 2)
        _depth.append((at, once[at]))
    return _depth[0]


def wait_word(address: int, value: int, seconds: float | None) -> bool:
    """Wait until somebody wakes this word, if its value is (still) this one; False: time is up.

    Returns True, too, where a signal came, whose handler then runs, or the value is another one.
    """
    limit = None if seconds is None else ctypes.byref(_timespec(max(0.0, seconds)))
    done = _free.syscall(
        _FUTEX[platform.machine()],
        ctypes.c_void_p(address),
        ctypes.c_int(_WAIT),
        ctypes.c_uint(value),
        limit,
        None,
        ctypes.c_int(0),
    )
    return done == 0 or ctypes.get_errno() != errno.ETIMEDOUT


if is_supported and greenlets.are_threads():
    _current, _sleep = greenlets.tools()
    _green = green.GreenMutexes(try_lock, unlock, _current, _sleep)
    try_lock, unlock = _green.try_lock, _green.unlock  # type: ignore[assignment]
    lock_until, is_own = _green.lock_until, _green.is_own
    wait_word = partial(green.wait_word, _sleep)


def wake_word(address: int, count: int = _EVERYBODY) -> int:
    """Wake so many of those who wait for a word; return how many did so."""
    woken: int = _held.syscall(
        _FUTEX[platform.machine()],
        ctypes.c_void_p(address),
        ctypes.c_int(_WAKE),
        ctypes.c_int(count),
        None,
        None,
        ctypes.c_int(0),
    )
    return woken
