"""Instruments against people: error rates of patterns and judges, and rates corrected by the labels of a sample."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quantverdict.labels.sheet import SamplingRecord, SheetAnswer, SheetPrompt
from quantverdict.records import UNCLEAR, CellId, Table, Value
from quantverdict.registry import judged_by, sheet_rubrics
from quantverdict.stats import plain_sum
from quantverdict.stats.corrected_rates import (
    CorrectedRate,
    Stratum,
    corrected_difference,
    corrected_rate,
    few,
    kish,
    wilson_at,
)

ALL = "all"
ESTIMATOR = "stratified double sampling (PPI++)"
INSTRUMENT_COLUMNS = (
    "instrument", "metric", "task", "n_labelled", "n_prompts", "true_positive", "false_negative", "false_positive",
    "true_negative", "ungraded", "unclear", "sensitivity", "sensitivity_ci_lo", "sensitivity_ci_hi", "specificity",
    "specificity_ci_lo", "specificity_ci_hi",
)  # fmt: skip
CORRECTED_COLUMNS = (
    "base_model", "quant", "metric", "instrument", "n", "n_labelled", "unclear", "raw_rate", "corrected_rate", "ci_lo",
    "ci_hi", "n_pairs", "n_pairs_labelled", "raw_delta_pp", "corrected_delta_pp", "delta_ci_lo_pp", "delta_ci_hi_pp",
    "estimator", "reason",
)  # fmt: skip

NOTHING = "no clear label among its answers"


class Sample(NamedTuple):
    """One answer, by what names it."""

    cell: CellId
    prompt: SheetPrompt


Readings = Mapping[Sample, float | None]
"""What an instrument says of each sample: 1 has what is counted, less has not; None is ungraded."""

Outcome = int | None
"""What a person's label counts; None is `UNCLEAR`."""


@dataclass(frozen=True, slots=True)
class LabelledSample:
    """The design, and the labels that people gave, by text."""

    drawn: Sequence[SamplingRecord]
    labels: Mapping[str, str]

    def has_label(self, entry: SamplingRecord) -> bool:
        return entry.selected and bool(self.labels.get(entry.answer.text))

    def outcome(self, entry: SamplingRecord) -> Outcome:
        """What the label of a labelled answer counts."""
        label = self.labels[entry.answer.text]
        return None if label == UNCLEAR else int(sheet_rubrics()[entry.answer.metric].labels[label])


@dataclass(frozen=True, slots=True)
class UncorrectedRate:
    """A rate by one instrument, and its delta against the baseline in pp."""

    metric: str
    instrument: str
    rate: Value
    delta_pp: Value


# Error rates


def instruments_table(
    labelled: LabelledSample, readings: Mapping[tuple[str, str], Readings], confidence: float = 0.95
) -> Table:
    """`instruments.csv`: what each instrument gets right, by metric and task.

    Sensitivity: share of what a person says has it that the instrument finds; specificity: share of the rest that it
    leaves. Counts are of labelled answers; the shares weigh each by how many it stands for. Their intervals count each
    prompt, or cluster, once: builds answer alike.

    Args:
        readings: by instrument and metric.
    """
    weights = _weights(labelled)
    rows: list[tuple[Value, ...]] = []
    for (instrument, metric), said in readings.items():
        mine = [entry for entry in labelled.drawn if entry.answer.metric == metric and labelled.has_label(entry)]
        tasks = sorted({entry.answer.prompt.task for entry in mine})
        for task in (ALL, *tasks) if len(tasks) > 1 else tasks:
            here = [entry for entry in mine if task in (ALL, entry.answer.prompt.task)]
            rows.append((instrument, metric, task, *_errors(labelled, here, said, weights, confidence)))
    return Table("instruments", INSTRUMENT_COLUMNS, tuple(rows))


