"""The command ``plait``. What can be typed is in cli_commands.py.

This module loads nothing that takes time.
"""

from __future__ import annotations

import gc
import sys

import plait

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:  # to load click takes twice as long as to start Python
        print(f"plait {plait.__version__}")  # noqa: T201
        return
    gc.disable()  # while modules are loaded there is nothing to find, and looking takes a while
    from plait.cli_commands import run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
