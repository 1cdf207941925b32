"""A finished bundle as values to look at: read only, no lock, nothing computed again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from quantverdict.bundle import frames
from quantverdict.bundle.integrity import read_manifest
from quantverdict.bundle.store import read_responses, responses_path
from quantverdict.errors import BundleError, DataError, count_of
from quantverdict.protocol.document import check_schema
from quantverdict.records import CellId
from quantverdict.registry import METRICS
from quantverdict.registry.listing import one_of
from quantverdict.reporting.formats import harmless, plain

if TYPE_CHECKING:
    import polars as pl

UNFINISHED = "the run is unfinished; run the same command again to finish it"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one metric says of one build.

    Attributes:
        outcome: `non_inferior`, `inferior`, `not_resolvable`, ... (SPEC 5).
        details: everything else that the decision holds of it: losses, gains, intervals, margin, p-values.
    """

    metric: str
    outcome: str | None
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BuildDecision:
    """What was decided of one build.

    Attributes:
        action: `accept`, `reject_inferior`, `not_resolvable`, ... (SPEC 5); the baseline's is `reference`.
        reason: why, in a sentence.
        outcomes: metric to what it says; empty where a finished matrix was judged without samples.
        details: the whole entry of `decision.json`: shares as fractions of 1, deltas in percentage points.
    """

    build: str
    action: str
    reason: str
    outcomes: Mapping[str, Outcome]
    details: Mapping[str, Any] = field(repr=False)

    @property
    def is_baseline(self) -> bool:
        return bool(self.details["is_baseline"])


