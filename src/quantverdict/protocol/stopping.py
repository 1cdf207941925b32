"""When a build that is asked in rounds was asked enough: as soon as it, or each of its gated metrics, is decided.

The losses go to the same sequences here and, over the whole bundle, in `matrix.paired` and `matrix.criteria`; a verdict
rests on the latter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantverdict.collect.schedule import MonitoredMetric, add_round, decided, largest_cluster
from quantverdict.grading.grade import grade_responses
from quantverdict.matrix.columns import METRICS
from quantverdict.matrix.criteria import Loss, Lost, Standing
from quantverdict.matrix.grid import Codes, InterimAnalyses
from quantverdict.matrix.paired import bets_on
from quantverdict.matrix.shared import bounded_losses
from quantverdict.policy import Policy
from quantverdict.protocol.criteria import decided_alone, look_share
from quantverdict.records import CellId, Response, Score
from quantverdict.stats.intervals import FloatArray
from quantverdict.stats.sequential import ConfidenceSequence
from quantverdict.tasks.catalog import Task

Key = tuple[str, str, str]
"""Task, sample and metric."""
_NOBODY = CellId("", "")


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
        self._rounds: list[dict[str, tuple[FloatArray, FloatArray, Codes]]] = []
        self._units: dict[str, int] = {}
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
        self._rounds.append({})
        for metric, watched in self._watched.items():
            mine, theirs = (np.array([pair[at] for pair in found[metric]], dtype=np.float64) for at in (0, 1))
            losses, rejecting = bets_on(bounded_losses(metric, mine, theirs, np.ones(len(mine), bool), offset=False))
            known = np.flatnonzero(~np.isnan(losses)).tolist()
            clusters = [found[metric][at][2] for at in known]
            add_round(watched, losses[known].tolist(), clusters, self._largest[metric], rejecting[known].tolist())
            named = [
                cluster or f"{metric} {len(self._rounds)} {at}" for at, cluster in zip(known, clusters, strict=True)
            ]
            units = np.array([self._units.setdefault(name, len(self._units)) for name in named], dtype=np.int64)
            self._rounds[-1][metric] = losses[known], rejecting[known], units
        half = self._watching.policy.alpha / 2
        if self._watching.policy.rules == "criteria":
            return self._criteria_decided(half * float(look_share(1)))
        return bool(self._watched) and decided(self._watched.values(), half, self._watching.family)

    def _criteria_decided(self, level: float) -> bool:
        """Whether the build is accepted, or rejected, whatever other builds are: at the first step of both families."""
        policy, rows = self._watching.policy, list[Standing]()
        for name, criterion in (policy.criteria or {}).items():
            parts = [self._lost(metric) for metric in policy.members_among(name, self._watched)]
            if criterion.demanded and not parts:
                return False
            pools = [("criterion", criterion.margin_pp, parts)] if parts else []
            pools += [("member", criterion.guard_of(one.metric), [one]) for one in parts if len(parts) > 1]
            for role, guard, of in pools:
                largest, asked = max(self._largest[one.metric] for one in of), sum(len(one.accept) for one in of)
                looks = InterimAnalyses(np.empty(asked, np.int64), len(self._rounds), largest, asked, asked)
                weights = criterion.weights_of([one.metric for one in of]) if len(of) > 1 else None
                loss = Loss(tuple(of), weights, policy.alpha / 2, looks)
                margin = policy.gates[of[0].metric] if role == "member" else criterion.margin_pp
                p_values = loss.p_accept(guard), loss.p_reject(margin)
                rows.append(
                    Standing(_NOBODY, name, of[0].metric, role, margin, guard, "informative", loss, "", *p_values)
                )
        builds = max(1, self._watching.family // max(1, len(self._watching.metrics)))
        return bool(rows) and decided_alone(rows, level / builds)

    def _lost(self, metric: str) -> Lost:
        """All losses so far."""
        parts = [one[metric] for one in self._rounds]
        accept, reject, units = (np.concatenate([part[at] for part in parts]) for at in range(3))
        rounds = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
        known = np.ones(len(accept), dtype=np.bool_)
        return Lost(metric, accept, reject, units.astype(np.int64), np.ones(len(accept)), known, 0, 0, rounds)


def _scored(watching: StoppingRule, answers: Iterable[Response]) -> Iterator[Score]:
    """The scores of the gated metrics, with and without a grade."""
    return (score for score in grade_responses(watching.tasks, answers) if score.metric in watching.metrics)


def _value(score: Score) -> float:
    return np.nan if score.value is None else score.value


def _key(score: Score) -> Key:
    return score.task, score.sample_id, score.metric
