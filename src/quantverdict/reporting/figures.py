"""From the bundle to the panels of each chart: which builds, which axes, which words; the drawing is in `charts`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantverdict.matrix.columns import IDENTITY, METRICS, SUFFIXES
from quantverdict.records import GGUF_LEVELS
from quantverdict.reporting import charts, formats, tables
from quantverdict.reporting.artefacts import BundleTables, CsvRow
from quantverdict.reporting.charts import Axis, Mark, span
from quantverdict.reporting.formats import NOT_MEASURED, DisplayNames
from quantverdict.reporting.tables import BuildRow

# The matrix as a heat map: a metric a row, a build a column, coloured by its delta from the baseline.


@dataclass(frozen=True, slots=True)
class HeatCell:
    """A metric of a build with its interval, and its delta with the one that belongs to it.

    Attributes:
        tone: a style class. `worse` or `better` with how far the interval of the delta lies beyond zero: 1 where it
            excludes zero, 2 from half a margin on, 3 beyond the margin, 4 from twice and 5 from four times of it, and 2
            where no margin is held;
            `other` likewise where neither way is better; `cheaper` or `dearer` by the ratio of a size, a speed or a
            time to the baseline's.
        n: of how many answers it is, empty where it is a measurement.
    """

    value: str
    delta: str = ""
    interval: str = ""
    tone: str = ""
    n: str = ""


@dataclass(frozen=True, slots=True)
class HeatRow:
    """A metric over the builds of one base model: its name in the matrix, and as a heading."""

    name: str
    metric: str
    meaning: str
    direction: str
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The matrix of one base model: builds across, metrics down, in groups."""

    model: str
    builds: tuple[BuildRow, ...]
    groups: tuple[tuple[str, tuple[HeatRow, ...]], ...]


def heat_maps(bundle: BundleTables, rows: Sequence[BuildRow]) -> list[HeatMap]:
    """The matrix, one map a base model, duplicates as one column; empty where there is no matrix."""
    matrix = bundle.tables.get("matrix")
    if not matrix:
        return []
    metrics = matrix_metrics(matrix[0])
    changes = {(row["base_model"], row["quant"], row["metric"]): row for row in bundle.tables.get("deltas", ())}
    margins = _margins(bundle)
    by_cell = bundle.by_cell("matrix")
    maps = []
    for model in bundle.models:
        cells = [cell for cell in bundle.cells if cell["base_model"] == model and not cell.get("twin_of")]
        of = [by_cell.get((model, cell["quant"]), {}) for cell in cells]
        groups: dict[str, list[HeatRow]] = {}
        for metric in metrics:
            if any(row.get(metric) for row in of):
                deltas = [changes.get((model, cell["quant"], metric)) for cell in cells]
                base = next((row.get(metric) for row in of if row.get("is_baseline") == "1"), None)
                line = tuple(
                    _cost_cell(metric, row, base)
                    if group_of(metric) == "measured"
                    else _heat_cell(metric, row, change, margins.get((model, row.get("quant", ""), metric)))
                    for row, change in zip(of, deltas, strict=True)
                )
                name = formats.plain(metric)
                shown = HeatRow(name, bundle.names.label(metric), meaning(metric), direction(metric), line)
                groups.setdefault(group_of(metric), []).append(shown)
        columns = tuple(row for row in rows if row.model == formats.plain(model) and row.same_as is None)
        maps.append(
            HeatMap(formats.plain(model), columns, tuple((name, tuple(lines)) for name, lines in groups.items()))
        )
    return maps


def matrix_metrics(columns: Mapping[str, str]) -> list[str]:
    """The metrics of a matrix, in its column order."""
    names = set(columns)
    ends = {f"{name}{end}" for name in names for end in SUFFIXES}
    return [name for name in columns if name not in IDENTITY and name not in ends]


def group_of(metric: str) -> str:
    """The part of the matrix that a metric belongs to."""
    return METRICS[metric].group if metric in METRICS else "other"


def meaning(metric: str) -> str:
    """What a metric measures, in a line."""
    return METRICS[metric].meaning if metric in METRICS else ""


