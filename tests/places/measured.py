# /// script
# dependencies = ["coverage==7.17.5", "pytest==9.2.0", "pytest-cov==7.1.0"]
# ///
"""Coverage sees all that workers run, with and without pytest-cov; so does a profiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COVERAGERC = """
[run]
source_pkgs = work
branch = true
parallel = true
patch = subprocess, _exit
"""
WORK = """
def classify(n):
    if n % 2:
        kind = "odd"
    elif n % 3:
        kind = "even"
    else:
        kind = "six"
    return kind
"""
CALL = "classify, range(20), backend='processes', start_method={!r}, max_workers=2, chunksize=1"
PROGRAM = """
import plait
from work import classify
print(len(plait.map({call})))
"""
TESTS = """
import plait, pytest
from work import classify

@pytest.fixture(scope="session", autouse=True)
def workers_leave():
    yield
    plait.shutdown()

def test_it():
    assert len(plait.map({call})) == 20
"""
PROFILED = """
import atexit, cProfile, os, plait
def profile():
    profiler = cProfile.Profile()
    profiler.enable()
    atexit.register(lambda: (profiler.disable(), profiler.dump_stats(f"{os.getpid()}.prof")))
from work import classify
with plait.Executor(2, "processes", initializer=profile) as executor:
    list(executor.map(classify, range(20), chunksize=1))
"""


def run(*arguments: str) -> str:
    print("$ python", *arguments, flush=True)
    command = [sys.executable, *arguments]
    done = subprocess.run(command, check=True, timeout=60, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    return done.stdout


def check(report: str) -> None:
    (line,) = [line for line in report.splitlines() if line.startswith("work.py")]
    assert line.split()[-1] == "100%", line


Path(".coveragerc").write_text(COVERAGERC)
Path("work.py").write_text(WORK)
for start_method in ("server", "spawn"):
    call = CALL.format(start_method)
    Path("program.py").write_text(PROGRAM.format(call=call))
    Path("test_work.py").write_text(TESTS.format(call=call))
    for measured in (["program.py"], ["-m", "pytest", "-q", "test_work.py"]):
        run("-m", "coverage", "erase")
        run("-m", "coverage", "run", *measured)
        run("-m", "coverage", "combine", "-q")
        check(run("-m", "coverage", "report"))
    check(run("-m", "pytest", "-q", "--cov=work", "--cov-report=term", "test_work.py"))

Path("profiled.py").write_text(PROFILED)
run("profiled.py")
names = [str(path) for path in Path().glob("*.prof")]
assert len(names) == 2, names
import pstats  # noqa: E402

calls = {name[2]: row[1] for name, row in pstats.Stats(*names).stats.items()}  # type: ignore[attr-defined]
assert calls["classify"] == 20, calls
