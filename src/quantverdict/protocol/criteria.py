"""Accepted, rejected or inconclusive, by the criteria of a policy (SPEC 11): `criteria.csv`.

A build is accepted where every criterion rules out a loss of its margin and every member one of its guard margin: the
largest of those p-values is its `p_accept`, and those of all builds are one family under Holm at half of alpha. It is
rejected where some criterion or member is inferior: the least of those p-values, each over its weight, is its
`p_reject`, and these are the other family. So the chance of any wrong acceptance in a study is at most half of alpha,
that of any wrong rejection too, and no criterion costs another its level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from quantverdict.matrix.criteria import Loss, Standing
from quantverdict.policy import REFUSAL, Policy
from quantverdict.records import CellId, Table, Value
from quantverdict.registry import METRICS
from quantverdict.stats.distributions import normal_quantile
from quantverdict.stats.noninferiority import rate_tests

COLUMNS = (
    "base_model", "quant", "criterion", "metric", "role", "n_pairs", "lost", "gained", "ungraded_a", "ungraded_c",
    "delta_pp", "delta_accept_pp", "delta_reject_pp", "ci_lo_pp", "ci_hi_pp", "margin_pp", "guard_margin_pp",
    "headroom", "level", "p_accept", "p_reject", "outcome", "n_to_accept", "n_to_reject",
)  # fmt: skip

Outcome = Literal["non_inferior", "inferior", "not_resolvable", "uninformative", "not_measured"]
Verdict = Literal["accepted", "rejected", "not_resolvable"]

REFUSAL_WEIGHT, CRITERIA_WEIGHT, MEMBERS_WEIGHT = Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)
"""Of the chance of a wrong rejection: the refusal criterion's, the other criteria's together, the members' together."""
GROWTH = Fraction(3, 2)
"""Each look has so many times the prompts of the one before."""
MOST_LOOKS = 16
"""Beyond so many looks, some 650 times as many prompts, nothing is planned."""


def look_share(look: int) -> Fraction:
    """The share of a family's level that look 1, 2, ... has; those of all looks add up to 1."""
    return Fraction(2, 3) * Fraction(1, 3) ** (look - 1)


@dataclass(frozen=True, slots=True)
class Row:
    """A criterion or a member of a build, decided.

    Attributes:
        standing: its tests.
        weight: of its rejection; 0 where it is not tested.
        lo, hi: interval of the delta in pp: the loss that acceptance rules out beyond, and the one that rejection does.
        level: one-sided, of acceptance.
        p_reject: p-value of inferiority over the weight, at most 1.
        n_to_accept: pairs at the look that would accept it, were nothing more lost; None where no look would.
        n_to_reject: pairs at the look that would reject it, if it goes on as seen.
    """

    standing: Standing
    weight: Fraction
    lo: float | None
    hi: float | None
    level: float | None
    p_reject: float
    outcome: Outcome
    n_to_accept: int | None = None
    n_to_reject: int | None = None

    @property
    def name(self) -> str:
        """`safety`, or `safety/truthfulness` of a member."""
        one = self.standing
        return one.criterion if one.role == "criterion" else f"{one.criterion}/{one.metric}"

    @property
    def delta(self) -> float | None:
        """In pp; negative is worse."""
        loss = self.standing.loss
        return None if loss is None or loss.seen is None else _delta(loss.seen)


@dataclass(frozen=True, slots=True)
class Pace:
    """What a build was asked, and what one more prompt takes.

    Attributes:
        prompts: that it was asked.
        seconds: of one prompt to it and one to its baseline, as the run measured them.
    """

    prompts: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BuildVerdict:
    """What the criteria say of one build.

    Attributes:
        verdict: of the tests alone; what of the run stands against a build is looked at after them.
        rows: its criteria, each pool followed by its members.
        p_accept, p_reject: the largest and the least of the rows'; None where it is in no such family.
        accept_level, reject_level: one-sided, at which it was or would next be decided.
        waits_for: a build that must be accepted before it, in a fixed sequence.
        looks_to_accept, looks_to_reject: further looks that would decide it; None where none would.
        pace: None where no time was measured.
    """

    cell: CellId
    verdict: Verdict
    rows: tuple[Row, ...]
    p_accept: float | None
    p_reject: float | None
    accept_level: float
    reject_level: float
    waits_for: CellId | None = None
    looks_to_accept: int | None = None
    looks_to_reject: int | None = None
    pace: Pace | None = None

    @property
    def criteria(self) -> tuple[Row, ...]:
        """Without members."""
        return tuple(row for row in self.rows if row.standing.role == "criterion")

    @property
    def pairs(self) -> int:
        """Of all criteria together."""
        return sum(row.standing.loss.n for row in self.criteria if row.standing.loss is not None)

    def pairs_after(self, looks: int | None) -> int | None:
        """Of all criteria together after further looks."""
        if looks is None:
            return None
        losses = [row.standing.loss for row in self.criteria]
        return sum(_grown(loss.n, looks) for loss in losses if loss is not None)

    def seconds_until(self, looks: int | None) -> float | None:
        """What asking for further looks takes, of it and its baseline; None where no time was measured."""
        if looks is None or self.pace is None:
            return None
        return (_grown(self.pace.prompts, looks) - self.pace.prompts) * self.pace.seconds


