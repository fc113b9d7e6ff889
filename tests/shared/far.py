"""Another process, started afresh, that does what it is told: to see shared data from there."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.start import Program

ROOT = Path(__file__).parents[2]
LOOP = """
import pickle, sys
while True:
    source, names = pickle.load(sys.stdin.buffer)
    try:
        exec(source, names)
        answer = True, names.get("result")
    except Exception as error:
        answer = False, error
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


def add_for(data: Any, count: int) -> None:
    """Count, several operations in one."""
    for _ in range(count):
        with data.lock:
            data["n"] += 1


looked: list[int] = []


def look_once(data: Any) -> str:
    """Be what comes of a Curious: use the data that it is in, while it is unpickled."""
    if not looked:
        looked.append(-1)
        looked.append(len(data))
    return "found"


class Curious:
    """A value that looks at the data that it is in, where it arrives."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return look_once, (self.data,)


class Far:
    """A process that has nothing in common with this one but what is sent to it."""

    def __init__(self) -> None:
        self.process = Program(
            [sys.executable, "-c", LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )

    def begin(self, source: str, **names: Any) -> None:
        """Have it run some lines, with these names."""
        assert self.process.stdin is not None
        pickle.dump((source, names), self.process.stdin)
        self.process.stdin.flush()

    def end(self) -> Any:
        """Wait for it, and return what it calls result; or raise what was raised there."""
        assert self.process.stdout is not None
        is_well, answer = pickle.load(self.process.stdout)
        if not is_well:
            raise answer
        return answer

    def run(self, source: str, **names: Any) -> Any:
        """Have it run some lines, and return what it calls result."""
        self.begin(source, **names)
        return self.end()

    def copy(self, data: Any) -> Any:
        """Return the content of shared data, as it is there."""
        return self.run("result = data.copy()", data=data)

    def kill(self) -> None:
        """Kill it, wherever it is."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
