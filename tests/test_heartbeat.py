"""Who holds the GIL, as a thread sees it that wants to run often."""

from __future__ import annotations

import os
import threading
import time
import zlib

import pytest

from plait import heartbeat
from plait.heartbeat import Heartbeat, Tally, has_gil
from tests.conftest import needs_gil

BEAT_S = 0.0005
BLOB = bytes(range(256)) * 1024


def share_while(work: object, beats: int) -> float:
    """Return the share that is seen while a function is called again and again."""
    assert callable(work)
    heart = Heartbeat()
    heart.start()
    heart.resume()
    try:
        while heart.tally.beats < beats:
            work()
        heart.pause()
    finally:
        heart.stop()
    share = heart.tally.held_share
    assert share is not None
    return share


@needs_gil
def test_python_code_holds_it() -> None:
    assert share_while(lambda: sum(i * i for i in range(1000)), beats=8) > 0.7


@needs_gil
def test_each_step_that_holds_it_has_a_beat() -> None:
    """The switch interval began anew between steps: there was none in 20 of them."""
    heart = Heartbeat()
    heart.start()
    seen = []
    for _ in range(20):
        before = heart.tally.known_s
        heart.resume()
        until = time.thread_time() + 0.004  # less than the interval
        while time.thread_time() < until:
            pass
        heart.pause()
        seen.append(heart.tally.known_s - before)
    heart.stop()
    assert sum(known_s > 0.003 for known_s in seen) > 4  # on a busy machine many wait for a CPU
    assert heart.tally.held_share is not None
    assert heart.tally.held_share > 0.9


def test_compression_lets_go_of_it() -> None:
    assert share_while(lambda: zlib.compress(BLOB), beats=40) < 0.4


@needs_gil
def test_of_who_sleeps_it_is_not_known() -> None:
    heart = Heartbeat()
    heart.start()
    heart.resume()
    time.sleep(0.02)
    heart.stop()
    assert heart.tally.beats
    assert heart.tally.held_share is None


@needs_gil
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


@needs_gil
def test_beats_while_the_tasks_have_no_cpu_say_nothing() -> None:
    """Seen on a busy machine: half a run in which the GIL was free, as nobody could go on."""
    heart = Heartbeat()
    for _ in range(30):
        heart._count(0.0005, 0.0006, 0.0, 0.0, 1)
    shares = [heart.tally.held_share]
    heart._count(0.0005, 0.02, 0.005, 0.006, 2)
    shares.append(heart.tally.held_share)
    for _ in range(4):
        heart._count(0.0005, 0.0006, 0.0, 0.0005, 1)
    shares.append(heart.tally.held_share)
    heart._count(0.0005, 0.0045, 0.002, None, 2)  # it cannot be known, elsewhere
    shares.append(heart.tally.held_share)
    assert shares == [None, 1, pytest.approx(0.75), pytest.approx(0.8095, rel=0.001)]


@needs_gil
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there is no way to share a CPU")
def test_who_has_waited_for_the_cpu_of_the_tasks_does_not_know_what_they_held() -> None:
    """Seen where tasks wait and compute: it was on their CPU, and looked only while they slept."""

    def task() -> None:
        time.sleep(0.002)
        until = time.thread_time() + 0.001
        while time.thread_time() < until:
            pass

    tally, cpus = Tally(), os.sched_getaffinity(0)

    def measure() -> None:
        os.sched_setaffinity(0, [min(cpus)])  # of this thread and the one that it starts
        heart = Heartbeat(tally)
        heart.start()
        for _ in range(20):
            heart.resume()
            task()
            heart.pause()
        heart.stop()

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    assert tally.held_share is None or tally.held_share > 0.5


@needs_gil
def test_a_thread_that_is_watched_from_outside() -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(i * i for i in range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    heart = Heartbeat()
    heart.start()
    assert thread.native_id is not None
    heart.resume(thread.native_id)
    while heart.tally.beats < 8:
        time.sleep(0.01)
    stop.set()
    thread.join()
    heart.stop()
    assert heart.tally.held_share is not None
    assert heart.tally.held_share > 0.7


def test_nothing_is_known_before_the_first_beat() -> None:
    heart = Heartbeat()
    assert heart.tally.held_share == (None if has_gil() else 0.0)
    heart.start()
    heart.stop()
    heart.stop()


def test_it_rests_in_pauses() -> None:
    heart = Heartbeat()
    heart.start()
    heart.resume()
    while not heart.tally.beats:
        time.sleep(BEAT_S)
    heart.pause()
    beats, cpu_s = heart.tally.beats, heart.cpu_s
    time.sleep(20 * BEAT_S)  # a beat that was under way may still be counted
    assert heart.tally.beats <= beats + 1
    assert heart.cpu_s - cpu_s < 0.005
    heart.resume()
    while heart.tally.beats < beats + 3:
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