def decide_criteria(
    found: Mapping[CellId, Sequence[Standing]], policy: Policy, order: Mapping[CellId, int], power: float, look: int = 1
) -> dict[CellId, BuildVerdict]:
    """Every build's verdict.

    Args:
        found: the tests of each build; duplicates and A/A replicates are none of them.
        policy: criteria, alpha, and how it is held.
        order: each build's place, from high to low bits, within its base model.
        power: for the prompts that would decide.
        look: which look at the prompts this is.
    """
    half = policy.alpha / 2 * float(look_share(look))
    weighed = {cell: _weights(rows) for cell, rows in found.items()}
    accept = {cell: _p_accept(rows, policy) for cell, rows in found.items()}
    reject = {cell: _p_reject(rows, weighed[cell]) for cell, rows in found.items()}
    groups = _families(found, policy)
    accepting: dict[CellId, _FamilyDecision] = {}
    rejecting: dict[CellId, _FamilyDecision] = {}
    for cells in groups:
        rejecting |= _holm({cell: reject[cell] for cell in cells}, half)
        if policy.error_control == "holm":
            accepting |= _holm({cell: accept[cell] for cell in cells}, half)
    if policy.error_control == "fixed_sequence":
        share = 1 if policy.family == "base_model" else len({cell.base_model for cell in found})
        accepting = _in_sequence(accept, order, half / max(share, 1))
    return {
        cell: _verdict(cell, rows, weighed[cell], (accepting[cell], rejecting[cell]), policy, (power, look))
        for cell, rows in found.items()
    }


def decided_alone(rows: Sequence[Standing], policy: Policy, level: float) -> bool:
    """Whether a build is accepted or rejected by a level that no other build can make less."""
    return any(p is not None and p <= level for p in (_p_accept(rows, policy), _p_reject(rows, _weights(rows))))


@dataclass(frozen=True, slots=True)
class _FamilyDecision:
    """One build in one family: whether it was decided, and the level at which it was or would next be."""

    p: float | None
    decided: bool
    level: float
    waits_for: CellId | None = None


def _families(cells: Mapping[CellId, object], policy: Policy) -> list[list[CellId]]:
    if policy.family == "study":
        return [list(cells)]
    models = dict.fromkeys(cell.base_model for cell in cells)
    return [[cell for cell in cells if cell.base_model == model] for model in models]


def rejection_weights(rows: Mapping[int, tuple[str, str]]) -> dict[int, Fraction]:
    """The weight of the rejection of each row, given as criterion and role by any key; they add up to 1."""
    kinds: dict[str, list[int]] = {}
    for key, (criterion, role) in rows.items():
        kinds.setdefault("member" if role == "member" else REFUSAL if criterion == REFUSAL else "other", []).append(key)
    shares = {REFUSAL: REFUSAL_WEIGHT, "other": CRITERIA_WEIGHT, "member": MEMBERS_WEIGHT}
    total = sum((shares[kind] for kind in kinds), Fraction(0))
    return {key: shares[kind] / total / len(keys) for kind, keys in kinds.items() for key in keys}


def _weights(rows: Sequence[Standing]) -> dict[int, Fraction]:
    """Of the rows that are tested, by their place."""
    return rejection_weights({at: (row.criterion, row.role) for at, row in enumerate(rows) if row.loss is not None})


def _can_pass(rows: Sequence[Standing], policy: Policy) -> bool:
    """Whether its baseline lets it be accepted: every demanded criterion, and every tested one, could have failed."""
    tested = [row for row in rows if row.role == "criterion" and row.loss is not None]
    measured = {row.criterion for row in tested}
    wanted = {name for name, one in (policy.criteria or {}).items() if one.demanded}
    return bool(tested) and wanted <= measured and all(row.is_informative for row in tested)


def _p_accept(rows: Sequence[Standing], policy: Policy) -> float | None:
    if not _can_pass(rows, policy):
        return None
    return max(row.p_accept for row in rows if row.loss is not None)


def _p_reject(rows: Sequence[Standing], weights: Mapping[int, Fraction]) -> float | None:
    return min((min(1.0, rows[at].p_inferior / float(weight)) for at, weight in weights.items()), default=None)


