"""Read a safetensors header, trusting nothing in it.

The format: 8 bytes of header length, that many bytes of JSON (tensor name to dtype, shape and data offsets), then the
data of all tensors without a gap. Only the header is parsed; data stay in the mapped file.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeGuard

from quantverdict.errors import ArtifactError, os_reason

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits an element of each dtype takes."""

_LONGEST_HEADER = 100_000_000
_EXPECTED = "a whole safetensors file"


class StoredTensor(NamedTuple):
    """A tensor as it is stored.

    Attributes:
        shape: rows first, as torch has it.
        start, nbytes: of its data, from the beginning of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Safetensors:
    """An open file: its checked header over the mapped bytes."""

    path: Path
    data: mmap.mmap
    tensors: tuple[StoredTensor, ...]


def open_safetensors(path: Path) -> Safetensors:
    """Map a file and check its header; no tensor data are read.

    Raises:
        ArtifactError: it is missing, no safetensors file, truncated or corrupt.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ArtifactError("does not exist", file=path, expected="a safetensors file") from error
    except ValueError as error:
        raise ArtifactError("is empty", file=path, expected="a safetensors file") from error
    except OSError as error:
        problem = f"cannot be read ({os_reason(error)})"
        raise ArtifactError(problem, file=path, expected="a safetensors file") from error
    header, begin = _header(path, data)
    entries = (_entry(path, name, item, begin) for name, item in header.items() if name != "__metadata__")
    tensors = tuple(sorted(entries, key=lambda tensor: (tensor.start, tensor.nbytes)))
    _check_layout(path, tensors, begin, len(data))
    return Safetensors(path, data, tensors)


def _header(path: Path, data: mmap.mmap) -> tuple[Mapping[str, object], int]:
    """The JSON, and where the data begin."""
    size = len(data)
    length = struct.unpack_from("<Q", data)[0] if size >= 8 else 0
    if data[8:9] != b"{" or not 2 <= length <= _LONGEST_HEADER:
        raise ArtifactError(f"is not a safetensors file: it starts with {data[:8]!r}", file=path, expected=_EXPECTED)
    if length > size - 8:
        problem = f"is truncated: a header of {length} bytes in a file of {size}"
        raise ArtifactError(problem, file=path, expected=_EXPECTED)
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ArtifactError("is corrupt: its header is no JSON with each name once", file=path) from error
    assert isinstance(header, dict)  # it starts with a brace
    return header, 8 + length


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _entry(path: Path, name: str, item: object, begin: int) -> StoredTensor:
    shown = name if len(name) <= 80 and name.isprintable() else ascii(name[:80])
    if not isinstance(item, dict):
        raise ArtifactError("is corrupt: no entry of a tensor", file=path, field=shown)
    dtype, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ArtifactError(f"is corrupt or too new: dtype {dtype!r:.40}", file=path, field=shown)
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or prod(shape) >= 2**60:
        raise ArtifactError(
            "is corrupt: its shape or data offsets are no counts", file=path, field=shown, expected="whole numbers"
        )
    nbytes, bits = offsets[1] - offsets[0], prod(shape) * DTYPE_BITS[dtype]
    if 8 * nbytes != bits:
        problem = f"is corrupt: {nbytes} bytes for shape {shape} of {dtype}"
        raise ArtifactError(problem, file=path, field=shown, expected=f"{bits / 8:g}")
    return StoredTensor(name, dtype, tuple(shape), begin + offsets[0], nbytes)


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(path: Path, tensors: tuple[StoredTensor, ...], begin: int, size: int) -> None:
    """Data lie one after the other from the header to the end of the file, as the format says."""
    end = begin
    for tensor in tensors:
        if tensor.start != end:
            problem = "overlap those of another tensor" if tensor.start < end else "leave a gap before them"
            raise ArtifactError(f"is corrupt: its data {problem}", file=path, field=tensor.name, expected=_EXPECTED)
        end = tensor.start + tensor.nbytes
    if end != size:
        problem = f"is truncated: its data end at byte {end}, the file at {size}"
        if end < size:
            problem = f"is corrupt: {size - end} bytes after its data"
        raise ArtifactError(problem, file=path, expected=_EXPECTED)


class TensorLocation(NamedTuple):
    """A stored tensor and the file it is in."""

    file: Safetensors
    tensor: StoredTensor

    @property
    def data(self) -> bytes:
        """A copy of its bytes; for small ones."""
        return self.file.data[self.tensor.start : self.tensor.start + self.tensor.nbytes]
