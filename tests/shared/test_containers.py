"""List and Dict: those of Python, for all threads and processes, whoever dies."""

from __future__ import annotations

import doctest
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plait
from plait.errors import NotPicklable
from plait.shared import Dict, List, Lock, dicts, lists, log, replica
from tests.shared.far import Curious, Far

# Python 3.12 and later warn of forks amid threads: here that is what is tried.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
HERE = str(Path(replica.__file__).parent)


@pytest.fixture(scope="module")
def far() -> Iterator[Far]:
    with Far() as process:
        yield process


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(Path("/dev/shm").iterdir())
    yield
    assert set(Path("/dev/shm").iterdir()) <= before


def in_fork(work: Callable[[], object]) -> int:
    """Run something in a forked child, and return how that ended."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("module", [lists, dicts, replica, log])
def test_the_examples_are_true(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_they_are_what_the_standard_library_calls_such_things() -> None:
    assert isinstance(List(), MutableSequence)
    assert isinstance(Dict(), MutableMapping)


# --- The same as the plain ones, from two processes -------------------------------------------

small = st.integers(-3, 3)
slices = st.builds(slice, *[st.none() | small] * 3)
values = st.integers(0, 4) | st.sampled_from(["a", "b"])
list_calls = st.one_of(
    st.tuples(st.just("append"), values),
    st.tuples(st.sampled_from(["extend", "__iadd__"]), st.lists(values, max_size=4)),
    st.tuples(st.just("insert"), small, values),
    st.tuples(st.sampled_from(["pop", "__delitem__", "__getitem__"]), small | slices),
    st.tuples(st.just("__setitem__"), small, values),
    st.tuples(st.just("__setitem__"), slices, st.lists(values, max_size=4)),
    st.tuples(st.sampled_from(["remove", "index", "count", "__contains__"]), values),
    st.tuples(st.sampled_from(["reverse", "clear", "copy", "__len__", "sort", "pop"])),
    st.tuples(st.just("__imul__"), small),
    st.tuples(st.just("index"), values, small, small),
    st.tuples(st.just("__eq__"), st.lists(values, max_size=2)),
)
keys = st.sampled_from(["x", "y", 1, True, (1, "z")])
dict_calls = st.one_of(
    st.tuples(st.sampled_from(["__setitem__", "setdefault", "get", "pop"]), keys, values),
    st.tuples(st.sampled_from(["get", "pop", "setdefault", "__delitem__", "__getitem__"]), keys),
    st.tuples(st.sampled_from(["popitem", "clear", "copy", "__len__"])),
    st.tuples(st.sampled_from(["update", "__ior__"]), st.dictionaries(keys, values, max_size=3)),
    st.tuples(st.just("update"), st.lists(st.tuples(keys, values), max_size=3)),
    st.tuples(st.just("__contains__"), keys),
    st.tuples(st.just("__eq__"), st.dictionaries(keys, values, max_size=1)),
)
CALL = """
try:
    result = getattr(data, name)(*args)
    result = "itself" if result is data else result
except Exception as error:
    result = type(error)
"""


class HereOnly:
    """A value that cannot be unpickled in another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"1 // (__import__('os').getpid() == {os.getpid()})",)


class Nowhere:
    """A value that cannot be unpickled anywhere."""

    def __reduce__(self) -> tuple[Any, ...]:
        return divmod, (1, 0)


class Once:
    """A value that can be pickled; its copy cannot."""

    is_copy = False

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_copy:
            raise ValueError("once is enough")
        return Once, (), {"is_copy": True}


def call(data: Any, name: str, args: tuple[Any, ...]) -> Any:
    names = {"data": data, "name": name, "args": args}
    exec(CALL, names)
    return names["result"]


def agree(data: Any, model: Any, calls: list[tuple[bool, tuple[Any, ...]]], far: Far) -> None:
    for is_far, (name, *args) in calls:
        before = model.copy()
        expected = call(model, name, tuple(args))
        if name == "sort" and expected is TypeError:
            model[:] = before  # a plain list is half sorted then
        if is_far:
            found = far.run(CALL, data=data, name=name, args=tuple(args))
        else:
            found = call(data, name, tuple(args))
        assert found == expected, (name, args)
        assert (data.copy(), list(data)) == (model, list(model)), (name, args)
    assert far.run("result = data.copy(), list(data)", data=data) == (model, list(model))


few = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
long_lists = st.lists(st.tuples(st.booleans(), list_calls), max_size=30)
long_dicts = st.lists(st.tuples(st.booleans(), dict_calls), max_size=30)


@few
@given(start=st.lists(values, max_size=5), calls=long_lists)
def test_a_list_does_what_a_list_does(far: Far, start: list[Any], calls: Any) -> None:
    agree(List(start), list(start), calls, far)


@few
@given(start=st.dictionaries(keys, values, max_size=4), calls=long_dicts)
def test_a_dict_does_what_a_dict_does(far: Far, start: dict[Any, Any], calls: Any) -> None:
    agree(Dict(start), dict(start), calls, far)


@few
@given(calls=long_lists)
def test_a_list_does_so_if_the_log_begins_anew_all_the_time(far: Far, calls: Any) -> None:
    """Both processes lose their place in the log again and again."""
    often = "import plait.shared.replica as r; r.LOG_BYTES = {}; r.Replica._set_limit = {}"
    kept = replica.Replica._set_limit
    far.run(
        "import plait.shared.replica as r\nr.kept = r.Replica._set_limit\n"
        + often.format("0", "lambda self, state: setattr(self, '_limit', 0)")
    )
    replica.Replica._set_limit = lambda self, state: setattr(self, "_limit", 0)  # type: ignore[method-assign]
    try:
        agree(List([1, 2]), [1, 2], calls, far)
    finally:
        replica.Replica._set_limit = kept  # type: ignore[method-assign]
        far.run(often.format("64 * 1024", "r.kept"))


def test_sort_is_stable_and_calls_the_key_here_only(far: Far) -> None:
    data = List(["b1", "a1", "B2", "A2"])
    called = []

    def key(text: str) -> str:
        called.append(text)
        return text[0].lower()

    far.copy(data)
    data.sort(key=key, reverse=True)
    assert called == ["b1", "a1", "B2", "A2"]
    assert far.copy(data) == ["b1", "B2", "a1", "A2"] == data.copy()


def test_what_raises_changes_nothing() -> None:
    data, mapping = List[Any]([3, "a", 1]), Dict[Any, Any]({"a": 1})
    acts: tuple[Callable[[], object], ...] = (
        data.sort,
        lambda: data.__setitem__(slice(None, None, 2), [1]),
        lambda: data.__setitem__(slice(None, None, 0), [1]),
        lambda: data.__delitem__(slice(None, None, 0)),
        lambda: data.pop(7),
        lambda: data.remove(9),
        lambda: mapping.pop("b"),
        lambda: mapping.update({"x": 1, "y": threading.Lock()}),
        lambda: mapping.__setitem__([], 1),
        lambda: data.append(threading.Lock()),
        lambda: data.extend([1, threading.Lock()]),
    )
    for act in acts:
        before = data._replica._log.words[0], mapping._replica._log.words[0]
        with pytest.raises((TypeError, ValueError, IndexError, KeyError, plait.NotPicklable)):
            act()
        assert (data._replica._log.words[0], mapping._replica._log.words[0]) == before
    assert data == [3, "a", 1]
    assert mapping == {"a": 1}
    assert not data.lock.locked()


def test_a_dict_is_taken_from_another_in_one_piece(far: Far) -> None:
    data, other = Dict({"a": 1}), Dict({"b": 2})
    data.update(other, c=3)
    data |= other
    assert (data | other, {"x": 0} | other) == ({"a": 1, "b": 2, "c": 3}, {"x": 0, "b": 2})
    assert Dict(data) == data == far.copy(data)
    assert data != other


def test_a_value_that_another_process_cannot_unpickle_is_an_error_there_alone(far: Far) -> None:
    data = List[Any]([1])
    far.copy(data)
    data.append(HereOnly())
    with pytest.raises(ZeroDivisionError):
        far.copy(data)
    data.pop()
    assert data == [1]
    assert not data.lock.locked()


def test_a_value_that_cannot_be_unpickled_even_here_is_refused(far: Far) -> None:
    data: Any = List([1])
    mapping: Any = Dict({"a": 1})
    puts: list[Callable[[], Any]] = [
        lambda: data.append(Nowhere()),
        lambda: data.extend([2, Nowhere()]),
        lambda: mapping.update(b=Nowhere()),
        lambda: mapping.setdefault("b", Nowhere()),
    ]
    for put in puts:
        with pytest.raises(NotPicklable, match="cannot be unpickled: ZeroDivisionError"):
            put()
    assert (data, mapping) == ([1], {"a": 1}) == (far.copy(data), far.copy(mapping))


