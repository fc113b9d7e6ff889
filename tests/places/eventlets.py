# /// script
# dependencies = ["eventlet==0.41.3"]
# ///
"""Under eventlet's monkey_patch: all that plait offers works, and other greenlets go on."""

import eventlet

eventlet.monkey_patch()

import runpy  # noqa: E402
from pathlib import Path  # noqa: E402

space = runpy.run_path(str(Path(__file__).with_name("_greens.py")))
space["main"].__globals__.update(
    sleep=eventlet.sleep, spawn=eventlet.spawn, within=eventlet.Timeout
)
space["main"]()
