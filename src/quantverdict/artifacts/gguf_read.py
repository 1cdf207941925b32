"""Read a GGUF header, trusting nothing in it.

Follows ggml's docs/gguf.md (versions 2 and 3, little-endian). Every count and length
is compared with the bytes that are left before anything is walked or allocated, so a corrupt file costs no more
than its own size. Metadata are kept as byte spans, which is what lets the writer copy them unchanged.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from quantverdict.errors import ArtifactError, EngineError, QuantverdictError, os_reason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The tensor types of ggml: number, name, and how many bytes a block of elements takes.


class GgmlType(NamedTuple):
    """How a tensor type stores elements: `block` elements in `size` bytes; a size of 0 where that is not known."""

    number: int
    name: str
    block: int
    size: int

    @property
    def known(self) -> bool:
        """Whether it is a type of llama.cpp; of others (`other_type`) only the name is known."""
        return self.size > 0

    @property
    def quantized(self) -> bool:
        return self.block > 1 or not self.known


TYPES = tuple(
    GgmlType(*row)
    for row in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (30, "BF16", 1, 2), (28, "F64", 1, 8),
        (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8),
        (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 36), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136),
        (29, "IQ1_M", 256, 56), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66), (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18), (42, "Q2_0", 64, 18),
    )
)  # fmt: skip
TYPE_BY_NUMBER: Mapping[int, GgmlType] = {item.number: item for item in TYPES}
TYPE_BY_NAME: Mapping[str, GgmlType] = {item.name: item for item in TYPES}
_IK_TYPES: Mapping[int, str] = {
    133: "Q6_0", 134: "IQ1_BN", 135: "IQ2_BN", 136: "Q8_K64", 137: "IQ2_K", 138: "IQ3_K", 139: "IQ4_K", 140: "IQ5_K",
    141: "IQ6_K", 144: "IQ4_KS", 145: "IQ2_KS", 146: "IQ4_KSS", 151: "Q8_KV", 152: "IQ5_KS", 153: "IQ2_KT",
    154: "IQ3_KT", 155: "IQ4_KT", 156: "IQ3_KS", 157: "IQ2_KL", 158: "IQ1_KT",
    230: "BF16_R16", 398: "Q8_KV_R8", 399: "Q8_K_R8",
}  # fmt: skip
"""Types of ik_llama.cpp, whose blocks llama.cpp cannot read."""
_OF_EIGHT_ROWS = (202, 208, 223)
_REPACKED = 200
"""ik_llama.cpp stores a type with four or eight rows interleaved under a number that is this much higher."""
_HIGHEST_TYPE = 1023


def other_type(number: int) -> GgmlType | None:
    """A tensor type that llama.cpp does not have, by name; None for a number that none would take."""
    if not 0 <= number <= _HIGHEST_TYPE:
        return None
    plain = TYPE_BY_NUMBER.get(number - _REPACKED)
    base = _IK_TYPES.get(number - _REPACKED) or (None if plain is None else plain.name)
    rows = "R8" if number in _OF_EIGHT_ROWS else "R4"
    name = _IK_TYPES.get(number) or (f"TYPE_{number}" if base is None else f"{base}_{rows}")
    return GgmlType(number, name, 1, 0)


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
        start, nbytes: of its data, from the beginning of the file that holds it.
        part: which of the model's files that is, from 0.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    start: int
    nbytes: int
    part: int = 0

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def n_dims(self) -> int:
        """Dimensions without the trailing ones, as ggml counts them."""
        return max((place + 1 for place, extent in enumerate(self.shape) if extent > 1), default=1)


@dataclass(frozen=True, slots=True)
class Gguf:
    """An open GGUF: its checked header over the mapped file, or over the files of a model that is split.

    Attributes:
        path: the file; of a split model its first part, which holds the metadata.
        data: of that file.
        rest: of the other parts, in their order.
    """

    path: Path
    data: mmap.mmap
    fields: Mapping[str, Field]
    tensors: tuple[Tensor, ...]
    alignment: int
    rest: tuple[mmap.mmap, ...] = ()

    @property
    def parts(self) -> tuple[mmap.mmap, ...]:
        """The data of every file, in their order."""
        return (self.data, *self.rest)

    @property
    def nbytes(self) -> int:
        """Of all its files."""
        return sum(map(len, self.parts))

    def stored(self, tensor: Tensor) -> NDArray[np.uint8]:
        """The bytes of a tensor as they are stored, without a copy."""
        import numpy as np

        return np.frombuffer(self.parts[tensor.part], np.uint8, tensor.nbytes, tensor.start)

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
    """Map a file, or all files of a model that is split, and check the headers; no tensor data are read.

    Args:
        path: of a split model any part; the others are found by name, as llama.cpp finds them.

    Raises:
        ArtifactError: it is missing, no GGUF, truncated or corrupt; or so is another part, by name.
    """
    model = _open_file(path)
    count = model.integer("split.count")
    return model if count is None or count <= 1 else _joined(model, count)


_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def part_of(name: str) -> tuple[str, int, int] | None:
    """What a name says of a part: the model's name, which one from 1, of how many; None where it is no such name."""
    found = _PART.fullmatch(name)
    return None if found is None else (found[1], int(found[2]), int(found[3]))


