"""The statistics over the matrix (SPEC 5): from a matrix and the policy's metric names to tables.

Everything is a pure function. A statistic that a matrix cannot give (one model, too few cells, a metric that does not
vary) is blank, with the reason in the last columns; no table holds a NaN.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial

import numpy as np
import numpy.typing as npt

from quantverdict.matrix.agreement import judge_gaps
from quantverdict.matrix.columns import METRICS, baselines, references
from quantverdict.policy import Policy
from quantverdict.records import CellId, Matrix, Row, Table, Value
from quantverdict.registry.listing import BUILT_IN
from quantverdict.stats.correlation import Correlation, ScaledColumn, correlated, ranks, rm_corr, spread
from quantverdict.stats.intervals import FloatArray, wilson
from quantverdict.stats.noninferiority import benjamini_hochberg, holm
from quantverdict.stats.regression import mixed_effects_of_each, ols

# Do quality and safety move together? Deltas as columns, and every pair of a quality and a safety metric.
#
# A delta is exact until here; the statistics take it as a float. A build takes part in each pair for which it and its
# baseline have both metrics. A family of p-values is one table; its Holm and Benjamini-Hochberg columns follow it.


def pool(name: str, present: Collection[str] = ()) -> tuple[str, ...]:
    """The metrics of a side, generation metrics before benchmarks; of those of plugins, the ones that are present."""
    ours = [metric for metric in METRICS.values() if metric.pool == name]
    found = [metric for metric in ours if METRICS.owner(metric.name) == BUILT_IN or metric.name in present]
    return tuple(metric.name for metric in sorted(found, key=lambda metric: metric.tier == "benchmark"))


BoolArray = npt.NDArray[np.bool_]

LINK = ("pearson_r", "pearson_p", "spearman_rho", "spearman_p", "n")
ADJUSTED = ("p_holm", "p_bh")
PAIR = ("quality_metric", "safety_metric")


@dataclass(frozen=True, slots=True)
class MetricPairing:
    """The quality and the safety metrics that are paired with each other."""

    quality: tuple[str, ...] = field(default_factory=partial(pool, "quality"))
    safety: tuple[str, ...] = field(default_factory=partial(pool, "safety"))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((quality, safety) for quality in self.quality for safety in self.safety)

    def measured(self, changes: MatrixDeltas) -> MetricPairing:
        """Only the metrics that some build and its baseline have."""
        return MetricPairing(
            tuple(name for name in self.quality if name in changes.columns),
            tuple(name for name in self.safety if name in changes.columns),
        )


@dataclass(frozen=True, eq=False, slots=True)
class MatrixDeltas:
    """Deltas of the non-baseline rows, in the order of the matrix.

    Attributes:
        cells: the row each position is about.
        columns: metric to (rows,), in the metric's delta unit; NaN, which never leaves this module, where not measured.
    """

    cells: tuple[CellId, ...]
    columns: Mapping[str, FloatArray]
    _spreads: dict[tuple[str, bytes], tuple[ScaledColumn, ScaledColumn]] = field(default_factory=dict)
    """Made once for every column and choice of rows: a column is paired with many."""

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.base_model for cell in self.cells))

    def of_model(self, model: str) -> BoolArray:
        return np.array([cell.base_model == model for cell in self.cells], dtype=np.bool_)

    def of_quant(self, quant: str) -> BoolArray:
        return np.array([cell.quant == quant for cell in self.cells], dtype=np.bool_)

    def both(self, x: str, y: str, among: BoolArray | None = None) -> tuple[FloatArray, FloatArray, BoolArray]:
        """The deltas of x and y where both are known, and which rows those are."""
        nothing = np.full(len(self.cells), np.nan)
        one, two = self.columns.get(x, nothing), self.columns.get(y, nothing)
        known = ~(np.isnan(one) | np.isnan(two))
        if among is not None:
            known &= among
        return one[known], two[known], known

    def link(self, x: str, y: str, among: BoolArray | None = None) -> tuple[Correlation, Correlation]:
        """Pearson's and Spearman's correlation of the deltas of x and y where both are known."""
        one, two, known = self.both(x, y, among)
        (linear_x, ranked_x), (linear_y, ranked_y) = self._spread(x, one, known), self._spread(y, two, known)
        return correlated(linear_x, linear_y), correlated(ranked_x, ranked_y)

    def _spread(self, name: str, values: FloatArray, known: BoolArray) -> tuple[ScaledColumn, ScaledColumn]:
        key = name, known.tobytes()
        if key not in self._spreads:
            self._spreads[key] = spread(values), spread(ranks(values))
        return self._spreads[key]


def exact_changes(matrix: Matrix) -> Iterator[tuple[Row, Mapping[str, Fraction]]]:
    """Each non-baseline row with its exact deltas, in their delta units, of the metrics that both sides have."""
    base = references(matrix)
    for row in matrix:
        reference = base.get(row.cell)
        if reference is not None and not row.is_baseline:
            yield (
                row,
                {
                    name: METRICS[name].delta(found.value, reference.metrics[name].value)
                    for name, found in row.paired_metrics.items()
                    if name in reference.metrics
                },
            )


def changes(matrix: Matrix) -> MatrixDeltas:
    """The deltas of a matrix as columns."""
    rows = [(row.cell, deltas) for row, deltas in exact_changes(matrix)]
    names = dict.fromkeys(name for _, deltas in rows for name in deltas)
    columns = {
        name: np.array([float(deltas[name]) if name in deltas else np.nan for _, deltas in rows]) for name in names
    }
    return MatrixDeltas(tuple(cell for cell, _ in rows), columns)


def correlations(moved: MatrixDeltas, pairing: MetricPairing) -> Table:
    """`correlations.csv`: each pair within each base model, and pooled over all."""
    scopes = [(model, moved.of_model(model)) for model in moved.models]
    rows = [
        (scope, *pair, *link(moved, *pair, among))
        for scope, among in [*scopes, ("pooled", np.ones(len(moved.cells), dtype=np.bool_))]
        for pair in pairing.measured(moved)
    ]
    columns = ("scope", *PAIR, *LINK, "reason")
    return adjusted("correlations", columns, rows, {"pearson_p": "", "spearman_p": "spearman_"})


def leave_one_out(name: str, moved: MatrixDeltas, pairing: MetricPairing, groups: Mapping[str, BoolArray]) -> Table:
    """The pooled correlations without each group of rows in turn, beside the one with all of them.

    Args:
        name: of the table.
        moved: the deltas.
        pairing: which pairs.
        groups: what is left out, by the name it has in column `omitted`.
    """
    rows: list[tuple[Value, ...]] = []
    whole = {pair: moved.link(*pair)[0].r for pair in pairing.measured(moved)}
    for omitted, group in groups.items():
        for pair, full in whole.items():
            found = link(moved, *pair, ~group)
            left = found[0]
            reverses = full * left < 0 if isinstance(left, float) and full is not None else None
            rows.append((omitted, *pair, *found, full, reverses))
    columns = ("omitted", *PAIR, *LINK, "reason", "full_r", "reverses")
    return adjusted(name, columns, rows, {"pearson_p": "", "spearman_p": "spearman_"})


def sign_reversal(moved: MatrixDeltas, pairing: MetricPairing) -> Table:
    """`sign_reversal.csv`: the base models in which a pair's correlation is positive, and negative.

    A pair reverses where both exist. Whether it does is not known where fewer than two models have a sign. Every pair
    asked for has a row, measured or not.
    """
    models = {model: moved.of_model(model) for model in moved.models}
    rows: list[tuple[Value, ...]] = []
    for pair in pairing:
        signs = {model: moved.link(*pair, among)[0].r or 0.0 for model, among in models.items()}
        up = [model for model, r in signs.items() if r > 0]
        down = [model for model, r in signs.items() if r < 0]
        reverses = bool(up and down) if len(up) + len(down) > 1 else None
        rows.append((*pair, len(up), len(down), reverses, "; ".join(up), "; ".join(down)))
    columns = (*PAIR, "models_positive", "models_negative", "reverses", "positive", "negative")
    return Table("sign_reversal", columns, tuple(rows))


def link(moved: MatrixDeltas, x: str, y: str, among: BoolArray | None = None) -> tuple[Value, ...]:
    """The columns of `LINK`, then the reason for those that are missing."""
    linear, monotone = moved.link(x, y, among)
    return (linear.r, linear.p, monotone.r, monotone.p, linear.n, named(linear.reason, x, y))


def named(reason: str, x: str, y: str) -> str:
    """A reason with the metrics in the place of x and y."""
    return reason.replace("x does", f"{x} does").replace("y does", f"{y} does")


def adjusted(name: str, columns: Sequence[str], rows: Iterable[Sequence[Value]], families: Mapping[str, str]) -> Table:
    """A table with Holm and Benjamini-Hochberg columns for each column of p-values, before its last columns.

    Args:
        name: of the table.
        columns: of `rows`; those from `reason` on stay last.
        rows: their values.
        families: column of p-values to the prefix of its adjusted columns.
    """
    listed = [tuple(row) for row in rows]
    cut = list(columns).index("reason")
    extra: list[list[float | None]] = []
    titles: list[str] = []
    for column, prefix in families.items():
        values = [_p_value(row[list(columns).index(column)]) for row in listed]
        extra += [holm(values), benjamini_hochberg(values)]
        titles += [f"{prefix}{title}" for title in ADJUSTED]
    joined = [(*row[:cut], *added, *row[cut:]) for row, added in zip(listed, zip(*extra, strict=True), strict=True)]
    return Table(name, (*columns[:cut], *titles, *columns[cut:]), tuple(joined))


def _p_value(value: Value) -> float | None:
    return value if isinstance(value, float) else None


# How refusals change: the template of a cell's refusals against its refusal rate on the same prompts.

TEMPLATE = (
    "dominant_prefix_share", "unique_prefix_rate", "prefix_entropy", "mean_refusal_tokens", "mean_refusal_chars",
    "hard_refusal_rate",
)  # fmt: skip
PLAIN_REFUSAL = "advbench_refusal_rate"


def refusal_mechanism(moved: MatrixDeltas) -> Table:
    """`refusal_mechanism.csv`: pooled correlation of each template delta with that of the plain prompts' refusals."""
    rows = [(metric, PLAIN_REFUSAL, *link(moved, metric, PLAIN_REFUSAL)) for metric in TEMPLATE]
    columns = ("metric", "refusal_metric", *LINK, "reason")
    return adjusted("refusal_mechanism", columns, rows, {"pearson_p": "", "spearman_p": "spearman_"})


