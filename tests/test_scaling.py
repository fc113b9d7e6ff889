"""The law of scaling: its properties, its fit, how sure it is."""

from __future__ import annotations

import doctest
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait import scaling
from plait.scaling import Law, fit_law, fit_rounds
from tests.properties.conftest import examples

rates = st.floats(1e-3, 1e6)
contentions = st.floats(0, 1)
coherencies = st.floats(0, 0.5)
sizes = st.sets(st.integers(2, 128), min_size=3, max_size=8)
seconds = st.floats(1e-6, 1e3)


def measured(law: Law, at: set[int]) -> dict[int, float]:
    """What measurements without any noise would be."""
    return {size: law.throughput(size) for size in {1, *at}}


def found(throughputs: dict[int, float]) -> Law:
    law = fit_law(throughputs)
    assert law is not None
    return law


def test_the_examples_in_its_docstrings() -> None:
    assert doctest.testmod(scaling).failed == 0


# --- The law -----------------------------------------------------------------------------


@examples(100)
@given(contentions, coherencies)
def test_one_worker_does_as_much_as_one(contention: float, coherency: float) -> None:
    assert Law(1.0, contention, coherency).capacity(1) == 1


@examples(100)
@given(st.floats(0.001, 0.99), st.floats(1e-4, 0.5))
def test_nothing_is_above_the_peak(contention: float, coherency: float) -> None:
    law = Law(1.0, contention, coherency)
    highest = law.capacity(law.peak)
    assert law.limit == highest
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert law.capacity(max(1.0, law.peak * factor)) <= highest * (1 + 1e-12)


def test_the_peak_is_where_gunther_says() -> None:
    assert Law(1.0, 0.1, 0.009).peak == pytest.approx(10)
    assert Law(1.0, 0.1, 0.009).is_amdahl is False


@examples(100)
@given(st.floats(0.001, 0.99), st.integers(1, 10**6))
def test_without_coherency_it_is_amdahls_law(serial: float, workers: int) -> None:
    law = Law(1.0, serial, 0.0)
    assert law.is_amdahl
    assert law.peak == math.inf
    assert law.limit == pytest.approx(1 / serial)
    assert law.capacity(workers) == pytest.approx(1 / (serial + (1 - serial) / workers))


def test_without_either_there_is_no_limit() -> None:
    assert (Law(1.0, 0.0, 0.0).peak, Law(1.0, 0.0, 0.0).limit) == (math.inf, math.inf)


def test_where_all_work_is_one_at_a_time_one_worker_is_the_peak() -> None:
    assert Law(1.0, 1.5, 0.0).peak == 1
    assert Law(1.0, 0.9, 0.5).peak == 1


# --- The fit -----------------------------------------------------------------------------


@examples(200)
@given(rates, contentions, coherencies, sizes)
def test_a_fit_finds_the_law_again(
    one: float, contention: float, coherency: float, at: set[int]
) -> None:
    law = found(measured(Law(one, contention, coherency), at))
    assert law.contention == pytest.approx(contention, rel=1e-4, abs=1e-6)
    assert law.coherency == pytest.approx(coherency, rel=1e-4, abs=1e-6)
    assert law.misfit < 1e-6


@examples(200)
@given(st.dictionaries(st.integers(1, 128), rates, min_size=4), rates)
def test_a_fit_is_never_below_zero_and_on_a_scale_of_its_own(
    throughputs: dict[int, float], factor: float
) -> None:
    throughputs.setdefault(1, 1.0)
    law = found(throughputs)
    assert law.contention >= 0
    assert law.coherency >= 0
    assert law.peak >= 1
    other = found({size: rate * factor for size, rate in throughputs.items()})
    assert other.contention == pytest.approx(law.contention, rel=1e-3, abs=1e-6)
    assert other.coherency == pytest.approx(law.coherency, rel=1e-3, abs=1e-6)


@examples(100)
@given(contentions, coherencies, sizes, st.randoms(use_true_random=False))
def test_no_neighbour_fits_better(
    contention: float, coherency: float, at: set[int], noise: random.Random
) -> None:
    throughputs = {
        size: rate * noise.uniform(0.8, 1.25)
        for size, rate in measured(Law(1.0, contention, coherency), at).items()
    }
    law = found(throughputs)
    least = squares(throughputs, law.contention, law.coherency)
    for da, db in ((0.01, 0), (-0.01, 0), (0, 0.001), (0, -0.001), (0.01, -0.001), (-0.01, 0.001)):
        a, b = max(0.0, law.contention + da), max(0.0, law.coherency + db)
        assert squares(throughputs, a, b) >= least - 1e-9


def squares(throughputs: dict[int, float], a: float, b: float) -> float:
    """What is to be as small as can be: the relative errors of the times."""
    total = 0.0
    for size, rate in throughputs.items():
        capacity = rate / throughputs[1]
        time = (1 + a * (size - 1) + b * size * (size - 1)) / size
        total += (time * capacity - 1) ** 2
    return total


def test_faster_than_is_possible_is_no_contention() -> None:
    law = found({1: 1.0, 2: 2.4, 4: 5.0, 8: 11.0})
    assert (law.contention, law.coherency) == (0, 0)


@pytest.mark.parametrize("at", [set(), {2}, {2, 8}])
def test_two_sizes_say_nothing(at: set[int]) -> None:
    assert fit_law(measured(Law(1.0, 0.1, 0.01), at)) is None
    assert fit_rounds([measured(Law(1.0, 0.1, 0.01), at)] * 5) is None


# --- How sure it is ----------------------------------------------------------------------


def noisy_rounds(law: Law, spread: float, seed: int) -> list[dict[int, float]]:
    noise = random.Random(seed)
    return [
        {
            size: law.throughput(size) * noise.uniform(1 - spread, 1 + spread)
            for size in (1, 2, 4, 8)
        }
        for _ in range(7)
    ]


def test_the_ranges_have_the_fit_in_them_and_grow_with_the_noise() -> None:
    law = Law(50.0, 0.1, 0.01)
    widths = []
    for spread in (0.001, 0.01, 0.1):
        fitted = fit_rounds(noisy_rounds(law, spread, seed=1))
        assert fitted is not None
        assert fitted.contention_range is not None
        assert fitted.peak_range is not None
        low, high = fitted.contention_range
        assert low <= fitted.contention <= high
        assert fitted.peak_range.low <= fitted.peak <= fitted.peak_range.high
        widths.append(high - low)
    assert widths == sorted(widths)


def test_the_true_law_is_in_most_of_the_ranges() -> None:
    hits = 0
    for seed in range(20):
        fitted = fit_rounds(noisy_rounds(Law(50.0, 0.1, 0.01), 0.03, seed))
        assert fitted is not None
        assert fitted.contention_range is not None
        hits += fitted.contention_range.low <= 0.1 <= fitted.contention_range.high
    assert hits >= 14  # a bootstrap of seven rounds promises less than it says


def test_the_same_rounds_give_the_same_ranges() -> None:
    rounds = noisy_rounds(Law(1.0, 0.1, 0.01), 0.05, seed=2)
    assert fit_rounds(rounds) == fit_rounds(rounds)


def test_two_rounds_say_nothing_about_how_sure_it_is() -> None:
    fitted = fit_rounds(noisy_rounds(Law(1.0, 0.1, 0.01), 0.05, seed=2)[:2])
    assert fitted is not None
    assert fitted.contention_range is fitted.coherency_range is fitted.peak_range is None
