"""Samples that lm-evaluation-harness logged: a file a task, and in it a row a filter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantverdict.errors import DataError, one_of
from quantverdict.ingestion.logs import (
    LogFile,
    LoggedMetric,
    LogOptions,
    Unit,
    document_of,
    first_row,
    short_name,
    under,
)

_NAME = re.compile(r"samples_(?P<task>.+?)(_(?P<time>\d{4}-\d\d-\d\dT[\d.:-]+))?\.jsonl")
_FILTER = re.compile(rb'"filter": ?("(?:[^"\\]|\\.)*"), ?"metrics":')
"""In a row, not in the item that it holds."""
_COLUMNS = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
    "target_hash",
}  # fmt: skip
"""Of every row; what else there is are metrics, where `metrics` does not name them."""


def lm_eval_log(path: Path, options: LogOptions) -> Iterator[LogFile]:
    """The samples of one task, once a filter that is taken.

    What the model is called and which direction is better stands in the results beside them.

    Raises:
        DataError: no such filter.
    """
    row, name = first_row(path), _NAME.fullmatch(path.name)
    results = _results(path, name)
    task = name["task"] if name else "samples"
    filters = _filters(path, row, results, task)
    single = len(filters) == 1
    if options.chosen != "all" and not single:
        if options.chosen not in filters:
            raise DataError(f"no rows of the filter {options.chosen}", file=path, field="filter",
                            expected=f"{one_of(options.chosen, filters)}, or all")  # fmt: skip
        filters, single = (options.chosen,), True
    better = under(results, "higher_is_better", task)
    listed = row.get("metrics")
    names = listed if isinstance(listed, list) else [key for key in row if key not in _COLUMNS]
    numbers = [one for one in names if isinstance(row.get(one), int | float) and "." not in one]
    notes = tuple(f"{one} of {task} is left out: it is no number a row" for one in names if one not in numbers)
    columns = {"sample_id": "doc_id", "prompt_hash": "prompt_hash", "item_hash": "doc_hash"}
    for number, chosen in enumerate(filters):
        metrics = (
            LoggedMetric(one if single else f"{one},{chosen}", one, Unit(better=_direction(better.get(one))))
            for one in numbers
        )
        yield LogFile(
            path=path,
            format="lm-eval",
            columns={role: column for role, column in columns.items() if column in row},
            metrics=tuple(one for one in metrics if options.takes(one.name)),
            arm=_model(path, name, results),
            task=short_name(task),
            where={"filter": chosen} if "filter" in row and (len(filters) > 1 or options.chosen == chosen) else {},
            notes=() if number else notes,
        )


def _direction(higher: object) -> str | None:
    return None if higher is None else "higher" if higher else "lower"


def _results(path: Path, name: re.Match[str] | None) -> Mapping[str, Any]:
    beside = path.with_name(f"results_{name['time']}.json") if name and name["time"] else None
    found = document_of(beside) if beside is not None and beside.exists() else {}
    return found if isinstance(found, dict) else {}


def _model(path: Path, name: re.Match[str] | None, results: Mapping[str, Any]) -> str:
    """By the results; else the folder, which that harness names by the model."""
    said = under(results, "config", "model_args").get("pretrained", "")
    return str(results.get("model_name") or said or (path.resolve().parent.name if name and name["time"] else ""))


def _filters(path: Path, row: Mapping[str, Any], results: Mapping[str, Any], task: str) -> tuple[str, ...]:
    """The filters of which there are rows: as the task's configuration says, else by reading that column."""
    if "filter" not in row:
        return ("none",)
    configured = under(results, "configs", task)
    if configured:
        listed = configured.get("filter_list") or []
        names = [one.get("name") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        return tuple(str(one) for one in names if one) or (str(row["filter"]),)
    found: dict[bytes, None] = {}
    with path.open("rb") as file:
        for content in file:
            if (last := _last_filter(content)) is not None:
                found[last] = None
    return tuple(json.loads(one) for one in found) or (str(row["filter"]),)


def _last_filter(content: bytes) -> bytes | None:
    """The filter of a row, as it stands in JSON: keys of the row come after those of the item that it holds."""
    place = content.rfind(b'"filter":')
    while place >= 0:
        if found := _FILTER.match(content, place):
            return found[1]
        place = content.rfind(b'"filter":', 0, place)
    return None