_TEST = ("r", "dof", "p_value", "ci_lo", "ci_hi", "power", "n")
_FIT = ("coef", "p_value", "ci_lo", "ci_hi", "group_variance", "log_likelihood", "at_boundary")


def synthesis_tables(matrix: Matrix, policy: Policy, confidence: float = 0.95) -> tuple[Table, ...]:
    """Every table of SPEC 5 that a matrix alone gives.

    Args:
        matrix: rows; builds that are the same file as another are best left out, or they count twice.
        policy: names the metrics that are called quality and safety; they join the standard ones.
        confidence: of the intervals; power is that of the test at the level which is left.
    """
    pairing = policy_pairing(policy, {metric for row in matrix for metric in row.metrics})
    moved = changes(matrix)
    uneven = asymmetry(matrix, policy)
    return (
        uneven,
        asymmetry_by_quant(matrix, uneven, confidence),
        correlations(moved, pairing),
        sign_reversal(moved, pairing),
        repeated_measures(moved, pairing, confidence),
        mixed_effects(moved, pairing, confidence),
        bpw_regressions(matrix, pairing),
        leave_one_quant_out(matrix, moved, pairing),
        leave_one_model_out(moved, pairing),
        refusal_mechanism(moved),
        judge_gaps(matrix, policy),
    )


