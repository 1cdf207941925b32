"""A model card's section on the builds of one base model, its front matter, and the results that the hub reads.

Values in, text out: tables with a row a file, charts as SVG for light and dark pages, YAML. Nothing that a model
answered is in it; names of files, builds and models mean themselves wherever they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any
from urllib.parse import quote

import yaml

from quantverdict.errors import DataError
from quantverdict.records import CHECKPOINT_LEVELS
from quantverdict.registry import METRICS, by_instrument
from quantverdict.reporting import formats, tables
from quantverdict.reporting.artefacts import BundleTables, CsvRow
from quantverdict.reporting.charts import Box, Scale, element, place_labels, span, text, text_width, ticks
from quantverdict.reporting.formats import NOT_MEASURED, number, plain
from quantverdict.reporting.summary import MarkdownText, escape_markdown, markdown_table
from quantverdict.reporting.tables import BuildRow

BEGIN, END = "<!-- quantverdict -->", "<!-- end of quantverdict -->"
"""What stands between them is written anew each time; the rest of a card is its author's."""
HUB = "https://huggingface.co"
_TEXT_TITLES = {"kl_mean": "KL divergence, mean", "kl_p999": "KL divergence, 99.9 %", "same_top": "same top token",
                "ppl_ratio": "perplexity ratio"}  # fmt: skip
