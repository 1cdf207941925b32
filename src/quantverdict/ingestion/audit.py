"""Scored samples and judgements from files: hashes checked first, every row loaded or counted with its reason."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from quantverdict.bundle.files import sha256_of
from quantverdict.bundle.frames import unreadable
from quantverdict.bundle.sources import ScoreSource, Sources, format_of
from quantverdict.errors import DataError
from quantverdict.ingestion.matching import HASHES, OTHER_ROWS, SAMPLE, AllowedValues, Matcher, raise_broken
from quantverdict.ingestion.pairing import Pairing, pair
from quantverdict.ingestion.rows import InvalidRow, RowFields, read_blocks, texts_at
from quantverdict.records import Table
from quantverdict.yaml_file import unread

if TYPE_CHECKING:
    import polars as pl

AT_ONCE = 2
"""Files read at the same time; each holds a block of its own in memory."""

SCORE_COLUMNS = (*SAMPLE, "metric", "value", "cluster", "reason")
JUDGEMENT_COLUMNS = (*SAMPLE, "judge", "label", "reason")
ANSWER_COLUMNS = (*SAMPLE, "text", "output_tokens")


@dataclass(frozen=True, slots=True)
class SourceAudit:
    """What became of a source's rows; `raw` is the sum of the other counts.

    Attributes:
        loaded: rows that take part.
        superseded: judged by a source that comes first.
        quarantined: broken rows that were set aside.
        unmatched: rows that belong to no cell, by reason.
    """

    label: str
    role: str
    path: str
    sha256: str
    bytes: int
    raw: int
    loaded: int
    superseded: int
    quarantined: int
    unmatched: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What the sources hold; names are categories.

    Attributes:
        scores: columns of `records.Score`; value null is ungraded.
        judgements: columns of `records.Judgement`, one a sample: the first source that has a label wins.
        other_judgements: of the second judges, and those that were superseded; one a sample and judge.
        answers: text (and tokens, where they are known) of the tasks that were asked for, one a sample.
        pairings: of the cells that have samples with their baselines'.
        audits: in the order of the sources.
        quarantine: broken rows that were set aside, with their source's label.
    """

    sources: Sources
    scores: pl.DataFrame
    judgements: pl.DataFrame
    other_judgements: pl.DataFrame
    answers: pl.DataFrame
    pairings: tuple[Pairing, ...]
    audits: tuple[SourceAudit, ...]
    quarantine: tuple[tuple[str, InvalidRow], ...]


@dataclass(slots=True)
class _LoadedSource:
    """One source while it is read; `frame` has the columns of its role and `line`."""

    source: ScoreSource
    path: Path
    wanted: RowFields
    frame: pl.DataFrame = field(init=False)
    answers: pl.DataFrame | None = None
    raw: int = 0
    unmatched: Counter[str] = field(default_factory=Counter)
    broken: list[InvalidRow] = field(default_factory=list)
    superseded: int = 0

    @property
    def form(self) -> str:
        return format_of(self.source) or ""


def load_sources(
    sources: Sources,
    *,
    quarantine: bool = False,
    answers_of: Sequence[str] = (),
    metrics: Mapping[str, AllowedValues] = MappingProxyType({}),
) -> IngestSummary:
    """Read every source that is named. Writes nothing.

    Args:
        quarantine: set broken rows aside, instead of refusing the first.
        answers_of: the tasks whose answers are kept, where a source has them.
        metrics: every metric there is, and what its values can be; empty: any metric, any number.

    Raises:
        DataError: a file is missing or has another hash (before any row is read), or a row is broken, by file and line.
    """
    files = [sources.folder / source.path for source in sources.sources]
    matchers = [Matcher(source, sources, answers_of, metrics) for source in sources.sources]
    # Whatever fails, the first source that does is named: results come in the order of the sources.
    with ThreadPoolExecutor(AT_ONCE) as pool:
        deque(pool.map(check_hash, files, [source.sha256 for source in sources.sources]), maxlen=0)
        check_readable(files, sources, [matcher.wanted for matcher in matchers])
        loaded = list(pool.map(_load, files, matchers, repeat(quarantine)))
    pairings = pair(sources, loaded)
    for one in loaded:  # what they were paired by is no longer needed, and is much of what is held
        one.frame = one.frame.drop(HASHES, strict=False)
    scores = _join([one for one in loaded if not one.source.is_judge], SCORE_COLUMNS, quarantine)
    by_label = {one.source.label: one for one in loaded}
    judgements, superseded = _first_label_wins([by_label[label] for label in sources.precedence()])
    second = _join([one for one in loaded if one.source.role == "second_judge"], JUDGEMENT_COLUMNS, quarantine)
    return IngestSummary(
        sources=sources,
        scores=scores,
        judgements=judgements,
        other_judgements=_once(JUDGEMENT_COLUMNS, [*SAMPLE, "judge"], [second, superseded]),
        answers=_once(ANSWER_COLUMNS, [*SAMPLE], [one.answers for one in loaded if one.answers is not None]),
        pairings=pairings,
        audits=tuple(_audit(one) for one in loaded),
        quarantine=tuple((one.source.label, broken) for one in loaded for broken in sorted_by_line(one.broken)),
    )


