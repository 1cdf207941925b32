"""Answers whose grade changed, as data for the page's browser: texts, scores, labels, and what decided; nothing graded.

A grade changed where a score between 0 and 1 moved by half or more between the baseline's answer and a build's to the
same prompt. Only metrics that decide count; the other scores of the same answers stand beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantverdict.grading.answer import answer_of
from quantverdict.matrix.columns import METRICS
from quantverdict.records import Response
from quantverdict.registry import INSTRUMENTS, by_instrument, instrument_of
from quantverdict.reporting import formats
from quantverdict.reporting.artefacts import BundleTables
from quantverdict.reporting.tables import TextTable, verdict_group

if TYPE_CHECKING:
    import polars as pl

MOST = 5000
"""Changed answers that a page carries; of more, a sample of the prompts drawn by the hash of their names."""
CUTS = (4000, 2000, 1000, 500)
"""Characters of a text that are shown: the most with which all texts together keep within `ROOM`."""
ROOM = 3_000_000
SHARED = 200
"""Characters from which what all prompts of a task begin or end with is written once."""
HALF = 0.5
KEY = ("base_model", "quant", "task", "sample_id")
FORMS = {
    "parse_failure": "unparsed",
    "truncated": "cut",
    "empty": "empty",
    "loop": "loop",
    "other_language": "other language",
}
"""Columns of `answers.parquet` that alert, in a word each."""

Key = tuple[str, str, str, str]
PromptKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Changes:
    """Which answers changed a grade.

    Attributes:
        rows: of (base model, task, sample id): each build, metric, baseline's score and its own, in study order.
        total: changed answers in the bundle, each build and prompt once.
        shown: of them, those in `rows`.
        prompts: that changed in the bundle, of which `rows` holds a sample where `shown` is less than `total`.
    """

    rows: Mapping[PromptKey, Sequence[tuple[str, str, float, float]]]
    total: int
    shown: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Material:
    """What is known of the answers to show, each by base model, build, task and sample id.

    Attributes:
        scores: of each answer: metric to value, None where it is ungraded.
        forms: names of `FORMS` that hold of an answer.
        labels: judge and label.
        prompts: the user's turn.
    """

    answers: Mapping[Key, Response]
    scores: Mapping[Key, Mapping[str, float | None]]
    forms: Mapping[Key, Sequence[str]] = field(default_factory=dict)
    labels: Mapping[Key, Sequence[tuple[str, str]]] = field(default_factory=dict)
    prompts: Mapping[Key, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flips:
    """The section: counts, a plain table of what changed, and the browser's data as JSON that can stand in a page."""

    total: int
    shown: int
    prompts: int
    table: TextTable
    document: str


def decisive(bundle: BundleTables) -> list[str]:
    """The metrics that decide: members of criteria, gated metrics, and those that a policy of thresholds names."""
    policy = bundle.decision.get("policy") or {}
    gated = [row for row in bundle.tables.get("paired", ()) if row.get("margin_pp")]
    named = [row["metric"] for row in bundle.tables.get("criteria") or gated if row.get("metric")]
    if not named:
        named = [str(value) for key, value in policy.items() if key.endswith("_metric")]
    return [name for name in dict.fromkeys(named) if name in METRICS and METRICS[name].is_share]


def changes(bundle: BundleTables, scores: pl.DataFrame) -> Changes:
    """What changed between each baseline and its builds; duplicates were not run, and A/A replicates are no builds.

    Args:
        scores: columns base_model, quant, task, sample_id, metric, value.
    """
    import polars as pl

    places = {(cell["base_model"], cell["quant"]): at for at, cell in enumerate(bundle.cells)}
    bases = {cell["base_model"]: cell["quant"] for cell in bundle.cells if cell.get("is_baseline")}
    of, on = scores.filter(pl.col("metric").is_in(decisive(bundle))).drop_nulls("value"), [*KEY, "metric"]
    is_base = pl.col("quant") == pl.col("base_model").replace_strict(bases, default=None, return_dtype=pl.String)
    base = of.filter(is_base).drop("quant").rename({"value": "before"})
    moved = of.filter(~is_base).join(base, on=[name for name in on if name != "quant"])
    moved = moved.filter((pl.col("value") - pl.col("before")).abs() >= HALF).select(*on, "before", "value")
    found: dict[PromptKey, list[tuple[str, str, float, float]]] = {}
    for model, quant, task, sample, metric, before, value in sorted(moved.unique().rows()):
        if (model, quant) in places:
            found.setdefault((model, task, sample), []).append((quant, metric, before, value))
    for (model, *_), rows in found.items():
        rows.sort(key=lambda row, of=model: (places[of, row[0]], row[1]))  # type: ignore[misc]
    total = sum(len({row[0] for row in rows}) for rows in found.values())
    kept = _sampled(found)
    shown = sum(len({row[0] for row in rows}) for rows in kept.values())
    return Changes(kept, total, shown, len(found))


