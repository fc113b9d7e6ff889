"""Items that can be taken as slices."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import plait
from plait import runs, sentinel
from plait.feed import Feed
from plait.inputs import SlicedInput, Span, can_slice
from plait.options import Options
from plait.outcome import Chunk

from .conftest import Way, double


@pytest.mark.parametrize(
    "items", [range(5), range(10, -10, -4), np.arange(5.0), np.ones((4, 2)), [1], (1,), Span([1])]
)
def test_ranges_arrays_and_lists_are_sliced(items: Any) -> None:
    assert can_slice(items)


class Numbers(list[int]):
    """A list that hands out something else than it holds."""

    def __iter__(self) -> Any:
        return iter([1, 2, 3])


@pytest.mark.parametrize(
    "items", ["ab", iter(range(3)), Numbers(), np.array(3), {1}, range(10**30)]
)
def test_what_may_mean_something_else_is_read_item_by_item(items: Any) -> None:
    assert not can_slice(items)


def test_slices_follow_each_other_to_the_end() -> None:
    given = SlicedInput(range(10))
    assert list(given.take(4)) == [0, 1, 2, 3]
    assert len(given.take(0)) == len(given.take(-3)) == 0  # nothing may be read at the moment
    ended = [given.has_ended]
    assert list(given.take(100)) == [4, 5, 6, 7, 8, 9]
    ended.append(given.has_ended)
    assert ended == [False, True]
    assert len(given.take(1)) == 0


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_span_is_a_part_of_a_list_without_a_copy(kind: Any) -> None:
    span = Span(kind("abcdef"), 2)
    assert (len(span), span[0], span[-1], list(span)) == (4, "c", "f", list("cdef"))
    assert span[1:3] == span.part(1, 3)[:] == ["d", "e"]
    assert type(span[1:3]) is list
    assert span[::-2] == ["f", "d"]
    assert pickle.loads(pickle.dumps(span)) == list("cdef")
    for outside in (4, -5):
        with pytest.raises(IndexError):
            span[outside]


def test_a_long_part_of_a_list_is_no_copy() -> None:
    items = [*range(200_000)]
    given = SlicedInput(items)
    assert given.take(10) == items[:10]
    rest = given.take(200_000)
    assert isinstance(rest, Span)
    assert (rest[0], len(rest), rest[-1]) == (10, 199_990, 199_999)
    assert given.has_ended


@pytest.mark.parametrize("backend", ["auto", "serial", "threads"])
def test_a_list_that_gets_shorter_meanwhile_ends_there(backend: Any) -> None:
    items = [*range(200_000)]

    def shorten(n: int) -> int:
        if n == 5:
            del items[100_000:]
        return n

    values = plait.map(shorten, items, backend=backend)
    assert values == [*range(len(values))]
    assert 100_000 <= len(values) <= 200_000


@pytest.mark.parametrize("task_s", [0.0, 0.000_1], ids=["tiny", "not so tiny"])
def test_in_the_sample_too_nothing_runs_after_the_first_error(task_s: float) -> None:
    calls = 0

    def fail(n: int) -> int:
        nonlocal calls
        calls += 1
        until = time.perf_counter() + task_s
        while time.perf_counter() < until:
            pass
        return 1 // (7 - n)

    with pytest.raises(ZeroDivisionError):
        plait.map(fail, range(1000), retries=0)
    assert calls == 8


def test_a_list_that_gets_shorter_amid_tasks_that_fail_gives_their_error() -> None:
    items = list(range(200_000))

    def shorten(n: int) -> int:
        if n == 100_005:
            del items[1000:]
            raise ValueError(n)
        return n

    with pytest.raises(ValueError, match="100005"):
        plait.map(shorten, items, backend="serial")


@pytest.mark.parametrize("options", [{"retries": 1}, {"backend": "serial"}, {"backend": "threads"}])
def test_a_list_that_gets_longer_is_an_error_that_carries_what_was_done(options: Any) -> None:
    items = list(range(100))

    def lengthen(n: int) -> int:
        if n == 50:
            items.append(100)
        return n

    with pytest.raises(plait.InputChanged, match="while its first 100 items were mapped") as caught:
        plait.map(lengthen, items, **options)
    run = caught.value.plait_run  # type: ignore[attr-defined]
    assert [outcome.value for outcome in run.outcomes] == list(range(100))
    again = pickle.loads(pickle.dumps(plait.InputChanged(7)))
    assert (again.total, str(again)) == (7, str(plait.InputChanged(7)))


@pytest.mark.parametrize("given", [lambda items: items, list, tuple])
@pytest.mark.parametrize("backend", ["auto", "serial"])
def test_as_in_a_loop_nothing_runs_after_the_first_error(
    backend: Any, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide: Any = runs.decide  # type: ignore[attr-defined]

    def decide_on_one(question: Any, **given: Any) -> Any:
        """Decide as if one were left, for the loop: on a busy machine others may be right."""
        return decide(question._replace(remaining=1), **given)

    monkeypatch.setattr(runs, "decide", decide_on_one)
    monkeypatch.setattr(sentinel.Sentinel, "arm", lambda *_: None)  # no helper if it stumbles
    calls = 0

    def fail_late(n: int) -> int:
        nonlocal calls
        calls += 1
        if n == 150_000:
            raise ValueError(n)
        return n

    with pytest.raises(ValueError, match="150000"):
        plait.map(fail_late, given(range(300_000)), backend=backend)
    assert calls == 150_001
    calls = 0
    values: list[Any] = plait.map(
        fail_late, given(range(300_000)), backend=backend, on_error="return"
    )
    assert calls == len(values) == 300_000
    assert isinstance(values[150_000], ValueError)
    assert values[299_999] == 299_999


def test_no_more_is_taken_after_the_end() -> None:
    given = SlicedInput(range(10))
    given.close()
    assert given.has_ended
    assert len(given.take(5)) == 0


CALLS: list[Callable[..., Any]] = [
    lambda *args, **options: list(plait.map(*args, **options)),
    lambda *args, **options: list(plait.imap(*args, **options)),
    lambda *args, **options: [o.value for o in plait.run(*args, ordered=True, **options)],
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("items", [range(3, 4000, 7), np.arange(500), np.arange(6.0).reshape(3, 2)])
def test_values_are_those_of_the_loop(way: Way, call: Any, items: Sequence[Any]) -> None:
    values = call(way.fn(double), items, **way.options)
    assert len(values) == len(items)
    assert all(np.array_equal(got, double(item)) for got, item in zip(values, items, strict=True))


def test_outcomes_have_the_items(way: Way) -> None:
    with plait.run(way.fn(double), range(5, 3000, 3), ordered=True, **way.options) as run:
        assert [outcome.item for outcome in run] == list(range(5, 3000, 3))


def test_an_error_names_its_item(way: Way) -> None:
    def fail_late(x: int) -> int:
        return 1 // (x - 1999)

    with pytest.raises(ZeroDivisionError) as caught:
        plait.map(way.fn(fail_late), range(1000, 3000), **way.options)
    assert "task 999, fail_late(1999)" in "".join(caught.value.__notes__)


def test_the_sample_counts(tmp_path: Any) -> None:
    """With backend="auto" the first items of a range have been run when the rest is sliced."""
    seen: list[int] = []

    def note(x: int) -> int:
        seen.append(x)
        sum(range(2000))
        return x

    assert plait.map(note, range(500)) == list(range(500))
    assert seen == sorted(set(seen))  # each once; the others ran elsewhere
    assert seen[0] == 0


def numbers(chunk: Chunk) -> list[int]:
    """Return the items of a chunk, which are the numbers of its tasks here."""
    assert list(chunk.items) == list(range(chunk.first, chunk.first + len(chunk.items)))
    return list(chunk.items)


def test_what_is_given_back_is_taken_again_in_order() -> None:
    for source in (iter(range(20)), range(20)):
        feed = Feed(source, 20, Options(), keeps=True)
        feed.open(lambda: None)
        chunk = feed.take(10, 10, 1)
        assert numbers(chunk) == list(range(10))
        feed.give_back(chunk.part(4))
        assert (feed.fed, feed.remaining, feed.numbered) == (4, 16, 10)
        chunk = feed.take(3, 3, 1)
        assert numbers(chunk) == [4, 5, 6]
        feed.give_back(chunk.part(1))  # again, of what was given back before
        chunks = [feed.take(4, 4, 1) for _ in range(6)]
        assert [item for chunk in chunks for item in numbers(chunk)] == list(range(5, 20))
        feed.give_back(chunks[-1] if chunks[-1].items else chunks[-2])
        assert numbers(feed.take(4, 4, 1))
        assert feed.has_given_all


def test_what_is_given_back_may_be_taken_also_where_nothing_more_may_be_read() -> None:
    """Found by a random call: a plan of fewer workers may read less far ahead than the one before.

    The results after those that were given back waited for them, and they for room.
    """
    feed = Feed(iter(range(100)), 100, Options(buffersize="auto"))
    feed.open(lambda: None)
    first = feed.take(5, 5, 4)
    while (chunk := feed.take(9, 9, 4)).items:  # as far as four workers may
        assert numbers(chunk)
    feed.give_back(first.part(3))
    assert numbers(feed.take(1, 1, 1)) == [3]
    assert not feed.is_held_up
    assert numbers(feed.take(1, 1, 1)) == [4]
    assert not feed.take(1, 1, 1).items
    assert feed.is_held_up


def test_what_is_given_back_after_a_stop_is_not_taken_again() -> None:
    feed = Feed(range(20), 20, Options(), keeps=True)
    feed.open(lambda: None)
    chunk = feed.take(10, 10, 1)
    feed.stop()  # as Ctrl-C does, in the middle of a step
    feed.give_back(chunk.part(5))
    assert not feed.is_open
    assert not feed.take(5, 5, 1).items
    assert [numbers(chunk) for chunk in feed.returned] == [[5, 6, 7, 8, 9]]


def test_a_stop_that_comes_amid_a_give_back_is_not_forgotten() -> None:
    feed = Feed(range(20), 20, Options(), keeps=True)
    feed.open(lambda: None)
    chunk = feed.take(20, 20, 1)

    class StopsAmidst(list[Any]):
        def __len__(self) -> int:
            feed.stop()
            return 3

    feed.give_back(chunk._replace(items=StopsAmidst([17, 18, 19])))
    assert not feed.is_open


@pytest.mark.parametrize("is_sliced", [False, True])
def test_a_task_keeps_its_number_in_whatever_order_chunks_are_given_back(is_sliced: bool) -> None:
    for seed in range(200):
        draw = random.Random(seed)
        total = draw.randrange(40)
        items = range(total) if is_sliced else iter(range(total))
        feed = Feed(items, total, Options(), keeps=True)
        feed.open(lambda: None)
        out: list[Chunk] = []
        done: list[int] = []
        while feed.is_open or out:
            step = draw.choice(("take", "give back", "finish")) if out else "take"
            if step == "take":
                chunk = feed.take(draw.randint(1, 9), 9, 1)
                out += [chunk] if chunk.items else []
                continue
            chunk = out.pop(draw.randrange(len(out)))
            place = draw.randint(0, len(chunk.items)) if step == "give back" else None
            done += numbers(chunk.part(0, place))
            if place is not None:
                feed.give_back(chunk.part(place))
            assert feed.fed == len(done) + sum(len(chunk.items) for chunk in out), seed
        assert sorted(done) == list(range(total)), seed
        assert feed.numbered == total
