"""Whether a study can decide each of its builds, in a sentence a build; and the prompts at which it could.

How many prompts that takes is worked out by the normal approximation (Nam 1997), which is quick enough to be asked for
every build; what is printed as a chance is that of the exact tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from quantverdict.matrix.signals import duration
from quantverdict.planning.power import ASSUMED_DISCORDANCE, DecisionRules, PilotStats, PlannedCriterion, Pool, pooled
from quantverdict.stats.distributions import normal_cdf, normal_quantile
from quantverdict.stats.paired import constrained_variance
from quantverdict.stats.power import mean_outcome_probabilities, n_mean, n_rate, outcome_probabilities

MOST = 0.9999
"""A chance that each criterion has at most, where all together are to have the study's power."""

VERBS = {"accept": "can accept", "reject": "can reject", "neither": "cannot decide"}


@dataclass(frozen=True, slots=True)
class TaskRoom:
    """A task of a study.

    Attributes:
        asked: prompts that the study asks.
        counted: independent ones among them.
        held: prompts that the task has.
        seconds: that one takes of one build; None where no speed is known.
    """

    name: str
    metrics: tuple[str, ...]
    asked: int
    counted: int
    held: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class BuildProspect:
    """What a study can say of one build.

    Attributes:
        build: its name.
        decides: what it has the study's power for.
        accept: the chance that it is accepted, were nothing lost.
        reject: the chance that it is rejected if it loses what an earlier run saw; None where that is within every
            margin, or nothing was seen.
        more: prompts of each criterion that are to be added, for the study's power to accept it; empty where none are,
            or where no number of those that the tasks hold would do.
        limits: of each task, with these prompts; empty as `more`.
        seconds: what they take of the build and its baseline; None where no speed is known.
        details: of the sentence that says so, what stands after the build's name.
        seen: what is expected of each metric; empty to assume.
    """

    build: str
    decides: Literal["accept", "reject", "neither"]
    accept: float
    reject: float | None
    more: Mapping[str, int]
    limits: Mapping[str, int]
    seconds: float | None
    details: str
    seen: Mapping[str, PilotStats] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """In words: `can accept Q8_0: 92% if it loses nothing`."""
        return f"{VERBS[self.decides]} {self.build}: {self.details}"


@dataclass(frozen=True, slots=True)
class TargetStudy:
    """A study that has the power to accept a build.

    Attributes:
        power: the chance that the build is accepted, were nothing lost.
        limits: prompts of each task.
        seconds: of all builds; None where no speed is known.
        yaml: the study's file with these limits.
    """

    build: str
    power: float
    limits: Mapping[str, int]
    seconds: float | None
    yaml: str

    def line(self) -> str:
        """What it reaches and takes."""
        time = "time not measured" if self.seconds is None else f"about {duration(self.seconds)} for all builds"
        prompts = sum(self.limits.values())
        return f"accepts {self.build}, if it loses nothing, with {self.power:.0%}: {prompts} prompts a build, {time}"


