"""Random programs: maps of tasks that behave well or badly, and what must come of each.

What a task did is written to a file that outlives its process: one line for each time that
it was begun. So tries are counted across deaths, and nothing runs unseen.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import plait

LOGGER = logging.getLogger("tests.properties")

# What every kind of worker survives, and what only a process does.
HARMLESS = ("value", "sleeps", "prints", "logs")
GUILTY = ("raises", "sys.exit", "cannot be pickled", "fails first")
DEADLY = ("os._exit", "SIGKILL", "dies first")


@dataclass(frozen=True)
class Item:
    """A task: how it behaves, and the file in which it notes that it was begun.

    ``count``: how many tries fail before one succeeds, where some do first.
    """

    log: str
    index: int
    kind: str
    count: int


class Broken(Exception):
    """Needs two arguments, so pickle alone could not carry it."""

    def __init__(self, index: int, text: str) -> None:
        super().__init__(text)
        self.index = index


def begin(item: Item) -> int:
    """Note a try, and return which one it is, from 1."""
    line = b"%d\n" % item.index
    fd = os.open(item.log, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line)
        return os.pread(fd, 1 << 20, 0).split(b"\n").count(line[:-1])
    finally:
        os.close(fd)


def begun(log: Path) -> Counter[int]:
    """Return how often each task was begun."""
    return Counter(map(int, log.read_text().split())) if log.exists() else Counter()


def perform(item: Item) -> Any:
    """Do what the item says."""
    tries = begin(item)
    kind = item.kind
    if kind == "sleeps":
        time.sleep(item.count / 1000)
    if kind == "prints":
        print(f"<{item.log} {item.index}>\n", end="")
    if kind == "logs":
        LOGGER.warning("<%s %d>", item.log, item.index)
    if kind == "raises" or (kind == "fails first" and tries <= item.count):
        raise Broken(item.index, f"try {tries}")
    if kind == "sys.exit":
        sys.exit(item.index)
    if kind == "os._exit":
        os._exit(6)
    if kind == "SIGKILL" or (kind == "dies first" and tries <= item.count):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "cannot be pickled":
        return threading.Lock()
    return item.index**2


async def perform_async(item: Item) -> Any:
    """Do the same in a coroutine."""
    await asyncio.sleep(item.count / 1000 if item.kind == "sleeps" else 0)
    return perform(replace(item, kind="value")) if item.kind == "sleeps" else perform(item)


ERRORS: dict[str, type[BaseException]] = {
    "raises": Broken,
    "fails first": Broken,
    "sys.exit": SystemExit,
    "os._exit": plait.WorkerDied,
    "SIGKILL": plait.WorkerDied,
    "dies first": plait.WorkerDied,
    "cannot be pickled": plait.NotPicklable,
}
ONCE = ("sys.exit", "cannot be pickled")  # is not tried again


@dataclass(frozen=True)
class Fate:
    """What must become of an item: at which try it ends, and whether well."""

    is_ok: bool
    attempt: int


def fate(item: Item, retries: int, *, is_process: bool) -> Fate:
    """Say it before the run."""
    kind = item.kind
    if kind in HARMLESS or (kind == "cannot be pickled" and not is_process):
        return Fate(is_ok=True, attempt=1)
    if kind in ONCE:
        return Fate(is_ok=False, attempt=1)
    if kind in ("fails first", "dies first") and item.count <= retries:
        return Fate(is_ok=True, attempt=item.count + 1)
    return Fate(is_ok=False, attempt=retries + 1)


def check_error(item: Item, error: BaseException | None) -> None:
    """Assert that this is an error which the item may end with."""
    assert item.kind in ERRORS, (item, error)
    assert type(error) is ERRORS[item.kind], (item, error)
    if isinstance(error, Broken):
        assert error.index == item.index
    elif isinstance(error, SystemExit):
        assert error.code == item.index
    elif isinstance(error, plait.WorkerDied):
        is_exit = item.kind == "os._exit"
        assert (error.exitcode, error.signal) == ((6, None) if is_exit else (None, signal.SIGKILL))


def check_value(item: Item, value: Any) -> None:
    """Assert that this is the value of the item."""
    if item.kind == "cannot be pickled":
        assert isinstance(value, type(threading.Lock()))
    else:
        assert value == item.index**2


def check_outcome(outcome: plait.Outcome, items: list[Item]) -> None:
    """Assert what holds for every outcome, of a run that was ended early, too."""
    item = items[outcome.index]
    assert outcome.item == item
    assert len(outcome.earlier) == outcome.attempt - 1
    for attempt in outcome.earlier:
        check_error(item, attempt.error)
    if outcome.ok:
        check_value(item, outcome.value)
    elif not isinstance(outcome.error, asyncio.CancelledError):
        check_error(item, outcome.error)
        assert outcome.value is None
        if isinstance(outcome.error, plait.TaskError):
            told = (outcome.error.index, outcome.error.attempt)
            assert told == (outcome.index, outcome.attempt)


def check_fate(outcome: plait.Outcome, expected: Fate, *, is_exact: bool) -> None:
    """Assert that an item of a run that went to its end ended as it must.

    Not exact is a run on processes where the results of tiny tasks may be lost with their
    worker: they run again, which is no new try of plait's, but one for the task.
    """
    is_counting = outcome.item.kind in ("fails first", "dies first")
    if is_counting and not is_exact:
        assert outcome.ok or not expected.is_ok
        assert outcome.attempt <= expected.attempt
    else:
        assert (outcome.ok, outcome.attempt) == (expected.is_ok, expected.attempt), outcome


def most_at_once(outcomes: list[plait.Outcome]) -> int:
    """Return how many tasks ran at the same time, of those whose end is known for sure."""
    changes: list[tuple[float, int]] = []
    for outcome in outcomes:
        if not isinstance(outcome.error, plait.TaskError):
            changes += [(outcome.started, 1), (outcome.started + outcome.seconds - 1e-7, -1)]
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
