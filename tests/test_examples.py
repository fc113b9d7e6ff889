"""Every example runs as a learner would run it, and prints what it promises."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
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
        assert ended.returncode == 0, ended.stderr or ended.stdout
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


@pytest.mark.soak
def test_squares_by_pool_size(run_example: RunExample, tmp_path: Path) -> None:
    output = run_example("squares_by_pool_size.py", "--plot", tmp_path / "sweep.png")
    squares = [n * n for n in range(1, 11)]
    pools = re.findall(r"^(.*): (\[.*\]) in [\d.]+ ms$", output, re.MULTILINE)
    ways = ["2 processes", "4 processes", "8 processes", "the plain loop"]
    assert pools == [(way, str(squares)) for way in ways]

    assert "square_slowly, 100 tasks: medians of 3 rounds" in output
    rows = re.findall(r"^processes +(\d) .* +\d+%", output, re.MULTILINE)
    assert rows[:3] == ["2", "4", "8"]  # below them the law of scaling may have a line
    assert re.search(r"^Recommended: (the loop|\d processes)\.$", output, re.MULTILINE)
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.format == "PNG"


def test_downloads(run_example: RunExample) -> None:
    output = run_example("downloads.py")
    for backend in ("serial", "threads", "auto"):
        # The summary of each way, and below it the one URL that failed.
        assert re.search(rf"{backend}: 59 files, .*\n +failed: .*404 Not Found.*/missing", output)
    assert output.count("failed") == 3
    assert re.search(r"auto: [\d.]+ times faster, with \w+", output)


def test_thumbnails(run_example: RunExample) -> None:
    output = run_example("thumbnails.py", "--count", 50)
    assert "\n49 thumbnails in " in output
    assert re.findall("failed: (.*?):", output) == ["photo-0000.jpg"]
    # What the program logs itself, and what its workers log, by the same handler.
    assert output.startswith("INFO [main] 50 photos\n")
    assert re.search(r"INFO \[process-\d+\] photo 50, photo-0049.jpg: 1600 x 1200\n", output)


def test_thumbnails_of_a_folder(run_example: RunExample, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (800, 400)).save(photos / "wide.jpg")
    Image.new("L", (300, 600)).save(photos / "tall.JPEG")
    (photos / "notes.txt").write_text("no photo")

    output = run_example("thumbnails.py", photos)
    assert "\n2 thumbnails in " in output
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


def test_exceptions(run_example: RunExample) -> None:
    _, caught, future, process, event, cleaned, logged, retried = re.split(
        r"^\d\. .*\n", run_example("exceptions.py"), flags=re.MULTILINE
    )
    assert caught.strip() == "[20.5, 19.0, None, 22.5]"

    no_number = "could not convert string to float: 'n/a'"
    assert sorted(future.split("\n")[:4]) == [
        "'19.0' is 19.0 degrees",
        "'20.5' is 20.5 degrees",
        "'22.5' is 22.5 degrees",
        f"'n/a' is none: {no_number}",
    ]

    assert "value: 19.75\n" in process
    assert re.search(r"note:  plait: task 1, mean\(.*\), .* on process-\d+ \(pid \d+\)", process)
    assert process.count("Traceback (most recent call last)") == 1
    assert "in mean\n" in process
    assert f"\nValueError: {no_number}\n" in process

    # Two may find theirs at the same moment; the others would have searched for hours.
    found = re.findall(r"the hash of ([\d,]+) begins", event)
    assert found
    assert len(found) + event.count("stopped at") == 4
    for number in found:
        assert sha256(number.replace(",", "").encode()).hexdigest().startswith("0000")

    assert re.findall(r"^  (.*)", cleaned, re.MULTILINE) == [
        "1646 bytes",
        "ValueError",
        "TaskTimeout",
    ]
    assert cleaned.count("finally, for range") == 3
    assert cleaned.count(": 1 file in use") == 3
    assert "files left behind: []" in cleaned

    assert re.search(r"ERROR by process-\d+ in task 2: no number: 'n/a'\nTraceback", logged)
    assert "in parse\n" in logged
    assert f"\nValueError: {no_number}\n[20.5, 19.0, nan, 22.5]\n" in logged

    tries = int(re.findall(r", try (\d+): connected", retried)[0])
    assert len(re.findall("failed: .*refused", retried)) == tries - 1 >= 1
    assert "port -1, try 1: " in retried


def test_crawl(run_example: RunExample) -> None:
    output = run_example("crawl.py")
    assert "38 of 40 pages read" in output
    assert re.search(r"not among them: http://.*/23, http://.*/31$", output.rstrip())

    crashed = re.search(
        r"/23 killed process-\d+ \(pid \d+\): signal 11 .*\n((?:    .*\n|\n)+)", output
    )
    assert crashed
    assert "Segmentation fault" in crashed[1]
    assert "in string_at" in crashed[1]
    assert "in handle_starttag" in crashed[1]

    hung = re.search(r"/31 was ended after 2.\d s on process-\d+\n((?:    .*\n)+)", output)
    assert hung
    assert "in handle_starttag" in hung[1]
    assert output.count(" killed ") == output.count(" was ended ") == 1


SHARED = {
    "Lock": "1 + 2 + ... + 100 = 5050",
    "RLock": "100 and 0 became 40 and 60",
    "Semaphore": "40 visits, two at a time or fewer: True",
    "Condition": "bought 2 of 3 when all were there, left: 1",
    "Event": "it is opened, and 2 went in",
    "Barrier": "each saw so many at the gate: [3, 3, 3]",
    "Queue": "two consumers took 0 + 1 + ... + 99 = 4950",
    "Pipe": "hello, HELLO",
    "Value": "the largest was 9.5",
    "Counter": "142 of 1,000 numbers can be divided by 7",
    "Array": "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]",
    "List": "['Ada', 'Edsger', 'Grace']",
    "Dict": "{'be': 2, 'not': 1, 'or': 1, 'to': 2}",
}


def test_sharing(run_example: RunExample) -> None:
    output = run_example("sharing.py", *SHARED)
    for name, told in SHARED.items():
        pattern = rf"^{name}: .*\n  on threads: (.*)\n  on processes: (.*)$"
        assert re.findall(pattern, output, re.MULTILINE) == [(told, told)]


def test_race(run_example: RunExample) -> None:
    unlocked, locked, found, none = re.split(
        r"^\d\. .*\n", run_example("race.py"), flags=re.MULTILINE
    )[1:]
    lost = re.findall(r"makes ([\d,]+): ([\d,]+) are lost", unlocked)
    (made, missing), *_ = [tuple(int(text.replace(",", "")) for text in row) for row in lost]
    assert made + missing == 100_000
    assert missing > 0
    assert locked.strip() == "2 x 50,000 makes 100,000: 0 are lost"
    assert len(re.findall(r"wrote it \(append\)\n +at .*race\.py:\d+ in find", found)) == 2
    assert none.strip() == "['Ada', 'Grace']"


def test_deadlock(run_example: RunExample) -> None:
    output = run_example("deadlock.py")
    for told in re.split(r"^Take two locks, .*\n", output, flags=re.MULTILINE)[1:]:
        assert told.count("Deadlock: 2 threads wait for each other.") == 1
        assert set(re.findall(r"holds Lock '(\w+)'", told)) == {"left", "right"}
        assert set(re.findall(r"has waited [\d.]+ s for Lock '(\w+)'", told)) == {"left", "right"}
        assert told.count("Has both locks, now that the other one has given up.\n") == 1
        assert told.count("Has both locks.\n") == 2
    assert output.count("Deadlock: ") == 2


def test_producer_consumer(run_example: RunExample) -> None:
    output = run_example("producer_consumer.py")
    assert (
        re.findall(r"^  on (\w+): 500 numbers, in order: True$", output, re.MULTILINE)
        == [
            "threads",
            "processes",
        ]
        * 3
    )


def test_proof(run_example: RunExample) -> None:
    output = run_example("proof.py")
    ((held, claims),) = re.findall(r"^(\d+) of (\d+) claims hold", output, re.MULTILINE)
    assert held == claims == "13"
    assert "FAILS" not in output


LOSSY = """
import plait

honest = plait.map
plait.map = lambda *args, **options: honest(*args, **options)[:-1]
"""


@pytest.mark.parametrize(
    ("claim", "module", "readme", "found"),
    [
        ("order", LOSSY, "", "another list than a loop's"),
        ("prints", "", "plait does its best.", "the README does not say so"),
    ],
)
def test_proof_finds_out_a_claim_that_fails(
    tmp_path: Path, claim: str, module: str, readme: str, found: str
) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "README.md").write_text(readme or (EXAMPLES.parent / "README.md").read_text())
    program = tmp_path / "examples" / "proof.py"
    program.write_text(module + (EXAMPLES / "proof.py").read_text())
    done = subprocess.run(
        [sys.executable, program, claim], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert "0 of 1 claims hold" in done.stdout
    assert found in " ".join(done.stdout.split())
