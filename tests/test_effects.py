"""What a function changes outside itself is read in its code, and nothing else is said."""

from __future__ import annotations

import array
import collections
import contextvars
import functools
import logging
import math
import os
import queue
import sys
import threading
import types
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, ClassVar

import pytest

from plait.effects import MOST_BYTES, MOST_FINDINGS, _Reader, shared_writes

RESULTS: list[Any] = []
CACHE: dict[Any, Any] = {}
COUNTS: collections.Counter[Any] = collections.Counter()
GROUPS: collections.defaultdict[Any, list[Any]] = collections.defaultdict(list)
ROWS: list[list[int]] = [[0]]
SEEN: set[Any] = set()
RECENT: collections.deque[Any] = collections.deque()
BYTES = bytearray(3)
NUMBERS = array.array("d", [1.0])
NAMES = ("a", "b")
LOCK = threading.Lock()
QUEUE: queue.Queue[Any] = queue.Queue()
LOCAL = threading.local()
LOGGER = logging.getLogger("tests.effects")
VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("VARIABLE")
SPACE = types.SimpleNamespace(x=1, items=[])
total = 0


class Tally:
    """Counts, in several ways."""

    everything = 0
    names: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.count = 0
        self.items: list[Any] = []
        self.by_name: dict[str, list[int]] = {"a": []}

    def set(self, x: Any) -> None:
        self.count = x

    def bump(self, x: Any) -> None:
        self.count += 1

    def keep(self, x: Any) -> None:
        self.items.append(x)

    def keep_by_name(self, x: Any) -> None:
        self.by_name["a"].append(x)

    def by_helper(self, x: Any) -> None:
        self.bump(x)

    def in_lambda(self, x: Any) -> Any:
        return lambda: self.items.append(x)

    def read(self, x: Any) -> Any:
        return [self.count, len(self.items), self.by_name["a"], x]

    def __call__(self, x: Any) -> None:
        self.items.append(x)

    @classmethod
    def bump_class(cls, x: Any) -> None:
        cls.everything += 1

    @staticmethod
    def note(x: Any) -> None:
        Tally.names.append(x)

    @property
    def doubled(self) -> int:
        raise AssertionError("the user's code was run")


TALLY = Tally()


class Slotted:
    __slots__ = ("empty", "items")

    def __init__(self) -> None:
        self.items: list[int] = []

    def keep(self, x: int) -> None:
        self.items.append(x)
        self.empty.append(x)  # type: ignore[attr-defined]


class Registering:
    def __init__(self, x: Any) -> None:
        self.x = x
        RESULTS.append(self)


class Plain:
    def __init__(self, x: Any) -> None:
        self.x = x


