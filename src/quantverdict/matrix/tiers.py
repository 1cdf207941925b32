"""Quality tiers: the worse of the benchmark deltas in pp and the generation deltas in percent of baseline (SPEC 4).

A generation metric that rises by more than the policy allows makes the row `inflated`: a lossy build that scores better
is a warning, not a gain. The tier of its losses is kept beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from quantverdict.matrix.columns import METRICS
from quantverdict.matrix.deltas import Delta
from quantverdict.matrix.signals import limit, pp, signed
from quantverdict.policy import Policy
from quantverdict.records import CellId, Matrix, Table

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
