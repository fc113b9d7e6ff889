"""The main loop of a host: the process in which one engine lives. Started by hosts.py.

python -m benchmarks.host ENGINE SOCKET

It receives (function, arguments), calls the function with its station in front, and sends
what came of it. The end of the socket is the end of the host.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.engines import ENGINES
from benchmarks.station import Station, WrongAnswer

__all__ = ["Answer"]

CLOSING_S = 30

Answer = tuple[str, Any]
"""("done", result), ("wrong", text) or ("failed", text)."""


def answer(station: Station, function: Any, args: tuple[Any, ...]) -> Answer:
    try:
        return "done", function(station, *args)
    except WrongAnswer as error:
        return "wrong", str(error)
    except BaseException as error:  # noqa: BLE001  the engine's own, of whatever kind
        traceback.print_exc()
        text = str(error).strip() or "no text"
        return "failed", f"{type(error).__name__}: {text.splitlines()[0][:200]}"


def main(engine: str, socket: int) -> None:
    os.set_inheritable(socket, False)  # it was, to come here
    station = Station(ENGINES[engine])
    with Connection(socket) as commands:
        while True:
            try:
                function, args = commands.recv()
            except EOFError:
                break
            commands.send(answer(station, function, args))
    signal.alarm(CLOSING_S)  # the command may be gone: nobody else would end this process
    station.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
