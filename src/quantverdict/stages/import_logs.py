"""Logs of other tools in, a bundle out: what the logs say themselves becomes the sources that `ingest` reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from quantverdict.bundle.files import sha256_of
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.sources import Sources
from quantverdict.errors import DataError, StudyError, one_of
from quantverdict.ingestion.audit import IngestSummary, load_sources
from quantverdict.ingestion.logs import (
    UNITS_FILE,
    LogFile,
    LogOptions,
    criteria_of,
    find_logs,
    known_unit,
    label_of,
    read_units,
    remember_units,
    settled_metrics,
    short_name,
)
from quantverdict.ingestion.rows import RowFields, read_blocks
from quantverdict.policy import load_policy
from quantverdict.records import Metric
from quantverdict.registry import METRICS, adopt
from quantverdict.registry.listing import OF_STUDY
from quantverdict.stages.decide import decide, render
from quantverdict.stages.ingest import allowed_values, check_target, result_of, save_result
from quantverdict.yaml_file import explained

if TYPE_CHECKING:
    from quantverdict.ingestion.pairing import Pairing


@dataclass(frozen=True, slots=True)
class NamedLog:
    """A log and the arms that it holds, each by the name that it has in the bundle."""

    log: LogFile
    arms: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ReadLogs:
    """Logs that were read, before anything is written: `found.sources` says what they are."""

    found: IngestSummary
    notes: Sequence[str]


def read_logs(  # noqa: PLR0913 - one argument an option
    logs: Sequence[Path],
    out: Path,
    options: LogOptions,
    *,
    arms: Mapping[str, str],
    baseline: str | None = None,
    model: str | None = None,
    bits: Mapping[str, str] | None = None,
    margin: float = 5.0,
    policy: str | None = None,
    quarantine: bool = False,
) -> ReadLogs:
    """Every row of the logs, as scores of the arms of a bundle at `out`; and by what it is to be decided.

    Args:
        bits: per weight, by arm.

    Raises:
        DataError: a log, by file and row.
        StudyError: an arm or a policy that is not right.
    """
    named = list(_named_logs(logs, arms, options))
    draft = _Draft(named, out, baseline, model, bits or {})
    first = draft.sources(_first_units(named, options), {})
    found = load_sources(first, quarantine=quarantine, metrics=allowed_values())
    _check_pairs(found.pairings, named, draft.baseline)
    metrics = settled_metrics([one.log for one in named], _extremes(found), options)
    for metric in metrics.values():
        adopt("metrics", metric, OF_STUDY)
    names = dict.fromkeys(metric.name for one in named for metric in one.log.metrics)
    sources = draft.sources(metrics, criteria_of(names, margin), policy)
    notes = [f"{one.log.path}: {note}" for one in named for note in one.log.notes]
    return ReadLogs(replace(found, sources=sources), notes)


def import_logs(
    logs: Sequence[Path],
    out: Path,
    options: LogOptions,
    *,
    units: Sequence[str] = (),
    **how: Any,  # noqa: ANN401 - those of `read_logs`
) -> Path:
    """Logs -> a bundle as `ingest` leaves it. Nothing is written before all rows were read.

    Args:
        units: as `read_units` takes them, beside those that are remembered.
        how: as for `read_logs`.

    Raises:
        DataError, StudyError: as `read_logs`.
        BundleError: `out` holds something that this would overwrite.
    """
    remembered = Path(UNITS_FILE)
    read = read_logs(logs, out, replace(options, units=read_units(units, remembered)), **how)
    check_target(read.found.sources, out)
    result = result_of(read.found, "the logs, as a matrix")
    with Bundle.open(out, read.found.sources) as bundle:
        save_result(result, bundle)
        bundle.set_meta(left_out=list(read.notes))
        decide(bundle, None, result.samples, result.rows)
        render(bundle)
    remember_units(units, remembered)
    return bundle.root


# Which arms there are


def _named_logs(places: Sequence[Path], arms: Mapping[str, str], options: LogOptions) -> Iterator[NamedLog]:
    if not places and not arms:
        raise StudyError("no log is given", field="LOGS", expected="files, folders, or --arm NAME=PATH")
    given = [(None, place) for place in places] + [(name, Path(place)) for name, place in arms.items()]
    taken: dict[tuple[str, str, str], Path] = {}
    for name, place in given:
        for log in find_logs([place], options):
            one = _named(log, name)
            for arm in one.arms.values():
                for metric in log.metrics:
                    earlier = taken.setdefault((arm, log.task, metric.name), log.path)
                    if earlier != log.path:
                        expected = "one, or --arm NAME=PATH for each build"
                        problem = f"a second log of arm {arm}, task {log.task or 'of its rows'}: the first is {earlier}"
                        raise DataError(problem, file=log.path, expected=expected)
            yield one


def _named(log: LogFile, name: str | None) -> NamedLog:
    if log.arms:
        if name is not None and len(log.arms) > 1:
            raise StudyError(f"{name}: {log.path} holds {len(log.arms)} arms ({', '.join(log.arms[:4])})",
                             field="--arm", expected="a log of one; a log of several names its own")  # fmt: skip
        names = {arm: name or short_name(arm, "arm") for arm in log.arms}
        if len(set(names.values())) < len(names):  # of two owners: told apart by the whole name
            names = {arm: short_name(re.sub(r"[/\\:]+", "_", arm), "arm") for arm in log.arms}
        if len(set(names.values())) < len(names):
            raise DataError(f"two of its {len(names)} arms cannot be told apart", file=log.path,
                            expected="names that differ in letters, digits or . _ + -")  # fmt: skip
        return NamedLog(log, names)
    own = short_name(name or log.arm)
    if not own or (name is not None and own != name):
        expected = "letters, digits and . _ + -" if name else "--arm NAME=PATH"
        raise DataError(f"{name} is no name of an arm" if name else "does not say which model it is of", file=log.path,
                        expected=expected)  # fmt: skip
    return NamedLog(log, {log.arm: own})


class _Draft:
    """What logs say, as the keys of `sources.yaml`."""

    def __init__(
        self, logs: Sequence[NamedLog], out: Path, baseline: str | None, model: str | None, bits: Mapping[str, str]
    ) -> None:
        self.logs, self.study = logs, short_name(out.resolve().name, "imported")
        self.model = short_name(model or self.study, "model")
        names = dict.fromkeys(arm for one in logs for arm in one.arms.values())
        whole = all(metric.whole for one in logs for metric in one.log.metrics)
        if baseline is not None and baseline not in names:
            if not whole:
                raise StudyError(f"no arm {baseline}", field="--baseline", expected=one_of(baseline, names))
            names = {baseline: None, **names}
        if len(names) < 2:
            more = " (figures against a baseline: --baseline names it)" if whole else ""
            raise StudyError(f"one arm alone ({', '.join(names)})", field="LOGS",
                             expected=f"the logs of a baseline and of a build{more}")  # fmt: skip
        for name, value in bits.items():
            if name not in names:
                raise StudyError(f"no arm {name}", field="--bits", expected=one_of(name, names))
            if not re.fullmatch(r"\d{1,3}(\.\d{1,6})?", value) or float(value) == 0:
                raise StudyError(
                    f"{value!r:.20} bits for {name}", field="--bits", expected="a number above 0, such as 4.85"
                )
        self.quants = {name: bits.get(name) for name in names}
        self.baseline = baseline or next(iter(names))
        self.hashes = {path: sha256_of(path) for path in dict.fromkeys(one.log.path for one in logs)}

    def sources(
        self, metrics: Mapping[str, Metric], policy: Mapping[str, Any], named_policy: str | None = None
    ) -> Sources:
        """As `ingest` takes them.

        Raises:
            StudyError: a policy that does not fit; or what no file of sources may hold.
        """
        labels: list[str] = []
        for one in self.logs:
            labels.append(label_of(one.log, labels))
        content: dict[str, Any] = {
            "study": self.study,
            "metrics": {name: _own(metric) for name, metric in metrics.items()},
            "models": [{"name": self.model, "family": self.model, "baseline": self.baseline,
                        "quants": self.quants}],
            "sources": [self._source(one, label) for one, label in zip(self.logs, labels, strict=True)],
        }  # fmt: skip
        try:
            found = Sources.model_validate(content)
            found.adopt()
            if named_policy is not None:
                return found.model_copy(update={"policy": load_policy(named_policy)})
            return Sources.model_validate(content | ({"policy": dict(policy)} if policy else {}))
        except ValidationError as error:
            first = error.errors()[0]
            problem, expected = explained(first)
            raise StudyError(problem, field=".".join(map(str, first["loc"])), expected=expected) from error

    def _source(self, one: NamedLog, label: str) -> dict[str, Any]:
        log, fixed = one.log, {} if "task" in one.log.columns else {"task": one.log.task}
        found: dict[str, Any] = {
            "label": label, "role": "quality", "path": str(log.path), "sha256": self.hashes[log.path],
            "format": log.format, "columns": dict(log.columns), "where": dict(log.where),
        }  # fmt: skip
        if "cell" in log.columns:
            found["cells"] = {arm: f"{self.model}/{name}" for arm, name in one.arms.items()}
        else:
            fixed |= {"base_model": self.model, "quant": next(iter(one.arms.values()))}
        if log.ignored:
            found["metrics"] = dict.fromkeys(log.ignored)
        if "value" not in log.columns:
            found["measures"] = [
                {"metric": metric.name, "column": metric.column, "values": dict(metric.values)}
                for metric in log.metrics
            ]
        return found | {"fixed": fixed}


def _own(metric: Metric) -> dict[str, Any]:
    better = {True: "higher", False: "lower", None: "neither"}[metric.higher_is_better]
    found = {"unit": "share" if metric.is_share else metric.unit, "better": better}
    return found | {name: True for name, said in (("proportion", metric.proportion),
                                                  ("whole", metric.group == "measured")) if said}  # fmt: skip


def _first_units(logs: Sequence[NamedLog], options: LogOptions) -> dict[str, Metric]:
    """What is known before a row is read; a metric of which nothing is known may have any value until then."""
    METRICS.drop(OF_STUDY)
    found = {}
    for one in logs:
        for metric in one.log.metrics:
            if not METRICS.is_registered(metric.name):
                unit, better = known_unit(metric, options)
                found[metric.name] = Metric.of_files(metric.name, unit or "?", better or "neither", whole=metric.whole)
    return found


def _extremes(found: IngestSummary) -> dict[str, tuple[float, float, bool]]:
    import polars as pl

    value = pl.col("value")
    limits = found.scores.group_by("metric").agg(value.min().alias("low"), value.max().alias("high"),
                                               value.drop_nulls().is_in([0.0, 1.0]).all().alias("binary"))  # fmt: skip
    return {str(name): (low, high, binary) for name, low, high, binary in limits.iter_rows() if low is not None}


# What pairs


def _check_pairs(pairings: Sequence[Pairing], logs: Sequence[NamedLog], baseline: str) -> None:
    """Refuse an arm of which no prompt is one of the baseline's."""
    for one in pairings:
        if one.shared or not one.prompts:
            continue
        log = next(each.log for each in logs if one.quant in each.arms.values())
        if not one.other_first:
            raise DataError(f"arm {one.quant} has none of the {one.prompts} prompts of the baseline", file=log.path,
                            expected=f"its prompts, as {', '.join(one.missing_first)}")  # fmt: skip
        task, _, sample = one.other_first[0].partition("/")
        mine, theirs = (_told(logs, arm, task, sample) for arm in (one.quant, baseline))
        where, line, said = mine
        other, number, wanted = theirs
        problem = f"the arms have other prompts: {said[0]} of {task}/{sample} is {said[1]:.24}"
        raise DataError(problem, file=where, line=line, expected=f"{wanted[1]:.24}, as in {other}:{number}")


def _told(logs: Sequence[NamedLog], arm: str, task: str, sample: str) -> tuple[Path, int, tuple[str, str]]:
    """(file, row, (which hash, its value)) of a sample."""
    for one in logs:
        log = one.log
        if arm not in one.arms.values() or log.task not in ("", task):
            continue
        role = next((name for name in ("prompt_hash", "item_hash") if name in log.columns), "sample_id")
        fields = RowFields({"sample_id": log.columns["sample_id"], "said": log.columns[role]}, {}, ("said",))
        for block in read_blocks(log.path, log.format, fields):
            found = block.frame.filter(block.frame["sample_id"] == sample)
            if found.height:
                return log.path, found["line"][0], (role, str(found["said"][0]))
    return Path(sample), 0, ("sample", sample)
