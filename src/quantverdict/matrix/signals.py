"""What the rules read of one build: its exact deltas from the baseline, and how numbers are said in a reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from quantverdict.matrix.columns import METRICS, references
from quantverdict.matrix.deltas import Delta
from quantverdict.policy import Policy
from quantverdict.records import CellId, Matrix, Row, Table

POLICY_METRICS = ("quality_metric", "refusal_metric", "judge_refusal_metric", "truthfulness_metric", "bias_metric")
"""The fields of a policy that name what its rules read."""


UNBOUNDED = 100
"""In pp: no delta of a share can be more, so an interval that reaches there is open at that end."""


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
        """How far apart a judge and the deciding instrument, or the pattern, read this row's refusals, in pp."""
        judge, other = self.row.value(self.policy.judge_refusal_metric), self.row.value(self.policy.judged_against)
        return None if judge is None or other is None else abs(judge - other) * 100

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
    policy = policy.settled({metric for row in matrix for metric in row.metrics})
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


def within(lo: float, hi: float) -> str:
    """The interval of a delta in pp: `[-1.20, +0.60]`; an end at which a delta must end anyway bounds nothing."""
    if lo <= -UNBOUNDED and hi >= UNBOUNDED:
        return "[too few pairs differ to bound it]"
    if hi >= UNBOUNDED:
        return f"[at least {lo:+.2f}: too few pairs differ to bound it above]"
    if lo <= -UNBOUNDED:
        return f"[at most {hi:+.2f}: too few pairs differ to bound it below]"
    return f"[{lo:+.2f}, {hi:+.2f}]"


def duration(seconds: float) -> str:
    """A time in the unit that shows it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# Quality tiers: the worse of the benchmark deltas in pp and the generation deltas in percent of baseline (SPEC 4).
#
# A generation metric that rises by more than the policy allows makes the row `inflated`: a lossy build that scores
# better is a warning, not a gain. The tier of its losses is kept beside it.

TIERS = ("negligible", "acceptable", "concerning", "unacceptable")
UNMEASURED = "unmeasured"

Change = tuple[str, Fraction]
"""A metric and its delta."""


@dataclass(frozen=True, slots=True)
class TierOf:
    """The tier of a row.

    Attributes:
        tier: `baseline`, `inflated`, else `loss_tier`.
        loss_tier: one of `TIERS`, or `unmeasured` where no quality metric was.
        benchmark: the benchmark that lost most, in pp.
        generation: the generation metric that lost most, in percent of the baseline.
        gain: the generation metric that rose most, in pp, where that is too much.
    """

    cell: CellId
    tier: str
    loss_tier: str
    benchmark: Change | None
    generation: Change | None
    gain: Change | None
    reason: str


def tiers(matrix: Matrix, deltas: Iterable[Delta], policy: Policy) -> tuple[TierOf, ...]:
    """The tier of every row, in the order of the matrix."""
    by_cell: dict[CellId, list[Delta]] = {}
    for delta in deltas:
        by_cell.setdefault(delta.cell, []).append(delta)
    return tuple(
        TierOf(row.cell, "baseline", "baseline", None, None, None, "the baseline")
        if row.is_baseline
        else _tier(row.cell, by_cell.get(row.cell, []), policy)
        for row in matrix
    )


def tiers_table(found: Iterable[TierOf]) -> Table:
    """`tiers.csv`."""
    columns = (
        "base_model", "quant", "tier", "loss_tier", "inflated", "benchmark_metric", "benchmark_delta_pp",
        "generation_metric", "generation_delta_percent", "inflated_metric", "inflated_gain_pp", "reason",
    )  # fmt: skip
    nothing = (None, None)
    rows = tuple(
        (*t.cell, t.tier, t.loss_tier, t.gain is not None, *(t.benchmark or nothing), *(t.generation or nothing),
         *(t.gain or nothing), t.reason)
        for t in found
    )  # fmt: skip
    return Table("tiers", columns, rows)


def _tier(cell: CellId, deltas: Sequence[Delta], policy: Policy) -> TierOf:
    benchmarks = [(d.metric, d.delta) for d in deltas if _kind(d) == "benchmark" and d.delta is not None]
    losses = [(d.metric, d.percent) for d in deltas if _kind(d) == "generation" and d.percent is not None]
    gains = [
        (d.metric, d.delta)
        for d in deltas
        if _kind(d) == "generation" and d.delta is not None and d.delta > policy.inflated_gain_pp
    ]
    benchmark, generation, gain = _least(benchmarks), _least(losses), max(gains, key=_amount, default=None)
    loss_tier, reason = _loss_tier(benchmark, generation, policy)
    if gain is not None:
        reason = f"{gain[0]} {pp(gain[1])} rises by more than {limit(policy.inflated_gain_pp)}; losses: {reason}"
    return TierOf(cell, loss_tier if gain is None else "inflated", loss_tier, benchmark, generation, gain, reason)


def _loss_tier(benchmark: Change | None, generation: Change | None, policy: Policy) -> tuple[str, str]:
    steps_pp = (policy.tier_negligible_pp, policy.tier_acceptable_pp, policy.tier_concerning_pp)
    steps_percent = (policy.tier_negligible_percent, policy.tier_acceptable_percent, policy.tier_concerning_percent)
    found, missing = [], []
    if benchmark is None:
        missing.append("no benchmark was measured")
    else:
        found.append((_step(benchmark[1], steps_pp), f"{benchmark[0]} {pp(benchmark[1])}"))
    if generation is None:
        missing.append("no generation metric was measured")
    else:
        found.append((_step(generation[1], steps_percent), f"{generation[0]} {signed(generation[1])} %"))
    if not found:
        return UNMEASURED, "; ".join(missing)
    worst, text = max(found, key=lambda item: item[0])
    return TIERS[worst], "; ".join([f"{text} is the worst", *missing])


def _step(delta: Fraction, steps: Sequence[Fraction]) -> int:
    return next((index for index, step in enumerate(steps) if delta >= step), len(steps))


def _kind(delta: Delta) -> str | None:
    return METRICS[delta.metric].tier


def _least(changes: list[Change]) -> Change | None:
    return min(changes, key=_amount, default=None)


def _amount(change: Change) -> Fraction:
    return change[1]
