"""Seven ways to handle what goes wrong in concurrent tasks, side by side.

Run it: python examples/exceptions.py
"""

import logging
import math
import socket
import sys
import tempfile
import threading
from concurrent.futures import as_completed
from hashlib import sha256
from pathlib import Path
from typing import Any

import plait

READINGS = ["20.5", "19.0", "n/a", "22.5"]


def catch() -> None:
    """1. try and except inside the task: what was expected becomes a value like any other."""

    def parse(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:
            return None  # the sensor was off

    print(plait.map(parse, READINGS, backend="threads"))


def collect() -> None:
    """2. An error waits in its future until result() raises it here."""
    with plait.Executor(max_workers=2, backend="threads") as executor:
        futures = {executor.submit(float, text): text for text in READINGS}
        for future in as_completed(futures):
            try:
                print(f"{futures[future]!r} is {future.result()} degrees")
            except ValueError as error:
                print(f"{futures[future]!r} is none: {error}")


def carry_over() -> None:
    """3. From a process an error comes with a note, and the worker's traceback as its cause."""

    def mean(texts: list[str]) -> float:
        return sum(float(text) for text in texts) / len(texts)

    days = [READINGS[:2], READINGS[2:]]
    results: list[Any] = plait.map(mean, days, backend="processes", on_error="return")
    value, error = results
    print(
        f"value: {value}\nerror: {error!r}\nnote:  {error.__notes__[0]}\ncause: {error.__cause__}"
    )


def tell_others() -> None:
    """4. The first task that has an answer tells the others to stop, by an Event."""
    is_found = threading.Event()

    def search(numbers: range) -> str:
        for number in numbers:
            if is_found.is_set():
                return f"stopped at {number:,}"
            if sha256(str(number).encode()).hexdigest().startswith("0000"):
                is_found.set()
                return f"the hash of {number:,} begins with four zeros"
        return "nothing"

    ranges = [range(start, start + 10**9) for start in range(0, 4 * 10**9, 10**9)]
    print(*plait.map(search, ranges, backend="threads", max_workers=4), sep="\n")


def clean_up() -> None:
    """5. with and finally clean up when a task returns, fails, or is ended for its time."""

    def write_roots(numbers: range) -> int:
        with tempfile.NamedTemporaryFile("w", dir=folder) as file:
            try:
                return sum(file.write(f"{math.sqrt(number)}\n") for number in numbers)
            finally:
                print(f"finally, for {numbers}: {len(list(folder.iterdir()))} file in use")

    jobs = [range(100), range(9, -9, -1), range(10**12)]  # the last one would take a week
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = plait.run(write_roots, jobs, backend="processes", max_workers=1, task_timeout=0.5)
        for outcome in run:
            print(f"  {outcome.value} bytes" if outcome.ok else f"  {type(outcome.error).__name__}")
        print(f"files left behind: {list(folder.iterdir())}")


def log() -> None:
    """6. What a worker logs comes to the handlers of this process, with its traceback."""
    form = "%(levelname)s by %(plait_worker)s in task %(plait_task)s: %(message)s"
    logging.basicConfig(stream=sys.stdout, format=form)

    def parse(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            logging.exception("no number: %r", text)
            return math.nan

    print(plait.map(parse, READINGS, backend="processes"))


def try_again() -> None:
    """7. What may heal is tried again, after longer and longer waits; what may not, is not."""

    def connect(port: int) -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return "connected"

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        threading.Timer(0.3, server.listen).start()  # until then it refuses
        ports = server.getsockname()[1], -1
        run = plait.run(connect, ports, retries=9, retry_on=ConnectionError, backoff=(0.1, 2, 1))
        for outcome in run:
            for attempt in outcome.earlier:
                print(f"port {outcome.item} failed: {attempt.error}")
            print(f"port {outcome.item}, try {outcome.attempt}: {outcome.value or outcome.error}")


for way in (catch, collect, carry_over, tell_others, clean_up, log, try_again):
    print(f"\n{way.__doc__}")
    way()
