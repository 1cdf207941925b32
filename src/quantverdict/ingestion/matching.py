"""Rows of a source become scores or judgements of cells; what does not is counted or named."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from quantverdict.bundle.sources import ScoreSource, Sources, worth
from quantverdict.errors import DataError, one_of
from quantverdict.ingestion.rows import Block, InvalidRow, RowFields, schema_of
from quantverdict.registry import judge_labels

if TYPE_CHECKING:
    import polars as pl

SAMPLE = ("base_model", "quant", "task", "sample_id")
HASHES = ("prompt_hash", "item_hash")
OTHER_ROWS = "not of "
"""How the reason begins for rows that a source does not ask for."""
NAMED = 20
"""Values of a filtered column that are remembered, to name them where none is the right one."""
UNGRADED = "not graded in the source"
UNLABELLED = "not labelled in the source"
ROUNDING = 1e-3
"""How far beyond its bound a share may stand: the cosine of equal texts is 1.0005 in half precision."""


@dataclass(frozen=True, slots=True)
class AllowedValues:
    """The values that one sample of a metric can have."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False

    def __str__(self) -> str:
        if self == AllowedValues(0, 1, whole=True):
            return "0 or 1"
        kind = "a whole number" if self.whole else "a number"
        if math.isinf(self.high):
            return kind if math.isinf(self.low) else f"{kind} of at least {self.low:g}"
        return f"{kind} from {self.low:.17g} to {self.high:.17g}"

    def refuses(self, value: pl.Expr) -> pl.Expr:
        """Whether a value is none of these; null where there is none."""
        if self.whole:
            return (value < self.low) | (value > self.high) | (value.floor() != value)
        slack = 0 if math.isinf(self.high) else ROUNDING
        return (value < self.low - slack) | (value > self.high + slack)


@dataclass(frozen=True, slots=True)
class MatchedRows:
    """The rows of a block that belong to a cell, and why the others do not.

    Attributes:
        frame: score or judgement columns, `line`, and those of `HASHES` that the source names a column for.
        answers: `line`, sample, `text` and `output_tokens` of the tasks whose answers are kept; None where the source
            has no answers.
    """

    frame: pl.DataFrame
    answers: pl.DataFrame | None
    unmatched: Counter[str]
    broken: list[InvalidRow]


