"""Numbers that several workers have: Value, Counter and Array."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from array import array as standard_array
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import pytest

import plait
from plait import OwnerDied
from plait.shared import Array, Counter, RLock, Value, libc, locks, who_holds
from plait.shared.cells import WHO
from tests.shared.puppet import is_waited_for, until
from tests.start import Program

MB = 1024 * 1024


class Child:
    """Another program, which is sent objects, runs code on them, and says something."""

    def __init__(self, code: str, *objects: object) -> None:
        program = (
            "import pickle, sys\n"
            "load = lambda: pickle.load(sys.stdin.buffer)\n"
            "def say(*what):\n"
            "    pickle.dump(what[0] if len(what) == 1 else what, sys.stdout.buffer)\n"
            "    sys.stdout.flush()\n"
            "def wait(): sys.stdin.buffer.read(1)\n"
            f"{code}"
        )
        self.process = Program(
            [sys.executable, "-W", "error", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for one in objects:
            self.send(one)

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, one: object) -> None:
        pickle.dump(one, self._end(self.process.stdin))
        self._end(self.process.stdin).flush()

    def hear(self) -> Any:
        return pickle.load(self._end(self.process.stdout))

    def go_on(self) -> None:
        self._end(self.process.stdin).write(b"x")
        self._end(self.process.stdin).flush()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> int:
        with self.process:
            return self.process.wait(60)

    @staticmethod
    def _end(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe
        return pipe


StartChild = Callable[..., Child]


@pytest.fixture
def child() -> Any:
    """Start programs; none of them outlives the test."""
    started: list[Child] = []

    def start(code: str, *objects: object) -> Child:
        started.append(Child(code, *objects))
        return started[-1]

    yield start
    for one in started:
        one.kill()


# --- One number --------------------------------------------------------------------------

NUMBERS = [
    (int, -(2**63)), (float, 0.1), (bool, True),
    ("b", -128), ("B", 255), ("h", -32768), ("H", 65535), ("i", -(2**31)), ("I", 2**32 - 1),
    ("q", 2**63 - 1), ("Q", 2**64 - 1), ("f", 0.5), ("d", 1e300), ("?", False),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "number"), NUMBERS)
def test_a_value_of_each_kind_keeps_its_number_elsewhere_too(kind: Any, number: Any) -> None:
    value: Value[Any] = Value(kind)
    assert value.value == 0
    value.value = number
    assert value.value == number
    assert type(value.value) is type(number)
    assert Value(kind, number).value == number


@pytest.mark.parametrize(("kind", "number"), NUMBERS)
def test_no_number_is_cut_to_its_kind(kind: Any, number: Any) -> None:
    if isinstance(number, float | bool):
        return
    too_much = number + 1 if number > 0 else number - 1
    value: Value[int] = Value(kind, number, "n")
    with pytest.raises(OverflowError, match=r"^-?\d+ does not fit into Value 'n', .* to \d+$"):
        value.value = too_much
    with pytest.raises(OverflowError):
        value.add(too_much - number)
    with pytest.raises(OverflowError):
        Value(kind, too_much)
    assert value.value == number


def test_what_is_no_number_is_told() -> None:
    value = Value(int, name="n")
    with pytest.raises(TypeError, match=r"Value 'n' holds whole numbers, not 0\.5"):
        value.value = 0.5  # type: ignore[assignment]
    with pytest.raises(TypeError, match="Value 'x' holds numbers, not '1'"):
        Value(float, name="x").value = "1"  # type: ignore[assignment]
    assert value.acquire(blocking=False)
    value.release()
    assert not value.locked()


@pytest.mark.parametrize("kind", ["z", "qq", "", "int", "l"])
def test_an_unknown_code_is_told(kind: str) -> None:
    told = f"^kind='{kind}' must be int, float, bool or one"
    with pytest.raises(ValueError, match=told):
        Value(kind)
    with pytest.raises(ValueError, match=told):
        Array(kind, 1)


@pytest.mark.parametrize("kind", [str, object, None, complex])
def test_an_unknown_kind_is_told(kind: Any) -> None:
    told = r"for objects there is plait\.shared\.List"
    with pytest.raises(TypeError, match=told):
        Value(kind)
    with pytest.raises(TypeError, match=told):
        Array(kind, 1)


def test_strokes() -> None:
    value = Value(int, 5)
    assert (value.add(), value.add(10), value.add(-6)) == (6, 16, 10)
    assert value.exchange(3) == 10
    assert not value.compare_exchange(10, 1)
    assert value.value == 3
    assert value.compare_exchange(3, 1)
    assert value.value == 1
    third = Value("f", 1.0).add(1 / 3)
    assert third == pytest.approx(4 / 3)
    assert third != 4 / 3  # as it is kept, in 32 bits


def test_a_counter_counts() -> None:
    counter = Counter(2, "lines")
    assert (counter.add(), counter.add(4)) == (3, 7)
    assert counter.reset() == 7
    assert counter.reset(5) == 0
    assert counter.value == 5
    with pytest.raises(AttributeError):
        counter.value += 1  # type: ignore[misc]
    assert repr(counter) == "<plait.shared Counter 'lines': unlocked, 5>"


def test_a_value_is_its_own_lock() -> None:
    value = Value(int, 1, "n")
    assert value.get_lock() is value.lock is value
    assert isinstance(value, RLock)
    with value, value.get_lock():
        value.value += 1
        assert value.locked()
        (row,) = (row for row in who_holds() if row.what == "Value 'n'")
        assert "test_a_value_is_its_own_lock" in row.stack  # also after the write
    assert not value.locked()
    assert value.value == 2


def test_who_writes_waits_for_who_has_the_lock_and_who_reads_does_not() -> None:
    value = Value(int, 1)
    seen: list[int] = []

    def write() -> None:
        seen.append(value.value)
        has_read.set()
        value.value = 5
        seen.append(value.add(1))

    has_read = threading.Event()
    thread = threading.Thread(target=write)
    with value:
        value.value = 2
        thread.start()
        has_read.wait()
        value.value = 3
        assert seen == [2]
    thread.join()
    assert seen == [2, 6]


def test_threads_lose_nothing() -> None:
    counter, value = Counter(), Value(int)

    def count() -> None:
        for _ in range(2000):
            counter.add()
            with value:
                value.value += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value == value.value == 8000


COUNT = """
value, counter = load(), load()
say("here")
wait()
for _ in range(3000):
    counter.add()
    with value:
        value.value += 1
