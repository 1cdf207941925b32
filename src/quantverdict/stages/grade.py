"""Any instrument on answers in a file of the user's own: labels, and how far they agree with those of people.

A CSV, JSONL or Parquet file of prompts and answers comes in; a label a row goes out, and where a column has people's
labels, the agreement with them. The graders are those of a run, and so is the step before them (`grading.answer`).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from quantverdict.bundle.files import json_line, write_whole
from quantverdict.errors import DataError, StudyError, count_of, did_you_mean, one_of
from quantverdict.grading.answer import answer_of
from quantverdict.grading.grade import grade_sample
from quantverdict.grading.instruments import (
    COUNTS,
    PatternInstrument,
    RefusalInstrument,
    SequenceClassifier,
    ShippedClassifier,
    find_classifier,
)
from quantverdict.instruments import CLASSIFIER_PRESETS, ClassifierConfig, JudgeConfig
from quantverdict.judges.guards import GUARDS
from quantverdict.judges.rubrics import Question, Rubric, load_rubric
from quantverdict.labels.compared import NO_CHOICE, Comparison, compared
from quantverdict.labels.sheet import exactly_guarded
from quantverdict.records import UNCLEAR, Response
from quantverdict.registry import DEFAULT_INSTRUMENT, RUBRICS
from quantverdict.reporting.formats import NOT_MEASURED, fixed, interval
from quantverdict.tasks.catalog import Item, Task
from quantverdict.yaml_file import decoded, load_yaml

ROLES = ("prompt", "answer", "choices", "reference", "incorrect", "stereotype")
"""What a column may be: the last two are the false answers of truth, and the stereotyped choice of bias."""
SUFFIXES = (".csv", ".jsonl", ".parquet")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Kind(NamedTuple):
    """What answers may be graded as.

    Attributes:
        needs: roles that every row must have.
        labels: what may be said of an answer, and what it counts; None counts nowhere. Empty where it is a choice.
        also: other words for these labels, in people's columns.
        own: the instruments that need no model.
        rubric: of the judges; empty where none judges such answers.
    """

    needs: tuple[str, ...]
    labels: Mapping[str, float | None]
    also: Mapping[str, str]
    own: tuple[str, ...]
    rubric: str


KINDS: dict[str, Kind] = {
    "refusal": Kind(
        ("prompt", "answer"),
        COUNTS,
        {"full_refusal": "full", "partial_refusal": "partial", "compliance": "none", "refusal": "full",
         "refused": "full", "refuses": "full", "hard": "full", "soft": "full", "answered": "none",
         "complied": "none", "1": "full", "1.0": "full", "true": "full", "yes": "full", "0": "none",
         "0.0": "none", "false": "none", "no": "none"},
        ("pattern", "classifier", *CLASSIFIER_PRESETS),
        "refusal",
    ),
    "choice": Kind(("answer", "choices"), {}, {}, ("tolerant", "exact"), ""),
    "truth": Kind(
        ("answer", "reference", "incorrect"),
        {"true": 1.0, "partly": 0.5, "false": 0.0, "unclear": None},
        {"truthful": "true", "partially_truthful": "partly", "untruthful": "false", "1": "true", "1.0": "true",
         "0.5": "partly", "0": "false", "0.0": "false", "yes": "true", "no": "false"},
        ("pattern",),
        "truthfulness",
    ),
    "bias": Kind(
        ("answer", "choices", "stereotype"),
        {"unbiased": 1.0, "biased": 0.0, "unclear": None},
        {"1": "unbiased", "1.0": "unbiased", "0": "biased", "0.0": "biased", "true": "unbiased", "false": "biased"},
        ("pattern",),
        "bias",
    ),
}  # fmt: skip


class Row(NamedTuple):
    """A row of the file: its number there, and what it has."""

    number: int
    fields: Mapping[str, object]


class GradedRow(NamedTuple):
    """What an instrument says of a row, and what a person does (None where that is blank)."""

    row: int
    label: str
    reason: str
    person: str | None


@dataclass(frozen=True, slots=True)
class GradedFile:
    """The labels of a file.

    Attributes:
        kind: what its answers were graded as.
        instrument: by its name.
        identity: all that a label depends on besides prompt and answer.
        rows: in the order of the file.
        label_column: of people's labels; None where none was named.
    """

    file: Path
    kind: str
    instrument: str
    identity: Mapping[str, Any]
    rows: tuple[GradedRow, ...]
    label_column: str | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How often each label was given, in the order of the labels."""
        found = Counter(one.label for one in self.rows)
        order = (*KINDS[self.kind].labels, *sorted(found))
        return {label: found[label] for label in dict.fromkeys(order) if found[label]}

    @property
    def agreement(self) -> Comparison | None:
        """How far it agrees with people; None where no label is theirs."""
        pairs = [(one.person, one.label) for one in self.rows if one.person is not None]
        kind = KINDS[self.kind]
        counted = [(_counted(kind, person), _counted(kind, said)) for person, said in pairs]
        return compared(counted, choices=not kind.labels) if pairs else None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        agreement = self.agreement
        return {
            "file": str(self.file),
            "as": self.kind,
            "instrument": self.instrument,
            "identity": dict(self.identity),
            "n": len(self.rows),
            "counts": self.counts,
            "agreement": None if agreement is None else {"column": self.label_column, **agreement.as_json()},
            "rows": [one._asdict() for one in self.rows],
        }

    @property
    def lines(self) -> list[str]:
        """For a person: what was found, and where no labels of theirs are compared, a line a row."""
        counts = ", ".join(f"{label} {count}" for label, count in self.counts.items())
        first = (
            f"{self.file}: {count_of(len(self.rows), 'answer')} graded as {self.kind} by {self.instrument}: {counts}"
        )
        agreement = self.agreement
        if agreement is not None:
            return [first, *(f"  {line}" for line in _compared_lines(agreement, self.label_column or ""))]
        width = max((len(str(one.row)) for one in self.rows), default=1)
        reasons = (f"  ({one.reason})" if one.reason else "" for one in self.rows)
        return [first, *(f"{one.row:>{width}}  {one.label}{why}" for one, why in zip(self.rows, reasons, strict=True))]


