"""What map, imap, starmap and run promise, on every kind of worker."""

from __future__ import annotations

import gc
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import plait
from tests.conftest import Way, double, fail_at_three

ROUNDING_S = 1e-9  # of a sum of two times


def test_values_come_in_order(way: Way) -> None:
    assert plait.map(way.fn(double), range(100), **way.options) == list(range(0, 200, 2))


def test_a_long_input_comes_in_order(way: Way) -> None:
    assert plait.map(way.fn(double), range(20_000), **way.options) == list(range(0, 40_000, 2))


def test_unordered_values_are_the_same_ones(way: Way) -> None:
    values = plait.imap(way.fn(double), range(100), ordered=False, **way.options)
    assert sorted(values) == list(range(0, 200, 2))


def test_empty_input_gives_nothing(way: Way) -> None:
    assert plait.map(way.fn(double), [], **way.options) == []
    assert list(plait.imap(way.fn(double), iter(()), **way.options)) == []
    assert list(plait.run(way.fn(double), [], **way.options)) == []


def test_one_item(way: Way) -> None:
    assert plait.map(way.fn(double), [21], **way.options) == [42]


def test_more_workers_than_items(way: Way) -> None:
    assert plait.map(way.fn(double), [1, 2], max_workers=5, **way.options) == [2, 4]


def test_several_iterables_stop_at_the_shortest(way: Way) -> None:
    values = plait.map(way.fn(pow), [2, 3, 4], itertools.count(1), **way.options)
    assert values == [2, 9, 64]


def test_starmap_spreads_each_tuple(way: Way) -> None:
    assert plait.starmap(way.fn(pow), [(2, 3), (5, 2)], **way.options) == [8, 25]


def test_an_item_that_is_a_tuple_stays_one_argument(way: Way) -> None:
    assert plait.map(way.fn(len), [(1, 2), (3,)], **way.options) == [2, 1]


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_chunksize_does_not_change_the_values(way: Way, chunksize: int) -> None:
    values = plait.map(way.fn(double), range(50), chunksize=chunksize, **way.options)
    assert values == list(range(0, 100, 2))


def test_endless_input_is_read_as_needed(way: Way) -> None:
    drawn = itertools.count()
    values = plait.imap(way.fn(double), drawn, buffersize=10, **way.options)
    assert list(itertools.islice(values, 5)) == [0, 2, 4, 6, 8]
    values.close()  # type: ignore[attr-defined]
    assert next(drawn) <= 15


def test_buffersize_bounds_what_is_read_ahead(way: Way) -> None:
    drawn = 0

    def source() -> Iterator[int]:
        nonlocal drawn
        for drawn in itertools.count(1):
            yield drawn

    taken = 0
    for _ in itertools.islice(
        plait.imap(way.fn(double), source(), buffersize=7, **way.options), 50
    ):
        assert drawn <= taken + 7
        taken += 1


def test_buffersize_one_lets_the_input_depend_on_the_results(way: Way) -> None:
    found = [1]

    def source() -> Iterator[int]:
        for place in itertools.count():
            yield found[place]

    values = plait.imap(way.fn(double), source(), buffersize=1, **way.options)
    for value in itertools.islice(values, 10):
        found.append(value)
    assert found[-1] == 1024


def test_results_do_not_wait_for_the_next_item(way: Way) -> None:
    seen = threading.Event()

    def source() -> Iterator[int]:
        yield from range(5)
        assert seen.wait(30)
        yield 5

    for options in (way.options, {"backend": "auto"}):
        seen.clear()
        values = plait.imap(way.fn(double), source(), **options)
        assert [next(values) for _ in range(5)] == [0, 2, 4, 6, 8]
        seen.set()
        assert list(values) == [10]


def test_stop_reads_no_more_and_finishes_what_was_read(way: Way) -> None:
    run = plait.run(way.fn(double), itertools.count(), ordered=True, **way.options)
    assert next(run).value == 0
    run.stop()
    values = [outcome.value for outcome in run]
    assert values == list(range(2, 2 * len(values) + 1, 2))
    assert run.report.tasks == len(values) + 1


