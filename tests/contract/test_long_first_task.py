"""A run goes on beside a first task that takes long: on every road, and whatever becomes of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import plait
from plait import beside, calls, runs, sentinel
from plait.backends import threads
from plait.calls import go_beside
from plait.model import Facts, Sample
from plait.options import Options
from plait.plans import choose, with_lengths
from plait.quick import Start

LONG = "the long one"
SAMPLE = Sample(1, 0.001, 1.0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a task be long after some milliseconds."""
    monkeypatch.setattr(sentinel, "LATE_S", 0.005)
    monkeypatch.setattr(beside, "LOOK_S", 0.005)


class Task:
    """Waits in the long task until all others are done; notes who ran what."""

    def __init__(self, others: int, deed: Callable[[], Any] = lambda: LONG) -> None:
        self.left = threading.Semaphore(0)
        self.others = others
        self.deed = deed
        self.threads: dict[int, int] = {}

    def __call__(self, place: int) -> Any:
        assert place not in self.threads  # nothing runs twice
        self.threads[place] = threading.get_ident()
        if place:
            time.sleep(0.001)
            self.left.release()
            return place
        for _ in range(self.others):
            assert self.left.acquire(timeout=60), "nothing goes on beside the long task"
        return self.deed()


def outcomes_by(road: str, task: Any, items: Any, **options: Any) -> list[plait.Outcome]:
    if road == "run":
        return list(plait.run(task, items, ordered=True, **options))
    if road == "imap":
        values = list(plait.imap(task, items, **options))
        return [plait.Outcome(n, n, v, None, 1, "", 0, 0, 0) for n, v in enumerate(values)]
    # Of a function, as an object of a class takes the long road from the beginning.
    values = plait.map(lambda item: task(item), items, **options)
    return [plait.Outcome(n, n, v, None, 1, "", 0, 0, 0) for n, v in enumerate(values)]


ROADS = ("map", "map with options", "imap", "run")


@pytest.mark.parametrize("options", [{}, {"chunksize": 1}], ids=["map", "map with options"])
def test_what_is_predicted_beside_it_counts_from_the_beginning_of_the_call(options: Any) -> None:
    """Seen in a benchmark: the plan of a map was said to take as long as the machine was up."""

    def fail() -> None:
        raise LookupError

    task = Task(others=6, deed=fail)
    with pytest.raises(LookupError) as caught:
        plait.map(lambda place: task(place), range(7), **options)
    report = caught.value.plait_run.report  # type: ignore[attr-defined]
    assert report.predicted_s is not None
    assert 0 < report.predicted_s < 60
    assert 0 < report.wall_s < 60


@pytest.mark.parametrize("make", [range, lambda n: list(range(n))], ids=["range", "list"])
@pytest.mark.parametrize("road", ROADS)
def test_all_others_are_done_beside_it_and_it_is_run_by_the_callers_thread(
    road: str, make: Any
) -> None:
    task = Task(others=6)
    options: Any = {"retries": 1} if road == "map with options" else {}
    outcomes = outcomes_by(road, task, make(7), **options)
    assert [outcome.value for outcome in outcomes] == [LONG, 1, 2, 3, 4, 5, 6]
    assert task.threads[0] == threading.get_ident()
    assert task.threads[1] != threading.get_ident()


def test_a_generator_is_read_by_nobody_but_the_callers_thread() -> None:
    readers = []

    def source() -> Iterator[int]:
        for item in range(3):
            readers.append(threading.get_ident())
            yield item

    assert plait.map(lambda n: time.sleep(0.05 * (n == 0)), source()) == [None] * 3
    assert set(readers) == {threading.get_ident()}


def test_a_generator_that_a_thread_reads_anyway_goes_on() -> None:
    task = Task(others=2)
    assert list(plait.imap(task, iter(range(3)), on_error="raise")) == [LONG, 1, 2]


