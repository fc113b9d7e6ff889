"""A fresh script: the squares of 1 to 10, on two worker processes, by one way or another.

Each way imports what it needs and nothing else, as a script would.
"""

from __future__ import annotations

import sys


def square(x: int) -> int:
    return x * x


def by_loop(items: range) -> list[int]:
    return [square(item) for item in items]


def by_plait(items: range) -> list[int]:
    import plait

    return plait.map(square, items, backend="processes", max_workers=2)


def by_auto(items: range) -> list[int]:
    import plait

    return plait.map(square, items)


def by_executor(method: str, items: range) -> list[int]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(2, mp_context=get_context(method)) as executor:
        return list(executor.map(square, items))


def by_pool(items: range) -> list[int]:
    from multiprocessing import get_context

    with get_context("fork").Pool(2) as pool:
        return pool.map(square, items)


def by_joblib(items: range) -> list[int]:
    import joblib

    return list(joblib.Parallel(n_jobs=2)(joblib.delayed(square)(item) for item in items))


def by_loky(items: range) -> list[int]:
    import loky

    with loky.ProcessPoolExecutor(2) as executor:
        return list(executor.map(square, items))


def by_mpire(items: range) -> list[int]:
    import mpire

    with mpire.WorkerPool(2, start_method="fork") as pool:
        return list(pool.map(square, items))


def by_pebble(items: range) -> list[int]:
    import pebble

    with pebble.ProcessPool(2) as pool:
        return list(pool.map(square, items).result())


def by_ray(items: range) -> list[int]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    remote = ray.remote(square)
    return list(ray.get([remote.remote(item) for item in items]))


def by_dask(items: range) -> list[int]:
    from distributed import Client

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        return list(client.gather(client.map(square, items)))


def squares(way: str) -> list[int]:
    """Compute in a way that has a function above, or with a start method of multiprocessing."""
    items = range(1, 11)
    if way in ("fork", "forkserver", "spawn"):
        return by_executor(way, items)
    return list(globals()[f"by_{way}"](items))


if __name__ == "__main__":
    assert squares(sys.argv[1]) == [1, 4, 9, 16, 25, 36, 49, 64, 81, 100]
