"""Two logs against each other, without a bundle: the tests of criteria, and no import that they do not need."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantverdict.errors import DataError, ExitCode, count_of
from quantverdict.ingestion.logs import (
    SHARE,
    LogFile,
    LogOptions,
    criteria_of,
    find_logs,
    policy_of,
    read_units,
    remember_units,
    settled_metrics,
    short_name,
)
from quantverdict.ingestion.rows import (
    RowFields,
    as_utf8,
    gzip_blocks,
    jsonl_blocks,
    parse_line,
    plain_file,
    read_blocks,
    reading_errors,
    values_of,
)
from quantverdict.ingestion.tables import csv_blocks, csv_records
from quantverdict.matrix.criteria import standings
from quantverdict.matrix.grid import ScoreGrid
from quantverdict.matrix.headroom import headrooms
from quantverdict.policy import Policy
from quantverdict.protocol.criteria import BuildVerdict, criteria_rows, decide_criteria
from quantverdict.records import CellId, Metric
from quantverdict.registry import IMPORTERS, METRICS, adopt
from quantverdict.registry.listing import OF_STUDY, load
from quantverdict.reporting.formats import fixed, interval, words

POWER = 0.8
"""At which the numbers of prompts that would decide are given, as everywhere."""
EXIT_CODES = {"accepted": ExitCode.OK, "rejected": ExitCode.REJECTED, "not_measured": ExitCode.NOT_MEASURED}


_KIND, _HEX = re.compile(r"^(sha-?256|md5|0x):?", re.IGNORECASE), re.compile(r"[0-9A-Fa-f]{8,}")


class Key(NamedTuple):
    """A prompt of one arm."""

    task: str
    sample: str


class PromptRecord(NamedTuple):
    """What a log says of a prompt besides its scores: hashes, None where it has none; its cluster; where it stands."""

    prompt: str | None
    item: str | None
    cluster: str | None
    path: Path
    line: int


@dataclass(frozen=True, slots=True)
class Arm:
    """One log as it was read.

    Attributes:
        asked: every prompt.
        scores: by metric; None is ungraded.
        names: of the arms that the log names.
    """

    asked: dict[Key, PromptRecord]
    scores: dict[str, dict[Key, float | None]]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogPairing:
    """How the prompts of two logs pair: `moved` have another id in the candidate; `other` have the baseline's id, and
    other words."""

    pairs: int
    missing: int
    extra: int
    moved: int
    other: int


@dataclass(frozen=True, slots=True)
class LogComparison:
    """What two logs say of a candidate.

    Attributes:
        verdict: accepted, rejected, not_resolvable (inconclusive) or not_measured.
        reason: why, where that is not in the rows.
        rows: of the criteria and their members, by the columns of `criteria.csv`.
        shown: metrics that no criterion can have, with their means.
        notes: what was left out of the logs.
    """

    baseline: str
    candidate: str
    verdict: str
    reason: str
    pairing: LogPairing
    rows: Sequence[Mapping[str, Any]]
    shown: Sequence[Mapping[str, Any]]
    notes: Sequence[str]

    @property
    def exit_code(self) -> ExitCode:
        return EXIT_CODES.get(self.verdict, ExitCode.NOT_RESOLVABLE)

    def as_json(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        return asdict(self)

    def lines(self) -> list[str]:
        """As the command prints it."""
        return list(_lines(self))


def compare(
    baseline: Path,
    candidate: Path,
    options: LogOptions,
    *,
    margin: float = 5.0,
    units: Sequence[str] = (),
    units_file: Path,
) -> LogComparison:
    """Put the criteria's tests to two logs.

    Args:
        margin: the tolerated loss of each metric and of all together, in pp.
        units: as `read_units` takes them; kept in `units_file` once the logs were read.

    Raises:
        DataError: a log cannot be read, by file and line; the logs have no metric or no prompt in common.
    """
    options = LogOptions(options.form, options.chosen, options.columns, options.metrics, read_units(units, units_file))
    logs = [find_logs([place], options) for place in (baseline, candidate)]
    arms = [read_arm(place, own) for place, own in zip((baseline, candidate), logs, strict=True)]
    metrics = _metrics(logs, arms, options)
    pairing, ids = _paired(arms, (baseline, candidate))
    policy = policy_of(metrics, margin) if criteria_of(metrics, margin) else None
    cells = CellId("log", "baseline"), CellId("log", "candidate")
    grids = _grids(arms, ids, [name for name in metrics if METRICS[name].is_gated])
    found = None if policy is None else _decided(grids, cells, policy)
    gaps = [*_gaps(pairing), *_torn(arms, ids)]
    remember_units(units, units_file)
    names = [_name(place, arm) for place, arm in zip((baseline, candidate), arms, strict=True)]
    notes = [f"{log.path}: {note}" for own in logs for log in own for note in log.notes]
    verdict, reason = _verdict(found, gaps)
    rows = [] if found is None else criteria_rows(found)
    shown = list(_others(arms, ids, metrics))
    return LogComparison(names[0], names[1], verdict, reason, pairing, rows, shown, notes)


def _decided(grids: Mapping[str, ScoreGrid], cells: tuple[CellId, CellId], policy: Policy) -> BuildVerdict:
    baseline, candidate = cells
    rooms = headrooms(grids, [baseline], policy.gates, {}, figures=False)
    found = standings(grids, {candidate: baseline}, policy, rooms)
    return decide_criteria(found, policy, {candidate: 0}, POWER)[candidate]


def _verdict(found: BuildVerdict | None, gaps: Sequence[str]) -> tuple[str, str]:
    """As a bundle has it: a build is rejected by what pairs; it is accepted only where all prompts pair."""
    if found is None:
        return "not_measured", "no metric is a share of which one direction is better"
    if found.verdict == "rejected":
        return "rejected", ""
    untested = [row.standing.reason for row in found.criteria if row.standing.loss is None]
    if gaps or untested:
        return "not_measured", "; ".join([*gaps, *untested])
    unsettled = [row.standing.reason for row in found.criteria if not row.standing.is_informative]
    return found.verdict, "; ".join(unsettled) if found.verdict == "not_resolvable" else ""


def _gaps(one: LogPairing) -> list[str]:
    told = (
        (one.missing, "of the baseline", ("is missing", "are missing")),
        (one.extra, "", ("is not in the baseline", "are not in the baseline")),
        (
            one.other,
            "",
            ("was asked in other words and is not compared", "were asked in other words and are not compared"),
        ),
    )
    return [
        " ".join(part for part in (count_of(count, "prompt"), which, verbs[count != 1]) if part)
        for count, which, verbs in told
        if count
    ]


def _torn(arms: Sequence[Arm], ids: Mapping[Key, Key]) -> Iterator[str]:
    """Metrics that only one arm has, of all prompts or of some that pair."""
    for name in dict.fromkeys(name for arm in arms for name in arm.scores):
        if any(name not in arm.scores for arm in arms):
            yield f"{name} is in one log alone (--metric takes others)"
            continue
        alone = sum((own in arms[1].scores[name]) != (theirs in arms[0].scores[name]) for own, theirs in ids.items())
        if alone:
            yield f"{count_of(alone, 'prompt')} {'has' if alone == 1 else 'have'} {name} in one log alone"


# Reading: by Python alone, row by row


def read_arm(place: Path, logs: Sequence[LogFile]) -> Arm:
    """All rows of a log.

    Raises:
        DataError: a broken row; a sample twice; several arms in one log.
    """
    arm = Arm({}, {}, tuple(dict.fromkeys(name for log in logs for name in (log.arms or (log.arm,)))))
    if any(len(log.arms) > 1 for log in logs):
        several = next(log for log in logs if len(log.arms) > 1)
        told = f"holds {len(several.arms)} arms ({', '.join(several.arms[:4])})"
        raise DataError(told, file=several.path, expected="one; `quantverdict import` compares several")
    for log in logs:
        fields = _Fields(log)
        for line, values in _rows(log, fields.wanted):
            fields.put(arm, line, values)
        if not fields.found:
            wanted = ", ".join(f"{column} {value}" for column, value in log.where.items())
            raise DataError(f"no row has {wanted}" if wanted else "has no rows", file=place, expected="at least one")
    return arm


class _Fields:
    """What is read of a row of a log, and where it goes."""

    def __init__(self, log: LogFile) -> None:
        self.log, self.found = log, False
        texts = {name: column for name, column in log.columns.items() if name not in ("cell", "value")}
        words = {f"where_{n}": column for n, column in enumerate(log.where)}
        self.long = "value" in log.columns
        numbers = {"value": log.columns["value"]} if self.long else {}
        for number, metric in enumerate(() if self.long else log.metrics):
            (words if metric.values else numbers)[f"m{number}"] = metric.column
        self.wanted = RowFields(texts, numbers, (), words)
        self.at = {name: place for place, name in enumerate(self.wanted.columns)}
        self.where = [(self.at[f"where_{n}"], value) for n, value in enumerate(log.where.values())]
        self.takes = {metric.name for metric in log.metrics}
        self.measured = [] if self.long else [(self.at[f"m{n}"], metric) for n, metric in enumerate(log.metrics)]

    def put(self, arm: Arm, line: int, values: Sequence[Any]) -> None:
        """Take a row, where it is one of those that are read."""
        if any(values[place] != value for place, value in self.where):
            return
        path, sample, task = self.log.path, values[self.at["sample_id"]], self.log.task or self._of(values, "task")
        if sample is None:
            raise DataError("missing", file=path, line=line, field=self.log.columns["sample_id"], expected="an id")
        self.found = True
        key = Key(str(task or ""), sample)
        hashes = _hash(self._of(values, "prompt_hash")), _hash(self._of(values, "item_hash"))
        told = PromptRecord(*hashes, self._of(values, "cluster"), path, line)
        earlier = arm.asked.setdefault(key, told)
        if earlier is not told and earlier[:2] != told[:2]:
            raise DataError(f"sample {key.task}/{sample} has another prompt than in {earlier.path}:{earlier.line}",
                            file=path, line=line, expected="one prompt a sample")  # fmt: skip
        for name, value in self._scores(values, line):
            scores = arm.scores.setdefault(name, {})
            if key in scores:
                raise DataError(f"sample {key.task}/{sample} is given twice", file=path, line=line,
                                expected=f"once (first in {earlier.path}:{earlier.line})")  # fmt: skip
            scores[key] = value

    def _of(self, values: Sequence[Any], name: str) -> Any:  # noqa: ANN401 - a text, where the log has that column
        place = self.at.get(name)
        return None if place is None else values[place]

    def _scores(self, values: Sequence[Any], line: int) -> Iterator[tuple[str, float | None]]:
        if self.long:
            if (name := self._of(values, "metric")) in self.takes:
                yield str(name), self._of(values, "value")
            return
        for place, metric in self.measured:
            value = values[place]
            if metric.values and value is not None:
                if value not in metric.values and not _is_number(value):
                    raise DataError(f"{value!r}", file=self.log.path, line=line, field=metric.column,
                                    expected=f"one of {', '.join(metric.values)}")  # fmt: skip
                value = metric.values[value] if value in metric.values else float(value)
            yield metric.name, value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _hash(text: str | None) -> str | None:
    """A hash is the same in capitals and behind `sha256:`; what is no hash (a prompt) stays as it is."""
    if not text:
        return None
    if len(text) == 64 and not text.strip("0123456789abcdef"):  # as most logs have it
        return text
    bare = _KIND.sub("", text.strip())
    return bare.lower() if _HEX.fullmatch(bare) else text.strip()


def _rows(log: LogFile, wanted: RowFields) -> Iterator[tuple[int, Sequence[Any]]]:
    """(line or row, the wanted values), without polars where a format is text: a few thousand rows are read before that
    is imported.

    Raises:
        DataError: the first broken row.
    """
    importer, path = IMPORTERS.find(log.format), log.path
    reader = load(importer.target)
    rows: Iterator[tuple[int, Callable[[], Sequence[Any]]]]
    if not importer.blocks:
        rows = ((number, partial(values_of, row, wanted)) for number, row in enumerate(reader(path), 1))
    elif reader in (jsonl_blocks, gzip_blocks):
        rows = _json_lines(path, wanted, plain_file if reader is jsonl_blocks else gzip.open)
    elif reader is csv_blocks:
        rows = ((number, values) for number, _, values in csv_records(path, wanted))
    else:
        for block in read_blocks(path, log.format, wanted):
            yield from ((line, values) for line, *values in block.frame.iter_rows())
        return
    for number, values in rows:
        try:
            yield number, values()
        except (ValueError, RecursionError) as error:
            raise DataError(str(error), file=path, line=number) from error


def _json_lines(
    path: Path, wanted: RowFields, opener: Callable[..., Any]
) -> Iterator[tuple[int, Callable[[], Sequence[Any]]]]:
    with reading_errors(path), opener(path, "rb") as file:
        for number, content in enumerate(as_utf8(file), 1):
            if content.strip():
                yield number, partial(parse_line, content, wanted)


def _metrics(logs: Sequence[Sequence[LogFile]], arms: Sequence[Arm], options: LogOptions) -> list[str]:
    """The metrics that both arms have, made known to the registry."""
    both = [name for name in arms[0].scores if name in arms[1].scores]
    if not both:
        has = " and ".join(", ".join(arm.scores) for arm in arms)
        raise DataError(
            f"no metric is in both logs ({has})", file=logs[1][0].path, expected=f"one of {logs[0][0].path}"
        )
    extremes = {}
    for name in both:
        values = [value for arm in arms for value in arm.scores[name].values() if value is not None]
        if values:
            extremes[name] = min(values), max(values), all(value in (0, 1) for value in values)
    kept = [[_only(log, both) for log in own] for own in logs]
    METRICS.drop(OF_STUDY)
    for metric in settled_metrics([log for own in kept for log in own], extremes, options).values():
        adopt("metrics", metric, OF_STUDY)
    for name in both:
        _check_range(METRICS[name], arms)
    return both


def _only(log: LogFile, names: Sequence[str]) -> LogFile:
    return replace(log, metrics=tuple(metric for metric in log.metrics if metric.name in names))


def _check_range(metric: Metric, arms: Sequence[Arm]) -> None:
    if not metric.is_share:
        return
    for arm in arms:
        for key, value in arm.scores[metric.name].items():
            if value is not None and not metric.lowest <= value <= 1:
                where = arm.asked[key]
                raise DataError(f"{value:g}", file=where.path, line=where.line, field=metric.name,
                                expected=f"a number from {metric.lowest} to 1, as it is a {SHARE}")  # fmt: skip


# Pairing: as `ingestion.pairing` does it, of two arms


def _paired(arms: Sequence[Arm], places: tuple[Path, Path]) -> tuple[LogPairing, dict[Key, Key]]:
    """Which prompt of the baseline each prompt of the candidate is, by its id and its hashes.

    Raises:
        DataError: no prompt pairs.
    """
    theirs, own = arms[0].asked, arms[1].asked
    ids = {key: key for key, told in own.items() if key in theirs and _alike(told, theirs[key])}
    free: dict[tuple[str, str | None, str | None], list[Key]] = {}
    for key, told in theirs.items():
        if key not in ids and (told.prompt or told.item):
            free.setdefault((key.task, told.prompt, told.item), []).append(key)
    moved, other, first = 0, 0, None
    for key, told in own.items():
        if key in ids:
            continue
        found = free.get((key.task, told.prompt, told.item))
        if found and (told.prompt or told.item):
            ids[key] = found.pop(0)
            moved += 1
        elif key in theirs:
            other += 1
            first = first or key
    pairs = len(ids)
    if not pairs:
        raise _nothing_pairs(arms, places, first)
    unpaired = len(theirs) - pairs
    return LogPairing(pairs, unpaired - other, len(own) - pairs - other, moved, other), ids


def _alike(one: PromptRecord, two: PromptRecord) -> bool:
    return one[:2] == two[:2] or all(
        a is None or b is None or a == b for a, b in ((one.prompt, two.prompt), (one.item, two.item))
    )


def _nothing_pairs(arms: Sequence[Arm], places: tuple[Path, Path], first: Key | None) -> DataError:
    key, told = next(iter(arms[1].asked.items()))
    if first is None:
        there = next(iter(arms[0].asked))
        expected = f"the prompts of {places[0]}, as {there.task}/{there.sample}"
        return DataError(f"no prompt is in both logs (sample {key.task}/{key.sample})", file=told.path, line=told.line,
                         expected=expected)  # fmt: skip
    told, base = arms[1].asked[first], arms[0].asked[first]
    what = "prompt" if told.prompt != base.prompt else "item"
    mine, wanted = (told.prompt, base.prompt) if what == "prompt" else (told.item, base.item)
    return DataError(
        f"the arms have other prompts: {what} of {first.task}/{first.sample} is {mine!s:.24}", file=told.path,
        line=told.line, expected=f"{wanted!s:.24}, as in {base.path}:{base.line}",
    )  # fmt: skip


def _grids(arms: Sequence[Arm], ids: Mapping[Key, Key], metrics: Sequence[str]) -> dict[str, ScoreGrid]:
    """A grid a metric over the prompts that pair; numbers of prompts are those of all grids."""
    back = {theirs: own for own, theirs in ids.items()}
    keys = sorted(back)
    numbers = {key: number for number, key in enumerate(keys)}
    cells = CellId("log", "baseline"), CellId("log", "candidate")
    found = {}
    for name in metrics:
        scores = arms[0].scores[name], arms[1].scores[name]
        rows = [key for key in keys if key in scores[0] and back[key] in scores[1]]
        values = np.array(
            [[_float(scores[0][key]), _float(scores[1][back[key]])] for key in rows], dtype=np.float64
        ).reshape(-1, 2)
        prompts = np.array([numbers[key] for key in rows], dtype=np.int64)
        units: dict[object, int] = {}
        clusters = [arms[0].asked[key].cluster for key in rows]
        codes = [units.setdefault((key.task, cluster) if cluster is not None else key, len(units))
                 for key, cluster in zip(rows, clusters, strict=True)]  # fmt: skip
        graded = ~np.isnan(values).all(axis=1)
        found[name] = ScoreGrid(
            cells, values[graded], np.array(codes, dtype=np.int64)[graded], len(units) < len(rows),
            np.array([key.task for key in rows], dtype=object)[graded], prompts[graded],
            np.array([key.sample for key in rows], dtype=object)[graded],
            {cell: prompts[np.isnan(values[:, at])] for at, cell in enumerate(cells)},
        )  # fmt: skip
    return {name: grid for name, grid in found.items() if len(grid.prompts)}


def _float(value: float | None) -> float:
    return float("nan") if value is None else value


def _others(arms: Sequence[Arm], ids: Mapping[Key, Key], metrics: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Means of what no criterion can have, over the prompts with both values."""
    for name in metrics:
        metric = METRICS[name]
        if metric.is_gated:
            continue
        values = [(arms[0].scores[name].get(theirs), arms[1].scores[name].get(own)) for own, theirs in ids.items()]
        both = [(one, two) for one, two in values if one is not None and two is not None]
        if both:
            one, two = (sum(column) / len(both) for column in zip(*both, strict=True))
            yield {"metric": name, "unit": metric.unit, "n_pairs": len(both), "baseline": one, "candidate": two}


