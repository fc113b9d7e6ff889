"""Which backend, how many workers, and why. Pure: facts in, a Plan out.

Where the choice is ours the way that model.py predicts to be the fastest is taken; one that is
simpler and hardly slower is preferred. What forbids a way is said beside it, not found later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from plait.model import WAITS_BELOW, Choice, Facts, Sample, default_workers, predict
from plait.tables import duration_text, html_table, text_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plait.options import Options

__all__ = ["Plan", "choose", "speaks_for_processes", "with_lengths"]

BETTER = 0.9
"""A way that is less simple has to be predicted to take less than this share of the time."""
LEAST_GAIN_S = 0.000_5
SIMPLEST_FIRST = ("serial", "threads", "processes")
HOLDS = 0.5
MOST_TASKS = 10**9  # with which it is tried what would change a choice

HEADER = ("", "way", "workers", "seconds", "between", "why not")


@dataclass(frozen=True, slots=True)
class Plan:
    """What we will do, and why. ``print(plan)`` shows a table of all ways.

    Attributes:
        backend: the kind of worker.
        max_workers: how many at most.
        chunksize: tasks sent together, or "auto".
        reason: one sentence.
        sample: what was measured before choosing, if anything was.
        depth: 1 inside a task that runs in a worker process, where no further processes are
            started; 0 elsewhere.
        choices: the ways there were, each a Choice with its predicted seconds.
        facts: what the predictions rest on.
    """

    backend: str
    max_workers: int
    chunksize: int | Literal["auto"]
    reason: str
    sample: Sample | None = None
    depth: int = 0
    choices: tuple[Choice, ...] = ()
    facts: Facts | None = None

    @property
    def chosen(self) -> Choice | None:
        """The way that was taken, with its prediction, if something was predicted."""
        return next((one for one in self.choices if one.backend == self.backend), None)

    @property
    def predicted_s(self) -> float | None:
        """The seconds that the whole call was predicted to take, sample included.

        None if nothing was predicted: a backend was asked for, or how long the input is was
        not known; or no task was over yet, so that nobody could know how long one takes.
        """
        chosen, facts = self.chosen, self.facts
        if chosen is None or facts is None or facts.remaining is None or self.is_guess:
            return None
        return facts.spent_s + chosen.seconds if chosen.seconds < math.inf else None

    @property
    def is_guess(self) -> bool:
        """Whether it was made while the first task was not over."""
        return self.sample is not None and self.sample.so_far_s is not None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the function does that comes out otherwise on other workers."""
        if self.facts is None or self.backend not in ("processes", "auto"):
            return ()
        return tuple(f"{text}; processes do not share that." for text in self.facts.writes)

    @property
    def headline(self) -> str:
        """The choice and its reason in one line."""
        workers = "" if self.backend == "serial" else f" x {self.max_workers}"
        inside = " (inside a worker)" if self.depth else ""
        return f"{self.backend}{workers}{inside}: {self.reason}"

    @property
    def hint(self) -> str:
        """What would change the choice, in a sentence; empty if nothing was chosen."""
        return "" if self.facts is None else _what_would_change(self.facts, self.backend)

    def __str__(self) -> str:
        if not self.choices:
            return self.headline
        notes = (self.hint, *(f"Careful: {text}" for text in self.warnings))
        return "\n".join(
            [self.headline, text_table(HEADER, self._rows(), left=2), *filter(None, notes)]
        )

    def _repr_html_(self) -> str:
        if not self.choices:
            return html_table(("plan",), [(self.headline,)])
        place = next((n for n, one in enumerate(self.choices) if one.backend == self.backend), None)
        table = html_table(HEADER[1:], [row[1:] for row in self._rows()], self.headline, place)
        notes = "".join(f"<p>{text}</p>" for text in (self.hint, *self.warnings) if text)
        return table + notes

    def _rows(self) -> list[tuple[str, ...]]:
        return [_row(one, is_chosen=one.backend == self.backend) for one in self.choices]


def _row(one: Choice, *, is_chosen: bool) -> tuple[str, ...]:
    if one.why_not:
        return "", one.backend, "", "", "", one.why_not
    is_known = one.seconds < math.inf
    seconds = duration_text(one.seconds) if is_known else ""
    between = f"{duration_text(one.low)} - {duration_text(one.high)}" if is_known else ""
    return ">" if is_chosen else "", one.backend, str(one.max_workers), seconds, between, ""