def _sampled(
    found: Mapping[PromptKey, Sequence[tuple[str, str, float, float]]],
) -> dict[PromptKey, Sequence[tuple[str, str, float, float]]]:
    """All, or the prompts whose names hash lowest until `MOST` answers are reached; in the order they came."""
    drawn, room = set[PromptKey](), MOST
    for key in sorted(found, key=lambda key: hashlib.sha256("\0".join(key).encode("utf-8", "replace")).digest()):
        room -= len({row[0] for row in found[key]})
        if room < 0:
            break
        drawn.add(key)
    return {key: rows for key, rows in found.items() if key in drawn}


def flips(bundle: BundleTables, found: Changes, material: Material) -> Flips:
    """The section's data: every prompt with its baseline's answer and those of all builds and A/A replicates."""
    document = _Document(bundle, found, material).write()
    names = bundle.names
    body = []
    for (model, task, sample), rows in found.rows.items():
        for metric in dict.fromkeys(row[1] for row in rows):
            mine = [row for row in rows if row[1] == metric]
            after = ", ".join(f"{formats.plain(row[0])} {formats.significant(row[3])}" for row in mine)
            body.append((formats.plain(model), formats.plain(task), formats.plain(sample), names.label(metric),
                         formats.significant(mine[0][2]), after))  # fmt: skip
    table = TextTable(
        "flips",
        "Prompts whose grade changed",
        "Each prompt and metric with the baseline's score and those of the builds that changed it.",
        ("base model", "task", "prompt", "metric", "baseline", "builds that changed"),
        tuple(body),
    )
    return Flips(found.total, found.shown, found.prompts, table, document)


class _Document:
    """Writes the browser's data: names once, answers by the number of their build."""

    def __init__(self, bundle: BundleTables, found: Changes, material: Material) -> None:
        self.bundle, self.found, self.material = bundle, found, material
        self.models = list(dict.fromkeys(key[0] for key in found.rows))
        self.tasks = list(dict.fromkeys(key[1] for key in found.rows))
        self.builds = {model: self._builds(model) for model in self.models}
        self.metrics = list(dict.fromkeys((*decisive(bundle), *(
            metric for scores in material.scores.values() for metric in scores
        ))))  # fmt: skip
        self.decides = set(decisive(bundle))
        self.prompts = {key: self._prompt(key) for key in found.rows}
        self.frames = {task: _frame([text for key, text in self.prompts.items() if key[1] == task])
                       for task in self.tasks}  # fmt: skip
        texts = [text for key, text in self.prompts.items()]
        for said in map(answer_of, material.answers.values()):
            texts += [said.text, said.reasoning or ""]
        self.cut = next((cut for cut in CUTS if sum(min(len(text), cut) for text in texts) <= ROOM), CUTS[-1])

    def write(self) -> str:
        shown = {
            "models": [{"name": formats.plain(model), "builds": [self._build(model, quant) for quant in builds]}
                       for model, builds in self.builds.items()],
            "metrics": [self._metric(metric) for metric in self.metrics],
            "tasks": [self._task(task) for task in self.tasks],
            "prompts": [self._entry(key, rows) for key, rows in self.found.rows.items()],
            "cut": self.cut,
        }  # fmt: skip
        return page_json(shown)

    def _builds(self, model: str) -> list[str]:
        """The baseline, its A/A replicates, and the builds in study order, those with answers alone."""
        answered = {key[1] for key in self.material.answers if key[0] == model}
        cells = [cell for cell in self.bundle.cells if cell["base_model"] == model]
        base = [cell["quant"] for cell in cells if cell.get("is_baseline")]
        builds = [cell["quant"] for cell in cells if not cell.get("is_baseline")]
        replicates = sorted(answered.difference(base, builds))
        return [quant for quant in (*base, *replicates, *builds) if quant in answered]

    def _build(self, model: str, quant: str) -> dict[str, str]:
        cell = next((c for c in self.bundle.cells if (c["base_model"], c["quant"]) == (model, quant)), None)
        group = "replicate" if cell is None else verdict_group(cell)
        label = "A/A replicate" if cell is None else ""
        return {"name": formats.plain(quant), "group": group, "note": label,
                "file": formats.plain(f"responses/{model}__{quant}.jsonl")}  # fmt: skip

    def _metric(self, metric: str) -> dict[str, Any]:
        names, known = self.bundle.names, METRICS.get(metric)
        return {"name": names.bare(metric), "by": names.instrument(metric), "decides": metric in self.decides,
                "better": None if known is None else known.higher_is_better}  # fmt: skip

    def _task(self, task: str) -> dict[str, Any]:
        scored = {metric for key, scores in self.material.scores.items() if key[2] == task for metric in scores}
        harmful = any(instrument_of(metric)[0] == "refusal_rate" for metric in scored)
        start, end = self.frames[task]
        shown = {"name": task, "start": start, "end": end}
        return {"harmful": harmful, **{key: formats.plain(text) for key, text in shown.items()}}

    def _prompt(self, key: PromptKey) -> str:
        given = (self.material.prompts.get((key[0], quant, *key[1:])) for quant in self.builds[key[0]])
        return next((text for text in given if text is not None), "")

    def _entry(self, key: PromptKey, rows: Sequence[tuple[str, str, float, float]]) -> dict[str, Any]:
        model, task, sample = key
        builds = self.builds[model]
        start, end = self.frames[task]
        text = self.prompts[key]
        text = text[len(start) : len(text) - len(end)]
        moves = [[builds.index(quant), self.metrics.index(metric), _direction(metric, before, value)]
                 for quant, metric, before, value in rows if quant in builds]  # fmt: skip
        said: dict[tuple[str, str | None], int] = {}
        answers = [self._answer((model, quant, task, sample), at, said) for at, quant in enumerate(builds)]
        return {"m": self.models.index(model), "t": self.tasks.index(task), "id": formats.plain(sample),
                "p": self._shown(text)[0], "c": moves, "a": answers}  # fmt: skip

    def _answer(self, key: Key, at: int, said: dict[tuple[str, str | None], int]) -> dict[str, Any] | None:
        response = self.material.answers.get(key)
        if response is None:
            return None
        answer, scores = answer_of(response), self.material.scores.get(key, {})
        shown: dict[str, Any] = {"s": {self.metrics.index(name): _short(value) for name, value in scores.items()}}
        same = said.setdefault((answer.text, answer.reasoning), at)
        if same != at:
            shown["same"] = same
        else:
            (text, cut), (thought, _) = self._shown(answer.text), self._shown(answer.reasoning or "")
            shown["x"] = text
            shown |= {"r": thought} if thought else {}
            shown |= {"cut": len(answer.text)} if cut else {}
        shown |= {"why": answer.reason} if answer.reason else {}
        if forms := self.material.forms.get(key):
            shown["f"] = [FORMS[name] for name in forms]
        if labels := self.material.labels.get(key):
            shown["l"] = [[formats.plain(judge), formats.words(label).lower()] for judge, label in labels]
        return shown | ({"d": 1} if _disagree(scores) else {})

    def _shown(self, text: str) -> tuple[str, bool]:
        """The text as it can be shown, and whether it is cut."""
        shown = formats.plain(text[: self.cut])
        return (f"{shown}\N{HORIZONTAL ELLIPSIS}", True) if len(text) > self.cut else (shown, False)


