"""A server that has too much to do gets fewer tasks at once, and the result is the loop's."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import plait
from tests.conftest import Way, only


class Busy(Exception):
    """A refusal that says how long to wait."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class OnceInFifty:
    """Fails the first try of every 50th item; a folder notes the tries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.__name__ = "once_in_fifty"

    def __call__(self, n: int) -> int:
        time.sleep(0.005)
        if n % 50 == 25:
            try:
                (self.folder / str(n)).touch(exist_ok=False)
            except FileExistsError:
                return 3 * n
            raise Busy(0)
        return 3 * n


@only("threads", "asyncio", "server")
def test_two_percent_of_errors_leave_at_least_four_fifths_at_work(way: Way, tmp_path: Path) -> None:
    workers = 4 if way.is_process else 20
    run = plait.run(
        way.fn(OnceInFifty(tmp_path)), range(150), max_workers=workers, slow_down_on=Busy,
        retries=3, backoff=0.0, ordered=True, chunksize=1, **way.options,
    )  # fmt: skip
    assert [outcome.value for outcome in run] == [3 * n for n in range(150)]
    assert run.report.retries == 3
    assert run.report.least_at_once is None or run.report.least_at_once >= 0.75 * workers
    assert run.report.at_once is None or run.report.at_once >= 0.8 * workers


def test_at_the_end_tasks_on_processes_are_not_shared_out_to_more_workers(tmp_path: Path) -> None:
    """All fail, so that one chunk runs at a time; idle workers would take some of the last one."""

    def task(n: int) -> None:
        started = time.monotonic()
        time.sleep(0.01)
        (tmp_path / f"{n:02}").write_text(f"{started} {time.monotonic()}")
        raise Busy(0)

    run = plait.run(
        task, range(64), backend="processes", max_workers=4, chunksize=8, slow_down_on=Busy
    )
    assert len(list(run)) == 64
    assert run.report.at_once == 1
    last = [path.read_text().split() for path in sorted(tmp_path.iterdir())[-8:]]
    times = sorted((float(start), float(end)) for start, end in last)
    assert all(end <= start for (_, end), (start, _) in pairwise(times))


class Server:
    """Serves so many at once and refuses more at once; notes the most that it served."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.lock = threading.Lock()
        self.served = self.refused = 0

    def ask(self, n: int) -> int:
        with self.lock:
            if self.served == self.places:
                self.refused += 1
                raise Busy(0)
            self.served += 1
        try:
            time.sleep(0.005)
            return 3 * n
        finally:
            with self.lock:
                self.served -= 1


@pytest.mark.parametrize("more", [{}, {"retry_after": "retry_after"}])
def test_a_server_that_refuses_is_asked_less_and_the_report_says_so(more: Any) -> None:
    server = Server(places=5)
    run = plait.run(
        server.ask, range(400), backend="threads", max_workers=20, chunksize=1, retries=100,
        backoff=0.0, slow_down_on=Busy, ordered=True, **more,
    )  # fmt: skip
    assert [outcome.value for outcome in run] == [3 * n for n in range(400)]
    report = run.report
    assert report.decreases >= 1
    assert report.least_at_once is not None
    assert 1 <= report.least_at_once <= 8
    assert report.at_once is not None
    assert report.least_at_once <= report.at_once <= 10
    assert server.refused < 200
    assert (
        f"slowed    {report.decreases:,} time{'s' * (report.decreases > 1)} by slow_down_on, to "
        f"{report.least_at_once} task{'s' * (report.least_at_once > 1)} at once at the lowest; "
        f"now {report.at_once}" in str(report)
    )


def test_a_report_of_a_run_that_was_not_slowed_says_nothing_of_it() -> None:
    run = plait.run(abs, range(10), backend="threads", slow_down_on=Busy, ordered=True)
    assert [outcome.value for outcome in run] == list(range(10))
    assert (run.report.decreases, run.report.least_at_once, run.report.at_once) == (0, None, None)
    assert "slowed" not in str(run.report)


@only("threads", "asyncio", "server", "serial")
def test_the_next_try_waits_as_long_as_the_error_says(way: Way, tmp_path: Path) -> None:
    def task(n: int) -> float:
        now = time.monotonic()
        with (tmp_path / str(n)).open("a") as file:
            file.write(f"{now}\n")
        if len((tmp_path / str(n)).read_text().splitlines()) == 1:
            raise Busy(0.3)
        return now

    options = {"retries": 1, "backoff": 0.0, "retry_after": "retry_after", **way.options}
    plait.map(way.fn(task), range(3), **options)
    for path in tmp_path.iterdir():
        first, second = map(float, path.read_text().splitlines())
        assert second - first >= 0.3


@pytest.mark.parametrize("backend", ["threads", "auto"])
def test_an_overload_that_says_how_long_holds_the_tasks_that_did_not_start(backend: Any) -> None:
    """The first task is refused; without the hold the others would start at once."""
    starts: list[float] = []

    def task(n: int) -> int:
        starts.append(time.monotonic())
        if len(starts) == 1:
            raise Busy(0.3)
        return 3 * n

    values = plait.map(
        task, range(20), backend=backend, max_workers=1, chunksize=1, retries=1, backoff=0.0,
        slow_down_on=Busy, retry_after=lambda error: error.retry_after,
    )  # fmt: skip
    assert values == [3 * n for n in range(20)]
    assert starts[1] - starts[0] >= 0.3


def confused(error: BaseException) -> Any:
    raise TypeError("what?")


@pytest.mark.parametrize(
    "options", [{"retries": 1, "retry_after": confused}, {"slow_down_on": confused}]
)
def test_a_function_of_the_users_that_raises_loses_nothing(options: dict[str, Any]) -> None:
    def task(n: int) -> int:
        if n == 7:
            raise OSError("gone")
        return n

    with pytest.raises(TypeError, match="what") as caught:
        plait.map(task, range(20), backend="threads", chunksize=10, **options)
    run = caught.value.plait_run  # type: ignore[attr-defined]
    assert 7 in [outcome.index for outcome in run.outcomes]
