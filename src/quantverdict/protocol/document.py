"""The content of `decision.json`: what was decided, in plain values, for the report, the gate and other programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from quantverdict.errors import BundleError
from quantverdict.matrix.columns import beyond_bounds
from quantverdict.matrix.deltas import Delta
from quantverdict.matrix.format_alerts import UNENDED, describe
from quantverdict.matrix.grid import Grids
from quantverdict.matrix.headroom import Choices
from quantverdict.matrix.noise import ALL, Noise
from quantverdict.matrix.recovery import INSIDE, Recovery
from quantverdict.matrix.signals import TierOf
from quantverdict.policy import Constraints, Policy
from quantverdict.protocol.criteria import BuildVerdict, Pace, criteria_rows
from quantverdict.protocol.formats import ConservativeFloor, DecidedRow, FormatRole, against_floor, is_gguf
from quantverdict.protocol.outcomes import ComparisonOutcome as OutcomeOf
from quantverdict.protocol.selection import ModelChoice
from quantverdict.protocol.taxonomy import Findings, refusal_mde, unproven
from quantverdict.records import CellId, Table

if TYPE_CHECKING:
    import polars as pl

# What a decision rests on besides the matrix and the policy.


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a decision rests on besides the matrix; the defaults are those of a bare matrix.

    Attributes:
        scores: scored samples (`grid.SCORE_COLUMNS`) or grids made of them, for paired intervals.
        sign_reversal: `sign_reversal.csv`, for the correlation screen.
        matrix_sha256: of the frozen `matrix.csv`.
        failed: cells that did not run, and why.
        duplicates: cells with the same weights as another build of their base model, and that build's quant.
        lineage: cells whose origin or prompt is in doubt, and why.
        configured: cells whose settings are not their baseline's, unless the study waives it, and which are not.
        pairing: of ingested samples, which prompts have no counterpart, and what their equality rests on; sentences.
        dequantized: baselines that were themselves dequantised, and from what.
        baselines: the cells that others are compared with, whether they ran or not.
        idle_judges: judges that the study names and that gave no label.
        judging: judges that do not agree with labels that are known; sentences.
        nulls: A/A replicates, each to the baseline that it is; they are no builds.
        mixed_up: cells on another engine than their baseline, which does not run there: format and engine in one delta.
        order: the cells of the study in its order; the matrix's own order where it is empty.
        seed: of the bootstrap.
        answers: `answers.parquet`, the form of every answer; None where answers are not stored.
        choices: how many choices the items of each base model have, where that is known.
        look: which look at the prompts it is.
        paces: what each build was asked and how long it took, where that was measured.
    """

    scores: pl.DataFrame | Grids | None = None
    sign_reversal: Table | None = None
    matrix_sha256: str | None = None
    failed: Mapping[CellId, str] = field(default_factory=dict)
    duplicates: Mapping[CellId, str] = field(default_factory=dict)
    lineage: Mapping[CellId, str] = field(default_factory=dict)
    configured: Mapping[CellId, str] = field(default_factory=dict)
    pairing: tuple[str, ...] = ()
    dequantized: Mapping[CellId, str] = field(default_factory=dict)
    baselines: frozenset[CellId] = frozenset()
    idle_judges: tuple[str, ...] = ()
    judging: tuple[str, ...] = ()
    nulls: Mapping[CellId, CellId] = field(default_factory=dict)
    mixed_up: Mapping[CellId, str] = field(default_factory=dict)
    order: tuple[CellId, ...] = ()
    seed: int = 42
    answers: pl.DataFrame | None = None
    choices: Choices = field(default_factory=dict)
    look: int = 1
    paces: Mapping[CellId, Pace] = field(default_factory=dict)


SCHEMA = 3
NAMED = 3
"""A note names so many builds; the tables name all."""


@dataclass(frozen=True, slots=True)
class DecidedStudy:
    """Everything that was decided, and what it rests on."""

    study: str
    policy: Policy
    constraints: Constraints
    evidence: Evidence
    findings: Findings
    tiers: Mapping[CellId, TierOf]
    roles: tuple[FormatRole, ...]
    choices: tuple[ModelChoice, ...]
    fronts: Mapping[str, tuple[str, ...]]
    noise: tuple[Noise, ...] | None
    recovery: tuple[Recovery, ...] = ()