@dataclass(frozen=True, slots=True)
class PlannedStudy:
    """What builds are decided by.

    Attributes:
        rows: criteria and members that are measured.
        rooms: the tasks.
        rules: `alpha` is what a look has of a family.
        assumed: of each metric, of an earlier run as a whole; empty to assume.
    """

    rows: Sequence[PlannedCriterion]
    rooms: Sequence[TaskRoom]
    rules: DecisionRules
    assumed: Mapping[str, PilotStats]

    @property
    def level(self) -> float:
        """Of acceptance, at the first step of Holm."""
        return self.rules.alpha / max(1, self.rules.builds)

    def prospects(self, builds: Mapping[str, Mapping[str, PilotStats]]) -> tuple[BuildProspect, ...]:
        """Each build's; by name, what an earlier run saw of it."""
        known: list[BuildProspect] = []
        found = []
        for name, seen in builds.items():
            alike = next((one for one in known if one.seen == {**self.assumed, **seen}), None)
            if alike is None:
                alike = self._prospect(seen)
                known.append(alike)
            found.append(replace(alike, build=name))
        return tuple(found)

    def _prospect(self, seen: Mapping[str, PilotStats]) -> BuildProspect:
        """Of a build without its name."""
        expected = {**self.assumed, **seen}
        asked = {room.name: room.asked for room in self.rooms}
        accept, reject = self.chance(expected, asked), self._rejected(seen, asked)
        bare = BuildProspect("", "neither", accept, reject, {}, {}, None, "", expected)
        if reject is not None and reject >= self.rules.power:
            return replace(bare, decides="reject", details=f"{reject:.0%} if it loses what the earlier run saw")
        if accept >= self.rules.power:
            return replace(bare, decides="accept", details=f"{accept:.0%} if it loses nothing")
        limits = self.limits_for(expected)
        if limits is None:
            return replace(bare, details=self.short(expected))
        more = {row.name: more for row in self.rows if not row.is_member and (more := self._added(row, limits)) > 0}
        seconds = self._seconds(limits)
        words = " and ".join(f"{count} {criterion}" for criterion, count in more.items())
        time = "time not measured" if seconds is None else f"about {duration(seconds)} of it and its baseline"
        details = f"add {words} prompts, {time} (now {accept:.0%} if it loses nothing)"
        return replace(bare, more=more, limits=limits, seconds=seconds, details=details)

    def chance(self, expected: Mapping[str, PilotStats], sizes: Mapping[str, int], *, exact: bool = True) -> float:
        """That a build which loses nothing passes every row: the least that it is, as rows go together."""
        found = 1.0
        for row in self.rows:
            pool = self._pool(row, sizes, expected)
            found *= _passes(row, pool, self._is_mean(row), self.level, exact=exact)
        return found

    def limits_for(self, expected: Mapping[str, PilotStats]) -> dict[str, int] | None:
        """Prompts of each task, none fewer than now, at which a build that loses nothing is accepted with the study's
        power; None where the tasks do not hold so many."""
        low, high = self.rules.power, MOST
        if self.chance(expected, self._sizes(expected, high), exact=False) < self.rules.power:
            return None
        for _ in range(30):
            middle = (low + high) / 2
            enough = self.chance(expected, self._sizes(expected, middle), exact=False) >= self.rules.power
            low, high = (low, middle) if enough else (middle, high)
        return self._sizes(expected, high)

    def exact_limits_for(self, expected: Mapping[str, PilotStats]) -> dict[str, int] | None:
        """As `limits_for`, by the exact tests: some more where the approximation said too few."""
        limits = self.limits_for(expected)
        held = {room.name: room.held for room in self.rooms}
        while limits is not None and self.chance(expected, limits) < self.rules.power:
            grown = {name: min(held[name], size + max(1, size // 25)) for name, size in limits.items()}
            limits = None if grown == limits else grown
        return limits

    def _sizes(self, expected: Mapping[str, PilotStats], power: float) -> dict[str, int]:
        """Prompts of each task at which every row passes with a power, as far as the tasks hold them."""
        wanted = {metric: self._total(metric, "asked") for row in self.rows for metric in row.metrics}
        held = {metric: self._total(metric, "held") for metric in wanted}
        for row in sorted(self.rows, key=lambda row: not row.is_member):
            need = self._needed(row, expected, power)
            while (lacking := need - sum(wanted[metric] for metric in row.metrics)) > 0:
                open_ = [metric for metric in row.metrics if wanted[metric] < held[metric]]
                if not open_:
                    break
                # Members of a pool get equal numbers: the one with the fewest grows to the next one's, at most.
                least = min(open_, key=lambda metric: wanted[metric])
                above = [wanted[metric] for metric in open_ if wanted[metric] > wanted[least]]
                level = [metric for metric in open_ if wanted[metric] == wanted[least]]
                step = min([math.ceil(lacking / len(level)), *(one - wanted[least] for one in above)])
                for metric in level:
                    wanted[metric] = min(held[metric], wanted[metric] + step)
        return self._of_tasks(wanted)

    def _of_tasks(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """What each task has of its metrics' prompts: more of one goes to its tasks as far as they have any left."""
        sizes = {room.name: room.asked for room in self.rooms}
        for metric, total in wanted.items():
            mine = [room for room in self.rooms if metric in room.metrics]
            lacking, left = total - sum(sizes[room.name] for room in mine), sum(
                room.held - sizes[room.name] for room in mine
            )  # fmt: skip
            for room in mine:
                free = room.held - sizes[room.name]
                part = min(free, lacking, math.ceil(lacking * free / left)) if lacking > 0 and left > 0 else 0
                sizes[room.name] += part
                lacking, left = lacking - part, left - free
        return sizes

    def _needed(self, row: PlannedCriterion, expected: Mapping[str, PilotStats], power: float) -> int:
        pool = self._pool(row, {room.name: room.asked for room in self.rooms}, expected)
        if self._is_mean(row):
            found = n_mean(_sd(pool), 0.0, row.accept, power, self.level)
        else:
            share = _share(pool)
            found = n_rate(share, 0.0, row.accept, power, self.level) if share else _if_none_differs(row, self.level)
        return 1 << 40 if found is None else math.ceil(found * pool.n / pool.counted)

    def _rejected(self, seen: Mapping[str, PilotStats], sizes: Mapping[str, int]) -> float | None:
        """The largest chance that a row rejects a build which loses as it was seen to."""
        chances = []
        for row in self.rows:
            if any(metric not in seen for metric in row.metrics):
                continue
            pool = self._pool(row, sizes, seen)
            assert pool.observed is not None  # all of them were seen
            loss, level = min(pool.observed.loss, 1.0), self.level * row.weight
            if loss <= row.reject:
                continue
            if self._is_mean(row):
                found = mean_outcome_probabilities(pool.counted, _sd(pool), loss, row.reject, level)
            else:
                found = outcome_probabilities(pool.counted, _share(pool), loss, row.reject, level)
            chances.append(found.inferior)
        return max(chances, default=None)

    def _pool(self, row: PlannedCriterion, sizes: Mapping[str, int], expected: Mapping[str, PilotStats]) -> Pool:
        parts = []
        for metric in row.metrics:
            mine = [room for room in self.rooms if metric in room.metrics]
            n = sum(sizes[room.name] for room in mine)
            counted = sum(sizes[room.name] * room.counted / room.asked for room in mine)
            parts.append(((n, max(1, math.floor(counted))), expected.get(metric)))
        return pooled(parts)

    def _added(self, row: PlannedCriterion, limits: Mapping[str, int]) -> int:
        mine = [room for room in self.rooms if set(row.metrics) & set(room.metrics)]
        return sum(limits[room.name] - room.asked for room in mine)

    def _seconds(self, limits: Mapping[str, int]) -> float | None:
        """Of a build and its baseline."""
        added = {room: limits[room.name] - room.asked for room in self.rooms if limits[room.name] > room.asked}
        times = [None if room.seconds is None else 2 * count * room.seconds for room, count in added.items()]
        known = [time for time in times if time is not None]
        return sum(known) if len(known) == len(times) else None

    def short(self, expected: Mapping[str, PilotStats]) -> str:
        """What would take more prompts than there are: criteria, or members where these alone do."""
        each = self.rules.power ** (1 / max(1, len(self.rows)))
        lacking = {
            row: f"{row.name} about {need} of {held}"
            for row in self.rows
            if (need := self._needed(row, expected, each)) > (held := sum(self._total(m, "held") for m in row.metrics))
        }
        named = [words for row, words in lacking.items() if not row.is_member] or list(lacking.values())
        return (
            f"needs more prompts than its tasks hold: {', '.join(named)}" if named else "its tasks hold too few prompts"
        )

    def _total(self, metric: str, what: str) -> int:
        return sum(int(getattr(room, what)) for room in self.rooms if metric in room.metrics)

    def _is_mean(self, row: PlannedCriterion) -> bool:
        return any(metric in self.rules.means for metric in row.metrics)


def _passes(row: PlannedCriterion, pool: Pool, mean: bool, level: float, *, exact: bool) -> float:
    if mean:
        return mean_outcome_probabilities(pool.counted, _sd(pool), 0.0, row.accept, level).non_inferior
    if exact:
        return outcome_probabilities(pool.counted, _share(pool), 0.0, row.accept, level).non_inferior
    share = _share(pool)
    if share == 0:
        return float(pool.counted >= _if_none_differs(row, level))
    null = math.sqrt(constrained_variance(share / 2, share / 2, -row.accept))
    reach = row.accept * math.sqrt(pool.counted) - normal_quantile(1 - level) * null
    return normal_cdf(reach / math.sqrt(share))


def _if_none_differs(row: PlannedCriterion, level: float) -> int:
    """Pairs of which none differs that rule out a loss of the margin: (1 - margin)^n is the chance to have met none."""
    return math.ceil(math.log(level) / math.log1p(-row.accept))


def _share(pool: Pool) -> float:
    return ASSUMED_DISCORDANCE if pool.observed is None else pool.observed.discordance


def _sd(pool: Pool) -> float:
    variance = ASSUMED_DISCORDANCE if pool.observed is None else pool.observed.variance
    return math.sqrt(max(variance, 1e-6))


def total_seconds(rooms: Iterable[TaskRoom], limits: Mapping[str, int], cells: int) -> float | None:
    """What asking so many prompts of each task takes of so many builds; None where no speed is known."""
    times = [None if room.seconds is None else limits[room.name] * room.seconds for room in rooms]
    known = [time for time in times if time is not None]
    return cells * sum(known) if len(known) == len(times) else None
