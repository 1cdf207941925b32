"""Logs of other tools before they are read: which files there are, whose they are, what their columns mean."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from quantverdict.errors import DataError, StudyError, one_of
from quantverdict.records import Metric
from quantverdict.registry import IMPORTERS, METRICS
from quantverdict.registry.listing import known_among, load
from quantverdict.yaml_file import decoded, text_of

if TYPE_CHECKING:
    from quantverdict.policy import Policy

HEAD_BYTES = 1 << 16
"""Of a file, to tell its format."""
DIRECTIONS = ("higher", "lower", "neither")
SHARE = "share"
UNITS_FILE = "quantverdict-metrics.yaml"
"""Where units and directions that were given once are kept, in the current folder."""
HIGHER = (
    "acc", "acc_norm", "accuracy", "answered", "bertscore", "bleu", "chrf", "contains", "correct", "em", "exact",
    "exact_match", "f1", "graded", "includes", "is_correct", "likelihood_acc", "match", "mc1", "mc2", "pass", "pass@1",
    "passed", "prompt_level_strict_acc", "prompt_level_loose_acc", "right", "rouge1", "rouge2", "rougeL", "rougeLsum",
    "score", "success",
)  # fmt: skip
"""Names of which everybody means the same: more is better."""
LOWER = (
    "brier_score",
    "bits_per_byte",
    "byte_perplexity",
    "cer",
    "loss",
    "perplexity",
    "ppl",
    "wer",
    "word_perplexity",
)


class Unit(NamedTuple):
    """What a metric is counted in, and which direction is better; None is not known."""

    unit: str | None = None
    better: str | None = None


UNKNOWN = Unit()


@dataclass(frozen=True, slots=True)
class LoggedMetric:
    """A metric of a log.

    Attributes:
        name: as the log has it.
        column: of its values; where a row has one score, the value of the column `metric`.
        unit: what the log itself says of it.
        values: what letters and words are worth; null is ungraded.
        whole: one number of the arm as a whole.
    """

    name: str
    column: str
    unit: Unit = UNKNOWN
    values: Mapping[str, float | None] = field(default_factory=dict)
    whole: bool = False


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file of a log, or those rows of it that `where` leaves.

    Attributes:
        format: of `IMPORTERS`.
        columns: as in `sources.yaml`; `cell` where the rows say of which arm they are, `task` where they say that, and
            `metric` and `value` where a row has one score.
        arm: as the log has it, where all rows are of one; empty where it does not say.
        arms: those of the column `cell`.
        task: where all rows are of one.
        ignored: metrics of rows that are not read, where a row has one score.
        notes: what of it was left out, and why.
    """

    path: Path
    format: str
    columns: Mapping[str, str]
    metrics: tuple[LoggedMetric, ...]
    arm: str = ""
    arms: tuple[str, ...] = ()
    task: str = ""
    where: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What a log does not say itself.

    Attributes:
        form: the format, where the file does not tell.
        chosen: the filter of lm-evaluation-harness whose rows are taken; `all` takes each as a metric of its own.
        columns: role (of `sources.yaml`, and `arm`) to column.
        metrics: those that are taken; empty is all.
        units: of metrics, by name.
    """

    form: str | None = None
    chosen: str = "all"
    columns: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    units: Mapping[str, Unit] = field(default_factory=dict)

    def takes(self, name: str) -> bool:
        """Whether a metric is asked for."""
        return not self.metrics or name in self.metrics


def find_logs(places: Sequence[Path], options: LogOptions) -> list[LogFile]:
    """The logs in files and folders, in that order.

    Raises:
        DataError: there is no such file, or nothing in it that can be read.
    """
    found: list[LogFile] = []
    for place in places:
        own = [log for path, form in _files(place, options) for log in logs_of(path, form, options)]
        if not any(log.metrics for log in own):
            whole = replace(options, metrics=())
            known = [one.name for path, form in _files(place, options) for log in logs_of(path, form, whole)
                     for one in log.metrics]  # fmt: skip
            first = options.metrics[0] if options.metrics else "metric"
            raise DataError(f"has no {first}", file=place, expected=one_of(first, dict.fromkeys(known)))
        found += (log for log in own if log.metrics)
    return found


def logs_of(path: Path, form: str, options: LogOptions) -> list[LogFile]:
    """The logs in a file of a format."""
    importer = IMPORTERS.find(form)
    if not importer.log:
        raise DataError(f"of the format {form} only `ingest` knows what rows mean", file=path,
                        expected=one_of(form, [one.name for one in IMPORTERS.values() if one.log]))  # fmt: skip
    found: Callable[[Path, LogOptions], Iterable[LogFile]] = load(importer.log)
    return [replace(log, format=form) for log in found(path, replace(options, form=form))]


def _files(place: Path, options: LogOptions) -> list[tuple[Path, str]]:
    if not place.exists():
        raise DataError("no such file or folder", file=place, expected="a log")
    if not place.is_dir():
        return [(place, options.form or _format_or_refuse(place))]
    inside = sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))
    formats = [(path, options.form or format_of_log(path)) for path in inside]
    known = [(path, form) for path, form in formats if form is not None]
    logs = [(path, form) for path, form in known if IMPORTERS[form].sign] if options.form is None else known
    if not (logs or known):
        raise DataError("holds no log", file=place, expected=f"files of a format that is read: {', '.join(IMPORTERS)}")
    return logs or known


def _format_or_refuse(path: Path) -> str:
    form = format_of_log(path)
    if form is None:
        problem = "is of no format that is known"
        raise DataError(problem, file=path, expected=f"--format {one_of('', IMPORTERS)}")
    return form


def format_of_log(path: Path) -> str | None:
    """The format of a file: as it begins, else as its name ends."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES).decode("utf-8-sig", "replace")
    except OSError as error:
        raise DataError(f"cannot be read ({error})", file=path) from error
    for name, importer in IMPORTERS.items():
        if importer.sign and re.compile(importer.sign, re.MULTILINE).match(head):
            return name
    return next((name for name, one in IMPORTERS.items() if one.suffixes and path.name.endswith(one.suffixes)), None)


