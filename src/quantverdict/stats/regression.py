"""A line by least squares, and one with a random intercept (and slope) a group by maximum likelihood."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quantverdict.stats.correlation import pearson
from quantverdict.stats.distributions import critical_z, normal_two_sided
from quantverdict.stats.intervals import FloatArray

# The likelihood of the linear mixed model on one predictor, profiled; its global maximum with a random intercept.
#
# A group enters only by its 3 x 3 matrix of cross products of (1, x, y). `factor` is the lower triangular square root
# of the random effects' covariance relative to the residual variance: 1 x 1 for an intercept, 2 x 2 with a slope.

_ZOOMS, _POINTS = 6, 129
_NOTHING = 1e-12
"""Mean square, where the whole is 1, that rounding leaves of nothing."""
_NEGLIGIBLE = 1e-9
"""Log-likelihood by which a smaller model may fall behind and still be taken: rounding."""


@dataclass(frozen=True, slots=True)
class Crossproducts:
    """`groups` (groups, 3, 3): cross products of (1, x, y) within each group; `n` points in all."""

    groups: FloatArray
    n: int

    @property
    def outer(self) -> FloatArray:
        """Products of each group's sums of (1, x, y): (groups, 3, 3)."""
        return self.groups[:, :, :1] * self.groups[:, :1, :]


@dataclass(frozen=True, slots=True)
class MixedModelFit:
    """The fit, in the units of the data given: fixed slope, covariance of the random effects, residual variance."""

    slope: float
    slope_se: float
    covariance: FloatArray
    residual: float
    log_likelihood: float
    at_boundary: bool


def crossproducts(x: FloatArray, y: FloatArray, groups: Sequence[Hashable]) -> Crossproducts:
    """Reduce the data, (n,) each, to what the likelihood needs."""
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    design = np.column_stack([np.ones_like(x), x, y])
    return Crossproducts(np.stack([design[rows].T @ design[rows] for rows in members.values()]), len(x))


def unbounded(data: Crossproducts, random_slope: bool) -> bool:
    """True where groups of their own explain y without rest: the likelihood then grows for ever."""
    size = 2 if random_slope else 1
    fixed, rest = data.groups[:, :size, :size], data.groups[:, :size, size:]
    within = (data.groups[:, size:, size:] - rest.mT @ np.linalg.pinv(fixed, hermitian=True) @ rest).sum(axis=0)
    left = within[-1, -1]
    if not random_slope and within[0, 0] > _NOTHING * data.n:
        left -= within[0, 1] ** 2 / within[0, 0]
    return bool(left <= _NOTHING * data.n)


def fit_at(data: Crossproducts, factor: FloatArray) -> MixedModelFit:
    """The fit whose random effects have this factor: that of the highest likelihood, `best_intercept` or another."""
    value, fixed, residual, whitened = _solve(data, factor)
    covariance = factor @ factor.T
    at_boundary = _singular(covariance)
    return MixedModelFit(
        slope=float(fixed[1]),
        slope_se=_slope_se(data.n, whitened, fixed, residual, None if at_boundary else len(factor)),
        covariance=covariance * residual,
        residual=residual,
        log_likelihood=value,
        at_boundary=at_boundary,
    )


def log_likelihood(data: Crossproducts, factor: FloatArray) -> FloatArray:
    """Profile log-likelihood for factors (..., q, q), the fixed effects and the residual variance at their best."""
    total, log_det = _totals(data, factor)
    rest = total[..., 2, 2] - _quadratic(total[..., :2, :2], total[..., :2, 2])
    return np.asarray(-0.5 * (data.n * (np.log(2 * math.pi * rest / data.n) + 1) + log_det), dtype=np.float64)


def _totals(data: Crossproducts, factor: FloatArray) -> tuple[FloatArray, FloatArray]:
    """`_whiten` summed over the groups: (..., 3, 3), and log det V."""
    if factor.shape[-1] > 1:
        whitened, log_det = _whiten(data, factor)
        return whitened.sum(axis=-3), log_det
    # The search asks for nothing else, thousands of times: no array for every group.
    square = factor[..., 0] ** 2
    weight = 1 + square * data.groups[:, 0, 0]
    return data.groups.sum(axis=0) - np.einsum("...g,gij->...ij", square / weight, data.outer), np.log(weight).sum(-1)