TEXT = {f"text_{name}": title for name, title in _TEXT_TITLES.items()}
"""What is measured on a text: columns of the matrix to their headings."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A data set of the hub that one metric is measured on."""

    dataset: str
    task: str
    revision: str = ""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says that no table of a bundle holds.

    Attributes:
        base_model: its name on the hub, None where nobody says it.
        quantized_by: who made the builds; empty where nobody says it.
        repo: the repository of the hub that the files are in; empty for links within the card's own.
        context: tokens of the sequence that `memory` is for.
        memory: build to the bytes that it is estimated to hold; None where its file is not here.
        files: build to the name of its file, where that is known.
        benchmarks: metric to the data set of the hub that it is measured on, where it is one.
        date: when the run was finished, ISO 8601.
        image: of the charts that the section shows: `svg` or `png`.
    """

    base_model: str | None = None
    quantized_by: str = ""
    repo: str = ""
    context: int = 2048
    memory: Mapping[str, int | None] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    benchmarks: Mapping[str, Benchmark] = field(default_factory=dict)
    date: str = ""
    image: str = "svg"


@dataclass(frozen=True, slots=True)
class CardRow:
    """One build: its row of the decision table, its entry of the decision, and its row of the matrix."""

    build: BuildRow
    cell: Mapping[str, Any]
    measured: CsvRow
    file: str
    memory: int | None

    @property
    def quant(self) -> str:
        return self.build.quant


class Card:
    """What is published of one base model.

    Raises:
        DataError: the bundle holds no such base model.
    """

    def __init__(self, bundle: BundleTables, model: str, facts: CardFacts) -> None:
        self.bundle, self.model, self.facts = bundle, model, facts
        matrix = bundle.by_cell("matrix")
        self.rows = [
            CardRow(
                row,
                cell,
                matrix.get((model, cell.get("twin_of") or cell["quant"]), {}),
                facts.files.get(cell["quant"], ""),
                facts.memory.get(cell["quant"]),
            )
            for row, cell in zip(tables.builds(bundle), bundle.cells, strict=True)
            if cell["base_model"] == model
        ]
        if not self.rows:
            raise DataError(
                f"no base model {model!r:.60}", field="model", expected=f"one of {', '.join(bundle.models)}"
            )

    # The section

    def section(self, charts: Mapping[str, str]) -> str:
        """The section with its markers.

        Args:
            charts: name of each chart's file, without theme and suffix, to what it shows.
        """
        baseline = next((row for row in self.rows if row.build.group == "reference"), None)
        against = "" if baseline is None else f" with {escape_markdown(baseline.quant)}, its original,"
        study = escape_markdown(self.bundle.decision.get("study", ""))
        parts = [
            BEGIN, f"## Which file of {escape_markdown(self.model)} to use",
            f"Each build was compared{against} prompt by prompt by quantverdict (study {study}).",
            *self._advice(), "### Files", self._files(), *self._text(), "### What was decided", self._decided(),
            *(self._picture(name, shows) for name, shows in charts.items()), *self._unmeasured(), END,
        ]  # fmt: skip
        return "\n\n".join(part for part in parts if part) + "\n"

    def _advice(self) -> Iterator[str]:
        """Which file for whom: by memory, else by size; then what is not to be used, or not known."""
        good = [row for row in self.rows if row.build.group in ("ship", "reference") and row.build.same_as is None]
        key, title = ("memory", f"memory, {self.facts.context:,} tokens of context")
        if any(row.memory is None for row in good):
            key, title = "size", "file size"
        if accepted := [row for row in good if row.build.group == "ship"]:
            ladder = [(formats.size(need), row) for need, row in _ladder(good, key)]
            body = [(f"from {need}", self._link(row), row.quant, row.build.verdict) for need, row in ladder]
            columns: tuple[str, ...] = (title, "file", "build", "verdict")
            if any(need == NOT_MEASURED for need, _ in ladder):
                columns, body = columns[1:], [line[1:] for line in body]  # type: ignore[misc]
            yield markdown_table(columns, body)
            fast = [
                (speed, row) for row in accepted if (speed := number(row.cell.get("tokens_per_second"))) is not None
            ]
            if len(fast) > 1:
                speed, row = max(fast, key=lambda pair: pair[0])
                name = escape_markdown(row.quant)
                yield f"Of the {self._word('ship')} builds {name} is the fastest: {formats.quantity(speed)} tokens/s."
        else:
            yield f"No build is {self._word('ship')}: none of these files can be recommended by this study."
        for group, begins in (("reject", "Not recommended"), ("unknown", "Not decided"), ("failed", "Did not run")):
            lines = [f"- {self._named(row)}: {escape_markdown(row.build.reason or row.build.verdict)}"
                     for row in self.rows if row.build.group == group]  # fmt: skip
            if lines:
                yield f"{begins}:\n\n" + "\n".join(lines)

    def _word(self, group: str) -> str:
        return tables.verdict_words(self.bundle.decision)[group][1]

    def _files(self) -> str:
        columns = ("file", "build", "verdict", "size", "bits per weight", f"memory, {self.facts.context:,} tokens",
                   "tokens/s")  # fmt: skip
        body = [
            (self._link(row), row.quant, row.build.verdict, row.build.size, row.build.bpw, self._memory(row),
             row.build.speed)
            for row in self.rows
        ]  # fmt: skip
        hardware = self.bundle.manifest.get("hardware") or {}
        on = f"{hardware['cpu']}, {hardware.get('cores')} cores" if hardware.get("cpu") else "the machine of the run"
        notes = []
        if any(row.memory is not None for row in self.rows):
            notes.append("Memory is estimated from the file's header, for one sequence.")
        if any("peak" in line[5] for line in body):
            notes.append("Memory, peak: measured in the run.")
        if any(row.build.speed != NOT_MEASURED for row in self.rows):
            notes.append(f"Tokens a second: on {escape_markdown(on)}.")
        return markdown_table(columns, body, (False, False, False, True, True, True, True)) + "\n\n" + " ".join(notes)

    def _memory(self, row: CardRow) -> str:
        if row.memory is not None:
            return formats.size(row.memory)
        peak = number(row.measured.get("peak_memory_bytes"))
        return NOT_MEASURED if peak is None else f"{formats.size(peak)} (peak)"

    def _text(self) -> Iterator[str]:
        """How far each build's next-token distributions are from the original's, where that was measured."""
        present = [name for name in TEXT if any(row.measured.get(name) for row in self.rows)]
        if present:
            body = [(self._link(row), row.quant, *(_text_value(name, row.measured.get(name)) for name in present))
                    for row in self.rows if row.build.group != "reference"]  # fmt: skip
            ends = (False, False, *[True] * len(present))
            yield "### Distance from the original, token by token"
            yield markdown_table(("file", "build", *(TEXT[name] for name in present)), body, ends)

    def _decided(self) -> str:
        """Each criterion with its interval; refusals and over-refusals that changed."""
        figures = next((row.build.criteria for row in self.rows if row.build.criteria), ())
        policy = self.bundle.decision.get("policy") or {}
        refusal = self.bundle.names.refusal_delta(policy)
        heads = [f"{one.name}, pp (margin {one.margin})" for one in figures] or ["quality delta, pp", f"{refusal}, pp"]
        flips = [(title, metric, self._flips(metric)) for title, metric in self._refusals()]
        columns = ("file", "build", "verdict", *heads, *(f"{title}, lost / gained" for title, _, _ in flips))
        body = []
        for row in self.rows:
            one = row.build
            deltas = [(one.quality, one.quality_interval), (one.refusal, one.refusal_interval)]
            deltas = [(each.value, each.interval) for each in one.criteria] if figures else deltas
            deltas = deltas if len(deltas) == len(heads) else [(NOT_MEASURED, "")] * len(heads)
            changed = ["reference" if one.group == "reference" else found.get(one.same_as or one.quant, NOT_MEASURED)
                       for _, _, found in flips]  # fmt: skip
            body.append((self._link(row), one.quant, one.verdict, *(f"{a} {b}".rstrip() for a, b in deltas), *changed))
        ends = (False, False, False, *[True] * (len(columns) - 3))
        by = "; ".join(f"{title}: {self.bundle.names.label(metric)}" for title, metric, _ in flips)
        note = f"Prompts on which build and original differ, of those both were asked. {escape_markdown(by)}."
        return markdown_table(columns, body, ends) + "\n\n" + note

    def _refusals(self) -> list[tuple[str, str]]:
        policy = self.bundle.decision.get("policy") or {}
        kind = (policy.get("instruments") or {}).get("refusal") or "pattern"
        names = (("refusals", "refusal_rate"), ("over-refusals", "over_refusal_rate"))
        return [(title, by_instrument(metric, kind) or metric) for title, metric in names]

    def _flips(self, metric: str) -> dict[str, str]:
        """Build to `LOST / GAINED of N`: `paired.csv` counts lower and higher values."""
        mine = (row for row in self.bundle.tables.get("paired", ()) if row["base_model"] == self.model)
        return {
            plain(row["quant"]): f"{row['lost']} / {row['gained']} of {row['n_pairs']}"
            for row in mine
            if row["metric"] == metric and row.get("lost") and row.get("gained")
        }

    def _picture(self, name: str, shows: str) -> str:
        def place(theme: str) -> str:
            return f"quantverdict/{name}-{theme}.{self.facts.image}"

        return (
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{place("dark")}">'
            f'<img alt="{escape(plain(shows))}" src="{place("light")}"></picture>'
        )

    def _unmeasured(self) -> Iterator[str]:
        """What a reader might look for and does not find, in words."""
        parts = [f"- {escape_markdown(one)}" for one in self._nowhere()]
        for row in self.rows:
            untold = [one for one in row.cell.get("criteria") or () if one["role"] == "criterion"]
            untold = [one for one in untold if one["outcome"] in ("not_measured", "uninformative")]
            parts += [f"- {self._named(row)}: {escape_markdown(formats.words(one['criterion']))}, "
                      f"{formats.words(one['outcome'])}" for one in untold]  # fmt: skip
        if not self.bundle.tables.get("noise_floor"):
            parts.append("- how many answers change when nothing does: no A/A replicate was run")
        if parts:
            yield "### Not measured\n\n" + "\n".join(parts)

    def _nowhere(self) -> Iterator[str]:
        """What no build has."""
        others = [row for row in self.rows if row.build.group != "reference"]
        if missing := [title for name, title in TEXT.items() if not any(row.measured.get(name) for row in others)]:
            yield ", ".join(missing)
        yield from (f"{title} prompt by prompt" for title, metric in self._refusals() if not self._flips(metric))
        shown = {
            "tokens a second": [row.build.speed for row in self.rows],
            "memory": [self._memory(row) for row in self.rows],
            "bits per weight": [row.build.bpw for row in self.rows],
        }
        yield from (what for what, values in shown.items() if set(values) == {NOT_MEASURED})

    def _named(self, row: CardRow) -> str:
        return f"{escape_markdown(row.quant)} ({self._link(row)})" if row.file else escape_markdown(row.quant)

    def _link(self, row: CardRow) -> MarkdownText:
        """The file's name, a link to it."""
        if not row.file:
            return MarkdownText(escape_markdown(row.quant) + " (no file named)")
        place = quote(row.file)
        if self.facts.repo:
            kind = "blob" if row.file.endswith(".gguf") else "tree"
            place = f"{HUB}/{self.facts.repo}/{kind}/main/{place}"
        parts = re.search(r"-00001-of-0*(\d+)\.gguf$", row.file)
        several = f" and {int(parts[1]) - 1} more" if parts and int(parts[1]) > 1 else ""
        return MarkdownText(f"[{escape_markdown(row.file)}]({place}){several}")

    # What the hub reads

    def front_matter(self) -> dict[str, object]:
        """The keys that are this command's; one that is not known is left out."""
        tags = ["quantized", "quantverdict"]
        for row in self.rows:
            found = self.bundle.artifacts.get((self.model, row.cell["quant"])) or {}
            level = str(found.get("level") or row.quant)
            tags += ["gguf"] if found.get("format") == "gguf" or row.file.endswith(".gguf") else []
            tags += [level.lower()] if level in CHECKPOINT_LEVELS else []
        keys: dict[str, object] = {"base_model": self.facts.base_model, "base_model_relation": "quantized"}
        keys |= {"quantized_by": " ".join(plain(self.facts.quantized_by).split()), "tags": list(dict.fromkeys(tags))}
        return {key: value for key, value in keys.items() if value}

    def eval_results(self, row: CardRow) -> list[dict[str, object]]:
        """The entries of a build in `.eval_results/`: metrics measured on a data set of the hub, and nothing else."""
        entries: list[dict[str, object]] = []
        for metric, place in self.facts.benchmarks.items():
            value = number(row.measured.get(metric))
            if value is None:
                continue
            dataset = {"id": place.dataset, "task_id": place.task} | (
                {"revision": place.revision} if place.revision else {}
            )
            share = METRICS[metric].is_share
            entry: dict[str, object] = {"dataset": dataset, "value": round(100 * value if share else value, 6)}
            entry |= {"date": self.facts.date} if self.facts.date else {}
            entry |= {"source": {"url": f"{HUB}/{self.facts.repo}", "name": "quantverdict"}} if self.facts.repo else {}
            entries.append(entry | {"notes": self._entry_note(row, metric, share=share)})
        return entries

    def _entry_note(self, row: CardRow, metric: str, *, share: bool) -> str:
        lo, hi = (number(row.measured.get(f"{metric}_ci_{end}")) for end in ("lo", "hi"))
        within = "" if lo is None or hi is None else f" interval {formats.interval(lo, hi, factor=100 if share else 1)}"
        n = row.measured.get(f"{metric}_n")
        parts = [f"build {row.quant}", row.file, self.bundle.names.label(metric) + (" in %" if share else "")]
        return ", ".join(part for part in (*parts, f"n {n}" if n else "") if part) + within

    # Charts

    def charts(self) -> dict[str, tuple[str, Mapping[str, str]]]:
        """Name of a chart to what it shows, and its SVG by theme; only those for which there is something to draw."""
        found: dict[str, tuple[str, Mapping[str, str]]] = {}
        if rows := list(self._intervals()):
            shows = f"Each build of {self.model} against its original: every criterion's interval and its margin."
            found["intervals"] = shows, {theme: _forest(rows, shows, theme) for theme in THEMES}
        for name, (key, across), (value, up) in (
            ("quality", ("file_bytes", "file size (GB)"), ("quality_delta_pp", "quality delta (pp)")),
            ("divergence", ("bpw", "bits per weight"), ("text_kl_mean", "KL divergence, mean")),
        ):
            points = [point for row in self.rows if (point := _point(row, key, value)) is not None]
            if len(points) > 1:
                shows = f"{up} of each build of {self.model} against {across}."
                found[name] = shows, {theme: _scatter(points, (across, up), shows, theme) for theme in THEMES}
        return found

    def _intervals(self) -> Iterator[_Interval]:
        for row in self.rows:
            for each in row.cell.get("criteria") or row.cell.get("outcomes") or ():
                delta, lo, hi = (number(each.get(key)) for key in ("delta_pp", "ci_lo_pp", "ci_hi_pp"))
                margin = number(each.get("margin_pp"))
                if (
                    each.get("role", "criterion") == "criterion"
                    and delta is not None
                    and lo is not None
                    and hi is not None
                ):
                    name = formats.words(each.get("criterion") or self.bundle.names.label(each["metric"]))
                    yield _Interval(f"{row.build.label} {name}", delta, lo, hi, margin, row.build.group)


