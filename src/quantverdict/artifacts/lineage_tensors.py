"""Is a stored weight what rounding the baseline's to its grid gives?

Every maker of a low-bit build rounds each weight to the nearest level, given its scales (GPTQ moves a weight before it
does, but not those of the first column it takes). So the levels of a variant are compared with the nearest levels to
the baseline's weights. The share that is `off` is 0 for a build of the baseline, and about mean |change| / step for a
build of a changed model: far below the rounding error itself, which a small fine-tune would drown in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

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
_LEAST_ROWS = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """What one weight says.

    Attributes:
        type_name: as the variant stores it.
        off: share of the read values that are not at the nearest level; None where the type has no regular levels.
        error: root mean square of the difference over that of the baseline's values.
        resolution: the smallest such error by a change of the model that would have been seen; None where none would.
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
        size: root mean square of the baseline's values.
        error: root mean square of the difference over `size`.
        correlation: of the two, 1 where both are constant and equal.
        step, slack: mean distance of the variant's levels, and mean of what is tolerated beyond half of it.
    """

    off: NDArray[np.bool_] | None
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


def residual(baseline: Rows, variant: Rows) -> Residual:
    """Compare rows of one weight; both (rows, inputs)."""
    ours, theirs = baseline.values, variant.values
    size, difference = _rms(ours), _rms(theirs - ours)
    error = difference / size if size > 0 else float("inf") if difference > 0 else 0.0
    product = _rms(ours) * _rms(theirs)
    correlation = float(np.mean(ours * theirs, dtype=np.float64)) / product if product > 0 else float(error == 0)
    if baseline.step is None or variant.step is None:
        return Residual(None, size, error, correlation, 0.0, 0.0)
    slack = variant.slack + baseline.slack + baseline.step / 2
    # A weight beyond the outermost level is stored as that level, however far it is.
    distance = np.abs(np.clip(ours, variant.low, variant.high) - np.clip(theirs, baseline.low, baseline.high))
    off = distance > variant.step * np.float32(0.5 + 1e-4) + slack
    return Residual(off, size, error, correlation, float(np.mean(variant.step)), float(np.mean(slack)))


def judge(name: str, type_name: str, found: Residual) -> Finding:
    """One weight's verdict from the share of its values that are off their nearest level."""
    if not np.isfinite(found.error) or found.correlation < _UNRELATED:
        note = f"correlation {found.correlation:.2f} with the baseline's"
        return Finding(name, type_name, DIFFERENT, None, found.error, None, note)
    if found.off is None:
        note = f"{type_name} has no regular levels: an error of {found.error:.1%} hides any smaller change"
        return Finding(name, type_name, CANNOT_TELL, None, found.error, None, note)
    off = float(np.mean(found.off))
    usual = _USUALLY_OFF if found.step > 0 else 0.0
    allowed = max(usual, _ALLOWED_OFF.get(type_name, 0.0))
    resolution = _resolution(found, max(off, usual))
    if off > allowed:
        what = "at their nearest level" if found.step > 0 else "equal within rounding"
        return Finding(name, type_name, DIFFERENT, off, found.error, resolution, f"{off:.2%} of values are not {what}")
    note = f"{off:.2%} of values off, error {found.error:.2%}"
    return Finding(name, type_name, SAME, off, found.error, resolution, note)


def judge_first_column(name: str, type_name: str, found: Residual, sizes: Floats) -> Finding:
    """The verdict for a maker that moves later columns to make up for earlier ones' rounding, as GPTQ does.

    The first column it takes has nothing to make up for: all its values are at the nearest level. That is column 0, or
    any column where the maker takes them in an order of its own. A changed model leaves no such column.

    Args:
        sizes: root mean square of each input's weights in the baseline; columns of next to none say nothing.
    """
    assert found.off is not None
    n_rows, shares = len(found.off), found.off.mean(axis=0)
    telling = sizes >= 0.2 * np.median(sizes)
    count = int(np.count_nonzero(telling))
    if n_rows < _LEAST_ROWS or not count:
        return Finding(name, type_name, CANNOT_TELL, None, found.error, None, f"only {n_rows} rows to tell by")
    first = bool(telling[0]) and shares[0] == 0
    clean = first or bool(np.any(shares[telling] == 0))
    # Of columns that a change touches alike, none is clean but once in 100 if each has this share off.
    share = ((0.0 if first else log(count)) + log(100)) / n_rows
    resolution = _resolution(found, share) if share < 0.5 else None
    off = float(np.mean(shares[telling]))
    if clean:
        column = 0 if first else int(np.flatnonzero(telling & (shares == 0))[0])
        note = f"column {column} is at its nearest levels, error {found.error:.2%}"
        verdict = SAME if resolution is not None else CANNOT_TELL
        return Finding(name, type_name, verdict, off, found.error, resolution, note)
    note = f"no column is at its nearest levels: of the best, {shares[telling].min():.2%} is off"
    return Finding(name, type_name, DIFFERENT, off, found.error, resolution, note)


def _resolution(found: Residual, share: float) -> float | None:
    """The relative size of a change of normal distribution that puts this share off its nearest level."""
    return (share * found.step + found.slack) / (_MEAN_ABS * found.size) if found.size > 0 else None


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