def _compared_lines(compared: Comparison, column: str) -> Iterator[str]:
    found = compared.found
    yield f"against {count_of(found.n, 'label')} in {column}"
    raw, kappa = found.agreement_interval, found.kappa_interval
    if found.agreement is not None and raw is not None:
        yield f"agreement    {fixed(found.agreement, 3)} {interval(raw.lo, raw.hi, 3)}"
    if found.kappa is None or kappa is None:
        yield f"kappa        not defined: {found.reason}"
    else:
        yield f"kappa        {fixed(found.kappa, 3)} {interval(kappa.lo, kappa.hi, 3)}"
    for name, share in (("sensitivity", compared.sensitivity), ("specificity", compared.specificity)):
        around = share.interval
        figure = NOT_MEASURED
        if around is not None:
            figure = f"{fixed(share.k / share.n, 3)} {interval(around.lo, around.hi, 3)} ({share.k} of {share.n})"
        yield f"{name}  {figure}"


def _counted(kind: Kind, label: str) -> str:
    """What a label counts: 1, less, or nowhere; of choices the label itself."""
    if not kind.labels:
        return label
    value = kind.labels.get(label)
    return "nowhere" if value is None else "1" if value == 1 else "0"


def grade_file(
    file: Path,
    kind: str,
    *,
    instrument: str | None = None,
    label: str | None = None,
    columns: Mapping[str, str] | None = None,
    out: Path | None = None,
) -> GradedFile:
    """Grade the answers in a file.

    Args:
        kind: a name of `KINDS`.
        instrument: one of the kind's own; or a YAML file with the keys of a classifier, or of a judge or guard.
        label: the column of people's labels.
        columns: role to column, where that has another name than the role.
        out: a CSV or JSONL file to write: every row with `graded_label` and `graded_reason`.

    Raises:
        DataError: the file, by row and column: what is missing, is no row, or has no such label.
        StudyError: no such kind, instrument or role.
        EngineError: a model cannot be loaded or asked.
    """
    if kind not in KINDS:
        raise StudyError(f"answers cannot be graded as {kind!r}", field="--as", expected=one_of(kind, KINDS))
    for role in columns or {}:
        if role not in ROLES:
            raise StudyError(f"no role {role!r}", field="--column", expected=one_of(role, ROLES))
    if out is not None and out.suffix.lower() not in SUFFIXES[:2]:
        raise StudyError(f"cannot write {out.name}", field="--out", expected="a file that ends in .csv or .jsonl")
    spec = KINDS[kind]
    reader = _reader(kind, instrument)
    rows = list(read_rows(file))
    named = _columns(file, rows, spec, dict(columns or {}), label)
    people = [_person(file, spec, row, label) for row in rows]
    said = reader.read([_texts(file, row, named, spec.needs) for row in rows])
    graded = tuple(
        GradedRow(row.number, found, reason, person)
        for row, (found, reason), person in zip(rows, said, people, strict=True)
    )
    result = GradedFile(file, kind, reader.name, reader.identity, graded, label)
    if out is not None:
        _write(out, rows, graded)
    return result


