"""The parts of the benchmarks that are not a measurement: turns, ratios, tables, hosts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from benchmarks import __main__ as command
from benchmarks import chores, ground, pairs, tables, tuning
from benchmarks.bare import balanced, halves_s, round_trips_per_s
from benchmarks.bench import Bench, Section
from benchmarks.claims import CLAIMS, choice, families, shared
from benchmarks.engines import ENGINES, PROCESS_PEERS
from benchmarks.ground import Ground
from benchmarks.hosts import Host
from benchmarks.pairs import Bar, LeftOut, Pace, Race, Way
from benchmarks.station import Station, WrongAnswer, best_chunksize, check
from benchmarks.tasks import nap, square
from benchmarks.tuning import AUTO, LOOP, Heat, Setting
from benchmarks.workloads import WORKLOADS, Workload, unequal

from tests.start import Program


def figures(*values: float) -> pairs.Measure:
    """A measure that returns one value for its warm-up and one for each round."""
    remaining = iter(values)
    return lambda: next(remaining)


def fails(reason: str) -> float:
    raise LeftOut(reason)


def race(ways: dict[str, Way], rounds: int = 3, limit_s: float = 60) -> Race:
    return pairs.race("squares", ways, Pace(rounds, limit_s))


# --- turns and ratios --------------------------------------------------------------------


def test_ways_take_turns_after_a_warm_up() -> None:
    turns: list[str] = []

    def way(name: str) -> pairs.Measure:
        return lambda: turns.append(name) or 1.0  # type: ignore[func-returns-value]

    race({"plait": Way(way("A"), "ours"), "peer": Way(way("B"))}, rounds=2)
    assert turns == ["A", "B", "A", "B", "A", "B"]


def test_the_figure_is_the_median_of_the_ratios_of_rounds() -> None:
    ours, theirs = figures(9, 1, 20, 3), figures(9, 2, 10, 9)
    raced = race({"plait": Way(ours, "ours"), "peer": Way(theirs)})
    assert raced.ratios("peer", "plait") == [2, 0.5, 3]
    assert raced.ratio("peer", "plait") == 2


def test_a_way_that_fails_in_its_warm_up_is_left_out_and_the_table_says_why() -> None:
    ways = {
        "plait": Way(figures(1, 1, 1, 1), "ours"),
        "peer": Way(lambda: fails("not installed")),
    }
    raced = race(ways)
    assert raced.peers == []
    assert "peer    left out: not installed" in str(raced)
    with pytest.raises(LeftOut, match="peer: not installed"):
        raced.ratio("plait", "peer")


def test_a_way_that_fails_in_a_round_is_left_out() -> None:
    remaining = [lambda: 1.0, lambda: 1.0, lambda: fails("its process ended")]
    ways = {
        "plait": Way(figures(1, 1, 1, 1), "ours"),
        "peer": Way(lambda: remaining.pop(0)()),
    }
    assert race(ways).left_out == {"peer": "its process ended"}


def test_without_plait_there_is_no_race() -> None:
    with pytest.raises(LeftOut, match="broken"):
        race({"plait": Way(lambda: fails("broken"), "ours"), "peer": Way(figures(1))})


def test_a_way_whose_sample_foretells_too_much_is_left_out_unmeasured() -> None:
    ways = {
        "plait": Way(figures(1, 1, 1, 1), "ours"),
        "peer": Way(lambda: pytest.fail("it ran"), estimate=lambda: 120),
    }
    assert race(ways).left_out == {"peer": "would take about 120 s by a sample"}


def test_a_way_that_is_far_behind_sits_out_after_three_rounds() -> None:
    ways = {
        "plait": Way(figures(*[1] * 6), "ours"),
        "near": Way(figures(*[2] * 6)),
        "far": Way(figures(*[4] * 4)),
    }
    raced = race(ways, rounds=5)
    assert raced.figures["near"] == [2] * 5
    assert raced.figures["far"] == [4, 4, 4, None, None]
    assert raced.ratio("far", "plait") == 4


def test_the_best_peer_is_the_one_with_the_lowest_median() -> None:
    ways = {
        "plait": Way(figures(1, 1, 1, 1), "ours"),
        "for-loop": Way(figures(1, 1, 1, 1), "yardstick"),
        "steady": Way(figures(9, 2, 2, 2)),
        "shaky": Way(figures(9, 1, 3, 3)),
    }
    raced = race(ways)
    assert raced.lowest(raced.peers) == "steady"
    assert raced.lowest(["not there"]) is None


def test_a_bar_holds_at_its_limit() -> None:
    assert Bar("time", 1.0, 1.0).holds
    assert not Bar("time", 1.01, 1.0).holds
    assert Bar("speed", 0.97, 0.97, is_floor=True).holds
    assert str(Bar("speed", 0.5, 0.97, is_floor=True)).startswith("missed     0.500 >= 0.97")


# --- the work ----------------------------------------------------------------------------


def test_a_balanced_split_keeps_every_task_and_differs_by_little() -> None:
    durations = unequal(1_500, 1_000)
    split = balanced(durations, 2)
    assert sorted(split[0] + split[1]) == sorted(durations)
    assert abs(sum(split[0]) - sum(split[1])) <= min(durations)


def test_durations_are_the_same_in_each_run() -> None:
    assert unequal(10, 1_000) == unequal(10, 1_000)


def test_every_peer_is_an_engine() -> None:
    assert set(PROCESS_PEERS) <= set(ENGINES)


def test_the_best_chunk_size_is_that_with_the_lowest_time() -> None:
    seconds = {10: 3.0, 20: 1.0, 40: 2.0}
    station = Station(ENGINES["loop"])
    best = best_chunksize(station, lambda _, size: seconds[size], (), list(seconds))
    assert best == 20


def test_a_wrong_result_is_no_time() -> None:
    with pytest.raises(WrongAnswer, match="loop"):
        Station(ENGINES["loop"]).map_s(square, [1, 2], [1, 5])


# --- workloads ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared() -> Iterator[Ground]:
    with ground.prepared() as made:
        yield made


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_loop_does_a_workload_right_and_its_check_tells_right_from_wrong(
    name: str, prepared: Ground
) -> None:
    workload = WORKLOADS[name]
    work = workload.make(prepared, 3, 1)
    engine = ENGINES["asyncio" if workload.is_async else "loop"]
    results = engine.open(1).map(work.fn, work.items)
    assert work.is_right(results)
    assert not work.is_right(results[1:])


def test_workloads_are_many_and_say_which_family_is_right_and_why() -> None:
    assert len(WORKLOADS) >= 14
    known = {"serial", "threads", "processes", "asyncio"}
    assert all(workload.families and workload.why for workload in WORKLOADS.values())
    assert {name for load in WORKLOADS.values() for name in load.families} == known


def test_every_turn_imports_a_module_that_is_new(prepared: Ground) -> None:
    workload = WORKLOADS["a heavy import"]
    for turn in (101, 102):
        work = workload.make(prepared, 1, turn)
        name = f"heavy_{os.getpid()}_{turn}"
        assert name not in sys.modules
        assert work.is_right([work.fn(item) for item in work.items])
        assert name in sys.modules


def test_the_ground_is_gone_afterwards() -> None:
    with ground.prepared() as made:
        assert chores.download(made.port, 0) == ground.PAGE_NBYTES
        assert chores.lines_in(f"{made.folder}/7.txt") == 8
    assert not Path(made.folder).exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", made.port))


def test_the_server_ends_with_its_standard_input() -> None:
    command = [sys.executable, "-m", "benchmarks.slow_server", "0.01", "10"]
    with Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout
        port = int(server.stdout.readline())
        assert chores.download(port, 0) == 10
        assert server.stdin
        server.stdin.close()
        assert server.wait(60) == 0


# --- the choice --------------------------------------------------------------------------


def heat(label: str, seconds: float) -> Heat:
    return Heat(label, label, "peer", Setting(2), seconds)


def test_only_what_comes_near_the_best_races_but_the_loop_may_be_a_little_slower() -> None:
    heats = [heat(AUTO, 9), heat(LOOP, 2.5), heat("near", 1.4), heat("best", 1), heat("far", 2.5)]
    heats.append(Heat("broken, tuned", "broken", "peer", None, 0, "not installed"))
    assert tuning.stay_out(heats) == {
        "far": "2.50 s when it was tuned, 2.5 times the best",
        "broken, tuned": "not installed",
    }


def test_of_many_that_come_near_the_fastest_race() -> None:
    heats = [heat(AUTO, 1), *(heat(str(rank), 1 + rank / 100) for rank in range(9))]
    assert sorted(tuning.stay_out(heats)) == ["6", "7", "8"]


def test_an_engine_takes_part_with_its_best_setting() -> None:
    seconds = {Setting(2): 3.0, Setting(8): 1.0, Setting(32): 2.0}

    class FakeBench(Bench):
        def call(self, engine: str, function: object, *args: object, **limit: object) -> float:
            return seconds[args[3]]  # type: ignore[index]

    workload = WORKLOADS["sleeps of 10 ms"]
    bench = FakeBench(None, is_quick=True)  # type: ignore[arg-type]
    tuner = tuning.Tuner(bench, workload, Ground("", 0, 1.0))
    found = tuner.tune(tuning.Entry("plait threads", "plait threads", list(seconds)))
    assert (found.label, found.setting, found.seconds) == ("plait threads x 8", Setting(8), 1.0)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_way_to_do_a_workload_is_an_engine(name: str) -> None:
    ways = tuning.entries(WORKLOADS[name], is_quick=False)
    assert {way.engine for way in ways} <= set(ENGINES)
    assert [way.name for way in ways[:2]] == [AUTO, LOOP]
    quick = tuning.entries(WORKLOADS[name], is_quick=True)
    assert {way.name for way in quick} <= {way.name for way in ways}


def verdict(workload: Workload, *families: str, predicted_s: float | None = None) -> choice.Verdict:
    choices = [choice.Choice(family, 2, predicted_s, "", took_s=2.0) for family in families]
    return choice.Verdict(workload, 1.02, "Pool x 2", 0.5, choices, 1.0, 1.2)


def test_a_choice_is_right_if_it_is_right_each_time() -> None:
    workload = WORKLOADS["zlib"]
    assert verdict(workload, "threads", "threads").is_right
    assert not verdict(workload, "threads", "processes").is_right
    assert "threads x 2, processes x 2 (not threads)" in list(
        verdict(workload, "threads", "processes").cells()
    )


def test_a_prediction_is_compared_with_what_the_same_run_took_if_there_is_one() -> None:
    assert verdict(WORKLOADS["zlib"], "threads").predicted is None
    assert verdict(WORKLOADS["zlib"], "threads", predicted_s=1.3).predicted == 0.65


def test_the_bars_are_over_all_workloads() -> None:
    bench = Bench(None, is_quick=True)  # type: ignore[arg-type]
    section = bench.begin("choice")
    rows = [verdict(WORKLOADS["zlib"], "threads"), verdict(WORKLOADS["JSON"], "threads")]
    choice.judge(bench, rows)
    assert [(bar.figure, bar.holds) for bar in section.bars] == [
        (1.02, True),
        (1.02, True),
        (0.5, True),
        (1, False),
    ]
    assert section.notes == ["Its plans predict no times."]


def test_a_family_counts_as_right_only_if_no_other_was_chosen() -> None:
    workload = WORKLOADS["waiting and computing"]
    assert families.is_right(workload, Counter(threads=9, processes=1))
    assert not families.is_right(workload, Counter(threads=9, serial=1))
    assert families.said(Counter(serial=9, threads=1)) == "serial 9, threads 1"


def test_nothing_is_left_of_the_programs_that_keep_the_machine_busy() -> None:
    before = set(psutil.Process().children())
    with families.busy(2):
        started = set(psutil.Process().children()) - before
        assert len(started) == 2
    assert not any(process.is_running() for process in started)


# --- what is written ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "unit", "text"),
    [
        (0.01234, "ms", "12.3 ms"),
        (7.5, "ms", "7.50 s"),
        (0.000123, "us", "123 µs"),
        (0.0107, "us", "10.7 ms"),
        (12345.6, "tasks/s", "12,300 tasks/s"),
        (4.211, "MB", "4.21 MB"),
    ],
)
def test_figures_are_shown_with_three_digits(figure: float, unit: str, text: str) -> None:
    assert tables.shown(figure, unit) == text


def test_the_short_table_has_a_row_for_each_race() -> None:
    figures: dict[str, list[float | None]] = {"plait": [0.010, 0.010], "Pool": [0.020, 0.030]}
    raced = Race("squares", "ms", figures, {"plait": "ours", "Pool": "peer"}, {})
    section = Section("tiny", races=[raced], bars=[Bar("squares: plait / Pool", 0.42, 1.0)])
    facts = {
        "machine": {"cpus": "2 CPUs"},
        "versions": {"python": "3.11.7"},
        "is quick": True,
        "load before": "0.1",
    }
    text = tables.markdown(facts, [section])
    assert "| squares | 10.0 ms | 25.0 ms Pool | 0.42 |  |" in text
    assert "holds      0.420 <= 1       squares: plait / Pool" in text
    assert tables.as_dict(facts, [section])["claims"][0]["races"][0]["figures"] == figures


def test_claims_are_chosen_by_name() -> None:
    assert command.parse([]).claims == list(CLAIMS)
    assert command.parse(["--claims", "tiny,cold"]).claims == ["tiny", "cold"]
    assert set(CLAIMS) - set(command.parse(["--quick"]).claims) == {"choice", "families"}
    assert command.parse(["--quick", "--claims", "choice"]).claims == ["choice"]
    assert command.parse([]).workloads == list(WORKLOADS)
    assert command.parse(["--workloads", "zlib,JSON"]).workloads == ["zlib", "JSON"]
    for wrong in (["--claims", "tinny"], ["--workloads", "zlip"]):
        with pytest.raises(SystemExit):
            command.parse(wrong)


# --- hosts -------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with (tmp_path / "log").open("w") as log:
        host = Host("loop", log)
        yield host
        host.close()


def plan_of(station: Station, made: Ground) -> choice.Choice:
    return choice.chosen(station, "sleeps of 10 ms", 40, made)


def followed(station: Station, made: Ground) -> choice.Choice:
    return choice.followed(station, "sleeps of 10 ms", 40, made)


def test_a_choice_is_that_of_plait_without_options(prepared: Ground, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        host = Host("plait auto", log)
        found = host.call(plan_of, (prepared,), limit_s=60)
        host.close()
    assert found.backend == "threads"
    assert found.workers > 2
    assert str(found) == f"threads x {found.workers}"


def test_a_run_that_is_followed_tells_what_was_foretold_and_what_it_took(
    prepared: Ground, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w") as log:
        host = Host("plait auto", log)
        found = host.call(followed, (prepared,), limit_s=60)
        host.close()
    assert found.backend == "threads"
    assert found.predicted_s is not None
    assert found.took_s >= 0.01


def pid_of(station: Station) -> int:
    assert station.engine.name == "loop"
    return os.getpid()


def sleep_for_long(station: Station) -> None:
    del station
    time.sleep(600)


def end_at_once(station: Station) -> None:
    del station
    os._exit(3)


def answer_wrongly(station: Station) -> None:
    check(station.engine.name, is_right=False)


def break_down(station: Station) -> None:
    raise ValueError(f"{station.engine.name} broke down\nin two lines")


def test_a_host_calls_functions_in_a_process_of_its_own(host: Host) -> None:
    assert host.call(pid_of, (), limit_s=60) not in (None, os.getpid())


def test_a_host_that_is_late_is_killed(host: Host) -> None:
    pid = host.call(pid_of, (), limit_s=60)
    with pytest.raises(LeftOut, match=r"not done after 0 s"):
        host.call(sleep_for_long, (), limit_s=0.01)
    assert not host.is_open
    assert not psutil.pid_exists(pid)


def test_a_host_that_ends_is_told_from_one_that_is_late(host: Host) -> None:
    with pytest.raises(LeftOut, match="its process ended with exit code 3"):
        host.call(end_at_once, (), limit_s=60)


def test_a_wrong_answer_is_told_from_a_failure_and_the_host_goes_on(host: Host) -> None:
    with pytest.raises(WrongAnswer, match="loop: a wrong answer"):
        host.call(answer_wrongly, (), limit_s=60)
    with pytest.raises(LeftOut, match=r"ValueError: loop broke down$"):
        host.call(break_down, (), limit_s=60)
    assert host.call(pid_of, (), limit_s=60)


def test_the_yardsticks_do_all_of_the_work(host: Host) -> None:
    assert host.call(halves_s, (nap, [[0.01], [0.01]]), limit_s=60) >= 0.01
    assert 0 < host.call(round_trips_per_s, (nap, 0.001, 20, 4), limit_s=60) <= 4_000


# --- shared data -------------------------------------------------------------------------


@pytest.mark.parametrize("path", shared.LOCKS)
def test_every_lock_is_measured(path: str, host: Host) -> None:
    for form in shared.FORMS:
        assert 0 < host.call(shared.lock_s, (path, form, 100), limit_s=60) < 1


@pytest.mark.parametrize("path", shared.LOCKS[:2])
def test_two_processes_count_with_a_lock(path: str, host: Host) -> None:
    assert 0 < host.call(shared.contended_s, (path, 500), limit_s=60) < 10


def test_a_lock_that_is_none_counts_wrongly(host: Host) -> None:
    with pytest.raises(WrongAnswer, match=r"threading\.Lock: a wrong answer"):
        host.call(shared.contended_s, ("threading.Lock", 300_000), limit_s=60)


@pytest.mark.parametrize("name", shared.VALUES)
def test_every_number_is_measured(name: str, host: Host) -> None:
    assert 0 < host.call(shared.value_s, (name, 100), limit_s=60) < 1


@pytest.mark.parametrize("path", shared.QUEUES)
def test_numbers_go_through_every_queue_that_is_there(path: str, host: Host) -> None:
    try:
        is_there = shared.exists(path)
    except ImportError:
        is_there = False
    if not is_there:
        pytest.skip(f"no {path}")
    assert 0 < host.call(shared.queue_s, (path, 100), limit_s=60) < 1


@pytest.mark.parametrize("name", shared.CONTAINERS)
def test_every_operation_of_a_container_is_measured(name: str, host: Host) -> None:
    for operation in shared.CONTAINERS[name][2]:
        assert 0 < host.call(shared.managed_s, (name, operation, 20), limit_s=60) < 1
        if shared.exists(f"plait.shared.{name}"):
            ours = host.call(shared.our_container_s, (name, operation, 20), limit_s=60)
            assert 0 < ours < 1


def test_what_is_not_there_is_noted_and_not_measured() -> None:
    bench = Bench(None, is_quick=True)  # type: ignore[arg-type]
    section = bench.begin("shared")
    assert not shared.is_there(bench, "plait.shared.Dequeue")
    assert shared.is_there(bench, "plait.shared.Lock")
    assert section.notes == ["There is no plait.shared.Dequeue: not measured."]
