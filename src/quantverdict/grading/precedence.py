"""Several judges of the same samples: which label counts, and which samples a second judge sees."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

from quantverdict.records import CellId, Judgement

Sample = tuple[str, str, str, str]
"""Base model, quant, task, sample."""


def sample_of(judgement: Judgement) -> Sample:
    """What was judged."""
    return judgement.base_model, judgement.quant, judgement.task, judgement.sample_id


def first_label_wins(judges: Sequence[Sequence[Judgement]]) -> tuple[list[Judgement], list[Judgement]]:
    """One judgement a sample, and the others.

    Of each sample the first judge with a label wins; where none has one, the first judge's ungraded one is kept.

    Args:
        judges: the judgements of each judge, in the order of precedence; each sample at most once a judge.
    """
    won: dict[Sample, Judgement] = {}
    for judgement in (one for own in judges for one in own):
        held = won.get(sample_of(judgement))
        if held is None or (held.label is None and judgement.label is not None):
            won[sample_of(judgement)] = judgement
    others = [one for own in judges for one in own if won[sample_of(one)] is not one]
    return list(won.values()), others


def stratified(samples: Collection[Sample], whole: Collection[CellId], per_cell: int, seed: int) -> list[Sample]:
    """What a second judge is asked: some cells whole, and of every other cell `per_cell` samples, in the order given.

    The tasks of a cell are drawn from in proportion to their size. The order of the draw follows from seed, task and
    sample alone, so that builds with the same prompts are judged on the same ones.
    """
    cells: dict[CellId, dict[str, list[Sample]]] = {}
    for sample in samples:
        cells.setdefault(CellId(*sample[:2]), {}).setdefault(sample[2], []).append(sample)
    chosen: set[Sample] = set()
    for cell, tasks in cells.items():
        chosen.update(_spread(tasks, seed)[: None if cell in whole else per_cell])
    return [sample for sample in samples if sample in chosen]


def _spread(tasks: Mapping[str, Sequence[Sample]], seed: int) -> list[Sample]:
    """All samples of a cell, so that any first part of them has each task in proportion."""
    placed: list[tuple[float, str, Sample]] = []
    for task, samples in tasks.items():
        drawn = sorted(samples, key=lambda sample: hashlib.sha256(f"{seed}\n{task}\n{sample[3]}".encode()).hexdigest())
        placed += [((place + 0.5) / len(drawn), task, sample) for place, sample in enumerate(drawn)]
    return [sample for *_, sample in sorted(placed)]
