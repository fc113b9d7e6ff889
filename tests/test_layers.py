"""Imports follow one order, and only slow or optional ones hide in functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import plait

# A module may import what stands above it. To add a module, find its place here first.
LAYERS = (
    "errors",
    "outcome",
    "options",
    "retry",
    "limits",
    "shield",
    "host",
    "blas",
    "inputs",
    "variables",
    "wire",
    "channel",
    "wire_errors",
    "chunks",
    "plan",
    "worker",
    "backends.contract",
    "backends.serial",
    "backends.inbox",
    "backends.threads",
    "backends.asyncio_loop",
    "backends.messages",
    "backends.child_voice",
    "backends.child_main",
    "backends.server",
    "backends.child",
    "backends.code_watch",
    "backends.voices",
    "backends.process_lane",
    "backends.process_worker",
    "backends.turns",
    "backends.processes",
    "backends",
    "pools",
    "choice",
    "probe",
    "progress",
    "report",
    "run",
    "api",
    "aio",
    "executor",
    "",
    "cli_items",
    "json_lines",
    "cli",
)
# Loaded when used: other people's slow packages, and modules that one backend alone needs.
SLOW = (
    "asyncio",
    "cloudpickle",
    "difflib",
    "logging",
    "psutil",
    "rich",
    "tempfile",
    "threadpoolctl",
    "typer",
)
LATE = (*SLOW, "importlib", "traceback")
ROOT = Path(plait.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> Iterator[str]:
    """Yield the plait modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("plait"):
            base = node.module.removeprefix("plait").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                yield inner if inner in LAYERS else base
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "plait":
                    yield alias.name.removeprefix("plait").lstrip(".")


def test_every_module_has_its_place() -> None:
    assert sorted(map(module_name, ROOT.rglob("*.py"))) == sorted(LAYERS)


def test_imports_go_upwards_only() -> None:
    for path in ROOT.rglob("*.py"):
        importer = module_name(path)
        for imported in imports(path):
            assert LAYERS.index(imported) < LAYERS.index(importer), (importer, imported)


def test_imports_inside_functions_are_slow_or_optional_ones() -> None:
    for path in ROOT.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom):
                    module = node.module or ""
                elif isinstance(node, ast.Import):
                    module = node.names[0].name
                else:
                    continue
                is_backend = module.startswith("plait.backends.")
                assert is_backend or module.partition(".")[0] in LATE, (path.name, module)


def test_import_plait_stays_light() -> None:
    """No slow package is loaded before it is needed."""
    code = "import sys, plait; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    slow = {
        *(name for name in SLOW if name != "difflib"),
        "concurrent",
        "multiprocessing",
        "ctypes",
        "numpy",
        "statistics",
        "subprocess",
        "plait.cli",
    }
    assert sorted(slow & set(loaded)) == []


def test_public_names_exist() -> None:
    assert sorted(plait.__all__) == plait.__all__
    for name in plait.__all__:
        assert hasattr(plait, name)
