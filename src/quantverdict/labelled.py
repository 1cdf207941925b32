"""What people's labels say of a bundle: its instruments' error rates, and its rates corrected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from quantverdict.collect.frames import JUDGEMENTS, SCORES, read_frame
from quantverdict.collect.manifest import Bundle
from quantverdict.errors import BundleError
from quantverdict.matrix.cells import judge_scores
from quantverdict.matrix.columns import baselines, references
from quantverdict.matrix.human import JUDGED, Labelled, Raw, Readings, Sample, corrected_table, instruments_table
from quantverdict.matrix.label_design import Answered, Drawn, Prompted
from quantverdict.matrix.label_sheet import RUBRICS, exactly_guarded, unguarded
from quantverdict.records import CellId, Matrix, Row, Table, Value

if TYPE_CHECKING:
    import polars as pl

PATTERN = "pattern"
KEY, LABELS = "labels_key", "labels"
KEY_COLUMNS = (
    "id", "base_model", "quant", "baseline", "task", "sample_id", "metric", "cluster", "pattern", "judge", "stratum",
    "certain", "selected", "probability",
)  # fmt: skip


def key_table(drawn: Iterable[Drawn]) -> Table:
    """`labels_key.csv`: every answer that could be labelled, what was drawn of them, and with which probability."""
    rows: Iterator[tuple[Value, ...]] = (
        (a.text, *a.cell, a.baseline.quant, *a.prompt, a.metric, a.cluster, *a.said, entry.stratum, entry.certain,
         entry.selected, f"{entry.probability.numerator}/{entry.probability.denominator}")
        for entry in drawn for a in (entry.answer,)
    )  # fmt: skip
    # Ids of samples are a task author's, and a spreadsheet would run what begins as a formula.
    return Table(KEY, KEY_COLUMNS, tuple(tuple(map(_guarded, row)) for row in rows))


def _guarded(value: Value) -> Value:
    return exactly_guarded(value) if isinstance(value, str) else value


def stored_design(bundle: Bundle) -> tuple[Drawn, ...]:
    """What `labels_key.csv` holds.

    Raises:
        BundleError: no sheet was made of this bundle, or the key is not as it was written.
    """
    path = bundle.path(f"{KEY}.csv")
    if not path.exists():
        raise BundleError(f"{bundle.root}: no sheet was made of it; write one first (label BUNDLE --out SHEET.csv)")
    try:
        rows = bundle.read_table(KEY)
        return tuple(_drawn({name: unguarded(cell) for name, cell in row.items()}) for row in rows)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise BundleError(f"{path}: not as it was written ({error})") from error


def _drawn(row: Mapping[str, str]) -> Drawn:
    model, prompt = row["base_model"], Prompted(row["task"], row["sample_id"])
    answer = Answered(
        cell=CellId(model, row["quant"]),
        baseline=CellId(model, row["baseline"]),
        prompt=prompt,
        metric=row["metric"],
        cluster=row["cluster"] or None,
        said=(row["pattern"], row["judge"]),
        text=row["id"],
    )
    return Drawn(answer, row["stratum"], row["certain"] == "1", row["selected"] == "1", Fraction(row["probability"]))


def stored_labels(bundle: Bundle) -> dict[str, str]:
    """`labels.csv`: the label of each text, blank where there is none; empty where no sheet was read."""
    return {row["id"]: row["label"] for row in bundle.read_table(LABELS)} if has_labels(bundle) else {}


def has_labels(bundle: Bundle) -> bool:
    return bundle.path(f"{LABELS}.csv").exists()


def label_tables(bundle: Bundle, matrix: Matrix, confidence: float) -> Iterator[Table]:
    """`instruments.csv` and `corrected_rates.csv`, where people's labels were read.

    Args:
        matrix: with what each build is compared by.

    Raises:
        BundleError: the labels are not those of the key.
    """
    if not has_labels(bundle):
        return
    labelled = Labelled(stored_design(bundle), stored_labels(bundle))
    refuse_strange(bundle, labelled)
    yield instruments_table(labelled, all_readings(bundle), confidence)
    yield corrected_table(labelled, raw_rates(matrix, loaded_judges(bundle)), confidence)


def refuse_strange(bundle: Bundle, labelled: Labelled) -> None:
    """Refuse labels that the key does not know of.

    Raises:
        BundleError: naming the first.
    """
    metrics = {entry.answer.text: entry.answer.metric for entry in labelled.drawn if entry.selected}
    for name, label in labelled.labels.items():
        if name not in metrics or (label and label not in RUBRICS[metrics[name]].allowed):
            raise BundleError(f"{bundle.path(f'{LABELS}.csv')}: row id={name}: not of {KEY}.csv; read the sheet again")


def raw_rates(matrix: Matrix, judge: str) -> dict[CellId, list[Raw]]:
    """The rates of each cell that labels can correct, as the matrix has them, in its order.

    Args:
        judge: who gave the judges' rates.
    """
    base = references(matrix)
    models = baselines(matrix)
    found: dict[CellId, list[Raw]] = {}
    for row in matrix:
        other = None if row.is_baseline else base.get(row.cell, models.get(row.base_model))
        found[row.cell] = [
            Raw(metric, instrument, row.value(metric), _delta(row, other, metric))
            for pattern in RUBRICS
            for metric, instrument in ((pattern, PATTERN), (JUDGED.get(pattern, ""), f"judge {judge}"))
            if metric in row.metrics
        ]
    return found


def _delta(row: Row, other: Row | None, metric: str) -> Value:
    mine, theirs = row.paired_metrics.get(metric), None if other is None else other.value(metric)
    return None if mine is None or theirs is None else (mine.value - theirs) * 100


def loaded_judges(bundle: Bundle) -> str:
    """The judges whose labels the matrix rests on."""
    frame = _judgements(bundle, "judgements.parquet")
    if frame is None:
        return ""
    return "+".join(frame.filter(frame["label"].is_not_null())["judge"].unique().sort().to_list())


def all_readings(bundle: Bundle) -> dict[tuple[str, str], Readings]:
    """What every instrument says of every sample, by instrument and pattern's metric."""
    found: dict[tuple[str, str], dict[Sample, float | None]] = {}
    for metric, said in read_values(scored(bundle), RUBRICS).items():
        found[PATTERN, metric] = said
    for name in ("judgements.parquet", "other_judgements.parquet"):
        frame = _judgements(bundle, name)
        for (judge,), own in {} if frame is None else frame.partition_by("judge", as_dict=True).items():
            values = read_values(judge_scores(own), JUDGED.values())
            for pattern, metric in JUDGED.items():
                if metric in values:
                    found[f"judge {judge}", pattern] = {**found.get((f"judge {judge}", pattern), {}), **values[metric]}
    order = list(RUBRICS)
    return dict(sorted(found.items(), key=lambda item: (item[0][0] != PATTERN, item[0][0], order.index(item[0][1]))))


