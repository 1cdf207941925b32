"""How far one distribution over tokens is from another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


class Divergence(NamedTuple):
    """Over so many places.

    Attributes:
        kl: the sum of KL(reference || other) in nats.
        agreed: places where both find the same token the likeliest.
        places: how many there are.
    """

    kl: float
    agreed: int
    places: int


def divergence(reference: FloatArray, other: FloatArray) -> Divergence:
    """KL(p || q) = sum over tokens of p (ln p - ln q), added up over the places, in float64; 0 for equal logits.

    Args:
        reference, other: (places, tokens) logits, each row up to a constant of its own. One row at a time is widened.

    Raises:
        ValueError: they are not of one shape.
    """
    if reference.shape != other.shape:
        raise ValueError(f"logits of shapes {reference.shape} and {other.shape}")
    kl, agreed = 0.0, 0
    for mine, theirs in zip(reference, other, strict=True):
        log_p, log_q = _log_softmax(mine), _log_softmax(theirs)
        kl += float((np.exp(log_p) * (log_p - log_q)).sum())
        agreed += int(mine.argmax() == theirs.argmax())
    return Divergence(kl, agreed, len(reference))


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    return wide
