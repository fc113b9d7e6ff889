"""What parent and worker processes say to each other, and the page that they share.

To a worker: Setup once, then Learn, Work, Forget and Taken. From it: Ready or StartFailed once,
then Results, and what it Said. All but the objects of the user, which stay Packed until
somebody wants them, is plain data, so that reading a message never runs foreign code.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from plait.host import monotonic
from plait.variables import MAIN_MODULES

if TYPE_CHECKING:
    from plait.tasks import Times
    from plait.wire import Packed
    from plait.wire_errors import PackedError

__all__ = [
    "OUTPUT_BYTES",
    "Context",
    "Forget",
    "Learn",
    "Levels",
    "Ready",
    "Released",
    "Results",
    "Said",
    "Setup",
    "StartFailed",
    "StatusPage",
    "Taken",
    "Text",
    "Texts",
    "Work",
    "decode",
    "encode",
    "new_file_fd",
    "new_page_fd",
]


class Levels(NamedTuple):
    """What the parent's loggers let through: (level, whether it is disabled) by name."""

    by_logger: dict[str, tuple[int, bool]]
    disabled: int

    @classmethod
    def here(cls) -> Levels | None:
        """Return this process's; None if it has not imported logging."""
        if "logging" not in sys.modules:
            return None
        import logging  # waits, if another thread is amid the import

        root = getattr(logging, "root", None)
        manager = getattr(root, "manager", None)
        if root is None or manager is None:  # it is this thread that is amid it
            return None
        found = {"": (root.level, False)}
        for name, logger in list(manager.loggerDict.items()):
            if getattr(logger, "level", 0) or getattr(logger, "disabled", False):
                found[name] = (logger.level, logger.disabled)
        return cls(found, manager.disable)


Text = tuple[str, str]
"""How a stream turns text to bytes: its encoding, and what it does with what that does not have."""


class Texts(NamedTuple):
    """How the parent's standard streams turn text to bytes."""

    stdout: Text
    stderr: Text

    @classmethod
    def here(cls) -> Texts:
        """Return this process's."""
        return cls(_text_of(sys.stdout), _text_of(sys.stderr))


def _text_of(stream: Any) -> Text:
    """Return what a stream says, as far as it can be used for lines that a worker prints."""
    return _usable_text(getattr(stream, "encoding", None), getattr(stream, "errors", None))


@lru_cache(maxsize=16)
def _usable_text(encoding: object, errors: object) -> Text:
    if not isinstance(encoding, str):  # io.StringIO takes all there is, or there is no stream
        return ANY_TEXT
    try:
        is_usable = "\n".encode(encoding) == b"\n"  # not so in UTF-16: lines are cut at that byte
    except Exception:  # noqa: BLE001  an encoding of the user's own
        is_usable = False
    if not is_usable:
        return ANY_TEXT
    if not isinstance(errors, str):
        return encoding, "strict"
    # What the program itself has registered is unknown in a worker.
    return encoding, errors if errors in KNOWN_ERRORS else "backslashreplace"


ANY_TEXT: Text = ("utf-8", "surrogatepass")
KNOWN_ERRORS = {
    *("strict", "ignore", "replace", "backslashreplace", "surrogateescape", "surrogatepass"),
    *("xmlcharrefreplace", "namereplace"),
}


class Context(NamedTuple):
    """Where the parent stands: a worker imports, opens, logs and warns as the parent would."""

    cwd: str | None
    sys_path: list[str]
    levels: Levels | None
    texts: Texts
    filters: bytes  # of warnings, pickled: their classes may be the user's
    dont_write_bytecode: bool

    @classmethod
    def here(cls) -> Context:
        """Return this process's."""
        try:
            cwd = os.getcwd()  # noqa: PTH109  text, to compare and to send
        except OSError:  # it was deleted
            cwd = None
        filters = _pickle_filters(tuple(warnings.filters))
        levels, texts = Levels.here(), Texts.here()
        return cls(cwd, list(sys.path), levels, texts, filters, sys.dont_write_bytecode)

    def adopt(self) -> None:
        """Make folder, path and filters this process's.

        The levels are for child_voice.py, the texts for child_streams.py.
        """
        sys.path[:] = self.sys_path
        sys.dont_write_bytecode = self.dont_write_bytecode
        if self.cwd is not None:
            os.chdir(self.cwd)
        if self.filters == _pickle_filters(tuple(warnings.filters)):
            return
        warnings.resetwarnings()
        for action, message, category, module, lineno in pickle.loads(self.filters):
            warnings.filterwarnings(
                action, _pattern(message), category, _pattern(module), lineno, append=True
            )


@lru_cache(maxsize=8)
def _pickle_filters(filters: tuple[tuple[Any, ...], ...]) -> bytes:
    """Pickle those of which the classes can be found from another process."""
    found = []
    for entry in filters:
        with suppress(Exception):
            if entry[2].__module__ not in MAIN_MODULES:
                pickle.dumps(entry)
                found.append(entry)
    return pickle.dumps(found)


