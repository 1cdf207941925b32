"""Results of promptfoo: all providers in one file, a row a test and provider, some scores in some tests only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantverdict.errors import DataError
from quantverdict.ingestion.logs import LogFile, LoggedMetric, LogOptions, Unit, document_of, under
from quantverdict.registry import IMPORTERS
from quantverdict.yaml_file import decoded

FAILED = 2
"""`failureReason` where there was an error, so that no assertion was looked at."""


def promptfoo_log(path: Path, options: LogOptions) -> Iterator[LogFile]:
    """One log of all providers. `score` is left out where it says nothing that `success` does not."""
    rows = list(promptfoo_rows(path))
    by_metric: dict[str, list[object]] = {}
    for row in rows:
        by_metric.setdefault(row["metric"], []).append(row["value"])
    same = by_metric.get("score") == by_metric.get("success")
    names = [
        name for name in by_metric if options.takes(name) and not (same and name == "score" and not options.metrics)
    ]
    yield LogFile(
        path=path,
        format="promptfoo",
        columns={**IMPORTERS["promptfoo"].columns, "metric": "metric", "value": "value"},
        metrics=tuple(LoggedMetric(name, name, Unit(better="higher")) for name in names),
        ignored=tuple(name for name in by_metric if name not in names),
        arms=tuple(dict.fromkeys(row["model"] for row in rows)),
        task="promptfoo",
    )


def promptfoo_rows(path: Path) -> Iterator[dict[str, Any]]:
    """A row a test, provider and score: `model`, `task`, `sample_id`, `prompt_hash`, `reason`, `metric`, `value`.

    Raises:
        DataError: the file is no such log.
    """
    results = _results(path)
    many = len({_prompt(one) for one in results}) > 1
    seen: dict[tuple[str, str], int] = {}
    for one in results:
        provider = one["provider"]
        arm = str(provider.get("label") or provider.get("id")) if isinstance(provider, dict) else str(provider)
        name = f"{one['testIdx']}/{_prompt(one)[:8]}" if many else str(one["testIdx"])
        count = seen[arm, name] = seen.get((arm, name), 0) + 1
        asked = str(under(one, "prompt").get("raw", ""))
        error = one.get("failureReason") == FAILED
        said = {"success": float(bool(one.get("success"))), "score": one.get("score"), **under(one, "namedScores")}
        for metric, value in said.items():
            yield {
                "model": arm,
                "task": "promptfoo",
                "sample_id": name if count == 1 else f"{name}#{count}",
                "prompt_hash": hashlib.sha256(asked.encode("utf-8", "backslashreplace")).hexdigest(),
                "reason": str(one.get("error") or "error") if error else None,
                "metric": metric,
                "value": None if error else value,
            }


def _prompt(one: Mapping[str, Any]) -> str:
    return str(one.get("promptId") or under(one, "prompt").get("label") or "")


def _results(path: Path) -> list[dict[str, Any]]:
    """Of either form: a document, or the rows alone."""
    import json

    if path.suffix == ".jsonl":
        try:
            rows = [json.loads(line) for line in decoded(path.read_bytes()).split("\n") if line.strip()]
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"cannot be read ({error})", file=path, expected="JSON lines") from error
    else:
        found: Any = document_of(path)
        for _ in range(2):
            found = found.get("results") if isinstance(found, dict) else found
        rows = found if isinstance(found, list) else []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not {"testIdx", "provider"} <= set(row):
            raise DataError("is no result of promptfoo", file=path, line=number, expected="testIdx, provider, success")
    if not rows:
        raise DataError("has no rows", file=path, expected="results of promptfoo, version 3")
    return rows
