"""Scales that a quantiser moved from one weight into another, which leave the model the same.

AWQ multiplies inputs of a matrix by factors and divides what feeds them: the norm before q, k, v or before gate and up;
the rows of v before o; the rows of up before down. A norm is stored wide, so its factors are known from it. Those of
v and up show in no wide weight: they are estimated from both matrices, and must be each other's inverse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from quantverdict.artifacts.packings import Floats, Rows

_LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)\.(weight|bias)")
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj")
_FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj")
_PAIRS = {"self_attn.v_proj": "self_attn.o_proj", "mlp.up_proj": "mlp.down_proj"}
_LARGEST, _SHRUNK = 1e4, 0.2


class Fold(NamedTuple):
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


def norm_fold(baseline: Rows, variant: Rows) -> Fold | None:
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
    return Fold(factors.astype(np.float32), error.astype(np.float32))


def pair_fold(writer: tuple[Rows, Rows], reader: tuple[Rows, Rows]) -> Fold | None:
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
    return Fold(np.sqrt(up / down).astype(np.float32), (1.5 * both).astype(np.float32))  # half of it, three times


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
