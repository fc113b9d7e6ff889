"""The programs on the pages of docs/ run as a reader would run them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


def test_be_polite_to_a_server(run_python: RunPython) -> None:
    text = (DOCS / "be-polite-to-a-server.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    done = run_python("-W", "error", "-", stdin=program)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    line = r"^slowed    \d+ times? by slow_down_on, to \d+ tasks? at once at the lowest; now \d+$"
    assert re.search(line, done.stdout, re.MULTILINE)
    (seconds,) = re.findall(r"^10 pages in ([\d.]+) s$", done.stdout, re.MULTILINE)
    assert float(seconds) >= 0.17  # 9 intervals of 20 ms, and what is made up for


def test_every_option_is_in_the_readme() -> None:
    from plait.options import Options

    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for name in Options.__dataclass_fields__:
        assert f"`{name}`" in readme, name