@pytest.mark.parametrize("road", ROADS[:2])
def test_its_error_is_raised_with_all_that_was_done_beside_it(road: str) -> None:
    def fail() -> None:
        raise LookupError("gone")

    options: Any = {"on_error": "raise"} if road == "map with options" else {}
    with pytest.raises(LookupError, match="gone") as caught:
        plait.map(Task(4, fail), range(5), **options)
    (note,) = caught.value.__notes__
    assert "task 0" in note
    assert "on main" in note
    run = caught.value.plait_run  # type: ignore[attr-defined]
    assert [outcome.value for outcome in run.outcomes] == [None, 1, 2, 3, 4]
    assert run.report.errors == 1


def test_its_error_is_tried_again_elsewhere() -> None:
    task = Task(3)
    tries = []

    def flaky(place: int) -> Any:
        if place == 0:
            tries.append(threading.get_ident())
            if len(tries) == 2:
                return "at last"
            task(place)
            raise OSError("once")
        return task(place)

    assert plait.map(flaky, range(4), retries=1, backoff=0.0) == ["at last", 1, 2, 3]
    assert tries[0] == threading.get_ident() != tries[1]


def test_an_error_of_another_task_is_raised_when_the_long_one_is_over() -> None:
    has_failed, is_over = threading.Event(), threading.Event()

    def task(place: int) -> int:
        if place == 0:
            assert has_failed.wait(60)
            time.sleep(0.02)
            is_over.set()
            return 0
        has_failed.set()
        raise LookupError(place)

    with pytest.raises(LookupError) as caught:
        plait.map(task, range(50))
    assert is_over.is_set()  # none of its tasks is still running
    run = caught.value.plait_run  # type: ignore[attr-defined]
    assert run.outcomes[0].ok
    assert run.report.tasks < 50


@pytest.mark.parametrize("road", ROADS)
def test_ctrl_c_reaches_it_and_nothing_goes_on(road: str, clean: None) -> None:
    begun = threading.Event()
    main = threading.get_ident()

    def task(place: int) -> int:
        if place:
            begun.set()
            time.sleep(0.001)
            return place
        assert begun.wait(60)
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(60)
        raise AssertionError("Ctrl-C was not heard")

    options: Any = {"retries": 1} if road == "map with options" else {}
    with pytest.raises(KeyboardInterrupt) as caught:
        outcomes_by(road, task, range(10_000), **options)
    if road.startswith("map"):
        run = caught.value.plait_run  # type: ignore[attr-defined]
        assert all(outcome.ok and outcome.index for outcome in run.outcomes)
        done = run.report.tasks
        time.sleep(0.02)
        assert run.report.tasks == done < 9_999


def test_what_the_helper_meets_is_raised_where_it_was_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise plait.WorkerStartError("no workers today")

    monkeypatch.setattr(plait.pools, "open_backend", refuse)
    monkeypatch.setattr(plait.pools._pools, "warm", [])
    with pytest.raises(plait.WorkerStartError, match="no workers today") as caught:
        plait.map(time.sleep, [0.1, 0.01, 0.01])
    run = caught.value.plait_run  # type: ignore[attr-defined]
    assert [outcome.value for outcome in run.outcomes] == [None]


def test_context_variables_and_order_are_those_of_the_caller() -> None:
    from contextvars import ContextVar

    name: ContextVar[str] = ContextVar("name")
    token = name.set("caller")
    try:
        task = Task(3)
        values = plait.map(lambda n: (task(n), name.get()), range(4))
    finally:
        name.reset(token)
    assert values == [(LONG, "caller"), (1, "caller"), (2, "caller"), (3, "caller")]


helper_begins = threading.Event()


def burn_until(path: str) -> None:
    """Compute until there is that file; to look for it lets go of the GIL, for a moment."""
    assert helper_begins.wait(60)
    until = time.monotonic() + 60
    while not os.path.exists(path):  # noqa: PTH110
        assert time.monotonic() < until, "nothing goes on beside the long task"
        sum(n * n for n in range(10_000))


