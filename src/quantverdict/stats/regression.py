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
from quantverdict.stats.slopes import best_slopes


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
    half line, every local maximum refined; or three from several starts by two optimisers (`slopes`). The standard
    error comes from the observed information of all parameters (that of statsmodels' MixedLM).

    Raises:
        ValueError: unequal lengths, or a value that is not finite.
    """
    return mixed_effects_of_each([(y, x, groups)], random_slope=random_slope, confidence=confidence)[0]


Points = tuple[npt.ArrayLike, npt.ArrayLike, Sequence[Hashable]]
"""y, x and the group of each point."""


def mixed_effects_of_each(
    samples: Sequence[Points], *, random_slope: bool = False, confidence: float = 0.95
) -> list[MixedFit]:
    """`mixed_effects` of many sets of points: random slopes are sought for all of them together."""
    prepared = [_prepared(*points, random_slope) for points in samples]
    ready = [one for one in prepared if isinstance(one, _Scaled)]
    if random_slope:
        factors = list(best_slopes([one.data for one in ready])) if ready else []
    else:
        factors = [likelihood.best_intercept(one.data) for one in ready]
    fitted = iter([_fit(one, factor, confidence) for one, factor in zip(ready, factors, strict=True)])
    return [next(fitted) if isinstance(one, _Scaled) else one for one in prepared]


@dataclass(frozen=True, slots=True)
class _Scaled:
    """Points ready to fit: mean of x, and the units of x and y that are taken out."""

    data: likelihood.Crossproducts
    centre: float
    scale_x: float
    scale_y: float


def _prepared(y: npt.ArrayLike, x: npt.ArrayLike, groups: Sequence[Hashable], random_slope: bool) -> _Scaled | MixedFit:
    raw_y, raw_x = np.asarray(y, dtype=np.float64), np.asarray(x, dtype=np.float64)
    n = len(raw_y)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} points")
    link = pearson(raw_x, raw_y)
    if link.r is None:
        return MixedFit(n, reason=link.reason)
    if len(set(groups)) < 2:
        return MixedFit(n, reason="fewer than 2 groups")
    centre, scale_x, scale_y = float(raw_x.mean()), float(np.std(raw_x)), float(np.std(raw_y))
    data = likelihood.crossproducts((raw_x - centre) / scale_x, (raw_y - raw_y.mean()) / scale_y, groups)
    if likelihood.unbounded(data, random_slope):
        return MixedFit(n, reason="too few points within groups to tell their spread from the residual")
    return _Scaled(data, centre, scale_x, scale_y)


def _fit(points: _Scaled, factor: npt.NDArray[np.float64], confidence: float) -> MixedFit:
    fit = likelihood.fit_at(points.data, factor)
    unit = points.scale_y / points.scale_x
    coef, se = fit.slope * unit, fit.slope_se * unit
    reach = critical_z(confidence) * se
    size = len(factor)
    back = np.array([[1.0, -points.centre / points.scale_x], [0.0, 1 / points.scale_x]])[:size, :size]
    variance = back @ fit.covariance @ back.T * points.scale_y**2
    return MixedFit(
        n=points.data.n,
        coef=coef,
        se=se,
        p=normal_two_sided(coef / se),
        lo=coef - reach,
        hi=coef + reach,
        group_variance=float(variance[0, 0]),
        slope_variance=float(variance[1, 1]) if size > 1 else None,
        residual_variance=fit.residual * points.scale_y**2,
        log_likelihood=fit.log_likelihood - points.data.n * math.log(points.scale_y),
        at_boundary=fit.at_boundary,
    )