def _pattern(given: Any) -> str:
    """Return the text of what a filter holds: None, a string, or a compiled pattern."""
    return getattr(given, "pattern", given) or ""


class Setup(NamedTuple):
    """The first message to a worker."""

    worker: str
    context: Context
    argv: list[str]
    environ: dict[str, str]
    workers: int  # that share the memory for results
    is_crowd: bool  # there are more of them than CPUs
    initializer: Packed | None


class Learn(NamedTuple):
    """A function that Work will name by ``key``; it travels once per worker and lane.

    ``variables`` are pairs of a context variable and its value.
    """

    key: int
    style: str
    fn: Packed
    context: Context
    variables: list[Packed]


class Forget(NamedTuple):
    """The function is not needed any more."""

    key: int


class Work(NamedTuple):
    """A chunk: its items packed as one list (together), or a list of each one sealed.

    ``first`` is the index of its first task, for those who read what is logged.
    """

    seq: int
    key: int
    first: int
    together: bool
    items: Any
    released: list[int]  # segments of the worker's that are not needed any more


class Taken(NamedTuple):
    """What is shared in its results has arrived, says the status page: it may let go of it.

    It looks there with each message; this one is for a worker that gets no other.
    """


class Released(NamedTuple):
    """Segments of the parent's that a worker does not need any more."""

    offsets: list[int]


class Ready(NamedTuple):
    """The worker is set up; the initializer has run."""


class StartFailed(NamedTuple):
    """The initializer raised; the worker ends."""

    error: PackedError


class Said(NamedTuple):
    """What a worker said: a "record" of logging, a "warning", or "stdout", "stderr" text.

    ``data`` are the facts, pickled, or the text (which comes by a pipe, not in a message).
    """

    kind: str
    data: bytes


class Results(NamedTuple):
    """The next tasks of the chunk ``seq`` have been run, from ``place`` in it on.

    ``values`` are a list of each one sealed, or, if all of them are plain, just a list;
    None stands in the place of an error. For ``queued_s`` seconds the worker had no CPU,
    because the machine was busy. ``unread`` says that a chunk sent together could
    not be unpickled: none of it has run. ``places`` are those of shared memory to which values
    and errors refer: the worker keeps it until the status page counts them as taken.
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
    held: tuple[int, ...] = ()  # at the end: segments that came with the chunk and are still in use
    released: tuple[int, ...] = ()  # other segments, which are not any more
    places: tuple[tuple[Any, ...], ...] = ()  # see shared/memory.py


# So much may be printed while nobody reads it, before the one who prints has to wait.
OUTPUT_BYTES = 1 << 20

KINDS = (Setup, Learn, Forget, Work, Ready, StartFailed, Said, Results, Released, Taken)
NUMBERS = {kind: number for number, kind in enumerate(KINDS)}


def encode(message: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the form in which a message travels: pickling a class by name costs microseconds."""
    return (NUMBERS[type(message)], *message)


def decode(fields: tuple[Any, ...]) -> Any:
    """Return the message that arrived in that form."""
    return tuple.__new__(KINDS[fields[0]], fields[1:])  # none is left out, so none is to be checked


# --- The status page -------------------------------------------------------------------

RUNNING = 0  # the word in which the worker notes what it is about to run
KEPT = 1  # the word in which it notes how much of the box is filled
STARTED = 2  # the word in which it notes when that began, as a float
CONDEMNED = 3  # the word in which the parent says after which task the worker is to end
CANCELLED = 4  # the first of the words in which the parent notes what it no longer wants
CANCEL_WORDS = 4
TAKEN = CANCELLED + CANCEL_WORDS  # the word in which the parent counts Results with places
WORDS = TAKEN + 1  # of 8 bytes
BOX_BYTES = 64 * 1024
LAST_WORDS_BYTES = 16 * 1024
LAST_WORDS_AT = WORDS * 8 + BOX_BYTES
PAGE_BYTES = LAST_WORDS_AT + LAST_WORDS_BYTES
SIZE = struct.Struct("<I")
OWN_FRAME = f'\n  File "{sys.modules["plait"].__path__[0]}'
TOGETHER = 0xFFFFFFFF  # in the place of a task's number: some task of the chunk