# --- The choice ------------------------------------------------------------------------


def choose(options: Options, facts: Facts) -> Plan:
    """Choose a backend and the number of workers.

    >>> from plait.options import Options
    >>> sample = Sample(2, 0.01, 0.02)
    >>> print(choose(Options(), Facts(4, sample=sample, remaining=998)).headline)
    threads x 32: it waits 98% of its time (10 ms a task), and 32 of them wait at once.
    """
    facts = facts._replace(most_workers=options.max_workers, most_per_s=options.most_per_s)
    settled = _settle(options, facts)
    if settled is not None:
        backend, reason = settled
        workers = 1 if backend == "serial" else default_workers(backend, facts)
        choices: tuple[Choice, ...] = ()
    else:
        choices = tuple(predict(backend, facts) for backend in SIMPLEST_FIRST)
        chosen = _pick(choices)
        backend, workers = chosen.backend, chosen.max_workers
        reason = _reason(facts, chosen, choices)
    return Plan(
        backend,
        workers,
        options.chunksize,
        reason,
        facts.sample,
        int(facts.is_nested),
        choices,
        facts if choices else None,
    )


def with_lengths(plan: Plan, seconds: Sequence[float]) -> Plan:
    """Return a plan that was a guess with what is known now: how long some tasks took, in seconds.

    >>> from plait.options import Options
    >>> sample = Sample(1, 0.08, 0.0, so_far_s=0.04)
    >>> guess = choose(Options(), Facts(4, sample=sample, remaining=8))
    >>> print(guess.headline)
    threads x 8: it waits 100% of its time (not over after 40 ms), and 8 of them wait at once.
    >>> guess.predicted_s, round(with_lengths(guess, [1.0]).predicted_s)
    (None, 1)
    """
    assert plan.sample is not None
    task_s = sum(seconds) / len(seconds)
    variance = sum((one - task_s) ** 2 for one in seconds) / len(seconds)
    spread = math.sqrt(variance) / task_s if task_s else 0.0
    sample = plan.sample._replace(tasks=len(seconds), task_s=task_s, spread=spread, so_far_s=None)
    if plan.facts is None:
        return replace(plan, sample=sample)
    facts = plan.facts._replace(sample=sample)
    taken = facts._replace(most_workers=plan.max_workers)
    choices = tuple(predict(one, taken if one == plan.backend else facts) for one in SIMPLEST_FIRST)
    chosen = next(one for one in choices if one.backend == plan.backend)
    reason = _reason(facts, chosen, choices)
    return replace(plan, sample=sample, facts=facts, choices=choices, reason=reason)


def _settle(options: Options, facts: Facts) -> tuple[str, str] | None:
    """Return the backend and the reason where there is nothing to be predicted."""
    if options.backend == "processes" and facts.is_nested:
        return "serial", "this is inside a worker process already, whose CPUs are in use."
    if options.backend != "auto":
        return options.backend, "it was asked for."
    if facts.is_coroutine:
        return "asyncio", "the function is a coroutine function."
    if options.memory_limit is not None:
        if facts.is_nested:
            return "serial", "this is inside a worker process already, which has its own limits."
        return "processes", "a memory limit was asked for, and only processes can be ended."
    if facts.sample is None:
        return "serial", "there is nothing to do."
    if facts.remaining == 0:
        task = _task_text(facts.sample)
        return "serial", f"it was done before workers could have started ({task})."
    return None


def _pick(choices: tuple[Choice, ...]) -> Choice:
    """Take the fastest; one that comes later has to be clearly faster, as it is less simple."""
    best = choices[0]
    for one in choices[1:]:
        if one.seconds < min(BETTER * best.seconds, best.seconds - LEAST_GAIN_S):
            best = one
    return best


def speaks_for_processes(sample: Sample, facts: Facts) -> bool:
    """Whether ``choose`` will probably say "processes" once it has all of the facts."""
    facts = facts._replace(sample=sample)
    return _pick(tuple(predict(one, facts) for one in SIMPLEST_FIRST)).backend == "processes"


# --- What is said about it --------------------------------------------------------------