def direction(metric: str) -> str:
    """Which way is better, in words; empty where neither is."""
    better = METRICS[metric].higher_is_better if metric in METRICS else None
    return {True: "higher is better", False: "lower is better", None: ""}[better]


def metric_value(metric: str, value: object) -> str:
    """A metric in its unit: shares of samples in percent."""
    known = formats.number(value)
    if known is None:
        return NOT_MEASURED
    schema = METRICS.get(metric)
    if schema is not None and schema.proportion:
        return f"{formats.fixed(100 * known, 1)} %"
    if schema is not None and schema.unit == "bytes":
        return formats.size(known)
    return formats.fixed(known, 3) if schema is not None and schema.is_share else formats.significant(known)


def metric_interval(metric: str, row: CsvRow) -> str:
    """A metric's interval in the same unit as its value."""
    lo, hi = row.get(f"{metric}_ci_lo"), row.get(f"{metric}_ci_hi")
    schema = METRICS.get(metric)
    if schema is not None and schema.proportion:
        return formats.interval(lo, hi, 1, factor=100)
    return formats.interval(lo, hi, 3 if schema is not None and schema.is_share else 2)


def _margins(bundle: BundleTables) -> dict[tuple[str, str, str], float]:
    """The margin of each metric of each build, where one is held."""
    found: dict[tuple[str, str, str], float] = {}
    for row in (*bundle.tables.get("paired", ()), *bundle.tables.get("criteria", ())):
        margin = formats.number(row.get("margin_pp"))
        if row.get("metric") and margin is not None:
            found[row["base_model"], row["quant"], row["metric"]] = margin
    policy = bundle.decision.get("policy") or {}
    for metric, given in (policy.get("margins") or {}).items():
        if (margin := formats.number(given)) is not None:
            for cell in bundle.cells:
                found.setdefault((cell["base_model"], cell["quant"], metric), margin)
    return found


def _heat_cell(metric: str, row: CsvRow, change: CsvRow | None, margin: float | None) -> HeatCell:
    value = metric_value(metric, row.get(metric))
    if value == NOT_MEASURED:
        return HeatCell(value, tone="missing")
    within, n = metric_interval(metric, row), row.get(f"{metric}_n") or ""
    if change is None:
        return HeatCell(value, "baseline" if row.get("is_baseline") == "1" else "", within, "reference", n)
    pp = change.get("unit") == "pp"
    amount = formats.number(change.get("delta" if pp else "delta_percent"))
    if amount is None:
        return HeatCell(value, "", within, "", n)  # a measured value that has no change: nothing to say
    around = formats.bounded(change.get("ci_lo"), change.get("ci_hi"), 1) if pp else ""
    message = f"{formats.delta(amount)} {'pp' if pp else '%'} {around}".rstrip()
    ends = formats.number(change.get("ci_lo")), formats.number(change.get("ci_hi"))
    return HeatCell(value, message, within, evidence_tone(metric, ends, margin if pp else None), n)


STEPS = (0.5, 1.0, 2.0, 4.0)
"""In margins: how far an interval lies beyond zero from one step of the colour to the next."""


def evidence_tone(metric: str, ends: tuple[float | None, float | None], margin: float | None) -> str:
    """The style class of a change by what is known of it: empty where its interval holds zero or is not known."""
    lo, hi = ends
    if lo is None or hi is None or lo <= 0 <= hi:
        return ""
    beyond = lo if lo > 0 else -hi
    step = 1 + sum(beyond >= part * margin for part in STEPS) if margin else 2
    better = METRICS[metric].higher_is_better if metric in METRICS else None
    if better is None:
        return f"other{step}"
    return f"{'better' if (lo > 0) == better else 'worse'}{step}"


def _cost_cell(metric: str, row: CsvRow, base: str | None) -> HeatCell:
    """A size, a speed or a time, coloured by its ratio to the baseline's: no loss of quality, so no colour of one."""
    value = metric_value(metric, row.get(metric))
    if value == NOT_MEASURED:
        return HeatCell(value, tone="missing")
    if row.get("is_baseline") == "1":
        return HeatCell(value, "baseline", "", "reference")
    amount, before = formats.number(row.get(metric)), formats.number(base)
    if not amount or not before or amount < 0 or before < 0:
        return HeatCell(value)
    ratio = amount / before
    return HeatCell(value, f"\N{MULTIPLICATION SIGN}{formats.significant(ratio, 2)}", "", cost_tone(metric, ratio))


