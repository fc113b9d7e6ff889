"""Run plait in places that need other people's packages, and print a table of the results.

    python -m tests.places [NAME...]

Each script in this folder is a place. It names the packages that it needs as inline metadata
(PEP 723), is run by a Python of its own that has these packages and this plait, in an empty folder,
and fails by an exception. It has LIMIT_S to end; then it is killed with all that it started.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LIMIT_S = 600
METADATA = re.compile(r"^# /// script\n((?:#.*\n)+?)# ///$", re.MULTILINE)


def places() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def needs(script: Path) -> list[str]:
    """Return the packages that a script names."""
    found = METADATA.search(script.read_text())
    text = found[1].replace("# ", "").replace("#", "") if found else ""
    return [str(one) for one in tomllib.loads(text).get("dependencies", [])]


def make_python(folder: Path, packages: list[str]) -> Path:
    """Make an environment with packages and this plait; return its Python."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    install: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    subprocess.run([*install, str(ROOT), *packages], check=True, timeout=LIMIT_S)
    return python


def run(script: Path, scratch: Path) -> str:
    """Run a place; return "fine" or what was wrong."""
    try:
        python = make_python(scratch / "venv", needs(script))
    except subprocess.SubprocessError:
        return "its packages could not be installed"
    there = scratch / "there"
    there.mkdir()
    environ = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environ |= {"HOME": str(scratch), "PLAIT_CACHE_DIR": "", "TMPDIR": str(scratch)}
    process = subprocess.Popen(
        [python, "-P", script], cwd=there, env=environ, start_new_session=True
    )
    try:
        status = process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"did not end within {LIMIT_S} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"exit code {status}" if status else "fine"


def main(names: list[str]) -> int:
    if unknown := set(names) - set(places()):
        print(f"There is no place {', '.join(unknown)}; there are {', '.join(places())}.")
        return 2
    rows = []
    for name in names or places():
        print(f"=== {name}", flush=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            result = run(HERE / f"{name}.py", Path(scratch).resolve())
        rows.append((name, result, f"{time.monotonic() - began:.0f} s"))
    print(f"\nPython {sysconfig.get_python_version()}")
    for name, result, took in rows:
        print(f"{name:<20} {took:>6}  {result}")
    return int(any(result != "fine" for _, result, _ in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