def test_processes_work_beside_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The long task computes, and asks the system something so often that nobody else has a turn.

    With the usual switch interval the helper gets the GIL now and then by chance, and in a minute
    not often enough to open a pool.
    """
    choose = runs.decide  # type: ignore[attr-defined]

    def choose_processes(question: Any, **how: Any) -> Any:
        given = question.options
        options = given if given.backend != "auto" else replace(given, backend="processes")
        return choose(question._replace(options=options), **how)

    monkeypatch.setattr(runs, "decide", choose_processes)
    helper_begins.clear()
    go = beside.Beside.go

    def begin(self: beside.Beside, task: beside.LongTask) -> None:
        helper_begins.set()
        go(self, task)

    monkeypatch.setattr(beside.Beside, "go", begin)
    path = str(tmp_path / "done")
    ours = os.getpid()

    def task(place: int) -> int:
        if os.getpid() == ours:
            burn_until(path)
        else:
            with open(path, "w"):  # noqa: PTH123
                pass
        return place

    usual_s = sys.getswitchinterval()
    with plait.run(task, range(40), ordered=True, max_workers=2) as run:
        outcomes = list(run)
    assert [outcome.value for outcome in outcomes] == list(range(40))
    assert [outcome.worker == "main" for outcome in outcomes] == [True] + 39 * [False]
    assert sys.getswitchinterval() == usual_s


def test_the_switch_interval_is_left_as_someone_else_sets_it() -> None:
    usual_s = sys.getswitchinterval()
    try:
        with beside.brisk_switching:
            with beside.brisk_switching:
                assert sys.getswitchinterval() == pytest.approx(beside.BRISK_S)
            assert sys.getswitchinterval() == pytest.approx(beside.BRISK_S)
            sys.setswitchinterval(0.02)
        assert sys.getswitchinterval() == pytest.approx(0.02)
        sys.setswitchinterval(0.000_1)
        with beside.brisk_switching:  # it is shorter already
            assert sys.getswitchinterval() == pytest.approx(0.000_1)
        assert sys.getswitchinterval() == pytest.approx(0.000_1)
    finally:
        sys.setswitchinterval(usual_s)


def test_a_child_that_is_forked_meanwhile_has_the_usual_switch_interval() -> None:
    usual_s = sys.getswitchinterval()
    with beside.brisk_switching:
        pid = os.fork()
        if not pid:
            os._exit(sys.getswitchinterval() != usual_s)
        assert os.waitpid(pid, 0)[1] == 0


# --- Whose the rest is, whatever comes between --------------------------------------------------


def start_of(fn: Any, *iterables: Any) -> Any:
    """Make a quick start whose helper is begun by hand."""
    return Start(fn, "one" if len(iterables) == 1 else "star", iterables, go_beside)


@pytest.fixture
def on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the helper go on with threads, at once."""
    decide = runs.decide  # type: ignore[attr-defined]

    def decide_on_threads(question: Any, **how: Any) -> Any:
        options = replace(question.options, backend="threads", max_workers=2)
        return decide(question._replace(options=options), **how)

    monkeypatch.setattr(runs, "decide", decide_on_threads)
    monkeypatch.setattr(beside, "LOOK_S", 0.0)


