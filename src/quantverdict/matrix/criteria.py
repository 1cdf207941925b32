"""What each build loses by the criteria of a policy: the tests and limits of pools and of their members (SPEC 11).

A pool of metrics that are 0 or 1 is tested by its summed counts; one with a mean by the mean of all its prompts, where
what no prompt met may be anywhere in it; `weights` make it a weighted mean of its members. Prompts of a cluster, and
one prompt that two members grade, are one unit throughout. Every loss is positive where the build is worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import numpy as np

from quantverdict.matrix.columns import METRICS
from quantverdict.matrix.grid import Codes, Grids, InterimAnalyses
from quantverdict.matrix.headroom import Headroom
from quantverdict.matrix.paired import Arms, arms_of, bets_on, collapse
from quantverdict.matrix.shared import BoolArray, credit
from quantverdict.policy import Policy
from quantverdict.records import CellId
from quantverdict.stats.intervals import FloatArray
from quantverdict.stats.noninferiority import (
    Part,
    Room,
    cluster_sums,
    design_effect,
    mean_loss,
    rate_limits,
    rate_tests,
    weighted_limit,
    weighted_p,
)
from quantverdict.stats.sequential import ConfidenceSequence

Units = Codes
"""(pairs,), what is drawn together: the number of its first prompt."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What a build loses in one metric, pair by pair; a pair has a grade in at least one arm.

    Attributes:
        accept, reject: (pairs,), as the test that would accept, and the one that would reject, takes it.
        units: (pairs,), the unit of each.
        credit: (pairs,), what each prompt can lose, NaN where the baseline has no grade.
        both: (pairs,), whether both arms have a grade.
        a, c: prompts that the baseline answered well and the build left ungraded, and the reverse.
        rounds: (pairs,), the round in which each was asked; None where the build was not asked in rounds.
    """

    metric: str
    accept: FloatArray
    reject: FloatArray
    units: Units
    credit: FloatArray
    both: BoolArray
    a: int
    c: int
    rounds: Codes | None

    @property
    def whole(self) -> bool:
        """Whether answers are right or wrong."""
        return METRICS[self.metric].proportion

    @property
    def lost(self) -> int:
        """Pairs with both grades of which the build's is worse."""
        return int((self.accept[self.both] > 0).sum())

    @property
    def gained(self) -> int:
        """Pairs with both grades of which the build's is better."""
        return int((self.accept[self.both] < 0).sum())


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of a pool or of a metric, ready to be tested.

    Attributes:
        parts: the metrics.
        weights: of each, None where every prompt has the same.
        alpha: one-sided, for what it takes to allow for few clusters.
        looks: in which rounds the build was asked, None where it was not asked in rounds.
    """

    parts: tuple[Lost, ...]
    weights: Mapping[str, float] | None
    alpha: float
    looks: InterimAnalyses | None = None

    @property
    def n(self) -> int:
        return sum(len(part.accept) for part in self.parts)

    @property
    def whole(self) -> bool:
        return all(part.whole for part in self.parts)

    @property
    def rejecting(self) -> Loss | None:
        """The loss of the parts by which a build can be rejected; None where none of them can."""
        parts = tuple(part for part in self.parts if not METRICS[part.metric].needs)
        if not parts or len(parts) == len(self.parts):
            return self if parts else None
        total = sum((self.weights or {}).get(part.metric, 0.0) for part in parts)
        weights = self.weights and {part.metric: self.weights[part.metric] / total for part in parts}
        return replace(self, parts=parts, weights=weights)

    @property
    def differing(self) -> float:
        """Mean square of a pair's loss as it is seen: of whole ones the share that differs."""
        seen = np.concatenate([part.accept for part in self.parts])
        return float(np.square(seen).mean())

    @property
    def seen(self) -> float | None:
        """The mean loss of pairs with both grades; None where no pair has both."""
        return self.estimate("") if any(part.both.any() for part in self.parts) else None

    def estimate(self, side: str) -> float:
        """The mean loss as the test that would `accept` or `reject` takes it."""
        values = {part.metric: _losses(part, side) for part in self.parts}
        known = {metric: found for metric, found in values.items() if len(found)}
        if self.weights is None:
            return float(np.concatenate(list(known.values())).mean())
        total = sum(self.weights[metric] for metric in known)
        return sum(self.weights[metric] * float(found.mean()) for metric, found in known.items()) / total

    @property
    def design_effect(self) -> float:
        values, units = self._all("accept")
        if len(np.unique(units)) == len(units):
            return 1.0
        if self.whole:
            return self._effect(values, units)
        return mean_loss(values, 0.5, self.alpha, units.tolist()).design_effect

    def p_accept(self, margin: Fraction) -> float:
        """Of H0: the loss is the margin (in pp) or more."""
        return self._p_value(float(margin / 100), upper=True)

    def p_reject(self, margin: Fraction) -> float:
        """Of H0: the loss is the margin (in pp) or less."""
        return self._p_value(float(margin / 100), upper=False)

    def upper(self, level: float, margin: Fraction) -> float:
        """The loss from which on `p_accept` rules out more, at a level; the margin is that of the test."""
        return self._limit(level, float(margin / 100), upper=True)

    def lower(self, level: float, margin: Fraction) -> float:
        """The loss up to which `p_reject` rules out all."""
        return self._limit(level, float(margin / 100), upper=False)

    # The tests of all prompts

    def _all(self, side: str) -> tuple[FloatArray, Units]:
        values = np.concatenate([_losses(part, side) for part in self.parts])
        return values, np.concatenate([part.units for part in self.parts])

    def _effect(self, values: FloatArray, units: Units) -> float:
        differing = int(np.count_nonzero(values))
        return design_effect(*cluster_sums(values, units.tolist()), differing, self.alpha)

    def _p(self, margin: float, *, upper: bool) -> float:
        if self.weights is not None and len(self.parts) > 1:
            return weighted_p(self._weighted(margin, upper=upper), margin, upper=upper)
        values, units = self._all("accept" if upper else "reject")
        if self.whole:
            counts = int((values > 0).sum()), int((values < 0).sum()), len(values)
            both = rate_tests(counts, len(np.unique(units)), self._effect(values, units), margin)
            return both[0] if upper else both[1]
        found = mean_loss(values, margin, self.alpha, units.tolist(), self._rooms(margin))
        return found.p_noninferior if upper else found.p_inferior

    def _full_limit(self, level: float, margin: float, *, upper: bool) -> float:
        if self.weights is not None and len(self.parts) > 1:
            return weighted_limit(self._weighted(margin, upper=upper), level, upper=upper)
        values, units = self._all("accept" if upper else "reject")
        if self.whole:
            counts = int((values > 0).sum()), int((values < 0).sum()), len(values)
            return rate_limits(counts, len(np.unique(units)), self._effect(values, units), level, upper=upper)
        found = mean_loss(values, margin, level, units.tolist(), self._rooms(margin))
        return found.hi if upper else found.lo

    def _rooms(self, margin: float) -> tuple[Room, ...]:
        """What the prompts of each member can lose; of right or wrong answers all."""
        found = []
        for part in self.parts:
            _, sizes = cluster_sums(np.zeros(len(part.units)), part.units.tolist())
            units = math.floor(len(part.units) ** 2 / float(np.square(sizes).sum()))
            known = part.credit[~np.isnan(part.credit)]
            largest = 1.0 if part.whole or not len(known) else collapse(known, margin)
            found.append(Room(max(units, 1), len(part.accept) / self.n, largest))
        return tuple(found)

    def _weighted(self, margin: float, *, upper: bool) -> list[Part]:
        assert self.weights is not None
        return [self._part(part, self.weights[part.metric], margin, upper=upper) for part in self.parts]

    def _part(self, part: Lost, weight: float, margin: float, *, upper: bool) -> Part:
        """Limits of the exact score test of right or wrong answers; of means those of t."""
        values, units = part.accept if upper else part.reject, part.units
        alone = Loss((part,), None, self.alpha)
        if part.whole:
            counts = int((values > 0).sum()), int((values < 0).sum()), len(values)
            many, effect = len(np.unique(units)), self._effect(values, units)

            def limit(level: float) -> float:
                return rate_limits(counts, many, effect, level, upper=upper)
        else:
            rooms = alone._rooms(margin)

            def limit(level: float) -> float:
                found = mean_loss(values, margin, level, units.tolist(), rooms)
                return found.hi if upper else found.lo

        return Part(weight, float(values.mean()), limit)

    # Builds that were asked in rounds

    def _p_value(self, margin: float, *, upper: bool) -> float:
        if self.looks is None:
            return self._p(margin, upper=upper)
        from quantverdict.collect.schedule import SEQUENTIAL_SHARE

        early = min(1.0, self._early_p(margin, upper=upper) / SEQUENTIAL_SHARE)
        if self.looks.stopped_after is not None:
            return early
        return min(early, 1.0, self._p(margin, upper=upper) / (1 - SEQUENTIAL_SHARE))

    def _limit(self, level: float, margin: float, *, upper: bool) -> float:
        if self.looks is None:
            return self._full_limit(level, margin, upper=upper)
        from quantverdict.collect.schedule import SEQUENTIAL_SHARE

        early = self._early_limit(level * SEQUENTIAL_SHARE, upper=upper)
        if self.looks.stopped_after is not None:
            return early
        full = self._full_limit(level * (1 - SEQUENTIAL_SHARE), margin, upper=upper)
        return min(early, full) if upper else max(early, full)

    @property
    def _watched(self) -> tuple[Loss, ...]:
        """What is watched one by one: a weighted mean is beyond a margin only where one of its members is."""
        if self.weights is None or len(self.parts) == 1:
            return (self,)
        return tuple(Loss((part,), None, self.alpha, self.looks) for part in self.parts)

    def _early_p(self, margin: float, *, upper: bool) -> float:
        return max(one.sequence(0.05, upper=upper).p_values(margin)[0 if upper else 1] for one in self._watched)

    def _early_limit(self, level: float, *, upper: bool) -> float:
        # A sequence's level is of both its ends.
        found = [one.sequence(2 * level, upper=upper).update([]) for one in self._watched]
        return max(one.hi for one in found) if upper else min(one.lo for one in found)

    def sequence(self, alpha: float, *, upper: bool) -> ConfidenceSequence:
        """The losses of all members as they came, round by round."""
        from quantverdict.collect.schedule import MonitoredMetric, add_round

        assert self.looks is not None
        watched = MonitoredMetric(ConfidenceSequence(alpha), 0.5)
        _, units = self._all("accept")
        largest = max(self.looks.largest, int(np.unique(units, return_counts=True)[1].max()))
        for number in range(self.looks.asked):
            losses: list[float] = []
            names: list[str] = []
            for part in self.parts:
                here = np.zeros(len(part.accept), bool) if part.rounds is None else part.rounds == number
                losses += np.clip((part.accept if upper else part.reject)[here], -1, 1).tolist()
                names += map(str, part.units[here])
            add_round(watched, losses, names, largest)
        return watched.sequence


