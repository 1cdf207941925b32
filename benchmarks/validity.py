"""How often the decisions are wrong, by simulation: false alarms, missed losses, coverage, power, early stopping.

    python benchmarks/validity.py [--studies 4000] [--seed 1] [--only SECTION...] [--write]

Prompts differ in difficulty, and every arm repeats the baseline's answers but for some that it draws anew, by the
prompt's own chance (so 1 to 3 % differ, both ways alike, though nothing changed). A lossy variant also fails some that
it would have got right, whole clusters rather than single ones where prompts are clustered. Exits 1 where a claim does
not hold; `--write` puts the tables into docs/validity.md.
"""

import argparse
import sys
import time
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent))
import criteria_validity

from quantverdict.collect.schedule import ROUNDS, MonitoredMetric, add_round, full_p_values, stopped_p_values
from quantverdict.matrix.shared import bounded_losses
from quantverdict.stats.distributions import normal_cdf
from quantverdict.stats.noninferiority import cluster_sums, design_effect, mean_loss, rate_tests
from quantverdict.stats.paired import (
    excess_flips,
    most_lost,
    paired_mean_ratio,
    paired_rate_ratio,
    score,
    tango_interval,
)
from quantverdict.stats.power import outcome_probabilities
from quantverdict.stats.sequential import ConfidenceSequence

ALPHA = 0.025
MARGIN = 0.05
DIFFICULTY = (1.6, 0.4)
"""Beta distribution of a prompt's chance of a right answer: 80 % on average, most prompts nearly always or never."""
RIGHT = DIFFICULTY[0] / sum(DIFFICULTY)
DOC = Path(__file__).parents[1] / "docs" / "validity.md"


@dataclass(frozen=True)
class Setting:
    """Studies of `n` prompts in clusters of `cluster`, `flips` of which differ for nothing, `loss` lost in truth.

    `together` is the correlation of losses within a cluster.
    """

    n: int
    flips: float = 0.03
    loss: float = 0.0
    cluster: int = 1
    together: float = 0.3

    @property
    def clusters(self):
        return self.n // self.cluster

    @property
    def discordance(self):
        """Share of pairs that differ."""
        back = self.flips / 2 * (1 - self.loss / RIGHT)
        return self.loss + 2 * back


def simulate(setting, studies, rng, arms=1):
    """Baseline less each further arm, (arms, studies, n) of -1, 0, 1; the loss is in the first arm alone."""
    shape = (studies, setting.clusters)
    right = np.repeat(rng.beta(*DIFFICULTY, shape), setting.cluster, axis=1)
    a, b = DIFFICULTY
    fickle = setting.flips / (2 * a * b / ((a + b) * (a + b + 1)))
    same = rng.random(right.shape) < right

    def answer():
        return np.where(rng.random(right.shape) < fickle, rng.random(right.shape) < right, same)

    others = np.array([answer() for _ in range(arms)])
    if setting.loss > 0:
        share = setting.loss / RIGHT
        hit = np.full(shape, share)
        if setting.cluster > 1 and setting.together == 1:
            hit = (rng.random(shape) < share).astype(float)
        elif setting.cluster > 1:
            spread = 1 / setting.together - 1
            hit = rng.beta(share * spread, (1 - share) * spread, shape)
        others[0] &= rng.random(right.shape) >= np.repeat(hit, setting.cluster, axis=1)
    return (same[None].astype(np.int8) - others.astype(np.int8)).astype(np.int8)


@cache
def region(n, loss):
    return np.array(most_lost(n, loss, ALPHA))


def rejected(setting, differences, loss):
    """For each study, whether H0: true loss >= `loss`, and <= `loss`, is rejected by the tests of the package."""
    lost, gained = (differences > 0).sum(axis=1), (differences < 0).sum(axis=1)
    if setting.cluster == 1:
        return lost <= region(setting.n, loss)[gained], gained <= region(setting.n, -loss)[lost]
    labels = np.repeat(np.arange(setting.clusters), setting.cluster)
    found = [
        clustered(row, labels, (int(b), int(c)), loss) for row, b, c in zip(differences, lost, gained, strict=True)
    ]
    return tuple(np.array(found).T)