def check_schema(decision: object, path: Path) -> None:
    """Refuse a `decision.json`, as it is or as a row of text, that a program of another version wrote.

    Raises:
        BundleError: so it is.
    """
    schema = decision.get("schema") if isinstance(decision, dict) else None
    if str(schema) != str(SCHEMA):
        raise BundleError(
            f"{path}: a decision of schema version {schema}; this program reads {SCHEMA}: run or analyze it again"
        )


def document(judged: DecidedStudy) -> dict[str, object]:
    """The document; a share is a fraction of 1, a delta in pp, what was not measured null."""
    floor = judged.findings.floor
    return {
        "schema": SCHEMA,
        "study": judged.study,
        "policy": judged.policy.model_dump(mode="json"),
        "quality_metric": judged.policy.quality_metric,
        "has_samples": judged.noise is not None,
        "rules": judged.findings.rows[0].signals.policy.rules if judged.findings.rows else judged.policy.rules,
        "notes": list(_notes(judged)),
        "cells": [_cell(cell, judged) for cell in _order(judged)],
        "formats": [_format(role) for role in judged.roles],
        "floor": None if floor is None else _floor(floor),
        "best": {choice.base_model: {"quant": choice.quant, "reason": choice.reason} for choice in judged.choices},
        "pareto": {model: list(quants) for model, quants in judged.fronts.items()},
        "constraints": judged.constraints.model_dump(mode="json"),
    }


def _order(judged: DecidedStudy) -> list[CellId]:
    """Every cell once: as the study has them, then what else there is."""
    evidence, rows = judged.evidence, [row.signals.cell for row in judged.findings.rows]
    known = dict.fromkeys([*rows, *evidence.duplicates, *evidence.failed])
    return list(dict.fromkeys([*(cell for cell in evidence.order if cell in known), *known]))


def _cell(cell: CellId, judged: DecidedStudy) -> dict[str, object]:
    row = next((row for row in judged.findings.rows if row.signals.cell == cell), None)
    if row is not None:
        return _measured_cell(row, judged)
    evidence = judged.evidence
    sibling = CellId(cell.base_model, evidence.duplicates.get(cell, ""))
    duplicate = next((row for row in judged.findings.rows if row.signals.cell == sibling), None)
    family = next((r.signals.row.family for r in judged.findings.rows if r.signals.cell[0] == cell.base_model), "")
    return {
        **dict.fromkeys(_CELL_KEYS),
        "base_model": cell.base_model,
        "family": family,
        "quant": cell.quant,
        "is_baseline": cell in evidence.baselines,
        "twin_of": evidence.duplicates.get(cell),
        "status": "twin" if cell in evidence.duplicates else "failed",
        "failure": evidence.failed.get(cell),
        "bpw": None if duplicate is None else _number(duplicate.signals.row.bpw),
        "file_bytes": None if duplicate is None else _number(duplicate.signals.row.value("file_bytes")),
    }


def _measured_cell(row: DecidedRow, judged: DecidedStudy) -> dict[str, object]:
    signals, policy, deltas = row.signals, judged.policy, judged.findings.deltas
    quality = deltas.get((signals.cell, policy.quality_metric))
    refusal = deltas.get((signals.cell, policy.refusal_metric))
    values = (
        signals.cell.base_model,
        signals.row.family,
        signals.cell.quant,
        signals.is_baseline,
        None,
        "ok",
        None,
        _number(signals.row.bpw),
        _number(signals.row.value("file_bytes")),
        _number(signals.row.value("tokens_per_second")),
        judged.evidence.dequantized.get(signals.cell),
        _number(signals.quality),
        *_interval(quality),
        _number(signals.refusal),
        *_interval(refusal),
        None if signals.is_baseline else refusal_mde(signals, judged.findings),
        _number(signals.refusal_signal),
        signals.refusal_source,
        judged.tiers[signals.cell].tier,
        row.regime.regime,
        row.regime.reason,
        row.regime.probability,
        row.action.action,
        row.action.reason,
        None if row.point_action is None else row.point_action.action,
        None if row.paired_action is None else row.paired_action.action,
        None if row.paired_action is None else [_outcome(one) for one in row.outcomes],
        *((None, None) if (shared := signals.row.shared) is None else (shared.stopped_after, shared.planned)),
        None if (against := judged.findings.against.get(signals.cell)) is None else against.unpaired,
    )
    describe = dict[str, object](zip(_CELL_KEYS, values, strict=True))
    if row.criteria is None:
        return describe
    hiding = {one.comparison.metric: one.reason for one in row.outcomes if one.reason is not None}
    return {**describe, **_criteria(row.criteria, hiding)}


