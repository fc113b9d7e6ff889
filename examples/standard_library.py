"""Parse all of Python's standard library on all CPUs, with files among it that do not parse.

Run it: python examples/standard_library.py [folder] [--limit N]
"""

import argparse
import ast
import random
import sysconfig
import warnings
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Column, Table

import plait


class Function(NamedTuple):
    """A function's name, and how many lines it has."""

    lines: int
    name: str


class Module(NamedTuple):
    """What is counted in a file."""

    lines: int
    functions: int
    longest: Function


def measure(path: Path) -> Module:
    """Parse a file; count its lines and functions, and find the longest function."""
    source = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's code: invalid escapes and the like
        tree = ast.parse(source, path.name)
    functions = [
        Function((node.end_lineno or node.lineno) - node.lineno + 1, node.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    longest = max(functions, default=Function(0, "-"))
    return Module(len(source.splitlines()), len(functions), longest)


def find_files(folder: Path) -> list[Path]:
    """Find all Python files, in random order: the first ones are measured to make the plan."""
    files = sorted(
        path
        for path in folder.rglob("*.py")
        if "site-packages" not in path.relative_to(folder).parts
    )
    random.Random(0).shuffle(files)
    return files


def print_modules(modules: dict[str, Module], rows: int = 12) -> None:
    """Print the files with the longest functions, and the sums of all."""
    lines, functions, length = (
        Column(header, justify="right") for header in ("lines", "functions", "its lines")
    )
    table = Table("file", lines, functions, "longest function", length)
    by_length = sorted(modules.items(), key=lambda entry: entry[1].longest, reverse=True)
    for name, module in by_length[:rows]:
        longest = module.longest
        counts = f"{module.lines:,}", f"{module.functions:,}"
        table.add_row(name, *counts, longest.name, f"{longest.lines:,}")
    Console().print(table)

    all_lines = sum(module.lines for module in modules.values())
    all_functions = sum(module.functions for module in modules.values())
    print(f"{len(modules):,} files, {all_lines:,} lines, {all_functions:,} functions\n")


def print_errors(errors: dict[str, BaseException], rows: int = 5) -> None:
    """Print which files did not parse, and why."""
    print(f"did not parse: {len(errors)}")
    for name, error in sorted(errors.items())[:rows]:
        print(f"  {name}: {type(error).__name__}: {error}")
    if len(errors) > rows:
        print(f"  ... and {len(errors) - rows} more")
    print()


parser = argparse.ArgumentParser(description="Measure all Python files of a folder.")
standard_library = Path(sysconfig.get_path("stdlib"))
parser.add_argument("folder", type=Path, nargs="?", default=standard_library)
parser.add_argument("--limit", type=int, help="take so many files at most")
options = parser.parse_args()

modules: dict[str, Module] = {}
errors: dict[str, BaseException] = {}
run = plait.run(measure, find_files(options.folder)[: options.limit], progress=True)
for outcome in run:
    name = str(outcome.item.relative_to(options.folder))
    if outcome.error is None:
        modules[name] = outcome.value
    else:
        errors[name] = outcome.error

print(f"plait chose {run.plan}\n")
print_modules(modules)
print_errors(errors)
print(run.report)
