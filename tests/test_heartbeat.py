"""Who holds the GIL, as a thread sees it that wants to run often."""

from __future__ import annotations

import threading
import time
import zlib

import pytest

from plait import heartbeat
from plait.heartbeat import Heartbeat, has_gil

BEAT_S = 0.0005
BLOB = bytes(range(256)) * 1024


def share_while(work: object, beats: int) -> float:
    """Return the share that is seen while a function is called again and again."""
    assert callable(work)
    heart = Heartbeat()
    heart.start()
    heart.resume()
    try:
        while heart.beats < beats:
            work()
        heart.pause()
    finally:
        heart.stop()
    share = heart.held_share
    assert share is not None
    return share


@pytest.mark.skipif(not has_gil(), reason="there is no GIL to be held")
def test_python_code_holds_it() -> None:
    assert share_while(lambda: sum(i * i for i in range(1000)), beats=8) > 0.7


def test_compression_lets_go_of_it() -> None:
    assert share_while(lambda: zlib.compress(BLOB), beats=40) < 0.4


def test_who_sleeps_does_not_hold_it() -> None:
    assert share_while(lambda: time.sleep(0.002), beats=40) < 0.4


def test_short_holds_are_seen() -> None:
    """A millisecond of Python every three."""

    def task() -> None:
        time.sleep(0.002)
        until = time.monotonic() + 0.001
        while time.monotonic() < until:
            pass

    if heartbeat.count_sleeps is heartbeat._count_none:
        pytest.skip("the system does not tell")
    assert share_while(task, beats=200) > 0.02


@pytest.mark.skipif(not has_gil(), reason="there is no GIL to be held")
def test_what_anybody_waited_for_a_cpu_does_not_count() -> None:
    """Seen on a busy machine: tasks that hold nothing were said to hold the GIL all the time."""
    heart = Heartbeat()
    for _ in range(30):
        heart._count(0.0005, 0.0006, 0.0, 0.0, 1)  # nothing was held
    heart._count(0.0005, 0.01, 0.004, 0.005, 2)  # it was, by a thread that had no CPU
    for _ in range(5):
        heart._count(0.0005, 0.005, 0.004, 0.0045, 1)  # neither had one
    share = heart.held_share
    assert share is not None
    assert 0 < share < 0.05
    for _ in range(30):
        heart._count(0.0005, 0.0105, 0.0, 0.005, 2)  # half of the time it computed with the GIL
    share = heart.held_share
    assert share is not None
    assert share > 0.85


def test_nothing_is_known_before_the_first_beat() -> None:
    heart = Heartbeat()
    assert heart.held_share == (None if has_gil() else 0.0)
    heart.start()
    heart.stop()
    heart.stop()


def test_it_rests_in_pauses() -> None:
    heart = Heartbeat()
    heart.start()
    heart.resume()
    while not heart.beats:
        time.sleep(BEAT_S)
    heart.pause()
    beats, cpu_s = heart.beats, heart.cpu_s
    time.sleep(20 * BEAT_S)  # a beat that was under way may still be counted
    assert heart.beats <= beats + 1
    assert heart.cpu_s - cpu_s < 0.005
    heart.resume()
    while heart.beats < beats + 3:
        time.sleep(BEAT_S)
    heart.stop()


def test_its_thread_is_gone_when_it_is_stopped(clean: None) -> None:
    before = threading.active_count()
    for _ in range(5):
        heart = Heartbeat()
        heart.start()
        heart.resume()
        heart.stop()
    assert threading.active_count() == before