def scored(bundle: Bundle) -> pl.DataFrame:
    """`scores.parquet`.

    Raises:
        BundleError: the bundle has none.
    """
    path = bundle.path("scores.parquet")
    if not path.exists():
        raise BundleError(f"{bundle.root}: holds no scores.parquet; bring the run that made it to its end first")
    return read_frame(path, SCORES)


def loaded_labels(bundle: Bundle) -> dict[str, dict[Sample, float | None]]:
    """What the judges say that the matrix rests on, by the judges' metric."""
    frame = _judgements(bundle, "judgements.parquet")
    return {} if frame is None or frame.height == 0 else read_values(judge_scores(frame), JUDGED.values())


def _judgements(bundle: Bundle, name: str) -> pl.DataFrame | None:
    path = bundle.path(name)
    return read_frame(path, JUDGEMENTS) if path.exists() else None


def read_values(scores: pl.DataFrame, metrics: Iterable[str]) -> dict[str, dict[Sample, float | None]]:
    """The values of scores by metric and sample."""
    import polars as pl

    found: dict[str, dict[Sample, float | None]] = {}
    columns = ("base_model", "quant", "task", "sample_id", "metric", "value")
    rows = scores.filter(pl.col("metric").is_in(list(metrics))).select(
        pl.col(name) if name == "value" else pl.col(name).cast(pl.String) for name in columns
    )
    for model, quant, task, sample, metric, value in rows.iter_rows():
        found.setdefault(metric, {})[Sample(CellId(model, quant), Prompted(task, sample))] = value
    return found
