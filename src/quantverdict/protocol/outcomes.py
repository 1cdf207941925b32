"""Three outcomes a gated metric: non-inferior within its margin, inferior, or not resolvable at this n (SPEC 8).

Every gated metric of every build makes two hypotheses: that it loses its margin or more, which `non_inferior` rejects,
and that it loses its margin or less, which `inferior` rejects. Each kind is a family of its own, held at half the
policy's alpha, so that the chance of any wrong outcome in the study is at most alpha, however metrics depend on each
other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from quantverdict.matrix.columns import METRICS
from quantverdict.matrix.headroom import Headroom
from quantverdict.matrix.paired import Comparison, GateTests
from quantverdict.policy import Policy
from quantverdict.records import CellId, Table, Value
from quantverdict.stats.noninferiority import Outcome, holm, resolved
from quantverdict.stats.power import n_mean, n_rate

COLUMNS = (
    "base_model", "quant", "metric", "n_pairs", "lost", "gained", "delta_pp", "ci_lo_pp", "ci_hi_pp", "p_value",
    "p_holm", "null_flip_rate", "margin_pp", "outcome", "n_needed", "mcnemar_midp", "interval_kind", "n_clusters",
    "ungraded", "delta_worst_pp", "delta_best_pp", "p_noninferior", "p_inferior", "p_outcome", "flip_rate", "p_excess",
    "stopped_after", "headroom", "ungraded_a", "ungraded_c", "missing", "extra",
)  # fmt: skip

Result = Outcome | Literal["uninformative", "not_measured"]
"""What became of a gated metric: the last two were not tested (`matrix.headroom`)."""


@dataclass(frozen=True, slots=True)
class ComparisonOutcome:
    """What became of one comparison.

    Attributes:
        p_holm: McNemar's p-value adjusted over the gated comparisons of the study; the others are a family of theirs.
        outcome: None where the metric is not gated.
        headroom: what the baseline could lose; None where that was not looked at.
        p_outcome: the smaller p-value of its two tests, adjusted and doubled: resolved where it is at most alpha.
        n_needed: where inconclusive, the pairs that would resolve it; None where no number would.
    """

    comparison: Comparison
    p_holm: float | None
    outcome: Result | None = None
    p_outcome: float | None = None
    n_needed: int | None = None
    headroom: Headroom | None = None

    @property
    def is_informative(self) -> bool:
        """Whether the metric could have failed: by its baseline there was more to lose than the margin."""
        return self.headroom is None or self.headroom.verdict == "informative"

    @property
    def reason(self) -> str | None:
        """What of the run stands against the metric, with its figures; None where nothing does."""
        one, gate = self.comparison, self.comparison.gate
        if self.headroom is not None and self.headroom.verdict != "informative":
            return self.headroom.reason
        if gate is None or not gate.hidden:
            return None
        return (
            f"{one.metric}: {one.ungraded} of {one.n + one.ungraded} answers have no grade in one of the arms, "
            f"so that the loss may be {100 * gate.loss:.2f} pp"
        )


@dataclass(frozen=True, slots=True)
class _AdjustedPValues:
    """Both p-values of a gated comparison, adjusted."""

    noninferior: float
    inferior: float


def judge(
    found: Sequence[Comparison],
    policy: Policy,
    order: Mapping[CellId, int],
    power: float,
    rooms: Mapping[tuple[str, str], Headroom] | None = None,
) -> tuple[ComparisonOutcome, ...]:
    """The outcome of every comparison, in their order.

    Args:
        found: of the builds of a study.
        policy: alpha, and how it is held.
        order: each build's place, from high to low bits, within its base model.
        power: for `n_needed`.
        rooms: what can be lost, by base model and metric: what could not show a loss is not tested, and in no family.
    """
    room_of = {(one.cell, one.metric): (rooms or {}).get((one.cell.base_model, one.metric)) for one in found}
    untested = {key for key, room in room_of.items() if room is not None and not room.tested}
    gated = [one for one in found if one.gate is not None and (one.cell, one.metric) not in untested]
    adjusted = {(one.cell, one.metric): both for one, both in zip(gated, _adjust(gated, policy, order), strict=True)}
    p_holm: dict[tuple[CellId, str], float | None] = {}
    for family in ([one for one in found if one.gate is not None], [one for one in found if one.gate is None]):
        p_holm |= {
            (one.cell, one.metric): p for one, p in zip(family, holm([one.p_value for one in family]), strict=True)
        }
    level = _level_left(list(adjusted), list(adjusted.values()), policy)
    judged = (_judged(one, p_holm[one.cell, one.metric], adjusted, policy, (power, level)) for one in found)
    return tuple(_with_room(one, room_of[one.comparison.cell, one.comparison.metric]) for one in judged)


def as_members(
    judged: Iterable[ComparisonOutcome], levels: Mapping[tuple[CellId, str], tuple[float, float]]
) -> tuple[ComparisonOutcome, ...]:
    """The same comparisons where criteria decide: each member by its own margin, and no family of metrics.

    Args:
        judged: in their order.
        levels: one-sided levels at which a member is tested by its own margin, to accept and to reject; what is not
            there was not tested.
    """
    return tuple(_as_member(one, levels.get((one.comparison.cell, one.comparison.metric))) for one in judged)


def _as_member(judged: ComparisonOutcome, levels: tuple[float, float] | None) -> ComparisonOutcome:
    """Which prompts would do is said of criteria alone; a metric that is no member here has no outcome."""
    gate = judged.comparison.gate
    if gate is None or judged.outcome in (None, "uninformative", "not_measured"):
        return judged
    if levels is None:
        return replace(judged, outcome=None, p_outcome=None, n_needed=None)
    outcome: Outcome = "not_resolvable"
    if gate.p_inferior <= levels[1]:
        outcome = "inferior"
    elif gate.p_noninferior <= levels[0]:
        outcome = "non_inferior"
    return replace(judged, outcome=outcome, p_outcome=None, n_needed=None)


def _with_room(judged: ComparisonOutcome, room: Headroom | None) -> ComparisonOutcome:
    if room is None or judged.comparison.gate is None:
        return judged
    if room.verdict == "uninformative" or room.verdict == "not_measured":  # noqa: PLR1714 - so that types narrow
        return replace(judged, headroom=room, outcome=room.verdict)
    return replace(judged, headroom=room)


def _judged(
    one: Comparison,
    p_holm: float | None,
    adjusted: Mapping[tuple[CellId, str], _AdjustedPValues],
    policy: Policy,
    planned: tuple[float, float],
) -> ComparisonOutcome:
    if one.gate is None or (one.cell, one.metric) not in adjusted:
        return ComparisonOutcome(one, p_holm)
    both = adjusted[one.cell, one.metric]
    outcome = resolved(both.noninferior, both.inferior, policy.alpha / 2)
    needed = n_needed(one, one.gate, *planned) if outcome == "not_resolvable" else None
    return ComparisonOutcome(one, p_holm, outcome, min(1.0, 2 * min(both.noninferior, both.inferior)), needed)


def _adjust(gated: Sequence[Comparison], policy: Policy, order: Mapping[CellId, int]) -> list[_AdjustedPValues]:
    """Adjusted p-values of both kinds; a fixed sequence is one of passes, and rejections are held by Holm."""
    gates = [one.gate for one in gated if one.gate is not None]
    beyond = holm([gate.p_inferior for gate in gates])
    within = holm([gate.p_noninferior for gate in gates])
    if policy.error_control == "fixed_sequence":
        within = _in_sequence(gated, order)
    return [_AdjustedPValues(1.0 if one is None else one, 1.0 if two is None else two)
            for one, two in zip(within, beyond, strict=True)]  # fmt: skip


def _in_sequence(gated: Sequence[Comparison], order: Mapping[CellId, int]) -> list[float | None]:
    """Adjusted p-values of passes: builds from high to low bits, each only if every metric of the one before passed.

    The metrics of a build are held by Holm, and base models share alpha evenly (serial gatekeeping: Westfall & Krishen
    2001, J Stat Plan Inference 99:25).
    """
    models = len({one.cell.base_model for one in gated})
    found: dict[int, float] = {}
    reached: dict[str, float] = {}
    for cell in sorted({one.cell for one in gated}, key=lambda cell: (cell.base_model, order[cell])):
        mine = [at for at, one in enumerate(gated) if one.cell == cell]
        held = holm([gate.p_noninferior for at in mine if (gate := gated[at].gate) is not None])
        before = reached.get(cell.base_model, 0.0)
        for at, p in zip(mine, held, strict=True):
            found[at] = max(before, min(1.0, models * (1.0 if p is None else p)))
        reached[cell.base_model] = max(found[at] for at in mine)
    return [found[at] for at in range(len(gated))]


def _level_left(tested: Sequence[tuple[CellId, str]], adjusted: Sequence[_AdjustedPValues], policy: Policy) -> float:
    """One-sided level at which the next comparison would have to pass."""
    half = policy.alpha / 2
    if policy.error_control == "fixed_sequence":
        models = len({cell.base_model for cell, _ in tested})
        return half / max(models * len({metric for _, metric in tested}), 1)
    return half / max(sum(one.noninferior > half for one in adjusted), 1)


def n_needed(one: Comparison, gate: GateTests, power: float, level: float) -> int | None:
    """Pairs that would resolve a comparison with `power`, given the discordance seen; None where no number would.

    For a build that in truth loses nothing, but leaves as many answers ungraded. Where as many were asked already, for
    the loss as it was seen. Where what is ungraded may hide a loss of the margin no number would.

    Args:
        one: a comparison that is not resolved.
        gate: its tests.
        power: wanted.
        level: one-sided level of the test.
    """
    margin = float(gate.margin / 100)
    if gate.hidden >= margin:
        return None
    differing = gate.variance + gate.loss**2 if gate.hidden else (one.lost + one.gained) / one.n
    for loss in (gate.hidden, gate.loss):
        if METRICS[one.metric].proportion:
            pairs = n_rate(min(differing, 1.0), loss, margin, power, level)
        else:
            pairs = n_mean(math.sqrt(gate.variance), loss, margin, power, level)
        pairs = None if pairs is None else math.ceil(pairs * gate.design_effect)
        if pairs is not None and pairs > one.n:
            return pairs
    return None


def paired_table(judged: Iterable[ComparisonOutcome]) -> Table:
    """`paired.csv`."""
    return Table("paired", COLUMNS, tuple(tuple(_values(one)) for one in judged))


def _values(judged: ComparisonOutcome) -> Iterator[Value]:
    one, gate, flips = judged.comparison, judged.comparison.gate, judged.comparison.flips
    yield from (*one.cell, one.metric, one.n, one.lost, one.gained, one.delta, one.lo, one.hi, one.p_value)
    yield from (judged.p_holm, None if flips is None else flips.floor.rate, None if gate is None else gate.margin)
    yield from (judged.outcome, judged.n_needed, one.midp, one.interval_kind, one.clusters, one.ungraded)
    yield from (one.worst, one.best)
    yield from (None, None) if gate is None else (gate.p_noninferior, gate.p_inferior)
    yield judged.p_outcome
    yield from (None, None) if flips is None else (flips.rate, flips.p_excess)
    yield from (one.stopped_after, None if judged.headroom is None else judged.headroom.verdict)
    yield from (one.ungraded_a, one.ungraded_c, one.missing, one.extra)


def high_to_low(bits: Mapping[CellId, Fraction | None]) -> dict[CellId, int]:
    """The place of each build from high to low bits; one whose bits are not known comes last."""
    ordered = sorted(bits, key=lambda cell: ((known := bits[cell]) is None, -(known or 0), cell))
    return {cell: at for at, cell in enumerate(ordered)}
