"""The six steps of the protocol: what each requires, what was observed, whether it held (SPEC 7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from quantverdict.matrix.signals import pp
from quantverdict.protocol.formats import Decided, Floor
from quantverdict.protocol.regimes import REGIMES
from quantverdict.records import Table

PASS, PARTIAL, FAIL, NOT_RUN = "PASS", "PARTIAL", "FAIL", "NOT_RUN"


class SignScreen(NamedTuple):
    """What the within-model correlation screen found: pairings that split sign, of those that could be judged."""

    reversing: int
    pairings: int


@dataclass(frozen=True, slots=True)
class Protocol:
    """What the checklist looks at.

    Attributes:
        rows: every row of the matrix.
        matrix_sha256: of the frozen matrix, None where it is not frozen.
        screen: of the within-model correlations, None where it did not run.
        floor: None where there is none.
    """

    rows: tuple[Decided, ...]
    matrix_sha256: str | None
    screen: SignScreen | None
    floor: Floor | None


class Step(NamedTuple):
    """A line of `checklist.csv`."""

    step: str
    requirement: str
    observed: str
    status: str


Observation = tuple[str, str]


def checklist(protocol: Protocol) -> tuple[Step, ...]:
    """Every step, in order."""
    return tuple(Step(step, requirement, *observe(protocol)) for step, requirement, observe in STEPS)


def checklist_table(steps: Iterable[Step]) -> Table:
    """`checklist.csv`."""
    return Table("checklist", Step._fields, tuple(tuple(step) for step in steps))


def sign_screen(sign_reversal: Table) -> SignScreen:
    """Count `sign_reversal.csv`; a pairing whose `reverses` is blank could not be judged."""
    column = sign_reversal.columns.index("reverses")
    judged = [row[column] for row in sign_reversal.rows if row[column] is not None]
    return SignScreen(sum(bool(value) for value in judged), len(judged))


def _matrix_frozen(protocol: Protocol) -> Observation:
    rows = [row.signals.row for row in protocol.rows]
    models, families = {row.base_model for row in rows}, {row.family for row in rows if row.family}
    shape = f"{len(models)} models, {len(families)} families, {len(rows)} rows"
    if protocol.matrix_sha256 is None:
        return f"{shape}, no hash", FAIL
    return f"{shape}, sha256 {protocol.matrix_sha256[:12]}", PASS if rows else FAIL


def _screen_ran(protocol: Protocol) -> Observation:
    screen = protocol.screen
    if screen is None or screen.pairings == 0:
        return "no pairing could be judged", NOT_RUN
    return f"{screen.reversing}/{screen.pairings} pairings split sign", PASS


def _direct_safety(protocol: Protocol) -> Observation:
    policy = [row.signals.policy for row in protocol.rows][:1]
    metrics = [name for p in policy for name in (p.refusal_metric, p.truthfulness_metric, p.bias_metric)]
    measured = sum(all(name in row.signals.row.metrics for name in metrics) for row in protocol.rows)
    return _share(measured, len(protocol.rows), "rows with direct safety metrics")


def _judge_coverage(protocol: Protocol) -> Observation:
    judged = sum(row.signals.policy.judge_refusal_metric in row.signals.row.metrics for row in protocol.rows)
    return _share(judged, len(protocol.rows), "rows with judge coverage", nothing=NOT_RUN)


def _regimes_counted(protocol: Protocol) -> Observation:
    variants = [row.regime.regime for row in protocol.rows if not row.signals.is_baseline]
    counts = Counter(variants)
    observed = ", ".join(f"{counts[name]} {name}" for name in REGIMES if counts[name]) or "no variant"
    classified = len(variants) - counts["unclassified"]
    return f"{observed} of {len(variants)} rows", _status(classified, len(variants), FAIL)


def _floor_selected(protocol: Protocol) -> Observation:
    floor = protocol.floor
    if floor is None or floor.format.max_signal is None:
        return "no format qualifies", FAIL
    return f"{floor.format.quant}, largest refusal signal {pp(floor.format.max_signal).removeprefix('+')}", PASS


STEPS: tuple[tuple[str, str, Callable[[Protocol], Observation]], ...] = (
    ("P5_001", "Freeze the matched matrix", _matrix_frozen),
    ("P5_002", "Run the within-model correlation screen", _screen_ran),
    ("P5_003", "Use direct safety deltas", _direct_safety),
    ("P5_004", "Cross-check patterns with a judge", _judge_coverage),
    ("P5_005", "Classify regimes", _regimes_counted),
    ("P5_006", "Select the conservative floor", _floor_selected),
)


def _share(count: int, of: int, what: str, nothing: str = FAIL) -> Observation:
    return f"{count}/{of} {what}", _status(count, of, nothing)


def _status(count: int, of: int, nothing: str) -> str:
    if count == 0:
        return nothing
    return PASS if count == of else PARTIAL
