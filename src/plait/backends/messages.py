"""What parent and worker processes say to each other, and the page that they share.

To a worker: Setup once, then Learn, Work and Forget. From it: Ready or StartFailed once,
then Results. All but the objects of the user, which stay Packed until somebody wants
them, is plain data, so that reading a message never runs foreign code.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
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
    """A chunk: its items sealed as one list (together), or a list of each one sealed."""

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
    """The next ``tasks`` tasks of the chunk ``seq``, in its order, have been run.

    ``values`` are a list of each one sealed, or, if all of them are plain, just a list;
    None stands in the place of an error. For ``queued_s`` seconds the worker had no CPU,
    because the machine was busy. ``unread`` says that a chunk sent together could
    not be unpickled: none of it has run.
    """

    seq: int
    tasks: int
    values: list[Any]
    is_plain: bool
    errors: dict[int, PackedError]
    times: list[Times]
    is_last: bool
    queued_s: float
    unread: bool = False


# --- The status page -------------------------------------------------------------------

WORDS = 8  # of 8 bytes; the first is the worker's, the others the parent's
TOGETHER = 0xFFFFFFFF  # in the place of a task's number: some task of the chunk


class StatusPage:
    """A few words of memory shared by a worker and its parent. No system call, no lock.

    The worker notes which task it is about to run, so that after its death the parent
    knows whom to blame. The parent notes which chunks it no longer wants. Each word has
    one writer, and is written in one piece.

    Without a page (no file descriptors can be handed over on Windows) a worker reports
    after each task instead, and what it was told to run it runs.
    """

    def __init__(self, fd: int) -> None:
        """Map the page behind a file descriptor, and close that; -1 is no page."""
        self._words: Any = [0] * WORDS
        self.is_shared = fd >= 0
        if self.is_shared:
            self._words = memoryview(mmap.mmap(fd, WORDS * 8)).cast("Q")
            os.close(fd)

    def begin(self, seq: int, place: int) -> bool:
        """Note what the worker is about to run; False if the chunk is not wanted any more."""
        self._words[0] = seq << 32 | place
        return bool(self._words[1 + seq % (WORDS - 1)] != seq)

    def running(self) -> tuple[int, int]:
        """Return (seq, place) of the task that the worker noted last; seq 0 is none."""
        word = int(self._words[0])
        return word >> 32, word & 0xFFFFFFFF

    def cancel(self, seq: int) -> None:
        """Tell the worker that a chunk is not wanted any more."""
        self._words[1 + seq % (WORDS - 1)] = seq


def new_page_fd() -> int:
    """Return a file descriptor of fresh shared memory without a name, or -1 on Windows."""
    if sys.platform == "win32":
        return -1
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("plait-status", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:  # unlinked as soon as it exists
            fd = os.dup(file.fileno())
    os.truncate(fd, WORDS * 8)
    return fd