def test_what_comes_out_is_a_copy_for_who_has_put_it_in_too(far: Far) -> None:
    """It was the object itself, so that this process alone saw what was changed in it."""
    given = [[1]]
    data: Any = List(given)
    mapping: Any = Dict({"a": given[0]})
    data.append(given[0])
    data.extend([given[0]])
    mapping.update(b=given[0])
    mapping["c"] = given[0]
    assert mapping.setdefault("d", given[0]) == [1]
    given[0].append(2)
    data[0].append(3)
    data.copy()[0].append(3)
    next(iter(data)).append(3)
    for item in (*data[:], *reversed(data), *[*data, 0][:3], *(data * 2), *data):
        item.append(3)
    for _, item in mapping.items():
        item.append(3)
    for item in (*mapping.values(), *(mapping | {}).values(), mapping["a"], mapping.get("a")):
        item.append(3)
    mapping.setdefault("a", []).append(3)
    data.sort(key=lambda item: len([item.append(3)]))
    assert (data, mapping) == ([[1]] * 3, {key: [1] for key in "abcd"})
    assert (far.copy(data), far.copy(mapping)) == (data, mapping)
    both: Any = List()
    both.extend([given, given])
    both.pop().append(3)
    pairs: Any = Dict()
    pairs.update(a=given, b=given)
    pairs.pop("a").append(3)
    assert (both, pairs) == ([given], {"b": given})
    pairs.update(a=given, b=given)
    pairs.popitem()[1].append(3)
    assert pairs == {"b": given}


def test_a_default_comes_back_as_it_is() -> None:
    data: Any = Dict({"a": []})
    nothing, new = object(), [1]
    assert data.get("b", nothing) is nothing is data.pop("b", nothing)
    assert data.setdefault("b", new) is new
    assert data["b"] is not new


def test_shared_data_in_shared_data_is_live_at_every_level(far: Far) -> None:
    """Nobody but the outer one has the inner ones."""
    data: Any = List([List(), [Dict({"deep": List([1])})]])
    mapping: Any = Dict({"a": List()})
    assert far.run("data[0].append('far'); data[1][0]['deep'].append(2)", data=data) is None
    assert far.run("mapping['a'].append('far')", mapping=mapping) is None
    data[0].append("here")
    mapping["a"].append("here")
    assert (data, mapping) == ([["far", "here"], [{"deep": [1, 2]}]], {"a": ["far", "here"]})
    assert far.run("result = data[0].copy(), mapping['a'].copy()", data=data, mapping=mapping) == (
        ["far", "here"],
        ["far", "here"],
    )
    inner = data.pop(0)
    inner.append("still")
    assert inner == ["far", "here", "still"]


def test_a_dict_is_made_as_dicts_are() -> None:
    assert Dict(a=1, b=2) == {"a": 1, "b": 2} == Dict({"a": 1}, b=2)
    assert Dict.fromkeys("ab") == {"a": None, "b": None}
    assert Dict.fromkeys([1], []) == {1: []}
    assert "'people'" in Dict(name="people")._replica.lock._cell.label
    with pytest.raises(TypeError, match="is name='Ada' a key, or what messages call this Dict"):
        Dict(name="Ada", born=1815)


def test_a_key_that_does_not_equal_its_copy_is_refused() -> None:
    data: Dict[Any, int] = Dict()
    for key in (object(), float("nan"), (1, object())):
        with pytest.raises(TypeError, match="does not equal"):
            data[key] = 1
        with pytest.raises(TypeError, match="does not equal"):
            data.update({key: 1})
    assert data == {}


# --- Journeys ---------------------------------------------------------------------------------


def test_they_are_one_object_in_a_process_however_often_they_come(far: Far) -> None:
    data = List([1])
    assert pickle.loads(pickle.dumps(data)) is data
    assert far.run("result = data is again", data=data, again=data)
    assert far.run("kept = data; result = data.lock is lock", data=data, lock=data.lock)