@pytest.mark.usefixtures("on_threads")
@pytest.mark.parametrize("place", ["go_beside", "begin_beside", "go"])
def test_a_helper_that_comes_too_late_has_no_part_in_it(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked for its run because it had made one, though the claim was the caller's."""
    may_go, has_gone = threading.Event(), threading.Event()
    owner: Any = {"go_beside": calls, "begin_beside": runs.Run, "go": beside.Beside}[place]
    late = getattr(owner, place)

    def wait(*args: Any) -> None:
        assert may_go.wait(60)
        try:
            late(*args)
        finally:
            has_gone.set()

    monkeypatch.setattr(owner, place, wait)
    check = calls.check

    def let_it_go(*args: Any) -> Any:
        may_go.set()
        assert has_gone.wait(60)
        return check(*args)

    monkeypatch.setattr(calls, "check", let_it_go)

    def long_first(n: int) -> int:
        time.sleep(0.05 * (n == 0))
        return n * 10

    values = plait.map(long_first, range(50))
    assert values == [n * 10 for n in range(50)]


@pytest.mark.usefixtures("on_threads")
def test_the_callers_thread_waits_where_the_helper_has_just_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both had opened the input."""
    is_over = threading.Event()
    follow = runs.Run.follow

    def follow_late(self: runs.Run, plan: Any) -> None:
        if self.beside is not None and self.plan is None:
            is_over.wait(60)
            time.sleep(0.02)
        follow(self, plan)

    monkeypatch.setattr(runs.Run, "follow", follow_late)

    def task(n: int) -> int:
        if n == 0:
            time.sleep(0.1)
            is_over.set()
        return n

    assert plait.map(task, range(30)) == list(range(30))


@pytest.mark.usefixtures("on_threads")
def test_helper_and_plain_loop_do_not_share_an_iterator() -> None:
    """The loop had read one more tuple, though the rest was the helper's already."""
    first, second = list(range(100)), list(range(100, 200))
    start = start_of(lambda a, b: a + b, first, second)
    next(start.rest)
    start.items.append((0, 100))
    run = calls.go_on(start, plait.Options())
    next(start.rest)
    start.values.append(100)
    run._feed.open(lambda: None)
    chunk = run._feed.take(5, 5, 1)
    assert (chunk.first, list(chunk.items)) == (1, [(n, n + 100) for n in range(1, 6)])


@pytest.mark.usefixtures("on_threads")
@pytest.mark.parametrize("road", ["map", "imap"])
def test_ctrl_c_while_the_helper_is_called_back_waits_for_it(
    road: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was closed while the helper was in it: ValueError, and tasks went on."""
    main, ran = threading.get_ident(), []
    submit = threads.ThreadLane.submit

    def submit_slowly(self: threads.ThreadLane, *chunks: Any) -> None:
        if threading.get_ident() != main:
            is_slow.set()
            time.sleep(0.1)
        submit(self, *chunks)

    is_slow = threading.Event()
    monkeypatch.setattr(threads.ThreadLane, "submit", submit_slowly)

    def task(n: int) -> int:
        ran.append(n)
        if n == 0:
            assert is_slow.wait(60)
            threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGINT)).start()
            return 0
        time.sleep(0.001)
        return n

    with pytest.raises(KeyboardInterrupt):
        outcomes_by(road, task, range(1000))
    count = len(ran)
    time.sleep(0.05)
    assert len(ran) == count < 1000


@pytest.mark.usefixtures("on_threads")
def test_a_helper_that_does_not_come_back_closes_the_run_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits for a lock that the caller's thread has: only the end of the call lets it go."""
    monkeypatch.setattr(beside, "PATIENCE_S", 0.05)
    main, lock, is_waiting = threading.get_ident(), threading.RLock(), threading.Event()
    submit = threads.ThreadLane.submit

    def submit_with_lock(self: threads.ThreadLane, *chunks: Any) -> None:
        if threading.get_ident() != main:
            is_waiting.set()
        with lock:
            submit(self, *chunks)

    monkeypatch.setattr(threads.ThreadLane, "submit", submit_with_lock)

    def task(n: int) -> int:
        if n == 0:
            assert is_waiting.wait(60)
            threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGINT)).start()
        return n

    with lock, pytest.raises(KeyboardInterrupt) as caught:
        plait.map(task, range(1000), retries=1)  # not a quick start: its thread has a name
    run = caught.value.plait_run  # type: ignore[attr-defined]
    with run.beside._ended:
        pass
    helpers = [thread for thread in threading.enumerate() if thread.name == "plait-beside"]
    for thread in helpers:
        thread.join()
    assert run.rest.gi_frame is None
    assert not run.beside._leavings


