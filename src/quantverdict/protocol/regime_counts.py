"""How many builds each regime has."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from quantverdict.protocol.regimes import REGIMES
from quantverdict.records import Table, Value


def regime_counts(regimes: Table) -> Table:
    """`regime_counts.csv` from `regimes.csv`: the regimes that occur; shares are of the builds that are no baseline."""
    counts = Counter(row[regimes.columns.index("regime")] for row in regimes.rows)
    builds = counts.total() - counts["baseline"]
    rows: list[tuple[Value, ...]] = [
        (name, counts[name], Fraction(counts[name], builds) if builds and name != "baseline" else None)
        for name in REGIMES
        if counts[name]
    ]
    return Table("regime_counts", ("regime", "n", "share"), tuple(rows))
