"""An exception that comes from outside while plait waits reaches the caller and harms nothing.

A program's alarm raises at random moments of many calls. Each call gives its answer or the alarm's
exception; no future gets that as its result; and after all of them everything still works.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import plait

pytestmark = pytest.mark.timeout(60)

PROGRAM = """
import concurrent.futures, faulthandler, random, signal, sys, time
import plait

faulthandler.dump_traceback_later(40, exit=True)
backend, call, base = sys.argv[1:]

class Alarm({"Exception": Exception, "BaseException": BaseException}[base]):
    pass

def ring(*_):
    raise Alarm

def function(x):
    time.sleep(0.0005)
    return x

async def coroutine(x):
    return x

fn = coroutine if backend == "asyncio" else function
options = {"backend": backend, "max_workers": 2}
pool = plait.Executor(2, backend)
items = list(range(30))
futures = []

def submitted():
    mine = [pool.submit(fn, item) for item in items]
    futures.extend(mine)
    return mine

CALLS = {
    "map": lambda: plait.map(fn, items, **options),
    "imap": lambda: list(plait.imap(fn, items, **options)),
    "run": lambda: [o.unwrap() for o in plait.run(fn, items, ordered=True, **options)],
    "result": lambda: [future.result() for future in submitted()],
    "Executor.map": lambda: list(pool.map(fn, items)),
}

signal.signal(signal.SIGALRM, ring)
draw = random.Random(1)
for _ in range(25):
    try:
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.00005, 0.02))
        try:
            assert CALLS[call]() == items
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:
        pass
assert all(future.result(20) in items for future in futures)
assert CALLS[call]() == items
assert signal.getsignal(signal.SIGALRM) is ring
pool.shutdown()
"""

# Not as_completed: it waits in the standard library, and a Condition that is struck there may raise
# RuntimeError in place of what was raised.
CALLS = ("map", "imap", "run", "result", "Executor.map")
PAIRS = [(backend, call) for backend in ("threads", "asyncio") for call in CALLS]
PAIRS += [("processes", call) for call in CALLS[3:5]]


@pytest.mark.soak  # at moments that are drawn
@pytest.mark.parametrize("base", ["Exception", "BaseException"])
@pytest.mark.parametrize(("backend", "call"), PAIRS)
def test_an_alarm_that_raises_while_plait_waits_harms_nothing(
    run_python: Callable[..., subprocess.CompletedProcess[str]], backend: str, call: str, base: str
) -> None:
    ended = run_python("-c", PROGRAM, backend, call, base)
    assert ended.returncode == 0, ended.stderr[-3000:]


# --- Event loops that end --------------------------------------------------------------------


async def end_loop(how: str) -> None:
    async def leave() -> None:
        raise SystemExit(7)

    if how == "stop":
        asyncio.get_running_loop().stop()
    else:
        task = asyncio.create_task(leave())
        await asyncio.sleep(30)
        task.cancel()
    await asyncio.sleep(30)


@pytest.mark.parametrize("call", ["map", "submit"])
@pytest.mark.parametrize(("how", "error"), [("stop", plait.PoolClosed), ("exit", SystemExit)])
def test_a_call_whose_event_loop_ends_does_so_too(
    call: str, how: str, error: type[BaseException]
) -> None:
    async def double(x: int) -> int:
        return 2 * x

    def submit() -> None:
        with plait.Executor(3, "asyncio") as pool:
            future: Any = pool.submit(end_loop, how)
            future.result(30)

    calls = {"map": lambda: plait.map(end_loop, [how], max_workers=3), "submit": submit}
    with pytest.raises(error):
        calls[call]()
    values: list[Any] = plait.map(double, [1, 2], max_workers=3)
    assert values == [2, 4]
