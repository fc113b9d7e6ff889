"""The picture of a sweep. (matplotlib keeps its fonts open: so these tests leave files behind.)"""

from __future__ import annotations

import builtins
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_sweeping import CPU_BOUND, swept


def test_a_sweep_is_drawn_as_png_or_svg(tmp_path: Path) -> None:
    CPU_BOUND.plot(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    CPU_BOUND.plot(str(tmp_path / "sweep.SVG"))
    assert ElementTree.parse(tmp_path / "sweep.SVG").getroot().tag.endswith("svg")


def test_one_size_can_be_drawn_too(tmp_path: Path) -> None:
    swept(1.0, threads={1: 1.0}).plot(tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size


def test_another_kind_of_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"drawn as \.png or \.svg, and .*'.*sweep.bmp' is neither"
    ):
        CPU_BOUND.plot(tmp_path / "sweep.bmp")


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    found: Callable[..., Any] = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return found(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", refuse)
        yield


@pytest.mark.usefixtures("no_matplotlib")
def test_without_matplotlib_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"pip install plait\[plot\]"):
        CPU_BOUND.plot(tmp_path / "sweep.png")
