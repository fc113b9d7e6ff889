"""In children of multiprocessing, daemons too: everything is there as in the program itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(60)

# A program as people write it: with a guard, and functions of __main__, which the children of
# multiprocessing know as __mp_main__.
PROGRAM = """
import json, multiprocessing, os, sys
import plait
from plait.shared import Lock, Queue, Value

offset = 5

class Pair:
    def __init__(self, x):
        self.x = x

def add(x):
    return Pair(x + offset)

def count(x):
    with lock:
        total.value += 1
    queue.put(x)
    return x

lock = total = queue = None

def have(*shared):
    global lock, total, queue
    lock, total, queue = shared

def child(connection, *shared):
    have(*shared)
    assert __name__ == {main!r}, __name__
    ways = [{{"backend": "threads"}}, {{}}]
    ways += [{{"backend": "processes", "start_method": how}} for how in ("server", "spawn")]
    found = {{}}
    for way in ways:
        pairs = plait.map(add, range(4), max_workers=2, **way)
        assert [type(pair) for pair in pairs] == [Pair] * 4
        found[str(way)] = [pair.x for pair in pairs]
        found["count" + str(way)] = plait.map(count, range(4), max_workers=2, **way)
    with plait.Executor(2, "processes") as executor:
        found["submit"] = executor.submit(add, 1).result().x
        found["map"] = [pair.x for pair in executor.map(add, range(3))]
        found["other"] = executor.submit(os.getpid).result() != os.getpid()
    connection.send_bytes(json.dumps(found).encode())

if __name__ == "__main__":
    context = multiprocessing.get_context({how!r})
    here, there = context.Pipe()
    shared = Lock("a lock"), Value(int, 0), Queue()
    process = context.Process(target=child, args=(there, *shared), daemon={daemon})
    process.start()
    there.close()
    found = json.loads(here.recv_bytes())
    process.join(20)
    assert process.exitcode == 0, process.exitcode
    assert shared[1].value == 16, shared[1].value
    assert sorted(shared[2].get(timeout=1) for _ in range(16)) == sorted([*range(4)] * 4)
    have(*shared)
    assert plait.map(count, [1, 2], backend="processes") == [1, 2]
    print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("how", "daemon"), [("spawn", False), ("spawn", True), ("forkserver", True), ("fork", True)]
)
def test_a_child_of_multiprocessing(how: str, daemon: bool, tmp_path: Path) -> None:
    main = "__main__" if how == "fork" else "__mp_main__"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(how=how, daemon=daemon, main=main))
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found.pop("submit") == 6
    assert found.pop("map") == [5, 6, 7]
    assert found.pop("other")
    for what, values in found.items():
        assert values == ([0, 1, 2, 3] if what.startswith("count") else [5, 6, 7, 8]), what
