"""Minutes of random maps under random faults: ``make soak``, or ``make soak SECONDS=60``.

Some threads run maps of every kind on every kind of worker, with tasks that raise, crash,
hang and take memory, while a killer sends SIGKILL to workers, and now and then to the server
that starts them. Every item must have exactly one outcome, the right one; a task may also be
lost with a worker that the killer killed, and with no other. At the end the memory of this
process must not have grown, and no process and no file may be left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psutil

import plait
from tests.conftest import PROCESS_WAYS, WAYS, children, close_all, files, wait_gone

DRIVERS = 2
LINE_S = 10.0
WARM_UP_SHARE = 0.25
MOST_GROWTH_BYTES = 30_000_000
MOST_ROUND_S = 60.0  # a round that takes longer hangs
TASK_TIMEOUT_S = 0.4
LIMIT_BYTES = 150_000_000
FORK_SERVER = "plait.backends.server"

# --- The tasks -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A task: what it does, and the file in which it notes that it was begun."""

    log: str
    index: int
    kind: str


INNOCENT = ("value", "sleeps", "computes", "large")
GUILTY = ("raises", "sys.exit")
DEADLY = ("os._exit", "SIGKILL", "cannot be pickled")
ONCE = ("sys.exit", "cannot be pickled")  # is not tried again

ERRORS: dict[str, type[BaseException]] = {
    "raises": ZeroDivisionError,
    "sys.exit": SystemExit,
    "os._exit": plait.WorkerDied,
    "SIGKILL": plait.WorkerDied,
    "cannot be pickled": plait.NotPicklable,
    "hangs": plait.TaskTimeout,
    "memory": plait.MemoryLimitExceeded,
}


def note(item: Item) -> None:
    fd = os.open(item.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, b"%d\n" % item.index)
    finally:
        os.close(fd)


def blow_memory() -> NoReturn:
    kept = []
    for _ in range(30):  # then no more: the machine is to live
        kept.append(b"x" * 10_000_000)
        time.sleep(0.002)
    while True:
        time.sleep(60)


def perform(item: Item) -> Any:
    """Do what the item says."""
    note(item)
    kind = item.kind
    if kind == "sleeps":
        time.sleep(0.003)
    if kind == "computes":
        sum(range(50_000))
    if kind == "large":
        return b"x" * 70_000
    if kind == "raises":
        raise ZeroDivisionError(item.index)
    if kind == "sys.exit":
        sys.exit(item.index)
    if kind == "os._exit":
        os._exit(6)
    if kind == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "cannot be pickled":
        return threading.Lock()
    if kind == "hangs":  # for ever, beside its limit; but a thread is to end one day
        time.sleep(600 if threading.current_thread() is threading.main_thread() else 2)
    if kind == "memory":
        blow_memory()
    return item.index**2


async def perform_async(item: Item) -> Any:
    """Do the same in a coroutine."""
    await asyncio.sleep(600 if item.kind == "hangs" else 0.001)
    return perform(item)


# --- Who kills -------------------------------------------------------------------------------


def servers() -> set[int]:
    """Return the fork servers of this process."""
    return {pid for pid in child_pids(os.getpid()) if FORK_SERVER in command(pid)}


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def child_pids(pid: int) -> list[int]:
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children()]
    return []


class Killer(threading.Thread):
    """Kills workers, and sometimes their server, at random times."""

    def __init__(self, seed: int) -> None:
        super().__init__(name="killer", daemon=True)
        self.killed: set[int] = set()  # workers; they are noted before they are killed
        self.strikes = 0
        self.servers_killed = 0
        self.has_to_stop = threading.Event()
        self._random = random.Random(seed)

    def run(self) -> None:
        while not self.has_to_stop.wait(self._random.uniform(0.2, 1.5)):
            self._strike()

    def _strike(self) -> None:
        for server in servers():
            workers = child_pids(server)
            if self._random.random() < 0.04:
                self.servers_killed += 1
                self._kill(server)
            elif workers:
                victim = self._random.choice(workers)
                self.killed.add(victim)
                self.strikes += 1
                self._kill(victim)

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def is_to_blame(self, error: plait.WorkerDied) -> bool:
        """Whether the death of a worker may be one of these kills."""
        if error.pid in self.killed:
            return error.signal == signal.SIGKILL or error.signal is error.exitcode is None
        return bool(self.servers_killed) and error.signal is error.exitcode is None