def _frame(texts: Sequence[str]) -> tuple[str, str]:
    """What all of some texts begin and end with, to a line's end; nothing where it is short or there is one text."""
    if len(set(texts)) < 2:
        return "", ""
    start = _common(texts)
    start = start[: start.rfind("\n") + 1]
    start = start if len(start) >= SHARED else ""
    end = _common([text[len(start) :][::-1] for text in texts])[::-1]
    return start, end if len(end) >= SHARED else ""


def _common(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    one, other = min(texts), max(texts)
    return one[: next((at for at, char in enumerate(one) if char != other[at]), len(one))]


def _direction(metric: str, before: float, value: float) -> str:
    """Whether what the baseline had is lost, or gained; `other` where neither way is better."""
    better = METRICS[metric].higher_is_better
    if better is None:
        return "other"
    return "gained" if (value > before) == better else "lost"


def _short(value: float | None) -> float | int | None:
    return None if value is None else int(value) if value == int(value) else round(value, 3)


def _disagree(scores: Mapping[str, float | None]) -> bool:
    """Whether two instruments that read the same answer say otherwise."""
    for metric in scores:
        of, instrument = instrument_of(metric)
        if instrument == INSTRUMENTS[0]:
            named = (by_instrument(of, one) for one in INSTRUMENTS)
            values = {value for name in named if name and (value := scores.get(name)) is not None}
            if len(values) > 1 and max(values) - min(values) >= HALF:
                return True
    return False


_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page_json(document: object) -> str:
    """JSON that can stand in a `script` element: nothing in it can end the element, open a comment or a reference."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return "".join(_ESCAPES.get(char, char) for char in text) if any(map(text.__contains__, _ESCAPES)) else text


def scores_of(rows: Iterable[tuple[str, str, str, str, str, float | None]]) -> dict[Key, dict[str, float | None]]:
    """Rows of base model, build, task, sample id, metric and value by answer."""
    found: dict[Key, dict[str, float | None]] = {}
    for *key, metric, value in rows:
        model, quant, task, sample = map(str, key)
        found.setdefault((model, quant, task, sample), {})[str(metric)] = None if value is None else float(value)
    return found