def _criteria(found: BuildVerdict, hiding: Mapping[str, str]) -> dict[str, object]:
    """What the criteria say of a build; `criteria.csv` has the same rows.

    Args:
        hiding: why a metric's answers may hide a loss.
    """
    rows = criteria_rows(found)
    for shown, row in zip(rows, found.rows, strict=True):
        parts = () if row.standing.loss is None else row.standing.loss.parts
        more = [hiding[part.metric] for part in parts if part.metric in hiding]
        shown["reason"] = shown["reason"] or "; ".join(more)
    return {
        "criteria_verdict": found.verdict,
        "p_accept": found.p_accept,
        "p_reject": found.p_reject,
        "accept_level": found.accept_level,
        "reject_level": found.reject_level,
        "n_pairs": found.pairs,
        "n_to_accept": found.pairs_after(found.looks_to_accept),
        "n_to_reject": found.pairs_after(found.looks_to_reject),
        "seconds_to_accept": found.seconds_until(found.looks_to_accept),
        "seconds_to_reject": found.seconds_until(found.looks_to_reject),
        "criteria": rows,
    }


_CELL_KEYS = (
    "base_model", "family", "quant", "is_baseline", "twin_of", "status", "failure", "bpw", "file_bytes",
    "tokens_per_second", "dequantized_from", "quality_delta_pp", "quality_lo_pp", "quality_hi_pp", "refusal_delta_pp",
    "refusal_lo_pp", "refusal_hi_pp", "refusal_mde_pp", "refusal_signal_pp", "refusal_signal_metric", "tier", "regime",
    "regime_reason", "regime_probability", "action", "action_reason", "point_action", "paired_action", "outcomes",
    "stopped_after", "prompts_planned", "unpaired",
)  # fmt: skip


def _outcome(judged: OutcomeOf) -> dict[str, object]:
    """The keys are columns of `paired.csv`, which has the rest."""
    one = judged.comparison
    return {
        "metric": one.metric,
        "outcome": judged.outcome,
        "n_pairs": one.n,
        "delta_pp": float(one.delta),
        "ci_lo_pp": one.lo,
        "ci_hi_pp": one.hi,
        "margin_pp": None if one.gate is None else _number(one.gate.margin),
        "p_outcome": judged.p_outcome,
        "n_needed": judged.n_needed,
        "headroom": None if judged.headroom is None else judged.headroom.verdict,
        "ungraded_a": one.ungraded_a,
        "ungraded_c": one.ungraded_c,
        "missing": one.missing,
        "extra": one.extra,
        "reason": judged.reason,
    }


def _format(role: FormatRole) -> dict[str, object]:
    found = role.format
    return {
        "quant": found.quant,
        "n_models": len(found.rows),
        "max_refusal_signal_pp": _number(found.max_signal),
        "reject_rows": len(found.rejected),
        "role": role.role,
        "reason": role.reason,
        "bpw": _number(found.bpw),
    }


def _floor(floor: ConservativeFloor) -> dict[str, object]:
    return {
        "quant": floor.format.quant,
        "max_refusal_signal_pp": _number(floor.format.max_signal),
        "reason": floor.reason,
    }


