"""Row actions by paired tests: what to do with one build, as the outcomes of its gated metrics say (SPEC 8).

An ordered table of rules; the first that holds names the action and gives its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from quantverdict.matrix.signals import Signals, limit, pp
from quantverdict.protocol.actions import ACCEPT, REVIEW, RowAction
from quantverdict.protocol.outcomes import Judged


@dataclass(frozen=True, slots=True)
class Gated:
    """What the rules read of one build.

    Attributes:
        is_baseline: whether it is the one that others are compared with.
        outcomes: of its gated metrics. One that could not have failed, or that the baseline leaves ungraded, has left
            the gate, unless the policy demands it.
        wanted: the gated metrics that it must have: those that the policy demands, and those that its base model has.
        demanded: of them, those that the policy demands.
        unpaired: prompts that only it or only its baseline was asked; None where there are none.
        apart: how two instruments contradict each other on it; None where they do not.
    """

    is_baseline: bool
    outcomes: tuple[Judged, ...]
    wanted: tuple[str, ...]
    demanded: tuple[str, ...] = ()
    unpaired: str | None = None
    apart: str | None = None

    def of(self, outcome: str) -> list[Judged]:
        return [one for one in self.outcomes if one.outcome == outcome]


@dataclass(frozen=True, slots=True)
class Against:
    """What of the run itself keeps a build from passing.

    Attributes:
        unpaired, apart: as in `Gated`.
        gaps: what keeps it from passing by thresholds on deltas, `unpaired` first.
    """

    unpaired: str | None = None
    apart: str | None = None
    gaps: tuple[str, ...] = ()


Rule = Callable[[Gated], str | None]
"""Why the rule holds; None where it does not."""


def paired_action(
    signals: Signals, outcomes: Sequence[Judged], measured: Iterable[str], against: Against | None = None
) -> RowAction:
    """The first rule that holds.

    Args:
        signals: of the row.
        outcomes: of its gated metrics.
        measured: the gated metrics that any build of its base model has.
        against: what of the run itself keeps it from passing.
    """
    demanded, against = signals.policy.demanded, against or Against()
    wanted = tuple(dict.fromkeys([*demanded, *measured]))
    gated = Gated(signals.is_baseline, tuple(outcomes), wanted, demanded, against.unpaired, against.apart)
    name, reason = next((name, reason) for name, rule in RULES if (reason := rule(gated)) is not None)
    return RowAction(signals.cell, name, reason)


def _reference(gated: Gated) -> str | None:
    return "the baseline" if gated.is_baseline else None


def _inferior(gated: Gated) -> str | None:
    found = gated.of("inferior")
    return f"{', '.join(map(_seen, found))}: worse by more than the margin" if found else None


def _not_measured(gated: Gated) -> str | None:
    have = {one.comparison.metric for one in gated.outcomes}
    missing = [metric for metric in gated.wanted if metric not in have]
    found = [gated.unpaired] if gated.unpaired else []
    found += [f"no prompt that both it and the baseline have a grade for: {', '.join(missing)}"] if missing else []
    idle = [*gated.of("not_measured"), *gated.of("uninformative")]
    if len(idle) < len(gated.outcomes):
        idle = [one for one in idle if one.comparison.metric in gated.demanded]
    found += [one.reason for one in idle if one.reason]
    if not gated.outcomes and not found:
        found.append("no gated metric was measured")
    return "; ".join(found) or None


def _contradicted(gated: Gated) -> str | None:
    """One of two instruments that contradict each other is wrong, and the run cannot tell which."""
    constant = [one.reason for one in gated.outcomes if one.reason and one.headroom and one.headroom.constant]
    return "; ".join([*([gated.apart] if gated.apart else []), *constant]) or None


def _not_resolvable(gated: Gated) -> str | None:
    """A metric is open; or what may not be able to fall did not, and nothing else shows more."""
    passed = gated.of("non_inferior")
    doubtful = [one for one in passed if one.comparison.metric in gated.demanded and not one.is_informative]
    if not doubtful and not any(one.is_informative for one in passed):
        doubtful = passed
    open_ = unresolved(gated.of("not_resolvable"), most=2)
    return "; ".join([*([open_] if open_ else []), *(one.reason for one in doubtful if one.reason)]) or None


def _non_inferior(gated: Gated) -> str:
    return f"{', '.join(map(_seen, gated.of('non_inferior')))}: none worse by its margin"


RULES: tuple[tuple[str, Rule], ...] = (
    ("reference", _reference),
    ("reject_inferior", _inferior),
    ("not_measured", _not_measured),
    (REVIEW, _contradicted),
    ("not_resolvable", _not_resolvable),
    (ACCEPT, _non_inferior),
)
PAIRED_ACTIONS = tuple(name for name, _ in RULES)


def unresolved(open_: Sequence[Judged], most: int | None = None) -> str | None:
    """What could not be told, and the prompts that it would take: those nearest to inferior first; None for nothing.

    Args:
        open_: outcomes that are not resolvable.
        most: name so many at most.
    """
    ordered = sorted(open_, key=lambda one: 0.0 if one.comparison.gate is None else one.comparison.gate.p_inferior)
    named = [_wanting(one) for one in ordered[:most]]
    if len(ordered) > len(named):
        named.append(f"and {len(ordered) - len(named)} more metrics")
    return f"too few prompts to tell: {', '.join(named)}" if named else None


def _wanting(judged: Judged) -> str:
    one = judged.comparison
    if judged.n_needed is None and judged.reason and one.gate is not None and one.gate.hidden:
        return f"{judged.reason}, whatever the number of prompts"
    if judged.n_needed is None:
        return f"{one.metric} (has {one.n}, and a loss too near the margin for any number)"
    return f"{one.metric} (has {one.n}, needs {judged.n_needed})"


def _seen(judged: Judged) -> str:
    one, gate = judged.comparison, judged.comparison.gate
    assert gate is not None
    delta = one.delta if isinstance(one.delta, Fraction) else Fraction(round(one.delta, 2)).limit_denominator(100)
    return f"{one.metric} {pp(delta)} of {one.n} pairs (margin {limit(gate.margin)})"
