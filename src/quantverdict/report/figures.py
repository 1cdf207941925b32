"""From the bundle to the panels of each chart: which builds, which axes, which words; the drawing is in `charts`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantverdict.config import GGUF_LEVELS
from quantverdict.matrix.columns import METRICS
from quantverdict.report import charts, formats, heatmap, tables
from quantverdict.report.bundle import BundleView, CsvRow
from quantverdict.report.charts import Axis, Mark
from quantverdict.report.svg import span
from quantverdict.report.tables import Build


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


def regime_figures(bundle: BundleView, rows: Sequence[Build]) -> list[Figure]:
    """Quality delta against refusal delta, a panel a base model; empty where no build has both."""
    areas = charts.regime_areas(bundle.decision.get("policy") or {})
    groups = {model: list(_regime_marks(bundle, rows, model)) for model in bundle.models}
    groups = {model: marks for model, marks in groups.items() if any(mark.shape != "reference" for mark in marks)}
    if not groups:
        return []
    quality = formats.label(str(bundle.decision.get("quality_metric", "quality")))
    kind = charts.SIZES["alone" if len(groups) == 1 else "regimes"]
    titles = (f"quality delta: {quality} (pp)", charts.fitting(_refusal_titles(bundle), kind[1]))
    axes = charts.shared_axes(list(groups.values()), areas, titles)
    return [
        Figure(name, formats.plain(model), "", charts.regime_panel(name, marks, areas, axes, alone=len(groups) == 1))
        for index, (model, marks) in enumerate(groups.items())
        for name in [f"regimes-{index}"]
    ]


def _refusal_titles(bundle: BundleView) -> list[str]:
    """From the one that names judges to the shortest."""
    delta = formats.refusal_delta(bundle.decision.get("policy") or {})
    with formats.judged_by({}):
        kind = formats.refusal_delta(bundle.decision.get("policy") or {})
    return [f"{delta} (pp)", f"{kind} (pp)", "refusal delta (pp)"]


def _regime_marks(bundle: BundleView, rows: Sequence[Build], model: str) -> Iterator[Mark]:
    for cell, row in zip(bundle.cells, rows, strict=True):
        if cell["base_model"] != model or row.same_as is not None:
            continue
        if cell.get("is_baseline"):
            yield Mark(row.label, 0, 0, shape="reference", hint=f"{row.label}: the baseline")
            continue
        quality, refusal = formats.number(cell.get("quality_delta_pp")), formats.number(cell.get("refusal_delta_pp"))
        if quality is not None and refusal is not None and row.group != "failed":
            hint = f"{row.label}: quality {row.quality} pp, refusal {row.refusal} pp, {row.regime}, {row.verdict}"
            yield Mark(row.label, quality, refusal, _range(cell, "quality"), _range(cell, "refusal"), row.group, hint)


def _range(cell: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    lo, hi = formats.number(cell.get(f"{name}_lo_pp")), formats.number(cell.get(f"{name}_hi_pp"))
    return None if lo is None or hi is None else (lo, hi)


def regime_legend(bundle: BundleView, rows: Sequence[Build]) -> list[Legend]:
    """The verdicts' marks and the areas' hatches."""
    shown = {row.group for row in rows}
    marks = [Legend(charts.key_mark(group), words) for group, (_, words) in tables.VERDICTS.items()
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


def bits_figures(bundle: BundleView) -> list[Figure]:
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
    for metric in heatmap.matrix_metrics(matrix[0]):
        if leading(metric):
            series = [_series(bundle, metric, model) for model in bundle.models]
            if sum(len(marks) for marks in series) > 1:
                result.append(_bits_figure(f"bits-{len(result)}", metric, series, across))
    return result


def bits_title(bundle: BundleView) -> str:
    """Bits per weight are true where files were read, else what the matrix says."""
    return "true bits per weight" if bundle.artifacts else "bits per weight"


def leading(metric: str) -> bool:
    """Whether a metric has a chart of its own: what decides, not what only explains."""
    schema = METRICS.get(metric)
    return schema is not None and (schema.tier is not None or schema.group in {"safety", "judge"})


def _bits_figure(name: str, metric: str, series: Sequence[Sequence[Mark]], across: Axis) -> Figure:
    ends = [end for marks in series for mark in marks for end in (mark.y, *(mark.y_range or ()))]
    lo, hi = span(ends)
    with formats.judged_by({}):
        names = (formats.label(metric), formats.bare(metric))
    titles = [title + (" (%)" if METRICS[metric].proportion else "") for title in (formats.label(metric), *names)]
    up = Axis(charts.fitting(titles, charts.SIZES["bits"][1]), lo, hi)
    drawn = charts.metric_panel(name, series, (across, up), labelled=len(series) == 1)
    return Figure(name, formats.label(metric), heatmap.direction(metric), drawn)


def _series(bundle: BundleView, metric: str, model: str) -> list[Mark]:
    shape = str(bundle.models.index(model) % 8)
    factor = 100 if METRICS[metric].proportion else 1
    marks = []
    for row in (row for row in bundle.tables["matrix"] if row["base_model"] == model):
        value, bits = formats.number(row.get(metric)), formats.number(row.get("bpw"))
        if value is not None and bits is not None and bits > 0:
            label = formats.plain(" = ".join((row["quant"], *tables.twins_of(bundle, model, row["quant"]))))
            shown = f"{heatmap.metric_value(metric, value)} {heatmap.metric_interval(metric, row)}".rstrip()
            hint = f"{formats.plain(model)} {label}: {shown}"
            ends = _metric_range(metric, row, factor)
            joined = row["quant"] in GGUF_LEVELS
            marks.append(Mark(label, bits, value * factor, None, ends, shape, hint, joined=joined))
    return sorted(marks, key=lambda mark: mark.x)


def _metric_range(metric: str, row: CsvRow, factor: float) -> tuple[float, float] | None:
    lo, hi = formats.number(row.get(f"{metric}_ci_lo")), formats.number(row.get(f"{metric}_ci_hi"))
    return None if lo is None or hi is None else (lo * factor, hi * factor)


def model_legend(bundle: BundleView) -> list[Legend]:
    """The base models' marks."""
    return [Legend(charts.key_mark(str(index % 8)), formats.plain(model)) for index, model in enumerate(bundle.models)]