class Matcher:
    """Reads the rows of one source.

    Args:
        answers_of: the tasks whose answers are kept.
        metrics: every metric there is, and what its values can be; empty: any metric, any number.
    """

    def __init__(
        self, source: ScoreSource, sources: Sources, answers_of: Sequence[str], metrics: Mapping[str, AllowedValues]
    ) -> None:
        self.source = source
        self.answers_of = list(answers_of)
        self.metrics = metrics
        self.cells = sources.cells
        self.models = {cell.base_model for cell in self.cells}
        self.quants = {cell.quant for cell in self.cells}
        self.seen: set[str] = set()
        columns = source.columns
        ids = ("sample_id", "task", "cell", "base_model", "quant")
        names = (*ids, "cluster", "reason", "metric", "label", "text", *HASHES)
        texts = {name: column for name in names if (column := getattr(columns, name)) is not None}
        numbers = {f"value_{number}": measure.column for number, measure in enumerate(source.measures)}
        self.worth = {f"value_{n}": measure.values for n, measure in enumerate(source.measures) if measure.values}
        if columns.value is not None:
            numbers["value_0"] = columns.value
            self.worth |= {"value_0": source.values} if source.values else {}
        words = {name: numbers.pop(name) for name in self.worth}
        if columns.output_tokens is not None:
            numbers["output_tokens"] = columns.output_tokens
        prose = tuple(name for name in ("text", *HASHES) if name in texts)
        self.where = {f"where_{n}": value for n, value in enumerate(source.where.values())}
        self.met: dict[str, set[str]] = {name: set() for name in self.where}
        words |= dict(zip(self.where, source.where, strict=True))
        self.wanted = RowFields(texts, numbers, prose, words)
        self.numbers = {name: column for name, column in (words | numbers).items() if name not in self.where}
        self.required = [*self.numbers, *(name for name in ("label", "text", *HASHES) if name in texts)]

    def match(self, block: Block) -> MatchedRows:
        """Sort the rows of a block."""
        import polars as pl

        frame = self._resolve(block.frame)
        for name, met in self.met.items():
            met.update(frame[name].drop_nulls().unique().head(NAMED).to_list() if len(met) < NAMED else ())
            met.update({self.where[name]} if (frame[name] == self.where[name]).any() else ())
        for name in self.required:
            if name not in self.seen and frame[name].null_count() < frame.height:
                self.seen.add(name)
        sorted_out = frame.select("line", "broken", "unmatched").with_row_index().filter(
            pl.col("broken").is_not_null() | pl.col("unmatched").is_not_null()
        )  # fmt: skip
        if sorted_out.height == 0:
            return MatchedRows(self._emit(frame), self._answers(frame), Counter(), [])
        wrong = sorted_out.filter(pl.col("broken").is_not_null())
        broken = [InvalidRow(row[1], row[2], block.text_of[row[0]]) for row in wrong.iter_rows()]
        left_out = sorted_out.filter(pl.col("broken").is_null()).group_by("unmatched").len()
        kept = frame.filter(pl.col("broken").is_null() & pl.col("unmatched").is_null())
        return MatchedRows(self._emit(kept), self._answers(kept), Counter(dict(left_out.iter_rows())), broken)

    def check_columns_filled(self, path: Path) -> None:
        """Refuse a source of which a whole column of scores or labels is missing: the mapping is wrong.

        Raises:
            DataError: naming the column.
        """
        for name in self.required:
            if name not in self.seen:
                column = self.wanted.columns[name]
                raise DataError("no row has a value", file=path, field=column, expected="a column that the file has")

    def check_rows_left(self, path: Path) -> None:
        """Refuse a filter that leaves nothing.

        Raises:
            DataError: naming what the column has.
        """
        for (name, wanted), column in zip(self.where.items(), self.source.where, strict=True):
            met = self.met[name]
            if wanted not in met:
                raise DataError(f"no row has {wanted}", file=path, field=column, expected=one_of(wanted, sorted(met)))

    def empty(self) -> pl.DataFrame:
        """No rows, with the columns that `match` gives."""
        import polars as pl

        return self._emit(self._resolve(pl.DataFrame(schema=schema_of(self.wanted))))

    @staticmethod
    def nothing(columns: Iterable[str]) -> pl.DataFrame:
        """An empty frame of scores or judgements."""
        import polars as pl

        numbers = ("value", "output_tokens")
        return pl.DataFrame(schema={name: pl.Float64 if name in numbers else pl.String for name in columns})

    def _resolve(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add `base_model`, `quant`, `task`, `broken` and `unmatched` (null: neither)."""
        import polars as pl

        fixed = [pl.lit(value).alias(name) for name, value in self.source.fixed.items()]
        texts = [name for name in self.wanted.texts if name not in ("cluster", "reason", "label", "text")]
        frame = frame.with_columns(*fixed, *(pl.col(name).fill_null("") for name in texts))
        frame = frame.with_columns(_plain_hash(name) for name in HASHES if name in texts)
        for name, values in self.worth.items():
            frame = _translate(frame, [name], partial(_worth_of, values), [name, f"broken_{name}"])
            frame = frame.with_columns(pl.col(name).cast(pl.Float64))
        cell_key = ["cell"] if "cell" in self.wanted.texts else ["base_model", "quant"]
        frame = _translate(frame, cell_key, self._cell_of, ["base_model", "quant", "broken_cell", "unmatched_cell"])
        frame = _translate(frame, ["task"], self._task_of, ["task", "broken_task", "unmatched_task"])
        broken, unmatched = ["broken_cell", "broken_task"], ["unmatched_where", "unmatched_cell", "unmatched_task"]
        if "metric" in self.wanted.texts:
            frame = _translate(frame, ["metric"], self._metric_of, ["metric", "broken_metric", "unmatched_metric"])
            broken.append("broken_metric")
            unmatched.append("unmatched_metric")
        if self.source.is_judge:
            frame = _translate(frame, ["label"], self._label_of, ["label", "ungraded", "broken_label"])
        others = [
            pl.when(pl.col(name).ne_missing(wanted)).then(pl.lit(f"{OTHER_ROWS}{column} {wanted}"))
            for (name, wanted), column in zip(self.where.items(), self.source.where, strict=True)
        ]
        frame = frame.with_columns(pl.coalesce(*others, pl.lit(None, pl.String)).alias("unmatched_where"))
        return frame.with_columns(
            pl.coalesce(
                *(pl.when(pl.col("unmatched_where").is_null()).then(pl.col(name)) for name in broken),
                *(
                    pl.when((pl.col(name) == "") & pl.col("unmatched_where").is_null()).then(
                        pl.lit(_missing(getattr(self.source.columns, name)))
                    )
                    for name in ("sample_id", *HASHES)
                    if name in texts
                ),
                pl.when(pl.all_horizontal(pl.col(name).is_null() for name in unmatched)).then(self._wrong_value()),
            ).alias("broken"),
            pl.coalesce(*unmatched).alias("unmatched"),
        )

    def _wrong_value(self) -> pl.Expr:
        import polars as pl

        if self.source.is_judge:
            return pl.col("broken_label")
        columns = self.numbers
        no_word = (
            pl.when(read).then(pl.concat_str(pl.lit(f"{columns[name]}: "), f"broken_{name}"))
            for name, read in self._read_where()
            if name in self.worth
        )
        no_number = (
            _refusal(column, name, ~pl.col(name).is_finite(), pl.lit("expected a number"))
            for name, column in columns.items()
        )
        not_allowed = (
            _refusal(columns[name], name, read & allowed.refuses(pl.col(name)),
                     pl.concat_str(pl.lit(f"expected {allowed} for "), metric))
            for name, read, metric, allowed in self._allowed()
        )  # fmt: skip
        return pl.coalesce(*no_word, *no_number, *not_allowed)

    def _read_where(self) -> Iterator[tuple[str, pl.Expr]]:
        """(number, of which rows it is a score)."""
        import polars as pl

        for number, measure in enumerate(self.source.measures):
            yield f"value_{number}", _is_one_of(pl.col("task"), measure.tasks) if measure.tasks else pl.lit(value=True)
        if "metric" in self.wanted.texts:
            yield "value_0", pl.lit(value=True)

    def _allowed(self) -> Iterator[tuple[str, pl.Expr, pl.Expr, AllowedValues]]:
        """(number, which rows have such a score, its metric, what it can be)."""
        import polars as pl

        for measure, (name, read) in zip(self.source.measures, self._read_where(), strict=False):
            if measure.metric in self.metrics:
                yield name, read, pl.lit(measure.metric), self.metrics[measure.metric]
        if "metric" in self.wanted.texts:
            for allowed in dict.fromkeys(self.metrics.values()):
                names = [name for name, own in self.metrics.items() if own == allowed]
                yield "value_0", pl.col("metric").is_in(names), pl.col("metric"), allowed
        if "output_tokens" in self.wanted.numbers and "output_tokens" in self.metrics:
            tokens = "output_tokens"
            yield tokens, pl.lit(value=True), pl.lit(tokens), self.metrics[tokens]

    def _cell_of(self, key: tuple[str | None, ...]) -> tuple[str | None, ...]:
        """(base_model, quant, broken, unmatched) of what a row says."""
        source = self.source
        if len(key) == 1:
            said = key[0] or ""
            base, _, quant = source.cells.get(said, "").partition("/")
            if not said:
                return (None, None, _missing(source.columns.cell), None)
            return (base, quant, None, None) if base else (None, None, None, f"{said} is no cell of the study")
        said_base, said_quant = key[0] or "", key[1] or ""
        base, quant = source.base_models.get(said_base, said_base), source.quants.get(said_quant, said_quant)
        missing = next((part for part, said in (("base_model", base), ("quant", quant)) if not said), None)
        if missing:
            return (None, None, _missing(getattr(source.columns, missing)), None)
        if base not in self.models:
            return (None, None, None, f"base model {base} is not in the study")
        if quant not in self.quants:
            return (None, None, f"unknown quant {quant}", None)
        known = (base, quant) in self.cells
        return (base, quant, None, None if known else f"no cell {base}/{quant} in the study")

    def _task_of(self, key: tuple[str | None, ...]) -> tuple[str | None, ...]:
        """(task, broken, unmatched)."""
        said = key[0] or ""
        task = self.source.tasks.get(said, said)
        measures, only = self.source.measures, self.source.only_tasks
        if task and only and task not in only:
            return (task, None, f"task {task} is not read from this source")
        read = not measures or any(not measure.tasks or task in measure.tasks for measure in measures)
        missing = None if task else _missing(self.source.columns.task)
        return (task, missing, None if read or missing else f"no metric is read from task {task}")

    def _metric_of(self, key: tuple[str | None, ...]) -> tuple[str | None, ...]:
        said = key[0] or ""
        metric = self.source.metrics.get(said, said)
        if metric is None:
            return (said, None, f"{OTHER_ROWS}a metric that is read: {said}")
        if not metric:
            return (metric, _missing(self.source.columns.metric), None)
        return (metric, f"unknown metric {metric}" if self.metrics and metric not in self.metrics else None, None)

    def _label_of(self, key: tuple[str | None, ...]) -> tuple[str | None, ...]:
        """(label, why it is ungraded, broken)."""
        said = key[0]
        if said is None:
            return (None, UNLABELLED, None)
        label = self.source.labels.get(said, said)
        if label is None:
            return (None, said, None)
        return (label, None, None) if label in judge_labels() else (None, None, f"unknown label {said}")

    def one_a_row(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Of the scores that a row gives, one: that of the first measure that is read from its task."""
        import polars as pl

        metric, task = pl.col("metric"), pl.col("task")
        taken: list[str] = []
        firsts = []
        for measure in self.source.measures:
            own = _is_one_of(task, [name for name in measure.tasks if name not in taken])
            firsts.append((metric == measure.metric) & (own if measure.tasks else ~_is_one_of(task, taken)))
            taken += measure.tasks
            if not measure.tasks:
                break
        return frame.filter(pl.any_horizontal(firsts)) if len(self.source.measures) > 1 else frame

    def _answers(self, frame: pl.DataFrame) -> pl.DataFrame | None:
        """The answers that are kept, of rows that belong to a cell."""
        import polars as pl

        if "text" not in self.wanted.texts:
            return None
        tokens = pl.col("output_tokens") if "output_tokens" in self.wanted.numbers else pl.lit(None, pl.Float64)
        kept = frame.lazy().filter(pl.col("task").is_in(self.answers_of), pl.col("text").is_not_null())
        # Filtered texts still hold what they were filtered from, all other texts of the block; new ones do not.
        names = [pl.col(name).cast(pl.Categorical).cast(pl.String) for name in SAMPLE]
        text = pl.concat_str(pl.col("text"), pl.lit("")).alias("text")
        return kept.select("line", *names, text, tokens.alias("output_tokens")).collect()

    def _emit(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows that belong to a cell, as scores or judgements."""
        import polars as pl

        names = [pl.col(name).cast(pl.Categorical) for name in ("base_model", "quant", "task", "sample_id")]
        given = [
            (pl.col(name) if name in self.wanted.texts else pl.lit(None, pl.String)).alias(name)
            for name in ("cluster", "reason")
        ]
        frame, hashes = frame.with_columns(given), [name for name in HASHES if name in self.wanted.texts]
        if self.source.is_judge:
            judge = pl.lit(self.source.judge or self.source.label).cast(pl.Categorical).alias("judge")
            why = pl.when(pl.col("label").is_null()).then(pl.coalesce("reason", "ungraded")).otherwise(pl.lit(""))
            label = pl.col("label").cast(pl.Categorical)
            return frame.select("line", *names, judge, label, why.cast(pl.Categorical).alias("reason"), *hashes)
        if "metric" in self.wanted.texts:
            return _scores(frame.lazy(), names, pl.col("metric"), "value_0", hashes).collect()
        whole, parts = frame.lazy(), []
        for number, measure in enumerate(self.source.measures):
            part = whole.filter(_is_one_of(pl.col("task"), measure.tasks)) if measure.tasks else whole
            parts.append(_scores(part, names, pl.lit(measure.metric), f"value_{number}", hashes))
        return pl.concat(parts).collect()


def _refusal(column: str, name: str, which: pl.Expr, expected: pl.Expr) -> pl.Expr:
    """What is wrong with the number `name` of a row, null where nothing is."""
    import polars as pl

    shown = pl.col(name).cast(pl.String).str.strip_suffix(".0")
    return pl.when(which).then(pl.concat_str(pl.lit(f"{column}: "), shown, pl.lit("; "), expected))


def _is_one_of(column: pl.Expr, names: Iterable[str]) -> pl.Expr:
    import polars as pl

    return pl.any_horizontal(pl.lit(value=False), *(column == name for name in names))


def _scores(frame: pl.LazyFrame, names: list[pl.Expr], metric: pl.Expr, value: str, hashes: list[str]) -> pl.LazyFrame:
    import polars as pl

    why = pl.when(pl.col(value).is_null()).then(pl.col("reason").fill_null(UNGRADED)).otherwise(pl.lit(""))
    return frame.select(
        "line",
        *names,
        metric.cast(pl.Categorical).alias("metric"),
        pl.col(value).alias("value"),
        pl.col("cluster").cast(pl.Categorical),
        why.cast(pl.Categorical).alias("reason"),
        *hashes,
    )


def _plain_hash(name: str) -> pl.Expr:
    """A hash is the same in capitals and behind `sha256:`; what is no hash (a prompt) stays as it is."""
    import polars as pl

    text = pl.col(name).str.strip_chars()
    bare = text.str.replace(r"(?i)^(sha-?256|md5|0x):?", "")
    return pl.when(bare.str.contains(r"^[0-9A-Fa-f]{8,}$")).then(bare.str.to_lowercase()).otherwise(text).alias(name)


def _worth_of(values: Mapping[str, float | None], key: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """(number as text, broken) of what a row says."""
    if key[0] is None:
        return (None, None)
    number, wrong = worth(values, key[0])
    return (None if number is None else repr(float(number)), wrong)


Translate = Callable[[tuple[str | None, ...]], tuple[str | None, ...]]


def _translate(frame: pl.DataFrame, key: list[str], translate: Translate, names: list[str]) -> pl.DataFrame:
    """Replace the columns `key` by `names`, translating each distinct value once."""
    import polars as pl

    distinct = frame.select(key).unique(maintain_order=True)
    translated = [translate(row) for row in distinct.iter_rows()]
    table = distinct.rename({name: f"said_{name}" for name in key}).with_columns(
        pl.Series(name, [row[number] for row in translated], dtype=pl.String) for number, name in enumerate(names)
    )
    renamed = frame.rename({name: f"said_{name}" for name in key})
    joined = renamed.join(
        table, on=[f"said_{name}" for name in key], how="left", nulls_equal=True, maintain_order="left"
    )
    return joined.drop([f"said_{name}" for name in key])


def _missing(column: str | None) -> str:
    return f"{column or 'fixed'}: missing"


def raise_broken(path: Path, broken: InvalidRow) -> NoReturn:
    """Refuse a source for one of its rows.

    Raises:
        DataError: by file and line.
    """
    raise DataError(broken.reason, file=path, line=broken.line)
