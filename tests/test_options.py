"""Options are checked once, before any work, and each mistake has its own sentence."""

from __future__ import annotations

import asyncio
import pickle
from multiprocessing import get_context
from typing import Any

import pytest

import plait
from plait.errors import Victim
from plait.options import ALL_CPUS, FOREIGN, FOREIGN_VALUES, PLANNED, Options
from plait.retry import is_one


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("backend", "process", "one of 'auto', 'serial', 'threads', 'processes', 'asyncio'"),
        ("max_workers", 0, "a whole number from 1 up or None"),
        ("max_workers", 2.0, "a whole number from 1 up or None"),
        ("max_workers", True, "a whole number from 1 up or None"),
        ("chunksize", 0, "a whole number from 1 up or 'auto'"),
        ("chunksize", "many", "a whole number from 1 up or 'auto'"),
        ("ordered", "yes", "True, False or None"),
        ("on_error", "ignore", "one of 'raise', 'finish', 'return'"),
        ("initializer", "setup", "a function or None"),
        ("initargs", ["a"], "a tuple of the initializer's arguments"),
        ("start_method", "fork", "one of 'server', 'spawn'"),
        ("buffersize", -1, "a whole number from 1 up or 'auto'"),
        ("progress", "bar", "True, False or a function of (done, total)"),
        ("retry_on", "OSError", "an exception class, a tuple of them, or a function of the error"),
        ("slow_down_on", 503, "an exception class, a tuple of them, or a function of the error"),
        ("slow_down_on", int, "an exception class, a tuple of them, or a function of the error"),
    ],
)
def test_a_bad_value_names_option_value_and_what_is_allowed(
    option: str, value: Any, allowed: str
) -> None:
    def never(_: int) -> None:
        raise AssertionError("work has started")

    with pytest.raises(plait.OptionError) as caught:
        plait.map(never, [1], **{option: value})
    text = f"{option}={value!r} is not allowed: {option} must be {allowed}."
    assert str(caught.value).startswith(text)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("n_jobs", 8, "Use max_workers=8."),
        ("processes", 4, "Use max_workers=4."),
        ("workers", 4, "Use max_workers=4."),
        ("n_jobs", -1, f"Use max_workers. {ALL_CPUS}"),
        ("rate_limit", 10, "Use rate=10."),
        ("tries", 3, "Use retries=3."),
        ("retry_delay", 0.5, "Use backoff=0.5."),
        ("mp_context", get_context("spawn"), "Use start_method='spawn'."),
        ("mp_context", get_context("fork"), "Use start_method='server'."),
        ("batch_size", 100, "Use chunksize=100."),
        ("pre_dispatch", "2*n_jobs", "Use buffersize."),
        ("return_exceptions", True, "Use on_error='return'."),
        ("max_worker", 4, "Did you mean max_workers?"),
        ("bakend", "threads", "Did you mean backend?"),
        ("timeout_per_task", 3, "Use task_timeout=3."),
        ("throttle_on", 429, "Use slow_down_on."),
        ("slow_on", OSError, "Did you mean slow_down_on?"),
        ("journal", "run.db", "It is planned and not part of this version."),
    ],
)
def test_an_unknown_name_is_told_the_right_one(name: str, value: Any, hint: str) -> None:
    with pytest.raises(plait.UnknownOption) as caught:
        plait.map(abs, [1], **{name: value})
    assert str(caught.value) == f"plait has no option {name!r}. {hint}"
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("name", ["seed", "random_state"])
def test_who_asks_for_a_seed_is_told_where_it_belongs(name: str) -> None:
    given: Any = {name: 1}
    with pytest.raises(plait.UnknownOption, match="give each task a seed of its own"):
        plait.map(abs, [1], **given)


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("backend", "loky", "Use backend='processes'."),
        ("backend", "multiprocessing", "Use backend='processes'."),
        ("backend", "Threading", "Use backend='threads'."),
        ("backend", "sequential", "Use backend='serial'."),
        ("backend", "trio", "Use backend='asyncio'."),
        ("backend", "spawn", "Use backend='processes', start_method='spawn'."),
        ("backend", "forkserver", "Use backend='processes', start_method='server'."),
        ("on_error", "skip", "Use on_error='return' and leave the exceptions out of the list, or"),
        ("on_error", "fail_fast", "Use on_error='raise'."),
        ("on_error", "collect", "Use on_error='finish'."),
        ("start_method", "fork", "Use start_method='server'."),
        ("max_workers", -1, ALL_CPUS),
        ("max_workers", 0, ALL_CPUS),
    ],
)
def test_the_value_of_another_library_is_told_the_right_one(
    option: str, value: Any, hint: str
) -> None:
    with pytest.raises(plait.OptionError) as caught:
        plait.map(abs, [1], **{option: value})
    assert f". {hint}" in str(caught.value)


