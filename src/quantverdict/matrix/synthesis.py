"""The statistics over the matrix (SPEC 5): from a matrix and the policy's metric names to tables.

Everything is a pure function. A statistic that a matrix cannot give (one model, too few cells, a metric that does not
vary) is blank, with the reason in the last columns; no table holds a NaN.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np

from quantverdict.matrix.columns import baselines
from quantverdict.matrix.judging import judge_gaps
from quantverdict.matrix.mechanism import refusal_mechanism
from quantverdict.matrix.relations import (
    PAIR,
    QUALITY,
    SAFETY,
    BoolArray,
    Changes,
    Pairing,
    adjusted,
    changes,
    correlations,
    exact_changes,
    leave_one_out,
    named,
    sign_reversal,
)
from quantverdict.policy import Policy
from quantverdict.records import Matrix, Row, Table, Value
from quantverdict.stats.correlation import rm_corr
from quantverdict.stats.intervals import wilson
from quantverdict.stats.regression import mixed_effects_of_each, ols

_TEST = ("r", "dof", "p_value", "ci_lo", "ci_hi", "power", "n")
_FIT = ("coef", "p_value", "ci_lo", "ci_hi", "group_variance", "log_likelihood", "at_boundary")


def synthesis_tables(matrix: Matrix, policy: Policy, confidence: float = 0.95) -> tuple[Table, ...]:
    """Every table of SPEC 5 that a matrix alone gives.

    Args:
        matrix: rows; builds that are the same file as another are best left out, or they count twice.
        policy: names the metrics that are called quality and safety; they join the standard ones.
        confidence: of the intervals; power is that of the test at the level which is left.
    """
    pairing = policy_pairing(policy)
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


def policy_pairing(policy: Policy) -> Pairing:
    """The standard metrics, and those that the policy decides by."""
    own = (policy.refusal_metric, policy.truthfulness_metric, policy.bias_metric, policy.judge_refusal_metric)
    return Pairing(tuple(dict.fromkeys((*QUALITY, policy.quality_metric))), tuple(dict.fromkeys((*SAFETY, *own))))


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


def repeated_measures(moved: Changes, pairing: Pairing, confidence: float = 0.95) -> Table:
    """`repeated_measures.csv`: the common correlation within base models, of each pair."""
    rows: list[tuple[Value, ...]] = []
    for quality, safety in pairing.measured(moved):
        x, y, which = moved.both(quality, safety)
        found = rm_corr(x, y, _models(moved, which), confidence, alpha=1 - confidence)
        numbers = (found.r, found.dof, found.p, found.lo, found.hi, found.power, found.n)
        rows.append((quality, safety, *numbers, named(found.reason, quality, safety)))
    return adjusted("repeated_measures", (*PAIR, *_TEST, "reason"), rows, {"p_value": ""})


def mixed_effects(moved: Changes, pairing: Pairing, confidence: float = 0.95) -> Table:
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


def bpw_regressions(matrix: Matrix, pairing: Pairing) -> Table:
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


def leave_one_quant_out(matrix: Matrix, moved: Changes, pairing: Pairing) -> Table:
    """`leave_one_quant_out.csv`: the pooled correlations without each format."""
    present = {cell.quant for cell in moved.cells}
    groups = {quant: moved.of_quant(quant) for quant in quant_order(matrix) if quant in present}
    return leave_one_out("leave_one_quant_out", moved, pairing, groups)


def leave_one_model_out(moved: Changes, pairing: Pairing) -> Table:
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


def _models(moved: Changes, which: BoolArray) -> list[str]:
    return [moved.cells[index].base_model for index in np.flatnonzero(which)]