def first_row(path: Path) -> dict[str, Any]:
    """The first object of JSON lines.

    Raises:
        DataError: there is none.
    """
    try:
        with path.open("rb") as file:
            for number, content in enumerate(file, 1):
                if content.strip():
                    row = json.loads(content.decode("utf-8-sig"))
                    if isinstance(row, dict):
                        return row
                    raise DataError("not a JSON object", file=path, line=number, expected="one a line")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read ({error})", file=path, line=1, expected="a JSON object a line") from error
    raise DataError("has no rows", file=path, expected="at least one")


def document_of(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """A file that is one JSON document.

    Raises:
        DataError: it is not.
    """
    try:
        return json.loads(decoded(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read ({error})", file=path, expected="a JSON document") from error


def under(document: object, *keys: str) -> Mapping[str, Any]:
    """The object at the end of these keys; an empty one where something on the way is none."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else {}


def short_name(text: str, default: str = "") -> str:
    """A name of a model or a task as it can stand in every table: the last part of a path, without odd characters."""
    last = re.split(r"[/\\:]", text.rstrip("/\\"))[-1].removeprefix("models--")
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", last).lstrip("._+-")[:100] or default


# Units and directions: what the log says, what was given, what everybody knows


def read_units(given: Sequence[str], file: Path | None = None) -> dict[str, Unit]:
    """Units as a command line gives them (`f1=share,higher`), over those that are remembered in a file.

    Raises:
        StudyError: one is not of that form.
    """
    found = _remembered(file) if file is not None and file.exists() else {}
    for text in given:
        name, equals, said = text.rpartition("=")
        unit, comma, better = said.rpartition(",")
        if not equals or not name.strip() or not comma or not unit.strip() or better.strip() not in DIRECTIONS:
            expected = f"NAME=UNIT,{'|'.join(DIRECTIONS)}, such as f1={SHARE},higher or loss=nats,lower"
            raise StudyError(f"{text!r:.60} is no unit", field="--unit", expected=expected)
        found[name.strip()] = Unit(unit.strip(), better.strip())
    return found


def _remembered(file: Path) -> dict[str, Unit]:
    from quantverdict.yaml_file import read_yaml

    data = read_yaml(text_of(file))[1]
    if not isinstance(data, dict):
        raise StudyError("is not a mapping", file=file, line=1, expected="NAME: {unit: share, better: higher}")
    for name, said in data.items():
        if not isinstance(said, dict) or set(said) != {"unit", "better"} or said["better"] not in DIRECTIONS:
            raise StudyError("is no unit", file=file, field=str(name), expected="{unit: share, better: higher}")
    return {str(name): Unit(str(said["unit"]), str(said["better"])) for name, said in data.items()}


def remember_units(given: Sequence[str], file: Path) -> None:
    """Keep what was given, beside what the file has already."""
    if not given:
        return
    units = read_units(given, file)
    lines = [
        f"{json.dumps(name)}: {{unit: {json.dumps(one.unit)}, better: {one.better}}}\n" for name, one in units.items()
    ]
    file.write_text("# What metrics of logs are counted in, and which direction is better.\n" + "".join(lines))


def settled_metrics(
    logs: Sequence[LogFile], values: Mapping[str, tuple[float, float, bool]], options: LogOptions
) -> dict[str, Metric]:
    """The metrics of logs that nobody has registered, with what they are counted in.

    Args:
        values: of each metric the least and the largest value, and whether all are 0 or 1.

    Raises:
        DataError: naming those of which unit or direction are not known.
    """
    found: dict[str, Metric] = {}
    open_: dict[str, LogFile] = {}
    for log in logs:
        for one in log.metrics:
            if one.name in found or METRICS.is_registered(one.name):
                continue
            low, high, binary = values.get(one.name, (0.0, 0.0, False))
            unit = known_unit(one, options)
            counted = unit.unit or (SHARE if low >= 0 and high <= 1 else None)
            if counted is None or unit.better is None:
                open_.setdefault(one.name, log)
                continue
            found[one.name] = Metric.of_files(one.name, counted, unit.better, proportion=binary and counted == SHARE,
                                              whole=one.whole)  # fmt: skip
    if open_:
        said = ", ".join(f"{name} ({values[name][0]:g} to {values[name][1]:g})" if name in values else name
                         for name in open_)  # fmt: skip
        first = next(iter(open_))
        raise DataError(
            f"unit and direction are not known of {said}", file=open_[first].path, field=first,
            expected=f"--unit {first}=UNIT,higher|lower|neither (UNIT {SHARE}: from 0 to 1), which is remembered in "
                     f"{UNITS_FILE}; or --metric for those that are wanted",
        )  # fmt: skip
    return found


def known_unit(one: LoggedMetric, options: LogOptions) -> Unit:
    """What is known of a metric's unit and direction: what was given comes before what the log says."""
    given, plain = options.units.get(one.name, UNKNOWN), one.name.partition(",")[0].rpartition(".")[2]
    common = "higher" if plain in HIGHER else "lower" if plain in LOWER else None
    return Unit(given.unit or one.unit.unit, given.better or one.unit.better or common)


def criteria_of(metrics: Iterable[str], margin: float) -> dict[str, Any]:
    """The policy that logs are decided by, if nothing else is asked: quality is what they measure, beside refusals and
    safety where they have metrics of those."""
    registered = [METRICS[name] for name in metrics if METRICS[name].is_gated]
    groups: dict[str, list[str]] = {}
    for one in registered:
        groups.setdefault(one.criterion if one.criterion in ("refusal", "safety") else "quality", []).append(one.name)
    if not groups:
        return {}
    guard = min(3 * margin, 99.9)
    shares = [one.name for one in registered if one.higher_is_better and one.criterion not in ("refusal", "safety")]
    criteria: dict[str, Any] = {
        name: {"metrics": names, "margin_pp": margin, "guard_margin_pp": guard, "demanded": True}
        for name, names in groups.items()
    }
    policy: dict[str, Any] = {"criteria": criteria, "margins": dict.fromkeys((one.name for one in registered), margin)}
    return policy | ({"quality_metric": shares[0]} if shares else {})


def policy_of(metrics: Iterable[str], margin: float) -> Policy:
    """`criteria_of` as a policy."""
    from quantverdict.policy import Policy

    return Policy.model_validate(criteria_of(metrics, margin))


def label_of(log: LogFile, taken: Iterable[str]) -> str:
    """A name of a source that no other has."""
    name = short_name("_".join([log.path.stem, *log.where.values()]), "log")[:90]
    known = set(taken)
    return next(one for one in _numbered(name) if one not in known)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


# What a command line or a caller says of logs

Pairs = Mapping[str, str] | Mapping[str, os.PathLike[str]] | Mapping[str, str | os.PathLike[str]] | Sequence[str]


def log_options(
    form: str | None, chosen: str, columns: Mapping[str, str] | Sequence[str], metrics: Sequence[str]
) -> LogOptions:
    """What a log does not say itself, from options of a command or arguments of a function.

    Raises:
        StudyError: naming the option.
    """
    if form is not None:
        try:
            known_among(form, lambda: IMPORTERS)
        except ValueError as error:
            raise StudyError(f"no format {form!r:.60}", field="--format", expected=str(error)) from error
    return LogOptions(form, chosen, name_value_pairs(columns, "--column"), tuple(metrics))


def name_value_pairs(given: Pairs, option: str) -> dict[str, str]:
    """NAME=VALUE texts, or the mapping that they would be."""
    found = {}
    for text in as_texts(given):
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise StudyError(f"{text!r:.60} is no pair", field=option, expected="NAME=VALUE")
        if name in found:
            raise StudyError(f"{name} is given twice", field=option, expected="each name once")
        found[name] = value
    return found


def as_texts(given: Pairs) -> list[str]:
    """NAME=VALUE texts of a mapping; texts as they are."""
    if isinstance(given, Mapping):
        return [f"{name}={os.fspath(value)}" for name, value in given.items()]
    return list(given)