def check_hash(path: Path, expected: str) -> None:
    """Refuse a file whose sha256 is another one; and a pipe or a device, of which there may be no end to wait for.

    Raises:
        DataError: naming the file and both hashes.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError("is a pipe or a device", file=path, expected="a file")
        found = sha256_of(path)
    except (OSError, ValueError) as error:  # a ValueError where no file can have that name
        raise DataError(f"cannot be read ({unread(error)})", file=path) from error
    if found != expected:
        raise DataError(
            f"sha256 is {found}: not the file that was meant; nothing was loaded", file=path, expected=expected
        )


def check_readable(files: Sequence[Path], sources: Sources, wanted: Sequence[RowFields]) -> None:
    """Refuse a Parquet file that its parser breaks down over, which would end this process too.

    Raises:
        DataError: naming the first.
    """
    frames = [file for file, source in zip(files, sources.sources, strict=True) if format_of(source) == "parquet"]
    columns = {column for one in wanted for column in (*one.texts.values(), *one.numbers.values())}
    for file, why in unreadable(frames, sorted(columns)).items():
        raise DataError(f"cannot be read ({why})", file=file, expected="Parquet")


def _load(path: Path, matcher: Matcher, quarantine: bool) -> _LoadedSource:
    import polars as pl

    one = _LoadedSource(matcher.source, path, matcher.wanted)
    frames, answers = list[pl.DataFrame](), list[pl.DataFrame]()
    for block in read_blocks(path, one.form, one.wanted):
        matched = matcher.match(block)
        broken = sorted_by_line([*block.broken, *matched.broken])
        if broken and not quarantine:
            raise_broken(path, broken[0])
        one.raw += block.raw
        one.broken += broken
        one.unmatched += matched.unmatched
        frames.append(matched.frame)
        answers += [] if matched.answers is None else [matched.answers]
    if not one.raw:
        raise DataError("has no rows", file=path, expected="at least one")
    matcher.check_rows_left(path)
    matcher.check_columns_filled(path)
    one.frame = pl.concat(frames or [matcher.empty()])
    one.answers = pl.concat(answers) if answers else None
    key = [*SAMPLE] if matcher.source.is_judge else [*SAMPLE, "metric"]
    rows = matcher.one_a_row(one.frame)
    _drop_repeats(one, rows.filter(repeated(rows, key)), "given twice in this file", quarantine)
    return one


def _drop_repeats(one: _LoadedSource, again: pl.DataFrame, reason: str, quarantine: bool) -> None:
    """Set aside the rows of which a sample was there before; a row goes with all its scores."""
    import polars as pl

    if not again.height:
        return
    rows = as_text(again).unique("line", keep="first").sort("line")
    found_by = {
        line: f"sample {'/'.join(sample)} is {reason}" for line, *sample in rows.select("line", *SAMPLE).iter_rows()
    }
    if not quarantine:
        line = rows["line"][0]
        raise_broken(one.path, InvalidRow(line, found_by[line], ""))
    # Which rows are repeats is known when the whole file is read, and its texts are not kept that long.
    texts = texts_at(one.path, one.form, one.wanted, found_by)
    one.broken += [InvalidRow(line, why, texts[line]) for line, why in found_by.items()]
    kept = ~pl.col("line").is_in(list(found_by))
    one.frame = one.frame.filter(kept)
    one.answers = None if one.answers is None else one.answers.filter(kept)


def repeated(frame: pl.DataFrame, key: list[str]) -> pl.Series:
    """Which rows have the key of an earlier one.

    Only rows whose hash is not alone are compared, which is exact and many times faster than comparing all.
    """
    import polars as pl

    hashes = frame.select(pl.struct(key).hash()).to_series()
    suspects = hashes.is_duplicated()
    if not suspects.any():
        return suspects
    index = suspects.arg_true()
    later = ~frame[index].select(pl.struct(key).is_first_distinct()).to_series()
    return suspects.scatter(index, later)


def _join(loaded: list[_LoadedSource], columns: tuple[str, ...], quarantine: bool) -> pl.DataFrame:
    """The sources one below the other; a sample that an earlier source has is a repeat."""
    import polars as pl

    if not loaded:
        return Matcher.nothing(columns)
    key = [*SAMPLE, "metric" if "metric" in columns else "judge"]
    if _overlap(loaded, [name for name in key if name != "sample_id"]):
        whole = pl.concat(one.frame.with_columns(pl.lit(n, pl.UInt16).alias("source")) for n, one in enumerate(loaded))
        again = whole.filter(repeated(whole, key))
        for number, one in enumerate(loaded):
            _drop_repeats(one, again.filter(pl.col("source") == number), "in an earlier source", quarantine)
    return pl.concat(one.frame.select(columns) for one in loaded)


def _overlap(loaded: list[_LoadedSource], names: list[str]) -> bool:
    """Whether two sources have rows of the same cell, task and metric or judge."""
    import polars as pl

    own = [one.frame.select(names).unique() for one in loaded]
    return pl.concat(own).n_unique() < sum(frame.height for frame in own)


def _first_label_wins(loaded: list[_LoadedSource]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One judgement a sample: of the first source with a label, else ungraded by the first source. And the others."""
    import polars as pl

    if not loaded:
        return Matcher.nothing(JUDGEMENT_COLUMNS), Matcher.nothing(JUDGEMENT_COLUMNS)
    marked = [one.frame.with_columns(pl.lit(number, pl.UInt16).alias("source")) for number, one in enumerate(loaded)]
    whole = pl.concat(marked)
    ordered = whole.sort(pl.col("label").is_null(), maintain_order=True)
    again = repeated(ordered, [*SAMPLE])
    winners, others = (ordered.filter(which).sort("source", "line") for which in (~again, again))
    kept = dict(winners.group_by("source").len().iter_rows())
    for number, one in enumerate(loaded):
        one.superseded = one.frame.height - kept.get(number, 0)
    return winners.select(JUDGEMENT_COLUMNS), others.select(JUDGEMENT_COLUMNS)


