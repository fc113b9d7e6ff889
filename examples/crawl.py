"""Crawl a web site on processes: one page crashes its parser, one hangs it, all others arrive.

Run it: python examples/crawl.py
"""

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from textwrap import indent
from typing import NamedTuple
from urllib.parse import urljoin
from urllib.request import ProxyHandler, build_opener

import plait

PAGES = 40
BAD_TAGS = {23: "<blink>", 31: "<marquee>"}


class Site(BaseHTTPRequestHandler):
    """Serves /0 to /39: each page links to three others, as far as there are so many."""

    def do_GET(self) -> None:
        """Send a page."""
        number = int(self.path.strip("/"))
        linked = range(3 * number + 1, min(3 * number + 4, PAGES))
        links = "".join(f'<a href="/{n}">more</a>' for n in (0, *linked))
        html = f"<title>Page {number}</title>{BAD_TAGS.get(number, '')}<p>{links}</p>"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(html.encode())

    def log_message(self, *_: object) -> None:
        """Be quiet: a line on stderr for each request would be too much here."""


@contextmanager
def serving() -> Iterator[str]:
    """Run the server in a thread, and give its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Parser(HTMLParser):
    """Finds the title and the links of a page; two tags are too much for it."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a link."""
        if tag == "blink":
            # Python's own parser is sound. Reading address 0 stands for a bug in a parser
            # written in C: no exception, the whole process is gone.
            ctypes.string_at(0)
        while tag == "marquee":
            pass  # stands for a loop that a bug made endless
        if tag == "a":
            self.links.append(dict(attrs).get("href") or "")

    def handle_data(self, data: str) -> None:
        """Note the title."""
        if self.lasttag == "title":
            self.title = self.title or data


class Page(NamedTuple):
    """What is kept of a page."""

    title: str
    links: list[str]


def read_page(url: str) -> Page:
    """Fetch a page and parse it."""
    # Straight to the server, whatever proxies the environment names.
    with build_opener(ProxyHandler({})).open(url, timeout=10) as response:
        html = response.read().decode()
    parser = Parser()
    parser.feed(html)
    return Page(parser.title, [urljoin(url, link) for link in parser.links])


def print_failed(url: str, error: BaseException | None) -> None:
    """Print what became of a page that could not be read, and where in the code it was."""
    stack = ""
    match error:
        case plait.WorkerDied():
            stack = error.stack
            ending = f"signal {error.signal} ({signal.strsignal(error.signal or 0)})"
            print(f"{url} killed {error.worker} (pid {error.pid}): {ending}")
        case plait.TaskTimeout():
            stack = error.stack
            print(f"{url} was ended after {error.after_s:.1f} s on {error.worker}")
        case _:
            print(f"{url} failed: {error}")
    print(indent("\n".join(stack.splitlines()[:5]), "    "))


# On threads this would be faster, but a crash would take the whole program along.
pages: dict[str, Page] = {}
with serving() as address:
    todo = {f"{address}/0"}
    found = set(todo)
    while todo:  # the pages of one level, then those that they link to
        for outcome in plait.run(read_page, todo, backend="processes", task_timeout=2):
            if outcome.ok:
                pages[outcome.item] = outcome.value
            else:
                print_failed(outcome.item, outcome.error)
        todo = {link for page in pages.values() for link in page.links} - found
        found |= todo

missing = sorted(found - pages.keys())
print(f"{len(pages)} of {len(found)} pages read, not among them: {', '.join(missing)}")