def test_a_value_may_use_the_data_that_it_is_in_while_it_arrives(far: Far) -> None:
    data = List[Any]([0])
    far.copy(data)
    data.append(Curious(data))
    data.append(1)
    assert far.copy(data) == [0, "found", 1]


def test_they_can_hold_each_other_and_locks(far: Far) -> None:
    outer, inner = Dict[str, Any](), List[Any]()
    outer["inner"], outer["lock"] = inner, Lock("x")
    inner.append(outer)
    far.run("data['inner'].append(data['lock'].locked())", data=outer)
    assert inner[1] is False
    assert inner[0] is outer
    lock = "<plait.shared Lock 'x': unlocked>"
    assert repr(inner) == f"List([Dict({{'inner': List([...]), 'lock': {lock}}}), False])"


COUNTING = """
import multiprocessing
from plait.shared import Dict
from tests.shared.far import add_for
if __name__ == "__main__":
    data = Dict({"n": 0})
    context = multiprocessing.get_context(METHOD)
    processes = [context.Process(target=add_for, args=(data, 200)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert data == {"n": 400}
"""


def run_program(program: str) -> None:
    """Run it in a Python of its own: the helpers of multiprocessing end with that."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_takes_them_along(method: str) -> None:
    run_program(COUNTING.replace("METHOD", repr(method)))


def test_workers_have_them_in_closures(process_way: Any) -> None:
    data = List[int]()
    plait.map(lambda x: data.append(x), range(20), max_workers=2, **process_way.options)
    assert sorted(data) == list(range(20))


def test_lambdas_and_classes_of_main_travel_by_value() -> None:
    program = """
from plait.shared import Dict, List
class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x
    def __hash__(self): return hash(self.x)
from tests.shared.far import Far
if __name__ == "__main__":
    data, mapping = List([Point(1)]), Dict({Point(1): 1})
    data.append(lambda: 5)
    mapping[Point(2)] = Point(3)
    with Far() as far:
        source = "result = data[0].x, data[1](), [key.x for key in mapping]; data.append(data[0])"
        assert far.run(source, data=data, mapping=mapping) == (1, 5, [1, 2])
    assert type(data[-1]) is Point
"""
    run_program(program)


def test_who_comes_late_gets_all(far: Far) -> None:
    data = List(range(3))
    for number in range(30_000):  # more than one generation
        data.append(number)
        if number % 3:
            data.pop(0)
    with Far() as late:
        assert late.copy(data) == data.copy()
    assert far.copy(data) == data.copy()


def test_what_arrives_when_all_who_had_it_have_gone_says_so() -> None:
    with Far() as maker:
        pickled = maker.run(
            "import pickle, plait\nkept = plait.shared.List([1])\nresult = pickle.dumps(kept)"
        )
    with pytest.raises(plait.SharedDataGone):
        pickle.loads(pickled)


# --- Generations ------------------------------------------------------------------------------


def generation(data: Any) -> int:
    return int(data._replica._log.words[0] >> log.SHIFT)


def test_who_is_behind_when_a_generation_begins_goes_on(far: Far) -> None:
    data = Dict[str, Any]({"a": 0})
    for turn in range(5):
        before = generation(data)
        assert far.copy(data) == data.copy()
        while generation(data) < before + 1 + turn % 2:
            data["a"] += 1
            data[f"b{turn}"] = "x" * 50
        data["last"] = turn
        assert far.run("data['far'] = 1; result = data.copy()", data=data) == data.copy()


def test_memory_does_not_grow_while_the_content_does_not(far: Far) -> None:
    data = List[Any](["x" * 1000] * 100)
    sizes = []
    for turn in range(6):
        for number in range(500):
            data[number % 100] = f"{turn}" * 1000
        far.run("for n in range(500): data[n % 100] = 'y' * 1000", data=data)
        sizes.append(data._replica._log.region.nbytes)
    assert sizes[-1] == sizes[1] < 1_500_000
    data.clear()
    for _ in range(20_000):
        data.append(1)
        data.pop()
    fd = data._replica._log.region._fd
    assert os.fstat(fd).st_blocks * 512 < 1_500_000


def test_memory_of_a_large_content_is_given_back() -> None:
    data = List[Any](["x" * 1_000_000] * 10)
    for _ in range(5):
        data[:] = [os.urandom(1_000_000) for _ in range(10)]
    data.clear()
    for _ in range(30_000):
        data.append(1)
        data.pop()
    assert os.fstat(data._replica._log.region._fd).st_blocks * 512 < 5_000_000


def test_a_value_that_can_be_pickled_only_once_hinders_nobody(far: Far) -> None:
    data = List[Any]([Once()])
    for _ in range(30_000):
        data.append(1)
        data.pop()
    assert far.run("result = len(data)", data=data) == 1


# --- Together ---------------------------------------------------------------------------------

ADD = """
for _ in range(3000):
    with data.lock:
        data["n"] += 1
