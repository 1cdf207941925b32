"""Format alerts: is the form of a build's answers that of its baseline's, prompt by prompt?

A share has McNemar's exact test and Tango's interval; the length Wilcoxon's signed-rank test and the bootstrap of the
mean difference. Where prompts come in clusters, what is tested is the net change of each cluster: a sign for a share,
a sum for the length. Holm holds the chance of any false alarm over all builds and alarms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from quantverdict.config import StatisticsConfig
from quantverdict.grading.format_features import TemplateReading, prefix_counts, template_of
from quantverdict.matrix.grid import Codes, Column, intervals
from quantverdict.records import CellId, Estimate, Table
from quantverdict.stats.intervals import FloatArray, Interval, bootstrap_proportion, percentiles, resampled_counts
from quantverdict.stats.noninferiority import cluster_sums, design_effect, holm
from quantverdict.stats.paired import mcnemar_exact, signed_rank, tango_interval

if TYPE_CHECKING:
    import polars as pl

SHARES = {
    "parse_failure": "unparsed answers",
    "truncated": "cut answers",
    "empty": "empty answers",
    "loop": "answers in a loop",
    "other_language": "answers in another language",
    "reasoning_cut": "answers cut inside the reasoning",
    "runs_on": "answers that run on into further turns",
}
"""Alarms that are shares, in words; each fires where it rises."""
UNENDED = ("reasoning_cut", "runs_on")
"""Those that are said though they do not rise: a thought that is cut in every build leaves nothing to compare."""
LENGTH = "output_tokens"
"""The alert that fires either way."""
COLUMNS = (
    "base_model", "quant", "alarm", "n", "k", "baseline_k", "lost", "gained", "value", "baseline_value", "shift",
    "unit", "ci_lo", "ci_hi", "p_value", "p_holm", "n_clusters", "fires",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FormatAlert:
    """One alarm of one build, over the prompts for which it is known of both the build and its baseline.

    Attributes:
        n: those prompts.
        lost, gained: of them, lower and higher than in the baseline.
        value, baseline: share, or mean tokens.
        lo, hi: interval of `shift`.
        p_value: two-sided.
        clusters: independent units among the prompts, None where every prompt is one.
        p_holm: adjusted over all builds and alarms.
        fires: whether that is at most alpha, and the change one for the worse.
    """

    cell: CellId
    name: str
    n: int
    lost: int
    gained: int
    value: Fraction
    baseline: Fraction
    lo: float
    hi: float
    p_value: float
    clusters: int | None
    p_holm: float = 1.0
    fires: bool = False

    @property
    def shift(self) -> Fraction:
        """Of a share in pp, of the length in tokens."""
        return (self.value - self.baseline) * (100 if self.name in SHARES else 1)


def alerts(
    answers: pl.DataFrame, baselines: Mapping[CellId, CellId], alpha: float, statistics: StatisticsConfig, seed: int
) -> tuple[FormatAlert, ...]:
    """Every alarm of every build that shares a prompt with its baseline, in the order of `baselines`.

    Args:
        answers: `answers.parquet`, each sample of a cell once.
        baselines: each build to the baseline that it is compared with.
        alpha: the chance of any false alarm.
        statistics: confidence of intervals, and resamples.
        seed: of the bootstrap.
    """
    found: list[FormatAlert] = []
    lengths: dict[CellId, Column] = {}
    for cell, baseline in baselines.items():
        for name, mine, theirs, units in _pairs(answers, cell, baseline):
            one = _compare(cell, name, (mine, theirs), units, statistics.confidence)
            found.append(one)
            if name == LENGTH:
                lengths[cell] = Column(mine - theirs, units, one.clusters is not None)
    drawn = intervals(lengths, statistics, seed)
    adjusted = holm([one.p_value for one in found])
    return tuple(_settled(one, p, drawn, alpha) for one, p in zip(found, adjusted, strict=True) if p is not None)


def _settled(one: FormatAlert, p_holm: float, drawn: Mapping[CellId, Interval], alpha: float) -> FormatAlert:
    worse = one.name == LENGTH or one.shift > 0
    if one.name == LENGTH:
        one = replace(one, lo=drawn[one.cell].lo, hi=drawn[one.cell].hi)
    return replace(one, p_holm=p_holm, fires=worse and p_holm <= alpha)


def _pairs(
    answers: pl.DataFrame, cell: CellId, baseline: CellId
) -> Iterator[tuple[str, FloatArray, FloatArray, Codes]]:
    """Each alarm with the values of both arms on the prompts that it is known for on both, and the prompts' units."""
    import polars as pl

    arms = (
        answers.filter((pl.col("base_model") == one.base_model) & (pl.col("quant") == one.quant))
        for one in (cell, baseline)
    )
    joined = next(arms).join(next(arms), on=["task", "sample_id"], suffix="_base").sort("task", "sample_id")
    alone = pl.col("cluster").is_null()
    unit = pl.struct("task", alone.alias("alone"), pl.coalesce("cluster", "sample_id").alias("unit"))
    joined = joined.with_columns(unit.rank("dense").cast(pl.Int64).alias("unit"))
    kinds = {name: kind for name, kind in joined.schema.items() if kind.is_numeric() or kind in (pl.Boolean, pl.Null)}
    for name in filter(kinds.__contains__, (*SHARES, LENGTH)):  # a bundle of 0.1.0 has fewer
        known = joined.filter(pl.col(name).is_not_null() & pl.col(f"{name}_base").is_not_null())
        if len(known):
            values = (known[column].cast(pl.Float64).to_numpy() for column in (name, f"{name}_base"))
            units = np.unique(known["unit"].to_numpy(), return_inverse=True)[1].astype(np.int64)
            yield name, next(values), next(values), units


