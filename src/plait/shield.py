"""Hold back Ctrl-C while shared state is being changed.

Python raises KeyboardInterrupt between any two steps of the main thread. Amid the books of
a pool that other threads use, it would leave them half written.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any, Self

from plait.bare import signal

SIGINT, getsignal, set_handler = signal.SIGINT, signal.getsignal, signal.signal

__all__ = ["Shield"]


class Shield:
    """A ``with`` block in which the first Ctrl-C waits until the block has ended.

    ``on_hit`` is called at once, from the signal handler: it is to make whatever the block
    waits for return soon. The program's own handler is then called as if the signal had
    come after the block. A second Ctrl-C does not wait.
    """

    is_hit = False
    _handler: Any = None
    _frame: FrameType | None = None

    def __init__(self, on_hit: Callable[[], object]) -> None:
        self._on_hit = on_hit

    def __enter__(self) -> Self:
        if current_thread() is main_thread():
            handler = getsignal(SIGINT)
            # Else it is ignored, or not Python's business, or there is a shield already.
            if callable(handler) and getattr(handler, "__func__", None) is not Shield._hit:
                self._handler = handler
                set_handler(SIGINT, self._hit)
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
        set_handler(SIGINT, self._handler)
        if self.is_hit:
            frame, self._frame = self._frame, None  # it would keep all alive that it knows
            self._handler(SIGINT, frame)