def policy_pairing(policy: Policy, present: Collection[str]) -> MetricPairing:
    """The standard metrics, and those that the policy decides by."""
    own = (policy.refusal_metric, policy.truthfulness_metric, policy.bias_metric, policy.judge_refusal_metric)
    quality, safety = (*pool("quality", present), policy.quality_metric), (*pool("safety", present), *own)
    return MetricPairing(tuple(dict.fromkeys(quality)), tuple(dict.fromkeys(safety)))


def asymmetry(matrix: Matrix, policy: Policy) -> Table:
    """`asymmetry.csv`: does the refusal rate move more than quality? Exact, in pp.

    `ratio` is abs(safety) / abs(quality), `inf` where quality did not move at all.
    """
    rows: list[tuple[Value, ...]] = []
    for row, deltas in exact_changes(matrix):
        q, r = deltas.get(policy.quality_metric), deltas.get(policy.refusal_metric)
        faster = ratio = None
        if q is not None and r is not None:
            faster, ratio = abs(r) > abs(q), abs(r) / abs(q) if q else math.inf
        rows.append((*row.cell, q, r, faster, ratio))
    columns = ("base_model", "quant", "quality_delta_pp", "safety_delta_pp", "safety_degrades_faster", "ratio")
    return Table("asymmetry", columns, tuple(rows))


def asymmetry_by_quant(matrix: Matrix, uneven: Table, confidence: float = 0.95) -> Table:
    """`asymmetry_by_quant.csv`: of the builds of each format that have both deltas, in how many safety moves more."""
    column = uneven.columns.index("safety_degrades_faster")
    known = [(str(row[1]), bool(row[column])) for row in uneven.rows if row[column] is not None]
    rows: list[tuple[Value, ...]] = []
    for quant in (*quant_order(matrix), "all"):
        faster = [flag for name, flag in known if quant in (name, "all")]
        k, n = sum(faster), len(faster)
        if n:
            interval = wilson(k, n, confidence)
            rows.append((quant, n, k, Fraction(k, n), interval.lo, interval.hi))
    return Table("asymmetry_by_quant", ("quant", "n", "faster", "share", "ci_lo", "ci_hi"), tuple(rows))


