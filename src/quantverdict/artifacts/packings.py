"""Stored bytes of a checkpoint's weights as numbers: wide types, AWQ, GPTQ, compressed-tensors, FP8, FP4, MLX, ...

A low-bit matrix stores, for each group of inputs of each output row, whole numbers from 0 to 2**bits - 1, a scale and
a zero point: weight = (number - zero point) * scale. What differs is how the numbers are packed into 32-bit words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantverdict.artifacts.checkpoint_read import Weight
from quantverdict.artifacts.safetensors_read import TensorLocation
from quantverdict.errors import ArtifactError

Floats: TypeAlias = NDArray[np.float32]
Whole: TypeAlias = NDArray[np.int64]
Words: TypeAlias = NDArray[np.uint32]

ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""How far storing may move a value, relative to it: half the distance of neighbours just above a power of two."""

_ITEM = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<u4", "U32": "<u4", "I16": "<i2",
    "I8": "|i1", "U8": "|u1", "F8_E4M3": "|u1", "F8_E5M2": "|u1", "F8_E8M0": "|u1",
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
    if dtype in _EIGHT_BITS:
        floats: Floats = _EIGHT_BITS[dtype]()[stored.astype(np.uint8)]
        return floats
    return np.asarray(stored, dtype=np.float32)


def weight_rows(weight: Weight, rows: Whole) -> Rows | None:
    """Some rows of a matrix (of a vector: the one row it is), None where its packing is not known here.

    Raises:
        ArtifactError: a part has a shape or dtype that does not fit.
    """
    main = weight.parts[weight.main]
    if weight.packing == "wide":
        if main.tensor.dtype not in ROUNDING:
            return None
        stored = raw(main).reshape(-1, weight.shape[-1] if len(weight.shape) > 1 else weight.n_elements)
        return wide_rows(widened(stored[rows], main.tensor.dtype), ROUNDING[main.tensor.dtype])
    reader = _READERS.get(weight.packing)
    if reader is None or (len(weight.shape) != 2 and weight.packing in _FLAT):
        return None
    try:
        return reader(weight, rows)
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
    numbers = unpack(_words(weight, "qweight")[:, rows].T, int(weight.bits), weight.shape[1])
    zeros = unpack(_words(weight, "qzeros"), int(weight.bits), weight.shape[0])[:, rows].T
    if weight.variant != "gptq_v2":
        zeros = zeros + 1
    return _levels(weight, numbers, zeros, _scales(weight, "scales")[:, rows].T, _groups(weight, "g_idx"))


def _packed(weight: Weight, rows: Whole) -> Rows:
    half = 2 ** (int(weight.bits) - 1)
    numbers = unpack(_words(weight, "weight_packed")[rows], int(weight.bits), weight.shape[1])
    scales = _scales(weight, "weight_scale")[rows]
    zeros: NDArray[np.integer] = np.full(scales.shape, half)
    given = weight.parts.get("weight_zero_point")
    if given is not None and given.tensor.dtype == "I32":
        zeros = unpack(_words(weight, "weight_zero_point").T, int(weight.bits), weight.shape[0]).T[rows]
    elif given is not None:
        zeros = raw(given)[rows].astype(np.int64) + half
    return _levels(weight, numbers, zeros, scales, _groups(weight, "weight_g_idx"))