"""
ADD_UNLOCKED = ADD.replace("with data.lock", "if True")


def test_the_lock_makes_one_of_several_operations(far: Far) -> None:
    data = Dict({"n": 0})
    far.begin(ADD, data=data)
    exec(ADD, {"data": data})
    far.end()
    assert data["n"] == 6000


def test_without_the_lock_additions_get_lost(far: Far) -> None:
    """One reads, the other adds, the first writes what it has read and added."""
    data = Dict({"n": 0})
    read = data["n"]
    far.run("data['n'] += 1", data=data)
    data["n"] = read + 1
    assert data["n"] == 1


def test_single_operations_are_atomic_between_processes(far: Far) -> None:
    data = List[int]()
    append = "for n in range(5000): data.append(n)"
    far.begin(append, data=data)
    exec(append, {"data": data})
    far.end()
    assert sorted(data) == sorted([*range(5000)] * 2)
    assert far.copy(data) == data.copy()


def test_threads_share_one_copy() -> None:
    data, taken = List(range(8000)), [[], [], [], []]  # type: ignore[var-annotated]

    def take(mine: list[int]) -> None:
        with suppress(IndexError):
            while True:
                mine.append(data.pop())

    threads = [threading.Thread(target=take, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one for mine in taken for one in mine) == list(range(8000))


# --- Deaths -----------------------------------------------------------------------------------


def test_a_death_amid_several_operations_is_told_to_the_next_who_takes_the_lock() -> None:
    data = Dict({"a": 1}, name="accounts")
    with Far() as victim:
        victim.run("data.lock.acquire(); data['a'] = 0", data=data)
    assert data["a"] == 0  # single operations go on
    data["b"] = 1
    with pytest.raises(plait.OwnerDied, match="lock of Dict 'accounts'") as caught:
        data.lock.acquire()
    assert caught.value.pid == victim.process.pid
    with data.lock:  # it is told once
        data["a"] = 1
    assert not data.lock.locked()


def test_a_death_is_told_without_operations_in_between_too() -> None:
    data = List([1])
    with Far() as victim:
        victim.run("data.lock.acquire(); data.append(2)", data=data)
    with pytest.raises(plait.OwnerDied), data.lock:
        pass
    with data.lock:
        assert data == [1, 2]


def test_only_who_has_the_lock_can_release_it() -> None:
    data = List([1])
    refused = []

    def release() -> None:
        with pytest.raises(RuntimeError, match="not acquired"):
            data.lock.release()
        refused.append(1)

    release()
    with data.lock:
        thread = threading.Thread(target=release)
        thread.start()
        thread.join()
        assert data.lock.acquire(blocking=False)
        data.lock.release()
        assert data.lock.locked()
        assert in_fork(release) == 0
    assert not data.lock.locked()
    assert refused == [1, 1]


@pytest.mark.parametrize("seed", range(30))
def test_a_kill_at_any_time_loses_nothing_that_was_acknowledged(seed: int, far: Far) -> None:
    chance = random.Random(seed)
    data = List[tuple[int, str]]([(-1, "")])
    padding = "x" * chance.choice([1, 300, 3000])
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        for number in range(1_000_000):
            data.append((number, padding))
            os.write(writing, b".")
            if len(data) > 50:
                del data[:25]
        os._exit(0)
    os.close(writing)
    acknowledged = 0
    while acknowledged < chance.randrange(1, 400):
        acknowledged += len(os.read(reading, 100))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(reading, 65536):
        acknowledged += len(more)
    os.close(reading)
    numbers = [number for number, _ in data]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert acknowledged - 1 <= numbers[-1] <= acknowledged
    data.append((numbers[-1] + 1, ""))
    assert far.copy(data) == data.copy()
    with data.lock:  # it died within a single operation, if any: nobody needs to know
        pass


def kill_at(step: int) -> None:
    """Have this process killed before that many instructions of plait.shared have run."""
    left = step

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys._getframe().f_trace_opcodes = True  # or 3.12 tells of no opcode at all
    sys.settrace(trace)


@pytest.mark.soak
@pytest.mark.parametrize("begins_anew", [False, True])
def test_a_kill_between_any_two_instructions_leaves_the_old_or_the_new(
    begins_anew: bool, far: Far
) -> None:
    data = List[Any]()
    seen = []
    for step in range(100_000):
        data[:] = [1, 2]
        if begins_anew:
            data._replica._limit = 0

        def work(step: int = step) -> None:
            kill_at(step)
            data.append(3)

        number = generation(data)
        ended = in_fork(work)
        found = far.copy(data) if step % 10 == 0 else data.copy()
        assert found == data.copy()
        assert found in ([1, 2], [1, 2, 3])
        seen.append((len(found), generation(data) - number))
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert sorted(seen) == seen  # there is one moment before which it is not, and then it is
    assert {*seen} == ({(2, 0), (3, 0), (3, 1)} if begins_anew else {(2, 0), (3, 0)})


# --- Interruptions ----------------------------------------------------------------------------


class Interrupted(BaseException):
    """What a signal handler raises here."""


SEND = """
import os, signal, time
until = time.perf_counter() + after_s
while time.perf_counter() < until:
    pass
