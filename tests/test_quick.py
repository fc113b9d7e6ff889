"""A map is the same whether its first moment is all of it, some of it, or nothing."""

from __future__ import annotations

import inspect
import itertools
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest

import plait
from plait import quick
from plait.choice import is_coroutine
from plait.outcome import Call, Chunk
from plait.probe import Probe
from plait.quick import Start, suits
from tests.conftest import needs_gil

DONE_IN_SOME = 3


@pytest.fixture(params=["nothing", "some", "all"])
def moment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Say how far the first moment reaches: to no task, to three, or as far as it can."""
    set_moment(request.param, monkeypatch)
    return str(request.param)


def set_moment(reach: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "BUDGET_S", -1.0 if reach == "nothing" else 1000.0)
    if reach == "some":  # the clock is read before the first task, and before and after each
        readings = itertools.count()

        def monotonic() -> float:
            return time.monotonic() + 2000 * (next(readings) > 2 * DONE_IN_SOME)

        monkeypatch.setattr(quick, "monotonic", monotonic)


class Task:
    """A function that notes each of its calls; ``method`` is what is mapped."""

    def __init__(self, deed: Callable[[Any], Any] = lambda item: item) -> None:
        self.deed = deed
        self.begun: list[Any] = []

    def method(self, item: Any) -> Any:
        self.begun.append(item)
        return self.deed(item)


def failing_at(place: int, error: BaseException) -> Task:
    def deed(item: int) -> int:
        if item == place:
            raise error
        return item

    return Task(deed)


def source(count: int, error: BaseException | None = None) -> Iterator[int]:
    yield from range(count)
    if error is not None:
        raise error


def outcomes_of(error: BaseException) -> list[plait.Outcome]:
    """Return the outcomes that an error carries, after a look at what holds for all of them."""
    run = error.plait_run  # type: ignore[attr-defined]
    outcomes: list[plait.Outcome] = run.outcomes
    assert [outcome.index for outcome in outcomes] == list(range(len(outcomes)))
    assert [outcome.item for outcome in outcomes] == list(range(len(outcomes)))
    assert {outcome.attempt for outcome in outcomes} <= {1}
    assert run.report.tasks == len(outcomes)
    assert run.report.errors == sum(not outcome.ok for outcome in outcomes)
    assert run.report.wall_s >= 0.9 * sum(
        outcome.seconds for outcome in outcomes if outcome.worker == "main"
    )
    return outcomes


# --- Maps that end well ----------------------------------------------------------------------


@pytest.mark.usefixtures("moment")
def test_every_task_runs_once_and_the_values_come_in_order() -> None:
    for items in (range(100), source(100), set(range(100)), dict.fromkeys(range(100))):
        task = Task(lambda item: 2 * item)
        assert plait.map(task.method, items) == list(range(0, 200, 2))
        assert task.begun == list(range(100))


@pytest.mark.usefixtures("moment")
def test_several_iterables_and_tuples() -> None:
    assert plait.map(pow, range(2, 12), itertools.repeat(2)) == [x * x for x in range(2, 12)]
    assert plait.map(lambda x, y, z: (x, y, z), "abcde", source(9), [0] * 7) == [
        (x, y, 0) for x, y in zip("abcde", range(5), strict=True)
    ]
    assert plait.starmap(pow, [(2, 5)] * 5) == [32] * 5
    assert plait.starmap(pow, iter([(2, 5)] * 5)) == [32] * 5
    assert plait.map(len, [(1, 2)] * 5) == [2] * 5


@pytest.mark.usefixtures("moment")
def test_an_empty_input() -> None:
    assert plait.map(abs, []) == []
    assert plait.map(abs, source(0)) == []
    assert plait.map(pow, [], [1]) == []
    assert plait.starmap(pow, []) == []


@pytest.mark.usefixtures("moment")
def test_any_kind_of_function() -> None:
    class Made:
        def __init__(self, x: int) -> None:
            self.x = x

        def __call__(self, y: int) -> int:
            return self.x + y

    for fn in (str, "{}".format, lambda x: f"{x}", str.__str__, partial(str)):
        items = list(range(5)) if fn is not str.__str__ else list("01234")
        assert plait.map(fn, items) == list("01234")
    assert [made.x for made in plait.map(Made, range(5))] == list(range(5))
    assert plait.map(Made(1), range(5)) == list(range(1, 6))


@pytest.mark.usefixtures("moment")
def test_with_options_it_is_the_long_road() -> None:
    values = plait.map(failing_at(1, LookupError()).method, range(3), on_error="return")
    assert [type(value) for value in values] == [int, LookupError, int]
    with pytest.raises(plait.UnknownOption):
        plait.map(abs, range(3), n_jobs=2)  # type: ignore[call-arg]


@pytest.mark.usefixtures("moment")
def test_a_task_that_maps() -> None:
    def task(x: int) -> list[int]:
        return plait.map(lambda y: 10 * x + y, range(5))

    assert plait.map(task, range(5)) == [[10 * x + y for y in range(5)] for x in range(5)]


@pytest.mark.usefixtures("moment")
def test_the_input_may_depend_on_what_was_done() -> None:
    found = [1]

    def worklist() -> Iterator[int]:
        for place in range(10):
            yield found[min(place, len(found) - 1)]

    values = plait.map(lambda x: found.append(x + 1) or x, worklist())  # type: ignore[func-returns-value]
    assert len(values) == 10
    assert found == [1, *(value + 1 for value in values)]


def test_a_map_inside_a_worker() -> None:
    def task(x: int) -> list[int]:
        return plait.map(lambda y: 10 * x + y, range(5))

    expected = [[10 * x + y for y in range(5)] for x in range(4)]
    assert plait.map(task, range(4), backend="processes", max_workers=2) == expected


# --- Maps in which something is raised -------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("make", [list, source])
def test_the_error_of_a_task(moment: str, place: int, make: Any) -> None:
    task = failing_at(place, LookupError("gone"))
    items = list(range(1000)) if make is list else source(1000)
    with pytest.raises(LookupError, match="gone") as caught:
        plait.map(task.method, items)
    error = caught.value
    outcomes = outcomes_of(error)
    assert [outcome.error for outcome in outcomes if not outcome.ok] == [error]
    assert outcomes[place].error is error
    assert {outcome.worker for outcome in outcomes} == {"main"}
    assert [outcome.value for outcome in outcomes[:place]] == list(range(place))
    assert task.begun == list(range(len(outcomes)))
    (note,) = error.__notes__
    assert note.startswith(f"plait: task {place}, method({place}), attempt 1, on main (pid ")
    assert error.__context__ is error.__cause__ is None
    assert "raise error" in "".join(traceback.format_exception(error))
    if moment == "all" or (place < DONE_IN_SOME and moment == "some"):
        assert len(outcomes) == place + 1  # it stopped there and then


@pytest.mark.usefixtures("moment")
@pytest.mark.parametrize("kind", [StopIteration, SystemExit, GeneratorExit, ArithmeticError])
def test_whatever_a_task_raises_is_its_error_and_not_that_of_the_input(
    kind: type[BaseException],
) -> None:
    task = failing_at(2, kind(5))
    with pytest.raises(kind) as caught:
        plait.map(task.method, source(1000))
    assert outcomes_of(caught.value)[2].error is caught.value
    assert caught.value.__notes__[0].startswith("plait: task 2, method(2)")


@pytest.mark.usefixtures("moment")
def test_the_error_of_a_task_with_several_arguments_names_them_all() -> None:
    tuples = [(4, 1), (3, 1), (2, 0), (1, 1)]
    columns = zip(*tuples, strict=True)
    for call in (partial(plait.starmap, divmod, tuples), partial(plait.map, divmod, *columns)):
        with pytest.raises(ZeroDivisionError) as caught:
            call()
        assert caught.value.__notes__[0].startswith("plait: task 2, divmod(*(2, 0)), attempt 1")
        run = caught.value.plait_run  # type: ignore[attr-defined]
        assert [outcome.item for outcome in run.outcomes[:3]] == [(4, 1), (3, 1), (2, 0)]


@pytest.mark.usefixtures("moment")
def test_items_that_are_no_arguments_fail_as_tasks() -> None:
    with pytest.raises(TypeError) as caught:
        plait.starmap(abs, [(1,), 2, (3,)])  # type: ignore[list-item]
    assert caught.value.__notes__[0].startswith("plait: task 1, abs(*2), attempt 1")


@pytest.mark.usefixtures("moment")
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_the_error_of_the_input(count: int) -> None:
    task = Task()
    with pytest.raises(OSError, match="the disk is gone") as caught:
        plait.map(task.method, source(count, OSError("the disk is gone")))
    assert [outcome.value for outcome in outcomes_of(caught.value)] == list(range(count))
    assert task.begun == list(range(count))
    assert not hasattr(caught.value, "__notes__")
    plan = caught.value.plait_run.plan  # type: ignore[attr-defined]
    assert plan.backend == "serial"
    assert (plan.sample.tasks if count else plan.sample) == (count or None)


@pytest.mark.parametrize("count", [0, 1, 3, 7])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_input_that_ends_the_program(moment: str, count: int, kind: type[BaseException]) -> None:
    task = Task()
    with pytest.raises(kind) as caught:
        plait.map(task.method, source(count, kind()))
    outcomes = outcomes_of(caught.value)
    assert [outcome.value for outcome in outcomes] == task.begun
    assert not hasattr(caught.value, "__notes__")
    if moment == "all":
        assert len(outcomes) == count


@pytest.mark.parametrize("place", [0, 1, 3, 7])
def test_ctrl_c_in_a_task_leaves_with_what_is_done(moment: str, place: int) -> None:
    task = failing_at(place, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as caught:
        plait.map(task.method, range(1000))
    assert task.begun == list(range(place + 1))
    outcomes = outcomes_of(caught.value)
    assert all(outcome.ok for outcome in outcomes)
    assert not hasattr(caught.value, "__notes__")
    known = {"nothing": 0, "some": min(place, DONE_IN_SOME), "all": place}[moment]
    assert known <= len(outcomes) <= place


def test_ctrl_c_between_any_two_lines_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    set_moment("all", monkeypatch)
    lines, start = inspect.getsourcelines(Start._run)
    loop = range(
        start + next(place for place, line in enumerate(lines) if line.strip() == "try:") + 1,
        start + next(place for place, line in enumerate(lines) if line.strip() == "else:"),
    )
    steps = 0

    def strike(after: int) -> Any:
        left = itertools.count(after, -1)

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal steps
            if frame.f_code is not Start._run.__code__:
                return None
            if event == "line" and frame.f_lineno in loop:
                steps += 1
                if next(left) == 0:
                    raise KeyboardInterrupt
            return trace

        return trace

    def interrupted(after: int) -> bool:
        task = Task()
        tracer = sys.gettrace()
        sys.settrace(strike(after))
        try:
            plait.map(task.method, range(3))
        except KeyboardInterrupt as error:
            sys.settrace(tracer)
            outcomes = outcomes_of(error)
            assert [outcome.value for outcome in outcomes] == list(range(len(outcomes)))
            assert len({outcome.started for outcome in outcomes}) == len(outcomes)
            assert task.begun in (list(range(len(outcomes))), list(range(len(outcomes) + 1)))
            (finished,) = error.plait_run.finished() or (None,)  # type: ignore[attr-defined]
            if finished is not None:
                assert len(finished.items) == len(outcomes)
                assert len(finished.times) in (1, len(outcomes))  # tiny tasks share one
            return True
        finally:
            sys.settrace(tracer)
        return False

    whole = next(after for after in itertools.count() if not interrupted(after))
    assert whole > 3 * 5


@pytest.mark.usefixtures("moment")
def test_what_is_wrong_is_refused_before_anything_runs() -> None:
    class Unreadable:
        __iter__ = None

    task = Task()
    wrong: Any = plait.map
    with pytest.raises(TypeError, match="plait needs a function to call, not int"):
        wrong(5, [1])
    with pytest.raises(TypeError, match="at least one iterable"):
        wrong(task.method)
    with pytest.raises(TypeError, match="the first input is no iterable but int"):
        wrong(task.method, 5)
    with pytest.raises(TypeError, match="the first input is no iterable but Unreadable"):
        wrong(task.method, Unreadable())
    with pytest.raises(TypeError, match="the second input is no iterable but int"):
        wrong(task.method, [1], 5)
    assert task.begun == []


@pytest.mark.parametrize("length", [-1, 0, 1, 1000, ArithmeticError("no length")])
@pytest.mark.parametrize("options", [{}, {"retries": 1}, {"backend": "threads"}])
def test_a_length_that_is_wrong_is_not_believed(length: Any, options: Any) -> None:
    class Strange:
        def __len__(self) -> int:
            if isinstance(length, Exception):
                raise length
            return int(length)

        def __iter__(self) -> Iterator[int]:
            return iter(range(50))

    assert plait.map(abs, Strange(), **options) == list(range(50))
    assert list(plait.imap(abs, Strange(), **options)) == list(range(50))


# --- What the sample learns ------------------------------------------------------------------


def waiting_for(*seconds: float) -> tuple[plait.Plan, list[plait.Outcome]]:
    """Map sleeps, and return the plan and the outcomes: an input that raises brings them out."""
    begun = []

    def task(place: int) -> None:
        begun.append(place)
        time.sleep(seconds[place])

    with pytest.raises(OSError, match="the end") as caught:
        plait.map(task, source(len(seconds), OSError("the end")))
    outcomes = outcomes_of(caught.value)
    assert sorted(begun) == list(range(len(seconds)))
    for outcome, expected in zip(outcomes, seconds, strict=True):
        assert outcome.seconds >= expected
    plan = caught.value.plait_run.plan  # type: ignore[attr-defined]
    assert plan is not None
    return plan, outcomes


@pytest.mark.parametrize("budget_s", [-1.0, 0.001])
def test_a_slow_task_and_one_more_are_all_that_is_measured(
    budget_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more, as the first one may have been slow because it was the first."""
    monkeypatch.setattr(quick, "BUDGET_S", budget_s)
    plan, outcomes = waiting_for(0.03, 0.005, 0.005, 0.005)
    assert plan.backend == "threads"
    assert plan.sample is not None
    assert plan.sample.tasks == 2
    assert 0.005 <= plan.sample.task_s < 0.03
    assert plan.sample.first_s > 0.02
    assert plan.sample.cpu_share < 0.5
    assert [outcome.worker == "main" for outcome in outcomes] == [True, True, False, False]