def cost_tone(metric: str, ratio: float) -> str:
    """`cheaper` or `dearer` in four steps, one a factor of the square root of two; empty within 5 %."""
    better = METRICS[metric].higher_is_better if metric in METRICS else False
    gain = math.log2(ratio if better else 1 / ratio)
    if abs(gain) < math.log2(1.05):
        return ""
    return f"{'cheaper' if gain > 0 else 'dearer'}{min(4, max(1, round(2 * abs(gain))))}"


def full_colour(*, pp: bool) -> str:
    """The policy's threshold at which the heat map's colour is at its fullest."""
    return "refusal_collapse_pp" if pp else "tier_concerning_percent"


def tone_of(metric: str, amount: float, full: float | None) -> str:
    """The style class of a change: better, worse or just different, in five steps up to `full`."""
    step = min(5, round(5 * abs(amount) / abs(full))) if full else 0
    if step == 0:
        return ""
    better = METRICS[metric].higher_is_better if metric in METRICS else None
    if better is None:
        return f"other{step}"
    return f"{'better' if (amount > 0) == better else 'worse'}{step}"


@dataclass(frozen=True, slots=True)
class Figure:
    """A panel: its id in the page, its caption, a word on it, and the drawing (markup)."""

    name: str
    caption: str
    note: str
    svg: str


@dataclass(frozen=True, slots=True)
class Legend:
    """An entry of a chart's legend: a drawing (markup) and its meaning."""

    svg: str
    text: str


def regime_figures(bundle: BundleTables, rows: Sequence[BuildRow]) -> list[Figure]:
    """Quality delta against refusal delta, a panel a base model; empty where no build has both."""
    areas = charts.regime_areas(bundle.decision.get("policy") or {})
    groups = {model: list(_regime_marks(bundle, rows, model)) for model in bundle.models}
    groups = {model: marks for model, marks in groups.items() if any(mark.shape != "reference" for mark in marks)}
    if not groups:
        return []
    quality = bundle.names.label(str(bundle.decision.get("quality_metric", "quality")))
    kind = charts.SIZES["alone" if len(groups) == 1 else "regimes"]
    titles = (f"quality delta: {quality} (pp)", charts.fitting(_refusal_titles(bundle), kind[1]))
    axes = charts.shared_axes(list(groups.values()), areas, titles)
    return [
        Figure(name, formats.plain(model), "", charts.regime_panel(name, marks, areas, axes, alone=len(groups) == 1))
        for index, (model, marks) in enumerate(groups.items())
        for name in [f"regimes-{index}"]
    ]


def _refusal_titles(bundle: BundleTables) -> list[str]:
    """From the one that names judges to the shortest."""
    delta = bundle.names.refusal_delta(bundle.decision.get("policy") or {})
    kind = DisplayNames().refusal_delta(bundle.decision.get("policy") or {})
    return [f"{delta} (pp)", f"{kind} (pp)", "refusal delta (pp)"]


def _regime_marks(bundle: BundleTables, rows: Sequence[BuildRow], model: str) -> Iterator[Mark]:
    for cell, row in zip(bundle.cells, rows, strict=True):
        if cell["base_model"] != model or row.same_as is not None:
            continue
        if cell.get("is_baseline"):
            yield Mark(row.label, 0, 0, shape="reference", hint=f"{row.label}: the baseline")
            continue
        quality, refusal = formats.number(cell.get("quality_delta_pp")), formats.number(cell.get("refusal_delta_pp"))
        if quality is not None and refusal is not None and row.group != "failed":
            ends = (
                f"{row.quality} pp {row.quality_interval}".rstrip(),
                f"{row.refusal} pp {row.refusal_interval}".rstrip(),
            )
            pairs = f", {cell['n_pairs']} pairs" if cell.get("n_pairs") else ""
            hint = f"{row.label}: quality {ends[0]}, refusal {ends[1]}, {row.regime}, {row.verdict}{pairs}"
            yield Mark(row.label, quality, refusal, _range(cell, "quality"), _range(cell, "refusal"), row.group, hint)


