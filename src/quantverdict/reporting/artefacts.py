"""A bundle's artefacts as rows of text: CSV as it is, JSON by key path, Parquet as its CSV would be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from quantverdict.bundle.files import cell_text
from quantverdict.errors import BundleError
from quantverdict.reporting.formats import DisplayNames

if TYPE_CHECKING:
    from quantverdict.reporting.examples import Example
    from quantverdict.reporting.flips import Flips

Row = Mapping[str, str]


class Artefacts:
    """The artefacts of one bundle, each put into rows once.

    Attributes:
        name: of the bundle, for messages.
        document: what an artefact holds by its name: rows of `.csv` or `.parquet`, a JSON value; None where it is not.
    """

    def __init__(self, name: str, document: Callable[[str], Any]) -> None:
        self.name = name
        self.document = document
        self.rows = cache(self._rows)

    def _rows(self, artefact: str) -> Sequence[Row] | None:
        """The rows of `FILE.csv`, `FILE.parquet` or `FILE.json#key/path`; None where the bundle has no such artefact.

        Raises:
            BundleError: it cannot be read.
        """
        name, _, keys = artefact.partition("#")
        found = self.document(name)
        return found if found is None or name.endswith(".csv") else _entries(found, keys)

    def table(self, name: str) -> Sequence[Row]:
        """The rows of `NAME.csv`, none where there is no such file."""
        return self.rows(f"{name}.csv") or ()


def _entries(found: Any, keys: str) -> Sequence[Row] | None:  # noqa: ANN401 - any JSON
    """What stands at a key path: a list of objects as rows, an object as one row, a list of values one a row."""
    for key in map(unquote, keys.split("/") if keys else ()):
        if not isinstance(found, dict) or found.get(key) is None:
            return None
        found = found[key]
    entries = found if isinstance(found, list) else [found]
    return [
        dict(flat(entry)) if isinstance(entry, dict) else {"index": str(index), "value": plain(entry)}
        for index, entry in enumerate(entries)
    ]


def flat(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """An object as columns; those of nested objects by their key path."""
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain(value)


def plain(value: object) -> str:
    """A JSON value as a CSV shows it."""
    if isinstance(value, str | int | float | bool) or value is None:
        return cell_text(value)
    return json.dumps(value, ensure_ascii=False)


# What the report reads: the decision, the CSV tables and the provenance of one bundle, as they were written.

TABLES = (
    "matrix", "deltas", "tiers", "regimes", "row_actions", "quant_roles", "floor", "taxonomy", "checklist", "paired",
    "noise_floor", "engines", "criteria", "recovery", "whitebox", "text_kl", "alarms", "instruments", "corrected_rates",
    "judges", "judge_calibration", "judge_agreement", "judge_direction",
)  # fmt: skip

PROFILES = ("default", "study")
"""The reports that there are: the short one, and the whole of the study table by table."""

CsvRow = Mapping[str, str]


def profile_of(manifest: Mapping[str, Any]) -> str:
    """Which report a bundle has; the default one where it does not say."""
    return str((manifest.get("report") or {}).get("profile", PROFILES[0]))


@dataclass(frozen=True, slots=True)
class BundleTables:
    """What one bundle says.

    Attributes:
        decision: `decision.json`.
        tables: rows of each CSV artefact that is there; an artefact that is not has no key.
        artifacts: (base model, quant) to what `artifacts.json` says of the build.
        manifest: `manifest.json`, empty where there is none.
        names: of metrics, with their judges.
        examples: prompts that a baseline refused and a build answered.
        flips: answers whose grade changed; None where no answers are kept, or the report shows none.
    """

    decision: Mapping[str, Any]
    tables: Mapping[str, Sequence[CsvRow]]
    artifacts: Mapping[tuple[str, str], Mapping[str, Any]]
    manifest: Mapping[str, Any]
    names: DisplayNames
    examples: Sequence[Example] = ()
    flips: Flips | None = None

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


def view_of(read: Artefacts, names: DisplayNames) -> BundleTables:
    """What the report needs of a bundle, but for its examples.

    Raises:
        BundleError: there is no decision, or an artefact is not what its name says.
    """
    decision = _json(read, "decision.json")
    if decision is None:
        raise BundleError(f"{read.name}: no decision.json, so nothing was decided; run or analyze the bundle first")
    tables = {name: found for name in TABLES if (found := read.rows(f"{name}.csv")) is not None}
    return BundleTables(decision, tables, _artifacts(read), _json(read, "manifest.json") or {}, names)


def _json(read: Artefacts, name: str, kind: type = dict) -> Any:  # noqa: ANN401 - JSON of the asked kind
    found = read.document(name)
    if found is not None and not isinstance(found, kind):
        raise BundleError(f"{read.name}/{name}: not a {kind.__name__}")
    return found


def _artifacts(read: Artefacts) -> dict[tuple[str, str], Mapping[str, Any]]:
    entries = _json(read, "artifacts.json", list) or []
    for number, entry in enumerate(entries, start=1):
        named = isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("base_model", "quant"))
        if not named:
            raise BundleError(f"{read.name}/artifacts.json: build {number}: no base_model and quant")
    return {(entry["base_model"], entry["quant"]): entry for entry in entries}
