"""Work of many kinds, for which somebody has to choose: a loop, threads, processes, coroutines.

Each workload says which family of workers is right for it on a machine with two CPUs, and why.
Hosts know it by its name. The counts give a plain loop of one to four seconds (the quick ones:
a few tenths), and more where all of it waits, or 32 at once would be done before one can look.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import chores
from benchmarks.ground import FILES, PAGE_NBYTES
from benchmarks.tasks import ARRAY_ITEMS, burn, burnt, doze, filled, nap, square

if TYPE_CHECKING:
    from benchmarks.ground import Ground

__all__ = ["WORKLOADS", "Work", "Workload", "unequal"]

NAP_S = 0.01
SHAPE = 1.3  # of the Pareto distribution: a fifth of the tasks holds three quarters of the work
CLASSES = 250  # of a module that takes long to import


class Work(NamedTuple):
    """What an engine is given, and whether what it returns is right."""

    fn: Callable[..., Any]
    items: Iterable[Any]
    is_right: Callable[[list[Any]], bool]


Make = Callable[["Ground", int, int], Work]
"""Makes so many tasks, new ones for each turn."""

Size = int | None


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of work.

    Attributes:
        name: what it is called, also in tables.
        make: makes the work of a turn.
        tasks: how many in a full run, and in a quick one.
        families: the right ones: "serial", "threads", "processes", "asyncio".
        why: they are right, in one sentence.
        threads, processes: the numbers of workers of which the best is looked for, the most
            promising first.
        chunksizes: likewise; an engine's own default is tried last.
        is_async: the function is a coroutine function.
    """

    name: str
    make: Make
    tasks: tuple[int, int]
    families: tuple[str, ...]
    why: str
    threads: tuple[int, ...] = (2,)
    processes: tuple[int, ...] = (2,)
    chunksizes: tuple[int, ...] = ()
    is_async: bool = False


# --- Computing in Python -----------------------------------------------------------------


def equals(expected: list[Any]) -> Callable[[list[Any]], bool]:
    return lambda results: results == expected


def burning(task_s: float) -> Make:
    def make(ground: Ground, count: int, turn: int) -> Work:
        del turn
        return burns([ground.loops(task_s)] * count)

    return make


def burns(loops: list[int]) -> Work:
    return Work(burn, loops, equals(list(map(burnt, loops))))


def skewed(ground: Ground, count: int, turn: int) -> Work:
    del turn
    durations = unequal(count, ground.loops(0.002))
    return burns(random.Random(2).sample(durations, count))


def slow_among_first(ground: Ground, count: int, turn: int) -> Work:
    """Make short tasks with two slow ones among the first forty, elsewhere in each turn."""
    draw = random.Random(turn)
    loops = [ground.loops(0.001)] * count
    for place in draw.sample(range(1, min(40, count)), 2):
        loops[place] = ground.loops(draw.uniform(0.05, 0.15))
    return burns(loops)


def unequal(count: int, mean: int) -> list[int]:
    """Return durations, in loops of ``burn``, the same in each run."""
    chance = random.Random(1)
    durations = [chance.paretovariate(SHAPE) for _ in range(count)]
    return [round(duration * mean * count / sum(durations)) for duration in durations]


def generated(ground: Ground, count: int, turn: int) -> Work:
    del turn
    work = burns([ground.loops(0.001)] * count)
    return work._replace(items=(item for item in work.items))


def squares(ground: Ground, count: int, turn: int) -> Work:
    del ground, turn
    items = range(count)
    return Work(square, items, equals([x * x for x in items]))


def documents(ground: Ground, count: int, turn: int) -> Work:
    del ground, turn
    texts = [_documents()[number % len(_documents())] + "\n" for number in range(count)]
    expected = [400 + number % len(_documents()) for number in range(count)]
    return Work(chores.records_in, texts, equals(expected))


