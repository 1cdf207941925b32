"""Do corrected rates cover what they say, by simulation? docs/labels.md quotes the output.

    python benchmarks/corrected_rates.py [--repeats 3000] [--studies 600] [--seed 1]

`rates`: one cell of 220 prompts, true rate 0.05 to 0.95, sensitivity and specificity 0.7 to 0.99, 50 to 200 labelled,
with and without a part that is labelled whole, as discordant pairs are. `studies`: the design as it is used: a baseline
and three builds that repeat many of its answers and lose 15 or 50 % in the others, drawn and corrected by the functions
of the package; each build's rate and delta, and, where prompts are clustered, those too. Beside them, without clusters,
what Tango's interval covers where a person labels every answer. Exits 1 where, but for noise, an interval covers less
than 93.5 %, or rates or deltas on average less than 94 or more than 96 %.
"""

import argparse
import math
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import product

import numpy as np

from quantverdict.labels.correction import LabelledSample, UncorrectedRate, corrected_table
from quantverdict.labels.sheet import AT_LEAST, SheetAnswer, SheetPrompt, draw
from quantverdict.records import CellId
from quantverdict.stats.corrected_rates import Stratum, corrected_rate
from quantverdict.stats.paired import discordant, tango_interval

PROMPTS = 220
RATES = (0.05, 0.1, 0.2, 0.5, 0.8, 0.95)
QUALITIES = (0.7, 0.85, 0.99)
LABELLED = (50, 100, 200)
LEAST, MEAN = 0.935, (0.94, 0.96)
DROPS = (0.15, 0.5)
BASE, BUILDS = CellId("m", "base"), tuple(CellId("m", f"q{number}") for number in (1, 2, 3))


@dataclass(frozen=True)
class Truth:
    """What a person would say: rate, what the instrument sees of it, and how builds repeat the baseline.

    `same` answers are the baseline's text; of the others, `drop` of what the baseline has is lost.
    """

    rate: float
    sensitivity: float
    specificity: float
    same: float = 0.6
    drop: float = 0.15
    cluster: int = 1


def one_cell(rng, truth, labelled, *, certain):
    """Strata of one cell: by what the instrument says, and whether labelled whole."""
    has = rng.random(PROMPTS) < truth.rate
    seen = np.where(has, rng.random(PROMPTS) < truth.sensitivity, rng.random(PROMPTS) >= truth.specificity)
    whole = rng.random(PROMPTS) < (0.2 if certain else 0.0)
    left = PROMPTS - int(whole.sum())
    wanted = min(left, max(10, labelled - int(whole.sum())))
    strata = []
    for said, all_of_it in product((True, False), (True, False)):
        mine = has[(seen == said) & (whole == all_of_it)]
        size = len(mine)
        if size:
            n = size if all_of_it else min(size, max(AT_LEAST, round(wanted * size / left)))
            strata.append(Stratum(size, n, int(rng.permutation(mine)[:n].sum())))
    return strata


