"""The parts of the benchmarks that are not a measurement: turns, ratios, tables, hosts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from benchmarks import __main__ as command
from benchmarks import pairs, tables
from benchmarks.bare import balanced, halves_s, round_trips_per_s
from benchmarks.bench import Section
from benchmarks.claims import CLAIMS, pareto
from benchmarks.engines import ENGINES, PROCESS_PEERS
from benchmarks.hosts import Host
from benchmarks.pairs import Bar, LeftOut, Pace, Race, Way
from benchmarks.station import Station, WrongAnswer, best_chunksize, check
from benchmarks.tasks import nap, square


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
    durations = pareto.unequal(1_500, 1_000)
    split = balanced(durations, 2)
    assert sorted(split[0] + split[1]) == sorted(durations)
    assert abs(sum(split[0]) - sum(split[1])) <= min(durations)


def test_durations_are_the_same_in_each_run() -> None:
    assert pareto.unequal(10, 1_000) == pareto.unequal(10, 1_000)


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
    with pytest.raises(SystemExit):
        command.parse(["--claims", "tinny"])


# --- hosts -------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with (tmp_path / "log").open("w") as log:
        host = Host("loop", log)
        yield host
        host.close()


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
