"""Stored bytes of a checkpoint's weights as numbers: wide types, AWQ, GPTQ, compressed-tensors.

A low-bit matrix stores, for each group of inputs of each output row, whole numbers from 0 to 2**bits - 1, a scale and
a zero point: weight = (number - zero point) * scale. What differs is how the numbers are packed into 32-bit words.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantverdict.artifacts.checkpoint_read import TensorLocation, Weight
from quantverdict.errors import ArtifactError

Floats: TypeAlias = NDArray[np.float32]
Whole: TypeAlias = NDArray[np.int64]
Words: TypeAlias = NDArray[np.uint32]

ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""How far storing may move a value, relative to it: half the distance of neighbours just above a power of two."""

_ITEM = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<u4", "I16": "<i2", "I8": "|i1",
    "U8": "|u1", "F8_E4M3": "|u1",
}  # fmt: skip
_AWQ_ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Where in its word AWQ puts each of eight neighbouring outputs."""


class Rows(NamedTuple):
    """Rows of a weight, with the grid that they were rounded to.

    Attributes:
        values: (rows, inputs).
        step: distance of neighbouring levels, as `values` or one number; 0 for a wide type, None where the type has no
            regular levels.
        low, high: the outermost levels, as `values`; infinite for a wide type.
        slack: how much further than half a step a value may have moved, by the rounding of the value or its scale.
    """

    values: Floats
    step: Floats | None
    low: Floats
    high: Floats
    slack: Floats


def wide_rows(values: Floats, rounding: float) -> Rows:
    """Values of a wide type, whose rounding is relative."""
    infinite = np.full((1, 1), np.inf, np.float32)
    # Numbers below the smallest normal one of F16 are rounded to a fixed step.
    least = 2.0**-25 if rounding == ROUNDING["F16"] else 0.0
    slack = np.abs(values) * np.float32(rounding) + np.float32(least)
    return Rows(values, np.zeros((1, 1), np.float32), -infinite, infinite, slack)


def raw(piece: TensorLocation) -> NDArray[np.generic]:
    """A stored tensor in its shape, not copied; BF16 and 8-bit floats as their bits.

    Raises:
        ArtifactError: a dtype that this version cannot read.
    """
    tensor = piece.tensor
    item = _ITEM.get(tensor.dtype)
    if item is None:
        raise ArtifactError(f"cannot be read as {tensor.dtype}", file=piece.file.path, field=tensor.name)
    return np.frombuffer(piece.file.data, item, tensor.n_elements, tensor.start).reshape(tensor.shape)


def widened(stored: NDArray[np.generic], dtype: str) -> Floats:
    """Values as float32, from what `raw` gives."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        floats: Floats = _float8()[stored.astype(np.uint8)]
        return floats
    return np.asarray(stored, dtype=np.float32)


def weight_rows(weight: Weight, rows: Whole) -> Rows | None:
    """Some rows of a matrix (of a vector: the one row it is), None where its packing is not known here.

    Raises:
        ArtifactError: a part has a shape or dtype that does not fit.
    """
    main = weight.parts[weight.main]
    if weight.packing == "wide":
        stored = raw(main).reshape(-1, weight.shape[-1] if len(weight.shape) > 1 else weight.n_elements)
        return wide_rows(widened(stored[rows], main.tensor.dtype), ROUNDING[main.tensor.dtype])
    if len(weight.shape) != 2:
        return None
    try:
        if weight.packing == "awq":
            return _awq(weight, rows)
        if weight.packing == "gptq":
            return _gptq(weight, rows)
        if weight.packing == "packed":
            return _packed(weight, rows)
        return _scaled(weight, rows)
    except (IndexError, ValueError) as error:
        problem = f"has parts of shapes that do not belong together ({error})"
        raise ArtifactError(problem, file=main.file.path, field=weight.name) from error


