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
    "clocks",
    "tables",
    "scaling",
    "ranking",
    "bare",
    "interpreter",
    "server_process",
    "spin",
    "foreign",
    "errors",
    "tasks",
    "outcome",
    "audit",
    "greenlets",
    "sentinel",
    "compiled",
    "running",
    "imports",
    "host",
    "heartbeat",
    "quick",
    "options",
    "preload",
    "retry",
    "throttle",
    "squeeze",
    "limits",
    "shield",
    "endings",
    "blas",
    "inputs",
    "segments",
    "enclosed",
    "variables",
    "wire",
    "channel",
    "wire_errors",
    "shared.green",
    "shared.libc",
    "shared.memory",
    "shared.whereabouts",
    "shared.guards",
    "shared.seats",
    "shared.texts",
    "shared.arena",
    "shared.cells",
    "shared.deadlocks",
    "shared.lock_calls",
    "shared.locks",
    "shared.sections",
    "shared.conditions",
    "shared.semaphores",
    "shared.events",
    "shared.barriers",
    "shared.sync",
    "shared.kinds",
    "shared.values",
    "shared.arrays",
    "shared.stores",
    "shared.ledgers",
    "shared.rings",
    "shared.stacks",
    "shared.bells",
    "shared.queue_core",
    "shared.queues",
    "shared.holders",
    "shared.pipes",
    "shared.log",
    "shared.data_lock",
    "shared.replica",
    "shared.lists",
    "shared.dicts",
    "shared.races",
    "shared",
    "chunks",
    "model",
    "curve",
    "climb",
    "mutables",
    "bytecode",
    "effects",
    "plans",
    "pilot",
    "worker",
    "backends.contract",
    "backends.serial",
    "backends.inbox",
    "backends.threads",
    "backends.asyncio_loop",
    "backends.messages",
    "backends.code_watch",
    "backends.orders",
    "backends.kinship",
    "backends.child_voice",
    "backends.child_streams",
    "backends.child_end",
    "backends.child_main",
    "backends.preloader",
    "backends.server",
    "backends.launcher",
    "backends.thread_launcher",
    "backends.child",
    "backends.voices",
    "backends.arrivals",
    "backends.process_lane",
    "backends.process_worker",
    "backends.stealing",
    "backends.holdings",
    "backends.dispatcher",
    "backends.turns",
    "backends.processes",
    "backends",
    "pools",
    "costs",
    "choice",
    "beside",
    "measurements",
    "probe",
    "progress",
    "report",
    "feed",
    "runs",
    "calls",
    "api",
    "aio",
    "futures",
    "paced",
    "executor",
    "sweep_chart",
    "sweep_rows",
    "sweep_words",
    "sweeps",
    "sweeping",
    "",
    "cli_items",
    "cli_shared",
    "json_lines",
    "cli_plan",
    "cli_sweep",
    "cli_map",
    "cli_commands",
    "cli",
    "_pyinstaller",
    "_pyinstaller.hook-plait",
    "_pyinstaller.rthooks.pyi_rth_plait",
)
# Loaded when used: other people's slow packages, and modules that one backend alone needs.
SLOW = (
    "IPython",
    "asyncio",
    "click",
    "cloudpickle",
    "ctypes",
    "difflib",
    "email",
    "logging",
    "matplotlib",
    "numpy",
    "psutil",
    "random",
    "rich",
    "tempfile",
    "threadpoolctl",
)
LATE = (
    *SLOW,
    *("datetime", "decimal", "enum", "importlib", "json", "multiprocessing", "opcode", "pathlib"),
    *("pkgutil", "resource", "select", "signal", "threading", "traceback", "uuid"),
)
# All that `import plait` loads, and a map that is over at once. They load the rest late.
FRONT = ("clocks", "sentinel", "imports", "quick", "api", "")
# What starts a command: no more of plait than that needs.
COMMANDS = ("cli", "cli_commands")
LIGHT = ("__future__", "_contextvars", "_queue", "gc", "itertools", "os", "time", "types")
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
                is_ours = module.startswith(
                    "plait." if module_name(path) in (*FRONT, *COMMANDS) else "plait.backends."
                )
                assert is_ours or module.partition(".")[0] in LATE, (path.name, module)


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh Python loads for some code, and only for that."""
    program = f"import sys; before = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split()) - set(sys.builtin_module_names)


TINY_MAPS = """
import plait
plait.quick.BUDGET_S = 60  # on a busy machine the first moment may be over before ten tasks are
plait.map(abs, range(10))
plait.map(lambda x, y: x + y, [1, 2], iter([3, 4]))
plait.starmap(pow, [(2, 3)])
"""


def test_import_plait_loads_next_to_nothing() -> None:
    ours = {f"plait.{name}".rstrip(".") for name in FRONT}
    assert loaded_by("import plait") - set(LIGHT) == ours


def test_tiny_maps_load_nothing_more_but_threading() -> None:
    more = loaded_by(TINY_MAPS) - loaded_by("import plait")
    assert more <= loaded_by("import threading") | set(LIGHT)


def test_a_map_in_the_plain_loop_loads_nothing_slow() -> None:
    """No slow package is loaded before it is needed."""
    slow = {
        *(name for name in SLOW if name != "difflib"),
        "concurrent",
        "multiprocessing",
        "ctypes",
        "statistics",
        "subprocess",
        "plait.aio",
        "plait.backends.processes",
        "plait.backends.threads",
        "plait.cli",
        "plait.executor",
    }
    for code in ("from plait.calls import *", "import plait; list(plait.imap(abs, range(10)))"):
        assert sorted(slow & loaded_by(code)) == []
