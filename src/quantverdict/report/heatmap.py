"""The matrix as a heat map: a metric a row, a build a column, coloured by its delta from the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantverdict.matrix.columns import IDENTITY, METRICS, SUFFIXES
from quantverdict.report import formats
from quantverdict.report.bundle import BundleView, CsvRow
from quantverdict.report.formats import NOT_MEASURED
from quantverdict.report.tables import Build


@dataclass(frozen=True, slots=True)
class HeatCell:
    """A metric of a build with its interval, and its delta with the one that belongs to it.

    `tone` is a style class: better, worse or just different, in five steps.
    """

    value: str
    delta: str = ""
    interval: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class HeatRow:
    """A metric over the builds of one base model."""

    metric: str
    meaning: str
    direction: str
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The matrix of one base model: builds across, metrics down, in groups."""

    model: str
    builds: tuple[Build, ...]
    groups: tuple[tuple[str, tuple[HeatRow, ...]], ...]


def heat_maps(bundle: BundleView, rows: Sequence[Build]) -> list[HeatMap]:
    """The matrix, one map a base model, twins as one column; empty where there is no matrix."""
    matrix = bundle.tables.get("matrix")
    if not matrix:
        return []
    metrics = matrix_metrics(matrix[0])
    changes = {(row["base_model"], row["quant"], row["metric"]): row for row in bundle.tables.get("deltas", ())}
    by_cell = bundle.by_cell("matrix")
    maps = []
    for model in bundle.models:
        cells = [cell for cell in bundle.cells if cell["base_model"] == model and not cell.get("twin_of")]
        of = [by_cell.get((model, cell["quant"]), {}) for cell in cells]
        groups: dict[str, list[HeatRow]] = {}
        for metric in metrics:
            if any(row.get(metric) for row in of):
                deltas = [changes.get((model, cell["quant"], metric)) for cell in cells]
                line = tuple(_heat_cell(metric, *pair, bundle) for pair in zip(of, deltas, strict=True))
                shown = HeatRow(formats.label(metric), meaning(metric), direction(metric), line)
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


def _heat_cell(metric: str, row: CsvRow, change: CsvRow | None, bundle: BundleView) -> HeatCell:
    value = metric_value(metric, row.get(metric))
    if value == NOT_MEASURED:
        return HeatCell(value, tone="missing")
    within = metric_interval(metric, row)
    if change is None:
        return HeatCell(value, "baseline" if row.get("is_baseline") == "1" else "", within, "reference")
    pp = change.get("unit") == "pp"
    amount = formats.number(change.get("delta" if pp else "delta_percent"))
    if amount is None:
        return HeatCell(value, "", within)  # a measured value that has no change: nothing to say
    policy = bundle.decision.get("policy") or {}
    full = formats.number(policy.get(full_colour(pp=pp)))
    around = formats.interval(change.get("ci_lo"), change.get("ci_hi"), 1, sign=True) if pp else ""
    told = f"{formats.delta(amount)} {'pp' if pp else '%'} {around}".rstrip()
    return HeatCell(value, told, within, tone_of(metric, amount, full))


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
