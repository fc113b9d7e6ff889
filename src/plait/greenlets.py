"""Whether threads are greenlets here: gevent or eventlet have put theirs in the place of Python's.

Then all that is called a thread shares one thread of the system: whoever blocks that blocks all,
and whoever owns something is a greenlet. Neither package is imported here.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["are_threads", "original", "tools"]


def are_threads() -> bool:
    """Whether ``threading`` gives greenlets."""
    return _is_gevent() or _is_eventlet()


def _is_gevent() -> bool:
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _is_eventlet() -> bool:
    patcher: Any = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched("thread"))


def original(module: str, name: str) -> Any:
    """Return what a module of Python's had by a name before it was patched."""
    if _is_gevent():
        return sys.modules["gevent.monkey"].get_original(module, name)
    if _is_eventlet():
        return getattr(sys.modules["eventlet.patcher"].original(module), name)
    from importlib import import_module

    return getattr(import_module(module), name)


def tools() -> tuple[Callable[[], Any], Callable[[float], object]]:
    """Return what gives the current greenlet, and what lets others go on for some seconds."""
    hub: Any = sys.modules["gevent" if _is_gevent() else "eventlet"]
    return sys.modules["greenlet"].getcurrent, hub.sleep