def test_input_that_raises_midway_delivers_what_was_fed(way: Way) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    run = plait.run(way.fn(double), source(), **way.options)
    values: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        values.extend(outcome.value for outcome in run)
    assert sorted(values) == [0, 2, 4, 6, 8]
    with pytest.raises(OSError, match="the disk is gone") as caught:
        plait.map(way.fn(double), source(), **way.options)
    assert [outcome.value for outcome in caught.value.plait_run.outcomes] == [0, 2, 4, 6, 8]  # type: ignore[attr-defined]


def test_imap_yields_what_came_before_an_input_error(way: Way) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    values = plait.imap(way.fn(double), source(), **way.options)
    assert [next(values) for _ in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(OSError, match="the disk is gone"):
        next(values)


def test_outcomes_tell_times_and_workers(way: Way) -> None:
    def pid(_: int) -> int:
        return os.getpid()

    outcomes = sorted(
        plait.run(way.fn(pid), range(20), **way.options), key=lambda outcome: outcome.index
    )
    assert [outcome.index for outcome in outcomes] == list(range(20))
    assert [outcome.item for outcome in outcomes] == list(range(20))
    for outcome in outcomes:
        assert outcome.ok
        assert outcome.attempt == 1
        assert outcome.pid == outcome.value
        assert (outcome.pid != os.getpid()) == way.is_process
        assert outcome.worker
        assert outcome.seconds >= 0
    ends: dict[str, float] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.started):
        # A worker runs one task after the other, whatever their order.
        assert ends.get(outcome.worker, 0) <= outcome.started + ROUNDING_S
        ends[outcome.worker] = outcome.started + outcome.seconds


def test_the_report_counts(way: Way) -> None:
    run = plait.run(way.fn(fail_at_three), range(10), **way.options)
    outcomes = list(run)
    assert run.plan is not None
    assert run.plan.backend == way.options["backend"]
    assert (run.report.tasks, run.report.errors) == (10, 1)
    assert run.report.workers == {outcome.worker for outcome in outcomes}
    assert run.report.wall_s > 0
    assert "1 of them with an error" in str(run.report)


def test_run_leaves_nothing_running_when_left_early(way: Way, clean: None) -> None:
    with plait.run(way.fn(double), itertools.count(), **way.options) as run:
        assert next(run).value in range(0, 100, 2)
    assert list(run) == []


def test_leaving_the_loop_leaves_nothing_running(way: Way, clean: None) -> None:
    gc.disable()  # what is left to the collector would go on until it comes
    try:
        for outcome in plait.run(way.fn(double), itertools.count(), **way.options):
            assert outcome.ok
            break
        assert "plait-reader" not in {thread.name for thread in threading.enumerate()}
    finally:
        gc.enable()


def test_a_pool_is_used_again_for_many_maps(process_way: Way) -> None:
    def pid(_: int) -> int:
        return os.getpid()

    pids: set[int] = set()
    for _ in range(10):
        pids |= set(plait.map(pid, range(20), max_workers=2, **process_way.options))
    assert len(pids) <= 2


