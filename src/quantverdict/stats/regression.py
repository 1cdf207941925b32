"""A line by least squares, and one with a random intercept (and slope) a group by maximum likelihood."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantverdict.stats import likelihood
from quantverdict.stats.correlation import pearson
from quantverdict.stats.distributions import critical_z, normal_two_sided


@dataclass(frozen=True, slots=True)
class Line:
    """y = intercept + slope x by least squares; `p` is of the slope. Figures are None where `reason` says why."""

    n: int
    slope: float | None = None
    intercept: float | None = None
    r_squared: float | None = None
    p: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MixedFit:
    """y = intercept + coef x + a random term of each group, by maximum likelihood.

    Attributes:
        n: points.
        coef, se, p, lo, hi: the fixed slope, its standard error, Wald p-value and interval.
        group_variance: of the random intercept, in squared units of y.
        slope_variance: of the random slope, None in a model without one.
        residual_variance: what is left.
        log_likelihood: at the maximum.
        at_boundary: a variance is estimated as 0 (or a correlation as 1): p and interval then take it as known.
        reason: why there is no fit, where there is none.
    """

    n: int
    coef: float | None = None
    se: float | None = None
    p: float | None = None
    lo: float | None = None
    hi: float | None = None
    group_variance: float | None = None
    slope_variance: float | None = None
    residual_variance: float | None = None
    log_likelihood: float | None = None
    at_boundary: bool | None = None
    reason: str = ""


def ols(x: npt.ArrayLike, y: npt.ArrayLike) -> Line:
    """Ordinary least squares on one predictor; `p` from Student's t with n - 2 degrees of freedom.

    Raises:
        ValueError: x and y are not equally long, or hold a value that is not finite.
    """
    link = pearson(x, y)
    if link.r is None:
        return Line(link.n, reason=link.reason)
    one, two = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    slope = link.r * float(np.std(two) / np.std(one))
    return Line(link.n, slope, float(two.mean()) - slope * float(one.mean()), link.r**2, link.p)


def mixed_effects(
    y: npt.ArrayLike,
    x: npt.ArrayLike,
    groups: Sequence[Hashable],
    *,
    random_slope: bool = False,
    confidence: float = 0.95,
) -> MixedFit:
    """Linear mixed model y ~ x + (1 | group), or (1 + x | group), by maximum likelihood (Laird & Ware 1982).

    The fixed effects and the residual variance have closed forms given the random effects' covariance relative to the
    residual variance; the likelihood left over is searched globally in what remains: one number on a grid of the whole
    half line, every local maximum refined; or three from several starts by two optimisers. The standard error comes
    from the observed information of all parameters (that of statsmodels' MixedLM).

    Raises:
        ValueError: unequal lengths, or a value that is not finite.
    """
    raw_y, raw_x = np.asarray(y, dtype=np.float64), np.asarray(x, dtype=np.float64)
    n = len(raw_y)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} points")
    link = pearson(raw_x, raw_y)
    if link.r is None:
        return MixedFit(n, reason=link.reason)
    if len(set(groups)) < 2:
        return MixedFit(n, reason="fewer than 2 groups")
    scale_x, scale_y = float(np.std(raw_x)), float(np.std(raw_y))
    data = likelihood.crossproducts((raw_x - raw_x.mean()) / scale_x, (raw_y - raw_y.mean()) / scale_y, groups)
    if likelihood.unbounded(data, random_slope):
        return MixedFit(n, reason="too few points within groups to tell their spread from the residual")
    fit = likelihood.maximise(data, random_slope)
    coef, se = fit.slope * scale_y / scale_x, fit.slope_se * scale_y / scale_x
    reach = critical_z(confidence) * se
    variance = fit.covariance * scale_y**2
    back = np.array([[1.0, -float(raw_x.mean()) / scale_x], [0.0, 1 / scale_x]])[: len(variance), : len(variance)]
    variance = back @ variance @ back.T
    return MixedFit(
        n=n,
        coef=coef,
        se=se,
        p=normal_two_sided(coef / se),
        lo=coef - reach,
        hi=coef + reach,
        group_variance=float(variance[0, 0]),
        slope_variance=float(variance[1, 1]) if random_slope else None,
        residual_variance=fit.residual * scale_y**2,
        log_likelihood=fit.log_likelihood - n * math.log(scale_y),
        at_boundary=fit.at_boundary,
    )