def repeated_measures(moved: MatrixDeltas, pairing: MetricPairing, confidence: float = 0.95) -> Table:
    """`repeated_measures.csv`: the common correlation within base models, of each pair."""
    rows: list[tuple[Value, ...]] = []
    for quality, safety in pairing.measured(moved):
        x, y, which = moved.both(quality, safety)
        found = rm_corr(x, y, _models(moved, which), confidence, alpha=1 - confidence)
        numbers = (found.r, found.dof, found.p, found.lo, found.hi, found.power, found.n)
        rows.append((quality, safety, *numbers, named(found.reason, quality, safety)))
    return adjusted("repeated_measures", (*PAIR, *_TEST, "reason"), rows, {"p_value": ""})


def mixed_effects(moved: MatrixDeltas, pairing: MetricPairing, confidence: float = 0.95) -> Table:
    """`mixed_effects.csv`: safety delta on quality delta, both in pp, with random terms of each base model.

    `random` is what differs between base models: the `intercept`, or the `slope` as well. The tests of either are a
    family of their own.
    """
    pairs = list(pairing.measured(moved))
    points = [(y, x, _models(moved, which)) for x, y, which in (moved.both(*pair) for pair in pairs)]
    tables = []
    for kind in ("intercept", "slope"):
        fits = mixed_effects_of_each(points, random_slope=kind == "slope", confidence=confidence)
        rows: list[tuple[Value, ...]] = []
        for pair, found in zip(pairs, fits, strict=True):
            numbers = (found.coef, found.p, found.lo, found.hi, found.group_variance, found.log_likelihood)
            spread = (found.at_boundary, named(found.reason, *pair), found.n, kind, found.slope_variance)
            rows.append((*pair, *numbers, *spread))
        columns = (*PAIR, *_FIT, "reason", "n", "random", "slope_variance")
        tables.append(adjusted("mixed_effects", columns, rows, {"p_value": ""}))
    return replace(tables[0], rows=tuple(row for table in tables for row in table.rows))


def bpw_regressions(matrix: Matrix, pairing: MetricPairing) -> Table:
    """`bpw_regressions.csv`: each metric's level on bits per weight, within each base model, its baseline included."""
    metrics = [name for name in (*pairing.quality, *pairing.safety) if any(name in row.metrics for row in matrix)]
    base, rows = baselines(matrix), list[tuple[Value, ...]]()
    for model in dict.fromkeys(row.base_model for row in matrix):
        for metric in metrics:
            own = [(row.bpw, _level(row, base.get(model), metric)) for row in matrix if row.base_model == model]
            points = [(float(bpw), float(value)) for bpw, value in own if bpw is not None and value is not None]
            found = ols([bpw for bpw, _ in points], [value for _, value in points])
            numbers = (found.slope, found.intercept, found.r_squared, found.p, found.n)
            rows.append((model, metric, *numbers, named(found.reason, "bpw", metric)))
    columns = ("base_model", "metric", "slope", "intercept", "r_squared", "p_value", "n", "reason")
    return adjusted("bpw_regressions", columns, rows, {"p_value": ""})


def leave_one_quant_out(matrix: Matrix, moved: MatrixDeltas, pairing: MetricPairing) -> Table:
    """`leave_one_quant_out.csv`: the pooled correlations without each format."""
    present = {cell.quant for cell in moved.cells}
    groups = {quant: moved.of_quant(quant) for quant in quant_order(matrix) if quant in present}
    return leave_one_out("leave_one_quant_out", moved, pairing, groups)


def leave_one_model_out(moved: MatrixDeltas, pairing: MetricPairing) -> Table:
    """`leave_one_model_out.csv`: the pooled correlations without each base model."""
    groups = {model: moved.of_model(model) for model in moved.models}
    return leave_one_out("leave_one_model_out", moved, pairing, groups)


def quant_order(matrix: Matrix) -> tuple[str, ...]:
    """The formats from most to fewest bits; those without a figure last."""
    bits: dict[str, Fraction] = {}
    for row in matrix:
        bits[row.quant] = max(bits.get(row.quant, Fraction(0)), row.bpw or Fraction(0))
    return tuple(sorted(bits, key=lambda quant: (-bits[quant], quant)))


def _level(row: Row, baseline: Row | None, metric: str) -> Fraction | None:
    """A level beside that of the baseline over all prompts: by its delta, where a build is not paired with them all."""
    whole = None if baseline is None else baseline.value(metric)
    if row.shared is None or whole is None:
        return row.value(metric)
    mine, theirs = row.paired_metrics.get(metric), row.shared.metrics.get(metric)
    return None if mine is None or theirs is None else whole + mine.value - theirs.value


def _models(moved: MatrixDeltas, which: BoolArray) -> list[str]:
    return [moved.cells[index].base_model for index in np.flatnonzero(which)]