def test_a_slow_task_later_is_measured_with_those_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_moment("some", monkeypatch)
    plan, outcomes = waiting_for(0.0, 0.0, 0.03, 0.001, 0.001)
    assert plan.backend == "threads"
    assert plan.sample is not None
    assert plan.sample.tasks == 3  # which took long enough: nothing more was measured
    assert plan.sample.cpu_share < 0.5
    assert [outcome.worker == "main" for outcome in outcomes] == [True] * 3 + [False] * 2


def test_the_first_task_weighs_nothing_if_there_are_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quick, "BUDGET_S", 1000.0)
    plan, _ = waiting_for(0.2, 0.001, 0.001)
    assert plan.sample is not None
    assert plan.sample.tasks == 3
    assert 0.001 <= plan.sample.task_s < 0.2


@pytest.mark.usefixtures("moment")
def test_one_slow_task_that_computes_is_seen_to_compute() -> None:
    def burn(_: int) -> None:
        until = time.thread_time() + 0.03
        while time.thread_time() < until:
            pass

    with pytest.raises(OSError, match="the end") as caught:
        plait.map(burn, source(1, OSError("the end")))
    sample = caught.value.plait_run.plan.sample  # type: ignore[attr-defined]
    assert sample.cpu_share >= 0.5
    assert sample.task_s >= 0.03