def _losses(part: Lost, side: str) -> FloatArray:
    """The losses of a side; of pairs with both grades where none is named."""
    if side == "accept":
        return part.accept
    return part.reject if side == "reject" else part.accept[part.both]


@dataclass(frozen=True, slots=True)
class Standing:
    """One row of a build's criteria: a criterion, or a member of a pool, before it is decided.

    Attributes:
        cell: the build.
        criterion: its name.
        metric: that of a member, or of a criterion that has one alone; empty for a pool.
        role: criterion or member.
        margin, guard: in pp; a criterion is accepted by its margin, a member by its guard, and both are rejected by
            their margin.
        headroom: of the metric; of a pool the best of its members.
        loss: None where it is not tested: nothing was measured, or the baseline says that nothing can be shown.
        reason: why it is not tested, or what of the baseline stands against it.
        p_accept, p_inferior: of its two tests, 1 where it is not tested.
    """

    cell: CellId
    criterion: str
    metric: str
    role: str
    margin: Fraction
    guard: Fraction
    headroom: str
    loss: Loss | None
    reason: str
    p_accept: float = 1.0
    p_inferior: float = 1.0

    @property
    def decides_at(self) -> Fraction:
        """The margin by which it is accepted."""
        return self.margin if self.role == "criterion" else self.guard

    @property
    def is_informative(self) -> bool:
        return self.headroom == "informative"


