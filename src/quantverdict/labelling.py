"""A sheet for people to label, made from a bundle, and read back into it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from quantverdict.collect.files import write_whole
from quantverdict.collect.manifest import Bundle
from quantverdict.collect.prompts import prompts_file, read_prompts
from quantverdict.collect.store import read_responses, responses_path
from quantverdict.errors import BundleError, DataError
from quantverdict.facts import statistics_of
from quantverdict.grading.answer import answer_of
from quantverdict.labelled import (
    KEY,
    LABELS,
    has_labels,
    key_table,
    loaded_labels,
    read_values,
    scored,
    stored_design,
    stored_labels,
)
from quantverdict.matrix.columns import baselines, read_matrix
from quantverdict.matrix.human import JUDGED, Sample
from quantverdict.matrix.label_design import Answered, Drawn, Prompted, draw, keyed, row_order
from quantverdict.matrix.label_sheet import RUBRICS, SheetRow, given_cells, read_sheet, sheet_text
from quantverdict.records import Table
from quantverdict.yaml_file import decoded

Texts = Mapping[Sample, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Sheet:
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
        told = f"{self.file}: {rows} rows, {parts}; {self.labelled} labelled"
        blank = (
            f"{self.skipped} rows before the last label are blank: they are taken to be like those labelled beside "
            "them; where they were left out for being hard, label them UNCLEAR"
        )
        return [told, blank] if self.skipped and self.labelled else [told]

    def as_json(self) -> dict[str, object]:
        names = ("discordant", "drawn", "labelled", "skipped")
        return {"file": str(self.file), **{name: getattr(self, name) for name in names}}


def write_sheet(bundle: Bundle, out: Path, rows: int) -> Sheet:
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
    refuse_overwriting(out, {answer.text for answer in answers}, stored_labels(bundle))
    drawn = draw(answers, rows, seed)
    if not drawn:
        raise BundleError(f"{bundle.root}: holds no answers to label ({', '.join(RUBRICS)})")
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


def refuse_overwriting(out: Path, ids: Collection[str], taken: Mapping[str, str]) -> None:
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
            f"{out}: holds {len(lost)} labels that were not read yet, the first at line {lost[0]}; read them first "
            f"(label BUNDLE --read {out.name}), or {other}"
        )


def keep_labels(bundle: Bundle, file: Path) -> Sheet:
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


def counted(file: Path, drawn: tuple[Drawn, ...], order: list[str], labels: Mapping[str, str]) -> Sheet:
    certain = {entry.answer.text for entry in drawn if entry.selected and entry.certain}
    discordant = sum(name in certain for name in order)
    given = [bool(labels.get(name)) for name in order]
    skipped = 0
    for part in (given[:discordant], given[discordant:]):
        last = max((at for at, has in enumerate(part) if has), default=-1)
        skipped += part[: last + 1].count(False)
    return Sheet(file, discordant, len(order) - discordant, sum(given), skipped)


def all_texts(bundle: Bundle) -> dict[Sample, tuple[str, str]]:
    """Prompt and answer of every sample of every build that has a row.

    Raises:
        BundleError: the bundle holds no answers.
    """
    matrix = read_matrix(bundle.path("matrix.csv")) if bundle.path("matrix.csv").exists() else ()
    found: dict[Sample, tuple[str, str]] = {}
    for model in dict.fromkeys(row.base_model for row in matrix):
        path = bundle.path(prompts_file(model))
        if not path.exists():
            continue
        asked = {Prompted(prompt.task, prompt.sample_id): prompt.text for prompt in read_prompts(path)}
        for row in matrix:
            answers = responses_path(bundle.root, row.cell)
            if row.base_model == model and answers.exists():
                for response in read_responses(answers):
                    prompt = Prompted(response.task, response.sample_id)
                    if prompt not in asked:
                        raise BundleError(f"{answers}: {'/'.join(prompt)}: is not among the prompts of {path.name}")
                    found[Sample(row.cell, prompt)] = asked[prompt], answer_of(response).text
    if not found:
        raise BundleError(f"{bundle.root}: holds no prompts and answers to label; it was not made by a run")
    return found


def all_answers(bundle: Bundle, texts: Texts, seed: int) -> list[Answered]:
    """Every answer that counts in a rate that people can give, but those that are empty."""
    scores = scored(bundle)
    patterns, judged = read_values(scores, RUBRICS), loaded_labels(bundle)
    clusters = cluster_of(bundle)
    base = {model: row.cell for model, row in baselines(read_matrix(bundle.path("matrix.csv"))).items()}
    found = []
    for metric, values in patterns.items():
        for sample in sorted(values):
            prompt, answer = texts.get(sample, ("", ""))
            if not answer.strip():
                continue
            judge = judged.get(JUDGED.get(metric, ""), {}).get(sample)
            found.append(
                Answered(
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


def cluster_of(bundle: Bundle) -> dict[Prompted, str]:
    """The cluster of each prompt that is in one."""
    frame = scored(bundle).select("task", "sample_id", "cluster").unique().drop_nulls()
    return {Prompted(task, sample): cluster for task, sample, cluster in frame.iter_rows()}


def _said(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def text_id(seed: int, task: str, metric: str, prompt: str, answer: str) -> str:
    """The id of a row: of what the labeller sees and nothing else, so that it tells no build."""
    return keyed(seed, "id", task, metric, prompt, answer)[:16]


def sheet_rows(drawn: tuple[Drawn, ...], texts: Texts, seed: int) -> list[SheetRow]:
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
