"""Does a wide tensor still show the grid of a low-bit type it was once stored in?

A low-bit type stores a small block of a row as a few equally spaced values. Decoding keeps them: a block of 32 values
from a 4-bit type has at most 16 different ones, and values from a 5 to 8-bit type lie on a common step, up to the
rounding of the wide type (BF16 rounds away all grids of more than 5 bits). Weights that were never quantised do
neither. This reads the data alone; metadata may lie.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantverdict.artifacts.gguf_read import Gguf, Tensor

WIDE = ("F16", "BF16", "F32")
_BLOCK = 32
_LEAST_STEP = 2.0**-24
"""Between the smallest F16 numbers."""
_TENSORS = 12
_BLOCKS = 96
_GRIDS = ((5, 32, 31), (6, 16, 63), (8, 32, 254))
"""Bits, block length, and the steps its values may span (Q8_0 uses -127 to 127)."""
_ENOUGH = 0.98
"""Share of the blocks that must fit: a rare block may miss because its smallest step did not occur in it."""

Floats: TypeAlias = NDArray[np.float64]


def low_bit_grid(model: Gguf) -> str | None:
    """The commonest grid of the sampled wide matrices, like `4-bit`; None where at least half of them show none."""
    matrices = [
        item for item in model.tensors if item.type.name in WIDE and item.n_dims > 1 and item.shape[0] >= _BLOCK
    ]
    if not matrices:
        return None
    step = max(1, len(matrices) // _TENSORS)
    found: Counter[int | None] = Counter(
        tensor_grid(_sample(model, tensor), tensor.type.name) for tensor in matrices[::step]
    )
    plain = found.pop(None, 0)
    return f"{found.most_common(1)[0][0]}-bit" if found.total() > plain else None


def tensor_grid(blocks: Floats, wide_type: str) -> int | None:
    """Bits of the grid that the rows of `blocks` (n, 32) lie on, None where they lie on none.

    Args:
        blocks: stretches of 32 values along the rows of a tensor.
        wide_type: F16, BF16 or F32: how far the stored values may be off the grid.
    """
    coarse = 128 * _LEAST_STEP if wide_type == "F16" else 0.0  # below this F16 is itself a grid of few steps
    blocks = blocks[(_distinct(blocks) > 2) & (np.abs(blocks).max(axis=1, initial=0.0) > coarse)]
    if len(blocks) < 8:
        return None
    halves = blocks.reshape(-1, _BLOCK // 2)
    for bits, values in ((2, halves), (3, halves), (4, blocks)):
        if np.mean(_distinct(values) <= 2**bits) >= _ENOUGH and _repeats(values):
            return bits
    for bits, length, steps in _GRIDS:
        values = blocks.reshape(-1, length)
        values = values[_distinct(values) >= 8]
        if len(values) >= 8 and np.mean(_on_grid(values, steps, wide_type)) >= _ENOUGH:
            return bits
    return None


def _repeats(values: Floats) -> bool:
    """Whether values other than zero recur within their block: few distinct values alone may be sparse weights."""
    distinct = _distinct(values) - np.any(values == 0, axis=1)
    return bool(distinct.sum() <= 0.75 * np.count_nonzero(values))


def _distinct(values: Floats) -> NDArray[np.intp]:
    ordered = np.sort(values, axis=1)
    return np.asarray(1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1), dtype=np.intp)


def _on_grid(blocks: Floats, steps: int, wide_type: str) -> NDArray[np.bool_]:
    """Which blocks lie on equal steps, spanning at most `steps` of them, up to the rounding of the wide type."""
    ordered = np.sort(blocks, axis=1)
    gaps = np.diff(ordered, axis=1)
    span = ordered[:, -1] - ordered[:, 0]
    error = 3 * _rounding(np.abs(blocks).max(axis=1), wide_type)  # of the value, of the smallest one, and of the step
    least_gap = np.where(gaps > error[:, None], gaps, np.inf).min(axis=1, initial=np.inf) + error
    open_ = span <= steps * least_gap  # a step is no longer than the least gap: most plain weights are out here
    fits = np.zeros(len(blocks), np.bool_)
    if np.mean(open_) < _ENOUGH:
        return fits
    above = ordered - ordered[:, :1]
    for count in range(1, steps + 1):
        step = np.where(span > 0, span, 1.0)[:, None] / count
        off = np.abs(above - np.rint(above / step) * step).max(axis=1)
        fits |= (off <= error) & (error < step[:, 0] / 4)
    return fits | (span <= 0)


def _rounding(largest: Floats, wide_type: str) -> Floats:
    """How far storing a value of at most this size may move it."""
    relative = {"F16": 2.0**-11, "BF16": 2.0**-8, "F32": 2.0**-23}[wide_type]
    return np.maximum(largest * relative, _LEAST_STEP / 2 if wide_type == "F16" else 0.0)


def _sample(model: Gguf, tensor: Tensor) -> Floats:
    """Up to 96 blocks (n, 32) spread evenly over a tensor; blocks start at multiples of 32 in their row."""
    item = {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}[tensor.type.name]
    values = model.stored(tensor).view(item).reshape(-1, tensor.shape[0])
    whole = tensor.shape[0] // _BLOCK
    places = np.unique(np.linspace(0, values.shape[0] * whole - 1, _BLOCKS).astype(np.int64))
    picked = np.stack([values[place // whole, (start := place % whole * _BLOCK) : start + _BLOCK] for place in places])
    if tensor.type.name == "BF16":
        picked = (picked.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):  # what is no number is left out
        wide = picked.astype(np.float64)
    return wide[np.isfinite(wide).all(axis=1)]
