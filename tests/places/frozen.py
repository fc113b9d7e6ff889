# /// script
# dependencies = ["pyinstaller==6.22.3", "numpy==2.3.5"]
# ///
"""A program that PyInstaller froze, in one file and in a folder, with and without a guard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
with open(os.environ["STARTS"], "a") as file:
    file.write("start\\n")
import numpy, plait
from plait.shared import Value

offset = 5
total = Value(int, 0)

class Pair:
    def __init__(self, x):
        self.x = x

def add(x):
    total.add(1)
    return Pair(x + offset)

def fail(x):
    raise ValueError(x)

def main():
    assert sys.frozen
    for way in ("server", "spawn"):
        given = dict(backend="processes", max_workers=2, start_method=way)
        pairs = plait.map(add, range(50), **given)
        assert [type(pair) for pair in pairs] == [Pair] * 50
        assert [pair.x for pair in pairs] == [x + 5 for x in range(50)]
        assert [a.sum() for a in plait.map(numpy.ones, [300_000] * 3, **given)] == [3e5] * 3
        with plait.Executor(2, "processes", start_method=way) as executor:
            assert executor.submit(lambda: os.getpid()).result() != os.getpid()
        try:
            plait.map(fail, [3], **given)
        except ValueError as error:
            assert error.args == (3,)
        (died,) = plait.run(lambda x: os._exit(9), [1], **given)
        assert died.error.exitcode == 9
    assert total.value == 100
    assert plait.plan(lambda x: sum(range(x)), [30_000] * 10_000).backend == "processes"
    print("fine", *sys.argv[1:])
"""
UNGUARDED = PROGRAM + "\nmain()\n"
GUARDED = (
    PROGRAM
    + """
if __name__ == "__main__":
    import multiprocessing
    multiprocessing.freeze_support()
    plait.freeze_support()
    main()
"""
)
# Without the hook of plait: PyInstaller's own folders are searched only.
NO_HOOK = """
import os
with open(os.environ["STARTS"], "a") as file:
    file.write("start\\n")
import sys
import plait
from plait import interpreter
interpreter._state = interpreter._State()  # as if nothing had called freeze_support
try:
    plait.map(abs, [1], backend="processes")
except plait.WorkerStartError as error:
    print(error)
print(plait.map(lambda x: sum(range(x)), [30_000] * 300)[0])
"""


def build(name: str, text: str, *options: str) -> Path:
    Path(f"{name}.py").write_text(text)
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN"]
    subprocess.run([*command, *options, f"{name}.py"], check=True, timeout=200)
    built = Path("dist") / name
    return built / name if built.is_dir() else built


def run(program: Path, *arguments: str) -> str:
    """Run a program; return what it printed. It was started once."""
    starts = Path("starts").resolve()
    starts.unlink(missing_ok=True)
    environ = {**os.environ, "STARTS": str(starts)}
    command = [program.resolve(), *arguments]
    done = subprocess.run(
        command, env=environ, check=True, timeout=60, stdout=subprocess.PIPE, text=True
    )
    print(program, done.stdout, flush=True)
    assert starts.read_text() == "start\n", starts.read_text()
    return done.stdout


for kind in ("--onedir", "--onefile"):
    for name, text in (("unguarded", UNGUARDED), ("guarded", GUARDED)):
        program = build(name + kind.strip("-"), text, kind)
        assert run(program, "-x", "--", "y") == "fine -x -- y\n"
said = run(build("nohook", NO_HOOK, "--onedir"))
assert "This program is frozen" in said, said
assert said.endswith("449985000\n"), said
