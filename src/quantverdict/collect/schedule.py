"""The cells of a run: what each is asked is frozen, what is missing of it is asked for, how it went is kept."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np

from quantverdict.bundle.integrity import check_fields
from quantverdict.bundle.manifest import STOPPED, Bundle
from quantverdict.bundle.prompts import (
    Batches,
    PromptPlan,
    StoppingSchedule,
    first_changed,
    prompt_lines,
    prompts_file,
    read_prompts,
)
from quantverdict.bundle.store import CellStore, responses_path
from quantverdict.collect.crew import ActiveCell, CellCrew
from quantverdict.collect.executor import BuildRequest, Executor
from quantverdict.collect.generate import (
    AnswerSource,
    CellOutcome,
    CellRecord,
    CellRun,
    Identity,
    OpenAnswers,
    OpenBackend,
    OpenWatch,
    ProgressView,
    ReadAnswer,
    collect_cell,
    whole_text,
)
from quantverdict.errors import BundleError, count_of
from quantverdict.records import CellId, Prompt
from quantverdict.stats import plain_sum
from quantverdict.stats.sequential import ConfidenceSequence

CELLS = "cells.json"
"""How each cell went, with its timings: read by later stages, and by a resumed run."""


@dataclass(frozen=True, slots=True)
class CellJob:
    """A cell that is to be asked.

    Attributes:
        plan: what it is asked.
        open_backend: loads its build.
        plan_name: whose plan it is, its base model's if empty.
        watch: says after each of the plan's rounds whether to stop; None asks everything.
        kept: answers that are had without asking; None where each is asked for.
        answer: what of a completion is its answer, for the next turn of a conversation.
        build: what an executor loads it from; None where it is loaded here alone.
    """

    cell: CellId
    plan: PromptPlan
    open_backend: OpenBackend
    plan_name: str = ""
    watch: OpenWatch | None = None
    kept: OpenAnswers | None = None
    answer: ReadAnswer = whole_text
    build: BuildRequest | None = None

    @property
    def asked_as(self) -> str:
        return self.plan_name or self.cell.base_model


def run_cells(
    bundle: Bundle,
    jobs: Sequence[CellJob],
    view: ProgressView,
    *,
    retry: bool = True,
    say: Callable[[str], None] = lambda _: None,
    executor: Executor | None = None,
) -> tuple[CellOutcome, ...]:
    """Ask every cell what is missing of it; the outcomes in the order of `jobs`, kept in `cells.json`.

    Args:
        say: is told what a user should know of stored answers.
        executor: where builds run, several at once; None runs them here, one after another.
        retry: try again a cell that failed in an earlier run; else its row stays as it was.

    Raises:
        BundleError: the prompts or the batch plan are not those the bundle was begun with, or finished answers were
            changed; the disk is full.
        DataError: stored responses were changed, by file and line.
    """
    for job in jobs:
        freeze_plan(bundle, job)
    log = _Log(bundle, [job.cell for job in jobs])
    proved = {job.cell: bundle.check_hash(responses_path(Path(), job.cell).as_posix()) for job in jobs}
    bundle.begin()
    wanted = [job for job in jobs if retry or (was := log.outcomes.get(job.cell)) is None or was.status != "failed"]
    asked = {cell: stored.prompts for cell, stored in log.outcomes.items()}
    view.start_cells({job.cell: max(0, len(job.plan.prompts) - asked.get(job.cell, 0)) for job in wanted})
    if executor is None:
        for job in wanted:
            store = _open_store(bundle, job, proved[job.cell], say)
            source, reused = AnswerSource(job.open_backend, job.kept, job.watch, job.answer), store.reused
            log.add(collect_cell(store, source, view, log.noting(job.cell), log.known(job.cell)))
            _say_reused(store, reused, say)
    else:
        stores = [_open_store(bundle, job, proved[job.cell], say) for job in wanted]
        _run_together(wanted, stores, executor, log, (view, say))
    return tuple(log.outcomes[job.cell] for job in jobs)


def _open_store(bundle: Bundle, job: CellJob, proved: int, say: Callable[[str], None]) -> CellStore:
    store = CellStore(bundle.root, job.cell, job.plan, proved)
    if store.unproved:
        say(f"{job.cell}: some answers have no checksum (of an older version, or lost), and are taken as they are")
    return store


def _say_reused(store: CellStore, before: int, say: Callable[[str], None]) -> None:
    if (new := store.reused - before) > 0:
        verbs = ("was", "takes") if new == 1 else ("were", "take")
        kept = f"{count_of(new, 'answer')} {verbs[0]} kept from another run"
        say(f"{store.cell}: {kept}, and {verbs[1]} no part in speed and memory")


def _run_together(
    jobs: Sequence[CellJob],
    stores: Sequence[CellStore],
    executor: Executor,
    log: _Log,
    tell: tuple[ProgressView, Callable[[str], None]],
) -> None:
    """The same by an executor. What is watched is compared while it is asked, so that all others come before it."""
    view, say = tell
    first = frozenset(job.cell for job in jobs if job.watch is None)
    reused = {store.cell: store.reused for store in stores}
    cells = [
        ActiveCell(
            CellRun(
                store,
                AnswerSource(job.open_backend, job.kept, job.watch, job.answer),
                view.beside(),
                log.known(job.cell),
            ),
            job.build or BuildRequest(job.cell, job.open_backend),
            log.noting(job.cell),
            frozenset() if job.watch is None else first,
        )
        for job, store in zip(jobs, stores, strict=True)
    ]
    CellCrew(executor, cells, log.add, say).work()
    for store in stores:
        _say_reused(store, reused[store.cell], say)


def read_outcomes(bundle: Bundle) -> Mapping[CellId, CellOutcome]:
    """The outcomes that `cells.json` holds, empty where there is none yet."""

    def read(path: Path) -> dict[CellId, CellOutcome]:
        rows = bundle.read_json(CELLS) if path.exists() else []
        return {outcome.cell: outcome for outcome in as_outcomes(rows, path)}

    return bundle.once(CELLS, read, "outcomes")


def freeze_plan(bundle: Bundle, job: CellJob) -> None:
    """Keep what a base model's cells are asked; what the bundle holds of it already stays as it is, at the beginning.

    Prompts come first: where a kill leaves them without their batches, the same batches are made of them again.

    Raises:
        BundleError: naming the first prompt that differs, or the batch plan.
    """
    name, prompts, whose = prompts_file(job.asked_as), job.plan.prompts, job.asked_as
    stored = asked_before(bundle, whose)
    if stored != prompts[: len(stored)] or (stored and job.plan.rounds is not None and stored != prompts):
        changed = first_changed(stored, prompts) or "their order"
        raise BundleError(f"{bundle.path(name)}: the prompts are not those this bundle was begun with: {changed}")
    batches = [list(batch) for batch in job.plan.batches]
    begun = (bundle.get_meta("batches") or {}).get(whose, batches)
    known = (bundle.get_meta("decoding") or {}).get(whose, {})
    decoding = {task: asdict(how) for task, how in job.plan.decoding.items()}
    _refuse_other(bundle, "batches", whose, same=begun == batches[: len(begun)])
    # What a bundle of an earlier version does not say is as it was there: nothing apart for thought.
    alike = all({**dict.fromkeys(decoding[task]), **known[task]} == decoding[task] for task in known.keys() & decoding)
    _refuse_other(bundle, "decoding", whose, same=alike)
    parts: dict[str, object] = {"batches": batches, "decoding": {**known, **decoding}}
    if job.plan.rounds is not None:
        parts["rounds"] = {"ends": list(job.plan.rounds.ends), "largest": dict(job.plan.rounds.largest)}
        rounds = (bundle.get_meta("rounds") or {}).get(whose, parts["rounds"])
        _refuse_other(bundle, "rounds", whose, same=rounds == parts["rounds"])
    if len(stored) < len(prompts) or not bundle.path(name).exists():
        bundle.write_text(name, prompt_lines(prompts))
    for key, value in parts.items():
        bundle.set_meta(**{key: {**(bundle.get_meta(key) or {}), whose: value}})


def asked_before(bundle: Bundle, whose: str) -> tuple[Prompt, ...]:
    """The prompts that were frozen so far, none before a first run.

    Raises:
        BundleError: they were changed since a run was finished, or cannot be read.
    """
    name = prompts_file(whose)
    bundle.check_hash(name)
    return bundle.once(name, read_prompts) if bundle.path(name).exists() else ()


def _refuse_other(bundle: Bundle, key: str, whose: str, *, same: bool) -> None:
    if not same:
        raise BundleError(f"{bundle.root}: the {key} of {whose} are not those this bundle was begun with")


class _Log:
    """`cells.json`, and the backends' identities in the manifest."""

    def __init__(self, bundle: Bundle, order: Sequence[CellId]) -> None:
        self.bundle, self._order = bundle, order
        self.outcomes = dict(read_outcomes(bundle))
        recorded: Mapping[str, Identity] = bundle.get_meta("backends") or {}
        self.identities = {CellId(*name.split("/", 1)): identity for name, identity in recorded.items()}

    def known(self, cell: CellId) -> CellRecord:
        """What earlier runs noted of a cell."""
        stored = self.outcomes.get(cell)
        if stored is None:
            return CellRecord(self.identities.get(cell))
        return CellRecord(self.identities.get(cell), stored.peak_memory_bytes, stored.stopped_after, stored.halved)

    def noting(self, cell: CellId) -> Callable[[Identity], None]:
        """What keeps the cell's identity before it is asked anything, so that a killed run leaves it too."""

        def note(identity: Identity) -> None:
            if self.identities.get(cell) != identity:
                self.identities[cell] = identity
                self.bundle.set_meta(backends={str(key): dict(value) for key, value in self.identities.items()})

        return note

    def add(self, outcome: CellOutcome) -> None:
        if self.outcomes.get(outcome.cell) != outcome:
            self.outcomes[outcome.cell] = outcome
            # Cells that are asked at once end in any order.
            rank = {cell: number for number, cell in enumerate((*self.outcomes, *self._order))}
            self.outcomes = dict(sorted(self.outcomes.items(), key=lambda item: rank[item[0]]))
            self.bundle.write_json(CELLS, [as_row(entry) for entry in self.outcomes.values()])
        # What is decided rests on it, so it is not left among the times of `cells.json`.
        stopped = {str(cell): one.stopped_after for cell, one in self.outcomes.items() if one.stopped_after is not None}
        if stopped != (self.bundle.get_meta(STOPPED) or {}):
            self.bundle.set_meta(**{STOPPED: stopped})