os.kill(pid, signal.SIGUSR1)
"""


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[..., None]], object]]:
    """Returns how to have a handler for SIGUSR1."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGUSR1, before)


def test_an_interruption_leaves_neither_a_lock_nor_half_a_change(on_signal: Any, far: Far) -> None:
    chance = random.Random(7)
    data = List([0])
    may_interrupt = False

    def interrupt(*_: object) -> None:
        if may_interrupt:
            raise Interrupted

    on_signal(interrupt)
    for turn in range(200):
        number = data[-1]
        try:
            may_interrupt = True
            far.begin(SEND, pid=os.getpid(), after_s=chance.uniform(0, 1e-4))
            while True:
                data.append(number + 1)
                number += 1
        except Interrupted:
            may_interrupt = False
        far.end()
        assert not data.lock.locked()
        assert data[-1] in (number, number + 1)
        if turn % 10 == 0:
            far.run("data[:-1] = data[1:-1]", data=data)
    assert data.copy() == list(range(data[0], data[-1] + 1)) == far.copy(data)


def test_a_signal_handler_may_use_what_it_has_interrupted(on_signal: Any, far: Far) -> None:
    chance = random.Random(8)
    data, mapping, times, number = List[str](), Dict({"main": 0, "handler": 0}), 0, 0

    def handle(*_: object) -> None:
        nonlocal times
        data.append("handler")
        mapping["handler"] = times + 1
        times += 1

    on_signal(handle)
    for turn in range(200):
        far.begin(SEND, pid=os.getpid(), after_s=chance.uniform(0, 1e-4))
        while times == turn:
            number += 1
            data.append("main")
            mapping["main"] = number
        far.end()
    assert (data.count("main"), data.count("handler")) == (number, 200)
    assert mapping == {"main": number, "handler": 200} == far.copy(mapping)
    assert far.copy(data) == data.copy()
    assert not data.lock.locked()


def test_a_fork_amid_a_change_by_another_thread_does_no_harm() -> None:
    data = List([1, 2])
    is_amid, may_go_on = threading.Event(), threading.Event()
    apply = data._replica._apply

    def slowly(items: list[int], change: Any) -> None:
        items.append(99)  # half of it
        is_amid.set()
        may_go_on.wait()
        items.pop()
        apply(items, change)

    data._replica._apply = slowly
    thread = threading.Thread(target=data.append, args=(3,))
    thread.start()
    is_amid.wait()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        data._replica._apply = apply
        os.write(writing, b".")
        os._exit(0 if data == [1, 2, 3] and not data.append(4) else 1)  # type: ignore[func-returns-value]
    os.read(reading, 1)
    may_go_on.set()
    thread.join()
    assert os.waitpid(pid, 0)[1] == 0
    data._replica._apply = apply
    assert data == [1, 2, 3, 4]
    os.close(reading)
    os.close(writing)
