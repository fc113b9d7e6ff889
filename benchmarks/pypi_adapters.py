"""The adapters of engines from PyPI; see adapters.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from benchmarks.adapters import Fn, Futures, Items, Pool, Size, StandardPool, given

__all__ = [
    "open_dask",
    "open_joblib",
    "open_loky",
    "open_mpire",
    "open_pebble",
    "open_ray",
]


def open_loky(workers: int) -> Pool:
    import loky

    return Futures(loky.ProcessPoolExecutor(workers))


class Joblib:
    """A Parallel for each map, as its users write it; its worker processes stay warm.

    One Parallel for all would keep its memory maps of large arrays until the end.
    """

    def __init__(self, backend: str, workers: int) -> None:
        import joblib

        self._joblib = joblib
        self._options: dict[str, Any] = {"backend": backend, "n_jobs": workers}

    def _run(self, fn: Fn, items: Items, **options: Any) -> Any:
        parallel = self._joblib.Parallel(**self._options, **options)
        return parallel(map(self._joblib.delayed(fn), items))

    def map(self, fn: Fn, items: Items, chunksize: Size = None) -> list[Any]:
        results: list[Any] = self._run(fn, items, **given("batch_size", chunksize))
        return results

    def lazily(self, fn: Fn, items: Items, chunksize: Size = None) -> Iterator[Any]:
        options = {"return_as": "generator", **given("batch_size", chunksize)}
        results: Iterator[Any] = self._run(fn, items, **options)
        return results

    def call(self, fn: Callable[[], Any]) -> Any:
        return self._joblib.Parallel(**self._options)([self._joblib.delayed(fn)()])[0]

    def close(self) -> None:
        if self._options["backend"] == "loky":
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown()


def open_joblib(backend: str, workers: int) -> Pool:
    return Joblib(backend, workers)


class Mpire:
    """mpire. An item that is a tuple would become several arguments; no claim has one."""

    def __init__(self, workers: int) -> None:
        import mpire

        self._pool = mpire.WorkerPool(n_jobs=workers, start_method="fork", keep_alive=True)

    def map(self, fn: Fn, items: Items, chunksize: Size = None) -> list[Any]:
        # Unless told not to, it glues arrays together.
        options = {"chunk_size": chunksize, "concatenate_numpy_output": False}
        results: list[Any] = self._pool.map(fn, items, **options)
        return results

    def lazily(self, fn: Fn, items: Items, chunksize: Size = None) -> Iterator[Any]:
        results: Iterator[Any] = self._pool.imap(fn, items, chunk_size=chunksize)
        return results

    def call(self, fn: Callable[[], Any]) -> Any:
        return self._pool.apply(fn)

    def close(self) -> None:
        self._pool.stop_and_join()


def open_mpire(workers: int) -> Pool:
    return Mpire(workers)


class Pebble:
    """pebble's pool of processes."""

    def __init__(self, workers: int) -> None:
        from multiprocessing import get_context

        import pebble

        self._pool = pebble.ProcessPool(max_workers=workers, context=get_context("fork"))

    def map(self, fn: Fn, items: Items, chunksize: Size = None) -> list[Any]:
        return list(self.lazily(fn, items, chunksize))

    def lazily(self, fn: Fn, items: Items, chunksize: Size = None) -> Iterator[Any]:
        future = self._pool.map(fn, items, **given("chunksize", chunksize))
        results: Iterator[Any] = future.result()
        return results

    def call(self, fn: Callable[[], Any]) -> Any:
        return self._pool.schedule(fn).result()

    def close(self) -> None:
        self._pool.close()
        self._pool.join()


def open_pebble(workers: int) -> Pool:
    return Pebble(workers)


class Ray(StandardPool):
    """Ray: its Pool for maps, a plain remote function for one task."""

    def __init__(self, workers: int) -> None:
        import ray
        from ray.util.multiprocessing import Pool as RayPool

        self._ray = ray
        # The actors of the pool take a CPU each, and the remote function needs one, too.
        self._ray.init(num_cpus=workers + 1, include_dashboard=False, log_to_driver=False)
        super().__init__(RayPool(workers))
        self._remote: Any = cache(self._ray.remote)

    def call(self, fn: Callable[[], Any]) -> Any:
        return self._ray.get(self._remote(fn).remote())

    def close(self) -> None:
        self._pool.terminate()
        self._ray.shutdown()


def open_ray(workers: int) -> Pool:
    return Ray(workers)


class Dask:
    """Dask's local cluster. It has no chunk size: everything goes task by task."""

    def __init__(self, workers: int) -> None:
        import distributed

        self._cluster = distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self._client = distributed.Client(self._cluster)

    def map(self, fn: Fn, items: Items, chunksize: Size = None) -> list[Any]:
        del chunksize
        # pure=False: no results of earlier calls with the same items.
        futures = self._client.map(fn, list(items), pure=False)
        results: list[Any] = self._client.gather(futures)
        return results

    def lazily(self, fn: Fn, items: Items, chunksize: Size = None) -> Iterator[Any]:
        return iter(self.map(fn, items, chunksize))

    def call(self, fn: Callable[[], Any]) -> Any:
        return self._client.submit(fn, pure=False).result()

    def close(self) -> None:
        self._client.close()
        self._cluster.close()


def open_dask(workers: int) -> Pool:
    return Dask(workers)
