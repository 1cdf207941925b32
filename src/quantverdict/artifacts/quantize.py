"""Make GGUF levels: llama.cpp's type mix, its kernels, its layout, so that the tensors are its bytes.

A level is written beside its final name and renamed when it is whole, so a full disk or Ctrl-C leaves nothing behind.
The same source gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantverdict.artifacts.gguf import DEQUANTIZED_KEY, TENSOR_TYPES_KEY, dequantized_from, file_sha256, open_model
from quantverdict.artifacts.gguf_mix import LEVELS, in_writing_order, is_quantizable, mix
from quantverdict.artifacts.gguf_read import TYPE_BY_NAME, GgmlType, Gguf, Tensor, kernels, kernels_version
from quantverdict.artifacts.imatrix import IMATRIX_KEY, IMATRIX_SHA256_KEY, Floats, ImportanceMatrix
from quantverdict.artifacts.sources import written_whole
from quantverdict.errors import ArtifactError
from quantverdict.records import Artifact

# Write a GGUF header and its tensors' data, byte for byte as llama.cpp lays them out.

_UINT32, _STRING = 4, 8


class TensorEntry(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType

    @property
    def nbytes(self) -> int:
        return prod(self.shape) // self.type.block * self.type.size


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def text_field(key: str, value: str) -> bytes:
    """A metadata field with a string, ready to be written."""
    return _text(key) + struct.pack("<I", _STRING) + _text(value)


def uint32_field(key: str, value: int) -> bytes:
    """A metadata field with an unsigned integer, ready to be written."""
    return _text(key) + struct.pack("<II", _UINT32, value)


def copied_field(source: Gguf, key: str) -> bytes:
    """A metadata field exactly as `source` has it."""
    field = source.fields[key]
    return _text(key) + struct.pack("<I", field.kind) + source.data[field.start : field.end]


def header_bytes(fields: Iterable[bytes], entries: tuple[TensorEntry, ...], alignment: int) -> bytes:
    """The header of a GGUF whose tensors follow in the order of `entries`, each padded to `alignment`."""
    packed = tuple(fields)
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(entries), len(packed)), *packed]
    offset = 0
    for entry in entries:
        shape = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *entry.shape)
        parts.append(_text(entry.name) + shape + struct.pack("<IQ", entry.type.number, offset))
        offset += padded(entry.nbytes, alignment)
    header = b"".join(parts)
    return header.ljust(padded(len(header), alignment), b"\0")


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def write_padded(file: BinaryIO, block: bytes | memoryview, alignment: int) -> None:
    """Write a tensor's data and the zeros after it."""
    file.write(block)
    file.write(bytes(padded(len(block), alignment) - len(block)))


Progress = Callable[[int, int], None]
"""Called with (weights written, weights in all) of one file."""

BuildProgress = Callable[[str, int, int], None]
"""`Progress` with the level first, for a ladder."""

SOURCE_KEY = "quantverdict.source_sha256"
_FILE_TYPE, _QUANTIZATION_VERSION = "general.file_type", "general.quantization_version"
_GGML_QUANTIZATION_VERSION = 2
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_RECIPE = "1"
"""Part of the cache's key; raise it when the same source and level would give other bytes."""


