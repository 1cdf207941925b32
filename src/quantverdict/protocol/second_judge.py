"""What the decision would be by another judge, on the samples that both judges labelled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from quantverdict.matrix.cells import judge_scores
from quantverdict.matrix.columns import METRICS, baselines
from quantverdict.matrix.signals import Signals, all_signals
from quantverdict.policy import Policy
from quantverdict.protocol.actions import decide_action
from quantverdict.protocol.regimes import classify
from quantverdict.records import CellId, Estimate, Matrix, Row, SharedPrompts, Table, Value

if TYPE_CHECKING:
    import polars as pl

COLUMNS = (
    "base_model", "quant", "first_judge", "second_judge", "n", "first_refusal_delta_pp", "second_refusal_delta_pp",
    "first_regime", "second_regime", "first_action", "second_action", "changed",
)  # fmt: skip
SAMPLE = ("base_model", "quant", "task", "sample_id")
GRADE = (*SAMPLE, "metric", "value")


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
    judge and pattern are is not how other samples are answered. Of the baseline, only the prompts of the build that it
    is compared with: where a part of a cell is judged, the rest of the baseline is another test.

    Args:
        matrix: the cells.
        policy: every threshold.
        first, second: judgements; each sample once.
        judges: their names.
        scores: scored samples (`grid.SCORE_COLUMNS`), those of the pattern among them.
    """
    import polars as pl

    labelled = [frame.filter(frame["label"].is_not_null()) for frame in (first, second)]
    shared = (
        labelled[0].join(labelled[1], on=SAMPLE, how="semi"),
        labelled[1].join(labelled[0], on=SAMPLE, how="semi"),
    )
    pattern = _pattern_scores(scores, shared[0], policy.refusal_metric)
    one, two = (_by_judge(matrix, policy, pl.concat([judge_scores(frame).select(GRADE), pattern])) for frame in shared)
    rows: list[tuple[Value, ...]] = []
    for (signals, *first_says), (other, *second_says) in zip(one, two, strict=True):
        found = other.row.metrics.get(policy.judge_refusal_metric)
        n = None if found is None else found.n
        deltas = (signals.judge_refusal, other.judge_refusal)
        said = (first_says[0], second_says[0], first_says[1], second_says[1])
        rows.append((*signals.cell, *judges, n, *deltas, *said, first_says != second_says))
    return Table("second_judge_regimes", COLUMNS, tuple(rows))


def _pattern_scores(scores: pl.DataFrame, labelled: pl.DataFrame, metric: str) -> pl.DataFrame:
    """The pattern's grades of the samples that have a label."""
    import polars as pl

    own = scores.filter(scores["metric"] == metric).join(labelled, on=SAMPLE, how="semi")
    return own.select(GRADE).with_columns(pl.col("value").cast(pl.Float64))


def _rates(scores: pl.DataFrame) -> dict[CellId, dict[str, Estimate]]:
    import polars as pl

    value = pl.col("value")
    counts = scores.group_by("base_model", "quant", "metric").agg(value.sum(), value.count().alias("n"))
    found: dict[CellId, dict[str, Estimate]] = {}
    for base_model, quant, metric, k, n in counts.iter_rows():
        if n:
            found.setdefault(CellId(base_model, quant), {})[metric] = Estimate(Fraction(int(k), n), n=n, k=int(k))
    return found


def _by_judge(matrix: Matrix, policy: Policy, scores: pl.DataFrame) -> list[tuple[Signals, str, str]]:
    rates, base = _rates(scores), baselines(matrix)
    compared_with = _rates(_of_same_prompts(scores, {baseline.cell for baseline in base.values()}))
    judged = []
    for row in matrix:
        own = _with_rates(row, rates.get(row.cell, {}), policy.refusal_metric)
        if row.base_model in base and not row.is_baseline:
            compared = _with_rates(base[row.base_model], compared_with.get(row.cell, {}), policy.refusal_metric).metrics
            own = replace(own, shared=SharedPrompts(compared))
        judged.append(own)
    by_judge = policy.model_copy(update={"refusal_metric": policy.judge_refusal_metric})
    return [
        (signals, classify(read).regime, decide_action(signals, classify(signals)).action)
        for signals, read in zip(all_signals(tuple(judged), policy), all_signals(tuple(judged), by_judge), strict=True)
    ]


def _of_same_prompts(scores: pl.DataFrame, baselines: Collection[CellId]) -> pl.DataFrame:
    """For every build the baseline's grades of the prompts that it has grades of, under the build's name."""
    import polars as pl

    cells = pl.DataFrame(sorted(baselines), schema={"base_model": pl.String, "quant": pl.String}, orient="row")
    named = scores.with_columns(pl.col("base_model", "quant").cast(pl.String))
    theirs = named.join(cells, on=["base_model", "quant"], how="semi").drop("quant")
    return named.drop("value").join(theirs, on=["base_model", "task", "sample_id", "metric"])


def _with_rates(row: Row, rates: Mapping[str, Estimate], refusal: str) -> Row:
    kept = {name: one for name, one in row.metrics.items() if METRICS[name].group != "judge" and name != refusal}
    return replace(row, metrics={**kept, **rates}, shared=None)
