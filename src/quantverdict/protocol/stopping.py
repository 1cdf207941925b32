"""When a build that is asked in rounds was asked enough: as soon as each of its gated metrics is decided.

The losses go to the same sequences here and, over the whole bundle, in `matrix.paired`; a verdict rests on the latter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantverdict.collect.schedule import MonitoredMetric, add_round, decided, largest_cluster
from quantverdict.grading.grade import grade_responses
from quantverdict.matrix.columns import METRICS
from quantverdict.matrix.paired import bets_on
from quantverdict.matrix.shared import bounded_losses
from quantverdict.policy import Policy
from quantverdict.records import Response, Score
from quantverdict.stats.sequential import ConfidenceSequence
from quantverdict.tasks.catalog import Task

Key = tuple[str, str, str]
"""Task, sample and metric."""


def gated_while_asked(tasks: Iterable[Task], policy: Policy) -> tuple[str, ...]:
    """The gated metrics that answers are graded by as they come."""
    graded = {metric for task in tasks for metric in task.metrics}
    return tuple(metric for metric in policy.gates if metric in graded)


def graded_later(tasks: Iterable[Task], policy: Policy, *, judged: bool) -> tuple[str, ...]:
    """The gated metrics that cannot be decided while asking: with any of them nothing is ever stopped.

    Args:
        judged: whether the study has judges.
    """
    now = gated_while_asked(tasks, policy)
    after = ("encoder", "judge") if judged else ("encoder",)
    wanted = {*policy.demanded, *(name for name in policy.gates if METRICS[name].graded in after)}
    return tuple(metric for metric in policy.gates if metric in wanted and metric not in now)


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """What a build is watched by.

    Attributes:
        tasks: by name.
        metrics: the gated ones.
        policy: margins and alpha.
        family: gated metrics times builds of the whole study.
    """

    tasks: Mapping[str, Task]
    metrics: tuple[str, ...]
    policy: Policy
    family: int


class BuildMonitor:
    """One build while it is asked: told the answers of a round, it says whether all so far are enough."""

    def __init__(self, watching: StoppingRule, baseline: Iterable[Response]) -> None:
        """`baseline` is everything that the baseline answered."""
        largest = {name: largest_cluster(map(task.cluster, task.items)) for name, task in watching.tasks.items()}
        self._watching = watching
        self._baseline = {_key(score): _value(score) for score in _scored(watching, baseline)}
        tasks: dict[str, set[str]] = {}
        for (task, _, metric), value in self._baseline.items():
            if not np.isnan(value):
                tasks.setdefault(metric, set()).add(task)
        self._largest = {metric: max(largest[task] for task in of) for metric, of in tasks.items()}
        margins = watching.policy.gates
        self._watched = {
            name: MonitoredMetric(ConfidenceSequence(), float(margins[name] / 100), ConfidenceSequence())
            for name in self._largest
        }

    def __call__(self, answers: Sequence[Response]) -> bool:
        found: dict[str, list[tuple[float, float, str | None]]] = {metric: [] for metric in self._watched}
        for score in _scored(self._watching, answers):
            before = self._baseline.get(_key(score))
            if before is not None and score.metric in found:
                cluster = None if score.cluster is None else f"{score.task}/{score.cluster}"
                found[score.metric].append((_value(score), before, cluster))
        for metric, watched in self._watched.items():
            mine, theirs = (np.array([pair[at] for pair in found[metric]], dtype=np.float64) for at in (0, 1))
            losses, rejecting = bets_on(bounded_losses(metric, mine, theirs, np.ones(len(mine), bool), offset=False))
            known = np.flatnonzero(~np.isnan(losses)).tolist()
            clusters = [found[metric][at][2] for at in known]
            add_round(watched, losses[known].tolist(), clusters, self._largest[metric], rejecting[known].tolist())
        half = self._watching.policy.alpha / 2
        return bool(self._watched) and decided(self._watched.values(), half, self._watching.family)


def _scored(watching: StoppingRule, answers: Iterable[Response]) -> Iterator[Score]:
    """The scores of the gated metrics, with and without a grade."""
    return (score for score in grade_responses(watching.tasks, answers) if score.metric in watching.metrics)


def _value(score: Score) -> float:
    return np.nan if score.value is None else score.value


def _key(score: Score) -> Key:
    return score.task, score.sample_id, score.metric
