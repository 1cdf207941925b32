"""Make GGUF levels: llama.cpp's type mix, its kernels, its layout, so that the tensors are its bytes.

A level is written beside its final name and renamed when it is whole, so a full disk or Ctrl-C leaves nothing behind.
The same source gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quantverdict.artifacts.ggml_kernels import kernels_version
from quantverdict.artifacts.ggml_types import TYPE_BY_NAME
from quantverdict.artifacts.gguf import DEQUANTIZED_KEY, dequantized_from, file_sha256, open_model
from quantverdict.artifacts.gguf_read import Gguf
from quantverdict.artifacts.gguf_write import Entry, copied_field, header_bytes, text_field, uint32_field, write_padded
from quantverdict.artifacts.kquant_mix import LEVELS, in_writing_order, is_quantizable, mix
from quantverdict.artifacts.whole import written_whole
from quantverdict.errors import ArtifactError
from quantverdict.records import Artifact

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


def make_level(source: Path, level: str, out: Path, *, progress: Progress | None = None) -> Path:
    """Write `source` at `level` to `out`, tensor for tensor what llama.cpp's quantiser writes.

    Metadata are copied; `general.file_type` and `general.quantization_version` are set as llama.cpp sets them, and the
    source's sha256 and the low-bit type its weights went through, if any, are recorded.

    Raises:
        ArtifactError: an unreadable source, an unknown level, a shape or value the level cannot store, no room on disk.
        QuantverdictError: the llamacpp extra is not installed.
    """
    from quantverdict.artifacts.encode import encoded

    model = open_model(source)
    types = mix(model, level)
    tensors = in_writing_order(model.tensors)
    entries = tuple(Entry(item.name, item.shape, TYPE_BY_NAME[types[item.name]]) for item in tensors)
    header = header_bytes(_fields(model, level), entries, model.alignment)
    total, done = sum(item.n_elements for item in tensors), 0
    size = len(header) + sum(entry.nbytes + model.alignment for entry in entries)
    with written_whole(out, size) as file, ThreadPoolExecutor(_cores()) as pool:
        file.write(header)
        for tensor, entry in zip(tensors, entries, strict=True):
            write_padded(file, encoded(model, tensor, entry.type, pool), model.alignment)
            done += tensor.n_elements
            if progress is not None:
                progress(done, total)
    return out


def build_ladder(
    source: Path, levels: Sequence[str], cache_dir: Path, progress: BuildProgress | None = None
) -> Mapping[str, Path]:
    """Every level of a source, each made once and kept under `cache_dir`.

    A low-bit source is decoded to FP16 first, and the other levels are made from that file: the baseline and its levels
    then share their weights. A level that the source already is, is the source.

    Raises:
        ArtifactError, QuantverdictError: as `make_level`.
    """
    model = open_model(source)
    folder = cache_dir / "gguf" / f"{file_sha256(model)[:16]}-{kernels_version()}-{_RECIPE}"
    start = source
    if _low_bit_origin(model) and any(not _is_level(model, level) for level in levels):
        start = _cached(source, "FP16", folder, progress)
    return {level: source if _is_level(model, level) else _cached(start, level, folder, progress) for level in levels}


def find_twins(artifacts: Mapping[str, Artifact]) -> Mapping[str, str]:
    """Levels that are one build with an earlier one, whatever they are called: later level to first level, in the
    given order.
    """
    first: dict[str, str] = {}
    twins: dict[str, str] = {}
    for level, artifact in artifacts.items():
        original = first.setdefault(artifact.identity_sha256, level)
        if original != level:
            twins[level] = original
    return twins


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


def _is_level(model: Gguf, level: str) -> bool:
    """Whether making `level` would change neither a tensor nor the file type."""
    types = mix(model, level)
    same = all(types[tensor.name] == tensor.type.name for tensor in model.tensors)
    return same and model.integer(_FILE_TYPE) == LEVELS[level].file_type


def _cached(source: Path, level: str, folder: Path, progress: BuildProgress | None) -> Path:
    path = folder / f"{level}.gguf"
    record = path.with_suffix(".json")
    if not _is_intact(path, record):
        folder.mkdir(parents=True, exist_ok=True)
        make_level(
            source, level, path, progress=None if progress is None else lambda done, total: progress(level, done, total)
        )
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


def _fields(model: Gguf, level: str) -> Iterator[bytes]:
    """The metadata of a made level: the source's, in its order, then what was set, then what this package adds."""
    replaced = (_FILE_TYPE, _QUANTIZATION_VERSION, SOURCE_KEY, DEQUANTIZED_KEY, *_SPLIT_KEYS)
    for key in model.fields:
        if key not in replaced:
            yield copied_field(model, key)
    yield uint32_field(_QUANTIZATION_VERSION, _GGML_QUANTIZATION_VERSION)
    yield uint32_field(_FILE_TYPE, LEVELS[level].file_type)
    yield text_field(SOURCE_KEY, file_sha256(model))
    origin = dequantized_from(model) or _low_bit_origin(model)
    if origin is not None:
        yield text_field(DEQUANTIZED_KEY, origin)