class StatusPage:
    """A few words of memory shared by a worker and its parent. No system call, no lock.

    The worker notes which task it is about to run, and when, so that the parent knows whom
    to blame for its death, and how long a task has been going on. It keeps in the box what
    it has not sent: results of tasks that must not run again. The parent notes which chunks
    it no longer wants, and of how many results it has taken over what is shared. Each word has
    one writer, and is written in one piece. At the end of the page is room for what the
    interpreter says as it crashes.

    Without a page (no file descriptors can be handed over on Windows) a worker sends the
    result of each task at once instead, and what it was told to run it runs.
    """

    def __init__(self, fd: int) -> None:
        """Map the page behind a file descriptor, which stays open; -1 is no page."""
        self.words: Any = [0] * WORDS
        self.clock: Any = [0.0] * WORDS  # the same words, as floats
        self._box = self._last_words = memoryview(b"")
        self.is_shared = fd >= 0
        self._closing = ExitStack()
        if self.is_shared:
            memory = memoryview(self._closing.enter_context(mmap.mmap(fd, PAGE_BYTES)))
            self._closing.callback(memory.release)
            self.words = memory[: WORDS * 8].cast("Q")
            self.clock = memory[: WORDS * 8].cast("d")
            self._box = memory[WORDS * 8 : LAST_WORDS_AT]
            self._last_words = memory[LAST_WORDS_AT:]
            for part in (self.words, self.clock, self._box, self._last_words):
                self._closing.callback(part.release)

    def close(self) -> None:
        """Give the memory back; nothing can be read after that."""
        self._closing.close()

    # --- The worker's side -------------------------------------------------------------

    def begin(self, seq: int, place: int) -> bool:
        """Note what the worker is about to run; False if it is not to.

        Either the chunk is not wanted any more, or the worker is condemned.
        """
        words = self.words
        before = words[RUNNING]
        self.clock[STARTED] = monotonic()  # first: a task may look younger, never older
        words[RUNNING] = seq << 32 | place
        # After the note, never before it. The other order condemns an innocent task:
        #   1. we look, and are not condemned; 2. the parent condemns us for the task before
        #   and sees that it is still noted; 3. we note the next one, and it is killed.
        if words[CONDEMNED] == before + 1:
            words[RUNNING] = 0
            return False
        return bool(words[CANCELLED + seq % CANCEL_WORDS] != seq)

    def pause_clock(self) -> None:
        """Let the time of the noted task not count for now."""
        self.clock[STARTED] = math.inf

    def restart_clock(self) -> None:
        """Let it count from now on."""
        self.clock[STARTED] = monotonic()

    @property
    def is_condemned(self) -> bool:
        """Whether the worker is to end after the task that it noted last."""
        return bool(self.words[CONDEMNED] == self.words[RUNNING] + 1)

    def keep(self, data: bytes) -> bool:
        """Keep what is not sent yet; False if there is no room for it."""
        used = self.words[KEPT]
        start = used + SIZE.size
        if start + len(data) > len(self._box):
            return False
        self._box[used:start] = SIZE.pack(len(data))
        self._box[start : start + len(data)] = data
        self.words[KEPT] = start + len(data)  # last: a half-written entry does not count
        return True

    def empty(self) -> None:
        """Forget what was kept: it has been sent."""
        self.words[KEPT] = 0

    # --- The parent's side -------------------------------------------------------------

    def running(self) -> tuple[int, int]:
        """Return (seq, place) of the task that the worker noted last; seq 0 is none."""
        word = int(self.words[RUNNING])
        return word >> 32, word & 0xFFFFFFFF

    @property
    def started(self) -> float:
        """When the worker began what it noted last; infinity while its function is loaded."""
        return float(self.clock[STARTED])

    def cancel(self, seq: int) -> None:
        """Tell the worker that a chunk is not wanted any more."""
        self.words[CANCELLED + seq % CANCEL_WORDS] = seq

    def condemn(self, running: tuple[int, int]) -> bool:
        """Have the worker end after this task; False if it has gone on to another already."""
        seq, place = running
        word = seq << 32 | place
        self.words[CONDEMNED] = word + 1  # 0 is nobody, and 1 a worker that has run nothing yet
        # If it is not so any more, the worker may have seen the word and leave, with no task
        # noted; or it did not, and goes on. Its end will tell.
        return not self.is_shared or bool(self.words[RUNNING] == word)

    def kept(self) -> Iterator[bytes]:
        """Yield what a worker that died had kept."""
        used, end = 0, self.words[KEPT]
        while used < end:
            start = used + SIZE.size
            (size,) = SIZE.unpack(self._box[used:start])
            yield bytes(self._box[start : start + size])
            used = start + size

    def last_words(self) -> str:
        """Return what the interpreter wrote as it crashed: where each thread was.

        Down to plait's own frames, which say nothing about the task.
        """
        text = bytes(self._last_words).rstrip(b"\0").decode(errors="replace")
        blocks = text.rstrip().split("\n\n")
        return "\n\n".join(block.partition(OWN_FRAME)[0].rstrip() for block in blocks)


def new_page_fd() -> int:
    """Return a file descriptor of fresh shared memory without a name, or -1 on Windows."""
    if sys.platform == "win32":
        return -1
    fd = new_file_fd("plait-status")
    os.truncate(fd, PAGE_BYTES)
    return fd


def new_file_fd(name: str) -> int:
    """Return a file descriptor of an empty file that has no name in any folder."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    import tempfile  # slow to import, and rarely needed

    with tempfile.TemporaryFile() as file:  # unlinked as soon as it exists
        return os.dup(file.fileno())
