"""Further tries: which errors, how often, where, and what is told of them."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.options import Options
from plait.retry import RetryPolicy
from tests.conftest import Way


class Flaky:
    """Fails the first tries of each item; counts them in files, which outlive a worker."""

    def __init__(self, folder: Path, failures: int, fault: Callable[[int], None]) -> None:
        self.folder = folder
        self.failures = failures
        self.fault = fault
        self.__name__ = "flaky"

    def __call__(self, x: int) -> int:
        for number in range(100):
            try:
                with (self.folder / f"{x}-{number}").open("x"):
                    break
            except FileExistsError:
                continue
        if number < self.failures:
            self.fault(x)
        return 2 * x

    def tries(self, x: int) -> int:
        return len(list(self.folder.glob(f"{x}-*")))


def refuse(x: int) -> None:
    raise ConnectionError(f"no {x}")


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("chunksize", [1, 5])
def test_a_task_is_tried_again(way: Way, tmp_path: Path, chunksize: int) -> None:
    flaky = Flaky(tmp_path, 2, refuse)
    run = plait.run(
        way.fn(flaky), range(12), retries=2, backoff=0, ordered=True, chunksize=chunksize,
        max_workers=2, **way.options,
    )  # fmt: skip
    outcomes = list(run)
    assert [outcome.value for outcome in outcomes] == [2 * x for x in range(12)]
    assert {outcome.attempt for outcome in outcomes} == {3}
    for outcome in outcomes:
        assert [type(attempt.error) for attempt in outcome.earlier] == [ConnectionError] * 2
        assert all(str(attempt.error) == f"no {outcome.index}" for attempt in outcome.earlier)
        assert all(attempt.worker and attempt.pid for attempt in outcome.earlier)
        assert flaky.tries(outcome.index) == 3
    assert (run.report.tasks, run.report.errors, run.report.retries) == (12, 0, 24)


def test_after_the_last_try_the_error_is_final(way: Way, tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, 99, refuse)
    given = {"retries": 2, "backoff": 0, "max_workers": 2, **way.options}
    with pytest.raises(ConnectionError, match="no 0") as caught:
        plait.map(way.fn(flaky), [0], **given)
    (note,) = caught.value.__notes__
    assert "attempt 3" in note
    assert flaky.tries(0) == 3


def test_what_retry_on_excludes_is_never_tried_again(way: Way, tmp_path: Path) -> None:
    for number, retry_on in enumerate(
        (ValueError, (ValueError, KeyError), lambda error: "yes" in str(error))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        flaky = Flaky(folder, 1, refuse)
        given: dict[str, Any] = {"retries": 5, "backoff": 0, "retry_on": retry_on}
        (value,) = plait.map(way.fn(flaky), [1], on_error="return", **given, **way.options)
        assert isinstance(value, ConnectionError)
        assert flaky.tries(1) == 1


def test_retry_on_may_be_a_function_of_the_error(way: Way, tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, 1, refuse)
    given: dict[str, Any] = {"retries": 1, "backoff": 0, **way.options}
    assert plait.map(way.fn(flaky), [1], retry_on=lambda e: str(e) == "no 1", **given) == [2]


def test_a_wait_for_the_next_try_blocks_no_worker(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.random", lambda: 1.0)
    flaky = Flaky(tmp_path, 1, lambda x: refuse(x) if x == 0 else None)
    run = plait.run(
        way.fn(flaky), range(10), retries=1, backoff=(0.2, 1.0, 0.2), chunksize=1,
        max_workers=1, **way.options,
    )  # fmt: skip
    assert [outcome.index for outcome in run] == [*range(1, 10), 0]


def test_order_is_kept(way: Way, tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, 1, lambda x: refuse(x) if x % 3 == 0 else None)
    given: dict[str, Any] = {"retries": 1, "backoff": 0, "max_workers": 2, **way.options}
    assert list(plait.imap(way.fn(flaky), range(40), **given)) == [2 * x for x in range(40)]


def test_a_killed_worker_is_followed_by_another(process_way: Way, tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, 1, lambda x: die(x) if x == 4 else None)
    given: dict[str, Any] = {"retries": 1, "backoff": 0, "max_workers": 2, "chunksize": 1}
    outcomes = list(plait.run(flaky, range(10), ordered=True, **given, **process_way.options))
    assert [outcome.value for outcome in outcomes] == [2 * x for x in range(10)]
    (first,) = outcomes[4].earlier
    assert isinstance(first.error, plait.WorkerDied)
    assert (first.error.attempt, outcomes[4].attempt) == (1, 2)
    assert first.pid != outcomes[4].pid


def test_another_worker_tries_again_where_there_is_one(process_way: Way, tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, 1, refuse)
    for max_workers in (1, 2, 3):
        folder = tmp_path / str(max_workers)
        folder.mkdir()
        flaky = Flaky(folder, 2, refuse)
        outcomes = list(
            plait.run(flaky, range(6), retries=2, backoff=0, chunksize=2, max_workers=max_workers,
                      **process_way.options)
        )  # fmt: skip
        for outcome in outcomes:
            workers = [*(attempt.worker for attempt in outcome.earlier), outcome.worker]
            same = [before == after for before, after in itertools.pairwise(workers)]
            assert same == [max_workers == 1] * 2


def test_a_task_that_kills_every_worker_is_not_tried_without_end(
    process_way: Way, tmp_path: Path
) -> None:
    flaky = Flaky(tmp_path, 99, die)
    (outcome,) = plait.run(flaky, [0], retries=3, backoff=0, max_workers=2, **process_way.options)
    assert isinstance(outcome.error, plait.WorkerDied)
    assert outcome.attempt == outcome.error.attempt == 4
    assert "attempt 4" in str(outcome.error)
    assert flaky.tries(0) == 4


def test_what_cannot_be_pickled_is_not_tried_again(process_way: Way, tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, 0, refuse)
    item: Any = threading.Lock()
    (outcome,) = plait.run(flaky, [item], retries=3, backoff=0, **process_way.options)
    assert isinstance(outcome.error, plait.NotPicklable)
    assert outcome.attempt == 1


def test_a_run_that_is_stopped_gives_the_last_error_of_what_waits(way: Way, tmp_path: Path) -> None:
    flaky = Flaky(tmp_path, 1, lambda x: refuse(x) if x == 0 else None)
    run = plait.run(
        way.fn(flaky), range(3), retries=1, backoff=(999.0, 1.0, 999.0), chunksize=1,
        max_workers=1, **way.options,
    )  # fmt: skip
    indices = []
    for outcome in run:
        indices.append(outcome.index)
        if outcome.index == 2:
            run.stop()
    assert indices == [1, 2, 0]


def test_how_long_is_waited() -> None:
    policy = RetryPolicy(Options(retries=9, backoff=(0.1, 3.0, 2.0)))
    waits = [policy.wait_s(OSError(), attempt, lambda: 1.0) for attempt in range(1, 6)]
    assert waits == pytest.approx([0.1, 0.3, 0.9, 2.0, 2.0])
    assert policy.wait_s(OSError(), 2, lambda: 0.0) == 0.0
    assert policy.wait_s(OSError(), 9, lambda: 1.0) == 2.0
    assert policy.wait_s(OSError(), 10, lambda: 1.0) is None
    assert policy.wait_s(KeyboardInterrupt(), 1, lambda: 1.0) is None  # not by default
    assert RetryPolicy(Options(retries=1, backoff=2)).wait_s(OSError(), 1, lambda: 0.5) == 1.0


def test_a_task_of_the_sample_that_is_tried_again_is_not_waited_for_by_the_sample() -> None:
    """Where no more may be read before its value is, the sample ends: it had waited for ever."""
    tries = []
    lock = threading.Lock()  # with which no process gets it: the tries are counted here

    def fail_once(n: int) -> int:
        with lock:
            tries.append(n)
        if tries.count(n) == 1 and n < 3:
            raise OSError(n)
        return n

    items = iter(range(20))
    values = list(plait.imap(fail_once, items, retries=1, backoff=0.001, buffersize=2))
    assert values == list(range(20))
    assert Counter(tries) == {n: 2 if n < 3 else 1 for n in range(20)}


@pytest.mark.parametrize("ordered", [True, False])
def test_a_stop_amid_the_sample_gives_up_what_waits_and_tells_all(ordered: bool) -> None:
    def fail_first(n: int) -> int:
        return 1 // n

    run = plait.run(fail_first, range(1, -1000, -1), retries=1, backoff=60.0, ordered=ordered)
    told = []
    for outcome in run if not ordered else stopped_soon(run):
        told.append(outcome)
        if len(told) == 5:
            run.stop()
    assert len(told) == run.report.tasks
    assert sorted(outcome.index for outcome in told) == list(range(len(told)))
    assert [outcome.index for outcome in told if not outcome.ok] == [1]


def stopped_soon(run: plait.Run) -> plait.Run:
    """Stop a run while it is in its sample: what is ordered waits for the one that failed."""
    settle, count = run._settle, itertools.count()

    def settle_and_stop(batch: Any) -> Any:
        if next(count) == 2:
            run.stop()
        return settle(batch)

    run._settle = settle_and_stop  # type: ignore[method-assign]
    return run


def test_where_retry_on_raises_each_outcome_counts_once() -> None:
    def refuse(error: BaseException) -> bool:
        if str(error) == "1":
            raise LookupError("retry_on")
        return True

    def fail(n: int) -> None:
        raise OSError(n)

    with pytest.raises(LookupError, match="retry_on") as caught:
        plait.map(fail, range(3), retries=1, retry_on=refuse, backend="serial", chunksize=3)
    assert caught.value.plait_run.report.tasks <= 3  # type: ignore[attr-defined]