def test_every_value_in_a_hint_is_allowed() -> None:
    for name, values in FOREIGN_VALUES.items():
        for ours, theirs in values.items():
            assert getattr(Options.of({name: ours}), name) == ours
            for word in theirs:
                with pytest.raises(plait.OptionError):
                    Options.of({name: word})


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("n_jobs", 2, "Use max_workers=2."),
        ("max_worker", 2, "Did you mean max_workers?"),
        ("mp_context", get_context("spawn"), "Use start_method='spawn'."),
        ("retries", 3, "It is an option of plait.map and of what is called like it."),
        ("max_retries", 3, "plait.map and what is called like it have retries."),
        ("ignore_errors", True, "plait.map and what is called like it have on_error='return'."),
        ("executor", None, "It is an option of plait.map and of what is called like it."),
        ("zzz", 1, "The options are max_workers, backend, initializer, "),
    ],
)
def test_an_executor_tells_the_right_name_too(name: str, value: Any, hint: str) -> None:
    with pytest.raises(plait.UnknownOption) as caught:
        plait.Executor(**{name: value})
    assert str(caught.value).startswith(f"plait.Executor has no option {name!r}. {hint}")


def test_a_name_like_no_other_lists_them_all() -> None:
    with pytest.raises(plait.UnknownOption, match=r"The options are backend, max_workers, "):
        plait.map(abs, [1], zzz=1)  # type: ignore[call-arg]


def test_every_hint_leads_to_an_option() -> None:
    for word in FOREIGN.values():
        name = word.partition("=")[0]
        assert name in Options.__dataclass_fields__ or " " in name
    assert not set(PLANNED) & set(Options.__dataclass_fields__)


def test_the_function_must_be_callable() -> None:
    with pytest.raises(TypeError, match="needs a function to call, not int: 5"):
        plait.map(5, [1])  # type: ignore[arg-type]


def test_the_input_must_be_iterable() -> None:
    with pytest.raises(TypeError, match="the second input is no iterable but int"):
        plait.map(pow, [1], 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="at least one iterable"):
        plait.map(abs)


def test_coroutine_functions_and_backends_must_fit() -> None:
    async def coroutine(x: int) -> int:
        return x

    with pytest.raises(plait.OptionError, match="'asyncio' or 'auto' for a coroutine function"):
        plait.map(coroutine, [1], backend="threads")
    with pytest.raises(plait.OptionError, match="is for coroutine functions"):
        plait.map(abs, [1], backend="asyncio")


@pytest.mark.parametrize(
    "value", [TimeoutError, (), (OSError, TimeoutError), lambda error: "503" in str(error)]
)
def test_slow_down_on_takes_what_retry_on_takes(value: Any) -> None:
    assert Options.of({"slow_down_on": value}).slow_down_on is value
    assert Options.of({"retry_on": value}).retry_on is value


def test_by_default_no_error_slows_down_the_others() -> None:
    asked = Options.of({}).slow_down_on
    assert not any(is_one(error, asked) for error in (TimeoutError(), OSError()))


def test_a_time_that_is_over_tells_of_an_overloaded_server() -> None:
    asked = Options.of({"slow_down_on": TimeoutError}).slow_down_on
    for error in (
        TimeoutError(),
        asyncio.TimeoutError(),  # noqa: UP041  they are the same, and it should stay so
        plait.TaskTimeout.of_task(VICTIM, 1, 2),
    ):
        assert is_one(error, asked)
    for other in (ValueError(), ConnectionError(), KeyboardInterrupt()):
        assert not is_one(other, asked)


def test_a_function_says_which_errors_tell_of_an_overloaded_server() -> None:
    class HttpError(Exception):
        def __init__(self, status: int) -> None:
            self.status = status

    def is_refusal(error: BaseException) -> bool:
        return isinstance(error, HttpError) and error.status in (429, 503)

    assert is_one(HttpError(429), is_refusal)
    assert not is_one(HttpError(404), is_refusal)
    assert not is_one(TimeoutError(), is_refusal)
    assert not is_one(TimeoutError(), ())
    with pytest.raises(AttributeError, match="status"):  # the user's mistake, to be seen
        is_one(ValueError(), lambda error: bool(error.status == 503))  # type: ignore[attr-defined]


VICTIM = Victim(index=3, item="f(3)", attempt=2, worker="process-1", pid=7)


def test_errors_of_plait_can_be_pickled_with_their_facts() -> None:
    errors: list[plait.PlaitError] = [
        plait.OptionError("backend", 1, "something else"),
        plait.UnknownOption("n_jobs", "Use max_workers."),
        plait.NotPicklable("item", "item.lock", object(), "because"),
        plait.NotPicklable.on_arrival("result", ValueError("no")),
        plait.WorkerDied.of_task(VICTIM, -9, peak_bytes=10**9, stack="here"),
        plait.WorkerDied.of_task(VICTIM, -9, stopped_by=19),
        plait.TaskTimeout.of_task(VICTIM, 1.0, 1.5, "here"),
        plait.MemoryLimitExceeded.of_task(VICTIM, 10**9, 2 * 10**9),
        plait.RunTimeout(3.0, 10),
        plait.WorkerStartError("nothing works"),
        plait.PoolClosed("closed"),
        plait.RemoteError("a.B", "text", "trace"),
        plait.RemoteTraceback("trace"),
    ]
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert copy.__dict__ == error.__dict__
