"""Download many files at once: threads for work that waits, and a 404 that stops nothing.

Run it: python examples/downloads.py    (pip install httpx)
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import httpx

import plait

FILES = 60


class Handler(BaseHTTPRequestHandler):
    """Answers like a server that is 20 ms away; /missing is a 404 and /slow takes 0.3 s."""

    def do_GET(self) -> None:
        """Wait, then send some text."""
        time.sleep(0.3 if self.path == "/slow" else 0.02)
        body = f"this is {self.path}\n".encode() * 100
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet: a line on stderr for each request would be too much here."""


class Server(ThreadingHTTPServer):
    """A server with room for many connections that wait to be accepted."""

    request_queue_size = 128


@contextmanager
def serving() -> Iterator[str]:
    """Run the server in a thread, and give its address."""
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def download_all(
    urls: list[str], client: httpx.Client, backend: Literal["serial", "threads", "auto"]
) -> plait.Run:
    """Download every URL, and say how long that took and what failed."""

    def download(url: str) -> int:
        return len(client.get(url).raise_for_status().content)

    size = 0
    failed: list[plait.Outcome] = []
    run = plait.run(download, urls, backend=backend, on_error="return")
    for outcome in run:  # an error is an outcome like a value
        if outcome.ok:
            size += outcome.value
        else:
            failed.append(outcome)

    report = run.report
    print(f"{backend:>7}: {report.tasks - report.errors} files, {size:,} bytes, ", end="")
    print(f"{report.wall_s:.2f} s by {len(report.workers)} worker(s)")
    for outcome in failed:
        print(f"         failed: {str(outcome.error).splitlines()[0]}")
    return run


# One client for all threads: it is made for that, and making one is expensive.
with serving() as address, httpx.Client(trust_env=False) as client:
    urls = [f"{address}/file-{number:02}" for number in range(FILES)]
    urls[20:22] = f"{address}/missing", f"{address}/slow"

    serial = download_all(urls, client, "serial")
    threads = download_all(urls, client, "threads")
    auto = download_all(urls, client, "auto")

print(f"threads: {serial.report.wall_s / threads.report.wall_s:.1f} times faster than serial")
print(f"   auto: {serial.report.wall_s / auto.report.wall_s:.1f} times faster, with {auto.plan}")
