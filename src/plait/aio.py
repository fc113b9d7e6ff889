"""plait in asyncio programs: the same, without holding up the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from plait.backends.asyncio_loop import AsyncioBackend
from plait.calls import attach, check, listed, prepare, style_of
from plait.choice import is_coroutine
from plait.model import MOST_COROUTINES
from plait.outcome import Call, Finished, Outcome
from plait.server_process import start_early

if TYPE_CHECKING:
    from typing import Unpack

    from plait.options import OptionArgs, Options
    from plait.runs import Run

__all__ = ["amap", "arun"]


async def amap(
    fn: Callable[..., Any], /, *iterables: Iterable[Any], **options: Unpack[OptionArgs]
) -> list[Any]:
    """``map`` for asyncio programs: the event loop goes on while the work is done.

    A coroutine function runs on the caller's own loop, any other function on workers.
    Cancelling it ends what runs. The input is read, and the first tasks are measured,
    in a helper thread.

    >>> import asyncio, plait
    >>> asyncio.run(plait.amap(abs, [-1, 2]))
    [1, 2]
    """
    checked = check(fn, options).with_order(ordered=True)
    made = _prepare_async(fn, iterables, checked, keeps=True)
    try:
        async with aclosing(_pump(made)) as stretches:
            async for finished in stretches:
                if finished.errors and checked.on_error == "raise":
                    break
    except Exception as error:
        attach(error, made)
        raise
    return listed(made, checked)


async def arun(
    fn: Callable[..., Any], /, *iterables: Iterable[Any], **options: Unpack[OptionArgs]
) -> AsyncGenerator[Outcome]:
    """``run`` for asyncio programs: ``async for outcome in plait.arun(fn, items)``."""
    checked = check(fn, {"on_error": "return", **options}).with_order(ordered=False)
    async with aclosing(_pump(_prepare_async(fn, iterables, checked))) as stretches:
        async for finished in stretches:
            for outcome in finished.outcomes():
                yield outcome


def _prepare_async(
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    options: Options,
    *,
    keeps: bool = False,
) -> Run:
    if options.backend == "processes":
        start_early()
    backend = None
    if is_coroutine(fn) and options.executor is None:
        workers = options.max_workers or MOST_COROUTINES
        backend = AsyncioBackend(workers, loop=asyncio.get_running_loop())
    return prepare(Call(fn, style_of(iterables)), iterables, options, backend=backend, keeps=keeps)


async def _pump(made: Run) -> AsyncGenerator[Finished]:
    """Iterate over a run in a helper thread; end it if the reader leaves."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Finished | BaseException | None] = asyncio.Queue()
    has_room = threading.Semaphore(1)
    has_left = threading.Event()
    ended = asyncio.Event()

    def iterate() -> None:
        last: BaseException | None = None
        try:
            for finished in made.stretches():
                has_room.acquire()
                if has_left.is_set():
                    break
                loop.call_soon_threadsafe(arrived.put_nowait, finished)
        except BaseException as error:  # noqa: BLE001  raised in the reader's thread
            last = error
        # The reader's cancel() cannot close a generator that runs here. If a result comes just
        # then, it stops at its yield and is nobody's: so whoever runs it closes it, too.
        made.cancel()
        loop.call_soon_threadsafe(arrived.put_nowait, last)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=iterate, name="plait-pump", daemon=True).start()
    try:
        while (entry := await arrived.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry
            has_room.release()
    finally:
        has_left.set()
        has_room.release()
        await asyncio.to_thread(made.cancel)
        await ended.wait()
