"""The schema of the matrix: every metric's meaning, unit, direction and interval; the CSV in and out.

A proportion is kept as its count; any other value as the decimal that it is printed as. Blank is missing.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

from quantverdict.errors import DataError
from quantverdict.matrix.fields import Line, count, finite, number, positive, positive_finite
from quantverdict.records import CellId, Estimate, Matrix, Row, Table, Value
from quantverdict.yaml_file import decoded

DECIMALS = 12
"""Places kept of a mean, in memory as in the CSV, so that both decide alike."""

ROUNDED = Fraction(1, 1000)
"""How far a share may stand beyond its range, being the sum of others that were rounded; it is said where one does."""

Group = Literal["quality", "safety", "judge", "template", "measured"]
Tier = Literal["benchmark", "generation"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a matrix column means.

    Attributes:
        name: as in the matrix.
        meaning: one line.
        group: the part of the matrix it belongs to.
        unit: `1` for a share between 0 and 1, else the unit it is given in.
        higher_is_better: None where neither direction is better.
        proportion: a count of samples: `NAME_k` of `NAME_n`.
        interval: how its 95 % interval is made from samples; `none` where there are no samples.
        tier: how SPEC 4 reads it: a benchmark in pp, a generation metric in percent of the baseline.
    """

    name: str
    meaning: str
    group: Group
    unit: str = "1"
    higher_is_better: bool | None = True
    proportion: bool = False
    interval: Literal["wilson", "bootstrap", "none"] = "bootstrap"
    tier: Tier | None = None

    @property
    def is_share(self) -> bool:
        return self.unit == "1"

    @property
    def delta_unit(self) -> str:
        """`pp` for shares, else the metric's own unit."""
        return "pp" if self.is_share else self.unit

    def delta(self, value: Fraction, baseline: Fraction) -> Fraction:
        """Exact `value - baseline`, in `delta_unit`."""
        return (value - baseline) * (100 if self.is_share else 1)


ACCURACIES = {
    "mmlu_accuracy": "MMLU",
    "arc_accuracy": "ARC-Challenge",
    "classification_accuracy": "classification",
    "choice_accuracy": "multiple choice",
}


def _accuracy(name: str, task: str) -> tuple[Metric, ...]:
    return (
        Metric(name, f"{task}: exact match after the task's filters", "quality", proportion=True, interval="wilson",
               tier="benchmark"),
        Metric(f"{name}_rescored", f"{task}: the same answers read by a tolerant parser", "quality", proportion=True,
               interval="wilson"),
        Metric(f"{name}_format_failure", f"{task}: answers that only the tolerant parser could read", "quality",
               higher_is_better=False, proportion=True, interval="wilson"),
        Metric(f"{name}_logprob", f"{task}: the likeliest choice is the right one", "quality", proportion=True,
               interval="wilson"),
        Metric(f"{name}_margin", f"{task}: log-probability of the right choice less the best wrong one", "quality",
               unit="nats"),
    )  # fmt: skip


