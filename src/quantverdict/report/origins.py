"""What a comparison rests on: proofs that a build is its baseline's, and what of a delta is the engine's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quantverdict.report import formats
from quantverdict.report.bundle import BundleView
from quantverdict.report.tables import Grid

_SIGNS = {"same": "\N{CHECK MARK}", "different": "\N{MULTIPLICATION X}", "cannot_tell": "?"}


def origins(bundle: BundleView) -> Grid:
    """One row a build that has something to prove."""
    columns = ("build", "engine", "comes from the baseline", "reads the same tokens")
    shows = "Whether each build is the baseline's weights, and is asked what the baseline is asked."
    return Grid("origins", "Proved comparable", shows, columns, tuple(_proofs(bundle)))


def _proofs(bundle: BundleView) -> Iterator[tuple[str, ...]]:
    for (model, quant), row in bundle.artifacts.items():
        found = {proof["check"]: proof for proof in row.get("lineage") or ()}
        if found:
            build = formats.plain(f"{model}/{quant}")
            yield build, str(row.get("backend") or ""), *(_said(found.get(check)) for check in ("lineage", "prompt"))


def _said(proof: Mapping[str, Any] | None) -> str:
    if proof is None:
        return formats.NOT_MEASURED
    why = proof["reason"] + (f"; waived: {proof['waived']}" if proof.get("waived") else "")
    return f"{_SIGNS.get(proof['verdict'], '')} {formats.words(proof['verdict'])}: {formats.plain(why)}".strip()


def engines(bundle: BundleView) -> Grid:
    """The engine effect and the format effects, by metric."""
    columns = ("build", "engine", "effect of the", "against", "metric", "pairs", "lost", "gained", "delta (pp)")
    shows = (
        "Engine effect: the baseline's format on another engine less the baseline. Format effect: a build less the "
        "baseline's format on its own engine."
    )
    rows = tuple(
        (
            formats.plain(f"{row['base_model']}/{row['quant']}"),
            row["engine"],
            row["effect"],
            formats.plain(row["against"]),
            formats.label(row["metric"]),
            row["n_pairs"],
            row["lost"],
            row["gained"],
            f"{formats.delta(row['delta_pp'])} {formats.interval(row['ci_lo_pp'], row['ci_hi_pp'], 1, sign=True)}",
        )
        for row in bundle.tables.get("engines", ())
    )
    numeric = (*[False] * 5, *[True] * 4)
    return Grid("engines", "Format against engine", shows, columns, rows, numeric)
