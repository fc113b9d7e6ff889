"""Random calls over tasks of uneven length, compared with the plain loop.

A call is drawn whole: tasks (how long, how, which fail), the form of the input, the function of
plait's, its options; and what is forced on its way: that the plan changes after so many tasks,
that a helper goes on beside a certain task. What each task did is counted in a file, across
processes. ``check`` runs a call and asserts that all of it is as in the loop.

    python -m tests.properties.uneven SEED                      one call
    python -m tests.properties.uneven SEED --count N --natural  many, each in a process of its own
    python -m tests.properties.uneven SEED --count N --here --busy 4    many, on a busy machine
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import hashlib
import itertools
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import plait
from plait import beside, quick, runs
from plait.model import Sample
from plait.pilot import Pilot
from plait.sentinel import Watch

LIMIT_S = 60.0
BLOB = bytes(200_000)
WAYS = ("spin", "sleep", "C", "nothing")
ROADS = (
    "map",
    "map unordered",
    "starmap",
    "imap",
    "imap unordered",
    "run",
    "run ordered",
    "amap",
    "arun",
    "Executor.map",
)
FORMS = ("list", "range", "tuple", "generator", "array", "endless", "two")
BACKENDS = ("serial", "threads", "processes")


@dataclass(frozen=True)
class Task:
    """What a task does: for so many seconds, in some way; its first ``failures`` tries fail."""

    seconds: float
    way: str = "spin"  # "sleep", "C", "nothing"
    failures: int = 0


@dataclass(frozen=True)
class Call:
    """One call, whole.

    Attributes:
        road: the function of plait's.
        form: of the input.
        tasks: what they do.
        options: of the call.
        is_plain: the function is one in Python, as a quick start wants it.
        changes: after how many tasks, in all, the plan changes; and to which backends, in turn.
        helped: beside which task a helper goes on, and with which backend.
        switch_s: the switch interval.
    """

    road: str
    form: str
    tasks: tuple[Task, ...]
    options: dict[str, Any] = field(default_factory=dict)
    is_plain: bool = True
    changes: tuple[tuple[int, str], ...] = ()
    helped: tuple[int, str] | None = None
    switch_s: float = 0.005


class Failed(Exception):
    """What a task raises: its number and its try."""


# --- In the tasks ------------------------------------------------------------------------------


class Work:
    """The function of a call: does what the task of an item says, and counts that."""

    def __init__(self, log: str, tasks: tuple[Task, ...]) -> None:
        self.log = log
        self.tasks = tasks

    def __call__(self, item: Any, *_: Any) -> int:
        number = int(item)
        task = self.tasks[number % len(self.tasks)]
        tries = self._begin(number) if self.log else 1
        if forced is not None:
            forced.hear_of(number)
        until = time.perf_counter() + task.seconds
        if task.way == "sleep":
            time.sleep(task.seconds)
        while task.way == "spin" and time.perf_counter() < until:
            pass
        while task.way == "C" and time.perf_counter() < until:
            hashlib.sha256(BLOB)
        if tries <= task.failures:
            raise Failed(number, tries)
        return 3 * number + 1

    def _begin(self, number: int) -> int:
        """Note a try; return which one it is, from 1, where that matters."""
        fd = os.open(self.log, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            os.write(fd, b"%d\n" % number)
            if not self.tasks[number % len(self.tasks)].failures:
                return 1
            return os.pread(fd, 1 << 20, 0).split(b"\n").count(b"%d" % number)
        finally:
            os.close(fd)


# --- What is forced ----------------------------------------------------------------------------


class Forced:
    """Stands in the place of the watchdog: it is late when a certain task says so."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self._late: Callable[[], object] | None = None
        self._changes = list(call.changes)
        self._has_fired = False
        self._settled = threading.Event()  # the helper has the run, or will not have it
        self._helpers: list[threading.Thread] = []

    # As the watchdog (sentinel.Sentinel) has them.

    def arm(self, on_late: Callable[[], object], *_: Any) -> Watch:
        self._late = on_late
        return [(0.0, on_late)]

    def disarm(self, watch: Watch | None) -> None:
        if watch is not None and self._late is watch[0][1]:
            self._late = None

    def hear_of(self, number: int) -> None:
        """Have a helper start now, if this is the task, and wait until it has the run, or not."""
        helped, late = self.call.helped, self._late
        if helped is None or late is None or number != helped[0] or self._has_fired:
            return
        self._has_fired = True
        time.sleep(quick.BUDGET_S)  # before, the thread of this task would begin the next one
        late()
        self._settled.wait(10)

    def plan(self, choose: Callable[..., plait.Plan], question: Any, how: Any) -> plait.Plan:
        """Decide for a certain backend, where one is asked for."""
        name = None
        if question.sample is CHANGE:
            name = self._changes.pop(0)[1]
        elif self.call.helped is not None and self._is_helper():
            name = self.call.helped[1]
        elif self._changes and self._changes[0][0] == 0:
            name = self._changes.pop(0)[1]
        if name is None:
            return choose(question, **how)
        workers = question.options.max_workers or 2
        options = replace(question.options, backend=name, max_workers=workers, initializer=None)
        return choose(question._replace(options=options, sample=None), **how)

    @staticmethod
    def _is_helper() -> bool:
        name = threading.current_thread().name
        return name == "plait-beside" or name.startswith("Dummy")

    def is_due(self, tasks: int) -> bool:
        return bool(self._changes) and tasks >= self._changes[0][0]

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Put all of it in its place, and back."""
        go, drive = beside.Beside._go, beside.Beside._drive
        module: Any = runs
        choose, pilot = module.decide, module.Pilot
        usual = {place: place.sentinel for place in (quick, beside)}
        look_s = beside.LOOK_S, beside.LOOK_ON_S
        seam = self

        class ForcedPilot(Pilot):
            """Changes its mind when it is told to."""

            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.done = 0

            def learn(self, batch: Any, now: float, *args: Any, **given: Any) -> None:
                super().learn(batch, now, *args, **given)
                self.done += sum(len(finished.values) for finished in batch)

            def is_due(self, now: float) -> bool:
                return not self.is_leaving and (seam.is_due(self.done) or super().is_due(now))

            def look_again(self, *args: Any) -> Sample | None:
                return CHANGE if seam.is_due(self.done) else super().look_again(*args)

            def is_worth(self, plan: plait.Plan) -> bool:
                return plan.sample is None or super().is_worth(plan)

        def forced_go(self: beside.Beside, task: beside.LongTask) -> None:
            try:
                go(self, task)
            finally:
                seam._settled.set()

        def forced_drive(self: beside.Beside) -> None:
            seam._settled.set()
            drive(self)

        try:
            module.decide = lambda question, **how: self.plan(choose, question, how)
            module.Pilot = ForcedPilot
            beside.Beside._go = forced_go  # type: ignore[method-assign]
            beside.Beside._drive = forced_drive  # type: ignore[method-assign]
            if self.call.helped is not None:
                quick.sentinel = beside.sentinel = self  # type: ignore[attr-defined,assignment]
                beside.LOOK_S = beside.LOOK_ON_S = 0.0
            yield
        finally:
            module.decide, module.Pilot = choose, pilot
            beside.Beside._go, beside.Beside._drive = go, drive  # type: ignore[method-assign]
            beside.LOOK_S, beside.LOOK_ON_S = look_s
            for place, found in usual.items():
                place.sentinel = found  # type: ignore[attr-defined]


CHANGE = Sample(1, 0.001, 1.0)
forced: Forced | None = None  # in the process of the caller only


# --- The call, and the loop's answer -----------------------------------------------------------


def make_input(form: str, count: int) -> tuple[Any, ...]:
    """Return the iterables: the numbers of the tasks, in some form."""
    numbers = range(count)
    forms: dict[str, Callable[[], tuple[Any, ...]]] = {
        "list": lambda: (list(numbers),),
        "range": lambda: (numbers,),
        "tuple": lambda: (tuple(numbers),),
        "generator": lambda: ((number for number in numbers),),
        "array": lambda: (np.arange(count),),
        "endless": lambda: (itertools.count(),),
        "two": lambda: (list(numbers), list(numbers)),
    }
    return forms[form]()


Told = list[tuple[int, int | BaseException]]  # number and value or error, as they came


def run_road(call: Call, work: Work) -> Told:
    """Do the call; the values of those that do not say their number tell it."""
    count = len(call.tasks)
    fn: Any = (lambda *items: work(*items)) if call.is_plain else work
    items, options, road = make_input(call.form, count), call.options, call.road
    if road == "starmap":
        tuples = (
            list(zip(*items, strict=False))
            if call.form != "endless"
            else [(n,) for n in range(count)]
        )
        return list(enumerate(plait.starmap(fn, tuples, **options)))
    if road == "map":
        return list(enumerate(plait.map(fn, *finite(items, count), **options)))
    if road == "map unordered":
        return by_value(plait.map(fn, *finite(items, count), ordered=False, **options))
    if road == "imap":
        values = itertools.islice(plait.imap(fn, *items, **options), count)
        return list(enumerate(values))
    if road == "imap unordered":
        return by_value(plait.imap(fn, *finite(items, count), ordered=False, **options))
    if road in ("run", "run ordered"):
        run = plait.run(fn, *finite(items, count), ordered=road != "run", **options)
        return [(o.index, o.value if o.ok else o.error) for o in run]  # type: ignore[misc]
    if road == "Executor.map":
        with plait.Executor(2, backend="threads") as executor:
            return list(enumerate(executor.map(fn, *finite(items, count))))
    return asyncio.run(run_async(call, fn, finite(items, count)))


async def run_async(call: Call, fn: Any, items: tuple[Any, ...]) -> Told:
    if call.road == "amap":
        return list(enumerate(await plait.amap(fn, *items, **call.options)))
    return [
        (o.index, o.value if o.ok else o.error)  # type: ignore[misc]
        async for o in plait.arun(fn, *items, **call.options)
    ]


def finite(items: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """Return iterables that end, for a call that reads to the end."""
    if isinstance(items[0], itertools.count):
        return (itertools.islice(items[0], count),)
    return items


def by_value(values: Any) -> Told:
    """Return numbers with values, where the order says nothing."""
    return [
        (value.args[0] if isinstance(value, Failed) else (value - 1) // 3, value)
        for value in values
    ]


def check(call: Call) -> None:
    """Do a call and assert that it gives what a plain loop does, and does as much."""
    global forced
    usual_s = sys.getswitchinterval()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        work = Work(str(log), call.tasks)
        forced = Forced(call)
        sys.setswitchinterval(call.switch_s)
        try:
            with forced.in_force():
                told, error = do(call, work)
        finally:
            forced = None
            sys.setswitchinterval(usual_s)
        tries = Counter(map(int, log.read_text().split())) if log.exists() else Counter()
    check_told(call, told, error)
    check_tries(call, tries, error)


def do(call: Call, work: Work) -> tuple[Told, BaseException | None]:
    """Return what was told, and what was raised; then what came before it counts as told."""
    try:
        return run_road(call, work), None
    except (Failed, ExceptionGroup) as error:
        made = getattr(error, "plait_run", None)
        kept = made.outcomes if made is not None else []
        return [(o.index, o.value if o.ok else o.error) for o in kept], error


def failing(call: Call) -> dict[int, int]:
    """Return the numbers of the tasks that fail for good, with the tries that they have."""
    retries = call.options.get("retries", 0) if call.road != "Executor.map" else 0
    return {
        number: retries + 1 for number, task in enumerate(call.tasks) if task.failures > retries
    }


def check_told(call: Call, told: Told, error: BaseException | None) -> None:
    bad, count = failing(call), len(call.tasks)
    is_ended = isinstance(error, Failed)  # then tries that were left are given up
    for number, value in told:
        tries = bad.get(number % count)
        if isinstance(value, Failed):
            assert is_ended or value.args == (number, tries), (number, value)
            assert value.args[0] == number
        else:
            assert tries is None, (number, value)
            assert value == 3 * number + 1, (number, value)
    numbers = [number for number, _ in told]
    assert len(set(numbers)) == len(numbers), f"told twice: {numbers}"
    on_error = call.options.get("on_error", "raise")
    if call.road in ("run", "run ordered", "arun"):
        on_error = call.options.get("on_error", "return")
        assert error is None
        if bad and on_error == "raise":  # it ends the reading
            assert set(numbers) & set(bad)
            return
        on_error = "return"
    if not bad or on_error == "return":
        assert error is None, error
        assert sorted(numbers) == list(range(count)), numbers
        if "unordered" not in call.road and call.road not in ("run", "arun"):
            assert numbers == sorted(numbers)
    elif on_error == "raise":
        assert isinstance(error, Failed), (error, numbers)
        assert (error.args[0] % count, error.args[1]) in bad.items()
    else:
        assert isinstance(error, ExceptionGroup), (error, numbers)
        found = [one.args for one in error.exceptions]
        assert sorted(found) == sorted(bad.items()), found


def check_tries(call: Call, tries: Counter[int], error: BaseException | None) -> None:
    """Assert that each task was begun as often as in a loop, or fewer, if the call was ended."""
    bad = failing(call)
    is_whole = error is None or isinstance(error, ExceptionGroup)
    if bad and call.options.get("on_error") == "raise":
        is_whole = False
    for number, task in enumerate(call.tasks):
        expected = bad.get(number, task.failures + 1)
        if is_whole:
            assert tries[number] == expected, (number, tries[number], expected)
        else:
            assert tries[number] <= expected, (number, tries[number], expected)
    if call.form != "endless":  # else it reads ahead
        assert all(number < len(call.tasks) for number in tries)


# --- Drawing one -------------------------------------------------------------------------------


def draw_call(draw: random.Random) -> Call:
    """Draw a call: most tasks alike, from 10 us to 3 ms, one to four slow ones among the first."""
    count = draw.choice((0, 1, 2, 5, 20, 60, 150))
    base_s = 10 ** draw.uniform(-5, -2.5)
    count = min(count, max(2, int(0.15 / base_s)))
    ways = draw.choice(
        (("spin",), ("sleep",), ("C",), ("nothing",), ("spin", "sleep", "C", "nothing"))
    )
    tasks = [Task(base_s * draw.choice((0.5, 1, 1, 3)), draw.choice(ways)) for _ in range(count)]
    for _ in range(draw.choice((0, 1, 1, 2, 4)) if count else 0):
        place = draw.randrange(min(count, 40))
        tasks[place] = Task(draw.uniform(0.02, 0.06), draw.choice(("spin", "sleep", "C")))
    road = draw.choice((*ROADS, *("map",) * 6))  # the one that most people use
    options: dict[str, Any] = {}
    if road != "Executor.map" and draw.random() < 0.5:
        options = draw_options(draw, road)
    if draw.random() < 0.3 and count:
        for place in draw.sample(range(count), min(count, draw.randint(1, 3))):
            tasks[place] = replace(tasks[place], failures=draw.choice((1, 1, 2, 99)))
    changes = []
    if draw.random() < 0.5:
        backends = draw.sample(BACKENDS, draw.randint(1, 3))
        ats = sorted(draw.choice((0, 1, 3, draw.randrange(max(count, 1)))) for _ in backends)
        changes = list(zip(ats, backends, strict=True))
    helped = None
    if draw.random() < 0.6 and count:
        place = draw.choice((0, 0, 1, 2, draw.randrange(12)))
        helped = (min(place, count - 1), draw.choice(BACKENDS[1:]))
    return Call(
        road,
        draw.choice(FORMS),
        tuple(tasks),
        options,
        draw.random() < 0.7,
        tuple(changes),
        helped,
        draw.choice((0.005, 0.005, 0.000_01)),
    )


def draw_options(draw: random.Random, road: str) -> dict[str, Any]:
    """Draw options that do not change what is to come of it."""
    wanted: dict[str, Callable[[], Any]] = {
        "on_error": lambda: draw.choice(("raise", "finish", "return")),
        "retries": lambda: draw.randrange(3),
        "task_timeout": lambda: 60.0,
        "max_workers": lambda: draw.randint(1, 3),
        "buffersize": lambda: draw.choice((1, 2, 7, 50)),
        "progress": lambda: False,
        "chunksize": lambda: draw.choice((1, 3, 10)),
    }
    names = draw.sample(sorted(wanted), draw.randint(1, 3))
    options = {name: wanted[name]() for name in names}
    if "retries" in options:
        options["backoff"] = draw.choice((0.0, 0.001))
    if road in ("imap", "imap unordered") and options.get("on_error") == "finish":
        options["on_error"] = "return"  # it leaves failed ones out
    return options


def draw_natural(draw: random.Random) -> Call:
    """Draw a call without options in which nothing is forced, as users write them."""
    count = draw.choice((60, 200, 400))
    base_s = 10 ** draw.uniform(-5, -2.7)
    ways = draw.choice((("spin",), ("sleep",), ("spin", "sleep")))
    tasks = [Task(base_s * draw.choice((0.5, 1, 2)), draw.choice(ways)) for _ in range(count)]
    for _ in range(draw.randint(1, 4)):
        tasks[draw.randrange(40)] = Task(draw.uniform(0.02, 0.12), draw.choice(ways))
    road = draw.choice(("map", "map", "map", "imap", "run", "amap"))
    form = draw.choice(("list", "range", "tuple", "generator"))
    return Call(road, form, tuple(tasks), is_plain=draw.random() < 0.8)


def run_many(first: int, count: int, *, is_natural: bool) -> list[int]:
    """Run calls, each in a process of its own; return the seeds of those that went wrong."""
    command = [sys.executable, "-m", "tests.properties.uneven"]
    command += ["--natural"] if is_natural else []
    bad = []
    for seed in range(first, first + count):
        try:
            done = subprocess.run([*command, str(seed)], timeout=25, check=False)
            is_bad = done.returncode != 0
        except subprocess.TimeoutExpired:
            is_bad = True
        if is_bad:
            bad.append(seed)
            print(f"seed {seed} went wrong", file=sys.stderr, flush=True)
        if (seed - first + 1) % 100 == 0:
            print(f"uneven: {seed - first + 1} of {count}, wrong: {bad}", flush=True)
    return bad


def run_here(first: int, count: int, *, is_natural: bool) -> list[int]:
    """Run calls in this process; one that takes more than LIMIT_S ends it, and says where."""
    from tests.properties import uneven  # by that name workers know it

    bad = []
    for seed in range(first, first + count):
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        draw = random.Random(seed)
        try:
            uneven.check(uneven.draw_natural(draw) if is_natural else uneven.draw_call(draw))
        except Exception:
            bad.append(seed)
            print(f"seed {seed} went wrong", file=sys.stderr, flush=True)
            traceback.print_exc()
        if (seed - first + 1) % 1000 == 0:
            print(f"uneven: {seed - first + 1} of {count}, wrong: {bad}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    return bad


@contextlib.contextmanager
def busy_machine(loops: int) -> Iterator[None]:
    """Have so many programs compute meanwhile."""
    command = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(command) for _ in range(loops)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int, help="of the call, or of the first one")
    parser.add_argument("--count", type=int, help="run so many, each in a process of its own")
    parser.add_argument("--here", action="store_true", help="run them in one process")
    parser.add_argument("--busy", type=int, default=0, help="beside so many busy loops")
    parser.add_argument("--natural", action="store_true", help="no options, and nothing forced")
    given = parser.parse_args()
    run = run_here if given.here or given.count is None else run_many
    with busy_machine(given.busy):
        bad = run(given.seed, given.count or 1, is_natural=given.natural)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
