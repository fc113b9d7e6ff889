"""Mutexes of greenlets, on real mutexes; with real greenlets: tests/places."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from typing import Any

import pytest

from plait.shared import green, libc


class Greenlet:
    dead = False


class Scene:
    """Some greenlets of one thread, of which one runs, and a mutex."""

    def __init__(self, *, recursive: bool) -> None:
        self.memory = ctypes.create_string_buffer(libc.MUTEX_BYTES)
        address = ctypes.addressof(self.memory)
        libc.init_mutex(address, recursive=recursive)
        self.mutex = libc.mutex_at(address)
        self.one, self.other = Greenlet(), Greenlet()
        self.running = self.one
        self.paused_s: list[float] = []
        self.meanwhile: Any = lambda: None
        self.green = green.GreenMutexes(
            libc.try_lock, libc.unlock, lambda: self.running, self.sleep
        )

    def sleep(self, seconds: float) -> None:
        self.paused_s.append(seconds)
        self.meanwhile()

    def try_as(self, who: Greenlet) -> int:
        self.running = who
        return self.green.try_lock(self.mutex)

    def unlock_as(self, who: Greenlet) -> int:
        self.running = who
        return self.green.unlock(self.mutex)


@pytest.fixture(params=[False, True], ids=["plain", "recursive"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    scene = Scene(recursive=request.param)
    yield scene
    while libc.unlock(scene.mutex) == 0:
        pass


def test_it_belongs_to_a_greenlet_not_to_its_thread(scene: Scene) -> None:
    assert scene.try_as(scene.one) == 0
    assert scene.green.is_own(scene.mutex)
    assert scene.try_as(scene.other) == errno.EBUSY
    assert not scene.green.is_own(scene.mutex)
    assert scene.unlock_as(scene.other) == errno.EPERM
    assert scene.unlock_as(scene.one) == 0
    assert scene.try_as(scene.other) == 0
    assert scene.unlock_as(scene.other) == 0


def test_its_owner_is_told_of_its_own_deadlock_or_has_it_twice() -> None:
    plain, recursive = Scene(recursive=False), Scene(recursive=True)
    for scene, code in ((plain, errno.EDEADLK), (recursive, 0)):
        assert scene.try_as(scene.one) == 0
        assert scene.try_as(scene.one) == code
    assert recursive.unlock_as(recursive.one) == 0
    assert recursive.try_as(recursive.other) == errno.EBUSY
    for scene in (plain, recursive):
        assert scene.unlock_as(scene.one) == 0
        assert scene.try_as(scene.other) == 0
        assert scene.unlock_as(scene.other) == 0


def test_others_run_while_one_waits(scene: Scene) -> None:
    scene.try_as(scene.one)

    def release_in_the_third_pause() -> None:
        if len(scene.paused_s) == 3:
            scene.unlock_as(scene.one)
            scene.running = scene.other

    scene.running, scene.meanwhile = scene.other, release_in_the_third_pause
    assert scene.green.lock_until(scene.mutex, 60) == 0
    assert scene.paused_s == [0.0005, 0.001, 0.002]
    scene.running, scene.meanwhile = scene.one, lambda: None
    assert scene.green.lock_until(scene.mutex, 0.0) == errno.ETIMEDOUT


def test_a_greenlet_that_ended_is_told_as_a_thread_is(scene: Scene) -> None:
    scene.try_as(scene.one)
    scene.try_as(scene.one)  # twice, if it can be
    scene.one.dead = True
    assert scene.try_as(scene.other) == errno.EOWNERDEAD
    assert scene.green.is_own(scene.mutex)
    assert scene.unlock_as(scene.other) == 0
    assert scene.try_as(scene.other) == 0


def test_a_wait_for_a_word_lets_others_run() -> None:
    word = ctypes.c_uint(7)
    address = ctypes.addressof(word)

    def change(_: float) -> None:
        word.value = 8

    assert green.wait_word(change, address, 7, 60.0)
    assert green.wait_word(change, address, 7, None)
    assert not green.wait_word(lambda _: None, address, 8, 0.0)