def _weights(labelled: LabelledSample) -> dict[int, float]:
    """By place: how many answers of its cell and stratum a labelled answer stands for."""
    sizes: dict[Hashable, int] = defaultdict(int)
    counts: dict[Hashable, int] = defaultdict(int)
    for entry in labelled.drawn:
        sizes[_alike(entry)] += 1
        counts[_alike(entry)] += labelled.has_label(entry)
    return {
        id(entry): sizes[_alike(entry)] / counts[_alike(entry)] for entry in labelled.drawn if labelled.has_label(entry)
    }


def _alike(entry: SamplingRecord) -> Hashable:
    return entry.answer.cell, entry.answer.metric, entry.stratum


def _errors(
    labelled: LabelledSample,
    entries: Sequence[SamplingRecord],
    said: Readings,
    weights: Mapping[int, float],
    confidence: float,
) -> tuple[Value, ...]:
    counts = dict.fromkeys(((1, 1), (1, 0), (0, 1), (0, 0)), 0)
    ungraded = unclear = 0
    found: dict[int, list[tuple[SamplingRecord, bool]]] = {1: [], 0: []}
    for entry in entries:
        truth, value = labelled.outcome(entry), said.get(Sample(entry.answer.cell, entry.answer.prompt))
        unclear += truth is None
        ungraded += truth is not None and value is None
        if truth is not None and value is not None:
            positive = int(value == 1)
            counts[truth, positive] += 1
            found[truth].append((entry, positive == truth))
    prompts = len({entry.answer.prompt for entry in entries})
    shares = [_share(found[truth], weights, confidence) for truth in (1, 0)]
    order = ((1, 1), (1, 0), (0, 1), (0, 0))
    return (len(entries), prompts, *(counts[key] for key in order), ungraded, unclear, *shares[0], *shares[1])


def _share(
    right: Sequence[tuple[SamplingRecord, bool]], weights: Mapping[int, float], confidence: float
) -> tuple[float | None, float | None, float | None]:
    """A weighted share with Wilson's interval at the effective number of independent units."""
    if not right:
        return None, None, None
    units: dict[Hashable, float] = defaultdict(float)
    for entry, _ in right:
        units[unit(entry.answer)] += weights[id(entry)]
    total = plain_sum(units.values())
    wrong = plain_sum(weights[id(entry)] for entry, good in right if not good)
    share = max(0.0, 1 - wrong / total) if any(good for _, good in right) else 0.0
    around = wilson_at(share, kish(tuple(units.values())), confidence)
    return share, around.lo, around.hi


def unit(answer: SheetAnswer) -> tuple[str, str]:
    """What a prompt is drawn with: its cluster, or itself."""
    return answer.prompt.task, f"cluster {answer.cluster}" if answer.cluster else answer.prompt.sample_id


# Corrected rates


def corrected_table(
    labelled: LabelledSample, raw: Mapping[CellId, Sequence[UncorrectedRate]], confidence: float = 0.95
) -> Table:
    """`corrected_rates.csv`: each rate by its instrument, and as people would have given it, with its interval.

    A corrected rate is over every answer that is not empty and that a person would not call unclear; its delta is over
    the prompts that both arms answered so, and rests on pairs. Where two instruments give a rate, both know of the same
    labels and of each other, so that what is corrected is one number.

    Args:
        raw: of every cell, in the order of the rows.
    """
    by_cell: dict[tuple[CellId, str], list[SamplingRecord]] = defaultdict(list)
    for entry in labelled.drawn:
        by_cell[entry.answer.cell, entry.answer.metric].append(entry)
    guesses = _pooled(labelled)
    rows: list[tuple[Value, ...]] = []
    for cell, rates in raw.items():
        done: dict[str, tuple[tuple[Value, ...], tuple[Value, ...]]] = {}
        for rate in rates:
            metric = pattern_metric(rate.metric)
            mine = by_cell.get((cell, metric), [])
            if not mine:
                continue
            if metric not in done:
                theirs = by_cell.get((mine[0].answer.baseline, metric), [])
                done[metric] = (
                    _rate(labelled, mine, guesses, confidence),
                    _delta(labelled, mine, theirs, confidence),
                )
            (level, delta), reason = done[metric], ""
            reason = NOTHING if level[3] is None else ""
            named = (*cell, rate.metric, rate.instrument)
            rows.append(
                (*named, *level[:3], rate.rate, *level[3:], *delta[:2], rate.delta_pp, *delta[2:], ESTIMATOR, reason)
            )
    return Table("corrected_rates", CORRECTED_COLUMNS, tuple(rows))


