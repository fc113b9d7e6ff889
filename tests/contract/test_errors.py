"""How errors of tasks arrive, on every kind of worker."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, cast

import pytest

import plait
from tests.conftest import Way


class TwoArguments(Exception):
    """Pickle would call it with one argument."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.reason = reason


class Rewrites(Exception):
    """Pickle would call __init__ again, and get another text."""

    def __init__(self, name: str) -> None:
        super().__init__(f"bad name {name}")


class KeywordOnly(Exception):
    def __init__(self, *, path: str) -> None:
        super().__init__()
        self.path = path

    def __str__(self) -> str:
        return f"cannot read {self.path}"


class HoldsLock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()
        self.code = 7


class Unbuildable(Exception):
    def __new__(cls, *args: object) -> Unbuildable:
        if len(args) != 3:
            raise TypeError("three arguments, please")
        return super().__new__(cls, *args)

    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


def fail(item: Any) -> Any:
    if item == "two":
        raise TwoArguments(404, "not found")
    if item == "rewrites":
        raise Rewrites("x")
    if item == "keyword":
        raise KeywordOnly(path="a.txt")
    if item == "lock":
        raise HoldsLock("locked up")
    if item == "unbuildable":
        unbuildable = Exception.__new__(Unbuildable, 1, 2, 3)
        unbuildable.args = (1,)
        raise unbuildable
    if item == "chain":
        try:
            os.environ["PLAIT_MISSING"]
        except KeyError as missing:
            raise ValueError("no such key") from missing
    if item == "group":
        raise ExceptionGroup("both", [TwoArguments(1, "one"), OSError(2, "No such file", "b.txt")])
    if item == "note":
        noted = ValueError("noted")
        noted.add_note("written by the task")
        raise noted
    if item == "exit":
        raise SystemExit(3)
    if item == "interrupt":
        raise KeyboardInterrupt
    if item == "generator":
        raise GeneratorExit
    if item == "stop":
        raise StopIteration(5)
    if isinstance(item, int) and item < 0:
        raise ArithmeticError(item)
    return item


def outcome_of(way: Way, item: Any) -> plait.Outcome:
    """Run a failing task between two good ones, and return how it ended."""
    items = ["before", item, "after"]
    outcomes = list(plait.run(way.fn(fail), items, ordered=True, **way.options))
    assert [outcomes[0].value, outcomes[2].value] == ["before", "after"]
    return outcomes[1]


def error_of(way: Way, item: Any) -> Any:
    error = outcome_of(way, item).error
    assert error is not None
    return error


def test_the_users_exception_is_raised_as_itself(way: Way) -> None:
    with pytest.raises(ArithmeticError) as caught:
        plait.map(way.fn(fail), [1, 2, -3, 4], **way.options)
    assert caught.value.args == (-3,)


def test_the_note_names_the_task_and_the_worker(way: Way) -> None:
    outcome = outcome_of(way, -3)
    assert outcome.error is not None
    (note,) = outcome.error.__notes__
    assert note.startswith("plait: task 1, fail(-3), attempt 1, on ")
    assert outcome.worker in note
    assert str(outcome.pid) in note


def test_the_traceback_shows_where_the_task_failed(way: Way) -> None:
    import traceback

    text = "".join(traceback.format_exception(error_of(way, -3)))
    assert "raise ArithmeticError(item)" in text
    if way.is_process:
        cause = error_of(way, -3).__cause__
        assert isinstance(cause, plait.RemoteTraceback)
        assert "raise ArithmeticError(item)" in cause.text
        assert "child_main.py" not in cause.text


def test_a_class_with_its_own_signature_arrives_as_itself(way: Way) -> None:
    error = error_of(way, "two")
    assert type(error) is TwoArguments
    assert (error.code, error.reason, str(error)) == (404, "not found", "not found (404)")


def test_a_class_that_words_its_own_text_keeps_it(way: Way) -> None:
    assert str(error_of(way, "rewrites")) == "bad name x"


def test_a_class_with_keyword_arguments_arrives_as_itself(way: Way) -> None:
    error = error_of(way, "keyword")
    assert type(error) is KeywordOnly
    assert (error.path, str(error)) == ("a.txt", "cannot read a.txt")


def test_an_exception_that_holds_a_lock_arrives_without_it(way: Way) -> None:
    error = error_of(way, "lock")
    assert type(error) is HoldsLock
    assert (str(error), error.code) == ("locked up", 7)
    if way.is_process:
        assert any("cannot be pickled: lock" in note for note in error.__notes__)


def test_an_exception_that_cannot_be_built_is_told_in_text(process_way: Way) -> None:
    error = error_of(process_way, "unbuildable")
    assert type(error) is plait.RemoteError
    assert error.type_name.endswith("Unbuildable")
    assert "raise unbuildable" in error.traceback_text


def test_cause_and_context_stay(way: Way) -> None:
    error = error_of(way, "chain")
    assert str(error) == "no such key"
    assert isinstance(error.__cause__, KeyError)
    assert error.__context__ is error.__cause__
    assert error.__suppress_context__