# --- One round -------------------------------------------------------------------------------


class Wrong(Exception):
    """Something that plait promises is not so."""


def claim(fact: object, text: str) -> None:
    if not fact:
        raise Wrong(text)


@dataclass
class Round:
    """One call: its options and items, and how it is used."""

    way: str
    use: str
    options: dict[str, Any]
    items: list[Item]
    stop_after: int
    killer: Killer
    counts: Counter[str] = field(default_factory=Counter)
    strikes_before: int = 0

    @classmethod
    def draw(cls, draw: random.Random, log: str, killer: Killer) -> Round:
        way = draw.choice(("serial", "threads", "asyncio", "server", "server", "spawn"))
        is_process = way in PROCESS_WAYS
        options: dict[str, Any] = {
            **WAYS[way],
            "max_workers": 2,
            "chunksize": draw.choice((1, 2, 5, "auto")),
            "retries": draw.choice((0, 0, 1, 3)),
            "backoff": draw.choice((0.0, 0.02)),
            "ordered": draw.random() < 0.5,
        }
        kinds = [*GUILTY, *(DEADLY if is_process else ())]
        if way != "serial" and draw.random() < 0.3:
            options["task_timeout"] = TASK_TIMEOUT_S
            kinds.append("hangs")
        elif is_process and draw.random() < 0.2:
            options["memory_limit"] = LIMIT_BYTES
            kinds.append("memory")
        if is_process:
            options["max_tasks_per_child"] = draw.choice((None, None, 7))
        share = draw.choice((0.0, 0.05, 0.2))
        most = 40 if way == "spawn" else 150
        items = [
            Item(log, index, draw.choice(kinds if draw.random() < share else INNOCENT))
            for index in range(draw.randrange(most))
        ]
        if options.keys() & {"task_timeout", "memory_limit"}:  # each of these takes its time
            items = items[:30]
        uses = ("run", "run", "imap", "return", "finish", "raise", "cancel", "close", "executor")
        return cls(way, draw.choice(uses), options, items, draw.randrange(30), killer)

    def __str__(self) -> str:
        kinds = dict(Counter(item.kind for item in self.items))
        return f"{self.use} on {self.way} of {kinds} with {self.options}"

    def run(self) -> None:
        self.strikes_before = self.killer.strikes + self.killer.servers_killed
        fn: Any = perform_async if self.way == "asyncio" else perform
        try:
            getattr(self, f"_{self.use}")(fn)
        except plait.WorkerStartError:
            # Three workers that die before they are ready are called a failure.
            strikes = self.killer.strikes + self.killer.servers_killed - self.strikes_before
            claim(strikes >= 3 or self.killer.servers_killed, "workers could not be started")
            self.counts["refused"] += 1
        self.counts["rounds"] += 1

    # --- Ways of use -------------------------------------------------------------------

    def _run(self, fn: Any) -> None:
        run = plait.run(fn, self.items, **self.options)
        outcomes = list(run)
        self._check_all(outcomes)
        claim(run.report.tasks == len(self.items), "the report counts other tasks")
        tries = sum(len(outcome.earlier) for outcome in outcomes)
        claim(run.report.retries == tries, "the report counts other tries")

    def _cancel(self, fn: Any) -> None:
        run = plait.run(fn, iter(self.items), **self.options)
        outcomes = []
        for outcome in run:
            outcomes.append(outcome)
            if len(outcomes) > self.stop_after:
                break
        indices = [outcome.index for outcome in outcomes]
        claim(len(set(indices)) == len(indices), "an item has two outcomes")
        for outcome in outcomes:
            self._check(outcome)
        self.counts["cancelled"] += 1

    def _imap(self, fn: Any) -> None:
        values = list(plait.imap(fn, self.items, on_error="return", **self.options))
        self._check_values(values)

    def _close(self, fn: Any) -> None:
        values = plait.imap(fn, iter(self.items), on_error="return", **self.options)
        got = [value for value, _ in zip(values, range(self.stop_after), strict=False)]
        values.close()  # type: ignore[attr-defined]
        if self.options["ordered"]:
            for item, value in zip(self.items, got, strict=False):
                self._check_value(item, value)
        self.counts["cancelled"] += 1

    def _return(self, fn: Any) -> None:
        self._check_values(plait.map(fn, self.items, on_error="return", **self.options))

    def _finish(self, fn: Any) -> None:
        try:
            values = plait.map(fn, self.items, on_error="finish", **self.options)
        except BaseExceptionGroup as group:
            run: plait.Run = group.plait_run  # type: ignore[attr-defined]
            self._check_all(run.outcomes)
            failed = sum(not outcome.ok for outcome in run.outcomes)
            claim(len(group.exceptions) == failed, "the group has other errors")
        else:
            self._check_values(values)

    def _raise(self, fn: Any) -> None:
        try:
            values = plait.map(fn, self.items, **self.options)
        except (*ERRORS.values(),) as error:
            run: plait.Run = error.plait_run  # type: ignore[attr-defined]
            for outcome in run.outcomes:
                self._check(outcome)
        else:
            self._check_values(values)

    def _executor(self, fn: Any) -> None:
        names = ("max_workers", "max_tasks_per_child", "task_timeout", "memory_limit")
        options = {name: self.options[name] for name in names if name in self.options}
        items = self.items[:40]
        with plait.Executor(**WAYS[self.way], **options) as executor:
            futures: list[Future[Any]] = [executor.submit(fn, item) for item in items]
            cancelled = [future.cancel() for future in futures[self.stop_after :: 5]]
        for item, future in zip(items, futures, strict=True):
            claim(future.done(), "a future is pending after the shutdown")
            if not future.cancelled():
                error = future.exception()
                self._check_value(item, future.result() if error is None else error)
        claim(
            sum(future.cancelled() for future in futures) == sum(cancelled),
            "other futures are cancelled than those that said so",
        )
        self.counts["cancelled"] += sum(cancelled)

    # --- What must be so ---------------------------------------------------------------

    def _check_all(self, outcomes: list[plait.Outcome]) -> None:
        indices = sorted(outcome.index for outcome in outcomes)
        claim(indices == list(range(len(self.items))), f"the outcomes are those of {indices}")
        for outcome in outcomes:
            self._check(outcome)
            if outcome.error is not None and self.items[outcome.index].kind not in ONCE:
                is_last = outcome.attempt == self.options["retries"] + 1
                claim(is_last, f"it was given up too early: {outcome}")

    def _check(self, outcome: plait.Outcome) -> None:
        item = self.items[outcome.index]
        for attempt in outcome.earlier:
            self._check_error(item, attempt.error)
        claim(outcome.attempt == len(outcome.earlier) + 1, f"wrong attempt: {outcome}")
        self._check_value(item, outcome.value if outcome.ok else outcome.error)

    def _check_values(self, values: list[Any]) -> None:
        claim(len(values) == len(self.items), f"{len(values)} values of {len(self.items)}")
        if self.options["ordered"]:
            for item, value in zip(self.items, values, strict=True):
                self._check_value(item, value)

    def _check_value(self, item: Item, value: Any) -> None:
        self.counts["tasks"] += 1
        if isinstance(value, BaseException):
            self.counts["failed"] += 1
            self._check_error(item, value)
            return
        expected = b"x" * 70_000 if item.kind == "large" else item.index**2
        claim(item.kind in INNOCENT and value == expected, f"{item} returned {value!r:.99}")

    def _check_error(self, item: Item, error: BaseException) -> None:
        if type(error) is ERRORS.get(item.kind):
            return
        if isinstance(error, plait.WorkerDied) and self.killer.is_to_blame(error):
            self.counts["lost to the killer"] += 1
            return
        raise Wrong(f"{item} ended with {error!r}")


