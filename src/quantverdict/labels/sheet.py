"""The sheet that a person fills in: what is asked, and the CSV out and in.

Prompts and answers are somebody else's text. A cell that a spreadsheet would run as a formula is written with an
apostrophe before it, which reading takes off again; so is one that begins with an apostrophe, or with white space.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from quantverdict.errors import DataError
from quantverdict.records import UNCLEAR, CellId, RubricSpec
from quantverdict.registry import sheet_rubrics

COLUMNS = ("id", "task", "question", "prompt", "answer", "label")
_GUARDED = re.compile(r"""[=+\-@'"\s|%\uff0b\uff0d\uff1d\uff20\x00-\x1f]""")
"""How a text begins that is guarded: formulas, also in full-width signs, and what a spreadsheet would trim or drop."""

_MANGLED = re.compile("\r\n?|\n")
LONGEST = 1 << 24


def asked_of(rubric: RubricSpec) -> str:
    """What a person is asked."""
    return f"{rubric.question} Answer {', '.join(rubric.labels)} or {UNCLEAR}."


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One text to label."""

    id: str
    task: str
    metric: str
    prompt: str
    answer: str


def sheet_text(rows: Sequence[SheetRow], labels: Mapping[str, str]) -> str:
    """The sheet as CSV, RFC 4180, every cell quoted; labels that were given before stand in it."""
    rubrics = sheet_rubrics()
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in rows:
        asked = asked_of(rubrics[row.metric])
        cells = (row.id, row.task, asked, row.prompt, row.answer, labels.get(row.id, ""))
        writer.writerow([guarded(cell) for cell in cells])
    return out.getvalue()


def guarded(text: str) -> str:
    """A text as a cell that no spreadsheet runs; NUL and lone surrogates, which no cell holds, become U+FFFD."""
    return exactly_guarded(re.sub("[\0\ud800-\udfff]", "\ufffd", text))


def exactly_guarded(text: str) -> str:
    """As `guarded`, of which `unguarded` gives every character back."""
    return f"'{text}" if _GUARDED.match(text) else text


def unguarded(cell: str) -> str:
    """`guarded` taken off again."""
    return cell[1:] if cell.startswith("'") and _GUARDED.match(cell[1:]) else cell


def read_sheet(text: str, file: str, rows: Sequence[SheetRow]) -> dict[str, str]:
    """The labels of a filled-in sheet by id, in the sheet's own order; blank where there is none.

    Args:
        text: the file.
        file: its name, for messages.
        rows: what was asked. Rows may be sorted otherwise, or be left out.

    Raises:
        DataError: not a sheet, an id or label that is none, a row given twice, or a prompt or answer that was changed;
            with line and column.
    """
    known = {row.id: row for row in rows}
    found: dict[str, str] = {}
    for line, cells in _records(text, file):
        name = unguarded(cells["id"]).strip()
        row = known.get(name)
        if row is None:
            raise DataError(
                f"unknown id {name[:40]!r}", file=file, line=line, field="id", expected="an id of this bundle's sheet"
            )
        if name in found:
            raise DataError(f"{name} a second time", file=file, line=line, field="id", expected="each row once")
        _refuse_edited(row, cells, file, line)
        found[name] = _label(row, cells["label"], file, line)
    return {row.id: found.get(row.id, "") for row in rows}


def given_cells(text: str, file: str) -> Iterator[tuple[int, str, str]]:
    """(line, id, what a person wrote beside it) of every row of a sheet in which a person wrote.

    Raises:
        DataError: not a sheet.
    """
    for line, cells in _records(text, file):
        written = [cells["label"], *(cell for column, cell in cells.items() if column not in COLUMNS)]
        yield line, unguarded(cells["id"]).strip(), " ".join(filter(None, (unguarded(one).strip() for one in written)))


def _records(text: str, file: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line on which a record begins, cells by column); `;` and tab separate too, as some spreadsheets write them."""
    head = text.lstrip("\ufeff").split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    before = csv.field_size_limit(LONGEST)
    reader = csv.reader(io.StringIO(text.lstrip("\ufeff"), newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for column in ("id", "label"):
            if column not in header:
                raise DataError("missing column", file=file, line=1, field=column, expected=", ".join(COLUMNS))
        start = reader.line_num + 1
        for fields in reader:
            if any(field.strip() for field in fields):
                if len(fields) != len(header):
                    raise DataError(f"{len(fields)} fields", file=file, line=start, expected=str(len(header)))
                yield start, dict(zip(header, fields, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"not valid CSV: {error}", file=file, line=reader.line_num, expected="RFC 4180") from error
    finally:
        csv.field_size_limit(before)


def _refuse_edited(row: SheetRow, cells: Mapping[str, str], file: str, line: int) -> None:
    """A label of another text is none: what was shown must be what is stored."""
    for column, stored in (("prompt", row.prompt), ("answer", row.answer)):
        if column not in cells:
            raise DataError("missing column", file=file, line=1, field=column, expected=", ".join(COLUMNS))
        if _comparable(unguarded(cells[column])) != _comparable(unguarded(guarded(stored))):
            raise DataError("was changed", file=file, line=line, field=column, expected="the text as it was written")


def _comparable(text: str) -> str:
    """Line ends as one, and no white space around: programs that save a sheet change both."""
    return _MANGLED.sub("\n", text).strip()


def _label(row: SheetRow, cell: str, file: str, line: int) -> str:
    label = unguarded(cell).strip().upper().replace(" ", "_")
    known = sheet_rubrics()[row.metric].allowed
    if label and label not in known:
        allowed = ", ".join(known)
        raise DataError(
            f"unknown label {label[:40]!r}", file=file, line=line, field="label", expected=f"{allowed}, or blank"
        )
    return label


# Which answers a person labels: every discordant pair whole, then prompts drawn at random with known probabilities.
#
# A prompt is drawn for all builds of a base model at once, within the baseline's own label. A build that does not
# differ there from its baseline has the same label, so that each build's answers are drawn within build and label; and
# both arms of a pair are drawn together, which is what its difference needs.

AT_LEAST = 4
"""Prompts drawn of each stratum: with fewer, intervals cover less than they say."""

NO_BASELINE = "without a baseline"


class SheetPrompt(NamedTuple):
    """A question, whoever answers it."""

    task: str
    sample_id: str


@dataclass(frozen=True, slots=True)
class SheetAnswer:
    """An answer that can be labelled.

    Attributes:
        baseline: the cell that its own is compared with; its own for a baseline.
        metric: the rate that it counts in.
        cluster: of its prompt, None where it has none.
        said: what each instrument said, as text; blank where it said nothing.
        text: the id of question, prompt and answer: equal texts share it.
    """

    cell: CellId
    baseline: CellId
    prompt: SheetPrompt
    metric: str
    cluster: str | None
    said: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class SamplingRecord:
    """What was settled about an answer before anybody labelled it.

    Attributes:
        stratum: answers of a cell that share it are alike in all that was known.
        certain: its text is on the sheet whatever is drawn.
        selected: it counts where its text is labelled.
        probability: with which it was selected.
    """

    answer: SheetAnswer
    stratum: str
    certain: bool
    selected: bool
    probability: Fraction


def keyed(seed: int, *parts: str) -> str:
    """A hash that nobody makes without the seed: the order of rows and of draws, and the ids of rows."""
    message = "\0".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass")
    return hmac.new(f"labels/{seed}".encode(), message, hashlib.sha256).hexdigest()


def draw(answers: Sequence[SheetAnswer], rows: int, seed: int) -> tuple[SamplingRecord, ...]:
    """Settle what is labelled.

    Args:
        answers: every one that could be.
        rows: about how many rows the random sample gives, besides the discordant pairs.
        seed: of the draws.

    Returns:
        One entry an answer, in their order.
    """
    at = {(answer.cell, answer.prompt, answer.metric): answer for answer in answers}
    certain = set(_discordant_texts(answers, at))
    prompts = _by_prompt([answer for answer in answers if answer.text not in certain], at)
    probability = _chosen(prompts, rows, seed)
    drawn = []
    for answer in answers:
        if answer.text in certain:
            drawn.append(SamplingRecord(answer, f"certain {_told(answer.said)}", True, True, Fraction(1)))
        else:
            stratum = prompts[_group(answer)][answer.prompt].stratum
            chance, chosen = probability[(*_group(answer), stratum)]
            alike = f"{stratum} {_told(answer.said)}" if stratum == NO_BASELINE else stratum
            drawn.append(SamplingRecord(answer, alike, False, answer.prompt in chosen, chance))
    return tuple(drawn)


def row_order(drawn: Iterable[SamplingRecord], seed: int) -> list[str]:
    """The texts of the sheet: those of discordant pairs, then those drawn, each shuffled: no place tells a build."""
    selected = [entry for entry in drawn if entry.selected]
    certain = {entry.answer.text for entry in selected if entry.certain}
    texts = {entry.answer.text for entry in selected}
    return sorted(texts, key=lambda text: (text not in certain, keyed(seed, "row", text)))


@dataclass(slots=True)
class _Prompt:
    stratum: str
    texts: set[str]


_Group = tuple[str, str]


def _group(answer: SheetAnswer) -> _Group:
    return answer.cell.base_model, answer.metric


def _told(said: tuple[str, ...]) -> str:
    return "/".join(value or "ungraded" for value in said)


def _discordant_texts(
    answers: Iterable[SheetAnswer], at: Mapping[tuple[CellId, SheetPrompt, str], SheetAnswer]
) -> Iterable[str]:
    """Both arms of every pair in which an instrument said something else of the build than of its baseline."""
    for answer in answers:
        other = at.get((answer.baseline, answer.prompt, answer.metric))
        if other is not None and other.said != answer.said:
            yield from (answer.text, other.text)


def _by_prompt(
    answers: Iterable[SheetAnswer], at: Mapping[tuple[CellId, SheetPrompt, str], SheetAnswer]
) -> dict[_Group, dict[SheetPrompt, _Prompt]]:
    """The prompts that are drawn from, with the texts that drawing each would put on the sheet."""
    found: dict[_Group, dict[SheetPrompt, _Prompt]] = defaultdict(dict)
    for answer in answers:
        base = at.get((answer.baseline, answer.prompt, answer.metric))
        stratum = NO_BASELINE if base is None else _told(base.said)
        entry = found[_group(answer)].setdefault(answer.prompt, _Prompt(stratum, set()))
        entry.texts.add(answer.text)
    return found


def _chosen(
    prompts: Mapping[_Group, Mapping[SheetPrompt, _Prompt]], rows: int, seed: int
) -> dict[tuple[str, str, str], tuple[Fraction, set[SheetPrompt]]]:
    """By base model, metric and stratum: the share that is drawn, and the prompts that are.

    A prompt has one random number for all base models, so that texts that models share are drawn together.
    """
    every = sum(len(prompt.texts) for group in prompts.values() for prompt in group.values())
    rate = min(Fraction(1), Fraction(rows, every)) if every else Fraction(1)
    chosen = {}
    for group, members in prompts.items():
        sizes = Counter(prompt.stratum for prompt in members.values())
        for stratum, size in sizes.items():
            wanted = min(size, max(AT_LEAST, round(rate * size)))
            mine = [prompt for prompt, entry in members.items() if entry.stratum == stratum]
            first = sorted(mine, key=lambda prompt: keyed(seed, "draw", *prompt))[:wanted]
            chosen[*group, stratum] = Fraction(wanted, size), set(first)
    return chosen
