"""Importance matrices of llama.cpp: how much each column of a weight counts, as a calibration text showed it.

Both forms that `llama-imatrix` has written are read: GGUF (sums of squares and counts), and the older binary one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantverdict.artifacts.gguf_read import Gguf, open_gguf
from quantverdict.errors import ArtifactError, os_reason

Floats = NDArray[np.float32]
IMATRIX_KEY = "quantize.imatrix."
"""What a GGUF file says of the importance matrix that it was made with, by llama.cpp's names."""
IMATRIX_SHA256_KEY = "quantverdict.imatrix_sha256"
"""The sha256 of its file."""
_SUMS, _COUNTS = ".in_sum2", ".counts"
_EXPECTED = "an importance matrix, as llama-imatrix writes it"
_LONGEST_NAME, _MOST_ENTRIES = 4096, 1 << 20


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """What one file holds.

    Attributes:
        path: of the file.
        sha256: of the file.
        values: tensor name to the mean square of each of its input columns, expert after expert.
        dataset: the text it was computed on, empty where the file does not say.
        chunks: of that text; None where the file does not say.
    """

    path: Path
    sha256: str
    values: Mapping[str, Floats]
    dataset: str
    chunks: int | None


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read a file of either form.

    Raises:
        ArtifactError: it is missing, of another kind, cut, or holds what is no number.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot be read ({os_reason(error)})", file=path, expected=_EXPECTED) from error
    values, dataset, chunks = _of_gguf(open_gguf(path)) if data[:4] == b"GGUF" else _of_entries(path, data)
    if not values:
        raise ArtifactError("holds no entries", file=path, expected=_EXPECTED)
    for name, found in values.items():
        if not (np.isfinite(found).all() and (found >= 0).all()):
            raise ArtifactError("is corrupt: a value that is negative or no number", file=path, field=name)
    return ImportanceMatrix(path, hashlib.sha256(data).hexdigest(), values, dataset, chunks)


def _of_gguf(model: Gguf) -> tuple[dict[str, Floats], str, int | None]:
    if model.text("general.type") != "imatrix":
        raise ArtifactError("is no importance matrix", file=model.path, expected=_EXPECTED)
    tensors = {tensor.name: tensor for tensor in model.tensors}
    values = {}
    for name, tensor in tensors.items():
        if not name.endswith(_SUMS):
            continue
        of = name.removesuffix(_SUMS)
        counted = tensors.get(of + _COUNTS)
        if counted is None or {tensor.type.name, counted.type.name} != {"F32"}:
            raise ArtifactError("is corrupt: sums without counts", file=model.path, field=of, expected=_EXPECTED)
        counts = model.stored(counted).view("<f4")
        sums = model.stored(tensor).view("<f4").reshape(len(counts), -1) if len(counts) else np.empty((0, 0), "<f4")
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.where(counts[:, None] > 0, sums / counts[:, None], np.float32(1))
        values[of] = np.ascontiguousarray(means, np.float32).reshape(-1)
    datasets = model.get("imatrix.datasets")
    dataset = str(datasets[0]) if isinstance(datasets, list) and datasets else ""
    return values, dataset, model.integer("imatrix.chunk_count")


class _Reader:
    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int) -> bytes:
        if count < 0 or count > len(self.data) - self.at:
            raise ArtifactError("is cut, or no importance matrix", file=self.path, expected=_EXPECTED)
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, most: int) -> int:
        value: int = struct.unpack("<i", self.take(4))[0]
        if not 0 <= value <= most:
            raise ArtifactError("is corrupt, or no importance matrix", file=self.path, expected=_EXPECTED)
        return value

    def text(self) -> str:
        return self.take(self.number(_LONGEST_NAME)).decode(errors="replace")


def _of_entries(path: Path, data: bytes) -> tuple[dict[str, Floats], str, int | None]:
    """The older form: entries of name, calls, and as many float32 of mean squares times calls."""
    reader = _Reader(path, data)
    values: dict[str, Floats] = {}
    for _ in range(reader.number(_MOST_ENTRIES)):
        name, calls = reader.text(), reader.number((1 << 31) - 1)
        found = np.frombuffer(reader.take(4 * reader.number((1 << 31) - 1)), "<f4")
        values[name] = (found / np.float32(calls) if calls else found).astype(np.float32)
    if reader.at == len(data):
        return values, "", None
    chunks = reader.number((1 << 31) - 1)
    return values, reader.text() if reader.at < len(data) else "", chunks
