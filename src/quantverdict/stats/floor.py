"""The noise floor: how many answers flip though nothing changed, and whether a variant flips more of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """Flips of null arms against the baseline.

    Attributes:
        n: prompts that all arms answered.
        arms: null arms.
        flips: prompts that differ from the baseline, summed over arms.
        rate: flips / (n arms).
        hi: upper limit of the rate (Clopper-Pearson, one-sided); above 0 where no flip was seen.
    """

    n: int
    arms: int
    flips: int
    rate: float
    hi: float


@dataclass(frozen=True, slots=True)
class Excess:
    """Flips of a variant beyond those of the null arms.

    Attributes:
        flips: of the variant.
        expected: of one arm, were the variant one more null arm.
        p: one-sided, of H0: the variant is one more null arm.
    """

    flips: int
    expected: float
    p: float


def noise_floor(nulls: npt.ArrayLike, confidence: float = 0.95) -> NoiseFloor:
    """The flip rate of null arms.

    Args:
        nulls: (arms, n), True where the arm differs from the baseline.
        confidence: of the upper limit.

    Raises:
        ValueError: no arm or no prompt.
    """
    raise NotImplementedError


def excess_flips(variant: npt.ArrayLike, nulls: npt.ArrayLike, clusters: Sequence[Hashable] | None = None) -> Excess:
    """Does a variant flip more prompts than the null arms do? Exact, conditional on the flips of each prompt.

    Args:
        variant: (n,), True where the variant differs from the baseline; or is lost, for a test of losses alone.
        nulls: (arms, n), the same of the null arms.
        clusters: a label for each prompt; arms are exchanged within whole clusters. None is a cluster of its own.

    Raises:
        ValueError: shapes do not fit, or nothing in them.
    """
    raise NotImplementedError