@needs_gil
def test_of_a_slow_first_task_it_is_known_whether_it_holds_the_gil() -> None:
    """Seen with zlib: nothing was known of a task of 23 ms, and the rest went to processes."""
    blob = bytes(range(256)) * 20_000

    def compress(_: int) -> int:
        limit = time.monotonic() + 30  # on a busy machine the watchdog may come late
        until = time.thread_time() + 0.03
        while time.thread_time() < until or (start.heart is None and time.monotonic() < limit):
            zlib.compress(blob)
        return 1

    start = Start(compress, "one", (range(100),))
    assert not start.run()
    assert start.heart is not None
    probe = Probe(Call(compress), lambda _: Chunk(0, ()))
    probe.take_over(start)
    assert probe.sample is not None
    assert probe.sample.tasks == 1
    assert probe.sample.gil_share is not None
    assert probe.sample.gil_share < 0.4


@pytest.mark.usefixtures("moment")
def test_waiting_for_the_input_is_no_part_of_the_tasks() -> None:
    def slow_source() -> Iterator[int]:
        for item in range(6):
            time.sleep(0.02)
            yield item
        raise OSError("the end")

    def burn(_: int) -> int:
        return sum(range(2000))

    with pytest.raises(OSError, match="the end") as caught:
        plait.map(burn, slow_source())
    sample = caught.value.plait_run.plan.sample  # type: ignore[attr-defined]
    assert sample.tasks == 6
    assert sample.task_s < 0.02


