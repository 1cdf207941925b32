"""The likelihood of the linear mixed model on one predictor, profiled; its global maximum with a random intercept.

A group enters only by its 3 x 3 matrix of cross products of (1, x, y). `factor` is the lower triangular square root of
the random effects' covariance relative to the residual variance: 1 x 1 for an intercept, 2 x 2 with a slope.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from quantverdict.stats.intervals import FloatArray

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
class Maximum:
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


def fit_at(data: Crossproducts, factor: FloatArray) -> Maximum:
    """The fit whose random effects have this factor: that of the highest likelihood, `best_intercept` or another."""
    value, fixed, residual, whitened = _solve(data, factor)
    covariance = factor @ factor.T
    at_boundary = _singular(covariance)
    return Maximum(
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