"""


def test_two_processes_lose_nothing(child: StartChild) -> None:
    counter, value = Counter(), Value(float)
    both = [child(COUNT, value, counter) for _ in range(2)]
    for one in both:
        assert one.hear() == "here"
    for one in both:
        one.go_on()
    for one in both:
        assert one.end() == 0
    assert counter.value == value.value == 6000


HOLD = """
value = load()
with value:
    value.value = 7
    say("held")
    wait()
"""


def test_the_next_is_told_of_a_process_that_died_with_the_lock(child: StartChild) -> None:
    value = Value(int, 1, "n")
    other = child(HOLD, value)
    assert other.hear() == "held"
    assert value.value == 7  # to read takes no lock
    assert not value.acquire(timeout=0)
    other.kill()
    with pytest.raises(OwnerDied, match="ended while it held Value 'n'") as told:
        value.add(1)
    assert told.value.pid == other.pid
    assert value.value == 7
    assert value.add(1) == 8


@pytest.mark.parametrize("write", [lambda v: v.exchange(9), lambda v: v.compare_exchange(7, 9)])
def test_a_death_can_be_ignored(write: Callable[[Value[int]], Any], child: StartChild) -> None:
    value = Value(int, on_owner_death="ignore")
    other = child(HOLD, value)
    assert other.hear() == "held"
    other.kill()
    write(value)
    assert value.value == 9


DIE_IN_A_STROKE = """
import os, signal
value = load()
class Number:
    def __index__(self): os.kill(os.getpid(), signal.SIGKILL)
