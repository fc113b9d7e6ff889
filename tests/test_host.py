"""What the machine lets us use."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

from plait import host


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
    before = host.read_thread_clock()
    time.sleep(0.02)
    slept = host.read_thread_clock()
    while time.thread_time() < slept.cpu + 0.02:
        pass
    worked = host.read_thread_clock()
    assert slept.wall - before.wall >= 0.02
    assert slept.cpu - before.cpu < 0.01
    assert worked.cpu - slept.cpu >= 0.02


def test_interpreter_settings_are_passed_on() -> None:
    code = "from plait.host import python_command as c; print(c('a.b')[1:6])"
    done = subprocess.run(
        [sys.executable, "-O", "-W", "error", "-X", "utf8", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
    )
    assert done.stdout == "['-O', '-W', 'error', '-X', 'utf8']\n"
