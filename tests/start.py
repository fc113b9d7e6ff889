"""Start the programs that tests talk to, so that none outlives its test, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Program", "descendants", "ended_programs"]


class _Program(subprocess.Popen[Any]):
    """A program that was started, as ``subprocess.Popen``.

    A ``with`` block that fails kills it, where that of Popen would wait for it. What is left at
    the end of a test is killed by a fixture of tests/conftest.py.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _programs.append(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.end()
        super().__exit__(kind, value, traceback)

    def end(self) -> None:
        """Kill it, and all that it started, unless it has ended."""
        if self.poll() is None:
            for pid in (self.pid, *descendants(self.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


_programs: list[_Program] = []  # those of the running test

if TYPE_CHECKING:
    Program = subprocess.Popen  # with its overloads, which tell bytes from text
else:
    Program = _Program


@contextmanager
def ended_programs() -> Iterator[None]:
    """Kill the programs that were started meanwhile and are still there, and close their pipes."""
    before = len(_programs)
    try:
        yield
    finally:
        while len(_programs) > before:
            _end(_programs.pop())


def _end(program: _Program) -> None:
    program.end()
    program.wait()
    for pipe in (program.stdin, program.stdout, program.stderr):
        if pipe is not None:
            with suppress(OSError):  # nobody reads what was not written yet
                pipe.close()


def descendants(pid: int) -> set[int]:
    """Return the pids of all that descends from a process."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = {pid}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}