value.value = Number()
"""


def test_who_dies_while_it_writes_leaves_the_number_as_it_was(child: StartChild) -> None:
    value = Value(int, 5, "n")
    with value:
        pass
    assert child(DIE_IN_A_STROKE, value).end() == -signal.SIGKILL
    with pytest.raises(OwnerDied) as told:
        value.value = 1
    assert told.value.pid == 0  # and not who had it before
    assert value.value == 5


def test_who_dies_at_any_moment_spoils_nothing(child: StartChild) -> None:
    counter = Counter()
    for _ in range(5):
        other = child("counter = load()\ncounter.add()\nsay(1)\nwhile True: counter.add()", counter)
        assert other.hear() == 1
        before = counter.value
        other.kill()
        try:
            after = counter.add()
        except OwnerDied as told:  # it was within add
            assert told.pid in (0, other.pid)  # noqa: PT017  it may be, or not
            after = counter.add()
        assert after > before
        assert not counter.locked()


# --- Many numbers ------------------------------------------------------------------------


def test_an_array_is_a_sequence() -> None:
    array = Array(int, 5)
    assert list(array) == [0] * 5
    array[1], array[-1] = 10, 50
    array[2:4] = [20, 30]
    array[::4] = (7, 8)
    assert list(array) == [7, 10, 20, 30, 8]
    assert (array[1], array[-2], array[1:3], array[::-2]) == (10, 30, [10, 20], [8, 20, 7])
    assert len(array) == 5
    assert 20 in array
    assert next(reversed(array)) == 8
    for index in (5, -6):
        with pytest.raises(IndexError):
            array[index]
        with pytest.raises(IndexError):
            array[index] = 1
    with pytest.raises(ValueError, match="Array 'a' cannot change its length"):
        Array(int, 5, name="a")[1:3] = [1]
    assert Array(int, 3)[1:1] == []


@pytest.mark.parametrize(("kind", "number"), NUMBERS)
def test_an_array_of_each_kind_keeps_its_numbers(kind: Any, number: Any) -> None:
    array = Array(kind, [number, 0, number])
    assert list(array) == [number, 0, number]
    assert type(array[0]) is type(number)
    array[1] = number
    assert array[:] == [number] * 3
    array[:2] = [0, 0]
    assert array[:] == [0, 0, number]
    view = array.view()
    assert view.tolist() == [0, 0, number]
    assert view.dtype == array.memory().format
    assert array.memory().tolist() == [0, 0, number]


def test_no_number_of_an_array_is_cut() -> None:
    array = Array("B", 3, name="bytes")
    with pytest.raises(OverflowError, match=r"256 does not fit into Array 'bytes'.* 0 to 255"):
        array[0] = 256
    with pytest.raises(TypeError, match="Array 'bytes' holds whole numbers, not 'x'"):
        array[0] = "x"
    with pytest.raises(OverflowError):
        array[:2] = [1, 256]
    with pytest.raises(OverflowError):
        Array("B", [256])
    assert list(array) == [0, 0, 0]


def test_more_dimensions() -> None:
    array = Array("i", shape=(2, 3), name="table")
    array[1, 2] = 5
    array[0, -3] = 4
    assert array.shape == (2, 3)
    assert len(array) == 2
    assert array[1, -1] == 5
    rows: list[Any] = array.memory().tolist()
    assert array.view().tolist() == rows == [[4, 0, 0], [0, 0, 5]]
    for wrong in (0, slice(1), (1,), (0, 0, 0)):
        with pytest.raises(TypeError, match=r"Array 'table' has 2 dimensions.*view\(\)"):
            array[wrong]
    with pytest.raises(TypeError):
        list(array)
    for far in ((2, 0), (0, 3), (-3, 0)):
        with pytest.raises(IndexError):
            array[far]
    assert Array(int, range(6), shape=(3, 2)).view().tolist() == [[0, 1], [2, 3], [4, 5]]


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(TypeError, match="needs its length, its numbers or its shape"):
        Array(int)
    with pytest.raises(ValueError, match="cannot be negative"):
        Array(int, -1)
    with pytest.raises(ValueError, match="cannot be negative"):
        Array(int, shape=(-2, -2))
    with pytest.raises(ValueError, match=r"shape=\(2, 3\) has room for 6 numbers, not 5"):
        Array(int, 5, shape=(2, 3))
    with pytest.raises(ValueError, match="for one number there is Value"):
        Array.of(np.array(5.0))


@pytest.mark.parametrize("content", [1 << 44, 1 << 60, 1 << 80])
def test_where_there_is_no_room_it_is_told(content: int) -> None:
    with pytest.raises(MemoryError, match=r"no room for an Array of .* x d: .* bytes"):
        Array(float, content)


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_an_empty_array_is_one(shape: tuple[int, ...]) -> None:
    array = Array(float, shape=shape)
    assert pickle.loads(pickle.dumps(array)) is array
    assert array.view().shape == shape
    assert array.nbytes == array.memory().nbytes == 0
    assert list(Array("h", [])) == []


DTYPES = ["<i4", ">f8", "complex64", "float16", "datetime64[s]", "S5", [("x", "f8"), ("n", "u1")]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_numpy_array_keeps_its_dtype_and_shape(dtype: Any, child: StartChild) -> None:
    original = np.zeros((4, 3), dtype)
    original.reshape(-1).view("u1")[::5] = 65
    array = Array.of(original)
    view = array.view()
    assert (view.dtype, view.shape) == (original.dtype, original.shape)
    assert view.tobytes() == original.tobytes()
    assert array[1, 1] == original[1, 1]
    code = "array = load(); view = array.view(); view[3] = view[0]; say(view.dtype, view.shape)"
    assert child(code, array).hear() == (original.dtype, (4, 3))
    assert view[3].tobytes() == original[0].tobytes()


def test_numpy_takes_an_array_as_it_is() -> None:
    array = Array(np.float32, [1, 2])
    taken = np.asarray(array)
    taken[0] = 5
    assert array[0] == 5
    assert np.array(array).base is None
    assert np.asarray(array, "f8").tolist() == [5, 2]
    with pytest.raises(ValueError, match=r"copied|Unable to avoid copy"):
        np.asarray(array, "f8", copy=False)
    assert Array.of([[1, 2], [3, 4]])[1, 0] == 3
    every_second = np.arange(10.0)[::2]
    assert Array.of(every_second).view().tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("dtype", ["O", [("x", "O")], "U0"])
def test_a_dtype_with_objects_is_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="cannot be shared: its items are"):
        Array(np.dtype(dtype), 3)


def test_memory_is_good_for_what_takes_a_buffer() -> None:
    array = Array("i", 3)
    array.memory()[1:3] = standard_array("i", [8, 9])
    assert list(array) == [0, 8, 9]
    array.memory().cast("B")[0] = 1
    assert array[0] == 1


def test_numpy_is_loaded_only_for_a_view(child: StartChild) -> None:
    code = (
        "from plait.shared import Array\n"
        "array = Array(float, [1, 2]); array[0] = 5; array.memory(); pickle.dumps(array)\n"
        "before = 'numpy' in sys.modules\n"
        "array.view()\n"
        "say(before, 'numpy' in sys.modules)"
    )
    assert child(code).hear() == (False, True)


def test_a_large_array_takes_memory_where_it_is_written_to() -> None:
    array = Array("B", 1 << 30)
    view = array.view()
    before = psutil.Process().memory_info().rss
    view[:: 1 << 28] = 1
    assert psutil.Process().memory_info().rss - before < 16 * MB
    assert array[1 << 28] == 1
    assert os.fstat(array._region._fd).st_blocks * 512 < 16 * MB


def test_a_view_outlives_its_array() -> None:
    array = Array(int, 4)
    view, memory, numbers = array.view(), array.memory(), iter(array)
    array[1] = 5
    del array
    assert view[1] == memory[1] == list(numbers)[1] == 5
    view[2] = 6
    assert memory[2] == 6


def test_the_memory_is_gone_with_the_last_view() -> None:
    gc.collect()
    before = mappings(), files()
    array = Array("B", 8 * MB)
    view = array.view()
    del array
    assert mappings() == before[0] + 1
    del view
    assert (mappings(), files()) == before


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:plait-array")


def files() -> int:
    links = (path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return sum("memfd:plait-array" in str(link) for link in links)


MAKE = """
from plait.shared import Array
array = Array(float, [1.5, 2.5], name="made there")
array.lock.acquire()
say(array)
wait()
"""


def test_an_array_outlives_its_maker(child: StartChild) -> None:
    other = child(MAKE)
    array = other.hear()
    view = array.view()
    other.kill()
    assert view.tolist() == list(array) == [1.5, 2.5]
    with pytest.raises(OwnerDied, match="ended while it held Array 'made there'"):
        array.acquire()
    with array:
        array[0] = 9
    # And others can still have it from here.
    assert child("say(list(load()))", array).hear() == [9, 2.5]
    assert view[0] == 9


# --- On the way --------------------------------------------------------------------------


def test_what_comes_back_is_the_same_object() -> None:
    for one in (Value(int, 5), Counter(), Array(int, 3)):
        assert pickle.loads(pickle.dumps(one)) is one
        a, (b,) = pickle.loads(pickle.dumps((one, [one])))
        assert a is b is one


def bump(value: Value[int], array: Array, counter: Counter) -> None:
    with array:
        array.view()[counter.add() - 1] = value.add(10)


@pytest.mark.parametrize("method", ["server", "spawn"])
def test_all_travel_to_workers(method: Any) -> None:
    value, array, counter = Value(int, 1), Array(int, 4), Counter()

    def bump_closure(_: int) -> None:
        bump(value, array, counter)

    plait.map(bump_closure, range(2), backend="processes", max_workers=2, start_method=method)
    plait.map(
        bump, [value] * 2, [array] * 2, [counter] * 2,
        backend="processes", max_workers=2, start_method=method,
    )  # fmt: skip
    assert list(array) == [11, 21, 31, 41]
    assert (value.value, counter.value) == (41, 4)


def test_what_a_task_makes_comes_back() -> None:
    def make(number: int) -> Array:
        return Array(int, [number, number + 1])

    arrays = plait.map(make, range(3), backend="processes", max_workers=2)
    assert [list(array) for array in arrays] == [[0, 1], [1, 2], [2, 3]]


MULTIPROCESSING = """
import multiprocessing, sys
from plait.shared import Array, Counter, Value

