"""Some kills on each way to the tests; ``make soak`` has a thousand of them."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest

from plait.shared.whereabouts import is_alive
from tests.shared import kill_board
from tests.shared.kill_matrix import GAMES


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.shared.kill_matrix", *arguments],
        text=True,
        capture_output=True,
        timeout=100,
        check=False,
    )


def test_random_kills_leave_all_in_order() -> None:
    done = run("--kills", "40", "--seed", "1")
    assert done.stdout.startswith("kill matrix: all well, 40 kills"), done.stdout + done.stderr


@pytest.mark.parametrize("name", GAMES)
def test_random_kills_at_one_kind_of_data(name: str) -> None:
    done = run("--kills", "15", "--seed", "2", "--only", name, "--workers", "3")
    assert done.stdout.startswith("kill matrix: all well, 15 kills"), done.stdout + done.stderr


def test_the_matrix_sees_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    board = kill_board.Board()
    rng = Random(1)
    board.words[0] = 1  # the first process of the machine: it lives
    monkeypatch.setattr(kill_board, "DYING_S", 0.0)
    assert is_alive(1, 1)
    with pytest.raises(kill_board.Wrong, match="came in while 1 was in"), board.alone(rng):
        pass
    board.words[0] = 0
    with pytest.raises(kill_board.Wrong, match="2 came in"), board.alone(rng):
        board.words[0] = 2
