"""The best build of each base model under the study's constraints, and the Pareto front of quality, size and speed.

Best is the smallest build that nothing rules out. What was not measured rules a build out: it is not known to be fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from quantverdict.matrix.signals import TierOf
from quantverdict.policy import Constraints, Policy
from quantverdict.protocol.actions import FLOOR_CANDIDATE
from quantverdict.protocol.formats import DecidedRow
from quantverdict.records import Row

Rule = Callable[[DecidedRow, TierOf, Constraints], str | None]
"""Why a build cannot be the best; None where it can."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The answer for one base model.

    Attributes:
        quant: the build to ship, None where there is none.
        reason: why it, or what rules each build out.
    """

    base_model: str
    quant: str | None
    reason: str


def best_build(
    base_model: str, rows: Sequence[DecidedRow], tiers: Sequence[TierOf], constraints: Constraints
) -> ModelChoice:
    """The smallest build that no rule excludes.

    Args:
        base_model: whose builds these are.
        rows: its rows, the baseline among them.
        tiers: of the same rows.
        constraints: of the study.
    """
    against = {
        row.signals.cell.quant: next((why for rule in exclusions(row) if (why := rule(row, tier, constraints))), None)
        for row, tier in zip(rows, tiers, strict=True)
    }
    fit = [row for row in rows if against[row.signals.cell.quant] is None]
    if not fit:
        return ModelChoice(base_model, None, "; ".join(f"{quant}: {why}" for quant, why in against.items()))
    measure, ordered = _by_size(fit)
    if not ordered and len(fit) == 1:
        measure, ordered = "file", fit
    if not ordered:
        return ModelChoice(
            base_model, None, "neither file size nor bits per weight is known of every build that is fit"
        )
    why = _why_proven(ordered, measure, against) if exclusions(fit[0]) is PAIRED_EXCLUSIONS else _why(ordered, measure)
    return ModelChoice(base_model, ordered[0].signals.cell.quant, why)


_IN_WORDS = {"reject_inferior": "rejected", "not_resolvable": "inconclusive"}


def _why_proven(ordered: Sequence[DecidedRow], measure: str, against: Mapping[str, str | None]) -> str:
    """Why a build that paired tests let pass, and what became of those that they did not."""
    best = ordered[0]
    if best.signals.is_baseline:
        reason = "no other build is shown to be as good"
    else:
        reason = f"smallest {measure} of {len(ordered)} builds shown to be as good; {best.action.reason}"
    ruled = [_IN_WORDS.get(why, why) for why in against.values() if why is not None]
    actions = [f"{why} {ruled.count(why)}" for why in dict.fromkeys(ruled)]
    return f"{reason}; the others: {', '.join(actions)}" if actions else reason


def _why(ordered: Sequence[DecidedRow], measure: str) -> str:
    best = ordered[0]
    action = f"{best.action.action}: {best.action.reason}"
    reason = f"smallest {measure} of {len(ordered)} builds that nothing rules out; {action}"
    if best.action.action in {FLOOR_CANDIDATE, "reference"}:
        return reason
    proven = next((row.signals.cell.quant for row in ordered if row.action.action == FLOOR_CANDIDATE), None)
    if proven is None:
        return f"{reason}; no build is a {FLOOR_CANDIDATE}"
    return f"{reason}; the smallest {FLOOR_CANDIDATE} is {proven}"


def _rejected(row: DecidedRow, _tier: TierOf, _constraints: Constraints) -> str | None:
    return row.action.action if row.action.is_reject else None


def _not_measured(row: DecidedRow, _tier: TierOf, _constraints: Constraints) -> str | None:
    if row.regime.regime == "unclassified":
        return row.regime.reason
    signals = row.signals
    return signals.missing(signals.refusal_source) if signals.refusal_signal is None else None


def _not_shown(row: DecidedRow, _tier: TierOf, _constraints: Constraints) -> str | None:
    return "; ".join(row.signals.gaps) or None


def _collapsed(row: DecidedRow, _tier: TierOf, _constraints: Constraints) -> str | None:
    """Also where the policy files a joint collapse under neutral."""
    policy, refusal = row.signals.policy, row.signals.refusal
    return "refusals collapsed" if refusal is not None and refusal <= policy.refusal_collapse_pp else None


def _unacceptable(_row: DecidedRow, tier: TierOf, _constraints: Constraints) -> str | None:
    return f"quality tier unacceptable: {tier.reason}" if tier.loss_tier == "unacceptable" else None


def _unmet(row: DecidedRow, _tier: TierOf, constraints: Constraints) -> str | None:
    """Every constraint that the build does not meet, or that was not measured."""
    return "; ".join(one.reason for one in constraints.held(row.signals.row) if not one.met) or None


def _unproven(row: DecidedRow, _tier: TierOf, _constraints: Constraints) -> str | None:
    return None if row.action.is_pass or row.signals.is_baseline else row.action.action


EXCLUSIONS: tuple[Rule, ...] = (_rejected, _not_measured, _not_shown, _collapsed, _unacceptable, _unmet)
PAIRED_EXCLUSIONS: tuple[Rule, ...] = (_rejected, _unproven, _unmet)
"""By paired tests a build is fit only once it is shown to be: what is not resolved is no pass."""


def exclusions(row: DecidedRow) -> tuple[Rule, ...]:
    return PAIRED_EXCLUSIONS if row.signals.policy.rules != "points" else EXCLUSIONS


def _by_size(fit: Sequence[DecidedRow]) -> tuple[str, list[DecidedRow]]:
    """The builds from small to large, and by what: file size where every one has it, else bits per weight.

    None of them where neither is known of all.
    """
    for name, measure in (("file", _file_bytes), ("bits per weight", _bpw)):
        sizes = [(size, row.signals.cell.quant, row) for row in fit if (size := measure(row.signals.row)) is not None]
        if len(sizes) == len(fit):
            return name, [row for _, _, row in sorted(sizes, key=lambda entry: entry[:2])]
    return "", []


def _file_bytes(row: Row) -> Fraction | None:
    return row.value("file_bytes")


def _bpw(row: Row) -> Fraction | None:
    return row.bpw


# Pareto front


def pareto_front(rows: Sequence[Row], policy: Policy) -> tuple[str, ...]:
    """The builds that no other build beats: as good in all measures, and better in one.

    The measures are quality, size, speed, memory and time to the first token. One that no row has is left out; a row
    without one that others have cannot be placed and is not in the front. Quants come in the order of `rows`; the
    decision is not looked at.
    """
    policy = policy.settled({metric for row in rows for metric in row.metrics})
    size_of = _bpw if all(_file_bytes(row) is None for row in rows) else _file_bytes
    measures: tuple[Callable[[Row], Fraction | None], ...] = (
        lambda row: row.value(policy.quality_metric),
        lambda row: None if (size := size_of(row)) is None else -size,
        lambda row: row.value("tokens_per_second"),
        lambda row: None if (peak := row.value("peak_memory_bytes")) is None else -peak,
        lambda row: None if (wait := row.value("ttft_ms")) is None else -wait,
    )
    used = [measure for measure in measures if any(measure(row) is not None for row in rows)]
    points = [(row.quant, [value for measure in used if (value := measure(row)) is not None]) for row in rows]
    placed = [(quant, point) for quant, point in points if used and len(point) == len(used)]
    return tuple(quant for quant, point in placed if not any(_beats(other, point) for _, other in placed))


def _beats(one: Sequence[Fraction], two: Sequence[Fraction]) -> bool:
    return one != two and all(a >= b for a, b in zip(one, two, strict=True))
