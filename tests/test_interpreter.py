"""Programs that are not Python: no program is started a second time, and what cannot be is said."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import plait
from plait import interpreter, server_process
from plait.backends import child
from tests.conftest import close_all

pytestmark = [pytest.mark.usefixtures("clean", "unknown"), pytest.mark.timeout(60)]

WAYS: tuple[dict[str, Any], ...] = ({"start_method": "server"}, {"start_method": "spawn"})
PROCESSES: dict[str, Any] = {"backend": "processes", "max_workers": 1}


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin without a server and without knowledge of programs, and keep none."""
    close_all()
    server = server_process.ServerProcess()
    monkeypatch.setattr(server_process, "server", server)
    monkeypatch.setattr(child, "server", server)
    monkeypatch.setattr("plait.choice.server", server)
    monkeypatch.setattr(interpreter, "_state", interpreter._State())
    yield
    plait.shutdown()
    server.close()


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Return a program that is not Python, under some name, and the file that counts its starts."""

    def make(name: str) -> tuple[Path, Path]:
        path, starts = tmp_path / name, tmp_path / "starts"
        path.write_text(f"#!/bin/sh\necho start >>{starts}\necho 'last words' >&2\nexit 7\n")
        path.chmod(0o755)
        return path, starts

    return make


def busy(x: int) -> int:
    return sum(range(20_000 + x))


def check_auto() -> None:
    """The default takes the loop, says why, and starts nothing."""
    with plait.run(busy, range(300), ordered=True) as run:
        values = [outcome.value for outcome in run]
    assert values == [busy(x) for x in range(300)]
    plan = plait.plan(busy, [0] * 100_000)
    assert plan.backend != "processes"
    assert "sys.executable is" in str(plan)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", [None, "", "/nowhere/python", "/", "/etc/passwd", "/bin/cat"])
def test_what_is_no_python_is_one_error_and_is_not_started(
    monkeypatch: pytest.MonkeyPatch, wrong: str | None, way: dict[str, Any]
) -> None:
    monkeypatch.setattr(sys, "executable", wrong)
    with pytest.raises(plait.WorkerStartError, match=r"sys\.executable is") as caught:
        plait.map(abs, [1], **PROCESSES, **way)
    assert repr(wrong) in str(caught.value)
    assert "backend='threads'" in str(caught.value)
    with pytest.raises(plait.WorkerStartError, match=r"sys\.executable is"):
        plait.Executor(1, "processes")


@pytest.mark.parametrize("wrong", [None, ""])
def test_auto_takes_another_way_and_says_so(
    monkeypatch: pytest.MonkeyPatch, wrong: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", wrong)
    check_auto()


def test_a_program_of_another_name_is_never_started(
    monkeypatch: pytest.MonkeyPatch, program: Callable[[str], tuple[Path, Path]]
) -> None:
    path, starts = program("app")
    monkeypatch.setattr(sys, "executable", str(path))
    with pytest.raises(plait.WorkerStartError, match="is not a Python interpreter"):
        plait.map(abs, [1], **PROCESSES)
    check_auto()
    assert not starts.exists()


def test_a_program_that_is_called_python_is_started_once(
    monkeypatch: pytest.MonkeyPatch, program: Callable[[str], tuple[Path, Path]]
) -> None:
    path, starts = program("python3")
    monkeypatch.setattr(sys, "executable", str(path))
    for way in (*WAYS, WAYS[0]):
        with pytest.raises(plait.WorkerStartError) as caught:
            plait.map(abs, range(8), backend="processes", max_workers=4, **way)
        text = str(caught.value)
        assert str(path) in text
        assert "exited with code 7" in text
        assert "Its last words:\nlast words" in text
    plan = plait.plan(busy, [0] * 100_000)
    assert plan.backend != "processes"
    assert "last words" in str(plan)
    assert starts.read_text() == "start\n"


def test_what_keeps_python_from_starting_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(plait.WorkerStartError, match="No module named 'encodings'"):
        plait.map(abs, [1], **PROCESSES)


def test_another_python_is_told_from_this_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = interpreter._BOOT.replace(f"== {tuple(sys.version_info[:2])}", "== (2, 7)")
    assert other != interpreter._BOOT
    monkeypatch.setattr(interpreter, "_BOOT", other)
    with pytest.raises(plait.WorkerStartError, match=r"This is Python 3\.\d+; the program"):
        plait.map(abs, [1], **PROCESSES)


def test_this_python_is_one_whatever_its_name(tmp_path: Path) -> None:
    link = tmp_path / "mayapy"
    link.symlink_to("/proc/self/exe")
    assert interpreter.why_not() == ""
    assert interpreter._look_at(str(link))


def test_a_program_that_embeds_python_is_told_by_its_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for arguments in ([], sys.argv[:]):
        monkeypatch.setattr(sys, "orig_argv", arguments)
        assert not interpreter._look_at(os.path.realpath("/proc/self/exe"))


# --- Frozen programs -----------------------------------------------------------------------

# A frozen program in all that matters here: its executable runs this file, whatever its arguments.
FROZEN = """
import sys
sys.frozen = True
sys.executable = {app!r}
import plait
{support}
with open({starts!r}, "a") as file:
    file.write("start\\n")
offset = 5
def add(x):
    return x + offset
for way in ("server", "spawn"):
    try:
        print(plait.map(add, range(5), backend="processes", max_workers=2, start_method=way))
    except plait.WorkerStartError as error:
        print(error)
print(plait.plan(lambda x: sum(range(x)), [30_000] * 100_000).backend)
"""


def run_frozen(tmp_path: Path, support: str) -> tuple[str, str, str]:
    """Return what a frozen program printed on both streams, and its starts."""
    import subprocess

    app, script, starts = tmp_path / "app", tmp_path / "app.py", tmp_path / "starts"
    script.write_text(FROZEN.format(app=str(app), starts=str(starts), support=support))
    app.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    app.chmod(0o755)
    done = subprocess.run([app], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, done.stderr, starts.read_text()


def test_a_frozen_program_is_not_started_again(tmp_path: Path) -> None:
    out, err, starts = run_frozen(tmp_path, "")
    assert out.count("This program is frozen") == 2
    assert out.count("Call plait.freeze_support()") == 2
    assert out.split()[-1] in ("serial", "threads")
    assert (err, starts) == ("", "start\n")


def test_with_freeze_support_it_has_workers(tmp_path: Path) -> None:
    out, err, starts = run_frozen(tmp_path, "plait.freeze_support()")
    assert out.splitlines()[:2] == ["[5, 6, 7, 8, 9]"] * 2
    assert (err, starts) == ("", "start\n")
