"""Asking in rounds, to stop a cell as soon as every gated metric is decided.

Prompts come in a random order fixed by the seed, whole clusters together, each task with its share of every round.
After a round each gated metric's paired losses go to a confidence sequence; its p-values may be looked at as often as
one likes. They have a third of the level and the tests of a run that asks everything have the rest, so a cell that is
never stopped loses next to nothing, and the chance of a wrong outcome stays what it was.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

import numpy as np

from quantverdict.collect.prompts import Batches, Plan, Rounds
from quantverdict.records import Prompt
from quantverdict.stats.sequential import ConfidenceSequence

ROUNDS = 16
SEQUENTIAL_SHARE = 1 / 3
"""Of the level, for stopping early; the rest is for the tests of a full run."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A gated metric of a cell while it is asked.

    Attributes:
        sequence: of the losses as the test that would accept takes them.
        margin: the loss that is tolerated, as a fraction of 1.
        rejecting: of the losses as the test that would reject takes them; None where an answer without a grade does not
            make them others.
    """

    sequence: ConfidenceSequence
    margin: float
    rejecting: ConfidenceSequence | None = None


def plan_rounds(
    prompts: Sequence[Prompt], clusters: Sequence[str | None], batch_size: int, seed: int, rounds: int = ROUNDS
) -> tuple[Batches, ...]:
    """The batches of each round: indices into `prompts`, every prompt once.

    After round r of R every task has had r / R of its clusters, to the nearest one. A task's order follows from the
    seed and the task alone, and is that of every cell; a batch holds prompts of one task, similar lengths together.

    Args:
        prompts: of a plan, the prompts of a task side by side.
        clusters: a label for each prompt; None is a cluster of its own.
        batch_size: most prompts of a batch.
        seed: of the order.
        rounds: how many; fewer where no task has so many clusters.

    Raises:
        ValueError: unequal lengths, or a number below 1.
    """
    if len(prompts) != len(clusters) or batch_size < 1 or rounds < 1:
        raise ValueError(f"{len(clusters)} clusters for {len(prompts)} prompts, {batch_size} a batch, {rounds} rounds")
    batches: list[list[tuple[int, ...]]] = [[] for _ in range(rounds)]
    for task, members in groupby(range(len(prompts)), key=lambda index: prompts[index].task):
        units = _shuffled(list(members), clusters, seed, task)
        ends = [(len(units) * number + rounds // 2) // rounds for number in range(rounds + 1)]
        for number in range(rounds):
            asked = [index for unit in units[ends[number] : ends[number + 1]] for index in unit]
            asked.sort(key=lambda index: len(prompts[index].text))
            batches[number] += [tuple(asked[at : at + batch_size]) for at in range(0, len(asked), batch_size)]
    return tuple(tuple(number) for number in batches if number)


def in_rounds(plan: Plan, clusters: Mapping[tuple[str, str], str | None], batch_size: int, seed: int) -> Plan:
    """The same prompts in rounds.

    Args:
        plan: its prompts of a task side by side.
        clusters: by task and sample; None is a cluster of its own.
        batch_size, seed: as `plan_rounds`.
    """
    labels = [clusters[prompt.task, prompt.sample_id] for prompt in plan.prompts]
    rounds = plan_rounds(plan.prompts, labels, batch_size, seed)
    by_task: dict[str, list[str | None]] = {}
    for prompt, label in zip(plan.prompts, labels, strict=True):
        by_task.setdefault(prompt.task, []).append(label)
    largest = {task: largest_cluster(of) for task, of in by_task.items()}
    ends = tuple(accumulate(len(batches) for batches in rounds))
    return replace(plan, batches=tuple(batch for batches in rounds for batch in batches), rounds=Rounds(ends, largest))


def largest_cluster(labels: Iterable[str | None]) -> int:
    """Prompts of the largest cluster of a task; None is a cluster of its own."""
    return max(Counter(label for label in labels if label is not None).values(), default=1)


def round_numbers(
    prompts: Sequence[Prompt], batches: Iterable[Sequence[int]], ends: Sequence[int]
) -> dict[tuple[str, str], int]:
    """The round, from 0, in which each prompt is asked, by task and sample."""
    found: dict[tuple[str, str], int] = {}
    number = 0
    for at, batch in enumerate(batches):
        number += at == ends[number]
        found |= {(prompts[index].task, prompts[index].sample_id): number for index in batch}
    return found


def add_round(
    watched: Watched,
    losses: Sequence[float],
    clusters: Sequence[str | None],
    largest: int,
    rejecting: Sequence[float] | None = None,
) -> None:
    """Give a sequence the paired losses of a round.

    Args:
        watched: of one metric of one cell.
        losses: baseline less variant (variant less baseline where less is better), of the prompts that an arm has a
            grade for; at most 1 either way.
        clusters: a label for each, None is a cluster of its own; those of two tasks never share one.
        largest: prompts of the largest cluster in the plan.
        rejecting: the same losses for the other sequence; `losses` if not given.
    """
    _add(watched.sequence, losses, clusters, largest)
    if watched.rejecting is not None:
        _add(watched.rejecting, losses if rejecting is None else rejecting, clusters, largest)


def _add(sequence: ConfidenceSequence, losses: Sequence[float], clusters: Sequence[str | None], largest: int) -> None:
    units: dict[tuple[bool, object], list[float]] = {}
    for at, (label, loss) in enumerate(zip(clusters, losses, strict=True)):
        units.setdefault((label is None, at if label is None else label), []).append(loss)
    means = [sum(unit) / len(unit) for unit in units.values()]
    sequence.add(means, [len(unit) / largest for unit in units.values()])


def decided(cell: Iterable[Watched], alpha: float, family: int) -> bool:
    """Whether a cell can be stopped: each of its gated metrics is resolved, whatever the others in the study are.

    Args:
        cell: every gated metric of the cell.
        alpha: one-sided level of the study's outcomes, held over the family.
        family: gated metrics times variants of the whole study.
    """
    return all(min(stopped_p_values(watched)) <= alpha / family for watched in cell)


def stopped_p_values(watched: Watched) -> tuple[float, float]:
    """P-values of H0: loss >= margin and H0: loss <= margin for a cell that was stopped.

    They take the place of `noninferiority.Loss`'s in the study's Holm families, beside those of cells never stopped.
    """
    below, above = watched.sequence.p_values(watched.margin)
    if watched.rejecting is not None:
        above = watched.rejecting.p_values(watched.margin)[1]
    return min(1.0, below / SEQUENTIAL_SHARE), min(1.0, above / SEQUENTIAL_SHARE)


def full_p_values(watched: Watched, full: tuple[float, float]) -> tuple[float, float]:
    """The same for a cell of a sequential study that was asked everything: by whichever of the two ways is surer.

    Args:
        watched: what its rounds said.
        full: the p-values of the fixed tests over all its prompts.
    """
    early = stopped_p_values(watched)
    one, two = (min(at, 1.0, all_of_it / (1 - SEQUENTIAL_SHARE)) for at, all_of_it in zip(early, full, strict=True))
    return one, two


def _shuffled(members: list[int], clusters: Sequence[str | None], seed: int, task: str) -> list[list[int]]:
    """The clusters of a task in random order."""
    units: dict[tuple[bool, object], list[int]] = {}
    for index in members:
        label = clusters[index]
        units.setdefault((label is None, index if label is None else label), []).append(index)
    own = int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "big")
    order = np.random.default_rng([seed, own]).permutation(len(units))
    listed = list(units.values())
    return [listed[at] for at in order]
