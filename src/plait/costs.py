"""What plait itself costs on this machine: measured once, and kept for the next programs.

Used by choice.py, which predicts with it, and by runs.py. Until something was measured the figures
are those of the machine on which plait is developed (``model.Costs``). At the end of a call that
used processes and took seconds, the pool that is open anyway is asked for a few things that take
some 40 ms in all: calls that do nothing, some bytes, some work on one CPU and on all of them.

The figures lie in ``costs.json`` in ``~/.cache/plait`` (or the folder that the environment variable
PLAIT_CACHE_DIR names; if that is empty nothing is kept), by the version of Python and the number
of CPUs, and hold for a week. It is JSON, it counts only if nobody else can write to
it, and each figure is held within bounds: nothing in it can do more than make a choice a bad one.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from plait.host import cpu_count
from plait.model import Costs
from plait.outcome import Call, Chunk

if TYPE_CHECKING:
    from plait.backends.contract import Backend, Lane

__all__ = ["DEFAULT", "are_due", "keep", "known", "measure"]

DEFAULT = Costs()
FORMAT = 1
"""Of the figures: another number when they come to mean something else."""
WITHIN = 20.0
"""A figure that is further from the default one is a mistake, or somebody's joke."""
FRESH_S = 7 * 24 * 3600
LEAST_PACE = 0.6
WORTH_S = 2.0
"""A call that took so long does not notice that something is measured at its end."""
CALLS = 40
TASKS = 200
BULK_BYTES = 4 * 1024 * 1024
BURN_ROUNDS = 60_000  # some milliseconds
REPEATS = 3

_lock = threading.Lock()  # guards the next
_known: Costs | None = None
_was_measured = False  # in this program, which perhaps cannot keep them


def known() -> Costs:
    """Return the costs on this machine, as far as they are known; read from the file once."""
    global _known
    with _lock:
        if _known is None:
            _known = _read(_file()) or DEFAULT
        return _known


def are_due(wall_s: float) -> bool:
    """Whether, after a call that took so long, the costs are to be measured."""
    file = _file()
    return wall_s >= WORTH_S and not _was_measured and file is not None and _read(file) is None


def keep(costs: Costs) -> None:
    """Let these be the costs from now on, and for the programs to come."""
    global _known, _was_measured
    with _lock:
        _known, _was_measured = costs, True
    file = _file()
    if file is not None:
        with suppress(OSError):
            _write(file, costs)


# --- The file ----------------------------------------------------------------------------


def _file() -> str | None:
    folder = os.environ.get("PLAIT_CACHE_DIR")
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
        # A user without a name has no home; what is relative is somewhere else each time.
        folder = f"{base}/plait" if os.path.isabs(base) else ""  # noqa: PTH117
    return f"{folder}/costs.json" if folder else None


def _key() -> str:
    return f"{sys.implementation.cache_tag} costs-{FORMAT} cpus-{cpu_count()}"


def _read(file: str | None) -> Costs | None:
    """Return what a file says of this machine; None if it says nothing that is to be believed."""
    if file is None:
        return None
    try:
        with open(file, encoding="utf-8") as opened:  # noqa: PTH123  pathlib is slow to import
            if not _is_ours(os.fstat(opened.fileno())):
                return None
            import json  # most programs find no file

            entry = json.load(opened)[_key()]
        if not 0 <= time.time() - entry["measured_at"] < FRESH_S:
            return None
        return _checked({name: float(entry[name]) for name in Costs._fields})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _is_ours(status: os.stat_result) -> bool:
    """Whether nobody but this user can have written it."""
    return not hasattr(os, "getuid") or (
        status.st_uid == os.getuid() and not status.st_mode & 0o022
    )


def _checked(figures: dict[str, float]) -> Costs:
    """Hold each figure within bounds."""
    held = {}
    for name, figure in figures.items():
        usual = getattr(DEFAULT, name)
        if not math.isfinite(figure):
            raise ValueError(name)
        held[name] = min(max(figure, usual / WITHIN), usual * WITHIN)
    held["pace"] = min(max(held["pace"], LEAST_PACE), 1.0)
    return Costs(**held)


def _write(file: str, costs: Costs) -> None:
    """Add an entry; the file is replaced in one piece, and nobody else can read it."""
    import json
    import tempfile

    folder = os.path.dirname(file)  # noqa: PTH120
    os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103
    entries: Any = {}
    with suppress(OSError, ValueError, RecursionError), open(file, encoding="utf-8") as opened:  # noqa: PTH123
        entries = json.load(opened)
    if not isinstance(entries, dict):
        entries = {}
    entries[_key()] = {**costs._asdict(), "measured_at": time.time()}
    descriptor, new = tempfile.mkstemp(dir=folder)  # for this user only
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as written:
            json.dump(entries, written, indent=1)
        os.replace(new, file)  # noqa: PTH105
    except BaseException:
        os.unlink(new)  # noqa: PTH108
        raise


# --- Measuring ---------------------------------------------------------------------------


def measure(backend: Backend) -> Costs:
    """Measure with an open pool of processes, the first of this program, that has nothing to do."""
    figures = known()._asdict()
    if backend.start_s is not None:
        figures["server_s"], figures["worker_s"] = backend.start_s
    with _lane(backend, _nothing) as lane:
        wall_s, cpu_s = _best(lambda: _timed(lane, [Chunk(n, [0]) for n in range(CALLS)]))
        figures["chunk_s"] = cpu_s / CALLS
        wall_s, _ = _best(lambda: _timed(lane, [Chunk(0, [0] * TASKS)]))
        figures["task_s"] = wall_s / TASKS
        wall_s, _ = _best(lambda: _timed(lane, [Chunk(0, list(range(10 * TASKS)), together=True)]))
        figures["tiny_task_s"] = wall_s / TASKS / 10
        bulk = bytes(BULK_BYTES)
        wall_s, _ = _best(lambda: _timed(lane, [Chunk(0, [bulk])]))
        figures["byte_s"] = wall_s / BULK_BYTES
    with _lane(backend, _burn) as lane:
        alone_s, _ = _best(lambda: _timed(lane, [Chunk(0, [BURN_ROUNDS])]))
        chunks = [Chunk(n, [BURN_ROUNDS]) for n in range(backend.max_workers)]
        together_s, _ = _best(lambda: _timed(lane, chunks))
        figures["pace"] = alone_s / together_s
    figures["thread_s"] = min(_start_thread() for _ in range(REPEATS))
    return _checked(figures)


@contextmanager
def _lane(backend: Backend, fn: Callable[[Any], object]) -> Iterator[Lane]:
    lane = backend.open_lane(Call(fn))
    try:
        yield lane
    finally:
        lane.close()


def _best(run: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Return the least of several times: whatever else the machine does only adds to it."""
    return min(run() for _ in range(REPEATS + 1))


def _timed(lane: Lane, chunks: list[Chunk]) -> tuple[float, float]:
    """Return the seconds, by the clock and on a CPU of ours, until all chunks are back."""
    started, cpu = time.monotonic(), time.thread_time()
    lane.submit(*chunks)
    while lane.pending:
        lane.wait_outcomes()
    return time.monotonic() - started, time.thread_time() - cpu


def _nothing(_: object) -> None:
    """Do nothing."""


def _burn(rounds: int) -> int:
    """Compute."""
    total = 0
    for number in range(rounds):
        total += number * number
    return total


def _start_thread() -> float:
    started = time.monotonic()
    thread = threading.Thread(target=_nothing, args=(0,))
    thread.start()
    thread.join()
    return time.monotonic() - started