def _name(place: Path, arm: Arm) -> str:
    told = short_name(arm.names[0]) if len(arm.names) == 1 else ""
    return told or short_name(place.stem, "log")


# What is printed

_HEAD = ("", "delta (pp)", "interval", "lost", "gained", "pairs", "margin", "")


def _lines(found: LogComparison) -> Iterator[str]:
    yield f"{found.candidate} against {found.baseline}: {words(found.verdict)}"
    rows = [_HEAD, *map(_row, found.rows)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_HEAD))]
    for row in rows if found.rows else ():
        cells = [
            row[0].ljust(widths[0]),
            *(text.rjust(width) for text, width in zip(row[1:-1], widths[1:-1], strict=True)),
        ]
        yield "  ".join([*cells, row[-1]]).rstrip()
    for one in found.shown:
        yield (f"{one['metric']}: {one['baseline']:.4g} to {one['candidate']:.4g} {one['unit']}, mean of "
               f"{count_of(one['n_pairs'], 'pair')}; in no criterion")  # fmt: skip
    pairing = found.pairing
    moved = [f"{pairing.moved} of them under another id"] if pairing.moved else []
    told = [f"{count_of(pairing.pairs, 'prompt')} {'pairs' if pairing.pairs == 1 else 'pair'}", *moved, *_gaps(pairing)]
    yield ", ".join(told)
    yield from ([found.reason] if found.reason else [])
    yield from found.notes


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    name = ("  " if row["role"] == "member" else "") + (row["metric"] or row["criterion"])
    if row["delta_pp"] is None:
        return name, "", "", "", "", "0", "", row["reason"]
    needs = [
        f"{count_of(row[key], 'pair')} would {what}"
        for key, what in (("n_to_accept", "accept"), ("n_to_reject", "reject"))
        if row["outcome"] == "not_resolvable" and row[key]
    ]
    return (
        name, fixed(row["delta_pp"], 2, sign=True), interval(row["ci_lo_pp"], row["ci_hi_pp"], sign=True),
        str(row["lost"]), str(row["gained"]), str(row["n_pairs"]), f"{row['margin_pp']:g}",
        "; ".join([words(row["outcome"]), *needs]),
    )  # fmt: skip
