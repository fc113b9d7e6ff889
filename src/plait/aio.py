"""plait in asyncio programs: the same, without holding up the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from contextvars import copy_context
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
    except BaseException as error:
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


class _Arrivals:
    """What a helper thread has for a coroutine; an interrupt there loses none of it.

    The loop may be interrupted in any callback (by a signal handler that raises), and then swallows
    that or ends. So the helper puts things down by itself, and the callback only wakes the reader.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._entries: deque[Finished | BaseException | None] = deque()
        self._are_new = asyncio.Event()

    def put(self, entry: Finished | BaseException | None) -> None:
        """Put something down, in the helper; it does not matter whether the loop has ended."""
        self._entries.append(entry)
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        try:
            self._are_new.set()
        except BaseException:
            self._are_new.set()
            raise

    async def take(self) -> Finished | BaseException | None:
        """Wait for what comes next, in the coroutine."""
        while not self._entries:
            self._are_new.clear()
            if not self._entries:
                await self._are_new.wait()
        return self._entries.popleft()


async def _pump(made: Run) -> AsyncGenerator[Finished]:
    """Iterate over a run in a helper thread; end it if the reader leaves."""
    arrived, ended = _Arrivals(), _Arrivals()
    has_room = threading.Semaphore(1)
    has_left = threading.Event()

    def iterate() -> None:
        last: BaseException | None = None
        try:
            for finished in made.stretches():
                has_room.acquire()
                if has_left.is_set():
                    break
                arrived.put(finished)
        except BaseException as error:  # noqa: BLE001  raised in the reader's thread
            last = error
        # The reader's cancel() cannot close a generator that runs here. If a result comes just
        # then, it stops at its yield and is nobody's: so whoever runs it closes it, too.
        made.cancel()
        arrived.put(last)
        ended.put(None)

    # In the caller's context: some tasks run there, and what they call is inside its task.
    run = copy_context().run
    threading.Thread(target=run, args=(iterate,), name="plait-pump", daemon=True).start()
    try:
        while (entry := await arrived.take()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry
            has_room.release()
    finally:
        has_left.set()
        has_room.release()
        await asyncio.to_thread(made.cancel)
        await ended.take()
