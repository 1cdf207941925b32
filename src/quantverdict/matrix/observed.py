"""What the pairs of a run say of each share, for the plan of the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from quantverdict.collect.prospects import Observed
from quantverdict.matrix.columns import METRICS
from quantverdict.matrix.grid import Grid, Grids
from quantverdict.records import CellId
from quantverdict.stats.noninferiority import cluster_sums, design_effect, mean_loss

_ANY_MARGIN = 0.05
"""The design effect of a mean does not depend on it."""


def observed_pairs(samples: Grids, baselines: Mapping[CellId, CellId], alpha: float) -> dict[str, Observed]:
    """Means over the builds of a run, by metric; a metric that no build and its baseline both have is left out.

    Args:
        samples: one grid a metric.
        baselines: each build to the baseline that it is compared with.
        alpha: one-sided level of the tests, for what it takes to allow for few clusters.
    """
    found: dict[str, Observed] = {}
    for name, grid in samples.items():
        if METRICS[name].is_share:
            of_builds = list(_of_builds(name, grid, baselines, alpha))
            if of_builds:
                found[name] = Observed(*(float(np.mean(values)) for values in zip(*of_builds, strict=True)))
    return found


def _of_builds(
    name: str, grid: Grid, baselines: Mapping[CellId, CellId], alpha: float
) -> Iterator[tuple[float, float, float, float]]:
    """Rate of the baseline, share of pairs that differ, variance and design effect, of each build."""
    for cell, baseline in baselines.items():
        if cell not in grid.cells or baseline not in grid.cells:
            continue
        mine, theirs = (grid.values[:, grid.cells.index(one)] for one in (cell, baseline))
        known = ~np.isnan(mine - theirs)
        if not known.any():
            continue
        change, units = (mine - theirs)[known], grid.units[known].tolist()
        differing = int(np.count_nonzero(change))
        if METRICS[name].proportion:
            effect = design_effect(*cluster_sums(change, units), differing, alpha)
        else:
            effect = mean_loss(change, _ANY_MARGIN, alpha, units).design_effect
        yield float(theirs[known].mean()), differing / change.size, float(change.var()), effect
