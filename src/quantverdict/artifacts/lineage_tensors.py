"""Is a stored weight what rounding the baseline's to its grid gives?

Every maker of a low-bit build rounds each weight to the nearest level, given its scales (GPTQ moves a weight before it
does, but not those of the first column it takes). So the levels of a variant are compared with the nearest levels to
the baseline's weights. The share that is `off` is 0 for a build of the baseline, and about mean |change| / step for a
build of a changed model: far below the rounding error itself, which a small fine-tune would drown in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


class Verdict(NamedTuple):
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
        note = f"{type_name} has no regular levels: an error of {found.error:.1%} hides any smaller change"
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


def resolution_of(found: Residual, share: float) -> float:
    """The relative size of a change of normal distribution that puts this share off its nearest level."""
    return (share * found.step + found.slack) / (_MEAN_ABS * found.size) if found.size > 0 else float("inf")


def _rms(values: Floats) -> float:
    flat = values.reshape(-1)
    return float(np.sqrt(np.vdot(flat, flat) / flat.size)) if flat.size else 0.0
