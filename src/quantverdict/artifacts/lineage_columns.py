"""Builds whose maker moves weights before it rounds them, as GPTQ does.

GPTQ takes the inputs of a matrix one after the other, and changes those not yet taken to make up for the rounding of
those taken. So most weights are not at the level nearest to the baseline's, and only the first column has nothing to
make up for. That is input 0, or any where inputs are taken by importance; matrices that read the same input take
them in the same order. A build of a changed model has no column at its nearest levels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from quantverdict.artifacts.lineage_tensors import (
    CANNOT_TELL,
    COARSEST,
    DIFFERENT,
    SAME,
    Residual,
    Verdict,
    resolution_of,
)

_ROLE = re.compile(r"(.*layers\.\d+\.)(.+)\.weight")
_SHARED = {
    "self_attn.q_proj": "attention", "self_attn.k_proj": "attention", "self_attn.v_proj": "attention",
    "mlp.gate_proj": "ffn", "mlp.up_proj": "ffn",
}  # fmt: skip
_NEAR_IF_SPREAD = 0.2
"""Share of values within 0.1 step of where rounding turns, where weights spread over many levels."""
_LEAST_NEAR = 0.05
_ONE_IN = 100.0


@dataclass(frozen=True, slots=True)
class Columns:
    """Counts for each input, over the rows of all matrices that read it.

    Attributes:
        off: values that are not at the nearest level.
        near: values that a small change would put off.
        rows: values looked at.
        parts: the matrices' residuals.
    """

    off: NDArray[np.int64]
    near: NDArray[np.int64]
    rows: int
    parts: tuple[Residual, ...]


def pool_of(name: str) -> tuple[str, str]:
    """The input that a matrix reads, and its role alone: matrices of one input are looked at together."""
    match = _ROLE.fullmatch(name)
    if match is None:
        return name, name
    role = _SHARED.get(match[2], match[2])
    return match[1] + role, role


def joined(parts: tuple[Residual, ...]) -> Columns:
    """The counts of matrices with the same inputs."""
    masks = [(part.off, part.near) for part in parts if part.off is not None and part.near is not None]
    off, near = (np.sum([np.count_nonzero(pair[at], axis=0) for pair in masks], axis=0) for at in (0, 1))
    return Columns(off, near, sum(len(pair[0]) for pair in masks), parts)


def judge_columns(pools: Mapping[tuple[str, str], Columns]) -> dict[tuple[str, str], Verdict]:
    """A verdict for each input, by `pool_of`.

    Where the first column tells nothing (its weights are so small that all are 0), the next ones are off in a few
    values. That is taken for it only where most inputs of the same role have a clean column.
    """
    clean = {key: bool(np.any((columns.off == 0) & _telling(columns))) for key, columns in pools.items()}
    shares = {role: np.mean([clean[key] for key in pools if key[1] == role]) for _, role in pools}
    return {key: _judge(columns, clean[key], bool(shares[key[1]] > 0.5)) for key, columns in pools.items()}


def _telling(columns: Columns) -> NDArray[np.bool_]:
    return np.asarray(columns.near >= _LEAST_NEAR * columns.rows)


def _judge(columns: Columns, clean: bool, usual: bool) -> Verdict:
    telling = np.flatnonzero(_telling(columns))
    if not len(telling):
        return Verdict(CANNOT_TELL, None, None, "no column that would show a change")
    weight = np.minimum(1, columns.near[telling] / (_NEAR_IF_SPREAD * columns.rows)) * columns.rows
    counts = columns.off[telling]
    best = int(np.lexsort((-weight, counts))[0])
    if telling[0] == 0 and counts[0] == 0:
        best = 0
    # Of columns that a change touches alike, none has so few off but once in 100 if this is each one's share.
    chosen = 0.0 if best == 0 and telling[0] == 0 else log(len(telling))
    few = int(counts[best])
    share = (few + 3 * sqrt(few) + chosen + log(_ONE_IN)) / float(weight[best])
    resolution = max(resolution_of(part, share) for part in columns.parts) if share < 0.5 else None
    off = float(np.sum(columns.off) / (columns.rows * len(columns.off)))
    if clean or (usual and resolution is not None and resolution <= COARSEST):
        note = f"input {telling[best]} has {few} of {columns.rows} values off their nearest level"
        return Verdict(SAME if resolution is not None else CANNOT_TELL, off, resolution, note)
    note = f"no input's values are at their nearest levels: of the best, {few} of {columns.rows} are off"
    return Verdict(DIFFERENT, off, resolution, note)
