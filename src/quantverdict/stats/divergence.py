"""How far one distribution over tokens is from another: place by place, and what publishers print of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quantverdict.stats.intervals import FloatArray

AnyFloatArray = npt.NDArray[np.floating]


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


def divergence(reference: AnyFloatArray, other: AnyFloatArray) -> Divergence:
    """KL(p || q) = sum over tokens of p (ln p - ln q), added up over the places, in float64; 0 for equal logits.

    Args:
        reference, other: (places, tokens) logits, each row up to a constant of its own. One row at a time is widened.

    Raises:
        ValueError: they are not of one shape.
    """
    _require_alike(reference, other)
    kl, agreed = 0.0, 0
    for mine, theirs in zip(reference, other, strict=True):
        kl += _kl(_log_softmax(mine), _log_softmax(theirs))
        agreed += int(mine.argmax() == theirs.argmax())
    return Divergence(kl, agreed, len(reference))


@dataclass(frozen=True, eq=False, slots=True)
class TokenDivergence:
    """Place by place, each array of (places,).

    Attributes:
        kl: KL(reference || other) in nats.
        same_top: 1 where both find the same token the likeliest, else 0.
        reference_nll, nll: minus the log-probability of the token that follows, by the reference and by the other.
    """

    kl: FloatArray
    same_top: FloatArray
    reference_nll: FloatArray
    nll: FloatArray


def token_divergence(reference: AnyFloatArray, other: AnyFloatArray, following: Sequence[int]) -> TokenDivergence:
    """How far two distributions are apart before each token of a text.

    A token that both mask (a logit of minus infinity), or that the reference gives no chance, adds 0; one that the
    other alone masks makes its place infinite.

    Args:
        reference, other: (places, tokens) logits, each row up to a constant of its own.
        following: the token that follows at each place.

    Raises:
        ValueError: they are not of one shape, or not as many as the tokens.
    """
    _require_alike(reference, other)
    rows = []
    for mine, theirs, token in zip(reference, other, following, strict=True):
        log_p, log_q = _log_softmax(mine), _log_softmax(theirs)
        rows.append((max(0.0, _kl(log_p, log_q)), mine.argmax() == theirs.argmax(), -log_p[token], -log_q[token]))
    kl, same_top, reference_nll, nll = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return TokenDivergence(kl, same_top, reference_nll, nll)


@dataclass(frozen=True, slots=True)
class TextDivergence:
    """What is told of one build on one text, beside its baseline.

    Attributes:
        tokens: that were predicted.
        mean, median, p90, p99, p999, max: of the KL divergence from the baseline at a token, in nats; quantiles between
            two tokens are interpolated.
        same_top: share of tokens before which both find the same one the likeliest.
        rms_dp, mean_dp: root mean square and mean of the change of the probability of the right token.
        ppl: perplexity of the build.
        ppl_ratio: that over the baseline's; `ppl_ratio_se` is its standard error, the tokens of both being the same.
    """

    tokens: int
    mean: float
    median: float
    p90: float
    p99: float
    p999: float
    max: float
    same_top: float
    rms_dp: float
    mean_dp: float
    ppl: float
    ppl_ratio: float
    ppl_ratio_se: float


def text_divergence(parts: Sequence[TokenDivergence]) -> TextDivergence:
    """The figures over all places of a text.

    The error of the ratio is llama-perplexity's: exp of the mean difference of log-probabilities times its standard
    error, sqrt((var a + var b - 2 cov(a, b)) / (n - 1)), which is that of the differences token by token.

    Raises:
        ValueError: fewer than two places, or one that is infinite.
    """
    kl, same_top, before, nll = (
        np.concatenate([getattr(part, name) for part in parts]) for name in TokenDivergence.__slots__
    )
    if len(kl) < 2:
        raise ValueError(f"{len(kl)} tokens; two at least are expected")
    if not all(np.isfinite(values).all() for values in (kl, before, nll)):
        raise ValueError("a token is impossible to one of two builds")
    change, log_ratio = np.exp(-nll) - np.exp(-before), nll - before
    p90, p99, p999 = np.quantile(kl, (0.9, 0.99, 0.999))
    ratio = math.exp(log_ratio.mean())
    return TextDivergence(
        tokens=len(kl),
        mean=float(kl.mean()),
        median=float(np.median(kl)),
        p90=float(p90),
        p99=float(p99),
        p999=float(p999),
        max=float(kl.max()),
        same_top=float(same_top.mean()),
        rms_dp=math.sqrt((change**2).mean()),
        mean_dp=float(change.mean()),
        ppl=math.exp(nll.mean()),
        ppl_ratio=ratio,
        ppl_ratio_se=ratio * float(log_ratio.std()) / math.sqrt(len(kl) - 1),
    )


def _require_alike(reference: AnyFloatArray, other: AnyFloatArray) -> None:
    if reference.shape != other.shape:
        raise ValueError(f"logits of shapes {reference.shape} and {other.shape}")


def _kl(log_p: FloatArray, log_q: FloatArray) -> float:
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = p * (log_p - log_q)
    total = float(terms.sum())
    return float(terms[p > 0].sum()) if math.isnan(total) else total


def _log_softmax(logits: AnyFloatArray) -> FloatArray:
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    return wide
