# /// script
# dependencies = ["uwsgi==2.0.31"]
# ///
"""uWSGI's binary is no Python: it is not started a second time, with and without threads."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

APP = """
import os, sys, time
import plait
offset = 5

def answer(environ):
    try:
        values = plait.map(lambda x: x + offset, range(3), backend="processes")
        yield f"processes {values}\\n"
    except plait.WorkerStartError as error:
        yield f"{error}\\n"
    values = plait.map(lambda x: sum(range(x)), [30_000] * 200)
    yield f"auto {values == [sum(range(30_000))] * 200}\\n"
    yield f"threads {plait.map(lambda x: x + offset, range(3), backend='threads')}\\n"
    lock = plait.shared.Lock()
    with lock:
        yield f"locked {lock.locked()}\\n"

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode() for text in answer(environ)]
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def read(url: str) -> str:
    until = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return str(response.read().decode())
        except ConnectionError:
            if time.monotonic() > until:
                raise
        except urllib.error.URLError:
            if time.monotonic() > until:
                raise
        time.sleep(0.05)


def try_out(*options: str) -> None:
    port = free_port()
    uwsgi = Path(sys.executable).with_name("uwsgi")
    command = [uwsgi, "--http-socket", f"127.0.0.1:{port}", "--wsgi-file", "app.py", "--master"]
    server = subprocess.Popen([*command, "--virtualenv", sys.prefix, "--die-on-term", *options])
    try:
        for _ in range(2):
            said = read(f"http://127.0.0.1:{port}/")
            print(said, flush=True)
            lines = said.splitlines()
            assert "processes [5, 6, 7]" in lines or "second time" in lines[0], said
            assert lines[-3:] == ["auto True", "threads [5, 6, 7]", "locked True"], said
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) is not None


Path("app.py").write_text(APP)
os.environ.pop("PYTHONHOME", None)
try_out("--enable-threads", "--processes", "2", "--threads", "2")