def _text_value(name: str, value: object) -> str:
    known = number(value)
    if known is None:
        return NOT_MEASURED
    if name == "text_same_top":
        return f"{formats.fixed(100 * known, 2)} %"
    return formats.significant(known, 4 if name == "text_ppl_ratio" else 3)


def _ladder(rows: Iterable[CardRow], key: str) -> list[tuple[float | None, CardRow]]:
    """From the least need upwards, each build that has more bits than all that need less."""
    needs = [(row.memory if key == "memory" else number(row.cell.get("file_bytes")), row) for row in rows]
    ranked = sorted(needs, key=lambda pair: (pair[0] is None, pair[0] or 0.0))
    found: list[tuple[float | None, CardRow]] = []
    most = 0.0
    for need, row in ranked:
        bits = number(row.cell.get("bpw"))
        if bits is None or bits > most:
            found.append((need, row))
            most = max(most, bits or 0.0)
    return found


# A card that is there already: its front matter and its section are changed, and not one other byte


_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)(?:^---[ \t]*(?:\r?\n|\Z))", re.DOTALL | re.MULTILINE)


def merged_card(old: str, keys: Mapping[str, object], section: str, name: str) -> str:
    """A card with our keys in its front matter and our section between its markers.

    Args:
        old: the card as it is; empty where there is none.
        keys: of the front matter: one that is there is replaced, tags are added to those that are there.
        name: of the file, for messages.

    Raises:
        DataError: its front matter is no YAML mapping, or its markers are not one pair.
    """
    found = _FRONT.match(old)
    if found is None and re.match(r"\ufeff?---[ \t]*\r?\n", old):
        raise DataError("the front matter does not end", file=name, line=1, expected="a line --- after its keys")
    front, body = (found[1], old[found.end() :]) if found else ("", old)
    return f"---\n{_merged_front(front, keys, name)}---\n{_merged_body(body, section, name)}"