@cache
def _documents() -> list[str]:
    record = (
        '{"id": 12345, "name": "somebody", "tags": ["a", "b", "c"], "score": 0.25, "next": null}'
    )
    return ["[" + ", ".join([record] * (400 + more)) + "]" for more in range(7)]


def importing(ground: Ground, count: int, turn: int) -> Work:
    """Write a module that nobody has imported before; it makes many dataclasses."""
    name = f"heavy_{os.getpid()}_{turn}"
    lines = ["from dataclasses import dataclass", f"ANSWER = {turn}"]
    for number in range(CLASSES):
        lines += ["@dataclass", f"class C{number}:", "    a: int = 1", "    b: str = ''"]
    Path(ground.folder, f"{name}.py").write_text("\n".join(lines))
    loops = [ground.loops(0.002)] * count
    expected = [burnt(number) + turn for number in loops]
    return Work(partial(chores.import_and_burn, ground.folder, name), loops, equals(expected))


# --- C code that releases the GIL --------------------------------------------------------


def sorting(ground: Ground, count: int, turn: int) -> Work:
    import numpy as np

    del ground
    chance = np.random.default_rng(turn)
    arrays = [chance.permutation(100_000) + float(turn + number) for number in range(count)]
    expected = [50_000.0 + turn + number for number in range(count)]
    return Work(chores.middle, arrays, equals(expected))


def packing(ground: Ground, count: int, turn: int) -> Work:
    del ground, turn
    blocks = _blocks()
    items = [bytes(memoryview(blocks[number % len(blocks)])) for number in range(count)]
    expected = [_packed_sizes()[number % len(blocks)] for number in range(count)]
    return Work(chores.packed_size, items, equals(expected))


@cache
def _blocks() -> list[bytes]:
    """Return a few blocks of 1 MB that can be compressed, but not too easily."""
    chance = random.Random(3)
    words = [chance.randbytes(chance.randint(3, 9)) for _ in range(4_000)]
    return [b" ".join(chance.choices(words, k=150_000))[:1_000_000] for _ in range(5)]


@cache
def _packed_sizes() -> list[int]:
    return [chores.packed_size(block) for block in _blocks()]


def products(ground: Ground, count: int, turn: int) -> Work:
    del ground
    expected = [float(chores.MATRIX_ROWS * (turn + number)) for number in range(count)]
    return Work(chores.product, range(turn, turn + count), equals(expected))


# --- Large data --------------------------------------------------------------------------


def arrays_in(ground: Ground, count: int, turn: int) -> Work:
    del ground
    arrays = [filled(turn + number) for number in range(count)]
    expected = [float(ARRAY_ITEMS * (2 * (turn + number) + 1)) for number in range(count)]
    return Work(chores.odd_total, arrays, equals(expected))


def arrays_out(ground: Ground, count: int, turn: int) -> Work:
    del ground
    starts = range(turn, turn + count)
    last = ARRAY_ITEMS - 1

    def is_right(arrays: list[Any]) -> bool:
        ends = [(array[0], array[last], len(array)) for array in arrays]
        return ends == [(start, start + last, ARRAY_ITEMS) for start in starts]

    return Work(chores.counted_up, starts, is_right)


# --- Waiting -----------------------------------------------------------------------------


def naps(fn: Callable[[float], Any]) -> Make:
    def make(ground: Ground, count: int, turn: int) -> Work:
        del ground, turn
        return Work(fn, [NAP_S] * count, equals([NAP_S] * count))

    return make


def downloads(ground: Ground, count: int, turn: int) -> Work:
    import http.client  # noqa: F401  as a program would that downloads something

    del turn
    fn = partial(chores.download, ground.port)
    return Work(fn, range(count), equals([PAGE_NBYTES] * count))


def mixed(ground: Ground, count: int, turn: int) -> Work:
    del turn
    loops = [ground.loops(0.001)] * count
    return Work(partial(chores.nap_and_burn, 0.004), loops, equals(list(map(burnt, loops))))