def _whiten(data: Crossproducts, factor: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(1, x, y)' V^-1 (1, x, y) of each group (..., groups, 3, 3), and log det V over all; V = I + Z F F' Z'."""
    size = factor.shape[-1]
    factor = factor[..., None, :, :]
    if size == 1:
        # The same in closed form, ten times as fast.
        weight = 1 + factor[..., 0] ** 2 * data.groups[:, 0, :1]
        shrink = (factor[..., 0] ** 2 / weight)[..., None]
        return data.groups - shrink * data.outer, np.log(weight).sum(axis=(-2, -1))
    inner = np.eye(size) + factor.mT @ data.groups[:, :size, :size] @ factor
    cross = data.groups[:, :, :size] @ factor
    log_det = np.linalg.slogdet(inner)[1].sum(axis=-1)
    return data.groups - cross @ np.linalg.solve(inner, cross.mT), log_det


def _quadratic(corner: FloatArray, edge: FloatArray) -> FloatArray:
    """edge' corner^-1 edge for symmetric 2 x 2 corners (..., 2, 2): a matrix solver costs more than the sum."""
    a, b, d = corner[..., 0, 0], corner[..., 0, 1], corner[..., 1, 1]
    one, two = edge[..., 0], edge[..., 1]
    return np.asarray((d * one**2 - 2 * b * one * two + a * two**2) / (a * d - b**2), dtype=np.float64)


def _solve(data: Crossproducts, factor: FloatArray) -> tuple[float, FloatArray, float, FloatArray]:
    whitened, _ = _whiten(data, factor)
    total = whitened.sum(axis=0)
    fixed = np.linalg.solve(total[:2, :2], total[:2, 2])
    residual = float(total[2, 2] - fixed @ total[:2, 2]) / data.n
    return float(log_likelihood(data, factor)), fixed, residual, whitened


def best_intercept(data: Crossproducts) -> FloatArray:
    """The factor, (1, 1), at the highest likelihood without random slopes.

    Searches the share of variance between groups over [0, 1): a grid, then a zoom into each local maximum.
    """
    steps = np.logspace(-8, 0, 81)[:-1]
    grid = np.unique(np.concatenate([[0.0, 0.5], steps / 2, 1 - steps / 2]))
    values = _at_shares(data, grid)
    inner = np.concatenate([[-np.inf], values, [-np.inf]])
    peaks = np.flatnonzero((inner[1:-1] >= inner[:-2]) & (inner[1:-1] >= inner[2:]))
    best_value, best = float(values[0]), 0.0
    for peak in peaks.tolist():
        share = _zoom(data, grid[max(peak - 1, 0)], grid[min(peak + 1, len(grid) - 1)])
        value = float(_at_shares(data, np.array([share]))[0])
        if value > best_value + _NEGLIGIBLE:
            best_value, best = value, share
    return np.array([[math.sqrt(best / (1 - best))]])


def _zoom(data: Crossproducts, below: float, above: float) -> float:
    for _ in range(_ZOOMS):
        points = np.linspace(below, above, _POINTS)
        top = int(np.argmax(_at_shares(data, points)))
        below, above = points[max(top - 1, 0)], points[min(top + 1, _POINTS - 1)]
    return float((below + above) / 2)


def _at_shares(data: Crossproducts, shares: FloatArray) -> FloatArray:
    return log_likelihood(data, np.sqrt(shares / (1 - shares))[:, None, None])


def _singular(covariance: FloatArray) -> bool:
    variances = np.diag(covariance)
    if variances.min() <= 1e-8:
        return True
    return len(variances) == 2 and bool(1 - covariance[0, 1] ** 2 / variances.prod() <= 1e-6)


def _slope_se(n: int, whitened: FloatArray, fixed: FloatArray, residual: float, size: int | None) -> float:
    """Standard error of the fixed slope from the observed information.

    The residual variance is profiled out; `size` random effects, None where their covariance is taken as known.
    Derivatives are with respect to the elements of the relative covariance.
    """
    information = whitened.sum(axis=0)[:2, :2] / residual
    if size is not None:
        mixed, own = _covariance_information(n, whitened, fixed, residual, size)
        reduced = information - mixed.T @ np.linalg.pinv(own) @ mixed
        if np.linalg.eigvalsh(own)[0] > 0 and np.linalg.eigvalsh(reduced)[0] > 0:
            information = reduced
    return math.sqrt(float(np.linalg.inv(information)[1, 1]))


def _covariance_information(
    n: int, whitened: FloatArray, fixed: FloatArray, residual: float, size: int
) -> tuple[FloatArray, FloatArray]:
    """(covariance x fixed, covariance x covariance) blocks of the observed information."""
    bends = [
        np.eye(size)[[row]].T @ np.eye(size)[[column]]
        + (row != column) * np.eye(size)[[column]].T @ np.eye(size)[[row]]
        for row in range(size)
        for column in range(row, size)
    ]
    square = whitened[:, :size, :size]
    to_fixed = whitened[:, :size, :2]
    to_rest = whitened[:, :size, 2] - to_fixed @ fixed
    rss = n * residual
    mixed = np.array([np.einsum("gif,ij,gj->f", to_fixed, bend, to_rest) for bend in bends]) / residual
    first = np.array([np.einsum("gi,ij,gj->", to_rest, bend, to_rest) for bend in bends])
    own = np.empty((len(bends), len(bends)))
    for i, one in enumerate(bends):
        for j, two in enumerate(bends):
            second = 2 * np.einsum("gi,ij,gjk,kl,gl->", to_rest, one, square, two, to_rest)
            trace = np.einsum("gij,jk,gkl,li->", square, one, square, two)
            own[i, j] = n / 2 * (second / rss - first[i] * first[j] / rss**2) - trace / 2
    return mixed, own


# The highest likelihood of the mixed model with a random slope: several starts, two optimisers, many fits at once.
#
# The relative covariance D of the random effects is sought by its triangular root. From each start ECME climbs (Liu &
# Rubin 1994, Biometrika 81:633) a few steps, and Newton's method from there; the highest end wins. A boundary is where
# the root loses rank, an ordinary point of the search: nothing has to stop short of it.

_PEAKS, _CLIMBS, _STEPS = 12, 5, 400
"""Peaks of the grid that are followed; steps of ECME, and at most of Newton's method, from each start."""
_LEVELS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 13.0, 26.0)
_TILTS = (-1.0, -0.97, -0.8, -0.4, 0.0, 0.4, 0.8, 0.97, 1.0)
"""The grid: spreads of intercepts and of slopes, relative to the residual's, and their correlation."""
_REACH = 1e-6
"""How far apart gradients are taken for the second derivatives."""
_FLAT, _STUCK = 1e-11, 1e3
"""A step that raises the log-likelihood by less is the last; as is one that fails with more damping."""