def _merged_front(front: str, keys: Mapping[str, object], name: str) -> str:
    try:
        known = yaml.safe_load(front) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        at = getattr(getattr(error, "problem_mark", None), "line", 0) + 2
        raise DataError("the front matter is no YAML", file=name, line=at, expected="keys and values") from error
    if not isinstance(known, dict):
        raise DataError("the front matter is no mapping", file=name, line=2, expected="keys and values")
    front = front.replace("\r\n", "\n")
    for key, value in keys.items():
        told = value
        if key == "tags" and known.get("tags"):
            own = known["tags"] if isinstance(known["tags"], list) else [known["tags"]]
            told = [*own, *(tag for tag in keys["tags"] if tag not in own)]  # type: ignore[attr-defined]
        if key in known and known[key] == told:
            continue
        lines = yaml.safe_dump({key: told}, sort_keys=False, allow_unicode=True, width=1000)
        block = re.compile(rf"^{re.escape(key)}[ \t]*:.*\n(?:(?:[ \t-].*)?\n)*", re.MULTILINE)
        front, count = block.subn(lambda _, lines=lines: lines, front, count=1)  # type: ignore[misc]
        if not count and key in known:
            raise DataError(f"cannot be changed where {key} stands", file=name, line=2, field=key,
                            expected="each key on a line of its own")  # fmt: skip
        front += "" if count else lines
    return front


