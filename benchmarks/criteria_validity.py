"""How often criteria accept, reject and cover, by simulation: the claims of docs/validity.md, a section each.

    python benchmarks/validity.py --only criteria [--studies 10000] [--write]

A build is a set of counts a member: prompts that it loses beyond the baseline, that it gains, and that it or the
baseline leaves ungraded. The exact tests depend on these alone, so each is looked up in a table of its rejection
region, made by the package's own p-values. Means and clusters have no such table and are simulated prompt by prompt, in
fewer studies.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np

from quantverdict.matrix.criteria import Loss, Lost
from quantverdict.protocol.criteria import look_share
from quantverdict.stats.distributions import normal_quantile
from quantverdict.stats.paired import p_below, score

HALF = 0.025
REFUSAL, SAFETY, QUALITY = "refusal", "safety", "quality"
MARGIN = 0.05
GUARDS = {REFUSAL: 0.05, SAFETY: 0.10, QUALITY: 0.15}


@dataclass(frozen=True)
class Member:
    """Prompts of one metric: `loss` lost in truth beside `flips` both ways; shares left ungraded in each arm."""

    criterion: str
    n: int
    loss: float = 0.0
    flips: float = 0.02
    ungraded: float = 0.0
    base_ungraded: float = 0.0

    def shares(self):
        """Of lost, gained, a, c and the rest; the baseline is right on four in five."""
        lost, gained = self.loss + self.flips / 2, self.flips / 2
        a, c = 0.8 * self.ungraded, 0.8 * self.base_ungraded
        kept = 1 - self.ungraded - self.base_ungraded
        return np.array([lost * kept, gained * kept, a, c, 1 - (lost + gained) * kept - a - c])

    def draw(self, studies, rng, n=None):
        """(studies, 4) counts."""
        return rng.multinomial(n or self.n, self.shares(), studies)[:, :4]


def standard(n, flips=0.02, ungraded=0.0, unequal=False):
    """Refusals, three members of safety and two of quality, of n prompts each; or of n, n / 2 and n / 4."""
    parts = (1, 0.5, 0.25) if unequal else (1, 1, 1)
    common = {"flips": flips, "ungraded": ungraded, "base_ungraded": ungraded}
    safety = [Member(SAFETY, max(4, round(part * n)), **common) for part in parts]
    quality = [Member(QUALITY, max(4, round(part * n)), **common) for part in parts[:2]]
    return [Member(REFUSAL, n, **common), *safety, *quality]


def losing(members, losses):
    """The members with these true losses, by place."""
    return [Member(**{**one.__dict__, "loss": losses.get(at, 0.0)}) for at, one in enumerate(members)]


@cache
def most_lost(other, n, margin, level, side):
    """The most lost pairs, `other` being gained, at which H0: loss >= margin (side 1) is rejected; -1 is none.

    Of side -1 the most gained pairs, `other` being lost, at which H0: loss <= margin is.
    """
    within = np.arange(n - other + 1)
    # The normal score says nearly the same; from there it is a step or two.
    most = int((score(within, other, n, side * margin) <= normal_quantile(level)).sum()) - 1
    while most + 1 + other <= n and p_below(most + 1, other, n, side * margin) <= level:
        most += 1
    while most >= 0 and p_below(most, other, n, side * margin) > level:
        most -= 1
    return most


def rejects(counts, n, margin, level, side):
    """For each study, whether H0 is rejected; `counts` is (studies, 4)."""
    lost, gained, a, c = counts.T
    less, more = (lost + a, gained + np.minimum(a, c)) if side == 1 else (gained, lost)
    values, at = np.unique(more, return_inverse=True)
    limits = [most_lost(int(value), n, margin, level, side) for value in values]
    return less <= np.array(limits)[at]


def rows_of(members):
    """Criteria and the members of pools: name, places of its members, margin to accept, margin to reject, weight."""
    names = list(dict.fromkeys(one.criterion for one in members))
    pools = {name: [at for at, one in enumerate(members) if one.criterion == name] for name in names}
    alone = [(name, [at]) for name in names for at in pools[name] if len(pools[name]) > 1]
    others = len([name for name in names if name != REFUSAL])
    total = 0.5 * (REFUSAL in names) + 0.25 * (others > 0) + 0.25 * bool(alone)
    rows = [(places, MARGIN, MARGIN, (0.5 if name == REFUSAL else 0.25 / others) / total)
            for name, places in pools.items()]  # fmt: skip
    return rows + [(places, GUARDS[name], MARGIN, 0.25 / len(alone) / total) for name, places in alone]


def verdicts(members, counts, level):
    """(studies,) whether each study's build is accepted, and whether it is rejected, at a level of both families."""
    accepted, rejected = np.ones(len(counts[0]), bool), np.zeros(len(counts[0]), bool)
    for places, guard, margin, weight in rows_of(members):
        n, summed = sum(int(counts[at].n) for at in places), sum(counts[at].values for at in places)
        accepted &= rejects(summed, n, guard, level, 1)
        rejected |= rejects(summed, n, margin, level * weight, -1)
    return accepted & ~rejected, rejected


