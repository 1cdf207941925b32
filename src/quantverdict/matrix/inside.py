"""What the inside of each build shows beside its refusals: `whitebox.csv`, where it was measured."""

from __future__ import annotations

from quantverdict.matrix.grid import Grids
from quantverdict.records import CellId, Matrix, Row, Table, Value
from quantverdict.stats.paired import mcnemar_exact

MEASURED = ("refusal_margin", "baseline_kl", "baseline_agreement")
COLUMNS = (
    "base_model", "quant", "refusal_delta_pp", "refusal_ci_lo_pp", "refusal_ci_hi_pp", "margin_delta_nats",
    "margin_ci_lo_nats", "margin_ci_hi_nats", "n_prompts", "fell", "rose", "p_value", "baseline_kl",
    "baseline_agreement",
)  # fmt: skip


def whitebox_tables(matrix: Matrix, deltas: Table, samples: Grids | None) -> tuple[Table, ...]:
    """One row a build: the change of the refusal rate beside that of the margin, and the distance from the baseline.

    Args:
        deltas: `deltas.csv`.
        samples: with the margin of every prompt.

    Returns:
        Nothing where nothing was measured; `p_value` is the sign test of the prompts whose margin fell and rose.
    """
    if samples is None or not any(name in row.metrics for row in matrix for name in MEASURED):
        return ()
    changes = {(row[0], row[1], row[2]): dict(zip(deltas.columns, row, strict=True)) for row in deltas.rows}
    base = {row.base_model: row.cell for row in matrix if row.is_baseline}
    rows = []
    for row in matrix:
        if row.is_baseline:
            continue
        refusal, margin = (changes.get((*row.cell, name), {}) for name in ("refusal_rate", "refusal_margin"))
        numbers = (change.get(key) for change in (refusal, margin) for key in ("delta", "ci_lo", "ci_hi"))
        rows.append((*row.cell, *numbers, *_signs(samples, row, base[row.base_model]), *_distance(row)))
    return (Table("whitebox", COLUMNS, tuple(rows)),)


def _signs(samples: Grids, row: Row, baseline: CellId) -> tuple[Value, ...]:
    """Prompts that both have a margin of, those of them that fell and that rose, and the sign test."""
    grid = samples.get("refusal_margin")
    if grid is None or row.cell not in grid.cells or baseline not in grid.cells:
        return (None,) * 4
    mine, theirs = grid.compared(row.cell, baseline)
    change = [float(value) for value in mine - theirs if value == value]  # noqa: PLR0124 - NaN is not itself
    fell, rose = sum(value < 0 for value in change), sum(value > 0 for value in change)
    return len(change), fell, rose, mcnemar_exact(fell, rose)


def _distance(row: Row) -> tuple[Value, ...]:
    return row.value("baseline_kl"), row.value("baseline_agreement")
