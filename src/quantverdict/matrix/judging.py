"""Judge against pattern, and judge against judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from quantverdict.config import Policy
from quantverdict.records import CellId, Judgement, Matrix, Table, Value
from quantverdict.stats.agreement import cohen_kappa

ALL = "all"


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
    rivals = (
        (policy.refusal_metric, policy.judge_refusal_metric),
        (policy.truthfulness_metric, "judge_truthfulness"),
        (policy.bias_metric, "judge_bias_resistance"),
    )
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


def label_pairs(first: Iterable[Judgement], second: Iterable[Judgement]) -> Iterator[LabelPair]:
    """The samples that both judges were asked about, in the order of `second`."""
    known = {_sample(judgement): judgement.label for judgement in first}
    for judgement in second:
        sample = _sample(judgement)
        if sample in known:
            yield LabelPair(judgement.task, judgement.quant, known[sample], judgement.label)


def judge_agreement(pairs: Iterable[LabelPair], judges: tuple[str, str]) -> Table:
    """`judge_agreement.csv`: raw agreement and Cohen's kappa of two judges, overall, by task, by quant and by both.

    A sample that either judge left ungraded is counted in `ungraded` and takes no part. `UNCLEAR` is a label.
    """
    groups: dict[tuple[str, str], list[LabelPair]] = {(ALL, ALL): []}
    for pair in pairs:
        for key in ((ALL, ALL), (pair.task, ALL), (ALL, pair.quant), (pair.task, pair.quant)):
            groups.setdefault(key, []).append(pair)
    order = sorted(groups, key=lambda key: (key.count(ALL) == 0, key[0] == ALL, key != (ALL, ALL), key))
    order.sort(key=lambda key: key != (ALL, ALL))
    columns = (
        "first_judge", "second_judge", "task", "quant", "n", "ungraded", "agreement", "ci_lo", "ci_hi", "kappa",
        "kappa_ci_lo", "kappa_ci_hi", "reason",
    )  # fmt: skip
    return Table("judge_agreement", columns, tuple((*judges, *key, *_agreement(groups[key])) for key in order))


def _agreement(pairs: list[LabelPair]) -> tuple[Value, ...]:
    labelled = [(p.first, p.second) for p in pairs if p.first is not None and p.second is not None]
    found = cohen_kappa(labelled)
    raw, beyond = found.agreement_interval, found.kappa_interval
    return (
        found.n,
        len(pairs) - len(labelled),
        found.agreement,
        None if raw is None else raw.lo,
        None if raw is None else raw.hi,
        found.kappa,
        None if beyond is None else beyond.lo,
        None if beyond is None else beyond.hi,
        found.reason,
    )


def _sample(judgement: Judgement) -> tuple[CellId, str, str]:
    return CellId(judgement.base_model, judgement.quant), judgement.task, judgement.sample_id