def files(ground: Ground, count: int, turn: int) -> Work:
    del turn
    numbers = [number % FILES for number in range(count)]
    paths = [f"{ground.folder}/{number}.txt" for number in numbers]
    return Work(chores.lines_in, paths, equals([number + 1 for number in numbers]))


# --- All of them -------------------------------------------------------------------------

HOLDS_GIL = "it computes in Python, which one thread at a time can do"
RELEASES_GIL = "C code releases the GIL, and threads have the data at hand"
MANY = (32, 8)

_ALL = (
    Workload("10 us of Python", burning(1e-5), (150_000, 20_000), ("processes",),
             f"{HOLDS_GIL}; sent in large chunks, it costs little", chunksizes=(250, 2_500)),
    Workload("1 ms of Python", burning(1e-3), (1_500, 300), ("processes",),
             f"{HOLDS_GIL}", chunksizes=(8, 32)),
    Workload("100 ms of Python", burning(0.1), (40, 6), ("processes",),
             f"{HOLDS_GIL}", chunksizes=(1,)),
    Workload("skewed durations", skewed, (750, 150), ("processes",),
             f"{HOLDS_GIL}", chunksizes=(1, 8)),
    Workload("20 items of 25 ms", burning(0.025), (20, 20), ("processes",),
             f"{HOLDS_GIL}, and half of it is more than workers cost", chunksizes=(1,)),
    Workload("slow ones among the first", slow_among_first, (800, 200), ("processes",),
             f"{HOLDS_GIL}, however long", chunksizes=(4,)),
    Workload("a generator", generated, (1_500, 300), ("processes",),
             f"{HOLDS_GIL}", chunksizes=(8, 32)),
    Workload("tiny tasks", squares, (3_000_000, 500_000), ("serial",),
             "to send a task costs more than to do it", chunksizes=(20_000,)),
    Workload("JSON", documents, (2_500, 500), ("processes",),
             "the parser holds the GIL, and takes longer than sending the text",
             chunksizes=(8, 64)),
    Workload("a heavy import", importing, (700, 200), ("processes",),
             f"{HOLDS_GIL}; each worker imports the module once", chunksizes=(8, 32)),
    Workload("numpy sorting", sorting, (200, 40), ("threads",),
             RELEASES_GIL, chunksizes=(1, 8)),
    Workload("zlib", packing, (60, 12), ("threads",),
             RELEASES_GIL, chunksizes=(1, 4)),
    Workload("BLAS", products, (600, 100), ("serial", "threads", "processes"),
             "a product uses all CPUs by itself, unless it is limited to one",
             chunksizes=(8, 32)),
    Workload("arrays of 8 MB in", arrays_in, (100, 20), ("threads",),
             RELEASES_GIL, chunksizes=(1,)),
    Workload("arrays of 8 MB out", arrays_out, (100, 20), ("threads",),
             "C code releases the GIL, and threads need not carry the arrays", chunksizes=(1,)),
    Workload("reading files", files, (30_000, 5_000), ("processes",),
             "the files are in memory, and system calls are made in Python",
             threads=(2, 8), chunksizes=(50, 500)),
    Workload("sleeps of 10 ms", naps(nap), (1_000, 160), ("threads",),
             "it waits, and threads wait together", MANY, (16,), (1,)),
    Workload("downloads", downloads, (400, 60), ("threads",),
             "it waits, and threads wait together", MANY, (16,), (1,)),
    Workload("waiting and computing", mixed, (500, 100), ("threads", "processes"),
             "it mostly waits; more processes than CPUs wait and compute together",
             MANY, (8, 2), (1,)),
    Workload("coroutines of 10 ms", naps(doze), (1_000, 200), ("asyncio",),
             "coroutines need an event loop", is_async=True),
)  # fmt: skip
WORKLOADS = {workload.name: workload for workload in _ALL}
