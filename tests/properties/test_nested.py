"""Random programs of nested and concurrent calls give the loop's answer, and end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_random_programs_of_calls_in_calls_give_the_answer_of_the_loop() -> None:
    # In a program of its own: one that hangs prints where, and ends.
    command = [sys.executable, "-m", "tests.properties.nested", "--count", "100"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr[-5000:]
