"""Where cells run: in this process, one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantverdict.collect.generate import CellOutcome, Identity, Known, OpenBackend, ProgressView, collect_cell
from quantverdict.collect.integrity import refuse_misfit
from quantverdict.collect.manifest import STOPPED, Bundle
from quantverdict.collect.prompts import Plan, first_changed, prompt_lines, prompts_file, read_prompts
from quantverdict.collect.stopping import OpenWatch
from quantverdict.collect.store import CellStore, responses_path
from quantverdict.errors import BundleError
from quantverdict.records import CellId

CELLS = "cells.json"
"""How each cell went, with its timings: read by later stages, and by a resumed run."""


@dataclass(frozen=True, slots=True)
class Job:
    """A cell that is to be asked.

    Attributes:
        plan: what it is asked.
        open_backend: loads its build.
        plan_name: whose plan it is, its base model's if empty.
        watch: says after each of the plan's rounds whether to stop; None asks everything.
    """

    cell: CellId
    plan: Plan
    open_backend: OpenBackend
    plan_name: str = ""
    watch: OpenWatch | None = None

    @property
    def asked_as(self) -> str:
        return self.plan_name or self.cell.base_model


def run_cells(
    bundle: Bundle,
    jobs: Sequence[Job],
    view: ProgressView,
    *,
    retry: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[CellOutcome, ...]:
    """Ask every cell what is missing of it; the outcomes in the order of `jobs`, kept in `cells.json`.

    Args:
        say: is told what a user should know of stored answers.
        retry: try again a cell that failed in an earlier run; else its row stays as it was.

    Raises:
        BundleError: the prompts or the batch plan are not those the bundle was begun with, or finished answers were
            changed; the disk is full.
        DataError: stored responses were changed, by file and line.
    """
    for job in jobs:
        freeze_plan(bundle, job)
    log = _Log(bundle)
    proved = {job.cell: bundle.refuse_changed(responses_path(Path(), job.cell).as_posix()) for job in jobs}
    bundle.begin()
    for job in jobs:
        stored = log.outcomes.get(job.cell)
        if stored is not None and stored.status == "failed" and not retry:
            continue
        store = CellStore(bundle.root, job.cell, job.plan, proved[job.cell])
        if store.unproved:
            say(f"{job.cell}: some answers have no checksum (of an older version, or lost), and are taken as they are")
        log.add(collect_cell(store, job.open_backend, view, log.noting(job.cell), log.known(job.cell), job.watch))
    return tuple(log.outcomes[job.cell] for job in jobs)


def read_outcomes(bundle: Bundle) -> dict[CellId, CellOutcome]:
    """The outcomes that `cells.json` holds, empty where there is none yet."""
    return _Log(bundle).outcomes


def freeze_plan(bundle: Bundle, job: Job) -> None:
    """Keep what a base model's cells are asked, or check that it is what the bundle holds.

    Raises:
        BundleError: naming the first prompt that differs, or the batch plan.
    """
    name = prompts_file(job.asked_as)
    if not bundle.freeze_text(name, prompt_lines(job.plan.prompts)):
        changed = first_changed(read_prompts(bundle.path(name)), job.plan.prompts) or "their order"
        raise BundleError(f"{bundle.path(name)}: the prompts are not those this bundle was begun with: {changed}")
    _freeze_part(bundle, "batches", job.asked_as, [list(batch) for batch in job.plan.batches])
    _freeze_part(bundle, "decoding", job.asked_as, {task: asdict(how) for task, how in job.plan.decoding.items()})
    if job.plan.rounds is not None:
        ends, largest = list(job.plan.rounds.ends), dict(job.plan.rounds.largest)
        _freeze_part(bundle, "rounds", job.asked_as, {"ends": ends, "largest": largest})


def _freeze_part(bundle: Bundle, key: str, whose: str, value: object) -> None:
    parts: Mapping[str, object] = bundle.recorded(key) or {}
    if whose not in parts:
        bundle.record(**{key: {**parts, whose: value}})
    elif parts[whose] != value:
        raise BundleError(f"{bundle.root}: the {key} of {whose} are not those this bundle was begun with")


class _Log:
    """`cells.json`, and the backends' identities in the manifest."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        rows = bundle.read_json(CELLS) if bundle.path(CELLS).exists() else []
        self.outcomes = {outcome.cell: outcome for outcome in as_outcomes(rows, bundle.path(CELLS))}
        recorded: Mapping[str, Identity] = bundle.recorded("backends") or {}
        self.identities = {CellId(*name.split("/", 1)): identity for name, identity in recorded.items()}

    def known(self, cell: CellId) -> Known:
        """What earlier runs noted of a cell."""
        stored = self.outcomes.get(cell)
        if stored is None:
            return Known(self.identities.get(cell))
        return Known(self.identities.get(cell), stored.peak_memory_bytes, stored.stopped_after, stored.halved)

    def noting(self, cell: CellId) -> Callable[[Identity], None]:
        """What keeps the cell's identity before it is asked anything, so that a killed run leaves it too."""

        def note(identity: Identity) -> None:
            if self.identities.get(cell) != identity:
                self.identities[cell] = identity
                self.bundle.record(backends={str(key): dict(value) for key, value in self.identities.items()})

        return note

    def add(self, outcome: CellOutcome) -> None:
        if self.outcomes.get(outcome.cell) != outcome:
            self.outcomes[outcome.cell] = outcome
            self.bundle.write_json(CELLS, [as_row(entry) for entry in self.outcomes.values()])
        # What is decided rests on it, so it is not left among the times of `cells.json`.
        stopped = {str(cell): one.stopped_after for cell, one in self.outcomes.items() if one.stopped_after is not None}
        if stopped != (self.bundle.recorded(STOPPED) or {}):
            self.bundle.record(**{STOPPED: stopped})


def as_row(outcome: CellOutcome) -> dict[str, object]:
    row = {name: value for name, value in asdict(outcome).items() if name != "cell"}
    return {"base_model": outcome.cell.base_model, "quant": outcome.cell.quant, **row}


def as_outcomes(rows: object, path: Path) -> list[CellOutcome]:
    """What `cells.json` holds.

    Raises:
        BundleError: not as it was written, naming the row and the key.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BundleError(f"{path}: not as it was written: a list with an object for each cell is expected")
    found = []
    for number, row in enumerate(rows, start=1):
        fields: dict[str, Any] = {name: value for name, value in row.items() if name not in ("base_model", "quant")}
        fields["cell"] = (row.get("base_model"), row.get("quant"))
        refuse_misfit(CellOutcome, fields, f"{path}: row {number}")
        found.append(CellOutcome(**{**fields, "cell": CellId(*fields["cell"])}))
    return found
