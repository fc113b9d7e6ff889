"""Check the names of modules that are to be preloaded, without importing anything.

What then happens to them is in backends/preloader.py.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from plait.errors import OptionError
from plait.server_process import CAN_FORK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

__all__ = ["check_preload"]


def check_preload(names: tuple[str, ...]) -> None:
    """Raise OptionError if one of the modules cannot be found, or there can be no server."""
    if names and not CAN_FORK:
        allowed = "() on this system: only a server that forks workers can preload modules"
        raise OptionError("preload", names, allowed)
    for name in names:
        if not _is_found(name):
            raise OptionError("preload", names, f"names of modules, and {name!r} cannot be found")


def _is_found(name: str) -> bool:
    """Whether there is a module of that name.

    importlib.util.find_spec("a.b") would import a. Here each part is looked for where the spec
    of the part before it says.
    """
    if name in sys.modules:
        return sys.modules[name] is not None and name != "__main__"
    from importlib.util import find_spec

    parent, _, _ = name.rpartition(".")
    try:
        if not parent:
            return find_spec(name) is not None
        return _is_found(parent) and _find_in(_places_of(parent), name) is not None
    except (ImportError, ValueError):  # a part is empty, or a module without a spec
        return False


def _places_of(package: str) -> Sequence[str]:
    """Return the folders of a package; nothing for a module that is none."""
    if package in sys.modules:
        return list(getattr(sys.modules[package], "__path__", ()))
    from importlib.util import find_spec

    parent, _, _ = package.rpartition(".")
    spec = _find_in(_places_of(parent), package) if parent else find_spec(package)
    return list((spec and spec.submodule_search_locations) or ())


def _find_in(places: Sequence[str], name: str) -> ModuleSpec | None:
    for finder in sys.meta_path if places else ():
        spec = finder.find_spec(name, places)
        if spec is not None:
            return spec
    return None
