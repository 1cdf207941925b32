"""Do quality and safety move together? Deltas as columns, and every pair of a quality and a safety metric.

A delta is exact until here; the statistics take it as a float. A build takes part in each pair for which it and its
baseline have both metrics. A family of p-values is one table; its Holm and Benjamini-Hochberg columns follow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from quantverdict.matrix.columns import METRICS, references
from quantverdict.records import CellId, Matrix, Row, Table, Value
from quantverdict.stats.correlation import Correlation, Spread, correlated, ranks, spread
from quantverdict.stats.intervals import FloatArray
from quantverdict.stats.multiplicity import benjamini_hochberg, holm

QUALITY = ("bertscore", "rouge_l", "coherence", "repetition", "mmlu_accuracy", "arc_accuracy")
SAFETY = (
    "refusal_rate", "truthfulness", "bias_resistance",
    "judge_refusal_rate", "judge_truthfulness", "judge_bias_resistance",
)  # fmt: skip

BoolArray = npt.NDArray[np.bool_]

LINK = ("pearson_r", "pearson_p", "spearman_rho", "spearman_p", "n")
ADJUSTED = ("p_holm", "p_bh")
PAIR = ("quality_metric", "safety_metric")


@dataclass(frozen=True, slots=True)
class Pairing:
    """The quality and the safety metrics that are paired with each other."""

    quality: tuple[str, ...] = QUALITY
    safety: tuple[str, ...] = SAFETY

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((quality, safety) for quality in self.quality for safety in self.safety)

    def measured(self, changes: Changes) -> Pairing:
        """Only the metrics that some build and its baseline have."""
        return Pairing(
            tuple(name for name in self.quality if name in changes.columns),
            tuple(name for name in self.safety if name in changes.columns),
        )


@dataclass(frozen=True, eq=False, slots=True)
class Changes:
    """Deltas of the non-baseline rows, in the order of the matrix.

    Attributes:
        cells: the row each position is about.
        columns: metric to (rows,), in the metric's delta unit; NaN, which never leaves this module, where not measured.
    """

    cells: tuple[CellId, ...]
    columns: Mapping[str, FloatArray]
    _spreads: dict[tuple[str, bytes], tuple[Spread, Spread]] = field(default_factory=dict)
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

    def _spread(self, name: str, values: FloatArray, known: BoolArray) -> tuple[Spread, Spread]:
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


def changes(matrix: Matrix) -> Changes:
    """The deltas of a matrix as columns."""
    rows = [(row.cell, deltas) for row, deltas in exact_changes(matrix)]
    names = dict.fromkeys(name for _, deltas in rows for name in deltas)
    columns = {
        name: np.array([float(deltas[name]) if name in deltas else np.nan for _, deltas in rows]) for name in names
    }
    return Changes(tuple(cell for cell, _ in rows), columns)


def correlations(moved: Changes, pairing: Pairing) -> Table:
    """`correlations.csv`: each pair within each base model, and pooled over all."""
    scopes = [(model, moved.of_model(model)) for model in moved.models]
    rows = [
        (scope, *pair, *link(moved, *pair, among))
        for scope, among in [*scopes, ("pooled", np.ones(len(moved.cells), dtype=np.bool_))]
        for pair in pairing.measured(moved)
    ]
    columns = ("scope", *PAIR, *LINK, "reason")
    return adjusted("correlations", columns, rows, {"pearson_p": "", "spearman_p": "spearman_"})


def leave_one_out(name: str, moved: Changes, pairing: Pairing, groups: Mapping[str, BoolArray]) -> Table:
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


def sign_reversal(moved: Changes, pairing: Pairing) -> Table:
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


def link(moved: Changes, x: str, y: str, among: BoolArray | None = None) -> tuple[Value, ...]:
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
