"""What the machine lets us use."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plait import host
from plait.clocks import read_thread_clock
from tests.start import Program


def test_cpu_count_obeys_affinity() -> None:
    code = (
        "import os; from plait.host import cpu_count;"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(cpu_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_smallest_quota_of_all_ancestors_counts(tmp_path: Path) -> None:
    write(tmp_path / "pod", cpu__max="250000 100000\n")
    write(tmp_path / "pod/container", cpu__max="max 100000\n")
    write(tmp_path / "other", cpu__max="10000 100000\n")
    assert host._cgroup_cpus({"": "/pod/container"}, str(tmp_path)) == 2.5
    assert host._cgroup_cpus({"": "/"}, str(tmp_path)) == math.inf
    assert host._cgroup_cpus({}, str(tmp_path)) == math.inf


def test_quotas_of_version_1(tmp_path: Path) -> None:
    write(tmp_path / "cpu/docker", cpu__cfs_quota_us="150000", cpu__cfs_period_us="100000")
    write(tmp_path / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert host._cgroup_cpus({"cpu": "/docker/abc"}, str(tmp_path)) == 1.5


def test_the_thread_clock_tells_work_from_waiting() -> None:
    wall, cpu, _ = read_thread_clock()
    time.sleep(0.02)
    wall_slept, cpu_slept, _ = read_thread_clock()
    while time.thread_time() < cpu_slept + 0.02:
        pass
    _, cpu_worked, _ = read_thread_clock()
    assert wall_slept - wall >= 0.02
    assert cpu_slept - cpu < 0.01
    assert cpu_worked - cpu_slept >= 0.02


OWN_SETTINGS = ("PYTHONWARNINGS", "PYTHONDEVMODE")  # of whoever runs the tests


def test_interpreter_settings_are_passed_on() -> None:
    code = "from plait.interpreter import python_command as c; print(c('a.b')[1:7])"
    done = subprocess.run(
        [sys.executable, "-s", "-O", "-W", "error", "-X", "utf8", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={name: os.environ[name] for name in os.environ if name not in OWN_SETTINGS},
    )
    assert done.stdout == "['-s', '-O', '-W', 'error', '-X', 'utf8']\n"


def test_the_memory_of_a_process_and_its_descendants() -> None:
    code = (
        "import subprocess, sys; kept = b'x' * 50_000_000; deeper = len(sys.argv) < 2; "
        "child = subprocess.Popen([sys.executable, '-c', sys.orig_argv[2], 'x']) if deeper else 0; "
        "print(1, flush=True); sys.stdin.read()"
    )
    with Program(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert [process.stdout.readline() for _ in range(2)] == [b"1\n"] * 2
        ours = host.family_rss_bytes(process.pid)
        assert 100_000_000 < ours < 200_000_000
        assert ours == pytest.approx(host._family_rss_bytes_anywhere(process.pid), rel=0.05)
        assert len(host.child_pids(process.pid)) == 1
        process.stdin.close()
    assert host.family_rss_bytes(process.pid) == 0
    assert host._family_rss_bytes_anywhere(process.pid) == 0


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("own/memory.events", "low 0\noom 2\noom_kill 3\n", 3),
        ("memory/own/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n", 4),
        ("memory.events", "oom_kill 5\n", 5),  # in a container: its own group is the root
        ("memory/own/memory.oom_control", "oom_kill_disable 0\n", None),  # an old kernel
    ],
)
def test_how_often_the_oom_killer_struck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, expected: int | None
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    monkeypatch.setattr(host, "_CGROUP", str(tmp_path))
    monkeypatch.setattr(host, "_own_cgroups", lambda: {"": "/own", "memory": "/own"})
    assert host.oom_kills() == expected
