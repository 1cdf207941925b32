"""How many weights share a scale: the length of a checkpoint's rows decides what is possible."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path

from quantverdict.errors import ArtifactError

GROUP_SIZES = (128, 64, 32)
"""Tried in this order: fewer scales first."""
_KEPT = re.compile(r"embed|\bw[tp]e\b|(^|\.)(lm_head|output|gate|router|shared_expert_gate)\.weight$")
"""Names of matrices that stay as they are: embeddings, the output layer, routers of experts."""
_NAMES_SHOWN = 3


def row_lengths(checkpoint: Path) -> Mapping[str, int]:
    """Layer name to the length of its rows, for every matrix that gets quantised; read from the headers alone.

    Raises:
        ArtifactError: no safetensors files, or not such files.
    """
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ArtifactError("holds no safetensors files", file=checkpoint, expected="an unquantised checkpoint")
    lengths: dict[str, int] = {}
    for file in files:
        for name, shape in _shapes(file).items():
            layer = name.removesuffix(".weight")
            if len(shape) == 2 and layer != name and not _KEPT.search(name):
                lengths[layer] = shape[1]
    if not lengths:
        raise ArtifactError("holds no matrices to quantise", file=checkpoint, expected="an unquantised checkpoint")
    return lengths


def tensor_names(checkpoint: Path) -> frozenset[str]:
    """The names of all tensors of a checkpoint, read from the headers alone.

    Raises:
        ArtifactError: a file that is no safetensors file.
    """
    return frozenset(name for file in sorted(checkpoint.glob("*.safetensors")) for name in _shapes(file))


def group_size_for(checkpoint: Path, asked: int | None) -> int:
    """The group size asked for, or the largest of `GROUP_SIZES` that divides every row.

    Raises:
        ArtifactError: rows that the groups do not divide; names their layers.
    """
    lengths = row_lengths(checkpoint)
    tried = GROUP_SIZES if asked is None else (asked,)
    for size in tried:
        if not any(length % size for length in lengths.values()):
            return size
    wrong = {name: length for name, length in lengths.items() if length % tried[-1]}
    shown = ", ".join(f"{name} ({length})" for name, length in list(wrong.items())[:_NAMES_SHOWN])
    more = f" and {len(wrong) - _NAMES_SHOWN} more" if len(wrong) > _NAMES_SHOWN else ""
    possible = [str(size) for size in GROUP_SIZES if not any(length % size for length in lengths.values())]
    raise ArtifactError(
        f"groups of {tried[-1]} weights do not divide the rows of {shown}{more}",
        file=checkpoint,
        field="group_size",
        expected=f"one of {', '.join(possible)}" if possible else "rows that 32 divides",
    )


def _shapes(file: Path) -> Mapping[str, tuple[int, ...]]:
    """Tensor names to shapes: eight bytes of length, then a JSON header of that length."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ArtifactError("is truncated or no safetensors file", file=file)
            header = json.loads(stream.read(length))
        return {name: tuple(item["shape"]) for name, item in header.items() if name != "__metadata__"}
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"cannot be read ({error})", file=file, expected="a safetensors file") from error
