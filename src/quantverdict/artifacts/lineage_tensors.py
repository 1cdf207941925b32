"""Is a stored weight what rounding the baseline's to its grid gives?

Every maker of a low-bit build rounds each weight to the nearest level, given its scales (GPTQ moves a weight before it
does, but not those of the first column it takes). So the levels of a variant are compared with the nearest levels to
the baseline's weights. The share that is `off` is 0 for a build of the baseline, and about mean |change| / step for a
build of a changed model: far below the rounding error itself, which a small fine-tune would drown in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantverdict.artifacts.packings import Floats, Rows

SAME, DIFFERENT, CANNOT_TELL = "same", "different", "cannot_tell"

_ALLOWED_OFF: Mapping[str, float] = {"Q4_0": 0.02, "Q4_1": 0.02, "Q5_0": 0.02, "Q5_1": 0.02}
"""Share that may be off. These types refit the scale after rounding where an importance matrix is given: 0.007 to 0.009
of Student-t weights are then off, and none of the other types'."""
_USUALLY_OFF = 0.002
_MEAN_ABS = 0.8
"""Mean size of a normal variable over its standard deviation."""
_UNRELATED = 0.5
"""Correlation below which weights are not the baseline's, whatever their type: 2-bit types keep more than 0.9."""
COARSEST = 0.03
"""A relative change of weights that must have been seen for `same`: fine-tunes change weights by 0.01 to 0.05."""


_MOST_ERROR: Mapping[str, float] = {
    "IQ3_S": 0.24, "IQ3_XXS": 0.33, "IQ2_S": 0.48, "IQ2_XS": 0.52, "IQ2_XXS": 0.73, "IQ1_M": 0.78, "IQ1_S": 0.84,
}  # fmt: skip
"""How far rounding to a type without regular levels moves weights at the most, relative to them: 1.3 times the largest
error of normal, Laplace and Student-t weights, with importance of columns from even to log-normal of sigma 2."""
_APART = 2.0
"""An expert whose error is this many times that of the usual one is not of the same source."""