def test_an_exception_group_stays_whole(way: Way) -> None:
    error = error_of(way, "group")
    assert type(error) is ExceptionGroup
    assert error.message == "both"
    two, missing = cast("tuple[Any, Any]", error.exceptions)
    assert (type(two), two.code) == (TwoArguments, 1)
    assert (missing.errno, missing.filename) == (2, "b.txt")


def test_the_tasks_own_notes_stay(way: Way) -> None:
    notes = error_of(way, "note").__notes__
    assert notes[0] == "written by the task"
    assert notes[1].startswith("plait: task 1")


def test_system_exit_is_the_tasks_outcome(way: Way) -> None:
    error = error_of(way, "exit")
    assert type(error) is SystemExit
    assert error.code == 3


def test_keyboard_interrupt_of_a_task_is_its_outcome(way: Way) -> None:
    if way.name == "serial":  # there it is the user's Ctrl-C, and leaves with what is done
        with pytest.raises(KeyboardInterrupt) as caught:
            plait.map(fail, ["before", "interrupt", "after"], chunksize=1, **way.options)
        assert [outcome.value for outcome in caught.value.plait_run.outcomes] == ["before"]  # type: ignore[attr-defined]
    else:
        assert type(error_of(way, "interrupt")) is KeyboardInterrupt


def test_generator_exit_is_the_tasks_outcome(way: Way) -> None:
    assert type(error_of(way, "generator")) is GeneratorExit


def test_stop_iteration_is_an_error_like_any_other(way: Way) -> None:
    if way.name == "asyncio":  # a coroutine cannot raise it
        assert type(error_of(way, "stop")) is RuntimeError
    else:
        assert type(error_of(way, "stop")) is StopIteration


def test_errors_in_tiny_tasks_sent_together(way: Way) -> None:
    items = [-x if x % 1000 == 999 else x for x in range(20_000)]
    outcomes = list(plait.run(way.fn(fail), items, ordered=True, **way.options))
    assert [outcome.index for outcome in outcomes] == list(range(20_000))
    for outcome, item in zip(outcomes, items, strict=True):
        assert outcome.item == item
        assert outcome.ok == (item >= 0)
        if not outcome.ok:
            assert outcome.error is not None
            assert outcome.error.args == (item,)


def test_on_error_return_puts_the_exception_in_its_place(way: Way) -> None:
    values = plait.map(way.fn(fail), [1, -2, 3], on_error="return", **way.options)
    assert values[0::2] == [1, 3]
    assert isinstance(values[1], ArithmeticError)
    lazy = list(plait.imap(way.fn(fail), [1, -2, 3], on_error="return", **way.options))
    assert lazy[0::2] == [1, 3]
    assert isinstance(lazy[1], ArithmeticError)


def test_on_error_finish_runs_everything_and_raises_a_group(way: Way) -> None:
    with pytest.raises(ExceptionGroup, match="2 of 5 tasks failed") as caught:
        plait.map(way.fn(fail), [1, -2, 3, -4, 5], on_error="finish", **way.options)
    assert [error.args for error in caught.value.exceptions] == [(-2,), (-4,)]
    run = caught.value.plait_run  # type: ignore[attr-defined]
    assert [outcome.value for outcome in run.outcomes] == [1, None, 3, None, 5]


def test_on_error_finish_yields_the_good_values_first(way: Way) -> None:
    values = plait.imap(way.fn(fail), [1, -2, 3], on_error="finish", **way.options)
    assert [next(values), next(values)] == [1, 3]
    with pytest.raises(ExceptionGroup, match="1 of 3 tasks failed"):
        next(values)


def test_the_error_that_leaves_map_carries_what_was_finished(way: Way, tmp_path: Path) -> None:
    def task(n: int) -> int:
        if n == 50:
            raise ArithmeticError(n)
        (tmp_path / str(n)).touch()
        return n

    with pytest.raises(ArithmeticError) as caught:
        plait.map(way.fn(task), range(100_000), chunksize=1, **way.options)
    run = caught.value.plait_run  # type: ignore[attr-defined]
    done = [outcome.value for outcome in run.outcomes if outcome.ok]
    assert done == sorted(int(path.name) for path in tmp_path.iterdir())
    assert run.report.errors == 1
    assert len(done) < 10_000  # it stopped


def test_imap_yields_what_comes_before_the_error(way: Way) -> None:
    values = plait.imap(way.fn(fail), [0, 1, 2, -3, 4], **way.options)
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ArithmeticError):
        next(values)


def test_with_raise_the_input_is_not_read_on(way: Way) -> None:
    drawn = []

    def source() -> Any:
        for item in [-1, *range(100_000)]:
            drawn.append(item)
            yield item

    with pytest.raises(ArithmeticError):
        plait.map(way.fn(fail), source(), chunksize=1, **way.options)
    assert len(drawn) < 1000