class Table(MutableMapping[str, int]):
    def __init__(self) -> None:
        self.rows: dict[str, int] = {}

    def __getitem__(self, key: str) -> int:
        return self.rows[key]

    def __setitem__(self, key: str, value: int) -> None:
        self.rows[key] = value

    def __delitem__(self, key: str) -> None:
        del self.rows[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


TABLE = Table()


def what(fn: Any) -> tuple[str, ...]:
    """Return what is found, and see to it that nothing is raised that would be kept back."""
    _Reader({}).open(fn)
    return shared_writes(fn)


# --- Globals ---------------------------------------------------------------------------------


def set_global(x: Any) -> None:
    global total
    total += x


def delete_global(x: Any) -> None:
    global total
    del total


def append(x: Any) -> None:
    RESULTS.append(x)


def append_bound(x: Any) -> None:
    keep = RESULTS.append
    keep(x)


def append_alias(x: Any) -> None:
    results = RESULTS
    results.append(x)


def append_in_loop(x: Any) -> list[int]:
    for i in range(x):
        if i % 2 and x > 3:
            RESULTS.append(i)
    return [i + 1 for i in range(x)]


def append_in_comprehension(x: Any) -> list[None]:
    return [RESULTS.append(i) for i in range(x)]  # type: ignore[func-returns-value]


def append_after_error(x: Any) -> None:
    try:
        1 / x
    except ZeroDivisionError as error:
        RESULTS.append(error)
    finally:
        SEEN.add(x)


def append_with_lock(x: Any) -> None:
    with LOCK:
        RESULTS.append(x)


async def append_in_coroutine(x: Any) -> None:
    RESULTS.append(x)


def append_in_generator(x: Any) -> Iterator[Any]:
    RESULTS.append((yield x))


def append_in_inner(x: Any) -> None:
    def inner() -> None:
        RESULTS.append(x)

    inner()


def store(x: Any) -> None:
    CACHE[x] = x + 1


def store_behind_a_condition(x: Any) -> None:
    CACHE[x or 1] = 1 if x and x > 3 else [y + 1 for y in range(x)]


def store_slice(x: Any) -> None:
    RESULTS[1:2] = [x]


def count(x: Any) -> None:
    COUNTS[x] += 1


def delete(x: Any) -> None:
    del CACHE[x]


def group(x: Any) -> None:
    GROUPS[x % 3].append(x)


def store_in_row(x: Any) -> None:
    ROWS[0][x] = x


def append_to_each(x: Any) -> None:
    for row in ROWS:
        row.append(x)
    for key in GROUPS:
        key.append(x)


def in_place(x: Any) -> None:
    results = RESULTS
    results += [x]


def environment(x: Any) -> None:
    os.environ["X"] = x


def module_list(x: Any) -> None:
    sys.path.append(x)


def set_attribute(x: Any) -> None:
    SPACE.x = x


def delete_attribute(x: Any) -> None:
    del SPACE.x


def append_to_attribute(x: Any) -> None:
    SPACE.items.append(x)


def set_of_class(x: Any) -> None:
    Tally.everything = x


def call_method(x: Any) -> None:
    TALLY.keep(x)


def own_mapping(x: Any) -> None:
    TABLE[x] = 1
    TABLE.update(x=1)


def others(x: Any) -> None:
    SEEN.add(x)
    RECENT.appendleft(x)
    BYTES[0] = x
    NUMBERS.append(x)


GLOBALS: list[tuple[Callable[..., Any], list[str]]] = [
    (set_global, ["sets the global variable total"]),
    (delete_global, ["deletes the global variable total"]),
    (append, ["appends to the global list RESULTS"]),
    (append_bound, ["appends to the global list RESULTS"]),
    (append_alias, ["appends to the global list RESULTS"]),
    (append_in_loop, ["appends to the global list RESULTS"]),
    (append_in_comprehension, ["appends to the global list RESULTS"]),
    (append_with_lock, ["appends to the global list RESULTS"]),
    (append_in_coroutine, ["appends to the global list RESULTS"]),
    (append_in_generator, ["appends to the global list RESULTS"]),
    (append_in_inner, ["appends to the global list RESULTS"]),
    (store, ["stores into the global dict CACHE"]),
    (store_behind_a_condition, ["stores into the global dict CACHE"]),
    (store_slice, ["stores into the global list RESULTS"]),
    (count, ["stores into the global Counter COUNTS"]),
    (delete, ["deletes from the global dict CACHE"]),
    (group, ["appends to a list in the global defaultdict GROUPS"]),
    (store_in_row, ["stores into a list in the global list ROWS"]),
    (append_to_each, ["appends to a list in the global list ROWS"]),
    (in_place, ["changes the global list RESULTS"]),
    (environment, ["stores into the _Environ os.environ"]),
    (module_list, ["appends to the list sys.path"]),
    (set_attribute, ["sets SPACE.x"]),
    (delete_attribute, ["deletes SPACE.x"]),
    (append_to_attribute, ["appends to the list SPACE.items"]),
    (set_of_class, ["sets Tally.everything"]),
    (call_method, ["appends to the list TALLY.items"]),
    (own_mapping, ["stores into the global Table TABLE", "updates the global Table TABLE"]),
    (
        others,
        [
            "adds to the global set SEEN",
            "appends to the global deque RECENT",
            "stores into the global bytearray BYTES",
            "appends to the global array NUMBERS",
        ],
    ),
]


@pytest.mark.parametrize(("fn", "texts"), GLOBALS, ids=lambda value: getattr(value, "__name__", ""))
def test_changes_of_globals_are_found(fn: Callable[..., Any], texts: list[str]) -> None:
    assert what(fn) == tuple(f"it {text}" for text in texts)


def test_handlers_and_finally_are_read_too() -> None:
    assert set(what(append_after_error)) == {
        "it appends to the global list RESULTS",
        "it adds to the global set SEEN",
    }


# --- Captured, default and bound objects -----------------------------------------------------


def test_variables_and_objects_that_a_closure_captured() -> None:
    cache: dict[int, int] = {}
    done: list[int] = []
    tally = Tally()
    number = 0

    def task(x: int) -> None:
        nonlocal number
        cache[x] = x
        number += 1
        tally.count = 3
        [done.append(y) for y in range(x)]  # type: ignore[func-returns-value]

    assert what(task) == (
        "it stores into the captured dict cache",
        "it sets the captured variable number",
        "it sets tally.count",
        "it appends to the captured list done",
    )
    assert what(lambda x: done.append(x)) == ("it appends to the captured list done",)


def test_an_inner_function_may_change_what_is_made_in_the_task() -> None:
    def task(x: int) -> int:
        number, found = 0, []

        def inner() -> None:
            nonlocal number
            number += 1
            found.append(number)

        inner()
        return number

    assert what(task) == ()


def test_an_inner_function_may_change_what_was_captured_outside() -> None:
    number, found = 0, []

    def task(x: int) -> None:
        def inner() -> None:
            nonlocal number
            number += 1
            found.append(number)

        inner()

    assert what(task) == (
        "it sets the captured variable number",
        "it appends to the captured list found",
    )


def test_a_variable_that_nothing_was_put_into_yet() -> None:
    def task(x: int) -> None:
        late.append(x)

    assert what(task) == ()
    late: list[int] = []
    assert what(task) == ("it appends to the captured list late",)


def test_default_arguments_are_shared_but_for_the_one_that_a_task_is_given() -> None:
    def task(x: int, memo: dict[int, int] = {}, *, log: list[int] = []) -> None:  # noqa: B006
        memo[x] = x
        log += [x]

    def first(x: list[int] = []) -> None:  # noqa: B006
        x.append(1)

    assert what(task) == (
        "it stores into the default dict memo",
        "it changes the default list log",
    )
    assert what(first) == ()


def test_what_partial_gave() -> None:
    def task(kept: list[int], x: int, seen: set[int]) -> None:
        kept.append(x)
        seen.add(x)

    assert what(functools.partial(task, [], seen=set())) == (
        "it appends to the bound list kept",
        "it adds to the bound set seen",
    )
    assert what(task) == ()


def test_methods_and_callable_objects_change_themselves() -> None:
    tally = Tally()
    assert what(tally.set) == ("it sets self.count",)
    assert what(tally.bump) == ("it sets self.count",)
    assert what(tally.keep) == ("it appends to the list self.items",)
    assert what(tally.keep_by_name) == ("it appends to a list in the dict self.by_name",)
    assert what(tally.by_helper) == ("it sets self.count",)
    assert what(tally.in_lambda) == ("it appends to the list self.items",)
    assert what(tally) == ("it appends to the list self.items",)
    assert what(Tally.bump_class) == ("it sets cls.everything",)
    assert what(Tally.note) == ("it appends to the list Tally.names",)
    assert what(tally.read) == ()
    assert what(Slotted().keep) == ("it appends to the list self.items",)
    assert what(Tally.keep) == ()  # the argument is the task's own


def test_a_class_makes_something_new_each_time() -> None:
    assert what(Plain) == ()
    assert what(Registering) == ("it appends to the global list RESULTS",)


# --- What is around a function, and what it calls --------------------------------------------


def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
    calls: list[Any] = []

    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        calls.append(args)
        return fn(*args)

    return wrapper


def test_wrappers_are_read_and_what_they_wrap() -> None:
    assert what(decorate(append)) == (
        "it appends to the captured list calls",
        "it appends to the global list RESULTS",
    )
    assert what(functools.lru_cache(append)) == ("it appends to the global list RESULTS",)
    nested = functools.partial(functools.partial(functools.lru_cache(append)), 3)
    assert what(nested) == ("it appends to the global list RESULTS",)


def helper(x: Any) -> None:
    append(x)


def helper_of_helper(x: Any) -> None:
    helper(x)


def too_deep(x: Any) -> None:
    helper_of_helper(x)


def recursive(x: Any) -> Any:
    RESULTS.append(x)
    return recursive(x - 1) if x else mutual(x)


def mutual(x: Any) -> Any:
    return recursive(x)


def through_map(x: Any) -> list[Any]:
    return list(map(append, x))


def test_functions_of_the_module_are_followed_two_calls_deep() -> None:
    for fn in (helper, helper_of_helper, recursive, mutual, through_map):
        assert what(fn) == ("it appends to the global list RESULTS",)
    assert what(too_deep) == ()


def test_functions_of_other_modules_are_not() -> None:
    names: dict[str, Any] = {"append": append}
    exec("def task(x): append(x)", names)
    assert what(names["task"]) == ()


# --- Nothing to say --------------------------------------------------------------------------


def reads(x: Any) -> Any:
    return [RESULTS, CACHE.get(x), CACHE[x], x in SEEN, NAMES.index("a"), RESULTS.copy(), total]


def changes_its_argument(x: Any) -> Any:
    x.append(1)
    x.y = 1
    x[0] = 1
    del x[1:2]
    return x


def changes_locals(x: Any) -> Any:
    found, cache = [], {}
    found.append(x)
    cache[x] = found
    cache[x] += [1]
    copy = dict(CACHE)
    copy[x] = 1
    other = RESULTS
    other = [*other]
    other.append(x)
    return found, cache, [y.append(1) for y in x], {y: [y] for y in x}, copy, other


def changes_a_copy(x: Any) -> Any:
    rows = sorted(RESULTS)
    rows.append(x)
    RESULTS.copy().append(x)
    return rows


def calls_modules(x: Any) -> Any:
    LOGGER.info("%s", x)
    logging.getLogger().setLevel(3)
    return math.sqrt(x), os.getenv(x, "update"), functools.reduce(max, x)


def uses_what_is_shared_or_apart(x: Any) -> None:
    with LOCK:
        QUEUE.put(x)
    LOCAL.x = x
    VARIABLE.set(x)
    LOGGER.extra = x  # type: ignore[attr-defined]


class Odd:
    """Runs code whenever somebody touches it."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the user's code was run for {name}")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("the user's code was run")

    def __hash__(self) -> int:
        raise AssertionError("the user's code was run")

    def __bool__(self) -> bool:
        raise AssertionError("the user's code was run")

    def __getitem__(self, key: object) -> Any:
        raise AssertionError("the user's code was run")

    def __call__(self, x: Any) -> None:
        self.items.append(x)
        self[0].append(x)

    @property
    def items(self) -> list[Any]:
        raise AssertionError("the user's code was run")


ODD = Odd()


def touches_odd(x: Any) -> None:
    ODD.items.append(x)
    ODD[3].update(x)
    ODD(x)
    TALLY.doubled.append(x)  # type: ignore[attr-defined]


SILENT = [reads, changes_its_argument, changes_locals, changes_a_copy, calls_modules]
SILENT += [uses_what_is_shared_or_apart, touches_odd]


@pytest.mark.parametrize("fn", SILENT, ids=lambda fn: fn.__name__)
def test_what_is_no_change_of_anything_shared(fn: Callable[..., Any]) -> None:
    assert what(fn) == ()


@pytest.mark.parametrize("fn", [abs, len, str, "a".join, [].append, type, object(), 5, None])
def test_what_is_no_python_function_has_nothing_to_read(fn: Any) -> None:
    assert what(fn) == ()


def test_no_code_of_the_user_is_run_though_something_is_found() -> None:
    def task(x: int) -> None:
        ODD.x = x  # type: ignore[attr-defined]
        TALLY.keep(ODD)

    assert what(task) == ("it sets ODD.x", "it appends to the list TALLY.items")
    assert what(ODD) == ()


def test_arrays_in_their_own_memory_and_in_foreign_memory() -> None:
    np = pytest.importorskip("numpy")
    own, foreign = np.zeros(3), np.frombuffer(bytearray(24))
    view, part = own[1:], foreign[1:]

    def task(x: int) -> None:
        own[x] = x
        view.sort()

    def shared(x: int) -> None:
        foreign[x] = x
        part[x] += 1
        np.append(own, x)
        np.put(own, x, x)

    assert what(task) == (
        "it stores into the captured ndarray own",
        "it sorts the captured ndarray view",
    )
    assert what(shared) == ()


# --- How much --------------------------------------------------------------------------------


def test_the_same_is_said_once_and_not_more_than_five() -> None:
    def twice(x: int) -> None:
        RESULTS.append(x)
        RESULTS.append(x + 1)

    def much(x: int) -> None:
        SPACE.a = SPACE.b = SPACE.c = SPACE.d = SPACE.e = SPACE.f = x

    assert len(what(twice)) == 1
    assert len(what(much)) == MOST_FINDINGS


def test_a_huge_function_is_left_unread() -> None:
    names: dict[str, Any] = {"R": []}
    body = "\n".join("    R.append(x)" for _ in range(5000))
    exec(f"def huge(x):\n{body}\ndef small(x):\n    R.append(x)\n    huge(x)", names)
    assert len(names["huge"].__code__.co_code) > MOST_BYTES
    assert what(names["huge"]) == ()
    assert what(names["small"]) == ("it appends to the global list R",)


def test_every_function_of_the_standard_library_can_be_read() -> None:
    """Nothing is raised, not even inside: the stack is followed through all that there is."""
    modules = [sys.modules[name] for name in ("argparse", "logging", "inspect", "subprocess")]
    functions = [
        value
        for module in modules
        for holder in (module, *filter(lambda v: isinstance(v, type), vars(module).values()))
        for value in vars(holder).values()
        if isinstance(value, types.FunctionType)
    ]
    assert len(functions) > 300
    for fn in functions:
        _Reader({}).open(fn)
