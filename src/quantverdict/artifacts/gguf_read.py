"""Read a GGUF header, trusting nothing in it.

Follows ggml's docs/gguf.md (versions 2 and 3, little-endian). Every count and length
is compared with the bytes that are left before anything is walked or allocated, so a corrupt file costs no more
than its own size. Metadata are kept as byte spans, which is what lets the writer copy them unchanged.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from quantverdict.artifacts.ggml_types import TYPE_BY_NUMBER, GgmlType
from quantverdict.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_MAX_DIMS = 4
_LONGEST_NAME = 65_535
Value = str | int | float | bool | list[str] | list[int] | list[float] | list[bool]


class Field(NamedTuple):
    """A metadata value: where it lies in the file (its type number not included)."""

    kind: int
    start: int
    end: int


class Tensor(NamedTuple):
    """A tensor's entry.

    Attributes:
        shape: ne[0] (the row length) first, as the file has it.
        start, nbytes: of its data, from the beginning of the file.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    start: int
    nbytes: int

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def n_dims(self) -> int:
        """Dimensions without the trailing ones, as ggml counts them."""
        return max((place + 1 for place, extent in enumerate(self.shape) if extent > 1), default=1)


@dataclass(frozen=True, slots=True)
class Gguf:
    """An open GGUF: its checked header over the mapped file."""

    path: Path
    data: mmap.mmap
    fields: Mapping[str, Field]
    tensors: tuple[Tensor, ...]
    alignment: int

    def get(self, key: str) -> Value | None:
        """A metadata value, None where the file has no such key."""
        field = self.fields.get(key)
        return None if field is None else _value(self.data, field)

    def text(self, key: str) -> str | None:
        """A string, None where the key is missing or of another type."""
        value = self.get(key)
        return value if isinstance(value, str) else None

    def entries(self, key: str) -> NDArray[np.generic] | None:
        """A list as an array, numbers without a copy; None where the key is missing or holds no list."""
        import numpy as np

        field = self.fields.get(key)
        if field is None or field.kind != _ARRAY:
            return None
        kind, count = struct.unpack_from("<IQ", self.data, field.start)
        if kind == _STRING:
            return np.array(_value(self.data, field), dtype=object)
        return np.frombuffer(self.data, f"<{_SCALARS[kind]}", count, field.start + 12)

    def integer(self, key: str) -> int | None:
        """An integer, None where the key is missing or of another type."""
        value = self.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def open_gguf(path: Path) -> Gguf:
    """Map a file and check its header; no tensor data are read.

    Raises:
        ArtifactError: it is missing, no GGUF, truncated or corrupt.
    """
    try:
        if path.is_fifo():  # opening it would wait until somebody writes
            raise ArtifactError("is a pipe", file=path, expected="a GGUF file")
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ArtifactError("does not exist", file=path, expected="a GGUF file") from error
    except IsADirectoryError as error:
        raise ArtifactError("is a folder", file=path, expected="a GGUF file") from error
    except ValueError as error:
        raise ArtifactError("is empty", file=path, expected="a GGUF file") from error
    except OSError as error:
        raise ArtifactError(f"cannot be read ({error.strerror or error})", file=path, expected="a GGUF file") from error
    return _Parser(path, data).parse()