def pattern_metric(metric: str) -> str:
    """The pattern's metric beside a judge's, itself where it is one."""
    return next((pattern for pattern, judge in judged_by().items() if judge == metric), metric)


def _pooled(labelled: LabelledSample) -> dict[tuple[str, str, str], float]:
    """The rate among all labelled answers of a base model, metric and stratum: what stands in where a cell has none."""
    found: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for entry in labelled.drawn:
        if labelled.has_label(entry) and (outcome := labelled.outcome(entry)) is not None:
            found[entry.answer.cell.base_model, entry.answer.metric, entry.stratum].append(outcome)
    return {key: plain_sum(values) / len(values) for key, values in found.items()}


def _rate(
    labelled: LabelledSample,
    entries: Sequence[SamplingRecord],
    guesses: Mapping[tuple[str, str, str], float],
    confidence: float,
) -> tuple[Value, ...]:
    """n, labelled, unclear, rate, interval."""
    groups: dict[str, list[SamplingRecord]] = defaultdict(list)
    for entry in entries:
        groups[entry.stratum].append(entry)
    outcomes = {
        stratum: [labelled.outcome(entry) if labelled.has_label(entry) else MISSING for entry in members]
        for stratum, members in groups.items()
    }
    model, metric = entries[0].answer.cell.base_model, entries[0].answer.metric
    strata = [
        _stratum(found, 1, guesses.get((model, metric, name), said(groups[name][0])))
        for name, found in outcomes.items()
    ]
    values = [
        (entry, value) for name, members in groups.items() for entry, value in zip(members, outcomes[name], strict=True)
    ]
    keys = [name for name, members in groups.items() for _ in members]
    clustered = [(unit(entry.answer), _number(value, 1)) for entry, value in values]
    effect = design_effect(keys, clustered, strata) * few_clusters([cluster for cluster, _ in clustered], confidence)
    corrected = corrected_rate(strata, confidence, design_effect=effect)
    counts = len(entries), sum(stratum.labelled for stratum in strata), sum(stratum.unclear for stratum in strata)
    return (*counts, *_shown(corrected))


def said(entry: SamplingRecord) -> float:
    """The rate that the instruments give an answer: that of the first that graded it."""
    return next((min(1.0, max(0.0, float(value))) for value in entry.answer.said if value), 0.5)


def _shown(corrected: CorrectedRate | None, scale: int = 1) -> tuple[Value, ...]:
    if corrected is None:
        return None, None, None
    return corrected.value * scale, corrected.lo * scale, corrected.hi * scale


MISSING = -9
"""No label."""


def _stratum(found: Sequence[Outcome], counted: int, guess: float, *, known: bool = False) -> Stratum:
    labelled = [value for value in found if value != MISSING]
    return Stratum(len(found), len(labelled), labelled.count(counted), labelled.count(None), guess=guess, known=known)


def _number(value: Outcome, counted: int) -> float | None:
    """1 where it is what is counted, 0 where not; None without a clear label."""
    return None if value is None or value == MISSING else float(value == counted)


