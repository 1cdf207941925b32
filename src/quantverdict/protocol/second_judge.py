"""What the decision would be by another judge, on the samples that both judges labelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from quantverdict.matrix.cells import judge_scores
from quantverdict.matrix.columns import METRICS
from quantverdict.matrix.signals import Signals, all_signals
from quantverdict.policy import Policy
from quantverdict.protocol.actions import decide_action
from quantverdict.protocol.regimes import classify
from quantverdict.records import CellId, Estimate, Matrix, Row, Table, Value

if TYPE_CHECKING:
    import polars as pl

COLUMNS = (
    "base_model", "quant", "first_judge", "second_judge", "n", "first_refusal_delta_pp", "second_refusal_delta_pp",
    "first_regime", "second_regime", "first_action", "second_action", "changed",
)  # fmt: skip
SAMPLE = ("base_model", "quant", "task", "sample_id")

Rates = Mapping[CellId, Mapping[str, Estimate]]


def second_judge_regimes(
    matrix: Matrix,
    policy: Policy,
    first: pl.DataFrame,
    second: pl.DataFrame,
    judges: tuple[str, str],
    scores: pl.DataFrame,
) -> Table:
    """`second_judge_regimes.csv`: regime and action of every build by each of two judges.

    The regime reads the judge's refusal delta in place of the pattern's; the action is that of the usual rules with
    this judge's rates. Only samples with a label of both take part, in the pattern's refusal rate too: how far apart
    judge and pattern are is not how other samples are answered.

    Args:
        matrix: the cells.
        policy: every threshold.
        first, second: judgements; each sample once.
        judges: their names.
        scores: scored samples (`grid.SCORE_COLUMNS`), those of the pattern among them.
    """
    labelled = [frame.filter(frame["label"].is_not_null()) for frame in (first, second)]
    shared = (
        labelled[0].join(labelled[1], on=SAMPLE, how="semi"),
        labelled[1].join(labelled[0], on=SAMPLE, how="semi"),
    )
    pattern = _pattern_rates(scores, shared[0], policy.refusal_metric)
    one, two = (_by_judge(matrix, policy, _merged(_rates(judge_scores(frame)), pattern)) for frame in shared)
    rows: list[tuple[Value, ...]] = []
    for (signals, *first_says), (other, *second_says) in zip(one, two, strict=True):
        found = other.row.metrics.get(policy.judge_refusal_metric)
        n = None if found is None else found.n
        deltas = (signals.judge_refusal, other.judge_refusal)
        said = (first_says[0], second_says[0], first_says[1], second_says[1])
        rows.append((*signals.cell, *judges, n, *deltas, *said, first_says != second_says))
    return Table("second_judge_regimes", COLUMNS, tuple(rows))


def _pattern_rates(scores: pl.DataFrame, labelled: pl.DataFrame, metric: str) -> Rates:
    """The pattern's refusal rate of the samples that have a label."""
    own = scores.filter(scores["metric"] == metric).join(labelled, on=SAMPLE, how="semi")
    return _rates(own)


def _merged(one: Rates, two: Rates) -> Rates:
    return {cell: {**one.get(cell, {}), **two.get(cell, {})} for cell in {**one, **two}}


def _rates(scores: pl.DataFrame) -> dict[CellId, dict[str, Estimate]]:
    import polars as pl

    value = pl.col("value")
    counts = scores.group_by("base_model", "quant", "metric").agg(value.sum(), value.count().alias("n"))
    found: dict[CellId, dict[str, Estimate]] = {}
    for base_model, quant, metric, k, n in counts.iter_rows():
        if n:
            found.setdefault(CellId(base_model, quant), {})[metric] = Estimate(Fraction(int(k), n), n=n, k=int(k))
    return found


def _by_judge(matrix: Matrix, policy: Policy, rates: Rates) -> list[tuple[Signals, str, str]]:
    judged = tuple(_with_rates(row, rates.get(row.cell, {}), policy.refusal_metric) for row in matrix)
    by_judge = policy.model_copy(update={"refusal_metric": policy.judge_refusal_metric})
    return [
        (signals, classify(read).regime, decide_action(signals, classify(signals)).action)
        for signals, read in zip(all_signals(judged, policy), all_signals(judged, by_judge), strict=True)
    ]


def _with_rates(row: Row, rates: Mapping[str, Estimate], refusal: str) -> Row:
    kept = {name: one for name, one in row.metrics.items() if METRICS[name].group != "judge" and name != refusal}
    return replace(row, metrics={**kept, **rates}, shared=None)
