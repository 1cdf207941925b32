"""What the report reads: the decision, the CSV tables and the provenance of one bundle, as they were written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantverdict.errors import BundleError
from quantverdict.report.artefacts import Artefacts

TABLES = (
    "matrix", "deltas", "tiers", "regimes", "row_actions", "quant_roles", "floor", "taxonomy", "checklist", "paired",
    "noise_floor", "engines", "whitebox", "alarms", "instruments", "corrected_rates",
    "judges", "judge_agreement", "judge_direction",
)  # fmt: skip

CsvRow = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BundleView:
    """A bundle's artefacts.

    Attributes:
        root: the bundle's directory.
        decision: `decision.json`.
        tables: rows of each CSV artefact that is there; an artefact that is not has no key.
        artifacts: (base model, quant) to what `artifacts.json` says of the build.
        manifest: `manifest.json`, empty where there is none.
    """

    root: Path
    decision: Mapping[str, Any]
    tables: Mapping[str, Sequence[CsvRow]]
    artifacts: Mapping[tuple[str, str], Mapping[str, Any]]
    manifest: Mapping[str, Any]

    @property
    def cells(self) -> list[Mapping[str, Any]]:
        """The decision's cells in study order."""
        return list(self.decision.get("cells", ()))

    @property
    def models(self) -> list[str]:
        """Base models in study order."""
        return list(dict.fromkeys(cell["base_model"] for cell in self.cells))

    def by_cell(self, table: str) -> dict[tuple[str, str], CsvRow]:
        """Rows of a per-cell table by (base model, quant)."""
        return {(row["base_model"], row["quant"]): row for row in self.tables.get(table, ())}


def read_bundle(root: Path, read: Artefacts | None = None) -> BundleView:
    """Read what the report needs; `read` has some of it already.

    Raises:
        BundleError: there is no decision, or an artefact is not what its name says.
    """
    decision = _json(root / "decision.json")
    if decision is None:
        raise BundleError(f"{root}: no decision.json, so nothing was decided; run or analyze the bundle first")
    rows = (read or Artefacts(root)).rows
    tables = {name: found for name in TABLES if (found := rows(f"{name}.csv")) is not None}
    return BundleView(root, decision, tables, _artifacts(root), _json(root / "manifest.json") or {})


def _json(path: Path, kind: type = dict) -> Any:  # noqa: ANN401 - JSON of the asked kind
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read ({error})") from error
    if not isinstance(data, kind):
        raise BundleError(f"{path}: not a {kind.__name__}")
    return data


def _artifacts(root: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    entries = _json(root / "artifacts.json", list) or []
    for number, entry in enumerate(entries, start=1):
        named = isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("base_model", "quant"))
        if not named:
            raise BundleError(f"{root / 'artifacts.json'}: build {number}: no base_model and quant")
    return {(entry["base_model"], entry["quant"]): entry for entry in entries}