def as_row(outcome: CellOutcome) -> dict[str, object]:
    row = {name: value for name, value in asdict(outcome).items() if name != "cell"}
    return {"base_model": outcome.cell.base_model, "quant": outcome.cell.quant, **row}


def as_outcomes(rows: object, path: Path) -> list[CellOutcome]:
    """What `cells.json` holds.

    Raises:
        BundleError: not as it was written, naming the row and the key.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BundleError(f"{path}: not as it was written; expected a list with an object for each cell")
    found = []
    for number, row in enumerate(rows, start=1):
        fields: dict[str, Any] = {name: value for name, value in row.items() if name not in ("base_model", "quant")}
        fields["cell"] = (row.get("base_model"), row.get("quant"))
        check_fields(CellOutcome, fields, f"{path}: row {number}")
        found.append(CellOutcome(**{**fields, "cell": CellId(*fields["cell"])}))
    return found


# Asking in rounds, to stop a cell as soon as every gated metric is decided.
#
# Prompts come in a random order fixed by the seed, whole clusters together, each task with its share of every round.
# After a round each gated metric's paired losses go to a confidence sequence; its p-values may be looked at as often as
# one likes. They have a third of the level and the tests of a run that asks everything have the rest, so a cell that is
# never stopped loses next to nothing, and the chance of a wrong outcome stays what it was.

ROUNDS = 16
SEQUENTIAL_SHARE = 1 / 3
"""Of the level, for stopping early; the rest is for the tests of a full run."""


@dataclass(frozen=True, slots=True)
class MonitoredMetric:
    """A gated metric of a cell while it is asked.

    Attributes:
        sequence: of the losses as the test that would accept takes them.
        margin: the loss that is tolerated, as a fraction of 1.
        rejecting: of the losses as the test that would reject takes them; None where an answer without a grade does not
            make them others.
    """

    sequence: ConfidenceSequence
    margin: float
    rejecting: ConfidenceSequence | None = None


def plan_rounds(
    prompts: Sequence[Prompt], clusters: Sequence[str | None], batch_size: int, seed: int, rounds: int = ROUNDS
) -> tuple[Batches, ...]:
    """The batches of each round: indices into `prompts`, every prompt once.

    After round r of R every task has had r / R of its clusters, to the nearest one. A task's order follows from the
    seed and the task alone, and is that of every cell; a batch holds prompts of one task, similar lengths together.

    Args:
        prompts: of a plan, the prompts of a task side by side.
        clusters: a label for each prompt; None is a cluster of its own.
        batch_size: most prompts of a batch.
        seed: of the order.
        rounds: how many; fewer where no task has so many clusters.

    Raises:
        ValueError: unequal lengths, or a number below 1.
    """
    if len(prompts) != len(clusters) or batch_size < 1 or rounds < 1:
        raise ValueError(f"{len(clusters)} clusters for {len(prompts)} prompts, {batch_size} a batch, {rounds} rounds")
    batches: list[list[tuple[int, ...]]] = [[] for _ in range(rounds)]
    for task, members in groupby(range(len(prompts)), key=lambda index: prompts[index].task):
        units = _shuffled(list(members), clusters, seed, task)
        ends = [(len(units) * number + rounds // 2) // rounds for number in range(rounds + 1)]
        for number in range(rounds):
            asked = [index for unit in units[ends[number] : ends[number + 1]] for index in unit]
            asked.sort(key=lambda index: len(prompts[index].text))
            batches[number] += [tuple(asked[at : at + batch_size]) for at in range(0, len(asked), batch_size)]
    return tuple(tuple(number) for number in batches if number)


def in_rounds(
    plan: PromptPlan, clusters: Mapping[tuple[str, str], str | None], batch_size: int, seed: int
) -> PromptPlan:
    """The same prompts in rounds.

    Args:
        plan: its prompts of a task side by side.
        clusters: by task and sample; None is a cluster of its own.
        batch_size, seed: as `plan_rounds`.
    """
    labels = [clusters[prompt.task, prompt.sample_id] for prompt in plan.prompts]
    rounds = plan_rounds(plan.prompts, labels, batch_size, seed)
    by_task: dict[str, list[str | None]] = {}
    for prompt, label in zip(plan.prompts, labels, strict=True):
        by_task.setdefault(prompt.task, []).append(label)
    largest = {task: largest_cluster(of) for task, of in by_task.items()}
    ends = tuple(accumulate(len(batches) for batches in rounds))
    return replace(
        plan, batches=tuple(batch for batches in rounds for batch in batches), rounds=StoppingSchedule(ends, largest)
    )


def largest_cluster(labels: Iterable[str | None]) -> int:
    """Prompts of the largest cluster of a task; None is a cluster of its own."""
    return max(Counter(label for label in labels if label is not None).values(), default=1)


def round_numbers(
    prompts: Sequence[Prompt], batches: Iterable[Sequence[int]], ends: Sequence[int]
) -> dict[tuple[str, str], int]:
    """The round, from 0, in which each prompt is asked, by task and sample."""
    found: dict[tuple[str, str], int] = {}
    number = 0
    for at, batch in enumerate(batches):
        number += at == ends[number]
        found |= {(prompts[index].task, prompts[index].sample_id): number for index in batch}
    return found


def add_round(
    watched: MonitoredMetric,
    losses: Sequence[float],
    clusters: Sequence[str | None],
    largest: int,
    rejecting: Sequence[float] | None = None,
) -> None:
    """Give a sequence the paired losses of a round.

    Args:
        watched: of one metric of one cell.
        losses: baseline less variant (variant less baseline where less is better), of the prompts that an arm has a
            grade for; at most 1 either way.
        clusters: a label for each, None is a cluster of its own; those of two tasks never share one.
        largest: prompts of the largest cluster in the plan.
        rejecting: the same losses for the other sequence; `losses` if not given.
    """
    _add(watched.sequence, losses, clusters, largest)
    if watched.rejecting is not None:
        _add(watched.rejecting, losses if rejecting is None else rejecting, clusters, largest)


def _add(sequence: ConfidenceSequence, losses: Sequence[float], clusters: Sequence[str | None], largest: int) -> None:
    units: dict[tuple[bool, object], list[float]] = {}
    for at, (label, loss) in enumerate(zip(clusters, losses, strict=True)):
        units.setdefault((label is None, at if label is None else label), []).append(loss)
    means = [plain_sum(unit) / len(unit) for unit in units.values()]
    sequence.add(means, [len(unit) / largest for unit in units.values()])


def decided(cell: Iterable[MonitoredMetric], alpha: float, family: int) -> bool:
    """Whether a cell can be stopped: each of its gated metrics is resolved, whatever the others in the study are.

    Args:
        cell: every gated metric of the cell.
        alpha: one-sided level of the study's outcomes, held over the family.
        family: gated metrics times variants of the whole study.
    """
    return all(min(stopped_p_values(watched)) <= alpha / family for watched in cell)


def stopped_p_values(watched: MonitoredMetric) -> tuple[float, float]:
    """P-values of H0: loss >= margin and H0: loss <= margin for a cell that was stopped.

    They take the place of `noninferiority.Loss`'s in the study's Holm families, beside those of cells never stopped.
    """
    below, above = watched.sequence.p_values(watched.margin)
    if watched.rejecting is not None:
        above = watched.rejecting.p_values(watched.margin)[1]
    return min(1.0, below / SEQUENTIAL_SHARE), min(1.0, above / SEQUENTIAL_SHARE)


def full_p_values(watched: MonitoredMetric, full: tuple[float, float]) -> tuple[float, float]:
    """The same for a cell of a sequential study that was asked everything: by whichever of the two ways is surer.

    Args:
        watched: what its rounds said.
        full: the p-values of the fixed tests over all its prompts.
    """
    early = stopped_p_values(watched)
    one, two = (min(at, 1.0, all_of_it / (1 - SEQUENTIAL_SHARE)) for at, all_of_it in zip(early, full, strict=True))
    return one, two


def _shuffled(members: list[int], clusters: Sequence[str | None], seed: int, task: str) -> list[list[int]]:
    """The clusters of a task in random order."""
    units: dict[tuple[bool, object], list[int]] = {}
    for index in members:
        label = clusters[index]
        units.setdefault((label is None, index if label is None else label), []).append(index)
    own = int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "big")
    order = np.random.default_rng([seed, own]).permutation(len(units))
    listed = list(units.values())
    return [listed[at] for at in order]