def _scaled(weight: Weight, rows: Whole) -> Rows | None:
    """8-bit integers or floats, with a scale for all, for some rows, or for blocks of them."""
    main = weight.parts[weight.main]
    scale = weight.parts.get("weight_scale") or weight.parts.get("weight_scale_inv")
    if scale is None or main.tensor.dtype not in ("I8", *_LARGEST):
        return None
    width, dtype = weight.shape[-1], main.tensor.dtype
    shape = scale.tensor.shape
    columns = shape[-1] if len(shape) > 1 else 1
    powers = scale.tensor.dtype == "U8"  # exponents, as MXFP8 has them
    scales = _powers(scale, columns) if powers else widened(raw(scale), scale.tensor.dtype).reshape(-1, columns)
    scales = scales[np.minimum(rows // weight.rows, len(scales) - 1)]
    groups = np.minimum(np.arange(width) // weight.group, scales.shape[1] - 1)
    stored = raw(main).reshape(-1, width)[rows]
    if dtype != "I8":
        return _float8_rows(widened(stored, dtype), scales[:, groups], dtype)
    given = weight.parts.get("weight_zero_point")
    zeros: NDArray[np.int64] = np.zeros(scales.shape, np.int64)
    if given is not None:
        zeros = raw(given).reshape(-1, scales.shape[1]).astype(np.int64)
        zeros = zeros[np.minimum(rows // weight.rows, len(zeros) - 1)]
    return _levels(weight, stored.astype(np.int64) + 128, zeros + 128, scales, groups)


def _float8_rows(values: Floats, scales: Floats, dtype: str) -> Rows:
    """8-bit floats times their scales: the step grows with the value."""
    fraction, least, largest = _LARGEST[dtype]
    exponent = np.maximum(np.frexp(values)[1] - 1, least)
    step, outermost = np.ldexp(np.abs(scales), exponent - fraction), np.abs(scales) * np.float32(largest)
    found = values * scales
    return Rows(found, step.astype(np.float32), -outermost, outermost, np.abs(found) * np.float32(2.0**-8))


_LARGEST = {"F8_E4M3": (3, -6, 448.0), "F8_E5M2": (2, -14, 57344.0)}
"""Bits of fraction, the exponent of the smallest normal number, and the largest number."""


def _fp4(weight: Weight, rows: Whole) -> Rows:
    """Two 4-bit floats a byte, the lower half first; a scale for each group, and where they are FP8 one for all.

    compressed-tensors divides by its scale for all, ModelOpt multiplies by it.
    """
    width = weight.shape[-1]
    stored = raw(weight.parts[weight.main]).reshape(-1, width // 2)[rows]
    scale = weight.parts["weight_scale"]
    scales = _powers(scale, width // weight.group)[rows] if weight.variant == "MXFP4" else (
        widened(raw(scale), scale.tensor.dtype).reshape(-1, width // weight.group)[rows]
    )  # fmt: skip
    for leaf, turned in (("weight_global_scale", True), ("weight_scale_2", False)):
        if leaf in weight.parts:
            one = _scales(weight, leaf).reshape(-1)
            own = one[np.minimum(rows // (weight.n_elements // width // len(one)), len(one) - 1), None]
            scales = scales / own if turned else scales * own
    return _table_rows(FP4, _halves(stored), np.repeat(scales, weight.group, axis=1))


def _blocks(weight: Weight, rows: Whole) -> Rows:
    """gpt-oss's experts: rows of (experts, inputs, outputs), stored as (experts, outputs, groups, bytes)."""
    experts, inputs, outputs = weight.shape
    blocks = raw(weight.parts[weight.main]).reshape(experts, outputs, inputs // 2)
    scales = _powers(weight.parts[f"{weight.main.removesuffix('_blocks')}_scales"], inputs // weight.group)
    scales = scales.reshape(experts, outputs, -1)
    expert, place = np.divmod(rows, inputs)
    pairs = blocks[expert, :, place // 2].astype(np.uint8)
    codes = np.where(place[:, None] % 2, pairs >> 4, pairs & 15)
    return _table_rows(FP4, codes, scales[expert, :, place // weight.group])


def _bnb4(weight: Weight, rows: Whole) -> Rows:
    """bitsandbytes: a table of 16 values, the upper half of a byte first, scales that may be stored in 8 bits."""
    width, parts = weight.shape[-1], weight.parts
    at = rows[:, None] * width + np.arange(width)
    pairs = raw(parts[weight.main]).reshape(-1).astype(np.uint8)[at // 2]
    codes = np.where(at % 2, pairs & 15, pairs >> 4)
    state = json.loads(next(piece.data for leaf, piece in parts.items() if ".quant_state." in leaf))
    scales = raw(parts["weight.absmax"]).reshape(-1)
    if "weight.nested_absmax" in parts:
        table, outer = (_scales(weight, f"weight.nested_{leaf}").reshape(-1) for leaf in ("quant_map", "absmax"))
        each = outer[np.arange(len(scales)) // int(state["nested_blocksize"])]
        scales = table[scales.astype(np.uint8)] * each + np.float32(state["nested_offset"])
    table = _scales(weight, "weight.quant_map").reshape(-1)
    return _table_rows(table, codes, np.asarray(scales, np.float32)[at // weight.group], slack=2.0**-8)


def _bnb8(weight: Weight, rows: Whole) -> Rows:
    scales = _scales(weight, "SCB").reshape(-1, 1)[rows] / np.float32(127)
    numbers = raw(weight.parts[weight.main]).reshape(-1, weight.shape[-1])[rows].astype(np.float32)
    found = numbers * scales
    return Rows(found, scales, -127 * scales, 127 * scales, np.float32(2.0**-8) * np.abs(found))


def _mlx(weight: Weight, rows: Whole) -> Rows:
    """MLX's affine integers: number times scale plus bias, both of a group."""
    width, bits = weight.shape[-1], int(weight.bits)
    words = np.asarray(raw(weight.parts[weight.main]), np.uint32)
    numbers = unpack(words.reshape(-1, words.shape[-1])[rows], bits, width)
    scales, biases = (_scales(weight, leaf).reshape(-1, width // weight.group)[rows] for leaf in ("scales", "biases"))
    ends = biases, biases + scales * np.float32(2**bits - 1)
    slack = np.maximum(np.abs(ends[0]), np.abs(ends[1])) * ROUNDING[weight.parts["scales"].tensor.dtype]
    each = (np.abs(scales), np.minimum(*ends), np.maximum(*ends), slack)
    step, low, high, more = (np.repeat(item.astype(np.float32), weight.group, axis=1) for item in each)
    factors, base = (np.repeat(item, weight.group, axis=1) for item in (scales, biases))
    return Rows(numbers.astype(np.float32) * factors + base, step, low, high, more)


def _halves(stored: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Both halves of each byte, the lower one first."""
    octets = stored.astype(np.uint8)
    return np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(octets), -1)


def _table_rows(table: Floats, codes: NDArray[np.integer], scales: Floats, slack: float = 2.0**-8) -> Rows:
    """Values of a table, times their scales; the step is the wider one to the neighbours on either side.

    Args:
        slack: how far the number that was rounded may have been off, relative to it: some makers divide in BF16.
    """
    ordered = np.unique(table)
    gaps = np.concatenate([[0], np.diff(ordered), [0]])
    wider = np.maximum(gaps[:-1], gaps[1:])[np.searchsorted(ordered, table)].astype(np.float32)
    values, size = table[codes] * scales, np.abs(scales)
    return Rows(values, wider[codes] * size, ordered[0] * size, ordered[-1] * size, np.abs(values) * np.float32(slack))


def _powers(scale: TensorLocation, columns: int) -> Floats:
    """Powers of two, stored as their exponents plus 127."""
    return np.ldexp(np.float32(1), raw(scale).reshape(-1, columns).astype(np.int32) - 127).astype(np.float32)


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


def _wider_float8() -> Floats:
    """The value of every 8-bit float of 5 bits of exponent and 2 of fraction: the upper half of a 16-bit float."""
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


def _exponents() -> Floats:
    """The value of every 8-bit exponent: a power of two; all ones is not a number."""
    powers = np.ldexp(1.0, np.arange(256) - 127).astype(np.float32)
    powers[255] = np.nan
    return powers


_EIGHT_BITS = {"F8_E4M3": _float8, "F8_E5M2": _wider_float8, "F8_E8M0": _exponents}
_HALF = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4: Floats = np.concatenate([_HALF, -_HALF])
"""The value of every 4-bit float: a sign, 2 bits of exponent, 1 of fraction."""
_FLAT = ("awq", "gptq", "packed")
"""Packings that are read of a matrix alone, not of stacked ones."""
_READERS: Mapping[str, Callable[[Weight, Whole], Rows | None]] = {
    "awq": _awq, "gptq": _gptq, "packed": _packed, "scaled": _scaled, "fp4": _fp4, "blocks": _blocks, "bnb4": _bnb4,
    "bnb8": _bnb8, "mlx": _mlx,
}  # fmt: skip
