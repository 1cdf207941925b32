"""A sheet for people to label, made from a bundle, and read back into it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from quantverdict.bundle.files import write_whole
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.prompts import prompts_file
from quantverdict.bundle.store import responses_path
from quantverdict.errors import BundleError, DataError, count_of
from quantverdict.grading.answer import answer_of
from quantverdict.labels.correction import (
    LabelledSample,
    Readings,
    Sample,
    UncorrectedRate,
    corrected_table,
    instruments_table,
)
from quantverdict.labels.sheet import (
    SamplingRecord,
    SheetAnswer,
    SheetPrompt,
    SheetRow,
    draw,
    exactly_guarded,
    given_cells,
    keyed,
    read_sheet,
    row_order,
    sheet_text,
    unguarded,
)
from quantverdict.matrix.cells import judge_scores
from quantverdict.matrix.columns import baselines, references
from quantverdict.records import CellId, Matrix, Row, Table, Value
from quantverdict.registry import by_instrument, judged_by, sheet_rubrics
from quantverdict.stages.facts import (
    GUARDED,
    JUDGEMENTS,
    OTHER_JUDGEMENTS,
    statistics_of,
    stored_frame,
    stored_matrix,
    stored_prompts,
    stored_responses,
)
from quantverdict.yaml_file import decoded

if TYPE_CHECKING:
    import polars as pl

# What people's labels say of a bundle: its instruments' error rates, and its rates corrected.

PATTERN = "pattern"
KEY, LABELS = "labels_key", "labels"
KEY_COLUMNS = (
    "id", "base_model", "quant", "baseline", "task", "sample_id", "metric", "cluster", "pattern", "judge", "stratum",
    "certain", "selected", "probability",
)  # fmt: skip


def key_table(drawn: Iterable[SamplingRecord]) -> Table:
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


def stored_design(bundle: Bundle) -> tuple[SamplingRecord, ...]:
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


def _drawn(row: Mapping[str, str]) -> SamplingRecord:
    model, prompt = row["base_model"], SheetPrompt(row["task"], row["sample_id"])
    answer = SheetAnswer(
        cell=CellId(model, row["quant"]),
        baseline=CellId(model, row["baseline"]),
        prompt=prompt,
        metric=row["metric"],
        cluster=row["cluster"] or None,
        said=(row["pattern"], row["judge"]),
        text=row["id"],
    )
    return SamplingRecord(
        answer, row["stratum"], row["certain"] == "1", row["selected"] == "1", Fraction(row["probability"])
    )


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
    labelled = LabelledSample(stored_design(bundle), stored_labels(bundle))
    check_labels(bundle, labelled)
    yield instruments_table(labelled, all_readings(bundle), confidence)
    yield corrected_table(labelled, raw_rates(matrix, loaded_judges(bundle)), confidence)


def check_labels(bundle: Bundle, labelled: LabelledSample) -> None:
    """Refuse labels that the key does not know of.

    Raises:
        BundleError: naming the first.
    """
    metrics = {entry.answer.text: entry.answer.metric for entry in labelled.drawn if entry.selected}
    for name, label in labelled.labels.items():
        if name not in metrics or (label and label not in sheet_rubrics()[metrics[name]].allowed):
            raise BundleError(f"{bundle.path(f'{LABELS}.csv')}: row id={name}: not of {KEY}.csv; read the sheet again")


def raw_rates(matrix: Matrix, judge: str) -> dict[CellId, list[UncorrectedRate]]:
    """The rates of each cell that labels can correct, as the matrix has them, in its order.

    Args:
        judge: who gave the judges' rates.
    """
    base = references(matrix)
    models = baselines(matrix)
    found: dict[CellId, list[UncorrectedRate]] = {}
    for row in matrix:
        other = None if row.is_baseline else base.get(row.cell, models.get(row.base_model))
        found[row.cell] = [
            UncorrectedRate(metric, instrument, row.value(metric), _delta(row, other, metric))
            for pattern in sheet_rubrics()
            for metric, instrument in ((pattern, PATTERN), (judged_by().get(pattern, ""), f"judge {judge}"))
            if metric in row.metrics
        ]
    return found


def _delta(row: Row, other: Row | None, metric: str) -> Value:
    mine, theirs = row.paired_metrics.get(metric), None if other is None else other.value(metric)
    return None if mine is None or theirs is None else (mine.value - theirs) * 100


def loaded_judges(bundle: Bundle) -> str:
    """The judges whose labels the matrix rests on."""
    frame = stored_frame(bundle, JUDGEMENTS)
    if frame is None:
        return ""
    return "+".join(frame.filter(frame["label"].is_not_null())["judge"].unique().sort().to_list())


def all_readings(bundle: Bundle) -> dict[tuple[str, str], Readings]:
    """What every instrument says of every sample, by instrument and pattern's metric."""
    found: dict[tuple[str, str], dict[Sample, float | None]] = {}
    scores = scored(bundle)
    for metric, said in read_values(scores, sheet_rubrics()).items():
        found[PATTERN, metric] = said
    guarded = stored_frame(bundle, GUARDED)
    for instrument, frame in (("classifier", scores), ("guard", guarded)):
        of = {name: metric for metric in sheet_rubrics() if (name := by_instrument(metric, instrument)) is not None}
        for name, said in ({} if frame is None else read_values(frame, of)).items():
            found[instrument, of[name]] = said
    for name in (JUDGEMENTS, OTHER_JUDGEMENTS):
        frame = stored_frame(bundle, name)
        for (judge,), own in {} if frame is None else frame.partition_by("judge", as_dict=True).items():
            values = read_values(judge_scores(own), judged_by().values())
            for pattern, metric in judged_by().items():
                if metric in values:
                    found[f"judge {judge}", pattern] = {**found.get((f"judge {judge}", pattern), {}), **values[metric]}
    order = list(sheet_rubrics())
    return dict(sorted(found.items(), key=lambda item: (item[0][0] != PATTERN, item[0][0], order.index(item[0][1]))))


