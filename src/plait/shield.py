"""Hold back Ctrl-C while shared state is being changed.

Python raises KeyboardInterrupt between any two steps of the main thread. Amid the books of
a pool that other threads use, it would leave them half written.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Shield"]


class Shield:
    """A ``with`` block in which the first Ctrl-C waits until the block has ended.

    ``on_hit`` is called at once, from the signal handler: it is to make whatever the block
    waits for return soon. The program's own handler is then called as if the signal had
    come after the block. A second Ctrl-C does not wait.
    """

    def __init__(self, on_hit: Callable[[], object]) -> None:
        self._on_hit = on_hit
        self._handler: Any = None
        self._frame: FrameType | None = None
        self.is_hit = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):  # else it is ignored, or not Python's business
                self._handler = handler
                signal.signal(signal.SIGINT, self._hit)
        return self

    def _hit(self, signum: int, frame: FrameType | None) -> None:
        if self.is_hit:
            self._handler(signum, frame)
        self.is_hit, self._frame = True, frame
        self._on_hit()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handler is None:
            return
        signal.signal(signal.SIGINT, self._handler)
        if self.is_hit:
            frame, self._frame = self._frame, None  # it would keep all alive that it knows
            self._handler(signal.SIGINT, frame)
