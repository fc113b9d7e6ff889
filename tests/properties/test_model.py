"""What holds for every prediction, whatever was measured."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from plait.model import CLIMB, Costs, Facts, Sample, predict
from plait.options import Options
from plait.plans import choose

WAYS = ("serial", "threads", "processes")

shares = st.floats(0, 1)
samples = st.builds(
    Sample,
    tasks=st.integers(1, 10_000),
    task_s=st.floats(1e-8, 100),
    cpu_share=shares,
    gil_share=st.none() | shares,
    own_cpus=st.floats(0, 64),
    spread=st.floats(0, 10),
    first_s=st.floats(0, 10),
    nbytes=st.floats(0, 1e9),
    carry_s=st.floats(0, 10),
    memory_bytes=st.floats(0, 1e11),
    one_cpu_s=st.none() | st.floats(1e-8, 100),
)
facts = st.builds(
    Facts,
    cpus=st.integers(1, 128),
    is_coroutine=st.just(False),
    unpicklable=st.none() | st.just("it holds a lock"),
    writes=st.just(()),
    costs=st.just(Costs()),
    most_workers=st.none() | st.integers(1, 1000),
    spent_s=st.floats(0, 1),
    is_nested=st.booleans(),
    sample=samples,
    remaining=st.none() | st.integers(1, 10**9),
    is_warm=st.booleans(),
    free_bytes=st.just(math.inf) | st.floats(0, 1e12),
    most_per_s=st.just(math.inf) | st.floats(1e-4, 1e6),
)


@given(facts)
def test_a_prediction_is_a_time_within_its_bounds(given_facts: Facts) -> None:
    for way in WAYS:
        choice = predict(way, given_facts)
        assert choice.max_workers >= 1
        assert choice.seconds > 0
        if choice.seconds < math.inf:
            assert 0 <= choice.low <= choice.seconds <= choice.high
        assert (choice.seconds == math.inf) == bool(choice.why_not)


@given(facts, st.integers(1, 10**6))
def test_more_tasks_take_no_less(given_facts: Facts, more: int) -> None:
    known = given_facts._replace(remaining=given_facts.expected)
    longer = known._replace(remaining=known.expected + more)
    for way in ("serial", "threads"):
        assert predict(way, longer).seconds >= 0.999 * predict(way, known).seconds


@given(facts)
def test_no_way_is_faster_than_its_workers_are(given_facts: Facts) -> None:
    sample = given_facts.sample
    assert sample is not None
    for way in WAYS:
        choice = predict(way, given_facts)
        task_s = sample.task_s if way == "serial" else sample.in_worker.task_s
        workers = choice.max_workers * (CLIMB if way == "threads" else 1)
        least_s = given_facts.expected * task_s / workers
        assert choice.seconds >= 0.999 * least_s


@given(facts)
def test_who_holds_the_gil_all_the_time_gains_nothing_by_threads(given_facts: Facts) -> None:
    assert given_facts.sample is not None
    sample = given_facts.sample._replace(cpu_share=1.0, gil_share=1.0, one_cpu_s=None)
    held = given_facts._replace(sample=sample)
    assert predict("threads", held).seconds >= predict("serial", held).seconds


@given(facts, st.none() | st.integers(1, 1000))
def test_a_choice_is_possible_and_hardly_slower_than_any_other(
    given_facts: Facts, most: int | None
) -> None:
    plan = choose(Options(max_workers=most), given_facts)
    assert plan.chosen is not None
    assert not plan.chosen.why_not
    assert plan.max_workers == plan.chosen.max_workers <= (most or math.inf)
    best = min(choice.seconds for choice in plan.choices)
    # Two that are simpler may each be preferred for a tenth.
    assert plan.chosen.seconds <= max(best / 0.81, best + 0.001) * 1.001
    assert plan.reason
    assert plan.hint