def work(value, array, counter):
    number = counter.add()
    with value:
        value.value += number
    array.view()[number] = value.value

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    value, array, counter = Value(int), Array(float, 3), Counter()
    for _ in range(2):
        process = context.Process(target=work, args=(value, array, counter))
        process.start()
        process.join()
    print(value.value, list(array), counter.value)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_all_travel_with_multiprocessing(method: str, run_python: Any, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(MULTIPROCESSING)
    ended = run_python("-W", "error", "script.py", method)
    assert (ended.stdout, ended.stderr) == ("3 [0.0, 1.0, 3.0] 2\n", "")


FORKED = """
import gc, os
from plait.shared import Value
value = Value(int, 5)
done, told = os.pipe()
if pid := os.fork():
    del value
    gc.collect()
    new = [Value(int, 9) for _ in range(3)]
    os.write(told, b"x")
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *(one.value for one in new))
else:
    os.read(done, 1)
    value.add(1)
    os._exit(value.value)
"""


def test_a_forked_child_keeps_what_its_parent_lets_go(run_python: Any) -> None:
    assert run_python("-c", FORKED).stdout == "6 9 9 9\n"


FORKED_HOLDER = """
import os, signal
from plait import OwnerDied
from plait.shared import Value
value = Value(int)
def hold(): value.acquire()
hold()
value.release()
if pid := os.fork():
    os.waitpid(pid, 0)
    try:
        value.add()
    except OwnerDied as told:
        print(told.pid == pid)
else:
    hold()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_forked_child_that_died_is_not_taken_for_its_parent(run_python: Any) -> None:
    assert run_python("-c", FORKED_HOLDER).stdout == "True\n"


FORKED_WRITER = """
import os, threading
from plait.shared import Value, values
value = Value(int)
with value:  # the child, which has another number, is not to believe that it has the lock
    value.value = 1
    if pid := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    else:
        os._exit(10 + (values._this_thread.tid == threading.get_native_id()))
"""


def test_a_forked_child_does_not_take_its_parents_lock_for_its_own(run_python: Any) -> None:
    assert run_python("-c", FORKED_WRITER).stdout == "11\n"


def test_ctrl_c_in_a_stroke_leaves_no_lock_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    value = Value(int, 1)
    try_lock = libc.try_lock

    def lock_and_be_interrupted(mutex: Any) -> int:
        assert try_lock(mutex) == 0
        raise KeyboardInterrupt

    monkeypatch.setattr(libc, "try_lock", lock_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        value.add()
    with pytest.raises(KeyboardInterrupt):
        value.value = 2
    assert not value.locked()
    assert value.value == 1


def test_no_number_is_cut_under_its_own_lock_either() -> None:
    value = Value("b", 1, "n")
    with value:
        with pytest.raises(OverflowError, match="128 does not fit into Value 'n'"):
            value.value = 128
        value.value = 127
    assert value.value == 127
    assert not value.locked()


def test_nothing_is_in_dev_shm() -> None:
    before = set(os.listdir("/dev/shm"))  # noqa: PTH208
    held = [Array("B", MB), Array.of(np.ones(10)), Value(int), Counter()]
    new = set(os.listdir("/dev/shm")) - before  # noqa: PTH208
    others = ("sem.", "joblib_")  # of other programs, which may run at the same time
    assert not {name for name in new if not name.startswith(others)}
    assert held


def test_who_waited_for_its_stroke_is_not_noted_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would be named if the next owner dies before that is noted."""
    monkeypatch.setattr(locks, "LOOK_S", 0.05)
    value = Value(int)
    with value:
        thread = threading.Thread(target=value.add)
        thread.start()
        until(lambda: is_waited_for(value))
    thread.join()
    assert value.value == 1
    assert value._words[WHO] == 0
    with value:
        value.add()
        assert value._words[WHO] >> 32 == os.getpid()
    assert value._words[WHO] == 0
