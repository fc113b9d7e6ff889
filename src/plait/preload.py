"""Check the names of modules that are to be preloaded, without importing anything.

What then happens to them is in backends/preloader.py.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from plait.errors import OptionError
from plait.server_process import CAN_FORK

if TYPE_CHECKING:
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

    importlib.util.find_spec("a.b") would import a. Here each part is looked for in the folders that
    the spec of the part before it names.
    """
    if name in sys.modules:
        return sys.modules[name] is not None and name != "__main__"
    try:
        return _find(name) is not None
    except (ImportError, ValueError):  # a part is empty, or a module without a spec
        return False


def _find(name: str) -> ModuleSpec | None:
    from importlib.util import find_spec

    package, _, _ = name.rpartition(".")
    if not package:
        return find_spec(name)
    folders = _folders_of(package)
    found = (_ask(finder, name, folders) for finder in sys.meta_path)
    return next((spec for spec in found if spec is not None), None) if folders else None


def _folders_of(package: str) -> list[str]:
    """Return where the parts of a package are; nothing for a module that has none."""
    if package in sys.modules:
        return list(getattr(sys.modules[package], "__path__", ()))
    spec = _find(package)
    return list((spec and spec.submodule_search_locations) or ())


def _ask(finder: Any, name: str, folders: list[str]) -> ModuleSpec | None:
    from importlib.machinery import PathFinder
    from pkgutil import get_importer

    if finder is not PathFinder:
        return finder.find_spec(name, folders)  # type: ignore[no-any-return]
    # For a part without an __init__.py that one would ask for the imported package.
    for importer in map(get_importer, folders):
        spec = importer.find_spec(name) if importer is not None else None
        if spec is not None:
            return spec
    return None
