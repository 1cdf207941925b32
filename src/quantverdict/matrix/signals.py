"""What the rules read of one build: its exact deltas from the baseline, and how numbers are said in a reason."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from quantverdict.matrix.columns import METRICS, references
from quantverdict.policy import Policy
from quantverdict.records import CellId, Matrix, Row

POLICY_METRICS = ("quality_metric", "refusal_metric", "judge_refusal_metric", "truthfulness_metric", "bias_metric")
"""The fields of a policy that name what its rules read."""


@dataclass(frozen=True)
class Signals:
    """The deltas of one row that a decision rests on, in pp; None where the row or its baseline was not measured.

    `gaps` are what the run could not have shown of it, each with its figures: it passes by no rule while there is one.
    """

    row: Row
    baseline: Row | None
    policy: Policy
    gaps: tuple[str, ...] = ()

    @property
    def cell(self) -> CellId:
        return self.row.cell

    @property
    def is_baseline(self) -> bool:
        return self.row.is_baseline

    @cached_property
    def quality(self) -> Fraction | None:
        return self.delta(self.policy.quality_metric)

    @cached_property
    def refusal(self) -> Fraction | None:
        """By pattern."""
        return self.delta(self.policy.refusal_metric)

    @cached_property
    def judge_refusal(self) -> Fraction | None:
        return self.delta(self.policy.judge_refusal_metric)

    @cached_property
    def truthfulness(self) -> Fraction | None:
        return self.delta(self.policy.truthfulness_metric)

    @cached_property
    def bias(self) -> Fraction | None:
        return self.delta(self.policy.bias_metric)

    @property
    def refusal_signal(self) -> Fraction | None:
        """The judge's refusal delta, or the pattern one where there is no judge."""
        return self.refusal if self.judge_refusal is None else self.judge_refusal

    @property
    def refusal_source(self) -> str:
        """The metric that `refusal_signal` comes from."""
        return self.policy.refusal_metric if self.judge_refusal is None else self.policy.judge_refusal_metric

    @property
    def drifts(self) -> tuple[tuple[str, Fraction | None], ...]:
        """The three safety deltas by name: refusal signal, truthfulness, bias."""
        return (
            (self.refusal_source, self.refusal_signal),
            (self.policy.truthfulness_metric, self.truthfulness),
            (self.policy.bias_metric, self.bias),
        )

    @cached_property
    def measurement_gap(self) -> Fraction | None:
        """How far apart judge and pattern read this row's refusals, in pp; never negative."""
        judge, pattern = (
            self.row.value(self.policy.judge_refusal_metric),
            self.row.value(self.policy.refusal_metric),
        )
        return None if judge is None or pattern is None else abs(judge - pattern) * 100

    def delta(self, metric: str) -> Fraction | None:
        """Exact delta of a metric from the baseline."""
        found = self.row.paired_metrics.get(metric)
        reference = None if self.baseline is None else self.baseline.value(metric)
        return None if found is None or reference is None else METRICS[metric].delta(found.value, reference)

    def missing(self, metric: str) -> str:
        """Why the delta of a metric is not known."""
        if self.baseline is None:
            return f"{metric}: the baseline has no row"
        if self.row.shared is not None and metric in self.row.shared.without_pair:
            return f"{metric}: no prompt that both it and the baseline have a grade for"
        return f"{metric} was not measured" + ("" if self.row.value(metric) is None else " on the baseline")


def all_signals(matrix: Matrix, policy: Policy) -> tuple[Signals, ...]:
    """The signals of every row, in the order of the matrix."""
    base = references(matrix)
    return tuple(Signals(row, base.get(row.cell), policy) for row in matrix)


def pp(value: Fraction) -> str:
    """A difference in a reason: `-0.89 pp`; more places where two would show a number that it is not quite."""
    return f"{signed(value)} pp"


def signed(value: Fraction) -> str:
    """`+1.88`, with more places where two would show a whole number that it is not."""
    places = next((p for p in (2, 3, 4, 6, 9) if value.denominator == 1 or round(value, p).denominator != 1), 12)
    return f"{float(value):+.{places}f}"


def limit(value: Fraction) -> str:
    """A threshold as it is written in the policy: `-10 pp`."""
    return f"{float(value):g} pp"
