"""Rows of a GGUF tensor with the grid that they were rounded to.

A low-bit block stores whole numbers and what turns them into values. To see the levels, the same block is decoded
again with other numbers put in: all 0, all 1 and all at the largest one, which gives the lowest level, the distance to
the next one and the highest level of every value, by llama.cpp's own decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantverdict.artifacts.ggml_types import GgmlType
from quantverdict.artifacts.gguf_read import Gguf, Tensor
from quantverdict.artifacts.packings import ROUNDING, Floats, Rows, Whole, wide_rows, widened

Bytes: TypeAlias = NDArray[np.uint8]


class Layout(NamedTuple):
    """Where a block keeps its numbers.

    Attributes:
        numbers: the bytes of them, as (first, end, pattern of all 0, of all 1, of all at the largest).
        slack: how far the stored scale may be off the one that was rounded with, relative to the outermost level.
    """

    numbers: tuple[tuple[int, int, int, int, int], ...]
    slack: float


_F16_SCALE = 2.0**-11
_LAYOUTS: Mapping[str, Layout] = {
    "Q8_0": Layout(((2, 34, 0x81, 0x82, 0x7F),), _F16_SCALE),
    "Q4_0": Layout(((2, 18, 0x00, 0x11, 0xFF),), _F16_SCALE),
    "Q4_1": Layout(((4, 20, 0x00, 0x11, 0xFF),), _F16_SCALE),
    "Q5_0": Layout(((2, 6, 0x00, 0x00, 0xFF), (6, 22, 0x00, 0x11, 0xFF)), _F16_SCALE),
    "Q5_1": Layout(((4, 8, 0x00, 0x00, 0xFF), (8, 24, 0x00, 0x11, 0xFF)), _F16_SCALE),
    # The K types round with the scales as they are stored.
    "Q2_K": Layout(((16, 80, 0x00, 0x55, 0xFF),), 2.0**-20),
    "Q3_K": Layout(((0, 32, 0x00, 0x00, 0xFF), (32, 96, 0x00, 0x55, 0xFF)), 2.0**-20),
    "Q4_K": Layout(((16, 144, 0x00, 0x11, 0xFF),), 2.0**-20),
    "Q5_K": Layout(((16, 48, 0x00, 0x00, 0xFF), (48, 176, 0x00, 0x11, 0xFF)), 2.0**-20),
    "Q6_K": Layout(((0, 128, 0x00, 0x11, 0xFF), (128, 192, 0x00, 0x00, 0xFF)), 2.0**-20),
}
_WIDE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}


def gguf_rows(model: Gguf, tensor: Tensor, rows: Whole) -> Rows:
    """Some rows of a tensor, counted over all but its first extent.

    Raises:
        QuantverdictError: a low-bit type, and the llamacpp extra is not installed.
        EngineError: the kernels cannot decode the type.
    """
    kind, length = tensor.type, tensor.shape[0]
    item = _WIDE.get(kind.name)
    stored = np.frombuffer(model.data, np.uint8, tensor.nbytes, tensor.start)
    if item is not None:
        return wide_rows(widened(stored.view(item).reshape(-1, length)[rows], kind.name), ROUNDING[kind.name])
    blocks = stored.reshape(-1, length // kind.block, kind.size)[rows]
    values = _decoded(blocks, kind)
    layout = _LAYOUTS.get(kind.name)
    if layout is None:
        nothing = np.zeros((1, 1), np.float32)
        return Rows(values, None, nothing, nothing, nothing)
    first, second, last = (_decoded(_with_numbers(blocks, layout, which), kind) for which in (2, 3, 4))
    low, high = np.minimum(first, last), np.maximum(first, last)
    slack = np.maximum(np.abs(low), np.abs(high)) * np.float32(layout.slack)
    return Rows(values, np.abs(second - first), low, high, slack)


def _with_numbers(blocks: Bytes, layout: Layout, which: int) -> Bytes:
    changed = blocks.copy()
    for part in layout.numbers:
        changed[..., part[0] : part[1]] = part[which]
    return changed


def _decoded(blocks: Bytes, kind: GgmlType) -> Floats:
    """Values (rows, length) of blocks (rows, blocks a row, bytes)."""
    from quantverdict.artifacts.ggml_kernels import kernels

    data = np.ascontiguousarray(blocks)
    values = np.empty((blocks.shape[0], blocks.shape[1] * kind.block), np.float32)
    if values.size:
        kernels().widen(kind, data.ctypes.data, values.ctypes.data, values.size)
    return values
