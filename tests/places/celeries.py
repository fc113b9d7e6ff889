# /// script
# dependencies = ["celery==5.7.0"]
# ///
"""In a worker of celery, prefork: daemonic processes, in which multiprocessing's pools refuse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

APP = """
from celery import Celery
import plait
from plait.shared import Lock, Value

app = Celery("app", broker="filesystem://", backend="file://" + {results!r})
app.conf.broker_transport_options = {{
    "data_folder_in": {queue!r}, "data_folder_out": {queue!r}, "control_folder": {control!r},
}}
offset = 5

@app.task
def together(way):
    total, lock = Value(int, 0), Lock()
    def add(x):
        with lock:
            total.value += 1
        return x + offset
    values = plait.map(add, range(10), max_workers=2, **way)
    with plait.Executor(2, "processes") as executor:
        values += list(executor.map(add, range(3)))
        values.append(executor.submit(add, 1).result())
    return values, total.value
"""
CALL = """
from app import together
ways = [{"backend": "threads"}, {}]
ways += [{"backend": "processes", "start_method": how} for how in ("server", "spawn")]
for result in [together.delay(way) for way in ways * 2]:
    values, total = result.get(timeout=60)
    assert values == [*range(5, 15), 5, 6, 7, 6], values
    assert total == 14, total
print("fine")
"""
folders = {name: str(Path(name).resolve()) for name in ("queue", "results", "control")}
for folder in folders.values():
    Path(folder).mkdir()
Path("app.py").write_text(APP.format(**folders))
environ = {**os.environ, "PYTHONPATH": str(Path.cwd()), "C_FORCE_ROOT": "1"}
command = [
    sys.executable,
    "-m",
    "celery",
    "-A",
    "app",
    "worker",
    "-c",
    "2",
    "--loglevel",
    "WARNING",
]
worker = subprocess.Popen([*command, "--without-gossip", "--without-mingle"], env=environ)
try:
    subprocess.run([sys.executable, "-c", CALL], env=environ, check=True, timeout=120)
finally:
    worker.send_signal(signal.SIGTERM)
    status = worker.wait(30)
assert status == 0, status