def clustered(row, labels, counts, loss):
    sums, sizes = cluster_sums(row.astype(float), labels)
    effect = design_effect(sums, sizes, sum(counts), ALPHA)
    n = len(row) / effect
    if n > 100:
        # Far from the level the normal approximation says the same in a hundredth of the time.
        z = float(score(counts[0] / effect, counts[1] / effect, n, loss))
        near = [ALPHA / 6 < normal_cdf(side) < 6 * ALPHA for side in (z, -z)]
        if not any(near):
            return normal_cdf(z) <= ALPHA, normal_cdf(-z) <= ALPHA
    below, above = rate_tests((*counts, len(row)), len(sizes), effect, loss)
    return below <= ALPHA, above <= ALPHA


def covered(setting, differences):
    """For each study, whether Tango's interval, of counts over the design effect, holds the true loss."""
    lost, gained = (differences > 0).sum(axis=1), (differences < 0).sum(axis=1)
    if setting.cluster == 1:
        z = score(lost, gained, setting.n, setting.loss)
        return np.abs(z) <= 1.959964
    labels = np.repeat(np.arange(setting.clusters), setting.cluster)
    held = []
    for row, b, c in zip(differences, lost, gained, strict=True):
        effect = design_effect(*cluster_sums(row.astype(float), labels), int(b + c), ALPHA)
        found = tango_interval(c / effect, b / effect, len(row) / effect)
        held.append(-found.hi <= setting.loss <= -found.lo)
    return np.array(held)


def percent(flags):
    return 100 * float(np.mean(flags))


def wrong_outcomes(setting, studies, rng):
    """Outcomes of a variant that loses nothing, and of one that loses the margin; and the rule of any flip."""
    edge = replace(setting, loss=MARGIN)
    same, lossy = simulate(setting, studies, rng)[0], simulate(edge, studies, rng)[0]
    (right, alert), (within, beyond) = rejected(setting, same, MARGIN), rejected(edge, lossy, MARGIN)
    return {
        "n": setting.n,
        "null flips %": 100 * setting.flips,
        "cluster": setting.cluster,
        "any flip is a regression %": percent((same != 0).any(axis=1)),
        "inferior, no loss %": percent(alert),
        "inferior, loss = margin %": percent(beyond),
        "non_inferior, loss = margin %": percent(within),
        "non_inferior, no loss %": percent(right),
    }