def _once(columns: tuple[str, ...], key: list[str], frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Frames one below the other, the first row of each key."""
    import polars as pl

    whole = pl.concat([frame.select(columns) for frame in frames if frame.height] or [Matcher.nothing(columns)])
    return whole.unique(key, keep="first", maintain_order=True)


def _audit(one: _LoadedSource) -> SourceAudit:
    unmatched = dict(sorted(one.unmatched.items()))
    return SourceAudit(
        label=one.source.label,
        role=one.source.role,
        path=one.source.path,
        sha256=one.source.sha256,
        bytes=one.path.stat().st_size,
        raw=one.raw,
        loaded=one.raw - one.superseded - len(one.broken) - sum(unmatched.values()),
        superseded=one.superseded,
        quarantined=len(one.broken),
        unmatched=unmatched,
    )


def as_text(frame: pl.DataFrame) -> pl.DataFrame:
    """Names as text; they are categories in memory, which is small and fast, and text in every file."""
    import polars as pl

    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))


def sorted_by_line(broken: list[InvalidRow]) -> list[InvalidRow]:
    return sorted(broken, key=lambda one: one.line)


def audit_table(ingested: IngestSummary) -> Table:
    """`sources.csv`: one row a source."""
    columns = ("label", "role", "path", "sha256", "raw", "loaded", "superseded", "quarantined", "unmatched", "reasons")
    return Table("sources", columns, tuple(_audit_row(audit) for audit in ingested.audits))


def _audit_row(audit: SourceAudit) -> tuple[str | int, ...]:
    reasons = "; ".join(f"{reason}: {count}" for reason, count in audit.unmatched.items())
    counts = (audit.raw, audit.loaded, audit.superseded, audit.quarantined, sum(audit.unmatched.values()))
    return (audit.label, audit.role, audit.path, audit.sha256, *counts, reasons)


def audit_lines(audits: Iterable[SourceAudit]) -> list[str]:
    """A line for each source of which not every row that it asks for was loaded."""
    return [_audit_line(audit) for audit in audits if audit.loaded + _others(audit) != audit.raw]


def _others(audit: SourceAudit) -> int:
    return sum(count for reason, count in audit.unmatched.items() if reason.startswith(OTHER_ROWS))


def _audit_line(audit: SourceAudit) -> str:
    line = (
        f"{audit.label}: {audit.raw} raw, {audit.loaded} loaded, {audit.superseded} superseded, "
        f"{audit.quarantined} quarantined, {sum(audit.unmatched.values())} unmatched"
    )
    if audit.unmatched:
        reason, count = min(audit.unmatched.items(), key=lambda one: (-one[1], one[0]))
        line += f" ({reason})" if len(audit.unmatched) == 1 else f" (mostly, {count}: {reason})"
    return plain_line(line)


def plain_line(line: str) -> str:
    """A line that quotes a file, without what is no character of a line."""
    return "".join(character if character.isprintable() else "?" for character in line)
