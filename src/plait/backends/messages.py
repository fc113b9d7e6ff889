"""What parent and worker processes say to each other, and the page that they share.

To a worker: Setup once, then Learn, Work and Forget. From it: Ready or StartFailed once,
then Results. All but the objects of the user, which stay Packed until somebody wants
them, is plain data, so that reading a message never runs foreign code.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from plait.outcome import Times
    from plait.wire import Packed
    from plait.wire_errors import PackedError

__all__ = [
    "Context",
    "Forget",
    "Learn",
    "Ready",
    "Results",
    "Setup",
    "StartFailed",
    "StatusPage",
    "Work",
    "new_page_fd",
]


class Context(NamedTuple):
    """Where the parent stands: a worker imports from and opens the same as the parent."""

    cwd: str | None
    sys_path: list[str]

    @classmethod
    def here(cls) -> Context:
        """Return this process's."""
        try:
            cwd = os.getcwd()  # noqa: PTH109  text, to compare and to send
        except OSError:  # it was deleted
            cwd = None
        return cls(cwd, list(sys.path))

    def adopt(self) -> None:
        """Make it this process's."""
        sys.path[:] = self.sys_path
        if self.cwd is not None:
            os.chdir(self.cwd)


class Setup(NamedTuple):
    """The first message to a worker."""

    worker: str
    context: Context
    argv: list[str]
    environ: dict[str, str]
    initializer: Packed | None


class Learn(NamedTuple):
    """A function that Work will name by ``key``; it travels once per worker and lane."""

    key: int
    style: str
    fn: Packed
    context: Context


class Forget(NamedTuple):
    """The function is not needed any more."""

    key: int


class Work(NamedTuple):
    """A chunk: its items packed as one list (together), or a list of each one sealed."""

    seq: int
    key: int
    together: bool
    items: Any


class Ready(NamedTuple):
    """The worker is set up; the initializer has run."""


class StartFailed(NamedTuple):
    """The initializer raised; the worker ends."""

    error: PackedError


class Results(NamedTuple):
    """The next tasks of the chunk ``seq`` have been run, from ``place`` in it on.

    ``values`` are a list of each one sealed, or, if all of them are plain, just a list;
    None stands in the place of an error. For ``queued_s`` seconds the worker had no CPU,
    because the machine was busy. ``unread`` says that a chunk sent together could
    not be unpickled: none of it has run.
    """

    seq: int
    place: int
    values: list[Any]
    is_plain: bool
    errors: dict[int, PackedError]
    times: list[Times]
    is_last: bool
    queued_s: float
    unread: bool = False


# --- The status page -------------------------------------------------------------------

RUNNING = 0  # the word in which the worker notes what it is about to run
KEPT = 1  # the word in which it notes how much of the box is filled
CANCELLED = 2  # the first of the words in which the parent notes what it no longer wants
CANCEL_WORDS = 6
WORDS = CANCELLED + CANCEL_WORDS  # of 8 bytes
BOX_BYTES = 64 * 1024
PAGE_BYTES = WORDS * 8 + BOX_BYTES
SIZE = struct.Struct("<I")
TOGETHER = 0xFFFFFFFF  # in the place of a task's number: some task of the chunk


class StatusPage:
    """A few words of memory shared by a worker and its parent. No system call, no lock.

    The worker notes which task it is about to run, so that after its death the parent
    knows whom to blame, and keeps in the box what it has not sent: results of tasks that
    must not run again. The parent notes which chunks it no longer wants. Each word has one
    writer, and is written in one piece.

    Without a page (no file descriptors can be handed over on Windows) a worker sends the
    result of each task at once instead, and what it was told to run it runs.
    """

    def __init__(self, fd: int) -> None:
        """Map the page behind a file descriptor, and close that; -1 is no page."""
        self._words: Any = [0] * WORDS
        self._box = memoryview(b"")
        self.is_shared = fd >= 0
        if self.is_shared:
            memory = memoryview(mmap.mmap(fd, PAGE_BYTES))
            self._words = memory[: WORDS * 8].cast("Q")
            self._box = memory[WORDS * 8 :]
            os.close(fd)

    def begin(self, seq: int, place: int) -> bool:
        """Note what the worker is about to run; False if the chunk is not wanted any more."""
        self._words[RUNNING] = seq << 32 | place
        return bool(self._words[CANCELLED + seq % CANCEL_WORDS] != seq)

    def running(self) -> tuple[int, int]:
        """Return (seq, place) of the task that the worker noted last; seq 0 is none."""
        word = int(self._words[RUNNING])
        return word >> 32, word & 0xFFFFFFFF

    def cancel(self, seq: int) -> None:
        """Tell the worker that a chunk is not wanted any more."""
        self._words[CANCELLED + seq % CANCEL_WORDS] = seq

    def keep(self, data: bytes) -> bool:
        """Keep what is not sent yet; False if there is no room for it."""
        used = self._words[KEPT]
        start = used + SIZE.size
        if start + len(data) > len(self._box):
            return False
        self._box[used:start] = SIZE.pack(len(data))
        self._box[start : start + len(data)] = data
        self._words[KEPT] = start + len(data)  # last: a half-written entry does not count
        return True

    def empty(self) -> None:
        """Forget what was kept: it has been sent."""
        self._words[KEPT] = 0

    def kept(self) -> Iterator[bytes]:
        """Yield what a worker that died had kept."""
        used, end = 0, self._words[KEPT]
        while used < end:
            start = used + SIZE.size
            (size,) = SIZE.unpack(self._box[used:start])
            yield bytes(self._box[start : start + size])
            used = start + size


def new_page_fd() -> int:
    """Return a file descriptor of fresh shared memory without a name, or -1 on Windows."""
    if sys.platform == "win32":
        return -1
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("plait-status", os.MFD_CLOEXEC)
    else:
        import tempfile  # slow to import, and rarely needed

        with tempfile.TemporaryFile() as file:  # unlinked as soon as it exists
            fd = os.dup(file.fileno())
    os.truncate(fd, PAGE_BYTES)
    return fd
