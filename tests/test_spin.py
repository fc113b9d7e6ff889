"""When it is looked about before sleeping, and when things are let come together."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait import spin
from plait.spin import MOST_PAUSE_S, SHORT_S, SPIN_S, Moderation, Spin


class Clock:
    """A clock that goes on by itself at each look at it, and while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(spin, "monotonic", self.read)

    def read(self) -> float:
        self.now += 0.000_001
        return self.now

    def sleep(self, seconds: float) -> str:
        self.now += seconds
        return "slept"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def looks_until_sleep(wait: Spin, clock: Clock, seconds: float) -> int:
    """Wait for something that comes in so many seconds; return how often it was looked for."""
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1

    assert wait.wait(look, lambda: clock.sleep(seconds)) == "slept"
    return looks


def test_who_knows_nothing_sleeps(clock: Clock) -> None:
    assert looks_until_sleep(Spin(), clock, seconds=SHORT_S * 2) == 0


def test_after_a_short_wait_it_is_looked_about_and_after_a_long_one_not(clock: Clock) -> None:
    wait = Spin()
    looks_until_sleep(wait, clock, seconds=SHORT_S / 3)
    assert looks_until_sleep(wait, clock, seconds=SHORT_S * 2) == pytest.approx(SPIN_S / 1e-6, 0.1)
    assert looks_until_sleep(wait, clock, seconds=SHORT_S / 3) == 0


def test_what_is_found_is_returned_without_sleep(clock: Clock) -> None:
    wait = Spin()
    looks_until_sleep(wait, clock, seconds=SHORT_S / 3)
    found = iter([None, None, "found"])
    assert wait.wait(lambda: next(found), lambda: pytest.fail("slept")) == "found"


def test_looking_in_vain_makes_it_rarer(clock: Clock) -> None:
    wait = Spin()
    looked = [looks_until_sleep(wait, clock, seconds=SHORT_S / 3) > 0 for _ in range(30)]
    assert [at for at, did in enumerate(looked) if did] == [1, 3, 7, 15]


def test_pauses_grow_until_a_good_share_comes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    moderation = Moderation()
    moderation.pause()
    assert pauses == []  # nothing is known
    for _ in range(200):  # 128 are expected, and one comes each 10 µs
        moderation.learn(int(sum(pauses[-1:]) / 1e-5), 128)
        moderation.pause()
    assert all(128 / 8 <= pause / 1e-5 <= 128 / 4 for pause in pauses[-50:])


@given(st.lists(st.integers(1, 128)))
def test_a_pause_has_a_bound(came: list[int]) -> None:
    moderation = Moderation()
    for count in came:
        moderation.learn(count, 128)
        assert 0 <= moderation._pause_s <= MOST_PAUSE_S
