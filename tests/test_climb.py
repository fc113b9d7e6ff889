"""How many tasks to run at once is found by trying, on servers that are formulas."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.climb import PATIENCE, Climber
from plait.curve import Curve
from tests.properties.conftest import examples

LATENCY_S = 0.1


class Server:
    """Serves so many tasks a second at a size, give or take some chance."""

    def __init__(self, served: Callable[[int], float], seed: int = 0, noise: float = 0.1) -> None:
        self.served = served
        self._random = random.Random(seed)
        self._noise = noise

    def serve(self, climber: Climber, times: int = 1, trips: float = 2) -> list[int]:
        """Serve intervals of some round trips; return the size after each."""
        sizes = []
        for _ in range(times):
            rate = self.served(climber.size) * self._random.uniform(
                1 - self._noise, 1 + self._noise
            )
            tasks = max(8, round(trips * climber.size))
            sizes.append(climber.learn(tasks, tasks / rate))
        return sizes

    def settle(self, climber: Climber, most: int = 150) -> int:
        """Serve until the climber is content; return how many intervals that took."""
        for count in range(1, most + 1):
            self.serve(climber)
            if climber.is_settled:
                return count
        raise AssertionError(f"it did not settle in {most} intervals")


def up_to(knee: float) -> Callable[[int], float]:
    """Make a server that has ``knee`` places."""
    return lambda size: min(size, knee) / LATENCY_S


def with_contention(alpha: float, beta: float) -> Callable[[int], float]:
    """Make one that gets slower with what is inside (Gunther's universal scalability law)."""
    return lambda n: n / (1 + alpha * (n - 1) + beta * n * (n - 1)) / LATENCY_S


@pytest.mark.parametrize("start", [1, 4, 32, 200])
@pytest.mark.parametrize("knee", [1, 2, 3, 5, 8, 16, 40, 90, 150])
def test_it_settles_a_little_above_the_knee(start: int, knee: int) -> None:
    for seed in range(3):
        climber = Climber(start, most=256)
        Server(up_to(knee), seed).settle(climber)
        assert knee <= climber.size <= 1.6 * knee


@examples(100)
@given(
    start=st.integers(1, 300),
    knee=st.floats(1, 200),
    seed=st.integers(0, 2**32),
    trips=st.floats(1, 10),
)
def test_it_settles_near_any_knee(start: int, knee: float, seed: int, trips: float) -> None:
    climber = Climber(start, most=256)
    server = Server(up_to(knee), seed)
    server.settle(climber)
    assert knee * 0.85 <= climber.size <= max(1.65 * knee, knee + 1)
    for size in server.serve(climber, times=PATIENCE - 10, trips=trips):
        assert size == climber.size


def test_a_quiet_server_is_known_after_a_few_readings() -> None:
    climber = Climber(8, most=256)
    server = Server(up_to(50), noise=0)
    assert server.settle(climber) <= 40
    assert 50 <= climber.size <= 80


def test_it_doubles_while_throughput_does() -> None:
    climber = Climber(4, most=1000)
    sizes = Server(up_to(1000), noise=0).serve(climber, times=12)
    assert [size for size, after in pairwise(sizes) if size != after] == [
        8, 16, 32, 64, 128,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("alpha", "beta"), [(0.02, 0.0005), (0.05, 0.001), (0.1, 0.01), (0, 0.0001)]
)
@pytest.mark.parametrize("start", [1, 16, 250])
def test_it_comes_back_from_beyond_the_peak(start: int, alpha: float, beta: float) -> None:
    served = with_contention(alpha, beta)
    peak = max(range(1, 257), key=served)
    for seed in range(3):
        climber = Climber(start, most=256)
        Server(served, seed).settle(climber)
        assert served(climber.size) >= 0.8 * served(peak)
        assert climber.size <= 1.25 * peak


def test_where_one_more_never_helps_it_stays_with_the_least() -> None:
    for least in (1, 3):
        climber = Climber(50, most=100, least=least)
        Server(lambda _: 10.0).settle(climber)
        assert least <= climber.size <= least + 1


def test_where_one_more_always_helps_it_goes_to_the_most() -> None:
    climber = Climber(4, most=100)
    Server(up_to(1e9)).settle(climber)
    assert climber.size == 100


def test_it_sees_that_the_server_became_slower() -> None:
    climber = Climber(8, most=256)
    server = Server(up_to(64))
    server.settle(climber)
    server.serve(climber, times=8)
    server.served = up_to(16)
    server.serve(climber, times=8)
    server.settle(climber)
    assert 16 <= climber.size <= 26


def test_after_a_while_it_sees_that_more_would_be_served() -> None:
    climber = Climber(8, most=256)
    server = Server(up_to(16))
    server.settle(climber)
    server.served = up_to(64)
    server.serve(climber, times=2 * PATIENCE)
    server.settle(climber)
    assert 64 <= climber.size <= 103


def test_it_looks_again_less_and_less_often_while_nothing_changes() -> None:
    climber = Climber(8, most=256)
    server = Server(up_to(20), noise=0)
    sizes = server.serve(climber, times=1500)
    calm = [sum(size == climber.size for size in sizes[i : i + 500]) for i in (0, 500, 1000)]
    assert calm[0] < calm[1] < 500
    assert calm[2] > 0.9 * 500


# --- Whatever is learned ---------------------------------------------------------------------

EVENTS = st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 1e6)), max_size=200)


@examples(200)
@given(
    start=st.integers(-5, 2000),
    least=st.integers(1, 20),
    room=st.integers(0, 500),
    events=EVENTS,
)
def test_it_stays_in_its_bounds_and_does_the_same_again(
    start: int, least: int, room: int, events: list[tuple[int, float]]
) -> None:
    first, second = (Climber(start, least + room, least) for _ in range(2))
    for event in events:
        for climber in (first, second):
            size = climber.learn(*event)
            assert size == climber.size
            assert least <= size <= least + room
        assert first.size == second.size


@examples(50)
@given(st.integers(1, 40), st.lists(st.integers(0, 100), min_size=1, max_size=30))
def test_intervals_of_any_length_are_added_up(size: int, parts: list[int]) -> None:
    """It decides after a round trip, however often it is told of its parts."""
    whole, split = Climber(size, 1000), Climber(size, 1000)
    total = sum(parts)
    whole.learn(total, total * 0.01)
    for part in parts:
        if split.size != size:  # it has decided already
            return
        split.learn(part, part * 0.01)
    assert split.size == whole.size


def test_a_curve_tells_what_is_good_from_what_is_chance() -> None:
    curve = Curve()
    curve.note(10, 100.0)
    curve.note(20, 103.0)
    assert curve.is_good(10)
    assert curve.doubt(10, here=20) == 20
    for _ in range(5):
        curve.note(10, 100.0)
        curve.note(20, 103.0)
    assert curve.doubt(10, here=20) is None
    curve.note(40, 200.0)
    assert not curve.is_good(20)
    assert curve.doubt(20, here=40) is None
    assert (curve.best(), curve.sizes) == (40, [10, 20, 40])
