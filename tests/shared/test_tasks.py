"""Which task it was: who died with a lock, who waits, and who holds."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

import plait
from plait.errors import DeadlockError, OwnerDied
from plait.running import (
    MOST_MORE,
    begin_task,
    begin_tasks,
    end_tasks,
    get_task,
    text_of_task,
)
from plait.shared import Barrier, List, Lock, RLock, who_holds
from tests.conftest import PROCESS_WAYS, Way, only


@pytest.fixture
def none_runs() -> Any:
    yield
    end_tasks()


@pytest.mark.usefixtures("none_runs")
def test_a_word_tells_the_task_or_those_it_may_be() -> None:
    begin_task(12)
    assert text_of_task(get_task()) == "task 12"
    begin_tasks(0, 3)
    assert text_of_task(get_task()) == "one of tasks 0 to 2"
    begin_tasks(7, 1)
    assert text_of_task(get_task()) == "task 7"
    begin_tasks(7, 0)
    assert text_of_task(get_task()) == "task 7"
    begin_tasks(1, 1 << 30)  # more than there is room for
    assert text_of_task(get_task()) == f"one of tasks 1 to {1 + MOST_MORE}"
    end_tasks()
    assert text_of_task(get_task()) == ""


def own_text(_: int) -> str:
    return text_of_task(get_task())


@only("threads", *PROCESS_WAYS)
@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
def test_each_task_knows_which_it_is(way: Way, chunksize: Any) -> None:
    texts = plait.map(own_text, range(3000), chunksize=chunksize, **way.options)
    for index, text in enumerate(texts):
        found = re.fullmatch(r"(?:task|one of tasks) (\d+)(?: to (\d+))?", text)
        assert found, text
        assert int(found[1]) <= index <= int(found[2] or found[1])
    assert get_task() == 0


def test_tasks_of_an_executor_are_counted(process_way: Way) -> None:
    with plait.Executor(max_workers=1, **process_way.executor) as pool:
        assert [pool.submit(own_text, 0).result() for _ in range(2)] == ["task 0", "task 1"]


def work(given: tuple[int, Any]) -> int:
    index, lock = given
    if index == 3:
        lock.acquire()
        os._exit(9)
    return index


@pytest.mark.parametrize("cls", [Lock, RLock])
def test_the_death_of_an_owner_names_its_task(process_way: Way, cls: type[Lock]) -> None:
    lock = cls("results")
    items = [(index, lock) for index in range(6)]
    plait.map(work, items, on_error="return", chunksize=1, **process_way.options)
    with pytest.raises(
        OwnerDied, match=r"held \w+ 'results', taken \d+\.\d s ago in task 3\."
    ) as told:
        lock.acquire()
    assert told.value.task == "task 3"


def test_the_death_amid_a_list_names_its_task(process_way: Way) -> None:
    shared: List[int] = List()
    items = [(index, shared.lock) for index in range(6)]
    plait.map(work, items, on_error="return", chunksize=1, **process_way.options)
    shared.append(1)  # a single operation tells nobody
    with pytest.raises(OwnerDied) as told:
        shared.lock.acquire()
    assert told.value.task == "task 3"


def cross(given: tuple[Lock, Lock, Barrier]) -> str:
    first, second, barrier = given
    with first:
        barrier.wait()
        with second:
            return "had both"


@only("threads", *PROCESS_WAYS)
def test_a_deadlock_names_both_tasks(way: Way) -> None:
    a, b, barrier = Lock("a"), Lock("b"), Barrier(2)
    items = [(a, b, barrier), (b, a, barrier)]
    options = {**way.options, "max_workers": 2, "chunksize": 1}
    results: list[Any] = plait.map(cross, items, on_error="return", **options)
    (error,) = (one for one in results if isinstance(one, DeadlockError))
    assert "had both" in results
    for task, mine in ((0, "a"), (1, "b")):
        assert re.search(
            rf", in task {task}, of pid \d+ holds Lock '{mine}', taken \S+ s ago in task {task} at",
            str(error),
        ), error


def hold_and_look(lock: Lock) -> str:
    with lock:
        return str(next(row for row in who_holds() if "table" in row.what))


@only("threads", *PROCESS_WAYS)
def test_the_table_names_the_task(way: Way) -> None:
    (text,) = plait.map(hold_and_look, [Lock("table")], **way.options)
    assert re.match(r"Lock 'table': held by pid \d+, thread \d+, task 0, for \d", text)
    assert ", task" not in hold_and_look(Lock("table"))