def _holm(p_values: Mapping[CellId, float | None], level: float) -> dict[CellId, _FamilyDecision]:
    """Holm's (1979) steps; what is not decided would next be so at the level of the step that stopped."""
    tested = sorted((p, cell) for cell, p in p_values.items() if p is not None)
    found: dict[CellId, _FamilyDecision] = {}
    step = 0
    for p, cell in tested:
        at = level / (len(tested) - step)
        if p > at:
            break
        found[cell] = _FamilyDecision(p, True, at)
        step += 1
    left = level / max(len(tested) - step, 1)
    return {cell: found.get(cell, _FamilyDecision(p, False, left)) for cell, p in p_values.items()}


def _in_sequence(
    p_values: Mapping[CellId, float | None], order: Mapping[CellId, int], level: float
) -> dict[CellId, _FamilyDecision]:
    """Builds from high to low bits, each at the full level while the one before was accepted."""
    found: dict[CellId, _FamilyDecision] = {}
    stopped: dict[str, CellId] = {}
    for cell in sorted(p_values, key=lambda cell: (cell.base_model, order[cell])):
        p, before = p_values[cell], stopped.get(cell.base_model)
        decided = p is not None and p <= level and before is None
        found[cell] = _FamilyDecision(p, decided, level, before)
        if not decided:
            stopped.setdefault(cell.base_model, cell)
    return found


def _verdict(
    cell: CellId,
    rows: Sequence[Standing],
    weights: Mapping[int, Fraction],
    families: tuple[_FamilyDecision, _FamilyDecision],
    policy: Policy,
    planned: tuple[float, int],
) -> BuildVerdict:
    accepting, rejecting = families
    verdict: Verdict = "not_resolvable"
    if rejecting.decided:
        verdict = "rejected"
    elif accepting.decided:
        verdict = "accepted"
    levels = accepting.level, rejecting.level
    message = [_row(row, weights.get(at, Fraction(0)), levels) for at, row in enumerate(rows)]
    found = BuildVerdict(
        cell, verdict, tuple(message), accepting.p, rejecting.p, *levels, accepting.waits_for,
    )  # fmt: skip
    return found if verdict != "not_resolvable" else _with_needs(found, policy, planned)


def _row(one: Standing, weight: Fraction, levels: tuple[float, float]) -> Row:
    if one.loss is None:
        outcome: Outcome = "uninformative" if one.headroom == "uninformative" else "not_measured"
        return Row(one, weight, None, None, None, 1.0, outcome)
    accept, reject = levels[0], levels[1] * float(weight)
    p_reject = min(1.0, one.p_inferior / float(weight))
    outcome = "not_resolvable"
    if p_reject <= levels[1]:
        outcome = "inferior"
    elif one.p_accept <= accept and (one.role == "member" or one.is_informative):
        outcome = "non_inferior"
    lo, hi = _delta(one.loss.upper(accept, one.decides_at)), _delta(one.loss.lower(reject, one.margin))
    return Row(one, weight, lo, hi, accept, p_reject, outcome)


def _delta(loss: float) -> float:
    """A loss as a change in pp: negative is worse."""
    return -100 * loss if loss else 0.0


# How many prompts would decide: at the look that has them, and at that look's level


def _with_needs(found: BuildVerdict, policy: Policy, planned: tuple[float, int]) -> BuildVerdict:
    """The looks that would accept a build of which nothing more is lost, and that would reject it as it goes on."""
    power, look = planned
    levels = found.accept_level / float(look_share(look)), found.reject_level / float(look_share(look))
    rows, accept, reject = [], list[int | None](), list[int | None]()
    for row in found.rows:
        loss = row.standing.loss
        if loss is None:
            rows.append(row)
            continue
        wanted = _looks_to_accept(row, levels[0], power, look), _looks_to_reject(row, levels[1], power, look)
        accept.append(wanted[0])
        reject.append(wanted[1])
        needs = [None if more is None else _grown(loss.n, more) for more in wanted]
        rows.append(replace(row, n_to_accept=needs[0], n_to_reject=needs[1]))
    all_of_them = [more for more in accept if more is not None]
    can = _can_pass([row.standing for row in found.rows], policy) and len(all_of_them) == len(accept)
    return replace(
        found,
        rows=tuple(rows),
        looks_to_accept=max(all_of_them) if can and all_of_them else None,
        looks_to_reject=min((more for more in reject if more is not None), default=None),
    )


def _grown(n: int, looks: int) -> int:
    """The pairs after further looks, each rounded up."""
    for _ in range(looks):
        n = math.ceil(n * GROWTH)
    return n


