"""Two bundles of one study compared: did the new engine change the verdict? Neither is changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantverdict.bundle.integrity import plain
from quantverdict.bundle.manifest import RENDERED, Bundle
from quantverdict.bundle.prompts import first_changed, read_prompts
from quantverdict.bundle.store import responses_path
from quantverdict.config import Study
from quantverdict.errors import BundleError
from quantverdict.protocol.differences import (
    AnswerChanges,
    BundleDiff,
    Cells,
    Texts,
    changed_criteria,
    changed_verdicts,
    changes,
    compared_answers,
    moved_deltas,
)
from quantverdict.records import CellId
from quantverdict.reporting.formats import flatten
from quantverdict.stages.facts import artefacts_of, rate_judges, stored_builds, stored_responses
from quantverdict.stages.gate import require_sealed
from quantverdict.stages.verify import DryRunBundle

MADE_BY = ("packages", "hardware", "git_commit", "backends")
"""Parts of the manifest that say what made the answers."""
READ = ("decision.json", "deltas.csv")


def compare(one: Path, two: Path) -> BundleDiff:
    """What changed from bundle `one` to bundle `two`.

    Raises:
        BundleError: not finished, changed since, or not of the same study, tasks and prompts.
        DataError: stored answers cannot be read.
    """
    before, after = DryRunBundle(one), DryRunBundle(two)
    for bundle in (before, after):
        require_sealed(bundle, READ)
        bundle.check_meta_equal((*RENDERED, "timings/"))
    check_same_study(before, after)
    decisions = [bundle.read_json("decision.json") for bundle in (before, after)]
    was, now = (cells_of(decision) for decision in decisions)
    if not was.keys() & now.keys():
        raise BundleError(f"{one} and {two} are not of the same study: no build is in both")
    return BundleDiff(
        one=str(one),
        two=str(two),
        study=decisions[0]["study"],
        cells=len(was.keys() & now.keys()),
        verdicts=changed_verdicts(was, now),
        moves=moved_deltas(before.read_table("deltas"), after.read_table("deltas")),
        answers=tuple(answers(before, after, was)),
        engines=changes(made_by(before), made_by(after)),
        settings=changes(settings(before, decisions[0]), settings(after, decisions[1])),
        criteria=changed_criteria(was, now),
        judges=(rate_judges(before, artefacts_of(before)), rate_judges(after, artefacts_of(after))),
    )


def check_same_study(one: Bundle, two: Bundle) -> None:
    """Refuse bundles that cannot be compared.

    Raises:
        BundleError: of another kind, study, tasks or prompts, naming what differs.
    """
    where = f"{one.root} and {two.root} are not of the same study"
    kinds = [bundle.get_meta("config") or "matrix" for bundle in (one, two)]
    if kinds[0] != kinds[1]:
        raise BundleError(f"{where}: made from {kinds[0]} and from {kinds[1]}")
    was, now = one.config, two.config
    if was is None or now is None:
        return
    if was.study != now.study:
        raise BundleError(f"{where}: {was.study} and {now.study}")
    if isinstance(was, Study) and isinstance(now, Study) and was.tasks != now.tasks:
        names = [", ".join(use.named for use in study.tasks) for study in (was, now)]
        what = f"{names[0]} and {names[1]}" if names[0] != names[1] else "items are limited otherwise"
        raise BundleError(f"{where}: other tasks: {what}")
    check_same_prompts(one, two, where)


def check_same_prompts(one: Bundle, two: Bundle, where: str) -> None:
    """As `check_same_study`, of the prompts of each base model that both asked."""
    for path in sorted(one.path("prompts").glob("*.jsonl")):
        other = two.path("prompts") / path.name
        if other.exists():
            changed = first_changed(read_prompts(path), read_prompts(other))
            if changed is not None:
                raise BundleError(f"{where}: other prompts of {path.stem}, the first {changed}")


def cells_of(decision: Any) -> Cells:  # noqa: ANN401 - any JSON
    """The cells of `decision.json`."""
    return {CellId(cell["base_model"], cell["quant"]): cell for cell in decision["cells"]}


def answers(one: Bundle, two: Bundle, cells: Cells) -> Iterator[AnswerChanges]:
    """Of every cell that has responses in both bundles."""
    for cell in cells:
        if all(responses_path(bundle.root, cell).exists() for bundle in (one, two)):
            found = compared_answers(cell, *(texts(bundle, cell) for bundle in (one, two)))
            if found.equal or found.changed or found.only_one:
                yield found


def texts(bundle: Bundle, cell: CellId) -> Texts:
    return {(answer.task, answer.sample_id): answer.text for answer in stored_responses(bundle, cell)}


def made_by(bundle: Bundle) -> dict[str, str]:
    """What made the answers, by key path: packages, machine, each cell's engine, and the hash of its file."""
    found = dict(flatten({key: bundle.get_meta(key) for key in MADE_BY if bundle.get_meta(key)}))
    builds = stored_builds(bundle)
    return found | {f"file of {build.cell}": build.artifact.sha256 for build in builds if build.artifact is not None}


def settings(bundle: Bundle, decision: Any) -> dict[str, str]:  # noqa: ANN401 - any JSON
    """The study as it was run and the policy that decided, by key path."""
    config = bundle.config
    study = {} if config is None else plain(config.model_dump(exclude={"policy", "models"}))
    return dict(flatten({**study, "policy": decision["policy"]}))