def part_names(name: str) -> list[str]:
    """The names of all parts of the model that one is named of; that name alone where it is none."""
    found = part_of(name)
    if found is None:
        return [name]
    model, _, count = found
    return [f"{model}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def _joined(model: Gguf, count: int) -> Gguf:
    """A split model from any of its files."""
    number, path = (model.integer("split.no") or 0) + 1, model.path
    named = part_of(path.name)
    if named is None or named[1:] != (number, count):
        expected = f"NAME-{number:05}-of-{count:05}.gguf, beside the other parts"
        raise ArtifactError(f"is part {number} of {count}, by another name", file=path, expected=expected)
    files = [path.with_name(name) for name in part_names(path.name)]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        problem = f"is part {number} of {count}; {missing[0]}{others} is not beside it"
        raise ArtifactError(problem, file=path, expected="every part in one folder")
    parts = [model if file == path else _open_file(file) for file in files]
    for place, part in enumerate(parts):
        if (part.integer("split.no"), part.integer("split.count")) != (place, count):
            raise ArtifactError(f"does not say that it is part {place + 1} of {count}", file=part.path)
    tensors = tuple(one._replace(part=place) for place, part in enumerate(parts) for one in part.tensors)
    stated = parts[0].integer("split.tensors.count")
    if len({one.name for one in tensors}) != len(tensors):
        raise ArtifactError("is corrupt: two of its parts hold one tensor", file=parts[0].path)
    if stated is not None and stated != len(tensors):
        expected = f"the {stated} tensors that it speaks of"
        raise ArtifactError(f"its parts hold {len(tensors)} tensors", file=parts[0].path, expected=expected)
    return replace(parts[0], tensors=tensors, rest=tuple(part.data for part in parts[1:]))


def _open_file(path: Path) -> Gguf:
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
        raise ArtifactError(f"cannot be read ({os_reason(error)})", file=path, expected="a GGUF file") from error
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
        ends = sorted({*(begin + entry[3] for entry in entries), self.size})
        tensors = tuple(self.placed(entry, begin, alignment, ends) for entry in entries)
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
        ggml_type = TYPE_BY_NUMBER.get(kind) or other_type(kind)
        if ggml_type is None:
            raise self.fail(f"is corrupt: tensor type {kind}", f"a type from 0 to {_HIGHEST_TYPE}", name)
        if min(shape) < 1 or prod(shape) >= 2**63:
            raise self.fail(f"is corrupt: shape {shape}", "positive extents", name)
        if shape[0] % ggml_type.block:
            raise self.fail(
                f"is corrupt: rows of {shape[0]}", f"a multiple of {ggml_type.block} for {ggml_type.name}", name
            )
        return name, shape, ggml_type, offset

    def placed(
        self, entry: tuple[str, tuple[int, ...], GgmlType, int], begin: int, alignment: int, ends: Sequence[int]
    ) -> Tensor:
        """Where its data lie; those of a type whose size is not known end where the next begin."""
        name, shape, ggml_type, offset = entry
        if offset % alignment:
            raise self.fail(f"is corrupt: data offset {offset}", f"a multiple of {alignment}", name)
        nbytes = prod(shape) // ggml_type.block * ggml_type.size
        if not ggml_type.known:
            nbytes = max(0, ends[min(bisect_right(ends, begin + offset), len(ends) - 1)] - begin - offset)
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


# ggml's row kernels, from the shared library inside the xllamacpp wheel: wide to narrow and back.
#
# Loaded with ctypes, so the GIL is released while a kernel runs. Type numbers and block sizes are compared with the
# library's own when it is loaded: a release that moved them is refused instead of writing wrong bytes.

_PACKAGE = "xllamacpp"
LIBRARY = ("xllamacpp*.so", "xllamacpp*.pyd", "xllamacpp*.dylib")
"""The extension module of the wheel, by platform."""
WRITTEN = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K", "IQ4_NL",
    "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip
"""Types that levels are made of."""
_MISSING = "GGUF levels are made by llama.cpp's kernels, which are not installed; pip install 'quantverdict[llamacpp]'"


class Kernels:
    """The library's functions that are used; see `kernels`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_void_p,
        ]  # fmt: skip
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        library.ggml_validate_row_data.restype = ctypes.c_bool
        library.ggml_type_name.restype = ctypes.c_char_p
        library.ggml_blck_size.restype = ctypes.c_int64
        library.ggml_type_size.restype = ctypes.c_size_t
        library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
        library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
        for name in WRITTEN:
            self._check(TYPE_BY_NAME[name])

    def _check(self, expected: GgmlType) -> None:
        number = expected.number
        name = self._library.ggml_type_name(number).decode(errors="replace").upper()
        found = (name, self._library.ggml_blck_size(number), self._library.ggml_type_size(number))
        if found != expected[1:]:
            raise EngineError(f"{_PACKAGE}: tensor type {number} is {found}; expected {tuple(expected[1:])}")

    def widen(self, kind: GgmlType, source: int, target: int, count: int) -> None:
        """Decode `count` elements at address `source` to float32 at address `target`.

        Raises:
            EngineError: a type that the library cannot decode.
        """
        if kind.name == "F32":
            ctypes.memmove(target, source, 4 * count)
            return
        function = self._decoder(kind)
        if function is None:
            raise EngineError(f"{_PACKAGE} cannot decode {kind.name}")
        function(ctypes.c_void_p(source), ctypes.c_void_p(target), ctypes.c_int64(count))

    def decodes(self, kind: GgmlType) -> bool:
        """Whether `widen` can read a type."""
        return kind.name == "F32" or self._decoder(kind) is not None

    def _decoder(self, kind: GgmlType) -> Callable[..., object] | None:
        if kind.name in ("F16", "BF16"):
            name = f"ggml_{kind.name.replace('F16', 'fp16').replace('Bfp', 'bf')}_to_fp32_row"
        else:
            name = "dequantize_row_" + kind.name.lower().replace("_k", "_K")
        return getattr(self._library, name, None) if kind.known else None

    def narrow(
        self, kind: GgmlType, source: int, target: int, rows: int, row: int, importance: int | None = None
    ) -> None:
        """Encode `rows` rows of `row` float32 at address `source` as `kind` at address `target`.

        Args:
            importance: address of `row` float32, how much each column counts.

        Raises:
            EngineError: a type that needs it, and there is none; the library would end the process.
        """
        if importance is None and self._library.ggml_quantize_requires_imatrix(kind.number):
            raise EngineError(f"{kind.name} needs an importance matrix")
        self._library.ggml_quantize_chunk(kind.number, source, target, 0, rows, row, importance)

    def encodes(self, kind: GgmlType, *, weighted: bool) -> bool:
        """Whether `narrow` can write a type, with or without the importance of columns."""
        needs = kind.known and self._library.ggml_quantize_requires_imatrix(kind.number)
        return kind.name in WRITTEN and (weighted or not needs)

    def is_valid(self, kind: GgmlType, address: int, nbytes: int) -> bool:
        """Whether encoded rows hold neither infinities nor NaN."""
        return bool(self._library.ggml_validate_row_data(kind.number, address, nbytes))


@cache
def kernels() -> Kernels:
    """The kernels, loaded once a process.

    Raises:
        QuantverdictError: the llamacpp extra is not installed.
        EngineError: the library is not the one this was written for.
    """
    path = library_file(_PACKAGE, LIBRARY)
    if path is None:
        raise QuantverdictError(_MISSING)
    try:
        return Kernels(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        raise EngineError(f"{path} cannot be used ({error})") from error


def kernels_version() -> str:
    """Name and version of the wheel the kernels come from."""
    try:
        return f"{_PACKAGE}-{version(_PACKAGE)}"
    except PackageNotFoundError as error:
        raise QuantverdictError(_MISSING) from error


def library_file(package: str, patterns: Sequence[str]) -> Path | None:
    """The first file like one of `patterns` in an installed package, None without one; no code of it is run."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        for pattern in patterns:
            found = sorted(Path(folder).glob(pattern))
            if found:
                return found[0]
    return None