class _Parser:
    """One walk over the header; `at` is the position."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 0

    def parse(self) -> Gguf:
        if self.data[:4] != b"GGUF":
            raise self.fail(f"is not a GGUF file: it starts with {self.data[:4]!r}", "the four bytes GGUF")
        self.at = 4
        version = self.number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
            problem = "is big-endian" if swapped in (2, 3) else f"has GGUF version {version}"
            raise self.fail(problem, "a little-endian GGUF of version 2 or 3")
        n_tensors, n_fields = self.number("Q"), self.number("Q")
        self.room("metadata fields", n_fields, 13)
        fields = self.fields(n_fields)
        self.room("tensors", n_tensors, 32)
        entries = [self.tensor_entry() for _ in range(n_tensors)]
        alignment = self.alignment(fields)
        begin = -(-self.at // alignment) * alignment
        tensors = tuple(self.placed(entry, begin, alignment) for entry in entries)
        self.check_layout(tensors)
        return Gguf(self.path, self.data, fields, tensors, alignment)

    def fail(self, problem: str, expected: str | None = None, field: str | None = None) -> ArtifactError:
        if field is not None and (len(field) > 80 or not field.isprintable()):
            field = ascii(field[:80])
        return ArtifactError(problem, file=self.path, field=field, expected=expected)

    def take(self, count: int) -> int:
        """Step over `count` bytes; returns where they begin."""
        start = self.at
        if count > self.size - start:
            problem = f"is truncated or corrupt: its header needs {count} bytes at byte {start} of {self.size}"
            raise self.fail(problem, "a whole GGUF file")
        self.at = start + count
        return start

    def room(self, what: str, count: int, least: int) -> None:
        if count > (self.size - self.at) // least:
            raise self.fail(
                f"is truncated or corrupt: {count} {what} do not fit into {self.size} bytes", "a whole GGUF file"
            )

    def number(self, code: str) -> int:
        value: int = struct.unpack_from(f"<{code}", self.data, self.take(struct.calcsize(code)))[0]
        return value

    def name(self, what: str) -> str:
        length = self.number("Q")
        if length > _LONGEST_NAME:
            raise self.fail(f"is corrupt: {what} of {length} bytes", f"at most {_LONGEST_NAME}")
        start = self.take(length)
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"is corrupt: {what} at byte {start} is not UTF-8") from error

    def fields(self, count: int) -> dict[str, Field]:
        fields: dict[str, Field] = {}
        for _ in range(count):
            key = self.name("a metadata key")
            if key in fields:
                raise self.fail("is corrupt: a metadata key is given twice", field=key)
            kind = self.number("I")
            start = self.at
            self.skip(kind, key)
            fields[key] = Field(kind, start, self.at)
        return fields

    def skip(self, kind: int, key: str) -> None:
        if kind in _SCALARS:
            self.take(struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            self.take(self.number("Q"))
        elif kind == _ARRAY:
            self.skip_array(key)
        else:
            raise self.fail(f"is corrupt: value type {kind}", "a type from 0 to 12", key)

    def skip_array(self, key: str) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            self.take(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            self.room(f"strings of {key}", count, 8)
            for _ in range(count):
                self.take(self.number("Q"))
        else:
            raise self.fail(f"is corrupt: an array of value type {kind}", "numbers or strings", key)

    def alignment(self, fields: Mapping[str, Field]) -> int:
        field = fields.get("general.alignment")
        if field is None:
            return 32
        value = _value(self.data, field) if field.kind == _UINT32 else None
        if not isinstance(value, int) or value <= 0 or value & (value - 1):
            raise self.fail("is corrupt: not an alignment", "a power of two as uint32", "general.alignment")
        return value

    def tensor_entry(self) -> tuple[str, tuple[int, ...], GgmlType, int]:
        name = self.name("a tensor name")
        n_dims = self.number("I")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise self.fail(f"is corrupt: {n_dims} dimensions", f"1 to {_MAX_DIMS}", name)
        shape = tuple(self.number("Q") for _ in range(n_dims))
        kind, offset = self.number("I"), self.number("Q")
        ggml_type = TYPE_BY_NUMBER.get(kind)
        if ggml_type is None:
            raise self.fail(f"is corrupt or too new: tensor type {kind}", "a type this version knows", name)
        if min(shape) < 1 or prod(shape) >= 2**63:
            raise self.fail(f"is corrupt: shape {shape}", "positive extents", name)
        if shape[0] % ggml_type.block:
            raise self.fail(
                f"is corrupt: rows of {shape[0]}", f"a multiple of {ggml_type.block} for {ggml_type.name}", name
            )
        return name, shape, ggml_type, offset

    def placed(self, entry: tuple[str, tuple[int, ...], GgmlType, int], begin: int, alignment: int) -> Tensor:
        name, shape, ggml_type, offset = entry
        if offset % alignment:
            raise self.fail(f"is corrupt: data offset {offset}", f"a multiple of {alignment}", name)
        nbytes = prod(shape) // ggml_type.block * ggml_type.size
        end = begin + offset + nbytes
        if end > self.size:
            raise self.fail(
                f"is truncated: its data end at byte {end}, the file at {self.size}", "a whole GGUF file", name
            )
        return Tensor(name, shape, ggml_type, begin + offset, nbytes)

    def check_layout(self, tensors: tuple[Tensor, ...]) -> None:
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise self.fail("is corrupt: two tensors have one name", "each tensor once")
        end = 0
        for tensor in sorted(tensors, key=lambda item: item.start):
            if tensor.start < end:
                raise self.fail("is corrupt: its data overlap those of another tensor", field=tensor.name)
            end = tensor.start + tensor.nbytes


def _value(data: mmap.mmap, field: Field) -> Value:
    kind, start = field.kind, field.start
    if kind == _STRING:
        return data[start + 8 : field.end].decode(errors="replace")
    if kind != _ARRAY:
        scalar: int | float | bool = struct.unpack_from(f"<{_SCALARS[kind]}", data, start)[0]
        return scalar
    item, count = struct.unpack_from("<IQ", data, start)
    if item != _STRING:
        return list(struct.unpack_from(f"<{count}{_SCALARS[item]}", data, start + 12))
    strings, at = [], start + 12
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        strings.append(data[at + 8 : at + 8 + length].decode(errors="replace"))
        at += 8 + length
    return strings
