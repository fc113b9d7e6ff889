"""What every test may rely on: each kind of worker, and that nothing is left behind."""

from __future__ import annotations

# Its lock is taken before a fork, and let go of in the child by a hook that is to come before
# plait's: tests fork within those.
import concurrent.futures.thread  # noqa: F401
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plait import pools, server_process
from plait.heartbeat import has_gil
from tests.start import descendants, ended_programs

# A shell that runs the tests in the background has them ignore Ctrl-C, and nohup a hang-up; and so
# would the programs that they start to send them to. What Python handles is not passed on.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# Workers and programs that tests have crash would leave a file of their memory in each folder.
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

# What plait costs on this machine is neither looked up nor kept: choices are to be the same
# everywhere. Programs that tests start inherit that.
os.environ["PLAIT_CACHE_DIR"] = ""

# Every way to run tasks, by the options that ask for it.
WAYS: dict[str, dict[str, Any]] = {
    "serial": {"backend": "serial"},
    "threads": {"backend": "threads"},
    "asyncio": {"backend": "asyncio"},
    "server": {"backend": "processes", "start_method": "server"},
    "spawn": {"backend": "processes", "start_method": "spawn"},
}
PROCESS_WAYS = ("server", "spawn")

needs_gil = pytest.mark.skipif(not has_gil(), reason="there is no GIL")


class Way:
    """One kind of worker under test: its options, and functions in the form that it takes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.options = WAYS[name]
        self.is_process = name in PROCESS_WAYS
        self.executor = {"backend": self.options["backend"]}
        if self.is_process:
            self.executor["start_method"] = name

    def fn(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function for this kind of worker: for asyncio, a coroutine function."""
        if self.name != "asyncio":
            return function

        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        coroutine.__name__ = function.__name__
        return coroutine


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


def only(*names: str) -> pytest.MarkDecorator:
    """Have a test run on some kinds of worker only, where a promise is not made for all."""
    return pytest.mark.parametrize("way", names, indirect=True)


@pytest.fixture(params=PROCESS_WAYS)
def process_way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


class Pairs:
    """A task on threads that waits for another one, and counts how many run at once."""

    def __init__(self, limit_s: float) -> None:
        self.most = 0
        self._limit_s = limit_s
        self._running = 0
        self._lock = threading.Lock()
        self._pair = threading.Barrier(2)

    def __call__(self, _: int) -> None:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        self._pair.wait(self._limit_s)
        with self._lock:
            self._running -= 1


def double(x: int) -> int:
    return 2 * x


def fail_at_three(x: int) -> int:
    if x == 3:
        raise KeyError(x)
    return x


def children() -> set[int]:
    """Return the pids of all descendants of this process."""
    return descendants(os.getpid())


def wait_gone(pids: set[int], seconds: float = 10.0) -> set[int]:
    """Block until processes ended (pidfds, no polling); return those that did not in time."""
    left = set()
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            import select

            if not select.select([fd], [], [], seconds)[0]:
                left.add(pid)
        finally:
            os.close(fd)
    return left


def files() -> set[str]:
    """Return what this process has open, without what changes by itself."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except OSError:  # the one that listed the folder
            continue
    return found


@pytest.fixture
def clean() -> Iterator[None]:
    """Assert that a test leaves no process and no open file, once the warm pools are closed."""
    close_all()
    before = files()
    yield
    close_all()
    assert not wait_gone(children())
    assert files() <= before


def close_all() -> None:
    """Close what plait and multiprocessing keep between calls, as at the end of a program."""
    pools._pools.close()
    server_process.server.close()
    for name in ("forkserver", "resource_tracker"):
        module: Any = sys.modules.get(f"multiprocessing.{name}")
        if module is not None:
            getattr(module, f"_{name}")._stop()


@pytest.fixture(autouse=True)
def no_program_left() -> Iterator[None]:
    """After a test, whether it failed or not, no program is left that it has started."""
    with ended_programs():
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_left() -> Iterator[None]:
    """After all tests no child of the test process is alive, and nothing is in /dev/shm."""
    shm = Path("/dev/shm")
    before = set(shm.iterdir()) if shm.exists() else set()
    yield
    close_all()
    left = wait_gone(children())
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    if shm.exists():
        left_over = {path.name for path in set(shm.iterdir()) - before}
        others = ("sem.", "joblib_")  # of other programs, which may run at the same time
        assert not {name for name in left_over if not name.startswith(others)}


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python in a folder of its own, as a user would; returns the completed process."""

    def run(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            input=stdin,
            text=True,
            capture_output=True,
            cwd=tmp_path,
            timeout=60,
            env={**os.environ, **env},
            check=False,
        )

    return run