def standings(
    samples: Grids, baselines: Mapping[CellId, CellId], policy: Policy, rooms: Mapping[tuple[str, str], Headroom]
) -> dict[CellId, tuple[Standing, ...]]:
    """Every criterion of every build, each pool followed by its members.

    Args:
        samples: one grid a metric.
        baselines: each build to the baseline that it is compared with.
        policy: with criteria.
        rooms: the head-room of each base model and metric.
    """
    return {
        cell: BuildLosses(
            cell,
            policy,
            {metric: room for (model, metric), room in rooms.items() if model == cell.base_model},
            partial(lost_by, samples, cell, base),
            partial(_looks, samples, cell),
        ).standings()
        for cell, base in baselines.items()
    }


@dataclass(frozen=True, slots=True)
class BuildLosses:
    """What the criteria of one build are made of.

    Attributes:
        rooms: the head-room of each metric that is measured.
        lost: what the build loses in a metric; None where no prompt has a grade in both arms.
        looks: how it was asked the prompts of some metrics; None where it was not asked in rounds.
    """

    cell: CellId
    policy: Policy
    rooms: Mapping[str, Headroom]
    lost: Callable[[str], Lost | None]
    looks: Callable[[Sequence[str]], InterimAnalyses | None]

    def standings(self) -> tuple[Standing, ...]:
        """Every criterion, and its members where it has more than one."""
        return tuple(row for name in self.policy.criteria or {} for row in self._of(name))

    def _of(self, name: str) -> Iterator[Standing]:
        criterion, own = (self.policy.criteria or {})[name], self.policy.gates
        rooms = {metric: self.rooms[metric] for metric in self.policy.members_among(name, self.rooms)}
        lost = {metric: self.lost(metric) for metric in rooms}
        tested = [part for metric, part in lost.items() if part is not None and rooms[metric].tested]
        unsupported = {part.metric: why for part in tested if (why := _lacking(part.metric, rooms, lost))}
        tested = [part for part in tested if part.metric not in unsupported]
        alpha, looks = self.policy.alpha / 2, self.looks([part.metric for part in tested])
        members = []
        for metric, room in rooms.items():
            part, reason = lost[metric], "" if room.verdict == "informative" else room.reason
            if part is None and room.tested:
                reason = f"{metric}: no prompt that both it and the baseline have a grade for"
            alone = Loss((part,), None, alpha, looks) if part in tested and part is not None else None
            reason = unsupported.get(metric, reason)
            verdict = "not_measured" if room.tested and (part is None or metric in unsupported) else room.verdict
            margins = own[metric], criterion.guard_of(metric)
            members.append(Standing(self.cell, name, metric, "member", *margins, verdict, alone, reason))
        pool, pooled = None, self.policy.pooled(name, [part.metric for part in tested])
        if pooled:
            weights = criterion.weights_of(pooled)
            pool = Loss(tuple(part for part in tested if part.metric in pooled), weights, alpha, looks)
        reason = "; ".join(one.reason for one in members if one.reason)
        if not rooms:
            reason = f"{name}: nothing here measures {', '.join(self.policy.members(name))}"
        own_rooms = [metric for metric in rooms if metric in self.policy.members(name)]
        single = own_rooms[0] if len(own_rooms) == 1 else ""
        margin = min(self.policy.margin_of(name, pooled), criterion.guards.get(single, criterion.margin_pp))
        guard = margin if single else criterion.guard_margin_pp or criterion.margin_pp
        own_members = [one.headroom for one in members if one.metric in own_rooms]
        best = next((one for one in HEADROOM if one in own_members), "not_measured")
        whole = Standing(self.cell, name, single, "criterion", margin, guard, best, pool, reason)
        yield _tested(whole)
        if len(rooms) > 1:
            yield from map(_tested, members)


