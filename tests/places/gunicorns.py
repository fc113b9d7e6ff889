# /// script
# dependencies = ["gunicorn==27.0.1", "gevent==26.9.0", "packaging>=24"]
# ///
"""In workers of gunicorn: sync, gthread and gevent, with and without --preload."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

APP = """
import plait
from plait.shared import Lock, Value

offset = 5

def answer():
    total, lock = Value(int, 0), Lock()
    def add(x):
        with lock:
            total.value += 1
        return x + offset
    ways = [{"backend": "threads"}, {}]
    ways += [{"backend": "processes", "start_method": how} for how in ("server", "spawn")]
    for way in ways:
        yield f"{plait.map(add, range(3), max_workers=2, **way)}"
    with plait.Executor(2, "processes") as executor:
        yield f"{[*executor.map(add, range(3))]}"
    yield f"{total.value}"

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [(text + "\\n").encode() for text in answer()]
"""
EXPECTED = "[5, 6, 7]\n" * 5 + "15\n"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def read(url: str) -> str:
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError:
            raise
        except (ConnectionError, urllib.error.URLError):  # it is starting
            if time.monotonic() > until:
                raise
        time.sleep(0.05)


Path("app.py").write_text(APP)
for kind in ("sync", "gthread", "gevent"):
    for preload in ([], ["--preload"]):
        port = free_port()
        command = [sys.executable, "-m", "gunicorn", "app:application", "-k", kind, "-w", "2"]
        command += ["-b", f"127.0.0.1:{port}", "--pythonpath", str(Path.cwd()), *preload]
        server = subprocess.Popen(command)
        try:
            url = f"http://127.0.0.1:{port}/"
            read(url)
            with ThreadPoolExecutor(4) as clients:
                answers = list(clients.map(read, [url] * 8))
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait(40)
        assert answers == [EXPECTED] * 8, answers
        assert status == 0, status
        print("fine:", kind, *preload, flush=True)