def scored(bundle: Bundle) -> pl.DataFrame:
    """`scores.parquet`.

    Raises:
        BundleError: the bundle has none.
    """
    scores = stored_frame(bundle, "scores.parquet")
    if scores is None:
        raise BundleError(
            f"{bundle.root}: holds no scores.parquet; the run is unfinished; run the same command again to finish it"
        )
    return scores


def loaded_labels(bundle: Bundle) -> dict[str, dict[Sample, float | None]]:
    """What the judges say that the matrix rests on, by the judges' metric."""
    frame = stored_frame(bundle, JUDGEMENTS)
    return {} if frame is None or frame.height == 0 else read_values(judge_scores(frame), judged_by().values())


def read_values(scores: pl.DataFrame, metrics: Iterable[str]) -> dict[str, dict[Sample, float | None]]:
    """The values of scores by metric and sample."""
    import polars as pl

    found: dict[str, dict[Sample, float | None]] = {}
    columns = ("base_model", "quant", "task", "sample_id", "metric", "value")
    rows = scores.filter(pl.col("metric").is_in(list(metrics))).select(
        pl.col(name) if name == "value" else pl.col(name).cast(pl.String) for name in columns
    )
    for model, quant, task, sample, metric, value in rows.iter_rows():
        found.setdefault(metric, {})[Sample(CellId(model, quant), SheetPrompt(task, sample))] = value
    return found