def unpack(words: Words, bits: int, count: int) -> NDArray[np.integer]:
    """`count` numbers of `bits` bits along the last axis, from words filled from the lowest bit on without gaps."""
    if 8 % bits == 0:
        octets = np.ascontiguousarray(words, "<u4").view(np.uint8)
        numbers = (octets[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)) & np.uint8(2**bits - 1)
        return numbers.reshape(*words.shape[:-1], -1)[..., :count].astype(np.int16)
    start = np.arange(count) * bits
    wide = words.astype(np.uint64)
    after = np.minimum(start // 32 + 1, words.shape[-1] - 1)
    pair = wide[..., start // 32] | (wide[..., after] << np.uint64(32))
    return ((pair >> (start % 32).astype(np.uint64)) & np.uint64(2**bits - 1)).astype(np.int64)


def _awq(weight: Weight, rows: Whole) -> Rows | None:
    if weight.bits != 4:
        return None
    shifts = (4 * _AWQ_ORDER[rows % 8]).astype(np.uint32)
    numbers, zeros = ((_words(weight, leaf)[:, rows // 8] >> shifts) & np.uint32(15) for leaf in ("qweight", "qzeros"))
    groups = np.arange(weight.shape[1]) // weight.group
    return _levels(weight, numbers.T, zeros.T, _scales(weight, "scales")[:, rows].T, groups)


def _gptq(weight: Weight, rows: Whole) -> Rows:
    """AutoGPTQ stores zero points less one; checkpoint_format `gptq_v2` stores them as they are."""
    numbers = unpack(_words(weight, "qweight")[:, rows].T, weight.bits, weight.shape[1])
    zeros = unpack(_words(weight, "qzeros"), weight.bits, weight.shape[0])[:, rows].T
    if weight.variant != "gptq_v2":
        zeros = zeros + 1
    return _levels(weight, numbers, zeros, _scales(weight, "scales")[:, rows].T, _groups(weight, "g_idx"))


def _packed(weight: Weight, rows: Whole) -> Rows:
    half = 2 ** (weight.bits - 1)
    numbers = unpack(_words(weight, "weight_packed")[rows], weight.bits, weight.shape[1])
    scales = _scales(weight, "weight_scale")[rows]
    zeros: NDArray[np.integer] = np.full(scales.shape, half)
    given = weight.parts.get("weight_zero_point")
    if given is not None and given.tensor.dtype == "I32":
        zeros = unpack(_words(weight, "weight_zero_point").T, weight.bits, weight.shape[0]).T[rows]
    elif given is not None:
        zeros = raw(given)[rows].astype(np.int64) + half
    return _levels(weight, numbers, zeros, scales, _groups(weight, "weight_g_idx"))


def _scaled(weight: Weight, rows: Whole) -> Rows | None:
    """8-bit integers or floats, with a scale for all, for each row, or for each group of each row."""
    main, scale = weight.parts[weight.main], weight.parts.get("weight_scale")
    if scale is None or main.tensor.dtype not in ("I8", "F8_E4M3"):
        return None
    scales = widened(raw(scale), scale.tensor.dtype)
    scales = scales.reshape(1, -1) if scales.ndim < 2 else scales
    scales = np.broadcast_to(scales, (weight.shape[0], scales.shape[1]))[rows]
    if main.tensor.dtype != "I8":
        groups = np.arange(weight.shape[1]) // weight.group
        return _float8_rows(widened(raw(main)[rows], main.tensor.dtype), scales[:, groups])
    given = weight.parts.get("weight_zero_point")
    zeros = np.zeros(scales.shape, np.int64)
    if given is not None:
        zeros = np.broadcast_to(raw(given).reshape(-1, scales.shape[1]), (weight.shape[0], scales.shape[1]))[rows]
    numbers = raw(main)[rows].astype(np.int64) + 128
    return _levels(weight, numbers, zeros + 128, scales, np.arange(weight.shape[1]) // weight.group)


def _float8_rows(values: Floats, scales: Floats) -> Rows:
    """8-bit floats of 3 bits of fraction times their scales: the step grows with the value."""
    exponent = np.maximum(np.frexp(values)[1] - 1, -6)
    step, outermost = np.ldexp(np.abs(scales), exponent - 3), np.abs(scales) * np.float32(448)
    found = values * scales
    return Rows(found, step.astype(np.float32), -outermost, outermost, np.abs(found) * np.float32(2.0**-8))


def _levels(
    weight: Weight, numbers: NDArray[np.integer], zeros: NDArray[np.integer], scales: Floats, groups: Whole
) -> Rows:
    """Numbers (rows, inputs), zero points and scales (rows, groups), and the group of each input, as values."""
    dtype = weight.parts["scales" if "scales" in weight.parts else "weight_scale"].tensor.dtype
    zeros = zeros.astype(np.int64)  # they may come unsigned
    low, high = -zeros * scales, (2.0**weight.bits - 1 - zeros) * scales
    slack = np.maximum(np.abs(low), np.abs(high)) * ROUNDING[dtype]
    each = (np.abs(scales), np.minimum(low, high), np.maximum(low, high), slack)
    step, lowest, highest, more = (np.take(item.astype(np.float32), groups, axis=1) for item in each)
    above = numbers.astype(np.float32) - np.take(zeros.astype(np.float32), groups, axis=1)
    return Rows(above * np.take(scales, groups, axis=1), step, lowest, highest, more)


def _groups(weight: Weight, leaf: str) -> Whole:
    """The group of each input: as stored, else in order."""
    given = weight.parts.get(leaf)
    if given is None:
        return np.arange(weight.shape[1]) // weight.group
    found = raw(given).astype(np.int64)
    in_order = found.shape != (weight.shape[1],) or found.max(initial=0) >= 2**31  # -1: not ordered
    return np.arange(weight.shape[1]) // weight.group if in_order else found


def _words(weight: Weight, leaf: str) -> Words:
    return np.asarray(raw(weight.parts[leaf]), dtype=np.uint32)


def _scales(weight: Weight, leaf: str) -> Floats:
    piece = weight.parts[leaf]
    return widened(raw(piece), piece.tensor.dtype)


def _float8() -> Floats:
    """The value of every 8-bit float of 4 bits of exponent and 3 of fraction; all ones is not a number."""
    bits = np.arange(256)
    exponent, fraction = bits % 128 >> 3, bits % 8 / 8
    size = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - 7), fraction * 2.0**-6)
    size[bits % 128 == 127] = np.nan
    values: Floats = np.where(bits < 128, size, -size).astype(np.float32)
    return values