def _looks(samples: Grids, cell: CellId, metrics: Sequence[str]) -> InterimAnalyses | None:
    """How a build was asked the prompts of all these."""
    found = [looks for metric in metrics if (looks := samples[metric].looks.get(cell)) is not None]
    return replace(found[0], largest=max(looks.largest for looks in found)) if found else None


HEADROOM = ("informative", "unsettled", "uninformative", "not_measured")
"""Of a pool the best of its members."""


def _tested(one: Standing) -> Standing:
    if one.loss is None:
        return one
    rejecting = one.loss.rejecting
    p_inferior = 1.0 if rejecting is None else rejecting.p_reject(one.margin)
    return replace(one, p_accept=one.loss.p_accept(one.decides_at), p_inferior=p_inferior)


def _lacking(metric: str, rooms: Mapping[str, Headroom], lost: Mapping[str, Lost | None]) -> str:
    """Why a metric decides nothing although it is measured: what it needs beside it is not; empty where nothing lacks.

    What is known to have nothing to lose is within any margin.
    """
    for other in METRICS[metric].needs:
        room = rooms.get(other)
        if room is None or room.verdict == "not_measured" or (room.tested and lost[other] is None):
            return f"{metric}: a pass by it needs {other}, which is not measured"
    return ""


def lost_by(samples: Grids, cell: CellId, baseline: CellId, metric: str) -> Lost | None:
    """What a build loses in one metric; None where no prompt has a grade in both arms."""
    if metric not in samples or (arms := arms_of(samples[metric], cell, baseline)) is None:
        return None
    looks = arms.grid.looks.get(cell)
    bounds = arms.bounds(metric, offset=looks is None)
    accept, reject = (bounds.accept, bounds.reject) if looks is None else bets_on(bounds)
    here = ~np.isnan(accept)
    return Lost(
        metric=metric,
        accept=accept[here],
        reject=reject[here],
        units=_named(arms)[here],
        credit=credit(metric, arms.theirs[here]),
        both=arms.known[here],
        a=bounds.a,
        c=bounds.c,
        rounds=None if looks is None else looks.rounds[here],
    )


def _named(arms: Arms) -> Units:
    """Each prompt's unit by the first prompt of it, which is one number in all grids."""
    grid = arms.grid
    first = np.full(int(grid.units.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, grid.units, grid.prompts)
    return first[grid.units]
