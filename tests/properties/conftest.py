"""How many examples are tried: the same ones every time, or with PLAIT_LONG=1 many new ones."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

# In a folder that git ignores already.
set_hypothesis_home_dir(Path(__file__).parents[2] / ".pytest_cache" / "hypothesis")

IS_LONG = os.environ.get("PLAIT_LONG") == "1"

settings.register_profile(
    "plait",
    derandomize=not IS_LONG,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("plait")


def examples(count: int) -> settings:
    """Return the settings of a test that tries so many examples in a normal run."""
    return settings(max_examples=count * (20 if IS_LONG else 1))