@dataclass(frozen=True)
class Counts:
    values: np.ndarray
    n: int

    def __len__(self):
        return len(self.values)


def simulate(members, studies, rng, looks=1, builds=1):
    """Chance that any of so many builds is ever accepted, and ever rejected, over so many looks."""
    accepted, rejected = np.zeros((builds, studies), bool), np.zeros((builds, studies), bool)
    for build in range(builds):
        sizes = [one.n for one in members]
        counts = [one.draw(studies, rng) for one in members]
        for look in range(1, looks + 1):
            level = HALF * float(look_share(look)) / builds
            found = verdicts(members, [Counts(*pair) for pair in zip(counts, sizes, strict=True)], level)
            accepted[build] |= found[0]
            rejected[build] |= found[1]
            grown = [-(-3 * size // 2) for size in sizes]
            if look < looks:
                counts = [had + one.draw(studies, rng, new - size) for had, one, new, size
                          in zip(counts, members, grown, sizes, strict=True)]  # fmt: skip
                sizes = grown
    return accepted.any(axis=0), rejected.any(axis=0)


def percent(flags):
    return 100 * float(np.mean(flags))


SIZES = (12, 50, 100, 200, 400, 1000)


def settings(sizes=SIZES):
    """The sizes with usual flips; and at 200 a member everything else."""
    for n in sizes:
        yield n, {}, {}
    for flips in (0.0, 0.05, 0.10, 0.20):
        yield 200, {"flips": flips}, {}
    yield 200, {"unequal": True}, {}
    yield 200, {"ungraded": 0.02}, {}
    yield 200, {"ungraded": 0.05}, {}
    yield 200, {}, {"builds": 6}
    yield 200, {}, {"looks": 3}


def told(n, how, run):
    return {
        "n": n,
        "flips %": 100 * how.get("flips", 0.02),
        "sizes": "n, n/2, n/4" if how.get("unequal") else "equal",
        "ungraded %": 100 * how.get("ungraded", 0.0),
        "builds": run.get("builds", 1),
        "looks": run.get("looks", 1),
    }


def wrong_verdicts(studies, rng, sizes=SIZES):
    """Accepted at the margin of refusals, of the safety pool or at one guard margin; rejected at all own margins."""
    rows = []
    for n, how, run in settings(sizes):
        members = standard(n, **how)
        pool = dict.fromkeys((1, 2, 3), MARGIN)
        every = dict.fromkeys(range(len(members)), MARGIN)
        losses = {"refusal": {0: MARGIN}, "safety pool": pool, "one guard": {1: GUARDS[SAFETY]}}
        row = told(n, how, run)
        for name, loss in losses.items():
            row[f"accepted, at the margin of {name} %"] = percent(
                simulate(losing(members, loss), studies, rng, **run)[0]
            )
        row["rejected, every own margin lost %"] = percent(simulate(losing(members, every), studies, rng, **run)[1])
        row["rejected, nothing lost %"] = percent(simulate(members, studies, rng, **run)[1])
        rows.append(row)
    return rows


def losses_of_one(studies, rng):
    """Chance of acceptance of a build that loses so much of one member, and of refusals."""
    rows = []
    for n in (200, 400, 800):
        members = standard(n)
        row = {"n": n}
        for loss in (0.0, 0.02, 0.08, 0.10, 0.12, 0.14):
            row[f"{100 * loss:.0f} pp of one of safety %"] = percent(
                simulate(losing(members, {1: loss}), studies, rng)[0]
            )
        row["10 pp of refusals %"] = percent(simulate(losing(members, {0: 0.10}), studies, rng)[0])
        rows.append(row)
    return rows


def power(studies, rng):
    """Chance that a build which loses nothing is accepted, as the regions say before a study and as it comes out."""
    rows = []
    for n, flips, builds in ((100, 0.02, 1), (200, 0.02, 1), (200, 0.05, 1), (300, 0.05, 6), (400, 0.10, 1)):
        members = standard(n, flips)
        level = HALF * float(look_share(1)) / builds
        counts = [Counts(one.draw(studies, rng), one.n) for one in members]
        rows.append({
            "n": n, "flips %": 100 * flips, "builds": builds,
            "accepted, planned %": 100 * planned(members, level),
            "accepted, simulated %": percent(verdicts(members, counts, level)[0]),
        })  # fmt: skip
    return rows


def planned(members, level):
    """The product of the chances of all rows, which are taken for independent: the least to expect."""
    from quantverdict.stats.power import outcome_probabilities

    chance = 1.0
    for places, guard, _, _ in rows_of(members):
        of = [members[at] for at in places]
        n = sum(one.n for one in of)
        flips = sum(one.n * one.flips for one in of) / n
        chance *= outcome_probabilities(n, flips, 0.0, guard, level).non_inferior
    return chance


def coverage(studies, rng):
    """How often the shown interval of a criterion holds the truth; each end may miss by its test's level."""
    rows = []
    level = HALF * float(look_share(1))
    for n in (50, 200, 1000):
        for loss, flips in ((0.0, 0.0), (0.0, 0.05), (0.05, 0.05), (0.10, 0.10), (0.02, 0.20)):
            member = Member(REFUSAL, n, loss, flips)
            counts = member.draw(studies, rng)
            above = rejects(counts, n, loss, level, 1)
            below = rejects(counts, n, loss, level / 2, -1)
            held = {"held %": percent(~(above | below)), "due %": 100 * (1 - 1.5 * level)}
            rows.append({"n": n, "true loss pp": 100 * loss, "flips %": 100 * flips, **held})
    return rows


# Means and clusters: prompt by prompt, by the package's own pools


def answers(kind, n, loss, rng):
    """(n,) losses: right or wrong, or an overlap with right and wrong references (a step of a half), at 3 % flips."""
    draw = rng.random(n)
    if kind == "share":
        return np.select([draw < loss + 0.015, draw < loss + 0.03], [1.0, -1.0], 0.0)
    if kind == "steps":
        parts = np.cumsum([loss / 2, loss, 0.02, 0.02])
        return np.select([draw < end for end in parts], [1.0, 0.5, 0.5, -0.5], 0.0)
    changed = rng.random(n) < 0.3
    return np.where(changed, np.clip(rng.normal(loss / 0.3, 0.15, n), -1, 1), 0.0)


METRICS = {"share": "bias_resistance", "steps": "truthfulness", "overlap": "rouge_l"}


def lost(kind, n, loss, rng, cluster=1, room=1.0):
    """One metric of a build; whole clusters lose together."""
    values = answers(kind, -(-n // cluster), loss, rng)
    values = np.repeat(values, cluster)[:n]
    if cluster > 1:  # half of what differs moves as one, the rest alone
        alone = answers(kind, n, loss, rng)
        values = np.where(rng.random(n) < 0.5, values, alone)
    units = np.arange(n) // cluster
    both = np.ones(n, dtype=bool)
    return Lost(METRICS[kind], values, values, units, np.full(n, room), both, 0, 0, None)


def shifted(part, start):
    return Lost(part.metric, part.accept, part.reject, part.units + start, part.credit, part.both, 0, 0, None)


def pooled(studies, rng):
    """Pools with means, and pools in clusters, whose true loss is the margin; by prompts and as a mean of metrics."""
    one_each = {"bias_resistance": 0.5, "over_refusal_rate": 0.5}
    cases = (
        ("one mean", (("overlap", 1),), None),
        ("one mean in steps of a half", (("steps", 1),), None),
        ("a mean and two shares", (("overlap", 1), ("share", 1), ("share", 1)), None),
        ("shares in clusters of 4", (("share", 4), ("share", 4)), None),
        ("shares of n and n/3, by metrics", (("share", 1), ("share", 1)), one_each),
    )
    rows = []
    for name, kinds, weights in cases:
        for n in (24, 100, 300):
            # A weighted mean inverts exact limits for every p-value: a quarter of the studies, of draws of their own.
            many, draws = (studies, rng) if weights is None else (studies // 4, np.random.default_rng([7, n]))
            found = [pool(kinds, n, MARGIN, draws, weights) for _ in range(many)]
            margin = Fraction(5)
            level = HALF * float(look_share(1))
            p = np.array([(one.p_accept(margin), one.p_reject(margin)) for one in found])
            rows.append({"pool": name, "n": n, "accepted, loss = margin %": percent(p[:, 0] <= level),
                         "rejected, loss = margin %": percent(p[:, 1] <= level), "level %": 100 * level})  # fmt: skip
    return rows


def pool(kinds, n, loss, rng, weights=None):
    parts, start = [], 0
    for at, (kind, cluster) in enumerate(kinds):
        part = shifted(lost(kind, n if weights is None else n // (1 + 2 * at), loss, rng, cluster), start)
        if weights is not None and at:
            part = Lost("over_refusal_rate", part.accept, part.reject, part.units, part.credit, part.both, 0, 0, None)
        parts.append(part)
        start += n
    return Loss(tuple(parts), weights, HALF)


SECTIONS = {
    "criteria_wrong": wrong_verdicts,
    "criteria_losses": losses_of_one,
    "criteria_power": power,
    "criteria_coverage": coverage,
    "criteria_pools": lambda studies, rng: pooled(max(200, studies // 10), rng),
}


def _too_often(row):
    """Each family is held at 2.5 % of studies, and 10,000 of them tell it to 0.3."""
    return any(value > 2.5 + 0.5 for name, value in row.items() if name.startswith(("accepted, at", "rejected, ")))


CLAIMS = {
    "criteria_wrong": _too_often,
    "criteria_losses": lambda row: row["10 pp of refusals %"] >= 1 or row["14 pp of one of safety %"] >= 1,
    "criteria_power": lambda row: abs(row["accepted, planned %"] - row["accepted, simulated %"]) > 6,
    "criteria_coverage": lambda row: row["held %"] < row["due %"] - 0.5,
    "criteria_pools": lambda row: max(row["accepted, loss = margin %"], row["rejected, loss = margin %"]) > 2.5 + 0.7,
}