class Decision(Mapping[str, BuildDecision]):
    """Every build of a bundle by its name `MODEL/QUANT`, in the order of the matrix.

    Attributes:
        study: its name.
        best: base model to the quant that was chosen for it, None where none was.
        notes: what a reader must know besides.
        document: `decision.json` as it is.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.study: str = document["study"]
        self.best: Mapping[str, str | None] = {
            model: None if chosen is None else chosen["quant"] for model, chosen in document["best"].items()
        }
        self.notes: tuple[str, ...] = tuple(document["notes"])
        self._builds = {f"{cell['base_model']}/{cell['quant']}": cell for cell in document["cells"]}

    def __getitem__(self, build: str) -> BuildDecision:
        if build not in self._builds:
            raise KeyError(f"no build {build!r}; expected {one_of(build, self._builds)}")
        cell = self._builds[build]
        outcomes = {one["metric"]: Outcome(one["metric"], one.get("outcome"), one) for one in cell["outcomes"] or ()}
        action, reason = cell["action"] or cell["status"], cell["action_reason"] or cell["failure"] or ""
        return BuildDecision(build, action, reason, MappingProxyType(outcomes), MappingProxyType(cell))

    def __iter__(self) -> Iterator[str]:
        return iter(self._builds)

    def __len__(self) -> int:
        return len(self._builds)

    def __repr__(self) -> str:
        lines = [f"Decision of study {plain(self.study)}: {count_of(len(self), 'build')}"]
        lines += [f"  best {plain(model)}: {plain(quant or 'none')}" for model, quant in self.best.items()]
        lines += [f"  {plain(name)}: {self[name].action}" for name in self]
        return harmless("\n".join(lines))

    def _repr_html_(self) -> str:
        """A row a build, for notebooks."""
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(one.action)}</td><td>{escape(one.reason)}</td></tr>"
            for name, one in self.items()
        )
        return (
            f"<table><thead><tr><th>build</th><th>action</th><th>reason</th></tr></thead><tbody>{rows}</tbody></table>"
        )


class BundleView:
    """The artefacts of a bundle as frames (polars; `.to_pandas()` works) and small values, each read when asked for.

    Nothing is locked or changed, and no hash is checked: `quantverdict.verify` does that.
    """

    def __init__(self, root: Path) -> None:
        """
        Raises:
            BundleError: not a bundle, or of another version.
        """
        self.path = root
        self._manifest = read_manifest(root)

    @property
    def finished(self) -> bool:
        """Whether the command that made it came to its end."""
        return self._manifest["run"].get("finished") is not None

    @cached_property
    def decision(self) -> Decision:
        """
        Raises:
            BundleError: it holds none yet, or one of another version.
        """
        path = self.path / "decision.json"
        if not path.is_file():
            raise BundleError(f"{self.path}: holds no decision.json; {UNFINISHED}")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path}: cannot be read ({error})") from error
        check_schema(document, path)
        return Decision(document)

    @property
    def matrix(self) -> pl.DataFrame:
        """A row a build: every metric with count, interval and n."""
        return self.table("matrix")

    @property
    def deltas(self) -> pl.DataFrame:
        """A row a build and metric: its difference from the baseline in percentage points, with interval."""
        return self.table("deltas")

    @property
    def paired(self) -> pl.DataFrame:
        """A row a build and gated metric: losses, gains, tests, the outcome."""
        return self.table("paired")

    @property
    def criteria(self) -> pl.DataFrame:
        """A row a build and criterion, and one for each member of a pool: what decides, and the outcome."""
        return self.table("criteria")

    @property
    def recovery(self) -> pl.DataFrame:
        """A row a build and metric: its score in percent of the baseline's, with interval."""
        return self.table("recovery")

    @property
    def scores(self) -> pl.DataFrame:
        """A row a sample and metric: `value` is null where it is ungraded, and `reason` says why."""
        return frames.read_frame(self._file("scores.parquet"), frames.SCORES)

    @property
    def tables(self) -> tuple[str, ...]:
        """The names that `table` takes."""
        return tuple(sorted(path.stem for path in self.path.glob("*.csv")))

    def table(self, name: str) -> pl.DataFrame:
        """The table `NAME.csv`; a blank is null.

        Raises:
            BundleError: there is no such table, or it cannot be read.
        """
        import polars as pl

        if name not in self.tables:
            raise BundleError(f"{self.path}: no table {name!r}; expected {one_of(name, self.tables)}")
        path = self._file(f"{name}.csv")
        try:
            read = pl.read_csv(path, infer_schema=False)
            return read.select(_typed(column) for column in read)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise BundleError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error

    def responses(self, build: str) -> pl.DataFrame:
        """The answers of a build, `MODEL/QUANT`, a row each.

        Raises:
            BundleError: no answers of such a build are stored.
            DataError: a line that is not a response.
        """
        import polars as pl

        model, _, quant = build.partition("/")
        path = responses_path(self.path, CellId(model, quant))
        stored = sorted((self.path / "responses").glob("*.jsonl"))
        if path not in stored:
            known = [file.stem.replace("__", "/", 1) for file in stored]
            expected = one_of(build, known) if known else "the bundle of a run: this one holds no answers"
            raise BundleError(f"{self.path}: no answers of {build!r}; expected {expected}")
        answers = read_responses(self._file(path.relative_to(self.path).as_posix()))
        return pl.DataFrame([asdict(one) for one in answers], infer_schema_length=None)

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file() or path.is_symlink():
            raise BundleError(f"{self.path}: holds no {name}; {'it was not measured' if self.finished else UNFINISHED}")
        return path

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        if not self.finished:
            return f"<bundle {harmless(str(self.path))}: unfinished>"
        try:
            return f"<bundle {harmless(str(self.path))}>\n{self.decision!r}"
        except (BundleError, DataError) as error:
            return f"<bundle {harmless(str(self.path))}: {harmless(str(error))}>"

    def _repr_html_(self) -> str:
        name = f"<p>bundle <code>{escape(harmless(str(self.path)))}</code></p>"
        return name + (self.decision._repr_html_() if self.finished else "<p>unfinished</p>")


def write_matrix(frame: object, path: Path) -> Path:
    """A matrix in a data frame of polars or pandas, as a CSV file.

    Raises:
        DataError: it is neither.
    """
    if hasattr(frame, "write_csv"):
        frame.write_csv(path)
    elif hasattr(frame, "to_csv"):
        frame.to_csv(path, index=False)
    else:
        raise DataError(
            f"{type(frame).__name__}: not a matrix",
            expected="a bundle, a CSV file, or a data frame of polars or pandas",
        )
    return path


def _typed(column: pl.Series) -> pl.Series:
    """A column of text as whole numbers or numbers, where every value is one; names stay text."""
    import polars as pl

    if column.name in TEXT:
        return column
    if column.null_count() == len(column):
        return column.cast(pl.Float64) if column.name.endswith(MEASURED) else column
    for kind in (pl.Int64, pl.Float64):
        read = column.cast(kind, strict=False)
        if read.null_count() == column.null_count():
            return read
    return column


TEXT = frozenset(
    {"family", "first_judge", "second_judge"}.union(
        name
        for columns in (frames.SCORES, frames.FORMS, frames.JUDGEMENTS)
        for name, kind in columns.items()
        if kind == frames.TEXT
    )
)
"""Columns of names: one that looks like a number is none."""
MEASURED = ("value", "delta", "_k", "_n", "_lo", "_hi", *METRICS)
"""Ends of the names of columns that hold numbers, also where nothing was measured."""
