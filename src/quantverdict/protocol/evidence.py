"""What a decision rests on besides the matrix and the policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quantverdict.matrix.grid import Grids
from quantverdict.matrix.headroom import Choices
from quantverdict.records import CellId, Table

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a decision rests on besides the matrix; the defaults are those of a bare matrix.

    Attributes:
        scores: scored samples (`grid.SCORE_COLUMNS`) or grids made of them, for paired intervals.
        sign_reversal: `sign_reversal.csv`, for the correlation screen.
        matrix_sha256: of the frozen `matrix.csv`.
        failed: cells that did not run, and why.
        twins: cells with the same weights as another build of their base model, and that build's quant.
        lineage: cells whose origin or prompt is in doubt, and why.
        configured: cells whose settings are not their baseline's, unless the study waives it, and which are not.
        pairing: of ingested samples, which prompts have no counterpart, and what their equality rests on; sentences.
        dequantized: baselines that were themselves dequantised, and from what.
        baselines: the cells that others are compared with, whether they ran or not.
        idle_judges: judges that the study names and that gave no label.
        nulls: null arms, each to the baseline that it is; they are no builds.
        mixed_up: cells on another engine than their baseline, which does not run there: format and engine in one delta.
        order: the cells of the study in its order; the matrix's own order where it is empty.
        seed: of the bootstrap.
        answers: `answers.parquet`, the form of every answer; None where answers are not stored.
        choices: how many choices the items of each base model have, where that is known.
    """

    scores: pl.DataFrame | Grids | None = None
    sign_reversal: Table | None = None
    matrix_sha256: str | None = None
    failed: Mapping[CellId, str] = field(default_factory=dict)
    twins: Mapping[CellId, str] = field(default_factory=dict)
    lineage: Mapping[CellId, str] = field(default_factory=dict)
    configured: Mapping[CellId, str] = field(default_factory=dict)
    pairing: tuple[str, ...] = ()
    dequantized: Mapping[CellId, str] = field(default_factory=dict)
    baselines: frozenset[CellId] = frozenset()
    idle_judges: tuple[str, ...] = ()
    nulls: Mapping[CellId, CellId] = field(default_factory=dict)
    mixed_up: Mapping[CellId, str] = field(default_factory=dict)
    order: tuple[CellId, ...] = ()
    seed: int = 42
    answers: pl.DataFrame | None = None
    choices: Choices = field(default_factory=dict)