def _reason(facts: Facts, chosen: Choice, choices: tuple[Choice, ...]) -> str:
    sample = facts.sample
    assert sample is not None
    if chosen.backend != "serial" and sample.one_cpu_s is not None:
        return (
            f"it uses {_own_cpus(sample)}; limited to one it takes "
            f"{duration_text(sample.one_cpu_s)}: {chosen.max_workers} at once do more."
        )
    if chosen.backend == "threads":
        return _reason_for_threads(sample, chosen.max_workers)
    if chosen.backend == "processes":
        if sample.cpu_share < WAITS_BELOW:
            waits = f"{_waits(sample)}, and what it computes needs the GIL"
            return f"{waits}: {chosen.max_workers} processes do both at once."
        return f"{_computes(sample)}, {_holds(sample)}: one process for each CPU."
    return _reason_for_the_loop(facts, sample, choices)


def _reason_for_threads(sample: Sample, workers: int) -> str:
    if sample.cpu_share < WAITS_BELOW:
        return f"{_waits(sample)}, and {workers} of them wait at once."
    return f"{_computes(sample)}, {_holds(sample)}: threads work at once and copy nothing."


def _reason_for_the_loop(facts: Facts, sample: Sample, choices: tuple[Choice, ...]) -> str:
    what = _waits(sample) if sample.cpu_share < WAITS_BELOW else _computes(sample)
    processes = next(one for one in choices if one.backend == "processes")
    if facts.expected <= 1:
        return f"{what}, and there is one task left."
    if facts.cpus == 1 and sample.cpu_share >= WAITS_BELOW:
        return f"{what}, and there is one CPU for it."
    if facts.most_per_s * sample.task_s <= 1:
        interval = duration_text(1 / facts.most_per_s)
        return f"{what}, and by the rate the next one begins {interval} later."
    if sample.own_cpus > max(1.3, 0.6 * facts.cpus):
        alone = "" if sample.one_cpu_s is None else f", {duration_text(sample.one_cpu_s)} on one"
        return f"it uses {_own_cpus(sample)}{alone}."
    if processes.why_not:
        return f"{what}, {_holds(sample)}, and processes are ruled out: {processes.why_not}"
    if processes.carry_s > sample.task_s / 4:
        journey = duration_text(processes.carry_s)
        return f"{what}, and to send it to a process and back takes {journey} more."
    if facts.most_workers == 1:
        return f"{what}, and one worker was asked for."
    return f"{what}; what remains is over before workers would help."


def _waits(sample: Sample) -> str:
    return f"it waits {1 - sample.cpu_share:.0%} of its time ({_task_text(sample)})"


def _computes(sample: Sample) -> str:
    return f"it computes {sample.cpu_share:.0%} of its time ({_task_text(sample)})"


def _own_cpus(sample: Sample) -> str:
    return f"{sample.own_cpus:.1f} CPUs by itself ({_task_text(sample)})"


def _holds(sample: Sample) -> str:
    if sample.gil_share is None:
        return "in Python as far as is known"
    if sample.held_share >= HOLDS:
        return f"holding the GIL for {sample.held_share:.0%} of it"
    return f"holding the GIL for {sample.held_share:.0%} of it only"


def _task_text(sample: Sample) -> str:
    if sample.so_far_s is not None:
        return f"not over after {duration_text(sample.so_far_s)}"
    return f"{duration_text(sample.task_s)} a task"


def _what_would_change(facts: Facts, backend: str) -> str:
    """Look for the number of tasks at which another way is taken."""

    def choice_for(count: int) -> Choice:
        fewer = facts._replace(remaining=count)
        return _pick(tuple(predict(one, fewer) for one in SIMPLEST_FIRST))

    low, high = 1, facts.expected
    if backend == "serial":
        low, high = facts.expected, MOST_TASKS
    if choice_for(low).backend == choice_for(high).backend:
        return "Another number of tasks would not change that."
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        if choice_for(middle).backend == backend:
            low, high = (middle, high) if backend == "serial" else (low, middle)
        else:
            low, high = (low, middle) if backend == "serial" else (middle, high)
    if backend == "serial":
        other = choice_for(high)
        return f"From about {_round(high):,} tasks on: {other.backend} x {other.max_workers}."
    return f"Below about {_round(high):,} tasks: {choice_for(low).backend}."


def _round(count: int) -> int:
    """Round to two digits: it is a prediction."""
    size: int = 10 ** max(0, len(str(count)) - 2)
    return round(count / size) * size
