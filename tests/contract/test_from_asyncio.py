"""plait from within a running event loop, on every kind of worker."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
import time
from pathlib import Path

import pytest

import plait
from tests.conftest import Way, double, fail_at_three


def test_map_blocks_but_works(way: Way) -> None:
    async def main() -> list[int]:
        return plait.map(way.fn(double), range(10), **way.options)

    assert asyncio.run(main()) == list(range(0, 20, 2))


def test_amap_returns_values_in_order(way: Way) -> None:
    assert asyncio.run(plait.amap(way.fn(double), range(100), **way.options)) == list(
        range(0, 200, 2)
    )


def test_amap_raises_the_error(way: Way) -> None:
    with pytest.raises(KeyError) as caught:
        asyncio.run(plait.amap(way.fn(fail_at_three), range(10), **way.options))
    assert caught.value.args == (3,)
    assert caught.value.plait_run.report.errors == 1  # type: ignore[attr-defined]


def test_arun_gives_outcomes(way: Way) -> None:
    async def main() -> list[plait.Outcome]:
        outcomes = plait.arun(way.fn(fail_at_three), range(10), **way.options)
        return [outcome async for outcome in outcomes]

    outcomes = asyncio.run(main())
    assert sorted(outcome.index for outcome in outcomes) == list(range(10))
    assert [outcome.index for outcome in outcomes if not outcome.ok] == [3]


def test_two_amaps_at_once(way: Way) -> None:
    parts = (range(50), range(50, 100))

    async def main() -> list[list[int]]:
        calls = (plait.amap(way.fn(double), items, **way.options) for items in parts)
        return list(await asyncio.gather(*calls))

    first, second = asyncio.run(main())
    assert first + second == list(range(0, 200, 2))


def test_leaving_arun_early_leaves_nothing_running(way: Way, clean: None) -> None:
    async def main() -> None:
        outcomes = plait.arun(way.fn(double), itertools.count(), **way.options)
        async for outcome in outcomes:
            if outcome.index >= 3:
                break
        await outcomes.aclose()

    asyncio.run(main())


def test_a_result_that_comes_while_the_reader_leaves_keeps_nothing_running(
    monkeypatch: pytest.MonkeyPatch, clean: None
) -> None:
    gate = threading.Event()

    def task(n: int) -> int:
        assert n == 0 or gate.wait(30)
        return n

    async def main() -> None:
        outcomes = plait.arun(task, itertools.count(), backend="threads", max_workers=2)
        async for outcome in outcomes:
            assert outcome.index == 0
            break
        # Cancelling wakes nobody here; it lets the next results come instead.
        monkeypatch.setattr(plait.Run, "stop", lambda _: gate.set())
        await outcomes.aclose()
        assert "plait-reader" not in {thread.name for thread in threading.enumerate()}

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_coroutines_run_on_the_callers_loop() -> None:
    async def main() -> bool:
        loop = asyncio.get_running_loop()

        async def is_same(_: int) -> bool:
            return asyncio.get_running_loop() is loop

        return all(await plait.amap(is_same, range(5)))

    assert asyncio.run(main())


def test_max_workers_bounds_coroutines() -> None:
    running = most = 0

    async def task(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    plait.map(task, range(50), max_workers=4)
    assert most == 4


def test_cancelling_amap_ends_the_tasks(clean: None) -> None:
    async def main() -> int:
        all_started = asyncio.Event()
        started = ended = 0

        async def task(_: int) -> None:
            nonlocal started, ended
            started += 1
            if started == 5:
                all_started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended += 1

        call = asyncio.create_task(plait.amap(task, range(5)))
        await all_started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return ended

    assert asyncio.run(main()) == 5


def test_cancelling_amap_ends_processes(process_way: Way, clean: None, tmp_path: Path) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)

    def task(_: int) -> None:
        started.write_text("yes")
        time.sleep(600)

    async def main() -> None:
        call = asyncio.create_task(plait.amap(task, [1], **process_way.options))
        await asyncio.to_thread(started.read_text)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())