# --- The quick start by itself ---------------------------------------------------------------


def test_an_item_is_read_when_the_one_before_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    set_moment("all", monkeypatch)
    log: list[str] = []

    def drawn() -> Iterator[int]:
        for item in range(3):
            log.append(f"read {item}")
            yield item

    assert Start(lambda item: log.append(f"run {item}"), "one", (drawn(),)).run()
    assert log == ["read 0", "run 0", "read 1", "run 1", "read 2", "run 2"]


def test_time_is_up_between_two_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    set_moment("some", monkeypatch)
    start = Start(abs, "one", (range(10),))
    assert not start.run()
    assert start.total == 10
    assert start.items == start.values == [0, 1, 2]
    assert len(start.times) == 3
    assert start.errors == {}
    assert list(start.rest) == list(range(3, 10))


def test_the_last_task_may_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    set_moment("some", monkeypatch)
    assert Start(abs, "one", (range(DONE_IN_SOME),)).run()


class Caller:
    async def __call__(self, x: int) -> int:
        return x

    async def method(self, x: int) -> int:
        return x


async def coroutine(x: int) -> int:
    return x


@pytest.mark.usefixtures("moment")
def test_coroutine_functions_take_the_long_road() -> None:
    caller = Caller()
    functions: list[Any] = [coroutine, partial(coroutine), caller, caller.method, Caller.method]
    if sys.version_info >= (3, 12):
        functions += [inspect.markcoroutinefunction(lambda x: coroutine(x))]
    for fn in functions:
        assert is_coroutine(fn)
        assert not suits(fn, ([],))
        if fn is not Caller.method:
            assert plait.map(fn, range(5)) == list(range(5))
    values: Any = plait.map(Caller.method, [caller] * 3, range(3))
    assert values == [0, 1, 2]


@pytest.mark.parametrize("options", [{}, {"on_error": "raise"}])
def test_calling_a_class_is_no_coroutine_whatever_its_objects_are(options: Any) -> None:
    class Job:
        def __init__(self, x: int) -> None:
            self.x = x

        async def __call__(self) -> None: ...

    assert [job.x for job in plait.map(Job, range(3), **options)] == [0, 1, 2]
