"""Tell PyInstaller which modules plait and its workers import by name."""

from PyInstaller.utils.hooks import collect_submodules


def _is_needed(name: str) -> bool:
    parts = name.split(".")
    return not (parts[-1].startswith(("cli", "sweep")) or "_pyinstaller" in parts)


hiddenimports = collect_submodules("plait", filter=_is_needed)
hiddenimports += ["cloudpickle", "dataclasses", "logging", "platform", "traceback", "uuid"]
