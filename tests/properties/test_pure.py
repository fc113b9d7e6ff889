"""What is pure in plait, by its properties: cutting stretches, sizing chunks, reading sizes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plait
from plait.chunks import BRIEF_S, GROWTH, MOST_TASKS, TARGET_S, TINY_S, ChunkSizer
from plait.limits import LEAST_KNOWN, LEAST_RELATIVE_S, TimeLimit
from plait.options import Options
from plait.outcome import Attempt, Chunk, Finished, Stretch
from plait.retry import Retries, RetryPolicy
from tests.properties.conftest import examples

moments = st.floats(0, 1e6)
durations = st.floats(0, 1e3)
task_times = st.floats(1e-9, 100)


@st.composite
def stretches(draw: st.DrawFn) -> Finished:
    """Make a stretch of finished tasks, some failed, timed one by one or all together."""
    count = draw(st.integers(1, 30))
    first = draw(st.integers(0, 1000))
    failed = draw(st.sets(st.integers(0, count - 1)))
    values = [None if place in failed else first + place for place in range(count)]
    errors: dict[int, BaseException] = {
        place: draw(st.sampled_from((ValueError, KeyError)))(first + place) for place in failed
    }
    times = draw(
        st.lists(st.tuples(moments, durations), min_size=count, max_size=count)
        | st.lists(st.tuples(moments, durations), min_size=1, max_size=1)
    )
    earlier = tuple(
        Attempt(ValueError(), "process-1", 1, 0.0, 0.0) for _ in range(draw(st.integers(0, 2)))
    )
    chunk = Chunk(first, list(range(first, first + count)), earlier=earlier)
    stretch = Stretch(values, errors, times, queued_s=draw(durations))
    return Finished.of(chunk, 0, stretch, "process-2", 7)


@examples(100)
@given(stretches(), st.data())
def test_a_part_has_the_outcomes_of_the_whole(whole: Finished, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(whole.values) - 1))
    end = data.draw(st.integers(start + 1, len(whole.values)))
    part = whole.part(start, end)
    assert list(part.outcomes()) == list(whole.outcomes())[start:end]
    assert part.queued_s <= whole.queued_s


@examples(100)
@given(stretches(), st.sets(st.integers(1, 29)))
def test_parts_add_up_to_the_whole(whole: Finished, cuts: set[int]) -> None:
    count = len(whole.values)
    ends = [*sorted(cut for cut in cuts if cut < count), count]
    parts = [whole.part(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    assert [out for part in parts for out in part.outcomes()] == list(whole.outcomes())
    assert math.isclose(sum(part.seconds for part in parts), whole.seconds, abs_tol=1e-9)
    assert math.isclose(sum(part.queued_s for part in parts), whole.queued_s, abs_tol=1e-9)


@examples(200)
@given(
    whole=stretches(),
    retries=st.integers(0, 3),
    retry_on=st.sampled_from((Exception, ValueError, (KeyError,), lambda e: e.args[0] % 2 == 0)),
    backoff=st.floats(0, 10) | st.tuples(st.floats(0, 10), st.floats(1, 3), st.floats(0, 60)),
    drawn=st.floats(0, 1),
    now=moments,
)
def test_keep_cuts_a_stretch_into_final_tasks_and_those_tried_again(
    whole: Finished,
    retries: int,
    retry_on: plait.options.ErrorFilter,
    backoff: float | tuple[float, float, float],
    drawn: float,
    now: float,
) -> None:
    options = Options.of({"retries": retries, "retry_on": retry_on, "backoff": backoff})
    policy = RetryPolicy(options)
    waiting = Retries(policy, lambda: drawn)
    final = [outcome for part in waiting.keep(whole, now) for outcome in part.outcomes()]
    to_retry = {
        outcome.index
        for outcome in whole.outcomes()
        if outcome.error is not None and outcome.attempt <= retries and is_met(retry_on, outcome)
    }
    assert final == [outcome for outcome in whole.outcomes() if outcome.index not in to_retry]
    assert len(waiting) == len(to_retry)
    assert bool(waiting) == bool(to_retry)
    assert waiting.due >= now
    assert waiting.due < math.inf or not waiting
    if drawn == 0 and waiting:
        assert waiting.take_due(now) is not None
        assert len(waiting) == len(to_retry) - 1


def is_met(retry_on: plait.options.ErrorFilter, outcome: plait.Outcome) -> bool:
    assert outcome.error is not None
    if isinstance(retry_on, type | tuple):
        return isinstance(outcome.error, retry_on)
    return retry_on(outcome.error)


@examples(100)
@given(stretches(), st.lists(st.floats(0, 1), min_size=30, max_size=30))
def test_tasks_are_tried_again_when_due_each_once(whole: Finished, draws: list[float]) -> None:
    numbers = iter(draws)
    options = Options.of({"retries": 9, "backoff": (5.0, 1.0, 5.0)})
    waiting = Retries(RetryPolicy(options), lambda: next(numbers))
    list(waiting.keep(whole, 100.0))
    seen: list[int] = []
    while waiting:
        due = waiting.due
        assert 100.0 <= due <= 105.0
        assert waiting.take_due(math.nextafter(due, 0)) is None
        chunk = waiting.take_due(due)
        assert chunk is not None
        (item,) = chunk.items
        assert item == chunk.first
        seen.append(item)
        (failed,) = [out for out in whole.outcomes() if out.index == item]
        assert chunk.attempt == failed.attempt + 1
        assert chunk.earlier[:-1] == whole.earlier
        assert chunk.earlier[-1].error is failed.error
    assert sorted(seen) == sorted(whole.first + place for place in whole.errors)


@examples(100)
@given(stretches(), st.lists(st.floats(0, 1), min_size=30, max_size=30))
def test_giving_up_returns_all_that_wait(whole: Finished, draws: list[float]) -> None:
    numbers = iter(draws)
    waiting = Retries(RetryPolicy(Options(retries=9)), lambda: next(numbers))
    final = [out for part in waiting.keep(whole, 0.0) for out in part.outcomes()]
    given_up = [out for part in waiting.give_up() for out in part.outcomes()]
    assert not waiting
    by_index = sorted([*final, *given_up], key=lambda out: out.index)
    assert by_index == list(whole.outcomes())


# --- Chunks ----------------------------------------------------------------------------------


@examples(200)
@given(
    chunksize=st.just("auto") | st.integers(1, 10_000),
    workers=st.integers(1, 64),
    total=st.integers(1, 10_000),
    times=st.lists(task_times, min_size=1, max_size=20),
    is_known=st.booleans(),
)
def test_chunks_cover_the_input_and_stay_in_bounds(
    chunksize: int | Literal["auto"],
    workers: int,
    total: int,
    times: list[float],
    is_known: bool,
) -> None:
    sizer = ChunkSizer(chunksize, workers)
    left, largest, turn = total, 1, 0
    while left:
        size = sizer.next(left if is_known else None)
        assert size.tasks >= 1
        if chunksize == "auto":
            assert size.tasks <= min(MOST_TASKS, largest * GROWTH)
            assert size.tasks <= left or not is_known
            if sizer.task_s is not None:
                assert size.tasks == 1 or size.tasks * sizer.task_s <= TARGET_S * 1.001
        else:
            assert size.tasks == chunksize
        if size.together:
            assert size.tasks > 1
            assert sizer.task_s is not None
            assert sizer.task_s < TINY_S
        if size.brief:
            assert sizer.task_s is not None
            assert sizer.task_s * size.tasks < BRIEF_S
        taken = min(size.tasks, left)
        left -= taken
        largest = max(largest, taken)
        sizer.learn(taken, taken * times[turn % len(times)])
        turn += 1
    assert sizer.task_s is not None
    assert min(times) * 0.999 <= sizer.task_s <= max(times) * 1.001


@examples(100)
@given(task_s=task_times, measured=st.integers(0, 5000), workers=st.integers(1, 64))
def test_no_worker_gets_more_than_its_half_share_of_what_remains(
    task_s: float, measured: int, workers: int
) -> None:
    """... unless that were less work than a message is worth."""
    for remaining in (1, 2, 17, 1000, 100_000):
        tasks = ChunkSizer("auto", workers, task_s, measured).next(remaining).tasks
        share = -(-remaining // (2 * workers))
        assert tasks <= share or tasks * task_s <= 0.000_5 * 1.001


# --- Options ---------------------------------------------------------------------------------

SCALES = {"": 1} | {
    prefix + infix: base**power
    for infix, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("KMGT", 1)
}


@examples(200)
@given(
    whole=st.integers(1, 9999),
    thousandths=st.integers(0, 999) | st.none(),
    scale=st.sampled_from(sorted(SCALES)),
    b=st.sampled_from(("", "B", "b")),
    space=st.sampled_from(("", " ")),
    is_lower=st.booleans(),
)
def test_a_size_is_read_as_it_is_written(
    whole: int, thousandths: int | None, scale: str, b: str, space: str, is_lower: bool
) -> None:
    number = str(whole) if thousandths is None else f"{whole}.{thousandths:03}"
    text = f"{number}{space}{scale}{b}"
    limit = Options.of({"memory_limit": text.lower() if is_lower else text}).memory_bytes
    assert limit is not None
    assert (
        abs(limit - Fraction(number) * SCALES[scale])
        <= 1 + Fraction(number) * SCALES[scale] / 10**15
    )


@examples(50)
@given(st.integers(1, 2**70))
def test_bytes_are_bytes(count: int) -> None:
    assert Options.of({"memory_limit": count}).memory_bytes == count


@examples(300)
@given(
    st.text(alphabet="0123456789.-+eEkKmMgGtTiIbB _x", max_size=8)
    | st.text(max_size=4)
    | st.floats()
    | st.integers(max_value=0)
    | st.booleans()
    | st.sampled_from(("1XB", "GB", "", "1 2GB", "nan", "inf", "1e400", "-1GB", "0", b"1GB", [1]))
)
def test_what_is_no_size_is_refused_in_words(given_size: object) -> None:
    """A limit is either a whole number of bytes above 0 or refused, never an odd exception."""
    try:
        limit = Options.of({"memory_limit": given_size}).memory_bytes
    except plait.OptionError as error:
        text = str(error)
    else:
        assert isinstance(limit, int)
        assert limit > 0
        return
    assert "memory_limit" in text


@examples(300)
@given(
    name=st.sampled_from(
        ("task_timeout", "timeout", "retries", "backoff", "max_workers", "chunksize", "buffersize")
    ),
    value=st.floats()
    | st.integers(-5, 5)
    | st.booleans()
    | st.none()
    | st.text(max_size=5)
    | st.tuples(st.floats(), st.floats(), st.floats())
    | st.sampled_from(("5x", "0x", "x", "-1x", "nanx", "infx", "auto", (1, 2), [], {})),
)
def test_an_option_is_good_or_refused_in_words(name: str, value: object) -> None:
    try:
        options = Options.of({name: value})
    except plait.OptionError as error:
        text = str(error)
    else:
        RetryPolicy(options)
        TimeLimit(options.task_timeout)
        return
    assert name in text


# --- Limits ----------------------------------------------------------------------------------


@examples(100)
@given(st.floats(0.1, 100), st.lists(stretches(), max_size=5))
def test_a_relative_limit_is_known_after_five_tasks_that_succeeded(
    factor: float, finished: list[Finished]
) -> None:
    limit = TimeLimit(f"{factor}x")
    assert limit.is_set
    known: list[float] = []
    for stretch in finished:
        limit.learn(stretch)
        known += [outcome.seconds for outcome in stretch.outcomes() if outcome.ok]
        if len(known) < LEAST_KNOWN:
            assert limit.seconds is None
        else:
            assert limit.seconds is not None
            most = max(factor * max(known), LEAST_RELATIVE_S)
            assert LEAST_RELATIVE_S <= limit.seconds <= most


@pytest.mark.parametrize("asked", [None, 0.5, 3.0])
def test_a_limit_in_seconds_stays(asked: float | None) -> None:
    limit = TimeLimit(asked)
    assert (limit.seconds, limit.is_set) == (asked, asked is not None)