def chances(rng, cluster):
    """One number of 0 to 1 for each prompt; most prompts of a cluster share theirs."""
    alone = rng.random(PROMPTS)
    if cluster == 1:
        return alone
    shared = rng.random(-(-PROMPTS // cluster))[np.arange(PROMPTS) // cluster]
    return np.where(rng.random(PROMPTS) < 0.6, shared, alone)


def study(rng, truth):
    """The answers of a baseline and its builds, what a person says of each text and of each cell, a build's rate."""
    base = chances(rng, truth.cluster) < truth.rate
    answers, says, people = [], {}, []
    for cell in (BASE, *BUILDS):
        same = np.ones(PROMPTS, bool) if cell == BASE else chances(rng, truth.cluster) < truth.same
        moves = chances(rng, truth.cluster)
        has = np.where(same, base, np.where(base, moves >= truth.drop, moves < truth.drop / 4))
        seen = np.where(has, rng.random(PROMPTS) < truth.sensitivity, rng.random(PROMPTS) >= truth.specificity)
        if cell == BASE:
            first = seen
        seen = np.where(same, first, seen)
        people.append(has)
        for at in range(PROMPTS):
            text = f"{at} {'base' if same[at] else cell.quant}"
            says[text] = "FULL_REFUSAL" if has[at] else "COMPLIANCE"
            cluster = f"c{at // truth.cluster}" if truth.cluster > 1 else None
            said = (str(int(seen[at])), "")
            answers.append(SheetAnswer(cell, BASE, SheetPrompt("t", f"{at:03}"), "refusal_rate", cluster, said, text))
    build_rate = truth.rate * (truth.same + (1 - truth.same) * (1 - truth.drop))
    build_rate += (1 - truth.rate) * (1 - truth.same) * truth.drop / 4
    return answers, says, people, build_rate


def cover_rates(rng, repeats):
    """Coverage of one cell's rate over the grid."""
    rows = []
    for rate, sensitivity, specificity, labelled, certain in product(
        RATES, QUALITIES, QUALITIES, LABELLED, (False, True)
    ):
        truth = Truth(rate, sensitivity, specificity)
        found = [corrected_rate(one_cell(rng, truth, labelled, certain=certain)) for _ in range(repeats)]
        hit = sum(one.lo <= rate <= one.hi for one in found) / repeats
        bias = sum(one.value for one in found) / repeats - rate
        rows.append((hit, bias, sum(one.hi - one.lo for one in found) / repeats, (truth, labelled, certain)))
    return rows


def cover_studies(rng, studies):
    """Coverage of builds' rates and deltas in whole studies."""
    settings = [
        Truth(rate, sensitivity, specificity, drop=drop, cluster=cluster)
        for rate in (0.1, 0.5, 0.9)
        for sensitivity, specificity in ((0.7, 0.9), (0.9, 0.99))
        for drop in DROPS
        for cluster in (1, 4)
    ]
    for truth, labelled in product(settings, (100, 300)):
        sums = defaultdict(float)
        for number in range(studies):
            answers, says, people, build_rate = study(rng, truth)
            drawn = draw(answers, labelled, number)
            given = {entry.answer.text: says[entry.answer.text] for entry in drawn if entry.selected}
            sums["on sheet"] += len(given)
            raw = {cell: [UncorrectedRate("refusal_rate", "pattern", None, None)] for cell in (BASE, *BUILDS)}
            table = corrected_table(LabelledSample(drawn, given), raw)
            found = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            sums["baseline"] += found[0]["ci_lo"] <= truth.rate <= found[0]["ci_hi"]
            delta = build_rate - truth.rate
            for one, has in zip(found[1:], people[1:], strict=True):
                lo, hi = one["delta_ci_lo_pp"], one["delta_ci_hi_pp"]
                sums["rate"] += (one["ci_lo"] <= build_rate <= one["ci_hi"]) / len(BUILDS)
                sums["delta"] += (lo <= 100 * delta <= hi) / len(BUILDS)
                sums["excludes 0"] += (not lo <= 0 <= hi) / len(BUILDS)
                sums["width"] += (hi - lo) / len(BUILDS)
                if truth.cluster == 1:
                    pairs = discordant(people[0], has)
                    everything = tango_interval(pairs.gained, pairs.lost, pairs.n)
                    sums["all labelled"] += (everything.lo <= delta <= everything.hi) / len(BUILDS)
                    sums["its width"] += 100 * (everything.hi - everything.lo) / len(BUILDS)
        yield truth, labelled, {name: total / studies for name, total in sums.items()}


def below(share, repeats):
    """Whether a coverage is under the least, beyond four standard errors of its simulation."""
    return share < LEAST - 4 * math.sqrt(LEAST * (1 - LEAST) / repeats)


def told(name, shares, repeats):
    """Print mean and range of coverages; whether the mean is off, beyond two standard errors of its simulation."""
    shares = np.array(shares)
    mean, noise = shares.mean(), 2 * math.sqrt(0.95 * 0.05 / (repeats * len(shares)))
    print(f"  {name}, {len(shares)} settings: {mean:.3f} ({shares.min():.3f} to {shares.max():.3f})", end="")
    print(f"; under {LEAST}: {(shares < LEAST).sum()}, over {MEAN[1]}: {(shares > MEAN[1]).sum()}")
    return not MEAN[0] - noise <= mean <= MEAN[1] + noise


def check_rates(rng, repeats):
    """Print coverage of rates; whether it fails."""
    rows = cover_rates(rng, repeats)
    print(f"rates, {repeats} cells a setting: coverage, mean (least to most)")
    off = told("rates", [row[0] for row in rows], repeats)
    told("of them 0.1 to 0.8", [row[0] for row in rows if 0.05 < row[3][0].rate < 0.95], repeats)
    told("of them 0.05 and 0.95", [row[0] for row in rows if not 0.05 < row[3][0].rate < 0.95], repeats)
    print(f"  largest bias {max(abs(row[1]) for row in rows):.4f}, mean width {np.mean([row[2] for row in rows]):.3f}")
    ordered = sorted(rows, key=lambda row: row[0])
    for hit, bias, width, setting in ordered[:3] + ordered[-3:]:
        print(f"  {hit:.3f} bias {bias:+.4f} width {width:.3f} {setting}")
    return off or any(below(row[0], repeats) for row in rows)


def check_studies(rng, studies):
    """Print coverage of rates and deltas in whole studies; whether it fails."""
    print(f"\n{studies} studies a setting: rate, sensitivity, specificity, loss, cluster, rows asked: ...")
    rows = []
    for truth, labelled, found in cover_studies(rng, studies):
        rows.append((truth, found))
        setting = f"{truth.rate} {truth.sensitivity} {truth.specificity} {truth.drop} {truth.cluster} {labelled}"
        print(f"  {setting}:", ", ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
    print("coverage, mean (least to most)")
    wrong = [told(f"{name}s", [found[name] for _, found in rows], studies) for name in ("rate", "delta")]
    for cluster, drop in product((1, 4), DROPS):
        mine = [found for truth, found in rows if (truth.cluster, truth.drop) == (cluster, drop)]
        for name in [name for name in ("rate", "delta", "all labelled") if name in mine[0]]:
            told(f"{name}, clusters of {cluster}, {drop:.0%} lost", [found[name] for found in mine], studies)
        widths = {name: np.mean([found[name] for found in mine]) for name in ("width", "its width") if name in mine[0]}
        print("    mean width of deltas (pp):", ", all labelled ".join(f"{width:.1f}" for width in widths.values()))
    wrong += [below(found[name], studies) for _, found in rows for name in ("baseline", "rate", "delta")]
    return any(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3000)
    parser.add_argument("--studies", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng, start = np.random.default_rng(given.seed), time.monotonic()
    failed = [check_rates(rng, given.repeats), check_studies(rng, given.studies)]
    print(f"{time.monotonic() - start:.0f} s")
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
