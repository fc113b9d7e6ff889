"""The public names: found when they are asked for, all of them, and nothing in their way."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import plait

ROOT = Path(plait.__file__).parent
MODULES = {"errors", "shared"}  # among the public names


def test_public_names_are_sorted_and_exist() -> None:
    assert sorted(plait.__all__) == plait.__all__
    for name in plait.__all__:
        assert hasattr(plait, name)


def test_every_name_is_where_the_table_says() -> None:
    here = {"__version__", "imap", "map", "plan", "run", "shutdown", "starmap"}
    assert {*plait._HOMES, *here} == set(plait.__all__)
    for name, home in plait._HOMES.items():
        if name not in MODULES:
            assert getattr(plait, name).__module__ == f"plait.{home}"
            assert getattr(plait, name) is getattr(import_module(f"plait.{home}"), name)


def test_no_module_hides_a_function() -> None:
    """Importing plait.run, if there were such a module, would replace the function plait.run."""
    assert {name for name in plait.__all__ if (ROOT / f"{name}.py").exists()} <= MODULES


FRESH = """
import json, plait
listed = dir(plait)
before = sorted(vars(plait))
names = {}
exec("from plait import *", names)
after = sorted(vars(plait))
print(json.dumps([listed, before, sorted(names), after]))
"""


def test_in_a_fresh_program_names_come_one_by_one_and_stay(run_python: Any) -> None:
    listed, before, starred, after = map(set, json.loads(run_python("-c", FRESH).stdout))
    public = set(plait.__all__)
    assert {name for name in listed if not name.startswith("_")} == public - {"__version__"}
    assert not {"Executor", "Options", "WorkerDied", "errors"} & before
    assert public <= starred
    assert public <= after


@pytest.mark.parametrize(
    "code",
    [
        "import plait; plait.errors.WorkerDied",
        "import plait.errors; plait.errors.WorkerDied",
        "from plait import errors; errors.WorkerDied",
        "from plait.errors import WorkerDied",
        "import plait; list(plait.imap(abs, [1])); next(plait.run(abs, [1]))",
        "import plait.cli, plait; plait.map(abs, [1], backend='serial'); plait.run(abs, [1])",
    ],
)
def test_names_of_a_fresh_program_are_the_right_ones(code: str, run_python: Any) -> None:
    done = run_python("-W", "error", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_dir_shows_what_users_call_and_nothing_else() -> None:
    import plait.calls  # and whatever else is loaded

    names = {name for name in dir(plait) if not name.startswith("_")}
    assert names == set(plait.__all__) - {"__version__"}
    assert {name for name in dir(plait.shared) if name[0] != "_"} == set(plait.shared.__all__)
    with plait.run(abs, [1]) as run:
        shown = [name for name in dir(run) if not name.startswith("_")]
        assert shown == ["cancel", "outcomes", "plan", "report", "stop"]
        assert all(hasattr(run, name) for name in dir(run))
        assert "__iter__" in dir(run)


def test_a_wrong_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'plait' has no attribute 'mapp'"):
        plait.mapp  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'mapp'"):
        from plait import mapp  # type: ignore[attr-defined]  # noqa: F401
