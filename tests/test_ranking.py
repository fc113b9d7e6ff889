"""Which of several ways is good enough, and where it gets worse."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait import ranking
from plait.ranking import (
    FAR,
    NEAR,
    as_good_as_best,
    best_way,
    excess,
    is_worse,
    quartiles,
    worse_than_best,
)
from tests.properties.conftest import examples

seconds = st.floats(1e-6, 1e3)


def test_the_examples_in_its_docstrings() -> None:
    assert doctest.testmod(ranking).failed == 0


def steady(*times: float) -> list[list[float]]:
    """Five rounds that hardly vary."""
    return [[time * wobble for wobble in (1.0, 1.001, 0.999, 1.0, 1.002)] for time in times]


def by_size(*times: float) -> dict[int, list[float]]:
    return dict(zip((2, 4, 8, 16), steady(*times), strict=False))


@pytest.mark.parametrize(
    ("times", "good", "worse"),
    [
        ((1.0, 1.0, 1.0), 2, None),
        ((1.02, 1.0, 1.01), 2, None),  # within 3% of the best
        ((1.05, 1.0, 1.01), 4, None),
        ((1.0, 1.01, 1.2), 2, 8),
        ((1.0, 1.2, 1.1), 2, 4),
        ((2.0, 1.1, 1.0), 8, None),
        ((2.0, 1.0, 1.01, 1.1), 4, 16),
    ],
)
def test_the_smallest_size_that_is_as_good_and_the_first_that_is_worse(
    times: tuple[float, ...], good: int, worse: int | None
) -> None:
    assert as_good_as_best(by_size(*times)) == good
    assert worse_than_best(by_size(*times)) == worse


def test_noise_that_falls_on_a_whole_round_makes_no_difference() -> None:
    pace = (1.0, 3.0, 1.0, 5.0, 2.0)  # of the machine
    times = {size: [time * slow for slow in pace] for size, time in ((2, 1.0), (4, 1.06))}
    assert is_worse(times[4], times[2])
    longer, noise = excess(times[4], times[2])
    assert longer == pytest.approx(0.06)
    assert noise == NEAR


def test_where_rounds_vary_more_more_is_as_good_but_there_is_an_end() -> None:
    best = [1.0, 1.0, 1.0, 1.0, 1.0]
    shaky = [0.9, 1.3, 1.06, 1.0, 1.2]
    assert not is_worse(shaky, best)  # 6% longer, and that is less than the rounds vary
    assert is_worse([time + 0.1 for time in shaky], best)
    assert excess([1.0, 9.0, 1.5, 3.0, 1.0], best)[1] == FAR


def test_what_is_hardly_better_than_the_loop_is_not_worth_it_where_more_is() -> None:
    best = [1.0, 1.0, 1.0, 1.0, 1.0]
    shaky = [1.13, 0.9, 1.3, 1.02, 1.1]
    times = {1: shaky, 2: best}
    assert as_good_as_best(times) == 1
    assert as_good_as_best(times, loops=[time * 1.02 for time in shaky]) == 2
    assert as_good_as_best(times, loops=[time * 1.5 for time in shaky]) == 1


@examples(200)
@given(st.lists(st.lists(seconds, min_size=4, max_size=4), min_size=1, max_size=6))
def test_the_choice_is_one_of_the_ways_and_not_worse_than_the_best(
    rounds: list[list[float]],
) -> None:
    times = dict(enumerate(rounds))
    good, best, worse = as_good_as_best(times), best_way(times), worse_than_best(times)
    assert good <= best
    assert not is_worse(times[good], times[best])
    assert worse is None or worse > best


def test_quartiles_of_a_few() -> None:
    assert quartiles([3.0]) == (3.0, 3.0)
    assert quartiles([2.0, 1.0]) == (1.25, 1.75)