def design_effect(
    keys: Sequence[str],
    values: Sequence[tuple[Hashable, float | None]],
    strata: Sequence[Stratum],
    less: Sequence[Stratum] | None = None,
) -> float:
    """Variance of a stratified mean by clusters, over that by single answers; 1 where no cluster has two answers.

    Each answer's influence is (m_h - p) + (labelled: (y - m_h) N_h / n_h); clusters add up theirs.

    Args:
        keys: the stratum of each answer, by name.
        values: the cluster of each answer, and its outcome where it has a clear label.
        strata: in the order in which their names first occur.
        less: for a difference, the same strata with what is taken off.
    """
    means = [stratum.rate for stratum in strata]
    if less is not None:
        means = [mean - stratum.rate for mean, stratum in zip(means, less, strict=True)]
    named = dict(zip(dict.fromkeys(keys), zip(strata, means, strict=True), strict=True))
    total = plain_sum(stratum.mass for stratum in strata)
    if len({cluster for cluster, _ in values}) == len(values) or total == 0:
        return 1.0
    overall = plain_sum(stratum.mass * mean for stratum, mean in named.values()) / total
    clusters: dict[Hashable, float] = defaultdict(float)
    single = 0.0
    for key, (cluster, value) in zip(keys, values, strict=True):
        stratum, mean = named[key]
        influence = mean - overall
        if value is not None and not stratum.known:
            influence += (value - mean) * stratum.size / stratum.clear
        clusters[cluster] += influence
        single += influence**2
    return max(1.0, plain_sum(value**2 for value in clusters.values()) / single) if single else 1.0


def few_clusters(clusters: Sequence[Hashable], confidence: float = 0.95) -> float:
    """What a design effect is multiplied by where it rests on few clusters; 1 where each answer is one.

    k / (k - 1) and Student's t at k - 1 degrees of freedom, k being clusters of equal size that tell as much.
    """
    sizes = Counter(clusters)
    if len(sizes) == len(clusters):
        return 1.0
    k = max(kish(tuple(sizes.values())), 2.0)
    return k / (k - 1) * few(k - 1, confidence)


def _delta(
    labelled: LabelledSample, mine: Sequence[SamplingRecord], theirs: Sequence[SamplingRecord], confidence: float
) -> tuple[Value, ...]:
    """Pairs, labelled pairs, difference, interval; blank for a baseline.

    Pairs of equal texts differ in nothing, whatever a person calls them.
    """
    base = {entry.answer.prompt: entry for entry in theirs}
    if mine[0].answer.cell == mine[0].answer.baseline:
        return (None,) * 5
    groups: dict[str, list[tuple[SamplingRecord, SamplingRecord]]] = defaultdict(list)
    for entry in mine:
        other = base.get(entry.answer.prompt)
        if other is not None:
            groups[_pair_stratum(entry, other)].append((entry, other))
    outcomes = {name: [_change(labelled, *pair) for pair in pairs] for name, pairs in groups.items()}
    sides = {
        way: [
            _stratum(outcomes[name], way, _guess(pairs[0], way), known=name.startswith(EQUAL))
            for name, pairs in groups.items()
        ]
        for way in (1, -1)
    }
    keys = [name for name, pairs in groups.items() for _ in pairs]
    flat = [
        (unit(pair[0].answer), change)
        for name, pairs in groups.items()
        for pair, change in zip(pairs, outcomes[name], strict=True)
    ]
    values = [(cluster, None if change == MISSING else change) for cluster, change in flat]
    effect = design_effect(keys, values, sides[1], sides[-1])
    effect *= few_clusters([cluster for cluster, _ in flat], confidence)
    corrected = corrected_difference(sides[1], sides[-1], confidence, design_effect=effect)
    count = sum(change not in (MISSING, None) for _, change in flat)
    return len(keys), count, *_shown(corrected, 100)


EQUAL = "equal"


def _pair_stratum(one: SamplingRecord, other: SamplingRecord) -> str:
    if one.answer.text == other.answer.text:
        return f"{EQUAL} {one.stratum}"
    kind = "certain" if one.certain and other.certain else "drawn"
    return f"{kind} {'/'.join(one.answer.said)} {'/'.join(other.answer.said)}"


def _change(labelled: LabelledSample, one: SamplingRecord, other: SamplingRecord) -> Outcome:
    """1 gained, -1 lost, 0 neither; None where either is unclear."""
    if not (labelled.has_label(one) and labelled.has_label(other)):
        return MISSING
    mine, theirs = labelled.outcome(one), labelled.outcome(other)
    return None if mine is None or theirs is None else mine - theirs


def _guess(pair: tuple[SamplingRecord, SamplingRecord], way: int) -> float:
    """What the instruments say of a pair that nobody labelled."""
    return max(0.0, (said(pair[0]) - said(pair[1])) * way)