def trade_figures(bundle: BundleView, rows: Sequence[Build]) -> list[Figure]:
    """Quality against size (bits per weight where no size is known) and speed, a panel each a base model."""
    quality = formats.label(str(bundle.decision.get("quality_metric", "quality")))
    sized = any(cell.get("file_bytes") is not None for cell in bundle.cells)
    against = (("file_bytes", "file size") if sized else ("bpw", "bits per weight"), ("tokens_per_second", "tokens/s"))
    result: list[Figure] = []
    for model in bundle.models:
        for key, title in against:
            marks, unit = _trade_marks(bundle, rows, model, key)
            if len(marks) > 1:
                across = Axis(f"{title} ({unit})" if unit else title, *span([mark.x for mark in marks], 0.08))
                up = Axis(f"quality delta: {quality} (pp)", *span([mark.y for mark in marks], 0.12))
                name = f"trade-{len(result)}"
                caption = f"{formats.plain(model)}: quality against {title}"
                result.append(Figure(name, caption, "", charts.trade_panel(name, marks, (across, up))))
    return result


def _trade_marks(bundle: BundleView, rows: Sequence[Build], model: str, key: str) -> tuple[list[Mark], str]:
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


def _trade_mark(row: Build, amount: float, quality: float) -> Mark:
    front = "on the Pareto front" if row.is_pareto else "not on the Pareto front"
    hint = f"{row.label}: {row.size}, {row.speed} tokens/s, quality {formats.delta(quality)} pp, {row.verdict}, {front}"
    return Mark(row.label, amount, quality, shape=row.group, hint=hint, joined=row.is_pareto)


def trade_legend(rows: Sequence[Build]) -> list[Legend]:
    """The verdicts' marks, and the ring of the Pareto front."""
    shown = {row.group for row in rows if row.group != "failed"}
    return [Legend(charts.key_mark(group), words) for group, (_, words) in tables.VERDICTS.items() if group in shown]
