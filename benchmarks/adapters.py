"""How an engine is opened and given work: the adapters of plait and of Python's own engines.

Those of engines from PyPI are in pypi_adapters.py, and all are listed in engines.py. They are
used in hosts only. An engine is imported when it is opened, so what is not installed does no
harm. All have the methods of ``Pool``; without a chunk size the engine's own default holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

__all__ = [
    "Fn",
    "Futures",
    "Items",
    "Pool",
    "Size",
    "StandardPool",
    "given",
    "open_gather",
    "open_loop",
    "open_plait",
    "open_plait_auto",
    "open_plait_executor",
    "open_processes",
    "open_standard_pool",
    "open_threads",
]

Fn = Callable[..., Any]
Items = Iterable[Any]
Size = int | None


class Pool(Protocol):
    """Workers that are ready, or will be with their first task."""

    def map(self, fn: Fn, items: Items, chunksize: Size = None) -> list[Any]:
        """Return the results, in order."""

    def lazily(self, fn: Fn, items: Items, chunksize: Size = None) -> Iterator[Any]:
        """Return an iterator over the results, in order."""

    def call(self, fn: Callable[[], Any]) -> Any:
        """Submit one task and wait for its result."""

    def close(self) -> None:
        """End the workers."""


def given(name: str, value: Size) -> dict[str, Any]:
    """Return a keyword argument, unless it is None."""
    return {} if value is None else {name: value}


# --- plait -------------------------------------------------------------------------------


class Plait:
    """The functions of plait's module, which keep their pools warm between calls."""

    def __init__(self, **options: Any) -> None:
        import plait

        self._plait: Any = plait
        self._options = options

    def map(self, fn: Fn, items: Items, chunksize: Size = None) -> list[Any]:
        options = self._options | given("chunksize", chunksize)
        results: list[Any] = self._plait.map(fn, items, **options)
        return results

    def lazily(self, fn: Fn, items: Items, chunksize: Size = None) -> Iterator[Any]:
        options = self._options | given("chunksize", chunksize)
        results: Iterator[Any] = self._plait.imap(fn, items, **options)
        return results

    def call(self, fn: Callable[[], Any]) -> Any:
        return self._plait.starmap(fn, [()], **self._options)[0]

    def close(self) -> None:
        """Leave it to plait, which ends a warm pool when nobody has used it for a while."""


def open_plait(backend: str, workers: int) -> Pool:
    return Plait(backend=backend, max_workers=workers)


def open_plait_auto(workers: int) -> Pool:
    del workers  # it decides
    return Plait()


def open_plait_executor(backend: Any, workers: int) -> Pool:
    import plait

    return Futures(plait.Executor(workers, backend))


# --- Python's own ------------------------------------------------------------------------


class Futures:
    """Any concurrent.futures.Executor."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor

    def map(self, fn: Fn, items: Items, chunksize: Size = None) -> list[Any]:
        return list(self.lazily(fn, items, chunksize))

    def lazily(self, fn: Fn, items: Items, chunksize: Size = None) -> Iterator[Any]:
        options = given("chunksize", chunksize)
        results: Iterator[Any] = self._executor.map(fn, items, **options)
        return results

    def call(self, fn: Callable[[], Any]) -> Any:
        return self._executor.submit(fn).result()

    def close(self) -> None:
        self._executor.shutdown()


def open_processes(method: str, workers: int) -> Pool:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    return Futures(ProcessPoolExecutor(workers, mp_context=get_context(method)))


def open_threads(workers: int) -> Pool:
    from concurrent.futures import ThreadPoolExecutor

    return Futures(ThreadPoolExecutor(workers))


class StandardPool:
    """multiprocessing.Pool, or one with its interface."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def map(self, fn: Fn, items: Items, chunksize: Size = None) -> list[Any]:
        results: list[Any] = self._pool.map(fn, items, chunksize)
        return results

    def lazily(self, fn: Fn, items: Items, chunksize: Size = None) -> Iterator[Any]:
        results: Iterator[Any] = self._pool.imap(fn, items, **given("chunksize", chunksize))
        return results

    def call(self, fn: Callable[[], Any]) -> Any:
        return self._pool.apply(fn)

    def close(self) -> None:
        self._pool.close()
        self._pool.join()


def open_standard_pool(workers: int) -> Pool:
    from multiprocessing import get_context

    return StandardPool(get_context("fork").Pool(workers))


class Gather:
    """A new event loop for each map, on which so many coroutines run at once."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def map(self, fn: Fn, items: Items, chunksize: Size = None) -> list[Any]:
        import asyncio

        async def run() -> list[Any]:
            room = asyncio.Semaphore(self._workers)

            async def call(item: Any) -> Any:
                async with room:
                    return await fn(item)

            return await asyncio.gather(*map(call, items))

        del chunksize
        return asyncio.run(run())

    def lazily(self, fn: Fn, items: Items, chunksize: Size = None) -> Iterator[Any]:
        return iter(self.map(fn, items, chunksize))

    def call(self, fn: Callable[[], Any]) -> Any:
        return self.map(lambda _: fn(), [None])[0]

    def close(self) -> None:
        """There is nothing to end."""


def open_gather(workers: int) -> Pool:
    return Gather(workers)


# --- no engine ---------------------------------------------------------------------------


class Loop:
    """The caller itself. The yardsticks of bare.py, which fork for themselves, start here, too."""

    def map(self, fn: Fn, items: Items, chunksize: Size = None) -> list[Any]:
        del chunksize
        return [fn(item) for item in items]

    def lazily(self, fn: Fn, items: Items, chunksize: Size = None) -> Iterator[Any]:
        del chunksize
        return map(fn, items)

    def call(self, fn: Callable[[], Any]) -> Any:
        return fn()

    def close(self) -> None:
        """There is nothing to end."""


def open_loop(workers: int) -> Pool:
    del workers
    return Loop()