def test_maps_from_several_threads_at_once(way: Way) -> None:
    results: dict[int, list[int]] = {}

    def work(start: int) -> None:
        items = range(start, start + 300)
        results[start] = plait.map(way.fn(double), items, chunksize=5, **way.options)

    threads = [threading.Thread(target=work, args=(n * 1000,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(6):
        assert results[n * 1000] == [2 * x for x in range(n * 1000, n * 1000 + 300)]


def test_an_initializer_runs_in_each_worker(way: Way) -> None:
    def prepare(name: str, value: str) -> None:
        os.environ[name] = value

    def read(_: int) -> str | None:
        return os.environ.get("PLAIT_TEST")

    try:
        values = plait.map(
            way.fn(read),
            range(10),
            initializer=prepare,
            initargs=("PLAIT_TEST", "ready"),
            **way.options,
        )
    finally:
        os.environ.pop("PLAIT_TEST", None)
    assert values == ["ready"] * 10


def test_a_failing_initializer_is_one_clear_error(way: Way) -> None:
    def prepare() -> None:
        raise LookupError("no licence")

    if way.name == "serial":  # it is the caller's own call
        with pytest.raises(LookupError, match="no licence"):
            plait.map(double, range(10), initializer=prepare, **way.options)
        return
    with pytest.raises(plait.WorkerStartError, match="no licence") as caught:
        plait.map(way.fn(double), range(10), initializer=prepare, **way.options)
    assert isinstance(caught.value.__cause__, LookupError)


def test_progress_hears_of_every_task(way: Way) -> None:
    heard: list[tuple[int, int | None]] = []

    def show(done: int, total: int | None) -> None:
        heard.append((done, total))

    plait.map(way.fn(double), range(50), progress=show, **way.options)
    assert heard[-1] == (50, 50)
    assert heard == sorted(heard)


def test_results_may_be_anything(way: Way) -> None:
    values: list[Any] = [
        None,
        b"x" * 300_000,
        {"a": {1, 2}},
        [1.5, "two"],
        ValueError("as a value"),
    ]

    def pick(place: int) -> Any:
        return values[place]

    results = plait.map(way.fn(pick), range(5), **way.options)
    assert results[:4] == values[:4]
    assert repr(results[4]) == repr(values[4])


class Squares:
    """What Python takes for an iterable though it has no __iter__: the oldest protocol."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.count:
            raise IndexError(place)
        return place * place


def test_what_has_getitem_alone_is_an_iterable(way: Way) -> None:
    items: Any = Squares(5)
    fn = way.fn(double)
    assert plait.map(fn, items, **way.options) == list(map(double, items))
    assert list(plait.imap(fn, items, **way.options)) == [0, 2, 8, 18, 32]
    assert len(list(plait.run(fn, items, **way.options))) == 5
    assert plait.map(two_of(way), items, [1, 1], **way.options) == [1, 2]


def test_what_has_getitem_alone_is_an_iterable_by_default_too() -> None:
    items: Any = Squares(5)
    assert plait.map(float, items) == [0, 1, 4, 9, 16]
    assert plait.sweep(float, items, backends=["threads"], sizes=[1], repeats=1).rows
    with pytest.raises(TypeError, match="no iterable but object"):
        plait.map(float, object())  # type: ignore[arg-type]


def add(x: int, y: int = 0, *, z: int = 0) -> int:
    return x + y + z


def two(x: int, y: int) -> int:
    return x + y


def two_of(way: Way) -> Callable[..., Any]:
    async def later(x: int, y: int) -> int:
        return x + y

    return later if way.options.get("backend") == "asyncio" else two


def notes_of(call: Callable[[], object]) -> str:
    with pytest.raises(TypeError) as caught:
        call()
    return "\n".join(caught.value.__notes__)


def test_a_tuple_where_several_arguments_are_wanted_is_told_of_starmap(way: Way) -> None:
    pairs = list(zip([1, 2], [3, 4], strict=True))
    told = notes_of(lambda: plait.map(two_of(way), pairs, **way.options))
    assert "the item is a tuple, and map gives it as one argument" in told
    assert "plait.starmap(fn, items), or plait.map(fn, xs, ys) in place of zip(xs, ys)." in told
    assert plait.starmap(two_of(way), pairs, **way.options) == [4, 6]


def test_who_mixes_up_map_and_starmap_is_told_so_and_nobody_else() -> None:
    wrong: Any = [1, 2]
    assert "map gives one argument" in notes_of(lambda: plait.starmap(two, wrong))
    assert "the item is a list" in notes_of(lambda: plait.map(two, [[1, 2]]))
    with plait.Executor(2) as executor:
        told = notes_of(lambda: list(executor.map(two, zip([1], [2], strict=True))))
        assert "starmap" in told
    others: list[Callable[[], object]] = [
        lambda: plait.map(abs, [(1,)]),
        lambda: plait.map(add, [("a", 1)]),
        lambda: plait.map(two, [(1, 2, 3)]),
        lambda: plait.map(two, [1]),
        lambda: plait.map(max, [1]),
        lambda: plait.starmap(two, [(1, 2, 3)]),
        lambda: plait.starmap(two, [("a", 1)]),
    ]
    for call in others:
        assert "argument" not in notes_of(call)
