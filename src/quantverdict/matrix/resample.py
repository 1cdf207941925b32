"""Bootstrap intervals of many columns of a grid at once.

What is drawn is a prompt, or a whole cluster of prompts. A prompt without a grade is drawn like any other and adds
nothing, so that all cells of a metric share their draws.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from quantverdict.config import StatisticsConfig
from quantverdict.stats.intervals import (
    FloatArray,
    Interval,
    bootstrap_means,
    bootstrap_ratios,
    resampled_ratios,
)

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Column:
    """Values of one cell, (prompts,) with NaN where there is none, and the unit of each prompt."""

    values: FloatArray
    units: npt.NDArray[np.int64]
    clustered: bool

    @property
    def is_plain(self) -> bool:
        """Every prompt is a unit and has a value."""
        return not self.clustered and not np.isnan(self.values).any()


def intervals(columns: Mapping[Key, Column], statistics: StatisticsConfig, seed: int) -> dict[Key, Interval]:
    """The interval of the mean of each column; each has at least one value."""
    plain: dict[int, list[Key]] = {}
    others: dict[int, list[Key]] = {}
    for key, column in columns.items():
        units = len(column.values) if column.is_plain else int(column.units.max()) + 1
        (plain if column.is_plain else others).setdefault(units, []).append(key)
    found: dict[Key, Interval] = {}
    settings = {"samples": statistics.bootstrap_samples, "seed": seed, "confidence": statistics.confidence}
    for keys in plain.values():
        stacked = np.column_stack([columns[key].values for key in keys])
        found |= _named(keys, bootstrap_means(stacked, **settings))  # type: ignore[arg-type]
    for units, keys in others.items():
        sums, counts = (np.column_stack(part) for part in zip(*(_totals(columns[k], units) for k in keys), strict=True))
        found |= _named(keys, bootstrap_ratios(sums, counts, **settings))  # type: ignore[arg-type]
    return found


def draws(columns: Mapping[Key, Column], statistics: StatisticsConfig, seed: int) -> dict[Key, FloatArray]:
    """The means of the resamples themselves, (resamples,) a column; NaN where a resample has no value of it."""
    by_units: dict[int, list[Key]] = {}
    for key, column in columns.items():
        by_units.setdefault(int(column.units.max()) + 1, []).append(key)
    found: dict[Key, FloatArray] = {}
    for units, keys in by_units.items():
        sums, counts = (np.column_stack(part) for part in zip(*(_totals(columns[k], units) for k in keys), strict=True))
        means = resampled_ratios(sums, counts, samples=statistics.bootstrap_samples, seed=seed)
        found |= dict(zip(keys, means.T, strict=True))
    return found


def _totals(column: Column, units: int) -> tuple[FloatArray, FloatArray]:
    """Sum and number of the values of each unit."""
    known = ~np.isnan(column.values)
    sums = np.bincount(column.units[known], weights=column.values[known], minlength=units).astype(np.float64)
    return sums, np.bincount(column.units[known], minlength=units).astype(np.float64)


def _named(keys: list[Key], limits: FloatArray) -> dict[Key, Interval]:
    return {key: Interval(float(lo), float(hi)) for key, (lo, hi) in zip(keys, limits, strict=True)}
