"""What the workloads stand on: files to read, a server to ask, and how fast this CPU is.

Made once by the command, for all engines; hosts get it with each measurement.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.processes import environment
from benchmarks.tasks import loops_for

__all__ = ["FILES", "LATENCY_S", "PAGE_NBYTES", "Ground", "prepared"]

LATENCY_S = 0.02
PAGE_NBYTES = 20_000  # that the server sends
FILES, FILE_NBYTES = 500, 64 * 1024


@dataclass(frozen=True, slots=True)
class Ground:
    """What is there before a workload begins.

    Attributes:
        folder: the files to read are in it, and modules to import may be put there.
        port: of the server, on 127.0.0.1.
        loops_per_s: of ``tasks.burn``, so that all engines compute the same.
    """

    folder: str
    port: int
    loops_per_s: float

    def loops(self, seconds: float) -> int:
        """Return the argument with which ``tasks.burn`` takes so long."""
        return max(1, round(self.loops_per_s * seconds))


@contextmanager
def prepared() -> Iterator[Ground]:
    """Write the files and start the server; remove and end them afterwards."""
    with TemporaryDirectory(prefix="plait-bench-") as folder, _serving() as port:
        _write_files(Path(folder))
        yield Ground(folder, port, loops_for(0.1) / 0.1)


def _write_files(folder: Path) -> None:
    for number in range(FILES):
        lines = number + 1
        (folder / f"{number}.txt").write_text("\n" * lines + "x" * (FILE_NBYTES - lines))


@contextmanager
def _serving() -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.slow_server", str(LATENCY_S), str(PAGE_NBYTES)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is the command's
    ) as server:
        assert server.stdout
        yield int(server.stdout.readline())