def _looks_to_accept(row: Row, level: float, power: float, look: int) -> int | None:
    """Further looks at which a row passes with `power`, if all that is asked from now on loses nothing.

    0 where it passes already. What the pairs so far have lost stays lost; new ones differ as often, both ways alike.
    """
    one = row.standing
    assert one.loss is not None
    assert row.level is not None
    if one.p_accept <= row.level:
        return 0
    margin, now = float(one.decides_at / 100), one.loss.estimate("accept")
    for more in range(1, MOST_LOOKS):
        goal = _Goal(one.loss, margin, level * float(look_share(look + more)), power, more)
        if goal.accepts(now):
            return more
    return None


def _looks_to_reject(row: Row, level: float, power: float, look: int) -> int | None:
    """Further looks at which a row rejects with `power`, if it goes on losing as it was seen to."""
    one = row.standing
    assert one.loss is not None
    margin, now = float(one.margin / 100), one.loss.estimate("reject")
    if (metric := METRICS.get(one.metric)) is not None and metric.needs:
        return None
    for more in range(1, MOST_LOOKS):
        goal = _Goal(one.loss, margin, level * float(row.weight) * float(look_share(look + more)), power, more)
        if goal.rejects(now):
            return more
    return None


class _Goal:
    """A later look: its pairs, and whether its test decides at its level with a power.

    Right or wrong answers are put to the exact test at the counts that are to be expected, less what chance may take
    with the power; anything else to the normal approximation.

    Attributes:
        share: of its pairs, those of now.
        spread: mean square of one pair's loss.
    """

    def __init__(self, loss: Loss, margin: float, level: float, power: float, more: int) -> None:
        self.n, self.before = _grown(loss.n, more), loss.n
        self.share, self.spread, self.effect = loss.n / self.n, loss.differing, loss.design_effect
        self.margin, self.level, self.exact = margin, level, loss.whole and loss.weights is None
        self.reach = normal_quantile(power)

    def accepts(self, now: float) -> bool:
        """Whether it accepts where `now` is lost of the pairs so far, and nothing of those to come."""
        worse = self.reach * self._chance(self.spread)
        return self._decides(now * self.share + worse, 0) if self.exact else self._far(
            self.margin - now * self.share - worse
        )  # fmt: skip

    def rejects(self, now: float) -> bool:
        """Whether it rejects where `now` is lost, and goes on being lost."""
        better = self.reach * self._chance(max(self.spread - now**2, 0.0))
        return self._decides(now - better, 1) if self.exact else self._far(now - better - self.margin)

    def _chance(self, spread: float) -> float:
        """Standard error that the pairs to come add to the mean."""
        return math.sqrt((1 - self.share) * spread * self.effect / self.n)

    def _decides(self, loss: float, which: int) -> bool:
        differing = max(self.spread, abs(loss)) * self.n
        lost, gained = (differing + loss * self.n) / 2, (differing - loss * self.n) / 2
        whole = (math.ceil(lost), math.floor(gained)) if which == 0 else (math.floor(lost), math.ceil(gained))
        lost, gained = min(max(whole[0], 0), self.n), max(whole[1], 0)
        counts = int(lost), int(min(gained, self.n - lost)), self.n
        return rate_tests(counts, self.n, self.effect, self.margin)[which] <= self.level

    def _far(self, gap: float) -> bool:
        return gap >= normal_quantile(1 - self.level) * math.sqrt(self.spread * self.effect / self.n)


def criteria_table(found: Mapping[CellId, BuildVerdict]) -> Table:
    """`criteria.csv`."""
    return Table("criteria", COLUMNS, tuple(tuple(_values(row)) for one in found.values() for row in one.rows))


def _values(row: Row) -> Iterator[Value]:
    one, loss = row.standing, row.standing.loss
    yield from (*one.cell, one.criterion, one.metric or None, one.role)
    if loss is None:
        yield from (0, None, None, None, None, None, None, None)
    else:
        yield from (loss.n, *(sum(counts) for counts in zip(*_counts(loss), strict=True)))
        yield None if loss.seen is None else _delta(loss.seen)
        yield from (_delta(loss.estimate(side)) for side in ("accept", "reject"))
    yield from (row.lo, row.hi, one.margin, one.guard, one.headroom, row.level)
    yield from (None, None) if loss is None else (one.p_accept, row.p_reject)
    yield from (row.outcome, row.n_to_accept, row.n_to_reject)


def _counts(loss: Loss) -> list[tuple[int, int, int, int]]:
    return [(part.lost, part.gained, part.a, part.c) for part in loss.parts]


def criteria_rows(found: BuildVerdict) -> list[dict[str, Value]]:
    """The rows of one build for `decision.json`: by the columns of `criteria.csv`, and why a row is not tested."""
    rows: list[dict[str, Value]] = []
    for row in found.rows:
        values = dict(zip(COLUMNS[2:], list(_values(row))[2:], strict=True))
        message = {name: float(value) if isinstance(value, Fraction) else value for name, value in values.items()}
        rows.append({**message, "name": row.name, "reason": row.standing.reason})
    return rows
