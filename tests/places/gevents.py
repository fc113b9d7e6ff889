# /// script
# dependencies = ["gevent==26.9.0"]
# ///
"""Under gevent's patch_all: all that plait offers works, and other greenlets go on."""

from gevent import monkey

monkey.patch_all()

import runpy  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402


class _Spawned:
    def __init__(self, *call: Any) -> None:
        self._greenlet = gevent.spawn(*call)

    def wait(self) -> Any:
        return self._greenlet.get()


space = runpy.run_path(str(Path(__file__).with_name("_greens.py")))
space["main"].__globals__.update(sleep=gevent.sleep, spawn=_Spawned, within=gevent.Timeout)
space["main"]()
