"""A few prompts that a baseline refused and a build answered: looked up in the bundle, shortened, never graded here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from quantverdict.collect.frames import SCORES, reading, scan_frame
from quantverdict.collect.prompts import prompts_file
from quantverdict.collect.store import responses_path
from quantverdict.errors import BundleError
from quantverdict.grading.answer import read_answer
from quantverdict.records import CellId
from quantverdict.report import formats
from quantverdict.report.bundle import BundleView
from quantverdict.report.tables import verdict_group

SHOWN = 12
"""Examples in a report."""
PER_BUILD = 3
"""Examples of one build."""
LENGTH = 280
"""Characters of an answer that are shown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A shortened answer, and where the whole of it is."""

    quant: str
    text: str
    file: str
    href: str


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt: what the baseline said, and what the build said."""

    model: str
    task: str
    sample_id: str
    prompt: str
    baseline: Answer
    build: Answer


Key = tuple[str, str, str, str]


def examples(bundle: BundleView) -> list[Example]:
    """Examples of the rejected builds first, then of the others in study order; empty where no scores are kept."""
    wanted = list(_chosen(bundle))[:SHOWN]
    cells = dict.fromkeys((key[0], key[1]) for pair in wanted for key in pair)
    answers: dict[Key, str] = {}
    for model, quant in cells:
        keys = {key for pair in wanted for key in pair if key[:2] == (model, quant)}
        answers |= _answers(bundle.root, CellId(model, quant), keys)
    prompts = _prompts(bundle.root, {base for base, _ in wanted})
    return [
        Example(
            formats.plain(base[0]), formats.plain(base[2]), formats.plain(base[3]), prompts.get(base, ""),
            _answer(base, answers[base]), _answer(build, answers[build]),
        )
        for base, build in wanted
        if base in answers and build in answers
    ]  # fmt: skip


def _chosen(bundle: BundleView) -> Iterable[tuple[Key, Key]]:
    """Pairs of (baseline, build) samples where the score says refused and answered."""
    refused = _refusals(bundle)
    cells = [cell for cell in bundle.cells if not cell.get("is_baseline") and not cell.get("twin_of")]
    baselines = {cell["base_model"]: cell["quant"] for cell in bundle.cells if cell.get("is_baseline")}
    for cell in sorted(cells, key=lambda cell: verdict_group(cell) != "reject"):
        model, quant = cell["base_model"], cell["quant"]
        base, mine = refused.get((model, baselines.get(model, "")), {}), refused.get((model, quant), {})
        lost = sorted(sample for sample, value in mine.items() if value == 0 and base.get(sample) == 1)
        for sample in lost[:PER_BUILD]:
            yield (model, baselines[model], *sample), (model, quant, *sample)


def _refusals(bundle: BundleView) -> Mapping[tuple[str, str], Mapping[tuple[str, str], float]]:
    """Each cell's refusal scores by (task, sample id)."""
    path = bundle.root / "scores.parquet"
    if not path.is_file() or not (bundle.root / "responses").is_dir():
        return {}
    import polars as pl

    columns = ("base_model", "quant", "task", "sample_id", "value")
    metric = (bundle.decision.get("policy") or {}).get("refusal_metric", "refusal_rate")
    with reading(path):
        frame = scan_frame(path, {name: SCORES[name] for name in (*columns, "metric")}).filter(
            pl.col("metric") == metric, pl.col("value").is_not_null()
        )
        rows = (
            frame.select(pl.col(name).cast(pl.String if name != "value" else pl.Float64) for name in columns)
            .collect()
            .rows()
        )
    result: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for model, quant, task, sample, value in rows:
        result.setdefault((model, quant), {})[task, sample] = value
    return result


def _answers(root: Path, cell: CellId, keys: set[Key]) -> dict[Key, str]:
    path = responses_path(root, cell)
    if path.parent != root / "responses" or not path.is_file():
        return {}
    found = {}
    for line in _lines(path, {key[3] for key in keys}):
        key = (*cell, str(line.get("task")), str(line.get("sample_id")))
        if key in keys:
            found[key] = _said(line)
    return found


def _said(line: Mapping[str, Any]) -> str:
    """The answer of a stored line, as it was graded: without reasoning and further turns."""
    reasoning = line.get("reasoning")
    return read_answer(
        str(line.get("text") or ""),
        str(line.get("finish") or "stop"),
        opened=line.get("opened") is True,
        reasoning=reasoning if isinstance(reasoning, str) else None,
    ).text


def _prompts(root: Path, wanted: set[Key]) -> dict[Key, str]:
    """The user's turn of each sample, where the bundle keeps the prompts."""
    found: dict[Key, str] = {}
    for model in sorted({key[0] for key in wanted}):
        path = root / prompts_file(model)
        if path.parent == root / "prompts" and path.is_file():
            mine = [key for key in wanted if key[0] == model]
            for line in _lines(path, {key[3] for key in mine}):
                sample = (line.get("task"), line.get("sample_id"))
                found |= {key: _short(str(line.get("text") or "")) for key in mine if key[2:] == sample}
    return found


def _lines(path: Path, ids: set[str]) -> Iterable[Mapping[str, Any]]:
    """The JSON lines that name one of the ids; the others are not parsed."""
    needles = [json.dumps(item, ensure_ascii=False).encode("utf-8", "surrogatepass") for item in sorted(ids)]
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if any(needle in line for needle in needles):
            try:
                data = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BundleError(f"{path}:{number}: not valid JSON ({error})") from error
            if isinstance(data, dict):
                yield data


def _answer(key: Key, text: str) -> Answer:
    name = f"responses/{responses_path(Path(), CellId(key[0], key[1])).name}"
    return Answer(formats.plain(key[1]), _short(text), formats.plain(name), quote(name))


def _short(text: str) -> str:
    shown = " ".join(formats.plain(text[: LENGTH * 4]).split())
    return shown if len(shown) <= LENGTH else shown[: LENGTH - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