def _range(cell: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    lo, hi = formats.number(cell.get(f"{name}_lo_pp")), formats.number(cell.get(f"{name}_hi_pp"))
    return None if lo is None or hi is None else (lo, hi)


def regime_legend(bundle: BundleTables, rows: Sequence[BuildRow]) -> list[Legend]:
    """The verdicts' marks and the areas' hatches."""
    shown = {row.group for row in rows}
    words = tables.verdict_words(bundle.decision)
    marks = [Legend(charts.key_mark(group), message) for group, (_, message) in words.items()
             if group in shown and group != "failed"]  # fmt: skip
    areas = charts.regime_areas(bundle.decision.get("policy") or {})
    return marks + [Legend(charts.key_area(area.regime), _rule(area)) for area in areas]


def _rule(area: charts.Area) -> str:
    """An area in words: `hidden danger: quality -2 or more, refusal -10 or less`."""
    ends = []
    for axis, low, high in (("quality", area.left, area.right), ("refusal", area.bottom, area.top)):
        lower, upper = _pp(low), _pp(high)
        if low is not None and high is not None:
            ends.append(f"{axis} from {lower} to {upper}")
        else:
            # What is exactly on this bound belongs to the regime before it.
            strict = area.regime == "joint_collapse" and axis == "quality"
            most = f"{axis} under {upper}" if strict else f"{axis} {upper} or less"
            ends.append(most if low is None else f"{axis} {lower} or more")
    return f"{formats.words(area.regime)}: {', '.join(ends)} pp"


def _pp(value: float | None) -> str:
    return "" if value is None else f"{value:+g}".replace("-", formats.MINUS)


def bits_figures(bundle: BundleTables) -> list[Figure]:
    """Each leading metric against true bits per weight, a line a base model; empty where there is no matrix."""
    matrix = bundle.tables.get("matrix") or []
    bits = [value for row in matrix if (value := formats.number(row.get("bpw"))) is not None and value > 0]
    if not bits:
        return []
    widest = max(bits) / min(bits)
    across = Axis(bits_title(bundle), min(bits) / widest**0.06, max(bits) * widest**0.06, log=widest > 1)
    if widest == 1:
        across = Axis(across.title, min(bits) - 1, max(bits) + 1)
    result: list[Figure] = []
    for metric in matrix_metrics(matrix[0]):
        if leading(metric):
            series = [_series(bundle, metric, model) for model in bundle.models]
            if sum(len(marks) for marks in series) > 1:
                result.append(_bits_figure(f"bits-{len(result)}", metric, bundle.names, series, across))
    return result


def bits_title(bundle: BundleTables) -> str:
    """Bits per weight are true where files were read, else what the matrix says."""
    return "true bits per weight" if bundle.artifacts else "bits per weight"


def leading(metric: str) -> bool:
    """Whether a metric has a chart of its own: what decides, not what only explains."""
    schema = METRICS.get(metric)
    if metric in OF_TEXT:
        return True
    return schema is not None and (schema.tier is not None or schema.group in {"safety", "judge"})


OF_TEXT = tuple(name for name in METRICS if name.startswith("text_"))
"""Metrics of a text that no prompt asks for, where the matrix has them."""


def _in_percent(metric: str) -> bool:
    return metric in METRICS and METRICS[metric].proportion


def _bits_figure(name: str, metric: str, names: DisplayNames, series: Sequence[Sequence[Mark]], across: Axis) -> Figure:
    ends = [end for marks in series for mark in marks for end in (mark.y, *(mark.y_range or ()))]
    lo, hi = span(ends)
    shorter = (DisplayNames().label(metric), DisplayNames().bare(metric))
    titles = [title + (" (%)" if _in_percent(metric) else "") for title in (names.label(metric), *shorter)]
    up = Axis(charts.fitting(titles, charts.SIZES["bits"][1]), lo, hi)
    drawn = charts.metric_panel(name, series, (across, up), labelled=len(series) == 1)
    return Figure(name, names.label(metric), direction(metric), drawn)


def _series(bundle: BundleTables, metric: str, model: str) -> list[Mark]:
    shape = str(bundle.models.index(model) % 8)
    factor = 100 if _in_percent(metric) else 1
    marks = []
    for row in (row for row in bundle.tables["matrix"] if row["base_model"] == model):
        value, bits = formats.number(row.get(metric)), formats.number(row.get("bpw"))
        if value is not None and bits is not None and bits > 0:
            label = formats.plain(" = ".join((row["quant"], *tables.duplicates_of(bundle, model, row["quant"]))))
            shown = f"{metric_value(metric, value)} {metric_interval(metric, row)}".rstrip()
            n = row.get(f"{metric}_n")
            hint = f"{formats.plain(model)} {label}: {shown}" + (f", n {n}" if n else "")
            ends = _metric_range(metric, row, factor)
            joined = row["quant"] in GGUF_LEVELS
            marks.append(Mark(label, bits, value * factor, None, ends, shape, hint, joined=joined))
    return sorted(marks, key=lambda mark: mark.x)


def _metric_range(metric: str, row: CsvRow, factor: float) -> tuple[float, float] | None:
    lo, hi = formats.number(row.get(f"{metric}_ci_lo")), formats.number(row.get(f"{metric}_ci_hi"))
    return None if lo is None or hi is None else (lo * factor, hi * factor)


def model_legend(bundle: BundleTables) -> list[Legend]:
    """The base models' marks."""
    return [Legend(charts.key_mark(str(index % 8)), formats.plain(model)) for index, model in enumerate(bundle.models)]


def trade_figures(bundle: BundleTables, rows: Sequence[BuildRow]) -> list[Figure]:
    """Quality against size (bits per weight where no size is known) and speed, a panel each a base model."""
    quality = bundle.names.label(str(bundle.decision.get("quality_metric", "quality")))
    sized = any(cell.get("file_bytes") is not None for cell in bundle.cells)
    against = (("file_bytes", "file size") if sized else ("bpw", "bits per weight"), ("tokens_per_second", "tokens/s"))
    result: list[Figure] = []
    for model in bundle.models:
        for key, title in against:
            marks, unit = _trade_marks(bundle, rows, model, key)
            if len(marks) > 1:
                across = Axis(f"{title} ({unit})" if unit else title, *span([mark.x for mark in marks], 0.08))
                titles = (f"quality delta: {quality} (pp)", "quality delta (pp)")
                title_up = charts.fitting(titles, charts.SIZES["trade"][1])
                up = Axis(title_up, *span([mark.y for mark in marks], 0.12))
                name = f"trade-{len(result)}"
                caption = f"{formats.plain(model)}: quality against {title}"
                result.append(Figure(name, caption, "", charts.trade_panel(name, marks, (across, up))))
    return result


def _trade_marks(bundle: BundleTables, rows: Sequence[BuildRow], model: str, key: str) -> tuple[list[Mark], str]:
    """The builds with a quality and the amount in question, and its unit."""
    found = []
    for cell, row in zip(bundle.cells, rows, strict=True):
        quality = 0.0 if cell.get("is_baseline") else formats.number(cell.get("quality_delta_pp"))
        amount = formats.number(cell.get(key))
        if cell["base_model"] == model and row.same_as is None and quality is not None and amount is not None:
            found.append((row, amount, quality))
    unit, divisor = "", 1.0
    if key == "file_bytes" and found:
        unit, divisor = ("GB", 1e9) if max(amount for _, amount, _ in found) >= 1e9 else ("MB", 1e6)
    return [_trade_mark(row, amount / divisor, quality) for row, amount, quality in found], unit


def _trade_mark(row: BuildRow, amount: float, quality: float) -> Mark:
    front = "on the Pareto front" if row.is_pareto else "not on the Pareto front"
    hint = f"{row.label}: {row.size}, {row.speed} tokens/s, quality {formats.delta(quality)} pp, {row.verdict}, {front}"
    return Mark(row.label, amount, quality, shape=row.group, hint=hint, joined=row.is_pareto)


def trade_legend(rows: Sequence[BuildRow], decision: Mapping[str, Any]) -> list[Legend]:
    """The verdicts' marks, and the ring of the Pareto front."""
    shown = {row.group for row in rows if row.group != "failed"}
    words = tables.verdict_words(decision)
    return [Legend(charts.key_mark(group), message) for group, (_, message) in words.items() if group in shown]
