"""A web server that takes its time, in a process of its own: what downloads are measured on.

Started by ground.py: python -m benchmarks.slow_server LATENCY_S NBYTES. It says its port on stdout,
and ends when its standard input does: with who started it, whatever became of that.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import StreamReader, StreamWriter

__all__ = ["serve"]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"


async def serve(latency_s: float, nbytes: int) -> None:
    page = HEAD % nbytes + b"x" * nbytes

    async def answer(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(latency_s)
        writer.write(page)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=512)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(sys.stdin.fileno(), ended.set)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]), int(sys.argv[2])))