Rows = npt.NDArray[np.int64]


class _Groups(NamedTuple):
    """Sums of (1, x, y) products of each group, (points, groups), and `n` (points,). A group of zeros is none."""

    size: FloatArray
    x: FloatArray
    xx: FloatArray
    y: FloatArray
    xy: FloatArray
    yy: FloatArray
    n: FloatArray

    def of(self, rows: Rows) -> _Groups:
        return _Groups._make(part[rows] for part in self)


def best_slopes(fits: Sequence[Crossproducts]) -> FloatArray:
    """The triangular root of D at the highest likelihood of each fit: (fits, 2, 2).

    The data are standardised, and `likelihood.unbounded` of none.
    """
    data = _stacked(fits)
    starts = np.concatenate([_promising(data), _with_slopes([best_intercept(one) for one in fits])], axis=1)
    every = data.of(np.repeat(np.arange(len(fits)), starts.shape[1]))
    begun = starts.reshape(-1, 3)
    climbed = _climb(every, begun)
    ends = [begun, climbed, _newton(every, climbed)]
    values = np.stack([_look(every, end)[0] for end in ends], axis=1).reshape(len(fits), -1)
    best = np.stack(ends, axis=1).reshape(len(fits), -1, 3)[np.arange(len(fits)), values.argmax(axis=1)]
    return np.stack([np.stack([best[:, 0], np.zeros(len(fits))], axis=1), best[:, 1:]], axis=1)


def _stacked(fits: Sequence[Crossproducts]) -> _Groups:
    groups = np.zeros((len(fits), max(len(one.groups) for one in fits), 3, 3))
    for place, one in zip(groups, fits, strict=True):
        place[: len(one.groups)] = one.groups
    upper = [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)]
    size, x, xx, y, xy, yy = (groups[..., row, column] for row, column in upper)
    return _Groups(size, x, xx, y, xy, yy, np.array([float(one.n) for one in fits]))


