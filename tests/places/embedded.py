# /// script
# dependencies = []
# ///
"""A C program that embeds Python: nothing is started a second time, and everything else works."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

C = r"""
#include <Python.h>
int main(int argc, char **argv) {
    FILE *starts = fopen("starts", "a");
    fputs("start\n", starts);
    fclose(starts);
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.parse_argv = 0;
    if (EMBED == 1) PyConfig_SetBytesArgv(&config, argc, argv);
    PyConfig_SetBytesString(&config, &config.executable, EMBED == 2 ? PYTHON : argv[0]);
    PyStatus status = Py_InitializeFromConfig(&config);
    if (PyStatus_Exception(status)) Py_ExitStatusException(status);
    FILE *script = fopen("script.py", "r");
    int failed = PyRun_SimpleFile(script, "script.py");
    return Py_FinalizeEx() || failed;
}
"""
SCRIPT = f"""
import sys
sys.path[:0] = {[*sys.path]!r}
import plait
print(sys.executable, sys.orig_argv, sys.argv)
offset = 5
can = EMBED == 2
for way in ("server", "spawn"):
    try:
        values = plait.map(lambda x: x + offset, range(3), backend="processes", start_method=way)
        assert can and values == [5, 6, 7], values
    except plait.WorkerStartError as error:
        print(error)
        assert not can and "second time" in str(error)
assert plait.map(lambda x: x + offset, range(3), backend="threads") == [5, 6, 7]
values = plait.map(lambda x: sum(range(x)), [30_000] * 300)
assert values == [sum(range(30_000))] * 300
with plait.Executor(2) as executor:
    assert list(executor.map(abs, [-1, 2])) == [1, 2]
"""


def build(kind: int) -> Path:
    Path("program.c").write_text(C)
    config = sysconfig.get_config_var
    libdir, version = config("LIBDIR"), config("LDVERSION")
    command = [
        "cc",
        "program.c",
        f"-DEMBED={kind}",
        f'-DPYTHON="{sys.executable}"',
        f"-I{sysconfig.get_path('include')}",
        f"-L{libdir}",
        f"-lpython{version}",
        f"-Wl,-rpath,{libdir}",
        "-Xlinker",
        "-export-dynamic",
        *shlex.split(f"{config('LIBS')} {config('SYSLIBS')}"),
        "-o",
        f"program{kind}",
    ]
    subprocess.run(command, check=True)
    return Path(f"program{kind}").resolve()


base = str(Path(sys.base_prefix))
for kind in (0, 1, 2):  # its arguments are not told, or are those of the program; another Python
    program = build(kind)
    Path("script.py").write_text(SCRIPT.replace("EMBED", str(kind)))
    Path("starts").unlink(missing_ok=True)
    subprocess.run([program, "one"], env={**os.environ, "PYTHONHOME": base}, check=True, timeout=60)
    assert Path("starts").read_text() == "start\n", Path("starts").read_text()
