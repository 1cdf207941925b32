"""The highest likelihood of the mixed model with a random slope: several starts, two optimisers, many fits at once.

The relative covariance D of the random effects is sought by its triangular root. From each start ECME climbs (Liu &
Rubin 1994, Biometrika 81:633) a few steps, and Newton's method from there; the highest end wins. A boundary is where
the root loses rank, an ordinary point of the search: nothing has to stop short of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quantverdict.stats.intervals import FloatArray
from quantverdict.stats.likelihood import Crossproducts, best_intercept

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
    values = np.stack([_look(every, end)[0] for end in ends], axis=-1).reshape(len(fits), -1)
    best = np.stack(ends, axis=1).reshape(len(fits), -1, 3)[np.arange(len(fits)), values.argmax(axis=1)]
    return np.stack([np.stack([best[:, 0], np.zeros(len(fits))], -1), best[:, 1:]], axis=-2)


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
    return np.stack([a, b, np.sqrt(np.maximum(d22 - b * b, 0))], axis=-1)


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
    t11, t12, t22, t1, t2, t = (part.sum(axis=-1) for part in (s11, s12, s22, v1, v2, yy))
    det_t = t11 * t22 - t12**2
    one, two = (t22 * t1 - t12 * t2) / det_t, (t11 * t2 - t12 * t1) / det_t
    residual = (t - one * t1 - two * t2) / n
    residual = np.where(residual > 0, residual, np.inf)  # rounding, far out: no place to go to
    value = -0.5 * (n * (np.log(2 * math.pi * residual) + 1) + np.log(q).sum(axis=-1))
    u1 = v1 - s11 * one[:, None] - s12 * two[:, None]
    u2 = v2 - s12 * one[:, None] - s22 * two[:, None]
    pulls = [((f * g).sum(axis=-1) / residual - t) / 2 for f, g, t in ((u1, u1, t11), (u1, u2, t12), (u2, u2, t22))]
    return value, np.stack(pulls, axis=-1)


def _climb(data: _Groups, root: FloatArray) -> FloatArray:
    """ECME: D becomes D + 2 D G D / groups, the mean of what the random effects are expected to be."""
    share = 2 / np.count_nonzero(data.size, axis=-1)
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
    bend = np.stack([(other - slope) / _REACH for other in others], axis=-1)
    curve, axes = np.linalg.eigh((bend + bend.mT) / 2)
    along = (axes * slope[:, :, None]).sum(axis=1) / (np.abs(curve) + damp[:, None])
    return np.asarray((axes * along[:, None, :]).sum(axis=-1), dtype=np.float64)