class TensorVerdict(NamedTuple):
    """`same`, `different` or `cannot_tell`, with the fields of `Finding` that it rests on."""

    verdict: str
    off: float | None
    resolution: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What one weight says.

    Attributes:
        type_name: as the variant stores it.
        off: share of the read values that are not at the nearest level; None where the type has no regular levels.
        error: root mean square of the difference over that of the baseline's values.
        resolution: the smallest such error by a change of the model that is ruled out; None where none is.
        note: what the verdict rests on.
    """

    name: str
    type_name: str
    verdict: str
    off: float | None
    error: float
    resolution: float | None
    note: str

    def saying(self, verdict: str, note: str) -> Finding:
        """The same with another verdict, which rests on something else."""
        return replace(self, verdict=verdict, note=note)


@dataclass(frozen=True, slots=True)
class Residual:
    """A variant's rows against the baseline's.

    Attributes:
        off: (rows, inputs): further from the baseline than rounding takes it; None where there are no regular levels.
        near: (rows, inputs): within 0.1 step of where rounding turns, on either side.
        size: root mean square of the baseline's values.
        error: root mean square of the difference over `size`.
        correlation: of the two, 1 where both are constant and equal.
        step, slack: mean distance of the variant's levels, and mean of what is tolerated beyond half of it.
    """

    off: NDArray[np.bool_] | None
    near: NDArray[np.bool_] | None
    size: float
    error: float
    correlation: float
    step: float
    slack: float


def scaled(rows: Rows, factors: Floats, relative_error: Floats) -> Rows:
    """Rows times positive factors (broadcast), which are known up to a relative error."""
    values = rows.values * factors
    slack = rows.slack * factors + np.abs(values) * relative_error
    step = None if rows.step is None else rows.step * factors
    return Rows(values, step, rows.low * factors, rows.high * factors, slack)


def as_decoded(rows: Rows) -> Rows:
    """Rows taken for the very values that were rounded, not for what these were rounded to."""
    infinite = np.full((1, 1), np.inf, np.float32)
    none = np.zeros((1, 1), np.float32)
    return Rows(rows.values, none, -infinite, infinite, np.abs(rows.values) * np.float32(2.0**-11))


def residual(baseline: Rows, variant: Rows) -> Residual:
    """Compare rows of one weight; both (rows, inputs). What is no number in both alike is left out."""
    ours, theirs = baseline.values, variant.values
    finite = np.isfinite(ours) & np.isfinite(theirs)
    if not finite.all():
        if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
            return Residual(None, None, _rms(ours[finite]), float("nan"), float("nan"), 0.0, 0.0)
        baseline, variant = (_zero_where(rows, ~finite) for rows in (baseline, variant))
        ours, theirs = baseline.values, variant.values
    size, difference = _rms(ours), _rms(theirs - ours)
    error = difference / size if size > 0 else float("inf") if difference > 0 else 0.0
    product = _rms(ours) * _rms(theirs)
    mean = float(np.vdot(ours.reshape(-1), theirs.reshape(-1))) / max(1, ours.size)
    correlation = mean / product if product > 0 else float(error == 0)
    if baseline.step is None or variant.step is None:
        return Residual(None, None, size, error, correlation, 0.0, 0.0)
    slack = variant.slack + baseline.slack + baseline.step / 2
    # A weight beyond the outermost level is stored as that level, however far it is.
    distance = np.abs(np.clip(ours, variant.low, variant.high) - np.clip(theirs, baseline.low, baseline.high))
    off = distance > variant.step * np.float32(0.5 + 1e-4) + slack
    near = np.abs(distance - variant.step * np.float32(0.5)) <= variant.step * np.float32(0.1)
    return Residual(off, near, size, error, correlation, float(np.mean(variant.step)), float(np.mean(slack)))


def _zero_where(rows: Rows, where: NDArray[np.bool_]) -> Rows:
    slack = np.broadcast_to(rows.slack, rows.values.shape)
    zero = np.float32(0)
    return rows._replace(values=np.where(where, zero, rows.values), slack=np.where(where, zero, slack))


def judge(name: str, type_name: str, found: Residual) -> Finding:
    """One weight's verdict from the share of its values that are off their nearest level."""
    if not np.isfinite(found.error) or found.correlation < _UNRELATED:
        note = f"correlation {found.correlation:.2f} with the baseline's"
        if np.isnan(found.error):
            note = "a value is no finite number here or in the baseline, and not in the other"
        return Finding(name, type_name, DIFFERENT, None, found.error, None, note)
    if found.off is None:
        most = _MOST_ERROR.get(type_name)
        if most is not None and found.error > most:
            note = f"an error of {found.error:.1%}, where rounding to {type_name} leaves {most:.0%} at the most"
            return Finding(name, type_name, DIFFERENT, None, found.error, None, note)
        bound = "" if most is None else f" (of {most:.0%} at the most)"
        note = f"{type_name} has no regular levels: an error of {found.error:.1%}{bound} hides any smaller change"
        return Finding(name, type_name, CANNOT_TELL, None, found.error, None, note)
    off = float(np.mean(found.off))
    usual = _USUALLY_OFF if found.step > 0 else 0.0
    allowed = max(usual, _ALLOWED_OFF.get(type_name, 0.0))
    resolution = resolution_of(found, max(off, usual))
    if off > allowed:
        what = "at their nearest level" if found.step > 0 else "equal within rounding"
        return Finding(name, type_name, DIFFERENT, off, found.error, resolution, f"{off:.2%} of values are not {what}")
    note = f"{off:.2%} of values off, error {found.error:.2%}"
    return Finding(name, type_name, SAME, off, found.error, resolution, note)


def judge_experts(name: str, type_name: str, parts: Sequence[Residual]) -> Finding:
    """The verdict of stacked experts: each by itself, and where one stands out from the others, by its number."""
    found = [judge(name, type_name, part) for part in parts]
    errors = np.array([one.error for one in found])
    usual = float(np.median(errors))
    broken = [at for at, one in enumerate(found) if one.verdict == DIFFERENT]
    if not broken:
        broken = [at for at, one in enumerate(found) if one.off is None and one.error > _APART * usual > 0]
    if broken:
        many = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        worst = found[broken[0]]
        why = worst.note if worst.verdict == DIFFERENT else f"an error of {worst.error:.1%}, {usual:.1%} usually"
        note = f"expert {broken[0]}{many} of {len(parts)}: {why}"
        return worst.saying(DIFFERENT, note)
    worst = max(found, key=lambda one: (one.verdict == CANNOT_TELL, one.resolution or 0.0, one.error))
    return worst.saying(worst.verdict, f"{worst.note}; the worst of {len(parts)} experts")


def judge_remade(
    finding: Finding, equal: NDArray[np.bool_], values: int, of: int, experts: NDArray[np.int64]
) -> Finding:
    """A verdict from rows that were encoded again from the baseline's: which of them have the very bytes.

    Args:
        values: numbers in the rows that were read.
        of: how many rows there are in all.
        experts: the expert of each row.
    """
    if equal.all():
        # A change that puts five of these values over the edge of their level would have been seen, on average.
        resolution = 5 * sqrt(12) * finding.error / (_MEAN_ABS * values)
        note = f"made again from the baseline: {len(equal)} of {of} rows read, all with the same bytes"
        return Finding(finding.name, finding.type_name, SAME, 0.0, finding.error, resolution, note)
    wrong = np.unique(experts[~equal])
    who = f"expert {wrong[0]}{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}: " if experts.any() else ""
    note = f"{who}made again from the baseline, {np.count_nonzero(~equal)} of {len(equal)} rows have other bytes"
    return Finding(finding.name, finding.type_name, DIFFERENT, finding.off, finding.error, None, note)