def _merged_body(body: str, section: str, name: str) -> str:
    begins, ends = (body.count(marker) for marker in (BEGIN, END))
    if begins == ends == 0:
        return f"{body.rstrip()}\n\n{section}" if body.strip() else f"\n{section}"
    if (begins, ends) != (1, 1) or body.index(BEGIN) > body.index(END):
        raise DataError(f"has {BEGIN} {begins} and {END} {ends} times", file=name, expected="each once, in this order")
    return body[: body.index(BEGIN)] + section.rstrip("\n") + body[body.index(END) + len(END) :]


# Charts of their own colours: a picture in a card has no page whose style it could take

THEMES = {
    "light": {"page": "#ffffff", "ink": "#1b1f24", "soft": "#59636e", "line": "#d6dbe1", "ship": "#0072b2",
              "reject": "#b8430a", "unknown": "#7a5a00", "reference": "#1b1f24", "failed": "#59636e"},
    "dark": {"page": "#14171b", "ink": "#e6e9ed", "soft": "#9aa5b1", "line": "#353c45", "ship": "#62b8ee",
             "reject": "#ff9158", "unknown": "#f0c64a", "reference": "#e6e9ed", "failed": "#9aa5b1"},
}  # fmt: skip
_SHAPES = {"reject": "M-5,-5 L5,5 M-5,5 L5,-5", "unknown": "M0,-6 L6,5 H-6 Z", "reference": "M-5,-5 H5 V5 H-5 Z"}
_SIZE, _ROW, _WIDTH = 13.0, 24.0, 760.0
_FONTS = "Arial, Helvetica, Liberation Sans, DejaVu Sans, Noto Sans, sans-serif"
"""By name: what draws PNG takes sans-serif to be Arial, and leaves out text whose font it has not."""