def make_level(
    source: Path,
    level: str,
    out: Path,
    *,
    imatrix: ImportanceMatrix | None = None,
    tensor_types: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write `source` at `level` to `out`, tensor for tensor what llama.cpp's quantiser writes.

    Metadata are copied; `general.file_type` and `general.quantization_version` are set as llama.cpp sets them, and the
    source's sha256 and the low-bit type its weights went through, if any, are recorded; so is what the importance
    matrix was, by llama.cpp's names.

    Args:
        imatrix: how much each column counts; levels of few bits need it.
        tensor_types: types of tensors by patterns of their names, as `gguf_mix.mix` takes them; they are recorded.

    Raises:
        ArtifactError: an unreadable source, an unknown level, a shape or value the level cannot store, an importance
            matrix that is missing or of another model, no room on disk.
        QuantverdictError: the llamacpp extra is not installed.
    """

    model = open_model(source)
    types = mix(model, level, None if imatrix is None else imatrix.values, tensor_types)
    weights = {} if imatrix is None else _column_weights(model, imatrix, types)
    tensors = in_writing_order(model.tensors)
    entries = tuple(TensorEntry(item.name, item.shape, TYPE_BY_NAME[types[item.name]]) for item in tensors)
    header = header_bytes(_fields(model, level, imatrix, tensor_types or {}), entries, model.alignment)
    total, done = sum(item.n_elements for item in tensors), 0
    size = len(header) + sum(entry.nbytes + model.alignment for entry in entries)
    with written_whole(out, size) as file, ThreadPoolExecutor(_cores()) as pool:
        file.write(header)
        for tensor, entry in zip(tensors, entries, strict=True):
            write_padded(file, encoded(model, tensor, entry.type, pool, weights.get(tensor.name)), model.alignment)
            done += tensor.n_elements
            if progress is not None:
                progress(done, total)
    return out


def _column_weights(model: Gguf, imatrix: ImportanceMatrix, types: Mapping[str, str]) -> dict[str, Floats]:
    """What of an importance matrix is of this model.

    Raises:
        ArtifactError: an entry is of another size than its tensor: it is another model's.
    """
    found = {}
    for tensor in model.tensors:
        values = imatrix.values.get(tensor.name)
        if values is None or not TYPE_BY_NAME[types[tensor.name]].quantized:
            continue
        size = tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1)
        if len(values) == size:
            found[tensor.name] = values
        elif tensor.name != "token_embd.weight":
            expected = f"{size}, as of {model.path.name}: the importance matrix of this model"
            raise ArtifactError(f"has {len(values)} columns", file=imatrix.path, field=tensor.name, expected=expected)
    return found


def build_ladder(
    source: Path,
    levels: Sequence[str],
    cache_dir: Path,
    progress: BuildProgress | None = None,
    imatrix: ImportanceMatrix | None = None,
    tensor_types: Mapping[str, str] | None = None,
) -> Mapping[str, Path]:
    """Every level of a source, each made once and kept under `cache_dir`.

    A low-bit source is decoded to FP16 first, and the other levels are made from that file: the baseline and its levels
    then share their weights. A level that the source already is, is the source.

    Raises:
        ArtifactError, QuantverdictError: as `make_level`.
    """
    model = open_model(source)
    plain = cache_dir / "gguf" / f"{file_sha256(model)[:16]}-{kernels_version()}-{_RECIPE}"
    folder = plain if imatrix is None else plain.with_name(f"{plain.name}-{imatrix.sha256[:16]}")
    if tensor_types:
        own = hashlib.sha256(json.dumps([*tensor_types.items()]).encode()).hexdigest()[:8]
        folder = folder.with_name(f"{folder.name}-{own}")
    how = _Recipe(imatrix, tensor_types or {})
    start = source
    if _low_bit_origin(model) and any(not _is_level(model, level, how) for level in levels):
        start = _cached(source, "FP16", plain, progress)
    return {
        level: source if _is_level(model, level, how) else _cached(start, level, folder, progress, how)
        for level in levels
    }


def find_duplicates(artifacts: Mapping[str, Artifact]) -> Mapping[str, str]:
    """Levels that are one build with an earlier one, whatever they are called: later level to first level, in the
    given order.
    """
    first: dict[str, str] = {}
    duplicates: dict[str, str] = {}
    for level, artifact in artifacts.items():
        original = first.setdefault(artifact.identity_sha256, level)
        if original != level:
            duplicates[level] = original
    return duplicates


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _low_bit_origin(model: Gguf) -> str | None:
    """What a source with low-bit matrices calls itself, else their commonest type; None where all are wide."""
    types = Counter(item.type.name for item in model.tensors if is_quantizable(item) and item.type.quantized)
    if not types:
        return None
    file_type = model.integer(_FILE_TYPE)
    named = (name for name, level in LEVELS.items() if level.file_type == file_type and level.type in types)
    return next(named, types.most_common(1)[0][0])


class _Recipe(NamedTuple):
    """How a level is made besides its name."""

    imatrix: ImportanceMatrix | None = None
    tensor_types: Mapping[str, str] = {}


def _is_level(model: Gguf, level: str, how: _Recipe) -> bool:
    """Whether making `level` would change neither a tensor nor the file type."""
    if model.integer(_FILE_TYPE) != LEVELS[level].file_type:
        return False
    types = mix(model, level, None if how.imatrix is None else how.imatrix.values, how.tensor_types)
    return all(types[tensor.name] == tensor.type.name for tensor in model.tensors)


def _cached(source: Path, level: str, folder: Path, progress: BuildProgress | None, how: _Recipe | None = None) -> Path:
    path = folder / f"{level}.gguf"
    record = path.with_suffix(".json")
    if not _is_intact(path, record):
        folder.mkdir(parents=True, exist_ok=True)
        steps = None if progress is None else lambda done, total: progress(level, done, total)
        own = how or _Recipe()
        make_level(source, level, path, imatrix=own.imatrix, tensor_types=own.tensor_types, progress=steps)
        _write_record(path, record)
    return path


def _write_record(path: Path, record: Path) -> None:
    stat = path.stat()
    text = json.dumps({"sha256": file_sha256(open_model(path)), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    with written_whole(record, len(text)) as file:
        file.write(text.encode())


def _is_intact(path: Path, record: Path) -> bool:
    """Whether the file is the one that was recorded: by size and time, else by its hash."""
    try:
        known, stat = json.loads(record.read_text(encoding="utf-8")), path.stat()
        if (known["bytes"], known["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
            return True
        return bool(stat.st_size == known["bytes"] and file_sha256(open_model(path)) == known["sha256"])
    except (OSError, ValueError, KeyError, TypeError, ArtifactError):
        return False


def _fields(
    model: Gguf, level: str, imatrix: ImportanceMatrix | None, tensor_types: Mapping[str, str]
) -> Iterator[bytes]:
    """The metadata of a made level: the source's, in its order, then what was set, then what this package adds."""
    replaced = (
        _FILE_TYPE, _QUANTIZATION_VERSION, SOURCE_KEY, DEQUANTIZED_KEY, IMATRIX_SHA256_KEY, TENSOR_TYPES_KEY,
        *_SPLIT_KEYS,
    )  # fmt: skip
    for key in model.fields:
        if key not in replaced and not key.startswith(IMATRIX_KEY):
            yield copied_field(model, key)
    yield uint32_field(_QUANTIZATION_VERSION, _GGML_QUANTIZATION_VERSION)
    yield uint32_field(_FILE_TYPE, LEVELS[level].file_type)
    yield from () if imatrix is None else _imatrix_fields(imatrix)
    if tensor_types:
        yield text_field(TENSOR_TYPES_KEY, " ".join(f"{pattern}={kind}" for pattern, kind in tensor_types.items()))
    yield text_field(SOURCE_KEY, file_sha256(model))
    origin = dequantized_from(model) or _low_bit_origin(model)
    if origin is not None:
        yield text_field(DEQUANTIZED_KEY, origin)


def _imatrix_fields(imatrix: ImportanceMatrix) -> Iterator[bytes]:
    """As llama-quantize writes them; what is not known is left out."""
    yield text_field(f"{IMATRIX_KEY}file", imatrix.path.name[:127])
    if imatrix.dataset:
        yield text_field(f"{IMATRIX_KEY}dataset", imatrix.dataset[:127])
    yield uint32_field(f"{IMATRIX_KEY}entries_count", len(imatrix.values))
    if imatrix.chunks is not None:
        yield uint32_field(f"{IMATRIX_KEY}chunks_count", imatrix.chunks)
    yield text_field(IMATRIX_SHA256_KEY, imatrix.sha256)


# One tensor from its stored type to another, in row chunks over a pool of threads.
#
# Kernels work row by row, so how rows are grouped changes no byte. A chunk is decoded and encoded by the same thread
# while it is in its cache, and no more than a few chunks of a tensor are ever held as float32.

Bytes: TypeAlias = NDArray[np.uint8]
_CHUNK = 1 << 18
"""Weights a thread takes at once: 1 MiB of float32."""


def encoded(
    model: Gguf, tensor: Tensor, target: GgmlType, pool: Executor, importance: Floats | None = None
) -> memoryview:
    """The data of `tensor` as `target`.

    Args:
        importance: how much each column counts, expert after expert.

    Raises:
        ArtifactError: a value is infinite or not a number, before or after.
        EngineError: the kernels cannot decode the tensor's type.
    """
    if tensor.type == target:
        return model.stored(tensor).data
    row = tensor.shape[0]
    rows = tensor.n_elements // row
    step = max(1, _CHUNK // row)
    stored = model.stored(tensor)
    out = np.empty(tensor.n_elements // target.block * target.size, np.uint8)
    expert = rows if importance is None else rows // (len(importance) // row)
    spans = [
        (first, min(step, start + expert - first))
        for start in range(0, rows, expert)
        for first in range(start, start + expert, step)
    ]
    finite = pool.map(partial(_encode_rows, tensor, target, stored, out, importance), spans)
    if not all(list(finite)):
        raise ArtifactError("holds a value that is not finite", file=model.path, field=tensor.name)
    return out.data


def _encode_rows(
    tensor: Tensor, target: GgmlType, stored: Bytes, out: Bytes, importance: Floats | None, span: tuple[int, int]
) -> bool:
    """Encode `span` (first row, rows) of `stored` into `out`; False where a value is not finite."""
    first, rows = span
    row = tensor.shape[0]
    source = stored.ctypes.data + first * _row_bytes(tensor.type, row)
    nbytes = _row_bytes(target, row)
    address = out.ctypes.data + first * nbytes
    values = np.empty(rows * row, np.float32)
    kernels().widen(tensor.type, source, values.ctypes.data, rows * row)
    if not np.isfinite(values).all():
        return False
    weights = None
    if importance is not None:
        expert = first // (tensor.n_elements // row // (len(importance) // row))
        weights = importance.ctypes.data + expert * row * importance.itemsize
    kernels().narrow(target, values.ctypes.data, address, rows, row, weights)
    return kernels().is_valid(target, address, rows * nbytes)


def _row_bytes(kind: GgmlType, row: int) -> int:
    return row // kind.block * kind.size