def resolution_of(found: Residual, share: float) -> float:
    """The relative size of a change of normal distribution that puts this share off its nearest level."""
    return (share * found.step + found.slack) / (_MEAN_ABS * found.size) if found.size > 0 else float("inf")


def _rms(values: Floats) -> float:
    flat = values.reshape(-1)
    return float(np.sqrt(np.vdot(flat, flat) / flat.size)) if flat.size else 0.0


# Builds whose maker moves weights before it rounds them, as GPTQ does.
#
# GPTQ takes the inputs of a matrix one after the other, and changes those not yet taken to make up for the rounding of
# those taken. So most weights are not at the level nearest to the baseline's, and only the first column has nothing to
# make up for. That is input 0, or any where inputs are taken by importance; matrices that read the same input take
# them in the same order. A build of a changed model has no column at its nearest levels.

_ROLE = re.compile(r"(.*layers\.\d+\.)(.+)\.weight")
_SHARED = {
    "self_attn.q_proj": "attention", "self_attn.k_proj": "attention", "self_attn.v_proj": "attention",
    "mlp.gate_proj": "ffn", "mlp.up_proj": "ffn",
}  # fmt: skip
_NEAR_IF_SPREAD = 0.2
"""Share of values within 0.1 step of where rounding turns, where weights spread over many levels."""
_LEAST_NEAR = 0.05
_ONE_IN = 100.0


@dataclass(frozen=True, slots=True)
class ColumnCounts:
    """Counts for each input, over the rows of all matrices that read it.

    Attributes:
        off: values that are not at the nearest level.
        near: values that a small change would put off.
        rows: values looked at.
        parts: the matrices' residuals.
    """

    off: NDArray[np.int64]
    near: NDArray[np.int64]
    rows: int
    parts: tuple[Residual, ...]


def pool_of(name: str) -> tuple[str, str]:
    """The input that a matrix reads, and its role alone: matrices of one input are looked at together."""
    match = _ROLE.fullmatch(name)
    if match is None:
        return name, name
    role = _SHARED.get(match[2], match[2])
    return match[1] + role, role


def joined(parts: tuple[Residual, ...]) -> ColumnCounts:
    """The counts of matrices with the same inputs."""
    masks = [(part.off, part.near) for part in parts if part.off is not None and part.near is not None]
    off, near = (np.sum([np.count_nonzero(pair[at], axis=0) for pair in masks], axis=0) for at in (0, 1))
    return ColumnCounts(off, near, sum(len(pair[0]) for pair in masks), parts)


def judge_columns(pools: Mapping[tuple[str, str], ColumnCounts]) -> dict[tuple[str, str], TensorVerdict]:
    """A verdict for each input, by `pool_of`.

    Where the first column tells nothing (its weights are so small that all are 0), the next ones are off in a few
    values. That is taken for it only where most inputs of the same role have a clean column.
    """
    clean = {key: bool(np.any((columns.off == 0) & _telling(columns))) for key, columns in pools.items()}
    shares = {role: np.mean([clean[key] for key in pools if key[1] == role]) for _, role in pools}
    return {key: _judge(columns, clean[key], bool(shares[key[1]] > 0.5)) for key, columns in pools.items()}


def _telling(columns: ColumnCounts) -> NDArray[np.bool_]:
    return np.asarray(columns.near >= _LEAST_NEAR * columns.rows)


def _judge(columns: ColumnCounts, clean: bool, usual: bool) -> TensorVerdict:
    telling = np.flatnonzero(_telling(columns))
    if not len(telling):
        return TensorVerdict(CANNOT_TELL, None, None, "no column that would show a change")
    weight = np.minimum(1, columns.near[telling] / (_NEAR_IF_SPREAD * columns.rows)) * columns.rows
    counts = columns.off[telling]
    best = int(np.lexsort((-weight, counts))[0])
    if telling[0] == 0 and counts[0] == 0:
        best = 0
    # Of columns that a change touches alike, none has so few off but once in 100 if this is each one's share.
    chosen = 0.0 if best == 0 and telling[0] == 0 else log(len(telling))
    few = int(counts[best])
    share = (few + 3 * sqrt(few) + chosen + log(_ONE_IN)) / float(weight[best])
    resolution = max(resolution_of(part, share) for part in columns.parts) if share < 0.5 else None
    off = float(np.sum(columns.off) / (columns.rows * len(columns.off)))
    if clean or (usual and resolution is not None and resolution <= COARSEST):
        note = f"input {telling[best]} has {few} of {columns.rows} values off their nearest level"
        return TensorVerdict(SAME if resolution is not None else CANNOT_TELL, off, resolution, note)
    note = f"no input's values are at their nearest levels: of the best, {few} of {columns.rows} are off"
    return TensorVerdict(DIFFERENT, off, resolution, note)


