"""Options: what the user asked for, checked once at the door and never again.

The same names are used by the functions, the command line and the docs. To add an
option: a field here, a line in CHECKS, a line in OptionArgs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, TypedDict

from plait.errors import OptionError, UnknownOption

__all__ = [
    "BACKENDS",
    "ON_ERROR",
    "START_METHODS",
    "ErrorFilter",
    "OptionArgs",
    "Options",
    "refuse_names",
]

BACKENDS = ("auto", "serial", "threads", "processes", "asyncio")
ON_ERROR = ("raise", "finish", "return")
START_METHODS = ("server", "spawn")

Progress = bool | Callable[[int, int | None], None]
ErrorFilter = (
    type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]
)
# What reads from an error how long to wait: the name of an attribute, or a function of the error.
RetryAfter = str | Callable[[Any], object] | None


class WithWorkers(Protocol):
    """What ``executor=`` takes: a ``plait.Executor``, which this module may not import."""

    options: Options
    pace: Any  # what its ``rate`` has made, or None

    def backend_for_calls(self) -> Any:
        """Return its pool; raises PoolClosed after its shutdown."""
        ...


class OptionArgs(TypedDict, total=False):
    """The options of ``map`` and its sisters, for editors and type checkers."""

    backend: Literal["auto", "serial", "threads", "processes", "asyncio"]
    max_workers: int | None
    chunksize: int | Literal["auto"]
    ordered: bool | None
    on_error: Literal["raise", "finish", "return"]
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    start_method: Literal["server", "spawn"] | None
    preload: tuple[str, ...]
    buffersize: int | Literal["auto"]
    progress: Progress
    task_timeout: float | str | None
    timeout: float | None
    retries: int
    retry_on: ErrorFilter
    backoff: float | tuple[float, float, float]
    retry_after: RetryAfter
    rate: float | str | None
    slow_down_on: ErrorFilter
    memory_limit: int | str | None
    max_tasks_per_child: int | None
    prefix_output: bool
    executor: WithWorkers | None


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for.

    Attributes:
        backend: "auto" measures the first items and chooses; or "serial", "threads",
            "processes", "asyncio".
        max_workers: how many workers at most; None: as the plan finds best.
        chunksize: tasks sent together; "auto" follows the measured time of the tasks.
        ordered: results in the order of the input; None: as each function documents.
        on_error: "raise" stops and raises the first error; "finish" runs everything,
            then raises one ExceptionGroup; "return" puts the exception where the value
            would be.
        initializer: called once in each new worker, with ``initargs``.
        start_method: how worker processes start: "server" (forked from a small server,
            the default where fork exists) or "spawn" (a fresh interpreter each).
        preload: names of modules, like ``("numpy",)``, that the server imports once, before it
            forks workers from it: these have them from the start, and share their memory. What a
            module opens, prints or draws (random numbers) as it is imported happens once, in the
            server. One that starts threads is not preloaded, which is told by a RuntimeWarning.
        buffersize: how many tasks may be read ahead or wait unread; "auto" keeps the
            workers busy and the memory constant.
        progress: True for a bar on stderr, or in the notebook's cell, with failures, rate and the
            time that is left; or a function of (done, total or None).
        task_timeout: seconds that one task may take, whatever the chunk; ``"5x"`` is five
            times the median of the tasks that succeeded so far (known after 5, never below
            1 s). A process is ended (``finally`` clauses of the task run, if it lets them) and
            replaced, a coroutine cancelled. A thread cannot be ended: its task has failed, and
            it is left to itself and replaced. Tasks behind it in its chunk wait until then.
            Starting a worker and importing what the function needs do not count.
        timeout: seconds that the whole call may take; then RunTimeout is raised.
        retries: how often a task that failed is tried again.
        retry_on: for which errors: a class, a tuple of classes, or a function of the error.
        backoff: (initial, factor, maximum) in seconds: before the nth retry a random time
            up to ``initial * factor ** (n - 1)`` passes; a number is (number, 2, unlimited).
        retry_after: where an error says how many seconds to wait before the next try: the name
            of its attribute, like ``"retry_after"``, or a function of the error that returns
            them. A number, a timedelta, or the text of a Retry-After header (seconds or an HTTP
            date); None, or no such attribute: ``backoff`` alone. The time of ``backoff`` is added,
            so that tasks which failed together do not return together.
        rate: how many tasks may start in a time, at most: a text like ``"10/s"``, ``"100/min"``,
            ``"5000/h"``, or a number per second. Each further try is a start, too. Starts are
            evenly spaced, also after a pause: no burst makes up for it. Tasks are sent one by one
            then (``chunksize=1``). The rate holds for one call, or for one Executor.
        slow_down_on: for which errors (as ``retry_on``) fewer tasks run at once, for these tell of
            an overloaded server; () for none, the default. After each round of tasks in which
            some failed so, the number is lowered by half the share that failed, and it grows
            back by one for each round in which at most 3% do. If ``retry_after`` finds a time in
            such an error, no task starts meanwhile. TaskTimeout is a TimeoutError. What a function
            raises here ends the run, as with ``retry_on``.
        memory_limit: resident memory that a worker process, with what it started, may have:
            bytes, or a text like "2GB" or "512MiB".
        max_tasks_per_child: how many tasks a worker process runs before it is replaced.
        prefix_output: whether lines that worker processes print begin with who printed them.
        executor: a ``plait.Executor`` whose workers run the tasks. Without it, calls with the same
            options share workers, and take turns. Its options hold: ``backend``, ``max_workers``
            and the others of its workers need not be given, and cannot be given otherwise.
            A call that is under way when the executor is shut down ends with PoolClosed.
    """

    backend: str = "auto"
    max_workers: int | None = None
    chunksize: int | Literal["auto"] = "auto"
    ordered: bool | None = None
    on_error: str = "raise"
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    start_method: str | None = None
    preload: tuple[str, ...] = ()
    buffersize: int | Literal["auto"] = "auto"
    progress: Progress = False
    task_timeout: float | str | None = None
    timeout: float | None = None
    retries: int = 0
    retry_on: ErrorFilter = Exception
    backoff: float | tuple[float, float, float] = (0.1, 2.0, 30.0)
    retry_after: RetryAfter = None
    rate: float | str | None = None
    slow_down_on: ErrorFilter = ()
    memory_limit: int | str | None = None
    max_tasks_per_child: int | None = None
    prefix_output: bool = False
    executor: WithWorkers | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Check keywords and return them as Options.

        Raises UnknownOption for a name that plait does not have (with the name it
        probably meant) and OptionError for a value that the option cannot have.

        >>> Options.of({"n_jobs": 8})
        Traceback (most recent call last):
        plait.errors.UnknownOption: plait has no option 'n_jobs'. Use max_workers=8.
        """
        for name, value in given.items():
            if name not in CHECKS:
                raise UnknownOption(name, _hint(name, value))
            allowed = CHECKS[name](value)
            if allowed is not None:
                raise OptionError(name, value, allowed, _hint_for_value(name, value))
        executor = given.get("executor")
        options = cls(**(given if executor is None else _with_executor(given, executor.options)))
        for name in FOR_PROCESSES:
            value = getattr(options, name)
            if value is not None and options.backend not in ("auto", "processes"):
                allowed = f"None with backend={options.backend!r}: only processes can be ended"
                raise OptionError(name, value, allowed)
        options._check_preload()
        return options if options.rate is None else options._with_single_tasks()

    def _with_single_tasks(self) -> Options:
        if self.chunksize not in ("auto", 1):
            allowed = f"1 or 'auto' with rate={self.rate!r}: each start of a task has its own time"
            raise OptionError("chunksize", self.chunksize, allowed)
        return replace(self, chunksize=1)

    def _check_preload(self) -> None:
        has_server = self.backend in ("auto", "processes") and self.start_method != "spawn"
        if self.preload and not has_server:
            is_spawn = self.start_method == "spawn"
            where = "start_method='spawn'" if is_spawn else f"backend={self.backend!r}"
            allowed = f"() with {where}: modules are preloaded by the server that forks workers"
            raise OptionError("preload", self.preload, allowed)

    @property
    def has_deadline(self) -> bool:
        """Whether somebody must watch the time while tasks run."""
        return self.task_timeout is not None or self.timeout is not None

    @property
    def memory_bytes(self) -> int | None:
        """The limit of memory in bytes."""
        return None if self.memory_limit is None else _bytes_of(self.memory_limit)

    @property
    def starts_in_s(self) -> tuple[int, float]:
        """So many tasks may start in so many seconds, where there is a rate."""
        assert self.rate is not None
        return _read_rate(self.rate)

    @property
    def most_per_s(self) -> float:
        """How many tasks may start in a second."""
        if self.rate is None:
            return math.inf
        count, seconds = self.starts_in_s
        return count / seconds

    def with_order(self, ordered: bool) -> Options:  # noqa: FBT001  it is the option's own type
        """Fill in the order where the user did not ask for one."""
        return self if self.ordered is not None else replace(self, ordered=ordered)


def _with_executor(given: Mapping[str, Any], its: Options) -> dict[str, Any]:
    """Return what was given, and what holds as an executor was opened with it."""
    for name in OF_WORKERS:
        value, default = getattr(its, name), _DEFAULTS[name]
        if name in given and given[name] not in (default, value):
            raise OptionError(name, given[name], f"{value!r}, as the executor has it, or left out")
    if its.backend == "serial" and not its.has_deadline:
        for name in ("task_timeout", "timeout"):
            if given.get(name) is not None:
                allowed = "None on a serial executor: who runs tasks cannot watch the time as well"
                raise OptionError(name, given[name], allowed)
    of_workers = {name: getattr(its, name) for name in OF_WORKERS if name not in FOR_STARTS}
    if its.rate is not None and given.get("rate") not in (None, its.rate):
        raise OptionError("rate", given["rate"], f"{its.rate!r}, which the executor has")
    of_tasks = {name: getattr(its, name) for name in ("task_timeout", "memory_limit", "rate")}
    starts = {name: _DEFAULTS[name] for name in FOR_STARTS}  # that is its own business
    return {**of_tasks, **given, **of_workers, **starts}


# A check returns None where the value is good, and else what is allowed.
Check = Callable[[Any], str | None]


def _one_of(names: tuple[str, ...]) -> Check:
    allowed = "one of " + ", ".join(repr(name) for name in names)
    return lambda value: None if value in names else allowed


def _count(*others: object) -> Check:
    allowed = "a whole number from 1 up" + "".join(f" or {other!r}" for other in others)

    def check(value: Any) -> str | None:
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        is_other = any(value is other or value == other for other in others)
        return None if is_count or is_other else allowed

    return check


def _instance(kinds: type | tuple[type, ...], allowed: str) -> Check:
    return lambda value: None if isinstance(value, kinds) else allowed


def _callable_or(kinds: tuple[type, ...], allowed: str) -> Check:
    return lambda value: None if callable(value) or isinstance(value, kinds) else allowed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _check_task_timeout(value: Any) -> str | None:
    if isinstance(value, str):
        is_good = value.endswith("x") and _is_positive(_number(value[:-1]))
    else:
        is_good = value is None or _is_positive(value)
    return None if is_good else "seconds above 0, a multiple of the median like '5x', or None"


def _check_backoff(value: Any) -> str | None:
    numbers = value if isinstance(value, tuple) and len(value) == 3 else (value, 1, 0)
    is_good = all(_is_number(number) and number >= 0 for number in numbers) and numbers[1] >= 1
    return None if is_good else "seconds from 0 up, or (initial, factor from 1 up, maximum)"


def _check_memory_limit(value: Any) -> str | None:
    is_size = isinstance(value, int | str) and not isinstance(value, bool)
    try:
        is_good = value is None or (is_size and _bytes_of(value) > 0)
    except (ValueError, KeyError, OverflowError):  # no number, no such unit, infinity
        is_good = False
    return None if is_good else "a number of bytes above 0, a text like '2GB' or '512MiB', or None"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {f"{unit}I": 1 << 10 * power for power, unit in enumerate("KMGT", 1)}


def _bytes_of(size: int | str) -> int:
    """Return a size in bytes: "2GB" is 2 * 10**9, "2GiB" is 2 * 2**30; "2G" is "2GB"."""
    if isinstance(size, int):
        return size
    text = size.strip().upper().removesuffix("B")
    digits = text.rstrip("KMGTI ")
    return int(float(digits) * UNITS[text[len(digits) :].strip()])


RATE_UNITS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60}
RATE_UNITS |= {"h": 3600, "hour": 3600, "d": 86400, "day": 86400}


def _read_rate(rate: float | str) -> tuple[int, float]:
    """Return how many starts there may be in how many seconds; ValueError, KeyError for no rate.

    >>> _read_rate("100/min"), _read_rate(0.5)
    ((100, 60.0), (1, 2.0))
    """
    text, _, unit = str(rate).partition("/")
    number = float(text)
    if isinstance(rate, bool) or not _is_positive(number):
        raise ValueError(rate)
    seconds = RATE_UNITS[unit.strip()] if isinstance(rate, str) else 1
    count = max(1, int(number))
    return count, seconds * count / number


def _check_rate(value: Any) -> str | None:
    is_good = isinstance(value, str | int | float | None)
    try:
        if is_good and value is not None:
            is_good = all(map(_is_positive, _read_rate(value)))
    except (ValueError, KeyError, OverflowError):  # no number, no such unit
        is_good = False
    allowed = "a text like '10/s', '100/min' or '5000/h', a number of tasks per second, or None"
    return None if is_good else allowed


def _check_retry_after(value: Any) -> str | None:
    is_good = value is None or callable(value) or (isinstance(value, str) and value.isidentifier())
    return None if is_good else "the name of an attribute of the error, a function of it, or None"


def _check_errors(value: Any) -> str | None:
    classes = value if isinstance(value, tuple) else (value,)
    is_classes = all(isinstance(one, type) and issubclass(one, BaseException) for one in classes)
    is_function = callable(value) and not isinstance(value, type)
    allowed = "an exception class, a tuple of them, or a function of the error"
    return None if is_classes or is_function else allowed


CHECKS: dict[str, Check] = {
    "backend": _one_of(BACKENDS),
    "max_workers": _count(None),
    "chunksize": _count("auto"),
    "ordered": _instance((bool, type(None)), "True, False or None"),
    "on_error": _one_of(ON_ERROR),
    "initializer": _callable_or((type(None),), "a function or None"),
    "initargs": _instance(tuple, "a tuple of the initializer's arguments"),
    "start_method": lambda value: None if value is None else _one_of(START_METHODS)(value),
    "preload": lambda value: (
        None
        if isinstance(value, tuple) and all(isinstance(name, str) for name in value)
        else "a tuple of the names of modules, like ('numpy',)"
    ),
    "buffersize": _count("auto"),
    "progress": _callable_or((bool,), "True, False or a function of (done, total)"),
    "task_timeout": _check_task_timeout,
    "timeout": lambda value: (
        None if value is None or _is_positive(value) else "seconds above 0, or None"
    ),
    "retries": lambda value: (
        None
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0
        else "a whole number from 0 up"
    ),
    "retry_on": _check_errors,
    "backoff": _check_backoff,
    "retry_after": _check_retry_after,
    "rate": _check_rate,
    "slow_down_on": _check_errors,
    "memory_limit": _check_memory_limit,
    "max_tasks_per_child": _count(None),
    "prefix_output": _instance(bool, "True or False"),
    # By its attribute: to import the class here would load most of plait.
    "executor": lambda value: (
        None
        if value is None or isinstance(getattr(value, "options", None), Options)
        else "a plait.Executor, or None"
    ),
}

_DEFAULTS = {field.name: field.default for field in fields(Options)}

# What holds for the workers of a pool, whatever they do; and of that, what matters as they start.
FOR_STARTS = ("initializer", "initargs", "preload")
OF_WORKERS = ("backend", "max_workers", "start_method", "max_tasks_per_child", *FOR_STARTS)

# What only worker processes can obey.
FOR_PROCESSES = ("memory_limit", "max_tasks_per_child")

# What other libraries call it, and what it is called here.
FOREIGN = {
    "n_jobs": "max_workers",
    "n_workers": "max_workers",
    "n_threads": "max_workers",
    "n_processes": "max_workers",
    "num_cpus": "max_workers",
    "num_processes": "max_workers",
    "num_threads": "max_workers",
    "max_processes": "max_workers",
    "num_workers": "max_workers",
    "nprocs": "max_workers",
    "processes": "max_workers",
    "workers": "max_workers",
    "max_threads": "max_workers",
    "threads": "max_workers",
    "pool_size": "max_workers",
    "concurrency": "max_workers",
    "batch_size": "chunksize",
    "chunk_size": "chunksize",
    "chunks": "chunksize",
    "iterable_len": "len() of the input, which plait reads itself",
    "engine": "backend",
    "method": "backend",
    "prefer": "backend",
    "scheduler": "backend",
    "mp_context": "start_method",
    "context": "start_method",
    "forkserver_preload": "preload",
    "preload_modules": "preload",
    "pre_dispatch": "buffersize",
    "prefetch": "buffersize",
    "return_exceptions": "on_error='return'",
    "raise_exceptions": "on_error",
    "ignore_errors": "on_error='return'",
    "progress_bar": "progress",
    "tqdm": "progress",
    "show_progress": "progress",
    "verbose": "progress",
    "worker_init": "initializer",
    "init": "initializer",
    "init_args": "initargs",
    "timeout_per_task": "task_timeout",
    "time_limit": "task_timeout",
    "worker_lifespan": "max_tasks_per_child",
    "maxtasksperchild": "max_tasks_per_child",
    "max_retries": "retries",
    "retry": "retries",
    "on_failure": "on_error",
    "errors": "on_error",
    "attempts": "retries",
    "tries": "retries",
    "delay": "backoff",
    "retry_delay": "backoff",
    "max_tasks": "max_tasks_per_child",
    "rate_limit": "rate",
    "max_rate": "rate",
    "throttle": "rate",
    "requests_per_second": "rate",
    "throttle_on": "slow_down_on",
    "backoff_on": "slow_down_on",
    "overload_on": "slow_down_on",
    "max_memory": "memory_limit",
    "memory": "memory_limit",
    "prefix": "prefix_output",
}

# For what has no single word here; a word in FOREIGN comes first.
SENTENCES = {
    "seed": "plait draws no numbers: give each task a seed of its own with its item.",
    "random_state": "plait draws no numbers: give each task a seed of its own with its item.",
}
ALL_CPUS = "Leave it out to have as many as are of use, or say how many at most."

# The words of other libraries for the values of an option.
FOREIGN_VALUES: dict[str, dict[str, tuple[str, ...]]] = {
    "backend": {
        "processes": ("fork", "loky", "multiprocess", "multiprocessing", "process", "processpool"),
        "threads": ("thread", "threading", "threadpool"),
        "asyncio": ("aio", "anyio", "async", "coroutine", "coroutines", "trio"),
        "serial": ("loop", "none", "sequential", "single-threaded", "sync", "synchronous"),
    },
    "on_error": {
        "return": ("coerce", "continue", "drop", "ignore", "log", "pass", "skip", "warn"),
        "raise": ("abort", "fail", "fail_fast", "stop", "strict"),
        "finish": ("collect", "group"),
    },
    "start_method": {"server": ("fork", "forkserver")},
}
AFTERWARDS = {
    ("on_error", "return"): " and leave the exceptions out of the list, or take what is ok of "
    "plait.run(...)",
}

# The design has these; this version does not yet, and says so rather than ignore them.
PLANNED = ("journal", "resume")


def refuse_names(given: Mapping[str, object], where: str, names: Collection[str]) -> None:
    """Raise UnknownOption for the first of these names, which ``where`` does not take.

    ``names`` are those that it takes.
    """
    for name, value in given.items():
        hint = _hint(name, value, names)
        if name in CHECKS:
            hint = "It is an option of plait.map and of what is called like it."
        raise UnknownOption(name, hint, where)


def _hint(name: str, value: object, names: Collection[str] | None = None) -> str:
    """Say what a name that is unknown may have meant among ``names``."""
    names = CHECKS if names is None else names
    if name in PLANNED:
        return "It is planned and not part of this version."
    if name in FOREIGN:
        return _hint_for_word(FOREIGN[name], value, names)
    if name in SENTENCES:
        return SENTENCES[name]
    import difflib

    close = difflib.get_close_matches(name, [*names, *PLANNED], n=1)
    if close:
        return f"Did you mean {close[0]}?"
    return f"The options are {', '.join(names)}."


def _hint_for_word(word: str, value: Any, names: Collection[str]) -> str:
    """Say that ``word`` is what is meant, with the value if it is right there."""
    option = word.partition("=")[0]
    if option in CHECKS and option not in names:
        return f"plait.map and what is called like it have {word}."
    if word == "start_method":
        value = _start_method_of(value)
    if word in CHECKS and CHECKS[word](value) is None:
        return f"Use {word}={value!r}."
    is_count = word == "max_workers" and isinstance(value, int)
    return f"Use {word}. {ALL_CPUS}" if is_count else f"Use {word}."


def _start_method_of(context: Any) -> object:
    """Return how a context of multiprocessing starts processes, or what came in its place."""
    ask = getattr(context, "get_start_method", None)
    method = ask() if callable(ask) else context
    return "server" if method in ("fork", "forkserver") else method


def _hint_for_value(name: str, value: object) -> str:
    """Say which value was perhaps meant; empty if nothing is known of it."""
    if name == "max_workers" and isinstance(value, int):
        return ALL_CPUS if value < 1 and value is not False else ""
    word = value.lower() if isinstance(value, str) else value
    for ours, theirs in FOREIGN_VALUES.get(name, {}).items():
        if word in theirs:
            return f"Use {name}={ours!r}{AFTERWARDS.get((name, ours), '')}."
    if name == "backend" and word in ("forkserver", "spawn"):
        method = _start_method_of(word)
        return f"Use backend='processes', start_method={method!r}."
    return ""
