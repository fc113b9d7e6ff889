"""Tasks that import something tell nothing of the others: what is measured begins after them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import plait
from plait import beside, sentinel
from plait.imports import Imports

went_in, go_on = threading.Event(), threading.Event()

WAITS = f"from {__name__} import go_on, went_in; went_in.set(); go_on.wait(60)"

Module = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Return a function that makes a module with such code, and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    went_in.clear()
    go_on.clear()

    def make(code: str) -> str:
        name = f"plait_test_{tmp_path.name}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return make


def test_an_import_since_then_is_found_and_later_ones_are_not(module: Module) -> None:
    name = module("")
    imports, settled = Imports(), Imports()
    assert not settled.settle()
    import_module(name)
    assert imports.settle()
    assert not settled.settle()


def test_who_is_in_an_import_is_seen(module: Module) -> None:
    imports = Imports()
    imports.settle()
    thread = threading.Thread(target=import_module, args=(module(WAITS),))
    thread.start()
    try:
        assert went_in.wait(60)
        assert thread.ident is not None
        seen = [(imports.look(who), imports.found) for who in (threading.get_ident(), thread.ident)]
        assert seen == [(False, False), (True, True)]
    finally:
        go_on.set()
        thread.join()
    assert not imports.look(thread.ident)


def test_a_module_that_maps_while_it_is_imported_is_no_import_of_its_tasks(module: Module) -> None:
    code = """
        import sys, threading
        import plait
        from plait.imports import Imports
        seen = plait.map(lambda _: Imports().look(threading.get_ident()), [1, 2])
    """
    assert import_module(module(dedent(code))).seen == [False] * 2


class Task:
    """The first one imports a slow module; all wait for a moment."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, place: int) -> int:
        if place == 0:
            import_module(self.name)
        time.sleep(0.005)
        return place


def run_of(task: Any, items: Any, road: str) -> plait.Run:
    if road == "run":
        with plait.run(task, items, on_error="raise") as run:
            assert sorted(outcome.value for outcome in run) == list(items)
            return run

    def fail_at_the_end(place: int) -> int:
        value: int = task(place)
        if place == items[-1]:
            raise LookupError
        return value

    with pytest.raises(LookupError) as caught:
        plait.map(fail_at_the_end, items)
    run = caught.value.plait_run  # type: ignore[attr-defined]
    assert isinstance(run, plait.Run)
    return run


@pytest.mark.parametrize("slow_s", [0.003, 0.06], ids=["noticed late", "noticed meanwhile"])
@pytest.mark.parametrize("road", ["map", "run"])
def test_the_sample_is_what_comes_after_it(slow_s: float, road: str, module: Module) -> None:
    code = f"""
        from time import thread_time
        until = thread_time() + {slow_s}
        while thread_time() < until: pass
    """
    run = run_of(Task(module(dedent(code))), range(30), road)
    assert run.plan is not None
    assert run.plan.backend == "threads"
    sample = run.plan.sample
    assert sample is not None
    assert sample.cpu_share < 0.5
    assert sample.task_s < 0.05
    assert sample.first_s > slow_s / 2 or slow_s < 0.01  # where the first has to be told apart
    assert not run.report.earlier_plans


@pytest.mark.parametrize("road", ["map", "run"])
def test_nothing_is_decided_while_it_imports(
    road: str, module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinel, "LATE_S", 0.005)
    monkeypatch.setattr(beside, "LOOK_S", 0.005)
    looks = []

    def begin_anew(self: beside.LongTask) -> None:
        looks.append(self)
        if len(looks) == 3:
            go_on.set()

    monkeypatch.setattr(beside.LongTask, "begin_anew", begin_anew)
    plans = []
    plan_beside = plait.Run.plan_beside

    def note_plan(*args: Any) -> Any:
        plans.append(len(looks))
        return plan_beside(*args)

    monkeypatch.setattr(plait.Run, "plan_beside", note_plan)
    run = run_of(Task(module(WAITS)), range(30), road)
    assert go_on.is_set()
    assert all(place >= 3 for place in plans)
    assert run.report.tasks == 30