@pytest.mark.usefixtures("on_threads")
def test_the_loop_is_no_plan_for_the_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a million tasks had run in its thread, beside the long one."""
    names: set[str] = set()

    class Changes(runs.Pilot):  # type: ignore[name-defined,misc]
        def is_due(self, now: float) -> bool:
            return not self.is_leaving

        def look_again(self, *_: Any) -> Any:
            return self._plan.sample or SAMPLE

        def is_worth(self, plan: plait.Plan) -> bool:
            return True

    monkeypatch.setattr(runs, "Pilot", Changes)
    serial = replace(plait.plan(abs, [], backend="serial"))
    choose = runs.Run._choose

    def choose_the_loop(self: runs.Run, sample: Any = None, *rest: Any) -> Any:
        return serial if sample is SAMPLE else choose(self, sample, *rest)

    monkeypatch.setattr(runs.Run, "_choose", choose_the_loop)
    task = Task(20)

    def named(n: int) -> Any:
        names.add(threading.current_thread().name)
        return task(n)

    assert plait.map(named, range(21)) == [LONG, *range(1, 21)]
    assert not any(name.startswith(("plait-beside", "Dummy")) for name in names)


@pytest.mark.usefixtures("on_threads")
def test_a_call_at_the_top_of_a_module_has_no_helper(tmp_path: Any, run_python: Any) -> None:
    """To pickle what the module defines would wait for the import, and that for the helper."""
    (tmp_path / "module.py").write_text(
        "import time, plait\n"
        "class Item:\n"
        "    def __init__(self, n): self.n = n\n"
        "def task(item):\n"
        "    until = time.perf_counter() + (0.3 if item.n == 0 else 0.002)\n"
        "    while time.perf_counter() < until: pass\n"
        "    return item.n\n"
        "values = plait.map(task, [Item(n) for n in range(400)], max_workers=2)\n"
    )
    done = run_python("-c", "import module; print(module.values == list(range(400)))")
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize("road", ["map", "run"])
def test_how_long_a_task_takes_is_what_one_took_not_a_guess_beside_it(road: str) -> None:
    """Sleeps of a second were reported as 83.3 ms a task: twice what the first had lasted then."""
    kept = []

    def sleep(place: int) -> None:
        kept.append(place)
        time.sleep(0.3)
        if place == 6 and road == "map":
            raise LookupError  # which brings the run along

    if road == "map":
        with pytest.raises(LookupError) as caught:
            plait.map(sleep, range(7))
        report = caught.value.plait_run.report  # type: ignore[attr-defined]
    else:
        run = plait.run(sleep, range(7))
        list(run)
        report = run.report
    assert sorted(kept) == list(range(7))
    plan = report.plan
    assert plan.backend == "threads"
    assert plan.sample.task_s >= 0.3
    assert not plan.is_guess
    assert "a task), and 6 of them wait at once" in plan.headline
    assert 0.3 <= report.predicted_s < 10
    assert plan.predicted_s == report.predicted_s


def test_a_plan_beside_a_task_that_is_not_over_says_so() -> None:
    sample = Sample(1, 0.08, 0.0, so_far_s=0.04)
    guess = choose(Options(), Facts(4, sample=sample, remaining=8))
    assert "(not over after 40 ms)" in guess.headline
    assert guess.predicted_s is None
    known = with_lengths(guess, [0.9, 1.1])
    assert (known.backend, known.max_workers) == (guess.backend, guess.max_workers)
    assert "(1 s a task)" in known.headline
    assert known.sample is not None
    assert known.sample.spread == pytest.approx(0.1)
    assert known.predicted_s == pytest.approx(1.1, abs=0.1)
    assert str(known).count("threads") == 2
