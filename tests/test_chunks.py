"""Chunk sizes follow the measured time of the tasks, and what remains."""

from __future__ import annotations

from plait.chunks import BRIEF_S, GROWTH, MOST_TASKS, TARGET_S, ChunkSizer


def test_it_starts_with_one_task() -> None:
    size = ChunkSizer("auto", workers=2).next(remaining=1000)
    assert (size.tasks, size.together, size.brief) == (1, False, False)


def test_long_tasks_stay_alone() -> None:
    sizer = ChunkSizer("auto", workers=2)
    sizer.learn(1, 0.5)
    assert sizer.next(remaining=10_000).tasks == 1
    assert not sizer.next(remaining=10_000).brief


def test_chunks_grow_step_by_step_towards_the_target_time() -> None:
    sizer = ChunkSizer("auto", workers=2)
    sizes = []
    for _ in range(9):
        size = sizer.next(remaining=None).tasks
        sizes.append(size)
        sizer.learn(size, size * 1e-5)
    assert sizes[:3] == [1, GROWTH, GROWTH * GROWTH]
    assert abs(sizes[-1] - TARGET_S / 1e-5) <= 1


def test_tiny_tasks_go_together() -> None:
    sizer = ChunkSizer("auto", workers=2, task_s=1e-7, measured=10_000)
    size = sizer.next(remaining=None)
    assert size.tasks == MOST_TASKS
    sizer = ChunkSizer("auto", workers=2, task_s=1e-7, measured=10_000, most=5000)
    assert sizer.next(remaining=None).tasks == 5000
    assert size.together
    assert size.brief


def test_chunks_shrink_towards_the_end() -> None:
    sizer = ChunkSizer("auto", workers=4, task_s=1e-5, measured=1000)
    remaining, sizes = 10_000, []
    while remaining:
        sizes.append(sizer.next(remaining).tasks)
        remaining -= sizes[-1]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 1250
    assert sizes[-2] == 50  # half a millisecond of work


def test_a_size_that_was_asked_for_is_kept() -> None:
    sizer = ChunkSizer(10, workers=2)
    assert sizer.next(remaining=3).tasks == 10
    sizer.learn(10, 10.0)
    assert sizer.next(remaining=1000) == (10, False, False)


def test_a_chunk_is_brief_if_it_is_over_in_milliseconds() -> None:
    sizer = ChunkSizer(10, workers=2, task_s=BRIEF_S / 11, measured=1)
    assert sizer.next(None).brief
    sizer.learn(1, 100.0)
    assert not sizer.next(None).brief


def test_a_chunk_that_ended_without_results_tells_nothing() -> None:
    sizer = ChunkSizer("auto", workers=2, task_s=0.001, measured=5)
    before = sizer.next(1000)
    sizer.learn(0, 0.0)
    assert sizer.next(1000) == before


def test_a_loop_takes_all_that_is_left_when_some_tasks_are_known() -> None:
    """What nobody else is to have is not cut: to join results takes time."""
    sizer = ChunkSizer("auto", 1, takes_all=True)
    assert sizer.next(3_000_000).tasks == 1
    sizer.learn(1, 1e-6)
    assert sizer.next(2_999_999).tasks == GROWTH
    sizer.learn(GROWTH, GROWTH * 1e-7)
    assert sizer.next(2_999_000) == (2_999_000, True, False)
    assert sizer.next(None).tasks < 2_999_000  # of an unknown number, as others do
    assert ChunkSizer("auto", 1, 1e-7, 1000).next(2_999_000).tasks < 65_537
    assert ChunkSizer(10, 1, 1e-7, 1000, takes_all=True).next(2_999_000).tasks == 10