def _notes(judged: DecidedStudy) -> Iterator[str]:
    yield from _unseen(judged)
    yield from _unmeasured(judged)
    evidence = judged.evidence
    for cell, source in evidence.dequantized.items():
        yield f"{cell} was itself dequantised from {source}: levels near that grid look better than they are."
    for cell, quant in evidence.duplicates.items():
        yield f"{cell} has the same weights as {quant}: it was run once and is counted once."
    for cell, why in evidence.failed.items():
        yield f"{cell} did not run: {why}"
    for cell, doubt in judged.findings.lineage.items():
        yield f"{cell}: {doubt}."
    yield from evidence.pairing
    for cell, engine in evidence.mixed_up.items():
        yield f"{cell} ran on {engine} and its baseline did not: its deltas are those of format and engine together."
    yield from _left_out(judged)
    yield from _limits(judged)
    yield from _alerts(judged)
    yield from _stopped(judged)
    yield from _nothing_found(judged)


def _limits(judged: DecidedStudy) -> Iterator[str]:
    """What could not have failed or is not measured, once a base model; instruments apart, and answers ungraded."""
    policy, rules = judged.policy, judged.findings.rows[0].signals.policy.rules if judged.findings.rows else "points"
    resting = (*policy.demanded, policy.quality_metric, policy.refusal_metric)
    for (model, metric), room in judged.findings.rooms.items():
        if (room.tested and metric not in resting) or (
            rules != "points" and metric not in policy.gates and not room.constant
        ):
            continue
        if room.verdict != "informative":
            yield f"{model}: {room.reason}."
    for cell, why in judged.findings.against.items():
        if why.apart is not None:
            yield f"{cell}: {why.apart}."
    hiding = [one for one in judged.findings.outcomes if one.is_informative and one.reason is not None]
    for one in hiding[:NAMED]:
        yield f"{one.comparison.cell}: {one.reason}."
    if len(hiding) > NAMED:
        yield f"{len(hiding) - NAMED} more gated comparisons have answers without a grade in one arm (paired.csv)."


def _left_out(judged: DecidedStudy) -> Iterator[str]:
    """Criteria that nobody measured, once a base model; or that there are none."""
    if judged.noise is not None and judged.policy.rules == "paired":
        yield (
            "Decided metric by metric (rules paired): margins, required or quality_margin_pp stand in the policy, and "
            "no criteria, which would take fewer prompts."
        )
    describe: dict[tuple[str, str], str] = {}
    for row in judged.findings.rows:
        for one in () if row.criteria is None else row.criteria.criteria:
            if one.standing.loss is None and one.standing.headroom == "not_measured":
                describe.setdefault((one.standing.cell.base_model, one.name), one.standing.reason)
    for (model, _), reason in describe.items():
        yield f"{model}: {reason}."


def _alerts(judged: DecidedStudy) -> Iterator[str]:
    """Builds whose answers changed their form, a line each."""
    found = judged.findings.alerts or ()
    firing = [one for one in found if one.fires]
    for cell in dict.fromkeys(one.cell for one in firing):
        yield f"Format alert, {cell}: {'; '.join(describe(one) for one in firing if one.cell == cell)}."
    for one in found:
        if one.name in UNENDED and not one.fires and (one.value or one.baseline):
            yield f"{one.cell} has {describe(one)} (the baseline's first): what is no answer is not graded."


def _stopped(judged: DecidedStudy) -> Iterator[str]:
    """Builds that were asked less than their baseline, and what was enough."""
    for row in judged.findings.rows:
        shared = row.signals.row.shared
        if shared is not None and shared.stopped_after is not None:
            decided = ", ".join(f"{one.comparison.metric} {one.outcome}" for one in row.outcomes)
            if row.criteria is not None:
                decided = ", ".join(f"{one.name} {one.outcome}" for one in row.criteria.rows)
            yield (
                f"{row.signals.cell} was stopped after {shared.stopped_after} of {shared.planned} prompts, which were "
                f"enough ({decided}); it is compared with its baseline over these."
            )


