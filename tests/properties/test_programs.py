"""Random programs of maps keep plait's promises, on every kind of worker.

A program is a few maps on one warm pool, one after the other or all at once, each with items
that behave well or badly, used in one of the ways that plait offers, read to the end or left.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
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
    LOGGER,
    Item,
    begun,
    check_error,
    check_fate,
    check_outcome,
    check_value,
    fate,
    most_at_once,
    perform,
    perform_async,
)

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.timeout(110 if not IS_LONG else 3600)]

# How a map is used; the last three leave it before its end.
WHOLE = ("run", "imap", "map return", "map finish")
LEFT = ("map raise", "run cancelled", "run left", "imap closed")


@dataclass(frozen=True)
class Call:
    """One map: its tasks (kind, count), its options, and how it is used."""

    use: str
    tasks: tuple[tuple[str, int], ...]
    options: dict[str, Any]
    stop_after: int
    is_lazy: bool


@dataclass(frozen=True)
class Program:
    """Some calls with the same pool: one after the other, or each in a thread."""

    way: str
    pool: dict[str, Any]
    calls: tuple[Call, ...]
    at_once: bool


def calls(kinds: tuple[str, ...]) -> st.SearchStrategy[Call]:
    """Make a map of up to 14 tasks; most of them, in most programs, are harmless."""
    tasks = st.tuples(
        st.one_of(st.sampled_from(HARMLESS), st.sampled_from(kinds)), st.integers(1, 3)
    )
    options = st.fixed_dictionaries(
        {
            "chunksize": st.one_of(st.just("auto"), st.integers(1, 5)),
            "retries": st.integers(0, 3),
            "buffersize": st.one_of(st.just("auto"), st.integers(1, 20)),
            "ordered": st.booleans(),
        }
    )
    return st.builds(
        Call,
        use=st.sampled_from((*WHOLE, *LEFT)),
        tasks=st.lists(tasks, max_size=14).map(tuple),
        options=options,
        stop_after=st.integers(0, 10),
        is_lazy=st.booleans(),
    )


def programs(*ways: str, most_calls: int) -> st.SearchStrategy[Program]:
    def of_way(way: str) -> st.SearchStrategy[Program]:
        is_process = way in PROCESS_WAYS
        kinds = (*GUILTY, *DEADLY) if is_process else GUILTY
        pool: dict[str, st.SearchStrategy[Any]] = {"max_workers": st.integers(1, 3)}
        if is_process:
            pool["max_tasks_per_child"] = st.one_of(st.none(), st.integers(1, 7))
        return st.builds(
            Program,
            way=st.just(way),
            pool=st.fixed_dictionaries(pool),
            calls=st.lists(calls(kinds), min_size=1, max_size=most_calls).map(tuple),
            at_once=st.booleans(),
        )

    return st.sampled_from(ways).flatmap(of_way)


# --- Running a program -----------------------------------------------------------------------


@dataclass
class Conduct:
    """A call as it is conducted: its items, what came of it, and what it wrote until it ended."""

    program: Program
    call: Call
    log: Path
    size: int = 0  # of the log, when the call was over
    outcomes: list[plait.Outcome] = field(default_factory=list)

    @property
    def items(self) -> list[Item]:
        return [
            Item(str(self.log), index, kind, count)
            for index, (kind, count) in enumerate(self.call.tasks)
        ]

    @property
    def is_process(self) -> bool:
        return self.program.way in PROCESS_WAYS

    @property
    def is_exact(self) -> bool:
        """Whether each try is seen by plait: no result is lost with a worker."""
        has_deaths = any(kind in DEADLY for kind, _ in self.call.tasks)
        return not has_deaths or self.call.options["chunksize"] == 1

    def conduct(self) -> None:
        """Make the call and check what came of it."""
        given: dict[str, Any] = {
            **WAYS.get(self.program.way, {"backend": "auto"}),
            **self.program.pool,
            **self.call.options,
            "backoff": 0.0,
        }
        fn = perform_async if self.program.way == "asyncio" else perform
        items: Any = self.items
        if self.call.is_lazy:
            items = iter(items)
        use, _, rest = self.call.use.partition(" ")
        try:
            getattr(self, f"_{use}")(fn, items, given, rest)
        finally:
            self.size = self.log.stat().st_size if self.log.exists() else 0

    def _fates(self) -> list[tuple[Item, bool]]:
        """Return each item, and whether it must end well."""
        retries = self.call.options["retries"]
        return [
            (item, fate(item, retries, is_process=self.is_process).is_ok) for item in self.items
        ]

    # --- run ---------------------------------------------------------------------------

    def _run(self, fn: Any, items: Any, given: dict[str, Any], rest: str) -> None:
        made = plait.run(fn, items, **given)
        if not rest:
            self.outcomes = list(made)
            assert made.outcomes == []
            self._check_whole()
            self._check_report(made.report)
            return
        for outcome in made:
            self.outcomes.append(outcome)
            if len(self.outcomes) >= self.call.stop_after:
                if rest == "cancelled":
                    made.cancel()
                break
        for outcomes in (self.outcomes, made.outcomes):
            self._check_part(outcomes)

    def _check_part(self, outcomes: list[plait.Outcome]) -> None:
        """Assert what holds for the outcomes of a run that was left."""
        indices = [outcome.index for outcome in outcomes]
        assert len(set(indices)) == len(indices)
        if self.call.options["ordered"]:
            assert indices == sorted(indices)
        for outcome in outcomes:
            check_outcome(outcome, self.items)

    def _check_whole(self) -> None:
        """Assert what holds for the outcomes of a run that went to its end."""
        self._check_part(self.outcomes)
        assert {outcome.index for outcome in self.outcomes} == set(range(len(self.items)))
        tries = begun(self.log)
        for outcome in self.outcomes:
            expected = fate(outcome.item, self.call.options["retries"], is_process=self.is_process)
            check_fate(outcome, expected, is_exact=self.is_exact)
            assert outcome.attempt <= tries[outcome.index]
            if self.is_exact:
                assert outcome.attempt == tries[outcome.index]
        if self.program.way != "auto":
            assert most_at_once(self.outcomes) <= self.program.pool["max_workers"]

    def _check_report(self, report: plait.Report) -> None:
        assert report.tasks == len(self.outcomes)
        assert report.errors == sum(not outcome.ok for outcome in self.outcomes)
        assert report.retries == sum(len(outcome.earlier) for outcome in self.outcomes)
        assert report.abandoned == 0

    # --- map and imap ------------------------------------------------------------------

    def _map(self, fn: Any, items: Any, given: dict[str, Any], on_error: str) -> None:
        given.pop("buffersize")
        bad = {item.index for item, is_ok in self._fates() if not is_ok}
        try:
            values = plait.map(fn, items, on_error=on_error, **given)  # type: ignore[arg-type]
        except BaseException as error:
            if not hasattr(error, "plait_run"):
                raise
            self._check_raised(error, error.plait_run, bad)
        else:
            assert on_error == "return" or not bad or not self.is_exact
            self._check_values(values)

    def _check_raised(self, error: BaseException, made: plait.Run, bad: set[int]) -> None:
        """Assert that a map raised the error, or all errors, of its run."""
        self._check_part(made.outcomes)
        errors = [outcome.error for outcome in made.outcomes if not outcome.ok]
        if self.call.use == "map finish":
            assert isinstance(error, BaseExceptionGroup)
            assert [id(one) for one in error.exceptions] == [id(one) for one in errors] or (
                not self.call.options["ordered"]
                and {id(one) for one in error.exceptions} == {id(one) for one in errors}
            )
            self.outcomes = made.outcomes
            self._check_whole()
        else:
            assert self.call.use == "map raise"
            assert any(error is one for one in errors)
            # A task that fails at times, after results were lost, may fail too.
            assert _index(error) in bad or not self.is_exact

    def _imap(self, fn: Any, items: Any, given: dict[str, Any], rest: str) -> None:
        with contextlib.closing(plait.imap(fn, items, on_error="return", **given)) as made:  # type: ignore[type-var]
            if not rest:
                self._check_values(list(made))
                return
            values = [value for value, _ in zip(made, range(self.call.stop_after), strict=False)]
        if self.call.options["ordered"]:
            self._check_values(values)

    def _check_values(self, values: list[Any]) -> None:
        """Assert that these are the values, or errors, of the (first) items."""
        fates = self._fates()
        if not self.call.options["ordered"]:
            assert len(values) == len(fates)
            good = {item.index**2 for item, is_ok in fates if is_ok and _is_square(item)}
            assert good <= {value for value in values if isinstance(value, int)}
            return
        if not self.call.use.endswith("closed"):
            assert len(values) == len(fates)
        for value, (item, is_ok) in zip(values, fates, strict=False):
            if not isinstance(value, BaseException):
                assert is_ok or not self.is_exact
                check_value(item, value)
            else:
                assert not is_ok
                check_error(item, value)

    # --- At the end of the program -----------------------------------------------------

    def check_silence(self) -> None:
        """Assert that nothing of the call ran after it was over."""
        assert self.size == (self.log.stat().st_size if self.log.exists() else 0)

    def check_said(self, said: Counter[str]) -> None:
        """Assert that what tasks printed and logged arrived: all of it, and once for each try."""
        if self.call.use not in WHOLE:
            return
        tries = begun(self.log)
        for item in self.items:
            if item.kind in ("prints", "logs"):
                count = said[f"<{item.log} {item.index}>"]
                assert 1 <= count <= tries[item.index]
                assert count == 1 or not self.is_exact


def _is_square(item: Item) -> bool:
    return item.kind != "cannot be pickled"


def _index(error: BaseException) -> int:
    """Return the task that an error names as an attribute, or in its note."""
    if isinstance(error, plait.TaskError):
        return error.index
    (note,) = error.__notes__
    return int(note.partition("task ")[2].partition(",")[0])


@contextlib.contextmanager
def listening(said: Counter[str]) -> Iterator[None]:
    """Count the lines that are printed and logged."""

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said[record.getMessage()] += 1

    ear = Ear()
    LOGGER.addHandler(ear)
    LOGGER.propagate = False
    try:
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            yield
        said.update(stdout.getvalue().split("\n"))
    finally:
        LOGGER.removeHandler(ear)


def conduct(program: Program) -> None:
    """Run a program and check all that can be said about it."""
    said: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        conducts = [
            Conduct(program, call, Path(folder) / f"log-{number}")
            for number, call in enumerate(program.calls)
        ]
        with listening(said):
            if program.at_once:
                _conduct_at_once(conducts)
            else:
                for one in conducts:
                    one.conduct()
            close_all()
        for one in conducts:
            one.check_silence()
            one.check_said(said)


def _conduct_at_once(conducts: list[Conduct]) -> None:
    errors: list[BaseException] = []

    def run(one: Conduct) -> None:
        try:
            one.conduct()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in conducts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# --- The tests -------------------------------------------------------------------------------


@examples(150)
@given(programs("serial", "threads", "asyncio", most_calls=3))
def test_programs_in_this_process(program: Program) -> None:
    conduct(program)


@examples(60)
@given(programs("server", most_calls=3))
def test_programs_on_forked_workers(program: Program) -> None:
    conduct(program)


@examples(6)
@given(programs("spawn", most_calls=2))
def test_programs_on_fresh_interpreters(program: Program) -> None:
    conduct(program)