def _promising(data: _Groups) -> FloatArray:
    """The highest peaks of a grid of roots, (fits, peaks, 3).

    A likelihood of few groups has several hills: the best points of a grid may all lie on one that is not the highest.
    """
    grid = np.array([(a, b * t, b * math.sqrt(1 - t * t)) for a in _LEVELS for b in _LEVELS for t in _TILTS])
    fits = len(data.n)
    values, _ = _look(data.of(np.repeat(np.arange(fits), len(grid))), np.tile(grid, (fits, 1)))
    heights = values.reshape(fits, len(_LEVELS), len(_LEVELS), len(_TILTS))
    lower = ~_peaks(heights).reshape(fits, -1)
    order = np.lexsort((-heights.reshape(fits, -1), lower), axis=1)
    return np.asarray(grid[order[:, :_PEAKS]], dtype=np.float64)


def _peaks(heights: FloatArray) -> npt.NDArray[np.bool_]:
    """Which points of each grid, (fits, ...), are no lower than their neighbours along any axis."""
    peaks = np.ones(heights.shape, dtype=np.bool_)
    for axis in range(1, heights.ndim):
        line, peak = np.moveaxis(heights, axis, 0), np.moveaxis(peaks, axis, 0)
        peak[1:] &= line[1:] >= line[:-1]
        peak[:-1] &= line[:-1] >= line[1:]
    return peaks


def _with_slopes(intercepts: Sequence[FloatArray]) -> FloatArray:
    """Starts from the model without slopes, that model itself among them."""
    return np.array([[(one[0, 0], 0.0, 0.0), (one[0, 0], 0.3, 0.3), (0.0, 0.0, 0.3)] for one in intercepts])


