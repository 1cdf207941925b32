"""Instances of Every Eval Ever: JSON lines of one schema, whatever tool made them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from quantverdict.errors import DataError
from quantverdict.ingestion.logs import LogFile, LoggedMetric, LogOptions, Unit, document_of, first_row, under
from quantverdict.ingestion.rows import RowFields, read_blocks
from quantverdict.registry import IMPORTERS

SCORE = "evaluation.score"


def every_eval_log(path: Path, options: LogOptions) -> Iterator[LogFile]:
    """The score of each instance. Which direction is better stands in the document of the evaluation, beside it.

    Raises:
        DataError: the directions differ in one file.
    """
    row = first_row(path)
    columns = {**IMPORTERS["eee"].columns}
    if not isinstance(under(row, "input").get("raw"), str):
        columns.pop("prompt_hash")
    models: dict[str, None] = {}
    for block in read_blocks(path, "eee", RowFields({"model": columns["cell"]}, {})):
        models |= dict.fromkeys(str(one) for one in block.frame["model"].drop_nulls().unique(maintain_order=True))
    metric = LoggedMetric("score", SCORE, Unit(better=_direction(path, str(row.get("evaluation_id", "")))))
    yield LogFile(path, "eee", columns, (metric,) if options.takes("score") else (), arms=tuple(models))


def _direction(path: Path, evaluation: str) -> str | None:
    lower: set[bool] = set()
    for beside in sorted(path.parent.glob("*.json")):
        found = document_of(beside)
        if isinstance(found, dict) and found.get("evaluation_id") == evaluation:
            results = found.get("evaluation_results")
            given = [under(one, "metric_config") for one in results] if isinstance(results, list) else []
            lower |= {bool(one["lower_is_better"]) for one in given if "lower_is_better" in one}
    if len(lower) > 1:
        raise DataError("is of metrics of both directions", file=path, field="lower_is_better",
                        expected="a file for each direction, or --unit score=share,higher")  # fmt: skip
    return None if not lower else "lower" if lower.pop() else "higher"
