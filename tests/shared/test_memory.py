"""Regions: found by others, freed by themselves, and never mistaken for another file."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait.errors import SharedDataGone
from plait.shared import libc, memory
from plait.shared.memory import HEAD_BYTES, Place, Region, regions_of
from tests.shared.puppet import Puppet, keep
from tests.shared.test_queues import forked, wait_dead
from tests.start import Program

pytestmark = pytest.mark.usefixtures("no_files_left")


def read(place: Place, nbytes: int) -> bytes:
    region: Region = keep(Region.at(place, "piece"))
    return bytes(region.memory[HEAD_BYTES : HEAD_BYTES + nbytes])


def write(place: Place, data: bytes) -> None:
    region: Region = keep(Region.at(place, "piece"))
    region.memory[HEAD_BYTES : HEAD_BYTES + len(data)] = data


def grow(place: Place, nbytes: int) -> int:
    region: Region = keep(Region.at(place, "piece"))
    region.grow(nbytes)
    return region.nbytes


def test_what_one_writes_another_reads(puppet: Puppet) -> None:
    region = Region.create(1000, "test")
    assert region.nbytes == 1000
    region.memory[HEAD_BYTES : HEAD_BYTES + 5] = b"hello"
    assert puppet.do(read, region.place, 5) == b"hello"
    puppet.do(write, region.place, b"world")
    assert region.memory[HEAD_BYTES : HEAD_BYTES + 5] == b"world"


def test_it_is_one_object_in_a_process_and_its_place_can_be_pickled() -> None:
    region = Region.create(10, "test")
    assert Region.at(pickle.loads(pickle.dumps(region.place)), "piece") is region


def test_what_was_mapped_stays_valid_when_it_grows(puppet: Puppet) -> None:
    region = Region.create(100, "test")
    view = region.words(HEAD_BYTES, 80)
    assert puppet.do(grow, region.place, 1_000_000) == 1_000_000
    region.grow(1_000_000)
    region.memory[HEAD_BYTES + 999_999] = 7
    view[0] = 42
    assert region.words(HEAD_BYTES, 8)[0] == 42
    region.grow(10)  # never less
    assert region.nbytes == 1_000_000


def test_it_is_freed_with_its_last_view() -> None:
    before = sum("plait-test" in line for line in _maps())
    region = Region.create(5000, "test")
    view = region.words(0, 8)
    del region
    assert view[0] == int.from_bytes(memory.MAGIC, "little")
    assert sum("plait-test" in line for line in _maps()) == before + 1
    del view
    assert sum("plait-test" in line for line in _maps()) == before


def _maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()


def test_the_regions_of_a_process_can_be_listed(puppet: Puppet) -> None:
    region = Region.create(10, "seen")
    assert regions_of(os.getpid(), "seen") == [region] * len(regions_of(os.getpid(), "seen"))
    assert regions_of(puppet.pid, "seen") == []
    puppet.do(read, region.place, 1)
    assert regions_of(puppet.pid, "seen")[0] is region
    assert regions_of(1 << 22, "seen") == []


def test_it_is_not_taken_for_another_file(tmp_path: Path) -> None:
    mine = Region.create(10, "test")
    other = Region.create(10, "test")
    (pid, fd) = other.place.holders[-1]
    path = tmp_path / "forged"
    path.write_bytes(memory.MAGIC + mine.ident + bytes(100))
    read_end, write_end = os.pipe()
    with path.open("r+b") as file:
        for number in (fd, file.fileno(), read_end, 999):
            place = Place(b"?" * 16, memory.boot_id(), ((pid, number),))
            with pytest.raises(SharedDataGone, match=rf"This piece cannot be found.*{pid}"):
                Region.at(place, "piece")
            forged = Place(mine.ident[::-1], memory.boot_id(), ((pid, number),))
            with pytest.raises(SharedDataGone):
                Region.at(forged, "piece")
    os.close(read_end)
    os.close(write_end)


def test_a_mark_is_there_until_the_last_who_has_it_open_closes_it_or_ends(puppet: Puppet) -> None:
    region = Region.create(10, "test")
    mark = region.mark(1)
    assert (region.is_marked(0), region.is_marked(1)) == (False, True)
    assert puppet.do(is_marked, region.place, 1)
    pid = forked(signal.pause)
    another = region.mark(1)
    mark.close()
    another.close()
    assert puppet.do(is_marked, region.place, 1)
    os.kill(pid, signal.SIGKILL)
    wait_dead(pid)
    assert not region.is_marked(1)
    assert not puppet.do(is_marked, region.place, 1)


def is_marked(place: Place, number: int) -> bool:
    region: Region = keep(Region.at(place, "piece"))
    return region.is_marked(number)


def test_a_mark_is_taken_off_for_all_who_have_it() -> None:
    region = Region.create(10, "test")
    mark, another = region.mark(1, 3), region.mark(2)
    pid = forked(signal.pause)
    mark.take_off()
    assert [region.is_marked(number) for number in (1, 2, 3)] == [False, True, False]
    os.kill(pid, signal.SIGKILL)
    wait_dead(pid)
    mark.close()
    another.close()


def test_another_program_has_no_mark() -> None:
    region = Region.create(10, "test")
    mark = region.mark(1)
    with Program(["cat"], stdin=subprocess.PIPE, close_fds=False):
        mark.close()
        assert not region.is_marked(1)


def test_a_mark_that_is_closed_already_does_not_close_what_has_its_number() -> None:
    region = Region.create(10, "test")
    mark = region.mark(1)
    number = mark._fd
    os.close(number)
    read_end, write_end = os.pipe()
    assert number in (read_end, write_end)
    mark.close_inherited()
    os.close(read_end)
    os.close(write_end)
    mark.close()


def test_where_no_mark_can_be_made_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region.create(10, "test")
    monkeypatch.setattr(fcntl, "F_OFD_SETLK", 9999)
    monkeypatch.setattr(fcntl, "F_OFD_GETLK", 9999)
    with pytest.raises(OSError, match="Invalid argument"):
        region.mark(1)
    assert not region.is_marked(1)


def test_it_is_not_looked_for_on_another_machine() -> None:
    place = Place(b"?" * 16, "another", ((1, 1),))
    with pytest.raises(SharedDataGone, match="made on another machine"):
        Region.at(place, "piece")


def test_elsewhere_than_on_linux_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "is_supported", False)
    with pytest.raises(NotImplementedError, match=r"plait\.shared needs Linux"):
        Region.create(10, "test")


def test_nothing_of_a_program_that_was_killed_is_left(run_python: Callable[..., Any]) -> None:
    before = set(Path("/dev/shm").iterdir())
    done = run_python(
        "-c",
        "import os; from plait.shared import Lock; lock = Lock(); lock.acquire()\n"
        "os.kill(os.getpid(), 9)",
    )
    assert done.returncode == -9
    new = set(Path("/dev/shm").iterdir()) - before
    assert not [path for path in new if "plait" in path.name]
