"""Open a safetensors checkpoint: its files, its JSON, and its tensors put together to weights.

A quantised weight is several tensors: packed integers, scales, zero points, an order of columns. `Weight` is the
matrix they stand for, under the name it has in the unquantised model and with its shape there.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeGuard

from quantverdict.artifacts.kinds import is_folder, require_model_checkpoint, require_model_folder
from quantverdict.errors import ArtifactError, os_reason

# Read a safetensors header, trusting nothing in it.
#
# The format: 8 bytes of header length, that many bytes of JSON (tensor name to dtype, shape and data offsets), then the
# data of all tensors without a gap. Only the header is parsed; data stay in the mapped file.

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


WIDE = ("F64", "F32", "F16", "BF16")
_INDEX = "model.safetensors.index.json"
_PARTS: Mapping[str, str] = {
    "qzeros": "qweight", "scales": "qweight", "g_idx": "qweight",
    "weight_shape": "weight_packed", "weight_g_idx": "weight_packed", "weight_scale": "weight",
    "weight_zero_point": "weight", "weight_global_scale": "weight", "weight_scale_inv": "weight",
    "input_scale": "weight", "input_zero_point": "weight", "input_global_scale": "weight", "output_scale": "weight",
}  # fmt: skip
"""Leaves that only serve another one of their module; `weight` stands for `weight_packed` too."""


class TensorLocation(NamedTuple):
    """A stored tensor and the file it is in."""

    file: Safetensors
    tensor: StoredTensor


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of the model.

    Attributes:
        name: as in the unquantised model, like `model.layers.0.mlp.up_proj.weight`.
        shape: as in the unquantised model: (outputs, inputs) of a matrix.
        packing: `wide`, `awq`, `gptq`, `packed` (compressed-tensors), or `scaled` (8-bit values and scales).
        bits, group: of the stored integers and of the inputs that share a scale; 0 where it is wide.
        parts: leaf name to tensor; the values are in `main`.
        main: the leaf that holds the values.
        variant: `checkpoint_format` of the quantisation's configuration.
    """

    name: str
    shape: tuple[int, ...]
    packing: str
    bits: int
    group: int
    main: str
    parts: Mapping[str, TensorLocation]
    variant: str = ""

    @property
    def type_name(self) -> str:
        """Like `BF16`, `AWQ-4 g64`, `INT4 g128` or `INT8 rows`."""
        dtype = self.parts[self.main].tensor.dtype
        if self.packing == "wide":
            return dtype
        inputs = self.shape[-1]
        group = f"g{self.group}" if self.group < inputs else "rows"
        if self.packing in ("awq", "gptq"):
            return f"{self.packing.upper()}-{self.bits} {group}"
        kind = "INT" if dtype in ("I32", "I8") else "FP"
        return f"{kind}{self.bits} {group}"

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return sum(piece.tensor.nbytes for piece in self.parts.values())


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint."""

    path: Path
    folder: Path
    config: Mapping[str, object]
    files: tuple[Safetensors, ...]

    @property
    def text_config(self) -> Mapping[str, object]:
        """The language model's part of a multimodal configuration, else the whole."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @property
    def quantization(self) -> Mapping[str, object]:
        """What the configuration says of the quantisation; empty where it says nothing."""
        for config in (self.config, self.text_config):
            found = config.get("quantization_config") or config.get("compression_config")
            if isinstance(found, dict):
                return found
        for name in ("quantize_config.json", "quant_config.json"):
            if (self.folder / name).is_file():
                return read_json(self.folder / name)
        return {}

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """Every weight once, in the order of names; a tied output matrix that is stored as well is left out."""
        pieces = {tensor.name: TensorLocation(file, tensor) for file in self.files for tensor in file.tensors}
        tied = self.config.get("tie_word_embeddings") or self.text_config.get("tie_word_embeddings")
        if tied and any(name.endswith("embed_tokens.weight") for name in pieces):
            pieces.pop("lm_head.weight", None)
        grouped: dict[str, dict[str, TensorLocation]] = {}
        for name, piece in pieces.items():
            module, _, leaf = name.rpartition(".")
            grouped.setdefault(f"{module}.{_main_leaf(pieces, module, leaf)}", {})[leaf] = piece
        return tuple(self._weight(full, parts) for full, parts in sorted(grouped.items()))

    def _weight(self, full: str, parts: Mapping[str, TensorLocation]) -> Weight:
        module, _, main = full.rpartition(".")
        values = parts[main].tensor
        name = f"{module}.weight".lstrip(".") if main in ("qweight", "weight_packed") else full.lstrip(".")
        if main == "qweight":
            return self._integer_rows(name, parts)
        if main == "weight_packed":
            return self._packed(name, parts)
        if values.dtype in WIDE or len(values.shape) < 2:
            return Weight(name, values.shape, "wide", 0, 0, main, parts)
        scale = parts.get("weight_scale") or parts.get("weight_scale_inv")
        if scale is None:
            raise self._fail(f"is packed as {values.dtype} in a way this version does not know", name)
        columns = scale.tensor.shape[-1] if len(scale.tensor.shape) > 1 else 1
        group = max(1, values.shape[-1] // max(1, columns))
        return Weight(name, values.shape, "scaled", DTYPE_BITS[values.dtype], group, main, parts)

    def _integer_rows(self, name: str, parts: Mapping[str, TensorLocation]) -> Weight:
        """AWQ packs outputs, GPTQ inputs; which it is shows in the shapes.

        The integers of AWQ are (inputs, outputs / n), those of GPTQ (inputs / n, outputs), and the scales of both
        (groups, outputs).
        """
        needed = [parts[leaf].tensor for leaf in ("qweight", "qzeros", "scales") if leaf in parts]
        if len(needed) < 3 or any(len(tensor.shape) != 2 for tensor in needed):
            raise self._fail("has packed integers without scales and zero points", name)
        rows, columns = parts["qweight"].tensor.shape
        groups, outputs = parts["scales"].tensor.shape
        zeros = parts["qzeros"].tensor.shape
        bits = 32 * zeros[1] // max(1, outputs)
        if parts["qweight"].tensor.dtype != "I32" or not bits or zeros != (groups, -(-outputs * bits // 32)):
            raise self._fail("has scales, zero points and integers of shapes that do not belong together", name)
        if columns == outputs:
            inputs, packing = rows * 32 // bits, "gptq"
        elif columns == zeros[1] and str(self.quantization.get("version", "gemm")).lower() == "gemm":
            inputs, packing = rows, "awq"
        else:
            raise self._fail(f"has packed integers of shape {(rows, columns)}", name, "the layout of AWQ GEMM or GPTQ")
        group, variant = max(1, inputs // max(1, groups)), str(self.quantization.get("checkpoint_format", ""))
        return Weight(name, (outputs, inputs), packing, bits, group, "qweight", parts, variant)

    def _packed(self, name: str, parts: Mapping[str, TensorLocation]) -> Weight:
        values, scale = parts["weight_packed"].tensor, parts.get("weight_scale")
        if scale is None or len(values.shape) != 2 or len(scale.tensor.shape) != 2:
            raise self._fail("has packed integers without a matrix of scales", name)
        if values.dtype != "I32":  # two 4-bit floats a byte
            shape = (values.shape[0], 2 * values.shape[1])
            return Weight(name, shape, "scaled", 4, max(1, shape[1] // scale.tensor.shape[1]), "weight_packed", parts)
        shape = self._stated_shape(name, parts)
        # A row shorter than 32 fits several widths: the usual ones first.
        fits = (bits for bits in (4, 8, 2, 3, 5, 6, 7, 1) if -(-shape[1] * bits // 32) == values.shape[1])
        bits = next(fits, 0)
        if shape[0] != values.shape[0] or not bits:
            raise self._fail(f"has packed integers of shape {values.shape} for a matrix of {shape}", name)
        return Weight(name, shape, "packed", bits, max(1, shape[1] // scale.tensor.shape[1]), "weight_packed", parts)

    def _stated_shape(self, name: str, parts: Mapping[str, TensorLocation]) -> tuple[int, int]:
        stated = parts.get("weight_shape")
        if stated is None or stated.tensor.shape != (2,) or stated.tensor.dtype not in ("I64", "I32"):
            raise self._fail("does not state its shape", name, "weight_shape of two whole numbers")
        start, nbytes = stated.tensor.start, stated.tensor.nbytes
        data = stated.file.data[start : start + nbytes]
        half = nbytes // 2
        return int.from_bytes(data[:half], "little"), int.from_bytes(data[half:], "little")

    def _fail(self, problem: str, name: str, expected: str | None = None) -> ArtifactError:
        return ArtifactError(problem, file=self.path, field=name, expected=expected)


def _main_leaf(pieces: Mapping[str, TensorLocation], module: str, leaf: str) -> str:
    """The leaf of its module that a leaf belongs to: itself, where it serves no other."""
    main = _PARTS.get(leaf, leaf)
    candidates = ("weight_packed", "weight") if main == "weight" and leaf != main else (main,)
    return next((name for name in candidates if f"{module}.{name}" in pieces), leaf)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder with a checkpoint, or the one .safetensors file of one.

    Raises:
        ArtifactError: a missing, truncated or corrupt file, a missing shard, no safetensors at all, or no language
            model.
    """
    folder = path if is_folder(path) else path.parent
    if not path.exists():
        raise ArtifactError("does not exist", file=path, expected="a folder with a safetensors checkpoint")
    require_model_folder(folder)
    if not (folder / "config.json").is_file():
        raise ArtifactError("has no config.json", file=folder, expected="a whole model's checkpoint")
    files = _indexed(folder) if path.is_dir() and (folder / _INDEX).is_file() else (open_safetensors(_only(path)),)
    if not any(file.tensors for file in files):
        raise ArtifactError("holds no tensors", file=path, expected="a model")
    names = [tensor.name for file in files for tensor in file.tensors]
    if len(set(names)) != len(names):
        raise ArtifactError("holds a tensor in two files", file=path, expected="each tensor once")
    config = read_json(folder / "config.json")
    require_model_checkpoint(path, config, set(names))
    return Checkpoint(path, folder, config, files)


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file.

    Raises:
        ArtifactError: it cannot be read or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError("cannot be read as JSON", file=path, expected="a JSON object") from error
    if not isinstance(value, dict):
        raise ArtifactError("is no JSON object", file=path, expected="a JSON object")
    return value


def _only(path: Path) -> Path:
    """The weights of a checkpoint that is not sharded."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.safetensors"))
    usual = [item for item in found if item.name == "model.safetensors"] or found
    if len(usual) != 1:
        problem = f"holds {len(found)} safetensors files and no {_INDEX}" if found else "holds no safetensors file"
        raise ArtifactError(problem, file=path, expected="model.safetensors, or its parts with their index")
    return usual[0]


def _indexed(folder: Path) -> tuple[Safetensors, ...]:
    """The parts that the index names, each with exactly the tensors it says."""
    index = folder / _INDEX
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ArtifactError("names no tensors", file=index, field="weight_map", expected="tensor name to file name")
    names = sorted({name if isinstance(name, str) else repr(name) for name in placed.values()})
    for name in names:
        if not _is_file_name(name):
            raise ArtifactError(f"names {name!r:.80}", file=index, field="weight_map", expected="a file beside it")
        if not (folder / name).is_file():
            raise ArtifactError("does not exist", file=folder / name, expected=f"this part: {_INDEX} names it")
    files = tuple(open_safetensors(folder / name) for name in names)
    held = {tensor.name: file.path.name for file in files for tensor in file.tensors}
    wrong = sorted(name for name in placed if held.get(name) != placed[name])
    if wrong:
        problem = f"says that {wrong[0]!r:.80} is in {placed[wrong[0]]!r:.80}, which does not hold it"
        raise ArtifactError(problem, file=index, field="weight_map")
    return files


def _is_file_name(name: str) -> bool:
    """Whether a text can name a file of this folder: one part, no longer than file systems take, no NUL."""
    try:
        return Path(name).name == name and 0 < len(os.fsencode(name)) < 256 and "\0" not in name
    except UnicodeEncodeError:
        return False
