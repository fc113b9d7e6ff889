"""Build the optional part in C; all else stands in pyproject.toml.

Without a compiler plait is installed all the same, and does in Python what ``_fast.c`` does.
"""

import sys

from setuptools import Extension, setup

FAST = Extension("plait._fast", ["src/plait/_fast.c"], libraries=["pthread"], optional=True)

setup(ext_modules=[FAST] if sys.platform == "linux" else [])