def _covariance(root: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """D as (11, 12, 22) of a root (..., 3) = (a, b, c), rows (a, 0) and (b, c)."""
    a, b, c = root[..., 0], root[..., 1], root[..., 2]
    return a * a, a * b, b * b + c * c


def _root(d11: FloatArray, d12: FloatArray, d22: FloatArray) -> FloatArray:
    a = np.sqrt(np.maximum(d11, 0))
    b = np.divide(d12, a, out=np.zeros_like(a), where=a > 0)
    return np.stack([a, b, np.sqrt(np.maximum(d22 - b * b, 0))], axis=1)


def _look(data: _Groups, root: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The profile log-likelihood at roots (points, 3), as `likelihood.log_likelihood` has it, and its gradient in D.

    With A the products of (1, x) in a group and Z its design, Z'V^-1 Z = (A^-1 + D)^-1 = (A + det(A) adj(D)) / q where
    q = det(V) = det(I + AD), and Z'V^-1 y = adj(I + AD) Z'y / q. The gradient is G = (uu' / residual - Z'V^-1 Z) / 2
    over the groups, with u = Z'V^-1 (y - fixed): as (11, 12, 22), (points, 3).
    """
    d11, d12, d22 = (part[:, None] for part in _covariance(root))
    det_d, n = (root[:, :1] * root[:, 2:]) ** 2, data.n
    det_a = data.size * data.xx - data.x**2
    q = 1 + d11 * data.size + 2 * d12 * data.x + d22 * data.xx + det_d * det_a
    s11, s12, s22 = (data.size + det_a * d22) / q, (data.x - det_a * d12) / q, (data.xx + det_a * d11) / q
    v1 = ((1 + data.x * d12 + data.xx * d22) * data.y - (data.size * d12 + data.x * d22) * data.xy) / q
    v2 = ((1 + data.size * d11 + data.x * d12) * data.xy - (data.x * d11 + data.xx * d12) * data.y) / q
    m11, m12, m22 = d11 + det_d * data.xx, d12 - det_d * data.x, d22 + det_d * data.size
    yy = data.yy - (m11 * data.y**2 + 2 * m12 * data.y * data.xy + m22 * data.xy**2) / q
    t11, t12, t22, t1, t2, t = (part.sum(axis=1) for part in (s11, s12, s22, v1, v2, yy))
    det_t = t11 * t22 - t12**2
    one, two = (t22 * t1 - t12 * t2) / det_t, (t11 * t2 - t12 * t1) / det_t
    residual = (t - one * t1 - two * t2) / n
    residual = np.where(residual > 0, residual, np.inf)  # rounding, far out: no place to go to
    value = -0.5 * (n * (np.log(2 * math.pi * residual) + 1) + np.log(q).sum(axis=1))
    u1 = v1 - s11 * one[:, None] - s12 * two[:, None]
    u2 = v2 - s12 * one[:, None] - s22 * two[:, None]
    pulls = [((f * g).sum(axis=1) / residual - t) / 2 for f, g, t in ((u1, u1, t11), (u1, u2, t12), (u2, u2, t22))]
    return value, np.stack(pulls, axis=1)


def _climb(data: _Groups, root: FloatArray) -> FloatArray:
    """ECME: D becomes D + 2 D G D / groups, the mean of what the random effects are expected to be."""
    share = 2 / np.count_nonzero(data.size, axis=1)
    for _ in range(_CLIMBS):
        g11, g12, g22 = _look(data, root)[1].T * share
        d11, d12, d22 = _covariance(root)
        h11, h12 = g11 * d11 + g12 * d12, g11 * d12 + g12 * d22
        h21, h22 = g12 * d11 + g22 * d12, g12 * d12 + g22 * d22
        root = _root(d11 + d11 * h11 + d12 * h21, d12 + d11 * h12 + d12 * h22, d22 + d12 * h12 + d22 * h22)
    return root


def _slope(data: _Groups, root: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Log-likelihood, and its gradient in the root: 2 G L."""
    value, pull = _look(data, root)
    (g11, g12, g22), (a, b, c) = pull.T, root.T
    return value, 2 * np.column_stack([g11 * a + g12 * b, g12 * a + g22 * b, g22 * c])


def _newton(data: _Groups, start: FloatArray) -> FloatArray:
    """Newton's method, always uphill: curvature is taken by its size, and damped where a step fails."""
    found, moving = start.copy(), np.arange(len(start))
    value, damp = _look(data, start)[0], np.full(len(start), 1e-3)
    for _ in range(_STEPS):
        here, at = data.of(moving), found[moving]
        tried = at + _step(here, at, damp[moving])
        rise = _look(here, tried)[0] - value[moving]
        up = rise > 0
        found[moving[up]], value[moving] = tried[up], value[moving] + np.where(up, rise, 0)
        damp[moving] = np.maximum(np.where(up, damp[moving] / 10, damp[moving] * 10), 1e-9)
        moving = moving[(rise > _FLAT) | (~up & (damp[moving] < _STUCK))]
        if not len(moving):
            break
    return found


def _step(data: _Groups, root: FloatArray, damp: FloatArray) -> FloatArray:
    """Where Newton's method goes, by second derivatives from differences of gradients."""
    shifted = root + _REACH * np.eye(4, 3, -1)[:, None]
    slope, *others = _slope(data.of(np.tile(np.arange(len(root)), 4)), shifted.reshape(-1, 3))[1].reshape(4, -1, 3)
    bend = np.stack([(other - slope) / _REACH for other in others], axis=2)
    curve, axes = np.linalg.eigh((bend + bend.mT) / 2)
    along = (axes * slope[:, :, None]).sum(axis=1) / (np.abs(curve) + damp[:, None])
    return np.asarray((axes * along[:, None, :]).sum(axis=2), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class LinearFit:
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


def ols(x: npt.ArrayLike, y: npt.ArrayLike) -> LinearFit:
    """Ordinary least squares on one predictor; `p` from Student's t with n - 2 degrees of freedom.

    Raises:
        ValueError: x and y are not equally long, or hold a value that is not finite.
    """
    link = pearson(x, y)
    if link.r is None:
        return LinearFit(link.n, reason=link.reason)
    one, two = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    slope = link.r * float(np.std(two) / np.std(one))
    return LinearFit(link.n, slope, float(two.mean()) - slope * float(one.mean()), link.r**2, link.p)


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
    ready = [one for one in prepared if isinstance(one, _ScaledPoints)]
    if random_slope:
        factors = list(best_slopes([one.data for one in ready])) if ready else []
    else:
        factors = [best_intercept(one.data) for one in ready]
    fitted = iter([_fit(one, factor, confidence) for one, factor in zip(ready, factors, strict=True)])
    return [next(fitted) if isinstance(one, _ScaledPoints) else one for one in prepared]


@dataclass(frozen=True, slots=True)
class _ScaledPoints:
    """Points ready to fit: mean of x, and the units of x and y that are taken out."""

    data: Crossproducts
    centre: float
    scale_x: float
    scale_y: float


def _prepared(
    y: npt.ArrayLike, x: npt.ArrayLike, groups: Sequence[Hashable], random_slope: bool
) -> _ScaledPoints | MixedFit:
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
    data = crossproducts((raw_x - centre) / scale_x, (raw_y - raw_y.mean()) / scale_y, groups)
    if unbounded(data, random_slope):
        return MixedFit(n, reason="too few points within groups to tell their spread from the residual")
    return _ScaledPoints(data, centre, scale_x, scale_y)


def _fit(points: _ScaledPoints, factor: npt.NDArray[np.float64], confidence: float) -> MixedFit:
    fit = fit_at(points.data, factor)
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
