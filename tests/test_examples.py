"""Every example runs as a learner would run it, and prints what it promises."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"

RunExample = Callable[..., str]


@pytest.fixture
def run_example(tmp_path: Path) -> RunExample:
    """Run a script of examples/ in an empty folder, with all warnings as errors."""
    folder = tmp_path / "here"
    folder.mkdir()

    def run(name: str, *arguments: object) -> str:
        ended = subprocess.run(
            [sys.executable, "-W", "error", EXAMPLES / name, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
        assert "Warning" not in ended.stderr
        assert list(folder.iterdir()) == []  # it cleaned up
        return ended.stdout

    return run


def test_every_example_has_a_test() -> None:
    assert {f"test_{script.stem}" for script in EXAMPLES.glob("*.py")} <= set(globals())


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.stem)
def test_every_example_says_how_to_run_it(script: Path) -> None:
    assert f"Run it: python examples/{script.name}" in script.read_text(encoding="utf-8")


def test_factorials(run_example: RunExample) -> None:
    output = run_example("factorials.py").splitlines()
    assert output[0] == " 1! = 1"
    assert output[9] == "10! = 3628800"
    assert output[10] == "together they have 33 digits"
    assert output[11].startswith("-1! is none: factorial() not defined")


def test_squares(run_example: RunExample) -> None:
    output = run_example("squares.py")
    squares = [n * n for n in range(1, 11)]
    assert f"squares: {squares}" in output

    (own_pid,) = re.findall(r"this process is (\d+)", output)
    workers = re.findall(r"worker (\d+) computed \[(.*)\]", output)
    assert own_pid not in [pid for pid, _ in workers]
    assert sorted(int(n) for _, values in workers for n in values.split(", ")) == squares


def test_downloads(run_example: RunExample) -> None:
    output = run_example("downloads.py")
    for backend in ("serial", "threads", "auto"):
        # The summary of each way, and below it the one URL that failed.
        assert re.search(rf"{backend}: 59 files, .*\n +failed: .*404 Not Found.*/missing", output)
    assert output.count("failed") == 3
    assert re.search(r"auto: [\d.]+ times faster, with \w+", output)


def test_thumbnails(run_example: RunExample) -> None:
    output = run_example("thumbnails.py", "--count", 12)
    assert output.startswith("11 thumbnails in ")
    assert re.findall("failed: (.*?):", output) == ["photo-0000.jpg"]


def test_thumbnails_of_a_folder(run_example: RunExample, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (800, 400)).save(photos / "wide.jpg")
    Image.new("L", (300, 600)).save(photos / "tall.JPEG")
    (photos / "notes.txt").write_text("no photo")

    output = run_example("thumbnails.py", photos)
    assert output.startswith("2 thumbnails in ")
    assert "failed" not in output
    assert size_of(photos / "thumbnails" / "wide.jpg") == (200, 100)
    assert size_of(photos / "thumbnails" / "tall.JPEG") == (100, 200)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize(("below", "count"), [(2, "0"), (100, "25"), (3_000_000, "216,816")])
def test_primes(run_example: RunExample, below: int, count: str) -> None:
    output = run_example("primes.py", below)
    assert f"There are {count} primes below {below:,}." in output
    assert "0 of them with an error" in output
    assert re.search(r"The plain loop takes about [\d.]+ s .* times faster", output)


def test_word_count(run_example: RunExample, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "one.txt").write_text("Bread and butter, bread and honey")
    (texts / "two.txt").write_bytes(b"\xffbutter, BREAD")
    (texts / "other.md").write_text("milk")

    output = run_example("word_count.py", texts, "--pattern", "*.txt", "--top", 2)
    assert output.splitlines() == [
        "6 words, 3 different ones, in 2 files",
        "       3  bread",
        "       2  butter",
    ]


def test_responsive(run_example: RunExample) -> None:
    output = run_example("responsive.py")
    in_loop, in_processes = (int(ms) for ms in re.findall(r"late by (\d+) ms", output))
    assert in_processes < in_loop
    assert "same results: True" in output


def test_standard_library(run_example: RunExample) -> None:
    output = run_example("standard_library.py", "--limit", 100)
    assert re.search(r"^plait chose \w+.*: .+", output, re.MULTILINE)
    assert "tasks     100 done" in output


def test_standard_library_lists_what_does_not_parse(
    run_example: RunExample, tmp_path: Path
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "good.py").write_text(
        "def short(): ...\n\nasync def longer():\n    x = 1\n    ...\n"
    )
    (sources / "old_escape.py").write_text("pattern = '\\d'\n")  # parsing it warns
    (sources / "bad_syntax.py").write_text("def (:\n")
    (sources / "bad_encoding.py").write_text("# coding: nonsense\n")

    output = run_example("standard_library.py", sources)
    assert re.search(r"good\.py\W+5\W+2\W+longer\W+3\b", output)
    assert "2 files, 6 lines, 2 functions" in output
    assert "did not parse: 2\n  bad_encoding.py: SyntaxError: " in output
    assert "\n  bad_syntax.py: SyntaxError: " in output
    assert "tasks     4 done, 2 of them with an error" in output
