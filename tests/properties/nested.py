"""Compare random programs of nested and concurrent calls with the plain loop.

A program is a tree of calls: each task of one computes a number, and may make the calls below it,
in threads of its own or one after the other. Backends, numbers of workers (few, so that calls meet
in the same warm pools), kinds of calls, errors and iterators that are given up are drawn. Each
program has to end within its limit, with the loop's answer.

    python -m tests.properties.nested --count 1000
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plait

LIMIT_S = 20.0

KINDS = ("map", "starmap", "imap", "run", "amap", "given up", "executor", "executor.map")


@dataclass(frozen=True)
class Node:
    """A call: its kind, how many tasks it has, and what each of them does."""

    kind: str
    backend: str
    workers: int
    tasks: int
    error_at: int | None
    are_at_once: bool
    below: tuple[Node, ...]


def programs() -> st.SearchStrategy[Node]:
    """Return programs up to a few calls deep; the deeper, the fewer."""

    def nodes(below: st.SearchStrategy[tuple[Node, ...]]) -> st.SearchStrategy[Node]:
        return st.builds(
            Node,
            kind=st.sampled_from(KINDS),
            backend=st.sampled_from(("threads", "threads", "threads", "asyncio", "serial", "auto")),
            workers=st.integers(1, 3),
            tasks=st.integers(0, 4),
            error_at=st.one_of(st.none(), st.integers(0, 3)),
            are_at_once=st.booleans(),
            below=below,
        )

    leaf = nodes(st.just(()))
    middle = nodes(st.lists(leaf, max_size=2).map(tuple))
    upper = nodes(st.lists(middle, max_size=2).map(tuple))
    return nodes(st.lists(upper, min_size=1, max_size=3).map(tuple))


# --- What a program means --------------------------------------------------------------------


def looped(node: Node, base: int) -> int | str:
    """Return what a program gives as plain loops; an error is the text that its caller sees."""
    total = 0
    tasks = min(node.tasks, 2) if node.kind == "given up" else node.tasks
    for task in range(tasks):
        if task == node.error_at:
            return f"error {task}"
        total += base + task
        for below in node.below:
            value = looped(below, base + task)
            total += len(value) if isinstance(value, str) else value
    return total


def done(node: Node, base: int, pools: dict[int, plait.Executor], least: int) -> int | str:
    """Return what it gives by plait, with executors of so many workers at least.

    The tasks of an executor do not use one with fewer workers: two tasks that have the last place
    of their executors, and wait for one of the other's, would wait for ever, as anywhere.
    """
    if node.kind.startswith("executor"):
        node = replace(node, workers=max(node.workers, least))
        least = node.workers

    def task(number: int) -> int:
        if number == node.error_at:
            raise KeyError(f"error {number}")
        if node.kind == "given up" and number > 1:  # the loop does not come to these
            return 0
        values = below(node, base + number, pools, least)
        return base + number + sum(len(v) if isinstance(v, str) else v for v in values)

    async def coroutine(number: int) -> int:
        return task(number)

    is_async = node.backend == "asyncio" and not node.kind.startswith("executor")
    fn: Any = coroutine if is_async else task
    try:
        total: int = CALLS[node.kind](fn, range(node.tasks), node, pools)
        return total
    except KeyError as error:
        return str(error.args[0])


def below(node: Node, base: int, pools: dict[int, plait.Executor], least: int) -> list[int | str]:
    if not node.are_at_once:
        return [done(one, base, pools, least) for one in node.below]
    values: list[Any] = [None] * len(node.below)
    errors: list[BaseException] = []

    def work(place: int, one: Node) -> None:
        try:
            values[place] = done(one, base, pools, least)
        except BaseException as error:
            errors.append(error)

    # As asyncio.to_thread: with the context, by which an executor knows the helpers of its tasks.
    # (That of a bare thread is empty; maps do not need it.)
    threads = [
        threading.Thread(target=copy_context().run, args=(work, *pair))
        for pair in enumerate(node.below)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Where a sibling of this task has failed, the program may be over, and its executors closed:
    # then this error is nobody's. In any other case it comes out of the program.
    if errors:
        raise errors[0]
    return values


def options(node: Node) -> dict[str, Any]:
    workers = {} if node.backend == "auto" else {"max_workers": node.workers}
    return {"backend": node.backend, **workers}


def by_submit(fn: Any, items: range, node: Node, pools: dict[int, plait.Executor]) -> int:
    futures = [pools[node.workers].submit(fn, item) for item in items]
    return sum(future.result() for future in futures)


def by_amap(fn: Any, items: range, node: Node) -> int:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return sum(asyncio.run(plait.amap(fn, items, **options(node))))
    return sum(plait.map(fn, items, **options(node)))  # a task on a loop, which cannot run another


CALLS: dict[str, Callable[..., Any]] = {
    "map": lambda fn, items, node, _: sum(plait.map(fn, items, **options(node))),
    "starmap": lambda fn, items, node, _: sum(
        plait.starmap(fn, [(item,) for item in items], **options(node))
    ),
    "imap": lambda fn, items, node, _: sum(plait.imap(fn, items, **options(node))),
    "run": lambda fn, items, node, _: sum(
        outcome.unwrap() for outcome in plait.run(fn, items, ordered=True, **options(node))
    ),
    "amap": lambda fn, items, node, _: by_amap(fn, items, node),
    "given up": lambda fn, items, node, _: sum(
        islice(plait.imap(fn, items, chunksize=1, **options(node)), 2)
    ),
    "executor": by_submit,
    "executor.map": lambda fn, items, node, pools: sum(pools[node.workers].map(fn, items)),
}


def check(program: Node) -> None:
    """Run a program in time, and compare."""
    expected = looped(program, 1)
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    pools = {workers: plait.Executor(workers) for workers in (1, 2, 3)}
    try:
        got = done(program, 1, pools, 1)
    finally:
        for pool in pools.values():
            pool.shutdown()
        faulthandler.cancel_dump_traceback_later()
    assert got == expected, program


def main(count: int) -> None:
    """Check so many programs."""
    started = time.monotonic()
    sized = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count < 500,
        suppress_health_check=list(HealthCheck),
    )
    sized(given(programs())(check))()
    print(f"{count} programs in {time.monotonic() - started:.0f} s: all gave the loop's answer")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    main(parser.parse_args().count)