# --- The program -----------------------------------------------------------------------------


class Driver(threading.Thread):
    """Makes one round after the other."""

    def __init__(self, number: int, seed: int, folder: str, killer: Killer) -> None:
        super().__init__(name=f"driver-{number}", daemon=True)
        self.counts: Counter[str] = Counter()
        self.error: BaseException | None = None
        self.current: tuple[Round, float] | None = None
        self.has_to_stop = threading.Event()
        self._random = random.Random(f"{seed}/{number}")
        self._path = Path(folder) / f"driver-{number}"
        self._killer = killer

    def run(self) -> None:
        try:
            for log in self._logs():
                drawn = Round.draw(self._random, str(log), self._killer)
                self.current = (drawn, time.monotonic())
                drawn.run()
                self.counts.update(drawn.counts)
        except BaseException as error:
            self.error = error

    def _logs(self) -> Iterator[Path]:
        """Yield a file for each round; between two, assert that nothing of the first goes on."""
        number = 0
        while not self.has_to_stop.is_set():
            log = self._path.with_suffix(f".{number}")
            yield log
            before = log.stat().st_size if log.exists() else 0
            time.sleep(0.01)  # for what should not be there to show
            after = log.stat().st_size if log.exists() else 0
            claim(before == after, "a task was begun after its run was over")
            log.unlink(missing_ok=True)
            number += 1

    def stuck_in(self) -> Round | None:
        """Return the round that takes too long, if it does."""
        if self.is_alive() and self.current is not None:
            drawn, since = self.current
            if time.monotonic() - since > MOST_ROUND_S:
                return drawn
        return None