def false_alarms(studies, rng):
    sizes, flips, clusters = (12, 24, 48, 100, 220, 500, 1000), (0.01, 0.03), (1, 4)
    settings = [Setting(n, share, 0.0, cluster) for n, share, cluster in product(sizes, flips, clusters)]
    return [wrong_outcomes(one, studies if one.cluster == 1 else studies // 4, rng) for one in settings]


def coverage(studies, rng):
    rows = []
    for n in (48, 100, 220, 500, 1000):
        for loss in (0.0, 0.05, 0.2):
            for cluster in (1, 4):
                setting = Setting(n, 0.03, loss, cluster)
                seen = simulate(setting, studies if cluster == 1 else studies // 4, rng)[0]
                within, beyond = rejected(setting, seen, loss) if cluster == 1 else (None, None)
                rows.append(
                    {
                        "n": n,
                        "true loss pp": 100 * loss,
                        "cluster": cluster,
                        "pairs that differ": round(float((seen != 0).sum(axis=1).mean()), 1),
                        "Tango %": percent(covered(setting, seen)),
                        "exact %": None if within is None else percent(~(within | beyond)),
                    }
                )
    return rows


def power(studies, rng):
    """A true loss of 5 pp against margins, as planned and as simulated."""
    rows = []
    for n in (50, 100, 220, 500, 1000):
        for flips, loss, margin in ((0.01, 0.05, 0.02), (0.03, 0.05, 0.02), (0.03, 0.05, 0.0), (0.03, 0.05, 0.1)):
            setting = Setting(n, flips, loss)
            planned = outcome_probabilities(n, setting.discordance, loss, margin, ALPHA)
            within, beyond = rejected(setting, simulate(setting, studies, rng)[0], margin)
            rows.append(
                {
                    "n": n,
                    "null flips %": 100 * flips,
                    "margin pp": 100 * margin,
                    "inferior, planned %": 100 * planned.inferior,
                    "inferior, simulated %": percent(beyond),
                    "non_inferior, planned %": 100 * planned.non_inferior,
                    "non_inferior, simulated %": percent(within),
                }
            )
    return rows


def stopped(setting, values, family):
    """One study asked in rounds: how many prompts it took, and what was decided."""
    watched, units = MonitoredMetric(ConfidenceSequence(), MARGIN), setting.clusters
    ends = [setting.cluster * ((units * number + ROUNDS // 2) // ROUNDS) for number in range(ROUNDS + 1)]
    labels = [None if setting.cluster == 1 else str(at // setting.cluster) for at in range(setting.n)]
    for before, after in pairwise(ends):
        add_round(watched, values[before:after].tolist(), labels[before:after], setting.cluster)
        outcome = decision(stopped_p_values(watched), family)
        if outcome != "not_resolvable":
            return after, outcome
    return setting.n, decision(full_p_values(watched, full_tests(setting, values)), family)


def decision(both, family):
    below, above = both
    if min(both) > ALPHA / family:
        return "not_resolvable"
    return "non_inferior" if below < above else "inferior"


def full_tests(setting, values):
    lost, gained = int((values > 0).sum()), int((values < 0).sum())
    if setting.cluster == 1:
        return rate_tests((lost, gained, setting.n), setting.n, 1.0, MARGIN)
    sums, sizes = cluster_sums(values, np.arange(setting.n) // setting.cluster)
    return rate_tests((lost, gained, setting.n), len(sizes), design_effect(sums, sizes, lost + gained, ALPHA), MARGIN)


def stopping(studies, rng):
    rows = []
    for n, family, cluster in ((220, 1, 1), (220, 10, 1), (500, 10, 1), (1000, 10, 1), (500, 10, 4)):
        for loss in (0.0, MARGIN, 0.3):
            setting = Setting(n, 0.03, loss, cluster)
            seen = simulate(setting, studies // 8, rng)[0].astype(float)
            found = [stopped(setting, row, family) for row in seen]
            outcomes = np.array([outcome for _, outcome in found])
            full = np.array([decision(full_tests(setting, row), family) for row in seen])
            rows.append(
                {
                    "n": n,
                    "family": family,
                    "cluster": cluster,
                    "true loss pp": 100 * loss,
                    "prompts asked %": 100 * float(np.mean([asked for asked, _ in found])) / n,
                    "inferior %": percent(outcomes == "inferior"),
                    "non_inferior %": percent(outcomes == "non_inferior"),
                    "inferior, full run %": percent(full == "inferior"),
                    "non_inferior, full run %": percent(full == "non_inferior"),
                }
            )
    return rows


def means(studies, rng):
    """Continuous metrics whose true loss is the margin: smooth, half of answers equal, rare collapses."""
    rows = []
    for name in ("every answer changes a little", "half of the answers are the same", "1 of 16 collapses, others same"):
        for n in (12, 50, 100, 220):
            found = [mean_loss(draw(name, n, rng), MARGIN, ALPHA) for _ in range(2 * studies)]
            rows.append(
                {
                    "differences": name,
                    "n": n,
                    "inferior, loss = margin %": percent([one.p_inferior <= ALPHA for one in found]),
                    "non_inferior, loss = margin %": percent([one.p_noninferior <= ALPHA for one in found]),
                    "coverage %": percent([one.lo <= MARGIN <= one.hi for one in found]),
                }
            )
    return rows


def draw(name, n, rng):
    if name.startswith("every"):
        return np.clip(rng.normal(MARGIN, 0.15, n), -1, 1)
    if name.startswith("half"):
        return np.where(rng.random(n) < 0.5, 0.0, np.clip(rng.normal(2 * MARGIN, 0.15, n), -1, 1))
    return np.where(rng.random(n) < 1 / 16, 16 * MARGIN, 0.0)


def floors(studies, rng):
    """A build that is one more A/A replicate, beside two A/A replicates, and one that loses 5 pp."""
    rows = []
    for n in (24, 100, 500):
        for cluster in (1, 4):
            row = {"n": n, "cluster": cluster}
            for loss in (0.0, MARGIN):
                seen = simulate(Setting(n, 0.03, loss, cluster), studies // 8, rng, arms=3) != 0
                labels = None if cluster == 1 else np.repeat(np.arange(n // cluster), cluster).tolist()
                found = [excess_flips(seen[0, at], seen[1:, at], labels).p for at in range(seen.shape[1])]
                row[f"excess at 5 %, loss {100 * loss:.0f} pp %"] = percent(np.array(found) <= 0.05)
            rows.append(row)
    return rows


def recovery(studies, rng):
    """How often the 95 % interval of a build's score over its baseline's holds the truth: rates, and means in [0, 1].

    Four in five right answers of the baseline; the build loses some and gains some of the wrong ones, by whole
    clusters. Scores of the mean are 5 % lower in truth, and noisy; where few prompts differ it has no interval.
    """
    rows = []
    for n, cluster, flips in product((60, 200, 1000), (1, 4), (0.02, 0.1)):
        row, labels = {"n": n, "cluster": cluster, "flips %": 100 * flips}, np.repeat(np.arange(n // cluster), cluster)
        rates, means = [], []
        for _ in range(studies // 4):
            base = rng.random(n) < RIGHT
            moved = (rng.random(n // cluster) < flips)[labels]
            mine = np.where(moved, rng.random(n) < RIGHT, base)
            counts = np.array([(base & mine).sum(), (mine & ~base).sum(), (base & ~mine).sum()])
            sums = cluster_sums((base * 1.0 - mine), labels.tolist())
            effect = 1.0 if cluster == 1 else design_effect(*sums, int(counts[1:].sum()), ALPHA)
            rates.append(holds(paired_rate_ratio(*(counts / effect)), 1.0))
            scores = np.clip(rng.beta(4, 2, n // cluster)[labels] + rng.normal(0, 0.05, n), 0, 1)
            noisy = 0.95 * scores + rng.normal(0, flips, n // cluster)[labels]
            means.append(holds(paired_mean_ratio(noisy, scores, labels.tolist()), 0.95))
        rows.append(row | {"rate %": percent(rates), "mean %": percent(means)})
    return rows


def holds(found, truth):
    return found is not None and found.lo <= truth <= found.hi


def worst_clusters(studies, rng):
    """Losses that hit whole clusters, beside flips that do not: the hardest case for the design effect."""
    cases = product(((285, 5), (220, 4)), (0.3, 0.6, 1.0), (0.01, 0.03))
    settings = [Setting(n, flips, 0.0, cluster, together) for (n, cluster), together, flips in cases]
    return [{"correlation": f"{one.together:g}", **wrong_outcomes(one, studies // 2, rng)} for one in settings]


UNGRADED = {"none": (0, 0), "half of the lost": (0.5, 0), "all of the lost": (1, 0), "20 % of all": (0.2, 0.2)}
"""The shares of lost answers and of all others that have no grade."""
FLIPS = 0.02


def ungraded(studies, rng):
    """A build whose answers have no grade where they are wrong: as they are counted, and as if they were left out."""
    return [
        one_ungraded(n, which, share, studies // 4, rng)
        for n, share, which in product((100, 220, 500), (0.0, 0.05), UNGRADED)
    ]


def one_ungraded(n, which, baseline, studies, rng):
    """`baseline` is the share of the baseline's answers without a grade, at random."""
    found = {loss: accepted(n, loss, UNGRADED[which], baseline, studies, rng) for loss in (MARGIN, 0.0)}
    return {
        "n": n,
        "without a grade": which,
        "in the baseline %": 100 * baseline,
        "left out: non_inferior, loss = margin %": percent(found[MARGIN][:, 1]),
        "non_inferior, loss = margin %": percent(found[MARGIN][:, 0]),
        "non_inferior, no loss %": percent(found[0.0][:, 0]),
    }


def accepted(n, loss, shares, baseline, studies, rng):
    """For each study, whether it is accepted as the package counts, and by the pairs that both have a grade for.

    The baseline is right on 80 % of the prompts, and 2 % of the answers flip beside the loss.
    """
    found = []
    for _ in range(studies):
        before, chance = rng.random(n) < RIGHT, rng.random((4, n))
        after = np.where(before, chance[0] >= (loss + FLIPS / 2) / RIGHT, chance[0] < FLIPS / 2 / (1 - RIGHT))
        gone = chance[1] < np.where(before & ~after, shares[0], shares[1])
        mine, theirs = (
            np.where(unread, np.nan, right) for unread, right in ((gone, after), (chance[2] < baseline, before))
        )
        bounds = bounded_losses("refusal_rate", mine, theirs, np.ones(n, dtype=bool))
        both = theirs - mine
        found.append([within(losses[~np.isnan(losses)]) for losses in (bounds.accept, both)])
    return np.array(found)


def within(losses):
    gained, allowed = int((losses < 0).sum()), region(len(losses), MARGIN)
    return gained < len(allowed) and int((losses > 0).sum()) <= allowed[gained]


def too_often(row):
    """An outcome that is wrong is due at most one time in 20."""
    wrong = ("inferior, no loss %", "inferior, loss = margin %", "non_inferior, loss = margin %")
    return any(row.get(column, 0) > 5 for column in wrong)


def off_nominal(row):
    """Within 1.5 points of 95 %; where few pairs differ, or by clusters, it may be more."""
    tango, exact = row["Tango %"], row["exact %"]
    many = row["pairs that differ"] >= 15 and row["cluster"] == 1
    return tango < 93.5 or (exact is not None and exact < 93.5) or (many and tango > 96.5)


def unlike_plan(row):
    return any(
        abs(row[f"{name}, planned %"] - row[f"{name}, simulated %"]) > 5 for name in ("inferior", "non_inferior")
    )


def stopped_wrongly(row):
    loss = row["true loss pp"]
    wrong = (row["inferior %"] if loss <= 5 else 0, row["non_inferior %"] if loss >= 5 else 0)
    # A cluster is one bet, so a set of few clusters needs more of them.
    return max(wrong) > 5 or (loss == 30 and row["cluster"] == 1 and row["prompts asked %"] > 100 / 3)


def accepted_wrongly(row):
    """Where the baseline has a grade for everything: 2.5 %, and what 1,000 studies are off by."""
    return row["in the baseline %"] == 0 and row["non_inferior, loss = margin %"] > 2.5 + 1.5


CLAIMS = {
    "false_alarms": too_often,
    "coverage": off_nominal,
    "power": unlike_plan,
    "stopping": stopped_wrongly,
    "means": too_often,
    "floors": lambda row: row["excess at 5 %, loss 0 pp %"] > 5 + 1.5,
    "worst_clusters": too_often,
    "ungraded": accepted_wrongly,
    "recovery": lambda row: min(row["rate %"], row["mean %"]) < 95 - 2.5,
    **criteria_validity.CLAIMS,
}


def broken_claims(tables):
    return [f"{name}: {row}" for name, rows in tables.items() for row in rows if CLAIMS[name](row)]


SECTIONS = {
    "false_alarms": false_alarms,
    "coverage": coverage,
    "power": power,
    "stopping": stopping,
    "means": means,
    "floors": floors,
    "worst_clusters": worst_clusters,
    "ungraded": ungraded,
    **criteria_validity.SECTIONS,
    "recovery": recovery,
}


def as_table(rows):
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---:" for _ in names) + " |"]
    for row in rows:
        cells = ["" if v is None else f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(name, studies, seed=1):
    """A section's table; its random numbers depend on no other section."""
    return SECTIONS[name](studies, np.random.default_rng([seed, list(SECTIONS).index(name)]))


def write(tables):
    text = DOC.read_text()
    for name, rows in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        before, rest = text.split(start)
        text = before + start + "\n" + as_table(rows) + "\n" + end + rest.split(end)[1]
    DOC.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=SECTIONS, nargs="+")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    tables = {}
    for name in SECTIONS:
        if given.only is None or name in given.only:
            start = time.perf_counter()
            tables[name] = table(name, given.studies, given.seed)
            print(f"## {name} ({time.perf_counter() - start:.0f} s)\n\n{as_table(tables[name])}\n", flush=True)
    if given.write:
        write(tables)
    broken = broken_claims(tables)
    print("\n".join(broken) or "every claim holds")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