def _compare(
    cell: CellId, name: str, arms: tuple[FloatArray, FloatArray], units: Codes, confidence: float
) -> FormatAlert:
    mine, theirs = arms
    change, n = mine - theirs, len(mine)
    lost, gained = int((change < 0).sum()), int((change > 0).sum())
    sums = np.bincount(units, weights=change)
    if name == LENGTH:
        p, limits = signed_rank(sums), Interval(0.0, 0.0)
    else:
        p = mcnemar_exact(int((sums < 0).sum()), int((sums > 0).sum()))
        effect = design_effect(*cluster_sums(change, units.tolist()), lost + gained, (1 - confidence) / 2)
        share = tango_interval(gained / effect, lost / effect, n / effect, confidence)
        limits = Interval(100 * share.lo, 100 * share.hi)
    return FormatAlert(
        cell=cell,
        name=name,
        n=n,
        lost=lost,
        gained=gained,
        value=Fraction(int(mine.sum()), n),
        baseline=Fraction(int(theirs.sum()), n),
        lo=limits.lo,
        hi=limits.hi,
        p_value=p,
        clusters=len(sums) if len(sums) < n else None,
    )


def alerts_table(found: Iterable[FormatAlert]) -> Table:
    """`alarms.csv`: `k` of `n` prompts for a share, whose shift is in pp; blank for the length, in tokens."""
    rows = []
    for one in found:
        counts = (one.value * one.n, one.baseline * one.n) if one.name in SHARES else (None, None)
        unit = "pp" if one.name in SHARES else "tokens"
        rows.append(
            (*one.cell, one.name, one.n, *counts, one.lost, one.gained, one.value, one.baseline, one.shift, unit,
             one.lo, one.hi, one.p_value, one.p_holm, one.clusters, one.fires)
        )  # fmt: skip
    return Table("alarms", COLUMNS, tuple(rows))


def describe(one: FormatAlert) -> str:
    """What changed, in words: `cut answers 3 to 40 of 172`."""
    if one.name == LENGTH:
        return f"mean length {float(one.baseline):.1f} to {float(one.value):.1f} tokens"
    return f"{SHARES[one.name]} {one.baseline * one.n} to {one.value * one.n} of {one.n}"


def may_explain(one: FormatAlert, tier: str, alpha: float) -> bool:
    """Whether a change of form, beyond chance, could have raised a metric of this tier.

    What was unread, cut, empty or looping and is so no longer; another language or length of free text. How long an
    answer is does nothing for a choice, and a form that cannot be read nothing for a text.
    """
    if one.p_holm > alpha:
        return False
    if one.name in (LENGTH, "other_language"):
        return tier == "generation"
    if one.name == "parse_failure" and tier != "benchmark":
        return False
    return one.shift < 0