class Soak:
    """The drivers, the killer, and the books."""

    def __init__(self, seconds: float, seed: int, folder: str) -> None:
        self._seconds = seconds
        self._started = time.monotonic()
        self._files = files()
        self._killer = Killer(seed)
        self._drivers = [Driver(at, seed, folder, self._killer) for at in range(DRIVERS)]
        self._process = psutil.Process()
        self._warm_bytes = 0

    def run(self) -> str:
        """Return what was wrong, or nothing."""
        for thread in (self._killer, *self._drivers):
            thread.start()
        if wrong := self._watch():
            return wrong
        for driver in self._drivers:
            driver.has_to_stop.set()
        for driver in self._drivers:
            driver.join(MOST_ROUND_S)
        self._killer.has_to_stop.set()
        self._killer.join()
        return self._look() or self._check_leavings()

    def _watch(self) -> str:
        """Look on until time is up; return what went wrong meanwhile."""
        next_line = LINE_S
        while (elapsed := time.monotonic() - self._started) < self._seconds:
            time.sleep(0.25)
            if wrong := self._look():
                return wrong
            if elapsed < WARM_UP_SHARE * self._seconds:
                self._warm_bytes = max(self._warm_bytes, self._rss_bytes())
            if elapsed >= next_line:
                next_line += LINE_S
                print(self.line(), flush=True)
        return ""

    def _look(self) -> str:
        for driver in self._drivers:
            drawn = driver.current[0] if driver.current else None
            if driver.error is not None:
                return f"{driver.error!r}\nin {drawn}"
            if stuck := driver.stuck_in():
                faulthandler.dump_traceback(all_threads=True)
                return f"it hangs: {stuck}"
        return ""

    def _check_leavings(self) -> str:
        close_all()
        for thread in threading.enumerate():
            if thread.name.startswith("plait-thread"):  # abandoned, in a task that hangs
                thread.join(5)
        if left := wait_gone(children()):
            return f"processes are left: {[(pid, command(pid)) for pid in left]}"
        if more := files() - self._files:
            return f"files are left open: {sorted(more)}"
        gc.collect()
        growth = self._rss_bytes() - self._warm_bytes
        if growth > MOST_GROWTH_BYTES:
            return f"this process has grown by {growth / 1e6:.0f} MB since it was warm"
        return ""

    def _rss_bytes(self) -> int:
        return int(self._process.memory_info().rss)

    def line(self) -> str:
        counts: Counter[str] = Counter()
        for driver in self._drivers:
            counts.update(driver.counts)
        shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        killer = self._killer
        return (
            f"{time.monotonic() - self._started:4.0f} s: {shown}; killed: {killer.strikes} workers,"
            f" {killer.servers_killed} servers; {self._process.memory_info().rss / 1e6:.0f} MB"
            f" (warm: {self._warm_bytes / 1e6:.0f}), {len(children())} processes,"
            f" {len(files())} files, {threading.active_count()} threads"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    print(f"soak: {given.seconds:.0f} s with --seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(given.seconds, seed, folder)
        wrong = soak.run()
        print(soak.line())
        if wrong:
            print(f"soak: FAILED with --seed {seed}: {wrong}", flush=True)
            os._exit(1)  # what hangs is not waited for; the server ends what is left
    print("soak: all well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
