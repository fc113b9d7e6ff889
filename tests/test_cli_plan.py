"""``plait plan``, as a user meets it: the real command, in a directory with modules."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.test_cli import COMMAND, ENVIRONMENT

TASKS = """
import time

calls = 0

def wait(x):
    global calls
    calls += 1
    print("call", calls)
    time.sleep(0.005)

def half(x):
    return x / 2
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def plait_plan(here: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "plan", *arguments],
        cwd=here,
        env=ENVIRONMENT,
        input=stdin,
        text=True,
        capture_output=True,
        timeout=60,
    )


def test_it_prints_a_table_and_the_reason_and_runs_no_more_than_the_sample(here: Path) -> None:
    done = plait_plan(here, "tasks:wait", "--range", "1", "1000")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("threads x ")
    assert [line.split()[0] for line in lines[2:5]] == ["serial", ">", "processes"]
    assert lines[5].startswith("Below about ")
    calls = done.stderr.splitlines()  # what the function prints is no part of the plan
    assert 1 <= len(calls) <= 20


def test_items_come_from_arguments_too_and_from_an_input(here: Path) -> None:
    assert plait_plan(here, "math:factorial", "--jsonl", "3", "4").stdout.startswith("serial: ")
    endless = plait_plan(here, "tasks:wait", "--input", "-", stdin="1\n" * 100_000)
    assert endless.stdout.startswith("threads x ")


def test_the_number_of_workers_can_be_bounded(here: Path) -> None:
    done = plait_plan(here, "tasks:wait", "--range", "1", "1000", "--max-workers", "5")
    assert done.stdout.startswith("threads x 5: ")


def test_a_task_that_fails_leaves_no_plan(here: Path) -> None:
    done = plait_plan(here, "tasks:half", "7")
    assert (done.returncode, done.stdout) == (1, "")
    assert "TypeError" in done.stderr
    assert "a task failed, so there is no plan; the item '7' was text" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("tasks:nothing", "1"), "nothing"),
        (("tasks:wait", "1", "--max-workers", "0"), "max_workers"),
        (("tasks:wait", "--input", "missing.txt"), "missing.txt"),
    ],
)
def test_mistakes_are_told_in_a_sentence(here: Path, arguments: list[str], text: str) -> None:
    done = plait_plan(here, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("plait: ")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_help_says_what_is_run(here: Path) -> None:
    done = plait_plan(here, "--help")
    assert done.returncode == 0
    assert "10 to 80 ms" in done.stdout