# The refusal template of every cell with its intervals, and `templates.csv`.
#
# Answers are drawn, those that are no refusal with the others: they add nothing, and all cells share their draws. The
# order of the answers does not matter.

Key = tuple[CellId, str]
Templates = Mapping[CellId, Mapping[str, Estimate]]
TEMPLATE_SHARES = ("dominant_prefix_share", "unique_prefix_rate", "prefix_entropy")
TEMPLATE_COLUMNS = ("base_model", "quant", "metric", "value", "k", "n", "ci_lo", "ci_hi")


def template_estimates(
    answers: Mapping[CellId, Sequence[TemplateReading]], statistics: StatisticsConfig, seed: int
) -> dict[CellId, dict[str, Estimate]]:
    """`template_of` the answers of every cell, each metric with its interval; what was not measured is absent.

    Args:
        answers: to the plain harmful task.
        statistics: resamples and confidence.
        seed: of the bootstrap.
    """
    found = {
        (cell, name): estimate
        for cell, own in answers.items()
        for name, estimate in template_of(own).items()
        if estimate is not None
    }
    limits = intervals(dict(_means(answers, found)), statistics, seed)
    limits |= dict(_shares(answers, statistics, seed))
    estimates: dict[CellId, dict[str, Estimate]] = {cell: {} for cell in answers}
    for (cell, name), one in found.items():
        limit = limits.get((cell, name)) or _proportion(one, statistics.confidence)
        estimates[cell][name] = replace(one, lo=limit.lo, hi=limit.hi)
    return estimates


def templates_table(templates: Templates) -> Table:
    """`templates.csv`."""
    rows = [
        (*cell, name, one.value, one.k, one.n, one.lo, one.hi)
        for cell, own in templates.items()
        for name, one in own.items()
    ]
    return Table("templates", TEMPLATE_COLUMNS, tuple(rows))


def _means(
    answers: Mapping[CellId, Sequence[TemplateReading]], measured: Mapping[Key, Estimate]
) -> Iterator[tuple[Key, Column]]:
    for cell, own in answers.items():
        refused = [reading.refused for reading in own]
        for name, counts in (
            ("mean_refusal_tokens", [reading.tokens for reading in own]),
            ("mean_refusal_chars", [reading.chars for reading in own]),
        ):
            if (cell, name) in measured:
                known = [c if r and c is not None else np.nan for r, c in zip(refused, counts, strict=True)]
                values = np.sort(np.array(known, dtype=np.float64))
                yield (cell, name), Column(values, np.arange(len(values)), clustered=False)


def _shares(
    answers: Mapping[CellId, Sequence[TemplateReading]], statistics: StatisticsConfig, seed: int
) -> Iterator[tuple[Key, Interval]]:
    by_size: dict[int, dict[CellId, list[int]]] = {}
    for cell, own in answers.items():
        if counts := prefix_counts(own):
            by_size.setdefault(len(own), {})[cell] = list(counts.values())
    for n, cells in by_size.items():
        blocks = resampled_counts(list(cells.values()), n, samples=statistics.bootstrap_samples, seed=seed)
        figures = [[_figures(counts) for counts in block] for block in blocks]
        for cell, drawn in zip(cells, zip(*figures, strict=True), strict=True):
            for name, values in zip(TEMPLATE_SHARES, np.concatenate(drawn).T, strict=True):
                if not np.isnan(values).all():
                    lo, hi = percentiles(values.reshape(-1, 1), statistics.confidence)[0]
                    yield (cell, name), Interval(float(lo), float(hi))


def _figures(counts: npt.NDArray[np.int64]) -> FloatArray:
    """`SHARES` of each resample: (resamples, kinds) to (resamples, 3), NaN where it says nothing of one."""
    n = counts.sum(axis=1)
    some, several = np.where(n > 0, n, np.nan), np.where(n > 1, n, np.nan)
    spread = np.arange(counts.max() + 1) * np.log(np.maximum(np.arange(counts.max() + 1), 1))
    entropy = 1 - spread[counts].sum(axis=1) / (several * np.log(several))
    return np.column_stack([counts.max(axis=1) / some, np.count_nonzero(counts, axis=1) / some, entropy.clip(0)])


def _proportion(one: Estimate, confidence: float) -> Interval:
    assert one.k is not None
    assert one.n is not None
    return bootstrap_proportion(one.k, one.n, confidence)
