"""Random programs of submits, cancels and waits: each future ends once, and as it must."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plait
from tests.conftest import PROCESS_WAYS, WAYS, close_all
from tests.properties.conftest import IS_LONG, examples
from tests.properties.programs import (
    DEADLY,
    GUILTY,
    HARMLESS,
    Item,
    begin,
    begun,
    check_error,
    check_value,
    fate,
    perform,
    perform_async,
)

pytestmark = [
    pytest.mark.usefixtures("clean"),
    pytest.mark.timeout(110 if not IS_LONG else 3600),
]

GRACE_S = 0.25  # a task that was begun before it was cancelled ends before it slept so long


@dataclass(frozen=True)
class Step:
    """Submit a task of some kind, or cancel, or wait for, one that was submitted before."""

    verb: str  # a kind of task, "cancel" or "wait"
    number: int  # the count of the task; or whose future, counted from the latest


@dataclass(frozen=True)
class Program:
    """The steps of a program, and how it ends."""

    way: str
    pool: dict[str, Any]
    steps: tuple[Step, ...]
    cancels_futures: bool


def programs(*ways: str) -> st.SearchStrategy[Program]:
    def of_way(way: str) -> st.SearchStrategy[Program]:
        is_process = way in PROCESS_WAYS
        kinds = (*HARMLESS, *GUILTY, *(DEADLY if is_process else ()))
        verbs = st.one_of(st.sampled_from(kinds), st.sampled_from(("sleeps", "cancel", "wait")))
        pool: dict[str, st.SearchStrategy[Any]] = {"max_workers": st.integers(1, 3)}
        if is_process:
            pool["max_tasks_per_child"] = st.one_of(st.none(), st.integers(1, 4))
        return st.builds(
            Program,
            way=st.just(way),
            pool=st.fixed_dictionaries(pool),
            steps=st.lists(st.builds(Step, verbs, st.integers(1, 4)), max_size=16).map(tuple),
            cancels_futures=st.booleans(),
        )

    return st.sampled_from(ways).flatmap(of_way)


def conduct(program: Program) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        executor = plait.Executor(**WAYS[program.way], **program.pool)
        fn: Any = perform_async if program.way == "asyncio" else perform
        futures: list[tuple[Item, Future[Any]]] = []
        said_cancelled: set[int] = set()
        for step in program.steps:
            if step.verb not in ("cancel", "wait"):
                item = Item(str(log), len(futures), step.verb, step.number)
                futures.append((item, executor.submit(fn, item)))
            elif step.number <= len(futures):
                item, future = futures[-step.number]
                if step.verb == "cancel" and future.cancel():
                    said_cancelled.add(item.index)
                elif step.verb == "wait" and not future.cancelled():
                    future.exception(timeout=60)
        executor.shutdown(cancel_futures=program.cancels_futures)
        close_all()
        tries = begun(log)
        for item, future in futures:
            assert future.done()
            if item.index in said_cancelled:
                assert future.cancelled()
            check_future(item, future, is_process=program.way in PROCESS_WAYS)
            assert tries[item.index] <= 1  # nothing of an executor's is tried again
            assert tries[item.index] == 1 or future.cancelled()
        with pytest.raises(plait.PoolClosed):
            executor.submit(fn, None)


def check_future(item: Item, future: Future[Any], *, is_process: bool) -> None:
    """Assert that a future has the value or the error of its task, or was cancelled."""
    if future.cancelled():
        with pytest.raises(CancelledError):
            future.result()
        return
    expected = fate(item, 0, is_process=is_process)
    error = future.exception()
    assert (error is None) == expected.is_ok
    if error is None:
        check_value(item, future.result())
    else:
        check_error(item, error)


@examples(100)
@given(programs("serial", "threads", "asyncio"))
def test_executors_of_this_process(program: Program) -> None:
    conduct(program)


@examples(40)
@given(programs("server"))
def test_executors_of_forked_workers(program: Program) -> None:
    conduct(program)


@examples(4)
@given(programs("spawn"))
def test_executors_of_fresh_interpreters(program: Program) -> None:
    conduct(program)


def note_twice(item: Item) -> float:
    """Note that the task was begun, and that it was not ended; return when it was begun."""
    started = time.monotonic()
    begin(item)
    time.sleep(GRACE_S)
    begin(replace(item, log=f"{item.log}-{started}"))
    return started


@examples(10)
@given(
    tasks=st.integers(1, 4),
    cancelled=st.sets(st.integers(0, 3)),
    waits_for=st.integers(0, 3) | st.none(),
    max_workers=st.integers(1, 2),
)
def test_a_cancelled_task_is_not_begun_later(
    tasks: int, cancelled: set[int], waits_for: int | None, max_workers: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with plait.Executor(max_workers, "processes") as executor:
            futures = [
                executor.submit(note_twice, Item(f"{log}-{index}", index, "value", 0))
                for index in range(tasks)
            ]
            if waits_for is not None and waits_for < tasks:
                futures[waits_for].result()
            times = {
                index: time.monotonic()
                for index in cancelled
                if index < tasks and futures[index].cancel()
            }
        ends = [path.name.split("-") for path in Path(folder).glob("log-*-*")]
        for _, index, started in ends:
            assert float(started) < times.get(int(index), float("inf"))