# Scales that a quantiser moved from one weight into another, which leave the model the same.
#
# AWQ multiplies inputs of a matrix by factors and divides what feeds them: the norm before q, k, v or before gate and
# up; the rows of v before o; the rows of up before down. A norm is stored wide, so its factors are known from it. Those
# of v and up show in no wide weight: they are estimated from both matrices, and must be each other's inverse.

_LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)\.(weight|bias)")
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj")
_FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj")
_PAIRS = {"self_attn.v_proj": "self_attn.o_proj", "mlp.up_proj": "mlp.down_proj"}
_LARGEST, _SHRUNK = 1e4, 0.2


class ScaleFold(NamedTuple):
    """Factors on the baseline's weight: of its inputs or its rows, and how far they may be off, relative to them."""

    factors: Floats
    relative_error: Floats


def norm_before(name: str, names: Mapping[str, object]) -> str | None:
    """The norm whose output a matrix reads, None where none is known."""
    match = _LAYER.fullmatch(name)
    if match is None or match[3] != "weight":
        return None
    if match[2] in _ATTENTION or (match[2] == "mlp.fc1"):
        return f"{match[1]}input_layernorm.weight"
    if match[2] in _FFN:
        own = f"{match[1]}pre_feedforward_layernorm.weight"
        return own if own in names else f"{match[1]}post_attention_layernorm.weight"
    return None


def reader_of(name: str) -> str | None:
    """The matrix that reads the rows of v or up (or of their bias), None for other weights."""
    match = _LAYER.fullmatch(name)
    reader = _PAIRS.get(match[2]) if match else None
    return f"{match[1]}{reader}.weight" if match and reader else None


def norm_fold(baseline: Rows, variant: Rows) -> ScaleFold | None:
    """The factors that turned the baseline's norm into the variant's; None where none are needed or none can be."""
    ours, theirs = baseline.values.reshape(-1), variant.values.reshape(-1)
    slack = (baseline.slack + variant.slack).reshape(-1)
    if ours.shape != theirs.shape or np.all(np.abs(ours - theirs) <= slack):
        return None
    unset = (ours == 0) & (theirs == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where(unset, 1, ours / theirs)
        error = np.where(
            unset, 0, baseline.slack.reshape(-1) / np.abs(ours) + variant.slack.reshape(-1) / np.abs(theirs)
        )
    if not np.all(np.isfinite(factors) & (factors > 1 / _LARGEST) & (factors < _LARGEST)):
        return None
    return ScaleFold(factors.astype(np.float32), error.astype(np.float32))


def pair_fold(writer: tuple[Rows, Rows], reader: tuple[Rows, Rows]) -> ScaleFold | None:
    """Factors of the reader's inputs, where the writer's rows are divided by them.

    None where the two matrices do not agree on them, and where they are 1 within what the estimate can tell.

    Args:
        writer: the baseline's and the variant's matrix whose rows are read, all rows.
        reader: those of the matrix that reads them, some rows.
    """
    down, down_error = _slopes(*writer, axis=1)
    up, up_error = _slopes(*reader, axis=0)
    if down.shape != up.shape or np.any(down <= 0) or np.any(up <= 0):
        return None
    both = np.sqrt(down_error**2 + up_error**2)
    product = np.log(down * up)
    usual = float(np.median(product))  # clipping its largest weights shrinks a matrix, and so both slopes
    if not np.all(np.isfinite(both) & (both > 0)) or abs(usual) > _SHRUNK or _spread((product - usual) / both) > 2:
        return None
    if _spread(np.log(up / down) / both) < 3:
        return None
    return ScaleFold(np.sqrt(up / down).astype(np.float32), (1.5 * both).astype(np.float32))  # half of it, three times


def _slopes(baseline: Rows, variant: Rows, axis: int) -> tuple[Floats, Floats]:
    """Least squares slope through the origin of the variant's values on the baseline's, and its relative error."""
    ours, theirs = baseline.values.astype(np.float64), variant.values.astype(np.float64)
    squares = np.sum(ours**2, axis=axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.sum(ours * theirs, axis=axis) / squares
        left = theirs - ours * (slope[:, None] if axis == 1 else slope)
        error = np.sqrt(np.mean(left**2, axis=axis) / squares) / np.abs(slope)
    return slope.astype(np.float32), error.astype(np.float32)


def _spread(scores: Floats) -> float:
    return float(np.sqrt(np.mean(scores**2)))