Texts = Mapping[Sample, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class LoadedSheet:
    """What a sheet holds.

    Attributes:
        discordant, drawn: rows of either part.
        labelled: rows with a label.
        skipped: rows without one that stand before the last that has one, in the order in which they were written.
    """

    file: Path
    discordant: int
    drawn: int
    labelled: int
    skipped: int

    @property
    def lines(self) -> list[str]:
        rows = self.discordant + self.drawn
        parts = f"{self.discordant} of discordant pairs and then {self.drawn} drawn at random"
        message = f"{self.file}: {count_of(rows, 'row')}, {parts}; {self.labelled} labelled"
        blank = (
            f"{count_of(self.skipped, 'row')} before the last label left blank: taken to be like those labelled beside "
            "them; where they were left out for being hard, label them UNCLEAR"
        )
        return [message, blank] if self.skipped and self.labelled else [message]

    def as_json(self) -> dict[str, object]:
        names = ("discordant", "drawn", "labelled", "skipped")
        return {"file": str(self.file), **{name: getattr(self, name) for name in names}}


def write_sheet(bundle: Bundle, out: Path, rows: int) -> LoadedSheet:
    """Settle what is labelled, and write the sheet; labels that were read before stand in it.

    Raises:
        BundleError: no answers to label, the sheet would lie in the bundle, labels of another sheet were read, or
            `out` is something that this may not write over.
    """
    if out.resolve().is_relative_to(bundle.root.resolve()):
        raise BundleError(f"{out}: lies in the bundle, whose key tells the builds apart; name a file elsewhere")
    seed = statistics_of(bundle)[1]
    texts = all_texts(bundle)
    answers = all_answers(bundle, texts, seed)
    check_overwrite(out, {answer.text for answer in answers}, stored_labels(bundle))
    drawn = draw(answers, rows, seed)
    if not drawn:
        raise BundleError(f"{bundle.root}: holds no answers to label ({', '.join(sheet_rubrics())})")
    table = key_table(drawn)
    if has_labels(bundle) and key_table(stored_design(bundle)).rows != table.rows:
        raise BundleError(
            f"{bundle.path(f'{LABELS}.csv')}: holds the labels of another sheet; ask for as many rows as it had, or "
            "delete it to begin anew"
        )
    bundle.write_table(table)
    given = stored_labels(bundle)
    sheet = sheet_rows(drawn, texts, seed)
    write_whole(out, ("\ufeff" + sheet_text(sheet, given)).encode("utf-8"))
    return counted(out, drawn, [row.id for row in sheet], given)


def check_overwrite(out: Path, ids: Collection[str], taken: Mapping[str, str]) -> None:
    """Refuse to write a sheet over anything but one of the same bundle of which every label was read.

    Args:
        ids: of every text of the bundle that a sheet may hold.
        taken: labels that were read, by id.

    Raises:
        BundleError: naming the file, and what it holds.
    """
    other = "name another file"
    if out.is_symlink() or (out.exists() and not out.is_file()):
        raise BundleError(f"{out}: is {'a symbolic link' if out.is_symlink() else 'not a file'}; {other}")
    if not out.exists():
        return
    try:
        given = [*given_cells(out.read_bytes().decode("utf-8"), str(out))]
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise BundleError(f"{out}: is there already, and is no sheet that was written here; {other}") from error
    strange = next((line for line, name, _ in given if name not in ids), None)
    if strange is not None or not given:
        where = f"row at line {strange} is" if strange else "rows are"
        raise BundleError(f"{out}: is there already, and its {where} not of this bundle; {other}")
    lost = [line for line, name, said in given if said and said.upper().replace(" ", "_") != taken.get(name)]
    if lost:
        raise BundleError(
            f"{out}: holds {count_of(len(lost), 'label')} not read yet, the first at line {lost[0]}; read them first "
            f"(label BUNDLE --read {out.name}), or {other}"
        )


def save_labels(bundle: Bundle, file: Path) -> LoadedSheet:
    """Read a filled-in sheet: `labels.csv`, in the place of what was read before.

    Raises:
        BundleError: no sheet was made of this bundle, or its answers are not those of the sheet.
        DataError: the sheet, by file, line and column; or it has no label.
    """
    seed = statistics_of(bundle)[1]
    drawn = stored_design(bundle)
    rows = sheet_rows(drawn, all_texts(bundle), seed)
    try:
        text = decoded(file.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", file=file, expected="the sheet, as CSV in UTF-8") from error
    labels = read_sheet(text, str(file), rows)
    if not any(labels.values()):
        raise DataError("no row has a label", file=file, field="label", expected="labels in some rows")
    bundle.write_table(Table(LABELS, ("id", "label"), tuple(labels.items())))
    return counted(file, drawn, list(labels), labels)


def counted(file: Path, drawn: tuple[SamplingRecord, ...], order: list[str], labels: Mapping[str, str]) -> LoadedSheet:
    certain = {entry.answer.text for entry in drawn if entry.selected and entry.certain}
    discordant = sum(name in certain for name in order)
    given = [bool(labels.get(name)) for name in order]
    skipped = 0
    for part in (given[:discordant], given[discordant:]):
        last = max((at for at, has in enumerate(part) if has), default=-1)
        skipped += part[: last + 1].count(False)
    return LoadedSheet(file, discordant, len(order) - discordant, sum(given), skipped)


def all_texts(bundle: Bundle) -> dict[Sample, tuple[str, str]]:
    """Prompt and answer of every sample of every build that has a row.

    Raises:
        BundleError: the bundle holds no answers.
    """
    matrix = stored_matrix(bundle) if bundle.path("matrix.csv").exists() else ()
    found: dict[Sample, tuple[str, str]] = {}
    for model in dict.fromkeys(row.base_model for row in matrix):
        path = bundle.path(prompts_file(model))
        if not path.exists():
            continue
        asked = {SheetPrompt(prompt.task, prompt.sample_id): prompt.text for prompt in stored_prompts(bundle, model)}
        for row in matrix:
            answers = responses_path(bundle.root, row.cell)
            if row.base_model == model and answers.exists():
                for response in stored_responses(bundle, row.cell):
                    prompt = SheetPrompt(response.task, response.sample_id)
                    if prompt not in asked:
                        raise BundleError(f"{answers}: {'/'.join(prompt)}: is not among the prompts of {path.name}")
                    found[Sample(row.cell, prompt)] = asked[prompt], answer_of(response).text
    if not found:
        raise BundleError(f"{bundle.root}: holds no prompts and answers to label; it was not made by a run")
    return found


def all_answers(bundle: Bundle, texts: Texts, seed: int) -> list[SheetAnswer]:
    """Every answer that counts in a rate that people can give, but those that are empty."""
    scores = scored(bundle)
    patterns, judged = read_values(scores, sheet_rubrics()), loaded_labels(bundle)
    clusters = cluster_of(scores)
    base = {model: row.cell for model, row in baselines(stored_matrix(bundle)).items()}
    found = []
    for metric, values in patterns.items():
        for sample in sorted(values):
            prompt, answer = texts.get(sample, ("", ""))
            if not answer.strip():
                continue
            judge = judged.get(judged_by().get(metric, ""), {}).get(sample)
            found.append(
                SheetAnswer(
                    cell=sample.cell,
                    baseline=base[sample.cell.base_model],
                    prompt=sample.prompt,
                    metric=metric,
                    cluster=clusters.get(sample.prompt),
                    said=(_said(values[sample]), _said(judge)),
                    text=text_id(seed, sample.prompt.task, metric, prompt, answer),
                )
            )
    return found


def cluster_of(scores: pl.DataFrame) -> dict[SheetPrompt, str]:
    """The cluster of each prompt that is in one."""
    frame = scores.select("task", "sample_id", "cluster").unique().drop_nulls()
    return {SheetPrompt(task, sample): cluster for task, sample, cluster in frame.iter_rows()}


def _said(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def text_id(seed: int, task: str, metric: str, prompt: str, answer: str) -> str:
    """The id of a row: of what the labeller sees and nothing else, so that it tells no build."""
    return keyed(seed, "id", task, metric, prompt, answer)[:16]


def sheet_rows(drawn: tuple[SamplingRecord, ...], texts: Texts, seed: int) -> list[SheetRow]:
    """The rows of the sheet in their order.

    Raises:
        BundleError: an answer is not the one that the key was made of.
    """
    rows: dict[str, SheetRow] = {}
    for entry in drawn:
        answer = entry.answer
        if not entry.selected or answer.text in rows:
            continue
        prompt, text = texts.get(Sample(answer.cell, answer.prompt), ("", ""))
        if text_id(seed, answer.prompt.task, answer.metric, prompt, text) != answer.text:
            where = f"{answer.cell}: {'/'.join(answer.prompt)}"
            raise BundleError(f"{where}: is not the answer that {KEY}.csv was made of; make the sheet again")
        rows[answer.text] = SheetRow(answer.text, answer.prompt.task, answer.metric, prompt, text)
    return [rows[name] for name in row_order(drawn, seed)]