def _unmeasured(judged: DecidedStudy) -> Iterator[str]:
    """What stands for what, and what there is no number for."""
    policy, rows = judged.policy, judged.findings.rows
    if policy.quality_metric != "bertscore":
        yield f"Quality is {policy.quality_metric}."
    if judged.noise is None:
        yield "Decided from the matrix alone, by the rules on deltas: without samples nothing is compared in pairs."
    else:
        yield from _noise(judged.noise)
        yield from _inside_noise([one for one in judged.recovery if one.metric in judged.policy.gates])
    for row in rows:
        for name, value in beyond_bounds(row.signals.row):
            yield f"{name} of {row.signals.cell} is {float(value):g}, which no share can be: taken for a rounding."
    for name in (policy.judge_refusal_metric, policy.truthfulness_metric, policy.bias_metric):
        if not any(name in row.signals.row.metrics for row in rows):
            yield f"{name} was not measured."
    yield from judged.evidence.judging
    if judged.evidence.idle_judges:
        yield f"The study names judges that gave no label: {', '.join(judged.evidence.idle_judges)}."


def _noise(noise: Sequence[Noise]) -> Iterator[str]:
    """How many scores change though nothing does, of each base model; or that it is not known."""
    if not noise:
        yield "No A/A replicate was run, so the noise floor is unknown: how many answers change though nothing does."
    for model in dict.fromkeys(one.base_model for one in noise):
        mine = [(one.metric, one.floor) for one in noise if one.base_model == model and one.task == ALL]
        flipped = [f"{metric} {floor.flips} of {floor.arms * floor.n}" for metric, floor in mine if floor.flips]
        rerun = f"A/A replicates, the baseline of {model} run again {mine[0][1].arms} times, changed"
        if flipped:
            more = f", and {len(flipped) - NAMED} more metrics" if len(flipped) > NAMED else ""
            yield f"{rerun} scores though nothing else did: {', '.join(flipped[:NAMED])}{more}."
        else:
            metric, floor = max(mine, key=lambda one: one[1].n)
            most = f"{100 * floor.hi:.2g} %"
            yield f"{rerun} no score: of {floor.n} prompts ({metric}) at most {most} change by noise."


def _inside_noise(found: Sequence[Recovery]) -> Iterator[str]:
    """Metrics in which a build differs from its baseline as A/A replicates do, a line a build."""
    for cell in dict.fromkeys(one.cell for one in found):
        metrics = [one.metric for one in found if one.cell == cell and one.noise == INSIDE]
        more = f" and {len(metrics) - NAMED} more metrics" if len(metrics) > NAMED else ""
        if metrics:
            yield f"{cell} is inside the noise of A/A replicates in {', '.join(metrics[:NAMED])}{more}."


def _unseen(judged: DecidedStudy) -> Iterator[str]:
    """What these prompts could not have shown: no build, and no floor, is proven safe by it."""
    found = judged.findings
    rows = [row for row in found.rows if not (row.signals.is_baseline or row.action.is_reject)]
    blind = {str(row.signals.cell): why for row in rows if (why := unproven(row, found)) is not None}
    if blind:
        first = "; ".join(f"{cell}: {why}" for cell, why in list(blind.items())[:NAMED])
        more = f"; and {len(blind) - NAMED} more" if len(blind) > NAMED else ""
        yield f"Inconclusive with this many prompts, so not proven safe: {first}{more} (TAX_010)."


def _nothing_found(judged: DecidedStudy) -> Iterator[str]:
    """Why there is no floor or no build to ship, where there is none."""
    if judged.findings.floor is None:
        formats = [role.format for role in judged.roles if is_gguf(role.format.quant)]
        why = "; ".join(f"{one.quant}: {', '.join(against_floor(one, judged.policy))}" for one in formats)
        yield f"No conservative floor: {why or 'no GGUF format has a row'}."
    for choice in judged.choices:
        if choice.quant is None:
            yield f"No build of {choice.base_model} to ship: {choice.reason or 'none ran'}."


def _interval(delta: Delta | None) -> tuple[float | None, float | None]:
    return (None, None) if delta is None else (delta.lo, delta.hi)


def _number(value: Fraction | None) -> int | float | None:
    if value is None:
        return None
    return value.numerator if value.denominator == 1 else float(value)