def named_columns(given: Sequence[str]) -> dict[str, str]:
    """Columns as a command line gives them: ROLE=NAME.

    Raises:
        StudyError: one is not of that form.
    """
    for text in given:
        if not all(text.partition("=")):
            expected = "ROLE=NAME, such as answer=output"
            raise StudyError(f"{text!r:.60} names no column", field="--column", expected=expected)
    return {role: name for role, _, name in (text.partition("=") for text in given)}


# Rows


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a file with the number of each: a line of JSONL, a row of a table from 1.

    Raises:
        DataError: it cannot be read, or a row is none.
    """
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            "is of no format that is read", file=file, expected=f"a file that ends in {', '.join(SUFFIXES)}"
        )
    if not file.is_file():
        raise DataError("is not there", file=file)
    if suffix == ".parquet":
        yield from _parquet(file)
        return
    text = _text(file)
    yield from (_csv if suffix == ".csv" else _jsonl)(file, text)


def _text(file: Path) -> str:
    try:
        return decoded(file.read_bytes())
    except (OSError, UnicodeError) as error:
        raise DataError(f"cannot be read ({error})", file=file, expected="UTF-8 text") from error


def _jsonl(file: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"is no JSON ({error})", file=file, line=number, expected="an object a line") from error
        if not isinstance(fields, dict):
            raise DataError("is no object", file=file, line=number, expected="an object a line")
        yield Row(number, fields)


def _csv(file: Path, text: str) -> Iterator[Row]:
    try:
        table = csv.DictReader(io.StringIO(text), strict=True)
        for number, fields in enumerate(table, start=1):
            if None in fields or None in fields.values():
                expected = f"{len(table.fieldnames or ())}, as in the header"
                raise DataError(f"row {number} has another number of cells", file=file, expected=expected)
            yield Row(number, dict(fields))
    except csv.Error as error:
        raise DataError(f"is no CSV ({error})", file=file) from error


def _parquet(file: Path) -> Iterator[Row]:
    import polars as pl

    try:
        frame = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"cannot be read ({' '.join(str(error).split())[:100]})", file=file) from error
    yield from (Row(number, fields) for number, fields in enumerate(frame.iter_rows(named=True), start=1))


def _columns(file: Path, rows: Sequence[Row], kind: Kind, given: dict[str, str], label: str | None) -> dict[str, str]:
    """The column of each role that the file has."""
    if not rows:
        raise DataError("holds no rows", file=file)
    there = list(dict.fromkeys(name for row in rows for name in row.fields))
    for role in kind.needs:
        given.setdefault(role, role)
    for role, name in given.items():
        if name not in there:
            how = f"; name another one with --column {role}=NAME" if name == role else ""
            raise DataError(f"no column {name}", file=file, field=role, expected=f"{one_of(name, there)}{how}")
    if label is not None and label not in there:
        raise DataError(f"no column {label}", file=file, field="--label", expected=one_of(label, there))
    optional = {role: role for role in ROLES if role in there and role not in given}
    return {**optional, **given}


def _texts(file: Path, row: Row, named: Mapping[str, str], needs: Sequence[str]) -> dict[str, Any]:
    """What a row has for each role: texts; of `choices` and `incorrect` a list of them."""
    found: dict[str, Any] = {"number": row.number, "file": file}
    for role, column in named.items():
        value = row.fields.get(column)
        if value is None and role not in needs:
            continue
        many = role in ("choices", "incorrect") or (role == "reference" and isinstance(value, list))
        if value is None or (not isinstance(value, list | tuple) and isinstance(value, bool)):
            raise DataError(f"row {row.number} has no {column}", file=file, field=role, expected="a text")
        found[role] = _listed(value) if many else str(value)
    return found


def _listed(value: object) -> list[str]:
    """A list as it is, as JSON, or as texts between `|`."""
    if isinstance(value, list | tuple):
        return [str(one) for one in value]
    text = str(value).strip()
    if text.startswith("["):
        try:
            return [str(one) for one in json.loads(text)]
        except (ValueError, TypeError, RecursionError):
            pass
    return [part.strip() for part in text.split("|")]


def _person(file: Path, kind: Kind, row: Row, column: str | None) -> str | None:
    """A person's label as one of the kind's; None where it is blank.

    Raises:
        DataError: it is none of them.
    """
    value = None if column is None else row.fields.get(column)
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    if not kind.labels:
        return NO_CHOICE if text.lower() in (NO_CHOICE, "-") else text
    word = text.lower().replace(" ", "_").replace("-", "_")
    word = kind.also.get(word, word)
    if word not in kind.labels:
        near = did_you_mean(text, (*kind.labels, *kind.also))
        expected = f"one of {', '.join(kind.labels)}{near}"
        raise DataError(f"row {row.number}: no label {text[:40]!r}", file=file, field=column, expected=expected)
    return word


def _write(out: Path, rows: Sequence[Row], graded: Sequence[GradedRow]) -> None:
    """Every row with what was said of it."""
    filled = [{**row.fields, "graded_label": one.label, "graded_reason": one.reason}
              for row, one in zip(rows, graded, strict=True)]  # fmt: skip
    if out.suffix.lower() == ".jsonl":
        write_whole(out, b"".join(map(json_line, filled)))
        return
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in filled for name in row)), lineterminator="\n")
    table.writeheader()
    for row in filled:
        # A spreadsheet would run what begins as a formula.
        table.writerow({name: exactly_guarded(cell) if isinstance(cell, str) else json.dumps(cell)
                        for name, cell in row.items()})  # fmt: skip
    write_whole(out, text.getvalue().encode())


# Instruments


class Reader(NamedTuple):
    """An instrument with its name: what it says of each row, and why where it says nothing."""

    name: str
    identity: Mapping[str, Any]
    read: Callable[[Sequence[Mapping[str, Any]]], list[tuple[str, str]]]


def _reader(kind: str, instrument: str | None) -> Reader:
    """The instrument by a name of the kind's own, or from a YAML file.

    Raises:
        StudyError: neither.
    """
    spec = KINDS[kind]
    name = instrument or (DEFAULT_INSTRUMENT if kind == "refusal" else spec.own[0])
    file = Path(name)
    if file.suffix.lower() in (".yaml", ".yml"):
        if not file.is_file():
            raise StudyError("is not there", file=file, field="--instrument", expected="a judge's or classifier's file")
        return _from_file(file, kind)
    if name not in spec.own:
        expected = f"{one_of(name, spec.own)}, or the YAML file of a judge, a guard or a classifier"
        raise StudyError(f"no instrument {name!r} of {kind}", field="--instrument", expected=expected)
    if kind != "refusal":
        return Reader(name, {"instrument": name}, lambda rows: [_scored(kind, name, row) for row in rows])
    own: dict[str, RefusalInstrument] = {"pattern": PatternInstrument(), "classifier": ShippedClassifier()}
    return _refusals(name, own.get(name) or _classifier(ClassifierConfig(preset=name), Path()))


def _from_file(file: Path, kind: str) -> Reader:
    """A judge, a guard or a classifier by the keys that its file has."""
    if re.search(r"^model:", _text(file), re.MULTILINE):
        judge = load_yaml(file, JudgeConfig)
        if not judge.engine or not KINDS[kind].rubric or (judge.guard and kind != "refusal"):
            problem = "cannot run" if not judge.engine else f"says nothing of {kind}"
            raise StudyError(problem, file=file, field="--instrument", expected="a judge that can run and labels this")
        return _asked(judge, file.parent, kind)
    config = load_yaml(file, ClassifierConfig)
    if kind != "refusal":
        raise StudyError("is a classifier of refusals", file=file, field="--instrument", expected="--as refusal")
    return _refusals(str(config.place), _classifier(config, file.parent))


def _classifier(config: ClassifierConfig, folder: Path) -> RefusalInstrument:
    found = find_classifier(config, folder)
    assert found is not None
    return SequenceClassifier(found)


def _refusals(name: str, instrument: RefusalInstrument) -> Reader:
    def read(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        answers = [answer_of(_response(row)) for row in rows]
        readings = instrument.read([(row["prompt"], one.content) for row, one in zip(rows, answers, strict=True)])
        return [("unclear", one.reason) if one.reason else (found.label, "")
                for one, found in zip(answers, readings, strict=True)]  # fmt: skip

    return Reader(name, instrument.identity, read)


def _asked(judge: JudgeConfig, folder: Path, kind: str) -> Reader:
    """A judge or a guard: loaded now, asked of all rows, and closed."""
    from quantverdict.stages.judge import ask_questions, open_judge_model

    model = open_judge_model(judge, folder)
    rubric = load_rubric(KINDS[kind].rubric) if judge.guard is None else GUARDS[judge.guard].rubric

    def read(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        questions = [Question(rubric, row.get("prompt", ""), answer_of(_response(row)).text) for row in rows]
        try:
            said = ask_questions(model, judge, [one for one in questions if one.answer.strip()])
        finally:
            model.label_model.close()
        found = (said.get(one.key) for one in questions)
        return [("unclear", "the answer is empty") if one is None
                else ("unclear", one.reason) if one.label is None
                else (_word(kind, rubric, one.label), "") for one in found]  # fmt: skip

    return Reader(judge.name, dict(model.identity), read)


def _word(kind: str, rubric: Rubric, label: str) -> str:
    """A judge's label as one of the kind's."""
    spec = KINDS[kind]
    if label == UNCLEAR or label in spec.labels:
        return label.lower()
    counts = RUBRICS[rubric.name].labels[label]
    return spec.also.get(label.lower()) or next(word for word, value in spec.labels.items() if value == counts)


# The scorers of choices, truth and bias, asked of one row as of an item of a task


def _response(row: Mapping[str, Any]) -> Response:
    return Response("", "", "", str(row["number"]), "", row["answer"], "stop", 0, 0)


def _scored(kind: str, instrument: str, row: Mapping[str, Any]) -> tuple[str, str]:
    """The label of a row by the scorer of its kind, and why there is none."""
    if kind == "choice":
        return _choice(row, f"choice_accuracy{'_rescored' if instrument == 'tolerant' else ''}")
    fields = _truth_fields(row) if kind == "truth" else _bias_fields(row)
    task_type, metric = {
        "truth": ("safety_truthfulness", "truthfulness"), "bias": ("safety_bias", "bias_resistance"),
    }[kind]  # fmt: skip
    value, reason = _grade(task_type, fields, row, metric)
    return next(label for label, counts in KINDS[kind].labels.items() if counts == value), reason


def _choice(row: Mapping[str, Any], metric: str) -> tuple[str, str]:
    """The letter that an answer chooses: the one as whose reference it would be right."""
    options = {f"option_{LETTERS[at].lower()}": text for at, text in enumerate(row["choices"][: len(LETTERS)])}
    for letter in LETTERS[: len(options)]:
        value, _ = _grade("classification", {**options, "reference": letter}, row, metric)
        if value == 1:
            return letter, ""
    return NO_CHOICE, "no choice can be read from the answer"


def _truth_fields(row: Mapping[str, Any]) -> dict[str, object]:
    reference = row["reference"]
    correct = reference if isinstance(reference, list) else _listed(reference)
    return {"correct_answers": correct, "incorrect_answers": row["incorrect"]}


def _bias_fields(row: Mapping[str, Any]) -> dict[str, object]:
    choices = row["choices"]
    fields: dict[str, object] = {f"answer_choice_{at}": text for at, text in enumerate(choices)}
    fields["stereotyped_idx"] = _which(row, "stereotype", choices)
    if "reference" in row:
        fields["correct_label"] = _which(row, "reference", choices)
    return fields


def _which(row: Mapping[str, Any], role: str, choices: Sequence[str]) -> int:
    """The index of a choice that is named by its text, its letter or its number from 0."""
    text = str(row[role]).strip()
    if text in choices:
        return choices.index(text)
    letters = LETTERS[: len(choices)]
    if len(text) == 1 and text.upper() in letters:
        return letters.index(text.upper())
    if text.isdecimal() and int(text) < len(choices):
        return int(text)
    expected = f"one of its choices: {', '.join(choices)}{did_you_mean(text, choices)}"
    raise DataError(f"row {row['number']}: no choice {text[:40]!r}", file=row["file"], field=role, expected=expected)


def _grade(task_type: str, fields: dict[str, object], row: Mapping[str, Any], metric: str) -> tuple[float | None, str]:
    """A metric of an answer, as if it were to an item of a task."""
    accuracy = "choice_accuracy" if task_type == "classification" else None
    item = Item(str(row["number"]), fields)
    task = Task("file", task_type, "", "", (), (item,), "", accuracy, None, str(row["file"]))
    found = next(score for score in grade_sample(task, item, _response(row)) if score.metric == metric)
    return found.value, found.reason
