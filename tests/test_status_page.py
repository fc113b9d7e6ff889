"""The page that a worker shares with its parent: every order of who writes when."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from plait.backends.child_main import _Worker
from plait.backends.messages import (
    BOX_BYTES,
    LAST_WORDS_AT,
    RUNNING,
    StatusPage,
    Work,
    encode,
    new_page_fd,
)
from plait.tasks import Call


@pytest.fixture
def ends() -> Iterator[tuple[StatusPage, StatusPage, int]]:
    """Give the parent's and the worker's view of one page, and its file descriptor."""
    fd = new_page_fd()
    parent, worker = StatusPage(fd), StatusPage(fd)
    yield parent, worker, fd
    parent.close()
    worker.close()
    os.close(fd)


Ends = tuple[StatusPage, StatusPage, int]


def test_a_condemned_task_is_the_last(ends: Ends) -> None:
    parent, worker, _ = ends
    assert worker.begin(1, 0)
    assert worker.begin(1, 1)
    assert parent.condemn((1, 1))
    assert worker.is_condemned
    assert not worker.begin(1, 2)  # it finished just in time, but the signal may be on its way
    assert parent.running() == (0, 0)  # nobody is to blame for the end of the worker


def test_who_has_gone_on_is_not_condemned(ends: Ends) -> None:
    parent, worker, _ = ends
    assert worker.begin(1, 0)
    seen = parent.running()
    assert worker.begin(1, 1)
    assert not parent.condemn(seen)
    assert not worker.is_condemned
    assert worker.begin(1, 2)
    assert worker.begin(2, 0)


def test_the_worker_looks_after_it_noted(ends: Ends) -> None:
    """The parent writes between the note of the next task and the look: one of them sees it."""
    parent, worker, _ = ends
    assert worker.begin(1, 0)
    seen = parent.running()
    verdicts: list[bool] = []

    class Words:
        """The worker's words; after the note of a task the parent is quicker than the look."""

        def __init__(self, words: memoryview) -> None:
            self.words = words

        def __getitem__(self, key: int) -> int:
            return int(self.words[key])

        def __setitem__(self, key: int, value: int) -> None:
            self.words[key] = value
            if key == 0 and not verdicts:
                verdicts.append(parent.condemn(seen))

    words, worker.words = worker.words, Words(worker.words)
    assert not worker.begin(1, 1)
    worker.words = words
    assert verdicts == [False]  # no signal is sent, the worker leaves by itself
    assert parent.running() == (0, 0)


def test_a_worker_that_has_run_nothing_can_be_condemned(ends: Ends) -> None:
    parent, worker, _ = ends
    assert [worker.is_condemned, parent.condemn((0, 0)), worker.is_condemned] == [False, True, True]
    assert not worker.begin(1, 0)


def test_a_cancelled_chunk_is_not_begun(ends: Ends) -> None:
    parent, worker, _ = ends
    assert worker.begin(1, 0)
    parent.cancel(1)
    assert not worker.begin(1, 1)
    assert worker.begin(2, 0)


def test_when_a_task_began_is_known(ends: Ends) -> None:
    parent, worker, _ = ends
    worker.begin(3, 7)
    first = parent.started
    worker.begin(3, 8)
    assert parent.running() == (3, 8)
    assert 0 < first <= parent.started
    worker.pause_clock()
    assert parent.started == math.inf
    worker.restart_clock()
    assert first <= parent.started < math.inf


def test_results_are_kept_as_far_as_there_is_room(ends: Ends) -> None:
    parent, worker, _ = ends
    assert worker.keep(b"one")
    assert worker.keep(b"")
    assert not worker.keep(bytes(BOX_BYTES))
    assert list(parent.kept()) == [b"one", b""]
    worker.empty()
    assert list(parent.kept()) == []


def test_last_words_are_read_without_plaits_own_frames(ends: Ends) -> None:
    parent, _, fd = ends
    import plait

    frames = (
        f'  File "user.py", line 3 in task\n  File "{plait.__path__[0]}/worker.py", line 1 in x'
    )
    os.pwrite(fd, f"Fatal error\n\nCurrent thread:\n{frames}\n".encode(), LAST_WORDS_AT)
    assert parent.last_words() == (
        'Fatal error\n\nCurrent thread:\n  File "user.py", line 3 in task'
    )


def test_a_task_alone_is_not_begun_if_it_is_taken_back_as_it_is_noted(ends: Ends) -> None:
    """The short way through a worker looks after the note, too: or the task would run twice."""
    parent, page, _ = ends
    ran: list[int] = []

    class Words:
        """The worker's words; as a task is noted the parent no longer wants its chunk."""

        def __getitem__(self, key: int) -> int:
            return int(words[key])

        def __setitem__(self, key: int, value: int) -> None:
            words[key] = value
            if key == RUNNING and value == 2 << 32:
                parent.cancel(2)

    words = page.words
    page.words = Words()
    sent: list[object] = []
    worker: Any = SimpleNamespace(
        _pid=os.getpid(),
        _page=page,
        _known={7: Call(ran.append, "one")},
        _variables={},
        _view=SimpleNamespace(released=()),
        _sender=SimpleNamespace(send_small=sent.append),
        _queue_clock=SimpleNamespace(read_since_last=lambda: 0.0),
        _leave_if_copy=lambda: None,
        _streams=SimpleNamespace(flush=lambda: None, mend=lambda: None),
    )
    try:
        done = [
            _Worker._work_alone(worker, _fields_of(seq, item)) for seq, item in ((1, 10), (2, 20))
        ]
        assert (done, ran, len(sent)) == ([True, False], [10], 1)
        assert parent.running() == (1, 0)  # as if the second one had never been noted
        assert not page.begin(2, 0)  # what the long way does next
    finally:
        page.words = words


def _fields_of(seq: int, item: object) -> tuple[Any, ...]:
    return encode(Work(seq, 7, seq, together=False, items=[item], released=[]))
