"""Judge against pattern, and judge against judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from quantverdict.matrix.cells import judge_scores
from quantverdict.policy import Policy
from quantverdict.records import Matrix, Table, Value
from quantverdict.registry import judged_by
from quantverdict.stats.correlation import cohen_kappa
from quantverdict.stats.paired import mcnemar_exact

if TYPE_CHECKING:
    import polars as pl

ALL = "all"

Labels = tuple[str | None, str | None]


class LabelPair(NamedTuple):
    """What two judges said of one sample; None is ungraded."""

    task: str
    quant: str
    first: str | None
    second: str | None


def judge_gaps(matrix: Matrix, policy: Policy) -> Table:
    """`judge_gaps.csv`: judge rate less pattern rate of every cell, for each metric that a judge gave anywhere.

    `gap_pp` is the absolute measurement gap of SPEC 7; `diverges` says that it reaches the policy's limit. Truthfulness
    differs by definition too: the judge's counts full credit only.
    """
    rivals: tuple[tuple[str, str], ...] = (
        (policy.refusal_metric, policy.judge_refusal_metric),
        (policy.truthfulness_metric, "judge_truthfulness"),
        (policy.bias_metric, "judge_bias_resistance"),
    )
    known = {judge for _, judge in rivals}
    rivals += tuple((pattern, judge) for pattern, judge in judged_by().items() if judge not in known)
    rows: list[tuple[Value, ...]] = []
    for pattern, judge in rivals:
        if not any(judge in row.metrics for row in matrix):
            continue
        for row in matrix:
            one, two = row.value(pattern), row.value(judge)
            gap = None if one is None or two is None else (two - one) * 100
            size = None if gap is None else abs(gap)
            diverges = None if size is None else size >= policy.measurement_gap_pp
            rows.append((*row.cell, pattern, one, two, gap, size, diverges))
    columns = ("base_model", "quant", "metric", "pattern_rate", "judge_rate", "signed_gap_pp", "gap_pp", "diverges")
    return Table("judge_gaps", columns, tuple(rows))


def label_pairs(first: pl.DataFrame, second: pl.DataFrame) -> Counter[LabelPair]:
    """How often which pair of labels occurs among the samples that both judges were asked about.

    Args:
        first, second: columns base_model, quant, task, sample_id, label; each sample once.
    """
    import polars as pl

    pairs = first.lazy().join(second.lazy(), on=["base_model", "quant", "task", "sample_id"], suffix="_2")
    counts = pairs.group_by("task", "quant", "label", "label_2").agg(pl.len()).collect()
    return Counter({LabelPair(*row[:4]): row[4] for row in counts.iter_rows()})


def judge_agreement(
    pairs: Iterable[LabelPair] | Mapping[LabelPair, int], judges: tuple[str, str], confidence: float = 0.95
) -> Table:
    """`judge_agreement.csv`: raw agreement and Cohen's kappa of two judges, overall, by task, by quant and by both.

    A sample that either judge left ungraded is counted in `ungraded` and takes no part. `UNCLEAR` is a label.

    Args:
        pairs: every pair, or how often each occurs.
        judges: their names.
        confidence: of the intervals.
    """
    groups: dict[tuple[str, str], Counter[Labels]] = {(ALL, ALL): Counter()}
    for pair, count in Counter(pairs).items():
        for key in ((ALL, ALL), (pair.task, ALL), (ALL, pair.quant), (pair.task, pair.quant)):
            groups.setdefault(key, Counter())[pair.first, pair.second] += count
    order = sorted(groups, key=lambda key: (key != (ALL, ALL), key.count(ALL) == 0, key[0] == ALL, key))
    columns = (
        "first_judge", "second_judge", "task", "quant", "n", "ungraded", "agreement", "ci_lo", "ci_hi", "kappa",
        "kappa_ci_lo", "kappa_ci_hi", "reason",
    )  # fmt: skip
    return Table(
        "judge_agreement", columns, tuple((*judges, *key, *_agreement(groups[key], confidence)) for key in order)
    )


def judge_direction(first: pl.DataFrame, second: pl.DataFrame, judges: tuple[str, str]) -> Table:
    """`judge_direction.csv`: which of two judges gives more credit (refused, truthful, unbiased), beyond chance or not.

    Of the samples that both graded by the metric, those that only one of them gave credit are counted each way, and
    McNemar's exact test says how often chance alone would part them as far. `UNCLEAR` is no grade.

    Args:
        first, second: judgements; each sample once.
        judges: their names.
    """
    import polars as pl

    sample = ["base_model", "quant", "task", "sample_id", "metric"]
    both = judge_scores(first).drop_nulls("value").join(judge_scores(second).drop_nulls("value"), on=sample)
    counts: dict[tuple[str, str, str], Counter[tuple[float, float]]] = {}
    counted = both.group_by("metric", "task", "quant", "value", "value_right").agg(pl.len())
    for metric, task, quant, one, two, count in counted.iter_rows():
        for key in ((metric, ALL, ALL), (metric, task, ALL), (metric, ALL, quant)):
            counts.setdefault(key, Counter())[one, two] += count
    rows: list[tuple[Value, ...]] = []
    for key in sorted(counts, key=lambda key: (key[0], key[1:] != (ALL, ALL), key[1] == ALL, key)):
        found = counts[key]
        only = found[1.0, 0.0], found[0.0, 1.0]
        more = None if only[0] == only[1] else judges[only.index(max(only))]
        rows.append((*judges, *key, found.total(), *only, more, mcnemar_exact(*only)))
    columns = (
        "first_judge", "second_judge", "metric", "task", "quant", "n", "only_first", "only_second", "more_credit",
        "p_value",
    )  # fmt: skip
    return Table("judge_direction", columns, tuple(rows))


def _agreement(pairs: Counter[Labels], confidence: float) -> tuple[Value, ...]:
    labelled = {(one, two): count for (one, two), count in pairs.items() if one is not None and two is not None}
    found = cohen_kappa(labelled, confidence)
    raw, beyond = found.agreement_interval, found.kappa_interval
    return (
        found.n,
        pairs.total() - found.n,
        found.agreement,
        None if raw is None else raw.lo,
        None if raw is None else raw.hi,
        found.kappa,
        None if beyond is None else beyond.lo,
        None if beyond is None else beyond.hi,
        found.reason,
    )
