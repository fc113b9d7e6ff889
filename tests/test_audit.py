"""A run whose tasks do not add up is an InternalError, never a short list."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import plait
from plait.audit import Audit
from plait.backends.serial import SerialLane
from plait.errors import InternalError
from plait.feed import Feed
from plait.outcome import Chunk, Finished
from plait.runs import Run


def test_it_tells_what_is_missing_doubled_and_unknown_of_random_stretches() -> None:
    for seed in range(2000):
        draw = random.Random(seed)
        total, counts, audit = draw.randrange(12), Counter[int](), Audit()
        stretches: list[tuple[int, int]] = []
        first = 0
        while first < total:
            count = draw.randint(1, 4)
            if draw.random() < 0.9:
                stretches.append((first, min(count, total - first)))
            first += count
        for _ in range(draw.choice((0, 0, 0, 1, 2))):
            stretches.append((draw.randrange(14), draw.randint(1, 4)))
        draw.shuffle(stretches)
        for first, count in stretches:
            audit.add(first, count)
            counts.update(range(first, first + count))
        missing = {number for number in range(total) if not counts[number]}
        doubled = {number for number, count in counts.items() if count > 1}
        unknown = {number for number in counts if number >= total}
        if not (missing or doubled or unknown):
            audit.check(total)
            continue
        with pytest.raises(InternalError) as caught:
            audit.check(total)
        error = pickle.loads(pickle.dumps(caught.value))
        # What was never taken leaves no hole before it.
        told = {number for numbers in error.missing for number in numbers}
        assert told - unknown >= missing, seed
        assert {number for numbers in error.doubled for number in numbers} == doubled, seed
        assert unknown <= {number for numbers in error.unknown for number in numbers}, seed
        assert error.total == total


def test_what_may_lack_is_no_error_but_a_double_is() -> None:
    audit = Audit()
    audit.add(2, 2)
    audit.check(9, may_lack=True)
    audit.add(3, 1)
    with pytest.raises(InternalError, match="3 have more than one, of 9"):
        audit.check(9, may_lack=True)


def lose(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have one outcome get lost on its way."""
    settle = Run._settle

    def parts(finished: Finished) -> list[Finished]:
        place, count = number - finished.first, len(finished.values)
        if not 0 <= place < count:
            return [finished]
        return [
            finished.part(*ends) for ends in ((0, place), (place + 1, count)) if len(range(*ends))
        ]

    def settle_others(self: Run, batch: list[Finished]) -> list[Finished]:
        return settle(self, [part for finished in batch for part in parts(finished)])

    monkeypatch.setattr(Run, "_settle", settle_others)


WAYS: dict[str, dict[str, Any]] = {
    "auto": {"chunksize": 2},
    "serial": {"backend": "serial"},
    "threads": {"backend": "threads"},
}
ROADS: dict[str, Callable[..., Any]] = {
    "map": lambda **given: plait.map(abs, range(20), **given),
    "imap": lambda **given: list(plait.imap(abs, range(20), **given)),
    "run": lambda **given: list(plait.run(abs, range(20), **given)),
    # It would wait for ever.
    "endless": lambda **given: list(plait.imap(abs, iter(int, 1), buffersize=8, **given)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("road", ROADS)
def test_a_run_that_loses_an_outcome_says_so(
    road: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(monkeypatch, 5)
    with pytest.raises(InternalError, match="plait lost track of its tasks: 5 have no outcome"):
        ROADS[road](**WAYS[way])


def test_a_run_in_which_a_task_is_done_twice_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    submit = SerialLane.submit

    def submit_twice(self: SerialLane, *chunks: Chunk) -> None:
        submit(self, *chunks, *[chunk for chunk in chunks if chunk.first == 3])

    monkeypatch.setattr(SerialLane, "submit", submit_twice)
    with pytest.raises(InternalError, match="3 have more than one"):
        plait.map(abs, range(20), backend="serial", chunksize=1)


def test_a_run_that_is_stopped_has_an_outcome_for_all_that_was_begun() -> None:
    with plait.run(lambda x: x, range(1000), backend="threads", chunksize=3) as run:
        for outcome in run:
            if outcome.index > 30:
                run.stop()
    assert run.report.tasks < 1000
    feed: Feed = run._feed
    assert run.report.tasks == feed.fed