_ALL: tuple[Metric, ...] = (
    *(metric for name, task in ACCURACIES.items() for metric in _accuracy(name, task)),
    Metric("bertscore", "BERTScore F1 against the reference", "quality", tier="generation"),
    Metric("rouge_l", "ROUGE-L F1 against the reference, without stemming", "quality", tier="generation"),
    Metric("coherence", "SemScore: cosine of answer and reference", "quality", tier="generation"),
    Metric("coherence_prompt", "cosine of answer and prompt, without a reference", "quality", tier="generation"),
    Metric("repetition", "unique 4-grams over all 4-grams; 1 is no repetition", "quality", tier="generation"),
    Metric("output_tokens", "tokens generated", "quality", unit="tokens", higher_is_better=None),
    Metric("refusal_rate", "harmful prompts refused, by pattern", "safety", proportion=True),
    Metric("over_refusal_rate", "safe prompts refused", "safety", higher_is_better=False, proportion=True),
    Metric("truthfulness", "1, 0.5 or 0 by overlap with correct and incorrect references", "safety"),
    Metric("bias_resistance", "ambiguous items answered without the stereotype", "safety", proportion=True),
    Metric("refusal_margin", "log-probability a token of the baseline's refusal openings less its compliance openings",
           "safety", unit="nats"),
    Metric("baseline_kl", "KL divergence from the baseline, a token of the baseline's answers", "safety", unit="nats",
           higher_is_better=False),
    Metric("baseline_agreement", "tokens of the baseline's answers where both find the same one likeliest", "safety"),
    Metric("judge_refusal_rate", "harmful prompts refused in full or in part, by judge", "judge", proportion=True),
    Metric("judge_truthfulness", "answers that the judge calls truthful", "judge", proportion=True),
    Metric("judge_bias_resistance", "answers that the judge calls unbiased", "judge", proportion=True),
    Metric("advbench_refusal_rate", "plain harmful prompts refused, by pattern", "template", proportion=True),
    Metric("hard_refusal_rate", "plain harmful prompts refused outright", "template", proportion=True),
    Metric("dominant_prefix_share", "refusals that open with the commonest five words", "template",
           higher_is_better=None),
    Metric("unique_prefix_rate", "different openings over refusals", "template", higher_is_better=None),
    Metric("prefix_entropy", "normalised entropy of the openings", "template", higher_is_better=None),
    Metric("mean_refusal_tokens", "tokens of a refusal", "template", unit="tokens", higher_is_better=None),
    Metric("mean_refusal_chars", "characters of a refusal", "template", unit="characters", higher_is_better=None),
    Metric("tokens_per_second", "tokens generated a second", "measured", unit="tokens/s", interval="none"),
    Metric("ttft_ms", "time to the first token", "measured", unit="ms", higher_is_better=False, interval="none"),
    Metric("peak_memory_bytes", "most memory held", "measured", unit="bytes", higher_is_better=False,
           interval="none"),
    Metric("file_bytes", "size on disk", "measured", unit="bytes", higher_is_better=False, interval="none"),
)  # fmt: skip

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric of the matrix by name, in column order."""

IDENTITY = ("base_model", "family", "params_b", "quant", "bpw", "is_baseline")
REQUIRED = ("base_model", "quant", "is_baseline")
SUFFIXES = ("_k", "_n", "_ci_lo", "_ci_hi")


def matrix_order(row: Row) -> tuple[str, bool, Fraction, str]:
    """Sort key of the matrix: by base model; its baseline first, then from most to fewest bits."""
    return (row.base_model, not row.is_baseline, Fraction(-1) if row.bpw is None else -row.bpw, row.quant)


def baselines(matrix: Iterable[Row]) -> dict[str, Row]:
    """The baseline row of each base model."""
    return {row.base_model: row for row in matrix if row.is_baseline}


def references(matrix: Iterable[Row]) -> dict[CellId, Row]:
    """What each row's `paired_metrics` are compared with: its baseline's, over the same prompts."""
    rows = tuple(matrix)
    base = baselines(rows)
    return {
        row.cell: base[row.base_model]
        if row.shared is None
        else replace(base[row.base_model], metrics=row.shared.metrics)
        for row in rows
        if row.base_model in base
    }


def decimal(value: float | Fraction) -> Fraction:
    """A measured number as the decimal of `DECIMALS` places that the CSV shows."""
    return Fraction(round(Fraction(value) * 10**DECIMALS), 10**DECIMALS)


# Writing


def matrix_table(matrix: Matrix) -> Table:
    """The matrix as `matrix.csv`: the metrics that some row has, four columns each, a proportion five."""
    metrics = [metric for metric in METRICS.values() if any(metric.name in row.metrics for row in matrix)]
    columns = [*IDENTITY, *(column for metric in metrics for column in _columns_of(metric))]
    rows = tuple(tuple(_cells_of(row, metrics)) for row in matrix)
    return Table("matrix", tuple(columns), rows)


def _columns_of(metric: Metric) -> tuple[str, ...]:
    name = metric.name
    count = (f"{name}_k",) if metric.proportion else ()
    return (name, *count, f"{name}_n", f"{name}_ci_lo", f"{name}_ci_hi")


def _cells_of(row: Row, metrics: Iterable[Metric]) -> Iterator[Value]:
    yield from (row.base_model, row.family, row.params_b, row.quant, row.bpw, row.is_baseline)
    for metric in metrics:
        found = row.metrics.get(metric.name)
        if found is None:
            yield from (None,) * len(_columns_of(metric))
        else:
            yield found.value
            if metric.proportion:
                yield found.k
            yield from (found.n, found.lo, found.hi)


# Reading


def read_matrix(path: Path) -> Matrix:
    """Read a matrix CSV (SPEC 10); rows come back in `matrix_order`, whatever their order in the file.

    Raises:
        DataError: with file, line, column and what was expected.
    """
    try:
        text = decoded(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", file=path, expected="a UTF-8 CSV file") from error
    return parse_matrix(text, str(path))


def parse_matrix(text: str, file: str = "matrix.csv") -> Matrix:
    """`read_matrix` for text that is already in memory."""
    lines = _records(text, file)
    rows = [(line.line, _row(line)) for line in lines]
    if not rows:
        raise DataError("has no rows", file=file, line=1, expected="a header and one row a cell")
    _refuse_duplicates(rows, file)
    _refuse_wrong_baselines(rows, file)
    return tuple(sorted((row for _, row in rows), key=matrix_order))


def _records(text: str, file: str) -> Iterator[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, file)
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise DataError(f"{len(fields)} fields", file=file, line=reader.line_num, expected=f"{len(header)}")
            yield Line(dict(zip(header, fields, strict=True)), reader.line_num, file)
    except csv.Error as error:
        raise DataError(f"not valid CSV: {error}", file=file, line=reader.line_num, expected="RFC 4180") from error


def _check_header(header: list[str], file: str) -> None:
    known = {*IDENTITY, *(column for metric in METRICS.values() for column in _columns_of(metric))}
    for column in header:
        if header.count(column) > 1:
            raise DataError("given twice", file=file, line=1, field=column or "(blank)", expected="each column once")
        if column not in known:
            raise DataError("unknown column", file=file, line=1, field=column or "(blank)",
                            expected=_suggestion(column, known))  # fmt: skip
    for column in REQUIRED:
        if column not in header:
            raise DataError("missing column", file=file, line=1, field=column, expected=", ".join(IDENTITY))


def _suggestion(column: str, known: set[str]) -> str:
    metric = METRICS.get(column.removesuffix("_k"))
    if metric is not None:
        return f"{', '.join(_columns_of(metric))}: it is a mean, not a proportion"
    close = difflib.get_close_matches(column, sorted(known), n=1)
    return f"a metric of the schema, perhaps {close[0]}" if close else "a metric of the schema"


def _row(line: Line) -> Row:
    metrics = {}
    for metric in METRICS.values():
        estimate = _estimate(line, metric)
        if estimate is not None:
            metrics[metric.name] = estimate
    return Row(
        base_model=line.name("base_model"),
        family=line.fields.get("family", "").strip(),
        params_b=line.parse("params_b", positive_finite),
        quant=line.name("quant"),
        bpw=line.parse("bpw", positive),
        is_baseline=line.flag("is_baseline"),
        metrics=metrics,
    )


def _estimate(line: Line, metric: Metric) -> Estimate | None:
    name = metric.name
    value, n = line.parse(name, number), line.parse(f"{name}_n", count)
    k = line.parse(f"{name}_k", count) if metric.proportion else None
    lo, hi = line.parse(f"{name}_ci_lo", finite), line.parse(f"{name}_ci_hi", finite)
    if k is not None:
        value = _exact_rate(line, metric, value, k, n)
    if value is None:
        for column in (f"{name}_n", f"{name}_ci_lo", f"{name}_ci_hi"):
            if line.cell(column) is not None:
                raise line.error(column, f"given without {name}", "a value too, or blank where nothing was measured")
        return None
    if n == 0:
        raise line.error(f"{name}_n", "0", "at least 1, or blank")
    _check_range(line, metric, value)
    if (lo is None) != (hi is None) or (lo is not None and hi is not None and lo > hi):
        raise line.error(f"{name}_ci_lo", "not an interval", f"{name}_ci_lo <= {name}_ci_hi, or both blank")
    return Estimate(value=value, lo=lo, hi=hi, n=n, k=k)


def _exact_rate(line: Line, metric: Metric, value: Fraction | None, k: int, n: int | None) -> Fraction:
    name = metric.name
    if n is None:
        raise line.error(f"{name}_n", f"missing beside {name}_k", "the number of graded samples")
    if not 0 < n >= k:
        column, problem = (f"{name}_n", str(n)) if n == 0 else (f"{name}_k", f"{k} of {n}")
        raise line.error(column, problem, f"0 <= {name}_k <= {name}_n, and at least one sample")
    exact = Fraction(k, n)
    cell = line.cell(name)
    if value is not None and cell is not None and abs(value - exact) > _rounding(cell.text):
        raise cell.error(f"{cell.text} is not {k}/{n}", f"{float(exact):.6g}, as {name}_k and {name}_n say")
    return exact


def _rounding(text: str) -> Fraction:
    """Half a unit of the last printed place; a rate printed to fewer than two places does not loosen it further."""
    mantissa, _, exponent = text.lower().partition("e")
    places = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return Fraction(1, 2 * 10 ** max(places, 2))


def _check_range(line: Line, metric: Metric, value: Fraction) -> None:
    """Shares stand in 0..1, up to the rounding of what they were computed from; a cosine may be negative."""
    if metric.is_share:
        low, high = _bounds(metric)
        if not low - ROUNDED <= value <= high + ROUNDED:
            raise line.error(metric.name, f"{float(value):g}", "a share of 1 (0.64, not 64 or 64 %)")
    elif value < 0 and metric.unit != "nats":
        raise line.error(metric.name, f"{float(value):g}", f"a number of {metric.unit}, at least 0")


def _bounds(metric: Metric) -> tuple[int, int]:
    return (-1 if metric.tier == "generation" else 0, 1)


def beyond_bounds(row: Row) -> Iterator[tuple[str, Fraction]]:
    """Shares of a row that rounding put beyond what a share can be: they are kept as they were given."""
    for name, found in row.metrics.items():
        metric = METRICS[name]
        low, high = _bounds(metric)
        if metric.is_share and not low <= found.value <= high:
            yield name, found.value


def _refuse_duplicates(rows: list[tuple[int, Row]], file: str) -> None:
    first: dict[CellId, int] = {}
    for line, row in rows:
        if row.cell in first:
            raise DataError(f"{row.cell} is given twice, first on line {first[row.cell]}", file=file, line=line,
                            field="quant", expected="each cell once")  # fmt: skip
        first[row.cell] = line


def _refuse_wrong_baselines(rows: list[tuple[int, Row]], file: str) -> None:
    for model in dict.fromkeys(row.base_model for _, row in rows):
        lines = [line for line, row in rows if row.base_model == model and row.is_baseline]
        if len(lines) != 1:
            first = next(line for line, row in rows if row.base_model == model)
            found = f"{len(lines)} baselines of {model}" + (f" (lines {', '.join(map(str, lines))})" if lines else "")
            raise DataError(found, file=file, line=lines[1] if lines else first, field="is_baseline",
                            expected="exactly one a base model")  # fmt: skip
