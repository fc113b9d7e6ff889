"""What plait costs on this machine: measured, kept, and believed within bounds."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from plait import costs
from plait.backends import open_backend
from plait.model import Costs
from plait.options import Options
from plait.outcome import Call, Chunk


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(tmp_path / "cache"))
    forget(monkeypatch)
    return tmp_path / "cache" / "costs.json"


OTHER = Costs(server_s=0.1, pace=0.7)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be as another program that begins."""
    monkeypatch.setattr(costs, "_known", None)
    monkeypatch.setattr(costs, "_was_measured", False)


def test_nothing_is_known_and_nothing_written_at_first(file: Path) -> None:
    assert costs.known() == costs.DEFAULT
    assert not file.exists()


def test_what_is_kept_is_known_to_the_next_program(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert costs.are_due(10.0)
    costs.keep(OTHER)
    assert costs.known() == OTHER
    forget(monkeypatch)
    assert costs.known() == OTHER
    assert not costs.are_due(10.0)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in file.parent.iterdir()] == ["costs.json"]


def test_what_cannot_be_kept_is_measured_once_in_a_program(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAIT_CACHE_DIR", "/proc/none")  # as in a home that is read-only
    assert costs.are_due(10.0)
    costs.keep(OTHER)
    assert costs.known() == OTHER
    assert not costs.are_due(10.0)


@pytest.mark.parametrize("where", ["no home", "relative"])
def test_without_a_place_of_its_own_nothing_is_kept(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PLAIT_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    if where == "relative":
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    else:  # a container may run as a user that the system has no name for
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
    forget(monkeypatch)
    assert not costs.are_due(10.0)
    costs.keep(OTHER)
    assert list(tmp_path.iterdir()) == []


def test_other_entries_stay(file: Path) -> None:
    file.parent.mkdir()
    file.write_text('{"another Python": {"server_s": 1}}')
    costs.keep(OTHER)
    assert set(json.loads(file.read_text())) > {"another Python"}


def test_a_short_call_is_not_held_up_by_measuring(file: Path) -> None:
    assert not costs.are_due(0.5)


def test_an_empty_name_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_CACHE_DIR", "")
    monkeypatch.setattr(costs, "_known", None)
    assert not costs.are_due(10.0)
    costs.keep(OTHER)
    assert costs.known() == OTHER


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "5", '{"KEY": 5}', '{"KEY": {}}', "[" * 100_000],
)
def test_a_file_that_is_none_of_ours_does_no_harm(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text.replace("KEY", costs._key()))
    assert costs.known() == costs.DEFAULT
    costs.keep(OTHER)


def entry(**figures: Any) -> dict[str, Any]:
    return {**Costs()._asdict(), "measured_at": time.time(), **figures}


@pytest.mark.parametrize("figure", ["much", None, float("nan"), float("inf"), [1]])
def test_figures_that_are_none_are_not_believed(file: Path, figure: Any) -> None:
    file.parent.mkdir()
    file.write_text(json.dumps({costs._key(): entry(server_s=figure)}))
    assert costs.known() == costs.DEFAULT


@pytest.mark.parametrize(("figure", "held"), [(1e9, 20), (-5.0, 1 / 20), (0.0, 1 / 20)])
def test_figures_are_held_within_bounds(file: Path, figure: float, held: float) -> None:
    file.parent.mkdir()
    file.write_text(json.dumps({costs._key(): entry(server_s=figure)}))
    assert costs.known().server_s == pytest.approx(held * costs.DEFAULT.server_s)


def test_old_figures_are_measured_again(file: Path) -> None:
    file.parent.mkdir()
    for at in (time.time() - 2 * costs.FRESH_S, time.time() + 1000):
        file.write_text(json.dumps({costs._key(): entry(measured_at=at, server_s=0.2)}))
        assert costs.are_due(10.0)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions are otherwise")
def test_a_file_that_others_may_write_is_not_believed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs.keep(OTHER)
    file.chmod(0o666)
    forget(monkeypatch)
    assert costs.known() == costs.DEFAULT


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(costs, "_known", None)
    costs.keep(OTHER)
    assert costs.known() == OTHER


def test_measuring_gives_a_figure_for_all_and_leaves_the_pool_as_it_was(clean: None) -> None:
    backend = open_backend("processes", 2, Options(backend="processes"))
    try:
        measured = costs.measure(backend)
        assert backend.start_s is not None
        assert all(figure > 0 for figure in measured)
        assert measured.pace <= 1
        lane = backend.open_lane(Call(abs))
        lane.submit(Chunk(0, [-3]))
        assert [finished.values for finished in lane.wait_outcomes()] == [[3]]
        lane.close()
    finally:
        backend.close()