@dataclass(frozen=True, slots=True)
class _Interval:
    label: str
    delta: float
    lo: float
    hi: float
    margin: float | None
    group: str


def _forest(rows: Sequence[_Interval], shows: str, theme: str) -> str:
    """An interval a row, with 0 and the margin below it; what lies beyond the axis is cut there."""
    left = 20 + max(text_width(row.label, _SIZE) for row in rows)
    height = 52 + _ROW * len(rows)
    widest = max([row.margin or 0.0 for row in rows] + [1.0])
    lo = max(-100.0, min(-1.6 * widest, *(row.delta for row in rows)) * 1.1)
    hi = min(100.0, max(widest, *(row.delta for row in rows)) * 1.1)
    x = Scale(lo, hi, left, _WIDTH - 16)
    body = [
        part
        for value in ticks(lo, hi, 7)
        for part in (
            element("line", x1=x(value), x2=x(value), y1=10, y2=height - 40, class_="zero" if value == 0 else "grid"),
            text(f"{value:g}".replace("-", formats.MINUS), x(value), height - 24, class_="soft", text_anchor="middle"),
        )
    ]
    title = "delta from the original (pp); short line: the margin"
    body.append(text(title, (left + _WIDTH - 16) / 2, height - 6, class_="soft", text_anchor="middle"))
    for at, row in enumerate(rows):
        y = 10 + _ROW * (at + 0.5)
        body.append(text(row.label, left - 10, y + 4.5, class_="ink", text_anchor="end"))
        ends = (x(x.inside(row.lo)), x(x.inside(row.hi)))
        body.append(element("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_=f"bar {row.group}"))
        if row.margin:
            edge = x(x.inside(-row.margin))
            body.append(element("line", x1=edge, x2=edge, y1=y - 9, y2=y + 9, class_="margin"))
        body.append(_mark(row.group, x(x.inside(row.delta)), y))
    return _drawing(body, shows, theme, (_WIDTH, height))


def _point(row: CardRow, key: str, value: str) -> tuple[str, float, float, str] | None:
    """(label, across, up, verdict), None where either is not known."""
    across, up = number(row.cell.get(key)), number(row.cell.get(value))
    if value in TEXT:
        up = number(row.measured.get(value))
    if row.build.group == "reference" and value not in TEXT:
        up = 0.0
    if across is None or up is None or row.build.same_as is not None:
        return None
    return row.build.label, across / 1e9 if key == "file_bytes" else across, up, row.build.group


def _scatter(points: Sequence[tuple[str, float, float, str]], titles: tuple[str, str], shows: str, theme: str) -> str:
    """A mark a build, named where there is room."""
    height = 380.0
    (left, right), (bottom, top) = (span(values, 0.1) for values in zip(*[one[1:3] for one in points], strict=True))
    frame = Box(70, 14, _WIDTH - 16, height - 50)
    x, y = Scale(left, right, frame.left, frame.right), Scale(bottom, top, frame.bottom, frame.top)
    body = []
    for value in ticks(left, right, 7):
        body.append(element("line", x1=x(value), x2=x(value), y1=frame.top, y2=frame.bottom, class_="grid"))
        body.append(text(f"{value:g}", x(value), frame.bottom + 17, class_="soft", text_anchor="middle"))
    for value in ticks(bottom, top, 6):
        kind = "zero" if value == 0 else "grid"
        body.append(element("line", x1=frame.left, x2=frame.right, y1=y(value), y2=y(value), class_=kind))
        name = f"{value:g}".replace("-", formats.MINUS)
        body.append(text(name, frame.left - 8, y(value) + 4, class_="soft", text_anchor="end"))
    middle = (frame.top + frame.bottom) / 2
    body.append(text(titles[0], (frame.left + frame.right) / 2, height - 10, class_="soft", text_anchor="middle"))
    turned = f"rotate(-90 16 {middle:.0f})"
    body.append(text(titles[1], 16, middle, class_="soft", text_anchor="middle", transform=turned))
    spots = [(x(across), y(up)) for _, across, up, _ in points]
    places = place_labels(spots, [label for label, *_ in points], frame, _SIZE)
    for (label, _, _, group), (px, py), place in zip(points, spots, places, strict=True):
        if place is not None and place.led:
            body.append(element("line", x1=px, y1=py, x2=place.x, y2=place.y, class_="grid"))
        body.append(_mark(group, px, py))
        if place is not None:
            body.append(text(label, place.x, place.y + 4.5, class_="ink", text_anchor=place.anchor))
    return _drawing(body, shows, theme, (_WIDTH, height))


def _mark(group: str, x: float, y: float) -> str:
    if group in _SHAPES:
        where = f"translate({x:.1f} {y:.1f})"
        return element("path", d=_SHAPES[group], transform=where, class_=f"mark {group}")
    return element("circle", cx=x, cy=y, r=5, class_=f"mark {group}")


def _drawing(body: Sequence[str], shows: str, theme: str, size: tuple[float, float]) -> str:
    """A file of its own: it brings its colours, and says in words what it shows."""
    colours = THEMES[theme]
    style = f".ink{{fill:{colours['ink']}}}.soft{{fill:{colours['soft']}}}"
    style += f".grid{{stroke:{colours['line']}}}.zero{{stroke:{colours['soft']}}}"
    style += f".margin{{stroke:{colours['ink']};stroke-width:2}}.bar{{stroke-width:3}}.mark{{stroke-width:2}}"
    for group in ("ship", "reject", "unknown", "reference", "failed"):
        style += f".{group}{{stroke:{colours[group]};fill:{colours[group]}}}"
    ground = element("rect", width=size[0], height=size[1], fill=colours["page"])
    inside = (element("title", escape(plain(shows))), element("style", style), ground, *body)
    return element(
        "svg", *inside, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {size[0]:.0f} {size[1]:.0f}",
        width=size[0], height=size[1], role="img", font_family=_FONTS, font_size=_SIZE,
    ) + "\n"  # fmt: skip
